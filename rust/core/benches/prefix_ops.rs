//! `cargo bench -p hisparse-core --bench prefix_ops`: page operations of prefixes, as JSON lines.
//!
//! `match`: held pages that are leased and let go again, an operation each. `match_take_free`: a
//! prefill matches N held pages, takes N new ones and frees those, 3 N operations under three locks.
//! `publish_evict`: new pages, each taken, published, let go, and an idle one given up for it: 1.
//! `publish_at_quota`: the same for a tenant of 512 pages beside 65,536 of another's that are older.

use std::io::Write;
use std::thread;
use std::time::Instant;

use hisparse_core::eviction::{EvictionPolicy, LeafFirst, Lru, S3Fifo};
use hisparse_core::prefix::{
    OwnerId, OwnerLimits, PrefixDirectory, PrefixLimits, PrefixTable, TenantId,
};
use hisparse_core::tier::{IdentityChain, PageHeader, PageIdentity, TenantKey};
use hisparse_core::{PAGE_TOKENS, PageAllocator, Result};

const HELD_PAGES: usize = 64 * 1024;
const FREE_PAGES: usize = 1024;
const OPERATIONS: usize = 2_000_000; // of one round
const ROUNDS: usize = 5;

type MakeOrder = fn(u32) -> Result<Box<dyn EvictionPolicy>>;

const ORDERS: [(&str, MakeOrder); 3] = [
    ("lru", |keys| Ok(Box::new(Lru::new(keys)?))),
    ("s3_fifo", |keys| Ok(Box::new(S3Fifo::new(keys)?))),
    ("leaf_first", |keys| Ok(Box::new(LeafFirst::new(keys)?))),
];

/// A directory full of prefixes of one length.
struct Stock {
    directory: PrefixDirectory,
    tenant: TenantId,
    owner: OwnerId,
    prefixes: Vec<Vec<PageHeader>>,
}

fn main() -> Result<()> {
    for (order, make_order) in ORDERS {
        for prefix_pages in [8, 32, 128] {
            let stock = Stock::new(prefix_pages, make_order)?;
            for num_threads in [1, 2] {
                for (case, new_per_held) in [("match", 0), ("match_take_free", 1)] {
                    let rates = rounds(|_| stock.prefill_rate(num_threads, new_per_held))?;
                    report(case, order, prefix_pages, num_threads, &rates);
                }
            }
            let small = stock.directory.add_tenant(512)?;
            for (case, tenant) in [("publish_at_quota", small), ("publish_evict", stock.tenant)] {
                let rates = rounds(|round| stock.turnover_rate(tenant, round))?;
                report(case, order, prefix_pages, 1, &rates);
            }
        }
    }
    Ok(())
}

impl Stock {
    fn new(prefix_pages: usize, make_order: MakeOrder) -> Result<Self> {
        let num_pages = u32::try_from(HELD_PAGES + FREE_PAGES).expect("a small pool");
        let limits =
            PrefixLimits { max_pages: num_pages, page_bytes: 1 << 20, max_decisions: 4096 };
        let table = PrefixTable::new(limits, make_order)?;
        let pool = PageAllocator::new(num_pages)?;
        let directory = PrefixDirectory::new(pool, table, OwnerLimits::with_seed(1))?;
        let (tenant, owner) = (directory.add_tenant(num_pages.into())?, directory.register(0)?);
        let prefixes: Vec<_> =
            (0..HELD_PAGES / prefix_pages).map(|first| headers(first, prefix_pages)).collect();
        let stock = Self { directory, tenant, owner, prefixes };
        stock.prefixes.iter().try_for_each(|prefix| stock.publish(stock.tenant, prefix))?;
        Ok(stock)
    }

    fn publish(&self, tenant: TenantId, prefix: &[PageHeader]) -> Result<()> {
        let mut pages = self.directory.take(tenant, prefix.len())?;
        pages.publish(0, prefix).map(drop)
    }

    /// Page operations a second: each round matches a prefix, takes new pages, and frees both.
    fn prefill_rate(&self, num_threads: usize, new_per_held: usize) -> Result<f64> {
        let per_thread = OPERATIONS / num_threads;
        let start = Instant::now();
        let done = thread::scope(|scope| {
            let spawn = |seed| scope.spawn(move || self.prefill(seed, per_thread, new_per_held));
            let running: Vec<_> = (0..num_threads).map(spawn).collect();
            running.into_iter().map(|one| one.join().expect("no panic")).sum::<Result<usize>>()
        })?;
        Ok(per_second(done, start))
    }

    fn prefill(&self, seed: usize, num_operations: usize, new_per_held: usize) -> Result<usize> {
        let chains: Vec<Vec<PageIdentity>> = self
            .prefixes
            .iter()
            .map(|prefix| prefix.iter().map(|page| page.identity).collect())
            .collect();
        let (mut done, mut pick) = (0, seed);
        while done < num_operations {
            pick = (pick * 1_103_515_245 + 12_345) % (1 << 31);
            let chain = &chains[(pick >> 8) % chains.len()];
            let (tenant, owner) = (self.tenant, self.owner);
            let num_pages = (1 + new_per_held) * chain.len();
            let (lease, taken) =
                self.directory.match_and_take(chain, num_pages, tenant, owner, u64::MAX)?;
            done += lease.found().len() + 2 * taken.len();
            taken.release()?;
            lease.release()?;
        }
        Ok(done)
    }

    /// Pages a second that are published where none is free, each in place of an idle one.
    fn turnover_rate(&self, tenant: TenantId, round: usize) -> Result<f64> {
        let prefix_pages = self.prefixes[0].len();
        let count = 100_000 / prefix_pages;
        // no page is there already
        let first = 1_000_000 * (1 + usize::from(tenant.number())) + round * count;
        let new: Vec<_> = (first..first + count).map(|n| headers(n, prefix_pages)).collect();
        let start = Instant::now();
        new.iter().try_for_each(|prefix| self.publish(tenant, prefix))?;
        Ok(per_second(count * prefix_pages, start))
    }
}

fn headers(first: usize, num_pages: usize) -> Vec<PageHeader> {
    let chain = IdentityChain::new(TenantKey::derive(&[1; 32], "bench"), "model", "layout");
    let mut parent = chain.root();
    let token = u32::try_from(first).expect("few prefixes");
    (0..num_pages)
        .map(|_| {
            let identity = chain.page(&parent, &[token]).expect("one token is legal");
            let page = PageHeader { identity, parent, num_tokens: PAGE_TOKENS };
            parent = identity;
            page
        })
        .collect()
}

#[allow(clippy::cast_precision_loss, reason = "a rate needs three digits")]
fn per_second(count: usize, start: Instant) -> f64 {
    count as f64 / start.elapsed().as_secs_f64()
}

fn rounds(run: impl FnMut(usize) -> Result<f64>) -> Result<Vec<f64>> {
    (0..ROUNDS).map(run).collect()
}

fn report(case: &str, order: &str, pages: usize, threads: usize, rates: &[f64]) {
    let rates: Vec<f64> = rates.iter().map(|rate| rate / 1e6).collect();
    let line = format!(
        r#"{{"case": "{case}", "order": "{order}", "prefix_pages": {pages}, "threads": {threads}, "millions_per_second": {rates:.2?}}}"#
    );
    let _ = writeln!(std::io::stdout(), "{line}");
}
