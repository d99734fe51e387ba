//! From a mesh of connections to a running rank, and its end.

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use super::fabrics::connect;
use super::gcs::{Agreement, DiskOptions, Gcs, Home, Setup};
use super::rank::{Ended, Node, WorkerPort};
use super::registry::Registry;
use super::service::Service;
use super::state::{Command, State};
use super::worker::{Waitable, Worker, wait_on_thread};
use super::{Resolved, Target};
use crate::base::config::FabricChoice;
use crate::base::{Config, ErrorKind, Rank, Tag, TaskError, limits};
use crate::boot::{self, Acceptor, BootError, Card, Launcher, Mesh, Via};
use crate::fabric::{FabricError, Kind};
use crate::mem::{Arena, Region};
use crate::sched::{Choice, Demand, Place, choose};
use crate::sync::{Call, Fences, Handle, Idle, Lineage, Owner, Wake, frame};
use crate::sys::{self, JournalBackend};

/// How late a thread that waits for a result sees that the job has ended.
const END_CHECK: Duration = Duration::from_millis(100);

/// Why a rank did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// It did not find its peers.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// A connection could not be put to use.
    #[error("{rank}: {cause}")]
    Fabric {
        /// Which rank.
        rank: Rank,
        /// What went wrong.
        cause: FabricError,
    },
    /// The fabric that was asked for cannot be used here.
    #[error("{rank}: COLLIMATE_FABRIC asks for {kind}: {why}")]
    NotHere {
        /// Which rank.
        rank: Rank,
        /// What was asked for.
        kind: Kind,
        /// Why it cannot be had.
        why: String,
    },
    /// Two ranks have no fabric in common.
    #[error("{rank} and {peer} have no fabric in common: {why}")]
    NoFabric {
        /// Which rank.
        rank: Rank,
        /// And which other.
        peer: Rank,
        /// What each lacks.
        why: String,
    },
    /// The operating system refused something.
    #[error("{rank}: {what}: {cause}")]
    Os {
        /// Which rank.
        rank: Rank,
        /// What was asked for, and what to do.
        what: String,
        /// The system's answer.
        cause: std::io::Error,
    },
    /// The control store cannot start.
    #[error("{rank}: {why}")]
    ControlStore {
        /// On which rank.
        rank: Rank,
        /// Why, and what to do.
        why: String,
    },
    /// Peers did not greet in time.
    #[error("{rank}: no greeting from {missing} within {seconds} s: are all ranks the same program?")]
    Silent {
        /// Which rank waited.
        rank: Rank,
        /// For whom.
        missing: String,
        /// How long.
        seconds: u64,
    },
    /// The job was ended while it started.
    #[error("{0}")]
    Ended(String),
    /// The tasks of this binary cannot be told apart.
    #[error("{0}")]
    Tasks(String),
}

/// A rank that runs; ends with [`Running::finish`].
pub struct Running {
    /// The node.
    pub node: &'static Node,
    launcher: Launcher,
    _acceptor: Option<Acceptor>,
}

/// Joins the job that the environment names and starts this rank.
pub fn start(config: Config) -> Result<Running, StartError> {
    let registry = Registry::collect().map_err(StartError::Tasks)?;
    let choice = config.fabric;
    let via = move |mine: &Card, theirs: &Card| match choice {
        FabricChoice::Auto if mine.host == theirs.host => Via::Unix,
        FabricChoice::Shm => Via::Unix,
        _ => Via::Tcp,
    };
    let home = RefCell::new(None);
    let note = |rank, _| {
        let opened = config.gcs_dir.as_ref().map(|dir| open_home(dir, rank, &config)).transpose()?;
        let life = opened.as_ref().map_or(1, Home::life);
        let has_past = opened.as_ref().is_some_and(Home::found_layout);
        home.replace(opened);
        Ok(Agreement::of(&config, life, has_past).encode())
    };
    let mesh = boot::start(&config, &via, &note)?;
    let running = assemble(config, registry, mesh, home.into_inner())?;
    Node::set_default(Some(running.node));
    Ok(running)
}

/// This rank's part of the folder in which the control store is kept.
fn open_home(dir: &Path, rank: Rank, config: &Config) -> Result<Home, String> {
    let backend = match config.fabric {
        FabricChoice::Epoll => JournalBackend::Thread,
        _ => JournalBackend::Auto,
    };
    let options = DiskOptions { backend, truncate_damaged: config.gcs_truncate };
    Home::open(dir, rank, options).map_err(|error| error.to_string())
}

