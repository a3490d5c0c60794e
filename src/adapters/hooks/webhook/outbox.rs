//! `Outbox`: changes that wait on disk, so that a node that was killed delivers them when it is back.
//!
//! Changes are appended to segments (see [`record`](super::record)), which are removed some time after
//! all in them was delivered. Where the first is that was not, is kept in a file of a fixed size, the mark, written
//! in its place. A life of the node begins with a new segment, and leaves those before it as they are.
//!
//! Nothing is forced to disk: what was written outlives the process, and a power cut is met by looking
//! into the log. There, whatever the outbox may have missed is found again: changes that were applied
//! and not yet told of when the node was killed, and those that were told of and not on disk yet. So
//! that none of those is too old, a restart looks a minute further back than the latest change that
//! it sees here, which is longer than a system keeps what was written in memory only. Those that are here
//! are known by their version, also when they were delivered: segments of the last minute stay, as long
//! as they take no more than half of what may wait. Of those that do not, changes are delivered again.
//!
//! It keeps no content in memory, but 40 bytes for each change that waits.

use std::collections::{BTreeSet, HashSet, VecDeque};
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use tokio::time::Instant;

use crate::domain::{Timestamp, Version};

use super::backlog::{Dropped, Limits, Taken, Ticket};
use super::event::Event;
use super::record::{self, Mark};

const MARK: &str = "mark";
const EXTENSION: &str = "outbox";

/// Of what may wait: so much may be kept for longer than it has to.
const SEGMENTS: u64 = 16;

/// How much further back than the latest change a restart looks into the log: see above.
const LOOK_BACK_NS: u64 = 60_000_000_000;

/// The outbox cannot be opened.
#[derive(Debug, thiserror::Error)]
#[error("outbox: {path}: {error}")]
pub struct OutboxError {
    /// The file or directory.
    pub path: PathBuf,
    /// What the system said.
    pub error: io::Error,
}

/// A file of the outbox.
#[derive(Debug)]
struct Segment {
    number: u64,
    bytes: u64,
    /// Of the latest change in it.
    newest: Timestamp,
}

#[derive(Debug, Clone, Copy)]
struct Waiting {
    ticket: Ticket,
    length: usize,
    since: Instant,
}

/// Changes on disk.
#[derive(Debug)]
pub(super) struct Outbox {
    dir: PathBuf,
    limits: Limits,
    /// Those on disk, the one that is written last.
    segments: VecDeque<Segment>,
    /// Of the last segment, if that was begun in this life.
    writer: Option<File>,
    reader: Option<(u64, File)>,
    waiting: VecDeque<Waiting>,
    /// Those that are being delivered, with their lengths.
    under_way: BTreeSet<(Ticket, usize)>,
    /// What both take on disk.
    bytes: u64,
    mark_file: File,
    mark: Mark,
    /// The latest change that was ever put here.
    newest: Timestamp,
    /// Those that are here from before and that the log may tell of again.
    known: HashSet<Version>,
    damaged: u64,
}

