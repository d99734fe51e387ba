//! A task's frame: one allocation that first holds the call (a function and
//! its arguments as Rust values), then its result.
//!
//! # Who may touch what
//! A frame has a [`Header`], the same for all, and a body, a union of the call
//! and of the result. Two kinds of rights exist to it:
//!
//! * one [`Task`]: the right, held by one value, to run the call or to store
//!   its result otherwise (from another rank, or an error). The body is the
//!   task's alone until it is consumed; consuming it stores a result and then
//!   marks the [`Completion`] word, whose `Release` publishes the body.
//! * any number of [`Handle`]s: the right to read the result *after* the word
//!   is done (`Acquire`), and to move it out for the last one.
//!
//! `refs` counts both. Each right gives its count back after its last access;
//! who brings it to zero (after an `Acquire`) frees the frame. A task always
//! stores a result before it gives its count back, even when it is dropped
//! unrun, so a frame that is freed by count holds a result. The two exceptions
//! consume the body themselves and free the frame without looking at it:
//! [`Handle::take`] as the last right, and [`Handle::run_inline`].
//!
//! # The fast path
//! [`Handle::run_inline`] holds the frame's task and a handle. If the count is
//! 2, no other right exists and none can come into being, since rights are only
//! cloned from rights: the call is run and its result returned in registers,
//! with no atomic write at all.
//!
//! # Dependencies
//! A task that waits for `n` results is split into `n` [`Share`]s of one
//! right; the share that is last to be ready becomes the task again.
//!
//! Results may be shared between threads by handles, hence `Send + Sync`.

use std::alloc::Layout;
use std::any::Any;
use std::marker::PhantomData;
use std::mem::{ManuallyDrop, offset_of};
use std::ptr::NonNull;

use super::completion::{Completion, Wake};
use super::deque::Token;
use super::shim::{AtomicU32, Ordering, fence};
use super::slab;
use crate::base::{ErrorKind, Tag, TaskError};

/// A function with its arguments.
pub trait Call: Send + 'static {
    /// What it returns.
    type Output: Send + Sync + 'static;

    /// Runs the body and leaves its result in `out`, which is
    /// [`Stored::Absent`] before. Must not unwind: a panic becomes an error
    /// value here. (Results are written in place, because moving a value that
    /// was written in two halves stalls the load that reads it as a whole.)
    fn run(self, out: &mut Stored<Self::Output>);

    /// What the node knows about such calls, for it to downcast.
    fn kind(&self) -> &'static (dyn Any + Send + Sync);
}

/// What a frame holds once it is done.
pub enum Stored<T> {
    /// Nothing yet. Whoever finds this in a frame that is done treats it as a
    /// failure.
    Absent,
    /// The result as a Rust value.
    Value(T),
    /// There is none, and why.
    Failed(Box<TaskError>),
    /// The result in the form in which it came from another rank, to be
    /// decoded by whoever needs it.
    Encoded(Box<dyn Any + Send + Sync>),
}

impl<T> Stored<T> {
    /// Turns `Absent` into `Value`.
    #[inline(always)]
    pub fn fill(&mut self, value: T) {
        let before = std::mem::replace(self, Stored::Value(value));
        debug_assert!(matches!(before, Stored::Absent));
        // Nothing is lost, and there is no drop to be called.
        std::mem::forget(before);
    }
}

/// Where a task stands in its parent: the parent's tag and the number of the
/// call within it. The task's own tag is derived from these when needed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Lineage {
    /// The parent's tag.
    pub parent: Tag,
    /// How many calls the parent had made before.
    pub index: u32,
}

impl Lineage {
    /// The place of output `output` of the task `of`, at most 256 of them.
    pub fn output(of: Tag, output: u8) -> Lineage {
        Lineage { parent: of, index: u32::MAX - u32::from(output) }
    }

    /// The task's own tag.
    #[inline]
    pub fn tag(self) -> Tag {
        match u32::MAX - self.index {
            output @ 0..=255 => self.parent.output(output),
            _ => self.parent.child(self.index),
        }
    }
}

