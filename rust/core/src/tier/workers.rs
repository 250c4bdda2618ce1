//! Threads that make the calls that may never come back, so that the caller can leave in time.
//!
//! A caller waits no longer than its deadline. A call that no thread has begun by then is not made;
//! one that was begun keeps its thread until it ends. Both counts are bounded.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread;

use super::Deadline;
use crate::error::{Error, Result};

/// A bounded pool. Dropping it lets its threads end once they are idle; it waits for none of them.
pub(super) struct Workers {
    queue: Arc<Queue>,
}

struct Queue {
    waiting: Mutex<Waiting>,
    has_work: Condvar,
    has_room: Condvar,
    max_jobs: usize,
}

struct Waiting {
    jobs: VecDeque<Job>,
    is_closed: bool,
}

struct Job {
    deadline: Deadline,
    run: Box<dyn FnOnce() + Send>,
}

impl Workers {
    pub(super) fn start(num_threads: usize, max_jobs: usize) -> Result<Self> {
        let waiting = Waiting { jobs: VecDeque::with_capacity(max_jobs), is_closed: false };
        let queue = Arc::new(Queue {
            waiting: Mutex::new(waiting),
            has_work: Condvar::new(),
            has_room: Condvar::new(),
            max_jobs,
        });
        let workers = Self { queue };
        for _ in 0..num_threads {
            let queue = Arc::clone(&workers.queue);
            let thread = thread::Builder::new().name("hisparse-tier".into());
            thread.spawn(move || queue.serve()).map_err(|error| Error::TierIo {
                tier: "guarded tier",
                call: "spawn",
                text: error.to_string(),
            })?;
        }
        Ok(workers)
    }

    /// Runs `work` on a thread of the pool; gives up when the deadline passes.
    pub(super) fn call<R: Send + 'static>(
        &self,
        call: &'static str,
        deadline: Deadline,
        work: impl FnOnce() -> R + Send + 'static,
    ) -> Result<R> {
        let (answer, answers) = sync_channel(1);
        let run = Box::new(move || send(&answer, work));
        self.queue.push(call, Job { deadline, run })?;
        match answers.recv_timeout(deadline.left()) {
            Ok(answer) => Ok(answer),
            Err(RecvTimeoutError::Timeout) => Err(Error::DeadlinePassed { call }),
            // the job was dropped: late before it began, or it panicked
            Err(RecvTimeoutError::Disconnected) => {
                deadline.check(call)?;
                let text = "the tier panicked".into();
                Err(Error::TierIo { tier: "guarded tier", call, text })
            }
        }
    }
}

/// Nobody may be waiting for the answer any more.
fn send<R>(answer: &SyncSender<R>, work: impl FnOnce() -> R) {
    let _ = answer.send(work());
}

impl Drop for Workers {
    fn drop(&mut self) {
        if let Ok(mut waiting) = self.queue.waiting.lock() {
            waiting.is_closed = true;
        }
        self.queue.has_work.notify_all();
    }
}

impl Queue {
    /// Adds a job as soon as there is room, and in time for its deadline.
    fn push(&self, call: &'static str, job: Job) -> Result<()> {
        let is_full = |waiting: &mut Waiting| waiting.jobs.len() >= self.max_jobs;
        let waited = self.has_room.wait_timeout_while(self.lock()?, job.deadline.left(), is_full);
        let (mut waiting, timeout) = waited.map_err(|_| Error::Poisoned)?;
        if timeout.timed_out() {
            return Err(Error::DeadlinePassed { call });
        }
        waiting.jobs.push_back(job);
        self.has_work.notify_one();
        Ok(())
    }

    /// A thread's life: job after job until the pool is dropped. A panic costs one job only.
    fn serve(&self) {
        while let Some(job) = self.next() {
            if !job.deadline.left().is_zero() {
                let _ = catch_unwind(AssertUnwindSafe(job.run)); // the caller sees no answer
            }
        }
    }

    fn next(&self) -> Option<Job> {
        let waiting = self.lock().ok()?;
        let is_idle = |waiting: &mut Waiting| waiting.jobs.is_empty() && !waiting.is_closed;
        let mut waiting = self.has_work.wait_while(waiting, is_idle).ok()?;
        let job = waiting.jobs.pop_front();
        self.has_room.notify_one();
        job
    }

    fn lock(&self) -> Result<MutexGuard<'_, Waiting>> {
        self.waiting.lock().map_err(|_| Error::Poisoned)
    }
}
