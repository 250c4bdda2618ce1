//! Giving space back: segments without live pages go, those with few are written again first.
//!
//! A crash leaves each page in at least one durable segment: the copies are synced before the
//! manifest drops the segment, and the manifest is in force before its file goes. A file that no
//! manifest lists is removed when the directory is opened.

use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard};

use crate::error::{Error, Result};
use crate::tier::PageIdentity;

use super::draft::Draft;
use super::error::{TIER, io_error};
use super::failpoint::Failpoint;
use super::held::Held;
use super::index::{Index, Place};
use super::io::lock;
use super::store::{Reading, Store};

/// A segment with less than this share of live bytes is worth writing again.
const LIVE_PERCENT: u64 = 70;

/// One pass over the segments that there were when it began: what it writes, it leaves alone.
#[derive(Debug)]
pub(super) struct Pass {
    next_segment: u32,
    tried: BTreeSet<u32>,
}

/// What a collection did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Collected {
    /// Segments that went.
    pub segments: u64,
    /// Pages that were written again.
    pub moved: u64,
    /// Bytes of the directory that are free again.
    pub bytes: u64,
}

/// What became of a segment's pages.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Emptied {
    moved: u64,
    moved_bytes: u64,
    pub(super) lost: u64,
}

/// What became of one page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Moved,
    /// Removed by somebody meanwhile.
    Gone,
    /// Its record was damaged.
    Lost,
}

/// The right to move pages, which one thread has at a time.
pub(super) struct Collecting<'a> {
    index: &'a Mutex<Index>,
    _turn: MutexGuard<'a, ()>,
}

impl Drop for Collecting<'_> {
    fn drop(&mut self) {
        lock(self.index).is_collecting = false;
    }
}

impl Store {
    pub(super) fn begin_collecting(&self) -> Collecting<'_> {
        let turn = lock(&self.collecting);
        lock(&self.index).is_collecting = true;
        Collecting { index: &self.index, _turn: turn }
    }

    pub(super) fn begin_pass(&self) -> Pass {
        let newest = lock(&self.index).segments.last_key_value().map(|(&id, _)| id);
        Pass { next_segment: newest.map_or(0, |newest| newest + 1), tried: BTreeSet::new() }
    }

    /// Collects the emptiest segment that the pass has not tried; None if none is worth it.
    pub(super) fn collect_one(&self, pass: &mut Pass) -> Result<Option<Collected>> {
        let _collecting = self.begin_collecting();
        self.retry_unlinks();
        let Some(segment) = self.choose(pass) else { return Ok(None) };
        pass.tried.insert(segment);
        let emptied = self.empty_segment(segment)?;
        self.retire_segment(segment)?;
        let freed = self.options.segment_bytes.saturating_sub(emptied.moved_bytes);
        Ok(Some(Collected { segments: 1, moved: emptied.moved, bytes: freed }))
    }

    /// The segment to collect; an open one that is worth it is appended to no more.
    fn choose(&self, pass: &Pass) -> Option<u32> {
        let mut index = lock(&self.index);
        let candidates = index.segments.range(..pass.next_segment);
        let worth = candidates.map(|(_, held)| held).filter(|held| {
            let id = held.segment.id;
            let is_open = index.is_open(id);
            held.writing.is_empty() && !pass.tried.contains(&id) && self.is_worth(held, is_open)
        });
        let chosen = worth.min_by_key(|held| held.live_bytes).map(|held| held.segment.id);
        if let Some(chosen) = chosen {
            index.shut(chosen);
        }
        chosen
    }

    fn is_worth(&self, held: &Held, is_open: bool) -> bool {
        let segment_bytes = self.options.segment_bytes;
        let is_sparse = held.live_bytes * 100 < segment_bytes * LIVE_PERCENT;
        if is_open {
            return is_sparse && (held.end >= segment_bytes / 2);
        }
        held.live_bytes == 0 || held.is_suspect || is_sparse
    }

    /// Writes the live pages of a segment again, elsewhere; the caller holds `collecting`.
    pub(super) fn empty_segment(&self, segment: u32) -> Result<Emptied> {
        let pages = lock(&self.index).pages_of(segment);
        let mut emptied = Emptied::default();
        for (identity, place) in &pages {
            let mut record = self.spares.take(usize_of(place.record_bytes()));
            let moved = self.move_page(identity, place, &mut record);
            self.spares.put_back(record);
            match moved? {
                Fate::Moved => {
                    emptied.moved += 1;
                    emptied.moved_bytes += place.record_bytes();
                }
                Fate::Gone => {}
                Fate::Lost => emptied.lost += 1,
            }
        }
        Ok(emptied)
    }

    fn move_page(&self, identity: &PageIdentity, old: &Place, record: &mut [u8]) -> Result<Fate> {
        let Some((place, segment)) = lock(&self.index).find(identity) else {
            return Ok(Fate::Gone);
        };
        if place != *old {
            return Ok(Fate::Gone);
        }
        match self.read_page(identity, old, &segment, record)? {
            Reading::Whole => {}
            Reading::Removed => return Ok(Fate::Gone),
            Reading::Damaged => return Ok(Fate::Lost),
        }
        let slot = self.append(&Draft::of_copy(identity, old), record)?;
        let is_moved = lock(&self.index).settle_move(&slot, old);
        if !is_moved {
            self.bury(&slot.segment, &slot.place);
        }
        Ok(if is_moved { Fate::Moved } else { Fate::Gone })
    }

    /// Removes an empty segment, once what was moved out of it is durable; the caller holds
    /// `collecting`.
    pub(super) fn retire_segment(&self, segment: u32) -> Result<()> {
        self.sync_dirty()?;
        let mut files = lock(&self.files);
        let held = self.take_empty(segment)?;
        if let Err(error) = self.write_manifest_on_full_disk() {
            // either manifest may be in force: the segment stays until the next one is
            lock(&self.index).segments.insert(segment, held);
            return Err(error);
        }
        files.condemned.push(segment);
        drop(files);
        self.unlink(segment)
    }

    /// Takes a segment out of the index; an error while its pages' copies are not durable.
    fn take_empty(&self, segment: u32) -> Result<Held> {
        let mut index = lock(&self.index);
        let held = index.segments.get(&segment);
        let blocking = held.map_or(1, |held| held.live_bytes + unsynced_heirs(&index, held));
        match index.segments.remove(&segment) {
            Some(held) if blocking == 0 && held.writing.is_empty() => Ok(held),
            held => {
                index.segments.extend(held.map(|held| (segment, held)));
                let text = format!("segment {segment:08x} is still needed");
                Err(Error::TierIo { tier: TIER, call: "collect", text })
            }
        }
    }

    fn retry_unlinks(&self) {
        let condemned = lock(&self.files).condemned.clone();
        for segment in condemned {
            let _ = self.unlink(segment); // counted, and tried again by the next collection
        }
    }

    fn unlink(&self, segment: u32) -> Result<()> {
        let passed = self.options.failpoints.pass(Failpoint::InUnlink);
        let unlinked = passed.and_then(|()| self.directory.unlink_segment(segment));
        unlinked.map_err(io_error("unlink"))?;
        let mut files = lock(&self.files);
        files.condemned.retain(|condemned| *condemned != segment);
        self.keep_reserve();
        drop(files);
        Ok(())
    }
}

