//! `MemoryBook`: a member book for as long as the process lives.

use std::sync::{Mutex, PoisonError};

use async_trait::async_trait;

use crate::ports::{Book, BookError, MemberBook};

/// Keeps the last book saved.
#[derive(Debug, Default)]
pub struct MemoryBook(Mutex<Option<Book>>);

#[async_trait]
impl MemberBook for MemoryBook {
    async fn load(&self) -> Result<Option<Book>, BookError> {
        Ok(self.0.lock().unwrap_or_else(PoisonError::into_inner).clone())
    }

    async fn save(&self, book: &Book) -> Result<(), BookError> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(book.clone());
        Ok(())
    }
}
