//! Objects on their way between arenas that cannot map each other: performs
//! what [`Exchange`] decides, with the memory and the fabrics of this rank.

use std::collections::HashMap;
use std::time::Instant;

use super::rank::Node;
use super::state::{ARENA, Command, Core, Read, State};
use crate::base::event::Event as Counted;
use crate::base::{ErrorKind, Rank};
use crate::fabric::{FabricError, RemoteSpan};
use crate::mem::{Assembly, Bytes, Foreign, Lease, Pin, WeakSealed};
use crate::store::{Action, ChunkRead, Exchange, FetchError, Index, Memory, NearCopy, ObjectId, Violation, Wanted};
use crate::wire::{Bulk as Said, CopyId, ObjectRecord, write_bulk};

/// What a rank has under way.
pub(super) struct Bulk {
    exchange: Exchange,
    arriving: HashMap<usize, Arriving>,
    /// Objects that came in chunks and that this rank may still have.
    copies: HashMap<CopyId, WeakSealed>,
    /// Copies from which on those that are gone are looked for.
    sweep_at: usize,
    /// Memory that others read from.
    kept: HashMap<CopyId, Vec<Pin>>,
    /// Transfers are to be looked at once the fabrics were polled.
    check_due: bool,
    /// The exchange may have something to do.
    pending: bool,
    /// What its time counts from.
    start: Instant,
}

/// An object on its way, and the messages that wait for it.
struct Arriving {
    wanted: Wanted,
    /// Once the first chunk is asked for.
    assembly: Option<Assembly>,
    /// Memory that it was in before, and that others may still read from.
    former: Vec<Pin>,
    readers: Vec<Read>,
    /// Why there is no assembly.
    no_room: Option<(ErrorKind, String)>,
}

/// This rank's memory, as the exchange sees it.
struct Keeper<'c> {
    me: Rank,
    index: &'c Index,
    copies: &'c HashMap<CopyId, WeakSealed>,
    kept: &'c mut HashMap<CopyId, Vec<Pin>>,
}

/// Copies at which those that are gone are looked for first.
const SWEEP_MIN: usize = 64;

impl Bulk {
    pub fn new(me: Rank, size: u32) -> Bulk {
        Bulk {
            exchange: Exchange::new(me, size),
            arriving: HashMap::new(),
            copies: HashMap::new(),
            sweep_at: SWEEP_MIN,
            kept: HashMap::new(),
            check_due: false,
            pending: false,
            start: Instant::now(),
        }
    }

    /// The memory of `rank` is read in place.
    pub fn map(&mut self, rank: Rank) {
        self.exchange.map(rank);
    }

    /// Whether [`State::flush`] has something to do here.
    pub fn is_pending(&self) -> bool {
        self.pending
    }

    /// The object, if it came here before and somebody still has it.
    pub fn copy(&self, lender: Rank, record: ObjectRecord) -> Option<Bytes> {
        let copy = self.copies.get(&CopyId { lender, object: record.object })?.upgrade()?;
        (copy.len() as u64 == record.len).then(|| copy.into())
    }

    fn now_ns(&self) -> u64 {
        self.start.elapsed().as_nanos() as u64
    }

    /// Notes that an object is here, and forgets some that are gone.
    fn remember(&mut self, copy: CopyId, object: WeakSealed) {
        self.copies.insert(copy, object);
        if self.copies.len() >= self.sweep_at {
            self.copies.retain(|_, object| object.is_alive());
            self.sweep_at = (self.copies.len() * 2).max(SWEEP_MIN);
        }
    }
}

impl Memory for Keeper<'_> {
    fn lent(&self, object: u64, borrower: Rank) -> Option<(Rank, u64)> {
        let bytes = self.index.lent(ObjectId::from_bits(object), borrower)?;
        let owner = match bytes {
            Bytes::Foreign(foreign) => foreign.owner(),
            Bytes::Sealed(_) | Bytes::Heap(_) => self.me,
        };
        Some((owner, bytes.len() as u64))
    }

    fn pin(&mut self, copy: CopyId) -> Option<(u64, u64)> {
        let whole = self.copies.get(&copy)?.upgrade()?;
        let place = (whole.offset(), whole.len() as u64);
        self.kept.insert(copy, vec![Pin::of(whole)]);
        Some(place)
    }

    fn unpin(&mut self, copy: CopyId) {
        self.kept.remove(&copy);
    }
}

