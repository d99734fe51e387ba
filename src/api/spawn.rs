//! From a call to a frame: options, dependencies, and the ways of a call to
//! and from other ranks.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

use super::codec::{Codec, decode_serde, encode_serde};
use super::entry::last_panic;
use super::param::encode_ref;
use super::reference::{Error, Ref, Undecoded};
use crate::base::{ErrorKind, Rank, TaskError};
use crate::node::{
    Call, Choice, Demand, Incoming, Lineage, Node, Outgoing, Place, Received, Share, Stored, Target, Task, Waitable,
    Wake, done, frame,
};

/// Options of one call, for `task::spawn_with`.
///
/// # Examples
/// ```
/// use collimate::Options;
///
/// #[collimate::task]
/// fn whereabouts() -> u32 {
///     collimate::rank()
/// }
///
/// #[collimate::main]
/// fn main() -> Result<(), collimate::Error> {
///     let last = collimate::size() - 1;
///     let options = Options::new().rank(last).name("scout");
///     assert_eq!(whereabouts::spawn_with(options).get()?, last);
///     Ok(())
/// }
/// ```
#[derive(Clone, Debug, Default)]
pub struct Options {
    place: Place,
    name: Option<String>,
    demand: Demand,
}

impl Options {
    /// No wishes: the call stays on its rank unless an idle rank takes it.
    pub fn new() -> Options {
        Options::default()
    }

    /// Runs the call on this rank, counted from 0.
    #[must_use]
    pub fn rank(mut self, rank: u32) -> Options {
        self.place = Place::Rank(Rank(rank));
        self
    }

    /// Runs such calls on all ranks in turn.
    #[must_use]
    pub fn spread(mut self) -> Options {
        self.place = Place::Spread;
        self
    }

    /// The name of this call in errors, instead of the function's.
    #[must_use]
    pub fn name(mut self, name: impl Into<String>) -> Options {
        self.name = Some(name.into());
        self
    }

    /// Runs the call on a rank that has `amount` of the resource `name` (see
    /// `COLLIMATE_RESOURCES`), and only while that much of it is free there.
    #[must_use]
    pub fn resource(mut self, name: &str, amount: u64) -> Options {
        self.demand = self.demand.and(name, amount);
        self
    }
}

/// What a call has besides its arguments, if anything.
#[derive(Clone, Debug, Default)]
pub struct Extras(Option<Box<(Option<String>, Demand)>>);

impl Extras {
    /// Nothing.
    pub const NONE: Extras = Extras(None);

    /// What the call asks for.
    pub fn demand(&self) -> Demand {
        self.0.as_ref().map(|e| e.1.clone()).unwrap_or_default()
    }

    /// Adds them behind the arguments, if there are any.
    pub fn encode(&self, out: &mut Outgoing<'_>) -> Result<(), Box<TaskError>> {
        match &self.0 {
            Some(extras) => encode_serde(&(&extras.0, extras.1.to_string()), out),
            None => Ok(()),
        }
    }

    /// Takes them from behind `count` arguments.
    pub fn decode(incoming: &mut Incoming<'_>, count: usize) -> Result<Extras, Box<TaskError>> {
        if incoming.arguments.len() != count + 1 {
            incoming.expect(count)?;
            return Ok(Extras::NONE);
        }
        let received = incoming.arguments.pop().expect("one more than count");
        let (name, demand): (Option<String>, String) = decode_serde(&received)?;
        let demand = demand.parse().map_err(|e| Box::new(TaskError::new(ErrorKind::BadArgument, e)))?;
        Ok(Extras(Some(Box::new((name, demand)))))
    }

    /// Takes them from the end of the arguments, where they always are.
    pub(super) fn decode_last(incoming: &mut Incoming<'_>) -> Result<Extras, Box<TaskError>> {
        let count = incoming.arguments.len().saturating_sub(1);
        Extras::decode(incoming, count)
    }

    /// Adds them behind the arguments, even if there are none.
    pub(super) fn encode_always(&self, out: &mut Outgoing<'_>) -> Result<(), Box<TaskError>> {
        match &self.0 {
            Some(_) => self.encode(out),
            None => encode_serde(&(None::<String>, Demand::default().to_string()), out),
        }
    }

