//! Spares a tier that keeps failing: `Closed -> Open -> HalfOpen -> Closed`, or back to `Open`.
//!
//! Closed lets every call through. Open refuses all of them until the next probe is due. Half open
//! has let one call through and waits for what comes of it. Time is an argument, never read here.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::Deadline;
use crate::error::{Error, Result, check_range};
use crate::sync::{Mutex, lock};

/// When a breaker opens, and how often it tries again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BreakerLimits {
    /// So many failures within `window` open it, 1 to 1000.
    pub failures: u32,
    /// How far back failures count.
    pub window: Duration,
    /// Time from opening, or from the last probe, to the next probe.
    pub probe_every: Duration,
}

impl Default for BreakerLimits {
    fn default() -> Self {
        let (window, probe_every) = (Duration::from_secs(10), Duration::from_secs(1));
        Self { failures: 5, window, probe_every }
    }
}

/// What the breaker lets through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BreakerState {
    /// Every call.
    Closed,
    /// None until the next probe is due.
    Open,
    /// None until the probe that is under way has ended, or the next is due.
    HalfOpen,
}

/// The breaker of one tier.
#[derive(Debug)]
pub struct Breaker {
    tier: &'static str,
    limits: BreakerLimits,
    record: Mutex<Record>,
}

#[derive(Debug)]
struct Record {
    failed_at: VecDeque<Instant>, // the last `limits.failures`, oldest first
    state: State,
    next_probe: u64,
    late_by: Option<Deadline>, // of the last call that came late
}

#[derive(Debug, Clone, Copy)]
enum State {
    Closed,
    Open { probe_at: Instant },
    HalfOpen { probe: u64, probe_at: Instant },
}

/// Leave to make one call; it must come back with what the call came to.
#[derive(Debug)]
#[must_use]
pub struct Admission {
    probe: Option<u64>, // None = the breaker was closed
}

impl Breaker {
    /// A closed breaker.
    pub fn new(tier: &'static str, limits: BreakerLimits) -> Result<Self> {
        check_range("failures", limits.failures, 1, 1000)?;
        let failed_at = VecDeque::with_capacity(limits.failures as usize);
        let record =
            Mutex::new(Record { failed_at, state: State::Closed, next_probe: 0, late_by: None });
        Ok(Self { tier, limits, record })
    }

    /// Lets a call through, or refuses it with the time of the next try.
    ///
    /// A probe that never reports is given up for lost when the next is due.
    pub fn admit(&self, now: Instant) -> Result<Admission> {
        let mut record = lock(&self.record)?;
        match record.state {
            State::Closed => Ok(Admission { probe: None }),
            State::Open { probe_at } | State::HalfOpen { probe_at, .. } if now < probe_at => {
                Err(self.refusal(&record, probe_at.saturating_duration_since(now)))
            }
            State::Open { .. } | State::HalfOpen { .. } => {
                let probe = record.next_probe;
                record.next_probe += 1;
                record.state = State::HalfOpen { probe, probe_at: now + self.limits.probe_every };
                Ok(Admission { probe: Some(probe) })
            }
        }
    }

    /// The call was answered; a probe that was closes the breaker.
    pub fn succeeded(&self, admission: &Admission) -> Result<()> {
        let mut record = lock(&self.record)?;
        if record.is_current(admission) {
            record.state = State::Closed;
            record.failed_at.clear();
        }
        Ok(())
    }

    /// The call was not answered by its deadline. Calls that one caller's deadline has ended
    /// together count once: that it was short says little about the tier.
    pub fn came_late(&self, admission: &Admission, by: Deadline, now: Instant) -> Result<()> {
        let late_before = lock(&self.record)?.late_by.replace(by);
        if admission.probe.is_none() && late_before == Some(by) {
            return Ok(());
        }
        self.failed(admission, now)
    }

    /// The call failed.
    ///
    /// A call that was let through before the breaker opened changes nothing any more.
    pub fn failed(&self, admission: &Admission, now: Instant) -> Result<()> {
        let mut record = lock(&self.record)?;
        let probe_at = now + self.limits.probe_every;
        if record.is_current(admission) {
            record.state = State::Open { probe_at };
        } else if matches!(record.state, State::Closed) && admission.probe.is_none() {
            record.add_failure(now, &self.limits);
            if record.failed_at.len() >= self.limits.failures as usize {
                record.state = State::Open { probe_at };
            }
        }
        Ok(())
    }

    /// What the breaker lets through; to show, not to decide by.
    pub fn state(&self) -> Result<BreakerState> {
        Ok(match lock(&self.record)?.state {
            State::Closed => BreakerState::Closed,
            State::Open { .. } => BreakerState::Open,
            State::HalfOpen { .. } => BreakerState::HalfOpen,
        })
    }

    fn refusal(&self, record: &Record, left: Duration) -> Error {
        let failures = u32::try_from(record.failed_at.len()).unwrap_or(u32::MAX);
        let retry_ms = u64::try_from(left.as_millis()).unwrap_or(u64::MAX).max(1);
        Error::TierDown { tier: self.tier, failures, limit: self.limits.failures - 1, retry_ms }
    }
}

impl Record {
    /// Whether the admission is that of the probe under way.
    fn is_current(&self, admission: &Admission) -> bool {
        matches!(self.state, State::HalfOpen { probe, .. } if admission.probe == Some(probe))
    }

    fn add_failure(&mut self, now: Instant, limits: &BreakerLimits) {
        let is_old = |at: &Instant| now.saturating_duration_since(*at) > limits.window;
        while self.failed_at.front().is_some_and(is_old) {
            self.failed_at.pop_front();
        }
        self.failed_at.push_back(now);
    }
}
