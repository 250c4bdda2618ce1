//! A manager of few host pages over small files and a remote store, which may fail.

use std::sync::Arc as StdArc;
use std::time::Duration;

use hisparse_core::hierarchy::{Hierarchy, HierarchyLimits, LowerStore};
use hisparse_core::prefix::LowerTier;
use hisparse_core::sync::Arc;
use hisparse_core::tier::file::{
    FailAction, Failpoint, Failpoints, FileTier, FileTierOptions, Occasion,
};
use hisparse_core::tier::{
    BreakerLimits, Deadline, FaultPlan, FaultTier, MemoryTier, VerifiedTier,
};
use hisparse_core::{
    DeviceCapacity, HostLayout, HostRegion, LayoutShape, Manager, RegionOptions, SharingOptions,
};

use crate::file_pages::Scratch;
use crate::support::{BLOCK_TOKENS, Host, SHAPE};

pub(crate) const HOST_PAGES: u32 = 40;
const MANY: DeviceCapacity = DeviceCapacity {
    slots: 400,
    window_slots: 200,
    table_tokens: 50_000,
    table_blocks: 800,
    pooled_keys: 64 * 40,
    sequences: 40,
};

/// Whether tiers may lose or refuse what they were given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tiers {
    Sound,
    Failing,
}

pub(crate) struct Site {
    pub(crate) host: Host,
    pub(crate) hierarchy: Hierarchy,
}

pub(crate) fn soon() -> Deadline {
    Deadline::after(Duration::from_secs(60))
}

fn below(tiers: Tiers, scratch: &Scratch, digest: [u8; 32]) -> Vec<LowerStore> {
    let is_failing = tiers == Tiers::Failing;
    let failpoints = Failpoints::default();
    let mut options = FileTierOptions::new(scratch.path(), 3 << 16, digest);
    (options.segment_bytes, options.failpoints) = (1 << 16, failpoints.clone());
    let (files, _) = FileTier::open(options).expect("a new directory");
    if is_failing {
        for point in [Failpoint::BeforeWrite, Failpoint::BeforeRead] {
            let one_in = Occasion::Chance { one_in: 30, seed: 5 };
            failpoints.arm(point, FailAction::Errno(5), one_in);
        }
    }
    let rate = if is_failing { 30_000 } else { 0 };
    let plan = FaultPlan {
        seed: 3,
        vanished: rate,
        hollow: rate,
        corrupt_read: rate,
        error: rate,
        ..FaultPlan::default()
    };
    let far = FaultTier::new(MemoryTier::new(1 << 26), plan).expect("legal rates");
    vec![
        LowerStore { tier: LowerTier::File, store: StdArc::new(files) },
        LowerStore { tier: LowerTier::Remote, store: StdArc::new(VerifiedTier::new(far)) },
    ]
}

impl Site {
    pub(crate) fn new(tiers: Tiers, scratch: &Scratch) -> Self {
        let shape = LayoutShape { num_pages: HOST_PAGES, ..SHAPE };
        let layout = HostLayout::new(shape).expect("a legal shape");
        let region = HostRegion::create(layout.num_bytes(), &RegionOptions::default());
        let region = Arc::new(region.expect("small"));
        let options = SharingOptions { max_pages: 900, model: "m".into(), secret: [5; 32] };
        let manager = Manager::sharing(Arc::clone(&region), layout, MANY, BLOCK_TOKENS, &options);
        let manager = manager.expect("the region is large enough");
        let below = below(tiers, scratch, options.digest(&layout, BLOCK_TOKENS));
        let limits = HierarchyLimits {
            low_watermark_pages: 6,
            num_threads: 2,
            batch_pages: 3,
            call_limit: Duration::from_secs(30),
            breaker: BreakerLimits { failures: 1000, ..BreakerLimits::default() },
            ..HierarchyLimits::default()
        };
        let hierarchy = manager.hierarchy(below, limits).expect("legal limits");
        hierarchy.start_balancing().expect("a thread is to be had");
        Self { host: Host { region, layout, manager }, hierarchy }
    }
}
