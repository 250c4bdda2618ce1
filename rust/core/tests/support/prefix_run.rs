//! A directory and its model, which learns victims from the decisions and predicts all the rest.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use hisparse_core::ErrorKind;
use hisparse_core::prefix::{
    Demotion, Enqueued, Held, HostPages, LeaseKey, LowerTiers, OwnerId, PrefixDirectory,
    PrefixLease, Promotion, Published, TenantId,
};
use hisparse_core::tier::{PageHeader, PageIdentity};

use crate::prefix_pages::{MakeOrder, chain_of, directory, identities};

pub(crate) const NUM_PAGES: u32 = 14;
pub(crate) const MAX_PAGES: u32 = 11;

/// A page as the model sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Page {
    pub(crate) place: Place,
    pub(crate) lower: LowerTiers,
    pub(crate) tenant: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    Resident(u32),
    Demoting(u32),
    Lower,
    Promoting(u32),
}

pub(crate) struct Leased {
    pub(crate) lease: PrefixLease,
    pub(crate) owner: OwnerId,
    pub(crate) deadline_ms: u64,
    pub(crate) pages: Vec<PageIdentity>,
}

pub(crate) struct Holding {
    pub(crate) guard: HostPages,
    pub(crate) tenant: usize,
    pub(crate) pages: Vec<(u32, bool)>, // number, and whether the tenant is charged for it here
    pub(crate) headers: Vec<PageHeader>, // to publish from the first page on
}

/// A policy, and whether it gives every idle page up, whatever else stays.
#[derive(Clone, Copy)]
pub(crate) struct Order {
    pub(crate) make: MakeOrder,
    pub(crate) takes_any_idle: bool,
}

pub(crate) enum Down {
    Started(Demotion),
    Enqueued(Demotion<Enqueued>),
}

pub(crate) struct Run {
    pub(crate) directory: PrefixDirectory,
    pub(crate) takes_any_idle: bool,
    pub(crate) tenants: [TenantId; 2],
    pub(crate) quotas: [u64; 2],
    pub(crate) chains: Vec<(usize, Vec<PageHeader>)>, // of a tenant
    pub(crate) pages: HashMap<PageIdentity, Page>,
    pub(crate) leases: Vec<Leased>,
    pub(crate) holdings: Vec<Holding>,
    pub(crate) down: Vec<Down>,
    pub(crate) up: Vec<Promotion>,
    pub(crate) owners: BTreeMap<OwnerId, u64>, // last seen
    pub(crate) all_owners: BTreeSet<OwnerId>,
    pub(crate) ended: Vec<LeaseKey>,
    pub(crate) epoch: u64,
    pub(crate) now_ms: u64,
    pub(crate) next_scan_ms: u64,
}

impl Run {
    pub(crate) fn new(order: Order) -> Self {
        let directory = directory(NUM_PAGES, MAX_PAGES, order.make);
        let quotas = [10, 9];
        let tenants = quotas.map(|quota| directory.add_tenant(quota).expect("a new tenant"));
        let branch = |tenant: &str, from: u32| {
            chain_of(tenant, (0..6).map(move |page| if page < 3 { page } else { from + page }))
        };
        let chains = [(0, "a", 10), (0, "a", 20), (0, "a", 30), (1, "b", 10), (1, "b", 20)];
        let chains = chains.map(|(tenant, name, from)| (tenant, branch(name, from))).into();
        Self {
            directory,
            takes_any_idle: order.takes_any_idle,
            tenants,
            quotas,
            chains,
            pages: HashMap::new(),
            leases: Vec::new(),
            holdings: Vec::new(),
            down: Vec::new(),
            up: Vec::new(),
            owners: BTreeMap::new(),
            all_owners: BTreeSet::new(),
            ended: Vec::new(),
            epoch: 0,
            now_ms: 0,
            next_scan_ms: 0,
        }
    }

