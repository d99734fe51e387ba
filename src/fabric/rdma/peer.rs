//! One peer: its queue pair, the room that each side has at the other, and the
//! reads from its memory.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::Instant;

use super::frame::{self, Frame, FrameKind, HEAD_BYTES};
use super::room::Room;
use super::setup::{Hello, RemoteRegion};
use crate::base::{Rank, limits};
use crate::fabric::{FabricError, RemoteSpan};
use crate::mem::Lease;
use crate::sys::{Completion, RdmaMemory as Memory, QueuePair, ReadId, RdmaWindow as Window};

/// Messages that are collected before they are posted, at most.
const COLLECT_MAX: usize = 16;

pub(super) struct Peer {
    pub(super) rank: Rank,
    /// Carried the set-up, and ends when the peer's process does.
    pub(super) stream: TcpStream,
    // The pair goes before the window that it makes writable.
    pub(super) pair: QueuePair,
    pub(super) window: Window,
    pub(super) state: State,
    /// Set once the stream has ended: the peer is lost when all that came
    /// before is delivered.
    pub(super) has_ended: bool,
    /// Whether something was sent since the last poll, and since the last
    /// heartbeat.
    pub(super) in_turn: bool,
    /// The number of the work request that said goodbye.
    goodbye: Option<u32>,
    posted_at_beat: u32,

    /// What either side has at the other when none is in use: as much as both
    /// have room for.
    credits_max: u32,
    slots_max: u32,

    /// Messages and slots that this side may still use at the peer.
    credits: u32,
    slots: u32,
    next_slot: u32,
    window_address: u64,
    window_key: u32,
    /// Whether a message was refused since room came last, and for how many
    /// heartbeats none has come.
    was_refused: bool,
    beats_without_room: u32,

    /// Messages and slots that the peer may still use here, and what it was
    /// not told yet that it may use again.
    granted: u32,
    granted_slots: u32,
    owed: u32,
    owed_slots: u32,
    expected_slot: u32,

    regions: Vec<RemoteRegion>,
    jobs: VecDeque<Job>,
    reads_max: u32,
    reads_under_way: u32,
}

pub(super) enum State {
    Up,
    /// This side has closed, and waits until all that it sent has arrived.
    Closing { deadline: Instant },
    /// Nothing is sent or believed any more. The card gives back what it holds,
    /// the last of it with the work request of that number.
    Failing { marker: Option<u32>, deadline: Instant, report: Option<FabricError> },
}

/// A read, as long as it is not over.
struct Job {
    token: u64,
    lease: Target,
    address: u64,
    remote_key: u32,
    len: usize,
    /// Bytes that were asked for, and work requests that do so.
    asked: usize,
    under_way: u32,
    failed: Option<FabricError>,
}

enum Target {
    Waiting(Lease),
    Begun(ReadId),
    /// Between the two.
    Gone,
}

/// A read that is over.
pub(super) struct ReadDone {
    pub(super) peer: Rank,
    pub(super) token: u64,
    pub(super) lease: Lease,
    pub(super) result: Result<(), FabricError>,
}

/// What the handling of a frame found.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// It cannot be.
    Bad(String),
    /// The peer had no room for it.
    Overrun,
}

impl Peer {
    pub(super) fn new(
        rank: Rank,
        stream: TcpStream,
        pair: QueuePair,
        window: Window,
        reads_max: u8,
        room: Room,
        theirs: Hello,
    ) -> Peer {
        let (credits, slots) = (room.credits.min(theirs.credits), room.slots().min(theirs.slots));
        Peer {
            rank,
            stream,
            pair,
            window,
            state: State::Up,
            has_ended: false,
            in_turn: false,
            goodbye: None,
            posted_at_beat: 0,
            credits_max: credits,
            slots_max: slots,
            credits,
            slots,
            next_slot: 0,
            window_address: theirs.window_address,
            window_key: theirs.window_key,
            was_refused: false,
            beats_without_room: 0,
            granted: credits,
            granted_slots: slots,
            owed: 0,
            owed_slots: 0,
            expected_slot: 0,
            regions: theirs.regions,
            jobs: VecDeque::new(),
            reads_max: u32::from(reads_max),
            reads_under_way: 0,
        }
    }

    pub(super) fn is_up(&self) -> bool {
        matches!(self.state, State::Up)
    }