#[repr(C, align(16))]
struct Header {
    parent: Tag,
    vtable: &'static VTable,
    completion: Completion,
    refs: AtomicU32,
    index: u32,
    missing: AtomicU32,
    flags: u32,
}

#[repr(C)]
struct Frame<C: Call> {
    header: Header,
    body: Body<C, C::Output>,
}

#[repr(C, align(16))]
union Body<C, T> {
    call: ManuallyDrop<C>,
    result: ManuallyDrop<Stored<T>>,
}

/// Sets an `Option<Stored<Output>>` whose type only the frame knows.
type Fill<'a> = dyn FnMut(&mut dyn Any) + 'a;

struct VTable {
    layout: Layout,
    /// Runs the call and leaves the result in the body.
    run: unsafe fn(NonNull<Header>),
    /// Runs the call with `out`, a `Stored<Output>`.
    run_out: unsafe fn(NonNull<Header>, out: *mut ()),
    /// Drops the call and leaves an error in the body.
    fail: unsafe fn(NonNull<Header>, Box<TaskError>),
    /// Drops the call and leaves in the body what `fill` puts into an
    /// `Option<Stored<Output>>`.
    store: unsafe fn(NonNull<Header>, fill: &mut Fill<'_>),
    /// The call.
    call: unsafe fn(NonNull<Header>) -> *mut dyn Any,
    kind: unsafe fn(NonNull<Header>) -> &'static (dyn Any + Send + Sync),
    drop_result: unsafe fn(NonNull<Header>),
}

struct VTableOf<C>(PhantomData<C>);

impl<C: Call> VTableOf<C> {
    const VTABLE: VTable = VTable {
        layout: Layout::new::<Frame<C>>(),
        run: run::<C>,
        run_out: run_out::<C>,
        fail: fail::<C>,
        store: store::<C>,
        call: call::<C>,
        kind: kind::<C>,
        drop_result: drop_result::<C>,
    };
    const CHECK: () = {
        assert!(
            align_of::<Body<C, C::Output>>() == 16,
            "a task's arguments and result must not be aligned to more than 16 bytes"
        );
        assert!(offset_of!(Frame<C>, body) == BODY_OFFSET);
    };
}

/// The right to run a frame's call. Dropped unrun, it leaves the error
/// `NotRunning` to whoever waits.
pub struct Task(NonNull<Header>);

// SAFETY: the call is `Send` (by `Call`) and the task is its only user.
unsafe impl Send for Task {}

/// A share of the right to run a call whose arguments are not all there.
pub struct Share(NonNull<Header>);

// SAFETY: as `Task`; only the last share touches the body.
unsafe impl Send for Share {}

/// The right to a result of type `T`.
pub struct Handle<T: Send + Sync + 'static> {
    frame: NonNull<Header>,
    _result: PhantomData<T>,
}

// SAFETY: results are `Send + Sync`; what else is shared is atomic.
unsafe impl<T: Send + Sync> Send for Handle<T> {}
// SAFETY: as above; a shared handle only reads.
unsafe impl<T: Send + Sync> Sync for Handle<T> {}

/// Makes a frame: the right to run a call, and the right to its result. The
/// call is built by `call` where it stays, and not moved there: see
/// [`Call::run`] on what moving costs.
#[inline(always)]
pub fn frame<C: Call>(call: impl FnOnce() -> C, lineage: Lineage, flags: u32) -> (Task, Handle<C::Output>) {
    let frame = make::<C>(lineage, flags, Completion::new(), 2);
    // SAFETY: `frame` was just allocated for a `Frame<C>`.
    unsafe { (*frame.as_ptr()).body.call = ManuallyDrop::new(call()) };
    let frame = frame.cast();
    (Task(frame), Handle { frame, _result: PhantomData })
}

