//! Spares a tier that keeps failing, and keeps its own deadlines: a breaker and nothing else.

use std::sync::Arc;
use std::time::Instant;

use super::breaker::{Breaker, BreakerLimits, BreakerState};
use super::guarded::{Clock, is_failure, note_failure};
use super::{Deadline, PageHeader, PageIdentity, PageTier, Stored, TierUsage};
use crate::error::Result;

/// A tier that is called in the caller's thread, and not at all while its breaker is open.
///
/// What counts against the tier is what counts in a [`GuardedTier`](super::GuardedTier).
pub struct SparedTier<T: ?Sized> {
    inner: Arc<T>,
    breaker: Breaker,
    clock: Clock,
}

impl<T: PageTier + ?Sized> SparedTier<T> {
    /// Spares `inner`, which errors call `name`.
    pub fn new(name: &'static str, inner: Arc<T>, limits: BreakerLimits) -> Result<Self> {
        Self::with_clock(name, inner, limits, Arc::new(Instant::now))
    }

    /// The same with a clock for the breaker; deadlines keep to the real one.
    pub fn with_clock(
        name: &'static str,
        inner: Arc<T>,
        limits: BreakerLimits,
        clock: Clock,
    ) -> Result<Self> {
        Ok(Self { inner, breaker: Breaker::new(name, limits)?, clock })
    }

    /// Whether the tier answers; anything but closed is a degraded service.
    pub fn state(&self) -> Result<BreakerState> {
        self.breaker.state()
    }

    fn call<R>(
        &self,
        call: &'static str,
        deadline: Deadline,
        work: impl FnOnce(&T) -> Result<R>,
        has_failed: impl FnOnce(&R) -> bool,
    ) -> Result<R> {
        deadline.check(call)?; // a caller that comes late says nothing about the tier
        let admission = self.breaker.admit((self.clock)())?;
        let answer = work(&self.inner);
        let now = (self.clock)();
        match &answer {
            Err(error) if is_failure(error) => {
                note_failure(&self.breaker, &admission, error, deadline, now)?;
            }
            Ok(answer) if has_failed(answer) => self.breaker.failed(&admission, now)?,
            _ => self.breaker.succeeded(&admission)?,
        }
        answer
    }
}

impl<T: PageTier + ?Sized> PageTier for SparedTier<T> {
    fn put(&self, page: &PageHeader, bytes: &[u8], deadline: Deadline) -> Result<Stored> {
        self.call("put", deadline, |inner| inner.put(page, bytes, deadline), |_| false)
    }

    fn get(&self, name: &PageIdentity, into: &mut [u8], deadline: Deadline) -> Result<bool> {
        self.call("get", deadline, |inner| inner.get(name, into, deadline), |_| false)
    }

    fn holds(&self, name: &PageIdentity, deadline: Deadline) -> Result<bool> {
        self.call("holds", deadline, |inner| inner.holds(name, deadline), |_| false)
    }

    fn count_held(&self, names: &[PageIdentity], deadline: Deadline) -> Result<usize> {
        self.call("holds", deadline, |inner| inner.count_held(names, deadline), |_| false)
    }

    fn remove(&self, name: &PageIdentity, deadline: Deadline) -> Result<bool> {
        self.call("remove", deadline, |inner| inner.remove(name, deadline), |_| false)
    }

    fn flush(&self, deadline: Deadline) -> Result<()> {
        self.call("flush", deadline, |inner| inner.flush(deadline), |()| false)
    }

    fn usage(&self) -> TierUsage {
        self.inner.usage()
    }

    /// Counts as one failure, however many of the pages fail.
    fn put_many(
        &self,
        pages: &[(PageHeader, &[u8])],
        deadline: Deadline,
    ) -> Result<Vec<Result<Stored>>> {
        let is_failed = |stored: &Result<Stored>| stored.as_ref().is_err_and(is_failure);
        let has_failed = |all: &Vec<Result<Stored>>| all.iter().any(is_failed);
        self.call("put", deadline, |inner| inner.put_many(pages, deadline), has_failed)
    }

    fn pages(&self) -> Vec<PageHeader> {
        self.inner.pages()
    }

    fn forget_cached(&self) {
        self.inner.forget_cached();
    }

    fn is_up(&self) -> bool {
        self.inner.is_up()
    }

    fn keeps_deadlines(&self) -> bool {
        self.inner.keeps_deadlines()
    }
}
