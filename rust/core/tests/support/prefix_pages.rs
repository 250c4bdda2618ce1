//! Directories and chains of pages to fill them with.
#![allow(dead_code, reason = "each test uses a part of it")]

use hisparse_core::eviction::{EvictionPolicy, LeafFirst};
use hisparse_core::prefix::{OwnerLimits, PrefixDirectory, PrefixLimits, PrefixTable};
use hisparse_core::tier::{IdentityChain, PageHeader, PageIdentity, TenantKey};
use hisparse_core::{PAGE_TOKENS, PageAllocator, Result};

pub(crate) const PAGE_BYTES: u64 = 1000;
pub(crate) const TIMEOUT_MS: u64 = 120_000;
pub(crate) const FOREVER: u64 = u64::MAX;

pub(crate) const OWNERS: OwnerLimits = OwnerLimits { timeout_ms: TIMEOUT_MS, seed: 3 };

pub(crate) type MakeOrder = fn(u32) -> Result<Box<dyn EvictionPolicy>>;

pub(crate) const LEAF_FIRST: MakeOrder = |keys| Ok(Box::new(LeafFirst::new(keys)?));

/// An empty table for up to `max_pages` pages.
pub(crate) fn table(max_pages: u32, make_order: MakeOrder) -> PrefixTable {
    let limits = PrefixLimits { max_pages, page_bytes: PAGE_BYTES, max_decisions: 1 << 12 };
    PrefixTable::new(limits, make_order).expect("legal limits")
}

/// An empty directory beside a pool of `num_pages`.
pub(crate) fn directory(num_pages: u32, max_pages: u32, make_order: MakeOrder) -> PrefixDirectory {
    let pool = PageAllocator::new(num_pages).expect("a legal size");
    PrefixDirectory::new(pool, table(max_pages, make_order), OWNERS).expect("legal limits")
}

/// The full pages of a tenant's sequence; sequences of one seed begin with the same pages.
pub(crate) fn headers(tenant: &str, seed: u32, num_pages: usize) -> Vec<PageHeader> {
    let tokens = (0..).map(|page| seed * 1000 + page).take(num_pages);
    chain_of(tenant, tokens)
}

/// One page for each of `tokens`, which stands for 64.
pub(crate) fn chain_of(tenant: &str, tokens: impl Iterator<Item = u32>) -> Vec<PageHeader> {
    let chain = IdentityChain::new(TenantKey::derive(&[9; 32], tenant), "model", "layout");
    let mut parent = chain.root();
    let page = |token| {
        let identity = chain.page(&parent, &[token; 64]).expect("a full page");
        let header = PageHeader { identity, parent, num_tokens: PAGE_TOKENS };
        parent = identity;
        header
    };
    tokens.map(page).collect()
}

pub(crate) fn identities(headers: &[PageHeader]) -> Vec<PageIdentity> {
    headers.iter().map(|header| header.identity).collect()
}
