//! Who shares which page, and what a lease is worth.

#[path = "support/prefix_pages.rs"]
mod prefix_pages;

use hisparse_core::ErrorKind;
use hisparse_core::prefix::{
    Held, LeaseKey, LowerTier, LowerTiers, OwnerId, PrefixDirectory, Published, TenantId,
};
use hisparse_core::tier::PageHeader;
use prefix_pages::{FOREVER, LEAF_FIRST, directory, headers, identities};

const FILE: LowerTiers = LowerTiers::NONE.with(LowerTier::File);

struct Shelf {
    directory: PrefixDirectory,
    tenant: TenantId,
    owner: OwnerId,
}

fn shelf(num_pages: u32) -> Shelf {
    let directory = directory(num_pages, 64, LEAF_FIRST);
    let tenant = directory.add_tenant(num_pages.into()).expect("a new tenant");
    let owner = directory.register(0).expect("numbers are left");
    Shelf { directory, tenant, owner }
}

impl Shelf {
    /// Publishes the pages and lets go of them; they stay, idle.
    fn keep(&self, pages: &[PageHeader]) -> Vec<u32> {
        let mut taken = self.directory.take(self.tenant, pages.len()).expect("the pool has room");
        assert_eq!(
            taken.publish(0, pages).expect("written pages"),
            vec![Published::First; pages.len()]
        );
        taken.numbers()
    }

    fn used_pages(&self) -> u64 {
        self.directory.check_integrity().expect("sound");
        self.directory.tenant_usage(self.tenant).expect("a known tenant").used_pages
    }
}

#[test]
fn the_first_publisher_wins_and_the_second_gets_its_page() {
    let shelf = shelf(8);
    let pages = headers("a", 1, 2);
    let mut first = shelf.directory.take(shelf.tenant, 2).unwrap();
    let mut second = shelf.directory.take(shelf.tenant, 2).unwrap();
    first.publish(0, &pages).unwrap();
    assert_eq!(shelf.used_pages(), 4);
    let published = second.publish(0, &pages).unwrap();
    assert!(published.iter().all(|page| matches!(page, Published::Existing(_))));
    assert_eq!((second.numbers(), shelf.used_pages()), (first.numbers(), 2));
    drop((first, second));
    assert_eq!(shelf.used_pages(), 2, "idle pages stay");
    assert_eq!(shelf.directory.evict(9), Ok(2));
    assert_eq!(shelf.used_pages(), 0);
}

#[test]
fn only_full_pages_are_shared_and_each_once() {
    let shelf = shelf(8);
    let pages = headers("a", 1, 2);
    let mut taken = shelf.directory.take(shelf.tenant, 1).unwrap();
    let open = PageHeader { num_tokens: 63, ..pages[0] };
    let error = taken.publish(0, &[open]).unwrap_err();
    assert_eq!(error.to_string(), "tokens of a shared page: found 63, needed 64 to 64");
    assert!(taken.publish(0, &pages).is_err(), "more pages than are there");
    taken.publish(0, &pages[..1]).unwrap();
    let error = taken.publish(0, &pages[1..]).unwrap_err();
    assert_eq!(error.to_string(), "sequences that own the page: found 0, needed 1");
    assert_eq!(shelf.used_pages(), 1);
}

#[test]
fn another_tenants_equal_prefix_is_no_hit() {
    let shelf = shelf(8);
    shelf.keep(&headers("a", 1, 3));
    let (same, other) = (identities(&headers("a", 1, 3)), identities(&headers("b", 1, 3)));
    let lease =
        |chain| shelf.directory.match_prefix(chain, shelf.tenant, shelf.owner, FOREVER).unwrap();
    assert_eq!(lease(&same).found().len(), 3);
    assert_eq!(lease(&other).found(), []);
    let stats = shelf.directory.stats().unwrap();
    assert_eq!((stats.hits, stats.misses), (3, 3));
}

#[test]
fn a_page_cannot_change_its_tenant() {
    let shelf = shelf(8);
    let pages = headers("a", 1, 1);
    shelf.keep(&pages);
    let other = shelf.directory.add_tenant(4).unwrap();
    let mut taken = shelf.directory.take(other, 1).unwrap();
    assert_eq!(taken.publish(0, &pages).unwrap_err().kind(), ErrorKind::WrongState);
    assert!(shelf.directory.found_below(&pages[0], LowerTier::File, Some(other)).is_err());
    assert_eq!(shelf.used_pages(), 1);
}

