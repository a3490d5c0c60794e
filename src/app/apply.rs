//! `Replica`: the one path by which entries enter this node.
//!
//! Client, peer, repair, hint, comparison, join: all end here. First the log, then the store, then
//! the clock and the hooks. A value is readable only once it is as durable as the policy says.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use crate::domain::{Entry, Key, KeyedEntry, NodeId, Timestamp, Version};
use crate::ports::{
    ApplyError, LogError, LogRecord, Merged, NotCertified, OpLog, Origin, Replayed, Store,
    WriteReply,
};

use super::fence::{Fence, Horizon};
use super::hook_chain::HookChain;
use super::refusals::Refusals;
use super::restorer::Restorer;
use super::stage::Stage;
use super::stamps::Stamps;
use super::underway::Underway;
use super::walks::Walks;

/// How long the log may take for a new horizon, and how long another one waits for its turn.
const CERTIFY_WITHIN: Duration = Duration::from_secs(5);
const TURN_WITHIN: Duration = Duration::from_secs(3);

/// How long something took here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Took {
    /// Until the log had it.
    pub(crate) log: Duration,
    /// From then on.
    pub(crate) store: Duration,
}

/// This node's copy of the data.
pub struct Replica {
    store: Arc<dyn Store>,
    log: Arc<dyn OpLog>,
    stamps: Arc<Stamps>,
    hooks: Arc<HookChain>,
    stage: Arc<Stage>,
    fence: Fence,
    /// Held while a horizon is made durable: one at a time.
    certifying: tokio::sync::Mutex<()>,
    underway: Underway,
    /// Where tombstones are looked for.
    walks: Walks,
    entries_synced: AtomicU64,
    drift_refusals: Refusals,
}

impl Replica {
    pub(crate) fn new(
        store: Arc<dyn Store>,
        log: Arc<dyn OpLog>,
        stamps: Arc<Stamps>,
        hooks: Arc<HookChain>,
        stage: Arc<Stage>,
    ) -> Self {
        Self {
            store,
            log,
            stamps,
            hooks,
            stage,
            fence: Fence::new(Arc::new(Horizon::default())),
            certifying: tokio::sync::Mutex::default(),
            underway: Underway::default(),
            walks: Walks::default(),
            entries_synced: AtomicU64::new(0),
            drift_refusals: Refusals::default(),
        }
    }

    /// The same, looking for its tombstones there.
    pub(crate) fn walking(self, walks: Walks) -> Self {
        Self { walks, ..self }
    }

    /// Fills the store and the clock from the log.
    pub(crate) async fn replay(&self) -> Result<Replayed, LogError> {
        let horizon = Arc::clone(self.fence.horizon());
        let restorer = Restorer::new(Arc::clone(&self.store), horizon)
            .telling(self.stamps.node(), self.hooks.resumption());
        let newest = Arc::clone(restorer.newest());
        let replayed = self.log.replay(Box::new(restorer)).await?;
        self.stamps.restore(newest.get());
        // At the end, once: until then tombstones hide what they removed.
        self.drop_tombstones().await;
        Ok(replayed)
    }

    /// Merges one write in. Not cancel safe between log and store.
    pub(crate) async fn apply_one(
        &self,
        write: KeyedEntry,
        origin: Origin,
    ) -> Result<WriteReply, ApplyError> {
        let _change = self.underway.begin();
        if let Some(reply) = self.admit(&write, Way::Entering(origin))? {
            return Ok(reply);
        }
        self.log.append(&[LogRecord::Write(write.clone())]).await?;
        Ok(self.settle(write, origin))
    }

    /// Merges many writes in, with one wait for the log; the replies are in their order. Not cancel
    /// safe between log and store.
    pub(crate) async fn apply(
        &self,
        writes: Vec<KeyedEntry>,
        origin: Origin,
    ) -> Vec<Result<WriteReply, ApplyError>> {
        self.enter(writes, Way::Entering(origin)).await.0
    }

    /// The same, with how long it took.
    pub(crate) async fn apply_timed(
        &self,
        writes: Vec<KeyedEntry>,
        origin: Origin,
    ) -> (Vec<Result<WriteReply, ApplyError>>, Took) {
        self.enter(writes, Way::Entering(origin)).await
    }

