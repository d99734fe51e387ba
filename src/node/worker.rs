//! A worker: a thread that runs tasks. Its loop runs on a fiber; a task that
//! must wait leaves that fiber suspended and the loop goes on upon another.
//!
//! Tasks run on the loop's own stack, one after the other, so a task that
//! never waits costs no switch. A task that waits for a child of its own which
//! is still in the worker's deque runs it there and then, on top of itself.
//! Only a child, and only the worker's own: what the child waits for can never
//! be something that the frames below it have yet to do, because a task's ref
//! is known to its parent and to what the parent makes later, not to the task.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::Thread;
use std::time::{Duration, Instant};

use slab::Slab;

use super::rank::{Node, Target, kind_of, lock};
use super::transfer::Pack;
use crate::base::event::Event;
use crate::base::limits;
use crate::base::rng::Rng;
use crate::base::{ErrorKind, Tag, TaskError};
use crate::sync::{Handle, Lineage, Owner, Stored, Task, Wait, Wake, flush_frames};
use crate::sys::{Fiber, FiberEnded, stack_left, suspend};

thread_local! {
    static CURRENT: Cell<Option<&'static Worker>> = const { Cell::new(None) };
}

/// The worker of the calling thread.
#[inline]
pub(super) fn current() -> Option<&'static Worker> {
    CURRENT.get()
}

/// One worker, used by its own thread only. Lives as long as the process: a
/// suspended task's stack may refer to it until then.
pub(super) struct Worker {
    pub node: &'static Node,
    pub index: usize,
    pub deque: Owner<Task>,
    context: Cell<Context>,
    stack_reserve: usize,
    /// Suspended tasks of this worker that may go on.
    resumable: RefCell<VecDeque<usize>>,
    suspended: RefCell<Slab<Option<Fiber>>>,
    /// Fibers with an idle loop on them.
    spare: RefCell<Vec<Fiber>>,
    /// What the thread is to do when the running fiber has suspended itself.
    switch: Cell<Switch>,
    packs: RefCell<Vec<Pack>>,
    rng: RefCell<Rng>,
}

/// The running task: its place in its parent, from which its tag is derived
/// when it makes its first call, and how many calls it has made.
#[derive(Clone, Copy)]
struct Context {
    seed: Tag,
    /// The number of the call within its parent, or [`RESOLVED`] when `seed`
    /// is the task's own tag by now, and no more its parent's.
    index: u32,
    calls: u32,
}

/// No task makes so many calls.
const RESOLVED: u32 = u32::MAX / 2;

#[derive(Clone, Copy)]
enum Switch {
    /// The fiber's task waits under this number.
    Wait(usize),
    /// The fiber is idle, or has returned; go on with the task that waited under
    /// this number.
    Resume(usize),
    /// The runtime ends.
    End,
}

/// A result, or the handle to one that others want as well; it is done.
pub enum Resolved<T: Send + Sync + 'static> {
    /// Moved out.
    Owned(Stored<T>),
    /// To be looked at.
    Shared(Handle<T>),
}

/// How long an idle worker looks for work before it parks, at least. Longer
/// than a wake-up takes (20 to 40 µs on a virtual machine), so that a reply
/// over the wire finds its waiter awake.
const SPIN: Duration = Duration::from_micros(100);
/// The same when there are more threads than cores.
const SPIN_OVERSUBSCRIBED: Duration = Duration::from_micros(5);
/// Idle fibers that a worker keeps; what deep nesting needed beyond is freed.
const SPARE_MAX: usize = 64;
/// Polls of the network between two looks at this rank's queues.
const POLLS_PER_TURN: u32 = 4;
/// Rounds of searching between two looks at the clock.
const ROUNDS_PER_LOOK: u32 = 4;
/// Tasks between two looks at the network while a worker has work.
const TASKS_PER_TURN: u32 = 64;
/// Longest sleep of a worker; it is woken before when there is work.
const PARK_MAX: Duration = Duration::from_secs(1);

