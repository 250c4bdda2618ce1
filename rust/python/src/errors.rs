//! The exception tree: one class for each kind of error.

use hisparse_core::{Error, ErrorKind};
use pyo3::exceptions::{PyException, PyValueError};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyDict, PyTuple, PyType};

const NAMES: [(ErrorKind, &str, &str); 10] = [
    (ErrorKind::InvalidArgument, "InvalidArgument", "The call itself is wrong."),
    (ErrorKind::HostPoolFull, "HostPoolFull", "Too few host pages are free now."),
    (ErrorKind::DeviceArenaFull, "DeviceArenaFull", "No device range is long enough now."),
    (ErrorKind::UnknownSequence, "UnknownSequence", "The handle was never given out."),
    (ErrorKind::StaleHandle, "StaleHandle", "What the handle named has ended."),
    (ErrorKind::WrongState, "WrongState", "The call does not fit the object's state."),
    (ErrorKind::Region, "RegionError", "The operating system refused a region."),
    (ErrorKind::TierFull, "TierFull", "A tier has no room for a page."),
    (ErrorKind::TierDown, "TierDown", "A tier does not answer."),
    (ErrorKind::DeadlinePassed, "DeadlinePassed", "The call's deadline passed first."),
];

struct Classes {
    base: Py<PyType>,
    of_kind: Vec<(ErrorKind, Py<PyType>)>,
}

static CLASSES: PyOnceLock<Classes> = PyOnceLock::new();

/// The Python exception for an error of the core.
#[allow(clippy::needless_pass_by_value, reason = "the shape that map_err wants")]
pub(crate) fn raise(error: Error) -> PyErr {
    exception(error.kind(), error.to_string())
}

/// `InvalidArgument` for what the core's types cannot even hold.
pub(crate) fn invalid_argument(message: String) -> PyErr {
    exception(ErrorKind::InvalidArgument, message)
}

fn exception(kind: ErrorKind, message: String) -> PyErr {
    Python::attach(|py| match classes(py) {
        Ok(classes) => PyErr::from_type(classes.of(kind).bind(py).clone(), message),
        Err(broken) => broken,
    })
}

/// Adds every class to the module.
pub(crate) fn add_classes(module: &Bound<'_, PyModule>) -> PyResult<()> {
    let classes = classes(module.py())?;
    module.add("HisparseError", &classes.base)?;
    for ((_, name, _), (_, class)) in NAMES.iter().zip(&classes.of_kind) {
        module.add(*name, class)?;
    }
    Ok(())
}

impl Classes {
    fn of(&self, kind: ErrorKind) -> &Py<PyType> {
        let class = self.of_kind.iter().find(|(of, _)| *of == kind);
        class.map_or(&self.base, |(_, class)| class)
    }
}

fn classes(py: Python<'_>) -> PyResult<&Classes> {
    CLASSES.get_or_try_init(py, || make_classes(py))
}

fn make_classes(py: Python<'_>) -> PyResult<Classes> {
    let exception = py.get_type::<PyException>();
    let doc = "Any error of the core; one raised as this class itself is a bug of the core.";
    let base = make_class("HisparseError", doc, &PyTuple::new(py, [exception])?)?;
    let make = |&(kind, name, doc): &(ErrorKind, &str, &str)| {
        let mut bases = vec![base.clone()];
        if kind == ErrorKind::InvalidArgument {
            bases.push(py.get_type::<PyValueError>());
        }
        Ok((kind, make_class(name, doc, &PyTuple::new(py, bases)?)?.unbind()))
    };
    let of_kind = NAMES.iter().map(make).collect::<PyResult<_>>()?;
    Ok(Classes { base: base.unbind(), of_kind })
}

fn make_class<'py>(
    name: &str,
    doc: &str,
    bases: &Bound<'py, PyTuple>,
) -> PyResult<Bound<'py, PyType>> {
    let py = bases.py();
    let members = PyDict::new(py);
    members.set_item("__module__", "hisparse_sidecar._core")?;
    members.set_item("__doc__", doc)?;
    Ok(py.get_type::<PyType>().call1((name, bases, members))?.cast_into()?)
}
