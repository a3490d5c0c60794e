//! Every system call that a node makes on its data directory fails once, and kills it once.
//!
//! A fixed script runs against one real process: a start, writes and removals, a compaction beside
//! writes, more writes, a graceful stop. A first run is traced, and every call of it that concerns the
//! data directory becomes a target: the k-th `write` to this file, the k-th `rename` of that one. Then
//! the script runs again once for each target and each [`injury`], which `strace -e inject` does to
//! exactly that call. After each run the node is started again, untraced, and must hold what was
//! acknowledged and nothing that was never written. What may come of an injury is in [`verdict`].
//!
//! `strace` counts calls per thread, and an injection hits the k-th call of each thread that gets
//! that far. Counting up to a run in which nothing fires would never reach a call of one thread that
//! stands behind the same number of another. So [`plan`] looks for the paths to watch (`-P`) and the
//! number that single one target out in the traced run, and the trace of the injured run says
//! which call was hit.
//!
//! [`calls`] reads traces, [`workload`] is what the client does and knows, [`scenes`] are the starts
//! (first, after a crash, with `--fresh`, with `--replay-log`) and runs them, [`sweep`] goes through all of
//! it and writes the result. `make syscalls` is the full size; `docs/durability.md` says it for readers.
//!
//! Not here: a write that returns fewer bytes than it was given. `strace` cannot make one (`retval=`
//! skips the call: bytes that the node believes written would be nowhere). Disks that are really full
//! do, in the tests of `full_disk`; the unit tests of the log's writer do it at every length.

mod calls;
mod plan;
mod scenes;
mod sweep;
mod verdict;
mod workload;
