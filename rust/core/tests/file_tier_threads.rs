//! Threads that put, get, remove, flush and collect the same pages at the same time.

#[path = "support/file_pages.rs"]
mod file_pages;

use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use file_pages::{Got, Scratch, far, get, identity, put};
use hisparse_core::Error;
use hisparse_core::tier::PageTier;
use hisparse_core::tier::file::{FileTier, FileTierOptions, RecoveryMode};

const NUM_PAGES: u64 = 60;
const STEPS: u64 = 600;

/// A thread's steps; counts what it got that was there.
fn work(tier: &FileTier, seed: u64, hits: &AtomicU64) {
    let mut word = seed;
    for step in 0..STEPS {
        word = word.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(seed | 1);
        let page = (word >> 33) % NUM_PAGES;
        match (word >> 50) % 10 {
            0..4 => match put(tier, page) {
                Ok(_) | Err(Error::TierFull { .. }) => {}
                Err(error) => panic!("{error}"),
            },
            4..7 => {
                let got = get(tier, page).expect("a sound disk");
                assert_ne!(got, Got::Wrong, "page {page}");
                hits.fetch_add(u64::from(got == Got::Right), Ordering::Relaxed);
            }
            7..9 => drop(tier.remove(&identity(page), far()).expect("a sound disk")),
            _ if step % 4 == 0 => drop(tier.collect(far()).expect("a sound disk")),
            _ => tier.flush(far()).expect("a sound disk"),
        }
    }
}

fn check(segments: u64) {
    let scratch = Scratch::new("threads");
    let options = FileTierOptions {
        recovery: RecoveryMode::Strict,
        io_threads: 4,
        ..scratch.options(segments)
    };
    let (tier, _) = FileTier::open(options.clone()).expect("a new directory");
    let hits = AtomicU64::new(0);
    thread::scope(|scope| {
        for seed in 1..=6 {
            let (tier, hits) = (&tier, &hits);
            scope.spawn(move || work(tier, seed * 7_777, hits));
        }
    });
    assert!(hits.into_inner() > 100, "the threads met each other's pages");
    let (usage, pages) = (tier.usage(), tier.pages());
    assert_eq!((usage.pages, usage.corrupt), (pages.len() as u64, 0));
    drop(tier);
    let (tier, found) = FileTier::open(options).expect("no damage");
    assert_eq!(found.pages, pages.len() as u64);
    for page in 0..NUM_PAGES {
        let is_held = pages.iter().any(|held| held.identity == identity(page));
        let expected = if is_held { Got::Right } else { Got::Miss };
        assert_eq!(get(&tier, page), Ok(expected), "page {page}");
    }
}

#[test]
fn threads_never_see_wrong_bytes_in_a_wide_tier() {
    check(64);
}

#[test]
fn threads_never_see_wrong_bytes_in_a_tier_that_collects_all_the_time() {
    check(5);
}
