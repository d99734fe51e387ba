//! The node: everything that the threads of a rank share, and the paths on
//! which tasks, values and messages move between them.
//!
//! Nothing on the path of a task that stays on its rank takes a lock. What
//! goes to other ranks goes through [`State`], which one thread at a time has:
//! whoever wants to send takes it if it is free, and otherwise leaves the
//! command in `outbox` for the thread that has it.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::Thread;
use std::time::{Duration, Instant};

use crossbeam_queue::SegQueue;

use super::registry::{Registry, TaskType};
use super::service::Service;
use super::state::{Command, State};
use super::transfer::{Outgoing, Pack};
use super::worker::{self, Worker};
use crate::base::event::{Counters, Event};
use crate::base::{Config, ErrorKind, Rank, Tag, TaskError};
use crate::mem::{Arena, Bytes, Heap, Region};
use crate::sched::Demand;
use crate::sync::{Baton, Held, Idle, Lineage, Steal, Stealer, Task};
use crate::sys::enrol;

/// Where a task may run; travels in its frame's flags.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Target(u32);

impl Target {
    /// On any rank.
    pub const ANYWHERE: Target = Target(0);
    const DEMANDING: u32 = 1 << 31;
    const ENCODED: u32 = 1 << 30;

    /// On this rank only.
    pub fn rank(rank: Rank) -> Target {
        Target(rank.0 + 1)
    }

    /// The same, but only once its [`Demand`] has been granted.
    #[must_use]
    pub fn demanding(self) -> Target {
        Target(self.0 | Target::DEMANDING)
    }

    /// The same, but as on another rank: the arguments are encoded, and the
    /// function decodes them. For calls that do not know the function's types.
    #[must_use]
    pub fn encoded(self) -> Target {
        Target(self.0 | Target::ENCODED)
    }

    /// The rank, if it is a certain one.
    pub fn fixed(self) -> Option<Rank> {
        (self.0 & !(Target::DEMANDING | Target::ENCODED)).checked_sub(1).map(Rank)
    }

    /// Whether it has a demand.
    pub fn is_demanding(self) -> bool {
        self.0 & Target::DEMANDING != 0
    }

    /// As flags of a frame.
    pub fn to_flags(self) -> u32 {
        self.0
    }

    /// From flags of a frame.
    pub fn from_flags(flags: u32) -> Target {
        Target(flags)
    }
}

/// How a job ended on this rank.
#[derive(Clone, Debug)]
pub struct Ended {
    /// The exit status of the process.
    pub status: i32,
    /// Why, unless it was the regular end.
    pub reason: Option<String>,
}

/// A worker as the other threads see it.
pub(super) struct WorkerPort {
    pub stealer: Stealer<Task>,
    /// Suspended tasks of this worker that may go on.
    pub mailbox: SegQueue<usize>,
    pub thread: OnceLock<Thread>,
}

/// See the module.
pub struct Node {
    pub(super) rank: Rank,
    pub(super) size: u32,
    pub(super) config: Config,
    pub(super) registry: Registry,
    pub(super) counters: Arc<Counters>,
    pub(super) arena: Option<Arena>,
    /// The arena, as a peer sees it.
    pub(super) own_view: Option<Arc<Region>>,
    pub(super) workers: Vec<WorkerPort>,
    /// Tasks from threads that are no workers, and what full deques refused.
    pub(super) injector: SegQueue<Task>,
    /// The driver's root task, for worker 0.
    pub(super) root: Mutex<Option<Task>>,
    pub(super) root_waits: AtomicBool,
    pub(super) idle: Idle,
    pub(super) state: Baton<State>,
    pub(super) outbox: SegQueue<Command>,
    pub(super) service: Service,
    /// Counts turns, so that the service thread sees whether workers poll.
    pub(super) turns_taken: AtomicU64,
    pub(super) stopping: AtomicBool,
    /// Every peer has been asked for work that has not given any since.
    pub(super) asked: AtomicBool,
    /// More threads than cores on this host: spinning takes from others.
    pub(super) oversubscribed: bool,
    /// Operations of this rank on the control store are under way, and not more
    /// than there are workers: one after the other, so it matters how long each
    /// takes.
    pub(super) awaits_control: AtomicBool,
    /// Which ranks are gone.
    lost: Box<[AtomicBool]>,
    pub(super) stacks: AtomicU32,
    pub(super) spread: AtomicU32,
    external_calls: AtomicU32,
    ended: Mutex<Option<Ended>>,
    ended_changed: Condvar,
    /// The others know that the job has ended, and nothing is left to do.
    pub(super) left: AtomicBool,
}

