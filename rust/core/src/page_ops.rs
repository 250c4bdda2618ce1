//! Times page operations: take, share, release, release, over a pool of random age.

use std::time::{Duration, Instant};

use crate::error::{Result, check_range};
use crate::page::{PageAllocator, PageHandle};
use crate::tenants::TenantId;

/// What [`time`] measured.
#[derive(Debug, Clone, Copy)]
pub struct PageOpsTiming {
    /// Operations done; each takes, shares or releases one page.
    pub num_operations: u64,
    /// How long they took.
    pub elapsed: Duration,
}

/// Runs at least `num_operations` page operations on a pool of `num_pages` pages.
pub fn time(num_pages: u32, num_operations: u64) -> Result<PageOpsTiming> {
    check_range("num_operations", num_operations, 1, 1 << 40)?;
    let mut pages = PageAllocator::new(num_pages)?;
    let mut held: Vec<PageHandle> = Vec::with_capacity(num_pages as usize);
    let start = Instant::now();
    let mut done = 0;
    while done < num_operations {
        done += fill(&mut pages, &mut held)? + drain(&mut pages, &mut held)?;
    }
    Ok(PageOpsTiming { num_operations: done, elapsed: start.elapsed() })
}

/// Takes and shares every free page.
fn fill(pages: &mut PageAllocator, held: &mut Vec<PageHandle>) -> Result<u64> {
    let first = held.len();
    while pages.num_available() > 0 {
        pages.reserve(TenantId::DEFAULT, 1)?;
        let page = pages.take_reserved(TenantId::DEFAULT)?;
        pages.share(page)?;
        held.push(page);
    }
    Ok(2 * (held.len() - first) as u64)
}

/// Releases both references of every second page, then of the others: the free list is shuffled.
fn drain(pages: &mut PageAllocator, held: &mut Vec<PageHandle>) -> Result<u64> {
    let order = (0..held.len()).step_by(2).chain((1..held.len()).step_by(2));
    for i in order {
        pages.release(held[i])?;
        pages.release(held[i])?;
    }
    let num_released = 2 * held.len() as u64;
    held.clear();
    Ok(num_released)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_operations_are_done_as_were_asked_for() {
        let timing = time(10, 95).unwrap();
        assert_eq!(timing.num_operations, 120);
        assert!(time(10, 0).is_err());
    }
}
