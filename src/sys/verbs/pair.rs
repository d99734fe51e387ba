//! A connected queue pair, and all that its work requests point to.

use std::collections::VecDeque;
use std::io;
use std::mem::zeroed;
use std::ops::Range;
use std::ptr::{NonNull, null_mut};
use std::sync::Arc;

use slab::Slab;

use super::adapter::{Adapter, Port};
use super::completion::{self, Completion, CompletionQueue};
use super::memory::Memory;
use super::receive::{self, ReceiveQueue};
use super::{check, ffi, next_owner, non_null, work_id};
use crate::mem::{Lease, Region};

/// Pieces that an inline send is gathered from.
const GATHER_MAX: usize = 6;

/// Bytes of a message that are asked to be sent inline: what the common
/// providers grant without a larger work request than needed.
const INLINE_BYTES: u32 = 220;

/// How often a packet is sent again before its receiver counts as gone. Seven
/// would mean without end in some devices.
const RETRIES: u8 = 6;

/// 4.096 µs to the power of this: 67 ms, so that seven tries take half a
/// second.
const TIMEOUT: u8 = 14;

/// How often to try again when the receiver has no buffer: without end. Credits
/// see to it that it does not happen; if it does, the peer is late, not gone.
const RECEIVER_RETRIES: u8 = 7;

/// The pause before that, by the specification's table: 0.64 ms.
const RECEIVER_PAUSE: u8 = 12;

/// Hops of a routed packet.
const HOPS: u8 = 64;

/// An RC queue pair with its send memory and the leases that it fills.
pub struct QueuePair {
    raw: NonNull<ffi::ibv_qp>,
    /// Set once it is destroyed.
    is_over: bool,
    owner: u32,
    /// Work requests that it holds at most.
    depth: u32,
    inline_max: usize,
    /// The number of the next work request, and of the oldest one that may not
    /// be done: both wrap.
    next: u32,
    done: u32,
    /// What work requests hold, oldest first.
    held: VecDeque<(u32, Held)>,
    reads: Slab<Read>,
    ring: Ring,
    /// Prepared, not posted.
    requests: Vec<ffi::ibv_send_wr>,
    pieces: Vec<ffi::ibv_sge>,
    /// Sends of which only the last asks for a completion, and those since the
    /// last that did.
    sends_per_completion: u32,
    unsignalled: u32,
    unsignalled_bytes: usize,
    counts: PairCounts,
    // Dropped after the pair.
    _completions: Arc<completion::Inner>,
    _receives: Arc<receive::Inner>,
    adapter: Arc<Adapter>,
}

// SAFETY: a queue pair may be used from any thread; what it points to is its
// own.
unsafe impl Send for QueuePair {}

/// What a queue pair has done, to be counted.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct PairCounts {
    /// Work requests that were posted.
    pub work_requests: u64,
    /// Calls that posted them.
    pub doorbells: u64,
    /// Work requests that ask for a completion.
    pub signalled: u64,
    /// Messages that the provider took from where the caller had them.
    pub inlined: u64,
    /// Messages that were copied into send memory.
    pub copied: u64,
}

/// Where the other end of a queue pair is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Remote {
    /// Its number there.
    pub pair: u32,
    /// The number of the first packet that it sends.
    pub first_packet: u32,
    /// The MTU of both, 1 to 5.
    pub mtu: u8,
    /// Reads that this side may have under way.
    pub reads_out: u8,
    /// How it is reached.
    pub address: Address,
}

/// How a port is reached.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Address {
    /// Within an InfiniBand subnet.
    Local {
        /// The port's local address.
        lid: u16,
    },
    /// Over Ethernet, or between subnets.
    Global {
        /// The port's local address, 0 with Ethernet.
        lid: u16,
        /// Its global one.
        gid: [u8; 16],
        /// The place of this side's own in its table.
        own_index: u8,
    },
}

/// A read that was begun.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ReadId(usize);

enum Held {
    /// Send memory up to here.
    Bytes(u64),
    Read(usize),
}

struct Read {
    lease: Lease,
    under_way: u32,
    /// What the card knows the lease's bytes by.
    memory: Arc<Memory>,
}

