//! Places and room: how many requests at a time are worked on, or have their bodies waited for, and
//! how much memory these bodies take.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::errors::{Code, Refusal};

/// A number of places for requests, and how many are taken.
#[derive(Debug, Clone, Copy)]
pub(super) struct Places<'a> {
    taken: &'a AtomicUsize,
    max: usize,
}

impl<'a> Places<'a> {
    pub(super) const fn new(taken: &'a AtomicUsize, max: usize) -> Self {
        Self { taken, max }
    }

    /// A place, unless all are taken.
    pub(super) fn take(self) -> Result<Place<'a>, Refusal> {
        // Counted first and compared then, so that any number at once cannot pass together.
        let place = Place(self.taken);
        let before = self.taken.fetch_add(1, Ordering::Relaxed);
        if before < self.max { Ok(place) } else { Err(overloaded()) }
    }

    /// Refuses what would be refused anyway.
    pub(super) fn check(self) -> Result<(), Refusal> {
        if self.taken.load(Ordering::Relaxed) < self.max { Ok(()) } else { Err(overloaded()) }
    }
}

/// A place; given back when it is dropped, also by a client that goes away.
#[derive(Debug)]
pub(super) struct Place<'a>(&'a AtomicUsize);

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The memory for bodies, and how much of it is taken.
#[derive(Debug, Clone, Copy)]
pub(super) struct Room<'a> {
    taken: &'a AtomicUsize,
    max: usize,
}

impl<'a> Room<'a> {
    pub(super) const fn new(taken: &'a AtomicUsize, max: usize) -> Self {
        Self { taken, max }
    }

    /// Memory for a body of this length, unless there is too little left.
    pub(super) fn take(self, bytes: usize) -> Result<Held<'a>, Refusal> {
        let held = Held { taken: self.taken, bytes };
        let before = self.taken.fetch_add(bytes, Ordering::Relaxed);
        if before + bytes <= self.max { Ok(held) } else { Err(overloaded()) }
    }
}

/// Memory that is spoken for; given back when this is dropped.
#[derive(Debug)]
pub(super) struct Held<'a> {
    taken: &'a AtomicUsize,
    bytes: usize,
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.taken.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

fn overloaded() -> Refusal {
    let message = "the node works on as many requests as it takes at a time; try again later";
    Refusal::new(Code::Overloaded, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_are_as_many_places_as_were_set_up_and_each_is_given_back() {
        let taken = AtomicUsize::new(0);
        let places = Places::new(&taken, 2);
        let (one, two) = (places.take().unwrap(), places.take().unwrap());
        assert_eq!(places.take().unwrap_err().code, Code::Overloaded);
        assert!(places.check().is_err());
        drop(one);
        assert!(places.check().is_ok());
        drop((places.take().unwrap(), two));
        assert_eq!(taken.into_inner(), 0);
    }

    #[test]
    fn there_is_as_much_room_as_was_set_up_and_what_is_refused_takes_none() {
        let taken = AtomicUsize::new(0);
        let room = Room::new(&taken, 10);
        let held = room.take(6).unwrap();
        assert_eq!(room.take(5).unwrap_err().code, Code::Overloaded);
        let rest = room.take(4).unwrap();
        assert!(room.take(1).is_err() && room.take(0).is_ok());
        drop((held, rest));
        assert_eq!(taken.into_inner(), 0);
    }
}
