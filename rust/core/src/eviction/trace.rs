//! Requests for pages, to compare policies on: seeded ones, and recorded ones from a file.

use std::collections::HashMap;

use crate::split_mix::SplitMix;

/// One page that a sequence asks for; requests of one turn stand in the order of its pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    /// Which turn of which conversation asks: the pages of one turn are in use together.
    pub sequence: u32,
    /// Number of the page, counted from 0 without gaps.
    pub page: u32,
    /// The page before it; its request stands before this one.
    pub parent: Option<u32>,
}

/// Why a recorded trace cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: found {found:?}, needed {needed}")]
pub struct BadTrace {
    /// Line of the file, counted from 1.
    pub line: usize,
    /// What stands there.
    pub found: String,
    /// What should.
    pub needed: &'static str,
}

/// `num_requests` for single pages, the k-th most popular of `num_pages` with weight `k^-exponent`.
pub fn zipf(seed: u64, num_pages: u32, num_requests: u32, exponent: f64) -> Vec<Request> {
    let mut draws = SplitMix(seed);
    let popularity = Zipf::new(num_pages, exponent);
    let single = |sequence| Request { sequence, page: popularity.draw(&mut draws), parent: None };
    (0..num_requests).map(single).collect()
}

/// Zipf requests in which every `period`-th starts a scan over `scan_pages` pages never seen again.
pub fn scans(seed: u64, hot: &[Request], period: usize, scan_pages: u32) -> Vec<Request> {
    let mut draws = SplitMix(seed);
    let mut next_page = hot.iter().map(|request| request.page + 1).max().unwrap_or(0);
    let mut requests = Vec::with_capacity(hot.len() * 2);
    for chunk in hot.chunks(period.max(1)) {
        requests.extend_from_slice(chunk);
        let num_pages = scan_pages / 2 + draws.below(scan_pages.max(1));
        requests.extend((next_page..next_page + num_pages).map(single));
        next_page += num_pages;
    }
    requests
}

/// A request of its own sequence.
const fn single(page: u32) -> Request {
    Request { sequence: page, page, parent: None }
}

/// Conversations over shared system prompts.
#[derive(Debug, Clone, Copy)]
pub struct PrefixTree {
    /// Seed of every draw.
    pub seed: u64,
    /// System prompts; their popularity is Zipf 0.9.
    pub num_prompts: u32,
    /// Pages of one system prompt.
    pub prompt_pages: u32,
    /// Conversations that are open at a time.
    pub num_conversations: u32,
    /// Turns of the whole trace.
    pub num_turns: u32,
    /// Most pages that a turn adds; the least is 1.
    pub turn_pages: u32,
}

impl PrefixTree {
    /// Each turn reads its conversation from the first page on and adds a few pages to it.
    ///
    /// One turn in eight ends its conversation, and the next turn of that place starts another. The
    /// place is drawn by Zipf 0.9: a few are busy, most return late.
    pub fn requests(&self) -> Vec<Request> {
        let mut draws = SplitMix(self.seed);
        let prompts = Zipf::new(self.num_prompts, 0.9);
        let returns = Zipf::new(self.num_conversations, 0.9);
        let mut next_page = self.num_prompts * self.prompt_pages;
        let mut open: Vec<Vec<u32>> = vec![Vec::new(); self.num_conversations as usize];
        let mut requests = Vec::new();
        for turn in 0..self.num_turns {
            let pages = &mut open[returns.draw(&mut draws) as usize];
            if pages.is_empty() {
                let first = prompts.draw(&mut draws) * self.prompt_pages;
                pages.extend(first..first + self.prompt_pages);
            }
            let grown = next_page + 1 + draws.below(self.turn_pages.max(1));
            pages.extend(next_page..grown);
            next_page = grown;
            push_turn(&mut requests, turn, pages);
            if draws.below(8) == 0 {
                pages.clear();
            }
        }
        requests
    }
}

/// One request for each page, with the page before it as its parent.
fn push_turn(requests: &mut Vec<Request>, sequence: u32, pages: &[u32]) {
    let mut parent = None;
    for &page in pages {
        requests.push(Request { sequence, page, parent });
        parent = Some(page);
    }
}

