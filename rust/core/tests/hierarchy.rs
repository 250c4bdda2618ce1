//! Pages that go down to files or a remote store and come back, byte for byte.

#[path = "support/file_pages.rs"]
mod file_pages;
#[path = "support/hierarchy_rig.rs"]
mod hierarchy_rig;
#[path = "support/prefix_pages.rs"]
mod prefix_pages;

use std::sync::Arc;
use std::time::{Duration, Instant};

use file_pages::Scratch;
use hierarchy_rig::{LIMITS, Rig, far, file, remote, state, within};
use hisparse_core::ErrorKind;
use hisparse_core::hierarchy::{HierarchyLimits, LoadTable, TierSpeed};
use hisparse_core::prefix::LowerTier;
use hisparse_core::tier::{MemoryTier, PageHeader, PageTier};
use prefix_pages::headers;

#[test]
fn every_byte_comes_back_from_the_file_tier_for_odd_numbers_of_pages() {
    for num_pages in [1, 7, 63, 64, 65] {
        let (rig, scratch) = (Rig::new(65), Scratch::new("round-trip"));
        let hierarchy = rig.hierarchy(vec![file(Arc::new(scratch.open(16).0))]);
        let pages = rig.publish(1, num_pages);
        assert_eq!(hierarchy.make_room(65, far()), Ok(65));
        // what lies in the pool now has nothing to do with the pages
        let loan = rig.region.lend_pages(&rig.layout).unwrap();
        (0..65).for_each(|page| loan.write(page, &vec![0xee; rig.layout.page_bytes()]).unwrap());
        drop(loan);
        let lease = rig.lease(&pages);
        let loaded = hierarchy.load(&lease, 0..num_pages, 0, far()).unwrap();
        assert_eq!((loaded.pages, loaded.promoted), (num_pages, num_pages));
        assert_eq!(rig.check_bytes(&lease, &pages), num_pages);
        drop(lease);
        rig.check_rest();
    }
}

#[test]
fn every_code_survives_at_every_place_of_a_page() {
    let (rig, scratch) = (Rig::new(8), Scratch::new("codes"));
    let hierarchy = rig.hierarchy(vec![file(Arc::new(scratch.open(8).0))]);
    let codes = |shift: usize| {
        let code = |at: usize| (at + shift).to_le_bytes()[0];
        (0..rig.layout.page_bytes()).map(code).collect::<Vec<u8>>()
    };
    for shift in 0..256 {
        let page = headers("a", 1000 + u32::try_from(shift).unwrap(), 1);
        let mut taken = rig.directory.take(rig.tenant, 1).unwrap();
        let number = taken.numbers()[0];
        let write = |bytes: &[u8]| {
            rig.region.lend_pages(&rig.layout).unwrap().write(number, bytes).unwrap();
        };
        write(&codes(shift));
        taken.publish(0, &page).unwrap();
        drop(taken);
        hierarchy.make_room(8, far()).unwrap();
        write(&vec![0; rig.layout.page_bytes()]);
        let lease = rig.lease(&page);
        assert_eq!(hierarchy.load(&lease, 0..1, 0, far()).unwrap().pages, 1);
        let hisparse_core::prefix::Held::Host(arrived) = lease.pages(0).unwrap()[0] else {
            panic!("it was loaded")
        };
        let mut found = vec![0; rig.layout.page_bytes()];
        rig.region.lend_pages(&rig.layout).unwrap().read(arrived, &mut found).unwrap();
        assert!(found == codes(shift), "codes from {shift} on");
    }
}

#[test]
fn a_restart_finds_what_was_drained_and_its_bytes() {
    let scratch = Scratch::new("restart");
    let pages = {
        let rig = Rig::new(40);
        let hierarchy = rig.hierarchy(vec![file(Arc::new(scratch.open(16).0))]);
        let pages = rig.publish(1, 37);
        let pinned = rig.lease(&pages[..2]);
        let drained = hierarchy.drain(far()).unwrap();
        assert_eq!((drained.moved, drained.left), (35, 2), "pinned pages stay");
        drop(pinned);
        let drained = hierarchy.drain(far()).unwrap();
        assert_eq!((drained.moved, drained.left), (2, 0));
        pages
    };
    let rig = Rig::new(40);
    let hierarchy = rig.hierarchy(vec![file(Arc::new(scratch.open(16).0))]);
    assert_eq!(hierarchy.recover(far()).unwrap().pages, 37);
    let lease = rig.lease(&pages);
    assert_eq!(hierarchy.load(&lease, 0..37, 0, far()).unwrap().pages, 37);
    assert_eq!(rig.check_bytes(&lease, &pages), 37);
    drop(lease);
    rig.check_rest();
}

