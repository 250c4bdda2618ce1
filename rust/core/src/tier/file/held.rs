//! A segment, and what is known in memory of its records.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::footer::{Entry, footer_bytes};
use super::segment::Segment;

/// See the module.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) segment: Arc<Segment>,
    /// Where the next record would begin.
    pub(super) end: u64,
    pub(super) live_bytes: u64,
    /// Offsets of the records that are promised and not settled.
    pub(super) writing: BTreeSet<u64>,
    /// Every record, until a footer holds them.
    pub(super) entries: Vec<Entry>,
    /// Offset of the first place without a whole record that later records may follow.
    gap: Option<u64>,
    /// Its footer is durable.
    pub(super) is_full: bool,
    /// A page of it was damaged: collection empties it early.
    pub(super) is_suspect: bool,
    /// A sync of it failed: what was written since the sync before must be written again.
    pub(super) is_unsynced: bool,
    /// Segments that its pages were moved to; it may go only once they are durable.
    pub(super) heirs: BTreeSet<u32>,
}

impl Held {
    pub(super) fn new(segment: Arc<Segment>, end: u64, entries: Vec<Entry>) -> Self {
        let (heirs, writing) = (BTreeSet::new(), BTreeSet::new());
        let (is_full, is_suspect, is_unsynced) = (false, false, false);
        let (live_bytes, gap) = (0, None);
        Self {
            segment,
            end,
            live_bytes,
            writing,
            entries,
            gap,
            is_full,
            is_suspect,
            is_unsynced,
            heirs,
        }
    }

    /// Bytes that one more record may have.
    pub(super) fn room(&self, segment_bytes: u64) -> u64 {
        segment_bytes.saturating_sub(self.end + footer_bytes(self.entries.len() as u64 + 1))
    }

    /// Notes a place that stays without a whole record.
    pub(super) fn note_gap(&mut self, at: u64) {
        self.gap = Some(self.gap.map_or(at, |gap| gap.min(at)));
    }

    /// Where the whole records end that follow each other from the first one on: what a sync that
    /// begins now makes durable for sure.
    pub(super) fn whole_end(&self) -> u64 {
        let unwritten = self.writing.first().copied().into_iter().chain(self.gap);
        unwritten.fold(self.end, u64::min)
    }
}

#[cfg(all(test, not(feature = "shuttle")))]
mod tests {
    use super::super::draft::Draft;
    use super::super::io::lock;
    use super::super::{FileTier, FileTierOptions, RecoveryMode};
    use crate::tier::{Deadline, PageHeader, PageIdentity, PageTier};
    use std::time::Duration;

    /// A write that goes on during a flush, or has failed before it, leaves a place without a
    /// record, and the record behind that place is durable.
    #[test]
    fn what_a_flush_did_not_wait_for_is_no_damage_after_a_kill() {
        for has_failed in [false, true] {
            let name = format!("hisparse-gap-{has_failed}-{}", std::process::id());
            let directory = std::env::temp_dir().join(name);
            let options = FileTierOptions {
                recovery: RecoveryMode::Strict,
                ..FileTierOptions::new(&directory, 1 << 30, [1; 32])
            };
            let soon = Deadline::after(Duration::from_secs(60));
            let page = |number| {
                let identity = PageIdentity::from_bytes([number; 32]);
                PageHeader { identity, parent: identity, num_tokens: 64 }
            };
            let (tier, _) = FileTier::open(options.clone()).unwrap();
            tier.put(&page(1), &[1; 100], soon).unwrap();
            let draft = Draft::of_put(&page(2), 5000);
            let slot = lock(&tier.store.index).reserve(&draft, 128 << 20).unwrap();
            tier.put(&page(3), &[3; 100], soon).unwrap();
            if has_failed {
                assert!(!lock(&tier.store.index).give_back(&slot));
            }
            tier.flush(soon).unwrap();
            drop(tier);
            for _ in 0..2 {
                let (tier, found) = FileTier::open(options.clone()).unwrap();
                assert_eq!((found.pages, found.torn, found.skipped), (2, 1, 0));
                tier.flush(soon).unwrap();
            }
            std::fs::remove_dir_all(directory).unwrap();
        }
    }
}
