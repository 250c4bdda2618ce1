//! Whether loading beats computing again: by numbers that were measured, the same on every rank.

use std::time::Duration;

use super::Hierarchy;
use crate::error::{Error, Result};
use crate::page::PAGE_TOKENS;
use crate::prefix::LowerTier;
use crate::sync::{Mutex, lock};

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

impl Gate {
    /// Adds a tier's figures to the table in force, as the next epoch.
    pub(super) fn add(&self, tier: LowerTier, speed: TierSpeed) -> Result<()> {
        let mut adopted = lock(&self.adopted)?;
        adopted.table.speeds.retain(|(known, _)| *known != tier);
        adopted.table.speeds.push((tier, speed));
        adopted.epoch = adopted.epoch.saturating_add(1);
        Ok(())
    }

    /// Whether the table in force has no figures of a tier.
    pub(super) fn lacks(&self, tier: LowerTier) -> Result<bool> {
        Ok(lock(&self.adopted)?.table.speed(tier).is_none())
    }
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

/// Counts of bytes and tokens; what is lost beyond 2^53 does not matter to a time.
#[allow(clippy::cast_precision_loss, reason = "times need no more")]
pub(super) const fn wide(number: u64) -> f64 {
    number as f64
}
