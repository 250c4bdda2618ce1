//! `HotBufferModel` and `BlockWindowModel`: the executable LRU, in tests and oracles.

use std::sync::{Mutex, MutexGuard, PoisonError};

use hisparse_core::{BlockWindow, HotBuffer};
use pyo3::prelude::*;

use crate::errors::raise;
use crate::numbers::{Number, to_i32s};
use crate::values::Resolution;

/// Both models have the same calls; only the words differ.
macro_rules! model {
    ($name:ident, $core:ident) => {
        #[pyclass(module = "hisparse_sidecar._core", frozen)]
        pub(crate) struct $name {
            core: Mutex<$core>,
        }

        impl $name {
            fn lock(&self) -> MutexGuard<'_, $core> {
                self.core.lock().unwrap_or_else(PoisonError::into_inner)
            }
        }

        #[pymethods]
        impl $name {
            #[new]
            fn new(num_slots: Number) -> PyResult<Self> {
                let core = $core::new(num_slots.to("num_slots")?).map_err(raise)?;
                Ok(Self { core: Mutex::new(core) })
            }

            #[getter]
            fn num_slots(&self) -> usize {
                self.lock().lru().num_slots()
            }

            fn resolve(
                &self,
                py: Python<'_>,
                items: Vec<Number>,
                stamp: Number,
                protect_since: Number,
            ) -> PyResult<Resolution> {
                let items = to_i32s("item", &items)?;
                let (stamp, since) = (stamp.to("stamp")?, protect_since.to("protect_since")?);
                let done = py.detach(|| self.lock().lru_mut().resolve(&items, stamp, since));
                done.map(Resolution::from).map_err(raise)
            }

            fn release_from(&self, py: Python<'_>, first_item: Number) -> PyResult<()> {
                let first_item = first_item.to("first_item")?;
                py.detach(|| self.lock().lru_mut().release_from(first_item)).map_err(raise)
            }

            fn slot_of(&self, item: Number) -> PyResult<i32> {
                Ok(self.lock().lru().slot_of(item.to("item")?))
            }

            fn item_in(&self, slot: Number) -> PyResult<i32> {
                self.lock().lru().item_in(slot.to("slot")?).map_err(raise)
            }

            fn stamp_of(&self, slot: Number) -> PyResult<i32> {
                self.lock().lru().stamp_of(slot.to("slot")?).map_err(raise)
            }

            fn check_integrity(&self, py: Python<'_>) -> PyResult<()> {
                py.detach(|| self.lock().lru().check_integrity()).map_err(raise)
            }
        }
    };
}

model!(HotBufferModel, HotBuffer);
model!(BlockWindowModel, BlockWindow);
