//! What the file tier promises while the disk does its work.

#[path = "support/file_pages.rs"]
mod file_pages;

use file_pages::{Got, SEGMENT_BYTES, Scratch, bytes_of, far, get, header, identity, put};
use hisparse_core::Error;
use hisparse_core::tier::file::{FileTier, FileTierOptions};
use hisparse_core::tier::{PageTier, Stored};

fn assert_all(tier: &FileTier, pages: impl Iterator<Item = u64>, expected: Got) {
    for page in pages {
        assert_eq!(get(tier, page), Ok(expected), "page {page}");
    }
}

fn put_all(tier: &FileTier, pages: impl Iterator<Item = u64>) {
    for page in pages {
        assert_eq!(put(tier, page), Ok(Stored::New), "page {page}");
    }
}

fn remove_all(tier: &FileTier, pages: impl Iterator<Item = u64>) {
    for page in pages {
        assert_eq!(tier.remove(&identity(page), far()), Ok(true), "page {page}");
    }
}

#[test]
fn a_page_is_there_as_soon_as_it_is_put_and_after_the_directory_is_opened_again() {
    let scratch = Scratch::new("reopen");
    let (tier, found) = scratch.open(64);
    assert_eq!((found.pages, found.segments), (0, 0));
    put_all(&tier, 0..100);
    assert_all(&tier, 0..100, Got::Right);
    tier.forget_cached();
    tier.flush(far()).expect("a sound disk");
    tier.forget_cached();
    assert_all(&tier, 0..100, Got::Right);
    drop(tier);

    let (tier, found) = scratch.open(64);
    assert_eq!((found.pages, found.skipped, found.torn), (100, 0, 0));
    assert_eq!(found.scanned, 1, "only the segment that was open has no footer");
    assert_all(&tier, 0..100, Got::Right);
    let mut headers = tier.pages();
    headers.sort_by_key(|page| page.identity);
    let mut expected: Vec<_> = (0..100).map(header).collect();
    expected.sort_by_key(|page| page.identity);
    assert_eq!(headers, expected);
}

#[test]
fn a_second_put_is_a_hit_and_takes_nothing() {
    let scratch = Scratch::new("twice");
    let (tier, _) = scratch.open(4);
    assert_eq!(put(&tier, 1), Ok(Stored::New));
    let before = tier.usage();
    assert_eq!(put(&tier, 1), Ok(Stored::Already));
    assert_eq!(tier.usage(), before);
}

#[test]
fn a_removed_page_is_a_miss_and_stays_one() {
    let scratch = Scratch::new("remove");
    let (tier, _) = scratch.open(64);
    put_all(&tier, 0..60);
    tier.flush(far()).expect("a sound disk");
    remove_all(&tier, (0..60).step_by(2));
    assert_eq!(tier.remove(&identity(0), far()), Ok(false));
    for _ in 0..2 {
        assert_all(&tier, (0..60).step_by(2), Got::Miss);
        assert_all(&tier, (1..60).step_by(2), Got::Right);
    }
    drop(tier);
    let (tier, found) = scratch.open(64);
    assert_eq!(found.pages, 30);
    assert_all(&tier, (0..60).step_by(2), Got::Miss);
    assert_eq!(put(&tier, 0), Ok(Stored::New));
    assert_eq!(get(&tier, 0), Ok(Got::Right));
}

#[test]
fn a_full_tier_says_what_was_needed_and_gives_the_whole_capacity_back() {
    let scratch = Scratch::new("full");
    let (tier, _) = scratch.open(4);
    let put_until_full = || (0..1000).take_while(|&page| put(&tier, page).is_ok()).count() as u64;
    let num_pages = put_until_full();
    let refusal = put(&tier, num_pages).expect_err("it is full");
    let Error::TierFull { need, free, capacity, .. } = refusal else { panic!("{refusal}") };
    assert!(need > free && capacity == 4 * SEGMENT_BYTES, "{refusal}");
    assert_all(&tier, 0..num_pages, Got::Right);
    let disk = |scratch: &Scratch| -> u64 {
        scratch.segments().iter().map(|path| path.metadata().expect("it exists").len()).sum()
    };
    assert!(disk(&scratch) <= 4 * SEGMENT_BYTES);
    remove_all(&tier, 0..num_pages);
    assert_eq!(tier.usage().used_bytes, 0);
    assert_eq!(put_until_full(), num_pages, "the same pages fit again");
    assert!(disk(&scratch) <= 4 * SEGMENT_BYTES);
}

