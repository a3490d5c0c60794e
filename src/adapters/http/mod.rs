//! The HTTP API: JSON in, JSON out, over the [`ClientApi`](crate::ports::ClientApi) port.
//!
//! A request passes through few hands: the connection limit (`connections`), the route
//! (`routes`), who may do what (`guard`), its body (`body`), the cap on requests in flight (`admission`), the port, and one buffer that
//! is the response (`render`). There is no stack of middleware: each layer would cost a boxed
//! future per request, and what they do is done here in a few lines. Every refusal takes its
//! shape and code from `errors`, every count ends up in `metrics`.
//!
//! The other way round, for the command line, `client` is a connection to a node that runs, and
//! `download` gets a backup from one.
//!
//! It knows nothing of quorums, replicas or the log, and does not judge how long a value may be:
//! that is the port's business.

mod admission;
mod ask;
mod body;
mod client;
mod connections;
mod delivery_metrics;
mod download;
mod errors;
mod exporter;
mod fields;
mod guard;
mod identity;
mod json_text;
mod long_text;
mod metrics;
mod openapi;
mod options;
mod pieces;
mod process;
mod render;
mod routes;
mod server;
mod slow;
mod timer;

pub use ask::{Answered, AskError, ask};
pub use client::{HttpClient, Remote};
pub use download::{Download, DownloadError};
pub use guard::Guard;
pub use options::{HttpOptions, LiveOptions};
pub use routes::service;
pub use server::{Entrance, serve};
