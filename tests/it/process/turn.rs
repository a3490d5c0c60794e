//! Turns: how many tests may have nodes running at the same time.
//!
//! Nodes take a turn by themselves when they start and give it back when they are dropped; a test
//! whose deadlines would suffer from neighbours, or that is itself a load, begins with
//! [`Turn::alone`]. All nodes of one test thread share one turn, so that a cluster cannot wait for
//! itself.

use std::cell::RefCell;
use std::sync::{Arc, Condvar, Mutex, Weak};

/// Tests with running nodes at the same time.
const PLACES: usize = 2;

struct Hall {
    free: usize,
    /// Tests that wait to be alone: nobody else goes in before them.
    waiting_alone: usize,
}

static HALL: Mutex<Hall> = Mutex::new(Hall { free: PLACES, waiting_alone: 0 });
static LEFT: Condvar = Condvar::new();

thread_local! {
    static MINE: RefCell<Weak<Turn>> = const { RefCell::new(Weak::new()) };
}

/// Leave to run nodes, until dropped.
pub struct Turn {
    places: usize,
}

impl Turn {
    /// The turn of this thread, waiting for one if it has none.
    pub fn of_this_thread() -> Arc<Self> {
        Self::mine().unwrap_or_else(|| Self::take(1))
    }

    /// A turn during which no other test has nodes running. Must come before the first node.
    pub fn alone() -> Arc<Self> {
        assert!(Self::mine().is_none(), "this test has nodes already");
        Self::take(PLACES)
    }

    fn mine() -> Option<Arc<Self>> {
        MINE.with_borrow(Weak::upgrade)
    }

    fn take(places: usize) -> Arc<Self> {
        let alone = places == PLACES;
        let mut hall = HALL.lock().unwrap();
        hall.waiting_alone += usize::from(alone);
        let mut hall = LEFT
            .wait_while(hall, |hall| hall.free < places || (!alone && hall.waiting_alone > 0))
            .unwrap();
        hall.waiting_alone -= usize::from(alone);
        hall.free -= places;
        drop(hall);
        let turn = Arc::new(Self { places });
        MINE.set(Arc::downgrade(&turn));
        turn
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if let Ok(mut hall) = HALL.lock() {
            hall.free += self.places;
        }
        LEFT.notify_all();
    }
}
