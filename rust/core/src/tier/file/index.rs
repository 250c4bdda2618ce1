//! What is where, in memory: pages by identity, segments by number, and who may append.
//!
//! Nothing here blocks: it is one lock's worth of state, and files are read and written outside.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use crate::tier::{PageHeader, PageIdentity, Stored, TierUsage};

use super::draft::{Draft, Purpose};
use super::footer::Entry;
use super::held::Held;
use super::page_header::{BLOCK_BYTES, Mark, RecordHeader, record_bytes};
use super::segment::Segment;

/// Where a page's record is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) segment: u32,
    pub(super) block: u32,
    /// Which entry of the segment's footer it is.
    pub(super) ordinal: u32,
    pub(super) num_bytes: u32,
    pub(super) num_tokens: u32,
    pub(super) sequence: u64,
    pub(super) parent: PageIdentity,
}

impl Place {
    pub(super) fn at(&self) -> u64 {
        u64::from(self.block) * BLOCK_BYTES
    }

    pub(super) fn record_bytes(&self) -> u64 {
        record_bytes(u64::from(self.num_bytes))
    }

    pub(super) fn page(&self, identity: PageIdentity) -> PageHeader {
        PageHeader { identity, parent: self.parent, num_tokens: self.num_tokens }
    }

    /// Whether a header read at this place is that of the page which was put there.
    pub(super) fn names(
        &self,
        identity: &PageIdentity,
        segment: &Segment,
        found: &RecordHeader,
    ) -> bool {
        let Self { block, num_bytes, sequence, .. } = *self;
        let Segment { id, stamp, .. } = *segment;
        let page = self.page(*identity);
        *found == RecordHeader { page, sequence, segment: id, stamp, block, num_bytes }
    }
}

/// A page's place, promised to one writer.
#[derive(Debug, Clone)]
pub(super) struct Slot {
    pub(super) segment: Arc<Segment>,
    pub(super) page: PageHeader,
    pub(super) place: Place,
}

impl Slot {
    pub(super) fn header(&self) -> RecordHeader {
        let Place { block, num_bytes, sequence, .. } = self.place;
        let Segment { id, stamp, .. } = *self.segment;
        RecordHeader { page: self.page, sequence, segment: id, stamp, block, num_bytes }
    }
}

/// The state; see the module.
#[derive(Debug, Default)]
pub(super) struct Index {
    pub(super) pages: HashMap<PageIdentity, Place>,
    pub(super) segments: BTreeMap<u32, Held>,
    /// The segment that pages are put in.
    pub(super) open: Option<u32>,
    /// The segment that pages are moved to. Puts keep out of it while a collection goes on, which
    /// might else find no room for what it moves, and could never give any back.
    pub(super) moving: Option<u32>,
    pub(super) is_collecting: bool,
    pub(super) next_sequence: u64,
    /// Counters; capacity and pages are filled in when asked for.
    pub(super) counts: TierUsage,
}

impl Index {
    pub(super) fn find(&self, identity: &PageIdentity) -> Option<(Place, Arc<Segment>)> {
        let place = self.pages.get(identity)?;
        let held = self.segments.get(&place.segment)?;
        Some((*place, Arc::clone(&held.segment)))
    }

    /// Bytes that a record may have without another segment.
    pub(super) fn room(&self, purpose: Purpose, segment_bytes: u64) -> u64 {
        let held = self.target(purpose).and_then(|id| self.segments.get(&id));
        held.map_or(0, |held| held.room(segment_bytes))
    }

    fn target(&self, purpose: Purpose) -> Option<u32> {
        match purpose {
            Purpose::Put => self.open,
            Purpose::Move => self.moving,
        }
    }

    /// Appends to a segment from now on.
    pub(super) fn aim(&mut self, purpose: Purpose, segment: u32) {
        match purpose {
            Purpose::Put => self.open = Some(segment),
            Purpose::Move => self.moving = Some(segment),
        }
    }

    /// Whether records are appended to a segment.
    pub(super) fn is_open(&self, segment: u32) -> bool {
        self.open == Some(segment) || self.moving == Some(segment)
    }

    pub(super) fn open_segments(&self) -> impl Iterator<Item = &Arc<Segment>> {
        let open = [self.open, self.moving].into_iter().flatten();
        open.filter_map(|segment| self.segments.get(&segment).map(|held| &held.segment))
    }

    /// Appends to a segment no more.
    pub(super) fn shut(&mut self, segment: u32) {
        self.open = self.open.filter(|open| *open != segment);
        self.moving = self.moving.filter(|moving| *moving != segment);
    }

