//! Steps: room for the new rows of several sequences, all or none, and where they lie.

use super::Ledger;
use crate::error::{Result, check_range};
use crate::page_table::CopyPage;
use crate::sequence::SequenceHandle;
use crate::step_plan::{StepPlan, StepRows};

impl Ledger {
    /// Appends to every sequence and tells their tokens, or does neither for any; where the rows
    /// begin.
    pub(crate) fn append_rows(
        &mut self,
        rows: &[(SequenceHandle, u32)],
        tokens: Option<&[u32]>,
        copy: CopyPage<'_>,
    ) -> Result<Vec<u32>> {
        let mut starts = Vec::with_capacity(rows.len());
        let appended = self
            .append_all(rows, &mut starts, copy)
            .and_then(|()| self.note_all(rows, &starts, tokens));
        if let Err(error) = appended {
            for (&(sequence, _), &start) in rows.iter().zip(&starts).rev() {
                self.truncate(sequence, start)?;
            }
            return Err(error);
        }
        Ok(starts)
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

    /// The tables of a step whose rows are the last of these sequences.
    pub(crate) fn plan_step(
        &self,
        rows: &[(SequenceHandle, u32)],
        padded_rows: usize,
    ) -> Result<StepPlan> {
        let of_sequence = |&(handle, num_rows): &(SequenceHandle, u32)| {
            let sequence = self.sequences.get(handle)?;
            let active = sequence.active()?;
            check_range("rows of a sequence", num_rows, 1, sequence.length)?;
            let pages = active.pages.pages();
            let page = move |at: usize| pages[at].page();
            let start = sequence.length - num_rows;
            Ok(StepRows { start, num_rows, page, ranges: active.ranges })
        };
        let sequences = rows.iter().map(of_sequence).collect::<Result<Vec<_>>>()?;
        StepPlan::new(&sequences, padded_rows, self.block_tokens)
    }
}
