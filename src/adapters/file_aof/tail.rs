//! The end of the last segment, before anything is appended to it.
//!
//! What an interrupted write left is cut. And behind the end of the file there may be more than
//! meets the eye: after a power cut a block can hold records that the length of the file does not
//! reach, since lengths and data go to the device at different times. They were lost; but they
//! continue the log without a flaw, and when the file has grown over them and the power is cut before
//! what replaced them is on the device, they would be back. So they are overwritten.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use crate::ports::LogError;

use super::disk::is_full;
use super::files::{failed, not_forced};
use super::reader::End;

/// The least block of a file system.
const BLOCK_BYTES: u64 = 4_096;

/// Ends a segment where its records end, durably: an interrupted write is cut, and nothing is behind
/// it. A crash in the middle leaves zeros there, or what was there before; nothing was served by then.
pub(super) fn end_with_records(end: &End) -> Result<(), LogError> {
    let End { path, good_bytes, torn_bytes, .. } = end;
    if *torn_bytes > 0 {
        tracing::warn!(file = %path.display(), offset = good_bytes, bytes = torn_bytes,
            "torn tail of the log cut: the rest of a write that was interrupted");
    }
    clear_behind(path, *good_bytes)
}

fn clear_behind(path: &Path, end: u64) -> Result<(), LogError> {
    let opened = OpenOptions::new().write(true).open(path);
    let file = opened.map_err(|error| failed(path, &error))?;
    let cut = || file.set_len(end).map_err(|error| failed(path, &error));
    // Also gives back whole blocks that are allocated behind the end.
    cut()?;
    match overwrite(&file, end) {
        Ok(()) => file.sync_data().map_err(|error| not_forced(path, &error))?,
        // The rest of the block is there already, as a rule.
        Err(error) if is_full(&error) => {
            tracing::warn!(file = %path.display(), "disk full: what may be behind the end of the \
                log is not overwritten");
        }
        Err(error) => return Err(failed(path, &error)),
    }
    cut()?;
    file.sync_all().map_err(|error| not_forced(path, &error))
}

/// Overwrites the rest of the block with zeros.
fn overwrite(file: &File, from: u64) -> io::Result<()> {
    let block = file.metadata()?.blksize().max(BLOCK_BYTES);
    let rest = usize::try_from(from.next_multiple_of(block) - from).unwrap_or_default();
    file.write_all_at(&vec![0; rest], from)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn what_is_before_the_end_stays_and_nothing_is_behind_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("1.log");
        for bytes in [b"".as_slice(), b"kept", &[7; 4_096], &[7; 5_000]] {
            for behind in [b"".as_slice(), b"torn", &[9; 9_000]] {
                fs::write(&path, [bytes, behind].concat()).unwrap();
                clear_behind(&path, bytes.len() as u64).unwrap();
                assert_eq!(fs::read(&path).unwrap(), bytes);
            }
        }
    }

    #[test]
    fn a_file_that_is_gone_is_an_error_that_names_it() {
        let dir = tempfile::tempdir().unwrap();
        let said = clear_behind(&dir.path().join("1.log"), 0).unwrap_err().to_string();
        assert!(said.contains("1.log"), "{said}");
    }
}