impl Worker {
    pub fn new(node: &'static Node, index: usize, deque: Owner<Task>) -> Worker {
        Worker {
            node,
            index,
            deque,
            context: Cell::new(Context { seed: Tag::ROOT, index: RESOLVED, calls: 0 }),
            stack_reserve: node.config.stack_bytes / 2,
            resumable: RefCell::default(),
            suspended: RefCell::default(),
            spare: RefCell::default(),
            switch: Cell::new(Switch::End),
            packs: RefCell::default(),
            rng: RefCell::new(Rng::new(u64::from(node.rank.0) << 32 | index as u64)),
        }
    }

    /// The thread's main function: switches between fibers until the end.
    pub fn run(&'static self) {
        CURRENT.set(Some(self));
        let port = &self.node.workers[self.index];
        port.thread.set(std::thread::current()).expect("one thread per worker");
        let first = if self.index == 0 { self.root_fiber() } else { self.loop_fiber() };
        let mut fiber = match first {
            Ok(fiber) => fiber,
            Err(error) => {
                let reason = format!("no memory for a task stack: {}", error.message);
                self.node.end(super::rank::Ended { status: 1, reason: Some(reason) });
                return;
            }
        };
        loop {
            let ended = fiber.resume();
            fiber = match (self.switch.get(), ended) {
                (Switch::Wait(number), _) => {
                    self.suspended.borrow_mut()[number] = Some(fiber);
                    self.spare.borrow_mut().pop().expect("`wait` made sure of one")
                }
                (Switch::Resume(number), ended) => {
                    match ended {
                        FiberEnded::Suspended => self.spare.borrow_mut().push(fiber),
                        FiberEnded::Returned => self.free(fiber),
                    }
                    self.suspended.borrow_mut().remove(number).expect("it was put there when it suspended")
                }
                (Switch::End, _) => break,
            };
        }
        CURRENT.set(None);
        flush_frames();
    }

    /// The place of the next call in the running task.
    #[inline]
    pub fn next_lineage(&self) -> Lineage {
        let mut context = self.context.get();
        if context.index != RESOLVED {
            context.seed = Lineage { parent: context.seed, index: context.index }.tag();
            context.index = RESOLVED;
        }
        let lineage = Lineage { parent: context.seed, index: context.calls };
        context.calls = if context.calls < RESOLVED - 1 { context.calls + 1 } else { too_many_calls() };
        self.context.set(context);
        lineage
    }

    /// Waits for a result, running other tasks meanwhile.
    #[inline]
    pub fn resolve<T: Send + Sync>(&'static self, handle: Handle<T>) -> Result<Resolved<T>, Box<TaskError>> {
        if handle.is_done() || !self.may_nest() {
            return self.resolve_slowly(handle, None);
        }
        // A child that is waited for is most often the newest task or, when two
        // were made and the first is asked for first, the second newest.
        let (newest, second) = self.deque.newest();
        let token = handle.token();
        let task = match second == token && newest != token {
            true => self.deque.pop_second(),
            false => self.deque.pop(),
        };
        match task {
            Some(task) if task.is(&handle) => Ok(self.run_inline(handle, task)),
            other => self.resolve_slowly(handle, other),
        }
    }

    #[inline(never)]
    fn resolve_slowly<T: Send + Sync>(
        &'static self,
        mut handle: Handle<T>,
        mut newest: Option<Task>,
    ) -> Result<Resolved<T>, Box<TaskError>> {
        loop {
            match newest {
                Some(task) if task.is(&handle) => return Ok(self.run_inline(handle, task)),
                Some(task) if self.is_mine(&task) => self.run_task(task),
                Some(task) => {
                    self.node.push(task);
                    self.wait(&[&handle], 1, None)?;
                }
                None if handle.is_done() => (),
                None => self.wait(&[&handle], 1, None)?,
            }
            handle = match handle.take() {
                Ok(result) => return Ok(Resolved::Owned(result)),
                Err(handle) if handle.is_done() => return Ok(Resolved::Shared(handle)),
                Err(handle) => handle,
            };
            newest = if self.may_nest() { self.deque.pop() } else { None };
        }
    }

    /// Runs the task behind `handle` on top of the running one.
    #[inline]
    fn run_inline<T: Send + Sync>(&'static self, handle: Handle<T>, task: Task) -> Resolved<T> {
        if Target::from_flags(task.flags()).is_demanding() {
            // It gives back what it was granted.
            self.run_task(task);
            return match handle.take() {
                Ok(result) => Resolved::Owned(result),
                Err(handle) => Resolved::Shared(handle),
            };
        }
        let before = self.enter(task.lineage());
        let result = handle.run_inline(task);
        self.context.set(before);
        match result {
            Ok(result) => Resolved::Owned(result),
            Err(handle) => Resolved::Shared(handle),
        }
    }

