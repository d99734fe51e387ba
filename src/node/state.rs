//! What a rank has towards the others: connections, calls that await a result,
//! objects lent, messages that did not fit yet. One thread at a time has it.

use std::collections::VecDeque;

use slab::Slab;

use super::rank::{Ended, HUNGRY_BASE, Node, Target, kind_of};
use super::registry::TaskType;
use super::transfer::{Incoming, Pack, Piece, Received, Reply};
use crate::base::event::Event as Counted;
use crate::base::{ErrorKind, JobId, Rank, TaskError};
use crate::fabric::{Event, Fabric, FabricError, RegionKey, RemoteSpan};
use crate::mem::{Block, Bytes, Foreign, Heap, Lease};
use crate::sched::{Demand, Ledger};
use crate::store::{Index, ObjectId};
use crate::sync::{Lineage, Task};
use crate::wire::{
    Argument, Control, Goodbye, Hello, Message, ObjectRecord, Outcome, Release, SCHEMA_VERSION, Shutdown, Spawn,
    SpawnBuilder, SpawnCall, StealRequest, TaskTable, write_control, write_error, write_inline_result,
    write_object_result, write_release, write_steal_request,
};

/// The region of a rank that holds its arena.
pub(super) const ARENA: RegionKey = RegionKey(0);

/// Something to be done with the state in hand.
pub(super) enum Command {
    /// Send a task whose arguments are encoded.
    Spawn { rank: Rank, task: Task, kind: &'static TaskType, pack: Pack, stolen: bool },
    /// Send a result.
    Reply { peer: Rank, request: u64, result: Result<Pack, Box<TaskError>> },
    /// Tell a lender that a borrowed object is not needed any more.
    Release { lender: Rank, object: u64 },
    /// Start a task when its demand can be granted.
    Admit { task: Task },
    /// A task with a demand ended.
    GiveBack { demand: Demand },
    /// This rank has nothing to do: ask the others.
    AskForWork,
    /// Give a task to a peer that asked.
    Feed { peer: Rank },
    /// The driver is done: tell everybody.
    Shutdown { status: i32, reason: String },
}

/// See the module.
pub(super) struct State {
    fabrics: Vec<Box<dyn Fabric>>,
    core: Core,
}

/// Everything but the fabrics, which report into it.
struct Core {
    me: Rank,
    job: JobId,
    peers: Vec<Peer>,
    /// Calls sent away, by number.
    requests: Slab<Request>,
    request_epoch: u32,
    index: Index,
    /// Calls and results whose objects are being read.
    arriving: Slab<Arriving>,
    ledger: Ledger<Task>,
    /// Messages that came up while a fabric was being polled.
    out: VecDeque<(Rank, Vec<u8>)>,
    closing: Vec<(Rank, String)>,
    scratch: Vec<u8>,
    goodbyes: u32,
}

struct Peer {
    /// Index of the fabric that reaches it.
    route: Option<usize>,
    hello: Option<Hello>,
    capacity: Option<Demand>,
    /// Our task index → its task index; `None` when they are the same.
    functions: Option<Vec<Option<u32>>>,
    /// Messages that the fabric had no room for.
    backlog: VecDeque<Vec<u8>>,
    /// We asked it for work and got none yet.
    asked: bool,
    /// Why it is gone.
    lost: Option<String>,
    said_goodbye: bool,
}

struct Request {
    task: Task,
    kind: &'static TaskType,
    peer: Rank,
    epoch: u32,
}

/// A message whose objects are not all here.
struct Arriving {
    from: Rank,
    what: Waiting,
    values: Vec<Value>,
    missing: usize,
    failed: Option<String>,
}

enum Waiting {
    Call(SpawnCall),
    Result(u64),
}

enum Value {
    Inline(Vec<u8>),
    Object(Bytes),
    /// Being read.
    Coming,
}

/// What a record turned into.
enum Found {
    Here(Bytes),
    /// To be read from the rank that has it.
    Far,
}

impl State {
    pub fn new(me: Rank, size: u32, job: JobId, capacity: Demand) -> State {
        let peer = |_| Peer {
            route: None,
            hello: None,
            capacity: None,
            functions: None,
            backlog: VecDeque::new(),
            asked: false,
            lost: None,
            said_goodbye: false,
        };
        let mut peers: Vec<Peer> = (0..size).map(peer).collect();
        peers[me.index()].capacity = Some(capacity.clone());
        State {
            fabrics: Vec::new(),
            core: Core {
                me,
                job,
                peers,
                requests: Slab::new(),
                request_epoch: 0,
                index: Index::new(),
                arriving: Slab::new(),
                ledger: Ledger::new(capacity),
                out: VecDeque::new(),
                closing: Vec::new(),
                scratch: Vec::new(),
                goodbyes: 0,
            },
        }
    }

    /// Adds a fabric that reaches `peers`.
    pub fn add_fabric(&mut self, fabric: Box<dyn Fabric>, peers: &[Rank]) {
        for peer in peers {
            self.core.peers[peer.index()].route = Some(self.fabrics.len());
        }
        self.fabrics.push(fabric);
    }

