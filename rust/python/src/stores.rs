//! Tiers below the host pool as Python has them: files, memory, and either of them with faults.

use std::sync::Arc;
use std::time::Duration;

use hisparse_core::tier::file::{
    FailAction, Failpoint, Failpoints, FileTierOptions, Occasion, RecoveryMode,
};
use hisparse_core::tier::{
    DrawBy, FaultCounts, FaultPlan, MemoryTier as CoreMemoryTier, PageIdentity, PageTier,
    SharedTier, VerifiedTier,
};
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::errors::{invalid_argument, raise};
use crate::numbers::Number;
use crate::object_tier::ObjectTier;
use crate::values::Recovery;

const MODEL_BYTES: usize = 32;

/// Files of one directory.
#[pyclass(module = "hisparse_sidecar._core", frozen)]
pub(crate) struct FileTier {
    core: Arc<hisparse_core::tier::file::FileTier>,
    failpoints: Failpoints,
    #[pyo3(get)]
    recovery: Py<Recovery>,
}

#[pymethods]
impl FileTier {
    #[new]
    #[pyo3(signature = (
        directory, *, capacity_bytes, digest, segment_bytes=Number::Fits(128 << 20),
        recovery_mode="quiet", io_threads=Number::Fits(4)
    ))]
    #[pyo3(text_signature = "(directory, *, capacity_bytes, digest, segment_bytes=134217728, \
                             recovery_mode='quiet', io_threads=4)")]
    #[allow(clippy::too_many_arguments, reason = "keywords in Python")]
    fn new(
        py: Python<'_>,
        directory: &str,
        capacity_bytes: Number,
        digest: &[u8],
        segment_bytes: Number,
        recovery_mode: &str,
        io_threads: Number,
    ) -> PyResult<Self> {
        let failpoints = Failpoints::default();
        let mut options =
            FileTierOptions::new(directory, capacity_bytes.to("capacity_bytes")?, bytes32(digest)?);
        options.segment_bytes = segment_bytes.to("segment_bytes")?;
        options.io_threads = io_threads.to("io_threads")?;
        options.failpoints = failpoints.clone();
        options.recovery = match recovery_mode {
            "quiet" => RecoveryMode::Quiet,
            "strict" => RecoveryMode::Strict,
            other => return Err(unknown("recovery_mode", other, "quiet, strict")),
        };
        let opened = py.detach(|| hisparse_core::tier::file::FileTier::open(options));
        let (core, recovery) = opened.map_err(raise)?;
        let recovery = Py::new(py, Recovery::from(recovery))?;
        Ok(Self { core: Arc::new(core), failpoints, recovery })
    }

    /// Arms a failpoint.
    #[pyo3(signature = (point, *, error_number=None, sleep_seconds=None, one_in, seed))]
    fn arm(
        &self,
        point: &str,
        error_number: Option<Number>,
        sleep_seconds: Option<f64>,
        one_in: Number,
        seed: Number,
    ) -> PyResult<()> {
        let action = match (error_number, sleep_seconds) {
            (Some(number), None) => FailAction::Errno(number.to("error_number")?),
            (None, Some(seconds)) => FailAction::Sleep(duration(seconds)?),
            _ => {
                let needed = "needed one of error_number and sleep_seconds";
                return Err(invalid_argument(format!("failpoint {point}: {needed}")));
            }
        };
        let occasion = Occasion::Chance { one_in: one_in.to("one_in")?, seed: seed.to("seed")? };
        self.failpoints.arm(failpoint(point)?, action, occasion);
        Ok(())
    }

    /// Calls that failpoints have made to fail, by errno, or to sleep, by None.
    #[pyo3(signature = (error_number))]
    fn num_injected(&self, error_number: Option<Number>) -> PyResult<u64> {
        let wanted: Option<i32> =
            error_number.map(|number| number.to("error_number")).transpose()?;
        let is_wanted = |action: &FailAction| match action {
            FailAction::Errno(number) => wanted == Some(*number),
            FailAction::Sleep(_) => wanted.is_none(),
            FailAction::Abort => false,
        };
        let acted = self.failpoints.acted();
        Ok(acted.iter().filter(|(action, _)| is_wanted(action)).map(|(_, count)| count).sum())
    }

    /// Whether the tier thinks that it has a page; nothing is read from the disk.
    fn holds(&self, name: &[u8]) -> PyResult<bool> {
        let identity = PageIdentity::from_bytes(bytes32(name)?);
        Ok(self.core.page_bytes(&identity).is_some())
    }

    /// Disarms every failpoint.
    fn disarm(&self) {
        self.failpoints.disarm();
    }
}

/// Pages in this process's memory.
#[pyclass(module = "hisparse_sidecar._core", frozen)]
pub(crate) struct MemoryTier {
    core: Arc<CoreMemoryTier>,
}

#[pymethods]
impl MemoryTier {
    #[new]
    fn new(capacity_bytes: Number) -> PyResult<Self> {
        let capacity_bytes = capacity_bytes.to("capacity_bytes")?;
        Ok(Self { core: Arc::new(CoreMemoryTier::new(capacity_bytes)) })
    }
}

type Faulty = hisparse_core::tier::FaultTier<SharedTier>;

