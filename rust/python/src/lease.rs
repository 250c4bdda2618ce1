//! `PageLease`: a context manager over the core's guard.

use std::sync::{Mutex, MutexGuard, PoisonError};

use hisparse_core::{Error, Result};
use pyo3::prelude::*;

use crate::errors::raise;
use crate::numbers::Number;

const RELEASED: Error = Error::WrongState { what: "pages that are held", found: 0, needed: 1 };

#[pyclass(module = "hisparse_sidecar._core", frozen)]
pub(crate) struct PageLease {
    core: Mutex<Option<hisparse_core::PageLease>>, // None once released
}

impl PageLease {
    pub(crate) fn new(core: hisparse_core::PageLease) -> Self {
        Self { core: Mutex::new(Some(core)) }
    }

    /// A lease of the core's of the same pages; None once released.
    pub(crate) fn share(&self) -> Result<Option<hisparse_core::PageLease>> {
        self.lock().as_ref().map(hisparse_core::PageLease::share).transpose()
    }

    fn lock(&self) -> MutexGuard<'_, Option<hisparse_core::PageLease>> {
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[pymethods]
impl PageLease {
    #[getter]
    fn pages(&self) -> Vec<u32> {
        let lease = self.lock();
        lease.as_ref().map_or_else(Vec::new, hisparse_core::PageLease::pages)
    }

    fn split_off(&self, at: Number) -> PyResult<Self> {
        let at = at.to("at")?;
        let rest = match self.lock().as_mut() {
            Some(lease) => lease.split_off(at).map_err(raise)?,
            None => return Err(raise(RELEASED)),
        };
        Ok(Self::new(rest))
    }

    fn release(&self, py: Python<'_>) -> PyResult<()> {
        let lease = self.lock().take();
        let Some(lease) = lease else { return Ok(()) };
        py.detach(|| lease.release()).map_err(raise)
    }

    fn __enter__(lease: Py<Self>) -> Py<Self> {
        lease
    }

    #[pyo3(signature = (*_exception))]
    fn __exit__(&self, py: Python<'_>, _exception: &Bound<'_, PyAny>) -> PyResult<()> {
        self.release(py)
    }
}
