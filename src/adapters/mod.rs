//! The adapters: what plugs into the ports.
//!
//! Each module names `ports` and `domain` and none of its siblings; only `app::compose` knows which
//! of them make up the binary.

pub mod clock;
pub mod config;
pub mod dash_store;
pub mod data_dir;
pub mod file_aof;
pub mod grpc;
pub mod hooks;
pub mod http;
pub mod json_book;
pub mod json_quarantine;
pub mod memory;
pub mod record_lines;
pub mod swim;
pub mod systemd;
pub mod tls;
pub mod tokens;
