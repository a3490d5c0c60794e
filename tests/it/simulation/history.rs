//! What is recorded of a simulation, for the checkers: operations with their answers, memberships,
//! losses, and what every node holds in the end. Plain values, so that tests can fabricate them.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use lally::domain::{Content, Digest, Entry, Key, NodeId, QuorumSpec, Timestamp, Version};
use lally::ports::{Answer, ClientError, Consistency, Verdict};

use super::world::{Seen, Site};

/// How much longer than its timeout a request may take.
pub const LATENESS: Duration = Duration::from_millis(250);

/// Everything recorded of one simulation.
#[derive(Debug, Clone, Default)]
#[expect(clippy::struct_excessive_bools, reason = "what happened, in any combination")]
pub struct Evidence {
    pub ops: Vec<Op>,
    /// Every version that entered a log anywhere.
    pub seen: BTreeMap<(Key, Version), Seen>,
    /// Whose copies counted, from these times on.
    pub replicas: Vec<(Duration, BTreeSet<Site>)>,
    pub destroyed: Vec<Destroyed>,
    /// Nodes that began without data, when they counted.
    pub newcomers: Vec<Newcomer>,
    /// What the nodes hold in the end.
    pub finals: Vec<FinalState>,
    /// Versions that a node took out, as of keys removed and forgotten.
    pub expunged: BTreeSet<(Key, Version)>,
    /// Versions that were put into quarantine.
    pub quarantined: BTreeSet<(Key, Version)>,
    /// Whether a node forgot a removal while things went wrong.
    pub collected: bool,
    /// Whether several members may have lost their data at a time.
    pub reckless: bool,
    /// Whether two clusters were founded apart, and met later.
    pub apart: bool,
    /// Whether a node was stopped against its advice: others lacked something that it had, perhaps.
    pub stopped_unsafely: bool,
    /// Copies that nodes acknowledged and lost with the power.
    pub cut: Vec<Destroyed>,
    /// When which processes were frozen, from and to.
    pub frozen: Vec<(Site, Duration, Duration)>,
    /// Bounds that did not hold while it ran.
    pub overruns: Vec<String>,
}

/// One operation of a client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Op {
    pub client: u8,
    /// Through which node.
    pub site: Site,
    pub node: NodeId,
    pub kind: OpKind,
    pub key: Key,
    pub quorum: Option<QuorumSpec>,
    pub consistency: Consistency,
    pub timeout: Duration,
    pub invoked: Duration,
    pub returned: Duration,
    pub outcome: Outcome,
}

/// What was asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OpKind {
    Get,
    Add(String),
    Remove,
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    Answered(Answer),
    /// Nothing was done.
    Refused(ClientError),
    /// The node went away.
    Unknown,
}

/// Versions of a key that were on no disk any more when one was lost, or not on one: those above the
/// first and up to the second.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Destroyed {
    pub key: Key,
    pub above: Option<Version>,
    pub up_to: Version,
}

/// A node that began empty, at the moment from which on it counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Newcomer {
    pub site: Site,
    pub started: Duration,
    pub counted: Duration,
    pub held: BTreeMap<Key, Version>,
    pub horizon: Timestamp,
}

/// A node at the end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FinalState {
    pub site: Site,
    pub digest: Digest,
    pub entries: BTreeMap<Key, Entry>,
    /// What it would hold if it read its log.
    pub logged: BTreeMap<Key, Entry>,
    /// Up to where it is certified.
    pub horizon: Timestamp,
    /// The tombstones that it forgot.
    pub forgotten: BTreeMap<Key, Version>,
}

impl Op {
    pub fn answer(&self) -> Option<&Answer> {
        match &self.outcome {
            Outcome::Answered(answer) => Some(answer),
            Outcome::Refused(_) | Outcome::Unknown => None,
        }
    }

    /// The answer, if it says that the quorum was met.
    pub fn success(&self) -> Option<&Answer> {
        self.answer().filter(|answer| answer.verdict == Verdict::Success)
    }

