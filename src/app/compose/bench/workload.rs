//! What is asked: drawn from the plan and its seed, so that it can be repeated.

use std::fmt::Write;
use std::sync::Arc;

use bytes::Bytes;
use rand::distr::{Alphanumeric, SampleString};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use rand_distr::{Distribution as _, Zipf};

use crate::adapters::config::{BenchPlan, Distribution};
use crate::domain::QuorumSpec;
use crate::ports::OpKind;

/// The calls that are made.
pub(super) const CALLS: [OpKind; 3] = [OpKind::Get, OpKind::Add, OpKind::Remove];

/// Draws requests, for one connection.
#[derive(Debug)]
pub(super) struct Workload {
    plan: Arc<BenchPlan>,
    value: Arc<str>,
    random: StdRng,
    zipf: Option<Zipf<f64>>,
}

impl Workload {
    /// The requests of the connection with this number.
    pub(super) fn new(plan: &Arc<BenchPlan>, value: &Arc<str>, connection: u64) -> Self {
        // Of exponents that the command line takes, none is refused.
        let zipf = match plan.distribution {
            Distribution::Uniform => None,
            #[expect(clippy::cast_precision_loss, reason = "at most a thousand million")]
            Distribution::Zipf(exponent) => Zipf::new(plan.keys as f64, exponent).ok(),
        };
        // Neither the same for all connections, nor those of the next seed for the next connection.
        let seed = plan.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(connection);
        let random = StdRng::seed_from_u64(seed);
        Self { plan: Arc::clone(plan), value: Arc::clone(value), random, zipf }
    }

    /// The value that all keys get.
    pub(super) fn value(plan: &BenchPlan) -> Arc<str> {
        let mut random = StdRng::seed_from_u64(plan.seed);
        Alphanumeric.sample_string(&mut random, plan.value_bytes).into()
    }

    /// The next request: the call, and its body.
    pub(super) fn draw(&mut self) -> (OpKind, Bytes) {
        let mix = self.plan.mix;
        let part = self.random.random_range(0..mix.sum());
        let (get, add) = (u32::from(mix.get), u32::from(mix.add));
        let call = match part {
            part if part < get => OpKind::Get,
            part if part < get + add => OpKind::Add,
            _ => OpKind::Remove,
        };
        let key = self.draw_key();
        (call, self.body(call, key))
    }

    /// The write of this key.
    pub(super) fn fill(&self, key: u64) -> (OpKind, Bytes) {
        (OpKind::Add, self.body(OpKind::Add, key))
    }

    fn draw_key(&mut self) -> u64 {
        let keys = self.plan.keys;
        match &self.zipf {
            None => self.random.random_range(0..keys),
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "from 1 on"
            )]
            Some(zipf) => (zipf.sample(&mut self.random) as u64).clamp(1, keys) - 1,
        }
    }

    /// Keys and values are letters and digits: nothing has to be escaped.
    fn body(&self, call: OpKind, key: u64) -> Bytes {
        let mut body = String::with_capacity(64 + self.value.len());
        write!(body, r#"{{"key":"bench-{key}""#).unwrap_or_default();
        if call == OpKind::Add {
            write!(body, r#","value":"{}""#, self.value).unwrap_or_default();
        }
        if let Some(quorum) = self.plan.quorum {
            match quorum {
                QuorumSpec::Count(count) => write!(body, r#","quorum":{count}"#),
                named => write!(body, r#","quorum":"{named}""#),
            }
            .unwrap_or_default();
        }
        body.push('}');
        body.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adapters::config::{self, Command, Invocation};
    use serde_json::Value as Json;
    use std::collections::BTreeMap;

    fn plan(args: &[&str]) -> Arc<BenchPlan> {
        let words = ["lally", "bench", "--addr", "a:1"].iter().chain(args).map(Into::into);
        match config::parse(words.collect(), Vec::new()) {
            Ok(Invocation::Do(Command::Bench(plan), _)) => Arc::new(*plan),
            other => panic!("{other:?}"),
        }
    }

    fn workload(plan: &Arc<BenchPlan>, connection: u64) -> Workload {
        Workload::new(plan, &Workload::value(plan), connection)
    }

    fn drawn(plan: &Arc<BenchPlan>, connection: u64) -> Vec<(OpKind, Json)> {
        let mut workload = workload(plan, connection);
        let requests = (0..10_000).map(|_| workload.draw());
        requests.map(|(call, body)| (call, serde_json::from_slice(&body).unwrap())).collect()
    }

    /// How often each key is meant, the most frequent first.
    fn frequencies(plan: &Arc<BenchPlan>) -> Vec<usize> {
        let mut keys = BTreeMap::<_, usize>::new();
        for (_, body) in drawn(plan, 1) {
            *keys.entry(body["key"].as_str().unwrap().to_owned()).or_default() += 1;
        }
        let mut counts: Vec<_> = keys.into_values().collect();
        counts.sort_unstable_by(|a, b| b.cmp(a));
        counts
    }

    #[test]
    fn the_same_seed_and_connection_ask_the_same_and_others_do_not() {
        let plan_of = |seed| plan(&["--seed", seed]);
        assert_eq!(drawn(&plan_of("7"), 3), drawn(&plan_of("7"), 3));
        assert_ne!(drawn(&plan_of("7"), 3), drawn(&plan_of("7"), 4));
        assert_ne!(drawn(&plan_of("7"), 3), drawn(&plan_of("8"), 2));
    }

    #[test]
    fn calls_come_in_their_parts_with_the_fields_that_they_have() {
        let plan = plan(&["--mix", "get=6,add=3,remove=1", "--value-bytes", "7", "--quorum", "2"]);
        let requests = drawn(&plan, 1);
        for (call, expected) in
            [(OpKind::Get, 6_000), (OpKind::Add, 3_000), (OpKind::Remove, 1_000)]
        {
            let of_call: Vec<_> = requests.iter().filter(|(of, _)| *of == call).collect();
            assert!(of_call.len().abs_diff(expected) < 200, "{call:?}: {}", of_call.len());
            for (_, body) in of_call {
                assert_eq!(body["quorum"], 2);
                assert_eq!(
                    body["value"].as_str().map(str::len),
                    (call == OpKind::Add).then_some(7)
                );
            }
        }
    }

    #[test]
    fn a_named_quorum_is_a_text() {
        let (_, body) = workload(&plan(&["--quorum", "all"]), 1).fill(9);
        let body: Json = serde_json::from_slice(&body).unwrap();
        assert_eq!((&body["key"], &body["quorum"]), (&"bench-9".into(), &"all".into()));
    }

    #[test]
    fn keys_are_as_frequent_as_the_distribution_says() {
        let uniform = frequencies(&plan(&["--keys", "100"]));
        assert_eq!(uniform.len(), 100);
        assert!(uniform[0] < 150 && uniform[99] > 50, "{uniform:?}");
        let zipf = frequencies(&plan(&["--keys", "100", "--distribution", "zipf:1"]));
        // 1 / (1 + 1/2 + ... + 1/100) is 0.193.
        assert!(zipf[0].abs_diff(1_930) < 200 && zipf[1].abs_diff(965) < 150, "{zipf:?}");
        let only_one = frequencies(&plan(&["--keys", "1", "--distribution", "zipf"]));
        assert_eq!(only_one, [10_000]);
    }
}
