//! One TCP connection of a fabric. Used by both TCP backends, which differ only
//! in how they learn that there are bytes.
//!
//! Sending is always a plain non-blocking `sendmsg`, so any thread may do it.
//! The first message after a poll goes to the socket at once; what follows is
//! collected, so that a burst costs one call.

use std::io::IoSlice;
use std::net::TcpStream;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendAncillaryBuffer, recv, sendmsg, sockopt};

use super::inbox::Inbox;
use super::outbox::{Outbox, SEND_FLAGS};
use super::streams::Tuning;
use super::{Event, FabricError};
use crate::base::{Rank, limits};
use crate::mem::Lease;

/// Parts of a message that are handed to the kernel without joining them.
const PARTS_MAX: usize = 15;

/// Send or receive calls made for one connection before the next one's turn.
const TURN: usize = 8;

/// The same where only chunks go: messages elsewhere wait for it.
const BULK_TURN: usize = 2;

/// Polls for which a socket that had bytes is tried without being told to.
pub(super) const HEAT: u32 = 256;

/// Direct receives in a row that make a peer one that talks all the time.
const TALKATIVE: u32 = 64;

/// Received at a time while bytes that have their own place are expected.
const HEADERS: usize = 4096;

/// Collected bytes that are sent without waiting for the next poll.
const COLLECT_BYTES: usize = 64 * 1024;

/// See the module.
pub(super) struct Stream {
    peer: Rank,
    lane: u8,
    pub(super) socket: TcpStream,
    pub(super) outbox: Outbox,
    pub(super) inbox: Inbox,
    /// How long the kernel bears with a silent peer.
    silence: Duration,
    /// The kernel had no room when last asked.
    pub(super) blocked: bool,
    /// The turn in which a message went out directly.
    direct_turn: u32,
    /// In the list of those with output, and of those to receive from.
    pub(super) is_pending: bool,
    pub(super) is_active: bool,
    /// Counted among the lanes on which reads are under way.
    pub(super) is_reading: bool,
    /// Bytes of the queue that were drawn from what all peers share.
    pub(super) shared_bytes: usize,
    /// More to receive, as far as is known.
    pub(super) readable: bool,
    /// The peer sends no more: reading goes on to the end without edges.
    pub(super) ending: bool,
    /// Polls for which the socket is still tried without being told to.
    pub(super) heat: u32,
    /// Receives in a row that were direct.
    direct: u32,
    /// Set once the connection has ended.
    pub(super) ended: Option<FabricError>,
}

impl Stream {
    /// Lane 0 carries messages; the others carry chunks of reads only.
    pub(super) fn new(peer: Rank, lane: u8, socket: TcpStream, tuning: &Tuning) -> Result<Stream, FabricError> {
        let silence = tuning.silence;
        prepare(&socket, silence).map_err(|error| FabricError::os(peer, "setsockopt", error))?;
        Ok(Stream {
            peer,
            lane,
            outbox: if lane > 0 { Outbox::for_bulk(&socket, tuning.zero_copy) } else { Outbox::default() },
            socket,
            inbox: Inbox::new(peer, lane),
            silence,
            blocked: false,
            direct_turn: 0,
            is_pending: false,
            is_active: false,
            is_reading: false,
            shared_bytes: 0,
            readable: true,
            ending: false,
            heat: 0,
            direct: 0,
            ended: None,
        })
    }

    /// Sends or queues one message. `turn` counts the polls from 1, and
    /// `shared` is what may still wait in all beyond each peer's reserve.
    pub(super) fn send(
        &mut self,
        parts: &[&[u8]],
        bytes: usize,
        turn: u32,
        shared: usize,
    ) -> Result<(), FabricError> {
        if self.ended.is_some() || self.outbox.broken {
            return Err(FabricError::NotConnected(self.peer));
        }
        let header = super::frame::message_header(bytes);
        let would_wait = self.outbox.waiting() + bytes + header.len();
        let allowed = limits::STREAM_QUEUE_BYTES.min(limits::STREAM_QUEUE_RESERVE + self.shared_bytes + shared);
        if would_wait > allowed {
            return Err(FabricError::Full(self.peer));
        }
        let mut sent = 0;
        if !self.has_output() && self.direct_turn != turn && parts.len() <= PARTS_MAX {
            self.direct_turn = turn;
            sent = self.send_now(&header, parts);
        }
        if sent < header.len() + bytes && !self.outbox.broken {
            self.outbox.push(std::iter::once(&header[..]).chain(parts.iter().copied()), sent);
            if self.outbox.waiting() >= COLLECT_BYTES && !self.blocked {
                self.flush();
            }
        }
        Ok(())
    }