#[test]
fn a_page_that_is_not_full_is_not_recovered_and_leaves_the_tier() {
    let (rig, scratch) = (Rig::new(4), Scratch::new("not-full"));
    let tier = Arc::new(scratch.open(8).0);
    let page = headers("a", 1, 2);
    let short = PageHeader { num_tokens: 63, ..page[1] };
    tier.put(&page[0], &[1; 9], far()).unwrap();
    tier.put(&short, &[1; 9], far()).unwrap();
    let hierarchy = rig.hierarchy(vec![file(tier.clone())]);
    let recovered = hierarchy.recover(far()).unwrap();
    assert_eq!((recovered.pages, recovered.removed), (1, 1));
    assert_eq!(tier.usage().pages, 1);
}

#[test]
fn a_full_file_tier_passes_its_oldest_pages_on_to_the_remote_one() {
    let (rig, scratch) = (Rig::new(16), Scratch::new("cascade"));
    let shared: Arc<dyn PageTier> = Arc::new(MemoryTier::new(1 << 24));
    let below = vec![file(Arc::new(scratch.open(4).0)), remote(Arc::clone(&shared))];
    let hierarchy = rig.hierarchy(below);
    let mut all = Vec::new();
    for seed in 1..=20 {
        all.push(rig.publish(seed, 8));
        assert_eq!(hierarchy.make_room(16, far()), Ok(16), "round {seed}");
    }
    let states = [LowerTier::File, LowerTier::Remote].map(|tier| state(&hierarchy, tier));
    let [files, remotes] = states;
    assert!(files.counts.left > 0 && remotes.counts.demoted >= files.counts.left, "{states:?}");
    assert_eq!(files.usage.pages + remotes.usage.pages, 160, "{states:?}");
    assert_eq!(hierarchy.num_kept(), 0);
    for pages in &all {
        let lease = rig.lease(pages);
        assert_eq!(hierarchy.load(&lease, 0..8, 0, far()).unwrap().pages, 8);
        assert_eq!(rig.check_bytes(&lease, pages), 8);
        drop(lease);
        hierarchy.make_room(16, far()).unwrap();
    }
    rig.check_rest();
}

#[test]
fn a_full_file_tier_alone_loses_its_oldest_pages_and_takes_the_newest() {
    let (rig, scratch) = (Rig::new(16), Scratch::new("lru"));
    let hierarchy = rig.hierarchy(vec![file(Arc::new(scratch.open(4).0))]);
    let mut all = Vec::new();
    for seed in 1..=20 {
        all.push(rig.publish(seed, 8));
        assert_eq!(hierarchy.make_room(16, far()), Ok(16), "round {seed}");
    }
    assert_eq!(rig.lease(&all[0]).found().len(), 0, "the oldest went");
    let lease = rig.lease(&all[19]);
    assert_eq!(hierarchy.load(&lease, 0..8, 0, far()).unwrap().pages, 8);
    assert_eq!(rig.check_bytes(&lease, &all[19]), 8);
    drop(lease);
    rig.check_rest();
}

#[test]
fn pages_that_no_tier_takes_stay_and_admission_names_both_numbers() {
    let rig = Rig::new(8);
    let tiny: Arc<dyn PageTier> = Arc::new(MemoryTier::new(4 * rig.layout.page_bytes() as u64));
    let hierarchy = rig.hierarchy(vec![remote(tiny)]);
    let pages = rig.publish(1, 8);
    let pinned = rig.lease(&pages);
    let error = hierarchy.make_room(1, far()).unwrap_err();
    assert_eq!(error.to_string(), "host pool full: need 1 pages, 0 free of 8");
    drop(pinned);
    assert_eq!(hierarchy.make_room(4, far()), Ok(4));
    // the tier gives its oldest up for the next four: a page is lost only for one that is newer
    assert_eq!(hierarchy.make_room(8, far()), Ok(8));
    assert_eq!(state(&hierarchy, LowerTier::Remote).counts.left, 4);
    assert_eq!(hierarchy.make_room(9, far()).unwrap_err().kind(), ErrorKind::InvalidArgument);
    rig.check_rest();
}

#[test]
fn without_tiers_below_idle_pages_stay_until_they_are_evicted() {
    let rig = Rig::new(4);
    let hierarchy = rig.hierarchy(vec![]);
    let pages = rig.publish(1, 4);
    let error = hierarchy.make_room(2, far()).unwrap_err();
    assert_eq!(error.to_string(), "host pool full: need 2 pages, 0 free of 4");
    assert!(hierarchy.num_kept() >= 2);
    assert_eq!(rig.lease(&pages).found().len(), 4);
    rig.check_rest();
}

