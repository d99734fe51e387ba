//! What is to be sent on one connection: messages as bytes, and chunks of the
//! reads that are served, which take turns, each frame whole.

use std::collections::VecDeque;
use std::io::{ErrorKind, IoSlice};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::Instant;

use rustix::io::Errno;
use rustix::net::{SendAncillaryBuffer, SendFlags, sendmsg};

use super::frame::{self, CHUNK_HEADER};
use super::zerocopy::{Policy, ZeroCopy};
use crate::base::limits;
use crate::mem::Region;
use crate::sys::{allow_uncopied, send_from_region, send_uncopied, take_send_notices};

pub(super) const SEND_FLAGS: SendFlags = SendFlags::DONTWAIT.union(SendFlags::NOSIGNAL);

/// Room that an empty queue keeps for the next burst.
const KEPT_BYTES: usize = 256 * 1024;

/// See the module. Positions count bytes since the start.
#[derive(Default)]
pub(super) struct Outbox {
    bytes: Vec<u8>,
    /// Bytes of `bytes` that were sent.
    sent: usize,
    /// A chunk may go out when `sent` reaches this: the end of a frame.
    boundary: usize,
    chunk: Option<OutgoingChunk>,
    /// Reads to serve, the next one first.
    serving: VecDeque<Serving>,
    /// No messages come this way, so that a read is served to its end, and
    /// whether its bytes are copied on the way is a matter of trial.
    bulk: Option<ZeroCopy>,
    /// Nothing can be sent any more.
    pub(super) broken: bool,
}

/// A read that a peer has asked for.
pub(super) struct Serving {
    pub(super) id: u64,
    /// `None` is refused.
    pub(super) source: Option<Source>,
}

/// The bytes that it is still to get.
pub(super) struct Source {
    pub(super) region: Arc<Region>,
    pub(super) offset: u64,
    pub(super) left: u64,
}

struct OutgoingChunk {
    header: [u8; CHUNK_HEADER],
    header_sent: usize,
    id: u64,
    /// Bytes of this chunk that are to be sent.
    left: usize,
    source: Source,
}

impl Outbox {
    /// For a connection on which nothing but chunks is sent.
    pub(super) fn for_bulk(socket: &TcpStream, policy: Policy) -> Outbox {
        let policy = if allow_uncopied(socket).is_ok() { policy } else { Policy::Never };
        Outbox { bulk: Some(ZeroCopy::new(policy)), ..Outbox::default() }
    }

    /// Bytes that wait, chunks of reads aside.
    pub(super) fn waiting(&self) -> usize {
        self.bytes.len() - self.sent
    }

    pub(super) fn has_output(&self) -> bool {
        self.waiting() > 0 || self.chunk.is_some() || !self.serving.is_empty()
    }

