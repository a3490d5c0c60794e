//! `Members`: the node's view of its cluster, shared by everything that runs in the node.
//!
//! Readers take a snapshot without waiting; changes are made one at a time on a copy. Whoever must
//! act on changed records (save them, spread them) waits on [`Members::changes`].

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::domain::{
    CannotForget, Forgotten, Liveness, Meeting, Member, MemberView, NodeId, Phase, RecordChange,
    Start, Timestamp,
};
use crate::ports::{Announcement, Book, BookError, MemberBook, ProtocolRange, Refusal};

use super::fence::Horizon;
use super::statements::Statements;

/// The release that this node runs.
pub(crate) const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The members, shared.
pub(crate) struct Members {
    cluster: String,
    view: ArcSwap<MemberView>,
    /// Held while a change is made, so that none is lost.
    changing: Mutex<()>,
    /// Held while the view is written down.
    saving: tokio::sync::Mutex<()>,
    /// Counts changes of records (not of liveness).
    changes: watch::Sender<u64>,
    /// Counts how often this node, in the middle of its life, had to join again.
    rejoins: watch::Sender<u64>,
    /// What is written down of this node for as long as it is not whole.
    until_whole: Mutex<Option<Phase>>,
    /// Where this node is certified.
    horizon: Arc<Horizon>,
    /// Whether it says so: not before it knows in which cluster it is.
    states_horizon: AtomicBool,
    /// What the others stated last, beside records.
    statements: Statements,
    /// Since when this node knows that others are certified further.
    behind_since: Mutex<Option<Instant>>,
}

/// What came of an announcement.
#[derive(Debug, Default)]
pub(crate) struct TakenIn {
    /// What the sender is to this node.
    pub(crate) meeting: Option<Meeting>,
    /// Members that are new here or came back with a new generation.
    pub(crate) appeared: Vec<Member>,
    /// Members that went on to another phase.
    pub(crate) advanced: Vec<Member>,
    /// Members that lost their data directory, and so count as ones that left.
    pub(crate) replaced: Vec<Member>,
    /// The sender, if it was thought to be down or slow, and has just proved otherwise.
    pub(crate) returned: Option<NodeId>,
    /// Somebody believed that this node has left; it has stated itself anew.
    pub(crate) disputed: bool,
    /// Somebody knows a later generation of this node; it has stated itself anew and joins again.
    pub(crate) outlived: bool,
    /// The sender is certified further than this node, which has missed that: it joins again.
    pub(crate) overtaken: bool,
}

impl Members {
    /// The view of a node that states itself as `me` and remembers these others.
    pub(crate) fn new(
        cluster: &str,
        me: Member,
        remembered: Vec<Member>,
        start: Start,
        horizon: Arc<Horizon>,
    ) -> Self {
        let mut view = MemberView::new(me);
        for member in remembered {
            view.merge(member);
        }
        Self {
            cluster: cluster.to_owned(),
            view: ArcSwap::from_pointee(view),
            changing: Mutex::new(()),
            saving: tokio::sync::Mutex::new(()),
            changes: watch::Sender::new(0),
            rejoins: watch::Sender::new(0),
            until_whole: Mutex::new(start.kept_until_whole()),
            horizon,
            states_horizon: AtomicBool::new(start.first_phase() == Phase::Whole),
            statements: Statements::default(),
            behind_since: Mutex::default(),
        }
    }

    /// The view now.
    pub(crate) fn view(&self) -> Arc<MemberView> {
        self.view.load_full()
    }

    /// This node.
    pub(crate) fn me(&self) -> NodeId {
        self.view.load().me().id
    }

    /// Whether this node counts.
    ///
    /// # Errors
    /// Why clients must wait.
    pub(crate) fn check_whole(&self) -> Result<(), String> {
        match self.view.load().me().phase {
            Phase::Whole => Ok(()),
            Phase::Joining => Err("it has to join the cluster again".into()),
            Phase::Left => Err("it leaves the cluster".into()),
        }
    }

    /// The name of the cluster.
    pub(crate) fn cluster(&self) -> &str {
        &self.cluster
    }

    /// Sees a new number whenever records have changed.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// What this node states and knows, for another.
    pub(crate) fn announcement(&self) -> Announcement {
        let view = self.view.load();
        Announcement {
            cluster: self.cluster.clone(),
            protocol: ProtocolRange::OURS,
            sender: view.me().clone(),
            members: view.others().map(|(member, _)| member.clone()).collect(),
            version: VERSION.to_owned(),
            horizon: if self.states_horizon.load(Ordering::Acquire) {
                self.horizon.get()
            } else {
                Timestamp::ZERO
            },
        }
    }

