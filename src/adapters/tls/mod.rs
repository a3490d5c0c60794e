//! TLS: certificates on disk, and what is spoken over them.
//!
//! * `authority` makes them: a cluster's own authority (CA), and certificates of nodes.
//! * `peers` is for what nodes say to each other: both sides show a certificate of the cluster.
//! * `clients` is for clients: the node shows a certificate, and a token says who the client is.
//! * `pem` reads the files; `errors` says what is wrong with them.
//!
//! Files are read when a node starts and when it is told to read them again; connections that are open
//! go on with what they were opened with.

mod authority;
mod clients;
mod errors;
mod peers;
mod pem;

pub use authority::{CA_CERT, CA_KEY, Issued, Subject, create_authority, issue};
pub use clients::{HttpTls, trusting};
pub use errors::{TlsError, TlsErrors};
pub use peers::{PeerTls, PeerTlsFiles};