    /// Appends a frame, of which `sent` bytes have gone out already.
    pub(super) fn push<'a>(&mut self, parts: impl Iterator<Item = &'a [u8]>, sent: usize) {
        let mut skip = sent;
        for part in parts {
            let rest = &part[skip.min(part.len())..];
            skip -= part.len() - rest.len();
            self.bytes.extend_from_slice(rest);
        }
        if sent > 0 {
            self.boundary = self.bytes.len();
        }
    }

    /// Takes on a read, unless there are too many.
    pub(super) fn serve(&mut self, serving: Serving) -> Result<(), String> {
        if self.serving.len() + usize::from(self.chunk.is_some()) >= limits::STREAM_READS_MAX {
            return Err(format!("more than {} reads at a time", limits::STREAM_READS_MAX));
        }
        if !self.broken {
            self.serving.push_back(serving);
        }
        Ok(())
    }

    /// Gives everything up.
    pub(super) fn break_off(&mut self) {
        *self = Outbox { broken: true, ..Outbox::default() };
    }

    /// One call to the kernel. There is something to send.
    pub(super) fn send_some(&mut self, socket: &TcpStream) -> Result<(), Errno> {
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
            self.bytes.shrink_to(KEPT_BYTES);
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
                let most = if self.bulk.is_some() { limits::LANE_CHUNK_BYTES } else { limits::READ_CHUNK_BYTES };
                let left = source.left.min(most as u64) as usize;
                let header = frame::chunk_header(id, left);
                self.chunk = Some(OutgoingChunk { header, header_sent: 0, id, left, source });
            }
        }
        true
    }

    fn send_chunk(&mut self, socket: &TcpStream) -> Result<(), Errno> {
        let Some(chunk) = &mut self.chunk else { return Ok(()) };
        let sent = match &mut self.bulk {
            Some(zero_copy) => chunk.send_bulk(socket, zero_copy)?,
            None => chunk.send(socket)?,
        };
        let of_header = sent.min(CHUNK_HEADER - chunk.header_sent);
        let of_body = sent - of_header;
        chunk.header_sent += of_header;
        chunk.left -= of_body;
        chunk.source.offset += of_body as u64;
        chunk.source.left -= of_body as u64;
        if chunk.left == 0
            && chunk.header_sent == CHUNK_HEADER
            && let Some(OutgoingChunk { id, source, .. }) = self.chunk.take()
            && source.left > 0
        {
            let rest = Serving { id, source: Some(source) };
            if self.bulk.is_some() { self.serving.push_front(rest) } else { self.serving.push_back(rest) }
        }
        Ok(())
    }

    /// Takes what the kernel says about sends without a copy, and whether they
    /// go on.
    pub(super) fn take_notices(&mut self, socket: &TcpStream) {
        if let Some(zero_copy) = &mut self.bulk
            && zero_copy.is_owed_notices()
        {
            zero_copy.noticed(take_send_notices(socket));
        }
    }

    #[cfg(test)]
    pub(super) fn zero_copy(&self) -> Option<&ZeroCopy> {
        self.bulk.as_ref()
    }
}

impl OutgoingChunk {
    fn header(&self) -> &[u8] {
        &self.header[self.header_sent..]
    }

    /// Bytes for the next call.
    fn bytes(&self) -> usize {
        self.left.min(limits::BULK_CALL_BYTES)
    }

    fn send(&self, socket: &TcpStream) -> Result<usize, Errno> {
        let source = &self.source;
        send_from_region(socket, self.header(), &source.region, source.offset, self.bytes()).map_err(errno)
    }

    fn send_bulk(&self, socket: &TcpStream, zero_copy: &mut ZeroCopy) -> Result<usize, Errno> {
        if zero_copy.is_owed_notices() {
            zero_copy.noticed(take_send_notices(socket));
        }
        let start = zero_copy.is_trying().then(Instant::now);
        let mut uncopied = zero_copy.wants(self.bytes());
        if uncopied && !self.header().is_empty() {
            // It lies outside the region, and does not stay.
            let parts = [IoSlice::new(self.header())];
            return sendmsg(socket, &parts, &mut SendAncillaryBuffer::default(), SEND_FLAGS.union(SendFlags::MORE));
        }
        let mut result = Err(Errno::NOBUFS);
        if uncopied {
            let source = &self.source;
            result = send_uncopied(socket, &source.region, source.offset, self.bytes()).map_err(errno);
            // Too many pages are pinned, or notices kept, just now.
            uncopied = result != Err(Errno::NOBUFS);
        }
        if !uncopied {
            result = self.send(socket);
        }
        let sent = result?;
        zero_copy.sent(uncopied, sent.saturating_sub(self.header().len()), start.map(|start| start.elapsed()));
        Ok(sent)
    }
}

fn errno(error: std::io::Error) -> Errno {
    match error.kind() {
        ErrorKind::WouldBlock => Errno::AGAIN,
        _ => Errno::from_io_error(&error).unwrap_or(Errno::IO),
    }
}