/// Makes a frame that is done from the start.
pub fn done<T: Send + Sync + 'static>(result: Stored<T>, lineage: Lineage) -> Handle<T> {
    struct Never<T>(PhantomData<fn() -> T>);
    impl<T: Send + Sync + 'static> Call for Never<T> {
        type Output = T;
        fn run(self, _: &mut Stored<T>) {
            unreachable!("a frame that is done is not run")
        }
        fn kind(&self) -> &'static (dyn Any + Send + Sync) {
            unreachable!("a frame that is done has no call")
        }
    }
    let frame = make::<Never<T>>(lineage, 0, Completion::done(), 1);
    // SAFETY: `frame` was just allocated for a frame with this output.
    unsafe { (*frame.as_ptr()).body.result = ManuallyDrop::new(result) };
    Handle { frame: frame.cast(), _result: PhantomData }
}

#[inline(always)]
fn make<C: Call>(lineage: Lineage, flags: u32, completion: Completion, refs: u32) -> NonNull<Frame<C>> {
    let () = VTableOf::<C>::CHECK;
    let frame = slab::allocate(Layout::new::<Frame<C>>()).cast::<Frame<C>>();
    let header = Header {
        parent: lineage.parent,
        vtable: &VTableOf::<C>::VTABLE,
        completion,
        refs: AtomicU32::new(refs),
        index: lineage.index,
        missing: AtomicU32::new(0),
        flags,
    };
    // SAFETY: fresh memory of the frame's layout; the body is written by the caller.
    unsafe { (&raw mut (*frame.as_ptr()).header).write(header) };
    frame
}

impl Task {
    /// Runs the call, stores its result and wakes who waits for it.
    #[inline]
    pub fn run(self) {
        let publish = self.begin();
        // SAFETY: the task was the only right to the body, and is consumed.
        unsafe { (publish.header().vtable.run)(publish.0) };
    }

    /// Stores an error instead of running the call.
    pub fn fail(self, error: Box<TaskError>) {
        let publish = self.begin();
        // SAFETY: as in `run`.
        unsafe { (publish.header().vtable.fail)(publish.0, error) };
    }

    /// Stores a result from elsewhere: `fill` gets an `Option<Stored<Output>>`
    /// that is `None` and sets it; left so, or of another type, it is an error.
    pub fn store(self, fill: &mut Fill<'_>) {
        let publish = self.begin();
        // SAFETY: as in `run`.
        unsafe { (publish.header().vtable.store)(publish.0, fill) };
    }

    /// The call, to be encoded for another rank.
    pub fn call(&self) -> &dyn Any {
        // SAFETY: the call is in the body until the task is consumed, and the
        // shared borrow of the task keeps others from changing it.
        unsafe { &*(self.header().vtable.call)(self.0) }
    }

    /// What the node knows about the call.
    pub fn kind(&self) -> &'static (dyn Any + Send + Sync) {
        // SAFETY: as in `call`.
        unsafe { (self.header().vtable.kind)(self.0) }
    }

    /// Where the task stands in its parent.
    #[inline]
    pub fn lineage(&self) -> Lineage {
        Lineage { parent: self.header().parent, index: self.header().index }
    }

    /// The bits given to [`frame`].
    #[inline]
    pub fn flags(&self) -> u32 {
        self.header().flags
    }

    /// Whether this is the task behind `handle`.
    #[inline]
    pub fn is<T: Send + Sync>(&self, handle: &Handle<T>) -> bool {
        self.0 == handle.frame
    }

    /// Splits the right into `shares`, at least one.
    pub fn split(self, shares: u32) -> impl Iterator<Item = Share> {
        self.header().missing.store(shares, Ordering::Relaxed);
        let frame = self.0;
        std::mem::forget(self);
        (0..shares).map(move |_| Share(frame))
    }

    #[inline]
    fn header(&self) -> &Header {
        // SAFETY: the task's count keeps the frame alive.
        unsafe { self.0.as_ref() }
    }

    /// Gives up the task for the duty to publish what becomes of it. From here
    /// on a panic, in a destructor of an argument say, cannot lead back to the
    /// call: the body holds a result at every point where one may come.
    #[inline]
    fn begin(self) -> Publish {
        let publish = Publish(self.0);
        std::mem::forget(self);
        publish
    }
}

