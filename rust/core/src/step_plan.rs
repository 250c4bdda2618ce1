//! The tables of one step: whose each row is, and where pages, blocks and slots lie. They are one
//! stretch of bytes, so that they reach the device in one copy.

use crate::error::{Result, check_range};
use crate::page::PAGE_TOKENS;
use crate::page_table::pages_for;
use crate::pooled_keys::check_block_tokens;
use crate::sequence::SequenceRanges;

/// What the start of every table is a multiple of: kernels read 16 bytes at a time.
const ALIGN_BYTES: usize = 16;
/// In every table: there is nothing here.
const NONE: i64 = -1;

/// A table of numbers that each sequence has, and which of its numbers it is.
type RangeColumn = (&'static str, fn(&SequenceRanges) -> u32);

const RANGE_COLUMNS: [RangeColumn; 8] = [
    ("slot_base", |ranges| ranges.slots.base),
    ("slot_count", |ranges| ranges.slots.count),
    ("token_table_base", |ranges| ranges.token_table.base),
    ("window_base", |ranges| ranges.window.base),
    ("window_count", |ranges| ranges.window.count),
    ("block_table_base", |ranges| ranges.block_table.base),
    ("pooled_base", |ranges| ranges.pooled.base),
    ("state_row", |ranges| ranges.state_row),
];

/// One sequence of a step: its last `num_rows` tokens are new.
#[derive(Debug)]
pub struct StepRows<P> {
    /// Position of its first new row.
    pub start: u32,
    /// New rows, 1 or more.
    pub num_rows: u32,
    /// Host page of each 64 tokens, those of the new rows included.
    pub page: P,
    /// Where its device state lies.
    pub ranges: SequenceRanges,
}

/// Where one table lies in the bytes of a plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Table {
    /// What it is called.
    pub name: &'static str,
    /// Its first byte.
    pub start: usize,
    /// Bytes of one number, 4 or 8; signed, in the machine's order.
    pub width: usize,
    /// Rows; for tables of one dimension the numbers.
    pub rows: usize,
    /// Numbers of a row; None for tables of one dimension.
    pub columns: Option<usize>,
}

/// The tables of a step, -1 where there is nothing.
///
/// `row_seq`, `row_pos`, `host_row_ids`: of each row, padding at the end. `lengths`, and what
/// [`SequenceRanges`] has: of each sequence. `page_table`, `pooled_table`: pages of each sequence on
/// the host, and of its pooled keys on the device. `closed_rows`, `closed_pages`: pooled key and last
/// host page of each block that the step fills.
#[derive(Debug, Default)]
pub struct StepPlan {
    bytes: Vec<u8>,
    tables: Vec<Table>,
}

impl<P: Fn(usize) -> u32> StepRows<P> {
    const fn length(&self) -> u32 {
        self.start + self.num_rows
    }

    fn num_pages(&self) -> usize {
        pages_for(self.length())
    }

    fn host_row(&self, position: u32) -> i64 {
        let page = (self.page)((position / PAGE_TOKENS) as usize);
        i64::from(page) * i64::from(PAGE_TOKENS) + i64::from(position % PAGE_TOKENS)
    }

    fn closed_blocks(&self, block_tokens: u32) -> impl Iterator<Item = (i64, i64)> {
        let pages_each = (block_tokens / PAGE_TOKENS) as usize;
        let blocks = self.start / block_tokens..self.length() / block_tokens;
        blocks.map(move |block| {
            let last_page = (self.page)((block as usize + 1) * pages_each - 1);
            (i64::from(self.ranges.pooled.base + block), i64::from(last_page))
        })
    }
}

impl StepPlan {
    /// The tables of a step of these sequences, in this order, and padding up to `padded_rows`.
    ///
    /// # Errors
    /// [`OutOfRange`](crate::Error::OutOfRange): there are more rows than `padded_rows`.
    /// [`NotAMultiple`](crate::Error::NotAMultiple): a block is no whole number of pages.
    pub fn new<P: Fn(usize) -> u32>(
        sequences: &[StepRows<P>],
        padded_rows: usize,
        block_tokens: u32,
    ) -> Result<Self> {
        check_block_tokens(block_tokens)?;
        let num_rows: usize = sequences.iter().map(|one| one.num_rows as usize).sum();
        check_range("rows of the step", num_rows, 1, padded_rows)?;
        let mut plan = Self::default();
        plan.add_rows(sequences, padded_rows);
        plan.add_pages(sequences, block_tokens);
        plan.add_closed_blocks(sequences, block_tokens);
        plan.add_ranges(sequences);
        Ok(plan)
    }

    /// The bytes of all tables.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Where each table lies.
    pub fn tables(&self) -> &[Table] {
        &self.tables
    }

