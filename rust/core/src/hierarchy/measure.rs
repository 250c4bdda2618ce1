//! How fast a tier is, and whether it works at all: found out by pages that are put, read, removed.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::gate::{LoadTable, TierSpeed, wide};
use super::lower::{Lower, is_full};
use super::probes::{probe_bytes, probe_header};
use super::{Hierarchy, Mover};
use crate::error::{Error, Result};
use crate::tier::{Deadline, PageIdentity};

/// A page that is read to measure a tier; ours has bytes that are known.
#[derive(Debug, Clone, Copy)]
struct Probe {
    name: PageIdentity,
    is_ours: bool,
}

impl Hierarchy {
    /// Writes, reads and removes some pages of every tier, each within `tier_limit`, and as much
    /// again for removing them; the speeds of those that did it all.
    ///
    /// A file tier is read from the disk: a page that has been below for long is not in the page
    /// cache any more.
    pub fn measure(&self, tier_limit: Duration) -> Result<LoadTable> {
        self.mover.check_open()?;
        let measured = (0..self.mover.below.len()).map(|number| {
            let speed = self.mover.speed_of(number, tier_limit).ok()?;
            Some((self.mover.below[number].tier, speed))
        });
        Ok(LoadTable { speeds: measured.flatten().collect() })
    }

    /// Measures the tiers that the table in force has no figures of; what it finds is in force from
    /// then on, beside the others' figures. How many have none still.
    pub fn measure_missing(&self, tier_limit: Duration) -> Result<usize> {
        self.mover.check_open()?;
        let mut num_missing = 0;
        for number in 0..self.mover.below.len() {
            let is_known = self.mover.measure_if_missing(number, tier_limit)?;
            num_missing += usize::from(!is_known);
        }
        Ok(num_missing)
    }
}

impl Mover {
    /// Whether the table in force has figures of a tier in the end.
    pub(super) fn measure_if_missing(
        self: &Arc<Self>,
        number: usize,
        tier_limit: Duration,
    ) -> Result<bool> {
        let tier = self.below[number].tier;
        if !self.gate.lacks(tier)? {
            return Ok(true);
        }
        let Ok(speed) = self.speed_of(number, tier_limit) else { return Ok(false) };
        self.gate.add(tier, speed)?;
        Ok(true)
    }

    /// Puts, reads and removes one page: a tier that is spared is not spared any more if it works.
    pub(super) fn ask(&self, number: usize) -> Result<()> {
        let limit = self.limits.call_limit;
        let _under_way = self.probes.begin(Deadline::after(limit))?;
        let (name, deadline) = (self.probes.names(number)[0], Deadline::after(limit));
        let asked = self.put_probes(number, &[name], deadline).and_then(|probes| {
            probes.iter().try_for_each(|&probe| self.timed_get(number, probe, deadline).map(drop))
        });
        self.remove_probes(number, Deadline::after(limit))?;
        asked
    }

    fn speed_of(self: &Arc<Self>, number: usize, limit: Duration) -> Result<TierSpeed> {
        let _under_way = self.probes.begin(Deadline::after(limit))?;
        let measured = self.measure_tier(number, Deadline::after(limit));
        self.remove_probes(number, Deadline::after(limit))?;
        measured
    }

    fn measure_tier(self: &Arc<Self>, number: usize, deadline: Deadline) -> Result<TierSpeed> {
        let store = self.below[number].store();
        let probes = self.put_probes(number, self.probes.names(number), deadline)?;
        store.flush(deadline)?;
        store.forget_cached();
        let alone = probes.iter().map(|&probe| self.timed_get(number, probe, deadline));
        let mut alone: Vec<Duration> =
            alone.filter_map(Result::transpose).collect::<Result<_>>()?;
        alone.sort_unstable();
        store.forget_cached();
        let begin = Instant::now();
        let mover = Arc::clone(self);
        let get = move |probe| mover.timed_get(number, probe, deadline);
        let mut num_read = 0;
        for time in self.crew.share(probes, get) {
            num_read += usize::from(time.ok_or(Error::Poisoned)??.is_some());
        }
        let alone =
            *alone.get(alone.len() / 2).ok_or_else(|| refused("no page is there to read"))?;
        Ok(self.speed(alone, begin.elapsed(), num_read))
    }

    /// What is read to measure a tier: pages that are put for it, and where a full tier has no room
    /// for all of them, pages that it has, the oldest first.
    fn put_probes(
        &self,
        number: usize,
        names: &[PageIdentity],
        deadline: Deadline,
    ) -> Result<Vec<Probe>> {
        let lower = &self.below[number];
        let mut probes = Vec::with_capacity(names.len());
        for &name in names {
            self.check_probing()?;
            let bytes = probe_bytes(&name, self.layout.page_bytes());
            self.probes.put(number, name)?;
            match lower.store().put(&probe_header(name), &bytes, self.call_by(deadline)) {
                Ok(_) => probes.push(Probe { name, is_ours: true }),
                Err(error) if is_full(&error) => {
                    probes.extend(held_by(lower, names).take(names.len() - probes.len()));
                    break;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(probes)
    }

    /// None for a page of others that is gone.
    fn timed_get(
        &self,
        number: usize,
        Probe { name, is_ours }: Probe,
        deadline: Deadline,
    ) -> Result<Option<Duration>> {
        self.check_probing()?;
        let mut staged = self.staging.take(self.layout.page_bytes(), deadline)?;
        let (store, by) = (self.below[number].store(), self.call_by(deadline));
        let begin = Instant::now();
        let is_found = store.get(&name, &mut staged.bytes, by)?;
        let time = begin.elapsed();
        let is_as_put = is_found && staged.bytes == probe_bytes(&name, staged.bytes.len());
        if is_ours && !is_as_put {
            return Err(refused("a page that was just put is not there"));
        }
        Ok(is_found.then_some(time))
    }

    /// Latency is what a page alone takes beyond its share of the bandwidth.
    fn speed(&self, alone: Duration, together: Duration, num_pages: usize) -> TierSpeed {
        let page_bytes = self.layout.page_bytes() as u64;
        let seconds = together.as_secs_f64().max(1e-9);
        #[allow(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "positive, small"
        )]
        let bytes_per_s = (wide(page_bytes * num_pages as u64) / seconds) as u64;
        let copying = Duration::from_secs_f64(wide(page_bytes) / wide(bytes_per_s.max(1)));
        let latency = alone.saturating_sub(copying).as_micros();
        TierSpeed { latency_us: u64::try_from(latency).unwrap_or(u64::MAX), bytes_per_s }
    }

    fn check_probing(&self) -> Result<()> {
        self.check_open()?;
        self.probes.check()
    }
}

/// Pages of others that a tier has.
fn held_by(lower: &Lower, probes: &[PageIdentity]) -> impl Iterator<Item = Probe> {
    let held = lower.store().pages().into_iter().map(|page| page.identity);
    let held = held.filter(move |name| !probes.contains(name));
    held.map(|name| Probe { name, is_ours: false })
}

fn refused(text: &str) -> Error {
    Error::TierIo { tier: "hierarchy", call: "measure", text: text.into() }
}
