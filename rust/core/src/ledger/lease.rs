//! Pages that leases hold: taken out of the pool, or shared with a sequence.

use super::Ledger;
use crate::admission::{Admission, DeviceSlots};
use crate::error::{Result, check_range};
use crate::page::{PAGE_TOKENS, PageHandle};
use crate::page_table::{PageTable, pages_for};
use crate::pooled_keys::PooledKeys;
use crate::sequence::{Active, Life, Sequence, SequenceHandle};
use crate::tenants::TenantId;

impl Ledger {
    pub(crate) fn lease(&mut self, num_pages: u32) -> Result<Vec<PageHandle>> {
        check_range("num_pages", num_pages, 1, u32::MAX)?;
        let tenant = TenantId::DEFAULT;
        let pages = self.prefix.take(&mut self.pages, tenant, num_pages as usize);
        let pages = self.note_refusal(pages)?;
        self.note_leased(&pages);
        Ok(pages)
    }

    /// References of a lease to full pages of a sequence.
    pub(crate) fn share_pages(
        &mut self,
        handle: SequenceHandle,
        first: u32,
        count: u32,
    ) -> Result<Vec<PageHandle>> {
        let sequence = self.sequences.get(handle)?;
        let full = sequence.length / PAGE_TOKENS;
        check_range("first page", first, 0, full)?;
        check_range("pages to share", count, 0, full - first)?;
        let pages = sequence.active()?.pages.pages();
        let pages = pages[first as usize..(first + count) as usize].to_vec();
        self.share_lease(&pages)?;
        Ok(pages)
    }

    /// References of one lease more to pages in use: to all, or to none.
    pub(crate) fn share_lease(&mut self, pages: &[PageHandle]) -> Result<()> {
        self.share_all(pages)?;
        self.note_leased(pages);
        Ok(())
    }

    /// Opens a sequence that begins with pages of leases, which stay theirs as well.
    pub(crate) fn open_shared(
        &mut self,
        pages: Vec<PageHandle>,
        prompt_tokens: u32,
        max_new_tokens: u32,
        device: DeviceSlots,
    ) -> Result<SequenceHandle> {
        let need = Admission::new(prompt_tokens, max_new_tokens, self.block_tokens, device)?;
        let full_pages = (prompt_tokens / PAGE_TOKENS) as usize;
        check_range("pages of the prefix", pages.len(), 0, full_pages)?;
        self.share_all(&pages)?;
        let (tenant, num_pages) = (TenantId::DEFAULT, pages_for(need.tokens));
        let ranges = match self.admit(tenant, &need, num_pages - pages.len()) {
            Ok(ranges) => ranges,
            Err(error) => return self.give_back(&pages).and(Err(error)),
        };
        self.counters.opened += 1;
        let length = PAGE_TOKENS * u32::try_from(pages.len()).expect("within the prompt");
        let pages = PageTable::sharing(tenant, pages, num_pages, false);
        self.sequences.insert(Sequence {
            length,
            admitted_tokens: need.tokens,
            pooled: PooledKeys::restored(self.num_anchors, self.block_tokens, length)?,
            names: None,
            life: Life::Active(Active { pages, ranges }),
        })
    }

    pub(crate) fn end_lease(&mut self, pages: &[PageHandle]) -> Result<()> {
        for &page in pages {
            self.pages.release(page)?;
            self.leases[page.page() as usize] -= 1;
            self.num_leased -= 1;
        }
        Ok(())
    }

    /// Takes a reference to each page, or to none.
    fn share_all(&mut self, pages: &[PageHandle]) -> Result<()> {
        for (num_shared, &page) in pages.iter().enumerate() {
            if let Err(error) = self.pages.share(page) {
                return self.give_back(&pages[..num_shared]).and(Err(error));
            }
        }
        Ok(())
    }

    fn note_leased(&mut self, pages: &[PageHandle]) {
        for page in pages {
            self.leases[page.page() as usize] += 1;
        }
        self.num_leased += pages.len();
    }
}