#[test]
fn collection_moves_what_is_live_and_returns_the_rest() {
    let scratch = Scratch::new("collect");
    let (tier, _) = scratch.open(16);
    put_all(&tier, 0..90);
    remove_all(&tier, (0..90).filter(|page| page % 4 != 0));
    let before = scratch.segments().len();
    let done = tier.collect(far()).expect("a sound disk");
    assert!(done.segments >= 6 && done.moved >= 10 && done.bytes > 4 * SEGMENT_BYTES, "{done:?}");
    assert!(scratch.segments().len() <= before - 4, "{before} before");
    assert_all(&tier, (0..90).step_by(4), Got::Right);
    drop(tier);
    let (tier, found) = scratch.open(16);
    assert_eq!((found.pages, found.skipped), (23, 0));
    assert_all(&tier, (0..90).step_by(4), Got::Right);
}

#[test]
fn pages_that_cannot_be_are_refused() {
    let scratch = Scratch::new("refused");
    let (tier, _) = scratch.open(4);
    let longest = usize::try_from(SEGMENT_BYTES).expect("small") - 2 * 4096 - 192;
    let put = |len: usize| tier.put(&header(1), &vec![1; len], far());
    assert!(matches!(put(0), Err(Error::OutOfRange { what: "bytes of a page", .. })));
    assert!(matches!(put(longest + 1), Err(Error::OutOfRange { .. })));
    assert_eq!(put(longest), Ok(Stored::New));
    let short = tier.get(&identity(1), &mut vec![0; longest - 1], far());
    assert!(matches!(short, Err(Error::OutOfRange { .. })));
    let options = FileTierOptions { segment_bytes: 65 << 10, ..scratch.options(4) };
    assert!(matches!(FileTier::open(options), Err(Error::NotAMultiple { .. })));
    assert!(matches!(FileTier::open(scratch.options(2)), Err(Error::OutOfRange { .. })));
}

#[test]
fn one_process_holds_the_directory_and_another_model_is_refused() {
    let scratch = Scratch::new("held");
    let (tier, _) = scratch.open(4);
    let second = FileTier::open(scratch.options(4)).err();
    assert!(matches!(second, Some(Error::WrongState { found: 1, needed: 0, .. })), "{second:?}");
    put_all(&tier, 0..1);
    drop(tier);
    let options = FileTierOptions { digest: [1; 32], ..scratch.options(4) };
    let foreign = FileTier::open(options).err();
    assert!(matches!(foreign, Some(Error::TierForeign { .. })), "{foreign:?}");
    assert_eq!(get(&scratch.open(4).0, 0), Ok(Got::Right));
}

#[test]
fn many_pages_are_put_at_once_and_each_has_its_own_outcome() {
    let scratch = Scratch::new("many");
    let (tier, _) = scratch.open(64);
    put_all(&tier, 5..6);
    let bytes: Vec<_> = (0..30).map(bytes_of).collect();
    let pages = (0..30).zip(&bytes).map(|(page, bytes)| (header(page), bytes.as_slice()));
    let mut pages: Vec<_> = pages.collect();
    pages.push(pages[7]); // the same page twice in one call
    let outcomes = tier.put_many(&pages, far()).expect("a sound disk");
    for (number, outcome) in outcomes.into_iter().enumerate() {
        let expected = if matches!(number, 5 | 30) { Stored::Already } else { Stored::New };
        assert_eq!(outcome, Ok(expected), "page {number}");
    }
    assert_all(&tier, 0..30, Got::Right);
    let longer = vec![1; 60_000];
    let refused = tier.put_many(&[(header(40), &bytes[0]), (header(41), &longer)], far());
    assert!(matches!(refused, Err(Error::OutOfRange { .. })));
    assert_eq!(tier.usage().pages, 30, "none of them is there");
    drop(tier);
    assert_eq!(scratch.open(64).1.pages, 30);
}
