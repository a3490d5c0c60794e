//! `FileAof`: the log as append-only files.
//!
//! * `format` is what a record looks like, `files` what files there are and how they begin.
//! * `reader` reads a log back and tells a torn tail from a damaged middle.
//! * `writer` takes appends, `queue` is what waits, `shared` writes it (group commit, sync policies,
//!   failing disks); `reserve` keeps space for removals on a full disk.
//! * `rotation` goes on to the next segment, `compaction` writes a snapshot for those before;
//!   `marks` are what it keeps beside the entries.
//! * `install` copies another log into place.
//! * `aof` puts them behind the `OpLog` port.
//!
//! `docs/log-format.md` describes the bytes for other programs.

mod aof;
mod compaction;
mod disk;
mod files;
mod format;
mod install;
mod marks;
mod queue;
mod reader;
mod reserve;
mod rotation;
mod shared;
mod writer;

pub use aof::{AofOptions, DEFAULT_QUEUE_BYTES, DEFAULT_QUEUE_WAIT, FileAof};
pub use disk::FsyncPolicy;
pub use install::install_log;
