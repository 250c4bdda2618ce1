//! What must hold of a table between any two calls.

use std::collections::{HashMap, HashSet};

use super::entry::{Entry, Lineage, Place};
use super::slab::SlabKey;
use super::table::PrefixTable;
use crate::error::{Result, check_equal};
use crate::eviction::EvictionPolicy;
use crate::page::{PageAllocator, PageHandle};
use crate::tenants::TenantId;

impl PrefixTable {
    /// Fails with the first invariant that does not hold.
    pub(crate) fn check_integrity(&self, pool: &PageAllocator) -> Result<()> {
        pool.check_integrity()?;
        check_equal("identities", self.by_identity.len(), self.entries.len())?;
        self.entries.iter().try_for_each(|(key, page)| self.check_entry(key, page, pool))?;
        self.check_pins()?;
        self.check_children()?;
        self.check_own_order(pool)?;
        self.check_host_pages()?;
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
        let is_in_host = page.host_page().is_some();
        check_equal(
            "page of the host pool in order",
            self.host_order.holds(key.entry),
            is_in_host,
        )?;
        let is_nobodys = is_in_host && page.tenant.is_none();
        check_equal("pages of the host pool without a tenant", is_nobodys, false)?;
        let is_below = page.place == Place::Lower && !page.is_lost();
        check_equal("lower page in order", self.lower_order.holds(key.entry), is_below)?;
        let is_kept_by_none = page.is_lost() && !page.is_kept();
        check_equal("lost pages that nobody keeps", is_kept_by_none, false)?;
        let Some(host) = page.host_page() else { return Ok(()) };
        check_equal("entry of a host page", self.at_host(host).unwrap_or(u32::MAX), key.entry)?;
        let tenant = page.tenant.map_or(u16::MAX, TenantId::number);
        check_equal("tenant of a host page", pool.tenant_of(host)?.number(), tenant)
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

    /// Each tenant's list has its pages of the host pool.
    fn check_own_order(&self, pool: &PageAllocator) -> Result<()> {
        let listed: usize = pool.tenants().map(|tenant| self.own_order.iter(tenant).count()).sum();
        check_equal("host pages of tenants", listed, self.host_order.num_pages())
    }

    /// No host page has two identities.
    fn check_host_pages(&self) -> Result<()> {
        let distinct: HashSet<_> = self.host_pages().collect();
        check_equal("host pages with one identity", distinct.len(), self.host_pages().count())
    }

    fn check_leases(&self) -> Result<()> {
        let is_owned = |owner| self.owners.contains(owner);
        let orphans = self.leases.iter().filter(|(_, lease)| !is_owned(&lease.owner)).count();
        check_equal("leases without an owner", orphans, 0)
    }
}
