//! The tables of a step, as Python gets them: bytes, and what lies where in them.

use hisparse_core::{IdRange, PAGE_TOKENS, StepPlan, StepRows};
use pyo3::prelude::*;
use pyo3::types::PyByteArray;

use crate::errors::{invalid_argument, raise};
use crate::numbers::Number;
use crate::values::SequenceRanges;

/// Name, first byte, bytes of a number, rows, and numbers of a row where there are rows.
type Table = (&'static str, usize, usize, usize, Option<usize>);

/// The bytes of all tables, and the tables.
pub(crate) type StepTables<'py> = (Bound<'py, PyByteArray>, Vec<Table>);

pub(crate) fn step_tables<'py>(py: Python<'py>, plan: &StepPlan) -> StepTables<'py> {
    let table = |table: &hisparse_core::Table| {
        (table.name, table.start, table.width, table.rows, table.columns)
    };
    (PyByteArray::new(py, plan.bytes()), plan.tables().iter().map(table).collect())
}

/// First new position, new rows, host pages and ranges of a sequence.
type Rows<'py> = (Number, Number, Vec<u32>, Bound<'py, SequenceRanges>);

/// As `Manager.plan_step`, of sequences that a rank knows from others.
#[pyfunction]
#[allow(clippy::needless_pass_by_value, reason = "what Python gives is a list of its own")]
pub(crate) fn plan_step<'py>(
    py: Python<'py>,
    sequences: Vec<Rows<'py>>,
    padded_rows: Number,
    block_tokens: Number,
) -> PyResult<StepTables<'py>> {
    let (padded_rows, block_tokens) =
        (padded_rows.to("padded_rows")?, block_tokens.to("block_tokens")?);
    let sequences = sequences.iter().map(rows_of).collect::<PyResult<Vec<_>>>()?;
    let plan = StepPlan::new(&sequences, padded_rows, block_tokens).map_err(raise)?;
    Ok(step_tables(py, &plan))
}

fn rows_of<'a>(rows: &'a Rows<'_>) -> PyResult<StepRows<impl Fn(usize) -> u32 + 'a>> {
    let (start, num_rows, pages, ranges) = rows;
    let (start, num_rows): (u32, u32) = (start.to("start")?, num_rows.to("num_rows")?);
    let needed = (u64::from(start) + u64::from(num_rows)).div_ceil(PAGE_TOKENS.into());
    if pages.len() as u64 != needed {
        let found = pages.len();
        return Err(invalid_argument(format!("pages: found {found}, needed {needed}")));
    }
    Ok(StepRows { start, num_rows, page: |at| pages[at], ranges: ranges.get().core()? })
}

impl SequenceRanges {
    fn core(&self) -> PyResult<hisparse_core::SequenceRanges> {
        let range = |base: u64, count: u64| -> PyResult<IdRange> {
            Ok(IdRange { base: id(base)?, count: id(count)? })
        };
        Ok(hisparse_core::SequenceRanges {
            slots: range(self.slot_base, self.slot_count)?,
            window: range(self.window_base, self.window_count)?,
            token_table: range(self.token_table_base, self.token_table_count)?,
            block_table: range(self.block_table_base, self.block_table_count)?,
            pooled: range(self.pooled_base, self.pooled_count)?,
            state_row: id(self.state_row)?,
        })
    }
}

fn id(number: u64) -> PyResult<u32> {
    Number::Fits(number.into()).to("an id of the ranges")
}