    pub(super) fn has_output(&self) -> bool {
        self.outbox.has_output()
    }

    /// Sends what is queued until the kernel has no room or it is another
    /// connection's turn.
    pub(super) fn flush(&mut self) {
        self.blocked = false;
        for _ in 0..self.turn() {
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

    /// Receives from the socket until it is empty or it is another
    /// connection's turn. Returns how many events were reported.
    pub(super) fn receive(&mut self, scratch: &mut [u8], sink: &mut dyn FnMut(Event<'_>)) -> usize {
        let mut events = 0;
        for _ in 0..self.turn() {
            if self.ended.is_some() {
                break;
            }
            // Amid reads, the next header is all that is wanted: what follows
            // it has its own place.
            let limit = if self.inbox.is_reading() { HEADERS.min(scratch.len()) } else { scratch.len() };
            let direct = self.inbox.place();
            let is_direct = direct.is_some();
            let room = direct.unwrap_or(&mut scratch[..limit]);
            let wanted = room.len().min(limits::BULK_CALL_BYTES);
            let (got, _) = match recv(&self.socket, &mut room[..wanted], RecvFlags::DONTWAIT) {
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
            self.direct = self.direct.saturating_add(1);
            if got == 0 {
                self.end(FabricError::Closed(self.peer));
            } else if is_direct {
                events += self.inbox.advance(got, sink);
            } else {
                events += self.accept(&scratch[..got], sink);
            }
            // A short read has emptied the socket. If the peer has closed as
            // well there is no further edge, so the end must be read.
            if got < wanted && !self.ending {
                self.readable = false;
                break;
            }
        }
        events
    }

    /// Takes bytes that were received. Returns how many events were reported.
    pub(super) fn accept(&mut self, bytes: &[u8], sink: &mut dyn FnMut(Event<'_>)) -> usize {
        if self.ended.is_some() {
            return 0;
        }
        let mut events = 0;
        if let Err(what) = self.inbox.accept(bytes, &mut events, sink) {
            self.end(FabricError::BadFrame(self.peer, what));
        }
        events
    }

    /// Takes note that a ring has received, not this side.
    pub(super) fn was_fed(&mut self) {
        self.heat = HEAT;
        self.direct = 0;
    }

    /// Whether bytes have come without a pause, by direct receives.
    pub(super) fn is_talkative(&self) -> bool {
        self.heat > 0 && self.direct >= TALKATIVE
    }

    /// Notes how the connection ended; the first cause stands.
    pub(super) fn end(&mut self, cause: FabricError) {
        self.ended.get_or_insert(cause);
    }

    /// Notes a failed call.
    pub(super) fn end_with(&mut self, error: Errno) {
        let peer = self.peer;
        let cause = match error {
            Errno::CONNRESET | Errno::PIPE => FabricError::Closed(peer),
            // The kernel has given up; what a router said on the way is no
            // better news.
            Errno::TIMEDOUT | Errno::HOSTUNREACH | Errno::NETUNREACH => {
                FabricError::Silent { peer, seconds: self.silence.as_secs() }
            }
            other => FabricError::os(peer, "recv", other),
        };
        self.end(cause);
    }

    /// Ends all reads under way as failed.
    pub(super) fn fail_reads(&mut self, cause: &FabricError, mut report: impl FnMut(u64, Lease, FabricError)) {
        self.inbox.take_reads(|token, lease| report(token, lease, cause.clone()));
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

    fn turn(&self) -> usize {
        if self.lane == 0 { TURN } else { BULK_TURN }
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
        self.outbox.break_off();
        self.readable = true;
        self.ending = true;
    }
}

/// Non-blocking, without delay, and with an end to the kernel's patience: with
/// a peer that acknowledges nothing, with one that answers no probe of an idle
/// connection, and with one whose process takes nothing.
pub(super) fn prepare(socket: &TcpStream, silence: Duration) -> std::io::Result<()> {
    let second = Duration::from_secs(1);
    socket.set_nonblocking(true)?;
    socket.set_nodelay(true)?;
    sockopt::set_socket_keepalive(socket, true)?;
    sockopt::set_tcp_keepidle(socket, (silence / 2).max(second))?;
    sockopt::set_tcp_keepintvl(socket, (silence / 10).max(second))?;
    sockopt::set_tcp_keepcnt(socket, 5)?;
    sockopt::set_tcp_user_timeout(socket, silence.as_millis() as u32)?;
    Ok(())
}
