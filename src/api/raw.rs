//! Tasks by name and values as bytes: what interfaces to other languages stand
//! on, C first.
//!
//! A raw task is registered by name before the rank starts, the same ones on
//! every rank, and takes and returns bytes. A raw call may also name a task
//! that the attribute declared, by its full path (`my_program::dot`): its
//! arguments are then the bytes that such values travel as, which for numbers,
//! text and arrays of numbers are those that they have in memory. What is no
//! value of the declared type comes back as an error that names the task.
//!
//! # Examples
//! ```
//! use collimate::{Options, Runtime, raw};
//!
//! raw::register("reverse", |arguments: &[raw::Bytes]| {
//!     let mut bytes = arguments[0].to_vec();
//!     bytes.reverse();
//!     Ok(raw::Bytes::copy_of(&bytes)?)
//! })
//! .unwrap();
//! let runtime = Runtime::start().unwrap();
//! let once = raw::spawn("reverse", vec![raw::Bytes::copy_of(b"abc")?.into()], Options::new());
//! let twice = raw::spawn("reverse", vec![once.into()], Options::new());
//! assert_eq!(*twice.get()?, *b"abc");
//! runtime.finish(0)?;
//! # Ok::<(), collimate::Error>(())
//! ```

use std::any::Any;
use std::collections::BTreeMap;
use std::ops::Deref;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::codec::Codec;
use super::control;
use super::param::encode_ref;
use super::reference::failure::{IntoFailure, Wrap};
use super::reference::{Error, Ref};
use super::spawn::{Extras, Function, Options, complete, failed, launch, receive, run};
use crate::base::limits::INLINE_BYTES_MAX;
use crate::base::{ErrorKind, TaskError};
use crate::node::{
    self, Call, Demand, Heap, Incoming, Node, Outgoing, Received, Stored, Task, TaskType, Waitable, declare,
    done,
};

/// Immutable bytes, read where they lie: on the heap, or as an object in the
/// arena of a rank of this host. At least 16-byte aligned; a clone shares them.
#[derive(Clone, Debug)]
pub struct Bytes(node::Bytes);

impl Bytes {
    /// A copy of `bytes`: few on the heap, many in this rank's object store,
    /// where other ranks read them in place.
    ///
    /// # Errors
    /// [`ErrorKind::StoreFull`] when the store has no room.
    pub fn copy_of(bytes: &[u8]) -> Result<Bytes, Error> {
        match Node::current() {
            Some(node) if bytes.len() > INLINE_BYTES_MAX => node.put_bytes(bytes).map(Bytes).map_err(Error),
            _ => Ok(Bytes(Heap::copy_of(bytes).into())),
        }
    }

    fn encode(&self, out: &mut Outgoing<'_>) -> Result<(), Box<TaskError>> {
        if self.len() <= INLINE_BYTES_MAX { out.plain(self, ALIGN) } else { out.object(self.0.clone()) }
    }

    fn decode(received: &Received<'_>) -> Result<Bytes, Box<TaskError>> {
        Ok(Bytes(match received {
            Received::Inline(bytes) => Heap::copy_of(bytes).into(),
            Received::Object(object) => object.clone(),
        }))
    }
}

impl Deref for Bytes {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.0
    }
}

/// One argument of a call.
#[derive(Clone, Debug)]
pub enum Arg {
    /// Given by value.
    Bytes(Bytes),
    /// The result of a task.
    Ref(Ref<Bytes>),
}

impl From<Bytes> for Arg {
    fn from(bytes: Bytes) -> Arg {
        Arg::Bytes(bytes)
    }
}

impl From<Ref<Bytes>> for Arg {
    fn from(r: Ref<Bytes>) -> Arg {
        Arg::Ref(r)
    }
}