impl Outbox {
    /// Opens the outbox in this directory, or begins one that resumes from `now`.
    pub(super) fn open(dir: &Path, limits: Limits, now: Timestamp) -> Result<Self, OutboxError> {
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |error| OutboxError { path, error }
        };
        let created = DirBuilder::new().recursive(true).mode(0o700).create(dir);
        created.map_err(failed(dir))?;
        let numbers = numbers_in(dir).map_err(failed(dir))?;
        let path = dir.join(MARK);
        let mut open = OpenOptions::new();
        open.read(true).write(true).create(true).truncate(false).mode(0o600);
        let mark_file = open.open(&path).map_err(failed(&path))?;
        let mark = record::decode_mark(&fs::read(&path).map_err(failed(&path))?);
        // Without a mark everything that is here counts, and the log from its latest change on.
        let begun = if numbers.is_empty() { now } else { Timestamp::ZERO };
        let mark = mark.unwrap_or(Mark { resume_from: begun, ..Mark::default() });
        let mut outbox = Self {
            dir: dir.to_owned(),
            limits,
            segments: VecDeque::new(),
            writer: None,
            reader: None,
            waiting: VecDeque::new(),
            under_way: BTreeSet::new(),
            bytes: 0,
            mark_file,
            mark,
            newest: Timestamp::ZERO,
            known: HashSet::new(),
            damaged: 0,
        };
        for number in numbers {
            let path = outbox.path_of(number);
            outbox.read_segment(number).map_err(failed(&path))?;
        }
        if outbox.newest == Timestamp::ZERO && outbox.mark.resume_from == Timestamp::ZERO {
            // Nothing here can be read. Nobody wants to hear of everything that ever was.
            outbox.mark.resume_from = now;
        }
        outbox.mark.resume_from = outbox.resumes_from();
        let oldest = outbox.mark.resume_from;
        outbox.known.retain(|version| version.timestamp > oldest);
        outbox.write_mark().map_err(failed(&path))?;
        outbox.remove_finished();
        Ok(outbox)
    }

    /// From where on the log is to be looked through.
    pub(super) fn resumes_from(&self) -> Timestamp {
        let looked_back = self.newest.as_nanos().saturating_sub(LOOK_BACK_NS);
        self.mark.resume_from.max(Timestamp::from_nanos(looked_back))
    }

    /// Changes that could not be read any more.
    pub(super) const fn damaged(&self) -> u64 {
        self.damaged
    }

    pub(super) fn put(&mut self, event: &Event, again: bool) -> Result<(), Dropped> {
        if again && self.known.contains(&event.version) {
            return Ok(());
        }
        let bytes = record::encode(event);
        let changes = self.waiting.len() + self.under_way.len();
        if changes >= self.limits.changes || !self.make_room(bytes.len() as u64) {
            return Err(Dropped::Full);
        }
        let stamp = event.version.timestamp;
        let ticket = self.append(&bytes, stamp)?;
        self.bytes += bytes.len() as u64;
        self.newest = self.newest.max(stamp);
        self.waiting.push_back(Waiting { ticket, length: bytes.len(), since: Instant::now() });
        Ok(())
    }

    pub(super) fn take(&mut self) -> Option<Taken> {
        while let Some(Waiting { ticket, length, since }) = self.waiting.pop_front() {
            self.under_way.insert((ticket, length));
            match self.read(ticket, length) {
                Ok(event) => return Some(Taken { ticket, event, since }),
                Err(error) if is_out_of_files(&error) => {
                    // The process has too many open; it will not always.
                    self.under_way.remove(&(ticket, length));
                    self.waiting.push_front(Waiting { ticket, length, since });
                    return None;
                }
                Err(error) => {
                    let path = self.path_of(ticket.segment);
                    tracing::warn!(path = %path.display(), offset = ticket.offset, %error,
                        "a change in the outbox cannot be read, and is not delivered");
                    self.damaged += 1;
                    self.done(ticket);
                }
            }
        }
        None
    }

    pub(super) fn done(&mut self, ticket: Ticket) {
        let found = self.under_way.range((ticket, 0)..).next().copied();
        let Some((_, length)) = found.filter(|(under_way, _)| *under_way == ticket) else { return };
        self.under_way.remove(&(ticket, length));
        self.bytes -= length as u64;
        self.remove_finished();
    }

    pub(super) fn size(&self) -> (u64, u64) {
        ((self.waiting.len() + self.under_way.len()) as u64, self.bytes)
    }

    /// Moves the mark to the first change that is not done with, and removes segments before it.
    fn remove_finished(&mut self) {
        let first = self.under_way.first().map(|(ticket, _)| *ticket);
        let next = self.waiting.front().map(|waiting| waiting.ticket);
        let open = first.into_iter().chain(next).min();
        let mark = match (open, self.segments.back()) {
            (Some(open), _) => open,
            // Nothing waits: a segment that is long enough, or of another life, has served.
            (None, Some(last)) if self.writer.is_some() && last.bytes < self.segment_bytes() => {
                Ticket { segment: last.number, offset: last.bytes }
            }
            (None, last) => {
                self.writer = None;
                let number = last.map_or(self.mark.segment, |last| last.number + 1);
                Ticket { segment: number, offset: 0 }
            }
        };
        let resume_from = self.resumes_from();
        let moved = Mark { segment: mark.segment, offset: mark.offset, resume_from };
        if moved != self.mark {
            self.mark = moved;
            if let Err(error) = self.write_mark() {
                tracing::warn!(path = %self.dir.display(), %error,
                    "a restart will deliver changes once more: the mark of the outbox cannot be written");
            }
        }
        self.remove_segments(self.limits.bytes / 2);
    }

    /// Removes segments that are done with: those of long ago, and as many as it takes for the rest to
    /// be no longer than this.
    fn remove_segments(&mut self, longest: u64) {
        let recent = self.newest.as_nanos().saturating_sub(LOOK_BACK_NS);
        while let Some(first) = self.segments.front() {
            let is_wanted = first.newest.as_nanos() >= recent && self.on_disk() <= longest;
            if first.number >= self.mark.segment || is_wanted {
                return;
            }
            let path = self.path_of(first.number);
            if let Err(error) = fs::remove_file(&path) {
                tracing::warn!(path = %path.display(), %error, "a segment of the outbox stays");
            }
            self.segments.pop_front();
        }
    }

    fn on_disk(&self) -> u64 {
        self.segments.iter().map(|segment| segment.bytes).sum()
    }

    /// Whether there is room for so many bytes, at the cost of what was delivered.
    fn make_room(&mut self, bytes: u64) -> bool {
        let longest = self.limits.bytes.saturating_sub(bytes);
        if bytes > self.limits.bytes || self.on_disk() <= longest {
            return bytes <= self.limits.bytes;
        }
        if self.waiting.is_empty() && self.under_way.is_empty() {
            // The segment that is written is done with, too.
            self.writer = None;
            self.remove_finished();
        }
        self.remove_segments(longest);
        self.on_disk() <= longest
    }

    fn write_mark(&self) -> io::Result<()> {
        self.mark_file.write_all_at(&record::encode_mark(self.mark), 0)
    }

    fn read(&mut self, ticket: Ticket, length: usize) -> io::Result<Event> {
        let reader = match self.reader.take() {
            Some((number, file)) if number == ticket.segment => file,
            _ => File::open(self.path_of(ticket.segment))?,
        };
        let mut bytes = vec![0; length];
        let (_, reader) = self.reader.insert((ticket.segment, reader));
        reader.read_exact_at(&mut bytes, ticket.offset)?;
        let damaged = || io::Error::new(io::ErrorKind::InvalidData, "its checksum is wrong");
        record::decode(&bytes).ok_or_else(damaged)
    }

    /// Appends a record, to a new segment if there is none that has room. What was written of one that
    /// failed is taken back, or left behind with its segment.
    fn append(&mut self, bytes: &[u8], stamp: Timestamp) -> io::Result<Ticket> {
        let has_room = self.segments.back().is_some_and(|last| last.bytes < self.segment_bytes());
        let mut writer = match self.writer.take().filter(|_| has_room) {
            Some(writer) => writer,
            None => self.begin_segment()?,
        };
        let Some(last) = self.segments.back_mut() else {
            return Err(io::ErrorKind::NotFound.into());
        };
        let ticket = Ticket { segment: last.number, offset: last.bytes };
        let written = writer.write_all(bytes);
        if written.is_ok() {
            last.bytes += bytes.len() as u64;
            last.newest = last.newest.max(stamp);
        }
        if written.is_ok() || writer.set_len(last.bytes).is_ok() {
            self.writer = Some(writer);
        }
        written.map(|()| ticket)
    }

    fn begin_segment(&mut self) -> io::Result<File> {
        let number = self.segments.back().map_or(self.mark.segment, |last| last.number + 1);
        let mut open = OpenOptions::new();
        let file = open.append(true).create_new(true).mode(0o600).open(self.path_of(number))?;
        self.segments.push_back(Segment { number, bytes: 0, newest: Timestamp::ZERO });
        Ok(file)
    }

    /// Takes in a segment of an earlier life.
    fn read_segment(&mut self, number: u64) -> io::Result<()> {
        let path = self.path_of(number);
        let bytes = fs::read(&path)?;
        let scanned = record::scan(&bytes);
        for offset in &scanned.damaged {
            tracing::warn!(path = %path.display(), offset, "the outbox is damaged; changes are lost");
            self.damaged += 1;
        }
        if let Some(offset) = scanned.torn {
            // Written when the node was killed; the log tells of it again.
            tracing::info!(path = %path.display(), offset, "the last change of an outbox is not whole");
        }
        let done = Ticket { segment: self.mark.segment, offset: self.mark.offset };
        let mut newest = Timestamp::ZERO;
        for (offset, length, version) in scanned.records {
            let ticket = Ticket { segment: number, offset };
            newest = newest.max(version.timestamp);
            self.known.insert(version);
            if ticket >= done {
                self.bytes += length as u64;
                self.waiting.push_back(Waiting { ticket, length, since: Instant::now() });
            }
        }
        self.newest = self.newest.max(newest);
        self.segments.push_back(Segment { number, bytes: bytes.len() as u64, newest });
        Ok(())
    }

    const fn segment_bytes(&self) -> u64 {
        self.limits.bytes / SEGMENTS
    }

    fn path_of(&self, number: u64) -> PathBuf {
        self.dir.join(format!("{number:016}.{EXTENSION}"))
    }
}

