//! `FileAof`: the log as append-only files.
//!
//! * `format` is what a record looks like, `segment` what a file looks like.
//! * `reader` reads a log back and tells a torn tail from a damaged middle.
//! * `writer` writes (group commit, sync policies, failing disks) what is queued in `queue`;
//!   `reserve` keeps space for removals on a full disk.
//! * `install` copies another log into place.
//! * `aof` puts them behind the `OpLog` port.
//!
//! `docs/log-format.md` describes the bytes for other programs.

mod aof;
mod disk;
mod format;
mod install;
mod queue;
mod reader;
mod reserve;
mod segment;
mod writer;

pub use aof::{AofOptions, DEFAULT_QUEUE_BYTES, DEFAULT_QUEUE_WAIT, FileAof};
pub use disk::FsyncPolicy;
pub use install::install_log;
