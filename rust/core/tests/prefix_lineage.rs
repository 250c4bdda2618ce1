//! Refusals that change nothing, and lineage that holds whatever moves or goes.

#[path = "support/prefix_pages.rs"]
mod prefix_pages;

use hisparse_core::ErrorKind;
use hisparse_core::prefix::{Held, LowerTier, OwnerId, PrefixDirectory, TenantId};
use hisparse_core::tier::PageHeader;
use prefix_pages::{FOREVER, LEAF_FIRST, directory, headers, identities};

struct Chain {
    directory: PrefixDirectory,
    tenant: TenantId,
    owner: OwnerId,
    pages: Vec<PageHeader>,
}

/// Idle pages of one prefix, the first page first.
fn chain(num_pages: usize) -> Chain {
    let directory = directory(16, 32, LEAF_FIRST);
    let tenant = directory.add_tenant(16).expect("a new tenant");
    let owner = directory.register(0).expect("a new owner");
    let pages = headers("a", 1, num_pages);
    let mut taken = directory.take(tenant, num_pages).expect("an empty pool");
    taken.publish(0, &pages).expect("new pages");
    drop(taken);
    Chain { directory, tenant, owner, pages }
}

impl Chain {
    /// Pages that a match finds in the host pool from the first one on.
    fn num_matched(&self) -> usize {
        let chain = identities(&self.pages);
        let lease = self
            .directory
            .match_prefix(&chain, self.tenant, self.owner, FOREVER)
            .expect("it lives");
        lease.found().iter().filter(|page| matches!(page, Held::Host(_))).count()
    }

    fn num_resident(&self) -> usize {
        self.directory.check_integrity().expect("sound");
        usize::try_from(self.directory.stats().expect("no panic").resident).expect("a small pool")
    }
}

#[test]
fn a_take_that_a_smaller_quota_refuses_evicts_nothing() {
    let held = chain(8);
    held.directory.set_quota(held.tenant, 2).unwrap();
    let used = || held.directory.tenant_usage(held.tenant).unwrap().used_pages;
    match held.directory.take(held.tenant, 1) {
        Ok(_) => assert!(used() <= 2, "taken beyond the quota: {}", used()),
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::TierFull);
            assert_eq!((held.num_resident(), used()), (8, 8), "a refusal changed something");
        }
    }
}

#[test]
fn a_page_goes_before_the_page_before_it_after_cancelled_demotions() {
    let held = chain(3);
    let mut demotions = held.directory.demote(3).unwrap().demotions;
    assert_eq!(*demotions[1].header(), held.pages[1]);
    drop(demotions.remove(1));
    drop(demotions.pop()); // the first page, and last the third
    drop(demotions);
    assert_eq!(held.directory.evict(1), Ok(1));
    assert_eq!(held.num_matched(), 2);
    assert_eq!(held.num_resident(), 2, "resident pages that no match reaches");
}

#[test]
fn a_page_goes_before_the_page_before_it_after_promotions_that_complete_in_any_order() {
    let held = chain(3);
    for demotion in held.directory.demote(3).unwrap().demotions {
        demotion.enqueued().completed(LowerTier::File).unwrap();
    }
    let lease =
        held.directory.match_prefix(&identities(&held.pages), held.tenant, held.owner, FOREVER);
    let lease = lease.unwrap();
    for promotion in lease.promote(0..3, 0).unwrap().into_iter().rev() {
        promotion.enqueued().completed().unwrap();
    }
    drop(lease);
    assert_eq!(held.num_matched(), 3);
    assert_eq!(held.directory.evict(1), Ok(1));
    let lease =
        held.directory.match_prefix(&identities(&held.pages), held.tenant, held.owner, FOREVER);
    let lease = lease.unwrap();
    assert!(matches!(lease.found(), [Held::Host(_), Held::Host(_), Held::Lower(_)]), "{lease:?}");
}

/// A full directory forgets the end of a prefix, not the page that all others need.
#[test]
fn a_full_directory_forgets_the_end_of_a_prefix_in_lower_tiers() {
    let directory = directory(4, 5, LEAF_FIRST);
    let tenant = directory.add_tenant(4).unwrap();
    let owner = directory.register(0).unwrap();
    let (old, new) = (headers("a", 1, 5), headers("a", 2, 1));
    let found = |page| directory.found_below(page, LowerTier::File, Some(tenant)).unwrap();
    old.iter().for_each(found);
    for _ in 0..2 {
        let lease = directory.match_prefix(&identities(&old), tenant, owner, FOREVER).unwrap();
        assert_eq!(lease.found().len(), 5);
    }
    new.iter().for_each(found);
    let lease = directory.match_prefix(&identities(&old), tenant, owner, FOREVER).unwrap();
    assert_eq!(lease.found().len(), 4, "pages below that no match reaches");
}

/// A refused call changes nothing, the order of eviction included.
#[test]
fn a_refused_take_keeps_the_order_of_eviction() {
    let order = |refuses: bool| {
        let directory = directory(8, 32, LEAF_FIRST);
        let tenant = directory.add_tenant(8).unwrap();
        for seed in 1..=6 {
            directory.take(tenant, 1).unwrap().publish(0, &headers("a", seed, 1)).unwrap();
        }
        let _held = directory.take(tenant, 2).unwrap();
        if refuses {
            assert!(directory.take(tenant, 7).is_err());
        }
        directory.evict(6).unwrap();
        let made = directory.decisions_since(0).unwrap();
        made.iter().map(|made| made.identity).collect::<Vec<_>>()
    };
    assert_eq!(order(true), order(false));
}

#[test]
fn no_page_is_forgotten_while_the_page_after_it_is_being_demoted() {
    let held = chain(3);
    let demotions = held.directory.demote(1).unwrap().demotions;
    assert_eq!(*demotions[0].header(), held.pages[2]);
    held.directory.evict(3).unwrap();
    drop(demotions);
    assert_eq!(held.num_matched(), held.num_resident(), "resident pages that no match reaches");
}
