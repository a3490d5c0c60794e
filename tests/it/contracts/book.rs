//! The contract of the `MemberBook` port, over `JsonBook` and its in-memory twin.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use lally::adapters::json_book::JsonBook;
use lally::adapters::memory::MemoryBook;
use lally::domain::{Member, NodeId, Phase};
use lally::ports::{Book, MemberBook};
use tempfile::TempDir;
use tokio::task::JoinSet;

use super::suite::contract;
use crate::small_disk::SmallDisk;

contract! {
    async over {
        json: #[tokio::test(flavor = "multi_thread")] => &File::new();
        memory: #[tokio::test(flavor = "multi_thread")] => &Twin::default();
    }
    holds {
        nothing_was_saved_yet,
        a_book_comes_back_as_it_was_saved,
        the_last_book_saved_is_the_one_that_comes_back,
        a_book_survives_the_one_who_saved_it,
        whoever_reads_while_others_save_gets_one_whole_book,
    }
}

#[tokio::test]
async fn a_draft_that_a_crash_left_behind_changes_nothing_and_is_in_nobodys_way() {
    let file = File::new();
    for draft in ["", "{", "\0\0\0\0", r#"{"id": "0000000000000009"}"#] {
        fs::write(file.path().with_extension("new"), draft).unwrap();
        assert_eq!(file.open().load().await, Ok(None));
    }
    file.open().save(&book(1)).await.unwrap();
    fs::write(file.path().with_extension("new"), "{").unwrap();
    assert_eq!(file.open().load().await, Ok(Some(book(1))));
    file.open().save(&book(2)).await.unwrap();
    assert_eq!(file.open().load().await, Ok(Some(book(2))));
}

#[tokio::test]
async fn a_save_that_fails_names_the_file_and_leaves_the_old_book() {
    let file = File::new();
    file.open().save(&book(1)).await.unwrap();
    // Where the draft is written there is something that is no file.
    fs::remove_file(file.path().with_extension("new")).ok();
    fs::create_dir(file.path().with_extension("new")).unwrap();
    let failed = file.open().save(&book(2)).await.unwrap_err();
    assert_eq!(failed.file, file.path().display().to_string());
    assert_eq!(file.open().load().await, Ok(Some(book(1))));
    fs::remove_dir(file.path().with_extension("new")).unwrap();
    file.open().save(&book(3)).await.unwrap();
    assert_eq!(file.open().load().await, Ok(Some(book(3))));
}

#[tokio::test]
async fn a_book_that_is_cut_anywhere_is_refused_not_half_believed() {
    let file = File::new();
    file.open().save(&book(3)).await.unwrap();
    let text = fs::read(file.path()).unwrap();
    // The last byte is the end of the line.
    for length in 0..text.len() - 1 {
        fs::write(file.path(), &text[..length]).unwrap();
        let refused = file.open().load().await.unwrap_err();
        assert_eq!(refused.file, file.path().display().to_string());
    }
}

#[tokio::test]
async fn a_book_is_saved_on_a_full_disk_again_and_again_and_may_grow_a_little() {
    let dir = tempfile::tempdir().unwrap();
    let Some(disk) = SmallDisk::mount(&dir.path().join("disk"), 256 << 10) else { return };
    let file = JsonBook::new(&dir.path().join("disk/node.json"));
    file.save(&book(1)).await.unwrap();
    disk.take_all();
    for number in 2..20 {
        // Now longer, now shorter than the one before.
        let grown = (0..number % 5).flat_map(members).collect();
        let next = Book { members: grown, ..book(number) };
        file.save(&next).await.unwrap();
        assert_eq!(JsonBook::new(&dir.path().join("disk/node.json")).load().await, Ok(Some(next)));
    }
    // More than there is room for: refused, and what was saved before is there.
    let last = file.load().await;
    let large = Book { members: (0..100).flat_map(members).collect(), ..book(20) };
    let refused = file.save(&large).await.unwrap_err();
    assert!(refused.reason.contains("the disk is full"), "{refused}");
    assert_eq!(file.load().await, last);
    disk.free();
    file.save(&large).await.unwrap();
    assert_eq!(file.load().await, Ok(Some(large)));
    drop(disk);
}