    /// Promises the next place of the segment for `purpose`; None if it has no room.
    pub(super) fn reserve(&mut self, draft: &Draft, segment_bytes: u64) -> Option<Slot> {
        let Draft { page, num_bytes, sequence } = *draft;
        let held = self.target(draft.purpose()).and_then(|id| self.segments.get_mut(&id))?;
        let bytes = draft.record_bytes();
        if held.room(segment_bytes) < bytes {
            return None;
        }
        let place = Place {
            segment: held.segment.id,
            block: u32::try_from(held.end / BLOCK_BYTES).ok()?,
            ordinal: u32::try_from(held.entries.len()).ok()?,
            num_bytes,
            num_tokens: page.num_tokens,
            sequence: sequence.unwrap_or(self.next_sequence),
            parent: page.parent,
        };
        let slot = Slot { segment: Arc::clone(&held.segment), page, place };
        held.entries.push(Entry::of(&slot.header(), Mark::Dead)); // until it is settled
        held.end += bytes;
        held.writing.insert(place.at());
        self.next_sequence += u64::from(sequence.is_none());
        Some(slot)
    }

    /// Shows a page that has been written; `Already` if another writer was first.
    pub(super) fn settle(&mut self, slot: &Slot) -> Stored {
        if self.pages.contains_key(&slot.page.identity) {
            self.drop_slot(slot);
            return Stored::Already;
        }
        self.show(slot);
        Stored::New
    }

    /// Shows a page at its new place, if it is still at the old one.
    pub(super) fn settle_move(&mut self, slot: &Slot, old: &Place) -> bool {
        let is_there = self.pages.get(&slot.page.identity) == Some(old);
        if is_there {
            self.hide(&slot.page.identity);
            self.show(slot);
            self.segments.entry(old.segment).and_modify(|held| {
                held.heirs.insert(slot.place.segment);
            });
        } else {
            self.drop_slot(slot);
        }
        is_there
    }

    fn show(&mut self, slot: &Slot) {
        let Some(held) = self.segments.get_mut(&slot.place.segment) else { return };
        held.writing.remove(&slot.place.at());
        held.live_bytes += slot.place.record_bytes();
        if let Some(entry) = held.entries.get_mut(slot.place.ordinal as usize) {
            entry.mark = Mark::Live;
        }
        self.pages.insert(slot.page.identity, slot.place);
    }

    /// Gives a place up; its record stays dead.
    pub(super) fn drop_slot(&mut self, slot: &Slot) {
        if let Some(held) = self.segments.get_mut(&slot.place.segment) {
            held.writing.remove(&slot.place.at());
        }
    }

    /// Gives a place back whose write failed; true if the next record will lie over it.
    pub(super) fn give_back(&mut self, slot: &Slot) -> bool {
        self.drop_slot(slot);
        let is_open = self.is_open(slot.place.segment);
        let Some(held) = self.segments.get_mut(&slot.place.segment) else { return false };
        let is_last = held.entries.len() == slot.place.ordinal as usize + 1;
        if is_open && is_last {
            held.entries.pop();
            held.end = slot.place.at();
        } else {
            held.note_gap(slot.place.at());
        }
        is_open && is_last
    }

    /// Forgets a page; its record is to be buried.
    pub(super) fn hide(&mut self, identity: &PageIdentity) -> Option<(Place, Arc<Segment>)> {
        let place = self.pages.remove(identity)?;
        let held = self.segments.get_mut(&place.segment)?;
        held.live_bytes -= place.record_bytes();
        if let Some(entry) = held.entries.get_mut(place.ordinal as usize) {
            entry.mark = Mark::Dead;
        }
        Some((place, Arc::clone(&held.segment)))
    }

    /// Forgets a page whose record is damaged, unless it has moved since.
    pub(super) fn quarantine(&mut self, identity: &PageIdentity, place: &Place) {
        self.counts.corrupt += 1;
        if let Some(held) = self.segments.get_mut(&place.segment) {
            held.is_suspect = true;
        }
        if self.pages.get(identity) == Some(place) {
            self.hide(identity);
        }
    }

    /// The pages of a segment, in the order in which they lie there.
    pub(super) fn pages_of(&self, segment: u32) -> Vec<(PageIdentity, Place)> {
        let pages = self.pages.iter().filter(|(_, place)| place.segment == segment);
        let mut pages: Vec<_> = pages.map(|(&identity, &place)| (identity, place)).collect();
        pages.sort_unstable_by_key(|(_, place)| place.block);
        pages
    }

    pub(super) fn usage(&self, capacity_bytes: u64) -> TierUsage {
        let pages = self.pages.len() as u64;
        let used_bytes = self.segments.values().map(|held| held.live_bytes).sum();
        TierUsage { pages, used_bytes, capacity_bytes, ..self.counts }
    }
}
