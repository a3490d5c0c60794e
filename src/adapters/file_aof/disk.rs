//! What the writer asks of its file, so that tests can have it fail.

use std::fs::File;
use std::io::{self, Write};

/// An append-only file.
pub(super) trait Disk: Send {
    /// Appends all of these bytes; after an error, any number of them may have been.
    fn append(&mut self, bytes: &[u8]) -> io::Result<()>;

    /// Forces what was appended to the device.
    fn sync(&mut self) -> io::Result<()>;

    /// Cuts the file to this length.
    fn truncate(&mut self, length: u64) -> io::Result<()>;
}

impl Disk for File {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.write_all(bytes)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.sync_data()
    }

    fn truncate(&mut self, length: u64) -> io::Result<()> {
        self.set_len(length)
    }
}