/// Why the body of a raw task failed; an [`Error`] keeps its kind and chain.
pub type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Registers a task, before the rank starts. Every rank registers the same.
///
/// # Errors
/// [`ErrorKind::BadCall`] if the name is taken or none, or if this rank runs
/// already.
pub fn register<F>(name: &str, body: F) -> Result<(), Error>
where
    F: Fn(&[Bytes]) -> Result<Bytes, Failure> + Send + Sync + 'static,
{
    let refused = |why: String| Err(Error::new(ErrorKind::BadCall, why));
    if name.is_empty() || name.len() > NAME_BYTES_MAX {
        return refused(format!("a task's name has 1 to {NAME_BYTES_MAX} bytes, and this one {}", name.len()));
    }
    if let Some(node) = Node::current() {
        return refused(format!("the task `{name}` comes too late: register it before {} starts", node.rank()));
    }
    let mut bodies = lock(&BODIES);
    let name: &'static str = String::from(name).leak();
    let kind: &'static TaskType = Box::leak(Box::new(TaskType { name, signature: "raw", parameters: None, ..UNTYPED }));
    if let Err(why) = declare(kind) {
        return refused(why);
    }
    bodies.insert(name, (kind, Box::leak(Box::new(body))));
    Ok(())
}

/// Makes a task of a call by name. What is wrong with the call is an error in
/// the ref: [`ErrorKind::UnknownTask`] for a name that this rank does not have,
/// [`ErrorKind::BadArgument`] for arguments that the task does not take.
pub fn spawn(name: &str, args: Vec<Arg>, options: Options) -> Ref<Bytes> {
    let Some(node) = Node::current() else { return failed(Error::not_running()) };
    let spawned = called(node, name, args.len()).and_then(|(kind, body)| {
        let (target, extras) = options.settle(node)?;
        // A function with types of its own is called as from another rank.
        let target = if body.is_none() { target.encoded() } else { target };
        Ok(launch(node, || RawCall { kind, body, args, extras }, target))
    });
    spawned.unwrap_or_else(failed)
}

/// Copies bytes into the object store of this rank, as [`put`](crate::put).
///
/// # Errors
/// [`ErrorKind::StoreFull`] when the store has no room.
pub fn put(bytes: &[u8]) -> Result<Ref<Bytes>, Error> {
    let node = Node::current().ok_or_else(Error::not_running)?;
    let object = node.put_bytes(bytes).map_err(Error)?;
    Ok(Ref(done(Stored::Value(Bytes(object)), node.next_lineage())))
}

/// As [`wait`](crate::wait); `None` waits without a limit.
///
/// # Errors
/// When the calling task cannot be suspended because no stack is left, or the
/// job has ended.
pub fn wait(refs: &[Ref<Bytes>], count: usize, patience: Option<Duration>) -> Result<Vec<usize>, Error> {
    control::wait_for(refs, count, patience)
}

/// Any type that C has.
const ALIGN: usize = 16;

const NAME_BYTES_MAX: usize = 256;

/// With the options, which follow them, what a message can count.
const ARGUMENTS_MAX: usize = u16::MAX as usize - 1;

/// How many names an error lists.
const NAMES_LISTED_MAX: usize = 12;

type Body = &'static (dyn Fn(&[Bytes]) -> Result<Bytes, Failure> + Send + Sync);

type ByName<T> = Mutex<BTreeMap<&'static str, T>>;