/// Marks the result as there and gives the task's count back, when dropped.
struct Publish(NonNull<Header>);

impl Publish {
    #[inline]
    fn header(&self) -> &Header {
        // SAFETY: the count that was the task's keeps the frame alive.
        unsafe { self.0.as_ref() }
    }
}

impl Drop for Publish {
    #[inline]
    fn drop(&mut self) {
        self.header().completion.complete();
        // SAFETY: the task's count, given back once; its last use.
        unsafe { release(self.0) };
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        let error = TaskError::new(ErrorKind::NotRunning, "the runtime ended before the task was run");
        // SAFETY: duplicates the right for one use; `self` is not used after.
        let task = Task(self.0);
        task.fail(Box::new(error));
    }
}

// SAFETY: a task is its frame's address and is `Send`.
unsafe impl Token for Task {
    #[inline]
    fn into_raw(self) -> NonNull<()> {
        let raw = self.0.cast();
        std::mem::forget(self);
        raw
    }

    #[inline]
    unsafe fn from_raw(raw: NonNull<()>) -> Self {
        Task(raw.cast())
    }
}

impl Share {
    /// One result is there. The task, if it was the last one.
    pub fn ready(self) -> Option<Task> {
        // SAFETY: the shares together hold the task's count.
        let header = unsafe { self.0.as_ref() };
        // AcqRel: the last share sees what the others did before.
        // Only then is there a task: one that is made is failed when it is dropped.
        (header.missing.fetch_sub(1, Ordering::AcqRel) == 1).then(|| Task(self.0))
    }
}

impl<T: Send + Sync + 'static> Handle<T> {
    /// Whether the result is there.
    #[inline]
    pub fn is_done(&self) -> bool {
        self.header().completion.is_done()
    }

    /// Has `wake` called when the result is there, or hands it back.
    pub fn register(&self, wake: Wake) -> Result<(), Wake> {
        self.header().completion.register(wake)
    }

    /// Drops registered waiters that no longer care.
    pub fn sweep(&self) {
        self.header().completion.sweep();
    }

    /// The result, if it is there.
    pub fn peek(&self) -> Option<&Stored<T>> {
        // SAFETY: done, so the body holds a `Stored<T>` that nobody writes
        // while a handle is borrowed: `take` and `run_inline` own theirs.
        self.is_done().then(|| unsafe { &**result_of::<T>(self.frame) })
    }

    /// Moves the result out if it is there and this is the last right to it;
    /// otherwise the handle comes back.
    #[inline]
    pub fn take(self) -> Result<Stored<T>, Handle<T>> {
        if !self.is_done() || self.header().refs.load(Ordering::Acquire) != 1 {
            return Err(self);
        }
        let frame = self.frame;
        std::mem::forget(self);
        // SAFETY: one right is left and it was ours, so nobody else has the
        // frame. The Acquire load saw every other right's release. The body is
        // read out once and the memory freed without dropping it.
        unsafe {
            let result = ManuallyDrop::into_inner(result_of::<T>(frame).read());
            free_memory(frame);
            Ok(result)
        }
    }

    /// Runs the task behind this handle, which the caller holds, and returns
    /// its result; or, when others hold handles as well, stores the result and
    /// gives the handle back, done.
    #[inline]
    pub fn run_inline(self, task: Task) -> Result<Stored<T>, Handle<T>> {
        assert!(task.is(&self), "another task's handle");
        if self.header().refs.load(Ordering::Acquire) != 2 {
            task.run();
            return Err(self);
        }
        let frame = self.frame;
        std::mem::forget((self, task));
        let mut out = Stored::<T>::Absent;
        // SAFETY: the task and this handle are the two rights there are, so the
        // frame is ours alone. `run_out` moves the call out and is given a
        // `Stored<T>`: a handle has the type of its frame's output.
        unsafe {
            (frame.as_ref().vtable.run_out)(frame, (&raw mut out).cast());
            free_memory(frame);
        }
        Ok(out)
    }

    /// The raw form that the task of this frame has as a [`Token`].
    #[inline]
    pub fn token(&self) -> *mut () {
        self.frame.as_ptr().cast()
    }

    /// The tag of the task that makes this result.
    pub fn tag(&self) -> Tag {
        Lineage { parent: self.header().parent, index: self.header().index }.tag()
    }

    #[inline]
    fn header(&self) -> &Header {
        // SAFETY: the handle's count keeps the frame alive.
        unsafe { self.frame.as_ref() }
    }
}