    /// Drops the extras without a call where there are none.
    #[inline]
    fn drop_inline(self) {
        if self.0.is_some() { drop(self) } else { std::mem::forget(self) }
    }

    fn name(&self) -> Option<&str> {
        self.0.as_ref().and_then(|e| e.0.as_deref())
    }
}

/// A call of a function that the attribute declared.
pub trait Function: Call {
    /// Whether an argument is a ref that is not done.
    fn waits(&self) -> bool;
    /// Calls `each` with every ref among the arguments.
    fn each_ref(&self, each: &mut dyn FnMut(&dyn Waitable));
    /// Options that stay with the call.
    fn extras(&mut self) -> &mut Extras;
    /// How its result travels.
    fn codec() -> Codec<Self::Output>;
}

/// A function's `Result`, whatever alias it was written with.
pub trait Fallible {
    /// What it yields.
    type Ok;
    /// What it fails with.
    type Err;
    /// As a plain `Result`.
    fn into_result(self) -> Result<Self::Ok, Self::Err>;
}

impl<T, E> Fallible for Result<T, E> {
    type Ok = T;
    type Err = E;
    fn into_result(self) -> Result<T, E> {
        self
    }
}

/// Makes a task of a call and lets it run when its arguments are there.
#[inline(always)]
pub fn spawn<F: Function>(call: impl FnOnce() -> F) -> Ref<F::Output> {
    match Node::current() {
        Some(node) => launch(node, call, Target::ANYWHERE),
        None => failed(Error::not_running()),
    }
}

impl Options {
    /// The same, with these options.
    #[doc(hidden)]
    pub fn spawn<F: Function>(self, call: impl FnOnce() -> F) -> Ref<F::Output> {
        let Some(node) = Node::current() else { return failed(Error::not_running()) };
        match self.settle(node) {
            Ok((target, extras)) => launch(node, with(call, extras), target),
            Err(error) => failed(error),
        }
    }

    /// Where the call is to run, and what stays with it.
    pub(super) fn settle(self, node: &'static Node) -> Result<(Target, Extras), Error> {
        let demanding = !self.demand.is_empty();
        let choice = node.choose(self.place, &self.demand);
        let extras = match self.name.is_some() || demanding {
            true => Extras(Some(Box::new((self.name, self.demand)))),
            false => Extras::NONE,
        };
        match choice {
            Choice::Anywhere => Ok((Target::ANYWHERE, extras)),
            Choice::On(rank) if demanding => Ok((Target::rank(rank).demanding(), extras)),
            Choice::On(rank) => Ok((Target::rank(rank), extras)),
            Choice::Nowhere(why) => Err(Error::new(ErrorKind::BadCall, why)),
        }
    }
}

fn with<F: Function>(call: impl FnOnce() -> F, extras: Extras) -> impl FnOnce() -> F {
    move || {
        let mut call = call();
        *call.extras() = extras;
        call
    }
}

#[inline(always)]
pub(super) fn launch<F: Function>(node: &'static Node, call: impl FnOnce() -> F, target: Target) -> Ref<F::Output> {
    let mut waits = false;
    let build = || {
        let call = call();
        waits = call.waits();
        call
    };
    let (task, handle) = frame(build, node.next_lineage(), target.to_flags());
    if waits {
        schedule_later::<F>(node, task);
    } else {
        node.schedule(task);
    }
    Ref(handle)
}

/// Schedules a task when the results that its call waits for are there.
#[cold]
#[inline(never)]
fn schedule_later<F: Function>(node: &'static Node, task: Task) {
    let mut missing: Vec<Box<dyn Waitable>> = Vec::new();
    let call: &F = task.call().downcast_ref().expect("a frame of this call was just made");
    call.each_ref(&mut |r| {
        if !r.is_done() {
            missing.push(r.another());
        }
    });
    if missing.is_empty() {
        return node.schedule(task);
    }
    let shares: Vec<Share> = task.split(missing.len() as u32).collect();
    for (result, share) in missing.iter().zip(shares) {
        let arrived = move || {
            if let Some(task) = share.ready() {
                node.schedule(task);
            }
        };
        if let Err(wake) = result.register(Wake::new(arrived)) {
            wake.wake();
        }
    }
}

