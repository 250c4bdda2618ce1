//! Case 1: eight threads take, publish, lease and free; no page is lost, and counts are exact.

#[path = "support/prefix_pages.rs"]
mod prefix_pages;

use std::thread;

use hisparse_core::ErrorKind;
use hisparse_core::prefix::{HostPages, OwnerId, PrefixDirectory, PrefixLease, TenantId};
use hisparse_core::tier::PageHeader;
use prefix_pages::{FOREVER, LEAF_FIRST, directory, headers, identities};

const NUM_THREADS: u32 = 8;
const NUM_PREFIXES: u32 = 200;
const PREFIX_PAGES: usize = 8;

/// What one thread holds of the pool.
struct Client<'a> {
    directory: &'a PrefixDirectory,
    prefixes: &'a [Vec<PageHeader>],
    shared: TenantId,
    own: TenantId,
    owner: OwnerId,
    draw: u64,
    taken: Vec<HostPages>,
    leases: Vec<PrefixLease>,
    num_operations: u64,
}

impl Client<'_> {
    fn below(&mut self, limit: usize) -> usize {
        self.draw = self.draw.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040);
        usize::try_from(self.draw >> 33).expect("31 bits") % limit
    }

    fn run(&mut self, num_operations: u64) {
        while self.num_operations < num_operations {
            match self.below(8) {
                0 | 1 => self.take(),
                2 | 3 => self.prefill(),
                4 => self.lease(),
                5 if !self.taken.is_empty() => {
                    let at = self.below(self.taken.len());
                    let pages = self.taken.swap_remove(at);
                    self.num_operations += pages.len() as u64;
                    pages.release().expect("held until now");
                }
                6 | 7 if !self.leases.is_empty() => {
                    let at = self.below(self.leases.len());
                    let lease = self.leases.swap_remove(at);
                    self.num_operations += lease.found().len() as u64;
                    lease.release().expect("nobody reaps");
                }
                _ => self.num_operations += 1,
            }
            self.check_own();
        }
        self.taken.clear();
        self.leases.clear();
    }

    fn take(&mut self) {
        let count = 1 + self.below(PREFIX_PAGES);
        match self.directory.take(self.own, count) {
            Ok(pages) => {
                self.num_operations += pages.len() as u64;
                self.taken.push(pages);
            }
            Err(error) => self.refused(error.kind()),
        }
    }

    /// Publishes what a prefix lacks; its pages stay when this thread lets go.
    fn prefill(&mut self) {
        let at = self.below(self.prefixes.len());
        let (prefix, tenant, owner) = (&self.prefixes[at], self.shared, self.owner);
        let chain = identities(prefix);
        match self.directory.match_and_take(&chain, PREFIX_PAGES, tenant, owner, FOREVER) {
            Ok((lease, mut pages)) => {
                let num_held = lease.found().len();
                if let Err(error) = pages.publish(0, &prefix[num_held..]) {
                    assert_eq!(error.kind(), ErrorKind::TierFull, "{error}");
                }
                self.num_operations += 2 * PREFIX_PAGES as u64;
                self.leases.push(lease);
            }
            Err(error) => self.refused(error.kind()),
        }
    }

    fn lease(&mut self) {
        let at = self.below(self.prefixes.len());
        let chain = identities(&self.prefixes[at]);
        let lease = self
            .directory
            .match_prefix(&chain, self.shared, self.owner, FOREVER)
            .expect("it lives");
        assert_eq!(lease.pages(0).expect("nobody reaps"), lease.found());
        self.num_operations += lease.found().len() as u64;
        self.leases.push(lease);
    }

    /// The pool may be full; then this thread lets go of half of what it holds.
    fn refused(&mut self, kind: ErrorKind) {
        assert!(matches!(kind, ErrorKind::HostPoolFull | ErrorKind::TierFull), "{kind:?}");
        self.taken.truncate(self.taken.len() / 2);
        self.leases.truncate(self.leases.len() / 2);
    }

    /// Nobody else uses this thread's share, so its count is known.
    fn check_own(&self) {
        let held: usize = self.taken.iter().map(HostPages::len).sum();
        let usage = self.directory.tenant_usage(self.own).expect("a known tenant");
        assert_eq!(usage.used_pages, held as u64);
    }
}

fn stress(num_pages: u32, operations_each: u64, seed: u64) {
    let directory = directory(num_pages, num_pages, LEAF_FIRST);
    let shared = directory.add_tenant(num_pages.into()).expect("a new tenant");
    let prefixes: Vec<_> = (0..NUM_PREFIXES).map(|at| headers("a", at, PREFIX_PAGES)).collect();
    let client = |number: u32| Client {
        directory: &directory,
        prefixes: &prefixes,
        shared,
        own: directory.add_tenant(u64::from(num_pages) / 8).expect("a new tenant"),
        owner: directory.register(0).expect("numbers are left"),
        draw: seed + u64::from(number),
        taken: Vec::new(),
        leases: Vec::new(),
        num_operations: 0,
    };
    let mut clients: Vec<Client<'_>> = (0..NUM_THREADS).map(client).collect();
    thread::scope(|scope| {
        for client in &mut clients {
            scope.spawn(move || client.run(operations_each));
        }
    });
    directory.check_integrity().expect("sound");
    let stats = directory.stats().expect("nobody has panicked");
    assert_eq!((stats.leases, stats.pins), (0, 0));
    assert_eq!(directory.tenant_usage(shared).expect("a known tenant").used_pages, stats.resident);
    assert_eq!(
        directory.take(shared, num_pages as usize).expect("the pool has room").len(),
        num_pages as usize
    );
}

#[test]
fn eight_threads_lose_no_page() {
    for seed in 1..=3 {
        stress(1000, 10_000, seed);
    }
}

#[test]
#[ignore = "the full size: 10 million operations over 4 GiB of pages, 3 seeds"]
fn eight_threads_lose_no_page_in_full() {
    for seed in 1..=3 {
        stress(102_300, 10_000_000 / u64::from(NUM_THREADS), seed);
    }
}
