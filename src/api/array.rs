//! Arrays of plain values in the object store, read where they lie.

use std::fmt;
use std::marker::PhantomData;
use std::ops::Deref;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::base::{ErrorKind, TaskError};
use crate::node::Bytes;

/// Plain old data: any bytes of the right length are a value, and a value has
/// no padding. Holds for numbers, arrays of them, and structs that derive
/// zerocopy's `FromBytes`, `IntoBytes`, `Immutable` and `KnownLayout`.
pub trait Pod: FromBytes + IntoBytes + Immutable + KnownLayout + Copy + Send + Sync + 'static {}

impl<T: FromBytes + IntoBytes + Immutable + KnownLayout + Copy + Send + Sync + 'static> Pod for T {}

/// An immutable array of plain values. Dereferences to a slice; cloning shares
/// it. It lies in the arena of the rank that made it, and every rank of that
/// host reads it there.
///
/// # Examples
/// ```
/// # #[collimate::main]
/// # fn main() -> Result<(), collimate::Error> {
/// let array: collimate::Array<f64> = collimate::put(&[1.0, 2.0])?.get()?;
/// assert_eq!(array.iter().sum::<f64>(), 3.0);
/// # Ok(())
/// # }
/// ```
pub struct Array<T> {
    bytes: Bytes,
    _values: PhantomData<T>,
}

impl<T: Pod> Array<T> {
    /// Reads an object as values of `T`.
    pub(super) fn new(bytes: Bytes) -> Result<Array<T>, Box<TaskError>> {
        match bytes.as_slice::<T>() {
            Ok(_) => Ok(Array { bytes, _values: PhantomData }),
            Err(misfit) => Err(Box::new(TaskError::new(ErrorKind::BadArgument, misfit.to_string()))),
        }
    }

    pub(super) fn object(&self) -> &Bytes {
        &self.bytes
    }
}

impl<T: Pod> Deref for Array<T> {
    type Target = [T];

    #[inline]
    fn deref(&self) -> &[T] {
        self.bytes.as_slice().expect("checked when the array was made")
    }
}

impl<T> Clone for Array<T> {
    fn clone(&self) -> Self {
        Array { bytes: self.bytes.clone(), _values: PhantomData }
    }
}

impl<T: Pod + fmt::Debug> fmt::Debug for Array<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}
