//! One peer: its messages in order, its reads, and how its connection ends.
//!
//! The TCP stream says nothing while both live. A rank that closes sends its
//! goodbye there, with the number of messages that it has sent; the end of the
//! stream without one is the end of the peer's process.

use std::collections::{BTreeMap, VecDeque};
use std::io::Write;
use std::net::{Shutdown, TcpStream};
use std::time::Instant;

use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};

use super::leftovers::Leftover;
use super::reads::Reads;
use super::setup::{Hello, Readable};
use crate::base::{Rank, limits};
use crate::fabric::{FabricError, RemoteSpan};
use crate::sys::{OfiAddress, OfiKey};

/// The first byte of a goodbye; the number of messages follows.
const GOODBYE: u8 = b'G';
const GOODBYE_BYTES: usize = 9;

/// Turns without a message after which a peer that said no goodbye has sent
/// nothing more.
const QUIET_TURNS: u32 = 16;

pub(super) struct Peer {
    pub rank: Rank,
    /// Which of the connections of this fabric it is.
    pub connection: u32,
    pub stream: TcpStream,
    pub address: OfiAddress,
    /// What its frames must carry, and what ours must.
    pub cookie_in: u64,
    pub cookie_out: u64,
    pub has_greeted: bool,
    pub reads: Reads,
    pub ending: Option<Ending>,
    pub leftover: Option<Leftover>,
    readables: Vec<Readable>,
    sent: u64,
    sent_bytes: u64,
    /// Messages that have not left, and those after the first of them.
    leaving: VecDeque<Leaving>,
    received: u64,
    /// Messages that arrived before their turn.
    early: BTreeMap<u64, Vec<u8>>,
    early_bytes: u64,
    early_since: Option<Instant>,
    goodbye: Vec<u8>,
    quiet_turns: u32,
    /// What was the oldest under way when last looked, and since when it is.
    oldest: Option<([u64; 2], Instant)>,
}

struct Leaving {
    number: u64,
    bytes_before: u64,
    has_left: bool,
}

/// A connection that has ended, or seems to.
pub(super) struct Ending {
    pub cause: FabricError,
    /// The messages that the peer says to have sent.
    promised: Option<u64>,
    /// Whether it has ended: a failed call alone does not say so.
    is_certain: bool,
    deadline: Instant,
}

/// What is wrong with a message that cannot be taken.
#[derive(PartialEq, Eq, Debug)]
pub(super) enum Misplaced {
    /// Its number was there before.
    Again(u64),
    /// More are early than a sender may have under way.
    TooEarly(u64),
}

impl Peer {
    pub fn new(connection: u32, stream: TcpStream, address: OfiAddress, cookie_in: u64, hello: Hello) -> Peer {
        Peer {
            rank: hello.rank,
            connection,
            stream,
            address,
            cookie_in,
            cookie_out: hello.cookie,
            has_greeted: false,
            reads: Reads::default(),
            ending: None,
            leftover: Leftover::of(&hello.provider, &hello.address, hello.process),
            readables: hello.regions,
            sent: 0,
            sent_bytes: 0,
            leaving: VecDeque::new(),
            received: 0,
            early: BTreeMap::new(),
            early_bytes: 0,
            early_since: None,
            goodbye: Vec::new(),
            quiet_turns: 0,
            oldest: None,
        }
    }

    /// What operations for this peer carry.
    pub fn tag(&self) -> u64 {
        u64::from(self.connection) << 32 | u64::from(self.rank.0)
    }

    /// The key of the region that `span` lies in, if the peer has it.
    pub fn key_of(&self, span: RemoteSpan) -> Option<OfiKey> {
        let region = self.readables.iter().find(|region| region.name == span.key)?;
        let fits = span.offset.checked_add(span.len).is_some_and(|end| end <= region.len);
        fits.then_some(region.key)
    }

    /// The number of the next message, of `bytes` bytes, if it may be sent now.
    pub fn next_number(&self, bytes: usize) -> Option<u64> {
        let is_free = self.leaving.front().is_none_or(|first| {
            self.leaving.len() < limits::OFI_SENDS_PEER_MAX
                && self.sent - first.number < limits::OFI_WINDOW_MESSAGES
                && self.sent_bytes - first.bytes_before + bytes as u64 <= limits::OFI_WINDOW_BYTES
        });
        is_free.then_some(self.sent)
    }

    /// Notes that the message was sent, or is on its way.
    pub fn note_sent(&mut self, bytes: usize, is_under_way: bool) {
        if is_under_way {
            self.leaving.push_back(Leaving { number: self.sent, bytes_before: self.sent_bytes, has_left: false });
        }
        self.sent += 1;
        self.sent_bytes += bytes as u64;
    }

    /// Notes that message `number` has left.
    pub fn note_left(&mut self, number: u64) {
        if let Ok(place) = self.leaving.binary_search_by_key(&number, |message| message.number) {
            self.leaving[place].has_left = true;
        }
        while self.leaving.pop_front_if(|message| message.has_left).is_some() {}
    }

    /// Whether all messages have left this side.
    pub fn has_left(&self) -> bool {
        self.leaving.is_empty()
    }

    /// Takes message `number`; hands over what is in order by now.
    pub fn accept(&mut self, number: u64, body: &[u8], deliver: &mut dyn FnMut(&[u8])) -> Result<(), Misplaced> {
        self.quiet_turns = 0;
        if number != self.received {
            return self.keep(number, body);
        }
        deliver(body);
        self.received += 1;
        if self.early_since.is_none() {
            return Ok(());
        }
        while let Some(body) = self.early.remove(&self.received) {
            deliver(&body);
            self.early_bytes -= body.len() as u64;
            self.received += 1;
        }
        self.early_since = (!self.early.is_empty()).then(Instant::now);
        Ok(())
    }

