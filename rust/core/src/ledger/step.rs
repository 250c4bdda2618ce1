//! Steps: room for the new rows of several sequences, all or none, and where they lie.

use super::Ledger;
use crate::error::{Result, check_range};
use crate::page_table::CopyPage;
use crate::sequence::SequenceHandle;
use crate::step_plan::{StepPlan, StepRows};

impl Ledger {
    /// Appends to every sequence or to none, and tells the tables of the step.
    pub(crate) fn begin_step(
        &mut self,
        rows: &[(SequenceHandle, u32)],
        padded_rows: usize,
        tokens: Option<&[u32]>,
        copy: CopyPage<'_>,
    ) -> Result<StepPlan> {
        let mut starts = Vec::with_capacity(rows.len());
        let planned = self
            .append_all(rows, &mut starts, copy)
            .and_then(|()| self.note_all(rows, &starts, tokens))
            .and_then(|()| self.plan(rows, &starts, padded_rows));
        if planned.is_err() {
            for (&(sequence, _), &start) in rows.iter().zip(&starts).rev() {
                self.truncate(sequence, start)?;
            }
        }
        planned
    }

    fn append_all(
        &mut self,
        rows: &[(SequenceHandle, u32)],
        starts: &mut Vec<u32>,
        copy: CopyPage<'_>,
    ) -> Result<()> {
        for &(sequence, num_rows) in rows {
            starts.push(self.append(sequence, num_rows, copy)?);
        }
        Ok(())
    }

    fn note_all(
        &mut self,
        rows: &[(SequenceHandle, u32)],
        starts: &[u32],
        tokens: Option<&[u32]>,
    ) -> Result<()> {
        let Some(mut tokens) = tokens else { return Ok(()) };
        let num_rows = rows.iter().map(|&(_, count)| count as usize).sum();
        check_range("token ids of the step", tokens.len(), num_rows, num_rows)?;
        for (&(sequence, count), &start) in rows.iter().zip(starts) {
            let (own, rest) = tokens.split_at(count as usize);
            self.note_tokens(sequence, start, own)?;
            tokens = rest;
        }
        Ok(())
    }

    fn plan(
        &self,
        rows: &[(SequenceHandle, u32)],
        starts: &[u32],
        padded_rows: usize,
    ) -> Result<StepPlan> {
        let of_sequence = |(&(sequence, num_rows), &start): (&(SequenceHandle, u32), &u32)| {
            let active = self.sequences.get(sequence)?.active()?;
            let pages = active.pages.pages();
            let page = move |at: usize| pages[at].page();
            Ok(StepRows { start, num_rows, page, ranges: active.ranges })
        };
        let sequences = rows.iter().zip(starts).map(of_sequence).collect::<Result<Vec<_>>>()?;
        StepPlan::new(&sequences, padded_rows, self.block_tokens)
    }
}
