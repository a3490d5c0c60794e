//! `JsonBook`: the node's book as a file that a person can read.
//!
//! A node raises its generation before it serves, and must be able to do so on a disk that is full:
//! it is wanted most then, for reads and for removals. So beside the book there is always a second
//! file of its size and more, the draft of the next book. That one is written in place, forced, and
//! changes names with the book, which is the draft of the one after it. Nothing is allocated for
//! that, and nothing freed that somebody else could take. The rest of a longer draft is blanks.
//!
//! Where names cannot be exchanged, or space not be allocated ahead, the draft is renamed, and a full
//! disk refuses the next book.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use crate::domain::{Member, NodeId, Phase};
use crate::ports::{Book, BookError, MemberBook};

/// Space kept for members that are not in the book yet: some twenty of them, at least.
const ROOM_BYTES: u64 = 4_096;

/// A draft that is longer than the text by more than this is cut, not filled with blanks.
const MAX_BLANKS: usize = 16_384;

/// A book in a JSON file, replaced as a whole: written beside it, forced to disk, renamed.
#[derive(Debug, Clone)]
pub struct JsonBook {
    path: PathBuf,
    /// Held while the file is replaced, since there is one draft.
    replacing: Arc<Mutex<Names>>,
}

/// Whether the names of the book and its draft are known to be on the device as they are here. Until
/// then what is called the draft here may be the book that a power cut leaves, and must not be
/// written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Names {
    #[default]
    Unknown,
    Durable,
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
        let mut names = self.replacing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut text = serde_json::to_vec_pretty(&BookForm::from(book))?;
        text.push(b'\n');
        if *names == Names::Unknown {
            self.sync_names()?;
        }
        *names = Names::Unknown;
        let draft = self.path.with_extension("new");
        let mut file = open_draft(&draft)?;
        keep_room(&file, text.len());
        let length = usize::try_from(file.metadata()?.len()).unwrap_or(usize::MAX);
        if length > text.len().saturating_add(MAX_BLANKS) {
            file.set_len(0)?;
        } else {
            fill_up(&mut text, length);
        }
        file.write_all(&text)?;
        file.sync_all()?;
        swap_in(&draft, &self.path)?;
        self.sync_names()?;
        *names = Names::Durable;
        if let Ok(next) = open_draft(&draft) {
            keep_room(&next, text.len());
        }
        Ok(())
    }

    fn sync_names(&self) -> io::Result<()> {
        match self.path.parent() {
            Some(dir) => File::open(dir)?.sync_all(),
            None => Ok(()),
        }
    }

    fn not_saved(&self, error: &io::Error) -> BookError {
        if error.kind() != io::ErrorKind::StorageFull {
            return self.error(error);
        }
        let room = ROOM_BYTES;
        self.error(&format!(
            "the disk is full, and there is no draft of this file to write to; free some space, {room} bytes are enough"
        ))
    }
}

/// The draft as it is: if it were made shorter, its space would be gone.
fn open_draft(draft: &Path) -> io::Result<File> {
    File::options().create(true).truncate(false).write(true).open(draft)
}

/// Makes a text as long as the file that it is written to.
fn fill_up(text: &mut Vec<u8>, length: usize) {
    if text.len() < length {
        text.pop();
        text.resize(length - 1, b' ');
        text.push(b'\n');
    }
}

/// Gives the draft its name, and its own to what had that, if anything did.
fn swap_in(draft: &Path, path: &Path) -> io::Result<()> {
    #[cfg(target_os = "linux")]
    {
        use rustix::fs::{CWD, RenameFlags, renameat_with};
        if renameat_with(CWD, draft, CWD, path, RenameFlags::EXCHANGE).is_ok() {
            return Ok(());
        }
    }
    fs::rename(draft, path)
}

/// Allocates space for a book of this length, and for some more, behind the end of the file. If there
/// is none, writing will tell.
#[cfg(target_os = "linux")]
fn keep_room(file: &File, book_bytes: usize) {
    use rustix::fs::{FallocateFlags, fallocate};
    let bytes = (book_bytes as u64 + 2 * ROOM_BYTES) / ROOM_BYTES * ROOM_BYTES;
    if let Err(error) = fallocate(file, FallocateFlags::KEEP_SIZE, 0, bytes) {
        tracing::debug!(%error, "no space kept for the next book of this node");
    }
}

#[cfg(not(target_os = "linux"))]
fn keep_room(_file: &File, _book_bytes: usize) {}

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
        let saved = saving.await.map_err(|error| self.error(&error))?;
        saved.map_err(|error| self.not_saved(&error))
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