    /// From now on this node states where it is certified, unless it has to join again since it
    /// stated itself in this generation: it is among those with whom it was.
    pub(crate) fn state_horizon(&self, generation: u64) {
        let _unchanged = lock(&self.changing);
        if self.view.load().me().generation == generation {
            self.states_horizon.store(true, Ordering::Release);
        }
    }

    /// Whether the sender of an announcement belongs here.
    pub(crate) fn admit(&self, announcement: &Announcement) -> Result<(), Refusal> {
        if announcement.cluster != self.cluster {
            let (ours, theirs) = (self.cluster.clone(), announcement.cluster.clone());
            return Err(Refusal::WrongCluster { ours, theirs });
        }
        if !announcement.protocol.overlaps(ProtocolRange::OURS) {
            let (ours, theirs) = (ProtocolRange::OURS, announcement.protocol);
            return Err(Refusal::WrongProtocol { ours, theirs });
        }
        let (view, sender) = (self.view.load(), &announcement.sender);
        match (sender.id == view.me().id, sender.grpc_addr == view.me().grpc_addr) {
            (true, true) => Err(Refusal::Myself),
            (true, false) => Err(Refusal::SameIdentity { addr: sender.grpc_addr.clone() }),
            (false, true) => Err(Refusal::SameAddress { addr: sender.grpc_addr.clone() }),
            (false, false) => Ok(()),
        }
    }

    /// Takes in what an admitted sender states about itself and others. `dialled` is the address at
    /// which it was found, if it was this node that asked.
    pub(crate) fn take_in(&self, announcement: Announcement, dialled: Option<&str>) -> TakenIn {
        let mut taken = TakenIn::default();
        self.change_records(|view| {
            let sender = announcement.sender.id;
            taken.meeting = Some(view.meet(&announcement.sender, &announcement.members));
            match taken.meeting {
                // It hears of this cluster in the answer, or in the call, and asks to be let in.
                Some(Meeting::AwaitTheirs) => return false,
                Some(Meeting::JoinTheirs) => self.join_again(view, view.me().generation),
                _ => {}
            }
            if view.liveness(sender) != Liveness::Alive {
                taken.returned = Some(sender);
            }
            let mut changed = taken.meeting == Some(Meeting::JoinTheirs);
            let is_known = view.get(sender).is_some();
            let ahead = self.statements.note(&announcement, is_known) > self.horizon.get();
            // A member that was up all the time is about to be asked; one that was away was not. And
            // one that joins, and knows more, waits for this node.
            let was_away = taken.returned.is_some() || announcement.sender.phase == Phase::Joining;
            if ahead && was_away && view.me().phase == Phase::Whole {
                self.join_again(view, view.me().generation);
                (taken.overtaken, changed) = (true, true);
            }
            if dialled == Some(announcement.sender.grpc_addr.as_str()) {
                taken.replaced = view.replace_by(&announcement.sender);
                changed |= !taken.replaced.is_empty();
            }
            let stating = announcement.sender.clone();
            for record in announcement.members.into_iter().chain([announcement.sender]) {
                if view.is_hearsay(&stating, &record) {
                    self.statements.note_hearsay(record.grpc_addr);
                    continue;
                }
                let change = if record.id == sender {
                    view.merge_announced(record.clone())
                } else {
                    view.merge(record.clone())
                };
                changed |= change != RecordChange::Nothing;
                match change {
                    RecordChange::Nothing => {}
                    RecordChange::Advanced => taken.advanced.push(record),
                    RecordChange::Appeared => taken.appeared.push(record),
                    RecordChange::Disputed { generation } => {
                        view.rise_above(generation);
                        taken.disputed = true;
                    }
                    RecordChange::Outlived { generation } => {
                        self.join_again(view, generation);
                        taken.outlived = true;
                    }
                }
            }
            changed
        });
        taken
    }

    /// Has this node count for nothing until it has joined (again), in a generation above this one.
    fn join_again(&self, view: &mut MemberView, generation: u64) {
        self.states_horizon.store(false, Ordering::Release);
        view.rise_above(generation);
        view.enter(Phase::Joining);
        self.keep_until_whole(Some(Phase::Joining));
        self.rejoins.send_modify(|count| *count += 1);
    }

    /// What the others state.
    pub(crate) const fn statements(&self) -> &Statements {
        &self.statements
    }