    /// Whether the stack has room for another task on top of the running one:
    /// every task starts with at least half a stack.
    #[inline]
    fn may_nest(&self) -> bool {
        stack_left() >= self.stack_reserve
    }

    /// Suspends the running task until `count` of `handles` are done, or until
    /// `deadline`.
    pub fn wait(
        &'static self,
        handles: &[&dyn Waitable],
        count: usize,
        deadline: Option<Instant>,
    ) -> Result<(), Box<TaskError>> {
        if self.spare.borrow().is_empty() {
            let fiber = self.loop_fiber()?;
            self.spare.borrow_mut().push(fiber);
        }
        let number = self.suspended.borrow_mut().insert(None);
        if let ([handle], None) = (handles, deadline) {
            let wake = Wake::new(Resume { node: self.node, worker: self.index, number });
            if handle.register(wake).is_err() {
                self.suspended.borrow_mut().remove(number);
                return Ok(());
            }
            self.suspend(number);
            return Ok(());
        }
        let who = Who::Fiber { node: self.node, worker: self.index, number };
        let Some(waiter) = Waiter::register(who, handles, count, deadline.is_some()) else {
            self.suspended.borrow_mut().remove(number);
            return Ok(());
        };
        let timer = deadline.map(|deadline| self.node.service.add_timer(deadline, waiter));
        self.suspend(number);
        if let Some(timer) = timer {
            self.node.service.remove_timer(timer);
        }
        Ok(())
    }

    /// Leaves the running fiber until `number` is resumed.
    fn suspend(&self, number: usize) {
        let context = self.context.get();
        self.switch.set(Switch::Wait(number));
        suspend();
        self.context.set(context);
    }

    /// Lets one of this worker's suspended tasks go on at the next chance.
    pub fn resume_soon(&self, number: usize) {
        self.resumable.borrow_mut().push_back(number);
    }

    pub fn spare_pack(&self) -> Option<Pack> {
        self.packs.borrow_mut().pop()
    }

    /// Keeps an encoder's buffers for the next one.
    pub fn keep_pack(&self, pack: Pack) {
        let mut packs = self.packs.borrow_mut();
        if packs.len() < 16 && pack.bytes.capacity() <= 2 * limits::INLINE_BYTES_MAX {
            packs.push(pack);
        }
    }

    fn loop_fiber(&'static self) -> Result<Fiber, Box<TaskError>> {
        self.fiber(self.node.config.stack_bytes, move || self.work())
    }

    /// Worker 0's first fiber: on rank 0 it begins with the driver, which gets
    /// a stack as large as a main thread's.
    fn root_fiber(&'static self) -> Result<Fiber, Box<TaskError>> {
        let bytes = self.node.config.stack_bytes.max(8 << 20);
        self.fiber(bytes, move || self.work())
    }

    fn fiber(&self, bytes: usize, body: impl FnOnce() + 'static) -> Result<Fiber, Box<TaskError>> {
        let made = self.node.stacks.fetch_add(1, Ordering::Relaxed) as usize;
        let cause = if made >= limits::STACKS_MAX {
            format!("all {} stacks are in use", limits::STACKS_MAX)
        } else {
            match Fiber::new(bytes, body) {
                Ok(fiber) => return Ok(fiber),
                Err(e) => e.to_string(),
            }
        };
        self.node.stacks.fetch_sub(1, Ordering::Relaxed);
        let message = format!(
            "{}: no stack for another waiting task ({cause}): nest fewer calls of get, or lower COLLIMATE_STACK",
            self.node.rank
        );
        Err(Box::new(TaskError::new(ErrorKind::StackExhausted, message)))
    }

    fn free(&self, fiber: Fiber) {
        drop(fiber);
        self.node.stacks.fetch_sub(1, Ordering::Relaxed);
    }

