//! The parameters of a task as its frame holds them: values, or refs to values
//! that are there by the time the task runs.

use std::ops::Deref;

use super::array::{Array, Pod};
use super::codec::{Codec, plain_vec, text};
use super::reference::{Ref, look, object_of};
use crate::base::TaskError;
use crate::node::{Outgoing, Received, Stored, Waitable};
use zerocopy::IntoBytes;

type Result<T> = std::result::Result<T, Box<TaskError>>;

/// One parameter in a frame.
pub trait Param: Send + 'static {
    /// Whether it is a ref that is not done. Keeps no address of itself, so that
    /// a call can be built in its frame and not beside it.
    fn waits(&self) -> bool;
    /// Calls `each` with every ref in it.
    fn each_ref(&self, each: &mut dyn FnMut(&dyn Waitable));
}

/// A parameter of type `T` or `&T`.
pub enum Value<T: Clone + Send + Sync + 'static> {
    /// Given by value.
    Here(T),
    /// The result of a task.
    Ref(Ref<T>),
    /// A vector of the results of several tasks.
    List(Box<dyn List<T>>),
}

/// Refs that together make one value.
pub trait List<T>: Send {
    /// Whether one is not done.
    fn waits(&self) -> bool;
    /// The refs.
    fn each_ref(&self, each: &mut dyn FnMut(&dyn Waitable));
    /// The value.
    fn gather(&self) -> Result<T>;
}

impl<U: Clone + Send + Sync + 'static> List<Vec<U>> for Vec<Ref<U>> {
    fn waits(&self) -> bool {
        self.iter().any(|r| !r.is_ready())
    }
    fn each_ref(&self, each: &mut dyn FnMut(&dyn Waitable)) {
        self.iter().for_each(|r| each(r.waitable()));
    }
    fn gather(&self) -> Result<Vec<U>> {
        self.iter().map(|r| look(&r.0).map_err(|e| e.0)).collect()
    }
}

impl<T: Clone + Send + Sync + 'static> Value<T> {
    /// The value, when every ref is done.
    #[inline(always)]
    pub fn take(self) -> Result<T> {
        match self {
            Value::Here(value) => Ok(value),
            Value::Ref(r) => r.get().map_err(|e| e.0),
            Value::List(list) => list.gather(),
        }
    }

    /// Encodes the value for another rank.
    pub fn encode(&self, codec: Codec<T>, out: &mut Outgoing<'_>) -> Result<()> {
        match self {
            Value::Here(value) => (codec.encode)(value, out),
            Value::Ref(r) => encode_ref(r, codec, out),
            Value::List(list) => (codec.encode)(&list.gather()?, out),
        }
    }

    /// Takes a value from another rank.
    pub fn decode(received: &Received<'_>, codec: Codec<T>) -> Result<Self> {
        (codec.decode)(received).map(Value::Here)
    }
}

/// Encodes a result that is done; one that came as an object goes on as it is.
pub(super) fn encode_ref<T: Clone + Send + Sync>(r: &Ref<T>, codec: Codec<T>, out: &mut Outgoing<'_>) -> Result<()> {
    match (object_of(&r.0), r.0.peek()) {
        (Some(object), _) => out.object(object.clone()),
        (None, Some(Stored::Value(value))) => (codec.encode)(value, out),
        (None, _) => (codec.encode)(&look(&r.0).map_err(|e| e.0)?, out),
    }
}

impl<T: Clone + Send + Sync + 'static> Param for Value<T> {
    #[inline(always)]
    fn waits(&self) -> bool {
        match self {
            Value::Here(_) => false,
            Value::Ref(r) => !r.is_ready(),
            Value::List(list) => list.waits(),
        }
    }

    fn each_ref(&self, each: &mut dyn FnMut(&dyn Waitable)) {
        match self {
            Value::Here(_) => (),
            Value::Ref(r) => each(r.waitable()),
            Value::List(list) => list.each_ref(each),
        }
    }
}

