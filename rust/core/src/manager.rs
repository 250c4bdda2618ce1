//! Admits sequences, gives them host pages and device ranges, and takes both back.
//!
//! Every call takes one lock for its whole length, so that any interleaving of calls is some order
//! of calls. A call that fails leaves all state unchanged but the count of refusals.

use crate::admission::{DeviceCapacity, DeviceSlots};
use crate::error::{Result, check_range};
use crate::hierarchy::{Hierarchy, HierarchyLimits, LowerStore};
use crate::layout::HostLayout;
use crate::lease::PageLease;
use crate::ledger::Ledger;
use crate::pooled_keys::ClosedBlocks;
use crate::prefix::{OwnerId, OwnerLimits, PrefixDirectory};
use crate::region::HostRegion;
use crate::sequence::{SequenceHandle, SequenceRanges};
use crate::sharing::SharingOptions;
use crate::stats::Stats;
use crate::step_plan::StepPlan;
use crate::sync::{Arc, Mutex, MutexGuard, lock};
use crate::tenant_names::TenantNames;
use crate::tier::IdentityChain;

/// Owner of a region's pages and of the ids of all device arenas.
#[derive(Debug)]
pub struct Manager {
    pub(crate) region: Arc<HostRegion>,
    pub(crate) layout: HostLayout,
    pub(crate) directory: PrefixDirectory,
    pub(crate) tenants: TenantNames,
    pub(crate) owner: OwnerId,      // of the leases that last for one call
    pub(crate) rest: IdentityChain, // names pages of resting sequences, which nobody can ask for
    ledger: Arc<Mutex<Ledger>>,
}

impl Manager {
    /// Takes charge of `region`, which must be large enough for `layout`.
    pub fn new(
        region: Arc<HostRegion>,
        layout: HostLayout,
        capacity: DeviceCapacity,
        block_tokens: u32,
    ) -> Result<Self> {
        Self::sharing(region, layout, capacity, block_tokens, &SharingOptions::default())
    }

    /// As [`new`](Self::new), for pages that processes and hosts may share by name.
    pub fn sharing(
        region: Arc<HostRegion>,
        layout: HostLayout,
        capacity: DeviceCapacity,
        block_tokens: u32,
        options: &SharingOptions,
    ) -> Result<Self> {
        check_range("bytes of the layout", layout.num_bytes(), 1, region.num_bytes())?;
        region.address()?;
        let prefix = options.directory(&layout)?;
        let ledger = Ledger::new(layout.shape(), capacity, block_tokens, prefix)?;
        let ledger = Arc::new(Mutex::new(ledger));
        let directory = PrefixDirectory::over(Arc::clone(&ledger) as _, OwnerLimits::random())?;
        let owner = directory.register(u64::MAX)?; // never silent for too long
        let tenants = TenantNames::new(options.chain_maker(&layout, block_tokens));
        let rest = options.private_chain();
        Ok(Self { region, layout, directory, tenants, owner, rest, ledger })
    }

    /// The directory of shared pages, under the manager's own lock.
    pub fn directory(&self) -> PrefixDirectory {
        self.directory.clone()
    }

    /// What moves the manager's pages between its region and the tiers below, the nearest first.
    pub fn hierarchy(&self, below: Vec<LowerStore>, limits: HierarchyLimits) -> Result<Hierarchy> {
        Hierarchy::new(Arc::clone(&self.region), self.layout, self.directory(), below, limits)
    }

    /// Opens an empty sequence. Host pages and device ranges for `prompt_tokens + max_new_tokens`
    /// are reserved, all or none, so that later appends cannot find anything full.
    pub fn open_sequence(
        &self,
        prompt_tokens: u32,
        max_new_tokens: u32,
        device: DeviceSlots,
    ) -> Result<SequenceHandle> {
        self.lock()?.open(prompt_tokens, max_new_tokens, device)
    }

    /// Makes room for the next tokens and returns the first one's position. A partial page that is
    /// shared is copied first, so the sequence's pages may change.
    pub fn append(&self, sequence: SequenceHandle, num_tokens: u32) -> Result<u32> {
        self.lock()?.append(sequence, num_tokens, &|src, dst| self.copy_page(src, dst))
    }

    /// Appends rows to sequences, each named once, to all or to none, and tells their tokens if they
    /// are given; the position of the first new row of each.
    pub fn append_rows(
        &self,
        rows: &[(SequenceHandle, u32)],
        tokens: Option<&[u32]>,
    ) -> Result<Vec<u32>> {
        self.lock()?.append_rows(rows, tokens, &|src, dst| self.copy_page(src, dst))
    }

    /// Where everything lies of a step whose rows are the last ones of these sequences.
    pub fn plan_step(
        &self,
        rows: &[(SequenceHandle, u32)],
        padded_rows: usize,
    ) -> Result<StepPlan> {
        self.lock()?.plan_step(rows, padded_rows)
    }

