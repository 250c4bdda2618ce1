//! The right to use the pages of a prefix: it ends when dropped, with its owner, or at its deadline.

use std::ops::Range;

use super::entry::Held;
use super::host_pages::HostPages;
use super::leases::{Elsewhere, LeaseKey};
use super::movement::Promotion;
use super::shelf::ShelfRef;
use super::table::PrefixTable;
use crate::error::Result;

/// Pages that stay where a reader finds them, until the lease ends.
///
/// Every use names the time, and is refused as stale once the lease has ended.
#[derive(Debug)]
#[must_use = "dropping it ends the lease"]
pub struct PrefixLease {
    shelf: ShelfRef,
    key: LeaseKey,
    found: Vec<Held>,
    is_ended: bool,
}

impl PrefixLease {
    pub(super) fn new(shelf: ShelfRef, key: LeaseKey, found: Vec<Held>) -> Self {
        Self { shelf, key, found, is_ended: false }
    }

    /// Where each page lay when the lease began. Host pages stay there as long as the lease lasts.
    pub fn found(&self) -> &[Held] {
        &self.found
    }

    /// Names the lease to those who cannot hold this guard.
    pub const fn key(&self) -> LeaseKey {
        self.key
    }

    /// Where each page lies now.
    pub fn pages(&self, now_ms: u64) -> Result<Vec<Held>> {
        self.shelf.with(|pool, table| table.lease_pages(pool, self.key, now_ms))
    }

    /// References to every host page, for a sequence that goes on from the prefix: they outlast the
    /// lease. Refused while a page is not in the host pool.
    pub fn share(&self, now_ms: u64) -> Result<HostPages> {
        let count = self.found.len();
        let share = |pool: &mut _, table: &mut PrefixTable| {
            table.share_lease(pool, self.key, count, now_ms)
        };
        let pages = self.shelf.with(share)?;
        Ok(HostPages::shared(self.shelf.clone(), pages))
    }

    /// Begins to bring those of the pages in `range` up that are in lower tiers only.
    pub fn promote(&self, range: Range<usize>, now_ms: u64) -> Result<Vec<Promotion>> {
        self.shelf.with(|pool, table| {
            let keys = table.begin_promotions(pool, self.key, range, now_ms)?;
            Ok(keys.into_iter().map(|key| Promotion::new(&self.shelf, table, key)).collect())
        })?
    }

    /// Lengthens the lease by the run of pages that follows its last: those that the directory knows,
    /// and those that a store has which others fill, too. A page that is known keeps the copies that
    /// it has: what others put may be other bytes, and may go at any time.
    ///
    /// The run ends early where no entry of the directory is left: no page of this lease is given up
    /// for a later one. How many pages were added.
    pub fn lengthen(&mut self, found: Elsewhere<'_>, now_ms: u64) -> Result<usize> {
        let lengthen = |pool: &mut _, table: &mut PrefixTable| {
            table.lengthen_lease(pool, self.key, found, now_ms)
        };
        let added = self.shelf.with(lengthen)?;
        self.found.extend_from_slice(&added);
        Ok(added.len())
    }

    /// Lets the lease last until `deadline_ms` instead.
    pub fn extend(&self, now_ms: u64, deadline_ms: u64) -> Result<()> {
        self.shelf.with(|pool, table| table.extend_lease(pool, self.key, now_ms, deadline_ms))
    }

    /// Ends the lease now, and reports what dropping it could only swallow.
    pub fn release(mut self) -> Result<()> {
        self.is_ended = true;
        self.shelf.with(|pool, table| table.end_lease(pool, self.key))
    }
}

impl Drop for PrefixLease {
    fn drop(&mut self) {
        if !self.is_ended {
            // fails if it has ended at its deadline or with its owner: nothing is left to give back
            let _ = self.shelf.with(|pool, table| table.end_lease(pool, self.key));
        }
    }
}
