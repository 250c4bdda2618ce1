//! Small pages whose bytes follow from their number, and a tier with faults to keep them in.
#![allow(dead_code, reason = "each test uses a part of it")]

use std::time::Duration;

use hisparse_core::Result;
use hisparse_core::tier::{
    Deadline, FaultPlan, FaultTier, IDENTITY_BYTES, MemoryTier, PageHeader, PageIdentity, PageTier,
    Stored, VerifiedTier,
};

pub(crate) const PAGE_BYTES: usize = 96;

pub(crate) fn identity(page: u32) -> PageIdentity {
    let mut bytes = [0xa5; IDENTITY_BYTES];
    bytes[..4].copy_from_slice(&page.to_le_bytes());
    PageIdentity::from_bytes(bytes)
}

pub(crate) fn header(page: u32) -> PageHeader {
    PageHeader { identity: identity(page), parent: identity(page), num_tokens: 64 }
}

pub(crate) fn bytes_of(page: u32) -> Vec<u8> {
    page.to_le_bytes().into_iter().cycle().take(PAGE_BYTES).collect()
}

pub(crate) fn put(tier: &dyn PageTier, page: u32) -> Result<Stored> {
    tier.put(&header(page), &bytes_of(page), far())
}

/// The page's bytes, if the tier says that it has them.
pub(crate) fn get(tier: &dyn PageTier, page: u32) -> Result<Option<Vec<u8>>> {
    let mut into = vec![0xee; PAGE_BYTES];
    Ok(tier.get(&identity(page), &mut into, far())?.then_some(into))
}

/// No test waits for as long.
pub(crate) fn far() -> Deadline {
    Deadline::after(Duration::from_secs(600))
}

pub(crate) fn faulty(plan: FaultPlan) -> VerifiedTier<FaultTier<MemoryTier>> {
    VerifiedTier::new(FaultTier::new(MemoryTier::new(1 << 24), plan).expect("legal rates"))
}