    /// Sends a message of `bytes` in all: at once if it is the first of this
    /// turn, or collected with the others of the turn.
    #[inline]
    pub(super) fn send(&mut self, parts: &[&[u8]], bytes: usize, at_once: bool) -> Result<(), FabricError> {
        if self.credits == 0 || self.pair.room() <= limits::RDMA_WORK_REQUESTS_OWN {
            return self.refuse();
        }
        let at_once = at_once || !self.in_turn;
        let head = frame::head(FrameKind::Message, self.owed_slots as u8, self.owed as u16, bytes);
        if bytes + HEAD_BYTES <= limits::RDMA_BUFFER_BYTES {
            if at_once && self.pair.fits_inline(bytes + HEAD_BYTES, parts.len()) {
                self.pair.send_inline(&head, parts).map_err(|error| self.post_failed(error))?;
            } else if !self.pair.push_send(&head, parts) {
                return self.refuse();
            }
        } else {
            if self.slots == 0 {
                return self.refuse();
            }
            let address = self.window_address + u64::from(self.next_slot) * limits::RDMA_SLOT_BYTES as u64;
            if !self.pair.push_write(&head, parts, address, self.window_key, self.next_slot) {
                return self.refuse();
            }
            self.slots -= 1;
            self.next_slot = (self.next_slot + 1) % self.slots_max;
        }
        self.credits -= 1;
        self.room_was_given();
        if at_once || self.pair.waiting() >= COLLECT_MAX {
            self.pair.flush().map_err(|error| self.post_failed(error))?;
        }
        Ok(())
    }

    /// No room now. What is collected goes out, since room comes of it.
    #[cold]
    fn refuse(&mut self) -> Result<(), FabricError> {
        // For lack of room at the peer, not of this side's own.
        self.was_refused |= self.credits == 0 || self.slots == 0;
        self.pair.flush().map_err(|error| self.post_failed(error))?;
        Err(FabricError::Full(self.rank))
    }

    fn post_failed(&self, error: io::Error) -> FabricError {
        FabricError::os(self.rank, "posting to an RDMA queue pair", error)
    }

    /// Sends a frame that needs no room at the peer.
    fn send_own(&mut self, kind: FrameKind) -> io::Result<()> {
        let head = frame::head(kind, self.owed_slots as u8, self.owed as u16, 0);
        // A full ring has at least as many bytes under way, and room later.
        if self.pair.room() == 0 || !self.pair.push_send(&head, &[]) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        self.room_was_given();
        Ok(())
    }

    fn room_was_given(&mut self) {
        self.granted += self.owed;
        self.granted_slots += self.owed_slots;
        (self.owed, self.owed_slots) = (0, 0);
    }

    /// Tells the peer of room, if there is much of which it does not know.
    #[inline]
    pub(super) fn give_room(&mut self) -> io::Result<()> {
        if !self.owes_much() {
            return Ok(());
        }
        match self.send_own(FrameKind::Room) {
            // The next message carries it, or the next poll.
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(()),
            other => other.and_then(|()| self.pair.flush()),
        }
    }

    pub(super) fn owes_much(&self) -> bool {
        self.is_much(self.owed, self.owed_slots)
    }

    fn is_much(&self, credits: u32, slots: u32) -> bool {
        2 * credits >= self.credits_max || 2 * slots >= self.slots_max
    }

    /// Whether the peer may write that slot.
    pub(super) fn has_slot(&self, slot: u32) -> bool {
        slot < self.slots_max
    }

    /// Whether a read is not over.
    pub(super) fn is_reading(&self) -> bool {
        !self.jobs.is_empty()
    }