#[test]
fn a_match_ends_at_the_first_page_that_no_tier_has() {
    let shelf = shelf(8);
    let pages = headers("a", 1, 5);
    let hosts = shelf.keep(&pages[..2]);
    shelf.directory.found_below(&pages[2], LowerTier::File, Some(shelf.tenant)).unwrap();
    shelf.directory.found_below(&pages[4], LowerTier::File, Some(shelf.tenant)).unwrap();
    let lease = shelf
        .directory
        .match_prefix(&identities(&pages), shelf.tenant, shelf.owner, FOREVER)
        .unwrap();
    let expected = [Held::Host(hosts[0]), Held::Host(hosts[1]), Held::Lower(FILE)];
    assert_eq!(lease.found(), expected);
    assert_eq!(lease.share(0).unwrap_err().kind(), ErrorKind::WrongState);
}

#[test]
fn leased_pages_are_neither_evicted_nor_demoted() {
    let shelf = shelf(4);
    let pages = headers("a", 1, 4);
    let hosts = shelf.keep(&pages);
    let chain = identities(&pages[..3]);
    let lease = shelf.directory.match_prefix(&chain, shelf.tenant, shelf.owner, FOREVER).unwrap();
    assert_eq!(shelf.directory.evict(9), Ok(1));
    let pressure = shelf.directory.demote(9).unwrap();
    assert_eq!((pressure.freed, pressure.demotions.len()), (0, 0));
    let error = shelf.directory.take(shelf.tenant, 2).unwrap_err();
    assert_eq!(error.to_string(), "share of tenant 1 full: need 2 pages, 1 free of 4");
    let held: Vec<Held> = hosts[..3].iter().map(|&page| Held::Host(page)).collect();
    assert_eq!(lease.pages(7), Ok(held));
    lease.release().unwrap();
    assert_eq!(shelf.directory.take(shelf.tenant, 4).unwrap().len(), 4);
}

#[test]
fn a_sequence_keeps_the_pages_it_shares_when_the_lease_ends() {
    let shelf = shelf(4);
    let hosts = shelf.keep(&headers("a", 1, 3));
    let chain = identities(&headers("a", 1, 3));
    let lease = shelf.directory.match_prefix(&chain, shelf.tenant, shelf.owner, FOREVER).unwrap();
    let shared = lease.share(0).unwrap();
    drop(lease);
    assert_eq!((shared.numbers(), shelf.directory.evict(9)), (hosts, Ok(0)));
    drop(shared);
    assert_eq!(shelf.directory.evict(9), Ok(3));
}

#[test]
fn a_lease_that_has_ended_is_stale_for_every_use() {
    let shelf = shelf(4);
    shelf.keep(&headers("a", 1, 2));
    let chain = identities(&headers("a", 1, 2));
    let lease = shelf.directory.match_prefix(&chain, shelf.tenant, shelf.owner, 100).unwrap();
    lease.extend(99, 200).unwrap();
    assert_eq!(shelf.directory.sweep(199), Ok(0));
    assert!(lease.pages(199).is_ok());
    let expired = lease.pages(200).unwrap_err();
    assert_eq!(expired.to_string(), "stale prefix lease handle 0: found generation 1, needed 2");
    let before = shelf.directory.stats().unwrap();
    assert_eq!((before.leases, before.pins), (0, 0));
    for error in [
        lease.share(0).unwrap_err(),
        lease.promote(0..1, 0).unwrap_err(),
        lease.extend(0, FOREVER).unwrap_err(),
        shelf.directory.end_lease(lease.key()).unwrap_err(),
        lease.release().unwrap_err(),
    ] {
        assert_eq!(error.kind(), ErrorKind::StaleHandle);
    }
    assert_eq!(shelf.directory.stats(), Ok(before), "counters unchanged");
}

