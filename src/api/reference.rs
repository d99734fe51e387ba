//! Refs: futures of results, and what they fail with.

use std::fmt;
use std::ops::Deref;
use std::time::Duration;

use crate::base::{ErrorKind, Tag, TaskError};
use crate::node::{Handle, Node, Resolved, Stored, Waitable};

/// The future result of a task, or of a [`put`](crate::put).
///
/// A ref is a cheap value that can be cloned, sent to other threads and given
/// to other tasks as an argument. The result is kept until the last ref goes.
///
/// # Examples
/// ```
/// #[collimate::task]
/// fn square(x: u64) -> u64 {
///     x * x
/// }
///
/// #[collimate::main]
/// fn main() -> Result<(), collimate::Error> {
///     let nine = square::spawn(3);
///     let eighty_one = square::spawn(&nine);
///     assert_eq!((nine.get()?, eighty_one.get()?), (9, 81));
///     Ok(())
/// }
/// ```
pub struct Ref<T: Send + Sync + 'static>(pub(super) Handle<T>);

/// A result in the bytes in which it came, with what makes a value of them.
pub(super) struct Undecoded<T> {
    pub bytes: crate::node::Bytes,
    pub decode: fn(&crate::node::Received<'_>) -> Result<T, Box<TaskError>>,
}

impl<T> Undecoded<T> {
    fn decode(&self) -> Result<T, Box<TaskError>> {
        (self.decode)(&crate::node::Received::Object(self.bytes.clone()))
    }
}

impl<T: Clone + Send + Sync + 'static> Ref<T> {
    /// Waits for the result. Inside a task other tasks run meanwhile. The value
    /// is moved out when this is the last ref, and cloned otherwise.
    ///
    /// # Errors
    /// The error value of the task, or of one that it needed; its message names
    /// the chain of tasks and ranks.
    #[inline]
    pub fn get(self) -> Result<T, Error> {
        match Node::resolve(self.0) {
            Some(Ok(Resolved::Owned(Stored::Value(value)))) => Ok(value),
            Some(Ok(Resolved::Owned(other))) => take(other),
            Some(Ok(Resolved::Shared(handle))) => look(&handle),
            Some(Err(error)) => Err(Error(error)),
            None => Err(Error::not_running()),
        }
    }

    /// Waits for the result for at most `patience`.
    ///
    /// # Errors
    /// As [`Ref::get`], and [`ErrorKind::TimedOut`] when the result was not
    /// there in time. The task goes on; keep a clone of the ref to ask again.
    pub fn get_timeout(self, patience: Duration) -> Result<T, Error> {
        let Some(node) = Node::current() else { return Err(Error::not_running()) };
        node.wait(&[&self.0], 1, Some(patience)).map_err(Error)?;
        if !self.0.is_done() {
            let message = format!("no result within {patience:?}: the task is still waiting or running");
            return Err(Error::new(ErrorKind::TimedOut, message));
        }
        self.get()
    }
}

impl<T: Send + Sync + 'static> Ref<T> {
    /// Whether `get` would return at once.
    #[inline]
    pub fn is_ready(&self) -> bool {
        self.0.is_done()
    }

    /// The identity of the task that makes this result: the same in every run
    /// of the same program.
    pub fn tag(&self) -> Tag {
        self.0.tag()
    }

    pub(super) fn waitable(&self) -> &dyn Waitable {
        &self.0
    }
}

#[cold]
fn take<T: 'static>(stored: Stored<T>) -> Result<T, Error> {
    match stored {
        Stored::Value(value) => Ok(value),
        Stored::Failed(error) => Err(Error(error)),
        Stored::Encoded(bytes) => undecoded::<T>(&*bytes)?.decode().map_err(Error),
        Stored::Absent => Err(absent()),
    }
}

fn absent() -> Error {
    Error::new(ErrorKind::NotRunning, "the runtime ended before the result was there")
}

