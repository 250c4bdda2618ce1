//! `Manager`: every call leaves the interpreter while it may wait for the lock or copy a page.

use std::borrow::Cow;
use std::sync::Arc;

use hisparse_core::{DeviceSlots, Result, SequenceHandle, SharingOptions};
use pyo3::prelude::*;

use crate::errors::raise;
use crate::layout::{DeviceCapacity, HostLayout};
use crate::lease::PageLease;
use crate::numbers::Number;
use crate::region::PyHostRegion;
use crate::step_plan::{StepTables, step_tables};
use crate::stores::bytes32;
use crate::values::{PrefixStats, SequenceRanges, Stats};

#[pyclass(module = "hisparse_sidecar._core", frozen)]
pub(crate) struct Manager {
    pub(crate) core: Arc<hisparse_core::Manager>,
}

#[pymethods]
impl Manager {
    #[new]
    #[pyo3(
        signature = (
            region, layout, capacity, *, block_tokens=Number::Fits(128), model="", secret=None,
            max_pages=Number::Fits(0)
        ),
        text_signature = "(region, layout, capacity, *, block_tokens=128, model='', secret=None, \
                          max_pages=0)"
    )]
    #[allow(clippy::too_many_arguments, reason = "keywords in Python")]
    fn new(
        py: Python<'_>,
        region: &Bound<'_, PyHostRegion>,
        layout: &Bound<'_, HostLayout>,
        capacity: &Bound<'_, DeviceCapacity>,
        block_tokens: Number,
        model: &str,
        secret: Option<&[u8]>,
        max_pages: Number,
    ) -> PyResult<Self> {
        let region = Arc::clone(&region.get().core);
        let (layout, capacity) = (layout.get().core, capacity.get().core());
        let block_tokens = block_tokens.to("block_tokens")?;
        let mut options = SharingOptions {
            max_pages: max_pages.to("max_pages")?,
            model: model.into(),
            ..SharingOptions::default()
        };
        if let Some(secret) = secret {
            options.secret = bytes32(secret)?;
        }
        py.detach(|| {
            hisparse_core::Manager::sharing(region, layout, capacity, block_tokens, &options)
        })
        .map(|core| Self { core: Arc::new(core) })
        .map_err(raise)
    }

    #[pyo3(signature = (prompt_tokens, max_new_tokens, *, slots, window_slots))]
    fn open_sequence(
        &self,
        py: Python<'_>,
        prompt_tokens: Number,
        max_new_tokens: Number,
        slots: Number,
        window_slots: Number,
    ) -> PyResult<u64> {
        let prompt_tokens = prompt_tokens.to("prompt_tokens")?;
        let max_new_tokens = max_new_tokens.to("max_new_tokens")?;
        let device = device_slots(slots, window_slots)?;
        self.call(py, |core| core.open_sequence(prompt_tokens, max_new_tokens, device))
            .map(SequenceHandle::bits)
    }

    #[allow(clippy::too_many_arguments, reason = "four of them are two keyword pairs in Python")]
    #[pyo3(signature = (seq, length, max_new_tokens, *, slots, window_slots))]
    fn fork(
        &self,
        py: Python<'_>,
        seq: Number,
        length: Number,
        max_new_tokens: Number,
        slots: Number,
        window_slots: Number,
    ) -> PyResult<u64> {
        let (seq, length) = (handle(seq)?, length.to("length")?);
        let max_new_tokens = max_new_tokens.to("max_new_tokens")?;
        let device = device_slots(slots, window_slots)?;
        self.call(py, |core| core.fork(seq, length, max_new_tokens, device))
            .map(SequenceHandle::bits)
    }

    fn append(&self, py: Python<'_>, seq: Number, num_tokens: Number) -> PyResult<u32> {
        let (seq, num_tokens) = (handle(seq)?, num_tokens.to("num_tokens")?);
        self.call(py, |core| core.append(seq, num_tokens))
    }

    #[pyo3(signature = (rows, token_ids=None))]
    fn append_rows(
        &self,
        py: Python<'_>,
        rows: Vec<(Number, Number)>,
        token_ids: Option<Vec<Number>>,
    ) -> PyResult<Vec<u32>> {
        let rows = step_rows(rows)?;
        let tokens = token_ids.map(|ids| to_u32s("token", &ids)).transpose()?;
        self.call(py, |core| core.append_rows(&rows, tokens.as_deref()))
    }

    fn plan_step<'py>(
        &self,
        py: Python<'py>,
        rows: Vec<(Number, Number)>,
        padded_rows: Number,
    ) -> PyResult<StepTables<'py>> {
        let (rows, padded_rows) = (step_rows(rows)?, padded_rows.to("padded_rows")?);
        let plan = self.call(py, |core| core.plan_step(&rows, padded_rows))?;
        Ok(step_tables(py, &plan))
    }

    fn advance_pooled(
        &self,
        py: Python<'_>,
        seq: Number,
        anchor: Number,
        num_tokens: Number,
    ) -> PyResult<(u32, u32, u32)> {
        let (seq, anchor) = (handle(seq)?, anchor.to("anchor")?);
        let num_tokens = num_tokens.to("num_tokens")?;
        self.call(py, |core| core.advance_pooled(seq, anchor, num_tokens))
            .map(|closed| (closed.first_block, closed.num_blocks, closed.open_tokens))
    }

    fn truncate(&self, py: Python<'_>, seq: Number, length: Number) -> PyResult<()> {
        let (seq, length) = (handle(seq)?, length.to("length")?);
        self.call(py, |core| core.truncate(seq, length))
    }

    fn close(&self, py: Python<'_>, seq: Number) -> PyResult<()> {
        let seq = handle(seq)?;
        self.call(py, |core| core.close(seq))
    }

    fn length(&self, py: Python<'_>, seq: Number) -> PyResult<u32> {
        let seq = handle(seq)?;
        self.call(py, |core| core.length(seq))
    }

    fn admitted_tokens(&self, py: Python<'_>, seq: Number) -> PyResult<u32> {
        let seq = handle(seq)?;
        self.call(py, |core| core.admitted_tokens(seq))
    }

    fn host_pages(&self, py: Python<'_>, seq: Number) -> PyResult<Vec<u32>> {
        let seq = handle(seq)?;
        self.call(py, |core| core.host_pages(seq))
    }

    fn pooled_state(&self, py: Python<'_>, seq: Number, anchor: Number) -> PyResult<(u32, u32)> {
        let (seq, anchor) = (handle(seq)?, anchor.to("anchor")?);
        self.call(py, |core| core.pooled_state(seq, anchor))
    }

    fn ranges(&self, py: Python<'_>, seq: Number) -> PyResult<SequenceRanges> {
        let seq = handle(seq)?;
        self.call(py, |core| core.ranges(seq)).map(SequenceRanges::from)
    }

    fn lease_pages(&self, py: Python<'_>, num_pages: Number) -> PyResult<PageLease> {
        let num_pages = num_pages.to("num_pages")?;
        self.call(py, |core| core.lease_pages(num_pages)).map(PageLease::new)
    }

    fn share_pages(
        &self,
        py: Python<'_>,
        seq: Number,
        first_page: Number,
        num_pages: Number,
    ) -> PyResult<PageLease> {
        let (seq, first) = (handle(seq)?, first_page.to("first_page")?);
        let num_pages = num_pages.to("num_pages")?;
        self.call(py, |core| core.share_pages(seq, first, num_pages)).map(PageLease::new)
    }

    #[allow(clippy::too_many_arguments, reason = "two of them are keywords in Python")]
    #[allow(clippy::needless_pass_by_value, reason = "what Python gives is a list of its own")]
    #[pyo3(signature = (leases, prompt_tokens, max_new_tokens, *, slots, window_slots))]
    fn open_shared(
        &self,
        py: Python<'_>,
        leases: Vec<Py<PageLease>>,
        prompt_tokens: Number,
        max_new_tokens: Number,
        slots: Number,
        window_slots: Number,
    ) -> PyResult<u64> {
        let prompt_tokens = prompt_tokens.to("prompt_tokens")?;
        let max_new_tokens = max_new_tokens.to("max_new_tokens")?;
        let device = device_slots(slots, window_slots)?;
        self.call(py, |core| {
            let leases = leases.iter().map(|lease| lease.get().share());
            let leases: Vec<_> =
                leases.collect::<Result<Vec<_>>>()?.into_iter().flatten().collect();
            core.open_shared(&leases, prompt_tokens, max_new_tokens, device)
        })
        .map(SequenceHandle::bits)
    }

    #[pyo3(signature = (name, quota_pages=None))]
    fn add_tenant(&self, py: Python<'_>, name: &str, quota_pages: Option<Number>) -> PyResult<()> {
        let quota_pages = quota(quota_pages)?;
        self.call(py, |core| core.add_tenant(name, quota_pages))
    }

    #[pyo3(signature = (name, quota_pages=None))]
    fn set_quota(&self, py: Python<'_>, name: &str, quota_pages: Option<Number>) -> PyResult<()> {
        let quota_pages = quota(quota_pages)?;
        self.call(py, |core| core.directory().set_quota(core.tenant(name)?, quota_pages))
    }

    /// (pages in use, pages allowed or None).
    fn tenant_usage(&self, py: Python<'_>, name: &str) -> PyResult<(u64, Option<u64>)> {
        let usage = self.call(py, |core| core.directory().tenant_usage(core.tenant(name)?))?;
        Ok((usage.used_pages, Some(usage.quota_pages).filter(|&quota| quota < u64::MAX)))
    }

    #[allow(clippy::needless_pass_by_value, reason = "what Python gives is a list of its own")]
    fn note_tokens(
        &self,
        py: Python<'_>,
        seq: Number,
        start: Number,
        tokens: Vec<Number>,
    ) -> PyResult<()> {
        let (seq, start, tokens) = (handle(seq)?, start.to("start")?, to_u32s("token", &tokens)?);
        self.call(py, |core| core.note_tokens(seq, start, &tokens))
    }

    fn publish(&self, py: Python<'_>, seq: Number) -> PyResult<usize> {
        let seq = handle(seq)?;
        self.call(py, |core| core.publish(seq))
    }

    fn preempt(&self, py: Python<'_>, seq: Number) -> PyResult<()> {
        let seq = handle(seq)?;
        self.call(py, |core| core.preempt(seq))
    }

    fn rests(&self, py: Python<'_>, seq: Number) -> PyResult<bool> {
        let seq = handle(seq)?;
        self.call(py, |core| core.rests(seq))
    }

    fn evict(&self, py: Python<'_>, num_pages: Number) -> PyResult<usize> {
        let num_pages = num_pages.to("num_pages")?;
        self.call(py, |core| core.directory().evict(num_pages))
    }

    /// Names the model and the layout of the pages.
    #[getter]
    fn digest(&self) -> Cow<'_, [u8]> {
        Cow::Owned(self.core.digest().to_vec())
    }

    fn prefix_stats(&self, py: Python<'_>) -> PyResult<PrefixStats> {
        self.call(py, |core| core.directory().stats()).map(PrefixStats::from)
    }

    fn stats(&self, py: Python<'_>) -> PyResult<Stats> {
        self.call(py, hisparse_core::Manager::stats).map(Stats::from)
    }

    fn check_integrity(&self, py: Python<'_>) -> PyResult<()> {
        self.call(py, hisparse_core::Manager::check_integrity)
    }
}

