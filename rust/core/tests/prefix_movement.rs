//! Pages in motion: two acknowledgements each, and nothing lost when one fails.

#[path = "support/prefix_pages.rs"]
mod prefix_pages;

use std::sync::atomic::{AtomicUsize, Ordering};

use hisparse_core::prefix::{
    Elsewhere, Held, HostShelf, LowerTier, LowerTiers, OwnerId, PrefixDirectory, PrefixTable,
    Promotion, Published, Shelf, TenantId, Verdict,
};
use hisparse_core::sync::{Arc, Mutex};
use hisparse_core::tier::PageHeader;
use hisparse_core::{ErrorKind, PageAllocator};
use prefix_pages::{FOREVER, LEAF_FIRST, OWNERS, directory, headers, identities, table};

const FILE: LowerTiers = LowerTiers::NONE.with(LowerTier::File);

struct Held3 {
    directory: PrefixDirectory,
    tenant: TenantId,
    owner: OwnerId,
    pages: Vec<PageHeader>,
    hosts: Vec<u32>,
}

/// Three idle pages of one prefix in a pool of four.
fn three() -> Held3 {
    let directory = directory(4, 8, LEAF_FIRST);
    let tenant = directory.add_tenant(4).expect("a new tenant");
    let owner = directory.register(0).expect("numbers are left");
    let pages = headers("a", 1, 3);
    let mut taken = directory.take(tenant, 3).expect("the pool has room");
    taken.publish(0, &pages).expect("written pages");
    let hosts = taken.numbers();
    drop(taken);
    Held3 { directory, tenant, owner, pages, hosts }
}

impl Held3 {
    fn lease(&self) -> hisparse_core::prefix::PrefixLease {
        let chain = identities(&self.pages);
        self.directory
            .match_prefix(&chain, self.tenant, self.owner, FOREVER)
            .expect("the owner lives")
    }

    fn used_pages(&self) -> u64 {
        self.directory.check_integrity().expect("sound");
        self.directory.tenant_usage(self.tenant).expect("a known tenant").used_pages
    }

    fn demote_all(&self) {
        for demotion in self.directory.demote(9).expect("nobody has panicked").demotions {
            demotion.enqueued().completed(LowerTier::File).expect("a page in motion");
        }
    }
}

#[test]
fn a_page_is_readable_until_its_copy_below_is_complete() {
    let held = three();
    let mut demotions = held.directory.demote(1).unwrap().demotions;
    let demotion = demotions.remove(0);
    assert_eq!(*demotion.header(), held.pages[2], "leaves first");
    assert_eq!(demotion.page(), held.hosts[2]);
    let enqueued = demotion.enqueued();
    assert_eq!(held.lease().found()[2], Held::Host(held.hosts[2]));
    assert_eq!(enqueued.completed(LowerTier::File).unwrap(), Held::Lower(FILE));
    assert_eq!((held.lease().found()[2], held.used_pages()), (Held::Lower(FILE), 2));
}

#[test]
fn a_page_that_is_leased_while_it_is_copied_stays_and_is_free_at_once_later() {
    let held = three();
    let demotion = held.directory.demote(1).unwrap().demotions.remove(0).enqueued();
    let lease = held.lease();
    assert_eq!(demotion.completed(LowerTier::File).unwrap(), Held::Host(held.hosts[2]));
    assert_eq!(held.directory.demote(1).unwrap().freed, 0);
    drop(lease);
    let pressure = held.directory.demote(1).unwrap();
    assert_eq!((pressure.freed, pressure.demotions.len()), (1, 0));
    assert_eq!(held.used_pages(), 2);
}

#[test]
fn a_page_that_a_sequence_shares_while_it_is_copied_stays_charged_and_resident() {
    let held = three();
    let demotion = held.directory.demote(1).unwrap().demotions.remove(0).enqueued();
    let lease = held.lease();
    let shared = lease.share(0).unwrap();
    drop(lease);
    assert_eq!(demotion.completed(LowerTier::File).unwrap(), Held::Host(held.hosts[2]));
    assert_eq!((shared.numbers(), held.used_pages()), (held.hosts.clone(), 3));
}