impl QueuePair {
    /// A queue pair that sends nothing yet. It holds `depth` work requests, and
    /// send memory of so many bytes for messages that do not go inline; one of
    /// `sends_per_completion` sends asks for a completion.
    pub fn new(
        completions: &CompletionQueue,
        receives: &ReceiveQueue,
        port: &Port,
        depth: u32,
        sends_per_completion: u32,
        send_bytes: usize,
    ) -> io::Result<QueuePair> {
        let adapter = completions.inner.adapter.clone();
        let region = Arc::new(Region::heap(send_bytes));
        let memory = Memory::private(&adapter, &region, 0..send_bytes)?;
        // SAFETY: all-zero bytes are valid: null pointers and numbers.
        let mut attributes: ffi::ibv_qp_init_attr = unsafe { zeroed() };
        attributes.send_cq = completions.inner.queue.as_ptr();
        attributes.recv_cq = completions.inner.queue.as_ptr();
        attributes.srq = receives.inner.queue.as_ptr();
        attributes.qp_type = ffi::IBV_QPT_RC;
        attributes.cap.max_send_wr = depth;
        attributes.cap.max_send_sge = GATHER_MAX as u32;
        attributes.cap.max_inline_data = INLINE_BYTES;
        // SAFETY: domain and queues live; the result's bounds are written.
        let mut create = || non_null(unsafe { (adapter.verbs.ibv_create_qp)(adapter.domain.as_ptr(), &raw mut attributes) });
        let raw = match create() {
            Ok(raw) => raw,
            // A device that sends nothing inline, or gathers less, still sends.
            Err(_) => {
                attributes.cap.max_inline_data = 0;
                attributes.cap.max_send_sge = 1;
                // SAFETY: as above.
                non_null(unsafe { (adapter.verbs.ibv_create_qp)(adapter.domain.as_ptr(), &raw mut attributes) })?
            }
        };
        let gathers = attributes.cap.max_send_sge as usize >= GATHER_MAX;
        let pair = QueuePair {
            raw,
            is_over: false,
            owner: next_owner(),
            depth,
            inline_max: if gathers { attributes.cap.max_inline_data as usize } else { 0 },
            next: 0,
            done: 0,
            held: VecDeque::new(),
            reads: Slab::new(),
            ring: Ring { memory, region, head: 0, tail: 0 },
            requests: Vec::new(),
            pieces: Vec::new(),
            sends_per_completion,
            unsignalled: 0,
            unsignalled_bytes: 0,
            counts: PairCounts::default(),
            _completions: completions.inner.clone(),
            _receives: receives.inner.clone(),
            adapter,
        };
        // SAFETY: all-zero bytes are valid: numbers only.
        let mut attributes: ffi::ibv_qp_attr = unsafe { zeroed() };
        attributes.qp_state = ffi::IBV_QPS_INIT;
        attributes.port_num = port.number;
        attributes.qp_access_flags = ffi::IBV_ACCESS_REMOTE_READ | ffi::IBV_ACCESS_REMOTE_WRITE;
        let mask = ffi::IBV_QP_STATE | ffi::IBV_QP_PKEY_INDEX | ffi::IBV_QP_PORT | ffi::IBV_QP_ACCESS_FLAGS;
        pair.modify(&mut attributes, mask)?;
        Ok(pair)
    }

    /// The pair's number, by which the peer and completions name it.
    pub fn number(&self) -> u32 {
        // SAFETY: the pair lives, and its number does not change.
        unsafe { (*self.raw.as_ptr()).qp_num }
    }