fn unsynced_heirs(index: &Index, held: &Held) -> u64 {
    let heirs = held.heirs.iter().filter_map(|heir| index.segments.get(heir));
    heirs.filter(|heir| heir.is_unsynced).count() as u64
}

pub(super) fn usize_of(num_bytes: u64) -> usize {
    usize::try_from(num_bytes).expect("a page fits memory")
}

#[cfg(all(test, not(feature = "shuttle")))]
mod tests {
    use super::super::{FileTier, FileTierOptions};
    use super::*;
    use crate::tier::{Deadline, PageHeader, PageTier};
    use std::time::Duration;

    #[test]
    fn a_copy_that_was_not_buried_does_not_bring_back_bytes_that_were_replaced() {
        let directory = std::env::temp_dir().join(format!("hisparse-copy-{}", std::process::id()));
        let open = || FileTier::open(FileTierOptions::new(&directory, 1 << 30, [1; 32])).unwrap().0;
        let soon = Deadline::after(Duration::from_secs(60));
        let identity = PageIdentity::from_bytes([2; 32]);
        let page = PageHeader { identity, parent: identity, num_tokens: 64 };
        let tier = open();
        tier.put(&page, &[3; 100], soon).unwrap();
        // what a collection does until it is killed, and what others do meanwhile
        let (old, segment) = lock(&tier.store.index).find(&identity).unwrap();
        let mut record = vec![0; usize_of(old.record_bytes())];
        let reading = tier.store.read_page(&identity, &old, &segment, &mut record).unwrap();
        assert_eq!(reading, Reading::Whole);
        assert_eq!(tier.remove(&identity, soon), Ok(true));
        tier.put(&page, &[4; 100], soon).unwrap();
        tier.store.append(&Draft::of_copy(&identity, &old), &mut record).unwrap();
        drop(tier);

        let (tier, mut found) = (open(), [0; 100]);
        assert_eq!(tier.get(&identity, &mut found, soon), Ok(true));
        assert_eq!(found, [4; 100]);
        drop(tier);
        std::fs::remove_dir_all(directory).unwrap();
    }
}
