//! Owners that die and owners that only pause: case 20.

#[path = "support/prefix_pages.rs"]
mod prefix_pages;

use std::collections::HashSet;

use hisparse_core::ErrorKind;
use hisparse_core::prefix::{OwnerId, PrefixDirectory, PrefixLease, Reaped, TenantId};
use prefix_pages::{FOREVER, LEAF_FIRST, TIMEOUT_MS, directory, headers, identities};

const SCAN_MS: u64 = TIMEOUT_MS / 4;

/// A directory of four idle pages, and as many leases of them as owners.
fn leased(num_owners: usize) -> (PrefixDirectory, Vec<(OwnerId, PrefixLease)>) {
    let directory = directory(8, 8, LEAF_FIRST);
    let tenant = directory.add_tenant(8).expect("a new tenant");
    let pages = headers("a", 1, 4);
    directory
        .take(tenant, 4)
        .expect("the pool has room")
        .publish(0, &pages)
        .expect("written pages");
    let lease = |_| {
        let owner = directory.register(0).expect("numbers are left");
        (
            owner,
            directory
                .match_prefix(&identities(&pages), tenant, owner, FOREVER)
                .expect("the owner lives"),
        )
    };
    let owners = (0..num_owners).map(lease).collect();
    (directory, owners)
}

#[test]
fn half_of_a_thousand_owners_die_and_the_others_keep_all() {
    let (directory, owners) = leased(1000);
    let (dead, live) = owners.split_at(500);
    let (mut reaped, mut freed_at) = (Reaped::default(), 0);
    for now_ms in (0..=2 * TIMEOUT_MS).step_by(10_000) {
        // live owners miss two of twelve beats, then are back
        if ![50_000, 60_000].contains(&now_ms) {
            for (owner, _) in live {
                directory.heartbeat(*owner, now_ms).unwrap();
            }
        }
        let found = directory.reap(now_ms).unwrap();
        if found.owners > 0 {
            freed_at = now_ms;
        }
        reaped =
            Reaped { owners: reaped.owners + found.owners, leases: reaped.leases + found.leases };
    }
    assert_eq!(reaped, Reaped { owners: 500, leases: 500 });
    assert!(freed_at <= TIMEOUT_MS + SCAN_MS, "freed after {freed_at} ms");
    assert!(live.iter().all(|(_, lease)| lease.pages(2 * TIMEOUT_MS).is_ok()));
    for (owner, lease) in dead {
        assert_eq!(lease.pages(0).unwrap_err().kind(), ErrorKind::StaleHandle);
        assert_eq!(directory.heartbeat(*owner, 0).unwrap_err().kind(), ErrorKind::StaleHandle);
        assert!(directory.match_prefix(&[], TenantId::DEFAULT, *owner, FOREVER).is_err());
    }
    assert_eq!(directory.stats().unwrap().pins, 4 * 500);
    drop(owners);
    assert_eq!(directory.stats().unwrap().pins, 0);
    directory.check_integrity().unwrap();
}

#[test]
fn a_number_is_never_given_to_another_owner() {
    let (directory, owners) = leased(100);
    let mut seen: HashSet<OwnerId> = owners.iter().map(|(owner, _)| *owner).collect();
    directory.reap(2 * TIMEOUT_MS).unwrap();
    for _ in 0..10_000 {
        let owner = directory.register(0).unwrap();
        assert!(seen.insert(owner), "bound anew: {owner:?}");
        assert!(owner.bits() > 0 && owner.bits() < 1 << 63);
        directory.unregister(owner).unwrap();
    }
}

#[test]
fn an_owner_that_leaves_ends_its_own_leases_only() {
    let (directory, owners) = leased(3);
    assert_eq!(directory.unregister(owners[1].0), Ok(1));
    let error = directory.unregister(owners[1].0).unwrap_err();
    let text =
        format!("unknown owner {:#x}: never registered, or given up; 2 live", owners[1].0.bits());
    assert_eq!(error.to_string(), text);
    assert!(owners[0].1.pages(0).is_ok() && owners[2].1.pages(0).is_ok());
    assert!(owners[1].1.pages(0).is_err());
    directory.check_integrity().unwrap();
}

#[test]
fn a_clock_that_stands_still_or_goes_back_kills_nobody() {
    let (directory, owners) = leased(1);
    directory.heartbeat(owners[0].0, TIMEOUT_MS).unwrap();
    directory.heartbeat(owners[0].0, 5).unwrap();
    assert_eq!(directory.reap(2 * TIMEOUT_MS), Ok(Reaped::default()));
    assert_eq!(directory.reap(0), Ok(Reaped::default()));
    assert!(owners[0].1.pages(0).is_ok());
}
