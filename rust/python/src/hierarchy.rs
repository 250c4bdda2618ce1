//! `Hierarchy`: sequences and pages over the host pool and the tiers below it.

use std::sync::{Arc, Mutex, PoisonError};

use hisparse_core::hierarchy::{
    Condition, HierarchyLimits, LoadTable, Loading, LowerStore, TierSpeed,
};
use hisparse_core::prefix::LowerTier;
use hisparse_core::tier::{BreakerLimits, Deadline};
use hisparse_core::{Error, Result, SequenceHandle};
use pyo3::prelude::*;

use crate::errors::{invalid_argument, raise};
use crate::manager::{Manager, device_slots, handle, to_u32s};
use crate::numbers::Number;
use crate::returning::Returning;
use crate::stores::{duration, store_of};
use crate::values::TierState;

/// Speeds of tiers: name, latency in us, bytes a second.
type Speeds = Vec<(String, u64, u64)>;

#[pyclass(module = "hisparse_sidecar._core", frozen)]
pub(crate) struct Hierarchy {
    manager: Arc<hisparse_core::Manager>,
    core: Mutex<Option<Arc<Core>>>, // None once closed
}

type Core = hisparse_core::hierarchy::Hierarchy;

#[pymethods]
impl Hierarchy {
    #[new]
    #[pyo3(signature = (
        manager, *, file=None, remote=None, low_watermark_pages=Number::Fits(0),
        num_threads=Number::Fits(4), staging_bytes=Number::Fits(256 << 20), call_seconds=1.0
    ))]
    #[pyo3(text_signature = "(manager, *, file=None, remote=None, low_watermark_pages=0, \
                             num_threads=4, staging_bytes=268435456, call_seconds=1.0)")]
    #[allow(clippy::too_many_arguments, reason = "keywords in Python")]
    fn new(
        py: Python<'_>,
        manager: &Bound<'_, Manager>,
        file: Option<&Bound<'_, PyAny>>,
        remote: Option<&Bound<'_, PyAny>>,
        low_watermark_pages: Number,
        num_threads: Number,
        staging_bytes: Number,
        call_seconds: f64,
    ) -> PyResult<Self> {
        let limits = HierarchyLimits {
            low_watermark_pages: low_watermark_pages.to("low_watermark_pages")?,
            num_threads: num_threads.to("num_threads")?,
            staging_bytes: staging_bytes.to("staging_bytes")?,
            call_limit: duration(call_seconds)?,
            breaker: BreakerLimits::default(),
            ..HierarchyLimits::default()
        };
        let given = [(LowerTier::File, file), (LowerTier::Remote, remote)];
        let below = given.into_iter().filter_map(|(tier, store)| store.map(|store| (tier, store)));
        let below = below
            .map(|(tier, store)| Ok(LowerStore { tier, store: store_of(store)? }))
            .collect::<PyResult<Vec<_>>>()?;
        let manager = Arc::clone(&manager.get().core);
        let core = py.detach(|| manager.hierarchy(below, limits)).map_err(raise)?;
        Ok(Self { manager, core: Mutex::new(Some(Arc::new(core))) })
    }

    /// Starts the thread that keeps host pages free, and the one that looks after lower tiers.
    #[pyo3(signature = (*, measure_seconds=0.0))]
    fn start(&self, measure_seconds: f64) -> PyResult<()> {
        let limit = Some(duration(measure_seconds)?).filter(|limit| !limit.is_zero());
        let core = self.core()?;
        core.start_balancing().and_then(|()| core.start_measuring(limit)).map_err(raise)
    }

    /// Pages may have become idle: the thread looks whether enough host pages are free.
    fn wake(&self) -> PyResult<()> {
        self.core()?.wake();
        Ok(())
    }

    #[pyo3(signature = (
        tenant, tokens, max_new_tokens, *, slots, window_slots, deadline_seconds,
        recompute_tokens_per_second=None
    ))]
    #[allow(clippy::too_many_arguments, reason = "keywords in Python")]
    #[allow(clippy::needless_pass_by_value, reason = "what Python gives is a list of its own")]
    fn open_prompt(
        &self,
        py: Python<'_>,
        tenant: &str,
        tokens: Vec<Number>,
        max_new_tokens: Number,
        slots: Number,
        window_slots: Number,
        deadline_seconds: f64,
        recompute_tokens_per_second: Option<f64>,
    ) -> PyResult<(u64, u32)> {
        let (tokens, max_new) = (to_u32s("token", &tokens)?, max_new_tokens.to("max_new_tokens")?);
        let device = device_slots(slots, window_slots)?;
        let loading = Loading {
            deadline: Deadline::after(duration(deadline_seconds)?),
            recompute_tokens_per_s: recompute_tokens_per_second,
        };
        let opened = self.call(py, |core| {
            core.open_prompt(&self.manager, (tenant, &tokens), max_new, device, loading)
        })?;
        Ok((opened.sequence.bits(), opened.cached_tokens))
    }

    #[pyo3(signature = (prompt_tokens, max_new_tokens, *, slots, window_slots, deadline_seconds))]
    #[allow(clippy::too_many_arguments, reason = "keywords in Python")]
    fn open_sequence(
        &self,
        py: Python<'_>,
        prompt_tokens: Number,
        max_new_tokens: Number,
        slots: Number,
        window_slots: Number,
        deadline_seconds: f64,
    ) -> PyResult<u64> {
        let prompt_tokens = prompt_tokens.to("prompt_tokens")?;
        let max_new_tokens = max_new_tokens.to("max_new_tokens")?;
        let device = device_slots(slots, window_slots)?;
        let deadline = Deadline::after(duration(deadline_seconds)?);
        self.call(py, |core| {
            core.open_sequence(&self.manager, (prompt_tokens, max_new_tokens), device, deadline)
        })
        .map(SequenceHandle::bits)
    }

    #[pyo3(signature = (seq, length, max_new_tokens, *, slots, window_slots, deadline_seconds))]
    #[allow(clippy::too_many_arguments, reason = "keywords in Python")]
    fn fork(
        &self,
        py: Python<'_>,
        seq: Number,
        length: Number,
        max_new_tokens: Number,
        slots: Number,
        window_slots: Number,
        deadline_seconds: f64,
    ) -> PyResult<u64> {
        let (seq, length) = (handle(seq)?, length.to("length")?);
        let max_new_tokens = max_new_tokens.to("max_new_tokens")?;
        let device = device_slots(slots, window_slots)?;
        let deadline = Deadline::after(duration(deadline_seconds)?);
        self.call(py, |core| {
            core.fork(&self.manager, (seq, length), max_new_tokens, device, deadline)
        })
        .map(SequenceHandle::bits)
    }

    #[pyo3(signature = (seq, *, slots, window_slots, deadline_seconds))]
    fn resume(
        &self,
        py: Python<'_>,
        seq: Number,
        slots: Number,
        window_slots: Number,
        deadline_seconds: f64,
    ) -> PyResult<u32> {
        let (seq, device) = (handle(seq)?, device_slots(slots, window_slots)?);
        let deadline = Deadline::after(duration(deadline_seconds)?);
        self.call(py, |core| core.resume(&self.manager, seq, device, deadline))
    }

    #[pyo3(signature = (length, max_new_tokens, *, deadline_seconds))]
    fn make_room_to_fork(
        &self,
        py: Python<'_>,
        length: Number,
        max_new_tokens: Number,
        deadline_seconds: f64,
    ) -> PyResult<()> {
        let (length, max_new) = (length.to("length")?, max_new_tokens.to("max_new_tokens")?);
        let deadline = Deadline::after(duration(deadline_seconds)?);
        self.call(py, |core| core.make_room_to_fork(length, max_new, deadline))
    }

    #[pyo3(signature = (seq, *, deadline_seconds))]
    fn bring_back(
        &self,
        py: Python<'_>,
        seq: Number,
        deadline_seconds: f64,
    ) -> PyResult<Returning> {
        let seq = handle(seq)?;
        let deadline = Deadline::after(duration(deadline_seconds)?);
        self.call(py, |core| {
            let returning = core.bring_back(&self.manager, seq, deadline)?;
            core.make_room_to_resume(&self.manager, &returning, deadline)?;
            Ok(returning)
        })
        .map(|returning| Returning::new(Arc::clone(&self.manager), seq, returning))
    }

    #[pyo3(signature = (returning, *, slots, window_slots))]
    fn finish_resume(
        &self,
        py: Python<'_>,
        returning: &Bound<'_, Returning>,
        slots: Number,
        window_slots: Number,
    ) -> PyResult<u32> {
        let device = device_slots(slots, window_slots)?;
        let returning = returning.get();
        self.call(py, |core| returning.finish(core, &self.manager, device))
    }

    /// (pages found, pages removed).
    fn recover(&self, py: Python<'_>, deadline_seconds: f64) -> PyResult<(usize, usize)> {
        let deadline = Deadline::after(duration(deadline_seconds)?);
        let recovered = self.call(py, |core| core.recover(deadline))?;
        Ok((recovered.pages, recovered.removed))
    }

    fn make_room(
        &self,
        py: Python<'_>,
        num_pages: Number,
        deadline_seconds: f64,
    ) -> PyResult<usize> {
        let num_pages = num_pages.to("num_pages")?;
        let deadline = Deadline::after(duration(deadline_seconds)?);
        self.call(py, |core| core.make_room(num_pages, deadline))
    }

    fn flush(&self, py: Python<'_>, deadline_seconds: f64) -> PyResult<()> {
        let deadline = Deadline::after(duration(deadline_seconds)?);
        self.call(py, |core| core.flush(deadline))
    }

    /// (host pages freed, pages of the directory still in the host pool).
    fn drain(&self, py: Python<'_>, deadline_seconds: f64) -> PyResult<(usize, u64)> {
        let deadline = Deadline::after(duration(deadline_seconds)?);
        let drained = self.call(py, |core| core.drain(deadline))?;
        Ok((drained.moved, drained.left))
    }

    fn measure(&self, py: Python<'_>, tier_seconds: f64) -> PyResult<Speeds> {
        let limit = duration(tier_seconds)?;
        self.call(py, |core| core.measure(limit)).map(|table| speeds(&table))
    }

    fn load_table(&self) -> PyResult<(Speeds, u64)> {
        let (table, epoch) = self.core()?.load_table().map_err(raise)?;
        Ok((speeds(&table), epoch))
    }

    fn adopt_load_table(&self, table: Speeds, epoch: Number) -> PyResult<()> {
        let entry = |(name, latency_us, bytes_per_s): (String, u64, u64)| {
            Ok((tier_named(&name)?, TierSpeed { latency_us, bytes_per_s }))
        };
        let speeds = table.into_iter().map(entry).collect::<PyResult<_>>()?;
        self.core()?.adopt(LoadTable { speeds }, epoch.to("epoch")?).map_err(raise)
    }

    fn state(&self, py: Python<'_>) -> PyResult<Vec<TierState>> {
        let states = self.call(py, Core::state)?;
        Ok(states
            .iter()
            .map(|state| TierState::new(name_of(state.tier), condition(state), state))
            .collect())
    }

    /// Pages that were to leave the host pool and have stayed, because no tier took them.
    #[getter]
    fn num_kept(&self) -> PyResult<u64> {
        Ok(self.core()?.num_kept())
    }

    /// Lets go of the tiers, too: files may be opened again once the last call has ended.
    fn close(&self, py: Python<'_>) {
        self.end(py);
    }
}