fn assemble(config: Config, registry: Registry, mesh: Mesh, home: Option<Home>) -> Result<Running, StartError> {
    let Mesh { rank, size, local_size, job, cards, links, lanes, lanes_note, launcher, acceptor, counters, .. } = mesh;
    if let Some(note) = lanes_note.filter(|_| config.log) {
        sys::say_line(format_args!("collimate: {rank}: {note}"));
    }
    let share = Share::of_this_rank(local_size);
    let workers = config.workers.unwrap_or(share.cores.max(1));
    let oversubscribed = match share.own {
        true => workers > share.cores,
        false => workers * local_size as usize > share.of,
    };
    if config.log {
        let whose = if share.own { "bound to this rank" } else { "shared by the ranks of this host" };
        sys::say_line(format_args!("collimate: {rank}: {workers} workers; {} cores, {whose}", share.of));
    }

    let (arena, own_view) = if size > 1 {
        let (arena, view) = make_arena(&config, rank, local_size)?;
        (Some(arena), Some(view))
    } else {
        (None, None)
    };
    let capacity = config.resources.clone();
    let capacity: Demand = capacity.parse().expect("checked when the configuration was read");
    let os = |what: &str| {
        let what = what.to_string();
        move |cause| StartError::Os { rank, what, cause }
    };
    let service = Service::new().map_err(os("cannot make an event descriptor"))?;
    let unfit = |why| StartError::ControlStore { rank, why };
    let setup = Setup::agreed(&cards).map_err(unfit)?;
    if let Some(home) = &home {
        home.check_layout(&setup.layout(size)).map_err(|error| unfit(error.to_string()))?;
    }
    let gcs = Gcs::new(rank, setup, service.started, home).map_err(unfit)?;
    for disk in gcs.wait_fds() {
        service.network.add(disk).map_err(os("cannot watch a disk"))?;
    }
    let mut state = State::new(rank, size, capacity, gcs);
    for (fabric, peers) in connect(&config, rank, links, lanes, arena.as_ref(), &counters)? {
        state.add_fabric(fabric, &peers);
    }
    for fabric in &state.fabrics {
        service.network.add(fabric.wait_fd()).map_err(os("cannot watch a fabric"))?;
    }
    let owners: Vec<_> = (0..workers).map(|_| Owner::new(limits::DEQUE_SLOTS)).collect();
    let ports = owners.iter().map(|owner| WorkerPort::new(owner.stealer())).collect();
    let idle = Idle::new(Fences { everywhere: sys::fence_everywhere() });
    let node = Node::new(
        rank, size, config, registry, arena, own_view, ports, idle, state, service, oversubscribed, counters,
    );
    // Suspended tasks and user threads may refer to the node until the process
    // ends, so it is never freed.
    let node: &'static Node = Box::leak(Box::new(node));

    // Before any thread can send: a connection begins with the greeting, and a
    // worker asks whoever has greeted us for work.
    node.take_state().greet(node);
    node.take_state().introduce(node, job, &cards[rank.index()]);
    let lost = {
        let launcher = launcher.clone();
        move || launcher.lost()
    };
    let mut threads: Vec<(String, Box<dyn FnOnce() + Send>)> = Vec::new();
    threads.push(("clm-service".into(), Box::new(move || Service::run(node, lost))));
    for (index, owner) in owners.into_iter().enumerate() {
        let body = move || {
            let worker: &'static Worker = Box::leak(Box::new(Worker::new(node, index, owner)));
            worker.run();
        };
        threads.push((format!("clm-worker-{index}"), Box::new(body)));
    }
    for (name, body) in threads {
        let role = name.clone();
        let guarded = move || {
            // Tasks do not unwind: what does is a defect of the runtime or of a
            // value's codec, and the job must not wait for ever for a thread
            // that is gone.
            if let Err(payload) = catch_unwind(AssertUnwindSafe(body)) {
                let text = payload.downcast_ref::<&str>().copied().map(str::to_string);
                let text = text.or_else(|| payload.downcast_ref::<String>().cloned()).unwrap_or_default();
                let reason = format!("thread {role} panicked outside any task: {text}");
                node.end(Ended { status: 1, reason: Some(reason) });
            }
        };
        thread::Builder::new().name(name).spawn(guarded).map_err(os("cannot start a thread"))?;
    }
    let running = Running { node, launcher, _acceptor: acceptor };
    running.wait_for_greetings()?;
    Ok(running)
}

