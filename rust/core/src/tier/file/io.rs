//! A bounded pool of threads for calls that may block: the caller waits no longer than it wants.
//!
//! A job owns all the bytes that it reads or writes, so a caller that has left cannot free them.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use crate::error::{Error, Result};
use crate::tier::Deadline;

pub(super) use crate::sync::lock_whole as lock;

use super::error::io_error;

type Job = Box<dyn FnOnce() + Send>;

/// The threads. Dropping the pool ends what is queued, then the threads.
pub(super) struct IoPool {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

struct Shared {
    queue: Mutex<Queue>,
    has_work: Condvar,
    has_room: Condvar,
    limit: usize,
}

#[derive(Default)]
struct Queue {
    jobs: VecDeque<Job>,
    /// Threads that wait for work; waking nobody would cost a system call all the same.
    num_idle: usize,
    /// Callers that wait for room.
    num_waiting: usize,
    closed: bool,
}

impl IoPool {
    pub(super) fn new(num_threads: usize, limit: usize) -> Result<Self> {
        let queue = Mutex::new(Queue::default());
        let (has_work, has_room) = (Condvar::new(), Condvar::new());
        let shared = Arc::new(Shared { queue, has_work, has_room, limit });
        let mut pool = Self { shared, threads: Vec::new() };
        for _ in 0..num_threads {
            let shared = Arc::clone(&pool.shared);
            let thread = thread::Builder::new().name("hisparse-file".into());
            let thread = thread.spawn(move || shared.work());
            pool.threads.push(thread.map_err(io_error("spawn"))?);
        }
        Ok(pool)
    }

    /// Queues a job; waits for room in the queue until the deadline.
    pub(super) fn submit(&self, call: &'static str, deadline: Deadline, job: Job) -> Result<()> {
        let mut queue = lock(&self.shared.queue);
        while queue.jobs.len() >= self.shared.limit {
            let left = deadline.left();
            if left.is_zero() {
                return Err(Error::DeadlinePassed { call });
            }
            queue.num_waiting += 1;
            let woken = self.shared.has_room.wait_timeout(queue, left);
            queue = woken.unwrap_or_else(PoisonError::into_inner).0;
            queue.num_waiting -= 1;
        }
        queue.jobs.push_back(job);
        let must_wake = queue.num_idle > 0;
        drop(queue);
        if must_wake {
            self.shared.has_work.notify_one();
        }
        Ok(())
    }

    /// Runs `work` on the pool and waits for its answer until the deadline; then `work` goes on
    /// alone, and is told so when it gives its answer.
    pub(super) fn call<T: Send + 'static>(
        &self,
        call: &'static str,
        deadline: Deadline,
        work: impl FnOnce(&Answer<T>) + Send + 'static,
    ) -> Result<T> {
        deadline.check(call)?;
        let answer = Arc::new(Answer::default());
        let theirs = Arc::clone(&answer);
        let job = move || {
            if theirs.is_awaited() {
                work(&theirs);
            }
        };
        self.submit(call, deadline, Box::new(job))?;
        answer.wait(deadline).ok_or(Error::DeadlinePassed { call })
    }
}

impl Drop for IoPool {
    fn drop(&mut self) {
        lock(&self.shared.queue).closed = true;
        self.shared.has_work.notify_all();
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn work(&self) {
        while let Some(job) = self.next() {
            // a job that panics has given no answer: its caller's deadline ends the wait
            let _ = catch_unwind(AssertUnwindSafe(job));
        }
    }

    fn next(&self) -> Option<Job> {
        let mut queue = lock(&self.queue);
        loop {
            if let Some(job) = queue.jobs.pop_front() {
                let must_wake = queue.num_waiting > 0;
                drop(queue);
                if must_wake {
                    self.has_room.notify_one();
                }
                return Some(job);
            }
            if queue.closed {
                return None;
            }
            queue.num_idle += 1;
            queue = self.has_work.wait(queue).unwrap_or_else(PoisonError::into_inner);
            queue.num_idle -= 1;
        }
    }
}

/// Where a job leaves its answer, unless its caller has left first.
pub(super) struct Answer<T> {
    state: Mutex<State<T>>,
    given: Condvar,
}

enum State<T> {
    Awaited,
    Given(T),
    Abandoned,
}

impl<T> Default for Answer<T> {
    fn default() -> Self {
        Self { state: Mutex::new(State::Awaited), given: Condvar::new() }
    }
}

impl<T> Answer<T> {
    fn is_awaited(&self) -> bool {
        matches!(*lock(&self.state), State::Awaited)
    }

    /// Makes the answer and gives it in one step, or does neither: false if the caller has left.
    pub(super) fn give(&self, make: impl FnOnce() -> T) -> bool {
        let mut state = lock(&self.state);
        let is_awaited = matches!(*state, State::Awaited);
        if is_awaited {
            *state = State::Given(make());
        }
        drop(state);
        if is_awaited {
            self.given.notify_one(); // after the lock, which the caller needs next
        }
        is_awaited
    }

    /// Acts in one step with the caller's waiting; None, and nothing done, if it has left.
    pub(super) fn while_awaited<R>(&self, act: impl FnOnce() -> R) -> Option<R> {
        let state = lock(&self.state);
        matches!(*state, State::Awaited).then(act)
    }

    pub(super) fn wait(&self, deadline: Deadline) -> Option<T> {
        let mut state = lock(&self.state);
        while matches!(*state, State::Awaited) {
            let left = deadline.left();
            if left.is_zero() {
                break;
            }
            let woken = self.given.wait_timeout(state, left);
            state = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
        match std::mem::replace(&mut *state, State::Abandoned) {
            State::Given(answer) => Some(answer),
            State::Awaited | State::Abandoned => None,
        }
    }
}
