//! In-memory twins of the production adapters, held to the same contract suites.
//!
//! For tests of whole nodes in one process, for programs that embed one without files or ports, and
//! as the shortest reading of what each port asks for. They encode nothing: what production
//! adapters do to bytes is tested there.

mod book;
mod clock;
mod detector;
mod log;
mod quarantine;
mod store;
mod transport;

pub use book::MemoryBook;
pub use clock::ManualClock;
pub use detector::TrustingDetector;
pub use log::MemoryLog;
pub use quarantine::MemoryQuarantine;
pub use store::MemoryStore;
pub use transport::MemoryNetwork;
