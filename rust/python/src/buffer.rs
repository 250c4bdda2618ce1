//! `HostRegion`: the base class plus the buffer protocol.
//!
//! The stable ABI has named the buffer protocol only since Python 3.11, so that `PyO3` leaves it out
//! of a wheel for 3.10; the interpreter itself takes the two slots, the struct and the call since
//! 3.9. They are declared here, and the class is made from a spec that adds them to the base.

use std::ffi::{c_char, c_int, c_void};
use std::ptr::null_mut;

use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::{PyTuple, PyType};

use crate::errors::raise;
use crate::region::PyHostRegion;

const BF_GETBUFFER: c_int = 1; // typeslots.h
const BF_RELEASEBUFFER: c_int = 2;

/// `Py_buffer` of `pybuffer.h`; only `PyBuffer_FillInfo` looks inside.
#[repr(C)]
struct BufferView {
    buf: *mut c_void,
    obj: *mut ffi::PyObject,
    len: ffi::Py_ssize_t,
    itemsize: ffi::Py_ssize_t,
    readonly: c_int,
    ndim: c_int,
    format: *mut c_char,
    shape: *mut ffi::Py_ssize_t,
    strides: *mut ffi::Py_ssize_t,
    suboffsets: *mut ffi::Py_ssize_t,
    internal: *mut c_void,
}

unsafe extern "C" {
    fn PyBuffer_FillInfo(
        view: *mut BufferView,
        exporter: *mut ffi::PyObject,
        buf: *mut c_void,
        len: ffi::Py_ssize_t,
        readonly: c_int,
        flags: c_int,
    ) -> c_int;
}

/// Makes the class `HostRegion`.
pub(crate) fn host_region_class(py: Python<'_>) -> PyResult<Bound<'_, PyType>> {
    let slot = |slot, pfunc| ffi::PyType_Slot { slot, pfunc };
    let mut slots = [
        slot(BF_GETBUFFER, get_buffer as *mut c_void),
        slot(BF_RELEASEBUFFER, release_buffer as *mut c_void),
        slot(0, null_mut()),
    ];
    let mut spec = ffi::PyType_Spec {
        name: c"hisparse_sidecar._core.HostRegion".as_ptr(),
        basicsize: 0, // the base's
        itemsize: 0,
        flags: 0x0004_0000 | 0x0400, // DEFAULT and BASETYPE of object.h
        slots: slots.as_mut_ptr(),
    };
    let bases = PyTuple::new(py, [py.get_type::<PyHostRegion>()])?;
    // SAFETY: the spec ends in an empty slot and, like the bases, outlives the call.
    let class = unsafe { ffi::PyType_FromSpecWithBases(&raw mut spec, bases.as_ptr()) };
    // SAFETY: the call has returned a new reference, or null and an exception.
    let class = unsafe { Bound::from_owned_ptr_or_err(py, class) }?;
    Ok(class.cast_into()?)
}

unsafe extern "C" fn get_buffer(
    exporter: *mut ffi::PyObject,
    view: *mut BufferView,
    flags: c_int,
) -> c_int {
    Python::attach(|py| {
        // SAFETY: the interpreter passes a live instance of the class that this slot belongs to.
        let exporter = unsafe { Bound::from_borrowed_ptr(py, exporter) };
        // SAFETY: the interpreter passes a view for this call to fill.
        match unsafe { fill_view(&exporter, view, flags) } {
            Ok(()) => 0,
            Err(error) => {
                // SAFETY: the view is writable; a failed export has to clear its owner.
                unsafe { (*view).obj = null_mut() };
                error.restore(py);
                -1
            }
        }
    })
}

/// Lends the whole region as writable bytes.
///
/// # Safety
/// `view` is valid for writes.
unsafe fn fill_view(
    exporter: &Bound<'_, PyAny>,
    view: *mut BufferView,
    flags: c_int,
) -> PyResult<()> {
    let region = &exporter.cast::<PyHostRegion>()?.get().core;
    let address = region.begin_export().map_err(raise)?;
    let len = ffi::Py_ssize_t::try_from(region.num_bytes())?;
    // SAFETY: the mapping stays until release_buffer ends the export; `view` is valid.
    let status = unsafe {
        PyBuffer_FillInfo(view, exporter.as_ptr(), address.as_ptr().cast(), len, 0, flags)
    };
    if status == 0 {
        return Ok(());
    }
    region.end_export().map_err(raise)?;
    Err(PyErr::fetch(exporter.py()))
}

unsafe extern "C" fn release_buffer(exporter: *mut ffi::PyObject, _view: *mut BufferView) {
    Python::attach(|py| {
        // SAFETY: the interpreter passes the live instance that `get_buffer` lent.
        let exporter = unsafe { Bound::from_borrowed_ptr(py, exporter) };
        if let Ok(region) = exporter.cast::<PyHostRegion>() {
            let _ = region.get().core.end_export(); // each export ends once
        }
    });
}
