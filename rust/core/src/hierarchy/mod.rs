//! What moves pages between the host pool and the tiers below it.
//!
//! A page is moved whole, by the directory's guards: it goes down when the pool runs short, and
//! comes up when a lease wants it. Whatever fails on the way leaves the page where it was. Tiers
//! are called with no lock held and with a deadline, so no reader of the host pool waits for one.
//!
//! # Invariants
//! 1. A host page is given up only once a lower tier has its bytes.
//! 2. A page that arrives is read by nobody before all its bytes are there, as they were put.
//! 3. No call waits beyond its deadline, but for the calls of tiers that end by it.

mod balancer;
mod bell;
mod crew;
mod gate;
mod load;
mod lower;
mod measure;
mod measurer;
mod motion;
mod probes;
mod recovery;
mod returning;
mod room;
mod sequences;
mod spill;
mod staging;
#[cfg(all(test, not(feature = "shuttle")))]
mod staging_tests;
mod stale;

use std::sync::Arc as StdArc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use crate::error::{Error, Result, check_range};
use crate::layout::HostLayout;
use crate::prefix::{LowerTier, PrefixDirectory};
use crate::region::HostRegion;
use crate::sync::Arc;
use crate::tier::{BreakerLimits, Deadline};

use bell::Sleeper;
use crew::Crew;
use gate::Gate;
use lower::Lower;
use motion::Motion;
use probes::Probes;
use staging::Staging;
use stale::Tidying;

pub use gate::{LoadTable, TierSpeed};
pub use load::Loaded;
pub use lower::{Condition, LowerStore, TierCounts, TierState};
pub use recovery::{Drained, Recovered};
pub use returning::Returning;
pub use room::Balanced;
pub use sequences::{Loading, OpenedPrompt};

/// How much a hierarchy may do at a time, and when it begins by itself.
#[derive(Debug, Clone, Copy)]
pub struct HierarchyLimits {
    /// Host pages that balancing keeps free.
    pub low_watermark_pages: usize,
    /// Pages that one call hands to a tier, 1 to 1024.
    pub batch_pages: usize,
    /// Threads that help to move pages, up to 64; with none, callers do it alone.
    pub num_threads: usize,
    /// Bytes of pages that may be on their way at a time; at least one batch.
    pub staging_bytes: usize,
    /// What one call of a tier may take at most.
    pub call_limit: Duration,
    /// When a tier that fails is spared.
    pub breaker: BreakerLimits,
}

impl Default for HierarchyLimits {
    fn default() -> Self {
        Self {
            low_watermark_pages: 0,
            batch_pages: 8,
            num_threads: 4,
            staging_bytes: 256 << 20,
            call_limit: Duration::from_secs(1),
            breaker: BreakerLimits::default(),
        }
    }
}

/// The host pool's pages, the tiers below it in the order in which they are asked, and the threads
/// between them. Dropping it ends its threads; pages stay where they are.
pub struct Hierarchy {
    mover: StdArc<Mover>,
    balancer: Sleeper,
    measurer: Sleeper,
}

/// What the calls and the threads of a hierarchy share.
struct Mover {
    region: Arc<HostRegion>,
    layout: HostLayout,
    directory: PrefixDirectory,
    below: Vec<Lower>,
    limits: HierarchyLimits,
    crew: Crew,
    motion: Motion,
    staging: Staging,
    gate: Gate,
    probes: Probes,
    num_kept: AtomicU64, // demotions that no tier has taken
    tidying: Tidying,
    is_closed: AtomicBool,
}

impl Hierarchy {
    /// A hierarchy over `below`, the nearest tier first; `directory` is that of the region's pages.
    pub fn new(
        region: Arc<HostRegion>,
        layout: HostLayout,
        directory: PrefixDirectory,
        below: Vec<LowerStore>,
        limits: HierarchyLimits,
    ) -> Result<Self> {
        check_range("bytes of the layout", layout.num_bytes(), 1, region.num_bytes())?;
        check_range("batch_pages", limits.batch_pages, 1, 1024)?;
        check_range("num_threads", limits.num_threads, 0, 64)?;
        let batch_bytes = limits.batch_pages.saturating_mul(layout.page_bytes());
        check_range("staging_bytes", limits.staging_bytes, batch_bytes, usize::MAX)?;
        let num_tiers = below.len();
        let guard_threads = limits.num_threads.max(1);
        let guarded = |store| Lower::new(store, limits.breaker, guard_threads);
        let mover = Mover {
            region,
            layout,
            directory,
            below: below.into_iter().map(guarded).collect::<Result<_>>()?,
            limits,
            crew: Crew::start(limits.num_threads)?,
            motion: Motion::default(),
            staging: Staging::new(limits.staging_bytes),
            gate: Gate::default(),
            probes: Probes::new(num_tiers),
            num_kept: AtomicU64::new(0),
            tidying: Tidying::default(),
            is_closed: AtomicBool::new(false),
        };
        let (balancer, measurer) = (Sleeper::default(), Sleeper::default());
        Ok(Self { mover: StdArc::new(mover), balancer, measurer })
    }

    /// The directory whose pages are moved.
    pub fn directory(&self) -> &PrefixDirectory {
        &self.mover.directory
    }

    /// Every tier below the host pool at this moment, the nearest first.
    pub fn state(&self) -> Result<Vec<TierState>> {
        self.mover.below.iter().map(Lower::state).collect()
    }

    /// Pages that were to leave the host pool and have stayed, because no tier took them.
    pub fn num_kept(&self) -> u64 {
        self.mover.num_kept.load(Ordering::Relaxed)
    }

    /// Ends the threads, each after the call that it makes; every later movement is refused.
    pub fn close(&self) {
        self.mover.is_closed.store(true, Ordering::Relaxed);
        self.measurer.dismiss();
        self.balancer.close();
        self.measurer.close();
        self.mover.crew.close();
    }
}

impl Drop for Hierarchy {
    fn drop(&mut self) {
        self.close();
    }
}

impl Mover {
    fn lower(&self, tier: LowerTier) -> Option<&Lower> {
        self.below.iter().find(|lower| lower.tier == tier)
    }

    fn check_open(&self) -> Result<()> {
        if self.is_closed.load(Ordering::Relaxed) {
            return Err(Error::WrongState { what: "open hierarchies", found: 0, needed: 1 });
        }
        Ok(())
    }

    /// The deadline of one call to a tier, within that of the whole.
    fn call_by(&self, deadline: Deadline) -> Deadline {
        deadline.min(Deadline::after(self.limits.call_limit))
    }
}