    /// Greets every peer.
    pub fn greet(&mut self, node: &'static Node) {
        let hello = Control::Hello(Hello {
            schema: SCHEMA_VERSION,
            rank: self.core.me,
            workers: node.workers.len() as u32,
            store_bytes: node.arena.as_ref().map_or(0, |a| a.usage().capacity),
            tasks_hash: node.registry.hash,
            region_bytes: node.arena.as_ref().map_or(0, |a| a.region().len() as u64),
            resources: self.core.ledger.capacity().to_string(),
        });
        self.broadcast(&hello);
        self.flush(node);
    }

    /// Who has not greeted us yet.
    pub fn strangers(&self) -> Vec<Rank> {
        let peers = self.core.peers.iter().enumerate();
        let strange = peers.filter(|(r, p)| *r != self.core.me.index() && p.hello.is_none() && p.lost.is_none());
        strange.map(|(r, _)| Rank(r as u32)).collect()
    }

    /// Every rank's resources; `None` for a lost one.
    pub fn capacities(&self) -> Vec<Option<&Demand>> {
        self.core.peers.iter().map(|p| p.capacity.as_ref()).collect()
    }

    /// Whether every peer that is left has said goodbye.
    pub fn all_gone(&self) -> bool {
        let others = self.core.peers.iter().enumerate().filter(|(r, _)| *r != self.core.me.index());
        others.map(|(_, p)| p).all(|p| p.said_goodbye || p.lost.is_some())
    }

    /// Polls every fabric once; how many events there were.
    pub fn turn(&mut self, node: &'static Node) -> usize {
        self.drain(node);
        let mut events = 0;
        for fabric in 0..self.fabrics.len() {
            let (fabrics, core) = (&mut self.fabrics, &mut self.core);
            let (before, rest) = fabrics.split_at_mut(fabric);
            let (polled, after) = rest.split_first_mut().expect("fabric < len");
            let _ = (before, after);
            events += polled.poll(&mut |event| core.on_event(node, event));
        }
        self.flush(node);
        events
    }

    /// Prepares all fabrics to sleep; `false` if there is something to poll.
    pub fn arm(&mut self) -> bool {
        let idle = self.core.peers.iter().all(|p| p.backlog.is_empty());
        self.fabrics.iter_mut().all(|f| f.arm()) && idle
    }

    /// Executes the commands that others left.
    pub fn drain(&mut self, node: &'static Node) {
        while let Some(command) = node.outbox.pop() {
            self.execute(node, command);
        }
    }

    /// Executes one command.
    pub fn execute(&mut self, node: &'static Node, command: Command) {
        match command {
            Command::Spawn { rank, task, kind, pack, stolen } => self.spawn(node, rank, task, kind, pack, stolen),
            Command::Reply { peer, request, result } => self.reply(node, peer, request, result),
            Command::Release { lender, object } => {
                let mut buffer = std::mem::take(&mut self.core.scratch);
                write_release(&mut buffer, Release { object, count: 1 });
                self.send(lender, &buffer);
                self.core.scratch = buffer;
            }
            Command::Admit { task } => self.core.admit(node, task),
            Command::GiveBack { demand } => {
                for task in self.core.ledger.give_back(&demand) {
                    node.push(task);
                }
            }
            Command::AskForWork => self.ask_for_work(),
            Command::Feed { peer } => {
                self.feed(node, peer);
                if let Some(next) = node.idle.found(|| false) {
                    node.wake(next);
                }
            }
            Command::Shutdown { status, reason } => {
                self.broadcast(&Control::Shutdown(Shutdown { status, reason }));
            }
        }
        self.flush(node);
    }

    fn spawn(
        &mut self,
        node: &'static Node,
        rank: Rank,
        task: Task,
        kind: &'static TaskType,
        pack: Pack,
        stolen: bool,
    ) {
        let function = match self.core.function_at(node, rank, kind) {
            Ok(function) => function,
            Err(error) => return task.fail(Box::new(error.through(kind.name, rank))),
        };
        let lineage = task.lineage();
        self.core.request_epoch = self.core.request_epoch.wrapping_add(1);
        let epoch = self.core.request_epoch;
        let request = self.core.requests.insert(Request { task, kind, peer: rank, epoch });
        let call = SpawnCall {
            function,
            request: u64::from(epoch) << 32 | request as u64,
            parent: lineage.parent,
            call: lineage.index,
            stolen,
        };
        let mut buffer = std::mem::take(&mut self.core.scratch);
        let mut builder = SpawnBuilder::new(&mut buffer, call, pack.pieces.len());
        let mut lent = Vec::new();
        for piece in &pack.pieces {
            match piece {
                Piece::Inline { start, len, align } => builder.inline(&pack.bytes[*start..start + len], *align),
                Piece::Object(object) => {
                    let record = self.core.lend(node, object, rank);
                    lent.push(record.object);
                    builder.object(record)
                }
            };
        }
        match builder.finish() {
            Ok(()) => self.send(rank, &buffer),
            Err(e) => {
                for object in lent {
                    let _unlent = self.core.index.give_back(ObjectId::from_bits(object), rank, 1);
                }
                let task = self.core.requests.remove(request).task;
                let error = TaskError::new(ErrorKind::BadCall, format!("a call that cannot be sent to {rank}: {e}"));
                task.fail(Box::new(error.through(kind.name, node.rank)));
            }
        }
        self.core.scratch = buffer;
        if let Some(worker) = node.my_worker() {
            worker.keep_pack(pack);
        }
    }