    /// Merges in what a member holds that is certified further than this node: for it, the fence
    /// is open. As [`apply`](Self::apply) otherwise.
    pub(crate) async fn adopt(
        &self,
        writes: Vec<KeyedEntry>,
    ) -> Vec<Result<WriteReply, ApplyError>> {
        self.enter(writes, Way::Adopted).await.0
    }

    async fn enter(
        &self,
        writes: Vec<KeyedEntry>,
        way: Way,
    ) -> (Vec<Result<WriteReply, ApplyError>>, Took) {
        let origin = way.origin();
        let _change = self.underway.begin();
        let mut replies = Vec::with_capacity(writes.len());
        let mut records = Vec::with_capacity(writes.len());
        let mut places = Vec::with_capacity(writes.len());
        for write in writes {
            match self.admit(&write, way) {
                Ok(Some(reply)) => replies.push(Ok(reply)),
                Err(refused) => replies.push(Err(refused)),
                Ok(None) => {
                    places.push(replies.len());
                    replies.push(Err(ApplyError::Log(LogError::Closed)));
                    records.push(LogRecord::Write(write));
                }
            }
        }
        if records.is_empty() {
            return (replies, Took::default());
        }
        let begun = Instant::now();
        let logged = self.log.append(&records).await;
        let full = logged == Err(LogError::DiskFull);
        let rest = if full { self.log_removals(&records).await } else { logged.clone() };
        let log = begun.elapsed();
        for (place, record) in places.into_iter().zip(records) {
            let logged = if record.holds_value() { &logged } else { &rest };
            if let (Some(reply), LogRecord::Write(write)) = (replies.get_mut(place), record) {
                *reply = match logged {
                    Ok(()) => Ok(self.settle(write, origin)),
                    Err(error) => Err(error.clone().into()),
                };
            }
        }
        (replies, Took { log, store: begun.elapsed().saturating_sub(log) })
    }

    /// Appends the removals among records that the log had no space for: it has kept some for them.
    async fn log_removals(&self, records: &[LogRecord]) -> Result<(), LogError> {
        let is_removal = |record: &&LogRecord| !record.holds_value();
        let removals: Vec<_> = records.iter().filter(is_removal).cloned().collect();
        if removals.is_empty() || removals.len() == records.len() {
            // Nothing is left to try.
            return Err(LogError::DiskFull);
        }
        self.log.append(&removals).await
    }

    /// Waits until everything that is in the log by now is in the store. Cancel safe.
    pub(crate) async fn settled(&self) {
        self.underway.settled().await;
    }

    /// This node's copy of a key.
    pub(crate) fn get(&self, key: &Key) -> Option<Entry> {
        self.store.get(key)
    }