    /// Connects it; from now on it receives and sends. The peer's packets
    /// begin with the number that it was told.
    pub fn connect(&mut self, port: &Port, remote: &Remote, first_packet: u32, reads_in: u8) -> io::Result<()> {
        // SAFETY: all-zero bytes are valid: numbers only.
        let mut attributes: ffi::ibv_qp_attr = unsafe { zeroed() };
        attributes.qp_state = ffi::IBV_QPS_RTR;
        attributes.path_mtu = u32::from(remote.mtu);
        attributes.dest_qp_num = remote.pair;
        attributes.rq_psn = remote.first_packet;
        attributes.max_dest_rd_atomic = reads_in;
        attributes.min_rnr_timer = RECEIVER_PAUSE;
        attributes.ah_attr.port_num = port.number;
        match remote.address {
            Address::Local { lid } => attributes.ah_attr.dlid = lid,
            Address::Global { lid, gid, own_index } => {
                attributes.ah_attr.dlid = lid;
                attributes.ah_attr.is_global = 1;
                attributes.ah_attr.grh.dgid = ffi::ibv_gid { raw: gid };
                attributes.ah_attr.grh.sgid_index = own_index;
                attributes.ah_attr.grh.hop_limit = HOPS;
            }
        }
        let mask = ffi::IBV_QP_STATE
            | ffi::IBV_QP_AV
            | ffi::IBV_QP_PATH_MTU
            | ffi::IBV_QP_DEST_QPN
            | ffi::IBV_QP_RQ_PSN
            | ffi::IBV_QP_MAX_DEST_RD_ATOMIC
            | ffi::IBV_QP_MIN_RNR_TIMER;
        self.modify(&mut attributes, mask)?;
        attributes.qp_state = ffi::IBV_QPS_RTS;
        attributes.timeout = TIMEOUT;
        attributes.retry_cnt = RETRIES;
        attributes.rnr_retry = RECEIVER_RETRIES;
        attributes.sq_psn = first_packet;
        attributes.max_rd_atomic = remote.reads_out;
        let mask = ffi::IBV_QP_STATE
            | ffi::IBV_QP_TIMEOUT
            | ffi::IBV_QP_RETRY_CNT
            | ffi::IBV_QP_RNR_RETRY
            | ffi::IBV_QP_SQ_PSN
            | ffi::IBV_QP_MAX_QP_RD_ATOMIC;
        self.modify(&mut attributes, mask)
    }

    /// Ends everything under way with an error: each work request that is not
    /// done yet completes, and the peer is answered no more.
    pub fn fail(&mut self) -> io::Result<()> {
        // SAFETY: all-zero bytes are valid: numbers only.
        let mut attributes: ffi::ibv_qp_attr = unsafe { zeroed() };
        attributes.qp_state = ffi::IBV_QPS_ERR;
        self.modify(&mut attributes, ffi::IBV_QP_STATE)
    }

    /// Work requests that there is room for.
    #[inline]
    pub fn room(&self) -> u32 {
        self.depth - self.next.wrapping_sub(self.done)
    }

    /// The number of the next work request; wraps.
    #[inline]
    pub fn posted(&self) -> u32 {
        self.next
    }

    /// Whether every work request is known to be done.
    pub fn is_idle(&self) -> bool {
        self.next == self.done
    }

    /// Whether something is prepared and not posted.
    #[inline]
    pub fn is_waiting(&self) -> bool {
        !self.requests.is_empty()
    }

    /// Work requests that are prepared and not posted.
    #[inline]
    pub fn waiting(&self) -> usize {
        self.requests.len()
    }

    /// What it has done so far.
    pub fn counts(&self) -> PairCounts {
        self.counts
    }

    /// Whether a message of so many bytes in so many parts can go inline.
    #[inline]
    pub fn fits_inline(&self, bytes: usize, parts: usize) -> bool {
        bytes <= self.inline_max && parts < GATHER_MAX
    }

    /// Posts a message at once, with all that is waiting: `head` and `parts`
    /// joined, taken by the provider from where they are. There must be room,
    /// and it must fit.
    #[inline]
    pub fn send_inline(&mut self, head: &[u8], parts: &[&[u8]]) -> io::Result<()> {
        self.flush()?;
        let mut pieces = [ffi::ibv_sge { addr: 0, length: 0, lkey: 0 }; GATHER_MAX];
        let (mut count, mut bytes) = (0, 0);
        for part in std::iter::once(&head).chain(parts).filter(|part| !part.is_empty()) {
            pieces[count] = ffi::ibv_sge { addr: part.as_ptr() as u64, length: part.len() as u32, lkey: 0 };
            count += 1;
            bytes += part.len();
        }
        assert!(bytes <= self.inline_max, "{bytes} bytes are not sent inline");
        let mut request = self.request(ffi::IBV_WR_SEND, ffi::IBV_SEND_INLINE, 0);
        request.sg_list = pieces.as_mut_ptr();
        request.num_sge = count as i32;
        self.counts.inlined += 1;
        // SAFETY: the request and its pieces live over the call; being inline
        // and no longer than the pair's bound, the bytes are copied in it, and
        // they are borrowed until then.
        unsafe { self.post(&raw mut request, 1) }
    }

