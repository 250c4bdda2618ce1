//! `PageLease`: a context manager over the core's guard.

use std::sync::{Mutex, PoisonError};

use pyo3::prelude::*;

use crate::errors::raise;

#[pyclass(module = "hisparse_sidecar._core", frozen)]
pub(crate) struct PageLease {
    core: Mutex<Option<hisparse_core::PageLease>>, // None once released
}

impl PageLease {
    pub(crate) fn new(core: hisparse_core::PageLease) -> Self {
        Self { core: Mutex::new(Some(core)) }
    }
}

#[pymethods]
impl PageLease {
    #[getter]
    fn pages(&self) -> Vec<u32> {
        let lease = self.core.lock().unwrap_or_else(PoisonError::into_inner);
        lease.as_ref().map_or_else(Vec::new, hisparse_core::PageLease::pages)
    }

    fn release(&self, py: Python<'_>) -> PyResult<()> {
        let lease = self.core.lock().unwrap_or_else(PoisonError::into_inner).take();
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
