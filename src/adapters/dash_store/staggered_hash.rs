//! `StaggeredHash`: a hash by which the shards of a map differ in size, so that they grow one after
//! the other.
//!
//! A hash table doubles when it is 7/8 full. Were all shards equally likely, all of them would double
//! with nearly the same key: half of the memory would be empty then, and requests would wait for one
//! table after the other at the same moment. Here the last shard is twice as likely as the first, and
//! those between lie between, so that at any number of keys as many tables have doubled as the size
//! is on its way to the next power of two. What is taken is always about the same, 59 to 63 % of the
//! places (the mean of a load that is spread evenly, by its logarithm, from 7/16 to 7/8, is
//! 7/16 / ln 2).
//!
//! The map takes the shard from some bits of the hash, and from others the place in the shard. Only the
//! former are changed.

use std::hash::{BuildHasher, Hasher};

/// The bits of a hash by which `DashMap` picks a shard: the highest below the seven that its tables
/// keep as tags.
const SHARD_BITS_END: u32 = 57;

/// The bits from which they are made: between those and the ones that say where in the shard.
const SOURCE_BITS: u32 = 16;
const SOURCE_BEGIN: u32 = SHARD_BITS_END - SOURCE_BITS;

/// Hashes of this kind, with staggered shards.
#[derive(Debug, Clone)]
pub(super) struct StaggeredHash<S>(pub(super) S);

impl<S: BuildHasher> BuildHasher for StaggeredHash<S> {
    type Hasher = Staggered<S::Hasher>;

    fn build_hasher(&self) -> Self::Hasher {
        Staggered(self.0.build_hasher())
    }
}

pub(super) struct Staggered<H>(H);

impl<H: Hasher> Hasher for Staggered<H> {
    fn write(&mut self, bytes: &[u8]) {
        self.0.write(bytes);
    }

    fn write_u8(&mut self, byte: u8) {
        self.0.write_u8(byte);
    }

    fn finish(&self) -> u64 {
        stagger(self.0.finish())
    }
}

/// Replaces an even fraction x of 1, in the bits by which a shard is picked, by log2(1 + x), up to a
/// hundredth: x + 0.343 x (1 - x).
const fn stagger(hash: u64) -> u64 {
    const ONE: u64 = 1 << SOURCE_BITS;
    const CURVATURE: u64 = ONE * 343 / 1_000;
    let even = (hash >> SOURCE_BEGIN) & (ONE - 1);
    let curved = even + ((even * (ONE - even)) >> SOURCE_BITS) * CURVATURE / ONE;
    hash & !((ONE - 1) << SOURCE_BEGIN) | (curved & (ONE - 1)) << SOURCE_BEGIN
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHARDS: u32 = 128;

    fn shard(hash: u64) -> usize {
        usize::try_from(hash << 7 >> 57).unwrap()
    }

    #[test]
    fn the_last_shard_is_twice_as_likely_as_the_first_and_the_rest_lie_between() {
        let mut counts = vec![0_u32; SHARDS as usize];
        for even in 0..1 << SOURCE_BITS {
            counts[shard(stagger(even << SOURCE_BEGIN))] += 1;
        }
        let mean = f64::from((1 << SOURCE_BITS) / SHARDS);
        for (number, count) in (0..).zip(&counts) {
            let place = (f64::from(number) + 0.5) / f64::from(SHARDS);
            let expected = mean * std::f64::consts::LN_2 * place.exp2();
            let ratio = f64::from(*count) / expected;
            assert!((0.9..1.1).contains(&ratio), "{number}: {count} of {expected}");
        }
    }

    #[test]
    fn only_the_bits_that_pick_the_shard_change() {
        let others = !(((1 << SOURCE_BITS) - 1) << SOURCE_BEGIN);
        for hash in [0, u64::MAX, 0x0123_4567_89ab_cdef, 0xfedc_ba98_7654_3210] {
            assert_eq!(stagger(hash) & others, hash & others);
        }
    }
}