    /// Prepares a message, `head` and `parts` joined, from a copy of it.
    /// `false`: there is no send memory left now. There must be room.
    pub fn push_send(&mut self, head: &[u8], parts: &[&[u8]]) -> bool {
        let Some(piece) = self.copy_in(head, parts) else { return false };
        let request = self.request(ffi::IBV_WR_SEND, 0, piece.length as usize);
        self.push(request, Some(piece));
        true
    }

    /// Prepares a write of `head` and `parts` joined to the peer's memory, which
    /// tells it `number`. `false`: there is no send memory left now. There must
    /// be room.
    pub fn push_write(&mut self, head: &[u8], parts: &[&[u8]], address: u64, key: u32, number: u32) -> bool {
        let Some(piece) = self.copy_in(head, parts) else { return false };
        let mut request = self.request(ffi::IBV_WR_RDMA_WRITE_WITH_IMM, 0, piece.length as usize);
        request.__bindgen_anon_1.imm_data = number.to_be();
        request.wr.rdma = ffi::ibv_send_wr__bindgen_ty_2__bindgen_ty_1 { remote_addr: address, rkey: key };
        self.push(request, Some(piece));
        true
    }

    /// Prepares a write of nothing, which the peer's card must answer and the
    /// peer does not see. There must be room.
    pub fn push_touch(&mut self, address: u64, key: u32) {
        let mut request = self.request(ffi::IBV_WR_RDMA_WRITE, 0, 0);
        request.wr.rdma = ffi::ibv_send_wr__bindgen_ty_2__bindgen_ty_1 { remote_addr: address, rkey: key };
        self.push(request, None);
    }

    /// Lets what is prepared last have a completion of its own; returns its
    /// number, which [`QueuePair::has_done`] takes.
    pub fn signal_last(&mut self) -> u32 {
        let last = self.requests.last_mut().expect("something is prepared");
        if last.send_flags & ffi::IBV_SEND_SIGNALED == 0 {
            last.send_flags |= ffi::IBV_SEND_SIGNALED;
            self.counts.signalled += 1;
            (self.unsignalled, self.unsignalled_bytes) = (0, 0);
        }
        self.next.wrapping_sub(1)
    }

    /// Whether the work request of that number is done, well or not.
    pub fn has_done(&self, number: u32) -> bool {
        self.done.wrapping_sub(number).wrapping_sub(1) < u32::MAX / 2
    }

    /// Takes over a lease that reads fill; `memory` must cover it.
    ///
    /// # Panics
    /// If it does not.
    pub fn begin_read(&mut self, lease: Lease, memory: Arc<Memory>) -> ReadId {
        assert!(memory.covers(lease.region(), &lease.range()), "a read into other memory than is registered");
        ReadId(self.reads.insert(Read { lease, memory, under_way: 0 }))
    }

    /// Prepares to fill `range` of the lease from the peer's memory. There must
    /// be room.
    ///
    /// # Panics
    /// If the range does not lie in the lease.
    pub fn push_read(&mut self, read: ReadId, range: Range<usize>, address: u64, key: u32) {
        let Read { lease, memory, under_way } = &mut self.reads[read.0];
        assert!(range.start <= range.end && range.end <= lease.range().len(), "a read beyond its lease");
        *under_way += 1;
        let piece = ffi::ibv_sge {
            addr: lease.region().base().as_ptr() as u64 + (lease.range().start + range.start) as u64,
            length: range.len() as u32,
            lkey: memory.local_key(),
        };
        let mut request = self.request(ffi::IBV_WR_RDMA_READ, ffi::IBV_SEND_SIGNALED, 0);
        request.wr.rdma = ffi::ibv_send_wr__bindgen_ty_2__bindgen_ty_1 { remote_addr: address, rkey: key };
        self.held.push_back((self.next.wrapping_sub(1), Held::Read(read.0)));
        self.push(request, Some(piece));
    }

