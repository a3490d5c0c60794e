//! Mutations: what is right, made wrong in a few places, the same in every run with a seed; and what a
//! process takes in memory meanwhile.

use std::fs;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::node::Node;

/// Changes bytes: flips, drops, repeats, moves, cuts, and puts in what parsers stumble over.
pub struct Mutator(StdRng);

impl Mutator {
    pub fn new(seed: u64) -> Self {
        Self(StdRng::seed_from_u64(seed))
    }

    /// One of these, changed in one to six places.
    pub fn one_of(&mut self, seeds: &[Vec<u8>], stumbles: &[&[u8]]) -> Vec<u8> {
        let mut bytes = seeds[self.below(seeds.len())].clone();
        for _ in 0..=self.below(6) {
            self.change(&mut bytes, stumbles);
        }
        bytes
    }

    fn change(&mut self, bytes: &mut Vec<u8>, stumbles: &[&[u8]]) {
        let at = self.below(bytes.len() + 1);
        let end = at + self.below((bytes.len() - at).min(64) + 1);
        match self.below(8) {
            0 | 1 if at < bytes.len() => bytes[at] ^= 1 << self.below(8),
            2 if at < bytes.len() => bytes[at] = self.0.random(),
            3 => drop(bytes.drain(at..end)),
            4 => {
                let part = bytes[at..end].to_vec();
                let times = 1 + self.below(4);
                bytes.splice(at..at, part.repeat(times));
            }
            5 => {
                let part: Vec<_> = bytes.drain(at..end).collect();
                let to = self.below(bytes.len() + 1);
                bytes.splice(to..to, part);
            }
            6 if self.below(4) == 0 => bytes.truncate(at),
            _ => {
                let stumble = stumbles[self.below(stumbles.len())];
                bytes.splice(at..at, stumble.iter().copied());
            }
        }
    }

    pub fn below(&mut self, end: usize) -> usize {
        self.0.random_range(0..end)
    }
}

/// Kilobytes of memory that the process of a node has.
pub fn resident_kib(node: &Node) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", node.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.split_whitespace().next().unwrap().parse().unwrap()
}

/// How many files a node has open.
pub fn open_files(node: &Node) -> usize {
    fs::read_dir(format!("/proc/{}/fd", node.pid())).unwrap().count()
}

/// A number of `/metrics`.
pub fn metric(node: &Node, name: &str) -> u64 {
    let text = node.client().ask("GET", "/metrics").body;
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("no {name}")).parse().unwrap()
}

#[test]
fn the_same_seed_makes_the_same_mutations_and_nearly_all_differ_from_what_was_right() {
    let seeds = [b"POST /get HTTP/1.1".to_vec(), b"GET / HTTP/1.1".to_vec()];
    let made = |seed| {
        let mut mutator = Mutator::new(seed);
        (0..100).map(|_| mutator.one_of(&seeds, &[b"\0"])).collect::<Vec<_>>()
    };
    assert_eq!(made(1), made(1));
    assert_ne!(made(1), made(2));
    assert!(made(1).iter().filter(|bytes| !seeds.contains(bytes)).count() > 90);
}
