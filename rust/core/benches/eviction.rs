//! `cargo bench -p hisparse-core --bench eviction [-- TRACE.csv]`: one JSON line a policy and trace.

use std::error::Error;
use std::io::Write;

use hisparse_core::eviction::trace::{self, PrefixTree, Request};
use hisparse_core::eviction::{EvictionPolicy, LeafFirst, Lru, S3Fifo, replay};

const SEED: u64 = 4;
const NUM_PAGES: u32 = 1 << 17;
const NUM_REQUESTS: u32 = 1 << 21;
const CONVERSATIONS: PrefixTree = PrefixTree {
    seed: SEED,
    num_prompts: 32,
    prompt_pages: 64,
    num_conversations: 2048,
    num_turns: 20_000,
    turn_pages: 16,
};
/// Capacities as parts of the distinct pages of a trace.
const PARTS: [usize; 3] = [64, 16, 4];

fn main() -> Result<(), Box<dyn Error>> {
    if let Some(path) = std::env::args().skip(1).find(|argument| !argument.starts_with("--")) {
        return compare("recorded", &trace::parse(&std::fs::read_to_string(path)?)?);
    }
    let zipf = trace::zipf(SEED, NUM_PAGES, NUM_REQUESTS, 0.9);
    compare("zipf_0.9", &zipf)?;
    compare("prefix_tree", &CONVERSATIONS.requests())?;
    compare("scans", &trace::scans(SEED, &zipf[..zipf.len() / 2], 8192, 8192))
}

/// Every policy at every capacity, on one trace.
fn compare(name: &str, requests: &[Request]) -> Result<(), Box<dyn Error>> {
    let num_pages = requests.iter().map(|request| request.page as usize + 1).max().unwrap_or(1);
    for capacity in PARTS.map(|part| u32::try_from((num_pages / part).max(1))) {
        let capacity = capacity?;
        let policies: [(&str, Box<dyn EvictionPolicy>); 3] = [
            ("lru", Box::new(Lru::new(capacity)?)),
            ("s3_fifo", Box::new(S3Fifo::new(capacity)?)),
            ("leaf_first", Box::new(LeafFirst::new(capacity)?)),
        ];
        for (policy_name, mut policy) in policies {
            let done = replay::replay(policy.as_mut(), capacity, requests)?;
            report(name, policy_name, capacity, &done)?;
        }
    }
    Ok(())
}

#[allow(clippy::cast_precision_loss, reason = "a rate needs four digits")]
fn report(
    trace: &str,
    policy: &str,
    capacity: u32,
    done: &replay::Replayed,
) -> std::io::Result<()> {
    let requests = done.requests as f64;
    let hit_rate = done.hits as f64 / requests;
    let nanoseconds = done.elapsed.as_secs_f64() * 1e9 / requests;
    writeln!(
        std::io::stdout(),
        r#"{{"trace": "{trace}", "policy": "{policy}", "capacity_pages": {capacity}, "requests": {requests}, "hit_rate": {hit_rate:.4}, "ns_per_request": {nanoseconds:.1}, "evicted": {}, "turned_away": {}}}"#,
        done.evicted,
        done.turned_away
    )
}
