//! `FileAof`: the log as append-only files.
//!
//! * `format` is what a record looks like, `files` what files there are and how they begin.
//! * `reader` reads a log back and tells a torn tail from a damaged middle; `replay` has what it reads
//!   taken in on all cores.
//! * `writer` takes appends, `queue` is what waits, as `records`, `shared` writes it (group commit, sync
//!   policies, failing disks); `reserve` keeps space for removals on a full disk, `sync_meter` counts syncs.
//! * `rotation` goes on to the next segment, `compaction` writes a snapshot for those before;
//!   `marks` are what it keeps beside the entries, `aside` is where that work is done.
//! * `tail` makes the end of a log ready for more.
//! * `own` holds that a log is this node's.
//! * `backup` gives out what the log says at one moment, `backup_dir` takes that into a directory, and
//!   `install` copies a log, such as that one, into place.
//! * `aof` puts them behind the `OpLog` port.
//! * For programs beside the node: `source` opens a log that may be written to meanwhile, `scan` reads
//!   a file past its damages, `walk` all files; on them stand `check`, `dump` and `salvage`, which
//!   writes a new log of what is intact. `import` adds a segment to the log of a node that is stopped.
//!
//! `docs/log-format.md` describes the bytes for other programs.

mod aof;
mod aside;
mod backup;
mod backup_dir;
mod batch;
mod check;
mod compaction;
mod disk;
mod dump;
mod files;
mod forcing;
mod format;
mod gathering;
mod import;
mod install;
mod marks;
mod own;
mod queue;
mod reader;
mod records;
mod replay;
mod reserve;
mod rotation;
mod salvage;
mod scan;
mod shared;
mod source;
mod sync_meter;
mod tail;
mod walk;
mod writer;

pub use aof::{AofOptions, DEFAULT_QUEUE_BYTES, DEFAULT_QUEUE_WAIT, FileAof};
pub use backup_dir::{BackupDir, BackupError, BackupWritten};
pub use check::{FileReport, check_log};
pub use disk::{FsyncPolicy, free_bytes};
pub use dump::dump_log;
pub use import::{Import, Imported};
pub use install::{install_log, log_bytes};
pub use own::{Owner, refuse_foreign_log, verify_log};
pub use salvage::{Salvaged, owner_of, salvage_log};
pub use walk::{Flaw, Flaws};