#[test]
fn a_dropped_movement_gives_back_what_it_held() {
    let held = three();
    let mut begun = held.directory.demote(2).unwrap().demotions;
    assert_eq!(held.directory.demote(1).unwrap().demotions.len(), 0, "a page after it is there");
    let enqueued = begun.remove(0).enqueued();
    drop((begun, enqueued));
    assert_eq!(held.directory.stats().unwrap().resident, 3);
    held.demote_all();
    let lease = held.lease();
    let mut promotions = lease.promote(0..3, 0).unwrap();
    assert_eq!(held.used_pages(), 3);
    assert!(lease.pages(0).unwrap().iter().all(|page| matches!(page, Held::Arriving(_))));
    assert_eq!(lease.promote(0..3, 0).unwrap().len(), 0, "somebody else copies them already");
    let enqueued = promotions.remove(0).enqueued();
    drop((promotions, enqueued));
    assert_eq!((held.used_pages(), held.directory.stats().unwrap().lower), (0, 3));
}

#[test]
fn a_promoted_page_is_readable_once_it_is_complete() {
    let held = three();
    held.demote_all();
    let lease = held.lease();
    for promotion in lease.promote(0..2, 0).unwrap() {
        let page = promotion.page();
        assert_eq!(promotion.enqueued().completed().unwrap(), Held::Host(page));
    }
    let places = lease.pages(0).unwrap();
    assert!(matches!(places[..], [Held::Host(_), Held::Host(_), Held::Lower(FILE)]));
    drop(lease);
    assert_eq!(held.directory.demote(9).unwrap().freed, 2, "the copies below are still there");
    assert_eq!(held.used_pages(), 0);
}

#[test]
fn pages_are_promoted_once_and_in_the_order_of_the_prefix() {
    let held = three();
    held.demote_all();
    let mut chain = identities(&held.pages);
    chain.extend_from_within(..);
    let lease = held.directory.match_prefix(&chain, held.tenant, held.owner, FOREVER).unwrap();
    assert_eq!(lease.found().len(), 6);
    let begun = lease.promote(0..6, 0).unwrap();
    let order: Vec<PageHeader> = begun.iter().map(|promotion| *promotion.header()).collect();
    assert_eq!(order, held.pages);
    drop((begun, lease));
    assert_eq!(held.used_pages(), 0);
}

#[test]
fn a_sequence_that_computes_a_page_again_brings_it_up() {
    let held = three();
    held.demote_all();
    let lease = held.lease();
    let promotion = lease.promote(1..2, 0).unwrap().remove(0);
    let mut taken = held.directory.take(held.tenant, 3).unwrap();
    let published = taken.publish(0, &held.pages).unwrap();
    assert_eq!(published, [Published::First, Published::Unshared, Published::First]);
    assert_eq!(lease.pages(0).unwrap()[0], Held::Host(taken.numbers()[0]));
    drop(promotion);
    drop((taken, lease));
    assert_eq!(held.used_pages(), 2);
}

#[test]
fn ranks_that_apply_the_decisions_agree_on_every_page() {
    let held = three();
    held.demote_all();
    let decisions = held.directory.decisions_since(0).unwrap();
    let verdicts: Vec<Verdict> = decisions.iter().map(|made| made.verdict).collect();
    let [first, second, third] = held.hosts[..] else { panic!("three pages") };
    let begun = [third, second, first].map(Verdict::Demote);
    let left = [third, second, first].map(Verdict::Leave);
    assert_eq!(verdicts, [begun, left].concat());
    assert_eq!(held.directory.decisions_since(6), Ok(vec![]));
    assert_eq!(held.directory.decisions_since(7).unwrap_err().kind(), ErrorKind::InvalidArgument);
}

/// A shelf whose pool is full in the call numbered `fails_at`.
#[derive(Debug)]
struct FailingShelf {
    inner: HostShelf,
    full: PageAllocator,
    calls: Arc<AtomicUsize>,
    fails_at: Arc<AtomicUsize>,
}

impl Shelf for FailingShelf {
    fn parts(&mut self) -> (&mut PageAllocator, &mut PrefixTable) {
        let (pool, table) = self.inner.parts();
        let call = self.calls.fetch_add(1, Ordering::Relaxed) + 1;
        let fails = call == self.fails_at.load(Ordering::Relaxed);
        (if fails { &mut self.full } else { pool }, table)
    }
}

