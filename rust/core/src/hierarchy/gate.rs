//! Whether loading beats computing again: by numbers that were measured, the same on every rank.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use super::lower::{Lower, is_full};
use super::{Hierarchy, Mover};
use crate::error::{Error, Result};
use crate::page::PAGE_TOKENS;
use crate::prefix::LowerTier;
use crate::sync::{Mutex, lock};
use crate::tier::{Deadline, PageHeader, PageIdentity};

/// Pages that are written and read to measure a tier.
const PROBE_PAGES: usize = 16;

/// A page that is read to measure a tier; ours has bytes that are known.
#[derive(Debug, Clone, Copy)]
struct Probe {
    name: PageIdentity,
    is_ours: bool,
}

/// How fast pages come up from one tier.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TierSpeed {
    /// Time until the first byte of a page.
    pub latency_us: u64,
    /// Bytes a second, as many pages at a time as the hierarchy loads.
    pub bytes_per_s: u64,
}

/// The speeds of the tiers that answered, measured by one rank for all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LoadTable {
    /// One entry a tier.
    pub speeds: Vec<(LowerTier, TierSpeed)>,
}

/// The table in force.
#[derive(Debug, Default)]
pub(super) struct Gate {
    adopted: Mutex<Adopted>,
}

#[derive(Debug, Clone, Default)]
struct Adopted {
    epoch: u64, // 0 = nothing was measured
    table: LoadTable,
}

impl LoadTable {
    /// The speed of one tier; None if it did not answer.
    pub fn speed(&self, tier: LowerTier) -> Option<TierSpeed> {
        self.speeds.iter().find(|(measured, _)| *measured == tier).map(|(_, speed)| *speed)
    }
}

impl TierSpeed {
    /// Seconds that so many bytes take.
    pub fn seconds(self, num_bytes: u64) -> f64 {
        Duration::from_micros(self.latency_us).as_secs_f64()
            + wide(num_bytes) / wide(self.bytes_per_s.max(1))
    }
}

impl Hierarchy {
    /// Writes, reads and removes some pages of every tier; the speeds of those that did it all.
    ///
    /// A file tier is read from the disk: a page that has been below for long is not in the page
    /// cache any more.
    pub fn measure(&self, deadline: Deadline) -> Result<LoadTable> {
        self.mover.check_open()?;
        let measured = (0..self.mover.below.len()).map(|number| {
            let speed = self.mover.speed_of(number, deadline).ok()?;
            Some((self.mover.below[number].tier, speed))
        });
        Ok(LoadTable { speeds: measured.flatten().collect() })
    }

    /// Puts a table in force, of an epoch that is later than that in force.
    pub fn adopt(&self, table: LoadTable, epoch: u64) -> Result<()> {
        let mut adopted = lock(&self.mover.gate.adopted)?;
        if epoch <= adopted.epoch {
            let (what, needed) = ("epoch of a load table", adopted.epoch.saturating_add(1));
            return Err(Error::WrongState { what, found: epoch, needed });
        }
        *adopted = Adopted { epoch, table };
        Ok(())
    }

    /// The table in force and its epoch; epoch 0 is that of an empty table.
    pub fn load_table(&self) -> Result<(LoadTable, u64)> {
        let adopted = lock(&self.mover.gate.adopted)?.clone();
        Ok((adopted.table, adopted.epoch))
    }

    /// Whether `num_pages` come up from a tier sooner than their tokens are computed again. True as
    /// long as no table is in force; false for a tier that is not in the table.
    pub fn worth_loading(
        &self,
        tier: LowerTier,
        num_pages: usize,
        recompute_tokens_per_s: f64,
    ) -> Result<bool> {
        let (table, epoch) = self.load_table()?;
        let Some(speed) = table.speed(tier) else { return Ok(epoch == 0) };
        let num_bytes = num_pages as u64 * self.mover.layout.page_bytes() as u64;
        let num_tokens = num_pages as u64 * u64::from(PAGE_TOKENS);
        Ok(speed.seconds(num_bytes) < wide(num_tokens) / recompute_tokens_per_s)
    }
}

