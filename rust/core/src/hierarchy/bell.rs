//! A thread that sleeps until it is needed, or until it is worth a try, and the bell that wakes it.

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::crew::spawn_error;
use crate::error::Result;
use crate::sync::lock_whole as lock;

/// A thread, once it was started.
#[derive(Default)]
pub(super) struct Sleeper {
    bell: Arc<Bell>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// One thread waits for it; closing it is for ever.
#[derive(Default)]
pub(super) struct Bell {
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
pub(super) enum Next {
    AtOnce,
    WhenWoken,
    After(Duration),
}

impl Sleeper {
    /// Starts the thread; once only.
    pub(super) fn start(
        &self,
        name: &str,
        serve: impl FnOnce(&Bell) + Send + 'static,
    ) -> Result<()> {
        let mut thread = lock(&self.thread);
        if thread.is_none() {
            let (bell, builder) = (Arc::clone(&self.bell), thread::Builder::new());
            let started = builder.name(name.into()).spawn(move || serve(&bell));
            *thread = Some(started.map_err(|error| spawn_error(&error))?);
        }
        Ok(())
    }

    /// Wakes the thread. Cheap, and never waits.
    pub(super) fn ring(&self) {
        self.bell.ring();
    }

    /// Tells the thread to end, which it does after the call that it makes.
    pub(super) fn dismiss(&self) {
        self.bell.close();
    }

    /// Waits until the thread has ended.
    pub(super) fn close(&self) {
        self.dismiss();
        let thread = lock(&self.thread).take();
        if let Some(thread) = thread {
            let _ = thread.join(); // what it does cannot panic without others seeing it
        }
    }
}

impl Bell {
    /// Lets every wait end, now and later.
    fn close(&self) {
        lock(&self.state).is_closed = true;
        self.has_rung.notify_all();
    }

    /// Wakes the thread, or keeps it from falling asleep the next time.
    fn ring(&self) {
        let mut state = lock(&self.state);
        let was_rung = std::mem::replace(&mut state.is_rung, true);
        drop(state);
        if !was_rung {
            self.has_rung.notify_one();
        }
    }

    /// Waits until it is time to look again; false once it is closed.
    pub(super) fn wait(&self, next: Next) -> bool {
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
