//! The last step of a stop: what a node holds open is closed, each part within a time of its own.

use std::time::Duration;

use crate::ports::LogError;

use super::hook_chain::HookChain;
use super::parts::NodeParts;

/// How long connections to peers may take to close.
const CLOSE_WITHIN: Duration = Duration::from_millis(500);

/// How long the disk of the log may take for the last writes.
const CLOSE_LOG_WITHIN: Duration = Duration::from_millis(1_500);

/// How long hooks may take for what they still have to do. Beside the two above: no longer than them.
const CLOSE_HOOKS_WITHIN: Duration = Duration::from_secs(2);

/// Closes the connections to the peers and the log, and has the hooks finish meanwhile.
pub(super) async fn close(parts: &NodeParts, hooks: &HookChain) -> Result<(), LogError> {
    let peers_and_log = async {
        if tokio::time::timeout(CLOSE_WITHIN, parts.transport.close()).await.is_err() {
            tracing::warn!("connections to peers dropped");
        }
        let closed = tokio::time::timeout(CLOSE_LOG_WITHIN, parts.log.close()).await;
        closed.unwrap_or_else(|_| Err(LogError::Failed("its disk does not answer".into())))
    };
    tokio::join!(peers_and_log, hooks.close(CLOSE_HOOKS_WITHIN)).0
}
