//! `Announcer`: states this node to the others and takes in what they state.
//!
//! Records of members spread four ways, each enough on its own: a node states itself to everybody
//! it knows; whoever learns something new passes it on; a member that the failure detector reports,
//! known or not, is asked; and whoever is missing is called again and again.

use std::collections::BTreeSet;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;

use crate::domain::{CannotForget, Forgotten, Liveness, Meeting, Member, NodeId, Phase};
use crate::ports::{
    Announcement, FailureDetector, LivenessChange, MemberBook, Peer, PeerError, PeerTransport,
    Refusal,
};

use super::handoff::Handoff;
use super::members::{Members, TakenIn};
use super::reconcile::Reconciler;

/// Bound of one announcement.
const ANNOUNCE_TIMEOUT: Duration = Duration::from_secs(1);

/// How often members that are down and seeds that were never met are called.
const SEARCH_EVERY: Duration = Duration::from_secs(5);

/// How long others may be certified further before this node believes that it was not asked.
const BEHIND_FOR: Duration = Duration::from_secs(30);

/// Speaks for this node.
pub(crate) struct Announcer {
    pub(crate) members: Arc<Members>,
    pub(crate) transport: Arc<dyn PeerTransport>,
    pub(crate) detector: Arc<dyn FailureDetector>,
    pub(crate) book: Arc<dyn MemberBook>,
    pub(crate) reconciler: Arc<Reconciler>,
    pub(crate) handoff: Arc<Handoff>,
}

impl Announcer {
    /// States this node to whoever is at `addr`; who that is.
    pub(crate) async fn announce_to(&self, addr: &str) -> Result<Member, PeerError> {
        let ours = self.members.announcement();
        let theirs = self.transport.announce(addr, ours, ANNOUNCE_TIMEOUT).await?;
        let sender = theirs.sender.clone();
        self.take_in(theirs, Some(addr))?;
        Ok(sender)
    }

    /// States this node to every member that is not known to be down.
    pub(crate) async fn announce_to_all(&self) {
        let view = self.members.view();
        let up = view.peers().filter(|m| view.liveness(m.id) != Liveness::Down);
        join_all(up.map(|member| async {
            if let Err(error) = self.announce_to(&member.grpc_addr).await {
                tracing::debug!(peer = %member.id, %error, "announcement not taken");
            }
        }))
        .await;
    }

    /// Takes in what another node states that called.
    pub(crate) fn receive(&self, theirs: Announcement) -> Result<(), Refusal> {
        self.take_in(theirs, None)
    }

    /// Looks for members that are believed down, for seeds that are not known as members, and for
    /// members of which one that joins has told, for as long as the node runs: nobody but this node
    /// may know of them, or they of it.
    pub(crate) async fn run_searching(&self, seeds: &[String]) {
        loop {
            tokio::time::sleep(SEARCH_EVERY).await;
            if self.members.rejoin_if_behind(BEHIND_FOR) {
                tracing::warn!(
                    "others have forgotten removed keys without this node: joining again"
                );
                self.detector.restate(self.members.view().me());
            }
            let missing = self.missing(seeds);
            join_all(missing.iter().map(|addr| async move {
                match self.announce_to(addr).await {
                    Ok(_) | Err(PeerError::Refused(Refusal::Myself)) => {}
                    Err(PeerError::Refused(reason)) => {
                        tracing::warn!(addr, %reason, "refused by the node at this address");
                    }
                    Err(error) => tracing::debug!(addr, %error, "nobody found"),
                }
            }))
            .await;
        }
    }

    fn missing(&self, seeds: &[String]) -> BTreeSet<String> {
        let view = self.members.view();
        let is_known = |seed: &&String| {
            let at_seed = |member: &Member| member.grpc_addr == **seed;
            view.peers().any(at_seed) || at_seed(view.me())
        };
        let seeds = seeds.iter().filter(|seed| !is_known(seed)).cloned();
        let down = view.peers().filter(|member| view.liveness(member.id) == Liveness::Down);
        let down = down.map(|member| member.grpc_addr.clone());
        down.chain(seeds).chain(self.members.statements().take_hearsay()).collect()
    }

    fn take_in(&self, theirs: Announcement, dialled: Option<&str>) -> Result<(), Refusal> {
        self.members.admit(&theirs)?;
        let sender = theirs.sender.clone();
        let taken = self.members.take_in(theirs, dialled);
        self.act_on(taken, &sender);
        Ok(())
    }

