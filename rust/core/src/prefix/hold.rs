//! Pages of sequences that rest: they stay known, and may leave the host pool until they are wanted.

use super::entry::{Held, LowerTiers, Place};
use super::leases::{LeaseKey, LeaseRecord};
use super::owners::OwnerId;
use super::table::PrefixTable;
use crate::error::{Error, Result};
use crate::eviction::EvictionPolicy;
use crate::page::{PageAllocator, PageHandle};
use crate::tenants::TenantId;
use crate::tier::{PageHeader, PageIdentity};

/// A page that a sequence leaves behind while it rests.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RestingPage {
    /// The name that it gets, unless the directory has the page already.
    pub(crate) identity: PageIdentity,
    pub(crate) host: PageHandle,
    pub(crate) num_tokens: u32,
}

impl PrefixTable {
    /// Keeps pages for a sequence that rests, and takes its references over: of all, or of none.
    pub(crate) fn hold(
        &mut self,
        pool: &mut PageAllocator,
        root: PageIdentity,
        pages: &[RestingPage],
    ) -> Result<Box<[u32]>> {
        let mut held = Vec::with_capacity(pages.len());
        let mut parent = root;
        for page in pages {
            match self.hold_page(pool, parent, page) {
                Ok(entry) => held.push(entry),
                Err(error) => return self.unhold(pool, &held).and(Err(error)),
            }
            parent = self.entries.at(held[held.len() - 1]).identity;
        }
        for page in pages {
            pool.release(page.host)?;
        }
        Ok(held.into_boxed_slice())
    }

    /// Ends the holds. What has no name that anybody could ask for is gone then.
    pub(crate) fn unhold(&mut self, pool: &mut PageAllocator, held: &[u32]) -> Result<()> {
        for &entry in held.iter().rev() {
            self.entries.at_mut(entry).num_holds -= 1;
            self.let_go(pool, entry)?;
        }
        Ok(())
    }

    /// Forgets a page that nobody counts on any more if no tier has it, or nobody can ask for it.
    pub(super) fn let_go(&mut self, pool: &mut PageAllocator, entry: u32) -> Result<()> {
        let page = self.entries.at(entry);
        if page.is_kept() {
            return Ok(());
        }
        if page.is_lost() {
            self.forget(entry);
        } else if page.is_private {
            self.discard(pool, entry)?;
        }
        Ok(())
    }

    /// Pins held pages for the moment in which their sequence comes back.
    pub(crate) fn lease_held(
        &mut self,
        held: &[u32],
        tenant: TenantId,
        owner: OwnerId,
    ) -> Result<(LeaseKey, Vec<Held>)> {
        self.check_owner(owner)?;
        for (num_pinned, &entry) in held.iter().enumerate() {
            if self.entries.at(entry).num_pins == u32::MAX {
                held[..num_pinned]
                    .iter()
                    .for_each(|&entry| self.entries.at_mut(entry).num_pins -= 1);
                let (found, needed) = (u32::MAX.into(), u64::from(u32::MAX) - 1);
                return Err(Error::WrongState { what: "leases of a page", found, needed });
            }
            self.entries.at_mut(entry).num_pins += 1;
        }
        let found = held.iter().map(|&entry| self.entries.at(entry).held()).collect();
        let lease = LeaseRecord { owner, tenant, entries: held.into(), deadline_ms: u64::MAX };
        Ok((self.add_lease(lease), found))
    }

    /// Whether a page is gone from the directory once its one holder and its one lease are.
    pub(crate) fn is_sole(&self, pool: &PageAllocator, entry: u32) -> bool {
        let page = self.entries.at(entry);
        let is_alone = page.is_private && page.num_holds == 1 && page.num_pins == 1;
        let Place::Resident(host) = page.place else { return false }; // one in motion stays a while
        is_alone && pool.num_refs(host) == Ok(1)
    }

    fn hold_page(
        &mut self,
        pool: &mut PageAllocator,
        parent: PageIdentity,
        page: &RestingPage,
    ) -> Result<u32> {
        let known = self.at_host(page.host);
        let entry = known.map_or_else(|| self.keep_private(pool, parent, page), Ok)?;
        self.entries.at_mut(entry).num_holds += 1;
        Ok(entry)
    }

    fn keep_private(
        &mut self,
        pool: &mut PageAllocator,
        parent: PageIdentity,
        page: &RestingPage,
    ) -> Result<u32> {
        let RestingPage { identity, host, num_tokens } = *page;
        let header = PageHeader { identity, parent, num_tokens };
        let entry = self.keep(pool, &header, host)?;
        self.entries.at_mut(entry).is_private = true;
        Ok(entry)
    }

    /// Forgets a page that nobody can ask for; one in motion goes when it has arrived.
    fn discard(&mut self, pool: &mut PageAllocator, entry: u32) -> Result<()> {
        let page = self.entries.at_mut(entry);
        match page.place {
            Place::Demoting(_) | Place::Promoting(_) => Ok(()),
            Place::Resident(_) => {
                self.unorder_in_host(entry)?;
                self.drop_copies(entry);
                self.leave_host(pool, entry)
            }
            Place::Lower => {
                self.lower_order.removed(entry)?;
                self.forget(entry);
                Ok(())
            }
        }
    }

    /// Lets go of what lower tiers have of a page, which is to be forgotten.
    pub(super) fn drop_copies(&mut self, entry: u32) {
        let page = self.entries.at_mut(entry);
        let lower = std::mem::replace(&mut page.lower, LowerTiers::NONE);
        let identity = page.identity;
        self.note_orphan(identity, lower);
    }
}