    /// Makes what is prepared first one that no card takes: a read that says
    /// that the bytes to send come with it.
    #[cfg(test)]
    pub(crate) fn spoil_first(&mut self) {
        self.requests[0].send_flags |= ffi::IBV_SEND_INLINE;
    }

    /// Ends the pair; afterwards nothing of it is under way. Gives back the
    /// leases of reads that were not over.
    pub fn dissolve(mut self) -> Vec<(ReadId, Lease)> {
        if !self.destroy() {
            return Vec::new();
        }
        let ids: Vec<usize> = self.reads.iter().map(|(id, _)| id).collect();
        ids.into_iter().map(|id| (ReadId(id), self.reads.remove(id).lease)).collect()
    }

    /// Gives the lease back, if no part of it is being filled.
    pub fn end_read(&mut self, read: ReadId) -> Option<Lease> {
        let is_over = self.reads.get(read.0)?.under_way == 0;
        is_over.then(|| self.reads.remove(read.0).lease)
    }

    /// Posts what is prepared, with one call.
    #[inline]
    pub fn flush(&mut self) -> io::Result<()> {
        if self.requests.is_empty() {
            return Ok(());
        }
        self.post_waiting()
    }

    fn post_waiting(&mut self) -> io::Result<()> {
        let count = self.requests.len();
        let mut pieces = self.pieces.as_mut_ptr();
        for i in 0..count {
            let next = if i + 1 < count { &raw mut self.requests[i + 1] } else { null_mut() };
            let request = &mut self.requests[i];
            request.next = next;
            request.sg_list = pieces;
            // SAFETY: there are as many pieces as all requests together name.
            pieces = unsafe { pieces.add(request.num_sge as usize) };
        }
        let requests = self.requests.as_mut_ptr();
        // SAFETY: requests and pieces live over the call. The pieces are send
        // memory whose bytes are not touched before their work requests are
        // done (`Ring`), or parts of leases that `reads` holds until then; both
        // are registered for as long, and both outlive the pair.
        let posted = unsafe { self.post(requests, count as u64) };
        self.requests.clear();
        self.pieces.clear();
        posted
    }

    /// Takes note of a completion of this pair's, and reports each read of
    /// which a part is done, and whether well. A completion of another object
    /// is left alone: `false`.
    pub fn complete(&mut self, completion: &Completion, mut ended: impl FnMut(ReadId, bool)) -> bool {
        if completion.owner != self.owner || self.has_done(completion.number) {
            return false;
        }
        // A send queue completes in order: what came before is done. A read says
        // so itself; one that did not was never posted.
        while let Some((number, _)) = self.held.front()
            && completion.number.wrapping_sub(*number) < u32::MAX / 2
        {
            let (number, held) = self.held.pop_front().expect("looked at above");
            match held {
                Held::Bytes(end) => self.ring.tail = end,
                Held::Read(read) => {
                    self.reads[read].under_way -= 1;
                    ended(ReadId(read), completion.is_ok() && number == completion.number);
                }
            }
        }
        self.done = completion.number.wrapping_add(1);
        true
    }

    /// A new work request, with the next number; it holds so many bytes of
    /// send memory, and is signalled if it is time.
    fn request(&mut self, opcode: u32, flags: u32, bytes: usize) -> ffi::ibv_send_wr {
        assert!(self.room() > 0, "more work requests than the queue holds");
        self.unsignalled += 1;
        self.unsignalled_bytes += bytes;
        let is_time = self.unsignalled >= self.sends_per_completion || self.unsignalled_bytes >= self.ring.memory.len() / 4;
        let flags = if is_time { flags | ffi::IBV_SEND_SIGNALED } else { flags };
        if flags & ffi::IBV_SEND_SIGNALED != 0 {
            self.counts.signalled += 1;
            (self.unsignalled, self.unsignalled_bytes) = (0, 0);
        }
        // SAFETY: all-zero bytes are a valid work request: null and numbers.
        let mut request: ffi::ibv_send_wr = unsafe { zeroed() };
        request.wr_id = work_id(self.owner, self.next);
        request.opcode = opcode;
        request.send_flags = flags;
        self.next = self.next.wrapping_add(1);
        request
    }

