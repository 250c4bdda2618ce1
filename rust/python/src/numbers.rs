//! Python integers of any size, checked: a bad one is `InvalidArgument` with the range needed.

use hisparse_core::Error;
use pyo3::exceptions::PyOverflowError;
use pyo3::prelude::*;

use crate::errors::{invalid_argument, raise};

/// Any object with `__index__`, not yet known to fit.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Number {
    Fits(i128),
    TooWide { num_bits: u64 },
}

impl<'py> FromPyObject<'_, 'py> for Number {
    type Error = PyErr;

    fn extract(object: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        match object.extract::<i64>() {
            Ok(value) => Ok(Self::Fits(value.into())),
            Err(error) if error.is_instance_of::<PyOverflowError>(object.py()) => wide(object),
            Err(error) => Err(error),
        }
    }
}

fn wide(object: Borrowed<'_, '_, PyAny>) -> PyResult<Number> {
    if let Ok(value) = object.extract::<u64>() {
        return Ok(Number::Fits(value.into()));
    }
    let index = object.call_method0("__index__")?;
    Ok(Number::TooWide { num_bits: index.call_method0("bit_length")?.extract()? })
}

impl Number {
    /// The number as a `T`; `what` names it in the error.
    pub(crate) fn to<T: Bounded>(self, what: &'static str) -> PyResult<T> {
        match self {
            Self::Fits(found) => T::try_from(found)
                .map_err(|_| raise(Error::OutOfRange { what, found, min: T::MIN, max: T::MAX })),
            Self::TooWide { num_bits } => Err(invalid_argument(format!(
                "{what}: found an integer of {num_bits} bits, needed {} to {}",
                T::MIN,
                T::MAX
            ))),
        }
    }
}

/// An integer type and its bounds.
pub(crate) trait Bounded: TryFrom<i128> {
    const MIN: i128;
    const MAX: i128;
}

macro_rules! bounded {
    ($($integer:ty),+) => {$(
        impl Bounded for $integer {
            const MIN: i128 = <$integer>::MIN as i128;
            const MAX: i128 = <$integer>::MAX as i128;
        }
    )+};
}

bounded!(i32, u32, u64, usize);

/// A list of integers as `i32`.
pub(crate) fn to_i32s(what: &'static str, numbers: &[Number]) -> PyResult<Vec<i32>> {
    numbers.iter().map(|number| number.to(what)).collect()
}