    /// The store, for walks over it. Entries enter through this type only.
    pub(crate) fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }

    /// Entries taken over by comparison, and entries refused for their clock.
    pub(crate) fn counts(&self) -> (u64, u64) {
        (self.entries_synced.load(Ordering::Relaxed), self.drift_refusals.all())
    }

    /// Entries refused for their clock that this node stamped.
    pub(crate) fn clock_refusals(&self, stamped_by: NodeId) -> u64 {
        self.drift_refusals.of(stamped_by)
    }

    /// Checks a write. `Some` is the answer to one that this node already knows of: it is not
    /// logged again, so repeated deliveries cost nothing. (What the store holds, the log holds.)
    fn admit(&self, write: &KeyedEntry, way: Way) -> Result<Option<WriteReply>, ApplyError> {
        self.stage.admit_peer().map_err(ApplyError::NotReady)?;
        let stamp = write.entry.version.timestamp;
        let refused = self.fence.refuses(stamp).filter(|_| way != Way::Adopted);
        if way == Way::Entering(Origin::Client) && refused.is_none() {
            // Stamped a moment ago, by this node: nobody has it already.
            return Ok(None);
        }
        self.check_clock(write)?;
        Ok(match self.store.get(&write.key) {
            Some(held) if held == write.entry => Some(WriteReply::Applied { previous: None }),
            Some(held) if held.supersedes(&write.entry) => {
                Some(WriteReply::Superseded { by: held.version })
            }
            // A ghost: of a key that was removed so long ago that the tombstone is forgotten.
            _ => refused.map(|by| WriteReply::Superseded { by }),
        })
    }

    /// Whether an entry that another node holds is of a key that was removed and forgotten.
    pub(crate) fn is_ghost(&self, key: &Key, theirs: &Entry) -> bool {
        self.fence.refuses(theirs.version.timestamp).is_some()
            && self.store.get(key).is_none_or(|held| held.version != theirs.version)
    }

    /// Where this node is certified.
    pub(crate) fn horizon(&self) -> Timestamp {
        self.fence.horizon().get()
    }

    /// How long ago that was, if this node is certified at all.
    pub(crate) fn horizon_age(&self) -> Option<Duration> {
        let (now, horizon) = (self.stamps.now(), self.horizon());
        let certified = horizon > Timestamp::ZERO;
        certified.then(|| Duration::from_nanos(now.nanos_after(horizon)))
    }

    /// What the fence has seen.
    pub(crate) fn fence(&self) -> &Fence {
        &self.fence
    }

    /// Certifies this node at a horizon, durably, and forgets its tombstones up to there, unless
    /// something has arrived late `since` it was compared: that may be held by this node alone. The
    /// caller knows that it held everything up to there then. Takes a few seconds at most, whatever
    /// the disk does. Not cancel safe between log and fence.
    pub(crate) async fn certify(
        &self,
        horizon: Timestamp,
        since: Timestamp,
    ) -> Result<(), NotCertified> {
        let turn = tokio::time::timeout(TURN_WITHIN, self.certifying.lock()).await;
        let Ok(_turn) = turn else { return Err(LogError::Overloaded.into()) };
        if horizon <= self.horizon() {
            return Ok(());
        }
        let before = self.fence.shut(horizon, &self.underway).await.map_err(LogError::from)?;
        // Whatever was on its way in has arrived now.
        if self.fence.last_late() >= Some(since) {
            self.fence.open(before);
            return Err(NotCertified::Disturbed);
        }
        let record = [LogRecord::Horizon(horizon)];
        let Ok(logged) = tokio::time::timeout(CERTIFY_WITHIN, self.log.append(&record)).await
        else {
            // It may yet come into the log, so nothing that is older may come behind it.
            return Err(LogError::Overloaded.into());
        };
        if let Err(error) = logged {
            if !matches!(error, LogError::Failed(_)) {
                self.fence.open(before);
            }
            return Err(error.into());
        }
        self.stamps.restore(horizon);
        self.fence.horizon().raise(horizon);
        self.drop_tombstones().await;
        Ok(())
    }

    /// Takes back, durably, what this node was certified for: it goes over to members that know
    /// nothing of that, or have gone on without it. Takes a few seconds at most. Not cancel safe
    /// between log and fence.
    pub(crate) async fn uncertify(&self) -> Result<(), LogError> {
        let turn = tokio::time::timeout(TURN_WITHIN, self.certifying.lock()).await;
        let Ok(_turn) = turn else { return Err(LogError::Overloaded) };
        // Also of one that was not known to be in the log: it may have got there since.
        if self.fence.through() > Timestamp::ZERO {
            let record = [LogRecord::Horizon(Timestamp::ZERO)];
            let logged = tokio::time::timeout(CERTIFY_WITHIN, self.log.append(&record)).await;
            logged.unwrap_or(Err(LogError::Overloaded))?;
        }
        self.fence.lift();
        Ok(())
    }

    /// Takes these versions out, durably.
    pub(crate) async fn expunge(&self, versions: &[(Key, Version)]) -> Result<(), LogError> {
        let record = |(key, version): &(Key, Version)| LogRecord::Expunged {
            key: key.clone(),
            version: *version,
        };
        let _change = self.underway.begin();
        self.log.append(&versions.iter().map(record).collect::<Vec<_>>()).await?;
        for (key, version) in versions {
            self.store.expunge(key, *version);
        }
        Ok(())
    }

    async fn drop_tombstones(&self) {
        let through = self.horizon();
        if through > Timestamp::ZERO {
            self.fence.note_dropped(self.walks.drop_tombstones(&self.store, through).await);
        }
    }

    fn check_clock(&self, write: &KeyedEntry) -> Result<(), ApplyError> {
        self.stamps.check(write.entry.version.timestamp).map_err(|drift| {
            self.drift_refusals.count(write.entry.version.node);
            tracing::warn!(from = %write.entry.version.node, %drift, "write refused: clock drift");
            drift.into()
        })
    }

    /// Makes a logged write readable.
    fn settle(&self, write: KeyedEntry, origin: Origin) -> WriteReply {
        // What was checked a moment ago is at most as far ahead now: nothing to refuse any more.
        let stamp = write.entry.version.timestamp;
        self.stamps.restore(stamp);
        let is_removal = write.entry.is_tombstone();
        let merged = if self.hooks.is_empty() {
            self.store.merge(write)
        } else {
            let merged = self.store.merge(write.clone());
            if matches!(merged, Merged::Applied { .. }) {
                self.hooks.after_write(&write, origin);
            }
            merged
        };
        match merged {
            Merged::Applied { previous } => {
                // Of a client's write, too: the process may have stood still since it was stamped.
                self.fence.note_arrival(stamp, self.stamps.now());
                if origin == Origin::Sync {
                    self.entries_synced.fetch_add(1, Ordering::Relaxed);
                }
                WriteReply::Applied { previous: previous.filter(|_| is_removal) }
            }
            Merged::Unchanged => WriteReply::Applied { previous: None },
            Merged::Superseded { by } => WriteReply::Superseded { by },
        }
    }
}