/// The cores that a rank may count on.
struct Share {
    /// How many.
    cores: usize,
    /// Out of how many that it may run on.
    of: usize,
    /// The launcher bound this rank to them, so that they are its own.
    own: bool,
}

impl Share {
    /// A mask narrower than the host means that the launcher bound the rank
    /// (Open MPI does so for two ranks and fewer); it is respected. Otherwise
    /// the ranks of the host share its cores evenly.
    fn of_this_rank(local_size: u32) -> Share {
        let of = thread::available_parallelism().map_or(1, usize::from);
        let own = of < sys::online_cores();
        Share { cores: if own { of } else { of / local_size as usize }, of, own }
    }
}

/// A memfd for this rank's objects, and how others see it.
fn make_arena(config: &Config, rank: Rank, local_size: u32) -> Result<(Arena, Arc<Region>), StartError> {
    let bytes = config.store_bytes.unwrap_or_else(|| default_store_bytes(local_size));
    let failed = |cause| StartError::Os {
        rank,
        what: format!("cannot make an object store of {bytes} bytes; set COLLIMATE_STORE lower"),
        cause,
    };
    let region = sys::create_region(bytes).map_err(failed)?;
    let fd = sys::region_fd(&region).expect("made above").try_clone_to_owned().map_err(failed)?;
    let view = sys::open_region(fd, bytes).map_err(failed)?;
    let arena = Arena::with_populate(Arc::new(region), sys::populate_fresh);
    Ok((arena, Arc::new(view)))
}

/// 30% of the host's memory, shared by its ranks; pages are taken on first use.
pub fn default_store_bytes(local_size: u32) -> usize {
    let info = rustix::system::sysinfo();
    let total = info.totalram as usize * (info.mem_unit as usize).max(1);
    let share = total / 10 * 3 / local_size.max(1) as usize;
    (share & !0xf_ffff).max(limits::ARENA_BYTES_MIN)
}

impl WorkerPort {
    fn new(stealer: crate::sync::Stealer<crate::sync::Task>) -> WorkerPort {
        WorkerPort { stealer, mailbox: Default::default(), thread: Default::default() }
    }
}

impl Running {
    /// Waits for the greetings of all peers.
    fn wait_for_greetings(&self) -> Result<(), StartError> {
        let node = self.node;
        if node.size == 1 {
            return Ok(());
        }
        let deadline = Instant::now() + limits::BOOT_DEADLINE;
        loop {
            // The workers poll: the thread that polls first is the one that an
            // io_uring backend belongs to.
            let strangers = node.take_state().strangers();
            match node.ended() {
                Some(Ended { reason: Some(why), .. }) => return Err(StartError::Ended(why)),
                // A driver that needed nobody else is done already.
                Some(_) => return Ok(()),
                None if strangers.is_empty() => return Ok(()),
                None => (),
            }
            if Instant::now() > deadline {
                let missing = strangers.iter().map(Rank::to_string).collect::<Vec<_>>().join(", ");
                let seconds = limits::BOOT_DEADLINE.as_secs();
                return Err(StartError::Silent { rank: node.rank, missing, seconds });
            }
            thread::sleep(Duration::from_micros(20));
        }
    }

    /// Rank 0: runs `root` as the job's root task and waits for its end, or for
    /// the end of the job from outside.
    pub fn drive<C: Call<Output = i32>>(&self, root: C) -> Ended {
        let lineage = Lineage { parent: Tag::ROOT, index: 0 };
        let (task, handle) = frame(|| root, lineage, Target::rank(self.node.rank).to_flags());
        let node = self.node;
        let watch = handle.clone();
        let ended = move || {
            let status = match watch.peek() {
                Some(crate::sync::Stored::Value(status)) => *status,
                _ => 1,
            };
            node.end(Ended { status, reason: None });
        };
        assert!(handle.register(Wake::new(ended)).is_ok(), "the task has not been given away yet");
        *super::rank::lock(&DRIVING) = Some(node);
        sys::on_exit(leave);
        *super::rank::lock(&node.root) = Some(task);
        node.root_waits.store(true, Ordering::Release);
        node.unpark(0);
        node.wait_end(None).expect("waits without a limit")
    }

    /// Other ranks: serves until the job ends.
    pub fn serve(&self) -> Ended {
        self.node.wait_end(None).expect("waits without a limit")
    }

