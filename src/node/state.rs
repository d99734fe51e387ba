//! What a rank has towards the others: connections, calls that await a result,
//! objects lent, messages that did not fit yet. One thread at a time has it.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use slab::Slab;

use super::bulk::Bulk;
use super::gcs::{ControlRequest, Gcs};
use super::rank::{HUNGRY_BASE, Node, Target};
use super::registry::TaskType;
use super::transfer::{Pack, Piece, Received};
use crate::base::event::Event as Counted;
use crate::base::limits::{PEER_SILENCE_MAX, SHARED_FROM};
use crate::base::{ErrorKind, Rank, TaskError};
use crate::fabric::{Fabric, FabricError, RegionKey};
use crate::mem::{Bytes, Region};
use crate::sched::{Demand, Ledger};
use crate::store::{Index, NearCopy, ObjectId};
use crate::sync::Task;
use crate::wire::{
    Control, Hello, ObjectRecord, Release, SCHEMA_VERSION, Shutdown, SpawnBuilder, SpawnCall, StealRequest,
    write_control, write_error, write_inline_result, write_object_result, write_release, write_steal_request,
};

/// The region of a rank that holds its arena.
pub(super) const ARENA: RegionKey = RegionKey(0);

/// Tasks that are looked at to find one for a peer: those with a fixed rank
/// must stay, and there may be thousands of them.
const FEED_LOOKS: usize = 16;

/// Something to be done with the state in hand.
pub(super) enum Command {
    /// Send a task whose arguments are encoded.
    Spawn { rank: Rank, task: Task, kind: &'static TaskType, pack: Pack, stolen: bool },
    /// Send a result.
    Reply { peer: Rank, request: u64, result: Result<Pack, Box<TaskError>> },
    /// Tell a lender that a borrowed object is not needed any more.
    Release { lender: Rank, object: u64 },
    /// A copy in the arena of a rank of this host is not used any more.
    Leave { place: NearCopy },
    /// Look for ranks that do not send what was asked of them.
    CheckTransfers,
    /// Start a task when its demand can be granted.
    Admit { task: Task },
    /// An operation on the control store.
    Control(Box<(ControlRequest, Task)>),
    /// Something is due in the control store.
    ControlTick,
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
    pub(super) fabrics: Vec<Box<dyn Fabric>>,
    pub(super) core: Core,
}

/// Everything but the fabrics, which report into it.
pub(super) struct Core {
    pub me: Rank,
    pub peers: Vec<Peer>,
    /// Each rank's arena where it can be read in place.
    pub views: Vec<Option<Arc<Region>>>,
    /// Calls sent away, by number.
    pub requests: Slab<Request>,
    request_epoch: u32,
    pub index: Index,
    /// Calls and results whose objects are being read.
    pub arriving: Slab<Arriving>,
    /// Objects to be brought here, and those on their way.
    pub reads_wanted: VecDeque<Read>,
    pub bulk: Bulk,
    pub ledger: Ledger<Task>,
    pub gcs: Gcs,
    /// Our table of tasks has been written to it.
    pub tasks_registered: bool,
    /// Ranks that asked for work during a poll.
    pub wishes: Vec<Rank>,
    /// Messages that came up during a poll.
    pub out: VecDeque<(Rank, Vec<u8>)>,
    /// Peers whose connection is to be closed, and why.
    pub closing: Vec<(Rank, String)>,
    pub scratch: Vec<u8>,
    /// Some peer has a backlog.
    pub backlogged: bool,
    /// Calls to ranks that have not greeted us yet.
    early: Vec<Command>,
    /// Such a rank has greeted us, or is lost.
    pub newly_ready: bool,
}

pub(super) struct Peer {
    /// Index of the fabric that reaches it.
    pub route: Option<usize>,
    pub hello: Option<Hello>,
    /// Its tasks are known, so that it can be given work.
    pub ready: bool,
    pub capacity: Option<Demand>,
    /// Our task index → its task index; `None` when they are the same.
    pub functions: Option<Vec<Option<u32>>>,
    /// Messages that the fabric had no room for.
    pub backlog: VecDeque<Vec<u8>>,
    /// Since when it has taken none of them.
    pub stuck_since: Option<Instant>,
    /// We asked it for work and got none yet.
    pub asked: bool,
    /// Why it is gone.
    pub lost: Option<String>,
    pub said_goodbye: bool,
}

/// A call sent to a peer.
pub(super) struct Request {
    pub task: Task,
    pub kind: &'static TaskType,
    pub peer: Rank,
    pub epoch: u32,
}

/// A message whose objects are not all here.
pub(super) struct Arriving {
    pub from: Rank,
    pub what: Waiting,
    pub values: Vec<Value>,
    pub missing: usize,
    pub failed: Option<(ErrorKind, String)>,
}

pub(super) enum Waiting {
    Call(SpawnCall),
    Result(u64),
}

pub(super) enum Value {
    Inline(Vec<u8>),
    Object(Bytes),
}

/// An object to be read for value `at` of the arriving message `number`.
#[derive(Clone, Copy)]
pub(super) struct Read {
    pub number: usize,
    pub at: usize,
    pub record: ObjectRecord,
    /// Who lent it.
    pub lender: Rank,
}

/// What a record turned into.
pub(super) enum Found {
    Here(Bytes),
    /// To be read from the rank that has it.
    Far,
}

impl State {
    pub fn new(me: Rank, size: u32, capacity: Demand, gcs: Gcs) -> State {
        let peer = |_| Peer {
            route: None,
            hello: None,
            ready: false,
            capacity: None,
            functions: None,
            backlog: VecDeque::new(),
            stuck_since: None,
            asked: false,
            lost: None,
            said_goodbye: false,
        };
        let mut peers: Vec<Peer> = (0..size).map(peer).collect();
        peers[me.index()].capacity = Some(capacity.clone());
        peers[me.index()].ready = true;
        State {
            fabrics: Vec::new(),
            core: Core {
                me,
                peers,
                views: vec![None; size as usize],
                requests: Slab::new(),
                request_epoch: 0,
                index: Index::new(),
                arriving: Slab::new(),
                reads_wanted: VecDeque::new(),
                bulk: Bulk::new(me, size),
                ledger: Ledger::new(capacity),
                gcs,
                tasks_registered: false,
                wishes: Vec::new(),
                out: VecDeque::new(),
                closing: Vec::new(),
                scratch: Vec::new(),
                backlogged: false,
                early: Vec::new(),
                newly_ready: false,
            },
        }
    }