impl Manager {
    fn call<T: Send>(
        &self,
        py: Python<'_>,
        work: impl FnOnce(&hisparse_core::Manager) -> Result<T> + Send,
    ) -> PyResult<T> {
        py.detach(|| work(&self.core)).map_err(raise)
    }
}

pub(crate) fn handle(seq: Number) -> PyResult<SequenceHandle> {
    seq.to("seq").map(SequenceHandle::from_bits)
}

/// Sequences and their new rows.
fn step_rows(rows: Vec<(Number, Number)>) -> PyResult<Vec<(SequenceHandle, u32)>> {
    rows.into_iter().map(|(seq, count)| Ok((handle(seq)?, count.to("num_tokens")?))).collect()
}

pub(crate) fn device_slots(slots: Number, window_slots: Number) -> PyResult<DeviceSlots> {
    Ok(DeviceSlots { slots: slots.to("slots")?, window_slots: window_slots.to("window_slots")? })
}

/// Token ids.
pub(crate) fn to_u32s(what: &'static str, numbers: &[Number]) -> PyResult<Vec<u32>> {
    numbers.iter().map(|number| number.to(what)).collect()
}

fn quota(quota_pages: Option<Number>) -> PyResult<u64> {
    quota_pages.map_or(Ok(u64::MAX), |quota| quota.to("quota_pages"))
}
