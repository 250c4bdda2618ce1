//! A small region with a directory of its pages, and hierarchies over tiers that a test chooses.
#![allow(dead_code, reason = "each test uses a part of it")]

use std::sync::Arc as StdArc;
use std::time::Duration;

use hisparse_core::hierarchy::{Hierarchy, HierarchyLimits, LowerStore, TierState};
use hisparse_core::prefix::{
    Held, HostShelf, LowerTier, OwnerId, PrefixDirectory, PrefixLease, Shelf, TenantId,
};
use hisparse_core::sync::{Arc, Mutex};
use hisparse_core::tier::{Deadline, PageHeader, PageIdentity, PageTier};
use hisparse_core::{HostLayout, HostRegion, LayoutShape, PageAllocator, RegionOptions, Result};

use crate::prefix_pages::{FOREVER, LEAF_FIRST, OWNERS, headers, identities, table};

pub(crate) const LIMITS: HierarchyLimits = HierarchyLimits {
    low_watermark_pages: 0,
    batch_pages: 4,
    num_threads: 2,
    staging_bytes: 1 << 20,
    call_limit: Duration::from_secs(20),
    breaker: hisparse_core::tier::BreakerLimits {
        failures: 5,
        window: Duration::from_secs(10),
        probe_every: Duration::from_millis(20),
    },
};

/// A pool of pages of odd sizes, its directory, one tenant and one owner.
pub(crate) struct Rig {
    pub(crate) region: Arc<HostRegion>,
    pub(crate) layout: HostLayout,
    pub(crate) directory: PrefixDirectory,
    pub(crate) tenant: TenantId,
    pub(crate) owner: OwnerId,
}

impl Rig {
    pub(crate) fn new(num_pages: u32) -> Self {
        let pool = PageAllocator::new(num_pages).expect("a legal size");
        Self::over(num_pages, HostShelf::new(pool, table(4096, LEAF_FIRST)))
    }

    pub(crate) fn over(num_pages: u32, shelf: impl Shelf + 'static) -> Self {
        let (kv_row_bytes, index_row_bytes) = (7, 3);
        let (num_layers, num_anchors) = (3, 2);
        let shape =
            LayoutShape { num_layers, num_anchors, kv_row_bytes, index_row_bytes, num_pages };
        let layout = HostLayout::new(shape).expect("a legal shape");
        let region = HostRegion::create(layout.num_bytes(), &RegionOptions::default());
        let directory = PrefixDirectory::over(Arc::new(Mutex::new(shelf)), OWNERS);
        let directory = directory.expect("legal limits");
        let tenant = directory.add_tenant(u64::from(num_pages)).expect("a new tenant");
        let owner = directory.register(0).expect("numbers are left");
        Self { region: Arc::new(region.expect("small")), layout, directory, tenant, owner }
    }

    pub(crate) fn hierarchy(&self, below: Vec<LowerStore>) -> Hierarchy {
        self.limited(below, LIMITS)
    }

    pub(crate) fn limited(&self, below: Vec<LowerStore>, limits: HierarchyLimits) -> Hierarchy {
        let (region, directory) = (Arc::clone(&self.region), self.directory.clone());
        Hierarchy::new(region, self.layout, directory, below, limits).expect("legal limits")
    }

    /// The pages of a sequence that has come, written its rows, and gone.
    pub(crate) fn publish(&self, seed: u32, num_pages: usize) -> Vec<PageHeader> {
        let pages = headers("a", seed, num_pages);
        self.try_publish(&pages).expect("the pool has room");
        pages
    }

    pub(crate) fn try_publish(&self, pages: &[PageHeader]) -> Result<()> {
        let mut taken = self.directory.take(self.tenant, pages.len())?;
        let loan = self.region.lend_pages(&self.layout)?;
        for (page, number) in pages.iter().zip(taken.numbers()) {
            loan.write(number, &self.bytes_of(&page.identity))?;
        }
        taken.publish(0, pages).map(drop)
    }

    pub(crate) fn lease(&self, pages: &[PageHeader]) -> PrefixLease {
        let chain = identities(pages);
        self.directory
            .match_prefix(&chain, self.tenant, self.owner, FOREVER)
            .expect("the owner lives")
    }

    /// Bytes that follow from the identity; no part of a page is as long as a multiple of 31.
    pub(crate) fn bytes_of(&self, identity: &PageIdentity) -> Vec<u8> {
        let mut bytes = identity.as_bytes()[..31].repeat(self.layout.page_bytes() / 31 + 1);
        bytes.truncate(self.layout.page_bytes());
        bytes
    }

    /// Asserts the bytes of every page that the lease finds in the host pool; how many they are.
    pub(crate) fn check_bytes(&self, lease: &PrefixLease, pages: &[PageHeader]) -> usize {
        let loan = self.region.lend_pages(&self.layout).expect("the region is open");
        let mut found = vec![0; self.layout.page_bytes()];
        let mut num_found = 0;
        for (held, page) in lease.pages(0).expect("the lease lives").iter().zip(pages) {
            if let Held::Host(number) = held {
                loan.read(*number, &mut found).expect("a page of the region");
                assert!(found == self.bytes_of(&page.identity), "wrong bytes in page {number}");
                num_found += 1;
            }
        }
        num_found
    }

    /// Nothing moves, no page is pinned, and the whole pool is to be had.
    pub(crate) fn check_rest(&self) {
        self.directory.check_integrity().expect("sound");
        let stats = self.directory.stats().expect("nobody has panicked");
        let moving = (stats.leases, stats.pins, stats.demoting, stats.promoting);
        assert_eq!(moving, (0, 0, 0, 0));
        let total = self.directory.host_room().expect("nobody has panicked").total;
        assert_eq!(self.directory.take(self.tenant, total).expect("all are idle").len(), total);
    }
}

pub(crate) fn file(store: StdArc<dyn PageTier>) -> LowerStore {
    LowerStore { tier: LowerTier::File, store }
}

pub(crate) fn remote(store: StdArc<dyn PageTier>) -> LowerStore {
    LowerStore { tier: LowerTier::Remote, store }
}

pub(crate) fn state(hierarchy: &Hierarchy, tier: LowerTier) -> TierState {
    let states = hierarchy.state().expect("nobody has panicked");
    *states.iter().find(|state| state.tier == tier).expect("the tier is there")
}

/// No test waits for as long.
pub(crate) fn far() -> Deadline {
    Deadline::after(Duration::from_secs(600))
}

pub(crate) fn within(millis: u64) -> Deadline {
    Deadline::after(Duration::from_millis(millis))
}