/// How an entry comes in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// Through the fence.
    Entering(Origin),
    /// From a member that is certified further than this node.
    Adopted,
}

impl Way {
    const fn origin(self) -> Origin {
        match self {
            Self::Entering(origin) => origin,
            Self::Adopted => Origin::Sync,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use tokio::time::Instant;
    use tokio_util::task::TaskTracker;

    use super::*;
    use crate::app::fixture::{Fixture, NOW, TestNode, key, live, version};
    use crate::domain::{LATE_NS, NodeId, Value};
    use crate::ports::{Certification, MockOpLog, RequestOptions, Verdict};

    fn certified(generation: u64, horizon: u64, age: Duration) -> Certification {
        Certification { horizon: Timestamp::from_nanos(horizon), generation, age }
    }

    #[tokio::test]
    async fn what_is_older_than_the_horizon_and_not_held_is_refused_and_what_is_held_stays() {
        const H: u64 = NOW / 2;
        let node = Fixture::with_peers([2]).build();
        let api = node.node.replica_api();
        let apply = async |name, at, origin: Origin| {
            let write = KeyedEntry::new(key(name), live(at, "v"));
            api.apply(vec![write], origin.into()).await.pop().unwrap().unwrap()
        };
        node.hold("held", live(H - 2, "v"));
        assert_eq!(api.fence(certified(1, H, Duration::ZERO)).await, Ok(()));
        let by = Version::new(Timestamp::from_nanos(H), NodeId::new(u64::MAX));
        for origin in [Origin::Replica, Origin::Repair, Origin::Sync, Origin::Client] {
            for at in [1, H - 1, H] {
                assert_eq!(apply("ghost", at, origin).await, WriteReply::Superseded { by });
                assert_eq!(node.held("ghost"), None);
            }
        }
        // A newer ghost of a key that is held is one, too.
        assert_eq!(apply("held", H - 1, Origin::Sync).await, WriteReply::Superseded { by });
        let known = WriteReply::Applied { previous: None };
        assert_eq!(apply("held", H - 2, Origin::Sync).await, known);
        assert_eq!(apply("held", H + 1, Origin::Sync).await, known);
        assert_eq!(apply("new", H + 1, Origin::Replica).await, known);
    }

    /// The coordinator takes the horizon for a newer entry, and stamps anew, after it.
    #[tokio::test]
    async fn a_write_that_the_fence_refuses_is_written_again_with_a_later_stamp() {
        let horizon = Version::new(Timestamp::from_nanos(NOW + 10), NodeId::new(u64::MAX));
        let mut fixture = Fixture::with_peers([2]);
        fixture.transport.expect_write().returning(move |_, write, _| {
            let ghost = write.entry.version <= horizon;
            let taken = WriteReply::Applied { previous: None };
            Ok(if ghost { WriteReply::Superseded { by: horizon } } else { taken })
        });
        let node = fixture.build();
        let all = "all".parse().unwrap();
        let options = RequestOptions { quorum: Some(all), ..RequestOptions::default() };
        let answer = node.client().add(key("k"), Value::new("v"), options).await.unwrap();
        assert_eq!((answer.verdict, answer.achieved), (Verdict::Success, 2));
        assert!(answer.timestamp > Some(horizon.timestamp));
    }

    #[tokio::test]
    async fn a_node_is_certified_only_as_the_one_that_was_compared_and_in_its_past() {
        let node = Fixture::with_peers([2]).build();
        let api = node.node.replica_api();
        let restarted = api.fence(certified(2, 9, Duration::ZERO)).await;
        assert!(matches!(restarted, Err(NotCertified::Changed(_))));
        let ahead = api.fence(certified(1, NOW - LATE_NS + 1, Duration::ZERO)).await;
        assert_eq!(ahead, Err(NotCertified::Clock));
        // Nothing is so old that it was fenced out.
        let late = KeyedEntry::new(key("late"), live(1, "v"));
        api.apply(vec![late], Origin::Replica.into()).await.pop().unwrap().unwrap();
        let disturbed = api.fence(certified(1, 9, Duration::from_secs(60))).await;
        assert_eq!(disturbed, Err(NotCertified::Disturbed));
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_on_its_way_in_late_keeps_a_node_from_being_certified() {
        let mut fixture = Fixture::with_peers([2]);
        fixture.log_delays.1 = Duration::from_secs(1);
        let node = fixture.build();
        let api = node.node.replica_api();
        let late = KeyedEntry::new(key("late"), live(1, "v"));
        let entering = api.apply(vec![late], Origin::Replica.into());
        let certifying = async {
            tokio::time::sleep(Duration::from_millis(500)).await;
            api.fence(certified(1, 9, Duration::from_secs(60))).await
        };
        let (_, disturbed) = futures_util::future::join(entering, certifying).await;
        assert_eq!(disturbed, Err(NotCertified::Disturbed));
        assert_eq!(node.held("late"), Some(live(1, "v")));
    }

    #[tokio::test]
    async fn without_the_log_there_is_no_horizon() {
        let mut log = MockOpLog::new();
        log.expect_append().returning(|_| Err(LogError::DiskFull));
        let node = Fixture { log, ..Fixture::with_peers([2]) }.build();
        let api = node.node.replica_api();
        let refused = api.fence(certified(1, 9, Duration::ZERO)).await;
        assert_eq!(refused, Err(NotCertified::Log(LogError::DiskFull)));
        assert_eq!(node.client().cluster().horizon, None);
        // And nothing is refused for it: others may not have reached it either.
        let late = KeyedEntry::new(key("late"), live(1, "v"));
        let replies = api.apply(vec![late], Origin::Replica.into()).await;
        assert_eq!(replies, [Err(ApplyError::Log(LogError::DiskFull))]);
    }

    /// A node whose disk hangs from now on, with a copy of "held", and its removal elsewhere.
    fn on_a_hanging_disk() -> (TestNode, KeyedEntry) {
        let hour = Duration::from_secs(3_600);
        let node = Fixture { log_delays: (hour, hour), ..Fixture::with_peers([2]) }.build();
        node.hold("held", live(8, "v"));
        (node, KeyedEntry::new(key("held"), live(8, "v")))
    }

    const SECOND: Duration = Duration::from_secs(1);
    const OVERLOADED: LogError = LogError::Overloaded;

    #[tokio::test(start_paused = true)]
    async fn a_horizon_that_the_disk_hangs_on_holds_up_nobody_and_ends() {
        let (node, held) = on_a_hanging_disk();
        let api = node.node.replica_api();
        let began = Instant::now();
        let certifying = TaskTracker::new().spawn({
            let api = Arc::clone(&api);
            async move { api.fence(certified(1, 9, Duration::ZERO)).await }
        });
        let second = TaskTracker::new().spawn({
            let api = Arc::clone(&api);
            async move { api.fence(certified(1, 10, Duration::ZERO)).await }
        });
        tokio::task::yield_now().await;
        // What needs no disk is answered at once: what is held, and what is refused.
        let ghost = KeyedEntry::new(key("ghost"), live(7, "v"));
        let replies = api.apply(vec![held, ghost.clone()], Origin::Replica.into()).await;
        assert_eq!(replies[0], Ok(WriteReply::Applied { previous: None }));
        assert!(matches!(replies[1], Ok(WriteReply::Superseded { .. })), "{replies:?}");
        assert_eq!(began.elapsed(), Duration::ZERO);
        for (fenced, within) in [(second, TURN_WITHIN), (certifying, CERTIFY_WITHIN)] {
            assert_eq!(fenced.await.unwrap(), Err(NotCertified::Log(OVERLOADED)));
            assert_eq!(began.elapsed(), within);
        }
        assert_eq!(node.client().cluster().horizon, None);
        // The log may have it when the node starts anew: nothing older comes in behind it.
        let replies = api.apply(vec![ghost], Origin::Replica.into()).await;
        assert!(matches!(replies[..], [Ok(WriteReply::Superseded { .. })]), "{replies:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_write_that_the_disk_hangs_on_keeps_a_horizon_waiting_for_a_moment_only() {
        let (node, held) = on_a_hanging_disk();
        let api = node.node.replica_api();
        let began = Instant::now();
        let hanging = TaskTracker::new().spawn({
            let (api, new) = (Arc::clone(&api), KeyedEntry::new(key("new"), live(NOW, "v")));
            async move { api.apply(vec![new], Origin::Replica.into()).await }
        });
        tokio::task::yield_now().await;
        let certifying = TaskTracker::new().spawn({
            let api = Arc::clone(&api);
            async move { api.fence(certified(1, 9, Duration::ZERO)).await }
        });
        tokio::task::yield_now().await;
        let replies = api.apply(vec![held], Origin::Replica.into()).await;
        assert_eq!(replies, [Ok(WriteReply::Applied { previous: None })]);
        assert!(began.elapsed() <= Duration::from_secs(1), "{:?}", began.elapsed());
        assert_eq!(certifying.await.unwrap(), Err(NotCertified::Log(OVERLOADED)));
        assert_eq!(began.elapsed(), Duration::from_secs(1));
        // And the fence is open again: what is older is not refused, but on its way to the disk.
        let old = vec![KeyedEntry::new(key("old"), live(7, "v"))];
        assert!(
            tokio::time::timeout(SECOND, api.apply(old, Origin::Replica.into())).await.is_err()
        );
        assert!(!hanging.is_finished());
        hanging.abort();
    }

    #[tokio::test]
    async fn the_removals_of_a_batch_are_taken_although_the_disk_has_no_space_for_its_values() {
        let logged = Arc::new(Mutex::new(Vec::new()));
        let mut log = MockOpLog::new();
        let takes = Arc::clone(&logged);
        log.expect_append().returning(move |records| {
            if records.iter().any(LogRecord::holds_value) {
                return Err(LogError::DiskFull);
            }
            takes.lock().unwrap().extend_from_slice(records);
            Ok(())
        });
        let fixture = Fixture { log, ..Fixture::with_peers([2]) };
        let node = fixture.build();
        node.hold("removed", live(1, "old"));
        let removal = |name| KeyedEntry::new(key(name), Entry::tombstone(version(9)));
        let value = |name| KeyedEntry::new(key(name), live(9, "new"));
        let batch = vec![value("a"), removal("removed"), value("b"), removal("unknown")];
        let replies = node.node.replica_api().apply(batch, Origin::Replica.into()).await;
        let full = Err(ApplyError::Log(LogError::DiskFull));
        let previous = Some(live(1, "old"));
        let expected = [
            full.clone(),
            Ok(WriteReply::Applied { previous }),
            full.clone(),
            Ok(WriteReply::Applied { previous: None }),
        ];
        assert_eq!(replies, expected);
        assert_eq!((node.held("a"), node.held("b")), (None, None));
        assert!(node.held("removed").is_some_and(|entry| entry.is_tombstone()));
        let removals = [removal("removed"), removal("unknown")].map(LogRecord::Write);
        assert_eq!(*logged.lock().unwrap(), removals);
    }

    #[tokio::test]
    async fn what_is_of_one_kind_is_not_tried_twice_when_the_disk_is_full() {
        for entry in [Entry::tombstone(version(9)), live(9, "new")] {
            let mut log = MockOpLog::new();
            log.expect_append().times(1).returning(|_| Err(LogError::DiskFull));
            let node = Fixture { log, ..Fixture::with_peers([2]) }.build();
            let write = KeyedEntry::new(key("k"), entry);
            let replies = node.node.replica_api().apply(vec![write], Origin::Replica.into()).await;
            assert_eq!(replies, [Err(ApplyError::Log(LogError::DiskFull))]);
            assert_eq!(node.held("k"), None);
        }
    }
}
