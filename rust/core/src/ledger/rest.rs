//! Sequences that rest: their device ranges and promises are free, and their pages are kept.

use super::Ledger;
use crate::admission::{Admission, DeviceSlots};
use crate::error::{Result, check_range};
use crate::page::{PAGE_TOKENS, PageHandle};
use crate::page_table::{PageTable, pages_for};
use crate::prefix::{Held, LeaseKey, OwnerId, RestingPage};
use crate::sequence::{Active, Life, Resting, SequenceHandle};
use crate::sharing::NO_TIME_MS;
use crate::tier::{IdentityChain, PageIdentity};

impl Ledger {
    /// Lets a sequence rest: all that it has on the device and all that it was promised is free,
    /// and its pages may leave the host pool, but are not forgotten.
    pub(crate) fn preempt(&mut self, handle: SequenceHandle, rest: &IdentityChain) -> Result<()> {
        let sequence = self.sequences.get(handle)?;
        let Active { pages, ranges } = sequence.active()?;
        let (tenant, promised, ranges) = (pages.tenant(), pages.num_promised(), *ranges);
        let (pages, length) = (pages.pages().to_vec(), sequence.length);
        let resting = self.name_resting(&pages, length, rest)?;
        let held = self.prefix.hold(&mut self.pages, rest.root(), &resting)?;
        self.pages.unreserve(tenant, promised)?;
        self.arenas.release(&ranges)?;
        self.sequences.get_mut(handle)?.life = Life::Resting(Resting { tenant, held });
        Ok(())
    }

    /// Pins the pages of a resting sequence for the time that it takes to bring them back.
    pub(crate) fn lease_resting(
        &mut self,
        handle: SequenceHandle,
        owner: OwnerId,
    ) -> Result<(LeaseKey, Vec<Held>)> {
        let resting = self.sequences.get(handle)?.resting()?;
        self.prefix.lease_held(&resting.held, resting.tenant, owner)
    }

    /// Makes a resting sequence active with its first `num_pages` pages, which `lease` has brought to
    /// the host pool: all of them, or where the others are lost, what its length is from now on.
    /// Refused, it rests as before. The lease stays the caller's to end.
    pub(crate) fn resume(
        &mut self,
        handle: SequenceHandle,
        lease: LeaseKey,
        num_pages: usize,
        device: DeviceSlots,
    ) -> Result<u32> {
        let sequence = self.sequences.get(handle)?;
        let resting = sequence.resting()?;
        let (tenant, held) = (resting.tenant, resting.held.clone());
        check_range("pages of the sequence", num_pages, 0, held.len())?;
        self.prefix.check_leased(lease, &held)?;
        let length = length_of(num_pages, sequence.length);
        let need = Admission::new(sequence.admitted_tokens, 0, self.block_tokens, device)?;
        let admitted_pages = pages_for(need.tokens);
        let is_partial = !length.is_multiple_of(PAGE_TOKENS);
        let others_have = |&entry: &u32| !self.prefix.is_sole(&self.pages, entry);
        let needs_copy = is_partial && held[..num_pages].last().is_some_and(others_have);
        let shared = self.prefix.share_lease(&mut self.pages, lease, num_pages, NO_TIME_MS)?;
        let promised = admitted_pages - num_pages + usize::from(needs_copy);
        let ranges = match self.admit(tenant, &need, promised) {
            Ok(ranges) => ranges,
            Err(error) => return self.give_back(&shared).and(Err(error)),
        };
        self.prefix.end_lease(&mut self.pages, lease)?;
        self.prefix.unhold(&mut self.pages, &held)?;
        let pages = PageTable::sharing(tenant, shared, admitted_pages, needs_copy);
        let sequence = self.sequences.get_mut(handle)?;
        sequence.length = length;
        sequence.pooled.truncate(length);
        if let Some(names) = &mut sequence.names {
            names.truncate(length);
        }
        sequence.life = Life::Active(Active { pages, ranges });
        Ok(length)
    }

    fn name_resting(
        &mut self,
        pages: &[PageHandle],
        length: u32,
        rest: &IdentityChain,
    ) -> Result<Vec<RestingPage>> {
        let mut left = length;
        let mut name = |&host: &PageHandle| {
            let num_tokens = left.min(PAGE_TOKENS);
            left -= num_tokens;
            Ok(RestingPage { identity: self.next_rested(rest)?, host, num_tokens })
        };
        pages.iter().map(&mut name).collect()
    }

    /// A name that no other page has or had.
    fn next_rested(&mut self, rest: &IdentityChain) -> Result<PageIdentity> {
        self.num_rested += 1;
        let [low, high] = halves(self.num_rested);
        rest.page(&rest.root(), &[low, high])
    }
}

/// Tokens of the first `num_pages` pages of a sequence of so many.
fn length_of(num_pages: usize, length: u32) -> u32 {
    let whole = u64::from(PAGE_TOKENS) * num_pages as u64;
    u32::try_from(whole).map_or(length, |whole| whole.min(length))
}

#[allow(clippy::cast_possible_truncation, reason = "each half is 32 bits")]
const fn halves(number: u64) -> [u32; 2] {
    [number as u32, (number >> 32) as u32]
}
