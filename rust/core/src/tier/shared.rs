//! A tier behind a shared pointer, for what wraps a tier of any kind.

use std::sync::Arc;

use super::{Deadline, PageHeader, PageIdentity, PageTier, Stored, TierUsage};
use crate::error::Result;

/// Passes every call on.
#[derive(Clone)]
pub struct SharedTier(Arc<dyn PageTier>);

impl SharedTier {
    /// Shares `tier`.
    pub fn new(tier: Arc<dyn PageTier>) -> Self {
        Self(tier)
    }
}

impl PageTier for SharedTier {
    fn put(&self, page: &PageHeader, bytes: &[u8], deadline: Deadline) -> Result<Stored> {
        self.0.put(page, bytes, deadline)
    }

    fn get(&self, identity: &PageIdentity, into: &mut [u8], deadline: Deadline) -> Result<bool> {
        self.0.get(identity, into, deadline)
    }

    fn holds(&self, identity: &PageIdentity, deadline: Deadline) -> Result<bool> {
        self.0.holds(identity, deadline)
    }

    fn count_held(&self, identities: &[PageIdentity], deadline: Deadline) -> Result<usize> {
        self.0.count_held(identities, deadline)
    }

    fn remove(&self, identity: &PageIdentity, deadline: Deadline) -> Result<bool> {
        self.0.remove(identity, deadline)
    }

    fn flush(&self, deadline: Deadline) -> Result<()> {
        self.0.flush(deadline)
    }

    fn usage(&self) -> TierUsage {
        self.0.usage()
    }

    fn put_many(
        &self,
        pages: &[(PageHeader, &[u8])],
        deadline: Deadline,
    ) -> Result<Vec<Result<Stored>>> {
        self.0.put_many(pages, deadline)
    }

    fn pages(&self) -> Vec<PageHeader> {
        self.0.pages()
    }

    fn forget_cached(&self) {
        self.0.forget_cached();
    }

    fn is_up(&self) -> bool {
        self.0.is_up()
    }

    fn keeps_deadlines(&self) -> bool {
        self.0.keeps_deadlines()
    }
}
