//! `HostRegion` without its buffer protocol, which `buffer` adds.

use std::sync::Arc;

use hisparse_core::{HostRegion, PageKind, RegionOptions};
use pyo3::prelude::*;
use pyo3::types::PyType;

use crate::errors::raise;
use crate::numbers::Number;

/// The base of the class that Python sees.
#[pyclass(name = "_HostRegion", module = "hisparse_sidecar._core", subclass, frozen)]
pub(crate) struct PyHostRegion {
    pub(crate) core: Arc<HostRegion>,
}

/// A region that `attach` has mapped, on its way through the constructor.
#[pyclass(frozen)]
pub(crate) struct AttachedRegion {
    core: Arc<HostRegion>,
}

/// First argument of the constructor; only `attach` can make the first kind.
pub(crate) enum Source {
    Attached(Arc<HostRegion>),
    NumBytes(Number),
}

impl<'py> FromPyObject<'_, 'py> for Source {
    type Error = PyErr;

    fn extract(object: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        match object.cast::<AttachedRegion>() {
            Ok(region) => Ok(Self::Attached(Arc::clone(&region.get().core))),
            Err(_) => object.extract().map(Self::NumBytes),
        }
    }
}

#[pymethods]
impl PyHostRegion {
    #[new]
    #[pyo3(signature = (num_bytes, *, huge_pages=false, numa_node=None, name="hisparse"))]
    fn new(
        py: Python<'_>,
        num_bytes: Source,
        huge_pages: bool,
        numa_node: Option<Number>,
        name: &str,
    ) -> PyResult<Self> {
        let num_bytes: usize = match num_bytes {
            Source::Attached(core) => return Ok(Self { core }),
            Source::NumBytes(number) => number.to("num_bytes")?,
        };
        let numa_node = numa_node.map(|node| node.to("numa_node")).transpose()?;
        let options = RegionOptions { huge_pages, numa_node, name };
        let core = py.detach(|| HostRegion::create(num_bytes, &options)).map_err(raise)?;
        Ok(Self { core: Arc::new(core) })
    }

    #[classmethod]
    fn attach<'py>(cls: &Bound<'py, PyType>, fd: Number) -> PyResult<Bound<'py, PyAny>> {
        let fd = fd.to("fd")?;
        let core = cls.py().detach(|| HostRegion::attach(fd)).map_err(raise)?;
        cls.call1((AttachedRegion { core: Arc::new(core) },))
    }

    #[getter]
    fn fd(&self) -> PyResult<i32> {
        self.core.fd().map_err(raise)
    }

    #[getter]
    fn address(&self) -> PyResult<usize> {
        self.core.address().map(|address| address.as_ptr() as usize).map_err(raise)
    }

    #[getter]
    fn num_bytes(&self) -> usize {
        self.core.num_bytes()
    }

    #[getter]
    fn huge_pages(&self) -> bool {
        self.core.page_kind() == PageKind::Huge
    }

    #[getter]
    fn page_kind(&self) -> &'static str {
        match self.core.page_kind() {
            PageKind::Normal => "normal",
            PageKind::Transparent => "transparent",
            PageKind::Huge => "huge",
        }
    }

    #[getter]
    fn numa_node(&self) -> Option<u32> {
        self.core.numa_node()
    }

    fn close(&self, py: Python<'_>) -> PyResult<()> {
        py.detach(|| self.core.close()).map_err(raise)
    }

    fn __enter__(region: Py<Self>) -> Py<Self> {
        region
    }

    #[pyo3(signature = (*_exception))]
    fn __exit__(&self, py: Python<'_>, _exception: &Bound<'_, PyAny>) -> PyResult<()> {
        self.close(py)
    }

    fn __repr__(&self) -> String {
        format!("HostRegion(num_bytes={}, page_kind={:?})", self.num_bytes(), self.page_kind())
    }
}