/// Peers of a sleeping rank stand on the idle list behind the workers.
pub(super) const HUNGRY_BASE: usize = 1 << 20;

static DEFAULT: Mutex<Option<&'static Node>> = Mutex::new(None);

impl Node {
    #[expect(clippy::too_many_arguments, reason = "called once, by `start`")]
    pub(super) fn new(
        rank: Rank,
        size: u32,
        config: Config,
        registry: Registry,
        arena: Option<Arena>,
        own_view: Option<Arc<Region>>,
        workers: Vec<WorkerPort>,
        idle: Idle,
        state: State,
        service: Service,
        oversubscribed: bool,
        counters: Arc<Counters>,
    ) -> Node {
        Node {
            rank,
            size,
            config,
            registry,
            counters,
            arena,
            own_view,
            workers,
            injector: SegQueue::new(),
            root: Mutex::new(None),
            root_waits: AtomicBool::new(false),
            idle,
            state: Baton::new(state),
            outbox: SegQueue::new(),
            service,
            turns_taken: AtomicU64::new(0),
            stopping: AtomicBool::new(false),
            asked: AtomicBool::new(false),
            oversubscribed,
            awaits_control: AtomicBool::new(false),
            lost: (0..size).map(|_| AtomicBool::new(false)).collect(),
            stacks: AtomicU32::new(0),
            spread: AtomicU32::new(0),
            external_calls: AtomicU32::new(0),
            ended: Mutex::new(None),
            ended_changed: Condvar::new(),
            left: AtomicBool::new(false),
        }
    }

