//! Pages that leases share with sequences: they outlive these, and nobody writes them.

mod support;

use hisparse_core::{Error, ErrorKind, PAGE_TOKENS, PageLease, SequenceHandle};
use support::{DEVICE, Host};

const PAGE: u64 = PAGE_TOKENS as u64;

/// A sequence of so many tokens, each written as `first` plus its position.
fn written(host: &Host, length: u32, max_new_tokens: u32, first: u64) -> SequenceHandle {
    let sequence = host.manager.open_sequence(length, max_new_tokens, DEVICE).expect("room");
    append(host, sequence, length, first);
    sequence
}

fn append(host: &Host, sequence: SequenceHandle, count: u32, first: u64) {
    let start = host.manager.append(sequence, count).expect("it was admitted for these");
    let pages = host.manager.host_pages(sequence).expect("it is open");
    for position in start..start + count {
        host.write_token(&pages, position, first + u64::from(position));
    }
}

fn tokens(host: &Host, pages: &[u32]) -> Vec<u64> {
    pages.iter().flat_map(|&page| host.read_page(page)).collect()
}

fn check_free(host: &Host, num_free: u64) {
    host.manager.check_integrity().expect("a sound manager");
    assert_eq!(host.manager.stats().expect("sound").host_pages_free, num_free);
}

#[test]
fn shared_pages_outlive_their_sequence_and_keep_their_bytes() {
    let host = Host::new();
    let sequence = written(&host, 3 * PAGE_TOKENS + 10, 0, 7);
    let pages = host.manager.host_pages(sequence).unwrap();
    let lease = host.manager.share_pages(sequence, 1, 2).unwrap();
    assert_eq!(lease.pages(), pages[1..3]);
    host.manager.close(sequence).unwrap();
    check_free(&host, 22);
    let other = written(&host, 20 * PAGE_TOKENS, 0, 1000);
    assert_eq!(tokens(&host, &lease.pages()), (7 + PAGE..7 + 3 * PAGE).collect::<Vec<_>>());
    host.manager.close(other).unwrap();
    lease.release().unwrap();
    check_free(&host, 24);
}

#[test]
fn a_sequence_on_leases_has_their_tokens_and_writes_behind_them() {
    let host = Host::new();
    let first = written(&host, 2 * PAGE_TOKENS, 0, 0);
    let mut lease = host.manager.share_pages(first, 0, 2).unwrap();
    host.manager.close(first).unwrap();
    let rest = lease.split_off(1).unwrap();
    let leases = [lease, rest];
    let open = || host.manager.open_shared(&leases, 2 * PAGE_TOKENS + 5, 70, DEVICE).unwrap();
    let (one, two) = (open(), open());
    assert_eq!(host.manager.length(one), Ok(2 * PAGE_TOKENS));
    append(&host, one, 70, 500);
    append(&host, two, 70, 900);
    for (sequence, begin) in [(one, 500), (two, 900)] {
        let found = tokens(&host, &host.manager.host_pages(sequence).unwrap()[..3]);
        let own = begin + 2 * PAGE..begin + 3 * PAGE;
        assert_eq!(found, (0..2 * PAGE).chain(own).collect::<Vec<_>>());
    }
    check_free(&host, 24 - 2 - 2 * 2);
    drop(leases);
    check_free(&host, 24 - 2 - 2 * 2);
    host.manager.close(one).unwrap();
    host.manager.close(two).unwrap();
    check_free(&host, 24);
}

#[test]
fn only_full_pages_of_open_sequences_are_shared() {
    let host = Host::new();
    let sequence = written(&host, 2 * PAGE_TOKENS + 63, 10, 0);
    for (first, count) in [(0, 3), (2, 1), (3, 0), (u32::MAX, 1), (1, u32::MAX)] {
        let error = host.manager.share_pages(sequence, first, count).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{first} {count}");
    }
    host.manager.close(sequence).unwrap();
    let error = host.manager.share_pages(sequence, 0, 1).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::StaleHandle);
    check_free(&host, 24);
}

#[test]
fn a_refused_sequence_leaves_its_leases_as_they_were() {
    let host = Host::new();
    let sequence = written(&host, 4 * PAGE_TOKENS, 0, 0);
    let leases = [host.manager.share_pages(sequence, 0, 4).unwrap()];
    host.manager.close(sequence).unwrap();
    let open = |prompt, new| host.manager.open_shared(&leases, prompt, new, DEVICE);
    let error = open(4 * PAGE_TOKENS - 1, 100).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    let other = written(&host, 19 * PAGE_TOKENS, 0, 0);
    let error = open(4 * PAGE_TOKENS, 2 * PAGE_TOKENS).unwrap_err();
    assert_eq!(error, Error::HostPoolFull { need: 2, free: 1, total: 24 });
    check_free(&host, 1);
    assert_eq!(host.manager.stats().unwrap().host_pages_leased, 4);
    let fits = open(4 * PAGE_TOKENS, PAGE_TOKENS).unwrap();
    host.manager.close(fits).unwrap();
    host.manager.close(other).unwrap();
    drop(leases);
    check_free(&host, 24);
}

#[test]
fn leases_of_another_manager_are_refused() {
    let (host, other) = (Host::new(), Host::new());
    let sequence = written(&other, PAGE_TOKENS, 0, 0);
    let lease = [other.manager.share_pages(sequence, 0, 1).unwrap()];
    let error = host.manager.open_shared(&lease, PAGE_TOKENS, 1, DEVICE).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::WrongState);
    check_free(&host, 24);
}

#[test]
fn a_lease_splits_where_it_is_told_to() {
    let host = Host::new();
    let mut lease: PageLease = host.manager.lease_pages(5).unwrap();
    let pages = lease.pages();
    let rest = lease.split_off(2).unwrap();
    assert_eq!((lease.pages(), rest.pages()), (pages[..2].to_vec(), pages[2..].to_vec()));
    assert_eq!(lease.split_off(3).unwrap_err().kind(), ErrorKind::InvalidArgument);
    lease.release().unwrap();
    check_free(&host, 21);
    let both = [rest.share().unwrap(), rest];
    check_free(&host, 21);
    drop(both);
    check_free(&host, 24);
}
