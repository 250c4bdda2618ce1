//! What calls return: immutable records of numbers.

use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::errors::invalid_argument;
use crate::numbers::Number;

/// A frozen class of `u64` fields with `repr`, `==`, `as_dict` and its inverse.
macro_rules! record {
    ($name:ident { $($field:ident),+ $(,)? }) => {
        #[pyclass(module = "hisparse_sidecar._core", frozen, get_all, eq, skip_from_py_object)]
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub(crate) struct $name {
            $(pub(crate) $field: u64),+
        }

        #[pymethods]
        impl $name {
            fn as_dict<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
                let fields = PyDict::new(py);
                $(fields.set_item(stringify!($field), self.$field)?;)+
                Ok(fields)
            }

            #[staticmethod]
            fn from_dict(fields: &Bound<'_, PyDict>) -> PyResult<Self> {
                let names = [$(stringify!($field)),+];
                if fields.len() != names.len() {
                    let (found, needed) = (fields.len(), names.len());
                    let message = format!("fields: found {found}, needed {needed}");
                    return Err(invalid_argument(message));
                }
                Ok(Self { $($field: number_of(fields, stringify!($field))?),+ })
            }

            fn __repr__(&self) -> String {
                let fields = [$(format!("{}={}", stringify!($field), self.$field)),+];
                format!("{}({})", stringify!($name), fields.join(", "))
            }
        }
    };
}

fn number_of(fields: &Bound<'_, PyDict>, name: &'static str) -> PyResult<u64> {
    let Some(value) = fields.get_item(name)? else {
        return Err(invalid_argument(format!("fields: found no {name}, needed one")));
    };
    value.extract::<Number>()?.to(name)
}

record!(SequenceRanges {
    slot_base,
    slot_count,
    window_base,
    window_count,
    token_table_base,
    token_table_count,
    block_table_base,
    block_table_count,
    pooled_base,
    pooled_count,
    state_row,
});

impl From<hisparse_core::SequenceRanges> for SequenceRanges {
    fn from(ranges: hisparse_core::SequenceRanges) -> Self {
        Self {
            slot_base: ranges.slots.base.into(),
            slot_count: ranges.slots.count.into(),
            window_base: ranges.window.base.into(),
            window_count: ranges.window.count.into(),
            token_table_base: ranges.token_table.base.into(),
            token_table_count: ranges.token_table.count.into(),
            block_table_base: ranges.block_table.base.into(),
            block_table_count: ranges.block_table.count.into(),
            pooled_base: ranges.pooled.base.into(),
            pooled_count: ranges.pooled.count.into(),
            state_row: ranges.state_row.into(),
        }
    }
}

/// `Stats` has the fields of the core's, under the same names.
macro_rules! stats {
    ($($field:ident),+ $(,)?) => {
        record!(Stats { $($field),+ });

        impl From<hisparse_core::Stats> for Stats {
            fn from(stats: hisparse_core::Stats) -> Self {
                Self { $($field: stats.$field),+ }
            }
        }
    };
}

stats!(
    sequences,
    host_pages_total,
    host_pages_free,
    host_pages_reserved,
    host_pages_shared,
    host_pages_leased,
    slots_total,
    slots_used,
    window_slots_total,
    window_slots_used,
    table_tokens_total,
    table_tokens_used,
    table_blocks_total,
    table_blocks_used,
    pooled_keys_total,
    pooled_keys_used,
    state_rows_total,
    state_rows_used,
    opened,
    closed,
    forked,
    truncated,
    refused,
    appended_tokens,
    copied_pages,
);

record!(PrefixStats {
    pages,
    resident,
    demoting,
    lower,
    promoting,
    leases,
    pins,
    holds,
    epoch,
    hits,
    misses,
});

impl From<hisparse_core::prefix::PrefixStats> for PrefixStats {
    fn from(stats: hisparse_core::prefix::PrefixStats) -> Self {
        Self {
            pages: stats.pages,
            resident: stats.resident,
            demoting: stats.demoting,
            lower: stats.lower,
            promoting: stats.promoting,
            leases: stats.leases,
            pins: stats.pins,
            holds: stats.holds,
            epoch: stats.epoch,
            hits: stats.hits,
            misses: stats.misses,
        }
    }
}

record!(Recovery { pages, segments, scanned, skipped, torn, micros });

impl From<hisparse_core::tier::file::Recovery> for Recovery {
    fn from(found: hisparse_core::tier::file::Recovery) -> Self {
        Self {
            pages: found.pages,
            segments: found.segments,
            scanned: found.scanned,
            skipped: found.skipped,
            torn: found.torn,
            micros: found.micros,
        }
    }
}

/// A lower tier at one moment.
#[pyclass(module = "hisparse_sidecar._core", frozen, get_all, eq, skip_from_py_object)]
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TierState {
    name: &'static str,
    condition: &'static str,
    pages: u64,
    used_bytes: u64,
    capacity_bytes: u64,
    corrupt: u64,
    demoted: u64,
    promoted: u64,
    missed: u64,
    failed: u64,
    refused: u64,
    left: u64,
    bytes_down: u64,
    bytes_up: u64,
}

impl TierState {
    pub(crate) fn new(
        name: &'static str,
        condition: &'static str,
        state: &hisparse_core::hierarchy::TierState,
    ) -> Self {
        let (usage, counts) = (state.usage, state.counts);
        Self {
            name,
            condition,
            pages: usage.pages,
            used_bytes: usage.used_bytes,
            capacity_bytes: usage.capacity_bytes,
            corrupt: usage.corrupt,
            demoted: counts.demoted,
            promoted: counts.promoted,
            missed: counts.missed,
            failed: counts.failed,
            refused: counts.refused,
            left: counts.left,
            bytes_down: counts.bytes_down,
            bytes_up: counts.bytes_up,
        }
    }
}

#[pymethods]
impl TierState {
    fn __repr__(&self) -> String {
        format!(
            "TierState(name={:?}, condition={:?}, pages={}, used_bytes={}, capacity_bytes={})",
            self.name, self.condition, self.pages, self.used_bytes, self.capacity_bytes
        )
    }
}

#[pyclass(module = "hisparse_sidecar._core", frozen, get_all, eq, skip_from_py_object)]
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Resolution {
    slots: Vec<i32>,
    hits: Vec<i32>,
    misses: Vec<i32>,
    victims: Vec<i32>,
    evicted: Vec<i32>,
}

#[pymethods]
impl Resolution {
    fn __repr__(&self) -> String {
        format!(
            "Resolution(slots={:?}, hits={:?}, misses={:?}, victims={:?}, evicted={:?})",
            self.slots, self.hits, self.misses, self.victims, self.evicted
        )
    }
}

impl From<hisparse_core::Resolution> for Resolution {
    fn from(done: hisparse_core::Resolution) -> Self {
        Self {
            slots: done.slots,
            hits: done.hits,
            misses: done.misses,
            victims: done.victims,
            evicted: done.evicted,
        }
    }
}
