//! The targets of the fuzzer, over its corpus and over mutations of it: on every change, without a
//! fuzzer.

#[path = "../../fuzz/targets.rs"]
mod targets;

use std::fs;
use std::path::{Path, PathBuf};

use super::process::mutation::Mutator;
use super::results;

fn corpus_of(target: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target)
}

/// What the corpus has for a target, in the order of the names.
fn corpus(target: &str) -> Vec<Vec<u8>> {
    let files = fs::read_dir(corpus_of(target)).unwrap();
    let mut paths: Vec<_> = files.map(|file| file.unwrap().path()).collect();
    paths.sort();
    paths.into_iter().map(|path| fs::read(path).unwrap()).collect()
}

/// What mutations put in: lengths, tags and ends that parsers stumble over.
const STUMBLES: &[&[u8]] = &[
    b"\0",
    b"\xff\xff\xff\xff",
    b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
    b"\x80",
    b"\x0a\xff\x0f",
    b"{",
    b"\"",
    b"\\ud800",
    b": ",
    b"\n",
    b"- ",
    b"&a [*a]",
    b"!!binary ",
    b"1e999",
    b"\xf0\x9f",
];

#[test]
fn nothing_in_the_corpus_makes_a_target_panic_or_hang() {
    for (name, target) in targets::TARGETS {
        let corpus = corpus(name);
        assert!(corpus.len() >= 4, "{name} has {} files", corpus.len());
        for bytes in &corpus {
            target(bytes);
        }
        target(b"");
    }
}

#[test]
fn no_mutation_of_the_corpus_makes_a_target_panic_or_hang() {
    let seed = results::seed();
    let count = results::from_env("LALLY_TEST_CORPUS").unwrap_or(500);
    for (name, target) in targets::TARGETS {
        let corpus = corpus(name);
        let mut mutator = Mutator::new(seed);
        (0..count).for_each(|_| target(&mutator.one_of(&corpus, STUMBLES)));
    }
}
