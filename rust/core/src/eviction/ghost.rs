//! Names of pages that went lately: coming back soon is what tells a good page from a scan.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasherDefault, Hasher};

/// The last so many names, oldest dropped first. Full from the start, as far as memory goes.
#[derive(Debug, Clone)]
pub(super) struct Ghost {
    order: VecDeque<(u64, u64)>, // (name, its number), oldest first; one that came back stays
    numbers: HashMap<u64, u64, BuildHasherDefault<NameHasher>>,
    next_number: u64,
    max_names: usize,
}

impl Ghost {
    pub(super) fn new(max_names: usize) -> Self {
        let numbers = HashMap::with_capacity_and_hasher(max_names, BuildHasherDefault::default());
        Self { order: VecDeque::with_capacity(max_names), numbers, next_number: 0, max_names }
    }

    pub(super) fn remember(&mut self, name: u64) {
        if self.order.len() == self.max_names {
            self.drop_oldest();
        }
        self.numbers.insert(name, self.next_number);
        self.order.push_back((name, self.next_number));
        self.next_number += 1;
    }

    /// Whether the name was remembered; it no longer is.
    pub(super) fn recall(&mut self, name: u64) -> bool {
        self.numbers.remove(&name).is_some()
    }

    fn drop_oldest(&mut self) {
        let Some((name, number)) = self.order.pop_front() else { return };
        // a name that came back and went again has a newer number, which must stay
        if self.numbers.get(&name) == Some(&number) {
            self.numbers.remove(&name);
        }
    }
}

/// Names are bytes of a keyed hash already: nothing is left to mix.
#[derive(Debug, Clone, Copy, Default)]
struct NameHasher(u64);

impl Hasher for NameHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(byte);
        }
    }

    fn write_u64(&mut self, name: u64) {
        self.0 = name;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_name_is_dropped_and_a_name_that_went_twice_counts_once_from_the_last() {
        let mut ghost = Ghost::new(3);
        ghost.remember(1);
        ghost.remember(2);
        assert!(ghost.recall(1));
        assert!(!ghost.recall(1));
        ghost.remember(1);
        ghost.remember(3); // pushes out the first 1
        assert!(ghost.recall(1) && ghost.recall(2) && ghost.recall(3));
    }
}
