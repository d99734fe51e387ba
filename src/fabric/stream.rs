//! One TCP connection of a fabric: frames out, frames in, reads under way in
//! both directions. Used by both TCP backends, which differ only in how they
//! learn that there are bytes.
//!
//! Sending is always a plain non-blocking `sendmsg`, so any thread may do it.
//! The first message after a poll goes to the socket at once; what follows is
//! collected, so that a burst costs one call. Messages and chunks of served
//! reads take turns, each frame whole.

use std::collections::{HashMap, VecDeque};
use std::io::{ErrorKind, IoSlice};
use std::net::TcpStream;
use std::sync::Arc;

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendAncillaryBuffer, SendFlags, recv, sendmsg, sockopt};

use super::frame::{self, CHUNK_HEADER, Frame, Parsed};
use super::{Event, FabricError, RegionKey, RemoteSpan};
use crate::base::{Rank, limits};
use crate::mem::{Lease, Region};
use crate::sys::send_from_region;

/// Regions by key.
pub(super) type Regions = HashMap<RegionKey, Arc<Region>>;

/// Parts of a message that are handed to the kernel without joining them.
const PARTS_MAX: usize = 15;

/// Chunks sent, or receive calls made, for one peer before the next one's turn.
const TURN: usize = 8;

/// Polls for which a socket that had bytes is tried without being told to.
pub(super) const HEAT: u32 = 256;

/// Received at a time while bytes that have their own place are expected.
const HEADERS: usize = 4096;

/// Collected bytes that are sent without waiting for the next poll.
const COLLECT_BYTES: usize = 64 * 1024;

pub(super) struct Stream {
    pub(super) peer: Rank,
    pub(super) socket: TcpStream,
    outbox: Outbox,
    inbox: Inbox,
    /// The kernel had no room when last asked.
    pub(super) blocked: bool,
    /// The turn in which a message went out directly.
    direct_turn: u32,
    /// In the list of those with output, and of those to receive from.
    pub(super) is_pending: bool,
    pub(super) is_active: bool,
    /// More to receive, as far as is known.
    pub(super) readable: bool,
    /// The peer sends no more: reading goes on to the end without edges.
    pub(super) ending: bool,
    /// Polls for which the socket is still tried without being told to.
    pub(super) heat: u32,
    /// Set once the connection has ended.
    pub(super) ended: Option<FabricError>,
}

/// What is to be sent. Positions count bytes since the start.
#[derive(Default)]
struct Outbox {
    bytes: Vec<u8>,
    /// Bytes of `bytes` that were sent.
    sent: usize,
    /// A chunk may go out when `sent` reaches this: the end of a frame.
    boundary: usize,
    chunk: Option<OutgoingChunk>,
    /// Reads to serve, the next one first.
    serving: VecDeque<Serving>,
    /// Nothing can be sent any more.
    broken: bool,
}

struct Serving {
    id: u64,
    /// `None` is refused.
    source: Option<Source>,
}

struct Source {
    region: Arc<Region>,
    offset: u64,
    left: u64,
}

struct OutgoingChunk {
    header: [u8; CHUNK_HEADER],
    header_sent: usize,
    id: u64,
    /// Bytes of this chunk that are to be sent.
    left: usize,
    source: Source,
}

#[derive(Default)]
struct Inbox {
    /// The start of a frame that has not come wholly.
    partial: Vec<u8>,
    reads: HashMap<u64, PendingRead>,
    /// Reads that the peer has not been asked for yet.
    waiting: VecDeque<PendingRead>,
    reads_started: u64,
    /// The read whose chunk is arriving, and how much of it is to come.
    arriving: Option<(u64, usize)>,
}

struct PendingRead {
    lease: Lease,
    span: RemoteSpan,
    filled: usize,
    token: u64,
}

impl Stream {
    pub(super) fn new(peer: Rank, socket: TcpStream) -> Result<Stream, FabricError> {
        prepare(&socket).map_err(|error| FabricError::os(peer, "setsockopt", error))?;
        Ok(Stream {
            peer,
            socket,
            outbox: Outbox::default(),
            inbox: Inbox::default(),
            blocked: false,
            direct_turn: 0,
            is_pending: false,
            is_active: false,
            readable: true,
            ending: false,
            heat: 0,
            ended: None,
        })
    }

