//! Waiting for facts, with a deadline, instead of sleeping and hoping.

use std::fmt::Display;
use std::thread;
use std::time::{Duration, Instant};

/// How long a debug build on a busy two-core machine may take for what usually takes a moment.
pub const PATIENCE: Duration = Duration::from_secs(30);

const BETWEEN_LOOKS: Duration = Duration::from_millis(15);

/// Looks until `look` finds what it wants, and says at the deadline what it saw last.
pub fn eventually<T, E: Display>(
    what: &str,
    within: Duration,
    look: impl FnMut() -> Result<T, E>,
) -> T {
    look_until(within, look)
        .unwrap_or_else(|seen| panic!("not within {within:?}: {what}; last seen: {seen}"))
}

/// Looks until `look` finds what it wants, or returns what it saw at the deadline.
pub fn look_until<T, E: Display>(
    within: Duration,
    mut look: impl FnMut() -> Result<T, E>,
) -> Result<T, E> {
    let deadline = Instant::now() + within;
    loop {
        match look() {
            Err(_) if Instant::now() < deadline => thread::sleep(BETWEEN_LOOKS),
            last => return last,
        }
    }
}

/// `Ok` if the condition holds, else what was seen: for [`eventually`].
pub fn is(condition: bool, seen: impl Display) -> Result<(), String> {
    if condition { Ok(()) } else { Err(seen.to_string()) }
}

#[test]
#[should_panic(expected = "last seen: three")]
fn what_never_happens_is_reported_with_what_was_seen_last() {
    let mut names = ["one", "two", "three"].into_iter();
    let mut last = "";
    eventually("four", Duration::from_millis(100), || {
        last = names.next().unwrap_or(last);
        is(last == "four", last)
    });
}