/// One that nobody has closed: its threads may be waiting for Python, in a tier that is an object.
impl Drop for Hierarchy {
    fn drop(&mut self) {
        Python::attach(|py| self.end(py));
    }
}

impl Hierarchy {
    fn end(&self, py: Python<'_>) {
        let core = self.core.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(core) = core {
            py.detach(|| core.close());
        }
    }

    fn core(&self) -> PyResult<Arc<Core>> {
        let core = self.core.lock().unwrap_or_else(PoisonError::into_inner);
        let closed = Error::WrongState { what: "open hierarchies", found: 0, needed: 1 };
        core.as_ref().map(Arc::clone).ok_or_else(|| raise(closed))
    }

    fn call<T: Send>(
        &self,
        py: Python<'_>,
        work: impl FnOnce(&Core) -> Result<T> + Send,
    ) -> PyResult<T> {
        let core = self.core()?;
        py.detach(|| work(&core)).map_err(raise)
    }
}

const NAMES: [(LowerTier, &str); 2] = [(LowerTier::File, "file"), (LowerTier::Remote, "remote")];

fn name_of(tier: LowerTier) -> &'static str {
    NAMES.iter().find(|(known, _)| *known == tier).map_or("unknown", |(_, name)| name)
}

fn tier_named(name: &str) -> PyResult<LowerTier> {
    let found = NAMES.iter().find(|(_, known)| *known == name).map(|(tier, _)| *tier);
    found.ok_or_else(|| invalid_argument(format!("tier: found {name:?}, needed file or remote")))
}

fn condition(state: &hisparse_core::hierarchy::TierState) -> &'static str {
    match state.condition {
        Condition::Serving => "serving",
        Condition::Full => "full",
        Condition::Degraded => "degraded",
    }
}

fn speeds(table: &LoadTable) -> Speeds {
    let entry = |(tier, speed): &(LowerTier, TierSpeed)| {
        (name_of(*tier).to_string(), speed.latency_us, speed.bytes_per_s)
    };
    table.speeds.iter().map(entry).collect()
}
