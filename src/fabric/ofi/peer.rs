//! One peer: its messages in order, its reads, and how its connection ends.
//!
//! The TCP stream says nothing while both live. A rank that closes sends its
//! goodbye there, with the number of messages that it has sent; the end of the
//! stream without one is the end of the peer's process.

use std::io::Write;
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};

use super::leftovers::Leftover;
use super::order::{Incoming, Misplaced, Outgoing};
use super::reads::Reads;
use super::setup::{Hello, Readable};
use super::waited::Waited;
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
    pub outgoing: Outgoing,
    /// How long it may take nothing and be silent.
    silence: Duration,
    readables: Vec<Readable>,
    incoming: Incoming,
    goodbye: Vec<u8>,
    quiet_turns: u32,
    /// What was the oldest under way when last looked, and how long it is.
    oldest: Option<([u64; 2], Waited)>,
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

impl Peer {
    pub fn new(
        connection: u32,
        stream: TcpStream,
        address: OfiAddress,
        cookie_in: u64,
        silence: Duration,
        hello: Hello,
    ) -> Peer {
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
            outgoing: Outgoing::default(),
            silence,
            readables: hello.regions,
            incoming: Incoming::default(),
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

    /// Takes message `number`; hands over what is in order by now.
    pub fn accept(&mut self, number: u64, body: &[u8], deliver: &mut dyn FnMut(&[u8])) -> Result<(), Misplaced> {
        self.quiet_turns = 0;
        self.incoming.take(number, body, deliver)
    }

    /// Whether a message is missing for so long that it will not come.
    pub fn misses_one(&mut self) -> bool {
        self.incoming.misses_one(self.silence)
    }

    /// Whether messages or parts of reads are under way.
    pub fn owes(&self) -> bool {
        self.outgoing.oldest().is_some() || self.reads.are_under_way()
    }

    /// Whether the peer takes no message and lets no read go on, for so long
    /// that its process must have stopped. To be asked from time to time.
    pub fn is_stuck(&mut self) -> bool {
        let oldest = self.owes().then(|| [self.outgoing.oldest().unwrap_or(0), self.reads.ended()]);
        let now = Instant::now();
        match (oldest, &mut self.oldest) {
            (Some(oldest), Some((before, waited))) if oldest == *before => waited.look(now, self.silence),
            (oldest, before) => {
                *before = oldest.map(|oldest| (oldest, Waited::since(now)));
                false
            }
        }
    }

    /// Whether messages wait for one that is missing.
    pub fn has_gap(&self) -> bool {
        self.incoming.has_gap()
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
        FabricError::Silent { peer: self.rank, seconds: self.silence.as_secs() }
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

    /// The first certain end is the one: a call that goes on failing must not
    /// put off the deadline.
    fn end_with(&mut self, cause: FabricError, promised: Option<u64>, is_certain: bool) {
        if self.ending.as_ref().is_some_and(|ending| ending.is_certain) {
            return;
        }
        let deadline = Instant::now() + limits::OFI_DRAIN_DEADLINE;
        self.quiet_turns = 0;
        self.ending = Some(Ending { cause, promised, is_certain, deadline });
    }

    /// Whether the end may be reported: all that the peer had sent has come,
    /// or it was waited for long enough. Counts a turn.
    pub fn is_over(&mut self) -> bool {
        let Some(ending) = &self.ending else { return false };
        self.quiet_turns += 1;
        let has_all = match ending.promised {
            Some(number) => self.incoming.count() >= number,
            None => self.quiet_turns > QUIET_TURNS,
        };
        ending.is_certain && has_all && self.reads.is_empty() || Instant::now() > ending.deadline
    }

    /// Whether a peer that was closed here can be forgotten.
    pub fn is_gone(&self) -> bool {
        let has_ended = self.ending.as_ref().is_none_or(|ending| Instant::now() > ending.deadline);
        self.reads.is_empty() && self.outgoing.oldest().is_none() || has_ended
    }

    /// After a goodbye: whether the peer has had all that was sent, or wants no
    /// more of it. It ends the stream then.
    pub fn has_heard(&self) -> bool {
        let mut bytes = [0; GOODBYE_BYTES];
        !matches!(recv(&self.stream, &mut bytes, RecvFlags::DONTWAIT), Err(Errno::AGAIN | Errno::INTR))
    }

    /// Says goodbye on the stream and ends it.
    pub fn say_goodbye(&mut self) {
        let mut goodbye = [GOODBYE; GOODBYE_BYTES];
        goodbye[1..].copy_from_slice(&self.outgoing.count().to_le_bytes());
        // The stream is empty and takes nine bytes, or it is broken; then the
        // peer learns of the end alone.
        let _ = self.stream.write(&goodbye);
        let _ = self.stream.shutdown(Shutdown::Write);
        // Unread bytes would turn the close into a reset.
        let mut bytes = [0; 64];
        let _ = recv(&self.stream, &mut bytes, RecvFlags::DONTWAIT);
    }
}
