//! `MemoryBook`: a member book for as long as the process lives.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;

use crate::ports::{Book, BookError, MemberBook};

/// Keeps the last book saved.
#[derive(Debug, Default)]
pub struct MemoryBook(Mutex<Kept>);

#[derive(Debug, Default)]
struct Kept {
    last: Option<Book>,
    /// How long each save takes.
    save_time: Duration,
}

impl MemoryBook {
    /// From now on each save takes this long, as on a busy disk.
    pub fn slow_saves(&self, save_time: Duration) {
        self.kept().save_time = save_time;
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl MemberBook for MemoryBook {
    async fn load(&self) -> Result<Option<Book>, BookError> {
        Ok(self.kept().last.clone())
    }

    async fn save(&self, book: &Book) -> Result<(), BookError> {
        let save_time = self.kept().save_time;
        if save_time > Duration::ZERO {
            tokio::time::sleep(save_time).await;
        }
        self.kept().last = Some(book.clone());
        Ok(())
    }
}
