//! One tier below the host pool as the hierarchy uses it: guarded, counted, its state known.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::error::{Error, Result};
use crate::prefix::LowerTier;
use crate::tier::{
    BreakerLimits, BreakerState, Deadline, GuardLimits, GuardedTier, PageHeader, PageTier,
    SparedTier, Stored, TierUsage,
};

/// A tier and where it keeps its pages.
#[derive(Clone)]
pub struct LowerStore {
    /// Which tier it is to the directory.
    pub tier: LowerTier,
    /// Its pages. One that cannot keep deadlines gets threads that wait for it.
    pub store: Arc<dyn PageTier>,
}

/// Whether a tier can be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Condition {
    /// It takes pages and gives them out.
    Serving,
    /// It gives pages out; the last one that it was to take had no room.
    Full,
    /// It failed too often, or knows that it does not answer, and is tried again now and then.
    Degraded,
}

/// What has been done with a tier since the start, in pages unless it says otherwise.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TierCounts {
    /// Copied to it.
    pub demoted: u64,
    /// Copied from it to the host pool.
    pub promoted: u64,
    /// Not there, or unsound, though the directory knew of them.
    pub missed: u64,
    /// Not copied, because a call failed or came late.
    pub failed: u64,
    /// Not taken, because it was full.
    pub refused: u64,
    /// Given up to make room: taken out of it, at once or as soon as it lets go of them.
    pub left: u64,
    /// Bytes copied to it.
    pub bytes_down: u64,
    /// Bytes copied from it.
    pub bytes_up: u64,
}

/// A tier at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TierState {
    /// Which tier.
    pub tier: LowerTier,
    /// Whether it can be used.
    pub condition: Condition,
    /// What it holds, as it says itself.
    pub usage: TierUsage,
    /// What the hierarchy has done with it.
    pub counts: TierCounts,
}

/// The kinds of [`TierCounts`].
#[derive(Debug, Clone, Copy)]
pub(super) enum Count {
    Demoted,
    Promoted,
    Missed,
    Failed,
    Refused,
    Left,
    BytesDown,
    BytesUp,
}

const NUM_COUNTS: usize = 8;

pub(super) struct Lower {
    pub(super) tier: LowerTier,
    guard: Guard,
    counts: [AtomicU64; NUM_COUNTS],
    is_full: AtomicBool,
}

enum Guard {
    Spared(SparedTier<dyn PageTier>),
    Guarded(GuardedTier<dyn PageTier>),
}

impl Lower {
    pub(super) fn new(below: LowerStore, breaker: BreakerLimits, threads: usize) -> Result<Self> {
        let LowerStore { tier, store } = below;
        let guard = if store.keeps_deadlines() {
            Guard::Spared(SparedTier::new(name(tier), store, breaker)?)
        } else {
            let limits = GuardLimits { num_threads: threads, breaker, ..GuardLimits::default() };
            Guard::Guarded(GuardedTier::new(name(tier), store, limits)?)
        };
        let counts = [const { AtomicU64::new(0) }; NUM_COUNTS];
        Ok(Self { tier, guard, counts, is_full: AtomicBool::new(false) })
    }

    /// Puts pages; remembers whether the tier had room for them.
    pub(super) fn put_many(
        &self,
        pages: &[(PageHeader, &[u8])],
        deadline: Deadline,
    ) -> Vec<Result<Stored>> {
        let outcomes = match self.store().put_many(pages, deadline) {
            Ok(outcomes) => outcomes,
            Err(error) => pages.iter().map(|_| Err(error.clone())).collect(),
        };
        if let Some(last) = outcomes.last() {
            self.is_full.store(last.as_ref().is_err_and(is_full), Ordering::Relaxed);
        }
        outcomes
    }

    /// The store behind its guard.
    pub(super) fn store(&self) -> &dyn PageTier {
        match &self.guard {
            Guard::Spared(tier) => tier,
            Guard::Guarded(tier) => tier,
        }
    }

    pub(super) fn count(&self, count: Count, number: usize) {
        self.counts[count as usize].fetch_add(number as u64, Ordering::Relaxed);
    }

    pub(super) fn state(&self) -> Result<TierState> {
        Ok(TierState {
            tier: self.tier,
            condition: self.condition()?,
            usage: self.store().usage(),
            counts: self.counts(),
        })
    }

    pub(super) fn condition(&self) -> Result<Condition> {
        let breaker = match &self.guard {
            Guard::Spared(tier) => tier.state()?,
            Guard::Guarded(tier) => tier.state()?,
        };
        Ok(match breaker {
            _ if !self.store().is_up() => Condition::Degraded,
            BreakerState::Closed if self.is_full.load(Ordering::Relaxed) => Condition::Full,
            BreakerState::Closed => Condition::Serving,
            BreakerState::Open | BreakerState::HalfOpen => Condition::Degraded,
        })
    }

    fn counts(&self) -> TierCounts {
        let count = |count: Count| self.counts[count as usize].load(Ordering::Relaxed);
        TierCounts {
            demoted: count(Count::Demoted),
            promoted: count(Count::Promoted),
            missed: count(Count::Missed),
            failed: count(Count::Failed),
            refused: count(Count::Refused),
            left: count(Count::Left),
            bytes_down: count(Count::BytesDown),
            bytes_up: count(Count::BytesUp),
        }
    }
}

/// Whether the error says that there is no room, and nothing is wrong.
pub(super) const fn is_full(error: &Error) -> bool {
    matches!(error, Error::TierFull { .. })
}

const fn name(tier: LowerTier) -> &'static str {
    match tier {
        LowerTier::File => "file tier",
        LowerTier::Remote => "remote tier",
    }
}
