//! Calling a peer: connect, then the caller's side of the handshake, all
//! within `ADMISSION_DEADLINE`.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};

use super::acceptor::Identity;
use super::admission::{Caller, CallerStep, HELLO_BYTES, NONCE_BYTES};
use super::stream::Stream;
use super::{BootError, Card, Launcher, Via};
use crate::base::limits::{ADMISSION_DEADLINE, CALLS_MAX};

/// Calls `peer`, for the connection with number `lane`, until it lets this rank
/// in or clearly will not.
pub(super) fn call(
    identity: &Identity,
    peer: &Card,
    lane: u8,
    via: Via,
    launcher: &Launcher,
) -> Result<Stream, BootError> {
    let unreachable = |cause: String| BootError::Unreachable {
        me: identity.me,
        peer: peer.rank,
        address: match via {
            Via::Unix => format!("the abstract socket {}", peer.unix),
            Via::Tcp => peer.tcp.to_string(),
        },
        cause,
    };
    let mut attempt = 1;
    loop {
        match call_once(identity, peer, lane, via) {
            Ok(stream) => return Ok(stream),
            Err(CallError::Refused(text)) => return Err(unreachable(text)),
            Err(CallError::Io(e)) if attempt == CALLS_MAX || e.kind() == io::ErrorKind::ConnectionRefused => {
                return Err(unreachable(match e.kind() {
                    io::ErrorKind::ConnectionReset => e.to_string(),
                    _ => format!("{e}; has its process ended, or does a firewall stand between?"),
                }));
            }
            Err(CallError::Io(_)) => {}
        }
        if let Some(why) = launcher.lost() {
            return Err(BootError::Launcher(why));
        }
        attempt += 1;
    }
}

/// How long to wait when the peer's queue of callers is full.
const QUEUE_FULL: Duration = Duration::from_millis(2);

enum CallError {
    /// Another call may go better.
    Io(io::Error),
    /// It would not.
    Refused(String),
}

impl From<io::Error> for CallError {
    fn from(e: io::Error) -> Self {
        CallError::Io(e)
    }
}

fn call_once(identity: &Identity, peer: &Card, lane: u8, via: Via) -> Result<Stream, CallError> {
    let deadline = Instant::now() + ADMISSION_DEADLINE;
    let mut stream = match via {
        Via::Tcp => Stream::Tcp(TcpStream::connect_timeout(&peer.tcp, ADMISSION_DEADLINE)?),
        Via::Unix => connect_unix(&peer.unix, deadline)?,
    };
    let mut nonce = [0; NONCE_BYTES];
    getrandom::fill(&mut nonce).map_err(|e| CallError::Refused(format!("no random numbers: {e}")))?;
    let Identity { key, job, me, .. } = identity;
    let mut caller = Caller::new(key.clone(), *job, *me, peer.rank, u32::from(lane), nonce);
    stream.set_timeout(Some(ADMISSION_DEADLINE))?;
    stream.write_all(caller.hello())?;
    let mut buffer = [0; HELLO_BYTES];
    let mut closed = "it closed the connection; is it overrun by strangers?";
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::Error::from(io::ErrorKind::TimedOut).into());
        }
        stream.set_timeout(Some(left))?;
        let step = match stream.read(&mut buffer[..caller.wanted()]) {
            Ok(0) => return Err(io::Error::new(io::ErrorKind::ConnectionReset, closed).into()),
            Ok(n) => caller.feed(&buffer[..n]),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(e.into()),
        };
        match step {
            Ok(CallerStep::More) => {}
            Ok(CallerStep::Send(proof)) => {
                stream.write_all(&proof)?;
                closed = "it refused this rank; are both of one job, and is this rank connected already?";
            }
            Ok(CallerStep::Admitted) => {
                stream.hand_over()?;
                return Ok(stream);
            }
            Err(_) => return Err(CallError::Refused("what listens there does not have this job's key".into())),
        }
    }
}

/// Connects without waiting in `connect`, which has no deadline of its own.
fn connect_unix(name: &str, deadline: Instant) -> io::Result<Stream> {
    let address = SocketAddrUnix::new_abstract_name(name.as_bytes())?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    loop {
        match connect(&socket, &address) {
            Ok(()) => break,
            Err(rustix::io::Errno::AGAIN) if Instant::now() < deadline => std::thread::sleep(QUEUE_FULL),
            Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
    let stream = Stream::Unix(socket.into());
    stream.set_nonblocking(false)?;
    Ok(stream)
}