    /// Notes that an anchor has folded the next tokens into its pooled keys.
    pub fn advance_pooled(
        &self,
        sequence: SequenceHandle,
        anchor: usize,
        num_tokens: u32,
    ) -> Result<ClosedBlocks> {
        let mut ledger = self.lock()?;
        let (pooled, length) = ledger.pooled_mut(sequence)?;
        pooled.advance(anchor, num_tokens, length)
    }

    /// Forgets tokens from `length` on. Pages go back to the sequence's reservation; pages that
    /// forks keep must be promised anew, which a full pool refuses.
    pub fn truncate(&self, sequence: SequenceHandle, length: u32) -> Result<()> {
        self.lock()?.truncate(sequence, length)
    }

    /// Opens a sequence that begins with the first `length` tokens of another: full pages are
    /// shared, a partial page's bytes are copied, device ranges are its own.
    pub fn fork(
        &self,
        sequence: SequenceHandle,
        length: u32,
        max_new_tokens: u32,
        device: DeviceSlots,
    ) -> Result<SequenceHandle> {
        let copy = |src, dst| self.copy_page(src, dst);
        self.lock()?.fork(sequence, length, max_new_tokens, device, &copy)
    }

    /// Ends a sequence and gives back all that it held; pages that it shares stay for others.
    pub fn close(&self, sequence: SequenceHandle) -> Result<()> {
        self.lock()?.close(sequence)
    }

    /// Tokens appended and not truncated.
    pub fn length(&self, sequence: SequenceHandle) -> Result<u32> {
        self.lock()?.sequence(sequence).map(|sequence| sequence.length)
    }

    /// Tokens that the sequence may grow to.
    pub fn admitted_tokens(&self, sequence: SequenceHandle) -> Result<u32> {
        self.lock()?.sequence(sequence).map(|sequence| sequence.admitted_tokens)
    }

    /// Host pages of the sequence's tokens, in order; refused while it rests.
    pub fn host_pages(&self, sequence: SequenceHandle) -> Result<Vec<u32>> {
        let ledger = self.lock()?;
        let pages = ledger.sequence(sequence)?.active()?.pages.pages();
        Ok(pages.iter().map(|handle| handle.page()).collect())
    }

    /// Closed blocks of an anchor, and tokens in its open block.
    pub fn pooled_state(&self, sequence: SequenceHandle, anchor: usize) -> Result<(u32, u32)> {
        self.lock()?.sequence(sequence)?.pooled.state(anchor)
    }

    /// Where the sequence's state lies in each device arena; fixed until it rests or is closed.
    pub fn ranges(&self, sequence: SequenceHandle) -> Result<SequenceRanges> {
        Ok(self.lock()?.sequence(sequence)?.active()?.ranges)
    }

    /// Takes pages out of the pool until the lease is dropped.
    pub fn lease_pages(&self, num_pages: u32) -> Result<PageLease> {
        let handles = self.lock()?.lease(num_pages)?;
        Ok(PageLease::new(Arc::downgrade(&self.ledger), handles))
    }

    /// Shares full pages of a sequence from `first_page` on until the lease is dropped; the sequence
    /// may be closed before.
    pub fn share_pages(
        &self,
        sequence: SequenceHandle,
        first_page: u32,
        num_pages: u32,
    ) -> Result<PageLease> {
        let handles = self.lock()?.share_pages(sequence, first_page, num_pages)?;
        Ok(PageLease::new(Arc::downgrade(&self.ledger), handles))
    }

    /// Opens a sequence that begins with the pages of `leases`, in order; its length is theirs, and
    /// none of them is written. Everything else that it may need is reserved, or nothing is.
    pub fn open_shared(
        &self,
        leases: &[PageLease],
        prompt_tokens: u32,
        max_new_tokens: u32,
        device: DeviceSlots,
    ) -> Result<SequenceHandle> {
        let mut pages = Vec::new();
        for lease in leases {
            pages.extend_from_slice(lease.handles_in(&self.ledger)?);
        }
        self.lock()?.open_shared(pages, prompt_tokens, max_new_tokens, device)
    }

    /// Counts of this moment.
    pub fn stats(&self) -> Result<Stats> {
        Ok(self.lock()?.stats())
    }

    /// Fails with the first invariant that does not hold.
    pub fn check_integrity(&self) -> Result<()> {
        self.lock()?.check_integrity()
    }

    fn copy_page(&self, src: u32, dst: u32) -> Result<()> {
        self.region.copy_page(&self.layout, src, dst)
    }

    pub(crate) fn lock(&self) -> Result<MutexGuard<'_, Ledger>> {
        lock(&self.ledger)
    }
}
