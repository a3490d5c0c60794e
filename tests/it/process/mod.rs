//! The binary from outside: real processes on loopback, held to every line of the interface.
//!
//! Nothing here knows how a node is built. A test configures one through files, environment and
//! flags, talks to it over sockets, sends it signals, and reads its answers and its log lines.
//!
//! What is watched, by module: [`config`] (every setting in every layer, every refusal),
//! [`lifecycle`] (start, stop, signals, exit codes, the log file), [`http`] (shapes, codes,
//! limits), [`abuse`] (what no client should send), [`cluster`] (quorums, joining, leaving),
//! [`consistency`] (what reads may see), [`operators`] (forgetting members, safe stops), [`reload`] (SIGHUP),
//! [`settings`] (`lally config`), [`generated`] (completions and man pages),
//! [`faults`] (members that die, hang, or lose their disk), [`large_join`], [`large_log`],
//! [`forgetting`], [`compaction`], [`backup`], [`bench`], [`full_disk`], [`slow_disk`], [`full_memory`], [`overload`], [`crowds`] and [`floods`] (connections and frames without end), [`mutated`] (what was right once), [`content`] (bytes come
//! back as they were), [`durable_names`] (what a power cut must not take), [`dataset`],
//! [`ask`] (`lally get` and the like), [`log_commands`], [`log_import`] and [`log_repair`] (`lally log ...`, recovering from peers),
//! [`hooks`] (rules, and webhooks), [`log_refusals`] (logs that no node starts on),
//! [`service_manager`] (what systemd is told), [`packaging`] and [`debian`] (containers, services), [`readme`] (what it tells people to type) and [`documents`] (every block of every document).
//!
//! The harness: [`node`] runs a process, [`client`] speaks HTTP so plainly that the raw text of an
//! answer can be checked, [`ring`] starts several nodes and waits for them, [`receiver`] is what webhooks call, [`wait`] waits for
//! facts, [`frames`] is HTTP/2 by hand, [`mutation`] makes wrong what was right, [`turn`] keeps a small machine from running everything at once.

mod abuse;
mod ask;
mod backup;
mod bench;
pub(super) mod client;
mod closed;
mod cluster;
mod compaction;
mod config;
mod consistency;
mod content;
mod crowds;
mod dataset;
mod debian;
mod documents;
pub(super) mod durable_names;
mod faults;
mod floods;
mod forgetting;
mod frames;
mod full_disk;
mod full_memory;
mod generated;
mod hooks;
mod http;
mod large_join;
mod large_log;
mod lifecycle;
mod log_commands;
mod log_import;
mod log_refusals;
mod log_repair;
mod mutated;
pub(super) mod mutation;
pub(super) mod node;
mod operators;
mod overload;
mod packaging;
mod readme;
mod receiver;
mod reload;
pub(super) mod ring;
mod security;
mod service_manager;
mod settings;
mod shape;
mod slow_disk;
pub(super) mod turn;
pub(super) mod wait;
