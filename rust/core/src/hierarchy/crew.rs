//! Threads that help whoever has several calls to make: the caller does its part, so it never
//! waits for a thread to be free, and a crew of none is a crew.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use crate::error::{Error, Result};
use crate::sync::lock_whole as lock;

/// Invitations that wait for a thread; beyond these the inviter works alone.
const MAX_INVITATIONS: usize = 256;

/// The threads.
pub(super) struct Crew {
    queue: Arc<Queue>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    num_threads: usize,
}

#[derive(Default)]
struct Queue {
    waiting: Mutex<Waiting>,
    has_work: Condvar,
}

#[derive(Default)]
struct Waiting {
    invitations: VecDeque<Arc<dyn Task>>,
    is_closed: bool,
}

/// Work that several threads may do at a time.
trait Task: Send + Sync {
    /// Does what nobody has begun, until nothing is left.
    fn help(&self);
}

/// One batch: what is not begun, and what has come of the rest.
struct Batch<Item, Answer, Work> {
    pile: Mutex<Pile<Item, Answer>>,
    is_done: Condvar,
    work: Work,
}

struct Pile<Item, Answer> {
    waiting: VecDeque<Item>,
    answers: Vec<Option<Answer>>,
    num_running: usize,
}

impl Crew {
    pub(super) fn start(num_threads: usize) -> Result<Self> {
        let (queue, threads) = (Arc::new(Queue::default()), Mutex::default());
        let crew = Self { queue, threads, num_threads };
        for _ in 0..num_threads {
            let queue = Arc::clone(&crew.queue);
            let thread = thread::Builder::new().name("hisparse-mover".into());
            let thread = thread.spawn(move || queue.serve());
            let thread = thread.map_err(|error| spawn_error(&error))?;
            lock(&crew.threads).push(thread);
        }
        Ok(crew)
    }

    /// Does `work` with every item, several at a time; the answers are in the order of the items.
    /// An item whose work panicked has none.
    pub(super) fn share<Item, Answer, Work>(
        &self,
        items: Vec<Item>,
        work: Work,
    ) -> Vec<Option<Answer>>
    where
        Item: Send + 'static,
        Answer: Send + 'static,
        Work: Fn(Item) -> Answer + Send + Sync + 'static,
    {
        let num_helpers = self.num_threads.min(items.len().saturating_sub(1));
        let answers = items.iter().map(|_| None).collect();
        let pile = Mutex::new(Pile { waiting: items.into(), answers, num_running: 0 });
        let batch = Arc::new(Batch { pile, is_done: Condvar::new(), work });
        for _ in 0..num_helpers {
            let task: Arc<dyn Task> = Arc::<Batch<_, _, _>>::clone(&batch);
            self.queue.invite(task);
        }
        batch.help();
        batch.answers()
    }

    /// Lets every thread end what it has begun, and waits for that.
    pub(super) fn close(&self) {
        let mut waiting = lock(&self.queue.waiting);
        waiting.is_closed = true;
        let unanswered = std::mem::take(&mut waiting.invitations);
        drop(waiting);
        drop(unanswered); // what they hold may hold the crew
        self.queue.has_work.notify_all();
        let threads = std::mem::take(&mut *lock(&self.threads));
        for thread in threads {
            let _ = thread.join(); // a panic of its work was caught
        }
    }
}

impl Drop for Crew {
    fn drop(&mut self) {
        self.close();
    }
}

impl Queue {
    fn invite(&self, task: Arc<dyn Task>) {
        let mut waiting = lock(&self.waiting);
        if waiting.is_closed || waiting.invitations.len() >= MAX_INVITATIONS {
            return;
        }
        waiting.invitations.push_back(task);
        drop(waiting);
        self.has_work.notify_one();
    }

    fn serve(&self) {
        while let Some(task) = self.next() {
            task.help();
        }
    }

