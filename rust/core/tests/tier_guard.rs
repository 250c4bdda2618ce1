//! A tier that hangs holds nobody beyond the deadline, and is spared calls until it answers.

#[path = "support/tier_pages.rs"]
mod tier_pages;

use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use hisparse_core::tier::{
    BreakerLimits, BreakerState, Deadline, FaultPlan, GuardLimits, GuardedTier, MemoryTier,
    PageHeader, PageIdentity, PageTier, Stored, TierUsage,
};
use hisparse_core::{Error, ErrorKind, Result};

use tier_pages::{PAGE_BYTES, bytes_of, far, faulty, get, identity, put};

/// Every call waits for a word on a channel, then does what the word says.
struct BlockedTier {
    begun: Sender<()>,
    go_on: Mutex<Receiver<Word>>,
}

enum Word {
    Answer,
    Fail,
    Panic,
}

impl BlockedTier {
    fn new() -> (Self, Receiver<()>, Sender<Word>) {
        let ((begun, has_begun), (words, go_on)) = (channel(), channel());
        (Self { begun, go_on: Mutex::new(go_on) }, has_begun, words)
    }

    fn wait(&self) -> Result<bool> {
        let _ = self.begun.send(());
        let word = self.go_on.lock().unwrap_or_else(std::sync::PoisonError::into_inner).recv();
        match word {
            Ok(Word::Answer) => Ok(true),
            Ok(Word::Panic) => panic!("asked to"),
            _ => Err(Error::TierIo { tier: "blocked", call: "any", text: "asked to".into() }),
        }
    }
}

impl PageTier for BlockedTier {
    fn put(&self, _: &PageHeader, _: &[u8], _: Deadline) -> Result<Stored> {
        self.wait().map(|_| Stored::New)
    }

    fn get(&self, _: &PageIdentity, into: &mut [u8], _: Deadline) -> Result<bool> {
        let is_found = self.wait()?;
        into.fill(1);
        Ok(is_found)
    }

    fn holds(&self, _: &PageIdentity, _: Deadline) -> Result<bool> {
        self.wait()
    }

    fn remove(&self, _: &PageIdentity, _: Deadline) -> Result<bool> {
        self.wait()
    }

    fn flush(&self, _: Deadline) -> Result<()> {
        self.wait().map(|_| ())
    }

    fn usage(&self) -> TierUsage {
        TierUsage::default()
    }
}

/// A guarded blocked tier, with what its test needs to hold.
struct Guarded {
    tier: GuardedTier<BlockedTier>,
    has_begun: Receiver<()>,
    words: Sender<Word>,
    now: Arc<Mutex<Instant>>,
}

impl Guarded {
    fn new(num_threads: usize, max_waiting: usize) -> Self {
        let (inner, has_begun, words) = BlockedTier::new();
        let now = Arc::new(Mutex::new(Instant::now()));
        let told = Arc::clone(&now);
        let clock = Arc::new(move || *told.lock().expect("no holder panics"));
        let limits = GuardLimits { num_threads, max_waiting, breaker: BreakerLimits::default() };
        let tier = GuardedTier::with_clock("blocked", Arc::new(inner), limits, clock);
        Self { tier: tier.expect("legal limits"), has_begun, words, now }
    }

    fn advance(&self, time: Duration) {
        *self.now.lock().expect("no holder panics") += time;
    }

    /// A get that the inner tier never answers.
    fn get_in_vain(&self) -> Result<bool> {
        let mut into = [7; PAGE_BYTES];
        let found = self.tier.get(&identity(0), &mut into, soon());
        assert_eq!(into, [7; PAGE_BYTES], "a call that failed wrote to its caller's bytes");
        found
    }

    fn say(&self, word: Word) {
        self.words.send(word).expect("the tier listens");
    }
}

fn soon() -> Deadline {
    Deadline::after(Duration::from_millis(40))
}

const PASSED: Error = Error::DeadlinePassed { call: "get" };

