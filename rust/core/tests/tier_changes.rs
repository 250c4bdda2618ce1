//! A put and a removal of one page meet in no tier, also where a caller has left its call.

#[path = "support/tier_pages.rs"]
mod tier_pages;

use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hisparse_core::tier::ChangeKind::{Put, Remove};
use hisparse_core::tier::{
    Changes, Deadline, GuardLimits, GuardedTier, MemoryTier, PageHeader, PageIdentity, PageTier,
    Stored, TierUsage,
};
use hisparse_core::{Error, Result};

use tier_pages::{bytes_of, far, get, header, identity, put};

fn soon() -> Deadline {
    Deadline::after(Duration::from_millis(40))
}

/// A tier of which one kind of call does nothing before it is told to go on, each time.
struct StuckTier {
    inner: MemoryTier,
    stuck: &'static str,
    go_on: Mutex<Receiver<()>>,
}

/// A guarded stuck tier, and what lets its calls go on.
fn stuck(call: &'static str, num_threads: usize) -> (GuardedTier<StuckTier>, Sender<()>) {
    let (words, go_on) = channel();
    let (inner, go_on) = (MemoryTier::new(1 << 20), Mutex::new(go_on));
    let inner = Arc::new(StuckTier { inner, stuck: call, go_on });
    let limits = GuardLimits { num_threads, ..GuardLimits::default() };
    (GuardedTier::new("stuck", inner, limits).expect("legal limits"), words)
}

impl StuckTier {
    fn wait(&self, call: &str) {
        if call == self.stuck {
            let go_on = self.go_on.lock().expect("no holder panics");
            go_on.recv().expect("the test says when");
        }
    }
}

impl PageTier for StuckTier {
    fn put(&self, page: &PageHeader, bytes: &[u8], _: Deadline) -> Result<Stored> {
        self.wait("put");
        self.inner.put(page, bytes, far())
    }

    fn get(&self, page: &PageIdentity, into: &mut [u8], deadline: Deadline) -> Result<bool> {
        self.inner.get(page, into, deadline)
    }

    fn holds(&self, page: &PageIdentity, deadline: Deadline) -> Result<bool> {
        self.inner.holds(page, deadline)
    }

    fn remove(&self, page: &PageIdentity, _: Deadline) -> Result<bool> {
        self.wait("remove");
        self.inner.remove(page, far())
    }

    fn flush(&self, deadline: Deadline) -> Result<()> {
        self.inner.flush(deadline)
    }

    fn usage(&self) -> TierUsage {
        self.inner.usage()
    }
}

#[test]
fn a_removal_that_is_late_does_not_take_a_page_that_was_put_since() {
    let (tier, words) = stuck("remove", 4);
    assert_eq!(put(&tier, 1), Ok(Stored::New));
    let late = tier.remove(&identity(1), soon());
    assert_eq!(late, Err(Error::DeadlinePassed { call: "remove" }));
    let refused = tier.put(&header(1), &bytes_of(1), soon());
    assert_eq!(refused, Err(Error::DeadlinePassed { call: "put" }));
    assert_eq!(put(&tier, 2), Ok(Stored::New), "other pages do not wait");
    assert_eq!(get(&tier, 1), Ok(Some(bytes_of(1))), "nor does who reads");
    words.send(()).expect("the tier listens");
    assert_eq!(put(&tier, 1), Ok(Stored::New));
    assert_eq!(get(&tier, 1), Ok(Some(bytes_of(1))));
}

#[test]
fn a_page_that_was_removed_is_not_put_by_a_call_that_is_late() {
    let (tier, words) = stuck("put", 4);
    assert!(tier.put(&header(1), &bytes_of(1), soon()).is_err());
    assert!(tier.remove(&identity(1), soon()).is_err(), "it would come before the put");
    words.send(()).expect("the tier listens");
    assert_eq!(tier.remove(&identity(1), far()), Ok(true));
    assert_eq!(tier.usage().pages, 0);
}

#[test]
fn a_change_waits_for_the_other_kind_alone() {
    let changes = Arc::new(Changes::default());
    for (kind, other) in [(Put, Remove), (Remove, Put)] {
        let both = [(); 2].map(|()| changes.begin(kind, &identity(1), far()).expect("no other"));
        let [first, second] = both;
        assert!(changes.begin(other, &identity(2), far()).is_ok());
        drop(first);
        assert!(changes.begin(other, &identity(1), soon()).is_err());
        drop(second);
        assert!(changes.begin(other, &identity(1), far()).is_ok());
    }
}

#[test]
fn a_change_that_no_thread_has_begun_is_in_nobodys_way_for_long() {
    let (tier, words) = stuck("remove", 1);
    assert!(tier.remove(&identity(1), soon()).is_err(), "it has the only thread");
    assert!(tier.remove(&identity(2), soon()).is_err());
    words.send(()).expect("the tier listens");
    assert_eq!(put(&tier, 2), Ok(Stored::New));
    assert_eq!(get(&tier, 2), Ok(Some(bytes_of(2))));
}
