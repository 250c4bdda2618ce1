//! A tier that fails on purpose: by rate and seed, the same calls in every run.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::{Deadline, PageHeader, PageIdentity, PageTier, Stored, TierUsage};
use crate::error::{Error, Result, check_range};
use crate::split_mix::mix;

/// Rates are parts of this.
pub const ONE_MILLION: u32 = 1_000_000;

const TIER: &str = "faulty tier";

/// What goes wrong, and how often; all rates are calls out of a million.
#[derive(Debug, Clone, Copy, Default)]
pub struct FaultPlan {
    /// Seed of every draw.
    pub seed: u64,
    /// What a draw depends on.
    pub draw_by: DrawBy,
    /// `get` finds nothing where `holds` says that the page is there.
    pub vanished: u32,
    /// `get` says that it found the page, and writes nothing.
    pub hollow: u32,
    /// Every call takes `delay` longer.
    pub slow: u32,
    /// How long a slow call takes longer; like a device, it knows nothing of deadlines.
    pub delay: Duration,
    /// `get` writes the first half of the page, and fails.
    pub short: u32,
    /// `get` gives out the page with one bit flipped.
    pub corrupt_read: u32,
    /// `put` stores the page with one bit flipped.
    pub corrupt_stored: u32,
    /// Every call fails.
    pub error: u32,
}

/// Whether a call or a page is unlucky.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DrawBy {
    /// The number of the call, counted from 0.
    #[default]
    Call,
    /// The identity: a page that fails does so each time, whichever thread asks first.
    Identity,
}

/// The kinds of faults; the number keeps their draws apart.
#[derive(Debug, Clone, Copy)]
enum Fault {
    Vanished,
    Hollow,
    Slow,
    Short,
    CorruptRead,
    CorruptStored,
    Error,
}

const NUM_FAULTS: usize = 7;

/// Faults that were injected, one count a kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[allow(missing_docs, reason = "the fields of `FaultPlan`")]
pub struct FaultCounts {
    pub vanished: u64,
    pub hollow: u64,
    pub slow: u64,
    pub short: u64,
    pub corrupt_read: u64,
    pub corrupt_stored: u64,
    pub error: u64,
}

/// A tier with the faults of a plan. A slow call breaks its deadline: guard the tier against it.
#[derive(Debug)]
pub struct FaultTier<T> {
    inner: T,
    plan: FaultPlan,
    next_call: AtomicU64,
    injected: [AtomicU64; NUM_FAULTS],
}

/// What the draws of one call depend on.
#[derive(Debug, Clone, Copy)]
struct Draw(u64);

impl<T: PageTier> FaultTier<T> {
    /// Wraps `inner`; no rate may pass [`ONE_MILLION`].
    pub fn new(inner: T, plan: FaultPlan) -> Result<Self> {
        for rate in plan.rates() {
            check_range("rate", rate, 0, ONE_MILLION)?;
        }
        let injected = [const { AtomicU64::new(0) }; NUM_FAULTS];
        Ok(Self { inner, plan, next_call: AtomicU64::new(0), injected })
    }

    /// The tier under the faults.
    pub const fn inner(&self) -> &T {
        &self.inner
    }

    /// What was injected so far.
    pub fn injected(&self) -> FaultCounts {
        let count = |fault: Fault| self.injected[fault as usize].load(Ordering::Relaxed);
        FaultCounts {
            vanished: count(Fault::Vanished),
            hollow: count(Fault::Hollow),
            slow: count(Fault::Slow),
            short: count(Fault::Short),
            corrupt_read: count(Fault::CorruptRead),
            corrupt_stored: count(Fault::CorruptStored),
            error: count(Fault::Error),
        }
    }

    /// What every call begins with: its draw, and the faults that every call can have.
    fn begin(&self, call: &'static str, name: &[u8]) -> Result<Draw> {
        let number = self.next_call.fetch_add(1, Ordering::Relaxed);
        let draw = match self.plan.draw_by {
            DrawBy::Call => Draw(mix(number)),
            DrawBy::Identity => Draw(name.chunks(8).fold(0, |word, part| mix(word ^ le(part)))),
        };
        if self.strikes(draw, Fault::Slow) {
            std::thread::sleep(self.plan.delay);
        }
        if self.strikes(draw, Fault::Error) {
            let text = format!("fault injected into call {number}");
            return Err(Error::TierIo { tier: TIER, call, text });
        }
        Ok(draw)
    }