    /// Sends or queues one message. `turn` counts the polls from 1.
    pub(super) fn send(&mut self, parts: &[&[u8]], bytes: usize, turn: u32) -> Result<(), FabricError> {
        if self.ended.is_some() || self.outbox.broken {
            return Err(FabricError::NotConnected(self.peer));
        }
        let header = frame::message_header(bytes);
        if self.outbox.waiting() + bytes + header.len() > limits::STREAM_QUEUE_BYTES {
            return Err(FabricError::Full(self.peer));
        }
        let mut sent = 0;
        if !self.has_output() && self.direct_turn != turn && parts.len() <= PARTS_MAX {
            self.direct_turn = turn;
            sent = self.send_now(&header, parts);
        }
        if sent < header.len() + bytes && !self.outbox.broken {
            let mut skip = sent;
            for part in std::iter::once(&header[..]).chain(parts.iter().copied()) {
                let rest = &part[skip.min(part.len())..];
                skip -= part.len() - rest.len();
                self.outbox.bytes.extend_from_slice(rest);
            }
            if sent > 0 {
                self.outbox.boundary = self.outbox.bytes.len();
            }
            if self.outbox.waiting() >= COLLECT_BYTES && !self.blocked {
                self.flush();
            }
        }
        Ok(())
    }

    /// Asks the peer for part of a region, as soon as there are not too many
    /// reads under way.
    pub(super) fn read(&mut self, span: RemoteSpan, lease: Lease, token: u64) {
        self.inbox.waiting.push_back(PendingRead { lease, span, filled: 0, token });
        self.start_reads();
        if !self.blocked {
            self.flush();
        }
    }

    fn start_reads(&mut self) {
        while self.inbox.reads.len() < limits::STREAM_READS_MAX
            && let Some(read) = self.inbox.waiting.pop_front()
        {
            let id = self.inbox.reads_started;
            self.inbox.reads_started += 1;
            self.outbox.bytes.extend_from_slice(&frame::read_request(id, read.span));
            self.inbox.reads.insert(id, read);
        }
    }

    pub(super) fn has_output(&self) -> bool {
        self.outbox.waiting() > 0 || self.outbox.chunk.is_some() || !self.outbox.serving.is_empty()
    }

    /// Whether a read's bytes are arriving, so that it pays to receive them
    /// straight into their place.
    pub(super) fn expects_bulk(&self) -> bool {
        self.inbox.arriving.is_some()
    }

    /// Sends what is queued until the kernel has no room or it is another
    /// peer's turn.
    pub(super) fn flush(&mut self) {
        self.blocked = false;
        for _ in 0..TURN {
            if self.outbox.broken || !self.has_output() {
                return;
            }
            let result = self.outbox.send_some(&self.socket);
            match result {
                Ok(()) => {}
                Err(Errno::AGAIN) => {
                    self.blocked = true;
                    return;
                }
                Err(Errno::INTR) => {}
                Err(_) => self.break_output(),
            }
        }
    }