impl<T: Send + Sync> Clone for Handle<T> {
    fn clone(&self) -> Self {
        let before = self.header().refs.fetch_add(1, Ordering::Relaxed);
        assert!(before < u32::MAX / 2, "too many handles to one result");
        Handle { frame: self.frame, _result: PhantomData }
    }
}

impl<T: Send + Sync> Drop for Handle<T> {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: the handle's count, given back once.
        unsafe { release(self.frame) };
    }
}

/// Gives one count back and frees the frame with the last.
///
/// # Safety
/// The caller had a count and does not use the frame any more.
#[inline]
unsafe fn release(frame: NonNull<Header>) {
    // SAFETY: the count keeps the frame alive up to the decrement.
    if unsafe { frame.as_ref() }.refs.fetch_sub(1, Ordering::Release) == 1 {
        fence(Ordering::Acquire);
        // SAFETY: the last right is gone, and the task stored a result.
        unsafe {
            (frame.as_ref().vtable.drop_result)(frame);
            free_memory(frame);
        }
    }
}

/// # Safety
/// Nobody has a right to the frame, and its body has been moved out or dropped.
#[inline]
unsafe fn free_memory(frame: NonNull<Header>) {
    // SAFETY: the caller's promise; the layout is the one it was made with.
    unsafe {
        let layout = frame.as_ref().vtable.layout;
        // The completion's list is empty once done. A frame that `run_inline`
        // ends without that may have waiters whose time ran out.
        if cfg!(loom) || !frame.as_ref().completion.is_done() {
            std::ptr::drop_in_place(frame.as_ptr());
        }
        slab::free(frame.cast(), layout);
    }
}

/// The body seen as a result.
///
/// # Safety
/// The frame's output is `T` and the frame is alive.
#[inline]
unsafe fn result_of<T>(frame: NonNull<Header>) -> *mut ManuallyDrop<Stored<T>> {
    // SAFETY: every frame is `repr(C)`, and `VTableOf::CHECK` has its body at
    // this offset; the union's fields all start at its own start.
    unsafe { frame.as_ptr().cast::<u8>().add(BODY_OFFSET).cast() }
}

/// Where the body stands in every frame.
const BODY_OFFSET: usize = size_of::<Header>();

/// # Safety
/// This and the functions below: the frame is a `Frame<C>`, and the caller has
/// its task, with the call still in the body (`drop_result`: the result).
unsafe fn run<C: Call>(frame: NonNull<Header>) {
    let frame = frame.cast::<Frame<C>>().as_ptr();
    // SAFETY: the caller's promise: the call is moved out once, and the result
    // takes its place.
    unsafe {
        let call = ManuallyDrop::take(&mut (*frame).body.call);
        (*frame).body.result = ManuallyDrop::new(Stored::Absent);
        call.run(&mut *(&raw mut (*frame).body.result).cast::<Stored<C::Output>>());
    }
}

unsafe fn run_out<C: Call>(frame: NonNull<Header>, out: *mut ()) {
    let frame = frame.cast::<Frame<C>>().as_ptr();
    // SAFETY: the caller's promise; `out` is a `Stored<C::Output>`.
    unsafe {
        let call = ManuallyDrop::take(&mut (*frame).body.call);
        call.run(&mut *out.cast::<Stored<C::Output>>());
    }
}

