//! A step's tables against what the manager says of each sequence.

mod support;

use std::collections::HashMap;

use hisparse_core::{ErrorKind, PAGE_TOKENS, SequenceHandle, SequenceRanges, StepPlan};
use proptest::prelude::*;
use support::{BLOCK_TOKENS, DEVICE, Host};

/// Every table by its name, row after row; those of one dimension are one row.
type Tables = HashMap<&'static str, Vec<Vec<i64>>>;

fn tables(plan: &StepPlan) -> Tables {
    let numbers = |table: &hisparse_core::Table| -> Vec<i64> {
        let count = table.rows * table.columns.unwrap_or(1);
        let bytes = &plan.bytes()[table.start..table.start + count * table.width];
        let number = |bytes: &[u8]| match table.width {
            4 => i64::from(i32::from_ne_bytes(bytes.try_into().expect("a legal call"))),
            _ => i64::from_ne_bytes(bytes.try_into().expect("a legal call")),
        };
        assert!(table.start.is_multiple_of(16));
        bytes.chunks(table.width).map(number).collect()
    };
    let rows = |table: &hisparse_core::Table| match table.columns {
        Some(columns) => numbers(table).chunks(columns.max(1)).map(<[i64]>::to_vec).collect(),
        None => vec![numbers(table)],
    };
    plan.tables().iter().map(|table| (table.name, rows(table))).collect()
}

fn padded(mut numbers: Vec<i64>, count: usize) -> Vec<i64> {
    numbers.resize(count, -1);
    numbers
}

fn check_ranges(found: &Tables, number: usize, length: u32, ranges: &SequenceRanges) {
    let columns = [
        ("lengths", length),
        ("slot_base", ranges.slots.base),
        ("slot_count", ranges.slots.count),
        ("token_table_base", ranges.token_table.base),
        ("window_base", ranges.window.base),
        ("window_count", ranges.window.count),
        ("block_table_base", ranges.block_table.base),
        ("pooled_base", ranges.pooled.base),
        ("state_row", ranges.state_row),
    ];
    for (name, expected) in columns {
        assert_eq!(found[name][0][number], i64::from(expected), "{name}");
    }
}