    fn add_rows<P: Fn(usize) -> u32>(&mut self, sequences: &[StepRows<P>], padded_rows: usize) {
        let owners = (0..).zip(sequences);
        let owner_of_row =
            owners.flat_map(|(number, one)| (one.start..one.length()).map(move |_| number));
        self.add::<i32>("row_seq", padded_rows, owner_of_row);
        let positions = sequences.iter().flat_map(|one| one.start..one.length());
        self.add::<i32>("row_pos", padded_rows, positions.map(i64::from));
        let host_rows = |one: &StepRows<P>| -> Vec<i64> {
            (one.start..one.length()).map(|position| one.host_row(position)).collect()
        };
        self.add::<i64>("host_row_ids", padded_rows, sequences.iter().flat_map(host_rows));
        let lengths = sequences.iter().map(|one| i64::from(one.length()));
        self.add::<i32>("lengths", sequences.len(), lengths);
    }

    fn add_pages<P: Fn(usize) -> u32>(&mut self, sequences: &[StepRows<P>], block_tokens: u32) {
        let page = |one: &StepRows<P>, at: usize| i64::from((one.page)(at));
        self.add_matrix("page_table", sequences, StepRows::num_pages, page);
        // pooled keys lie 64 to a page, in a range that begins with one
        let num_pooled = |one: &StepRows<P>| pages_for(one.length().div_ceil(block_tokens));
        let pooled = |one: &StepRows<P>, at: usize| {
            i64::from(one.ranges.pooled.base / PAGE_TOKENS) + i64::try_from(at).unwrap_or(NONE)
        };
        self.add_matrix("pooled_table", sequences, num_pooled, pooled);
    }

    fn add_closed_blocks<P: Fn(usize) -> u32>(
        &mut self,
        sequences: &[StepRows<P>],
        block_tokens: u32,
    ) {
        let closed: Vec<(i64, i64)> =
            sequences.iter().flat_map(|one| one.closed_blocks(block_tokens)).collect();
        self.add::<i64>("closed_rows", closed.len(), closed.iter().map(|block| block.0));
        self.add::<i64>("closed_pages", closed.len(), closed.iter().map(|block| block.1));
    }

    fn add_ranges<P: Fn(usize) -> u32>(&mut self, sequences: &[StepRows<P>]) {
        for (name, column) in RANGE_COLUMNS {
            let numbers = sequences.iter().map(|one| i64::from(column(&one.ranges)));
            self.add::<i64>(name, sequences.len(), numbers);
        }
    }

    /// One row a sequence, as wide as the longest.
    fn add_matrix<S>(
        &mut self,
        name: &'static str,
        sequences: &[S],
        count: impl Fn(&S) -> usize,
        number: impl Fn(&S, usize) -> i64,
    ) {
        let columns = sequences.iter().map(&count).max().unwrap_or(0);
        let (rows, width) = (sequences.len(), size_of::<i32>());
        let start = self.begin(Table { name, start: 0, width, rows, columns: Some(columns) });
        let row_bytes = (columns * width).max(1);
        for (row, one) in self.bytes[start..].chunks_exact_mut(row_bytes).zip(sequences) {
            write::<i32>(row, (0..count(one)).map(|at| number(one, at)));
        }
    }

    /// One number a row; -1 for the rows that `numbers` has none for.
    fn add<N: Width>(
        &mut self,
        name: &'static str,
        rows: usize,
        numbers: impl Iterator<Item = i64>,
    ) {
        let width = size_of::<N>();
        let start = self.begin(Table { name, start: 0, width, rows, columns: None });
        write::<N>(&mut self.bytes[start..], numbers);
    }

    /// Makes room for a table, all -1; where it starts.
    fn begin(&mut self, table: Table) -> usize {
        let start = self.bytes.len().next_multiple_of(ALIGN_BYTES);
        let num_bytes = table.rows * table.columns.unwrap_or(1) * table.width;
        self.bytes.resize(start, 0);
        self.bytes.resize(start + num_bytes, 0xFF);
        self.tables.push(Table { start, ..table });
        start
    }
}

fn write<N: Width>(bytes: &mut [u8], numbers: impl Iterator<Item = i64>) {
    for (place, number) in bytes.chunks_exact_mut(size_of::<N>()).zip(numbers) {
        N::put(number, place);
    }
}

/// A signed integer of a table.
trait Width: Sized {
    fn put(number: i64, place: &mut [u8]);
}

impl Width for i32 {
    #[allow(clippy::cast_possible_truncation, reason = "pages, rows and positions are below 2^31")]
    fn put(number: i64, place: &mut [u8]) {
        place.copy_from_slice(&(number as Self).to_ne_bytes());
    }
}

impl Width for i64 {
    fn put(number: i64, place: &mut [u8]) {
        place.copy_from_slice(&number.to_ne_bytes());
    }
}