    pub const fn is_write(&self) -> bool {
        !matches!(self.kind, OpKind::Get)
    }
}

/// How long a removal may go on after an answer that was no success.
pub const GOES_ON: Duration = Duration::from_secs(10);

/// Whether two are removals of one key through one node at the same time.
fn works_on_too(other: &Op, op: &Op) -> bool {
    let ends = match other.success() {
        Some(_) => other.returned,
        None => other.returned + GOES_ON,
    };
    let same = other.node == op.node && other.key == op.key && other.kind == op.kind;
    same && other.invoked <= op.returned && ends >= op.invoked
}

impl Evidence {
    /// The version under which a write was acknowledged. That of a removal of nothing is not told;
    /// it is the last tombstone that its coordinator stamped meanwhile, unless that was working on
    /// several removals of the key.
    pub fn acknowledged(&self, op: &Op) -> Option<Version> {
        let answer = op.success().filter(|_| op.is_write())?;
        if let Some(timestamp) = answer.timestamp {
            return Some(Version::new(timestamp, op.node));
        }
        if self.ops.iter().any(|other| other != op && works_on_too(other, op)) {
            return None;
        }
        let in_time = |seen: &Seen| seen.first >= op.invoked && seen.first <= op.returned;
        let of_key = self.seen.iter().filter(|((key, version), seen)| {
            *key == op.key
                && version.node == op.node
                && seen.content == Content::Tombstone
                && in_time(seen)
        });
        of_key.map(|((_, version), _)| *version).max()
    }

    /// Whether a version of a key was lost with the disks it was on.
    pub fn is_destroyed(&self, key: &Key, version: Version) -> bool {
        self.destroyed
            .iter()
            .any(|lost| lost.key == *key && Some(version) > lost.above && version <= lost.up_to)
    }

    /// Whether a node lost its copy of this version with the power.
    pub fn is_cut(&self, key: &Key, version: Version) -> bool {
        self.cut
            .iter()
            .any(|lost| lost.key == *key && Some(version) > lost.above && version <= lost.up_to)
    }

    /// How long the process at a site was frozen between these two.
    pub fn frozen_between(&self, site: Site, from: Duration, to: Duration) -> Duration {
        let there = self.frozen.iter().filter(|(frozen, ..)| *frozen == site);
        there.map(|(_, began, ended)| to.min(*ended).saturating_sub(from.max(*began))).sum()
    }

    /// Whether who is certified up to `horizon`, and holds nothing of a key, may have held this
    /// version or a later one: it was removed, and that is forgotten.
    pub fn is_forgotten(&self, key: &Key, version: Version, horizon: Timestamp) -> bool {
        let later = self.seen.range((key.clone(), version)..);
        let mut of_key = later.take_while(|((other, _), _)| other == key);
        of_key.any(|((_, later), seen)| {
            seen.content == Content::Tombstone && later.timestamp <= horizon
        })
    }

    /// Whether a write was given up with a member that was away for longer than the longest absence:
    /// it is in quarantine (a removal is nowhere). One that a majority acknowledged cannot be, unless
    /// that was the majority of a cluster that joined another one.
    pub fn is_given_up(&self, op: &Op, version: Version) -> bool {
        let required = op.success().map_or(0, |answer| answer.required as usize);
        self.expunged.contains(&(op.key.clone(), version))
            && (self.apart || 2 * required <= self.replicas_between(op.invoked, op.returned))
    }

    /// How many sites had copies that counted at some time between these two.
    pub fn replicas_between(&self, from: Duration, to: Duration) -> usize {
        let mut all: BTreeSet<Site> = BTreeSet::new();
        for (i, (at, sites)) in self.replicas.iter().enumerate() {
            let until = self.replicas.get(i + 1).map_or(Duration::MAX, |(next, _)| *next);
            if *at <= to && until >= from {
                all.extend(sites.iter().copied());
            }
        }
        all.len()
    }
}