    /// Adds a fabric that reaches `peers`.
    pub fn add_fabric(&mut self, fabric: Box<dyn Fabric>, peers: &[Rank]) {
        for peer in peers {
            self.core.peers[peer.index()].route = Some(self.fabrics.len());
            self.core.views[peer.index()] = fabric.map(*peer, ARENA);
            if self.core.views[peer.index()].is_some() {
                self.core.bulk.map(*peer);
            }
        }
        self.fabrics.push(fabric);
    }

    /// Ends all connections. A fabric may have left something on the host that
    /// only its end takes away, and the state itself lives as long as the
    /// process.
    pub fn disconnect(&mut self) {
        for peer in &mut self.core.peers {
            peer.route = None;
            peer.backlog.clear();
        }
        self.fabrics.clear();
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
        let strange = peers.filter(|(r, p)| *r != self.core.me.index() && !p.ready && p.lost.is_none());
        strange.map(|(r, _)| Rank(r as u32)).collect()
    }

    /// A rank's resources; `None` for a lost one.
    pub fn capacity(&self, rank: Rank) -> Option<&Demand> {
        self.core.peers[rank.index()].capacity.as_ref()
    }

    /// Whether every peer that is left has said goodbye.
    pub fn all_gone(&self) -> bool {
        let others = self.core.peers.iter().enumerate().filter(|(r, _)| *r != self.core.me.index());
        others.map(|(_, p)| p).all(|p| p.said_goodbye || p.lost.is_some())
    }

    /// Whether everything that was to be sent has been handed to the fabrics.
    pub fn is_quiet(&self) -> bool {
        self.core.out.is_empty() && self.core.peers.iter().all(|p| p.backlog.is_empty())
    }