/// A ref that is done with an error.
pub(super) fn failed<T: Send + Sync>(error: Error) -> Ref<T> {
    let lineage = Node::current().map(Node::next_lineage);
    let lineage = lineage.unwrap_or(Lineage { parent: crate::base::Tag::ROOT, index: 0 });
    Ref(done(Stored::Failed(error.0), lineage))
}

/// Runs a body, which leaves its value in `out`; a panic and an error become
/// error values that name the task.
#[inline(always)]
pub fn run<T>(
    name: &'static str,
    extras: Extras,
    out: &mut Stored<T>,
    body: impl FnOnce(&mut Stored<T>) -> Result<(), Box<TaskError>>,
) {
    match catch_unwind(AssertUnwindSafe(|| body(out))) {
        Ok(Ok(())) => (),
        Ok(Err(error)) => *out = Stored::Failed(blame(name, &extras, *error)),
        Err(payload) => *out = Stored::Failed(blame(name, &extras, *last_panic(&*payload))),
    }
    extras.drop_inline();
}

#[cold]
fn blame(name: &'static str, extras: &Extras, error: TaskError) -> Box<TaskError> {
    let rank = Node::current().map_or(Rank(0), Node::rank);
    Box::new(error.through(extras.name().unwrap_or(name), rank))
}

/// Makes a frame of a call from a peer; the result goes back when it is there.
pub fn receive<F>(
    mut incoming: Incoming<'_>,
    decode: impl FnOnce(&mut Incoming<'_>) -> Result<F, Box<TaskError>>,
) -> Result<Task, Box<TaskError>>
where
    F: Function,
    F::Output: Clone,
{
    let mut call = decode(&mut incoming)?;
    let target = match call.extras().demand().is_empty() {
        true => incoming.target,
        false => incoming.target.demanding(),
    };
    let (task, handle) = frame(|| call, incoming.lineage, target.to_flags());
    let (reply, result) = (incoming.reply, Ref(handle.clone()));
    let answer = move || {
        reply.send(|out| match result.0.peek() {
            Some(Stored::Failed(error)) => Err(error.clone()),
            _ => encode_ref(&result, F::codec(), out),
        });
    };
    let registered = handle.register(Wake::new(answer));
    debug_assert!(registered.is_ok(), "the task has not run");
    Ok(task)
}

/// Puts a result from a peer into an `Option<Stored<T>>`: decoded if it is
/// small, else as the object that it is.
pub fn complete<T: Send + Sync + 'static>(codec: Codec<T>, received: Received<'_>, slot: &mut dyn Any) {
    let Some(slot) = slot.downcast_mut::<Option<Stored<T>>>() else { return };
    *slot = Some(match received {
        Received::Object(bytes) => Stored::Encoded(Box::new(Undecoded { bytes, decode: codec.decode })),
        Received::Inline(_) => match (codec.decode)(&received) {
            Ok(value) => Stored::Value(value),
            Err(error) => Stored::Failed(error),
        },
    });
}

/// A ref to one of several results of a task: `pick` takes it from them all.
pub fn project<T, U>(all: &Ref<T>, output: u8, pick: fn(T) -> U) -> Ref<U>
where
    T: Clone + Send + Sync + 'static,
    U: Clone + Send + Sync + 'static,
{
    struct Projection<T: Send + Sync + 'static, U>(Ref<T>, fn(T) -> U);
    impl<T, U> Call for Projection<T, U>
    where
        T: Clone + Send + Sync + 'static,
        U: Clone + Send + Sync + 'static,
    {
        type Output = U;
        fn run(self, out: &mut Stored<U>) {
            *out = match self.0.get() {
                Ok(all) => Stored::Value((self.1)(all)),
                Err(error) => Stored::Failed(error.0),
            };
        }
        fn kind(&self) -> &'static (dyn Any + Send + Sync) {
            unreachable!("a projection is pinned to its rank")
        }
    }
    let Some(node) = Node::current() else { return failed(Error::not_running()) };
    let lineage = Lineage::output(all.tag(), output);
    let (task, handle) = frame(|| Projection(all.clone(), pick), lineage, Target::rank(node.rank()).to_flags());
    let arrived = move || node.schedule(task);
    if let Err(wake) = all.0.register(Wake::new(arrived)) {
        wake.wake();
    }
    Ref(handle)
}