    /// Saves and spreads changed records until the node stops. A save is never cut off: it could
    /// end after the last one, and undo it.
    pub(crate) async fn run_spreading(&self, stopped: impl Future<Output = ()>) {
        let mut changes = self.members.changes();
        let mut stopped = std::pin::pin!(stopped);
        loop {
            tokio::select! {
                biased;
                () = &mut stopped => return,
                news = changes.changed() => if news.is_err() { return },
            }
            self.save().await;
            self.announce_to_all().await;
        }
    }

    /// Takes in what the failure detector reports for as long as the node runs.
    pub(crate) async fn run_detection(&self) {
        while let Some(change) = self.detector.next_change().await {
            self.detected(change).await;
        }
    }

    /// Writes down whom this node knows.
    pub(crate) async fn save(&self) {
        if let Err(error) = self.members.save_to(self.book.as_ref()).await {
            tracing::error!(%error, "members not saved: a restart may need a seed");
        }
    }

    /// Removes a member that is down and will not come back, and writes that down. It spreads like
    /// any other record.
    pub(crate) async fn forget(&self, id: NodeId) -> Result<Forgotten, CannotForget> {
        let forgotten = self.members.forget(id)?;
        if let Forgotten::Now(member) = &forgotten {
            tracing::warn!(peer = %id, addr = %member.grpc_addr, "member forgotten");
            self.let_go(member);
        }
        // Also of one that was forgotten before: that save may have failed.
        self.save().await;
        Ok(forgotten)
    }

    /// Nobody calls a member that left, or keeps anything for it: it compares its data when it is
    /// back.
    fn let_go(&self, member: &Member) {
        self.handoff.drop_hints(member.id);
        self.detector.unwatch(member);
        self.transport.release(&Peer::from(member));
    }

    async fn detected(&self, change: LivenessChange) {
        let news = self.members.set_liveness(change.id, change.generation, change.liveness);
        let view = self.members.view();
        let known = view.get(change.id).map(|member| member.generation);
        if news {
            tracing::info!(peer = %change.id, addr = %change.grpc_addr, liveness = ?change.liveness,
                "member changed");
        }
        if change.liveness != Liveness::Alive {
            return;
        }
        self.members.statements().note_heard(change.id);
        // One that was forgotten, and is up nevertheless, has to hear of it.
        let left = view.get(change.id).is_some_and(|member| member.phase == Phase::Left);
        // Alive, and unknown here in this generation, or back after it was thought down: either
        // side may have missed something the other stated.
        if news || left || known.is_none_or(|generation| generation < change.generation) {
            if let Err(error) = self.announce_to(&change.grpc_addr).await {
                tracing::debug!(peer = %change.id, %error, "announcement not taken");
            }
            self.handoff.wake();
            self.reconciler.request(change.id);
        }
    }

    fn act_on(&self, taken: TakenIn, sender: &Member) {
        let (peer, addr) = (sender.id, &sender.grpc_addr);
        match taken.meeting {
            Some(Meeting::JoinTheirs) => {
                tracing::warn!(%peer, addr, "met a cluster of this name, founded apart: joining it");
            }
            Some(Meeting::AwaitTheirs) => {
                tracing::warn!(%peer, addr, "met a cluster of this name, founded apart: it has to join");
            }
            Some(Meeting::Mates) | None => {}
        }
        for member in taken.appeared {
            tracing::info!(peer = %member.id, addr = %member.grpc_addr, phase = ?member.phase,
                generation = member.generation, "member appeared");
            if member.phase == Phase::Left {
                self.let_go(&member);
            } else {
                self.detector.watch(&member);
            }
            self.compare_if_whole(&member);
        }
        for member in taken.advanced {
            tracing::info!(peer = %member.id, phase = ?member.phase, "member went on");
            if member.phase == Phase::Left {
                self.let_go(&member);
            }
            self.compare_if_whole(&member);
        }
        for member in taken.replaced {
            tracing::info!(peer = %member.id, addr = %member.grpc_addr, by = %peer,
                "member replaced at its address");
            self.let_go(&member);
        }
        if let Some(id) = taken.returned {
            self.reconciler.request(id);
            self.handoff.wake();
        }
        if taken.disputed {
            tracing::warn!("others believed that this node has left: stated anew");
        }
        if taken.outlived {
            tracing::warn!(
                "others know a later start of this node, or have forgotten it: its data directory is an older copy, or was away for too long; joining again"
            );
        }
        if taken.overtaken {
            tracing::warn!("removed keys were forgotten while this node was away: joining again");
        }
        if taken.overtaken
            || taken.disputed
            || taken.outlived
            || taken.meeting == Some(Meeting::JoinTheirs)
        {
            self.detector.restate(self.members.view().me());
        }
    }

    /// A member that joins fetches the data itself.
    fn compare_if_whole(&self, member: &Member) {
        if member.phase == Phase::Whole {
            self.reconciler.request(member.id);
        }
    }
}