    /// Polls every fabric, up to `rounds` times until something happens; how
    /// many events there were. More rounds see a message sooner than more
    /// turns, each of which passes the state on.
    pub fn turn(&mut self, node: &'static Node, rounds: u32) -> usize {
        self.drain(node);
        let mut events = 0;
        for _ in 0..rounds {
            for fabric in &mut self.fabrics {
                let core = &mut self.core;
                events += fabric.poll(&mut |event| core.on_event(node, event));
            }
            if events > 0 || !node.outbox.is_empty() {
                break;
            }
        }
        self.core.check_transfers();
        self.core.gcs.poll_disks();
        self.core.gcs.begin_turn();
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
        // An empty queue's `pop` costs a fence, its `is_empty` does not.
        while !node.outbox.is_empty() {
            match node.outbox.pop() {
                Some(command) => self.execute(node, command),
                None => break,
            }
        }
        self.flush(node);
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
            Command::Leave { place } => self.core.leave(place),
            Command::CheckTransfers => self.core.check_transfers_soon(),
            Command::Admit { task } => self.core.admit(node, task),
            Command::Control(operation) => {
                let (request, task) = *operation;
                self.core.gcs.ask(request, task);
            }
            Command::ControlTick => self.core.gcs.tick(),
            Command::GiveBack { demand } => {
                for task in self.core.ledger.give_back(&demand) {
                    node.push(task);
                }
            }
            Command::AskForWork => self.ask_for_work(node),
            Command::Feed { peer } => self.feed(node, peer),
            Command::Shutdown { status, reason } => {
                self.broadcast(&Control::Shutdown(Shutdown { status, reason }));
            }
        }
    }