    /// The node of the calling thread: the one whose worker it is, else the
    /// one that the process started.
    #[inline]
    pub fn current() -> Option<&'static Node> {
        match worker::current() {
            Some(worker) => Some(worker.node),
            None => Node::default_node(),
        }
    }

    #[cold]
    fn default_node() -> Option<&'static Node> {
        *lock(&DEFAULT)
    }

    pub(super) fn set_default(node: Option<&'static Node>) {
        *lock(&DEFAULT) = node;
    }

    /// Whether the calling thread is some node's worker.
    pub fn on_worker() -> bool {
        worker::current().is_some()
    }

    /// This rank.
    pub fn rank(&self) -> Rank {
        self.rank
    }

    /// The ranks of the job.
    pub fn size(&self) -> u32 {
        self.size
    }

    /// This rank's worker threads.
    pub fn workers(&self) -> usize {
        self.workers.len()
    }

    /// How often `event` happened on this rank.
    pub fn count_of(&self, event: Event) -> u64 {
        self.counters.get(event)
    }

    /// Whether a rank is known to be gone.
    pub fn is_lost(&self, rank: Rank) -> bool {
        self.lost[rank.index()].load(Ordering::Relaxed)
    }

    pub(super) fn set_lost(&self, rank: Rank) {
        self.lost[rank.index()].store(true, Ordering::Relaxed);
    }

    /// The tasks of this binary.
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// The place of the next call in the calling task.
    #[inline]
    pub fn next_lineage(&self) -> Lineage {
        match worker::current() {
            Some(worker) => worker.next_lineage(),
            None => Lineage { parent: Tag::ROOT.output(0), index: self.external_calls.fetch_add(1, Ordering::Relaxed) },
        }
    }

    /// Copies bytes into an object of this rank.
    pub fn put_bytes(&self, bytes: &[u8]) -> Result<Bytes, Box<TaskError>> {
        let Some(arena) = &self.arena else { return Ok(Heap::copy_of(bytes).into()) };
        arena.put(bytes).map(Bytes::from).map_err(|full| {
            self.counters.count(Event::StoreFull);
            let message = format!("{}: {full}", self.rank);
            Box::new(TaskError::new(ErrorKind::StoreFull, message))
        })
    }

    /// Lets a task run: here, or where its target says.
    #[inline]
    pub fn schedule(&'static self, task: Task) {
        let target = Target::from_flags(task.flags());
        if target == Target::ANYWHERE {
            self.push(task);
        } else {
            self.place(target, task);
        }
    }

    #[cold]
    fn place(&'static self, target: Target, task: Task) {
        match target.fixed() {
            Some(rank) if rank != self.rank => self.promote(rank, task, false),
            fixed if target.0 & Target::ENCODED != 0 => self.promote(self.rank, task, fixed.is_none()),
            _ if target.is_demanding() => self.submit(Command::Admit { task }),
            _ => self.push(task),
        }
    }

    /// Makes a task runnable on this rank.
    #[inline]
    pub(super) fn push(&'static self, task: Task) {
        match worker::current() {
            Some(worker) if std::ptr::eq(worker.node, self) => {
                if let Err(task) = worker.deque.push(task) {
                    self.injector.push(task);
                }
            }
            _ => self.injector.push(task),
        }
        if let Some(sleeper) = self.idle.pushed() {
            self.wake(sleeper);
        }
    }

    /// Unparks a worker, or gives a task to a peer that asked for one.
    #[cold]
    pub(super) fn wake(&'static self, sleeper: usize) {
        match sleeper.checked_sub(HUNGRY_BASE) {
            Some(peer) => self.submit(Command::Feed { peer: Rank(peer as u32) }),
            None => self.unpark(sleeper),
        }
    }

    pub(super) fn unpark(&self, worker: usize) {
        if let Some(thread) = self.workers[worker].thread.get() {
            thread.unpark();
        }
    }

    /// Lets a suspended task of `worker` go on.
    pub(super) fn resume(&'static self, worker: usize, fiber: usize) {
        match worker::current() {
            Some(current) if std::ptr::eq(current.node, self) && current.index == worker => current.resume_soon(fiber),
            _ => {
                self.workers[worker].mailbox.push(fiber);
                self.unpark(worker);
            }
        }
    }

    /// Takes a task that any thread may run, the oldest first, beginning with
    /// the victim `from`.
    pub(super) fn steal(&self, from: usize, not: usize) -> Option<Task> {
        if !self.injector.is_empty()
            && let Some(task) = self.injector.pop()
        {
            return Some(task);
        }
        let n = self.workers.len();
        for i in 0..n {
            let victim = (from + i) % n;
            if victim == not {
                continue;
            }
            loop {
                match self.workers[victim].stealer.steal() {
                    Steal::Got(task) => return Some(task),
                    Steal::Empty => break,
                    Steal::Lost => std::hint::spin_loop(),
                }
            }
        }
        None
    }

    /// How many tasks wait in queues of this rank, about.
    pub(super) fn queued(&self) -> usize {
        // An empty queue's `len` costs more than its `is_empty`.
        let injected = if self.injector.is_empty() { 0 } else { self.injector.len() };
        injected + self.workers.iter().map(|w| w.stealer.len()).sum::<usize>()
    }

    /// Sends a task to another rank.
    pub(super) fn promote(&'static self, rank: Rank, task: Task, stolen: bool) {
        let kind = kind_of(&task);
        let mut out = Outgoing::new(self, self.spare_pack());
        match (kind.encode)(task.call(), &mut out) {
            Ok(()) => {
                let pack = out.finish();
                match self.try_state() {
                    // Not by way of a command, which would be moved twice.
                    Some(mut state) => {
                        state.spawn(self, rank, task, kind, pack, stolen);
                        self.let_go(state);
                    }
                    None => self.leave(Command::Spawn { rank, task, kind, pack, stolen }),
                }
            }
            Err(error) => task.fail(Box::new(error.through(kind.name, self.rank))),
        }
    }

    pub(super) fn reply(&'static self, peer: Rank, request: u64, result: Result<Pack, Box<TaskError>>) {
        match self.try_state() {
            Some(mut state) => {
                state.reply(self, peer, request, result);
                self.let_go(state);
            }
            None => self.leave(Command::Reply { peer, request, result }),
        }
    }

    /// Buffers for an [`Outgoing`], used before if there are any.
    pub fn spare_pack(&self) -> Pack {
        worker::current().and_then(|w| w.spare_pack()).unwrap_or_default()
    }

    /// Gives a granted demand back.
    pub(super) fn give_back(&'static self, demand: Demand) {
        self.submit(Command::GiveBack { demand });
    }

    /// Has a command executed: now, if the state is free, else by the thread
    /// that has it.
    pub(super) fn submit(&'static self, command: Command) {
        match self.try_state() {
            Some(mut state) => {
                state.execute(self, command);
                self.let_go(state);
            }
            None => self.leave(command),
        }
    }

    /// Leaves a command for the thread that has the state.
    #[cold]
    pub(super) fn leave(&'static self, command: Command) {
        // Either the holder sees the command after it has let go, or we find the
        // state free now: see `sync::Baton`.
        self.outbox.push(command);
        if let Some(mut state) = self.try_state() {
            state.drain(self);
            self.let_go(state);
        }
    }

    /// Passes the state on, with all that was left meanwhile done.
    pub(super) fn let_go(&'static self, mut state: Held<'_, State>) {
        state.flush(self);
        drop(state);
        self.after_state();
    }

    /// Polls every fabric once, unless another thread is doing so. Whether
    /// anything happened.
    pub(super) fn turn(&'static self) -> bool {
        self.turns(1)
    }

    /// The same up to `rounds` times, until something happens.
    pub(super) fn turns(&'static self, rounds: u32) -> bool {
        let Some(mut state) = self.try_state() else { return false };
        if self.service.armed.load(Ordering::Relaxed) {
            self.service.armed.store(false, Ordering::SeqCst);
        }
        let events = state.turn(self, rounds);
        drop(state);
        self.turns_taken.store(self.turns_taken.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
        self.after_state();
        events > 0
    }

    /// To be called after the state was let go.
    pub(super) fn after_state(&'static self) {
        while !self.outbox.is_empty() {
            match self.try_state() {
                Some(mut state) => state.drain(self),
                None => return,
            }
        }
    }

    /// The state, unless another thread has it.
    ///
    /// All that this rank sends is sent by who has the state: so whoever wants it
    /// enrols first, by which others learn that this process has ended.
    #[inline]
    pub(super) fn try_state(&self) -> Option<Held<'_, State>> {
        enrol();
        self.state.try_take()
    }

    /// The state, after waiting for whoever has it.
    pub(super) fn take_state(&self) -> Held<'_, State> {
        enrol();
        self.state.take()
    }

    /// Ends the job on this rank. The first end counts.
    pub(super) fn end(&self, ended: Ended) {
        let mut slot = lock(&self.ended);
        if slot.is_none() {
            *slot = Some(ended);
            self.ended_changed.notify_all();
        }
    }

    /// How the job ended here, if it has.
    pub fn ended(&self) -> Option<Ended> {
        lock(&self.ended).clone()
    }

    /// Waits until the job has ended here, or for `patience`.
    pub fn wait_end(&self, patience: Option<Duration>) -> Option<Ended> {
        let deadline = patience.map(|p| Instant::now() + p);
        let mut slot = lock(&self.ended);
        while slot.is_none() {
            let left = deadline.map(|d| d.saturating_duration_since(Instant::now()));
            slot = match left {
                Some(left) if left.is_zero() => return None,
                Some(left) => self.ended_changed.wait_timeout(slot, left).unwrap_or_else(PoisonError::into_inner).0,
                None => self.ended_changed.wait(slot).unwrap_or_else(PoisonError::into_inner),
            };
        }
        slot.clone()
    }

    /// Prepares the fabrics for a sleep; `false` if there is something to poll.
    pub(super) fn arm(&'static self) -> bool {
        let Some(mut state) = self.try_state() else { return false };
        let armed = state.arm();
        self.service.armed.store(armed, Ordering::SeqCst);
        drop(state);
        self.after_state();
        armed
    }

    /// Whether every worker is parked.
    pub(super) fn all_asleep(&self) -> bool {
        self.idle.asleep(|sleeper| sleeper < HUNGRY_BASE) == self.workers.len()
    }

    /// Wakes a worker for tasks that a push left to a searcher who did not see
    /// them.
    pub(super) fn wake_for_leftovers(&'static self) {
        if self.idle.searching() == 0
            && self.queued() > 0
            && let Some(sleeper) = self.idle.pushed()
        {
            self.wake(sleeper);
        }
    }

    /// Wakes a worker that may have gone to sleep while a task of this rank was
    /// out of the queues, if one `was`.
    pub(super) fn wake_if(&'static self, was: bool) {
        if was
            && self.idle.asleep(|sleeper| sleeper < HUNGRY_BASE) > 0
            && let Some(sleeper) = self.idle.pushed()
        {
            self.wake(sleeper);
        }
    }

    /// How many workers search or sleep.
    pub(super) fn idle_workers(&self) -> usize {
        self.idle.searching() as usize + self.idle.asleep(|sleeper| sleeper < HUNGRY_BASE)
    }

    /// Asks the other ranks for work, once until one has given some.
    pub(super) fn ask_for_work(&'static self) {
        if self.size > 1 && !self.asked.load(Ordering::Relaxed) {
            self.submit(Command::AskForWork);
        }
    }

    /// Writes a line about a decision to standard error if `COLLIMATE_LOG` asks
    /// for it.
    pub(super) fn log(&self, line: impl FnOnce() -> String) {
        if self.config.log {
            crate::sys::say_line(format_args!("collimate: {}: {}", self.rank, line()));
        }
    }

    /// The worker of the calling thread, if it is one of this node's.
    pub(super) fn my_worker(&self) -> Option<&'static Worker> {
        worker::current().filter(|w| std::ptr::eq(w.node, self))
    }
}

/// What the registry knows about a task.
pub(super) fn kind_of(task: &Task) -> &'static TaskType {
    task.kind().downcast_ref().expect("every call's kind is a TaskType")
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
