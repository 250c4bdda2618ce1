//! Where pages lie that are not in the host pool: one trait, and what every tier must keep to.

mod breaker;
mod changes;
mod fault;
pub mod file;
pub mod frame;
mod guarded;
mod identity;
mod memory;
mod shared;
mod spared;
mod verified;
mod workers;

use std::time::{Duration, Instant};

use crate::error::{Error, Result};

pub use breaker::{Admission, Breaker, BreakerLimits, BreakerState};
pub use changes::{Change, ChangeKind, Changes};
pub use fault::{DrawBy, FaultCounts, FaultPlan, FaultTier, ONE_MILLION};
pub use guarded::{Clock, GuardLimits, GuardedTier};
pub use identity::{IDENTITY_BYTES, IdentityChain, PageIdentity, TenantKey};
pub use memory::MemoryTier;
pub use shared::SharedTier;
pub use spared::SparedTier;
pub use verified::VerifiedTier;

/// A store of whole pages by identity.
///
/// A page is put once: its identity names its bytes, so a second put of the same identity is a hit,
/// not a change. Wrong bytes are never given out: a page that fails its checksum is a miss, and
/// counted. No call lasts much beyond its deadline.
pub trait PageTier: Send + Sync {
    /// Stores a page; whoever gets it later gets these bytes.
    ///
    /// # Errors
    /// [`Error::TierFull`], [`Error::TierDown`], [`Error::DeadlinePassed`] or [`Error::TierIo`];
    /// the page is then not there, or as it was.
    fn put(&self, page: &PageHeader, bytes: &[u8], deadline: Deadline) -> Result<Stored>;

    /// Copies a page to `into`, which is as long as the page; false if the tier has no sound copy.
    ///
    /// # Errors
    /// [`Error::TierDown`], [`Error::DeadlinePassed`] or [`Error::TierIo`]; `into` then holds
    /// anything.
    fn get(&self, identity: &PageIdentity, into: &mut [u8], deadline: Deadline) -> Result<bool>;

    /// Whether `get` would look for the page: a hint, for it may be gone or unsound by then.
    fn holds(&self, identity: &PageIdentity, deadline: Deadline) -> Result<bool>;

    /// How many of these pages, from the first on, [`holds`](Self::holds) is true of; a tier that
    /// gains by fewer hand-overs asks for all at once.
    fn count_held(&self, identities: &[PageIdentity], deadline: Deadline) -> Result<usize> {
        for (count, identity) in identities.iter().enumerate() {
            if !self.holds(identity, deadline)? {
                return Ok(count);
            }
        }
        Ok(identities.len())
    }

    /// Forgets a page; false if the tier had none.
    fn remove(&self, identity: &PageIdentity, deadline: Deadline) -> Result<bool>;

    /// Returns once every page put before the call is as durable as the tier makes pages.
    fn flush(&self, deadline: Deadline) -> Result<()>;

    /// What the tier holds and has done.
    fn usage(&self) -> TierUsage;

    /// Puts several pages; a tier that gains by fewer hand-overs does it at once.
    ///
    /// # Errors
    /// Those of [`put`](Self::put) for what concerns all pages, and none is then there; what
    /// concerns one page only is its own outcome, in the order of the pages.
    fn put_many(
        &self,
        pages: &[(PageHeader, &[u8])],
        deadline: Deadline,
    ) -> Result<Vec<Result<Stored>>> {
        deadline.check("put")?;
        Ok(pages.iter().map(|(page, bytes)| self.put(page, bytes, deadline)).collect())
    }

    /// Every page that the tier has from before it was opened or since, the oldest first; none if
    /// the tier cannot list them.
    fn pages(&self) -> Vec<PageHeader> {
        Vec::new()
    }

    /// Lets go of what the system keeps in memory of the pages put last, for a measurement: the next
    /// `get` reads them from where they last. A hint.
    fn forget_cached(&self) {}

    /// False where the tier knows that its store does not answer at this moment, so that nobody has to
    /// find it out by calls that fail.
    fn is_up(&self) -> bool {
        true
    }

    /// Whether no call lasts beyond its deadline even if what lies below hangs.
    fn keeps_deadlines(&self) -> bool {
        false
    }
}

/// What a page is, beside its bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PageHeader {
    /// Names the bytes: tenant, model, layout, and every token up to the page's last.
    pub identity: PageIdentity,
    /// The identity of the page before it in the sequence; the chain's root for the first.
    pub parent: PageIdentity,
    /// Tokens of the page, 1 to 64; only a full page can be shared.
    pub num_tokens: u32,
}

/// What a put came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stored {
    /// The page is new here.
    New,
    /// The tier had it.
    Already,
}

/// What a tier holds, and what it has done since it was made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TierUsage {
    /// Pages held.
    pub pages: u64,
    /// Bytes that they take, headers included.
    pub used_bytes: u64,
    /// Bytes that the tier may take.
    pub capacity_bytes: u64,
    /// Pages found by `get`.
    pub hits: u64,
    /// Pages that `get` did not find.
    pub misses: u64,
    /// Pages whose bytes failed their checksum, or were torn; each is a miss, too.
    pub corrupt: u64,
    /// Calls that failed with an error.
    pub failures: u64,
}

const CENTURY: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

/// When a call must have ended, by the monotonic clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Deadline(Instant);

impl Deadline {
    /// So long from now; a limit beyond what the clock can count is a century.
    pub fn after(limit: Duration) -> Self {
        let now = Instant::now();
        Self(now.checked_add(limit).unwrap_or_else(|| now + CENTURY))
    }

    /// Time that is left; zero once it has passed.
    pub fn left(self) -> Duration {
        self.0.saturating_duration_since(Instant::now())
    }

    /// Refuses to begin `call` once the deadline has passed.
    pub fn check(self, call: &'static str) -> Result<()> {
        if self.left().is_zero() { Err(Error::DeadlinePassed { call }) } else { Ok(()) }
    }
}