fn check(host: &Host, rows: &[(SequenceHandle, u32)], padding: usize) {
    let manager = &host.manager;
    let total: u32 = rows.iter().map(|row| row.1).sum();
    let padded_rows = total as usize + padding;
    let before: Vec<_> = rows.iter().map(|row| manager.length(row.0)).collect();
    let starts = manager.append_rows(rows, None).expect("a legal call");
    assert_eq!(starts.into_iter().map(Ok).collect::<Vec<_>>(), before);
    let plan = manager.plan_step(rows, padded_rows).expect("a legal call");
    let found = tables(&plan);
    let (mut row_seq, mut row_pos, mut host_rows) = (vec![], vec![], vec![]);
    let (mut closed_rows, mut closed_pages) = (vec![], vec![]);
    for (number, &(sequence, count)) in rows.iter().enumerate() {
        let (length, pages) = (
            manager.length(sequence).expect("a legal call"),
            manager.host_pages(sequence).expect("a legal call"),
        );
        let ranges = manager.ranges(sequence).expect("a legal call");
        for position in length - count..length {
            row_seq.push(i64::try_from(number).expect("a legal call"));
            row_pos.push(i64::from(position));
            let page = pages[(position / PAGE_TOKENS) as usize];
            host_rows.push(i64::from(page * PAGE_TOKENS + position % PAGE_TOKENS));
            if (position + 1).is_multiple_of(BLOCK_TOKENS) {
                closed_rows.push(i64::from(ranges.pooled.base + position / BLOCK_TOKENS));
                closed_pages.push(i64::from(page));
            }
        }
        let width = found["page_table"][number].len();
        let pages = pages.iter().map(|&page| page.into()).collect();
        assert_eq!(found["page_table"][number], padded(pages, width));
        let num_pooled = length.div_ceil(BLOCK_TOKENS * PAGE_TOKENS);
        let first = ranges.pooled.base / PAGE_TOKENS;
        let pooled = (first..first + num_pooled).map(i64::from).collect();
        let width = found["pooled_table"][number].len();
        assert_eq!(found["pooled_table"][number], padded(pooled, width));
        check_ranges(&found, number, length, &ranges);
    }
    for (name, expected) in
        [("row_seq", row_seq), ("row_pos", row_pos), ("host_row_ids", host_rows)]
    {
        assert_eq!(found[name][0], padded(expected, padded_rows), "{name}");
    }
    assert_eq!(
        (&found["closed_rows"][0], &found["closed_pages"][0]),
        (&closed_rows, &closed_pages)
    );
    let longest =
        |name: &str| found[name].iter().map(|row| row.iter().filter(|n| **n >= 0).count());
    for name in ["page_table", "pooled_table"] {
        assert_eq!(longest(name).max(), Some(found[name][0].len()), "{name} is wider than needed");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn tables_say_what_the_manager_says(
        steps in prop::collection::vec(
            (prop::collection::vec(0_u32..200, 3), 0_usize..4), 1..6,
        )
    ) {
        let host = Host::new();
        let open = || host.manager.open_sequence(400, 40, DEVICE).unwrap();
        let sequences = [open(), open(), open()];
        for (counts, padding) in steps {
            let fits = |&(sequence, count): &(SequenceHandle, u32)| {
                count > 0 && host.manager.length(sequence).unwrap() + count <= 440
            };
            let rows: Vec<_> = sequences.into_iter().zip(counts).filter(fits).collect();
            if !rows.is_empty() {
                check(&host, &rows, padding);
            }
        }
        host.manager.check_integrity().unwrap();
    }
}

/// Rows and tokens of a step.
type Refused<'a> = (&'a [(SequenceHandle, u32)], Option<&'a [u32]>, ErrorKind);

#[test]
fn a_step_that_one_sequence_refuses_grows_none() {
    let host = Host::new();
    let manager = &host.manager;
    let (first, last) = (
        manager.open_sequence(100, 0, DEVICE).unwrap(),
        manager.open_sequence(10, 0, DEVICE).unwrap(),
    );
    let before = manager.stats().unwrap();
    let gone = SequenceHandle::from_bits(u64::MAX);
    let cases: [Refused<'_>; 4] = [
        (&[(first, 70), (last, 11)], None, ErrorKind::InvalidArgument),
        (&[(first, 70), (gone, 1)], None, ErrorKind::UnknownSequence),
        (&[(first, 70), (last, 0)], None, ErrorKind::InvalidArgument),
        (&[(first, 1)], Some(&[1, 2]), ErrorKind::InvalidArgument),
    ];
    for (rows, tokens, kind) in cases {
        let error = manager.append_rows(rows, tokens).unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        assert_eq!((manager.length(first), manager.length(last)), (Ok(0), Ok(0)));
    }
    let after = manager.stats().unwrap();
    assert_eq!(after.host_pages_free, before.host_pages_free);
    assert_eq!(after.host_pages_reserved, before.host_pages_reserved);
    manager.check_integrity().unwrap();
}

#[test]
fn a_plan_of_rows_that_are_not_there_is_refused() {
    let host = Host::new();
    let manager = &host.manager;
    let sequence = manager.open_sequence(100, 0, DEVICE).unwrap();
    manager.append_rows(&[(sequence, 72)], None).unwrap();
    let gone = SequenceHandle::from_bits(u64::MAX);
    for (rows, padded_rows) in [([(sequence, 72)], 71), ([(sequence, 73)], 73), ([(gone, 1)], 1)] {
        manager.plan_step(&rows, padded_rows).unwrap_err();
    }
    manager.plan_step(&[(sequence, 72)], 72).unwrap();
}
