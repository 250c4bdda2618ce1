//! Values by entry number and generation: a key that outlives its value is refused, not followed.

use crate::error::{Error, Result};

/// Names one value for as long as it is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct SlabKey {
    pub(super) entry: u32,
    pub(super) generation: u32,
}

#[derive(Debug)]
struct Slot<T> {
    generation: u32, // of the value, or of the next one; 0 = worn out
    value: Option<T>,
}

/// A table of up to `max_entries` values. An entry whose generations are used up is not used again.
#[derive(Debug)]
pub(super) struct Slab<T> {
    what: &'static str,
    slots: Vec<Slot<T>>,
    free: Vec<u32>, // the last one is used next
    num_held: usize,
    max_entries: u32,
}

impl<T> Slab<T> {
    /// Bytes of one entry, its place in the free list included.
    #[cfg(test)]
    pub(super) const ENTRY_BYTES: usize = size_of::<Slot<T>>() + size_of::<u32>();

    /// An empty slab with room made for `first_entries`; `what` names a value in errors.
    pub(super) fn new(what: &'static str, first_entries: u32, max_entries: u32) -> Self {
        let slots = Vec::with_capacity(first_entries as usize);
        let free = Vec::with_capacity(first_entries as usize);
        Self { what, slots, free, num_held: 0, max_entries }
    }

    /// Values held.
    pub(super) fn len(&self) -> usize {
        self.num_held
    }

    /// Whether no entry is left for another value.
    pub(super) fn is_full(&self) -> bool {
        self.free.is_empty() && self.slots.len() >= self.max_entries as usize
    }

    /// Holds a value; None if no entry is left.
    pub(super) fn insert(&mut self, value: T) -> Option<SlabKey> {
        let entry = self.free.pop().or_else(|| self.grow())?;
        let slot = &mut self.slots[entry as usize];
        slot.value = Some(value);
        self.num_held += 1;
        Some(SlabKey { entry, generation: slot.generation })
    }

    pub(super) fn get(&self, key: SlabKey) -> Result<&T> {
        let slot = self.slots.get(key.entry as usize);
        let live = slot.filter(|slot| slot.generation == key.generation);
        live.and_then(|slot| slot.value.as_ref()).ok_or_else(|| self.refuse(key))
    }

    pub(super) fn get_mut(&mut self, key: SlabKey) -> Result<&mut T> {
        self.get(key)?;
        Ok(self.at_mut(key.entry))
    }

    pub(super) fn remove(&mut self, key: SlabKey) -> Result<T> {
        self.get(key)?;
        let slot = &mut self.slots[key.entry as usize];
        slot.generation = slot.generation.wrapping_add(1);
        if slot.generation != 0 {
            self.free.push(key.entry);
        }
        self.num_held -= 1;
        Ok(slot.value.take().expect("get has found it"))
    }

    /// The value under an entry that the caller knows to hold one.
    pub(super) fn at(&self, entry: u32) -> &T {
        self.slots[entry as usize].value.as_ref().expect("the caller knows that it is held")
    }

    /// As [`at`](Self::at), to change it.
    pub(super) fn at_mut(&mut self, entry: u32) -> &mut T {
        self.slots[entry as usize].value.as_mut().expect("the caller knows that it is held")
    }

    /// The key of an entry that the caller knows to hold a value.
    pub(super) fn key_of(&self, entry: u32) -> SlabKey {
        SlabKey { entry, generation: self.slots[entry as usize].generation }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (SlabKey, &T)> {
        (0..).zip(&self.slots).filter_map(|(entry, slot)| {
            let key = SlabKey { entry, generation: slot.generation };
            slot.value.as_ref().map(|value| (key, value))
        })
    }

    fn grow(&mut self) -> Option<u32> {
        let entry =
            u32::try_from(self.slots.len()).ok().filter(|&entry| entry < self.max_entries)?;
        self.slots.push(Slot { generation: 1, value: None });
        Some(entry)
    }

    fn refuse(&self, key: SlabKey) -> Error {
        let current = self.slots.get(key.entry as usize).map_or(1, |slot| slot.generation);
        Error::StaleHandle { what: self.what, id: key.entry, found: key.generation, current }
    }
}

#[cfg(test)]
impl<T> Slab<T> {
    /// Sets the generation of an entry that holds a value, as if it had been used that often.
    pub(super) fn age(&mut self, entry: u32, generation: u32) -> SlabKey {
        self.slots[entry as usize].generation = generation;
        SlabKey { entry, generation }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_that_has_ended_is_stale_when_its_entry_is_used_again() {
        let mut slab = Slab::new("thing", 1, 1);
        let old = slab.insert('a').unwrap();
        assert!(slab.is_full() && slab.insert('b').is_none());
        assert_eq!(slab.remove(old), Ok('a'));
        let new = slab.insert('c').unwrap();
        let error = slab.remove(old).unwrap_err();
        assert_eq!(error.to_string(), "stale thing handle 0: found generation 1, needed 2");
        assert_eq!((slab.get(new), slab.len()), (Ok(&'c'), 1));
    }

    #[test]
    fn an_entry_with_no_generation_left_is_retired() {
        let mut slab = Slab::new("thing", 0, 2);
        let first = slab.insert('a').unwrap();
        let last = slab.age(0, u32::MAX);
        assert!(slab.get(first).is_err());
        assert_eq!(slab.remove(last), Ok('a'));
        assert!(slab.get(last).is_err() && slab.get(first).is_err());
        assert_eq!(slab.insert('b').unwrap().entry, 1);
        assert!(slab.is_full() && slab.insert('c').is_none());
    }
}
