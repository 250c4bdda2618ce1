//! `hisparse_sidecar._core`: conversion between Python and `hisparse-core`, and nothing else.
//!
//! The contract of every name is in `python/hisparse_sidecar/_core.pyi`.

mod buffer;
mod errors;
mod hierarchy;
mod layout;
mod lease;
mod manager;
mod models;
mod numbers;
mod object_tier;
mod region;
mod returning;
mod step_plan;
mod stores;
mod values;

use pyo3::prelude::*;

use crate::errors::raise;
use crate::numbers::Number;

/// Version of the core.
#[pyfunction]
fn core_version() -> &'static str {
    hisparse_core::VERSION
}

/// Times page operations in one thread: (operations done, seconds).
#[pyfunction]
fn time_page_ops(
    py: Python<'_>,
    num_pages: Number,
    num_operations: Number,
) -> PyResult<(u64, f64)> {
    let num_pages = num_pages.to("num_pages")?;
    let num_operations = num_operations.to("num_operations")?;
    let timing = py.detach(|| hisparse_core::page_ops::time(num_pages, num_operations));
    timing.map(|timing| (timing.num_operations, timing.elapsed.as_secs_f64())).map_err(raise)
}

#[pymodule]
fn _core(module: &Bound<'_, PyModule>) -> PyResult<()> {
    errors::add_classes(module)?;
    module.add("HostRegion", buffer::host_region_class(module.py())?)?;
    module.add_class::<layout::HostLayout>()?;
    module.add_class::<layout::DeviceCapacity>()?;
    module.add_class::<manager::Manager>()?;
    module.add_class::<lease::PageLease>()?;
    module.add_class::<hierarchy::Hierarchy>()?;
    module.add_class::<returning::Returning>()?;
    module.add_class::<stores::FileTier>()?;
    module.add_class::<stores::MemoryTier>()?;
    module.add_class::<stores::FaultTier>()?;
    module.add_class::<values::PrefixStats>()?;
    module.add_class::<values::Recovery>()?;
    module.add_class::<values::TierState>()?;
    module.add_class::<values::SequenceRanges>()?;
    module.add_class::<values::Stats>()?;
    module.add_class::<values::Resolution>()?;
    module.add_class::<models::HotBufferModel>()?;
    module.add_class::<models::BlockWindowModel>()?;
    module.add_function(wrap_pyfunction!(core_version, module)?)?;
    module.add_function(wrap_pyfunction!(step_plan::plan_step, module)?)?;
    module.add_function(wrap_pyfunction!(time_page_ops, module)?)
}