unsafe fn fail<C: Call>(frame: NonNull<Header>, error: Box<TaskError>) {
    let frame = frame.cast::<Frame<C>>().as_ptr();
    // SAFETY: the caller's promise.
    unsafe {
        let call = ManuallyDrop::take(&mut (*frame).body.call);
        (*frame).body.result = ManuallyDrop::new(Stored::Failed(error));
        drop(call);
    }
}

unsafe fn store<C: Call>(frame: NonNull<Header>, fill: &mut Fill<'_>) {
    let frame = frame.cast::<Frame<C>>().as_ptr();
    // SAFETY: the caller's promise. `Absent` stands in the body while code of
    // others runs.
    unsafe {
        let call = ManuallyDrop::take(&mut (*frame).body.call);
        (*frame).body.result = ManuallyDrop::new(Stored::Absent);
        let mut slot: Option<Stored<C::Output>> = None;
        fill(&mut slot);
        let result = slot.unwrap_or_else(|| {
            let error = TaskError::new(ErrorKind::BadArgument, "the result that came back has another type");
            Stored::Failed(Box::new(error))
        });
        (*frame).body.result = ManuallyDrop::new(result);
        drop(call);
    }
}

unsafe fn call<C: Call>(frame: NonNull<Header>) -> *mut dyn Any {
    let frame = frame.cast::<Frame<C>>().as_ptr();
    // SAFETY: the caller's promise; only an address is taken.
    unsafe { (&raw mut (*frame).body.call).cast::<C>() }
}

unsafe fn kind<C: Call>(frame: NonNull<Header>) -> &'static (dyn Any + Send + Sync) {
    let frame = frame.cast::<Frame<C>>().as_ptr();
    // SAFETY: the caller's promise; the call is only read.
    unsafe { (*(&raw const (*frame).body.call).cast::<C>()).kind() }
}