    /// The furthest horizon of a whole member that is up, if it is beyond this node's and this time.
    pub(crate) fn horizon_beyond(&self, time: Timestamp) -> Option<Timestamp> {
        let nearest = self.horizon.get().max(time);
        if self.statements.furthest() <= nearest {
            // Every write asks.
            return None;
        }
        let view = self.view();
        let up = view.peers().filter(|m| view.liveness(m.id) == Liveness::Alive);
        let whole = up.filter(|m| m.phase == Phase::Whole);
        whole.map(|m| self.statements.horizon_of(m.id)).max().filter(|furthest| *furthest > nearest)
    }

    /// Where this node is certified.
    pub(crate) fn horizon(&self) -> Timestamp {
        self.horizon.get()
    }

    /// Has this node join again if members that are up have been certified further for longer than
    /// `patience`. Says whether it does.
    pub(crate) fn rejoin_if_behind(&self, patience: Duration) -> bool {
        let (view, mine) = (self.view(), self.horizon.get());
        let up = view.peers().filter(|m| m.phase == Phase::Whole);
        let mut up = up.filter(|m| view.liveness(m.id) == Liveness::Alive);
        let behind =
            view.me().phase == Phase::Whole && up.any(|m| self.statements.horizon_of(m.id) > mine);
        let mut since = lock(&self.behind_since);
        let too_long = behind && since.get_or_insert_with(Instant::now).elapsed() > patience;
        if too_long || !behind {
            *since = None;
        }
        drop(since);
        if too_long {
            self.change_records(|view| {
                self.join_again(view, view.me().generation);
                true
            });
        }
        too_long
    }

    /// What this node states has changed beyond its record: it is stated to everybody.
    pub(crate) fn restate(&self) {
        self.changes.send_modify(|count| *count += 1);
    }

    /// Sees a new number whenever this node has to join again.
    pub(crate) fn rejoins(&self) -> watch::Receiver<u64> {
        self.rejoins.subscribe()
    }

    /// This node has joined, as it stated itself in this generation. `false` if it had to state
    /// itself anew meanwhile: then it has to compare itself once more.
    pub(crate) fn become_whole(&self, generation: u64) -> bool {
        let mut done = false;
        self.change_records(|view| {
            done = view.me().generation == generation && view.me().phase != Phase::Left;
            if done {
                view.enter(Phase::Whole);
                self.keep_until_whole(None);
            }
            done
        });
        done
    }

    /// Removes a member that is down and will not come back.
    pub(crate) fn forget(&self, id: NodeId) -> Result<Forgotten, CannotForget> {
        let mut outcome = Err(CannotForget::Unknown(id));
        self.change_records(|view| {
            outcome = view.forget(id);
            matches!(outcome, Ok(Forgotten::Now(_)))
        });
        outcome
    }

    /// This node says good-bye. One that was not whole yet has to join when it is back, whatever it
    /// says now.
    pub(crate) fn leave(&self) {
        self.change_records(|view| {
            view.enter(Phase::Left);
            true
        });
    }

    fn keep_until_whole(&self, phase: Option<Phase>) {
        *self.until_whole.lock().unwrap_or_else(PoisonError::into_inner) = phase;
    }

    /// Takes in what the failure detector says. Says whether that is news.
    pub(crate) fn set_liveness(&self, id: NodeId, generation: u64, liveness: Liveness) -> bool {
        let mut news = false;
        self.change_records(|view| {
            news = view.set_liveness(id, generation, liveness);
            false
        });
        news
    }

    /// Writes this view down. Saves take turns, so that the last one is of the last view.
    pub(crate) async fn save_to(&self, book: &dyn MemberBook) -> Result<(), BookError> {
        let _turn = self.saving.lock().await;
        let now = self.to_book();
        book.save(&now).await
    }

    fn to_book(&self) -> Book {
        let view = self.view.load();
        let until_whole = *self.until_whole.lock().unwrap_or_else(PoisonError::into_inner);
        Book {
            id: view.me().id,
            generation: view.me().generation,
            phase: until_whole.unwrap_or(view.me().phase),
            cluster: self.cluster.clone(),
            members: view.others().map(|(member, _)| member.clone()).collect(),
        }
    }

    /// Makes a change; the closure says whether records (not only liveness) changed.
    fn change_records(&self, change: impl FnOnce(&mut MemberView) -> bool) {
        let guard = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut view = MemberView::clone(&self.view.load());
        let records_changed = change(&mut view);
        self.view.store(Arc::new(view));
        drop(guard);
        if records_changed {
            self.changes.send_modify(|count| *count += 1);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
