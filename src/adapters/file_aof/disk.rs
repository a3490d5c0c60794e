//! What the writer asks of its file, so that tests can have it fail; and when.

use std::fs::File;
use std::io::{self, Write};

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

/// An append-only file. One at a time appends or truncates; a sync may come in between.
pub(super) trait Disk: Send + Sync {
    /// Appends all of these bytes; after an error, any number of them may have been.
    fn append(&self, bytes: &[u8]) -> io::Result<()>;

    /// Forces what was appended to the device.
    fn sync(&self) -> io::Result<()>;

    /// Cuts the file to this length.
    fn truncate(&self, length: u64) -> io::Result<()>;
}

impl Disk for File {
    fn append(&self, bytes: &[u8]) -> io::Result<()> {
        let mut file = self;
        file.write_all(bytes)
    }

    fn sync(&self) -> io::Result<()> {
        self.sync_data()
    }

    fn truncate(&self, length: u64) -> io::Result<()> {
        self.set_len(length)
    }
}