impl Core {
    pub(super) fn on_bulk(&mut self, peer: Rank, message: Said) -> Result<(), String> {
        self.with_exchange(|exchange, memory| exchange.receive(peer, message, memory))
            .map_err(|violation: Violation| violation.to_string())
    }

    /// A peer is gone: nothing is read from it, and nothing kept for it.
    pub(super) fn bulk_peer_lost(&mut self, peer: Rank, cause: &str) {
        self.with_exchange(|exchange, memory| exchange.peer_lost(peer, cause, memory));
    }

    /// A loan has ended, perhaps the last one of some object.
    pub(super) fn given_back(&mut self) {
        while let Some(id) = self.index.next_ended() {
            self.bulk.exchange.freed(id.to_bits());
        }
    }

    pub(super) fn on_read(&mut self, node: &'static Node, token: u64, lease: Lease, result: Result<(), FabricError>) {
        let result = result.map_err(|e| e.to_string()).and_then(|()| {
            let accepted = Assembly::accept(lease);
            accepted.map_err(|_| "the memory that was read into is no object's".to_string())
        });
        self.read_ended(node, token as usize, result);
    }

    fn read_ended(&mut self, node: &Node, token: usize, result: Result<(), String>) {
        let now_ns = self.bulk.now_ns();
        if result.is_err() {
            node.counters.count(Counted::ReadFailed);
        }
        self.bulk.pending = true;
        if let Some(landed) = self.bulk.exchange.read_ended(token, result, now_ns) {
            let event = if landed.from_owner { Counted::ReadFromOwner } else { Counted::ReadFromCopy };
            node.counters.add(event, landed.bytes);
        }
    }

    fn with_exchange<R>(&mut self, act: impl FnOnce(&mut Exchange, &mut dyn Memory) -> R) -> R {
        let Bulk { exchange, copies, kept, pending, .. } = &mut self.bulk;
        *pending = true;
        act(exchange, &mut Keeper { me: self.me, index: &self.index, copies, kept })
    }

    /// Starts to bring an object here, or joins those that wait for it.
    fn bring(&mut self, read: Read) -> Result<(), (ErrorKind, String)> {
        let Read { record, lender, .. } = read;
        let ObjectRecord { owner, offset, len, object, shared, .. } = record;
        let copy = CopyId { lender, object };
        if let Some((arrival, wanted)) = self.bulk.exchange.arriving(copy)
            && let Some(arriving) = self.bulk.arriving.get_mut(&arrival)
        {
            if (wanted.owner, wanted.from, wanted.len) != (owner, offset, len) {
                return Err((ErrorKind::BadArgument, format!("{lender} describes one object in two ways")));
            }
            arriving.readers.push(read);
            return Ok(());
        }
        let wanted = Wanted { copy, owner, from: offset, len, shared };
        let arrival = self.bulk.exchange.start(wanted);
        self.bulk.pending = true;
        let arriving = Arriving { wanted, assembly: None, former: Vec::new(), readers: vec![read], no_room: None };
        self.bulk.arriving.insert(arrival, arriving);
        Ok(())
    }

    /// Takes memory for an arrival, and moves it there if it has some.
    fn place(&mut self, node: &Node, arrival: usize) {
        let Some(arriving) = self.bulk.arriving.get_mut(&arrival) else { return };
        let block = match &node.arena {
            Some(arena) => {
                arena.alloc(arriving.wanted.len as usize).map_err(|full| (ErrorKind::StoreFull, full.to_string()))
            }
            None => Err((ErrorKind::BadCall, "this rank has no object store".to_string())),
        };
        match block {
            Ok(block) => {
                let assembly = match arriving.assembly.take() {
                    Some(before) => {
                        if self.bulk.exchange.is_served(arriving.wanted.copy) {
                            arriving.former.push(before.pin());
                        }
                        before.move_to(block)
                    }
                    None => Assembly::new(block, arriving.wanted.chunking().chunk_bytes()),
                };
                let offset = assembly.offset();
                arriving.assembly = Some(assembly);
                arriving.no_room = None;
                self.bulk.exchange.placed(arrival, offset);
            }
            Err(why) => {
                arriving.no_room = Some(why);
                self.bulk.exchange.no_room(arrival);
            }
        }
    }

    /// Has [`Core::check_transfers`] look at transfers.
    pub(super) fn check_transfers_soon(&mut self) {
        self.bulk.check_due = true;
    }

    /// Looks for ranks that do not send what was asked of them, if it is time to.
    /// What came while this process was stopped must have been polled before.
    pub(super) fn check_transfers(&mut self) {
        if std::mem::take(&mut self.bulk.check_due) && !self.bulk.arriving.is_empty() {
            self.bulk.exchange.check_stalls();
            self.bulk.pending = true;
        }
    }