    /// Receives from the socket until it is empty or it is another peer's
    /// turn. Returns how many events were reported.
    pub(super) fn receive(&mut self, scratch: &mut [u8], regions: &Regions, sink: &mut dyn FnMut(Event<'_>)) -> usize {
        let mut events = 0;
        for _ in 0..TURN {
            if self.ended.is_some() {
                break;
            }
            // Amid reads, the next header is all that is wanted: what follows
            // it has its own place.
            let limit = if self.inbox.reads.is_empty() { scratch.len() } else { HEADERS.min(scratch.len()) };
            let direct = self.inbox.place();
            let is_direct = direct.is_some();
            let room = direct.unwrap_or(&mut scratch[..limit]);
            let wanted = room.len();
            let (got, _) = match recv(&self.socket, room, RecvFlags::DONTWAIT) {
                Ok(got) => got,
                Err(Errno::AGAIN) => {
                    self.readable = false;
                    if self.outbox.broken {
                        self.end(FabricError::Closed(self.peer));
                    }
                    break;
                }
                Err(Errno::INTR) => continue,
                Err(error) => {
                    self.end_with(error);
                    break;
                }
            };
            self.heat = HEAT;
            if got == 0 {
                self.end(FabricError::Closed(self.peer));
            } else if is_direct {
                events += self.inbox.advance(self.peer, got, sink);
            } else {
                events += self.accept(&scratch[..got], regions, sink);
            }
            // A short read has emptied the socket. If the peer has closed as
            // well there is no further edge, so the end must be read.
            if got < wanted && !self.ending {
                self.readable = false;
                break;
            }
        }
        self.start_reads();
        events
    }

    /// Takes bytes that were received. Returns how many events were reported.
    pub(super) fn accept(&mut self, bytes: &[u8], regions: &Regions, sink: &mut dyn FnMut(Event<'_>)) -> usize {
        if self.ended.is_some() {
            return 0;
        }
        let mut events = 0;
        if let Err(what) = self.inbox.accept(self.peer, bytes, regions, &mut self.outbox, &mut events, sink) {
            self.end(FabricError::BadFrame(self.peer, what));
        }
        self.start_reads();
        events
    }

    /// Notes how the connection ended; the first cause stands.
    pub(super) fn end(&mut self, cause: FabricError) {
        self.ended.get_or_insert(cause);
    }

    /// Notes a failed call.
    pub(super) fn end_with(&mut self, error: Errno) {
        let cause = match error {
            Errno::CONNRESET | Errno::PIPE => FabricError::Closed(self.peer),
            other => FabricError::os(self.peer, "recv", other),
        };
        self.end(cause);
    }

    /// Ends all reads under way as failed.
    pub(super) fn fail_reads(&mut self, cause: &FabricError, mut report: impl FnMut(u64, Lease, FabricError)) {
        self.inbox.arriving = None;
        let mut reads: Vec<_> = self.inbox.reads.drain().collect();
        reads.sort_by_key(|(id, _)| *id);
        for read in reads.into_iter().map(|(_, read)| read).chain(self.inbox.waiting.drain(..)) {
            report(read.token, read.lease, cause.clone());
        }
    }

    /// Sends what needs no waiting and says goodbye.
    pub(super) fn shut_down(&mut self, scratch: &mut [u8]) {
        while self.has_output() && !self.blocked && !self.outbox.broken {
            self.flush();
        }
        let _ = self.socket.shutdown(std::net::Shutdown::Write);
        // Unread bytes would turn the close into a reset, which discards what
        // the peer has not read yet.
        for _ in 0..TURN * TURN {
            if !matches!(recv(&self.socket, &mut *scratch, RecvFlags::DONTWAIT), Ok((1.., _))) {
                break;
            }
        }
        let _ = self.socket.shutdown(std::net::Shutdown::Both);
    }

    fn send_now(&mut self, header: &[u8], parts: &[&[u8]]) -> usize {
        let mut slices = [IoSlice::new(&[]); PARTS_MAX + 1];
        for (slice, part) in slices.iter_mut().zip(std::iter::once(header).chain(parts.iter().copied())) {
            *slice = IoSlice::new(part);
        }
        let slices = &slices[..parts.len() + 1];
        match sendmsg(&self.socket, slices, &mut SendAncillaryBuffer::default(), SEND_FLAGS) {
            Ok(sent) => sent,
            Err(Errno::AGAIN) => {
                self.blocked = true;
                0
            }
            Err(Errno::INTR) => 0,
            Err(_) => {
                self.break_output();
                0
            }
        }
    }

    /// After a failed send: reading finds what the peer sent before, and then
    /// the end.
    fn break_output(&mut self) {
        self.outbox = Outbox { broken: true, ..Outbox::default() };
        self.readable = true;
        self.ending = true;
    }
}

const SEND_FLAGS: SendFlags = SendFlags::DONTWAIT.union(SendFlags::NOSIGNAL);

impl Outbox {
    fn waiting(&self) -> usize {
        self.bytes.len() - self.sent
    }

    /// One call to the kernel. There is something to send.
    fn send_some(&mut self, socket: &TcpStream) -> Result<(), Errno> {
        if self.chunk.is_some() {
            return self.send_chunk(socket);
        }
        if self.sent == self.boundary && self.start_chunk() {
            // Messages come next, all that are there by then.
            self.boundary = self.bytes.len();
            return if self.chunk.is_some() { self.send_chunk(socket) } else { Ok(()) };
        }
        if self.sent == self.boundary {
            self.boundary = self.bytes.len();
        }
        let ready = [IoSlice::new(&self.bytes[self.sent..self.boundary])];
        self.sent += sendmsg(socket, &ready, &mut SendAncillaryBuffer::default(), SEND_FLAGS)?;
        if self.sent == self.bytes.len() {
            self.bytes.clear();
            (self.sent, self.boundary) = (0, 0);
        } else if self.sent > limits::STREAM_QUEUE_BYTES {
            self.bytes.drain(..self.sent);
            self.boundary -= self.sent;
            self.sent = 0;
        }
        Ok(())
    }

    /// Takes the next read to serve; `false` if there is none.
    fn start_chunk(&mut self) -> bool {
        let Some(Serving { id, source }) = self.serving.pop_front() else {
            return false;
        };
        match source {
            None => self.bytes.extend_from_slice(&frame::refusal(id)),
            Some(source) => {
                let left = source.left.min(limits::READ_CHUNK_BYTES as u64) as usize;
                let header = frame::chunk_header(id, left);
                self.chunk = Some(OutgoingChunk { header, header_sent: 0, id, left, source });
            }
        }
        true
    }

    fn send_chunk(&mut self, socket: &TcpStream) -> Result<(), Errno> {
        let Some(chunk) = &mut self.chunk else { return Ok(()) };
        let header = &chunk.header[chunk.header_sent..];
        let source = &mut chunk.source;
        let mut sent = send_from_region(socket, header, &source.region, source.offset, chunk.left).map_err(errno)?;
        let of_header = sent.min(header.len());
        chunk.header_sent += of_header;
        sent -= of_header;
        chunk.left -= sent;
        source.offset += sent as u64;
        source.left -= sent as u64;
        if chunk.left == 0
            && chunk.header_sent == CHUNK_HEADER
            && let Some(OutgoingChunk { id, source, .. }) = self.chunk.take()
            && source.left > 0
        {
            self.serving.push_back(Serving { id, source: Some(source) });
        }
        Ok(())
    }

    fn serving_count(&self) -> usize {
        self.serving.len() + usize::from(self.chunk.is_some())
    }
}

impl Inbox {
    /// Where the rest of an arriving chunk belongs.
    fn place(&mut self) -> Option<&mut [u8]> {
        let (id, left) = self.arriving?;
        let read = self.reads.get_mut(&id)?;
        Some(&mut read.lease.bytes_mut()[read.filled..read.filled + left])
    }

    /// Notes that `got` bytes are in the place. Returns how many events were
    /// reported.
    fn advance(&mut self, peer: Rank, got: usize, sink: &mut dyn FnMut(Event<'_>)) -> usize {
        let Some((id, left)) = self.arriving else { return 0 };
        let Some(read) = self.reads.get_mut(&id) else { return 0 };
        read.filled += got;
        let complete = read.filled == read.lease.range().len();
        self.arriving = (got < left).then_some((id, left - got));
        if complete { self.finish(peer, id, Ok(()), sink) } else { 0 }
    }

    fn finish(
        &mut self,
        peer: Rank,
        id: u64,
        result: Result<(), FabricError>,
        sink: &mut dyn FnMut(Event<'_>),
    ) -> usize {
        let Some(PendingRead { lease, token, .. }) = self.reads.remove(&id) else { return 0 };
        sink(Event::ReadDone { peer, token, lease, result });
        1
    }

    fn accept(
        &mut self,
        peer: Rank,
        mut bytes: &[u8],
        regions: &Regions,
        outbox: &mut Outbox,
        events: &mut usize,
        sink: &mut dyn FnMut(Event<'_>),
    ) -> Result<(), String> {
        while !bytes.is_empty() {
            if let Some(place) = self.place() {
                let n = place.len().min(bytes.len());
                place[..n].copy_from_slice(&bytes[..n]);
                bytes = &bytes[n..];
                *events += self.advance(peer, n, sink);
                continue;
            }
            if self.partial.is_empty() {
                match frame::parse(bytes)? {
                    Parsed::Frame(frame, taken) => {
                        bytes = &bytes[taken..];
                        *events += self.handle(peer, frame, regions, outbox, sink)?;
                    }
                    Parsed::Needs(_) => {
                        self.partial.extend_from_slice(bytes);
                        return Ok(());
                    }
                }
                continue;
            }
            let mut partial = std::mem::take(&mut self.partial);
            match frame::parse(&partial)? {
                Parsed::Needs(needed) => {
                    let n = (needed - partial.len()).min(bytes.len());
                    partial.extend_from_slice(&bytes[..n]);
                    bytes = &bytes[n..];
                }
                Parsed::Frame(..) => return Err("a whole frame left over".into()),
            }
            if let Parsed::Frame(frame, _) = frame::parse(&partial)? {
                *events += self.handle(peer, frame, regions, outbox, sink)?;
                partial.clear();
            }
            self.partial = partial;
        }
        Ok(())
    }

    fn handle(
        &mut self,
        peer: Rank,
        frame: Frame<'_>,
        regions: &Regions,
        outbox: &mut Outbox,
        sink: &mut dyn FnMut(Event<'_>),
    ) -> Result<usize, String> {
        match frame {
            Frame::Message(bytes) => {
                sink(Event::Message { peer, bytes });
                Ok(1)
            }
            Frame::Read { id, span } => {
                if outbox.serving_count() >= limits::STREAM_READS_MAX {
                    return Err(format!("more than {} reads at a time", limits::STREAM_READS_MAX));
                }
                let source = regions
                    .get(&span.key)
                    .filter(|region| region.span(span.offset, span.len).is_ok())
                    .map(|region| Source { region: region.clone(), offset: span.offset, left: span.len });
                if !outbox.broken {
                    outbox.serving.push_back(Serving { id, source });
                }
                Ok(0)
            }
            Frame::Chunk { id, bytes } => {
                let read =
                    self.reads.get(&id).ok_or_else(|| format!("a chunk of read {id}, which is not under way"))?;
                let missing = read.lease.range().len() - read.filled;
                if bytes > missing || (bytes == 0) != (missing == 0) {
                    return Err(format!("a chunk of {bytes} bytes where {missing} are missing"));
                }
                if bytes == 0 {
                    return Ok(self.finish(peer, id, Ok(()), sink));
                }
                self.arriving = Some((id, bytes));
                Ok(0)
            }
            Frame::Refused { id } => {
                let read = self.reads.get(&id).ok_or_else(|| format!("a refusal of read {id}, not under way"))?;
                let error = FabricError::NoSuchMemory(peer, read.span);
                Ok(self.finish(peer, id, Err(error), sink))
            }
        }
    }
}

/// Non-blocking, without delay, and with an end to the kernel's patience.
pub(super) fn prepare(socket: &TcpStream) -> std::io::Result<()> {
    let silence = limits::PEER_SILENCE_MAX;
    socket.set_nonblocking(true)?;
    socket.set_nodelay(true)?;
    sockopt::set_socket_keepalive(socket, true)?;
    sockopt::set_tcp_keepidle(socket, silence / 2)?;
    sockopt::set_tcp_keepintvl(socket, silence / 10)?;
    sockopt::set_tcp_keepcnt(socket, 5)?;
    sockopt::set_tcp_user_timeout(socket, silence.as_millis() as u32)?;
    Ok(())
}

fn errno(error: std::io::Error) -> Errno {
    match error.kind() {
        ErrorKind::WouldBlock => Errno::AGAIN,
        _ => Errno::from_io_error(&error).unwrap_or(Errno::IO),
    }
}