    /// Takes what a frame says about room, and says what it is.
    #[inline]
    pub(super) fn take<'a>(&mut self, bytes: &'a [u8], slot: Option<u32>) -> Result<Frame<'a>, Refusal> {
        let frame = frame::parse(bytes).map_err(Refusal::Bad)?;
        if frame.credits != 0 || frame.slots != 0 {
            let (credits, slots) = (u32::from(frame.credits), u32::from(frame.slots));
            if self.credits + credits > self.credits_max || self.slots + slots > self.slots_max {
                return Err(Refusal::Bad(format!("{credits} credits and {slots} slots that were not in use")));
            }
            self.credits += credits;
            self.slots += slots;
            self.was_refused = false;
            self.beats_without_room = 0;
        }
        if let Some(slot) = slot {
            if frame.kind != FrameKind::Message || slot != self.expected_slot {
                return Err(Refusal::Bad(format!("{:?} in slot {slot}, not {}", frame.kind, self.expected_slot)));
            }
            self.granted_slots = self.granted_slots.checked_sub(1).ok_or(Refusal::Overrun)?;
            self.owed_slots += 1;
            self.expected_slot = (slot + 1) % self.slots_max;
        }
        match frame.kind {
            FrameKind::Message => {
                self.granted = self.granted.checked_sub(1).ok_or(Refusal::Overrun)?;
                self.owed += 1;
            }
            // One for every few bytes of room would use up the buffers.
            FrameKind::Room if !self.is_much(frame.credits.into(), frame.slots.into()) => {
                return Err(Refusal::Bad("a frame that gives back too little room".into()));
            }
            FrameKind::Room | FrameKind::Goodbye => {}
        }
        Ok(frame)
    }

    /// Whether the goodbye, which follows all that was sent, has arrived; sends
    /// it when there is room.
    pub(super) fn has_said_goodbye(&mut self) -> bool {
        if let Some(goodbye) = self.goodbye {
            return self.pair.has_done(goodbye);
        }
        match self.send_own(FrameKind::Goodbye) {
            Ok(()) => self.goodbye = Some(self.pair.signal_last()),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(_) => return true,
        }
        // What was collected may be what there is no room for.
        self.pair.flush().is_err()
    }

    /// Gives the connection up; `report` is what is said about it.
    pub(super) fn fail(&mut self, deadline: Instant, report: Option<FabricError>) {
        // Without a marker nothing is waited for: the pair is destroyed.
        let marker = self.post_marker().ok();
        self.state = State::Failing { marker, deadline, report };
    }

    fn post_marker(&mut self) -> io::Result<u32> {
        self.pair.flush()?;
        self.pair.fail()?;
        if self.pair.room() == 0 {
            return Err(ErrorKind::WouldBlock.into());
        }
        self.pair.push_touch(self.window_address, self.window_key);
        let marker = self.pair.signal_last();
        self.pair.flush()?;
        Ok(marker)
    }

    /// Whether the peer's process has closed its end of the stream.
    pub(super) fn look_at_stream(&mut self) -> Option<FabricError> {
        let mut byte = [0];
        match self.stream.read(&mut byte) {
            Ok(0) => Some(FabricError::Closed(self.rank)),
            Ok(_) => Some(FabricError::BadFrame(self.rank, "bytes on the stream of an RDMA connection".into())),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => None,
            // A process that was killed with unread bytes resets.
            Err(error) if error.kind() == ErrorKind::ConnectionReset => Some(FabricError::Closed(self.rank)),
            Err(error) => Some(FabricError::os(self.rank, "read", error)),
        }
    }

    /// Makes an idle connection prove that the peer's host is there, and says
    /// how it is with a peer that gives no room.
    pub(super) fn beat(&mut self) -> io::Result<Beat> {
        if self.was_refused {
            self.beats_without_room += 1;
            let beats_max = limits::PEER_SILENCE_MAX.as_millis() / limits::RDMA_HEARTBEAT.as_millis();
            if u128::from(self.beats_without_room) > beats_max {
                return Ok(Beat::Stuck);
            }
        }
        let is_idle = self.pair.posted() == self.posted_at_beat;
        let beats = is_idle && self.pair.room() > 0;
        if beats {
            self.pair.push_touch(self.window_address, self.window_key);
            self.pair.flush()?;
        }
        self.posted_at_beat = self.pair.posted();
        Ok(if beats { Beat::Sent } else { Beat::Busy })
    }

    /// Queues a read. One that cannot be gives the lease back.
    pub(super) fn read(&mut self, from: RemoteSpan, into: Lease, token: u64) -> Result<(), ReadDone> {
        let peer = self.rank;
        let refused = |lease, error| ReadDone { peer, token, lease, result: Err(error) };
        let region = self.regions.iter().find(|region| region.key == from.key);
        let is_within = |region: &&RemoteRegion| from.offset.checked_add(from.len).is_some_and(|end| end <= region.len);
        let Some(region) = region.filter(is_within).filter(|_| from.len == into.range().len() as u64) else {
            return Err(refused(into, FabricError::NoSuchMemory(peer, from)));
        };
        if !self.is_up() {
            return Err(refused(into, FabricError::NotConnected(peer)));
        }
        if from.len == 0 {
            return Err(ReadDone { peer, token, lease: into, result: Ok(()) });
        }
        self.jobs.push_back(Job {
            token,
            lease: Target::Waiting(into),
            address: region.address + from.offset,
            remote_key: region.remote_key,
            len: from.len as usize,
            asked: 0,
            under_way: 0,
            failed: None,
        });
        Ok(())
    }

    /// Asks for the next chunks of the reads, as many as may be under way.
    pub(super) fn ask(
        &mut self,
        chunk: usize,
        mut memory_of: impl FnMut(&Lease) -> io::Result<Arc<Memory>>,
    ) -> io::Result<()> {
        if !self.is_up() {
            return Ok(());
        }
        while self.reads_under_way < self.reads_max && self.pair.room() > limits::RDMA_WORK_REQUESTS_OWN {
            let waiting = self.jobs.iter_mut().find(|job| job.asked < job.len && job.failed.is_none());
            let Some(job) = waiting else { break };
            let read = match std::mem::replace(&mut job.lease, Target::Gone) {
                Target::Begun(read) => read,
                Target::Waiting(lease) => match memory_of(&lease) {
                    Ok(memory) => self.pair.begin_read(lease, memory),
                    Err(error) => {
                        job.lease = Target::Waiting(lease);
                        job.failed = Some(FabricError::os(self.rank, "registering the destination of a read", error));
                        continue;
                    }
                },
                Target::Gone => unreachable!("a lease is put back at once"),
            };
            job.lease = Target::Begun(read);
            let end = job.len.min(job.asked + chunk);
            self.pair.push_read(read, job.asked..end, job.address + job.asked as u64, job.remote_key);
            job.asked = end;
            job.under_way += 1;
            self.reads_under_way += 1;
        }
        self.pair.flush()
    }

    /// Takes note of a completion. Says why the pair failed, if it did.
    pub(super) fn complete(&mut self, completion: &Completion) -> Taken {
        let (jobs, reads_under_way) = (&mut self.jobs, &mut self.reads_under_way);
        let mut reads = 0;
        let is_ours = self.pair.complete(completion, |read, is_ok| {
            reads += 1;
            *reads_under_way -= 1;
            let of_read = |job: &&mut Job| matches!(job.lease, Target::Begun(id) if id == read);
            if let Some(job) = jobs.iter_mut().find(of_read) {
                job.under_way -= 1;
                if !is_ok {
                    job.asked = job.len;
                    job.failed.get_or_insert(FabricError::Closed(self.rank));
                }
            }
        });
        Taken { is_ours, reads }
    }

    /// Takes out a read that is over: filled, or failed by itself.
    pub(super) fn next_done(&mut self) -> Option<ReadDone> {
        if !self.is_up() {
            return None;
        }
        let is_over = |job: &Job| job.under_way == 0 && (job.asked == job.len || job.failed.is_some());
        let place = self.jobs.iter().take(self.reads_max as usize + 1).position(is_over)?;
        let mut job = self.jobs.remove(place)?;
        let lease = match std::mem::replace(&mut job.lease, Target::Gone) {
            Target::Waiting(lease) => lease,
            Target::Begun(read) => self.pair.end_read(read)?,
            Target::Gone => return None,
        };
        let result = job.failed.map_or(Ok(()), Err);
        Some(ReadDone { peer: self.rank, token: job.token, lease, result })
    }

    /// Ends the pair and gives all leases back, to be reported as failed.
    pub(super) fn dissolve(self, cause: &FabricError, report: impl FnMut(ReadDone)) {
        let Peer { rank: peer, pair, window, jobs, .. } = self;
        let leases = pair.dissolve();
        // The card writes it no more.
        drop(window);
        settle(peer, jobs, leases, cause, report);
    }

    /// As if the card would not let go of what it holds.
    #[cfg(test)]
    pub(super) fn settle_without_leases(&mut self, cause: &FabricError, report: impl FnMut(ReadDone)) {
        settle(self.rank, std::mem::take(&mut self.jobs), Vec::new(), cause, report);
    }

    #[cfg(test)]
    pub(super) fn regions_mut(&mut self) -> &mut Vec<RemoteRegion> {
        &mut self.regions
    }

    #[cfg(test)]
    pub(super) fn window_of_peer(&self) -> (u64, u32) {
        (self.window_address, self.window_key)
    }

    #[cfg(test)]
    pub(super) fn has_room(&self) -> bool {
        self.credits > 0
    }

    /// As if the peer had given more room than it has.
    #[cfg(test)]
    pub(super) fn forget_credits(&mut self) {
        self.credits = self.credits_max;
    }
}

