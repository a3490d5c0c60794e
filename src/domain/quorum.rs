//! How many nodes must answer: as configured ([`QuorumSpec`]) and as a number ([`Required`]).

use std::fmt;
use std::num::NonZeroU32;
use std::str::FromStr;

/// A quorum as a user states it, before the number of replicas is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum QuorumSpec {
    /// This many nodes.
    Count(NonZeroU32),
    /// More than half of the replicas.
    Majority,
    /// Every replica.
    All,
}

impl QuorumSpec {
    /// One node: the default of reads and writes.
    pub const ONE: Self = Self::Count(NonZeroU32::MIN);

    /// The number of nodes this means among `replicas` replicas. A count is kept even if it is
    /// larger than that: such a quorum is never met, and the answer says so.
    pub fn among(self, replicas: usize) -> Required {
        let replicas = u32::try_from(replicas).unwrap_or(u32::MAX);
        let at_least_one = |n| NonZeroU32::new(n).unwrap_or(NonZeroU32::MIN);
        Required(match self {
            Self::Count(count) => count,
            Self::Majority => at_least_one(replicas / 2 + 1),
            Self::All => at_least_one(replicas),
        })
    }
}

impl fmt::Display for QuorumSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Count(count) => write!(f, "{count}"),
            Self::Majority => f.write_str("majority"),
            Self::All => f.write_str("all"),
        }
    }
}

impl FromStr for QuorumSpec {
    type Err = InvalidQuorum;

    fn from_str(text: &str) -> Result<Self, InvalidQuorum> {
        match text {
            "majority" => Ok(Self::Majority),
            "all" => Ok(Self::All),
            number => number.parse().map(Self::Count).map_err(|_| InvalidQuorum),
        }
    }
}

/// The text is not a quorum.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a quorum is a whole number of nodes >= 1, \"majority\" or \"all\"")]
pub struct InvalidQuorum;

/// The number of nodes whose answer is needed: at least one, this node included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Required(NonZeroU32);

impl Required {
    /// The number.
    pub const fn get(self) -> u32 {
        self.0.get()
    }

    /// Whether this many answers are enough.
    pub fn is_met_by(self, answers: usize) -> bool {
        u32::try_from(answers).map_or(true, |n| n >= self.get())
    }
}

impl Required {
    /// The number of nodes that both halves of a confirmed read need among `replicas` replicas: at
    /// least a majority, since two of them always have a node in common; no fewer than was asked
    /// for; and no fewer than a write needs, so that what was confirmed is also seen by reads that
    /// rely on the configured quorums.
    pub fn to_confirm(read: QuorumSpec, write: QuorumSpec, replicas: usize) -> Self {
        let specs = [QuorumSpec::Majority, read, write];
        let [majority, read, write] = specs.map(|spec| spec.among(replicas));
        majority.max(read).max(write)
    }
}

/// Where an operation stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// Answers are missing and may still come.
    Pending,
    /// Enough nodes have answered.
    Met,
    /// However the missing answers turn out, they are too few.
    Unreachable,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quorum_is_a_number_from_one_up_or_a_word() {
        assert_eq!("1".parse(), Ok(QuorumSpec::ONE));
        assert_eq!("majority".parse(), Ok(QuorumSpec::Majority));
        assert_eq!("all".parse(), Ok(QuorumSpec::All));
        for text in ["", "0", "-1", "1.5", "two", "ALL", " 1", "4294967296"] {
            assert_eq!(text.parse::<QuorumSpec>(), Err(InvalidQuorum), "{text:?}");
        }
    }

    #[test]
    fn the_text_form_parses_back() {
        for text in ["1", "7", "majority", "all"] {
            assert_eq!(text.parse::<QuorumSpec>().map(|q| q.to_string()), Ok(text.to_owned()));
        }
    }

    #[test]
    fn majorities_of_the_same_replicas_overlap_and_all_means_all() {
        for n in 1..=9usize {
            let majority = QuorumSpec::Majority.among(n).get() as usize;
            assert!(2 * majority > n && majority <= n, "{n}");
            assert_eq!(QuorumSpec::All.among(n).get() as usize, n);
        }
    }

    #[test]
    fn a_confirmed_read_needs_a_majority_and_no_fewer_than_reads_and_writes_do() {
        for n in 1..=9usize {
            for read in 1..=4u32 {
                for write in 1..=4u32 {
                    let spec = |count: u32| count.to_string().parse().unwrap();
                    let needed = Required::to_confirm(spec(read), spec(write), n).get();
                    assert_eq!(needed, read.max(write).max(n as u32 / 2 + 1));
                }
            }
            let all = Required::to_confirm(QuorumSpec::ONE, QuorumSpec::All, n);
            assert_eq!(all.get() as usize, n);
        }
    }

    #[test]
    fn a_count_above_the_replicas_stays_what_was_asked_for() {
        let five: QuorumSpec = "5".parse().unwrap();
        assert_eq!(five.among(3).get(), 5);
    }

    #[test]
    fn no_replicas_still_need_one_answer() {
        assert_eq!(QuorumSpec::All.among(0).get(), 1);
        assert_eq!(QuorumSpec::Majority.among(0).get(), 1);
    }
}
