//! File descriptors: as many as the system gives, and a warning if connections may need more.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// What a node needs besides connections: the log, the lock, the listeners, the runtime, and its own
/// connections to peers.
const BESIDES: u64 = 256;

/// Raises the soft limit to the hard one. Soft limits are low for programs that keep descriptors in
/// fixed tables, which this one does not.
pub(super) fn raise_limit(connections: usize) {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    let raised = setrlimit(Resource::Nofile, raised).map_or(limit, |()| raised);
    let needed = (connections as u64).saturating_add(BESIDES);
    if let Some(descriptors) = raised.current.filter(|current| *current < needed) {
        tracing::warn!(
            descriptors,
            needed,
            "fewer file descriptors than connections are allowed: raise the limit (ulimit -n, \
             LimitNOFILE), or lower max_connections and max_peer_connections"
        );
    }
}