impl Mover {
    fn speed_of(self: &Arc<Self>, number: usize, deadline: Deadline) -> Result<TierSpeed> {
        let lower = &self.below[number];
        let names = probe_names(number);
        let measured = self.probe(number, &names, deadline);
        for name in &names {
            let _ = lower.store().remove(name, self.call_by(deadline)); // all that was put goes
        }
        measured
    }

    fn probe(
        self: &Arc<Self>,
        number: usize,
        names: &[PageIdentity],
        deadline: Deadline,
    ) -> Result<TierSpeed> {
        let lower = &self.below[number];
        let probes = self.put_probes(lower, names, deadline)?;
        lower.store().flush(deadline)?;
        lower.store().forget_cached();
        let alone = probes.iter().map(|probe| self.timed_get(lower, *probe, deadline));
        let mut alone: Vec<Duration> =
            alone.filter_map(Result::transpose).collect::<Result<_>>()?;
        alone.sort_unstable();
        lower.store().forget_cached();
        let begin = Instant::now();
        let mover = Arc::clone(self);
        let get = move |probe| mover.timed_get(&mover.below[number], probe, deadline);
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
        lower: &Lower,
        names: &[PageIdentity],
        deadline: Deadline,
    ) -> Result<Vec<Probe>> {
        let mut probes = Vec::with_capacity(names.len());
        for &name in names {
            let page = PageHeader { identity: name, parent: name, num_tokens: PAGE_TOKENS };
            let bytes = probe_bytes(&name, self.layout.page_bytes());
            match lower.store().put(&page, &bytes, self.call_by(deadline)) {
                Ok(_) => probes.push(Probe { name, is_ours: true }),
                Err(error) if is_full(&error) => {
                    let held = lower.store().pages().into_iter().map(|page| page.identity);
                    let held = held.filter(|name| !names.contains(name));
                    let held = held.map(|name| Probe { name, is_ours: false });
                    probes.extend(held.take(names.len() - probes.len()));
                    break;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(probes)
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

    /// None for a page of others that is gone.
    fn timed_get(
        &self,
        lower: &Lower,
        Probe { name, is_ours }: Probe,
        deadline: Deadline,
    ) -> Result<Option<Duration>> {
        let mut staged = self.staging.take(self.layout.page_bytes(), deadline)?;
        let begin = Instant::now();
        let is_found = lower.store().get(&name, &mut staged.bytes, self.call_by(deadline))?;
        let time = begin.elapsed();
        let is_as_put = is_found && staged.bytes == probe_bytes(&name, staged.bytes.len());
        if is_ours && !is_as_put {
            return Err(refused("a page that was just put is not there"));
        }
        Ok(is_found.then_some(time))
    }
}

fn refused(text: &str) -> Error {
    Error::TierIo { tier: "hierarchy", call: "measure", text: text.into() }
}

/// Names that no page has: hashes of this moment, without any tenant's key.
fn probe_names(number: usize) -> Vec<PageIdentity> {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let name = |page: usize| {
        let moment = format!("probe {} {} {number} {page}", std::process::id(), now.as_nanos());
        PageIdentity::from_bytes(*blake3::hash(moment.as_bytes()).as_bytes())
    };
    (0..PROBE_PAGES).map(name).collect()
}

fn probe_bytes(name: &PageIdentity, num_bytes: usize) -> Vec<u8> {
    name.as_bytes().iter().copied().cycle().take(num_bytes).collect()
}

/// Counts of bytes and tokens; what is lost beyond 2^53 does not matter to a time.
#[allow(clippy::cast_precision_loss, reason = "times need no more")]
const fn wide(number: u64) -> f64 {
    number as f64
}