    /// The loop: runs what there is to run, until the end, or until its fiber
    /// is one too many.
    fn work(&'static self) {
        let mut tasks = 0u32;
        loop {
            if let Some(number) = self.next_resumable() {
                self.switch.set(Switch::Resume(number));
                if self.spare.borrow().len() >= SPARE_MAX {
                    return;
                }
                suspend();
                continue;
            }
            if self.index == 0 && self.node.root_waits.load(Ordering::Acquire) {
                self.run_root();
                continue;
            }
            tasks = tasks.wrapping_add(1);
            if tasks.is_multiple_of(TASKS_PER_TURN) {
                self.node.turn();
                self.node.service.take_over();
            }
            if let Some(task) = self.deque.pop().or_else(|| self.steal()) {
                self.run_task(task);
                continue;
            }
            if self.node.stopping.load(Ordering::Acquire) {
                self.switch.set(Switch::End);
                return;
            }
            self.idle();
        }
    }

    /// Runs the driver.
    fn run_root(&'static self) {
        self.node.root_waits.store(false, Ordering::Release);
        let root = lock(&self.node.root).take();
        if let Some(root) = root {
            let before = self.context.replace(Context { seed: Tag::ROOT, index: RESOLVED, calls: 0 });
            root.run();
            self.context.set(before);
        }
    }

    fn next_resumable(&self) -> Option<usize> {
        let own = self.resumable.borrow_mut().pop_front();
        let mailbox = &self.node.workers[self.index].mailbox;
        own.or_else(|| if mailbox.is_empty() { None } else { mailbox.pop() })
    }

    fn run_task(&'static self, task: Task) {
        let before = self.enter(task.lineage());
        if Target::from_flags(task.flags()).is_demanding() {
            let demand = (kind_of(&task).demand)(task.call());
            task.run();
            self.node.give_back(demand);
        } else {
            task.run();
        }
        self.context.set(before);
    }

    #[inline]
    fn enter(&self, lineage: Lineage) -> Context {
        self.context.replace(Context { seed: lineage.parent, index: lineage.index, calls: 0 })
    }

    /// Whether the running task made this one, which may then run on top of it.
    #[inline]
    fn is_mine(&self, task: &Task) -> bool {
        let context = self.context.get();
        context.index == RESOLVED && task.lineage().parent == context.seed && task.flags() == Target::ANYWHERE.to_flags()
    }

    fn steal(&self) -> Option<Task> {
        let from = self.rng.borrow_mut().below(self.node.workers.len());
        self.node.steal(from, self.index)
    }

    /// Something for this worker to do, besides its own deque, which is empty.
    fn has_work(&self) -> bool {
        let node = self.node;
        !self.resumable.borrow().is_empty()
            || !node.workers[self.index].mailbox.is_empty()
            || !self.deque.is_empty()
            || !node.injector.is_empty()
            || node.workers.iter().enumerate().any(|(i, w)| i != self.index && !w.stealer.is_empty())
            || (self.index == 0 && node.root_waits.load(Ordering::Acquire))
            || node.stopping.load(Ordering::Acquire)
    }

    /// Searches for a while, then parks until woken; returns when there may be
    /// work.
    fn idle(&'static self) {
        let node = self.node;
        node.idle.start_search();
        node.ask_for_work();
        // Read late: in an exchange of short messages the clock costs as much
        // as the rest.
        let mut since = None;
        // The answer to a single operation on the control store is worth a core for
        // as long as it takes; of many the next comes soon, and a core does more
        // for the ranks that they pass through.
        let is_brief = || node.oversubscribed && !node.awaits_control.load(Ordering::Relaxed);
        let spin = || if is_brief() { SPIN_OVERSUBSCRIBED } else { SPIN };
        let mut rounds = 0u32;
        loop {
            let happened = node.turns(POLLS_PER_TURN);
            if self.has_work() {
                break;
            }
            if happened {
                since = None;
            }
            rounds = rounds.wrapping_add(1);
            if !rounds.is_multiple_of(ROUNDS_PER_LOOK) || since.get_or_insert_with(Instant::now).elapsed() < spin() {
                continue;
            }
            if node.idle.sleep(self.index, || self.has_work()) {
                node.counters.count(Event::WorkerParked);
                if node.idle.searching() == 0 {
                    node.service.watch_network();
                }
                std::thread::park_timeout(PARK_MAX);
                node.idle.rise(self.index);
            }
            since = None;
        }
        // What this worker goes on with is one of the queued tasks, unless it is
        // a suspended one: then all of them are for others.
        let resumes = !self.resumable.borrow().is_empty() || !node.workers[self.index].mailbox.is_empty();
        let next = node.idle.found(|| node.queued() > usize::from(!resumes));
        // After `found`: who went to sleep while this worker still counted as a
        // searcher has left the network to it.
        node.service.take_over();
        if let Some(next) = next {
            node.wake(next);
        }
    }
}

