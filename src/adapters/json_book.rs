//! `JsonBook`: the node's book as a file that a person can read.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use crate::domain::{Member, NodeId, Phase};
use crate::ports::{Book, BookError, MemberBook};

/// A book in a JSON file, replaced as a whole: written beside it, forced to disk, renamed.
#[derive(Debug, Clone)]
pub struct JsonBook {
    path: PathBuf,
    /// Held while the file is replaced, since there is one draft.
    replacing: Arc<Mutex<()>>,
}

impl JsonBook {
    /// The book in this file.
    pub fn new(path: &Path) -> Self {
        Self { path: path.to_owned(), replacing: Arc::default() }
    }

    fn error(&self, reason: &impl ToString) -> BookError {
        BookError { file: self.path.display().to_string(), reason: reason.to_string() }
    }

    fn read(&self) -> Result<Option<Book>, BookError> {
        let text = match fs::read(&self.path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(self.error(&error)),
        };
        let unreadable = |what: String| {
            self.error(&format!(
                "not a node's book ({what}); move the file away to start as a new node, which gets its data from the other members"
            ))
        };
        let form: BookForm =
            serde_json::from_slice(&text).map_err(|error| unreadable(error.to_string()))?;
        Book::try_from(form).map(Some).map_err(unreadable)
    }

    fn replace(&self, book: &Book) -> io::Result<()> {
        let _turn = self.replacing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut text = serde_json::to_vec_pretty(&BookForm::from(book))?;
        text.push(b'\n');
        let draft = self.path.with_extension("new");
        let mut file = File::create(&draft)?;
        file.write_all(&text)?;
        file.sync_all()?;
        fs::rename(&draft, &self.path)?;
        match self.path.parent() {
            Some(dir) => File::open(dir)?.sync_all(),
            None => Ok(()),
        }
    }
}

#[async_trait]
impl MemberBook for JsonBook {
    async fn load(&self) -> Result<Option<Book>, BookError> {
        let book = self.clone();
        let loading = tokio::task::spawn_blocking(move || book.read());
        loading.await.map_err(|error| self.error(&error))?
    }

    async fn save(&self, book: &Book) -> Result<(), BookError> {
        let (this, book) = (self.clone(), book.clone());
        let saving = tokio::task::spawn_blocking(move || this.replace(&book));
        saving.await.map_err(|error| self.error(&error))?.map_err(|error| self.error(&error))
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct BookForm {
    id: String,
    generation: u64,
    phase: PhaseForm,
    cluster: String,
    members: Vec<MemberForm>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct MemberForm {
    id: String,
    generation: u64,
    phase: PhaseForm,
    grpc_addr: String,
    http_addr: String,
}

#[derive(Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum PhaseForm {
    Joining,
    Whole,
    Left,
}

impl From<&Book> for BookForm {
    fn from(book: &Book) -> Self {
        Self {
            id: book.id.to_string(),
            generation: book.generation,
            phase: book.phase.into(),
            cluster: book.cluster.clone(),
            members: book.members.iter().map(MemberForm::from).collect(),
        }
    }
}

impl TryFrom<BookForm> for Book {
    type Error = String;

    fn try_from(form: BookForm) -> Result<Self, String> {
        Ok(Self {
            id: parse_id(&form.id)?,
            generation: form.generation,
            phase: form.phase.into(),
            cluster: form.cluster,
            members: form.members.into_iter().map(Member::try_from).collect::<Result<_, _>>()?,
        })
    }
}

impl From<&Member> for MemberForm {
    fn from(member: &Member) -> Self {
        Self {
            id: member.id.to_string(),
            generation: member.generation,
            phase: member.phase.into(),
            grpc_addr: member.grpc_addr.clone(),
            http_addr: member.http_addr.clone(),
        }
    }
}

impl TryFrom<MemberForm> for Member {
    type Error = String;

    fn try_from(form: MemberForm) -> Result<Self, String> {
        Ok(Self {
            id: parse_id(&form.id)?,
            generation: form.generation,
            phase: form.phase.into(),
            grpc_addr: form.grpc_addr,
            http_addr: form.http_addr,
        })
    }
}

impl From<Phase> for PhaseForm {
    fn from(phase: Phase) -> Self {
        match phase {
            Phase::Joining => Self::Joining,
            Phase::Whole => Self::Whole,
            Phase::Left => Self::Left,
        }
    }
}

impl From<PhaseForm> for Phase {
    fn from(form: PhaseForm) -> Self {
        match form {
            PhaseForm::Joining => Self::Joining,
            PhaseForm::Whole => Self::Whole,
            PhaseForm::Left => Self::Left,
        }
    }
}

fn parse_id(text: &str) -> Result<NodeId, String> {
    text.parse().map_err(|error| format!("{text:?}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn book() -> Book {
        let member = |id, phase| Member {
            id: NodeId::new(id),
            generation: id,
            phase,
            grpc_addr: "10.0.0.1:50071".into(),
            http_addr: "10.0.0.1:3000".into(),
        };
        Book {
            id: NodeId::new(u64::MAX),
            generation: 3,
            phase: Phase::Whole,
            cluster: "lally".into(),
            members: vec![
                member(1, Phase::Joining),
                member(2, Phase::Whole),
                member(3, Phase::Left),
            ],
        }
    }

    #[tokio::test]
    async fn a_book_comes_back_as_it_was_saved() {
        let dir = tempfile::tempdir().unwrap();
        let file = JsonBook::new(&dir.path().join("node.json"));
        assert_eq!(file.load().await, Ok(None));
        file.save(&book()).await.unwrap();
        assert_eq!(file.load().await, Ok(Some(book())));
        let changed = Book { generation: 4, ..book() };
        file.save(&changed).await.unwrap();
        assert_eq!(file.load().await, Ok(Some(changed)));
    }

    #[tokio::test]
    async fn garbage_is_refused_with_the_file_and_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("node.json");
        for garbage in ["", "{", "[]", r#"{"id":"xyz"}"#, "\u{0}\u{0}"] {
            fs::write(&path, garbage).unwrap();
            let refused = JsonBook::new(&path).load().await.unwrap_err().to_string();
            assert!(
                refused.contains("node.json") && refused.contains("move the file"),
                "{refused}"
            );
        }
    }
}
