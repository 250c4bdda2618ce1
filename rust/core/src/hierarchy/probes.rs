//! Pages that a tier is measured by, or asked whether it works again: their names and bytes, whose
//! turn it is to put them, and those that a tier may still have.
//!
//! A tier has the same names as long as the process lives, so what one that fails keeps is bounded.
//! They have one token: a restart that finds one, after a kill, removes it.

use std::collections::HashSet;
use std::time::SystemTime;

use super::Mover;
use crate::error::{Error, Result};
use crate::sync::{Condvar, Mutex, lock};
use crate::tier::{Deadline, PageHeader, PageIdentity};

/// Pages that measure a tier; the first of them alone asks whether it works.
pub(super) const PROBE_PAGES: usize = 16;

/// Whose turn it is, and what was put.
#[derive(Debug)]
pub(super) struct Probes {
    names: Vec<Vec<PageIdentity>>, // of each tier
    state: Mutex<State>,
    has_ended: Condvar,
}

#[derive(Debug, Default)]
struct State {
    is_under_way: bool,
    num_pauses: u64,
    left: Vec<HashSet<PageIdentity>>, // in each tier, perhaps
}

/// A probe under way; it ends when dropped.
#[derive(Debug)]
pub(super) struct UnderWay<'a>(&'a Probes);

/// No probe begins before it is dropped.
#[derive(Debug)]
pub(super) struct Pause<'a>(&'a Probes);

impl Probes {
    pub(super) fn new(num_tiers: usize) -> Self {
        let left = vec![HashSet::new(); num_tiers];
        let state = Mutex::new(State { left, ..State::default() });
        let names = (0..num_tiers).map(probe_names).collect();
        Self { names, state, has_ended: Condvar::new() }
    }

    pub(super) fn names(&self, number: usize) -> &[PageIdentity] {
        &self.names[number]
    }

    /// Begins a probe once no other is under way; refused while there is a pause.
    pub(super) fn begin(&self, deadline: Deadline) -> Result<UnderWay<'_>> {
        let mut state = lock(&self.state)?;
        loop {
            check_pauses(&state)?;
            if !state.is_under_way {
                state.is_under_way = true;
                return Ok(UnderWay(self));
            }
            deadline.check("probe")?;
            let woken = self.has_ended.wait_timeout(state, deadline.left());
            state = woken.map_err(|_| Error::Poisoned)?.0;
        }
    }

    /// Lets no probe begin, and the one under way end after the call that it makes.
    pub(super) fn pause(&self) -> Result<Pause<'_>> {
        lock(&self.state)?.num_pauses += 1;
        Ok(Pause(self))
    }

    /// Refuses to go on with a probe that is to end.
    pub(super) fn check(&self) -> Result<()> {
        check_pauses(&*lock(&self.state)?)
    }

    /// The tier may have this page from now on.
    pub(super) fn put(&self, number: usize, name: PageIdentity) -> Result<()> {
        lock(&self.state)?.left[number].insert(name);
        Ok(())
    }

    /// The tier does not have this page.
    pub(super) fn gone(&self, number: usize, name: &PageIdentity) -> Result<()> {
        lock(&self.state)?.left[number].remove(name);
        Ok(())
    }

    /// The pages that a tier may have.
    pub(super) fn left(&self, number: usize) -> Result<Vec<PageIdentity>> {
        Ok(lock(&self.state)?.left[number].iter().copied().collect())
    }
}

impl Pause<'_> {
    /// Waits until no probe is under way, but not beyond the deadline.
    pub(super) fn wait(&self, deadline: Deadline) -> Result<()> {
        let mut state = lock(&self.0.state)?;
        while state.is_under_way && !deadline.left().is_zero() {
            let woken = self.0.has_ended.wait_timeout(state, deadline.left());
            state = woken.map_err(|_| Error::Poisoned)?.0;
        }
        Ok(())
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        if let Ok(mut state) = lock(&self.0.state) {
            state.is_under_way = false;
        }
        self.0.has_ended.notify_all();
    }
}

impl Drop for Pause<'_> {
    fn drop(&mut self) {
        if let Ok(mut state) = lock(&self.0.state) {
            state.num_pauses -= 1;
        }
    }
}

impl Mover {
    /// Removes what a tier may have of its probes; what it does not let go of is for the next time.
    pub(super) fn remove_probes(&self, number: usize, deadline: Deadline) -> Result<()> {
        for name in self.probes.left(number)? {
            let by = self.call_by(deadline);
            if self.below[number].store().remove(&name, by).is_ok() {
                self.probes.gone(number, &name)?;
            }
        }
        Ok(())
    }

    /// As [`remove_probes`](Self::remove_probes), of every tier.
    pub(super) fn remove_all_probes(&self, deadline: Deadline) -> Result<()> {
        (0..self.below.len()).try_for_each(|number| self.remove_probes(number, deadline))
    }
}

fn check_pauses(state: &State) -> Result<()> {
    let found = state.num_pauses;
    if found == 0 {
        return Ok(());
    }
    Err(Error::WrongState { what: "drains while a tier is probed", found, needed: 0 })
}

/// Names that no page has: hashes of this moment, without any tenant's key.
fn probe_names(number: usize) -> Vec<PageIdentity> {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let name = |page: usize| {
        let moment = format!("probe {} {} {number} {page}", std::process::id(), now.as_nanos());
        PageIdentity::from_bytes(*blake3::hash(moment.as_bytes()).as_bytes())
    };
    (0..PROBE_PAGES).map(name).collect()
}

pub(super) const fn probe_header(name: PageIdentity) -> PageHeader {
    PageHeader { identity: name, parent: name, num_tokens: 1 }
}

pub(super) fn probe_bytes(name: &PageIdentity, num_bytes: usize) -> Vec<u8> {
    name.as_bytes().iter().copied().cycle().take(num_bytes).collect()
}

#[cfg(all(test, not(feature = "shuttle")))]
mod tests {
    use super::*;
    use crate::error::ErrorKind;
    use std::time::Duration;

    fn far() -> Deadline {
        Deadline::after(Duration::from_secs(600))
    }

    #[test]
    fn a_pause_ends_the_probe_under_way_and_lets_none_begin() {
        let probes = Probes::new(1);
        let under_way = probes.begin(far()).unwrap();
        assert!(probes.check().is_ok());
        let pause = probes.pause().unwrap();
        let refused = probes.check().unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::WrongState, "it has to end");
        assert_eq!(probes.begin(far()).unwrap_err(), refused);
        std::thread::scope(|scope| {
            let drain = scope.spawn(|| pause.wait(far()));
            drop(under_way);
            assert_eq!(drain.join().unwrap(), Ok(()));
        });
        drop(pause);
        assert!(probes.begin(far()).is_ok());
    }

    #[test]
    fn probes_take_turns() {
        let probes = Probes::new(1);
        let first = probes.begin(far()).unwrap();
        let soon = Deadline::after(Duration::from_millis(10));
        assert_eq!(probes.begin(soon).unwrap_err(), Error::DeadlinePassed { call: "probe" });
        std::thread::scope(|scope| {
            let second = scope.spawn(|| probes.begin(far()).map(drop));
            drop(first);
            assert_eq!(second.join().unwrap(), Ok(()));
        });
    }
}
