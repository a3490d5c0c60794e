//! `World`: the time, the randomness and the memory of one simulation.
//!
//! Everything that happens is noted in a trace: hashed, so that two runs can be compared, and the
//! last events kept, so that a failure can be read.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::Poll;
use std::time::Duration;

use lally::domain::{Content, Key, KeyedEntry, Timestamp, Version};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::time::Instant;

/// What every right clock says when a simulation begins.
pub const EPOCH: u64 = 1_700_000_000_000_000_000;

/// Events kept for whoever has to understand a failure.
pub const TAIL: usize = 300;

/// The place of a node: its number, which stays when its disk is replaced.
pub type Site = u8;

/// One simulated world.
pub struct World {
    /// Whether logs sync every append before they acknowledge it.
    pub always_syncs: bool,
    began: Instant,
    state: Mutex<State>,
}

struct State {
    random: StdRng,
    trace: Trace,
    seen: BTreeMap<(Key, Version), Seen>,
    /// What nodes took out.
    expunged: BTreeSet<(Key, Version)>,
    /// What they put into quarantine.
    quarantined: BTreeSet<(Key, Version)>,
    /// Sites whose processes do nothing until then.
    frozen: BTreeMap<Site, Instant>,
    /// Bounds that did not hold.
    overruns: Vec<String>,
}

/// A version that entered a log somewhere.
#[derive(Debug, Clone)]
pub struct Seen {
    pub content: Content,
    pub first: Duration,
    /// Another content that was seen under the same version of the same key.
    pub conflict: Option<Content>,
}

impl World {
    /// A world at its beginning, of whose events the last `tail` are kept. Call it in a runtime with paused time.
    pub fn new(seed: u64, tail: usize) -> Arc<Self> {
        let mut random = StdRng::seed_from_u64(seed);
        let always_syncs = random.random();
        let state = State {
            random,
            trace: Trace { kept: tail, ..Trace::default() },
            seen: BTreeMap::new(),
            expunged: BTreeSet::new(),
            quarantined: BTreeSet::new(),
            frozen: BTreeMap::new(),
            overruns: Vec::new(),
        };
        Arc::new(Self { always_syncs, began: Instant::now(), state: Mutex::new(state) })
    }

    /// Simulated time since the beginning.
    pub fn now(&self) -> Duration {
        self.began.elapsed()
    }

    /// What a clock that is off by this many nanoseconds says now.
    pub fn wall(&self, offset_ns: i64) -> Timestamp {
        let elapsed = u64::try_from(self.now().as_nanos()).unwrap();
        Timestamp::from_nanos((EPOCH + elapsed).saturating_add_signed(offset_ns))
    }

    /// A number in this range.
    pub fn pick(&self, range: std::ops::Range<u64>) -> u64 {
        self.state().random.random_range(range)
    }

    /// Whether something happens that does so this many times in a thousand.
    pub fn chance(&self, per_mille: u64) -> bool {
        per_mille > 0 && self.pick(0..1_000) < per_mille
    }

    /// A duration of whole milliseconds.
    pub fn millis(&self, range: std::ops::Range<u64>) -> Duration {
        Duration::from_millis(self.pick(range))
    }

    /// One of these.
    pub fn one_of<T: Clone>(&self, choices: &[T]) -> Option<T> {
        if choices.is_empty() {
            return None;
        }
        let at = self.pick(0..choices.len() as u64);
        choices.get(usize::try_from(at).unwrap()).cloned()
    }

    /// Notes what happened between two sites (or at one).
    pub fn note(&self, what: &'static str, from: Site, to: Site, detail: Detail) {
        let event = Event { at: self.now(), what, from, to, detail };
        self.state().trace.push(event);
    }

    /// Notes a number that decides about what comes next but tells a reader little.
    pub fn note_quietly(&self, number: u64) {
        self.state().trace.mix(number);
    }

    /// An entry enters a log.
    pub fn saw(&self, write: &KeyedEntry) {
        let now = self.now();
        let mut state = self.state();
        let id = (write.key.clone(), write.entry.version);
        let seen = state.seen.entry(id).or_insert_with(|| Seen {
            content: write.entry.content.clone(),
            first: now,
            conflict: None,
        });
        if seen.content != write.entry.content {
            seen.conflict = Some(write.entry.content.clone());
        }
    }

    /// Every version that entered a log.
    pub fn seen(&self) -> BTreeMap<(Key, Version), Seen> {
        self.state().seen.clone()
    }

    /// A node takes an entry out.
    pub fn expunged(&self, key: &Key, version: Version) {
        self.state().expunged.insert((key.clone(), version));
    }

    /// Every version that was taken out anywhere.
    pub fn all_expunged(&self) -> BTreeSet<(Key, Version)> {
        self.state().expunged.clone()
    }

    /// A node puts an entry into quarantine.
    pub fn quarantined(&self, site: Site, ghost: &KeyedEntry) {
        self.note("quarantine", site, site, Detail::Entry(ghost.clone()));
        self.state().quarantined.insert((ghost.key.clone(), ghost.entry.version));
    }

