//! `Returning`: the core's guard of a sequence that is on its way back from rest.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hisparse_core::hierarchy::Hierarchy;
use hisparse_core::tier::Deadline;
use hisparse_core::{DeviceSlots, Error, Manager, Result, SequenceHandle};
use pyo3::prelude::*;

type Core = hisparse_core::hierarchy::Returning;

#[pyclass(module = "hisparse_sidecar._core", frozen)]
pub(crate) struct Returning {
    manager: Arc<Manager>,
    sequence: SequenceHandle,
    core: Mutex<Option<Core>>, // None once released
}

impl Returning {
    pub(crate) fn new(manager: Arc<Manager>, sequence: SequenceHandle, core: Core) -> Self {
        Self { manager, sequence, core: Mutex::new(Some(core)) }
    }

    /// Makes the sequence active; the guard stays, for another try or to be released.
    pub(crate) fn finish(
        &self,
        hierarchy: &Hierarchy,
        manager: &Arc<Manager>,
        device: DeviceSlots,
    ) -> Result<u32> {
        if !Arc::ptr_eq(manager, &self.manager) {
            let what = "managers whose pages these are";
            return Err(Error::WrongState { what, found: 0, needed: 1 });
        }
        let guard = self.core.lock().unwrap_or_else(PoisonError::into_inner);
        let released = Error::WrongState { what: "pages that are held", found: 0, needed: 1 };
        let returning = guard.as_ref().ok_or(released)?;
        hierarchy.finish_resume(manager, returning, device, Deadline::after(Duration::ZERO))
    }
}

#[pymethods]
impl Returning {
    #[getter]
    fn sequence(&self) -> u64 {
        self.sequence.bits()
    }

    fn release(&self, py: Python<'_>) {
        py.detach(|| drop(self.core.lock().unwrap_or_else(PoisonError::into_inner).take()));
    }
}
