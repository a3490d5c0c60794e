//! Peers over gRPC (`lally.v1`).
//!
//! * `peers` is the `PeerTransport`: this node's side towards others. Per peer there are three
//!   connections: `link`s carry reads and writes, the
//!   `calls`, on one long-lived stream, control calls and gossip
//!   have one to themselves, so that bulk transfer on the third never delays them; `pulled` reads what
//!   that brings.
//! * `server` answers others, over the `connections` that it accepts, `data` their reads and writes, `streams` what brings much.
//! * `dial` is for connections that are not the system's TCP, or become something else; `connections` counts
//!   those that come in.
//! * `handshake` is what every call carries and how a refusal travels; `convert` turns messages into
//!   values and back; `fragments` carries what is larger than a message; `wire` is generated.
//!
//! No type of tonic or prost leaves this module.

mod calls;
mod connections;
mod convert;
mod data;
mod dial;
mod fragments;
mod gossip;
mod handshake;
mod link;
mod peers;
mod pulled;
mod server;
mod streams;
mod wire;

pub use dial::{Connection, Dial, Upgrade};
pub use peers::{GrpcOptions, GrpcPeers};
pub use server::{ServerOptions, serve, serve_connections};
