//! What must hold of a table between any two calls.

use std::collections::{HashMap, HashSet};

use super::entry::{Entry, Lineage, Place};
use super::slab::SlabKey;
use super::table::PrefixTable;
use super::tenants::TenantId;
use crate::error::{Result, check_equal, check_range};
use crate::eviction::EvictionPolicy;
use crate::page::{PageAllocator, PageHandle};

impl PrefixTable {
    /// Fails with the first invariant that does not hold.
    pub(crate) fn check_integrity(&self, pool: &PageAllocator) -> Result<()> {
        pool.check_integrity()?;
        check_equal("identities", self.by_identity.len(), self.entries.len())?;
        self.entries.iter().try_for_each(|(key, page)| self.check_entry(key, page, pool))?;
        self.check_pins()?;
        self.check_children()?;
        self.check_own_order()?;
        self.check_host_pages(pool)?;
        self.check_leases()
    }

    /// The host pages that the directory has a reference to.
    pub(crate) fn host_pages(&self) -> impl Iterator<Item = PageHandle> {
        self.entries.iter().filter_map(|(_, page)| page.host_page())
    }

    fn check_entry(&self, key: SlabKey, page: &Entry, pool: &PageAllocator) -> Result<()> {
        check_equal(
            "entry of an identity",
            self.find(&page.identity).unwrap_or(u32::MAX),
            key.entry,
        )?;
        let is_resident = matches!(page.place, Place::Resident(_));
        check_equal("resident page in order", self.host_order.holds(key.entry), is_resident)?;
        let is_below = page.place == Place::Lower && !page.is_lost();
        check_equal("lower page in order", self.lower_order.holds(key.entry), is_below)?;
        let is_kept_by_none = page.is_lost() && page.num_pins == 0;
        check_equal("lost pages that no lease keeps", is_kept_by_none, false)?;
        page.host_page().map_or(Ok(()), |host| pool.num_refs(host).map(drop))
    }

    /// Pins of each page are those of the leases.
    fn check_pins(&self) -> Result<()> {
        let mut pins = HashMap::new();
        let leased = self.leases.iter().flat_map(|(_, lease)| &lease.entries);
        leased.for_each(|&entry| *pins.entry(entry).or_insert(0) += 1);
        let of_leases = |key: SlabKey| pins.get(&key.entry).copied().unwrap_or(0);
        let mut pages = self.entries.iter();
        pages.try_for_each(|(key, page)| check_equal("pins", page.num_pins, of_leases(key)))
    }

    fn check_children(&self) -> Result<()> {
        let is_linked = |link: &Lineage| self.entries.get(link.key()).is_ok();
        let links = self.entries.iter().filter_map(|(_, page)| page.parent_key);
        let num_linked = links.filter(is_linked).count();
        let counted = self.entries.iter().map(|(_, page)| page.num_children as usize).sum();
        check_equal("children", num_linked, counted)
    }

    /// Each tenant's list has its resident pages.
    fn check_own_order(&self) -> Result<()> {
        let tenants =
            (0..self.tenants.iter().len()).filter_map(|number| u16::try_from(number).ok());
        let listed: usize =
            tenants.map(|number| self.own_order.iter(TenantId::from_number(number)).count()).sum();
        check_equal("resident pages of tenants", listed, self.host_order.num_pages())
    }

    /// No host page has two identities, and tenants are charged for them.
    fn check_host_pages(&self, pool: &PageAllocator) -> Result<()> {
        let distinct: HashSet<_> = self.host_pages().collect();
        check_equal("host pages with one identity", distinct.len(), self.host_pages().count())?;
        let charged: u64 = self.tenants.iter().map(|share| share.used_pages).sum();
        let used = (pool.num_pages() - pool.num_available()) as u64; // promised ones included
        check_range("host pages charged to tenants", charged, distinct.len() as u64, used)
    }

    fn check_leases(&self) -> Result<()> {
        let is_owned = |owner| self.owners.contains(owner);
        let orphans = self.leases.iter().filter(|(_, lease)| !is_owned(&lease.owner)).count();
        check_equal("leases without an owner", orphans, 0)
    }
}
