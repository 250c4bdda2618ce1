//! Movements under way: who needs a page that another thread moves waits here for it.

use crate::error::Result;
use crate::sync::{Condvar, Mutex, MutexGuard, lock};
use crate::tier::Deadline;

/// Counts movements, and wakes who waits for one to end.
#[derive(Debug, Default)]
pub(super) struct Motion {
    counts: Mutex<Counts>,
    changed: Condvar,
}

/// What there was at one moment; two that differ mean that something has ended in between.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Ticket {
    num_freed: u64,
    num_arrivals: u64,
}

#[derive(Debug, Default)]
struct Counts {
    num_leaving: usize, // demotions under way
    ended: Ticket,
}

impl Motion {
    /// What has ended so far.
    pub(super) fn ticket(&self) -> Result<Ticket> {
        Ok(lock(&self.counts)?.ended)
    }

    /// So many demotions begin.
    pub(super) fn leaving(&self, num_pages: usize) -> Result<()> {
        lock(&self.counts)?.num_leaving += num_pages;
        Ok(())
    }

    /// So many demotions have ended, and freed some host pages.
    pub(super) fn left(&self, num_pages: usize, num_freed: usize) -> Result<()> {
        let mut counts = lock(&self.counts)?;
        counts.num_leaving -= num_pages;
        counts.ended.num_freed += num_freed as u64;
        drop(counts);
        self.changed.notify_all();
        Ok(())
    }

    /// A promotion has ended, well or not.
    pub(super) fn arrived(&self) -> Result<()> {
        lock(&self.counts)?.ended.num_arrivals += 1;
        self.changed.notify_all();
        Ok(())
    }

    /// Waits for a promotion to end after `since`; false if none has by the deadline.
    pub(super) fn wait_for_arrival(&self, since: Ticket, deadline: Deadline) -> Result<bool> {
        let has_ended = |counts: &Counts| counts.ended.num_arrivals != since.num_arrivals;
        let counts = self.wait_until(deadline, has_ended)?;
        Ok(has_ended(&counts))
    }

    /// Waits for a host page that was freed after `since`; false if none is by the deadline, or as
    /// soon as no demotion is under way that could free one.
    pub(super) fn wait_for_room(&self, since: Ticket, deadline: Deadline) -> Result<bool> {
        let is_freed = |counts: &Counts| counts.ended.num_freed != since.num_freed;
        let is_over = |counts: &Counts| counts.num_leaving == 0 || is_freed(counts);
        let counts = self.wait_until(deadline, is_over)?;
        Ok(is_freed(&counts))
    }

    fn wait_until(
        &self,
        deadline: Deadline,
        is_over: impl Fn(&Counts) -> bool,
    ) -> Result<MutexGuard<'_, Counts>> {
        let mut counts = lock(&self.counts)?;
        while !is_over(&counts) {
            let left = deadline.left();
            if left.is_zero() {
                break;
            }
            let woken = self.changed.wait_timeout(counts, left);
            counts = woken.map_err(|_| crate::Error::Poisoned)?.0;
        }
        Ok(counts)
    }
}

#[cfg(all(test, not(feature = "shuttle")))]
mod tests {
    use super::*;
    use std::time::{Duration, Instant};

    fn soon() -> Deadline {
        Deadline::after(Duration::from_millis(20))
    }

    #[test]
    fn nobody_waits_for_room_that_no_demotion_will_make() {
        let motion = Motion::default();
        let since = motion.ticket().unwrap();
        let begin = Instant::now();
        let far = Deadline::after(Duration::from_secs(600));
        assert_eq!(motion.wait_for_room(since, far), Ok(false));
        motion.leaving(2).unwrap();
        motion.left(2, 0).unwrap();
        assert_eq!(motion.wait_for_room(since, far), Ok(false));
        assert!(begin.elapsed() < Duration::from_secs(60));
        motion.leaving(1).unwrap();
        motion.left(1, 1).unwrap();
        assert_eq!(motion.wait_for_room(since, far), Ok(true));
    }

    #[test]
    fn a_wait_ends_at_its_deadline() {
        let motion = Motion::default();
        motion.leaving(1).unwrap();
        let since = motion.ticket().unwrap();
        assert_eq!(motion.wait_for_room(since, soon()), Ok(false));
        assert_eq!(motion.wait_for_arrival(since, soon()), Ok(false));
        motion.arrived().unwrap();
        assert_eq!(motion.wait_for_arrival(since, soon()), Ok(true));
    }

    #[test]
    fn who_waits_is_woken_by_the_end_of_a_movement() {
        let motion = Motion::default();
        let far = Deadline::after(Duration::from_secs(600));
        let since = motion.ticket().unwrap();
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| motion.wait_for_arrival(since, far));
            motion.arrived().unwrap();
            assert_eq!(waiter.join().unwrap(), Ok(true));
        });
    }
}
