//! Keeps the deadlines of a tier that does not, and spares one that keeps failing.

use std::convert::identity;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use super::breaker::{Admission, Breaker, BreakerLimits, BreakerState};
use super::changes::{Change, ChangeKind, Changes};
use super::workers::Workers;
use super::{Deadline, PageHeader, PageIdentity, PageTier, Stored, TierUsage};
use crate::error::{Error, Result, check_range};

/// How much a [`GuardedTier`] lets happen at a time.
#[derive(Debug, Clone, Copy)]
pub struct GuardLimits {
    /// Calls made at a time, 1 to 256.
    pub num_threads: usize,
    /// Calls that may wait for a thread, 1 to 65,536; more wait for room, up to their deadline.
    pub max_waiting: usize,
    /// When calls are refused at once.
    pub breaker: BreakerLimits,
}

impl Default for GuardLimits {
    fn default() -> Self {
        Self { num_threads: 4, max_waiting: 64, breaker: BreakerLimits::default() }
    }
}

/// Tells the breaker the time.
pub type Clock = Arc<dyn Fn() -> Instant + Send + Sync>;

/// A tier of which no call lasts beyond its deadline, though a call of the inner tier may hang.
///
/// Pages are copied to and from bytes of the call's own: a call that comes back late writes
/// nothing that its caller owns. A late put may still store its page, and a late removal may still
/// remove it; a removal and a put of the page wait for such a call: what was put later is not what
/// goes, and a page that was removed does not come back. Timeouts, [`Error::TierIo`] and
/// [`Error::TierDown`] count against the tier; a full tier answers, so [`Error::TierFull`] does not.
pub struct GuardedTier<T: ?Sized> {
    inner: Arc<T>,
    workers: Workers,
    changes: Arc<Changes>,
    breaker: Breaker,
    clock: Clock,
    failures: AtomicU64,
}

impl<T: PageTier + ?Sized + 'static> GuardedTier<T> {
    /// Guards `inner`, which errors call `name`.
    pub fn new(name: &'static str, inner: Arc<T>, limits: GuardLimits) -> Result<Self> {
        Self::with_clock(name, inner, limits, Arc::new(Instant::now))
    }

    /// The same with a clock for the breaker; deadlines keep to the real one.
    pub fn with_clock(
        name: &'static str,
        inner: Arc<T>,
        limits: GuardLimits,
        clock: Clock,
    ) -> Result<Self> {
        check_range("num_threads", limits.num_threads, 1, 256)?;
        check_range("max_waiting", limits.max_waiting, 1, 65_536)?;
        let breaker = Breaker::new(name, limits.breaker)?;
        let workers = Workers::start(limits.num_threads, limits.max_waiting)?;
        let changes = Arc::default();
        Ok(Self { inner, workers, changes, breaker, clock, failures: AtomicU64::new(0) })
    }

    /// The tier that is guarded.
    pub fn inner(&self) -> &T {
        &self.inner
    }

    /// Whether the tier answers; anything but closed is a degraded service.
    pub fn state(&self) -> Result<BreakerState> {
        self.breaker.state()
    }

    /// Leave to make a call; asked for before its bytes are copied.
    fn admit(&self, call: &'static str, deadline: Deadline) -> Result<Admission> {
        deadline.check(call)?; // a caller that comes late says nothing about the tier
        self.breaker.admit((self.clock)())
    }

    /// Begins a change of a page once those have ended that it must not meet.
    fn change(
        &self,
        admission: &Admission,
        kind: ChangeKind,
        page: &PageIdentity,
        deadline: Deadline,
    ) -> Result<Change> {
        let begun = self.changes.begin(kind, page, deadline);
        if begun.is_err() {
            self.note(admission, &begun, deadline)?; // what is in the way hangs
        }
        begun
    }

    /// Makes one call on the pool, and tells the breaker what it came to.
    fn call<R: Send + 'static>(
        &self,
        admission: &Admission,
        call: &'static str,
        deadline: Deadline,
        work: impl FnOnce(&T) -> Result<R> + Send + 'static,
    ) -> Result<R> {
        let inner = Arc::clone(&self.inner);
        let answer = self.workers.call(call, deadline, move || work(&inner)).and_then(identity);
        self.note(admission, &answer, deadline)?;
        answer
    }

    fn note<R>(&self, admission: &Admission, answer: &Result<R>, by: Deadline) -> Result<()> {
        match answer {
            Err(error) if is_failure(error) => {
                self.failures.fetch_add(1, Ordering::Relaxed);
                note_failure(&self.breaker, admission, error, by, (self.clock)())
            }
            _ => self.breaker.succeeded(admission),
        }
    }
}

