//! The contract of the `Clock` port, over `SystemClock` and the `ManualClock` of tests.
//!
//! There is little to hold: a clock may stand still, jump and go back.

use std::fs::File;
use std::thread;
use std::time::{Duration, UNIX_EPOCH};

use lally::adapters::clock::SystemClock;
use lally::adapters::memory::ManualClock;
use lally::domain::Timestamp;
use lally::ports::Clock;

use super::suite::contract;

contract! {
    over {
        system: #[test] => &SystemClock;
        manual: #[test] => &ManualClock::new(Timestamp::from_nanos(7));
    }
    holds {
        a_clock_answers_any_number_of_threads_at_once,
    }
}

#[test]
fn the_system_s_clock_tells_the_time_at_which_files_are_written() {
    // The file system's clock may lag by a tick.
    let tick = Duration::from_secs(1);
    let before = written_now();
    let now = Duration::from_nanos(SystemClock.now().as_nanos());
    let after = written_now();
    assert!(
        before.saturating_sub(tick) <= now && now <= after + tick,
        "{before:?} {now:?} {after:?}"
    );
}

#[test]
fn a_manual_clock_stands_where_it_was_set_backwards_too() {
    let clock = ManualClock::new(Timestamp::from_nanos(5));
    for time in [5, 9, 3, u64::MAX, 0] {
        clock.set(Timestamp::from_nanos(time));
        assert_eq!(clock.now(), Timestamp::from_nanos(time));
        assert_eq!(clock.now(), Timestamp::from_nanos(time));
    }
}

fn a_clock_answers_any_number_of_threads_at_once(clock: &dyn Clock) {
    let asked = thread::scope(|scope| {
        let ask = || (0..10_000).filter(|_| clock.now() > Timestamp::ZERO).count();
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(ask)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).sum::<usize>()
    });
    assert_eq!(asked, 8 * 10_000);
}

/// When a file is written that is written now, since 1970.
fn written_now() -> Duration {
    let file: File = tempfile::tempfile().unwrap();
    std::io::Write::write_all(&mut &file, b"now").unwrap();
    file.metadata().unwrap().modified().unwrap().duration_since(UNIX_EPOCH).unwrap()
}
