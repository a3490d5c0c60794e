//! What the writer asks of its file, so that tests can have it fail; and when.

use std::fs::File;
use std::io::{self, IoSlice, Write};
use std::path::Path;
use std::time::Duration;

use super::reserve::{Ahead, Answer};

/// With `everysec`: how old acknowledged data may become before it is forced to disk. One second,
/// so that a sync may take almost another before writes are refused.
const SYNC_EVERY: Duration = Duration::from_secs(1);

/// With `everysec`: how old acknowledged data may become before no more is taken. So what a power cut
/// takes was acknowledged within two seconds, also if the last answer took a tenth of one.
const LAG_MAX: Duration = Duration::from_millis(1_900);

/// When acknowledged data is forced to the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum FsyncPolicy {
    /// Before it is acknowledged.
    Always,
    /// Within about a second.
    #[default]
    EverySec,
    /// When the operating system likes.
    Never,
}

/// When acknowledged data is forced, and, with `everysec`, when its device is too far behind.
#[derive(Debug, Clone, Copy)]
pub(super) struct SyncSchedule {
    pub(super) policy: FsyncPolicy,
    pub(super) every: Duration,
    pub(super) lag_max: Duration,
}

impl SyncSchedule {
    pub(super) const fn of(policy: FsyncPolicy) -> Self {
        Self { policy, every: SYNC_EVERY, lag_max: LAG_MAX }
    }
}

/// An append-only file. One at a time appends, truncates or allocates; a sync may come in between.
pub(super) trait Disk: Send + Sync {
    /// Appends all of these bytes; after an error, any number of them may have been.
    fn append(&self, bytes: &[u8]) -> io::Result<()>;

    /// Appends all of these parts, likewise. What they say afterwards is of no use.
    fn append_all(&self, parts: &mut [IoSlice<'_>]) -> io::Result<()> {
        parts.iter().try_for_each(|part| self.append(part))
    }

    /// Forces what was appended to the device.
    fn sync(&self) -> io::Result<()>;

    /// Cuts the file to this length. What was allocated behind it may be gone.
    fn truncate(&self, length: u64) -> io::Result<()>;

    /// Takes space for the bytes of these offsets, without making the file longer.
    fn allocate(&self, from: u64, to: u64) -> io::Result<()>;

    /// The bytes of these offsets, which were forced, need not be kept in memory.
    fn let_go(&self, _from: u64, _to: u64) {}
}

impl Disk for File {
    fn append(&self, bytes: &[u8]) -> io::Result<()> {
        let mut file = self;
        file.write_all(bytes)
    }

    fn append_all(&self, mut parts: &mut [IoSlice<'_>]) -> io::Result<()> {
        let mut file = self;
        // What is empty at the beginning would pass for a file that takes no more.
        IoSlice::advance_slices(&mut parts, 0);
        while !parts.is_empty() {
            match file.write_vectored(parts) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => IoSlice::advance_slices(&mut parts, written),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        self.sync_data()
    }

    fn truncate(&self, length: u64) -> io::Result<()> {
        self.set_len(length)
    }

    #[cfg(target_os = "linux")]
    fn allocate(&self, from: u64, to: u64) -> io::Result<()> {
        use rustix::fs::{FallocateFlags, fallocate};
        let length = to.saturating_sub(from);
        let allocate = || fallocate(self, FallocateFlags::KEEP_SIZE, from, length);
        Ok(rustix::io::retry_on_intr(allocate)?)
    }

    #[cfg(not(target_os = "linux"))]
    fn allocate(&self, _from: u64, _to: u64) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    #[cfg(target_os = "linux")]
    fn let_go(&self, from: u64, to: u64) {
        use rustix::fs::{Advice, fadvise};
        let length = std::num::NonZeroU64::new(to.saturating_sub(from));
        // An advice: what a file system makes of it changes nothing but its speed.
        fadvise(self, from, length, Advice::DontNeed).ok();
    }
}

/// The size of the file system that a file is on, in bytes, if it says so.
pub(super) fn file_system_bytes(file: &File) -> Option<u64> {
    let sizes = rustix::fs::fstatvfs(file).ok()?;
    let bytes = sizes.f_blocks.checked_mul(sizes.f_frsize)?;
    // Some have no fixed size, and say 0.
    (bytes > 0).then_some(bytes)
}

/// Space on the file system of this path that this process may use, in bytes, if it says so.
pub fn free_bytes(path: &Path) -> Option<u64> {
    let sizes = rustix::fs::statvfs(path).ok()?;
    // Some have no fixed size, and say 0.
    let has_size = sizes.f_blocks > 0;
    has_size.then(|| sizes.f_bavail.saturating_mul(sizes.f_frsize))
}

/// Whether an error means that there is no space, rather than that the disk fails.
pub(super) fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// Asks for space, and says in the log of the node when the disk becomes short or is not any more.
pub(super) fn allocate(disk: &dyn Disk, ahead: Ahead, was_short: bool) -> Answer {
    for up_to in [ahead.wanted, ahead.least] {
        match disk.allocate(ahead.from, up_to) {
            Ok(()) => {
                if was_short {
                    tracing::info!("the disk has space again: values are taken");
                }
                return Answer::Allocated(up_to);
            }
            Err(error) if is_full(&error) => {}
            // If the disk fails, the next write will tell.
            Err(error) => {
                tracing::info!(%error, "no reserve: a full disk will refuse removals, too");
                return Answer::Unsupported;
            }
        }
    }
    if !was_short {
        tracing::warn!("disk full: values are refused until there is space, removals are taken");
    }
    Answer::Short
}
