//! Everything a manager keeps under its one lock: pages and their directory, device ranges,
//! sequences, counts.

mod lease;
mod rest;
mod share;
mod step;

use crate::admission::{Admission, DeviceArenas, DeviceCapacity, DeviceSlots};
use crate::arena::RangeArena;
use crate::error::{Error, ErrorKind, Result, check_equal, check_range};
use crate::layout::LayoutShape;
use crate::page::{PAGE_TOKENS, PageAllocator};
use crate::page_table::{CopyPage, PageTable, pages_for};
use crate::pooled_keys::{PooledKeys, check_block_tokens};
use crate::prefix::{PrefixTable, Shelf};
use crate::sequence::{Active, Life, Sequence, SequenceHandle, SequenceRanges, SequenceTable};
use crate::stats::{Counters, Stats};
use crate::tenants::TenantId;

pub(crate) use share::Prompt;

#[derive(Debug)]
pub(crate) struct Ledger {
    num_anchors: usize,
    block_tokens: u32,
    pages: PageAllocator,
    prefix: PrefixTable,
    arenas: DeviceArenas,
    sequences: SequenceTable,
    leases: Vec<u32>, // of each page how many leases have it
    num_leased: usize,
    num_rested: u64, // names of pages of resting sequences given out so far
    counters: Counters,
}

impl Shelf for Ledger {
    fn parts(&mut self) -> (&mut PageAllocator, &mut PrefixTable) {
        (&mut self.pages, &mut self.prefix)
    }
}

impl Ledger {
    pub(crate) fn new(
        shape: LayoutShape,
        capacity: DeviceCapacity,
        block_tokens: u32,
        prefix: PrefixTable,
    ) -> Result<Self> {
        check_block_tokens(block_tokens)?;
        Ok(Self {
            num_anchors: shape.num_anchors,
            block_tokens,
            pages: PageAllocator::new(shape.num_pages)?,
            prefix,
            arenas: DeviceArenas::new(capacity)?,
            sequences: SequenceTable::default(),
            leases: vec![0; shape.num_pages as usize],
            num_leased: 0,
            num_rested: 0,
            counters: Counters::default(),
        })
    }

    pub(crate) fn sequence(&self, handle: SequenceHandle) -> Result<&Sequence> {
        self.sequences.get(handle)
    }

    pub(crate) fn open(
        &mut self,
        prompt_tokens: u32,
        max_new_tokens: u32,
        device: DeviceSlots,
    ) -> Result<SequenceHandle> {
        let need = Admission::new(prompt_tokens, max_new_tokens, self.block_tokens, device)?;
        let num_pages = pages_for(need.tokens);
        let ranges = self.admit(TenantId::DEFAULT, &need, num_pages)?;
        self.counters.opened += 1;
        let pages = PageTable::new(TenantId::DEFAULT, num_pages);
        self.sequences.insert(Sequence {
            length: 0,
            admitted_tokens: need.tokens,
            pooled: PooledKeys::new(self.num_anchors, self.block_tokens)?,
            names: None,
            life: Life::Active(Active { pages, ranges }),
        })
    }

    /// Claims every device range, and promises host pages, for which idle ones make room.
    fn admit(
        &mut self,
        tenant: TenantId,
        need: &Admission,
        num_pages: usize,
    ) -> Result<SequenceRanges> {
        let ranges = self.arenas.claim(need);
        let ranges = self.note_refusal(ranges)?;
        let reserved = self.prefix.reserve(&mut self.pages, tenant, num_pages);
        if reserved.is_err() {
            self.arenas.release(&ranges)?;
        }
        self.note_refusal(reserved).map(|()| ranges)
    }

    /// Makes a call, once more if it finds the pool or its tenant's share full and idle pages can be
    /// given up for it.
    fn with_room<T>(
        &mut self,
        tenant: TenantId,
        mut call: impl FnMut(&mut Self) -> Result<T>,
    ) -> Result<T> {
        let mut outcome = call(self);
        if let Err(Error::HostPoolFull { need, .. } | Error::ShareFull { need, .. }) = outcome {
            let need = usize::try_from(need).unwrap_or(usize::MAX);
            if self.prefix.make_room(&mut self.pages, tenant, need).is_ok() {
                outcome = call(self);
            }
        }
        self.note_refusal(outcome)
    }

