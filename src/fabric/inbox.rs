//! What comes in on one connection: from a run of bytes, cut anywhere, to
//! messages, requests and reads that fill. Knows no socket, so that a fuzzer
//! can feed it.

use std::collections::{HashMap, VecDeque};

use super::frame::{self, Frame, Parsed};
use super::{Event, FabricError, RemoteSpan};
use crate::base::{Rank, limits};
use crate::mem::Lease;

/// See the module.
pub(super) struct Inbox {
    peer: Rank,
    lane: u8,
    /// The start of a frame that has not come wholly.
    partial: Vec<u8>,
    reads: HashMap<u64, PendingRead>,
    /// Reads that the peer has not been asked for yet.
    waiting: VecDeque<PendingRead>,
    reads_started: u64,
    /// The read whose chunk is arriving, and how much of it is to come.
    arriving: Option<(u64, usize)>,
    /// Bytes of all these reads that have not come yet.
    missing: u64,
    /// What the peer asks for, to be taken after each call.
    pub(super) requests: Vec<Request>,
}

/// A read that the peer asks for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Request {
    pub(super) id: u64,
    pub(super) span: RemoteSpan,
    /// The connection on which to serve it.
    pub(super) lane: u8,
}

struct PendingRead {
    lease: Lease,
    span: RemoteSpan,
    filled: usize,
    token: u64,
}

impl Inbox {
    pub(super) fn new(peer: Rank, lane: u8) -> Inbox {
        Inbox {
            peer,
            lane,
            partial: Vec::new(),
            reads: HashMap::new(),
            waiting: VecDeque::new(),
            reads_started: 0,
            arriving: None,
            missing: 0,
            requests: Vec::new(),
        }
    }

    /// Takes on a read whose length is the lease's.
    pub(super) fn add_read(&mut self, span: RemoteSpan, lease: Lease, token: u64) {
        self.missing += span.len;
        self.waiting.push_back(PendingRead { lease, span, filled: 0, token });
    }

    /// The request for the next read, if one waits and may be started.
    pub(super) fn next_request(&mut self) -> Option<impl AsRef<[u8]> + use<>> {
        if self.reads.len() >= limits::STREAM_READS_MAX {
            return None;
        }
        let read = self.waiting.pop_front()?;
        let id = self.reads_started;
        self.reads_started += 1;
        let request = frame::read_request(id, read.span, self.lane);
        self.reads.insert(id, read);
        Some(request)
    }

    /// Bytes that reads on this connection still lack.
    pub(super) fn missing(&self) -> u64 {
        self.missing
    }

    /// Whether any read is under way, empty ones included.
    pub(super) fn is_reading(&self) -> bool {
        !self.reads.is_empty()
    }

    /// Whether a read's bytes are arriving, so that it pays to receive them
    /// straight into their place.
    pub(super) fn is_filling(&self) -> bool {
        self.arriving.is_some()
    }

    /// Where the rest of an arriving chunk belongs.
    pub(super) fn place(&mut self) -> Option<&mut [u8]> {
        let (id, left) = self.arriving?;
        let read = self.reads.get_mut(&id)?;
        Some(&mut read.lease.bytes_mut()[read.filled..read.filled + left])
    }

    /// Notes that `got` bytes are in the place. Returns how many events were
    /// reported.
    pub(super) fn advance(&mut self, got: usize, sink: &mut dyn FnMut(Event<'_>)) -> usize {
        let Some((id, left)) = self.arriving else { return 0 };
        let Some(read) = self.reads.get_mut(&id) else { return 0 };
        read.filled += got;
        self.missing -= got as u64;
        let complete = read.filled == read.lease.range().len();
        self.arriving = (got < left).then_some((id, left - got));
        if complete { self.finish(id, Ok(()), sink) } else { 0 }
    }

    /// Takes the next bytes. Returns how many events were reported, or what is
    /// wrong with the bytes; then nothing more may be fed.
    pub(super) fn accept(
        &mut self,
        mut bytes: &[u8],
        events: &mut usize,
        sink: &mut dyn FnMut(Event<'_>),
    ) -> Result<(), String> {
        while !bytes.is_empty() {
            if let Some(place) = self.place() {
                let n = place.len().min(bytes.len());
                place[..n].copy_from_slice(&bytes[..n]);
                bytes = &bytes[n..];
                *events += self.advance(n, sink);
                continue;
            }
            if self.partial.is_empty() {
                match frame::parse(bytes)? {
                    Parsed::Frame(frame, taken) => {
                        bytes = &bytes[taken..];
                        *events += self.handle(frame, sink)?;
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
                *events += self.handle(frame, sink)?;
                partial.clear();
            }
            self.partial = partial;
        }
        Ok(())
    }

    /// Gives up all reads, in the order in which they were asked for.
    pub(super) fn take_reads(&mut self, mut report: impl FnMut(u64, Lease)) {
        self.arriving = None;
        self.missing = 0;
        let mut reads: Vec<_> = self.reads.drain().collect();
        reads.sort_by_key(|(id, _)| *id);
        for read in reads.into_iter().map(|(_, read)| read).chain(self.waiting.drain(..)) {
            report(read.token, read.lease);
        }
    }

    fn finish(&mut self, id: u64, result: Result<(), FabricError>, sink: &mut dyn FnMut(Event<'_>)) -> usize {
        let Some(PendingRead { lease, token, filled, .. }) = self.reads.remove(&id) else { return 0 };
        self.missing -= (lease.range().len() - filled) as u64;
        sink(Event::ReadDone { peer: self.peer, token, lease, result });
        1
    }

    fn handle(&mut self, frame: Frame<'_>, sink: &mut dyn FnMut(Event<'_>)) -> Result<usize, String> {
        match frame {
            Frame::Message(_) | Frame::Read { .. } if self.lane > 0 => {
                Err(format!("a message or a request on lane {}, which is for chunks", self.lane))
            }
            Frame::Message(bytes) => {
                sink(Event::Message { peer: self.peer, bytes });
                Ok(1)
            }
            Frame::Read { id, span, lane } => {
                self.requests.push(Request { id, span, lane });
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
                    return Ok(self.finish(id, Ok(()), sink));
                }
                self.arriving = Some((id, bytes));
                Ok(0)
            }
            Frame::Refused { id } => {
                let read = self.reads.get(&id).ok_or_else(|| format!("a refusal of read {id}, not under way"))?;
                if read.filled > 0 {
                    return Err(format!("a refusal of read {id} after {} of its bytes", read.filled));
                }
                let error = FabricError::NoSuchMemory(self.peer, read.span);
                Ok(self.finish(id, Err(error), sink))
            }
        }
    }
}