    /// Every version that was put into quarantine anywhere.
    pub fn all_quarantined(&self) -> BTreeSet<(Key, Version)> {
        self.state().quarantined.clone()
    }

    /// The process at a site does nothing for this long, and then goes on.
    pub fn freeze(&self, site: Site, lasts: Duration) {
        self.state().frozen.insert(site, Instant::now() + lasts);
    }

    /// A process that was killed is frozen no more.
    pub fn thaw(&self, site: Site) {
        self.state().frozen.remove(&site);
    }

    fn frozen_until(&self, site: Site) -> Option<Instant> {
        self.state().frozen.get(&site).copied().filter(|until| *until > Instant::now())
    }

    /// Waits while the process at a site is frozen.
    pub async fn thawed(&self, site: Site) {
        while let Some(until) = self.frozen_until(site) {
            tokio::time::sleep_until(until).await;
        }
    }

    /// What the process at a site works on: nothing of it happens while that is frozen.
    pub async fn held<T>(&self, site: Site, work: impl Future<Output = T>) -> T {
        let mut work = pin!(work);
        loop {
            self.thawed(site).await;
            let polled = poll_fn(|context| {
                if self.frozen_until(site).is_some() {
                    return Poll::Ready(None);
                }
                work.as_mut().poll(context).map(Some)
            });
            if let Some(done) = polled.await {
                return done;
            }
        }
    }

    /// A bound did not hold.
    pub fn overrun(&self, what: String) {
        self.state().overruns.push(what);
    }

    /// Bounds that did not hold.
    pub fn overruns(&self) -> Vec<String> {
        self.state().overruns.clone()
    }

    /// A hash of everything noted so far, and how many events that were.
    pub fn fingerprint(&self) -> (u64, u64) {
        let state = self.state();
        (state.trace.hash, state.trace.count)
    }

    /// The last events, one a line.
    pub fn tail(&self) -> String {
        let state = self.state();
        let lines: Vec<_> = state.trace.tail.iter().map(ToString::to_string).collect();
        lines.join("\n")
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }
}

/// Starts a task that belongs to the world, not to a node.
pub fn spawn(work: impl Future<Output = ()> + Send + 'static) {
    #[expect(clippy::disallowed_methods, reason = "the world ends with its runtime")]
    drop(tokio::spawn(work));
}

/// Something that happened.
#[derive(Debug, Clone)]
struct Event {
    at: Duration,
    what: &'static str,
    from: Site,
    to: Site,
    detail: Detail,
}

/// What else there is to say about an event.
#[derive(Debug, Clone)]
pub enum Detail {
    Nothing,
    Entry(KeyedEntry),
    Key(Key),
    Text(String),
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let at = self.at.as_millis();
        write!(f, "{:>3}.{:03} s  ", at / 1_000, at % 1_000)?;
        if self.from == self.to {
            write!(f, "{:<7}", self.from)?;
        } else {
            write!(f, "{:<7}", format!("{}->{}", self.from, self.to))?;
        }
        write!(f, "{:<16}", self.what)?;
        match &self.detail {
            Detail::Nothing => Ok(()),
            Detail::Key(key) => write!(f, "{}", key.as_str()),
            Detail::Text(text) => f.write_str(text),
            Detail::Entry(write) => {
                let value = write.entry.value().map_or("(removed)", |value| value.as_str());
                let version = write.entry.version;
                let since = version.timestamp.as_nanos().saturating_sub(EPOCH);
                write!(f, "{} = {value} @{since} of {}", write.key.as_str(), version.node)
            }
        }
    }
}

/// A hash over all events, and the last of them.
#[derive(Default)]
struct Trace {
    hash: u64,
    count: u64,
    kept: usize,
    tail: VecDeque<Event>,
}

impl Trace {
    fn push(&mut self, event: Event) {
        let places = u64::from(event.from) << 8 | u64::from(event.to);
        self.mix(u64::try_from(event.at.as_nanos()).unwrap());
        self.mix(places);
        self.mix(text(event.what));
        match &event.detail {
            Detail::Nothing => {}
            Detail::Key(key) => self.mix(text(key.as_str())),
            Detail::Text(words) => self.mix(text(words)),
            Detail::Entry(write) => {
                self.mix(text(write.key.as_str()));
                self.mix(write.entry.version.timestamp.as_nanos());
                self.mix(write.entry.version.node.as_u64());
            }
        }
        if self.tail.len() == self.kept {
            self.tail.pop_front();
        }
        self.tail.push_back(event);
    }

    fn mix(&mut self, number: u64) {
        self.count += 1;
        self.hash = xxhash_rust::xxh3::xxh3_64_with_seed(&number.to_le_bytes(), self.hash);
    }
}

fn text(text: &str) -> u64 {
    xxhash_rust::xxh3::xxh3_64(text.as_bytes())
}
