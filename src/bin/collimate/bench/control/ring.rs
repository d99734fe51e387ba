//! A message that goes round three processes through the shared-memory fabric by
//! itself: what a write of a chain of three cannot be faster than. Ranks 1 and 2
//! pass on what they get.

use std::fmt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::{Duration, Instant};

use collimate::base::Rank;
use collimate::fabric::{Event, Fabric, Link, ShmFabric};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::super::measure::{Failed, PATIENCE, Round, sample};
use super::peer::Folder;

const RANKS: u32 = 3;

/// Bytes of the message: those of a write with a short value.
const BYTES: usize = 128;

/// Polls between two looks at the clock.
const POLLS_PER_LOOK: u32 = 16;

/// How long the ranks look for the message before they sleep.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Waiting {
    /// The first, as one whose worker waits for the end of a write.
    first: Duration,
    /// The others, as ranks without a worker awake.
    others: Duration,
}

/// As the ranks of a job that has more threads than the host has cores: a worker
/// that waits for one operation looks for longer than it should take, and where
/// all workers are asleep the network is slept on at once.
pub const LIKE_RANKS: Waiting = Waiting { first: Duration::from_micros(100), others: Duration::ZERO };
const BRIEFLY: Waiting = Waiting { first: Duration::from_micros(5), others: Duration::ZERO };
const AT_ONCE: Waiting = Waiting { first: Duration::ZERO, others: Duration::ZERO };

/// The ways to wait that are measured.
pub const WAYS: [Waiting; 3] = [LIKE_RANKS, BRIEFLY, AT_ONCE];

impl fmt::Display for Waiting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "who waits sleeps after {} us, the others after {}", self.first.as_micros(), self.others.as_micros())
    }
}

/// Takes rounds of the message; each is three hops.
pub fn rounds(count: u64, waiting: Waiting) -> Result<Round, Failed> {
    let folder = Folder::new("ring")?;
    let path = folder.path().to_string_lossy().into_owned();
    let micros = waiting.others.as_micros() as u64;
    let options = |rank| collimate::Options::new().rank(rank);
    let others: Vec<_> =
        (1..RANKS).map(|rank| pass_on::spawn_with(options(rank), rank, path.clone(), micros)).collect();
    let mut place = Place::take(Rank(0), folder.path(), waiting.first)?;
    let round = sample(count, 1, || {
        place.fabric.send(Rank(1), &[&[7; BYTES]])?;
        match place.next()? {
            Found::Message(_) => Ok(()),
            Found::End => Err(Failed::from("a rank of the ring has gone")),
        }
    });
    drop(place);
    for other in others {
        other.get()?;
    }
    round
}

/// Returns how many messages it has passed on.
#[collimate::task]
fn pass_on(rank: u32, folder: String, micros: u64) -> Result<u64, String> {
    let pass_on = || -> Result<u64, Failed> {
        let mut place = Place::take(Rank(rank), Path::new(&folder), Duration::from_micros(micros))?;
        let mut passed = 0;
        while let Found::Message(message) = place.next()? {
            place.fabric.send(Rank((rank + 1) % RANKS), &[&message])?;
            passed += 1;
        }
        Ok(passed)
    };
    pass_on().map_err(|e| e.to_string())
}

/// A rank's place in the ring.
struct Place {
    fabric: ShmFabric,
    /// How long it looks for a message before it sleeps.
    patience: Duration,
}

enum Found {
    Message([u8; BYTES]),
    /// Another rank has left.
    End,
}

impl Place {
    fn take(rank: Rank, folder: &Path, patience: Duration) -> Result<Place, Failed> {
        let mut fabric = ShmFabric::new(rank, Default::default())?;
        // All in the order of the pairs, since both sides of one wait for each
        // other. The lower rank of a pair listens.
        for other in (0..RANKS).map(Rank).filter(|other| *other != rank) {
            let socket = folder.join(format!("{}-{}", rank.0.min(other.0), rank.0.max(other.0)));
            let stream = if rank < other { accept(&socket)? } else { dial(&socket)? };
            fabric.connect(other, Link::Unix(stream))?;
        }
        Ok(Place { fabric, patience })
    }

    /// Waits for the next message.
    fn next(&mut self) -> Result<Found, Failed> {
        let begun = Instant::now();
        loop {
            for _ in 0..POLLS_PER_LOOK {
                if let Some(found) = self.look() {
                    return Ok(found);
                }
            }
            let waited = begun.elapsed();
            if waited > PATIENCE {
                return Err(format!("no message for {} s", PATIENCE.as_secs()).into());
            }
            if waited >= self.patience && self.fabric.arm() {
                let deadline = Timespec { tv_sec: PATIENCE.as_secs() as i64, tv_nsec: 0 };
                poll(&mut [PollFd::from_borrowed_fd(self.fabric.wait_fd(), PollFlags::IN)], Some(&deadline))?;
            }
        }
    }

    fn look(&mut self) -> Option<Found> {
        let mut found = None;
        self.fabric.poll(&mut |event| match event {
            Event::Message { bytes, .. } => found = bytes.try_into().ok().map(Found::Message).or(found.take()),
            Event::Lost { .. } => found = found.take().or(Some(Found::End)),
            Event::ReadDone { .. } => {}
        });
        found
    }
}

fn accept(socket: &Path) -> Result<UnixStream, Failed> {
    let listener = UnixListener::bind(socket)?;
    listener.set_nonblocking(true)?;
    patiently(socket, || listener.accept().map(|(stream, _)| stream).ok())
}

fn dial(socket: &Path) -> Result<UnixStream, Failed> {
    patiently(socket, || UnixStream::connect(socket).ok())
}

fn patiently(socket: &Path, mut attempt: impl FnMut() -> Option<UnixStream>) -> Result<UnixStream, Failed> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match attempt() {
            Some(stream) => return Ok(stream),
            None if Instant::now() > deadline => {
                let (seconds, socket) = (PATIENCE.as_secs(), socket.display());
                return Err(format!("nobody came to {socket} within {seconds} s").into());
            }
            None => std::thread::sleep(Duration::from_millis(1)),
        }
    }
}