    pub(super) fn spawn(
        &mut self,
        node: &'static Node,
        rank: Rank,
        task: Task,
        kind: &'static TaskType,
        pack: Pack,
        stolen: bool,
    ) {
        let peer = &self.core.peers[rank.index()];
        if !peer.ready && peer.lost.is_none() {
            // Its tasks are not known before its greeting.
            return self.core.early.push(Command::Spawn { rank, task, kind, pack, stolen });
        }
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
        if rank == self.core.me {
            let values = pack.pieces.iter().map(|piece| pack.received(piece)).collect();
            return self.core.start_call(node, rank, call, values);
        }
        let mut buffer = std::mem::take(&mut self.core.scratch);
        let mut builder = SpawnBuilder::new(&mut buffer, call, pack.pieces.len());
        let mut lent = Vec::new();
        for piece in &pack.pieces {
            match piece {
                Piece::Inline { start, len, align } => builder.inline(&pack.bytes[*start..start + len], *align),
                Piece::Object(object) => {
                    let record = self.core.lend(object, rank);
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

    pub(super) fn reply(&mut self, node: &'static Node, peer: Rank, request: u64, result: Result<Pack, Box<TaskError>>) {
        if peer == self.core.me {
            return match result {
                Ok(pack) => {
                    let value = pack.pieces.first().map_or(Received::Inline(&[]), |piece| pack.received(piece));
                    self.core.complete(request, value);
                }
                Err(error) => self.core.fail(request, *error),
            };
        }
        if self.core.peers[peer.index()].lost.is_some() {
            // Nobody could give back what it would be lent.
            return;
        }
        let mut buffer = std::mem::take(&mut self.core.scratch);
        let written = match &result {
            Ok(pack) => match pack.pieces.first() {
                Some(Piece::Inline { start, len, align }) => {
                    write_inline_result(&mut buffer, request, &pack.bytes[*start..start + len], *align)
                }
                Some(Piece::Object(object)) => {
                    let record = self.core.lend(object, peer);
                    write_object_result(&mut buffer, request, record);
                    Ok(())
                }
                None => write_inline_result(&mut buffer, request, &[], 1),
            },
            Err(error) => write_error(&mut buffer, request, error),
        };
        if let Err(e) = written {
            let error = TaskError::new(ErrorKind::BadCall, format!("a result that cannot be sent: {e}"));
            write_error(&mut buffer, request, &error).expect("a short error can be written");
        }
        self.send(peer, &buffer);
        self.core.scratch = buffer;
        if let (Ok(pack), Some(worker)) = (result, node.my_worker()) {
            worker.keep_pack(pack);
        }
    }

    fn ask_for_work(&mut self, node: &Node) {
        let mut all = true;
        for rank in 0..self.core.peers.len() {
            let peer = &mut self.core.peers[rank];
            if peer.asked || peer.lost.is_some() || rank == self.core.me.index() {
                continue;
            }
            if !peer.ready {
                all = false;
                continue;
            }
            peer.asked = true;
            let mut buffer = std::mem::take(&mut self.core.scratch);
            write_steal_request(&mut buffer, StealRequest { want: 1 });
            self.send(Rank(rank as u32), &buffer);
            self.core.scratch = buffer;
        }
        node.asked.store(all, Ordering::Relaxed);
    }

    /// Gives the oldest task to a peer that asked, or remembers the wish.
    pub(super) fn feed(&mut self, node: &'static Node, peer: Rank) {
        if self.core.peers[peer.index()].lost.is_some() {
            return;
        }
        // Tasks that belong here are put back; there may be only such ones.
        let mut put_back = false;
        for _ in 0..node.queued().saturating_sub(1).min(FEED_LOOKS) {
            let Some(task) = node.steal(0, usize::MAX) else { break };
            if Target::from_flags(task.flags()) == Target::ANYWHERE {
                node.counters.count(Counted::TaskStolen);
                node.promote(peer, task, true);
                return node.wake_if(put_back);
            }
            node.injector.push(task);
            put_back = true;
        }
        node.idle.enlist(HUNGRY_BASE + peer.index());
        node.wake_if(put_back);
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
    pub(super) fn send(&mut self, to: Rank, message: &[u8]) {
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
        self.core.backlogged = true;
    }

    /// Sends what events produced, tries the backlog, closes what must be.
    #[inline]
    pub(super) fn flush(&mut self, node: &'static Node) {
        let core = &self.core;
        let nothing = core.out.is_empty()
            && core.closing.is_empty()
            && core.wishes.is_empty()
            && core.reads_wanted.is_empty()
            && !core.bulk.is_pending()
            && !core.backlogged
            && !core.newly_ready
            && !core.gcs.is_pending();
        if !nothing {
            self.flush_all(node);
        }
    }

    #[inline(never)]
    fn flush_all(&mut self, node: &'static Node) {
        if std::mem::take(&mut self.core.newly_ready) {
            for command in std::mem::take(&mut self.core.early) {
                self.execute(node, command);
            }
        }
        loop {
            while let Some((to, message)) = self.core.out.pop_front() {
                self.send(to, &message);
            }
            while let Some((rank, why)) = self.core.closing.pop() {
                // Before the peer can see it: see `Gcs::ended`.
                self.core.gcs.ended(rank, false);
                if let Some(route) = self.core.peers[rank.index()].route {
                    self.fabrics[route].close(rank);
                }
                self.core.on_lost(node, rank, why);
            }
            self.move_objects(node);
            self.grant_wishes(node);
            self.run_gcs(node);
            if self.core.out.is_empty() && self.core.closing.is_empty() {
                break;
            }
        }
        if !std::mem::take(&mut self.core.backlogged) {
            return;
        }
        for rank in 0..self.core.peers.len() {
            let peer = &mut self.core.peers[rank];
            let Some(route) = peer.route else { continue };
            let waiting = peer.backlog.len();
            while let Some(message) = peer.backlog.front() {
                match self.fabrics[route].send(Rank(rank as u32), &[message]) {
                    Err(FabricError::Full(_)) => break,
                    _ => drop(peer.backlog.pop_front()),
                }
            }
            if peer.backlog.len() < waiting || waiting == 0 {
                peer.stuck_since = None;
            }
            if peer.backlog.is_empty() {
                continue;
            }
            self.core.backlogged = true;
            if peer.stuck_since.get_or_insert_with(Instant::now).elapsed() > PEER_SILENCE_MAX {
                node.counters.count(Counted::StuckPeer);
                let (left, seconds) = (peer.backlog.len(), PEER_SILENCE_MAX.as_secs());
                let why = format!("it took none of the {left} messages for it in {seconds} s: is its process stopped?");
                self.core.closing.push((Rank(rank as u32), why));
            }
        }
    }
}

impl Core {
    /// Names an object to a peer, which holds it until it says otherwise.
    fn lend(&mut self, object: &Bytes, borrower: Rank) -> ObjectRecord {
        let id = self.index.export(object);
        let lent = self.index.lend(id, borrower).expect("it was exported just now");
        self.index.withdraw(id).expect("it was exported just now");
        let (owner, offset) = match object {
            Bytes::Sealed(sealed) => (self.me, sealed.offset()),
            Bytes::Foreign(foreign) => (foreign.owner(), foreign.offset()),
            Bytes::Heap(_) => unreachable!("`Outgoing::object` copies what is on the heap"),
        };
        let shared = lent.borrowers >= SHARED_FROM;
        ObjectRecord { owner, region: ARENA.0 as u16, shared, offset, len: lent.len, object: id.to_bits() }
    }
}