    /// An object is here, or will never be.
    fn landed(&mut self, node: &'static Node, arrival: usize, copy: CopyId, kept: bool, error: Option<FetchError>) {
        let Some(arriving) = self.bulk.arriving.remove(&arrival) else { return };
        let Arriving { wanted, assembly, mut former, readers, no_room } = arriving;
        if kept {
            former.extend(assembly.as_ref().map(Assembly::pin));
            self.bulk.kept.insert(copy, former);
        }
        if error.is_some() && matches!(no_room, Some((ErrorKind::StoreFull, _))) {
            node.counters.count(Counted::StoreFull);
        }
        let object = match (error, no_room, assembly.map(Assembly::seal)) {
            (None, _, Some(Ok(object))) => Ok(object),
            (None, ..) => Err((ErrorKind::BadCall, "some of it never came".to_string())),
            (Some(_), Some(why), _) => Err(why),
            (Some(error), None, _) => Err((ErrorKind::RankLost, error.to_string())),
        };
        if let Ok(object) = &object
            && wanted.is_exchanged()
        {
            self.bulk.remember(copy, object.downgrade());
        }
        for read in readers {
            self.arrived(node, &read, object.clone().map(Bytes::from));
        }
    }
}

impl Core {
    /// An object is in the arena of a rank of this host.
    fn is_near(&mut self, node: &'static Node, arrival: usize, place: NearCopy) {
        let Some(Arriving { readers, .. }) = self.bulk.arriving.remove(&arrival) else { return };
        let NearCopy { holder, offset, len, .. } = place;
        let view = self.views[holder.index()].clone();
        let view = view.ok_or_else(|| format!("the arena of {holder} cannot be read in place"));
        let leave = move || node.submit(Command::Leave { place });
        let object = view.and_then(|view| Foreign::new(holder, view, offset, len, leave).map_err(|e| e.to_string()));
        let object = object.map(Bytes::from).map_err(|why| (ErrorKind::BadArgument, why));
        for read in readers {
            self.arrived(node, &read, object.clone());
        }
    }

    /// A copy in another rank's arena is not used any more.
    pub(super) fn leave(&mut self, place: NearCopy) {
        self.bulk.exchange.left(place);
        self.bulk.pending = true;
    }
}

impl State {
    /// Brings what messages wait for, and does what the exchange wants done.
    pub(super) fn move_objects(&mut self, node: &'static Node) {
        while let Some(read) = self.core.reads_wanted.pop_front() {
            if let Err(why) = self.core.bring(read) {
                self.core.arrived(node, &read, Err(why));
            }
        }
        if !std::mem::take(&mut self.core.bulk.pending) {
            return;
        }
        let now_ns = self.core.bulk.now_ns();
        let mut buffer = Vec::new();
        while let Some(action) = self.core.bulk.exchange.next(now_ns) {
            match action {
                Action::Send(to, message) => {
                    write_bulk(&mut buffer, &message);
                    self.send(to, &buffer);
                }
                Action::Read { token, arrival, rank, read } => self.read_chunk(node, token, arrival, rank, read),
                Action::Place { arrival } | Action::Move { arrival } => self.core.place(node, arrival),
                Action::Near { arrival, place } => self.core.is_near(node, arrival, place),
                Action::Done { arrival, copy, kept } => self.core.landed(node, arrival, copy, kept, None),
                Action::Failed { arrival, copy, kept, error } => {
                    self.core.landed(node, arrival, copy, kept, Some(error));
                }
            }
        }
    }

    fn read_chunk(&mut self, node: &'static Node, token: usize, arrival: usize, rank: Rank, read: ChunkRead) {
        let Some(route) = self.core.peers[rank.index()].route else {
            return self.core.read_ended(node, token, Err(format!("{rank} cannot be reached")));
        };
        let assembly = self.core.bulk.arriving.get(&arrival).and_then(|arriving| arriving.assembly.as_ref());
        let Some(lease) = assembly.and_then(|assembly| assembly.lease(read.chunk)) else {
            return self.core.bulk.exchange.cannot_read(token);
        };
        let from = RemoteSpan { key: ARENA, offset: read.offset, len: read.len };
        if let Err(e) = self.fabrics[route].read(rank, from, lease, token as u64) {
            self.core.read_ended(node, token, Err(e.to_string()));
        }
    }
}
