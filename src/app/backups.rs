//! `Backups`: gives what the log says to whoever backs this node up, one at a time.
//!
//! The log does the work; here is who may have it, and for how long. A reader that is slow costs the
//! node nothing but the pieces that wait, one that takes nothing any more is given up.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::{Mutex, OwnedMutexGuard, mpsc};
use tokio::time::{Instant, timeout};

use crate::ports::{BackupStream, ClientError, LogError, OpLog};

use super::tasks::Tasks;

/// How long a reader may take for one piece before somebody else may have its place.
const STALLED_AFTER: Duration = Duration::from_secs(60);

/// Makes backups.
pub(crate) struct Backups {
    log: Arc<dyn OpLog>,
    tasks: Tasks,
    /// Held by the one that is made.
    turn: Arc<Mutex<()>>,
}

impl Backups {
    pub(crate) fn new(log: Arc<dyn OpLog>, tasks: Tasks) -> Self {
        Self { log, tasks, turn: Arc::default() }
    }

    /// Begins one.
    ///
    /// # Errors
    /// Those of [`ClientApi::backup`](crate::ports::ClientApi::backup).
    pub(crate) async fn begin(&self) -> Result<Box<dyn BackupStream>, ClientError> {
        let Ok(turn) = Arc::clone(&self.turn).try_lock_owned() else {
            return Err(ClientError::Overloaded(BUSY));
        };
        let log = self.log.backup().await.map_err(|error| refusal(&error))?;
        let expected_bytes = log.expected_bytes();
        tracing::info!(expected_bytes, "backup begun");
        let (give, pieces) = mpsc::channel(1);
        self.tasks.spawn_loop(async move {
            let began = Instant::now();
            let (bytes, outcome) = carry(log, give, turn).await;
            let took_ms = began.elapsed().as_millis();
            match outcome {
                Outcome::Complete => tracing::info!(bytes, took_ms, "backup complete"),
                Outcome::GivenUp(why) => tracing::warn!(bytes, took_ms, why, "backup given up"),
                Outcome::Failed(error) => tracing::error!(%error, bytes, "backup failed"),
            }
        });
        Ok(Box::new(Pieces { pieces, expected_bytes }))
    }
}

const BUSY: &str = "a backup of this node is being made already";

/// What a log that cannot be backed up now means to whoever wants that. That a record does not read
/// back is of no consequence to the node itself.
fn refusal(error: &LogError) -> ClientError {
    tracing::warn!(%error, "no backup");
    match error {
        LogError::Overloaded => ClientError::Overloaded("the log changes too often"),
        LogError::Corrupt { .. } => ClientError::LogFailed(error.to_string()),
        LogError::Failed(reason) => {
            ClientError::LogFailed(format!("the log cannot be read: {reason}"))
        }
        other => other.into(),
    }
}

enum Outcome {
    Complete,
    GivenUp(&'static str),
    Failed(LogError),
}

type Piece = Result<Option<Bytes>, LogError>;

/// Hands the pieces over; how many bytes those were, and how it ended.
async fn carry(
    mut log: Box<dyn BackupStream>,
    give: mpsc::Sender<Piece>,
    _turn: OwnedMutexGuard<()>,
) -> (u64, Outcome) {
    let mut bytes = 0;
    loop {
        let piece = log.next().await;
        let length = match &piece {
            Ok(Some(bytes)) => Some(bytes.len() as u64),
            Ok(None) | Err(_) => None,
        };
        let failure = piece.as_ref().err().cloned();
        match timeout(STALLED_AFTER, give.send(piece)).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return (bytes, Outcome::GivenUp("its client went away")),
            Err(_) => return (bytes, Outcome::GivenUp("its client took nothing for a minute")),
        }
        match (failure, length) {
            (Some(error), _) => return (bytes, Outcome::Failed(error)),
            (None, Some(length)) => bytes += length,
            (None, None) => return (bytes, Outcome::Complete),
        }
    }
}

struct Pieces {
    pieces: mpsc::Receiver<Piece>,
    expected_bytes: u64,
}