#[cold]
fn too_many_calls() -> u32 {
    panic!("one task has made {RESOLVED} calls: divide its work among several tasks")
}

/// A result that can be waited for, whatever its type.
pub trait Waitable {
    /// Whether it is there.
    fn is_done(&self) -> bool;
    /// See [`Handle::register`].
    fn register(&self, wake: Wake) -> Result<(), Wake>;
    /// See [`Handle::sweep`].
    fn sweep(&self);
    /// Another handle to it.
    fn another(&self) -> Box<dyn Waitable>;
}

impl<T: Send + Sync> Waitable for Handle<T> {
    fn is_done(&self) -> bool {
        Handle::is_done(self)
    }
    fn register(&self, wake: Wake) -> Result<(), Wake> {
        Handle::register(self, wake)
    }
    fn sweep(&self) {
        Handle::sweep(self);
    }
    fn another(&self) -> Box<dyn Waitable> {
        Box::new(self.clone())
    }
}

/// Somebody who waits for a number of results, or until a deadline.
pub(super) struct Waiter {
    missing: AtomicUsize,
    fired: AtomicBool,
    who: Who,
}

enum Who {
    Fiber { node: &'static Node, worker: usize, number: usize },
    Thread(Thread),
}

struct OneOf(Arc<Waiter>);

/// A task that waits for one result and nothing else.
struct Resume {
    node: &'static Node,
    worker: usize,
    number: usize,
}

impl Wait for Resume {
    fn wake(self) {
        self.node.resume(self.worker, self.number);
    }
}

impl Waiter {
    /// Registers for `count` of `handles`; `None` if so many are done already.
    fn register(who: Who, handles: &[&dyn Waitable], count: usize, sweep: bool) -> Option<Arc<Waiter>> {
        // One more than wanted, so that nobody is woken while we register.
        let waiter = Arc::new(Waiter { missing: AtomicUsize::new(count + 1), fired: AtomicBool::new(false), who });
        let mut done = 1;
        for handle in handles {
            if sweep {
                handle.sweep();
            }
            if handle.is_done() || handle.register(Wake::new(OneOf(waiter.clone()))).is_err() {
                done += 1;
            }
        }
        let before = waiter.missing.fetch_update(Ordering::AcqRel, Ordering::Acquire, |n| Some(n.saturating_sub(done)));
        let enough = before.is_ok_and(|n| n <= done);
        if enough && !waiter.fired.swap(true, Ordering::AcqRel) {
            return None;
        }
        Some(waiter)
    }

    /// Wakes the waiter, once.
    pub fn fire(&self) {
        if self.fired.swap(true, Ordering::AcqRel) {
            return;
        }
        match &self.who {
            Who::Fiber { node, worker, number } => node.resume(*worker, *number),
            Who::Thread(thread) => thread.unpark(),
        }
    }
}

impl Wait for OneOf {
    fn wake(self) {
        let before = self.0.missing.fetch_update(Ordering::AcqRel, Ordering::Acquire, |n| n.checked_sub(1));
        if before == Ok(1) {
            self.0.fire();
        }
    }
    fn cares(&self) -> bool {
        !self.0.fired.load(Ordering::Acquire)
    }
}

/// Waits on a thread that is no worker; whether so many were done in time.
pub(super) fn wait_on_thread(handles: &[&dyn Waitable], count: usize, deadline: Instant) -> bool {
    let who = Who::Thread(std::thread::current());
    let Some(waiter) = Waiter::register(who, handles, count, true) else { return true };
    while !waiter.fired.load(Ordering::Acquire) {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return waiter.fired.swap(true, Ordering::AcqRel);
        }
        std::thread::park_timeout(left);
    }
    true
}