/// What can be given for a parameter of type `T`: a `T`, a ref to one, and for
/// a vector a vector of refs.
pub trait IntoValue<T: Clone + Send + Sync + 'static> {
    /// As the frame holds it.
    fn into_value(self) -> Value<T>;
}

impl<T: Clone + Send + Sync + 'static> IntoValue<T> for T {
    #[inline]
    fn into_value(self) -> Value<T> {
        Value::Here(self)
    }
}

impl<T: Clone + Send + Sync + 'static> IntoValue<T> for Ref<T> {
    fn into_value(self) -> Value<T> {
        Value::Ref(self)
    }
}

impl<T: Clone + Send + Sync + 'static> IntoValue<T> for &Ref<T> {
    fn into_value(self) -> Value<T> {
        Value::Ref(self.clone())
    }
}

impl<T: Clone + Send + Sync + 'static> IntoValue<Vec<T>> for Vec<Ref<T>> {
    fn into_value(self) -> Value<Vec<T>> {
        Value::List(Box::new(self))
    }
}

impl<T: Clone + Send + Sync + 'static> IntoValue<Vec<T>> for &[Ref<T>] {
    fn into_value(self) -> Value<Vec<T>> {
        Value::List(Box::new(self.to_vec()))
    }
}

/// A parameter of type `&[T]` of plain data.
pub enum Slice<T: Pod> {
    /// Given by value.
    Vec(Vec<T>),
    /// An object.
    Array(Array<T>),
    /// A task's result.
    RefVec(Ref<Vec<T>>),
    /// An object that a task or a put makes.
    RefArray(Ref<Array<T>>),
}

/// The values of a [`Slice`] whose ref is done.
pub enum SliceView<T: Pod> {
    /// Owned.
    Vec(Vec<T>),
    /// Read in place.
    Array(Array<T>),
    /// Inside the frame of the task that made them.
    Result(Ref<Vec<T>>),
}

impl<T: Pod> Slice<T> {
    /// The values, when the ref is done.
    pub fn take(self) -> Result<SliceView<T>> {
        Ok(match self {
            Slice::Vec(values) => SliceView::Vec(values),
            Slice::Array(array) => SliceView::Array(array),
            Slice::RefArray(r) => SliceView::Array(r.get().map_err(|e| e.0)?),
            Slice::RefVec(r) => match (object_of(&r.0), r.0.peek()) {
                (Some(object), _) => SliceView::Array(Array::new(object.clone())?),
                (None, Some(Stored::Value(_))) => SliceView::Result(r),
                (None, _) => SliceView::Vec(r.get().map_err(|e| e.0)?),
            },
        })
    }

    /// Encodes the values for another rank.
    pub fn encode(&self, out: &mut Outgoing<'_>) -> Result<()> {
        let plain = |values: &[T], out: &mut Outgoing<'_>| out.plain(values.as_bytes(), align_of::<T>());
        match self {
            Slice::Vec(values) => plain(values, out),
            Slice::Array(array) => out.object(array.object().clone()),
            Slice::RefArray(r) => match object_of(&r.0) {
                Some(object) => out.object(object.clone()),
                None => out.object(look(&r.0).map_err(|e| e.0)?.object().clone()),
            },
            Slice::RefVec(r) => match (object_of(&r.0), r.0.peek()) {
                (Some(object), _) => out.object(object.clone()),
                (None, Some(Stored::Value(values))) => plain(values, out),
                (None, _) => plain(&look(&r.0).map_err(|e| e.0)?, out),
            },
        }
    }

    /// Takes values from another rank; large ones stay where they are.
    pub fn decode(received: &Received<'_>) -> Result<Self> {
        match received {
            Received::Object(object) => Array::new(object.clone()).map(Slice::Array),
            Received::Inline(_) => plain_vec(received).map(Slice::Vec),
        }
    }
}