#[async_trait]
impl BackupStream for Pieces {
    fn expected_bytes(&self) -> u64 {
        self.expected_bytes
    }

    async fn next(&mut self) -> Piece {
        // It ends without an end when the node stops, or has given this reader up.
        self.pieces.recv().await.unwrap_or(Err(LogError::Closed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ports::{MockBackupStream, MockOpLog};

    /// A log whose backups have these pieces.
    fn backups(pieces: &'static [&'static str], tasks: &Tasks) -> Backups {
        let mut log = MockOpLog::new();
        log.expect_backup().returning(move || {
            let mut stream = MockBackupStream::new();
            let mut left = pieces.iter();
            stream.expect_expected_bytes().return_const(9_u64);
            stream.expect_next().returning(move || {
                Ok(left.next().map(|piece| Bytes::from_static(piece.as_bytes())))
            });
            Ok(Box::new(stream))
        });
        Backups::new(Arc::new(log), tasks.clone())
    }

    async fn begin(backups: &Backups) -> Result<Box<dyn BackupStream>, ClientError> {
        backups.begin().await
    }

    #[tokio::test]
    async fn all_pieces_come_in_their_order_and_then_the_end() {
        let backups = backups(&["a", "b", "c"], &Tasks::default());
        for _ in 0..2 {
            let mut stream = begin(&backups).await.unwrap();
            assert_eq!(stream.expected_bytes(), 9);
            for piece in [Some("a"), Some("b"), Some("c"), None] {
                assert_eq!(stream.next().await, Ok(piece.map(Bytes::from)));
            }
            // The place is free once the end was taken.
            drop(backups.turn.lock().await);
        }
    }

    #[tokio::test]
    async fn there_is_one_at_a_time_and_one_that_is_dropped_makes_room() {
        let backups = backups(&["a", "b", "c", "d"], &Tasks::default());
        let mut first = begin(&backups).await.unwrap();
        first.next().await.unwrap();
        assert_eq!(begin(&backups).await.err(), Some(ClientError::Overloaded(BUSY)));
        drop(first);
        drop(backups.turn.lock().await);
        assert!(begin(&backups).await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn a_reader_that_takes_nothing_loses_its_place_and_learns_that_this_was_not_all() {
        let backups = backups(&["a", "b", "c", "d"], &Tasks::default());
        let mut stalled = begin(&backups).await.unwrap();
        let began = Instant::now();
        drop(backups.turn.lock().await);
        assert!(began.elapsed() >= STALLED_AFTER);
        assert_eq!(stalled.next().await, Ok(Some(Bytes::from("a"))));
        assert_eq!(stalled.next().await, Err(LogError::Closed));
    }

    #[tokio::test]
    async fn a_node_that_stops_ends_a_backup_without_an_end() {
        let tasks = Tasks::default();
        let backups = backups(&["a", "b", "c", "d"], &tasks);
        let mut stream = begin(&backups).await.unwrap();
        assert!(tasks.finish(Duration::from_secs(5)).await);
        let mut last = stream.next().await;
        while let Ok(Some(_)) = last {
            last = stream.next().await;
        }
        assert_eq!(last, Err(LogError::Closed));
    }

    #[tokio::test]
    async fn what_the_log_cannot_read_is_told_and_is_no_end() {
        let corrupt = LogError::Corrupt { file: "f".into(), offset: 7, reason: "bad".into() };
        let mut log = MockOpLog::new();
        let theirs = corrupt.clone();
        log.expect_backup().times(1).return_once(move || {
            let mut stream = MockBackupStream::new();
            stream.expect_expected_bytes().return_const(9_u64);
            stream.expect_next().return_once(move || Err(theirs));
            Ok(Box::new(stream))
        });
        log.expect_backup().return_once(|| Err(LogError::NoBackups));
        let backups = Backups::new(Arc::new(log), Tasks::default());
        let mut stream = begin(&backups).await.unwrap();
        assert_eq!(stream.next().await, Err(corrupt));
        drop(backups.turn.lock().await);
        assert_eq!(begin(&backups).await.err(), Some(ClientError::NoBackups));
    }
}
