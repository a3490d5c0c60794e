//! What SWIM knows a member by.

use foca::Identity;
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

use crate::domain::{Member, NodeId};

/// A member in one of its lives. What the protocol calls its address, by which it tells members
/// apart, is the node's id: another node at the same `HOST:PORT` (whose disk was replaced, say) is
/// another member, and one that moved is the same. Of two lives the later start wins, and within one
/// start the one that was renewed more often.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(super) struct SwimIdentity {
    /// Of the cluster's name: packets of other clusters are ignored.
    cluster: u64,
    pub(super) id: u64,
    pub(super) generation: u64,
    /// Counts how often this life was declared down and went on.
    renewed: u32,
    pub(super) grpc_addr: String,
}

impl SwimIdentity {
    pub(super) fn of(member: &Member, cluster: u64) -> Self {
        Self {
            cluster,
            id: member.id.as_u64(),
            generation: member.generation,
            renewed: 0,
            grpc_addr: member.grpc_addr.clone(),
        }
    }

    pub(super) const fn node(&self) -> NodeId {
        NodeId::new(self.id)
    }

    pub(super) const fn cluster(&self) -> u64 {
        self.cluster
    }

    /// Whether this is about a later life than `other`, or the same life renewed.
    const fn rank(&self) -> (u64, u32) {
        (self.generation, self.renewed)
    }
}

/// The form in which a cluster's name is part of an identity.
pub(super) fn cluster_hash(name: &str) -> u64 {
    xxh3_64(name.as_bytes())
}

impl Identity for SwimIdentity {
    type Addr = (u64, u64);

    fn renew(&self) -> Option<Self> {
        Some(Self { renewed: self.renewed.checked_add(1)?, ..self.clone() })
    }

    fn addr(&self) -> Self::Addr {
        (self.cluster, self.id)
    }

    fn win_addr_conflict(&self, adversary: &Self) -> bool {
        self.rank() > adversary.rank()
    }
}
