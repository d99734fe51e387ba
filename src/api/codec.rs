//! How values become bytes and back: plain data and text as they are,
//! everything else through serde in postcard's format.
//!
//! The attribute knows a type only by its name, so the choice is made by method
//! resolution on references ("autoref specialisation"): [`Pick`] offers the
//! same method on `&&&&Pick`, `&&&Pick` and so on, and the first that applies
//! is taken.

use std::marker::PhantomData;

use serde::Serialize;
use serde::de::DeserializeOwned;
use zerocopy::IntoBytes;

use super::array::{Array, Pod};
use crate::base::{ErrorKind, TaskError};
use crate::node::{Outgoing, Received};

type Encode<T> = fn(&T, &mut Outgoing<'_>) -> Result<(), Box<TaskError>>;
type Decode<T> = fn(&Received<'_>) -> Result<T, Box<TaskError>>;

/// How one type travels.
pub struct Codec<T> {
    /// Value to bytes.
    pub encode: Encode<T>,
    /// Bytes to value.
    pub decode: Decode<T>,
}

impl<T> Clone for Codec<T> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<T> Copy for Codec<T> {}

/// Chooses a codec for `T`: `(&&&&&Pick::<T>::NEW).codec()`.
pub struct Pick<T>(PhantomData<fn() -> T>);

impl<T> Pick<T> {
    /// The only value.
    pub const NEW: Pick<T> = Pick(PhantomData);
}

/// The method of [`Pick`], once per way to travel. `L` keeps the ways apart.
pub trait Picked<T, L> {
    /// The codec.
    fn codec(&self) -> Codec<T>;
}

/// Ways to travel, in order of preference.
pub struct AsPlain;
pub struct AsArray;
pub struct AsPlainVec;
pub struct AsText;
pub struct AsSerde;

impl<T: Pod> Picked<T, AsPlain> for &&&&Pick<T> {
    fn codec(&self) -> Codec<T> {
        Codec { encode: |value, out| out.value(value), decode: plain }
    }
}

impl<T: Pod> Picked<Array<T>, AsArray> for &&&&Pick<Array<T>> {
    fn codec(&self) -> Codec<Array<T>> {
        Codec {
            encode: |array, out| out.object(array.object().clone()),
            decode: |received| match received {
                Received::Object(object) => Array::new(object.clone()),
                Received::Inline(bytes) => Array::new(crate::node::Heap::copy_of(bytes).into()),
            },
        }
    }
}

impl<T: Pod> Picked<Vec<T>, AsPlainVec> for &&&&Pick<Vec<T>> {
    fn codec(&self) -> Codec<Vec<T>> {
        Codec { encode: |values, out| out.plain(values.as_slice().as_bytes(), align_of::<T>()), decode: plain_vec }
    }
}

impl Picked<String, AsText> for &&&&Pick<String> {
    fn codec(&self) -> Codec<String> {
        Codec { encode: |text, out| out.plain(text.as_bytes(), 1), decode: text }
    }
}

impl<T: Serialize + DeserializeOwned> Picked<T, AsSerde> for &Pick<T> {
    fn codec(&self) -> Codec<T> {
        Codec { encode: encode_serde, decode: decode_serde }
    }
}

fn plain<T: Pod>(received: &Received<'_>) -> Result<T, Box<TaskError>> {
    let bytes = received.bytes();
    T::read_from_bytes(bytes).map_err(|_| {
        bad(format!("{} bytes are no {}, which has {}", bytes.len(), std::any::type_name::<T>(), size_of::<T>()))
    })
}

pub(super) fn plain_vec<T: Pod>(received: &Received<'_>) -> Result<Vec<T>, Box<TaskError>> {
    let bytes = received.bytes();
    let size = size_of::<T>().max(1);
    if !bytes.len().is_multiple_of(size) {
        let name = std::any::type_name::<T>();
        return Err(bad(format!("{} bytes are no array of {name}, which has {size} bytes each", bytes.len())));
    }
    let mut values = vec![T::new_zeroed(); bytes.len() / size];
    values.as_mut_slice().as_mut_bytes().copy_from_slice(bytes);
    Ok(values)
}

pub(super) fn text(received: &Received<'_>) -> Result<String, Box<TaskError>> {
    String::from_utf8(received.bytes().to_vec()).map_err(|e| bad(format!("text that is no UTF-8: {e}")))
}

pub(super) fn encode_serde<T: Serialize>(value: &T, out: &mut Outgoing<'_>) -> Result<(), Box<TaskError>> {
    let bytes = postcard::to_stdvec(value)
        .map_err(|e| bad(format!("a {} cannot be encoded: {e}", std::any::type_name::<T>())))?;
    out.plain(&bytes, 1)
}

pub(super) fn decode_serde<T: DeserializeOwned>(received: &Received<'_>) -> Result<T, Box<TaskError>> {
    let (value, rest) = postcard::take_from_bytes(received.bytes())
        .map_err(|e| bad(format!("bytes that are no {}: {e}", std::any::type_name::<T>())))?;
    if rest.is_empty() {
        Ok(value)
    } else {
        Err(bad(format!("{} bytes too many for a {}", rest.len(), std::any::type_name::<T>())))
    }
}

fn bad(message: String) -> Box<TaskError> {
    Box::new(TaskError::new(ErrorKind::BadArgument, message))
}