    /// Ends this rank: tells the others, waits for their goodbyes, stops the
    /// threads. Returns the exit status.
    pub fn finish(self, ended: &Ended) -> i32 {
        let node = self.node;
        let deadline = Instant::now() + limits::GOODBYE_DEADLINE;
        if node.rank == Rank(0) && node.size > 1 {
            let reason = ended.reason.clone().unwrap_or_default();
            node.submit(Command::Shutdown { status: ended.status, reason });
            while Instant::now() < deadline && !node.take_state().all_gone() {
                node.turn();
                thread::yield_now();
            }
        } else if node.size > 1 {
            // What is queued for rank 0, the goodbye above all, must get out.
            while Instant::now() < deadline && !node.quiet() {
                thread::yield_now();
            }
        }
        node.stop();
        node.take_state().disconnect();
        self.launcher.finish(ended.status);
        Node::set_default(None);
        node.left.store(true, Ordering::Release);
        ended.status
    }
}

/// The node whose driver runs.
static DRIVING: Mutex<Option<&'static Node>> = Mutex::new(None);

/// The process of the driver is about to exit, for the driver or a library has
/// called `exit`: that ends the job. The thread that waits in
/// [`Running::drive`] tells the others.
fn leave(status: i32) {
    let Some(node) = *super::rank::lock(&DRIVING) else { return };
    node.end(Ended { status: status & 0xff, reason: None });
    let deadline = Instant::now() + 2 * limits::GOODBYE_DEADLINE;
    while !node.left.load(Ordering::Acquire) && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(1));
    }
}

impl Node {
    /// Everything that was to be sent has been handed to the fabrics.
    fn quiet(&'static self) -> bool {
        self.turn();
        self.outbox.is_empty() && self.take_state().is_quiet()
    }

    /// Stops the threads that are not inside a task.
    fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
        self.service.ring();
        for worker in 0..self.workers.len() {
            self.unpark(worker);
        }
    }

    /// Waits for a result, on whatever thread this is. `None` where no node
    /// runs.
    #[inline]
    pub fn resolve<T: Send + Sync>(handle: Handle<T>) -> Option<Result<Resolved<T>, Box<TaskError>>> {
        match super::worker::current() {
            Some(worker) => Some(worker.resolve(handle)),
            None => Node::current().map(|node| {
                node.wait_outside(&[&handle], 1, None)?;
                Ok(match handle.take() {
                    Ok(result) => Resolved::Owned(result),
                    Err(handle) => Resolved::Shared(handle),
                })
            }),
        }
    }

    /// Waits until `count` of `handles` are done, or for `patience`.
    pub fn wait(
        &'static self,
        handles: &[&dyn Waitable],
        count: usize,
        patience: Option<Duration>,
    ) -> Result<(), Box<TaskError>> {
        // A patience beyond the clock's range is none.
        let deadline = patience.and_then(|p| Instant::now().checked_add(p));
        match self.my_worker() {
            Some(worker) => worker.wait(handles, count, deadline),
            None => self.wait_outside(handles, count, deadline),
        }
    }

    /// The same on a thread that is no worker, which may have to notice by
    /// itself that the job has ended.
    fn wait_outside(
        &self,
        handles: &[&dyn Waitable],
        count: usize,
        deadline: Option<Instant>,
    ) -> Result<(), Box<TaskError>> {
        loop {
            let look = Instant::now() + END_CHECK;
            if wait_on_thread(handles, count, deadline.map_or(look, |d| d.min(look))) {
                return Ok(());
            }
            if let Some(ended) = self.ended() {
                let reason = ended.reason.unwrap_or_else(|| "the driver is done".into());
                let message = format!("the job ended before the result was there: {reason}");
                return Err(Box::new(TaskError::new(ErrorKind::NotRunning, message)));
            }
            if deadline.is_some_and(|d| Instant::now() >= d) {
                return Ok(());
            }
        }
    }

    /// Where a call goes that asks for a place or for resources.
    pub fn choose(&'static self, place: Place, demand: &Demand) -> Choice {
        let turn = match place {
            Place::Spread => self.spread.fetch_add(1, Ordering::Relaxed),
            _ => 0,
        };
        if demand.is_empty() {
            return choose(place, demand, self.rank, turn, self.size, |rank| !self.is_lost(rank));
        }
        let state = self.take_state();
        let suits = |rank| state.capacity(rank).is_some_and(|c| demand.fits(c));
        let choice = choose(place, demand, self.rank, turn, self.size, suits);
        drop(state);
        // Others may have left commands meanwhile.
        self.after_state();
        choice
    }
}