    /// Whether the fault is drawn; it is counted if so.
    fn strikes(&self, draw: Draw, fault: Fault) -> bool {
        let is_drawn = self.plan.random(draw, fault) % u64::from(ONE_MILLION)
            < u64::from(self.plan.rates()[fault as usize]);
        self.injected[fault as usize].fetch_add(u64::from(is_drawn), Ordering::Relaxed);
        is_drawn
    }

    fn flip(&self, draw: Draw, fault: Fault, bytes: &mut [u8]) {
        let num_bits = (bytes.len() as u64 * 8).max(1);
        let bit = mix(self.plan.random(draw, fault)) % num_bits;
        let at = usize::try_from(bit / 8).unwrap_or(0); // below the length
        if let Some(byte) = bytes.get_mut(at) {
            *byte ^= 1 << (bit % 8);
        }
    }

    fn get_short(&self, identity: &PageIdentity, into: &mut [u8], by: Deadline) -> Result<bool> {
        let mut page = vec![0; into.len()];
        if !self.inner.get(identity, &mut page, by)? {
            return Ok(false);
        }
        let half = page.len() / 2;
        into[..half].copy_from_slice(&page[..half]);
        let text = format!("{half} of {} bytes read", page.len());
        Err(Error::TierIo { tier: TIER, call: "get", text })
    }
}

impl FaultPlan {
    const fn rates(&self) -> [u32; NUM_FAULTS] {
        let Self { vanished, hollow, slow, short, corrupt_read, corrupt_stored, error, .. } = *self;
        [vanished, hollow, slow, short, corrupt_read, corrupt_stored, error]
    }

    const fn random(&self, draw: Draw, fault: Fault) -> u64 {
        mix(mix(self.seed ^ draw.0).wrapping_add(fault as u64))
    }
}

fn le(part: &[u8]) -> u64 {
    part.iter().rev().fold(0, |word, &byte| (word << 8) | u64::from(byte))
}

impl<T: PageTier> PageTier for FaultTier<T> {
    fn put(&self, page: &PageHeader, bytes: &[u8], deadline: Deadline) -> Result<Stored> {
        let draw = self.begin("put", page.identity.as_bytes())?;
        if self.strikes(draw, Fault::CorruptStored) {
            let mut flipped = bytes.to_vec();
            self.flip(draw, Fault::CorruptStored, &mut flipped);
            return self.inner.put(page, &flipped, deadline);
        }
        self.inner.put(page, bytes, deadline)
    }

    fn get(&self, identity: &PageIdentity, into: &mut [u8], deadline: Deadline) -> Result<bool> {
        let draw = self.begin("get", identity.as_bytes())?;
        if self.strikes(draw, Fault::Vanished) {
            return Ok(false);
        }
        if self.strikes(draw, Fault::Hollow) {
            return Ok(true);
        }
        if self.strikes(draw, Fault::Short) {
            return self.get_short(identity, into, deadline);
        }
        let is_found = self.inner.get(identity, into, deadline)?;
        if is_found && self.strikes(draw, Fault::CorruptRead) {
            self.flip(draw, Fault::CorruptRead, into);
        }
        Ok(is_found)
    }

    fn holds(&self, identity: &PageIdentity, deadline: Deadline) -> Result<bool> {
        self.begin("holds", identity.as_bytes())?;
        self.inner.holds(identity, deadline)
    }

    fn remove(&self, identity: &PageIdentity, deadline: Deadline) -> Result<bool> {
        self.begin("remove", identity.as_bytes())?;
        self.inner.remove(identity, deadline)
    }

    fn flush(&self, deadline: Deadline) -> Result<()> {
        self.begin("flush", b"flush")?;
        self.inner.flush(deadline)
    }

    fn is_up(&self) -> bool {
        self.inner.is_up()
    }

    /// What the inner tier counted; the faults are in [`FaultTier::injected`].
    fn usage(&self) -> TierUsage {
        self.inner.usage()
    }

    fn pages(&self) -> Vec<PageHeader> {
        self.inner.pages()
    }

    fn forget_cached(&self) {
        self.inner.forget_cached();
    }
}