impl<T: Pod> Deref for SliceView<T> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        match self {
            SliceView::Vec(values) => values,
            SliceView::Array(array) => array,
            SliceView::Result(r) => match r.0.peek() {
                Some(Stored::Value(values)) => values,
                _ => unreachable!("`take` saw the value, and results do not change"),
            },
        }
    }
}

impl<T: Pod> Param for Slice<T> {
    #[inline(always)]
    fn waits(&self) -> bool {
        match self {
            Slice::Vec(_) | Slice::Array(_) => false,
            Slice::RefVec(r) => !r.is_ready(),
            Slice::RefArray(r) => !r.is_ready(),
        }
    }

    fn each_ref(&self, each: &mut dyn FnMut(&dyn Waitable)) {
        match self {
            Slice::Vec(_) | Slice::Array(_) => (),
            Slice::RefVec(r) => each(r.waitable()),
            Slice::RefArray(r) => each(r.waitable()),
        }
    }
}

/// What can be given for a parameter of type `&[T]`.
pub trait IntoSlice<T: Pod> {
    /// As the frame holds it.
    fn into_slice(self) -> Slice<T>;
}

macro_rules! into_slice {
    ($(($($generics:tt)*) $from:ty, $self:ident => $into:expr;)*) => {
        $(impl<T: Pod, $($generics)*> IntoSlice<T> for $from {
            fn into_slice($self) -> Slice<T> {
                $into
            }
        })*
    };
}

into_slice! {
    () Vec<T>, self => Slice::Vec(self);
    () &Vec<T>, self => Slice::Vec(self.clone());
    () &[T], self => Slice::Vec(self.to_vec());
    (const N: usize) [T; N], self => Slice::Vec(self.to_vec());
    (const N: usize) &[T; N], self => Slice::Vec(self.to_vec());
    () Array<T>, self => Slice::Array(self);
    () &Array<T>, self => Slice::Array(self.clone());
    () Ref<Vec<T>>, self => Slice::RefVec(self);
    () &Ref<Vec<T>>, self => Slice::RefVec(self.clone());
    () Ref<Array<T>>, self => Slice::RefArray(self);
    () &Ref<Array<T>>, self => Slice::RefArray(self.clone());
}

/// A parameter of type `&str`.
pub enum Text {
    /// Given by value.
    Here(String),
    /// A task's result.
    Ref(Ref<String>),
}

impl Text {
    /// The text, when the ref is done.
    pub fn take(self) -> Result<String> {
        match self {
            Text::Here(text) => Ok(text),
            Text::Ref(r) => r.get().map_err(|e| e.0),
        }
    }

    /// Encodes the text for another rank.
    pub fn encode(&self, out: &mut Outgoing<'_>) -> Result<()> {
        match self {
            Text::Here(text) => out.plain(text.as_bytes(), 1),
            Text::Ref(r) => out.plain(look(&r.0).map_err(|e| e.0)?.as_bytes(), 1),
        }
    }

    /// Takes text from another rank.
    pub fn decode(received: &Received<'_>) -> Result<Self> {
        text(received).map(Text::Here)
    }
}

impl Param for Text {
    #[inline(always)]
    fn waits(&self) -> bool {
        matches!(self, Text::Ref(r) if !r.is_ready())
    }

    fn each_ref(&self, each: &mut dyn FnMut(&dyn Waitable)) {
        if let Text::Ref(r) = self {
            each(r.waitable());
        }
    }
}

/// What can be given for a parameter of type `&str`.
pub trait IntoText {
    /// As the frame holds it.
    fn into_text(self) -> Text;
}

macro_rules! into_text {
    ($($from:ty, $self:ident => $into:expr;)*) => {
        $(impl IntoText for $from {
            fn into_text($self) -> Text {
                $into
            }
        })*
    };
}

into_text! {
    String, self => Text::Here(self);
    &String, self => Text::Here(self.clone());
    &str, self => Text::Here(self.to_string());
    Ref<String>, self => Text::Ref(self);
    &Ref<String>, self => Text::Ref(self.clone());
}