/// A tier with faults, and the frames that find them out.
#[pyclass(module = "hisparse_sidecar._core", frozen)]
pub(crate) struct FaultTier {
    core: Arc<VerifiedTier<Faulty>>,
}

#[pymethods]
impl FaultTier {
    #[new]
    #[pyo3(signature = (tier, *, seed, by_identity=false, delay_seconds=0.0, **rates))]
    fn new(
        tier: &Bound<'_, PyAny>,
        seed: Number,
        by_identity: bool,
        delay_seconds: f64,
        rates: Option<&Bound<'_, PyDict>>,
    ) -> PyResult<Self> {
        let mut plan = FaultPlan { seed: seed.to("seed")?, ..FaultPlan::default() };
        plan.draw_by = if by_identity { DrawBy::Identity } else { DrawBy::Call };
        plan.delay = duration(delay_seconds)?;
        for (name, rate) in rates.into_iter().flatten() {
            let (name, rate): (String, Number) = (name.extract()?, rate.extract()?);
            *rate_of(&mut plan, &name)? = rate.to("rate")?;
        }
        let faulty = Faulty::new(SharedTier::new(store_of(tier)?), plan).map_err(raise)?;
        Ok(Self { core: Arc::new(VerifiedTier::new(faulty)) })
    }

    /// Faults so far, by kind.
    #[getter]
    fn injected<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let FaultCounts { vanished, hollow, slow, short, corrupt_read, corrupt_stored, error } =
            self.core.inner().injected();
        let counts = PyDict::new(py);
        for (name, count) in [
            ("vanished", vanished),
            ("hollow", hollow),
            ("slow", slow),
            ("short", short),
            ("corrupt_read", corrupt_read),
            ("corrupt_stored", corrupt_stored),
            ("error", error),
        ] {
            counts.set_item(name, count)?;
        }
        Ok(counts)
    }
}

/// The core's side of any tier that Python may have.
pub(crate) fn store_of(tier: &Bound<'_, PyAny>) -> PyResult<Arc<dyn PageTier>> {
    if let Ok(tier) = tier.cast::<FileTier>() {
        return Ok(Arc::clone(&tier.get().core) as _);
    }
    if let Ok(tier) = tier.cast::<MemoryTier>() {
        return Ok(Arc::clone(&tier.get().core) as _);
    }
    if let Ok(tier) = tier.cast::<FaultTier>() {
        return Ok(Arc::clone(&tier.get().core) as _);
    }
    for method in ["put", "get", "holds", "remove"] {
        if !tier.hasattr(method)? {
            let class = tier.get_type();
            return Err(invalid_argument(format!("tier: found {class}, needed one with {method}")));
        }
    }
    Ok(Arc::new(ObjectTier::new(tier.clone().unbind())))
}

/// Exactly 32 bytes.
pub(crate) fn bytes32(bytes: &[u8]) -> PyResult<[u8; MODEL_BYTES]> {
    let found = bytes.len();
    bytes
        .try_into()
        .map_err(|_| invalid_argument(format!("bytes: found {found}, needed {MODEL_BYTES}")))
}

/// Seconds, finite and not negative.
pub(crate) fn duration(seconds: f64) -> PyResult<Duration> {
    let refused = |_| invalid_argument(format!("seconds: found {seconds}, needed 0 to 2**64"));
    Duration::try_from_secs_f64(seconds).map_err(refused)
}

fn rate_of<'plan>(plan: &'plan mut FaultPlan, name: &str) -> PyResult<&'plan mut u32> {
    match name {
        "vanished" => Ok(&mut plan.vanished),
        "hollow" => Ok(&mut plan.hollow),
        "slow" => Ok(&mut plan.slow),
        "short" => Ok(&mut plan.short),
        "corrupt_read" => Ok(&mut plan.corrupt_read),
        "corrupt_stored" => Ok(&mut plan.corrupt_stored),
        "error" => Ok(&mut plan.error),
        _ => Err(unknown(
            "fault",
            name,
            "corrupt_read, corrupt_stored, error, hollow, short, slow, vanished",
        )),
    }
}

fn failpoint(name: &str) -> PyResult<Failpoint> {
    match name {
        "before_write" => Ok(Failpoint::BeforeWrite),
        "half_write" => Ok(Failpoint::HalfWrite),
        "after_write" => Ok(Failpoint::AfterWrite),
        "before_sync" => Ok(Failpoint::BeforeSync),
        "after_sync" => Ok(Failpoint::AfterSync),
        "before_manifest_rename" => Ok(Failpoint::BeforeManifestRename),
        "after_manifest_rename" => Ok(Failpoint::AfterManifestRename),
        "in_unlink" => Ok(Failpoint::InUnlink),
        "before_read" => Ok(Failpoint::BeforeRead),
        _ => Err(unknown(
            "failpoint",
            name,
            "after_manifest_rename, after_sync, after_write, before_manifest_rename, before_read, \
             before_sync, before_write, half_write, in_unlink",
        )),
    }
}

fn unknown(what: &str, found: &str, known: &str) -> PyErr {
    invalid_argument(format!("{what}: found {found:?}, needed one of {known}"))
}
