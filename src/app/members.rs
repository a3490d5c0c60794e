//! `Members`: the node's view of its cluster, shared by everything that runs in the node.
//!
//! Readers take a snapshot without waiting; changes are made one at a time on a copy. Whoever must
//! act on changed records (save them, spread them) waits on [`Members::changes`].

use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use tokio::sync::watch;

use crate::domain::{Liveness, Member, MemberView, NodeId, Phase, RecordChange};
use crate::ports::{Announcement, Book, BookError, MemberBook, ProtocolRange, Refusal};

/// The members, shared.
pub(crate) struct Members {
    cluster: String,
    view: ArcSwap<MemberView>,
    /// Held while a change is made, so that none is lost.
    changing: Mutex<()>,
    /// Counts changes of records (not of liveness).
    changes: watch::Sender<u64>,
}

/// What came of an announcement.
#[derive(Debug, Default)]
pub(crate) struct TakenIn {
    /// Members that are new here or came back with a new generation.
    pub(crate) appeared: Vec<Member>,
    /// The sender, if it was thought to be down or slow, and has just proved otherwise.
    pub(crate) returned: Option<NodeId>,
    /// Somebody believes this node's generation is over, up to this one.
    pub(crate) disputed: Option<u64>,
}

impl Members {
    /// The view of a node that states itself as `me` and remembers these others.
    pub(crate) fn new(cluster: &str, me: Member, remembered: Vec<Member>) -> Self {
        let mut view = MemberView::new(me);
        for member in remembered {
            view.merge(member);
        }
        Self {
            cluster: cluster.to_owned(),
            view: ArcSwap::from_pointee(view),
            changing: Mutex::new(()),
            changes: watch::Sender::new(0),
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
        if announcement.sender.id == self.me() {
            return Err(Refusal::Myself);
        }
        Ok(())
    }

    /// Takes in what an admitted sender states about itself and others.
    pub(crate) fn take_in(&self, announcement: Announcement) -> TakenIn {
        let mut taken = TakenIn::default();
        self.change_records(|view| {
            let mut changed = false;
            let sender = announcement.sender.id;
            if view.liveness(sender) != Liveness::Alive {
                taken.returned = Some(sender);
            }
            for record in announcement.members.into_iter().chain([announcement.sender]) {
                let change = if record.id == sender {
                    view.merge_announced(record.clone())
                } else {
                    view.merge(record.clone())
                };
                match change {
                    RecordChange::Nothing => {}
                    RecordChange::Advanced => changed = true,
                    RecordChange::Appeared => {
                        changed = true;
                        taken.appeared.push(record);
                    }
                    RecordChange::Disputed { generation } => {
                        taken.disputed = taken.disputed.max(Some(generation));
                    }
                }
            }
            changed
        });
        taken
    }

    /// States this node anew.
    pub(crate) fn restate(&self, generation: u64, phase: Phase) {
        self.change_records(|view| {
            view.restate(generation, phase);
            true
        });
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

    /// Writes this view down.
    pub(crate) async fn save_to(&self, book: &dyn MemberBook) -> Result<(), BookError> {
        let now = self.to_book();
        book.save(&now).await
    }

    fn to_book(&self) -> Book {
        let view = self.view.load();
        Book {
            id: view.me().id,
            generation: view.me().generation,
            phase: view.me().phase,
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
