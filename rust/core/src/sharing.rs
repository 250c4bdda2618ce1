//! What sequences of a manager share beyond their forks: prompts that begin alike, and rest.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;

use crate::admission::DeviceSlots;
use crate::error::{Result, check_range};
use crate::eviction::LeafFirst;
use crate::layout::HostLayout;
use crate::ledger::Prompt;
use crate::manager::Manager;
use crate::names::PageNames;
use crate::page::PAGE_TOKENS;
use crate::prefix::{Elsewhere, LowerTier, PrefixLease, PrefixLimits, PrefixTable};
use crate::sequence::SequenceHandle;
use crate::tenant_names::{ChainMaker, Tenant};
use crate::tenants::TenantId;
use crate::tier::{IdentityChain, PageHeader, PageIdentity, TenantKey};

const MAX_DECISIONS: usize = 1 << 12;
/// The time for a lease that lasts for one call: it ends with the call, at no deadline.
pub(crate) const NO_TIME_MS: u64 = 0;
const NO_DEADLINE_MS: u64 = u64::MAX;

/// What the pages of a manager are named by, and how many it may know.
#[derive(Debug, Clone)]
pub struct SharingOptions {
    /// Pages that the directory may know in all tiers together; 0 = twice those of the host pool.
    pub max_pages: u32,
    /// Names the weights: pages of equal tokens are shared between equal models only.
    pub model: String,
    /// Makes names that nobody can guess; whoever is to find the same pages needs the same.
    pub secret: [u8; 32],
}

impl Default for SharingOptions {
    /// Pages that nobody but this process finds.
    fn default() -> Self {
        Self { max_pages: 0, model: String::new(), secret: random_bytes() }
    }
}

impl SharingOptions {
    pub(crate) fn directory(&self, layout: &HostLayout) -> Result<PrefixTable> {
        let host_pages = layout.shape().num_pages;
        let max_pages = if self.max_pages == 0 { 2 * host_pages } else { self.max_pages };
        let page_bytes = layout.page_bytes() as u64;
        let limits = PrefixLimits { max_pages, page_bytes, max_decisions: MAX_DECISIONS };
        PrefixTable::new(limits, |keys| Ok(Box::new(LeafFirst::new(keys)?)))
    }

    pub(crate) fn chain_maker(&self, layout: &HostLayout, block_tokens: u32) -> ChainMaker {
        let layout = layout_name(layout, block_tokens);
        ChainMaker { secret: self.secret, model: self.model.clone(), layout }
    }

    /// Names that no prompt leads to, of this process alone.
    pub(crate) fn private_chain(&self) -> IdentityChain {
        IdentityChain::new(TenantKey::derive(&random_bytes(), "rest"), &self.model, "rest")
    }

    /// Digest of the model and of how its pages are laid out: a directory of files holds one.
    pub fn digest(&self, layout: &HostLayout, block_tokens: u32) -> [u8; 32] {
        self.chain_maker(layout, block_tokens).digest()
    }
}

/// What a page's bytes depend on beside the model.
fn layout_name(layout: &HostLayout, block_tokens: u32) -> String {
    let shape = layout.shape();
    format!(
        "1: {} layers of {} bytes a row, {} anchors of {}, {} tokens a page, {} a block",
        shape.num_layers,
        shape.kv_row_bytes,
        shape.num_anchors,
        shape.index_row_bytes,
        PAGE_TOKENS,
        block_tokens
    )
}

/// Bytes of the system's randomness, by way of the hasher that std seeds with it.
fn random_bytes() -> [u8; 32] {
    let mut bytes = [0; 32];
    for (at, word) in bytes.chunks_exact_mut(8).enumerate() {
        word.copy_from_slice(&RandomState::new().hash_one(at).to_le_bytes());
    }
    bytes
}

/// A prompt, and the pages of its beginning that some tier has; they stay until it is opened.
#[derive(Debug)]
#[must_use = "dropping it lets the pages go"]
pub struct MatchedPrompt {
    tenant: Tenant,
    chain: Vec<PageIdentity>, // of the pages that may be shared
    num_tokens: u32,
    lease: PrefixLease,
}

impl MatchedPrompt {
    /// The pages found, pinned where they are.
    pub const fn lease(&self) -> &PrefixLease {
        &self.lease
    }

    /// Whose it is.
    pub const fn tenant(&self) -> TenantId {
        self.tenant.id
    }

    /// Tokens of the prompt.
    pub(crate) const fn num_tokens(&self) -> u32 {
        self.num_tokens
    }

    /// What a tier has to be told of a page that could be shared.
    ///
    /// # Panics
    /// If there is no such page.
    pub fn header(&self, at: usize) -> PageHeader {
        let before = at.checked_sub(1).map(|before| self.chain[before]);
        let parent = before.unwrap_or(self.tenant.chain.root());
        PageHeader { identity: self.chain[at], parent, num_tokens: PAGE_TOKENS }
    }

