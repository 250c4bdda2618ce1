//! The states of the breaker, by a clock of the test's own.

use std::time::{Duration, Instant};

use hisparse_core::tier::{Breaker, BreakerLimits, BreakerState};

struct BreakerTest {
    breaker: Breaker,
    start: Instant,
}

impl BreakerTest {
    fn new() -> Self {
        let breaker = Breaker::new("remote", BreakerLimits::default()).expect("legal limits");
        Self { breaker, start: Instant::now() }
    }

    fn at(&self, ms: u64) -> Instant {
        self.start + Duration::from_millis(ms)
    }

    fn fail(&self, ms: u64) {
        let admission = self.breaker.admit(self.at(ms)).expect("a call is let through");
        self.breaker.failed(&admission, self.at(ms)).expect("no panic");
    }

    fn state(&self) -> BreakerState {
        self.breaker.state().expect("no panic")
    }
}

#[test]
fn five_failures_within_ten_seconds_open_the_breaker() {
    let test = BreakerTest::new();
    (0..4).for_each(|ms| test.fail(ms));
    assert_eq!(test.state(), BreakerState::Closed);
    test.fail(10_000); // the first is 10 s old to the millisecond
    assert_eq!(test.state(), BreakerState::Open);
}

#[test]
fn failures_that_lie_further_apart_do_not() {
    let test = BreakerTest::new();
    (0..40).for_each(|i| test.fail(i * 2501));
    assert_eq!(test.state(), BreakerState::Closed);
}

#[test]
fn one_probe_a_second_is_let_through_and_a_good_one_closes() {
    let test = BreakerTest::new();
    (0..5).for_each(|_| test.fail(0));
    assert!(test.breaker.admit(test.at(999)).is_err());
    let probe = test.breaker.admit(test.at(1000)).expect("a probe is due");
    assert_eq!(test.state(), BreakerState::HalfOpen);
    assert!(test.breaker.admit(test.at(1001)).is_err(), "one at a time");
    test.breaker.succeeded(&probe).expect("no panic");
    assert_eq!(test.state(), BreakerState::Closed);
    (0..4).for_each(|_| test.fail(1002)); // what was before is forgotten
    assert_eq!(test.state(), BreakerState::Closed);
    test.fail(1003);
    assert_eq!(test.state(), BreakerState::Open);
}

#[test]
fn a_bad_probe_opens_for_another_second() {
    let test = BreakerTest::new();
    (0..5).for_each(|_| test.fail(0));
    test.fail(1500);
    let error = test.breaker.admit(test.at(2100)).expect_err("open until 2500");
    let needed = "remote down: 5 calls failed, 4 permitted; next try in 400 ms";
    assert_eq!(error.to_string(), needed);
    assert!(test.breaker.admit(test.at(2500)).is_ok());
}

#[test]
fn a_lost_probe_is_replaced_and_its_late_word_changes_nothing() {
    let test = BreakerTest::new();
    (0..5).for_each(|_| test.fail(0));
    let lost = test.breaker.admit(test.at(1000)).expect("a probe is due");
    let next = test.breaker.admit(test.at(2000)).expect("the first is given up");
    test.breaker.succeeded(&lost).expect("no panic");
    assert_eq!(test.state(), BreakerState::HalfOpen);
    test.breaker.succeeded(&next).expect("no panic");
    (0..5).for_each(|_| test.breaker.failed(&lost, test.at(2001)).expect("no panic"));
    assert_eq!(test.state(), BreakerState::Closed);
}

#[test]
fn calls_from_before_the_opening_change_nothing() {
    let test = BreakerTest::new();
    let early = test.breaker.admit(test.at(0)).expect("closed");
    (0..5).for_each(|_| test.fail(0));
    test.breaker.succeeded(&early).expect("no panic");
    test.breaker.failed(&early, test.at(900)).expect("no panic");
    assert_eq!(test.state(), BreakerState::Open);
    assert!(test.breaker.admit(test.at(1000)).is_ok());
}
