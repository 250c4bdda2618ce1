//! How much of the host pool each tenant has, and may have.

use crate::error::{Error, Result, check_range};

/// Most tenants of one directory.
const MAX_TENANTS: usize = 1 << 16;

/// Names a tenant of one directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TenantId(u16);

impl TenantId {
    /// The tenant of pages that nobody has asked for yet.
    pub(super) const FIRST: Self = Self(0);

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
    /// Host pages that it has: held by the directory, or taken and not published.
    pub used_pages: u64,
    /// Bytes of one page.
    pub page_bytes: u64,
}

/// Every tenant's quota and use.
#[derive(Debug)]
pub(super) struct Tenants {
    shares: Vec<TenantUsage>,
    page_bytes: u64,
}

impl Tenants {
    pub(super) fn new(page_bytes: u64) -> Self {
        Self { shares: Vec::new(), page_bytes }
    }

    pub(super) fn add(&mut self, quota_pages: u64) -> Result<TenantId> {
        check_range("tenants", self.shares.len() + 1, 1, MAX_TENANTS)?;
        let id = u16::try_from(self.shares.len()).expect("fewer than 2^16");
        self.shares.push(TenantUsage { quota_pages, used_pages: 0, page_bytes: self.page_bytes });
        Ok(TenantId(id))
    }

    /// A quota below what is in use stops new pages; it takes none away.
    pub(super) fn set_quota(&mut self, tenant: TenantId, quota_pages: u64) -> Result<()> {
        self.usage(tenant)?;
        self.shares[usize::from(tenant.0)].quota_pages = quota_pages;
        Ok(())
    }

    pub(super) fn usage(&self, tenant: TenantId) -> Result<TenantUsage> {
        let share = self.shares.get(usize::from(tenant.0));
        let max = i128::try_from(self.shares.len()).unwrap_or(i128::MAX) - 1;
        let found = i128::from(tenant.0);
        share.copied().ok_or(Error::OutOfRange { what: "tenant", found, min: 0, max })
    }

    /// Pages that are missing for `count` more; 0 if they fit.
    pub(super) fn missing(&self, tenant: TenantId, count: usize) -> Result<usize> {
        let share = self.usage(tenant)?;
        let free = share.quota_pages.saturating_sub(share.used_pages);
        Ok(count.saturating_sub(usize::try_from(free).unwrap_or(usize::MAX)))
    }

    /// Counts `count` more pages as the tenant's; refused beyond its quota.
    pub(super) fn charge(&mut self, tenant: TenantId, count: usize) -> Result<()> {
        if self.missing(tenant, count)? > 0 {
            return Err(self.full(tenant, count));
        }
        self.shares[usize::from(tenant.0)].used_pages += count as u64;
        Ok(())
    }

    /// Takes back a charge.
    pub(super) fn credit(&mut self, tenant: TenantId, count: usize) {
        self.shares[usize::from(tenant.0)].used_pages -= count as u64;
    }

    /// Says what `count` pages need, and what the tenant's share has left.
    pub(super) fn full(&self, tenant: TenantId, count: usize) -> Error {
        let share = match self.usage(tenant) {
            Ok(share) => share,
            Err(error) => return error,
        };
        let bytes = |pages: u64| pages.saturating_mul(share.page_bytes);
        Error::TierFull {
            tier: "share of tenant",
            need: bytes(count as u64),
            free: bytes(share.quota_pages.saturating_sub(share.used_pages)),
            capacity: bytes(share.quota_pages),
        }
    }

    pub(super) fn iter(&self) -> impl ExactSizeIterator<Item = &TenantUsage> {
        self.shares.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_share_says_what_was_needed_and_what_was_free() {
        let mut tenants = Tenants::new(10);
        let tenant = tenants.add(3).unwrap();
        tenants.charge(tenant, 2).unwrap();
        let error = tenants.charge(tenant, 2).unwrap_err();
        assert_eq!(error.to_string(), "share of tenant full: need 20 bytes, 10 free of 30");
        tenants.credit(tenant, 2);
        assert_eq!(tenants.charge(tenant, 3), Ok(()));
        tenants.set_quota(tenant, 1).unwrap();
        assert_eq!(tenants.missing(tenant, 1), Ok(1));
        assert!(tenants.charge(TenantId(1), 1).is_err());
    }
}