async fn nothing_was_saved_yet(shelf: &dyn Shelf) {
    assert_eq!(shelf.open().load().await, Ok(None));
    assert_eq!(shelf.open().load().await, Ok(None));
}

async fn a_book_comes_back_as_it_was_saved(shelf: &dyn Shelf) {
    let books = [
        Book { members: Vec::new(), ..book(0) },
        book(u64::MAX),
        Book { cluster: "\"grün\"\n🦀".into(), ..book(1) },
        Book { cluster: String::new(), phase: Phase::Joining, ..book(2) },
        Book { phase: Phase::Left, ..book(3) },
        Book { members: (0..1_000).flat_map(members).collect(), ..book(4) },
    ];
    let shelved = shelf.open();
    for book in books {
        shelved.save(&book).await.unwrap();
        assert_eq!(shelved.load().await, Ok(Some(book.clone())));
        assert_eq!(shelf.open().load().await, Ok(Some(book)));
    }
}

async fn the_last_book_saved_is_the_one_that_comes_back(shelf: &dyn Shelf) {
    let shelved = shelf.open();
    for number in 0..50 {
        // Now longer, now shorter than the one before.
        let members = (0..number % 7 * 3).flat_map(members).collect();
        shelved.save(&Book { members, ..book(number) }).await.unwrap();
    }
    shelved.save(&book(7)).await.unwrap();
    assert_eq!(shelf.open().load().await, Ok(Some(book(7))));
}

async fn a_book_survives_the_one_who_saved_it(shelf: &dyn Shelf) {
    for generation in 1..=5 {
        let shelved = shelf.open();
        let before = (generation > 1).then(|| book(generation - 1));
        assert_eq!(shelved.load().await, Ok(before));
        shelved.save(&book(generation)).await.unwrap();
        drop(shelved);
    }
}

async fn whoever_reads_while_others_save_gets_one_whole_book(shelf: &dyn Shelf) {
    let shelved = shelf.open();
    shelved.save(&book(0)).await.unwrap();
    let mut saving = JoinSet::new();
    for writer in 1..=4 {
        let shelved = Arc::clone(&shelved);
        saving.spawn(async move {
            for round in 0..20 {
                shelved.save(&book(round * 4 + writer)).await.unwrap();
            }
        });
    }
    while !saving.is_empty() {
        let found = shelved.load().await.unwrap().unwrap();
        assert_eq!(found, book(found.generation));
        while let Some(ended) = saving.try_join_next() {
            ended.unwrap();
        }
    }
    // Each writer's last book was saved after all of its others.
    let last = shelf.open().load().await.unwrap().unwrap();
    assert!((77..=80).contains(&last.generation), "{last:?}");
}

/// Where a book outlives whoever saved it.
trait Shelf: Send + Sync {
    fn open(&self) -> Arc<dyn MemberBook>;
}

struct File(TempDir);

impl File {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("node.json")
    }
}

impl Shelf for File {
    fn open(&self) -> Arc<dyn MemberBook> {
        Arc::new(JsonBook::new(&self.path()))
    }
}

/// Lives as long as the process: the shelf is the book.
#[derive(Default)]
struct Twin(Arc<MemoryBook>);

impl Shelf for Twin {
    fn open(&self) -> Arc<dyn MemberBook> {
        Arc::clone(&self.0) as _
    }
}

/// A book whose every part follows from its generation.
fn book(generation: u64) -> Book {
    Book {
        id: NodeId::new(u64::MAX - generation),
        generation,
        phase: Phase::Whole,
        cluster: format!("lally-{generation}"),
        members: members(generation).into(),
    }
}

fn members(number: u64) -> [Member; 3] {
    [Phase::Joining, Phase::Whole, Phase::Left].map(|phase| Member {
        id: NodeId::new(number),
        generation: number,
        phase,
        grpc_addr: format!("[::1]:{}", number % 65_536),
        http_addr: format!("näme-{number}:3000"),
    })
}