/// Whether it is a limit on open files that was hit.
fn is_out_of_files(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::MFILE | Errno::NFILE))
}

/// The numbers of the segments in a directory, in order.
fn numbers_in(dir: &Path) -> io::Result<Vec<u64>> {
    let mut numbers = Vec::new();
    for entry in fs::read_dir(dir)? {
        let name = PathBuf::from(entry?.file_name());
        let number: Option<u64> = name.file_stem().and_then(|stem| stem.to_str()?.parse().ok());
        numbers.extend(number.filter(|_| name.extension().is_some_and(|e| e == EXTENSION)));
    }
    numbers.sort_unstable();
    Ok(numbers)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::NodeId;

    const LIMITS: Limits = Limits { bytes: 16 << 10, changes: 1_000 };
    const MINUTE: u64 = LOOK_BACK_NS;

    fn version(at: u64) -> Version {
        Version::new(Timestamp::from_nanos(at), NodeId::new(7))
    }

    fn event(at: u64) -> Event {
        Event { version: version(at), body: vec![b'b'; 100].into() }
    }

    fn open(dir: &tempfile::TempDir) -> Outbox {
        Outbox::open(dir.path(), LIMITS, Timestamp::from_nanos(5)).unwrap()
    }

    fn stamp(taken: &Taken) -> u64 {
        taken.event.version.timestamp.as_nanos()
    }

    /// Takes everything out, and is done with it.
    fn drain(outbox: &mut Outbox) -> Vec<u64> {
        let taken = std::iter::from_fn(|| {
            let taken = outbox.take()?;
            outbox.done(taken.ticket);
            Some(stamp(&taken))
        });
        taken.collect()
    }

    fn files(dir: &tempfile::TempDir) -> usize {
        numbers_in(dir.path()).unwrap().len()
    }

    #[test]
    fn what_was_not_done_with_is_there_in_the_next_life() {
        let dir = tempfile::tempdir().unwrap();
        let mut outbox = open(&dir);
        for at in 10..15 {
            outbox.put(&event(at), false).unwrap();
        }
        let taken: Vec<_> = (0..3).map(|_| outbox.take().unwrap()).collect();
        // Out of order: the first one is still under way.
        outbox.done(taken[1].ticket);
        drop(outbox);
        let mut outbox = open(&dir);
        assert_eq!(outbox.size().0, 5);
        let first = outbox.take().unwrap();
        assert_eq!(stamp(&first), 10);
        outbox.done(first.ticket);
        drop(outbox);
        assert_eq!(drain(&mut open(&dir)), [11, 12, 13, 14]);
        assert!(drain(&mut open(&dir)).is_empty());
    }

    #[test]
    fn segments_that_are_done_with_are_removed_after_a_minute() {
        let dir = tempfile::tempdir().unwrap();
        let mut outbox = open(&dir);
        for round in 1..20 {
            for at in 0..60 {
                outbox.put(&event(round * 2 * MINUTE + at), false).unwrap();
            }
            assert_eq!(drain(&mut outbox).len(), 60);
            assert!((6..=9).contains(&files(&dir)), "{}", files(&dir));
        }
        outbox.put(&event(99 * MINUTE), false).unwrap();
        assert_eq!(drain(&mut outbox).len(), 1);
        assert!(files(&dir) <= 2);
        assert_eq!(outbox.size(), (0, 0));
    }

    #[test]
    fn segments_that_are_done_with_take_half_of_the_room_at_most() {
        let dir = tempfile::tempdir().unwrap();
        let mut outbox = open(&dir);
        for at in 0..500 {
            outbox.put(&event(at), false).unwrap();
            drain(&mut outbox);
            assert!(outbox.on_disk() <= LIMITS.bytes / 2 + 200);
        }
        assert!(outbox.on_disk() >= LIMITS.bytes / 4);
        // What was delivered is known in the next life, as far as it is there.
        drop(outbox);
        let mut outbox = open(&dir);
        let mut again = Vec::new();
        for at in 0..500 {
            outbox.put(&event(at), true).unwrap();
            again.extend(drain(&mut outbox));
        }
        assert!(again.len() > 400 && !again.contains(&499) && again.contains(&0), "{again:?}");
    }

    #[test]
    fn a_full_outbox_takes_nothing_until_something_was_delivered() {
        let dir = tempfile::tempdir().unwrap();
        let mut outbox = open(&dir);
        let taken = (0..1_000).take_while(|at| outbox.put(&event(*at), false).is_ok()).count();
        assert!((120..130).contains(&taken), "{taken}");
        assert!(matches!(outbox.put(&event(2_000), false), Err(Dropped::Full)));
        assert_eq!(drain(&mut outbox).len(), taken);
        outbox.put(&event(2_000), false).unwrap();
        // One that is as long as everything may be together.
        drain(&mut outbox);
        let whole = Event { version: version(1), body: vec![0; (16 << 10) - 28].into() };
        for _ in 0..3 {
            drain(&mut outbox);
            outbox.put(&whole, false).unwrap();
        }
    }

    #[test]
    fn changes_are_counted_too() {
        let dir = tempfile::tempdir().unwrap();
        let limits = Limits { bytes: 1 << 20, changes: 2 };
        let mut outbox = Outbox::open(dir.path(), limits, Timestamp::ZERO).unwrap();
        for at in 0..2 {
            outbox.put(&event(at), false).unwrap();
        }
        assert!(matches!(outbox.put(&event(2), false), Err(Dropped::Full)));
    }

    #[test]
    fn a_new_outbox_resumes_from_now_and_an_old_one_a_minute_before_its_latest() {
        let dir = tempfile::tempdir().unwrap();
        let mut outbox = open(&dir);
        assert_eq!(outbox.resumes_from().as_nanos(), 5);
        outbox.put(&event(MINUTE + 100), false).unwrap();
        assert_eq!(outbox.resumes_from().as_nanos(), 100);
        drain(&mut outbox);
        drop(outbox);
        // Also when nothing is left but the mark.
        for number in numbers_in(dir.path()).unwrap() {
            fs::remove_file(dir.path().join(format!("{number:016}.{EXTENSION}"))).unwrap();
        }
        assert_eq!(open(&dir).resumes_from().as_nanos(), 100);
    }

    #[test]
    fn what_the_log_tells_of_again_is_put_in_once() {
        let dir = tempfile::tempdir().unwrap();
        let mut outbox = open(&dir);
        outbox.put(&event(10), false).unwrap();
        outbox.put(&event(11), false).unwrap();
        let first = outbox.take().unwrap();
        outbox.done(first.ticket);
        drop(outbox);
        let mut outbox = open(&dir);
        for at in 10..13 {
            outbox.put(&event(at), true).unwrap();
        }
        // 10 was delivered, 11 is here, 12 was lost.
        assert_eq!(drain(&mut outbox), [11, 12]);
    }

    #[test]
    fn damage_costs_what_it_hit_and_is_counted() {
        let dir = tempfile::tempdir().unwrap();
        let mut outbox = open(&dir);
        for at in 10..14 {
            outbox.put(&event(at), false).unwrap();
        }
        let path = outbox.path_of(0);
        let flip = |at: usize| {
            let mut bytes = fs::read(&path).unwrap();
            bytes[at] ^= 1;
            fs::write(&path, bytes).unwrap();
        };
        // While the node runs, and before it starts.
        flip(130 + 50);
        assert_eq!(drain(&mut outbox), [10, 12, 13]);
        assert_eq!(outbox.damaged(), 1);
        drop(outbox);
        fs::write(dir.path().join(MARK), "no mark").unwrap();
        let mut outbox = open(&dir);
        assert_eq!((drain(&mut outbox), outbox.damaged()), (vec![10, 12, 13], 1));
    }

    #[test]
    fn a_record_that_was_not_finished_is_passed_over() {
        let dir = tempfile::tempdir().unwrap();
        let mut outbox = open(&dir);
        outbox.put(&event(10), false).unwrap();
        outbox.put(&event(11), false).unwrap();
        let path = outbox.path_of(0);
        drop(outbox);
        let length = fs::metadata(&path).unwrap().len();
        File::options().write(true).open(&path).unwrap().set_len(length - 1).unwrap();
        let mut outbox = open(&dir);
        outbox.put(&event(11), true).unwrap();
        assert_eq!((drain(&mut outbox), outbox.damaged()), (vec![10, 11], 0));
    }

    #[test]
    fn an_outbox_of_which_nothing_can_be_read_resumes_from_now() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(MARK), "no mark").unwrap();
        fs::write(dir.path().join("0000000000000000.outbox"), "no segment").unwrap();
        let mut outbox = open(&dir);
        assert_eq!((outbox.resumes_from().as_nanos(), outbox.size()), (5, (0, 0)));
        outbox.put(&event(10), false).unwrap();
        assert_eq!(drain(&mut outbox), [10]);
    }

    #[test]
    fn only_a_limit_on_open_files_is_waited_out() {
        for (errno, waits) in [(Errno::MFILE, true), (Errno::NFILE, true), (Errno::IO, false)] {
            assert_eq!(is_out_of_files(&errno.into()), waits);
        }
    }

    #[test]
    fn a_disk_that_takes_nothing_is_a_drop_and_no_panic() {
        let dir = tempfile::tempdir().unwrap();
        let mut outbox = open(&dir);
        fs::remove_dir_all(dir.path()).unwrap();
        assert!(matches!(outbox.put(&event(1), false), Err(Dropped::Disk(_))));
        assert_eq!(outbox.size(), (0, 0));
    }
}