    pub(crate) fn prefill(&mut self, chain: usize, num_pages: usize, owner: usize, ttl_ms: u64) {
        let Some(owner) = self.pick_owner(owner) else { return };
        let (tenant, headers) = self.chains[chain].clone();
        let headers = &headers[..num_pages];
        let found = self.expected_run(headers);
        let deadline_ms = self.now_ms + ttl_ms;
        let need = num_pages - found.len();
        let pinned: Vec<_> = headers[..found.len()].iter().map(|page| page.identity).collect();
        let refusal = self.expected_refusal(tenant, need, &pinned);
        let chain = identities(headers);
        let name = self.tenants[tenant];
        match self.directory.match_and_take(&chain, num_pages, name, owner, deadline_ms) {
            Ok((lease, guard)) => {
                assert_eq!(refusal, None);
                assert_eq!(lease.found(), found);
                self.follow(&pinned);
                self.leases.push(Leased { lease, owner, deadline_ms, pages: pinned });
                let pages = guard.numbers().into_iter().map(|page| (page, true)).collect();
                let headers = headers[num_pages - need..].to_vec();
                self.holdings.push(Holding { guard, tenant, pages, headers });
            }
            Err(error) => self.check_refusal(&error, refusal.as_ref()),
        }
    }

    pub(crate) fn match_only(&mut self, chain: usize, owner: usize, ttl_ms: u64) {
        let Some(owner) = self.pick_owner(owner) else { return };
        let (tenant, headers) = self.chains[chain].clone();
        let (tenant, found) = (self.tenants[tenant], self.expected_run(&headers));
        let deadline_ms = self.now_ms + ttl_ms;
        let lease = self.directory.match_prefix(&identities(&headers), tenant, owner, deadline_ms);
        let lease = lease.expect("the owner lives");
        assert_eq!(lease.found(), found);
        let pages = headers[..found.len()].iter().map(|page| page.identity).collect();
        self.leases.push(Leased { lease, owner, deadline_ms, pages });
    }

    /// Publishes the pages of a holding that are not published yet, one at a time.
    pub(crate) fn publish(&mut self, holding: usize) {
        for at in 0..self.holdings[holding].headers.len() {
            let held = &self.holdings[holding];
            let (number, is_own) = held.pages[at];
            let header = held.headers[at];
            let expected = self.pages.get(&header.identity).copied();
            let is_full = expected.is_none() && self.is_full();
            let result = self.holdings[holding].guard.publish(at, &[header]);
            match result {
                Err(error) if !is_own => assert_eq!(error.kind(), ErrorKind::WrongState),
                Err(error) => self.check_no_entry(&error, is_full),
                Ok(published) => {
                    assert!(is_own && !is_full);
                    self.follow(&[]);
                    self.check_published(holding, at, number, expected, published[0]);
                }
            }
        }
    }

    pub(crate) fn check_published(
        &mut self,
        holding: usize,
        at: usize,
        number: u32,
        before: Option<Page>,
        published: Published,
    ) {
        let held = &mut self.holdings[holding];
        let identity = held.headers[at].identity;
        let place = before.map_or(Place::Lower, |page| page.place);
        match place {
            Place::Lower => {
                assert_eq!(published, Published::First);
                held.pages[at].1 = false;
                let lower = LowerTiers::NONE; // they may have other bytes
                let (place, tenant) = (Place::Resident(number), held.tenant);
                self.pages.insert(identity, Page { place, lower, tenant });
            }
            Place::Resident(host) | Place::Demoting(host) => {
                assert!(matches!(published, Published::Existing(page) if page.page() == host));
                held.pages[at] = (host, false);
            }
            Place::Promoting(_) => assert_eq!(published, Published::Unshared),
        }
        assert_eq!(held.guard.numbers()[at], held.pages[at].0);
    }

    pub(crate) fn drop_holding(&mut self, holding: usize) {
        self.holdings.swap_remove(holding).guard.release().expect("the pages are held");
    }

    pub(crate) fn share(&mut self, lease: usize) {
        let all_readable = self.lease_pages(lease).iter().all(|held| matches!(held, Held::Host(_)));
        let leased = &self.leases[lease];
        match leased.lease.share(self.now_ms) {
            Ok(guard) => {
                assert!(all_readable);
                let tenant = leased.pages.first().map_or(0, |page| self.pages[page].tenant);
                let pages = guard.numbers().into_iter().map(|page| (page, false)).collect();
                self.holdings.push(Holding { guard, tenant, pages, headers: Vec::new() });
            }
            Err(error) => assert!(!all_readable && error.kind() == ErrorKind::WrongState),
        }
    }
}