    /// A new sequence that begins with the first `length` tokens of `parent`.
    pub(crate) fn fork(
        &mut self,
        parent: SequenceHandle,
        length: u32,
        max_new_tokens: u32,
        device: DeviceSlots,
        copy: CopyPage<'_>,
    ) -> Result<SequenceHandle> {
        check_range("length", length, 0, self.sequences.get(parent)?.length)?;
        let need = Admission::new(length, max_new_tokens, self.block_tokens, device)?;
        let tenant = self.sequences.get(parent)?.active()?.pages.tenant();
        let ranges = self.arenas.claim(&need);
        let ranges = self.note_refusal(ranges)?;
        let num_pages = pages_for(need.tokens);
        let pages = self.with_room(tenant, |ledger| {
            let parent = &ledger.sequences.get(parent)?.active()?.pages;
            parent.fork(&mut ledger.pages, length, num_pages, copy)
        });
        let pages = match pages {
            Ok(pages) => pages,
            Err(error) => {
                self.arenas.release(&ranges)?;
                return Err(error);
            }
        };
        self.counters.forked += 1;
        self.counters.copied_pages += u64::from(!length.is_multiple_of(PAGE_TOKENS));
        let parent = self.sequences.get(parent)?;
        let (pooled, names) = (parent.pooled.fork(length), &parent.names);
        let names = names.as_ref().map(|names| names.fork(length));
        let (admitted_tokens, life) = (need.tokens, Life::Active(Active { pages, ranges }));
        self.sequences.insert(Sequence { length, admitted_tokens, pooled, names, life })
    }

    pub(crate) fn append(
        &mut self,
        handle: SequenceHandle,
        num_tokens: u32,
        copy: CopyPage<'_>,
    ) -> Result<u32> {
        let sequence = self.sequences.get_mut(handle)?;
        check_range("num_tokens", num_tokens, 1, u32::MAX)?;
        let start = sequence.length;
        let end = u64::from(start) + u64::from(num_tokens);
        check_range("end of the append", end, 1, u64::from(sequence.admitted_tokens))?;
        let end = start + num_tokens;
        let pages = &mut sequence.active_mut()?.pages;
        let copied = pages.append(&mut self.pages, start, end, copy)?;
        sequence.length = end;
        self.counters.appended_tokens += u64::from(num_tokens);
        self.counters.copied_pages += u64::from(copied);
        Ok(start)
    }

    pub(crate) fn truncate(&mut self, handle: SequenceHandle, length: u32) -> Result<()> {
        let sequence = self.sequences.get(handle)?;
        check_range("length", length, 0, sequence.length)?;
        let tenant = sequence.active()?.pages.tenant();
        self.with_room(tenant, |ledger| {
            let pages = &mut ledger.sequences.get_mut(handle)?.active_mut()?.pages;
            pages.truncate(&mut ledger.pages, length)
        })?;
        self.counters.truncated += 1;
        let sequence = self.sequences.get_mut(handle)?;
        sequence.pooled.truncate(length);
        sequence.length = length;
        if let Some(names) = &mut sequence.names {
            names.truncate(length);
        }
        Ok(())
    }

    pub(crate) fn close(&mut self, handle: SequenceHandle) -> Result<()> {
        let sequence = self.sequences.remove(handle)?;
        self.counters.closed += 1;
        match sequence.life {
            Life::Active(active) => {
                self.arenas.release(&active.ranges)?;
                active.pages.release(&mut self.pages)
            }
            Life::Resting(resting) => self.prefix.unhold(&mut self.pages, &resting.held),
        }
    }

    /// The sequence's pooled-key metadata, and its length.
    pub(crate) fn pooled_mut(&mut self, handle: SequenceHandle) -> Result<(&mut PooledKeys, u32)> {
        let sequence = self.sequences.get_mut(handle)?;
        Ok((&mut sequence.pooled, sequence.length))
    }

