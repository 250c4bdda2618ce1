//! The thread that keeps host pages free: it sleeps until it is woken, or until it is worth a try.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::bell::{Bell, Next};
use super::{Hierarchy, Mover};
use crate::error::Result;
use crate::tier::Deadline;

impl Hierarchy {
    /// Starts the thread that balances whenever it is woken; once only.
    pub fn start_balancing(&self) -> Result<()> {
        self.mover.check_open()?;
        let mover = Arc::clone(&self.mover);
        self.balancer.start("hisparse-balance", move |bell| serve(&mover, bell))
    }

    /// Host pages were taken: the thread sees whether enough are left. Cheap, and never waits.
    pub fn wake(&self) {
        self.balancer.ring();
    }
}

fn serve(mover: &Arc<Mover>, bell: &Bell) {
    let mut next = Next::WhenWoken;
    while bell.wait(next) {
        next = balance(mover);
    }
}

fn balance(mover: &Arc<Mover>) -> Next {
    let kept_before = mover.num_kept.load(Ordering::Relaxed);
    let Ok(balanced) = mover.balance(Deadline::after(mover.limits.call_limit)) else {
        return Next::WhenWoken; // closed, or a panic that others report
    };
    let has_kept = mover.num_kept.load(Ordering::Relaxed) > kept_before;
    if balanced.available >= mover.limits.low_watermark_pages {
        Next::WhenWoken
    } else if balanced.freed > 0 {
        Next::AtOnce
    } else if has_kept {
        Next::After(mover.limits.breaker.probe_every)
    } else {
        Next::WhenWoken
    }
}
