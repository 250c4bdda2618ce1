//! `cargo bench -p hisparse-core`: one JSON line a case.

use std::io::Write;
use std::time::Instant;

use hisparse_core::{HotBuffer, Result, page_ops};

fn main() -> Result<()> {
    let pages = page_ops::time(100_000, 20_000_000)?;
    let per_second = rate(pages.num_operations, pages.elapsed.as_secs_f64());
    report("page_ops", "operations_per_second", per_second);
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

#[allow(clippy::cast_precision_loss, reason = "a rate needs three digits")]
fn rate(count: u64, seconds: f64) -> f64 {
    count as f64 / seconds
}

fn report(case: &str, metric: &str, value: f64) {
    let line = format!(r#"{{"case": "{case}", "metric": "{metric}", "value": {value:.1}}}"#);
    let _ = writeln!(std::io::stdout(), "{line}");
}
