//! How much of the host pool each tenant has, and may have.
//!
//! A page counts for the tenant that it was promised to, from the promise to its last release.

use crate::error::{Error, Result, check_range};
use crate::layout::check_index;

/// Most tenants of one pool.
const MAX_TENANTS: usize = 1 << 16;

/// Names a tenant of one pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TenantId(u16);

impl TenantId {
    /// Whose pages those are that nobody else asked for; without a quota.
    pub const DEFAULT: Self = Self(0);

    /// A tenant from its number.
    pub const fn from_number(number: u16) -> Self {
        Self(number)
    }

    /// Its number, in order of addition.
    pub const fn number(self) -> u16 {
        self.0
    }
}

/// What one tenant has in the host pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TenantUsage {
    /// Host pages that it may have.
    pub quota_pages: u64,
    /// Host pages that it has: promised, in use by its sequences, or kept for them.
    pub used_pages: u64,
}

/// Every tenant's quota and use.
#[derive(Debug)]
pub(crate) struct Tenants {
    shares: Vec<TenantUsage>,
}

impl Tenants {
    /// The default tenant alone.
    pub(crate) fn new() -> Self {
        Self { shares: vec![TenantUsage { quota_pages: u64::MAX, used_pages: 0 }] }
    }

    pub(crate) fn add(&mut self, quota_pages: u64) -> Result<TenantId> {
        check_range("tenants", self.shares.len() + 1, 1, MAX_TENANTS)?;
        let id = u16::try_from(self.shares.len()).expect("fewer than 2^16");
        self.shares.push(TenantUsage { quota_pages, used_pages: 0 });
        Ok(TenantId(id))
    }

    /// A quota below what is in use stops new pages; it takes none away.
    pub(crate) fn set_quota(&mut self, tenant: TenantId, quota_pages: u64) -> Result<()> {
        self.usage(tenant)?;
        self.shares[usize::from(tenant.0)].quota_pages = quota_pages;
        Ok(())
    }

    pub(crate) fn usage(&self, tenant: TenantId) -> Result<TenantUsage> {
        check_index("tenant", usize::from(tenant.0), self.shares.len())?;
        Ok(self.shares[usize::from(tenant.0)])
    }

    /// Pages that have to go before `count` more fit; 0 if they do. Where a quota was made smaller
    /// than what is in use, that is more than `count`.
    pub(crate) fn missing(&self, tenant: TenantId, count: usize) -> Result<usize> {
        let share = self.usage(tenant)?;
        if count == 0 {
            return Ok(0);
        }
        let over_quota = (share.used_pages + count as u64).saturating_sub(share.quota_pages);
        Ok(usize::try_from(over_quota).unwrap_or(usize::MAX))
    }

    /// Counts `count` more pages as the tenant's; refused beyond its quota.
    pub(crate) fn charge(&mut self, tenant: TenantId, count: usize) -> Result<()> {
        if self.missing(tenant, count)? > 0 {
            return Err(self.full(tenant, count));
        }
        self.shares[usize::from(tenant.0)].used_pages += count as u64;
        Ok(())
    }

    /// Takes back a credit, which may have been of pages beyond the quota.
    pub(crate) fn charge_again(&mut self, tenant: TenantId, count: usize) {
        self.shares[usize::from(tenant.0)].used_pages += count as u64;
    }

    /// Takes back a charge.
    pub(crate) fn credit(&mut self, tenant: TenantId, count: usize) {
        self.shares[usize::from(tenant.0)].used_pages -= count as u64;
    }

    /// Says what `count` pages need, and what the tenant's share has left.
    pub(crate) fn full(&self, tenant: TenantId, count: usize) -> Error {
        let share = match self.usage(tenant) {
            Ok(share) => share,
            Err(error) => return error,
        };
        Error::ShareFull {
            tenant: tenant.0,
            need: count as u64,
            free: share.quota_pages.saturating_sub(share.used_pages),
            quota: share.quota_pages,
        }
    }

    pub(crate) fn iter(&self) -> impl ExactSizeIterator<Item = &TenantUsage> {
        self.shares.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_share_says_what_was_needed_and_what_was_free() {
        let mut tenants = Tenants::new();
        let tenant = tenants.add(3).unwrap();
        tenants.charge(tenant, 2).unwrap();
        let error = tenants.charge(tenant, 2).unwrap_err();
        assert_eq!(error.to_string(), "share of tenant 1 full: need 2 pages, 1 free of 3");
        tenants.credit(tenant, 2);
        assert_eq!(tenants.charge(tenant, 3), Ok(()));
        tenants.set_quota(tenant, 1).unwrap();
        assert_eq!((tenants.missing(tenant, 1), tenants.missing(tenant, 0)), (Ok(3), Ok(0)));
        assert!(tenants.charge(TenantId(2), 1).is_err());
    }
}
