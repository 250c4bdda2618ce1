//! Entries by identity. An identity is a keyed hash already, so 8 of its bytes are its hash, and its
//! entry has the rest: the map itself keeps numbers only.

use hashbrown::HashTable;

use super::entry::Entry;
use super::slab::Slab;
use crate::tier::PageIdentity;

/// Bytes of one bucket and its control byte; 7 of 32 buckets are in use at the worst.
#[cfg(test)]
pub(super) const WORST_BYTES_PER_PAGE: usize = (size_of::<u32>() + 1) * 32 / 7;

/// From a page's identity to its entry.
#[derive(Debug)]
pub(super) struct IdentityMap(HashTable<u32>);

impl IdentityMap {
    /// A map that never grows: at half of its capacity it tidies up the traces of removed entries
    /// in place instead.
    pub(super) fn new(max_pages: u32) -> Self {
        Self(HashTable::with_capacity(2 * max_pages as usize))
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn find(&self, identity: &PageIdentity, entries: &Slab<Entry>) -> Option<u32> {
        let is_it = |&entry: &u32| entries.at(entry).identity == *identity;
        self.0.find(first_bytes(identity), is_it).copied()
    }

    /// Adds a held entry whose identity no other has.
    pub(super) fn insert(&mut self, entry: u32, entries: &Slab<Entry>) {
        let hash = |&entry: &u32| first_bytes(&entries.at(entry).identity);
        self.0.insert_unique(hash(&entry), entry, hash);
    }

    /// Takes out an entry that is still held.
    pub(super) fn remove(&mut self, entry: u32, entries: &Slab<Entry>) {
        let hash = first_bytes(&entries.at(entry).identity);
        if let Ok(place) = self.0.find_entry(hash, |&other| other == entry) {
            place.remove();
        }
    }
}

/// The hash of an identity, and what eviction policies know the content by.
pub(super) fn first_bytes(identity: &PageIdentity) -> u64 {
    identity.as_bytes().first_chunk().map_or(0, |first| u64::from_le_bytes(*first))
}