#[test]
fn a_hanging_tier_holds_nobody_beyond_the_deadline_and_then_is_spared() {
    let guarded = Guarded::new(2, 2);
    // 2 calls hang in a thread each, 3 more find no thread: all of them come back
    (0..5).for_each(|_| assert_eq!(guarded.get_in_vain(), Err(PASSED)));
    assert_eq!(guarded.tier.state(), Ok(BreakerState::Open));
    let refused = guarded.tier.holds(&identity(0), far());
    let text = refused.unwrap_err().to_string();
    assert_eq!(text, "blocked down: 5 calls failed, 4 permitted; next try in 1000 ms");
    assert_eq!(guarded.has_begun.try_iter().count(), 2, "calls made");
    assert_eq!(guarded.tier.usage().failures, 5);
}

#[test]
fn a_slow_tier_is_left_at_the_deadline() {
    let delay = Duration::from_secs(600);
    let plan = FaultPlan { slow: 1_000_000, delay, ..Default::default() };
    let tier = GuardedTier::new("slow", Arc::new(faulty(plan)), GuardLimits::default());
    let found = tier.expect("legal limits").flush(soon());
    assert_eq!(found, Err(Error::DeadlinePassed { call: "flush" }));
}

#[test]
fn a_tier_that_answers_again_is_used_again() {
    let guarded = Guarded::new(1, 1);
    (0..5).for_each(|_| assert_eq!(guarded.get_in_vain(), Err(PASSED)));
    guarded.say(Word::Answer); // the first call ends, late; the others were given up unmade
    guarded.advance(Duration::from_secs(1));
    guarded.say(Word::Answer);
    assert_eq!(guarded.tier.holds(&identity(0), far()), Ok(true));
    assert_eq!(guarded.tier.state(), Ok(BreakerState::Closed));
}

#[test]
fn errors_count_like_timeouts_and_the_inner_error_is_passed_on() {
    let guarded = Guarded::new(1, 1);
    (0..5).for_each(|_| {
        guarded.say(Word::Fail);
        let error = guarded.tier.flush(far()).unwrap_err();
        assert_eq!(error.to_string(), "blocked: any failed: asked to");
    });
    assert_eq!(guarded.tier.state(), Ok(BreakerState::Open));
}

#[test]
fn a_panic_of_the_tier_is_an_error_and_costs_no_thread() {
    let guarded = Guarded::new(1, 1);
    guarded.say(Word::Panic);
    let error = guarded.tier.remove(&identity(0), far()).unwrap_err();
    assert_eq!(error.to_string(), "guarded tier: remove failed: the tier panicked");
    guarded.say(Word::Answer);
    assert_eq!(guarded.tier.remove(&identity(0), far()), Ok(true));
}

#[test]
fn a_caller_that_comes_late_does_not_count_against_the_tier() {
    let guarded = Guarded::new(1, 1);
    let passed = Deadline::after(Duration::ZERO);
    (0..9).for_each(|_| assert!(guarded.tier.flush(passed).is_err()));
    assert_eq!(guarded.tier.state(), Ok(BreakerState::Closed));
}

#[test]
fn a_full_tier_answers_and_is_not_spared() {
    let full = Arc::new(MemoryTier::new(0));
    let tier = GuardedTier::new("full", full, GuardLimits::default()).expect("legal limits");
    (0..9).for_each(|page| {
        assert_eq!(put(&tier, page).unwrap_err().kind(), ErrorKind::TierFull);
    });
    assert_eq!(tier.state(), Ok(BreakerState::Closed));
}

#[test]
fn many_callers_share_few_threads_and_every_byte_is_right() {
    let plan = FaultPlan { seed: 7, corrupt_read: 50_000, vanished: 50_000, ..Default::default() };
    let limits = GuardLimits { num_threads: 2, max_waiting: 1, ..Default::default() };
    let tier = GuardedTier::new("many", Arc::new(faulty(plan)), limits).expect("legal limits");
    std::thread::scope(|scope| {
        for caller in 0..8 {
            let tier = &tier;
            scope.spawn(move || {
                for page in caller * 100..caller * 100 + 100 {
                    put(tier, page).expect("there is room");
                    let bytes = get(tier, page).expect("no errors planned");
                    assert!(bytes.is_none_or(|bytes| bytes == bytes_of(page)));
                }
            });
        }
    });
    assert!(tier.usage().corrupt > 0);
}
