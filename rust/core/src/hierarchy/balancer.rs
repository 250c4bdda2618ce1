//! The thread that keeps host pages free: it sleeps until it is woken, or until it is worth a try.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::crew::spawn_error;
use super::{Hierarchy, Mover};
use crate::error::Result;
use crate::sync::lock_whole as lock;
use crate::tier::Deadline;

/// The thread, once it was started, and the bell that wakes it.
#[derive(Default)]
pub(super) struct Balancer {
    bell: Arc<Bell>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Default)]
struct Bell {
    state: Mutex<State>,
    has_rung: Condvar,
}

#[derive(Default)]
struct State {
    is_rung: bool,
    is_closed: bool,
}

/// When the thread looks again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    AtOnce,
    WhenWoken,
    After(Duration),
}

impl Hierarchy {
    /// Starts the thread that balances whenever it is woken; once only.
    pub fn start_balancing(&self) -> Result<()> {
        self.mover.check_open()?;
        let mut thread = lock(&self.balancer.thread);
        if thread.is_none() {
            let (mover, bell) = (Arc::clone(&self.mover), Arc::clone(&self.balancer.bell));
            let builder = thread::Builder::new().name("hisparse-balance".into());
            *thread = Some(
                builder.spawn(move || serve(&mover, &bell)).map_err(|error| spawn_error(&error))?,
            );
        }
        Ok(())
    }

    /// Host pages were taken: the thread sees whether enough are left. Cheap, and never waits.
    pub fn wake(&self) {
        self.balancer.bell.ring();
    }
}

impl Balancer {
    pub(super) fn close(&self) {
        lock(&self.bell.state).is_closed = true;
        self.bell.has_rung.notify_all();
        let thread = lock(&self.thread).take();
        if let Some(thread) = thread {
            let _ = thread.join(); // what it does cannot panic without others seeing it
        }
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

impl Bell {
    fn ring(&self) {
        let mut state = lock(&self.state);
        let was_rung = std::mem::replace(&mut state.is_rung, true);
        drop(state);
        if !was_rung {
            self.has_rung.notify_one();
        }
    }

    /// Waits until it is time to look again; false once it is closed.
    fn wait(&self, next: Next) -> bool {
        let is_quiet = |state: &mut State| !state.is_rung && !state.is_closed;
        let state = lock(&self.state);
        let mut state = match next {
            Next::AtOnce => state,
            Next::WhenWoken => {
                let woken = self.has_rung.wait_while(state, is_quiet);
                woken.unwrap_or_else(PoisonError::into_inner)
            }
            Next::After(time) => {
                let woken = self.has_rung.wait_timeout_while(state, time, is_quiet);
                woken.unwrap_or_else(PoisonError::into_inner).0
            }
        };
        state.is_rung = false;
        !state.is_closed
    }
}
