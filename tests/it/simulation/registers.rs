//! Whether each key was one register to those who wrote with majorities and confirmed their reads:
//! what `docs/consistency.md` promises, of whole histories.
//!
//! Asked of writes and confirmed reads that were answered with `success`, by more than half of all
//! replicas that counted anywhere meanwhile. Everything else that was stamped (by other quorums, in
//! vain, without an answer, with an earlier stamp of a write that was stamped anew) is a write that may
//! have taken effect at any time from its request on, or never. A state is the timestamp of the
//! version that is shown; nothing is shown of a removal.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use lally::domain::{Content, Key, NodeId, Timestamp, Version};
use lally::ports::Consistency;

use super::history::{Evidence, GOES_ON, Op, OpKind};
use super::linearizability::{Action, Step, WINDOW, is_linearizable};

/// What is shown of a key that is not there.
const NOTHING: u64 = 0;

/// The keys whose histories are none of a register.
pub fn keys_are_registers(evidence: &Evidence) -> Vec<String> {
    let wrong = registers(evidence).into_iter().filter(|(_, steps)| !is_linearizable(steps));
    wrong.map(|(key, steps)| format!("{key:?} is no register: {steps:#?}")).collect()
}

/// What was asked of each key that can be judged.
pub fn registers(evidence: &Evidence) -> BTreeMap<&Key, Vec<Step>> {
    // Several members may have lost what they acknowledged; those of another cluster knew nothing of
    // it; and who is stopped against its advice takes it along until it is back.
    let judged = !evidence.reckless && !evidence.apart && !evidence.stopped_unsafely;
    let ops = evidence.ops.iter().filter(|_| judged);
    let keys: BTreeSet<&Key> = ops.map(|op| &op.key).collect();
    let lost =
        |key: &Key| evidence.destroyed.iter().chain(&evidence.cut).any(|lost| lost.key == *key);
    let kept = keys.into_iter().filter(|key| !lost(key));
    let steps = kept.map(|key| (key, steps(evidence, key)));
    steps.filter(|(_, steps)| !steps.is_empty() && steps.len() <= WINDOW).collect()
}

fn steps(evidence: &Evidence, key: &Key) -> Vec<Step> {
    let of_key: Vec<&Op> = evidence.ops.iter().filter(|op| op.key == *key).collect();
    let (mut steps, mut certain) = (Vec::new(), BTreeSet::new());
    for op in of_key.iter().filter(|op| is_by_majority(evidence, op)) {
        let Some(answer) = op.success() else { continue };
        let shown = answer.timestamp.map_or(NOTHING, Timestamp::as_nanos);
        let action = match op.kind {
            OpKind::Get if op.consistency != Consistency::Confirmed => continue,
            OpKind::Get => Action::Read(shown),
            OpKind::Add(_) => Action::Write(shown),
            OpKind::Remove => Action::Write(NOTHING),
        };
        certain.extend(evidence.acknowledged(op));
        steps.push(Step { invoked: op.invoked, returned: Some(op.returned), action });
    }
    let read: BTreeSet<u64> = steps.iter().filter_map(|step| shown_by(step.action)).collect();
    let first = Version::new(Timestamp::ZERO, NodeId::new(0));
    let stamped = evidence.seen.range((key.clone(), first)..);
    for ((_, version), seen) in stamped.take_while(|((other, _), _)| other == key) {
        let shown = match seen.content {
            Content::Live(_) => version.timestamp.as_nanos(),
            Content::Tombstone => NOTHING,
        };
        // What nobody saw need not have happened.
        if certain.contains(version) || !read.contains(&shown) {
            continue;
        }
        let asked_by = of_key.iter().filter(|op| op.node == version.node && op.is_write());
        let may_be = asked_by.filter(|op| {
            let of_it = match (&op.kind, &seen.content) {
                (OpKind::Add(asked), Content::Live(value)) => asked == value.as_str(),
                (OpKind::Remove, Content::Tombstone) => op.returned + GOES_ON >= seen.first,
                _ => false,
            };
            of_it && op.invoked <= seen.first
        });
        let invoked: Option<Duration> = may_be.map(|op| op.invoked).min();
        let invoked = invoked.unwrap_or(seen.first);
        steps.push(Step { invoked, returned: None, action: Action::Write(shown) });
    }
    steps
}

const fn shown_by(action: Action) -> Option<u64> {
    match action {
        Action::Read(shown) => Some(shown),
        Action::Write(_) => None,
    }
}

/// Whether more than half of all that counted anywhere meanwhile took part.
fn is_by_majority(evidence: &Evidence, op: &Op) -> bool {
    let required = op.success().map_or(0, |answer| answer.required as usize);
    2 * required > evidence.replicas_between(op.invoked, op.returned)
}
