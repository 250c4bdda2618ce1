//! Pages that a store has which others fill, too: leased as they are found, the head of a chain first.

#[path = "support/prefix_pages.rs"]
mod prefix_pages;

use hisparse_core::ErrorKind;
use hisparse_core::prefix::{
    Elsewhere, Held, LowerTier, LowerTiers, OwnerId, PrefixDirectory, PrefixLease, TenantId,
};
use hisparse_core::tier::PageHeader;
use prefix_pages::{FOREVER, LEAF_FIRST, directory, headers, identities};

const REMOTE: Held = Held::Lower(LowerTiers::NONE.with(LowerTier::Remote));
const FILE: Held = Held::Lower(LowerTiers::NONE.with(LowerTier::File));

/// A directory that may know so many pages.
struct Site {
    directory: PrefixDirectory,
    tenant: TenantId,
    owner: OwnerId,
}

impl Site {
    fn new(max_pages: u32) -> Self {
        let directory = directory(8, max_pages, LEAF_FIRST);
        let tenant = directory.add_tenant(8).expect("a new tenant");
        let owner = directory.register(0).expect("numbers are left");
        Self { directory, tenant, owner }
    }

    fn lease(&self, pages: &[PageHeader], deadline_ms: u64) -> PrefixLease {
        let chain = identities(pages);
        self.directory
            .match_prefix(&chain, self.tenant, self.owner, deadline_ms)
            .expect("the owner lives")
    }

    fn has_in_files(&self, pages: &[PageHeader]) {
        for page in pages {
            let (file, tenant) = (LowerTier::File, Some(self.tenant));
            self.directory.found_below(page, file, tenant).expect("there is room");
        }
    }

    fn pins(&self) -> u64 {
        self.directory.check_integrity().expect("sound");
        self.directory.stats().expect("nobody has panicked").pins
    }
}

fn in_store(pages: &[PageHeader], num_held: usize) -> Elsewhere<'_> {
    Elsewhere { pages, num_held, tier: LowerTier::Remote }
}

#[test]
fn a_chain_longer_than_the_directory_keeps_its_head() {
    let (site, pages) = (Site::new(4), headers("a", 1, 10));
    site.has_in_files(&headers("a", 2, 4)); // of others, who make room
    let mut lease = site.lease(&pages, FOREVER);
    assert_eq!(lease.lengthen(in_store(&pages, 10), 0), Ok(4));
    assert_eq!(lease.found(), [REMOTE; 4]);
    assert_eq!(lease.lengthen(in_store(&pages[4..], 6), 0), Ok(0));
    assert_eq!(lease.pages(0).expect("it lives"), [REMOTE; 4]);
    assert_eq!(site.lease(&pages, FOREVER).found().len(), 4, "whoever comes next finds them");
    drop(lease);
    assert_eq!(site.pins(), 0);
}

#[test]
fn pages_that_a_lease_or_a_chain_has_are_not_given_up_for_a_longer_one() {
    let site = Site::new(6);
    let (theirs, ours) = (headers("a", 1, 3), headers("a", 2, 10));
    site.has_in_files(&theirs);
    let lease = site.lease(&theirs, FOREVER);
    let mut longer = site.lease(&ours, FOREVER);
    assert_eq!(longer.lengthen(in_store(&ours, 10), 0), Ok(3));
    assert_eq!(lease.pages(0).expect("it lives"), [FILE; 3]);
    assert_eq!(site.pins(), 6);
}

#[test]
fn a_run_goes_on_over_known_pages_and_ends_at_the_first_that_nobody_has() {
    let (site, pages) = (Site::new(16), headers("a", 1, 10));
    site.has_in_files(&pages[..1]);
    site.has_in_files(&pages[3..6]);
    site.has_in_files(&pages[8..]);
    let mut lease = site.lease(&pages, FOREVER);
    assert_eq!(lease.found(), [FILE]);
    // the store has pages 1 to 4; 3 and 4 were known, and keep the copies that they had
    assert_eq!(lease.lengthen(in_store(&pages[1..], 4), 0), Ok(5));
    assert_eq!(lease.found(), [FILE, REMOTE, REMOTE, FILE, FILE, FILE]);
    assert_eq!(lease.found(), lease.pages(0).expect("it lives"));
    let stats = site.directory.stats().expect("nobody has panicked");
    assert_eq!((stats.hits, stats.misses), (6, 9));
}

#[test]
fn a_lease_that_has_ended_takes_no_more_pages() {
    let (site, pages) = (Site::new(16), headers("a", 1, 3));
    let mut lease = site.lease(&pages, 10);
    let error = lease.lengthen(in_store(&pages, 3), 10).expect_err("its deadline has come");
    assert_eq!(error.kind(), ErrorKind::StaleHandle);
    drop(lease);
    assert_eq!((site.pins(), site.lease(&pages, FOREVER).found().len()), (0, 0));
}