/// The value behind a ref that is done and that others have too.
#[cold]
pub(super) fn look<T: Clone + Send + Sync>(handle: &Handle<T>) -> Result<T, Error> {
    match handle.peek() {
        Some(Stored::Value(value)) => Ok(value.clone()),
        Some(Stored::Failed(error)) => Err(Error(error.clone())),
        Some(Stored::Encoded(bytes)) => undecoded::<T>(&**bytes)?.decode().map_err(Error),
        Some(Stored::Absent) | None => Err(absent()),
    }
}

/// The object behind a ref that is done, if its result came as one.
pub(super) fn object_of<T: Send + Sync + 'static>(handle: &Handle<T>) -> Option<&crate::node::Bytes> {
    match handle.peek() {
        Some(Stored::Encoded(bytes)) => undecoded::<T>(&**bytes).ok().map(|u| &u.bytes),
        _ => None,
    }
}

fn undecoded<T: 'static>(bytes: &(dyn std::any::Any + Send + Sync)) -> Result<&Undecoded<T>, Error> {
    bytes.downcast_ref().ok_or_else(|| Error::new(ErrorKind::BadArgument, "the result has another type"))
}

impl<T: Send + Sync + 'static> Clone for Ref<T> {
    fn clone(&self) -> Self {
        Ref(self.0.clone())
    }
}

impl<T: Send + Sync + 'static> fmt::Debug for Ref<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Ref<{}>({})", std::any::type_name::<T>(), self.tag())
    }
}

/// Why there is no result. Dereferences to the [`TaskError`], which has the
/// kind, the message and the chain of tasks.
#[derive(Clone)]
pub struct Error(pub(super) Box<TaskError>);

impl Error {
    pub(super) fn new(kind: ErrorKind, message: impl Into<String>) -> Error {
        Error(Box::new(TaskError::new(kind, message)))
    }

    pub(super) fn not_running() -> Error {
        let message = "Collimate is not running in this process: call this from `#[collimate::main]` or from a task";
        Error::new(ErrorKind::NotRunning, message)
    }
}

impl Deref for Error {
    type Target = TaskError;
    fn deref(&self) -> &TaskError {
        &self.0
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl std::error::Error for Error {}

/// What a task's `Err` becomes: an [`Error`] keeps its kind and chain, anything
/// else that can be displayed is a failure with that text.
pub mod failure {
    use std::fmt::Display;

    use super::Error;
    use crate::base::{ErrorKind, TaskError};

    /// An error to be converted: `(&&&Wrap::new(e)).failure()`.
    pub struct Wrap<E>(std::cell::Cell<Option<E>>);

    impl<E> Wrap<E> {
        /// Wraps an error.
        pub fn new(error: E) -> Self {
            Wrap(std::cell::Cell::new(Some(error)))
        }

        fn take(&self) -> E {
            self.0.take().expect("converted once")
        }
    }

    /// The conversion, once per kind of error; `L` keeps them apart.
    pub trait IntoFailure<L> {
        /// The error value.
        fn failure(&self) -> Box<TaskError>;
    }

    pub struct Ours;
    pub struct Boxed;
    pub struct Shown;

    impl IntoFailure<Ours> for &&Wrap<Error> {
        fn failure(&self) -> Box<TaskError> {
            self.take().0
        }
    }

    impl IntoFailure<Boxed> for &&Wrap<Box<dyn std::error::Error>> {
        fn failure(&self) -> Box<TaskError> {
            match self.take().downcast::<Error>() {
                Ok(ours) => ours.0,
                Err(other) => shown(&other),
            }
        }
    }

    impl IntoFailure<Boxed> for &&Wrap<Box<dyn std::error::Error + Send + Sync>> {
        fn failure(&self) -> Box<TaskError> {
            match self.take().downcast::<Error>() {
                Ok(ours) => ours.0,
                Err(other) => shown(&other),
            }
        }
    }

    impl<E: Display> IntoFailure<Shown> for Wrap<E> {
        fn failure(&self) -> Box<TaskError> {
            shown(&self.take())
        }
    }

    fn shown(error: &dyn Display) -> Box<TaskError> {
        Box::new(TaskError::new(ErrorKind::Failed, error.to_string()))
    }
}
