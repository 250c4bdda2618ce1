//! Which page goes next when a tier is full: one trait, three policies, and traces to compare them.
//!
//! A policy knows the slab keys of the pages that a tier holds, and nothing else of them. It
//! allocates when it is made and never after. It is not locked: its owner's lock covers it.

mod ghost;
mod leaf_first;
mod leaf_heap;
mod links;
mod lru;
pub mod replay;
mod s3_fifo;
pub mod trace;

use crate::error::{Error, Result, check_range};

pub use leaf_first::LeafFirst;
pub use lru::Lru;
pub use s3_fifo::S3Fifo;

/// Most pages of one policy.
pub const MAX_KEYS: u32 = 1 << 28;

/// Says whether a page may go now: not while a lease holds it, or a copy of it is under way.
///
/// The answer for a key must not change during a call.
pub type MayEvict<'a> = &'a dyn Fn(u32) -> bool;

/// Orders the pages of one tier by when they should go.
///
/// A call that fails leaves the policy unchanged.
pub trait EvictionPolicy: Send {
    /// A page is held from now on, under a key that no other page has now.
    ///
    /// `parent` is the page before it, if the tier holds it. `name` stays with the content when
    /// keys are given out anew: the first 8 bytes of the page's identity.
    fn inserted(&mut self, key: u32, parent: Option<u32>, name: u64) -> Result<()>;

    /// The page was used.
    fn touched(&mut self, key: u32) -> Result<()>;

    /// The page went for another reason than eviction: its owner removed it.
    fn removed(&mut self, key: u32) -> Result<()>;

    /// Gives up the page that should go first of those that may; None if none may.
    ///
    /// The policy has forgotten the page by then: where it stays after all, [`Self::restore`] it.
    fn victim(&mut self, may_evict: MayEvict<'_>) -> Option<u32>;

    /// Appends to `victims` what so many calls of [`Self::victim`] would give, in one pass.
    fn victims(&mut self, count: usize, may_evict: MayEvict<'_>, victims: &mut Vec<u32>);

    /// Takes back pages that went last, in the order in which they went, nothing having happened
    /// since: they stand where they stood. S3-FIFO has given others another chance meanwhile, and
    /// puts them where it would take them from next.
    fn restore(&mut self, gone: &[u32]);

    /// Whether the policy has the page.
    fn holds(&self, key: u32) -> bool;

    /// Pages that the policy has.
    fn num_pages(&self) -> usize;
}

/// Refuses a key that the policy has no room for, or has already.
fn check_new(policy: &dyn EvictionPolicy, key: u32, num_keys: usize) -> Result<()> {
    check_range("key", key as usize, 0, num_keys - 1)?;
    check_held(policy, key, false)
}

/// Refuses a key whose page is not held where it has to be, or is where it must not be.
fn check_held(policy: &dyn EvictionPolicy, key: u32, needed: bool) -> Result<()> {
    let found = policy.holds(key);
    if found == needed {
        return Ok(());
    }
    let what = "pages held under a key";
    Err(Error::WrongState { what, found: found.into(), needed: needed.into() })
}

/// `num_keys` as a length, if a policy can have so many pages.
fn check_num_keys(num_keys: u32) -> Result<usize> {
    check_range("num_keys", num_keys, 1, MAX_KEYS)?;
    Ok(num_keys as usize)
}