/// What a heartbeat did.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Beat {
    Sent,
    Busy,
    /// The peer gives no room for too long.
    Stuck,
}

/// What a completion was.
pub(super) struct Taken {
    pub(super) is_ours: bool,
    /// Reads of which a part has ended.
    pub(super) reads: u32,
}

/// Gives the leases of `jobs` back, those that the pair had in `leases`.
fn settle(
    peer: Rank,
    jobs: VecDeque<Job>,
    mut leases: Vec<(ReadId, Lease)>,
    cause: &FabricError,
    mut report: impl FnMut(ReadDone),
) {
    for job in jobs {
        let is_filled = job.under_way == 0 && job.asked == job.len && job.failed.is_none();
        let own = match job.lease {
            Target::Waiting(lease) => Some(lease),
            Target::Begun(read) => {
                let place = leases.iter().position(|(id, _)| *id == read);
                place.map(|place| leases.swap_remove(place).1)
            }
            Target::Gone => None,
        };
        let (lease, result) = match own {
            Some(lease) if is_filled => (lease, Ok(())),
            Some(lease) => (lease, Err(cause.clone())),
            // The card would not let go of it, so nobody may have it again.
            None => (Lease::heap(job.len), Err(cause.clone())),
        };
        report(ReadDone { peer, token: job.token, lease, result });
    }
}
