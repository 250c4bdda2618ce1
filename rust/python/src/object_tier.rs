//! A tier that is a Python object: `hisparse_sidecar.remote` has one on Mooncake Store.
//!
//! The object has `put`, `get`, `holds`, `count_held` and `remove` with `deadline_seconds`, keeps to
//! it, and raises `TierFull`, `TierDown` or `DeadlinePassed`; anything else that it raises is its
//! failure. It may have `is_up`, which is False where it knows that its store does not answer.

use hisparse_core::tier::{Deadline, PageHeader, PageIdentity, PageTier, Stored, TierUsage};
use hisparse_core::{Error, Result};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyByteArray, PyBytes, PyDict};

const TIER: &str = "remote tier";

/// See the module.
pub(crate) struct ObjectTier {
    object: Py<PyAny>,
}

impl ObjectTier {
    pub(crate) fn new(object: Py<PyAny>) -> Self {
        Self { object }
    }

    /// Calls a method with the identity, what `args` adds, and the time that is left.
    fn call<R>(
        &self,
        name: &'static str,
        deadline: Deadline,
        call: impl FnOnce(&Bound<'_, PyAny>, &Bound<'_, PyDict>) -> PyResult<R>,
    ) -> Result<R> {
        deadline.check(name)?;
        Python::attach(|py| {
            let options = PyDict::new(py);
            let outcome = options
                .set_item("deadline_seconds", deadline.left().as_secs_f64())
                .and_then(|()| call(self.object.bind(py), &options));
            outcome.map_err(|error| failure(py, name, &error))
        })
    }
}

impl PageTier for ObjectTier {
    fn put(&self, page: &PageHeader, bytes: &[u8], deadline: Deadline) -> Result<Stored> {
        self.call("put", deadline, |object, options| {
            options.set_item("num_tokens", page.num_tokens)?;
            let bytes = PyBytes::new(object.py(), bytes);
            object.call_method("put", (name(object, &page.identity), bytes), Some(options))?;
            Ok(Stored::New) // whether it had the page, a store does not say
        })
    }

    fn get(&self, identity: &PageIdentity, into: &mut [u8], deadline: Deadline) -> Result<bool> {
        self.call("get", deadline, |object, options| {
            let page = PyByteArray::new(object.py(), into);
            let args = (name(object, identity), &page);
            let is_found = object.call_method("get", args, Some(options))?.extract()?;
            let (found, needed) = (page.len(), into.len());
            if is_found && found != needed {
                let text = format!("bytes of a page: found {found}, needed {needed}");
                return Err(PyValueError::new_err(text)); // a bytearray may be given another length
            }
            if is_found {
                into.copy_from_slice(&page.to_vec());
            }
            Ok(is_found)
        })
    }

    fn holds(&self, identity: &PageIdentity, deadline: Deadline) -> Result<bool> {
        self.call("holds", deadline, |object, options| {
            object.call_method("holds", (name(object, identity),), Some(options))?.extract()
        })
    }

    fn count_held(&self, identities: &[PageIdentity], deadline: Deadline) -> Result<usize> {
        self.call("holds", deadline, |object, options| {
            let names: Vec<_> = identities.iter().map(|each| name(object, each)).collect();
            object.call_method("count_held", (names,), Some(options))?.extract()
        })
    }

    fn remove(&self, identity: &PageIdentity, deadline: Deadline) -> Result<bool> {
        self.call("remove", deadline, |object, options| {
            object.call_method("remove", (name(object, identity),), Some(options))?.extract()
        })
    }

    /// A store is as durable as it is after each put.
    fn flush(&self, deadline: Deadline) -> Result<()> {
        deadline.check("flush")
    }

    fn usage(&self) -> TierUsage {
        Python::attach(|py| {
            let usage = self.object.bind(py).getattr("usage");
            let count = |name: &str| -> u64 {
                let value = usage.as_ref().ok().and_then(|usage| usage.getattr(name).ok());
                value.and_then(|value| value.extract().ok()).unwrap_or(0)
            };
            TierUsage {
                hits: count("hits"),
                misses: count("misses"),
                corrupt: count("corrupt"),
                failures: count("failures"),
                ..TierUsage::default()
            }
        })
    }

    fn is_up(&self) -> bool {
        Python::attach(|py| {
            let is_up = self.object.bind(py).getattr("is_up");
            is_up.ok().and_then(|is_up| is_up.extract().ok()).unwrap_or(true)
        })
    }

    fn keeps_deadlines(&self) -> bool {
        true
    }
}

fn name<'py>(object: &Bound<'py, PyAny>, identity: &PageIdentity) -> Bound<'py, PyBytes> {
    PyBytes::new(object.py(), identity.as_bytes())
}

/// What the object raised, as the core knows it.
fn failure(py: Python<'_>, call: &'static str, error: &PyErr) -> Error {
    let class = error.get_type(py).name().map(|name| name.to_string()).unwrap_or_default();
    match class.as_str() {
        "DeadlinePassed" => Error::DeadlinePassed { call },
        "TierFull" => Error::TierFull { tier: TIER, need: 0, free: 0, capacity: 0 },
        _ => Error::TierIo { tier: TIER, call, text: error.to_string() },
    }
}