/// Case 5: the host pool is full at every n-th allocation while 64 pages are promoted.
#[test]
fn no_pin_leaks_when_an_allocation_fails_during_promotion() {
    let (calls, fails_at) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let mut full = PageAllocator::new(1).unwrap();
    full.allocate(TenantId::DEFAULT, 1).unwrap();
    full.add_tenant(64).unwrap();
    let inner = HostShelf::new(PageAllocator::new(64).unwrap(), table(64, LEAF_FIRST));
    let shelf =
        FailingShelf { inner, full, calls: Arc::clone(&calls), fails_at: Arc::clone(&fails_at) };
    let directory = PrefixDirectory::over(Arc::new(Mutex::new(shelf)), OWNERS).unwrap();
    let tenant = directory.add_tenant(64).unwrap();
    let owner = directory.register(0).unwrap();
    let pages = headers("a", 1, 64);
    for page in &pages {
        directory.found_below(page, LowerTier::File, Some(tenant)).unwrap();
    }
    let chain = identities(&pages);
    for nth in 1..=200 {
        // four rounds over the 64 pages, one allocation each, until the n-th fails
        let mut allocations = 0;
        'rounds: for _ in 0..4 {
            let lease = directory.match_prefix(&chain, tenant, owner, FOREVER).unwrap();
            let mut begun: Vec<Promotion> = Vec::new();
            for page in 0..64 {
                allocations += 1;
                let next_call = calls.load(Ordering::Relaxed) + 1;
                fails_at.store(if allocations == nth { next_call } else { 0 }, Ordering::Relaxed);
                match lease.promote(page..page + 1, 0) {
                    Ok(more) => begun.extend(more),
                    Err(error) => {
                        assert_eq!(error.kind(), ErrorKind::HostPoolFull);
                        break 'rounds;
                    }
                }
            }
            assert_eq!(begun.len(), 64);
        }
        assert_eq!(allocations, nth);
        let stats = directory.stats().unwrap();
        assert_eq!((stats.pins, stats.leases, stats.promoting), (0, 0, 0), "n = {nth}");
        assert_eq!(directory.tenant_usage(tenant).unwrap().used_pages, 0);
        directory.check_integrity().unwrap();
    }
    let lease = directory.match_prefix(&chain, tenant, owner, FOREVER).unwrap();
    let all = lease.promote(0..64, 0).unwrap();
    assert_eq!(all.len(), 64, "the next request succeeds");
    assert!(all.into_iter().all(|one| one.enqueued().completed().is_ok()));
}

/// As case 5, with all pages in one call: it takes every host page or none.
#[test]
fn a_promotion_of_many_pages_takes_all_or_none() {
    for num_pages in 1..64 {
        let directory = directory(num_pages, 64, LEAF_FIRST);
        let tenant = directory.add_tenant(64).unwrap();
        let owner = directory.register(0).unwrap();
        let pages = headers("a", 1, 64);
        for page in &pages {
            directory.found_below(page, LowerTier::File, Some(tenant)).unwrap();
        }
        let lease = directory.match_prefix(&identities(&pages), tenant, owner, FOREVER).unwrap();
        let error = lease.promote(0..64, 0).unwrap_err().to_string();
        let full = format!("host pool full: need 64 pages, {num_pages} free of {num_pages}");
        assert_eq!(error, full);
        assert_eq!(directory.tenant_usage(tenant).unwrap().used_pages, 0);
        drop(lease);
        assert_eq!(directory.stats().unwrap().pins, 0);
        assert_eq!(directory.take(tenant, num_pages as usize).unwrap().len(), num_pages as usize);
    }
}

#[test]
fn a_page_that_is_here_goes_down_whatever_others_have_put_under_its_name() {
    let three = three();
    let (directory, tenant) = (&three.directory, three.tenant);
    let mut lease = directory.match_prefix(&[], tenant, three.owner, FOREVER).expect("it lives");
    let found = Elsewhere { pages: &three.pages, num_held: 3, tier: LowerTier::Remote };
    assert_eq!(lease.lengthen(found, 0), Ok(3));
    drop(lease);
    let pressure = three.directory.demote(9).expect("nobody has panicked");
    assert_eq!((pressure.freed, pressure.demotions.len()), (0, 3));
    for demotion in pressure.demotions {
        let held = demotion.enqueued().completed(LowerTier::File).expect("a page in motion");
        assert_eq!(held, Held::Lower(FILE));
    }
}