#[test]
fn balancing_keeps_the_low_watermark_free_when_it_is_woken() {
    let rig = Rig::new(32);
    let limits = HierarchyLimits { low_watermark_pages: 8, ..LIMITS };
    let hierarchy = rig.limited(vec![file(Arc::new(MemoryTier::new(1 << 24)))], limits);
    hierarchy.start_balancing().unwrap();
    hierarchy.start_balancing().unwrap();
    for seed in 1..=10 {
        let pages = rig.publish(seed, 20);
        hierarchy.wake();
        let begin = Instant::now();
        while rig.directory.host_room().unwrap().available < 8 {
            assert!(begin.elapsed() < Duration::from_secs(60), "nobody balances");
            std::thread::sleep(Duration::from_millis(1));
        }
        let lease = rig.lease(&pages);
        assert_eq!(lease.found().len(), 20);
        assert_eq!(hierarchy.load(&lease, 0..20, 0, far()).unwrap().pages, 20);
        assert_eq!(rig.check_bytes(&lease, &pages), 20);
    }
    hierarchy.close();
    assert_eq!(hierarchy.balance(far()).unwrap_err().kind(), ErrorKind::WrongState);
    rig.check_rest();
}

#[test]
fn two_loads_of_one_prefix_read_each_page_once() {
    let rig = Rig::new(64);
    let tier = Arc::new(MemoryTier::new(1 << 24));
    let hierarchy = rig.hierarchy(vec![file(tier)]);
    let pages = rig.publish(1, 48);
    hierarchy.make_room(64, far()).unwrap();
    std::thread::scope(|scope| {
        let load = || {
            let lease = rig.lease(&pages);
            assert_eq!(hierarchy.load(&lease, 0..48, 0, far()).unwrap().pages, 48);
            assert_eq!(rig.check_bytes(&lease, &pages), 48);
        };
        for _ in 0..4 {
            scope.spawn(load);
        }
    });
    assert_eq!(state(&hierarchy, LowerTier::File).counts.promoted, 48);
    rig.check_rest();
}

#[test]
fn a_load_takes_what_its_range_names_and_no_more() {
    let rig = Rig::new(16);
    let hierarchy = rig.hierarchy(vec![file(Arc::new(MemoryTier::new(1 << 24)))]);
    let pages = rig.publish(1, 10);
    hierarchy.make_room(16, far()).unwrap();
    let lease = rig.lease(&pages);
    assert_eq!(hierarchy.load(&lease, 2..5, 0, far()).unwrap().pages, 3);
    assert_eq!(rig.check_bytes(&lease, &pages), 3);
    assert_eq!(hierarchy.load(&lease, 0..0, 0, far()).unwrap().pages, 0);
    let error = hierarchy.load(&lease, 3..11, 0, far()).unwrap_err();
    assert_eq!(error.to_string(), "end of the pages to load: found 11, needed 3 to 10");
    assert_eq!(hierarchy.load(&lease, 0..10, 0, within(0)).unwrap().pages, 0);
}

#[test]
fn loading_is_worth_it_where_bytes_are_faster_than_computing() {
    let rig = Rig::new(4);
    let tiers = vec![file(Arc::new(MemoryTier::new(1 << 24)))];
    let hierarchy = rig.hierarchy(tiers);
    let worth = |tier, pages, rate| hierarchy.worth_loading(tier, pages, rate).unwrap();
    assert!(worth(LowerTier::Remote, 1, 1e12), "nothing was measured");
    let page_bytes = rig.layout.page_bytes() as u64;
    let speed = TierSpeed { latency_us: 1000, bytes_per_s: 1000 * page_bytes };
    hierarchy.adopt(LoadTable { speeds: vec![(LowerTier::File, speed)] }, 3).unwrap();
    // one page: 1 ms + 1 ms against 64 tokens; a thousand: 1 ms + 1 s against 64,000
    assert!(worth(LowerTier::File, 1, 31_000.0) && !worth(LowerTier::File, 1, 33_000.0));
    assert!(worth(LowerTier::File, 1000, 63_000.0) && !worth(LowerTier::File, 1000, 64_000.0));
    assert!(!worth(LowerTier::Remote, 1, 1.0), "it did not answer when it was measured");
    let error = hierarchy.adopt(LoadTable::default(), 3).unwrap_err();
    assert_eq!(error.to_string(), "epoch of a load table: found 3, needed 4");
    assert_eq!(hierarchy.load_table().unwrap().1, 3);
}
