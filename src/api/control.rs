//! Free functions: who we are, put, wait.

use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use zerocopy::IntoBytes;

use super::array::{Array, Pod};
use super::reference::{Error, Ref};
use crate::node::{Node, Stored, Waitable, done};

/// This rank, from 0; 0 where Collimate is not running.
pub fn rank() -> u32 {
    Node::current().map_or(0, |n| n.rank().0)
}

/// The ranks of the job; 1 where Collimate is not running.
pub fn size() -> u32 {
    Node::current().map_or(1, Node::size)
}

/// The worker threads of this rank.
pub fn workers() -> usize {
    Node::current().map_or(0, Node::workers)
}

/// Copies plain values into the object store of this rank, where tasks on all
/// ranks of the host read them in place.
///
/// # Errors
/// [`ErrorKind::StoreFull`](crate::ErrorKind::StoreFull) with the sizes when
/// the store has no room.
///
/// # Examples
/// ```
/// #[collimate::task]
/// fn dot(x: &[f64], y: &[f64]) -> f64 {
///     x.iter().zip(y).map(|(x, y)| x * y).sum()
/// }
///
/// #[collimate::main]
/// fn main() -> Result<(), collimate::Error> {
///     let x = collimate::put(&[1.0, 2.0])?;
///     assert_eq!(dot::spawn(&x, vec![3.0, 4.0]).get()?, 11.0);
///     Ok(())
/// }
/// ```
pub fn put<T: Pod>(values: &[T]) -> Result<Ref<Array<T>>, Error> {
    let node = Node::current().ok_or_else(Error::not_running)?;
    let object = node.put_bytes(values.as_bytes()).map_err(Error)?;
    let array = Array::new(object).map_err(Error)?;
    Ok(Ref(done(Stored::Value(array), node.next_lineage())))
}

/// Makes a ref of any value that serde can encode, for several tasks to share.
///
/// # Errors
/// When Collimate is not running.
pub fn put_value<T>(value: T) -> Result<Ref<T>, Error>
where
    T: Serialize + DeserializeOwned + Clone + Send + Sync + 'static,
{
    let node = Node::current().ok_or_else(Error::not_running)?;
    Ok(Ref(done(Stored::Value(value), node.next_lineage())))
}

/// Waits until `count` of `refs` are ready, or for `patience`. Returns the
/// positions of those that are ready, in ascending order: maybe more than
/// `count`, or fewer when the time was over.
///
/// # Errors
/// When the calling task cannot be suspended because no stack is left.
///
/// # Examples
/// ```
/// use std::time::Duration;
///
/// #[collimate::task]
/// fn double(x: u64) -> u64 {
///     2 * x
/// }
///
/// #[collimate::main]
/// fn main() -> Result<(), collimate::Error> {
///     let refs: Vec<_> = (0..4u64).map(|x| double::spawn(x)).collect();
///     let ready = collimate::wait(&refs, 2, Duration::from_secs(10))?;
///     assert!(ready.len() >= 2);
///     Ok(())
/// }
/// ```
pub fn wait<T: Send + Sync + 'static>(refs: &[Ref<T>], count: usize, patience: Duration) -> Result<Vec<usize>, Error> {
    wait_for(refs, count, Some(patience))
}

/// The same, with `None` without a limit.
pub(super) fn wait_for<T: Send + Sync + 'static>(
    refs: &[Ref<T>],
    count: usize,
    patience: Option<Duration>,
) -> Result<Vec<usize>, Error> {
    let node = Node::current().ok_or_else(Error::not_running)?;
    let ready = || refs.iter().enumerate().filter(|(_, r)| r.is_ready()).map(|(i, _)| i).collect::<Vec<_>>();
    let now = ready();
    if now.len() >= count.min(refs.len()) {
        return Ok(now);
    }
    let handles: Vec<&dyn Waitable> = refs.iter().map(Ref::waitable).collect();
    node.wait(&handles, count.min(refs.len()), patience).map_err(Error)?;
    Ok(ready())
}