#[test]
fn a_lease_is_swept_at_its_deadline_and_its_name_stays_stale() {
    let shelf = shelf(4);
    shelf.keep(&headers("a", 1, 2));
    let chain = identities(&headers("a", 1, 2));
    let first = shelf.directory.match_prefix(&chain, shelf.tenant, shelf.owner, 100).unwrap();
    let _longer = shelf.directory.match_prefix(&chain, shelf.tenant, shelf.owner, 300).unwrap();
    assert_eq!(shelf.directory.sweep(100), Ok(1));
    let again = shelf.directory.match_prefix(&chain, shelf.tenant, shelf.owner, 400).unwrap();
    let name = LeaseKey::from_bits(first.key().bits());
    assert_ne!(name, again.key());
    assert_eq!(shelf.directory.end_lease(name).unwrap_err().kind(), ErrorKind::StaleHandle);
    drop(first); // ends nothing that lives
    assert_eq!(shelf.directory.stats().unwrap().leases, 2);
    let unknown = LeaseKey::from_bits(u64::MAX);
    assert_eq!(shelf.directory.end_lease(unknown).unwrap_err().kind(), ErrorKind::StaleHandle);
}

#[test]
fn guards_outlive_their_directory_without_harm() {
    let shelf = shelf(8);
    let pages = headers("a", 1, 3);
    shelf.keep(&pages);
    shelf
        .directory
        .found_below(&headers("a", 2, 1)[0], LowerTier::File, Some(shelf.tenant))
        .unwrap();
    let lease = |pages: &[PageHeader]| {
        shelf
            .directory
            .match_prefix(&identities(pages), shelf.tenant, shelf.owner, FOREVER)
            .unwrap()
    };
    let below = lease(&headers("a", 2, 1));
    let promotion = below.promote(0..1, 0).unwrap().remove(0).enqueued();
    let demotion = shelf.directory.demote(1).unwrap().demotions.remove(0).enqueued();
    let held = lease(&pages[..2]);
    let taken = shelf.directory.take(shelf.tenant, 1).unwrap();
    drop(shelf);
    let gone = "directories of a guard: found 0, needed 1";
    assert_eq!(held.pages(0).unwrap_err().to_string(), gone);
    assert_eq!(promotion.completed().unwrap_err().to_string(), gone);
    assert_eq!(demotion.completed(LowerTier::File).unwrap_err().to_string(), gone);
    assert_eq!(taken.release().unwrap_err().to_string(), gone);
}

#[test]
fn a_leased_page_that_its_tier_has_lost_says_so_and_goes_with_the_lease() {
    let shelf = shelf(8);
    let pages = headers("a", 1, 1);
    let (chain, found) = (identities(&pages), pages[0]);
    shelf.directory.found_below(&found, LowerTier::File, Some(shelf.tenant)).unwrap();
    let lease = shelf.directory.match_prefix(&chain, shelf.tenant, shelf.owner, FOREVER).unwrap();
    assert_eq!(shelf.directory.lost_below(&found.identity, LowerTier::Remote), Ok(false));
    assert_eq!(shelf.directory.lost_below(&found.identity, LowerTier::File), Ok(true));
    assert_eq!(lease.pages(0), Ok(vec![Held::Lower(LowerTiers::NONE)]));
    assert_eq!(lease.promote(0..1, 0).unwrap().len(), 0);
    let miss = shelf.directory.match_prefix(&chain, shelf.tenant, shelf.owner, FOREVER).unwrap();
    assert_eq!(miss.found(), [], "exists means readable");
    drop(lease);
    assert_eq!(shelf.directory.stats().unwrap().pages, 0);
    assert_eq!(shelf.used_pages(), 0);
}

#[test]
fn a_lost_page_that_is_found_again_outlives_its_lease() {
    let shelf = shelf(8);
    let page = headers("a", 1, 1)[0];
    let chain = [page.identity];
    shelf.directory.found_below(&page, LowerTier::File, Some(shelf.tenant)).unwrap();
    let lease = shelf.directory.match_prefix(&chain, shelf.tenant, shelf.owner, FOREVER).unwrap();
    shelf.directory.lost_below(&page.identity, LowerTier::File).unwrap();
    shelf.directory.found_below(&page, LowerTier::Remote, Some(shelf.tenant)).unwrap();
    let remote = Held::Lower(LowerTiers::NONE.with(LowerTier::Remote));
    assert_eq!(lease.pages(0), Ok(vec![remote]));
    drop(lease);
    assert_eq!(shelf.used_pages(), 0);
    let again = shelf.directory.match_prefix(&chain, shelf.tenant, shelf.owner, FOREVER).unwrap();
    assert_eq!(again.found(), [remote]);
}
