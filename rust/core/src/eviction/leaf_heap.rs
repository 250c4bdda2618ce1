//! The leaves of a forest by the time of their last use: a binary heap that knows where each is.

use super::links::NONE;

/// A min-heap of keys by stamp; stamps are unique.
#[derive(Debug, Clone)]
pub(super) struct LeafHeap {
    heap: Vec<u32>,
    places: Vec<u32>, // [num_keys], place in `heap`; NONE = not a leaf, or put aside
}

impl LeafHeap {
    pub(super) fn new(num_keys: usize) -> Self {
        Self { heap: Vec::with_capacity(num_keys), places: vec![NONE; num_keys] }
    }

    pub(super) fn oldest(&self) -> Option<u32> {
        self.heap.first().copied()
    }

    pub(super) fn push(&mut self, key: u32, stamps: &[u64]) {
        self.heap.push(key);
        self.rise(self.heap.len() - 1, stamps);
    }

    /// Takes a key out; harmless where it is not in.
    pub(super) fn take(&mut self, key: u32, stamps: &[u64]) {
        let place = self.places[key as usize];
        if place == NONE {
            return;
        }
        let place = place as usize;
        self.places[key as usize] = NONE;
        let Some(last) = self.heap.pop().filter(|&last| last != key) else { return };
        self.heap[place] = last;
        self.rise(place, stamps);
        self.sink(self.places[last as usize] as usize, stamps);
    }

    /// Restores the order after the stamp of a key has grown; harmless where it is not in.
    pub(super) fn aged_less(&mut self, key: u32, stamps: &[u64]) {
        let place = self.places[key as usize];
        if place != NONE {
            self.sink(place as usize, stamps);
        }
    }

    fn rise(&mut self, mut place: usize, stamps: &[u64]) {
        let key = self.heap[place];
        while place > 0 {
            let above = (place - 1) / 2;
            if stamps[self.heap[above] as usize] < stamps[key as usize] {
                break;
            }
            self.set(place, self.heap[above]);
            place = above;
        }
        self.set(place, key);
    }

    fn sink(&mut self, mut place: usize, stamps: &[u64]) {
        let key = self.heap[place];
        while let Some(below) = self.older_below(place, stamps) {
            if stamps[key as usize] < stamps[self.heap[below] as usize] {
                break;
            }
            self.set(place, self.heap[below]);
            place = below;
        }
        self.set(place, key);
    }

    fn older_below(&self, place: usize, stamps: &[u64]) -> Option<usize> {
        let (left, right) = (2 * place + 1, 2 * place + 2);
        let stamp = |place: usize| self.heap.get(place).map(|&key| stamps[key as usize]);
        let left_stamp = stamp(left)?;
        Some(if stamp(right).is_some_and(|stamp| stamp < left_stamp) { right } else { left })
    }

    fn set(&mut self, place: usize, key: u32) {
        self.heap[place] = key;
        self.places[key as usize] = u32::try_from(place).unwrap_or(NONE); // below MAX_KEYS
    }
}
