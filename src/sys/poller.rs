//! Waits for sockets, edge-triggered: an event says that something changed, and
//! stands until it is taken with [`Poller::take`].

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::time::Duration;

use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};

/// A set of sockets, each known by a number.
pub struct Poller {
    poll: Poll,
    events: Events,
}

/// What changed at a socket.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Readiness {
    /// The number given to [`Poller::add`].
    pub token: usize,
    /// Bytes have come, or the end.
    pub readable: bool,
    /// There is room to write.
    pub writable: bool,
    /// The peer will send no more, or the connection failed: reading goes on
    /// until it says so.
    pub ended: bool,
    /// Something is in the queue of errors, where notices of sends without a
    /// copy are, too.
    pub failed: bool,
}

impl Poller {
    /// An empty set.
    pub fn new() -> io::Result<Poller> {
        Ok(Poller { poll: Poll::new()?, events: Events::with_capacity(64) })
    }

    /// Adds a socket, for both directions. It is removed with [`Poller::remove`], or by being closed
    /// everywhere.
    pub fn add(&self, socket: impl AsFd, token: usize) -> io::Result<()> {
        let fd = socket.as_fd().as_raw_fd();
        self.poll.registry().register(&mut SourceFd(&fd), Token(token), Interest::READABLE | Interest::WRITABLE)
    }

    /// The same for a socket on whose room nobody waits: that it can be written
    /// to again is not reported, and wakes nobody.
    pub fn add_readable(&self, socket: impl AsFd, token: usize) -> io::Result<()> {
        self.poll.registry().register(&mut SourceFd(&socket.as_fd().as_raw_fd()), Token(token), Interest::READABLE)
    }

    /// Removes a socket.
    pub fn remove(&self, socket: impl AsFd) -> io::Result<()> {
        self.poll.registry().deregister(&mut SourceFd(&socket.as_fd().as_raw_fd()))
    }

    /// Reports what has changed since the last time, 64 sockets at most,
    /// without waiting.
    pub fn take(&mut self, mut report: impl FnMut(Readiness)) -> io::Result<usize> {
        match self.poll.poll(&mut self.events, Some(Duration::ZERO)) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(0),
            Err(error) => return Err(error),
        }
        let mut count = 0;
        for event in &self.events {
            count += 1;
            report(Readiness {
                token: event.token().0,
                readable: event.is_readable(),
                writable: event.is_writable(),
                ended: event.is_read_closed(),
                failed: event.is_error(),
            });
        }
        Ok(count)
    }
}

impl AsFd for Poller {
    /// Readable while there is something to [`Poller::take`].
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor is open as long as `self.poll`, which the
        // borrow keeps.
        unsafe { BorrowedFd::borrow_raw(self.poll.as_raw_fd()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    fn readable(poller: &Poller) -> bool {
        poll(&mut [PollFd::new(poller, PollFlags::IN)], Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).unwrap() == 1
    }

    #[test]
    fn the_descriptor_tells_when_there_is_something_to_take() {
        let (mut a, mut b) = UnixStream::pair().unwrap();
        let mut poller = Poller::new().unwrap();
        poller.add(&b, 7).unwrap();
        poller.take(|_| ()).unwrap();
        assert!(!readable(&poller));
        a.write_all(b"x").unwrap();
        assert!(readable(&poller));
        let mut seen = Vec::new();
        poller.take(|readiness| seen.push(readiness)).unwrap();
        assert_eq!(seen, [Readiness { token: 7, readable: true, writable: true, ended: false, failed: false }]);
        assert!(!readable(&poller), "the edge was taken");
        b.read_exact(&mut [0]).unwrap();
        drop(a);
        poller.take(|readiness| assert!(readiness.ended)).unwrap();
        poller.remove(&b).unwrap();
    }

    #[test]
    fn room_to_write_is_told_to_those_who_want_it() {
        let (mut a, mut b) = UnixStream::pair().unwrap();
        let mut poller = Poller::new().unwrap();
        poller.add_readable(&b, 7).unwrap();
        b.write_all(b"x").unwrap();
        a.read_exact(&mut [0]).unwrap();
        assert!(!readable(&poller), "the other side has made room");
        drop(a);
        let mut ended = false;
        poller.take(|readiness| ended = readiness.ended).unwrap();
        assert!(ended);
    }
}