    fn keep(&mut self, number: u64, body: &[u8]) -> Result<(), Misplaced> {
        if number < self.received || self.early.contains_key(&number) {
            return Err(Misplaced::Again(number));
        }
        let bytes = self.early_bytes + body.len() as u64;
        if number - self.received > limits::OFI_WINDOW_MESSAGES || bytes > limits::OFI_WINDOW_BYTES {
            return Err(Misplaced::TooEarly(number));
        }
        self.early_since.get_or_insert_with(Instant::now);
        self.early_bytes = bytes;
        self.early.insert(number, body.to_vec());
        Ok(())
    }

    /// Whether a message is missing for so long that it will not come.
    pub fn misses_one(&self) -> bool {
        self.early_since.is_some_and(|since| since.elapsed() > limits::PEER_SILENCE_MAX)
    }

    /// Whether messages or parts of reads are under way.
    pub fn owes(&self) -> bool {
        !self.leaving.is_empty() || self.reads.are_under_way()
    }

    /// Whether the peer takes no message and lets no read go on, for so long
    /// that its process must have stopped. To be asked from time to time.
    pub fn is_stuck(&mut self) -> bool {
        let oldest = self.owes().then(|| [self.leaving.front().map_or(0, |first| first.number), self.reads.ended()]);
        match (oldest, self.oldest) {
            (Some(now), Some((before, since))) if now == before => since.elapsed() > limits::PEER_SILENCE_MAX,
            (oldest, _) => {
                self.oldest = oldest.map(|oldest| (oldest, Instant::now()));
                false
            }
        }
    }

    /// Whether messages wait for one that is missing.
    pub fn has_gap(&self) -> bool {
        self.early_since.is_some()
    }

    /// Reads the stream, on which only an end can come.
    pub fn look(&mut self) {
        if self.ending.as_ref().is_some_and(|ending| ending.is_certain) {
            return;
        }
        let mut bytes = [0; GOODBYE_BYTES + 1];
        let cause = loop {
            match recv(&self.stream, &mut bytes, RecvFlags::DONTWAIT) {
                Ok((0, _)) => break FabricError::Closed(self.rank),
                Ok((got, _)) => {
                    self.goodbye.extend_from_slice(&bytes[..got]);
                    if self.goodbye[0] != GOODBYE || self.goodbye.len() > GOODBYE_BYTES {
                        let what = "bytes that are no goodbye".into();
                        return self.end(FabricError::BadFrame(self.rank, what));
                    }
                    if let Ok(number) = <[u8; 8]>::try_from(&self.goodbye[1..]) {
                        let promised = Some(u64::from_le_bytes(number));
                        return self.end_with(FabricError::Closed(self.rank), promised, true);
                    }
                }
                Err(Errno::AGAIN) => return,
                Err(Errno::INTR) => {}
                Err(Errno::CONNRESET | Errno::PIPE) => break FabricError::Closed(self.rank),
                Err(Errno::TIMEDOUT | Errno::HOSTUNREACH | Errno::NETUNREACH) => break self.silent(),
                Err(error) => break FabricError::os(self.rank, "recv", error),
            }
        };
        self.end_with(cause, None, true);
    }

    /// That nothing is heard of the peer.
    pub fn silent(&self) -> FabricError {
        FabricError::Silent { peer: self.rank, seconds: limits::PEER_SILENCE_MAX.as_secs() }
    }

    /// Ends the connection for a reason of our own; no message is waited for.
    pub fn end(&mut self, cause: FabricError) {
        self.end_with(cause, Some(0), true);
    }

    /// A call failed as it does when the peer has ended, of which its stream
    /// tells for sure.
    pub fn suspect(&mut self, cause: FabricError) {
        self.look();
        if self.ending.is_none() {
            self.end_with(cause, None, false);
        }
    }

    fn end_with(&mut self, cause: FabricError, promised: Option<u64>, is_certain: bool) {
        let deadline = Instant::now() + limits::OFI_DRAIN_DEADLINE;
        self.ending = Some(Ending { cause, promised, is_certain, deadline });
    }

    /// Whether the end may be reported: all that the peer had sent has come,
    /// or it was waited for long enough. Counts a turn.
    pub fn is_over(&mut self) -> bool {
        self.quiet_turns += 1;
        let Some(ending) = &self.ending else { return false };
        let has_all = match ending.promised {
            Some(number) => self.received >= number,
            None => self.quiet_turns > QUIET_TURNS,
        };
        ending.is_certain && has_all && self.reads.is_empty() || Instant::now() > ending.deadline
    }

    /// Whether a peer that was closed here can be forgotten.
    pub fn is_gone(&self) -> bool {
        let has_ended = self.ending.as_ref().is_none_or(|ending| Instant::now() > ending.deadline);
        self.reads.is_empty() && self.has_left() || has_ended
    }

    /// Says goodbye on the stream and ends it.
    pub fn say_goodbye(&mut self) {
        let mut goodbye = [GOODBYE; GOODBYE_BYTES];
        goodbye[1..].copy_from_slice(&self.sent.to_le_bytes());
        // The stream is empty and takes nine bytes, or it is broken; then the
        // peer learns of the end alone.
        let _ = self.stream.write(&goodbye);
        let _ = self.stream.shutdown(Shutdown::Write);
        // Unread bytes would turn the close into a reset.
        let mut bytes = [0; 64];
        let _ = recv(&self.stream, &mut bytes, RecvFlags::DONTWAIT);
    }
}