/// The raw tasks of this binary.
static BODIES: ByName<(&'static TaskType, Body)> = Mutex::new(BTreeMap::new());

/// For tasks that the attribute declared, what raw calls of them need.
static TYPED: ByName<&'static TaskType> = Mutex::new(BTreeMap::new());

/// A call of which only the name is known.
struct RawCall {
    kind: &'static TaskType,
    /// `None` for a task that the attribute declared.
    body: Option<Body>,
    args: Vec<Arg>,
    extras: Extras,
}

/// The task with this name, if it takes `count` arguments.
fn called(node: &Node, name: &str, count: usize) -> Result<(&'static TaskType, Option<Body>), Error> {
    let here = |error: TaskError| Error(Box::new(error.through(name, node.rank())));
    if count > ARGUMENTS_MAX {
        let text = format!("{count} arguments are more than {ARGUMENTS_MAX}");
        return Err(here(TaskError::new(ErrorKind::BadCall, text)));
    }
    if let Some((kind, body)) = lock(&BODIES).get(name) {
        return Ok((kind, Some(*body)));
    }
    let Some(known) = node.registry().by_name(name) else {
        let mut names: Vec<&str> = node.registry().names().take(NAMES_LISTED_MAX + 1).collect();
        if names.len() > NAMES_LISTED_MAX {
            names[NAMES_LISTED_MAX] = "more";
        }
        let names = if names.is_empty() { "none".into() } else { names.join(", ") };
        let text = format!("there is no task `{name}`, only {names}: register it on every rank before the start");
        return Err(here(TaskError::new(ErrorKind::UnknownTask, text)));
    };
    if let Some(takes) = known.parameters.filter(|n| *n != count) {
        let text = format!("the task takes {takes} arguments and was given {count}");
        return Err(here(TaskError::new(ErrorKind::BadArgument, text)));
    }
    let mut typed = lock(&TYPED);
    let kind = typed.entry(known.name).or_insert_with(|| {
        let TaskType { name, signature, parameters, .. } = *known;
        Box::leak(Box::new(TaskType { name, signature, parameters, ..UNTYPED }))
    });
    Ok((kind, None))
}

impl Call for RawCall {
    type Output = Bytes;

    fn run(self, out: &mut Stored<Bytes>) {
        let RawCall { kind, body, args, extras } = self;
        run(kind.name, extras, out, |out| {
            let body = body.expect("a call without a body is encoded, not run");
            let take = |arg: Arg| match arg {
                Arg::Bytes(bytes) => Ok(bytes),
                Arg::Ref(r) => r.get().map_err(|e| e.0),
            };
            let args = args.into_iter().map(take).collect::<Result<Vec<_>, _>>()?;
            let value = body(&args).map_err(|failure| (&&Wrap::new(failure)).failure())?;
            out.fill(value);
            Ok(())
        });
    }

    fn kind(&self) -> &'static (dyn Any + Send + Sync) {
        self.kind
    }
}

impl Function for RawCall {
    fn waits(&self) -> bool {
        self.args.iter().any(|arg| matches!(arg, Arg::Ref(r) if !r.is_ready()))
    }

    fn each_ref(&self, each: &mut dyn FnMut(&dyn Waitable)) {
        for arg in &self.args {
            if let Arg::Ref(r) = arg {
                each(r.waitable());
            }
        }
    }

    fn extras(&mut self) -> &mut Extras {
        &mut self.extras
    }

    fn codec() -> Codec<Bytes> {
        Codec { encode: Bytes::encode, decode: Bytes::decode }
    }
}

/// The functions of every raw task; the names are each its own.
const UNTYPED: TaskType = TaskType {
    name: "",
    signature: "",
    parameters: None,
    encode: encode_call,
    demand: |call| call.downcast_ref::<RawCall>().map_or_else(Demand::default, |c| c.extras.demand()),
    receive: receive_call,
    complete: |received, slot| complete(RawCall::codec(), received, slot),
};

fn encode_call(call: &dyn Any, out: &mut Outgoing<'_>) -> Result<(), Box<TaskError>> {
    let call: &RawCall = call.downcast_ref().expect("the kind belongs to the call");
    for arg in &call.args {
        match arg {
            Arg::Bytes(bytes) => bytes.encode(out)?,
            Arg::Ref(r) => encode_ref(r, RawCall::codec(), out)?,
        }
    }
    call.extras.encode_always(out)
}

fn receive_call(kind: &'static TaskType, incoming: Incoming<'_>) -> Result<Task, Box<TaskError>> {
    receive::<RawCall>(incoming, |incoming| {
        let extras = Extras::decode_last(incoming)?;
        let body = lock(&BODIES).get(kind.name).map(|(_, body)| *body);
        let args = incoming.arguments.iter().map(|r| Bytes::decode(r).map(Arg::Bytes)).collect::<Result<_, _>>()?;
        Ok(RawCall { kind, body, args, extras })
    })
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
