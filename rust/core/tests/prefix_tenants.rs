//! Shares of the host pool: case 21, as far as counts go.

#[path = "support/prefix_pages.rs"]
mod prefix_pages;

use hisparse_core::prefix::{OwnerId, PrefixDirectory, TenantId};
use hisparse_core::{Error, ErrorKind};
use prefix_pages::{FOREVER, LEAF_FIRST, directory, headers, identities};

const QUOTA: u64 = 40;

/// Prefills `num_pages` of a sequence, publishes them, and lets them go; how many were held.
fn prefill(
    directory: &PrefixDirectory,
    tenant: (&str, TenantId),
    owner: OwnerId,
    seed: u32,
    num_pages: usize,
) -> Result<usize, Error> {
    let pages = headers(tenant.0, seed, num_pages);
    let (lease, mut taken) =
        directory.match_and_take(&identities(&pages), num_pages, tenant.1, owner, FOREVER)?;
    let num_held = lease.found().len();
    taken.publish(0, &pages[num_held..])?;
    Ok(num_held)
}

#[test]
fn a_flood_stays_within_its_share_and_costs_others_nothing() {
    let directory = directory(100, 200, LEAF_FIRST);
    let (flooding, calm) =
        (directory.add_tenant(QUOTA).unwrap(), directory.add_tenant(60).unwrap());
    let owner = directory.register(0).unwrap();
    let of_calm = |round: u32| prefill(&directory, ("b", calm), owner, round % 3, 10).unwrap();
    (0..3).for_each(|round| assert_eq!(of_calm(round), 0));
    for round in 0..400 {
        // ten times the quota, and every other request twice
        prefill(&directory, ("a", flooding), owner, round / 2, 2).unwrap();
        let usage = directory.tenant_usage(flooding).unwrap();
        assert!(usage.used_pages <= QUOTA, "{usage:?}");
        assert_eq!(of_calm(round), 10, "the other tenant's pages are all there");
    }
    assert_eq!(directory.tenant_usage(flooding).unwrap().used_pages, QUOTA);
    directory.check_integrity().unwrap();
}

#[test]
fn a_tenant_at_its_quota_makes_room_with_its_own_pages_only() {
    let directory = directory(10, 20, LEAF_FIRST);
    let (a, b) = (directory.add_tenant(5).unwrap(), directory.add_tenant(5).unwrap());
    let owner = directory.register(0).unwrap();
    prefill(&directory, ("b", b), owner, 1, 5).unwrap();
    prefill(&directory, ("a", a), owner, 1, 5).unwrap();
    let taken = directory.take(a, 2).unwrap();
    assert_eq!(directory.stats().unwrap().resident, 8, "no page more than was needed has gone");
    assert_eq!(prefill(&directory, ("b", b), owner, 1, 5), Ok(5));
    assert_eq!(directory.take(b, 5).unwrap().len(), 5);
    assert_eq!((taken.len(), directory.tenant_usage(a).unwrap().used_pages), (2, 5));
}

#[test]
fn equal_content_of_two_tenants_is_held_twice() {
    let directory = directory(100, 200, LEAF_FIRST);
    let (a, b) = (directory.add_tenant(50).unwrap(), directory.add_tenant(50).unwrap());
    let owner = directory.register(0).unwrap();
    assert_eq!(prefill(&directory, ("a", a), owner, 7, 5), Ok(0));
    assert_eq!(prefill(&directory, ("b", b), owner, 7, 5), Ok(0));
    assert_eq!(prefill(&directory, ("a", a), owner, 7, 5), Ok(5));
    assert_eq!(directory.tenant_usage(b).unwrap().used_pages, 5);
}

#[test]
fn a_share_in_use_is_refused_with_what_was_needed_and_free() {
    let directory = directory(100, 200, LEAF_FIRST);
    let tenant = directory.add_tenant(QUOTA).unwrap();
    let held = directory.take(tenant, 30).unwrap();
    let error = directory.take(tenant, 11).unwrap_err();
    assert_eq!(error.to_string(), "share of tenant 1 full: need 11 pages, 10 free of 40");
    assert_eq!(directory.take(tenant, 10).unwrap().len(), 10);
    directory.set_quota(tenant, 20).unwrap();
    assert_eq!(directory.take(tenant, 1).unwrap_err().kind(), ErrorKind::TierFull);
    assert_eq!(held.len(), 30, "a smaller quota takes nothing away");
    drop(held);
    assert_eq!(directory.take(tenant, 20).unwrap().len(), 20);
    let unknown = TenantId::from_number(9);
    assert_eq!(
        directory.take(unknown, 1).unwrap_err().to_string(),
        "tenant: found 9, needed 0 to 1"
    );
}