unsafe fn drop_result<C: Call>(frame: NonNull<Header>) {
    // SAFETY: the caller's promise.
    unsafe { ManuallyDrop::drop(&mut *result_of::<C::Output>(frame)) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sync::shim::{Arc, AtomicUsize, thread};

    struct Add(Arc<AtomicUsize>, usize);
    impl Call for Add {
        type Output = Counted;
        fn run(self, out: &mut Stored<Counted>) {
            *out = Stored::Value(Counted(self.0.clone(), self.1));
        }
        fn kind(&self) -> &'static (dyn Any + Send + Sync) {
            &"add"
        }
    }

    /// Adds its value to a sum when it is dropped.
    struct Counted(Arc<AtomicUsize>, usize);
    impl Drop for Counted {
        fn drop(&mut self) {
            self.0.fetch_add(self.1, Ordering::SeqCst);
        }
    }

    const HERE: Lineage = Lineage { parent: Tag::ROOT, index: 3 };

    fn add(sum: &Arc<AtomicUsize>, n: usize) -> (Task, Handle<Counted>) {
        frame(|| Add(sum.clone(), n), HERE, 7)
    }

    /// A result is dropped once, whoever is last.
    fn race() {
        let sum = Arc::new(AtomicUsize::new(0));
        let (task, handle) = add(&sum, 1);
        let runner = thread::spawn(move || task.run());
        let other = handle.clone();
        let reader = thread::spawn(move || {
            if let Some(Stored::Value(v)) = other.peek() {
                assert_eq!(v.1, 1);
            }
            drop(other);
        });
        match handle.take() {
            Ok(result) => drop(result),
            Err(handle) => drop(handle),
        }
        runner.join().unwrap();
        reader.join().unwrap();
        assert_eq!(sum.load(Ordering::SeqCst), 1);
    }

    #[cfg(loom)]
    #[test]
    fn loom_a_result_is_dropped_once() {
        let mut model = loom::model::Builder::new();
        model.preemption_bound = Some(3);
        model.check(race);
    }

    #[cfg(loom)]
    #[test]
    fn loom_the_last_share_becomes_the_task() {
        loom::model(|| {
            let sum = Arc::new(AtomicUsize::new(0));
            let (task, handle) = add(&sum, 1);
            let mut shares = task.split(2);
            let (a, b) = (shares.next().unwrap(), shares.next().unwrap());
            let other = thread::spawn(move || a.ready().map(Task::run).is_some());
            let mine = b.ready().map(Task::run).is_some();
            assert!(other.join().unwrap() ^ mine);
            assert!(handle.is_done());
            drop(handle);
            assert_eq!(sum.load(Ordering::SeqCst), 1);
        });
    }

    #[cfg(not(loom))]
    mod plain {
        use super::*;

        #[test]
        fn a_result_is_dropped_once() {
            for _ in 0..500 {
                race();
            }
        }

        #[test]
        fn inline_runs_return_the_value_and_free_the_frame() {
            let sum = Arc::new(AtomicUsize::new(0));
            let (task, handle) = add(&sum, 5);
            assert_eq!((task.lineage(), task.flags()), (HERE, 7));
            let Ok(Stored::Value(v)) = handle.run_inline(task) else { panic!("the only rights") };
            assert_eq!((v.1, sum.load(Ordering::SeqCst)), (5, 0));
            drop(v);
            assert_eq!(sum.load(Ordering::SeqCst), 5);

            let (task, handle) = add(&sum, 10);
            let second = handle.clone();
            let handle = handle.run_inline(task).err().expect("shared");
            assert!(handle.take().is_err());
            assert!(matches!(second.take(), Ok(Stored::Value(_))));
            assert_eq!(sum.load(Ordering::SeqCst), 15);
        }

        #[test]
        fn a_dropped_task_leaves_an_error_and_its_arguments_are_dropped() {
            let sum = Arc::new(AtomicUsize::new(0));
            let (task, handle) = add(&sum, 1);
            drop(task);
            let Ok(Stored::Failed(e)) = handle.take() else { panic!("an error") };
            assert_eq!(e.kind, ErrorKind::NotRunning);
            assert_eq!(Arc::strong_count(&sum), 1);
        }

        #[test]
        fn a_result_from_elsewhere_must_have_the_type() {
            let sum = Arc::new(AtomicUsize::new(0));
            let (task, handle) = add(&sum, 1);
            assert!(task.call().is::<Add>() && task.kind().is::<&str>());
            let inner = sum.clone();
            task.store(&mut |slot| {
                *slot.downcast_mut().unwrap() = Some(Stored::Value(Counted(inner.clone(), 2)));
            });
            assert!(matches!(handle.take(), Ok(Stored::Value(Counted(_, 2)))));

            let (task, handle) = add(&sum, 1);
            task.store(&mut |_| ());
            assert!(matches!(handle.take(), Ok(Stored::Failed(e)) if e.kind == ErrorKind::BadArgument));
        }

        #[test]
        fn the_last_share_becomes_the_task_and_the_others_do_nothing() {
            let sum = Arc::new(AtomicUsize::new(0));
            let (task, handle) = add(&sum, 1);
            let mut shares = task.split(3);
            assert!(shares.next().unwrap().ready().is_none());
            assert!(shares.next().unwrap().ready().is_none());
            assert!(!handle.is_done());
            shares.next().unwrap().ready().expect("all are ready").run();
            assert!(matches!(handle.take(), Ok(Stored::Value(Counted(_, 1)))));
        }

        #[test]
        fn done_frames_are_done() {
            let handle = done(Stored::Value(4u64), HERE);
            assert!(handle.is_done());
            assert_eq!(handle.tag(), Tag::ROOT.child(3));
            assert!(matches!(handle.peek(), Some(Stored::Value(4))));
        }
    }
}