    pub(crate) fn stats(&self) -> Stats {
        let (pages, arenas, counters) = (&self.pages, &self.arenas, self.counters);
        let total = |arena: &RangeArena| u64::from(arena.capacity());
        let used = |arena: &RangeArena| u64::from(arena.num_used());
        Stats {
            sequences: self.sequences.num_open() as u64,
            host_pages_total: pages.num_pages() as u64,
            host_pages_free: pages.num_available() as u64,
            host_pages_reserved: pages.num_reserved() as u64,
            host_pages_shared: pages.num_shared() as u64,
            host_pages_leased: self.num_leased as u64,
            slots_total: total(&arenas.slots),
            slots_used: used(&arenas.slots),
            window_slots_total: total(&arenas.window),
            window_slots_used: used(&arenas.window),
            table_tokens_total: total(&arenas.token_table),
            table_tokens_used: used(&arenas.token_table),
            table_blocks_total: total(&arenas.block_table),
            table_blocks_used: used(&arenas.block_table),
            pooled_keys_total: total(&arenas.pooled),
            pooled_keys_used: used(&arenas.pooled),
            state_rows_total: total(&arenas.state_rows),
            state_rows_used: used(&arenas.state_rows),
            opened: counters.opened,
            closed: counters.closed,
            forked: counters.forked,
            truncated: counters.truncated,
            refused: counters.refused,
            appended_tokens: counters.appended_tokens,
            copied_pages: counters.copied_pages,
        }
    }

    /// Every level is sound, and the levels agree on who holds what.
    pub(crate) fn check_integrity(&self) -> Result<()> {
        self.prefix.check_integrity(&self.pages)?; // and the pages
        check_equal("open sequences", self.sequences.num_open(), self.sequences.iter().count())?;
        let open: Vec<SequenceRanges> = self.active().map(|active| active.ranges).collect();
        self.arenas.check_integrity(&open)?;
        self.sequences.iter().try_for_each(|sequence| self.check_sequence(sequence))?;
        let promised = self.active().map(|active| active.pages.num_promised()).sum();
        check_equal("reserved pages", self.pages.num_reserved(), promised)?;
        let resting = self.sequences.iter().filter_map(|sequence| sequence.resting().ok());
        let held = resting.map(|resting| resting.held.len() as u64).sum();
        check_equal("pages held by resting sequences", self.prefix.stats().holds, held)?;
        self.check_page_holders()
    }

    fn active(&self) -> impl Iterator<Item = &Active> {
        self.sequences.iter().filter_map(|sequence| sequence.active().ok())
    }

    fn check_sequence(&self, sequence: &Sequence) -> Result<()> {
        check_range("length of a sequence", sequence.length, 0, sequence.admitted_tokens)?;
        sequence.pooled.check_integrity(sequence.length)?;
        let Ok(active) = sequence.active() else {
            let held = sequence.resting()?.held.len();
            return check_equal("pages held for a sequence", held, pages_for(sequence.length));
        };
        let entries = active.ranges.token_table.count;
        check_equal("slot-table entries of a sequence", entries, sequence.admitted_tokens)?;
        active.pages.check_integrity(&self.pages, sequence.length)
    }

    /// References of each page are those of leases, of the sequences and of the directory.
    fn check_page_holders(&self) -> Result<()> {
        let leased = self.leases.iter().map(|&leases| leases as usize).sum();
        check_equal("pages of leases", self.num_leased, leased)?;
        let mut holders = self.leases.clone();
        let of_sequences = self.active().flat_map(|active| active.pages.pages()).copied();
        for page in of_sequences.chain(self.prefix.host_pages()) {
            holders[page.page() as usize] += 1;
            let refs = self.pages.num_refs(page)?;
            check_range("holders of a page", holders[page.page() as usize], 1, refs)?;
        }
        let held = holders.iter().filter(|&&count| count > 0).count();
        let used = self.pages.num_pages() - self.pages.num_free();
        check_equal("pages that somebody holds", held, used)
    }

    fn note_refusal<T>(&mut self, outcome: Result<T>) -> Result<T> {
        let kind = outcome.as_ref().err().map(Error::kind);
        let is_full = matches!(
            kind,
            Some(ErrorKind::HostPoolFull | ErrorKind::DeviceArenaFull | ErrorKind::TierFull)
        );
        self.counters.refused += u64::from(is_full);
        outcome
    }
}