    /// Pins more pages: of the `num_asked` that follow those found, `tier` says that it has the first
    /// `num_held`; see [`PrefixLease::lengthen`]. How many were added.
    pub(crate) fn lengthen(
        &mut self,
        num_asked: usize,
        num_held: usize,
        tier: LowerTier,
    ) -> Result<usize> {
        let first = self.lease.found().len();
        let pages: Vec<PageHeader> = (first..first + num_asked).map(|at| self.header(at)).collect();
        self.lease.lengthen(Elsewhere { pages: &pages, num_held, tier }, NO_TIME_MS)
    }

    /// Names of all pages of the prompt that could be shared; the lease has the first of them.
    pub fn chain(&self) -> &[PageIdentity] {
        &self.chain
    }
}

impl Manager {
    /// Finds the longest beginning of a prompt that some tier has for this tenant. The last token
    /// is never in it: something has to be left to compute.
    ///
    /// # Errors
    /// [`UnknownTenant`](crate::Error::UnknownTenant).
    pub fn match_prompt(&self, tenant: &str, tokens: &[u32]) -> Result<MatchedPrompt> {
        let tenant = self.tenants.get(tenant)?;
        let chain = tenant.chain.pages(&tokens[..tokens.len().saturating_sub(1)])?;
        let num_tokens = u32::try_from(tokens.len()).unwrap_or(u32::MAX);
        let lease = self.directory.match_prefix(&chain, tenant.id, self.owner, NO_DEADLINE_MS)?;
        Ok(MatchedPrompt { tenant, chain, num_tokens, lease })
    }

    /// Opens a sequence on the first `num_pages` matched pages, which have to be in the host pool by
    /// now; its length is theirs. Everything else that it may need is reserved for its tenant, idle
    /// pages making room, or nothing is.
    pub fn open_prompt(
        &self,
        matched: &MatchedPrompt,
        num_pages: usize,
        max_new_tokens: u32,
        device: DeviceSlots,
    ) -> Result<SequenceHandle> {
        check_range("pages of the prompt", num_pages, 0, matched.chain.len())?;
        let chain = matched.chain[..num_pages].to_vec();
        let prompt = Prompt {
            tenant: matched.tenant.id,
            num_tokens: matched.num_tokens,
            max_new_tokens,
            num_shared: num_pages,
            names: PageNames::new(matched.tenant.chain.clone(), chain),
        };
        self.lock()?.open_prompt(prompt, matched.lease.key(), device, NO_TIME_MS)
    }

    /// Tells the tokens of a sequence from position `start` on: with them, its full pages can be
    /// shared. A gap before them ends what it shares, and so do tokens that are never told.
    pub fn note_tokens(&self, sequence: SequenceHandle, start: u32, tokens: &[u32]) -> Result<()> {
        self.lock()?.note_tokens(sequence, start, tokens)
    }

    /// Lets others share the full pages of a sequence whose tokens were told; every row of them
    /// has to be in the host pool. How many pages are dealt with.
    pub fn publish(&self, sequence: SequenceHandle) -> Result<usize> {
        let same = |a, b| self.region.same_page(&self.layout, a, b);
        self.lock()?.publish(sequence, &same)
    }

    /// Lets a sequence rest: its device ranges and promises are free, its pages may leave the host
    /// pool for lower tiers, and nothing of it is forgotten.
    pub fn preempt(&self, sequence: SequenceHandle) -> Result<()> {
        self.lock()?.preempt(sequence, &self.rest)
    }

    /// Pins the pages of a resting sequence, to bring them back to the host pool.
    pub fn lease_resting(&self, sequence: SequenceHandle) -> Result<PrefixLease> {
        let (key, found) = self.lock()?.lease_resting(sequence, self.owner)?;
        Ok(self.directory.lease(key, found))
    }

    /// Makes a resting sequence active again with its first `num_pages` pages, which `lease` has in
    /// the host pool. With all of them it is what it was; else it is that much shorter.
    ///
    /// Refused, it rests as before.
    pub fn resume(
        &self,
        sequence: SequenceHandle,
        lease: &PrefixLease,
        num_pages: usize,
        device: DeviceSlots,
    ) -> Result<u32> {
        self.lock()?.resume(sequence, lease.key(), num_pages, device)
    }

    /// Whether the sequence rests.
    pub fn rests(&self, sequence: SequenceHandle) -> Result<bool> {
        Ok(self.lock()?.sequence(sequence)?.resting().is_ok())
    }

    /// Digest of the model and of the layout of the pages: a directory of files holds one.
    pub fn digest(&self) -> [u8; 32] {
        self.tenants.digest()
    }

    /// Adds a tenant that may have so many host pages.
    pub fn add_tenant(&self, name: &str, quota_pages: u64) -> Result<()> {
        self.tenants.add(name, || self.directory.add_tenant(quota_pages))
    }

    /// The directory's name of a tenant.
    pub fn tenant(&self, name: &str) -> Result<TenantId> {
        Ok(self.tenants.get(name)?.id)
    }
}