/// Reads lines of `sequence id,page id,parent`; the parent is empty for a first page.
///
/// A line without a digit, such as a heading, is passed over; ids are any words without a comma.
pub fn parse(text: &str) -> Result<Vec<Request>, BadTrace> {
    let (mut sequences, mut pages) = (Numbers::default(), Numbers::default());
    let mut requests = Vec::new();
    for (i, row) in text.lines().enumerate() {
        if !row.bytes().any(|byte| byte.is_ascii_digit()) {
            continue;
        }
        let bad = |needed| BadTrace { line: i + 1, found: row.to_owned(), needed };
        let [sequence, page, parent] = row.split(',').map(str::trim).collect::<Vec<_>>()[..] else {
            return Err(bad("sequence id, page id, parent"));
        };
        let sequence = sequences.of(sequence);
        let parent = match parent {
            "" => None,
            id => Some(pages.seen(id).ok_or_else(|| bad("a parent that an earlier line names"))?),
        };
        requests.push(Request { sequence, page: pages.of(page), parent });
    }
    Ok(requests)
}

/// Words numbered in the order in which they first come.
#[derive(Debug, Default)]
struct Numbers<'a>(HashMap<&'a str, u32>);

impl<'a> Numbers<'a> {
    fn of(&mut self, word: &'a str) -> u32 {
        let next = u32::try_from(self.0.len()).unwrap_or(u32::MAX);
        *self.0.entry(word).or_insert(next)
    }

    fn seen(&self, word: &str) -> Option<u32> {
        self.0.get(word).copied()
    }
}

/// Draws ranks by their weight, from the sums of the weights up to each.
#[derive(Debug)]
struct Zipf(Vec<f64>);

impl Zipf {
    fn new(num_ranks: u32, exponent: f64) -> Self {
        let weights = (1..=num_ranks.max(1)).map(|rank| f64::from(rank).powf(-exponent));
        let sums = weights.scan(0.0, |sum, weight| {
            *sum += weight;
            Some(*sum)
        });
        Self(sums.collect())
    }

    fn draw(&self, draws: &mut SplitMix) -> u32 {
        let point = draws.unit() * self.0[self.0.len() - 1];
        let rank = self.0.partition_point(|&sum| sum <= point).min(self.0.len() - 1);
        u32::try_from(rank).unwrap_or(0) // the ranks were counted as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_recorded_trace_numbers_pages_in_order_and_knows_their_parents() {
        let requests = parse("sequence,page,parent\n7, a1,\n7,b2,a1\n8,a1,\n").unwrap();
        let request = |sequence, page, parent| Request { sequence, page, parent };
        assert_eq!(requests, [request(0, 0, None), request(0, 1, Some(0)), request(1, 0, None)]);
    }

    #[test]
    fn a_bad_line_is_named() {
        let error = parse("1,2,\n1,3,9\n").unwrap_err();
        let text = r#"line 2: found "1,3,9", needed a parent that an earlier line names"#;
        assert_eq!(error.to_string(), text);
        assert_eq!(parse("1,2").unwrap_err().line, 1);
    }

    #[test]
    fn a_seed_gives_the_same_trace_and_the_most_popular_page_leads() {
        let trace = zipf(3, 100, 5000, 0.9);
        assert_eq!(trace, zipf(3, 100, 5000, 0.9));
        let count = |page| trace.iter().filter(|request| request.page == page).count();
        assert!(count(0) > count(9) && count(9) > count(99), "{} {}", count(0), count(9));
    }

    #[test]
    fn a_turn_reads_its_conversation_from_the_first_page_on() {
        let tree = PrefixTree {
            seed: 1,
            num_prompts: 3,
            prompt_pages: 4,
            num_conversations: 5,
            num_turns: 200,
            turn_pages: 3,
        };
        let requests = tree.requests();
        assert_eq!(requests[0].parent, None);
        for pair in requests.windows(2) {
            let is_same = pair[0].sequence == pair[1].sequence;
            assert_eq!(pair[1].parent, is_same.then_some(pair[0].page));
        }
    }
}