    fn push(&mut self, mut request: ffi::ibv_send_wr, piece: Option<ffi::ibv_sge>) {
        request.num_sge = i32::from(piece.is_some());
        self.pieces.extend(piece);
        self.requests.push(request);
    }

    /// Copies a message into send memory, which the next work request holds.
    fn copy_in(&mut self, head: &[u8], parts: &[&[u8]]) -> Option<ffi::ibv_sge> {
        let len = head.len() + parts.iter().map(|part| part.len()).sum::<usize>();
        let (offset, end) = self.ring.allocate(len)?;
        let mut at = offset;
        for part in std::iter::once(&head).chain(parts) {
            // SAFETY: `allocate` gave `len` bytes at `offset` within the
            // region, which no work request refers to any more and nobody else
            // has; the caller's bytes do not overlap with them.
            unsafe {
                let to = self.ring.region.base().as_ptr().add(at);
                std::ptr::copy_nonoverlapping(part.as_ptr(), to, part.len());
            }
            at += part.len();
        }
        self.held.push_back((self.next, Held::Bytes(end)));
        self.counts.copied += 1;
        let addr = self.ring.memory.address() + offset as u64;
        Some(ffi::ibv_sge { addr, length: len as u32, lkey: self.ring.memory.local_key() })
    }

    /// # Safety
    /// `requests` is a list of `count` work requests whose pieces may be used
    /// by the card until their completions have come.
    unsafe fn post(&mut self, requests: *mut ffi::ibv_send_wr, count: u64) -> io::Result<()> {
        self.counts.work_requests += count;
        self.counts.doorbells += 1;
        let raw = self.raw.as_ptr();
        let mut bad = null_mut();
        // SAFETY: the pair lives; its context has the provider's functions, of
        // which this one is never absent. The rest is the caller's promise.
        check(unsafe {
            let post = (*(*raw).context).ops.post_send.expect("every provider posts");
            post(raw, requests, &raw mut bad)
        })
    }

    /// Whether the card has nothing under way any more; if so, memory and leases
    /// may go. If not, the pair goes on to exist, and so does all that it may
    /// touch: leases are kept, and send memory can no longer be accessed once
    /// its registration ends.
    fn destroy(&mut self) -> bool {
        if std::mem::replace(&mut self.is_over, true) {
            return true;
        }
        // SAFETY: made by `new`, destroyed once: the flag was not set.
        let is_gone = unsafe { (self.adapter.verbs.ibv_destroy_qp)(self.raw.as_ptr()) } == 0;
        if !is_gone {
            std::mem::forget(std::mem::take(&mut self.reads));
            std::mem::forget(self.ring.region.clone());
            std::mem::forget(self._completions.clone());
            std::mem::forget(self._receives.clone());
        }
        is_gone
    }

    fn modify(&self, attributes: &mut ffi::ibv_qp_attr, mask: u32) -> io::Result<()> {
        // SAFETY: the pair lives; the attributes are read in the call.
        check(unsafe { (self.adapter.verbs.ibv_modify_qp)(self.raw.as_ptr(), attributes, mask as i32) })
    }
}

impl Drop for QueuePair {
    fn drop(&mut self) {
        self.destroy();
    }
}

/// Send memory, taken and given back in order.
struct Ring {
    memory: Memory,
    region: Arc<Region>,
    /// Bytes that were ever taken, and given back, with those that a message
    /// did not fit before the end.
    head: u64,
    tail: u64,
}

impl Ring {
    /// Room for `len` bytes in one piece: where, and what `tail` becomes when
    /// they are given back.
    fn allocate(&mut self, len: usize) -> Option<(usize, u64)> {
        let capacity = self.memory.len() as u64;
        let len = len as u64;
        let at = self.head % capacity;
        let skipped = if at + len <= capacity { 0 } else { capacity - at };
        let end = self.head + skipped + len;
        if end - self.tail > capacity {
            return None;
        }
        self.head = end;
        Some((((end - len) % capacity) as usize, end))
    }
}
