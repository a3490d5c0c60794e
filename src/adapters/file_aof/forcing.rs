//! `Forcing`: forces the file to the device, one at a time, and none after one that failed: the kernel
//! tells of an error once, and whoever asks next would be told that all is well.
//!
//! Much that is on the device at once is let go of from the page cache: nobody but a backup reads it
//! before the next start, and so large values are copied into pages that were used a moment ago, rather
//! than into ever new ones.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::ports::LogError;

use super::files::not_forced;
use super::rotation::OpenSegment;
use super::sync_meter::SyncMeter;

/// So much is let go of when one sync has forced it. Where less is written in a second, fresh pages cost
/// less than to give them back.
const LET_GO_BYTES: u64 = 16 << 20;

/// Forces segments, and counts how long that takes.
#[derive(Default)]
pub(super) struct Forcing {
    done: Mutex<Done>,
    pub(super) syncs: SyncMeter,
}

/// What was done so far.
#[derive(Default)]
struct Done {
    /// Why forcing failed, once it did.
    failure: Option<LogError>,
    /// Up to where the last sync forced, and which segment.
    forced: u64,
    segment: u64,
}

impl Forcing {
    /// Forces a segment, of which so many bytes were written before this is called: how long it took.
    pub(super) fn force(&self, segment: &OpenSegment, bytes: u64) -> Result<Duration, LogError> {
        let mut done = self.done.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(failure) = &done.failure {
            return Err(failure.clone());
        }
        let began = Instant::now();
        let synced = segment.disk.sync();
        let took = began.elapsed();
        self.syncs.record(took);
        if let Err(error) = synced {
            let failure = not_forced(&segment.path, &error);
            done.failure = Some(failure.clone());
            return Err(failure);
        }
        if done.segment != segment.number {
            (done.segment, done.forced) = (segment.number, 0);
        }
        if bytes >= done.forced + LET_GO_BYTES {
            segment.disk.let_go(done.forced, bytes);
        }
        done.forced = bytes;
        Ok(took)
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::Arc;

    use super::*;
    use crate::adapters::file_aof::disk::Disk;

    /// Notes what it is asked for.
    #[derive(Default)]
    struct Noting {
        fails: bool,
        asked: Mutex<Vec<(u64, u64)>>,
    }

    impl Disk for Arc<Noting> {
        fn append(&self, _: &[u8]) -> io::Result<()> {
            Ok(())
        }

        fn sync(&self) -> io::Result<()> {
            self.asked.lock().unwrap().push((0, 0));
            if self.fails { Err(io::ErrorKind::Other.into()) } else { Ok(()) }
        }

        fn truncate(&self, _: u64) -> io::Result<()> {
            Ok(())
        }

        fn allocate(&self, _: u64, _: u64) -> io::Result<()> {
            Ok(())
        }

        fn let_go(&self, from: u64, to: u64) {
            self.asked.lock().unwrap().push((from, to));
        }
    }

    fn segment(number: u64, disk: &Arc<Noting>) -> OpenSegment {
        OpenSegment { number, path: "7.log".into(), disk: Box::new(Arc::clone(disk)), salt: 7 }
    }

    #[test]
    fn much_that_is_forced_at_once_is_let_go_of_and_not_before() {
        let (disk, forcing) = (Arc::new(Noting::default()), Forcing::default());
        for (number, bytes) in [
            (1, 10),
            (1, LET_GO_BYTES + 9),
            (1, 2 * LET_GO_BYTES + 9),
            (1, 3 * LET_GO_BYTES),
            (2, LET_GO_BYTES),
        ] {
            forcing.force(&segment(number, &disk), bytes).unwrap();
        }
        let sync = (0, 0);
        let expected = [
            sync,
            sync,
            sync,
            (LET_GO_BYTES + 9, 2 * LET_GO_BYTES + 9),
            sync,
            sync,
            (0, LET_GO_BYTES),
        ];
        assert_eq!(*disk.asked.lock().unwrap(), expected);
        assert_eq!(forcing.syncs.times().count(), 5);
    }

    #[test]
    fn after_a_sync_that_failed_none_is_tried_and_nothing_is_let_go_of() {
        let (disk, forcing) =
            (Arc::new(Noting { fails: true, ..Noting::default() }), Forcing::default());
        let first = forcing.force(&segment(1, &disk), LET_GO_BYTES).unwrap_err();
        let second = forcing.force(&segment(2, &disk), LET_GO_BYTES).unwrap_err();
        assert_eq!(first, second);
        assert_eq!(*disk.asked.lock().unwrap(), [(0, 0)]);
    }
}
