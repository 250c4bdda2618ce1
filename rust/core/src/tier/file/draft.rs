//! A record before it has a place: the page, and whose number it gets.

use crate::tier::{PageHeader, PageIdentity};

use super::index::Place;
use super::page_header::record_bytes;

/// Who appends: a collection may use the segment that is kept for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    Put,
    Move,
}

/// See the module.
#[derive(Debug, Clone, Copy)]
pub(super) struct Draft {
    pub(super) page: PageHeader,
    pub(super) num_bytes: u32,
    /// Of the record that this is a copy of; None for a page that is put, which gets the next one.
    pub(super) sequence: Option<u64>,
}

impl Draft {
    pub(super) fn of_put(page: &PageHeader, num_bytes: u32) -> Self {
        Self { page: *page, num_bytes, sequence: None }
    }

    /// A copy keeps the number of its page: bytes that were put while it was made count for more,
    /// though it may be written after them.
    pub(super) fn of_copy(identity: &PageIdentity, place: &Place) -> Self {
        let Place { num_bytes, sequence, .. } = *place;
        Self { page: place.page(*identity), num_bytes, sequence: Some(sequence) }
    }

    pub(super) fn purpose(&self) -> Purpose {
        if self.sequence.is_some() { Purpose::Move } else { Purpose::Put }
    }

    pub(super) fn record_bytes(&self) -> u64 {
        record_bytes(u64::from(self.num_bytes))
    }
}
