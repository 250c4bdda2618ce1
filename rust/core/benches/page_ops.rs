//! `cargo bench -p hisparse-core`: one JSON line a case.

use std::io::Write;
use std::time::Instant;

use hisparse_core::sync::Arc;
use hisparse_core::{
    DeviceCapacity, DeviceSlots, HostLayout, HostRegion, HotBuffer, LayoutShape, Manager,
    RegionOptions, Result, page_ops,
};

fn main() -> Result<()> {
    let pages = page_ops::time(100_000, 20_000_000)?;
    let per_second = rate(pages.num_operations, pages.elapsed.as_secs_f64());
    report("page_ops", "operations_per_second", per_second);
    report("append_64_truncate", "nanoseconds", append_ns()?);
    report("resolve_512_of_1025", "microseconds", resolve_us(512, 1025)?);
    report("resolve_2048_of_4097", "microseconds", resolve_us(2048, 4097)?);
    Ok(())
}

/// Mean time of a resolve whose selection drifts by a tenth from step to step.
fn resolve_us(num_items: i32, num_slots: usize) -> Result<f64> {
    const STEPS: u32 = 2000;
    let mut hot = HotBuffer::new(num_slots)?;
    let start = Instant::now();
    for step in 1..=STEPS {
        let first = i32::try_from(step).unwrap_or(0) * num_items / 10;
        let items: Vec<i32> = (first..first + num_items).map(|i| i * 7 % 1_000_003).collect();
        hot.select(step, &items)?;
    }
    Ok(start.elapsed().as_secs_f64() * 1e6 / f64::from(STEPS))
}

/// Mean time of an append of one page and the truncate that undoes it, through the manager's lock.
fn append_ns() -> Result<f64> {
    const ROUNDS: u32 = 1_000_000;
    let shape = LayoutShape {
        num_layers: 1,
        num_anchors: 1,
        kv_row_bytes: 656,
        index_row_bytes: 132,
        num_pages: 4096,
    };
    let layout = HostLayout::new(shape)?;
    let region = HostRegion::create(layout.num_bytes(), &RegionOptions::default())?;
    let capacity = DeviceCapacity {
        slots: 1,
        table_tokens: 4096,
        table_blocks: 32,
        pooled_keys: 64,
        sequences: 1,
        ..DeviceCapacity::default()
    };
    let manager = Manager::new(Arc::new(region), layout, capacity, 128)?;
    let device = DeviceSlots { slots: 1, window_slots: 0 };
    let sequence = manager.open_sequence(4096, 0, device)?;
    let start = Instant::now();
    for _ in 0..ROUNDS {
        manager.append(sequence, 64)?;
        manager.truncate(sequence, 0)?;
    }
    Ok(start.elapsed().as_secs_f64() * 1e9 / f64::from(ROUNDS))
}

#[allow(clippy::cast_precision_loss, reason = "a rate needs three digits")]
fn rate(count: u64, seconds: f64) -> f64 {
    count as f64 / seconds
}

fn report(case: &str, metric: &str, value: f64) {
    let line = format!(r#"{{"case": "{case}", "metric": "{metric}", "value": {value:.1}}}"#);
    let _ = writeln!(std::io::stdout(), "{line}");
}