    fn reply(&mut self, node: &'static Node, peer: Rank, request: u64, result: Result<Pack, Box<TaskError>>) {
        let mut buffer = std::mem::take(&mut self.core.scratch);
        let written = match &result {
            Ok(pack) => match pack.pieces.first() {
                Some(Piece::Inline { start, len, align }) => {
                    write_inline_result(&mut buffer, request, 0, &pack.bytes[*start..start + len], *align)
                }
                Some(Piece::Object(object)) => {
                    let record = self.core.lend(node, object, peer);
                    write_object_result(&mut buffer, request, 0, record);
                    Ok(())
                }
                None => write_inline_result(&mut buffer, request, 0, &[], 1),
            },
            Err(error) => write_error(&mut buffer, request, 0, error),
        };
        if let Err(e) = written {
            let error = TaskError::new(ErrorKind::BadCall, format!("a result that cannot be sent: {e}"));
            write_error(&mut buffer, request, 0, &error).expect("a short error can be written");
        }
        self.send(peer, &buffer);
        self.core.scratch = buffer;
        if let (Ok(pack), Some(worker)) = (result, node.my_worker()) {
            worker.keep_pack(pack);
        }
    }

    fn ask_for_work(&mut self) {
        for rank in 0..self.core.peers.len() {
            let peer = &mut self.core.peers[rank];
            if peer.asked || peer.hello.is_none() || peer.lost.is_some() || rank == self.core.me.index() {
                continue;
            }
            peer.asked = true;
            let mut buffer = std::mem::take(&mut self.core.scratch);
            write_steal_request(&mut buffer, StealRequest { want: 1 });
            self.send(Rank(rank as u32), &buffer);
            self.core.scratch = buffer;
        }
    }

    /// Gives the oldest task to a peer that asked, or remembers the wish.
    fn feed(&mut self, node: &'static Node, peer: Rank) {
        if self.core.peers[peer.index()].lost.is_some() {
            return;
        }
        // Tasks that belong here are put back; there may be only such ones.
        for _ in 0..node.queued().saturating_sub(1) {
            let Some(task) = node.steal(0, usize::MAX) else { break };
            if Target::from_flags(task.flags()) == Target::ANYWHERE {
                node.counters.count(Counted::TaskStolen);
                return node.promote(peer, task, true);
            }
            node.injector.push(task);
        }
        node.idle.enlist(HUNGRY_BASE + peer.index());
    }

    fn broadcast(&mut self, control: &Control) {
        let mut buffer = Vec::new();
        write_control(&mut buffer, control).expect("small");
        for rank in 0..self.core.peers.len() {
            if rank != self.core.me.index() {
                self.send(Rank(rank as u32), &buffer);
            }
        }
    }

    /// Sends, or keeps for later, in order.
    fn send(&mut self, to: Rank, message: &[u8]) {
        let peer = &mut self.core.peers[to.index()];
        let Some(route) = peer.route.filter(|_| peer.lost.is_none()) else { return };
        if peer.backlog.is_empty() {
            match self.fabrics[route].send(to, &[message]) {
                // What cannot be delivered will be reported as lost by a poll.
                Ok(()) | Err(FabricError::NotConnected(_) | FabricError::Closed(_)) => return,
                Err(_) => (),
            }
        }
        peer.backlog.push_back(message.to_vec());
    }

    /// Sends what events produced, tries the backlog, closes what must be.
    fn flush(&mut self, node: &'static Node) {
        loop {
            while let Some((to, message)) = self.core.out.pop_front() {
                self.send(to, &message);
            }
            while let Some((rank, why)) = self.core.closing.pop() {
                if let Some(route) = self.core.peers[rank.index()].route {
                    self.fabrics[route].close(rank);
                }
                self.core.on_lost(node, rank, why);
            }
            self.start_reads(node);
            if self.core.out.is_empty() && self.core.closing.is_empty() {
                break;
            }
        }
        for rank in 0..self.core.peers.len() {
            let peer = &mut self.core.peers[rank];
            let Some(route) = peer.route else { continue };
            while let Some(message) = peer.backlog.front() {
                match self.fabrics[route].send(Rank(rank as u32), &[message]) {
                    Err(FabricError::Full(_)) => break,
                    _ => drop(peer.backlog.pop_front()),
                }
            }
        }
    }
}