    fn next(&self) -> Option<Arc<dyn Task>> {
        let is_idle = |waiting: &mut Waiting| waiting.invitations.is_empty() && !waiting.is_closed;
        let waiting = self.has_work.wait_while(lock(&self.waiting), is_idle);
        let mut waiting = waiting.unwrap_or_else(PoisonError::into_inner);
        if waiting.is_closed { None } else { waiting.invitations.pop_front() }
    }
}

impl<Item, Answer, Work> Task for Batch<Item, Answer, Work>
where
    Item: Send,
    Answer: Send,
    Work: Fn(Item) -> Answer + Send + Sync,
{
    fn help(&self) {
        while let Some((number, item)) = self.begin() {
            let answer = catch_unwind(AssertUnwindSafe(|| (self.work)(item))).ok();
            self.end(number, answer);
        }
    }
}

impl<Item, Answer, Work> Batch<Item, Answer, Work> {
    fn begin(&self) -> Option<(usize, Item)> {
        let mut pile = lock(&self.pile);
        let number = pile.answers.len() - pile.waiting.len();
        let item = pile.waiting.pop_front()?;
        pile.num_running += 1;
        Some((number, item))
    }

    fn end(&self, number: usize, answer: Option<Answer>) {
        let mut pile = lock(&self.pile);
        pile.answers[number] = answer;
        pile.num_running -= 1;
        drop(pile);
        self.is_done.notify_all();
    }

    /// Waits for what helpers have begun: their calls have deadlines.
    fn answers(&self) -> Vec<Option<Answer>> {
        let is_busy = |pile: &mut Pile<Item, Answer>| pile.num_running > 0;
        let pile = self.is_done.wait_while(lock(&self.pile), is_busy);
        std::mem::take(&mut pile.unwrap_or_else(PoisonError::into_inner).answers)
    }
}

pub(super) fn spawn_error(error: &std::io::Error) -> Error {
    Error::TierIo { tier: "hierarchy", call: "spawn", text: error.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Barrier;

    #[test]
    fn answers_keep_the_order_of_their_items_with_any_number_of_threads() {
        for num_threads in [0, 1, 4] {
            let crew = Crew::start(num_threads).unwrap();
            for num_items in [0, 1, 2, 100] {
                let answers = crew.share((0..num_items).collect(), |item: usize| item * 2);
                let expected: Vec<_> = (0..num_items).map(|item| Some(item * 2)).collect();
                assert_eq!(answers, expected);
            }
        }
    }

    #[test]
    fn items_are_worked_on_at_the_same_time() {
        let crew = Crew::start(2).unwrap();
        let barrier = Arc::new(Barrier::new(3));
        let meet = Arc::clone(&barrier);
        let answers = crew.share(vec![(); 3], move |()| meet.wait().is_leader());
        assert_eq!(answers.iter().flatten().filter(|&&is_leader| is_leader).count(), 1);
    }

    #[test]
    fn work_that_panics_has_no_answer_and_the_rest_has() {
        let crew = Crew::start(1).unwrap();
        let work = |item: u32| {
            assert_ne!(item, 1, "asked to");
            item
        };
        assert_eq!(crew.share(vec![0, 1, 2], work), [Some(0), None, Some(2)]);
        assert_eq!(crew.share(vec![3], work), [Some(3)]);
        crew.close();
        assert_eq!(crew.share(vec![4, 5], work), [Some(4), Some(5)], "alone, once it is closed");
    }

    struct Holds(#[expect(dead_code, reason = "it is held, not read")] Arc<()>);

    impl Task for Holds {
        fn help(&self) {}
    }

    #[test]
    fn a_closed_crew_lets_go_of_invitations_that_no_thread_has_taken() {
        let crew = Crew::start(0).unwrap();
        let held = Arc::new(());
        crew.queue.invite(Arc::new(Holds(Arc::clone(&held))));
        assert_eq!(Arc::strong_count(&held), 2);
        crew.close();
        assert_eq!(Arc::strong_count(&held), 1);
        crew.queue.invite(Arc::new(Holds(Arc::clone(&held))));
        assert_eq!(Arc::strong_count(&held), 1, "nobody is there to take it");
    }
}
