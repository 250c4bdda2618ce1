//! Sequences that begin with pages of others, and let others have theirs.

use super::Ledger;
use crate::admission::{Admission, DeviceSlots};
use crate::error::{ErrorKind, Result, check_range};
use crate::names::PageNames;
use crate::page::{PAGE_TOKENS, PageHandle};
use crate::page_table::{PageTable, pages_for};
use crate::pooled_keys::PooledKeys;
use crate::prefix::{LeaseKey, Published};
use crate::sequence::{Active, Life, Sequence, SequenceHandle};
use crate::tenants::TenantId;

/// Says whether two host pages have the same bytes; may refuse.
pub(crate) type SamePage<'a> = &'a dyn Fn(u32, u32) -> Result<bool>;

/// What a sequence with a known prompt is opened for.
#[derive(Debug)]
pub(crate) struct Prompt {
    pub(crate) tenant: TenantId,
    pub(crate) num_tokens: u32,
    pub(crate) max_new_tokens: u32,
    /// Pages of the lease that it begins with, all in the host pool.
    pub(crate) num_shared: usize,
    /// Names of exactly these.
    pub(crate) names: PageNames,
}

impl Ledger {
    /// Opens a sequence on the first pages of a lease; the pages that it may still need are promised,
    /// idle ones making room.
    pub(crate) fn open_prompt(
        &mut self,
        prompt: Prompt,
        lease: LeaseKey,
        device: DeviceSlots,
        now_ms: u64,
    ) -> Result<SequenceHandle> {
        let Prompt { tenant, num_tokens, max_new_tokens, num_shared, names } = prompt;
        let need = Admission::new(num_tokens, max_new_tokens, self.block_tokens, device)?;
        let full_pages = (num_tokens / PAGE_TOKENS) as usize;
        check_range("pages of the prefix", num_shared, 0, full_pages)?;
        let shared = self.prefix.share_lease(&mut self.pages, lease, num_shared, now_ms)?;
        let num_pages = pages_for(need.tokens);
        let ranges = match self.admit(tenant, &need, num_pages - num_shared) {
            Ok(ranges) => ranges,
            Err(error) => return self.give_back(&shared).and(Err(error)),
        };
        self.counters.opened += 1;
        let length = PAGE_TOKENS * u32::try_from(num_shared).expect("within the prompt");
        let pages = PageTable::sharing(tenant, shared, num_pages, false);
        self.sequences.insert(Sequence {
            length,
            admitted_tokens: need.tokens,
            pooled: PooledKeys::restored(self.num_anchors, self.block_tokens, length)?,
            names: Some(names),
            life: Life::Active(Active { pages, ranges }),
        })
    }

    /// Tells the tokens of a sequence from position `start` on.
    pub(crate) fn note_tokens(
        &mut self,
        handle: SequenceHandle,
        start: u32,
        tokens: &[u32],
    ) -> Result<()> {
        let sequence = self.sequences.get_mut(handle)?;
        let end = u64::from(start) + tokens.len() as u64;
        check_range("end of the tokens told", end, 0, u64::from(sequence.length))?;
        sequence.names.as_mut().map_or(Ok(()), |names| names.note(start, tokens))
    }

    /// Lets others share every full page of the sequence that has a name and whose pooled keys are
    /// made. Where another was first, its page takes the place of this one if their bytes are the
    /// same. How many pages were dealt with; a full directory ends it.
    pub(crate) fn publish(&mut self, handle: SequenceHandle, same: SamePage<'_>) -> Result<usize> {
        let mut num_published = 0;
        loop {
            let sequence = self.sequences.get_mut(handle)?;
            let length = sequence.pooled.num_folded(sequence.length);
            let next = sequence.names.as_ref().and_then(|names| names.next_to_publish(length));
            let Some((at, header)) = next else { return Ok(num_published) };
            let pages = &mut sequence.active_mut()?.pages;
            let own = pages.pages()[at];
            match self.prefix.publish(&mut self.pages, &header, own) {
                Ok(Published::Existing(existing)) if existing != own => {
                    let kept = share_if_same(own, existing, same)?;
                    pages.replace(at, kept);
                    self.pages.release(if kept == own { existing } else { own })?;
                }
                Ok(Published::Existing(existing)) => self.pages.release(existing).map(drop)?,
                Ok(Published::First | Published::Unshared) => {}
                Err(error) if error.kind() == ErrorKind::TierFull => return Ok(num_published),
                Err(error) => return Err(error),
            }
            if let Some(names) = &mut sequence.names {
                names.published();
            }
            num_published += 1;
        }
    }

    /// Drops references that the caller took.
    pub(super) fn give_back(&mut self, pages: &[PageHandle]) -> Result<()> {
        pages.iter().try_for_each(|&page| self.pages.release(page).map(drop))
    }
}

fn share_if_same(own: PageHandle, existing: PageHandle, same: SamePage<'_>) -> Result<PageHandle> {
    Ok(if same(own.page(), existing.page())? { existing } else { own })
}