/// Tells the breaker of a call that was to end by `deadline`.
pub(super) fn note_failure(
    breaker: &Breaker,
    admission: &Admission,
    error: &Error,
    deadline: Deadline,
    now: Instant,
) -> Result<()> {
    match error {
        Error::DeadlinePassed { .. } => breaker.came_late(admission, deadline, now),
        _ => breaker.failed(admission, now),
    }
}

/// Whether the error says that the tier does not work.
pub(super) const fn is_failure(error: &Error) -> bool {
    matches!(error, Error::DeadlinePassed { .. } | Error::TierDown { .. } | Error::TierIo { .. })
}

impl<T: PageTier + ?Sized + 'static> PageTier for GuardedTier<T> {
    fn put(&self, page: &PageHeader, bytes: &[u8], deadline: Deadline) -> Result<Stored> {
        let admission = self.admit("put", deadline)?;
        let change = self.change(&admission, ChangeKind::Put, &page.identity, deadline)?;
        let (page, bytes) = (*page, bytes.to_vec());
        self.call(&admission, "put", deadline, move |inner| {
            let _under_way = change;
            inner.put(&page, &bytes, deadline)
        })
    }

    fn get(&self, name: &PageIdentity, into: &mut [u8], deadline: Deadline) -> Result<bool> {
        let admission = self.admit("get", deadline)?;
        let (name, num_bytes) = (*name, into.len());
        let page = self.call(&admission, "get", deadline, move |inner| {
            let mut page = vec![0; num_bytes];
            let is_found = inner.get(&name, &mut page, deadline)?;
            Ok(is_found.then_some(page))
        })?;
        if let Some(page) = &page {
            into.copy_from_slice(page);
        }
        Ok(page.is_some())
    }

    fn holds(&self, name: &PageIdentity, deadline: Deadline) -> Result<bool> {
        let admission = self.admit("holds", deadline)?;
        let name = *name;
        self.call(&admission, "holds", deadline, move |inner| inner.holds(&name, deadline))
    }

    fn count_held(&self, names: &[PageIdentity], deadline: Deadline) -> Result<usize> {
        let admission = self.admit("holds", deadline)?;
        let names = names.to_vec();
        self.call(&admission, "holds", deadline, move |inner| inner.count_held(&names, deadline))
    }

    fn remove(&self, name: &PageIdentity, deadline: Deadline) -> Result<bool> {
        let admission = self.admit("remove", deadline)?;
        let change = self.change(&admission, ChangeKind::Remove, name, deadline)?;
        let name = *name;
        self.call(&admission, "remove", deadline, move |inner| {
            let _under_way = change;
            inner.remove(&name, deadline)
        })
    }

    fn flush(&self, deadline: Deadline) -> Result<()> {
        let admission = self.admit("flush", deadline)?;
        self.call(&admission, "flush", deadline, move |inner| inner.flush(deadline))
    }

    /// Asks the inner tier at once: its counters must need no device and no server.
    fn usage(&self) -> TierUsage {
        let usage = self.inner.usage();
        TierUsage { failures: usage.failures.max(self.failures.load(Ordering::Relaxed)), ..usage }
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
        true
    }
}
