//! The references between two threads or two processes: what the machine does
//! without a runtime.

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use collimate::sys::SharedLines;
use rustix::event::{Timespec, epoll};

use super::measure::{Failed, PATIENCE, Round, cores, pin, runs, sample, spin_until};

/// Bytes of a bare TCP message.
const TCP_BYTES: usize = 64;
/// One line for each direction.
const LINES: usize = 2;

/// Two threads of this process, each on its own core, hand a cache line back
/// and forth.
pub fn between_threads(count: u64, batch: u64) -> Result<Round, Failed> {
    #[repr(align(128))]
    #[derive(Default)]
    struct Padded(AtomicU64);
    let (there, back) = (Padded::default(), Padded::default());
    let mine = cores();
    let (&first, &second) = mine.first().zip(mine.get(1)).ok_or("two cores are needed")?;
    let rounds = runs(count, batch);
    std::thread::scope(|scope| {
        let pong = scope.spawn(|| {
            pin(second).map_err(|e| e.to_string())?;
            serve(&there.0, &back.0, rounds).map_err(|e| e.to_string())
        });
        let ping = scope.spawn(|| {
            pin(first).map_err(|e| e.to_string())?;
            call(&there.0, &back.0, count, batch).map_err(|e| e.to_string())
        });
        let round = ping.join().map_err(|_| "the pinging thread panicked")?;
        pong.join().map_err(|_| "the answering thread panicked")??;
        Ok(round?)
    })
}

/// This process and rank 1 hand a cache line of shared memory back and forth.
pub fn between_processes(count: u64, batch: u64) -> Result<Round, Failed> {
    let lines = SharedLines::create(LINES)?;
    let fd = lines.fd().as_raw_fd();
    let rounds = runs(count, batch);
    let pong = answer_lines::spawn_with(on_rank_1(), std::process::id(), fd, rounds);
    let [there, back] = lines.as_ref() else { unreachable!("as many as asked for") };
    let round = call(there.first_word(), back.first_word(), count, batch);
    pong.get()?;
    round
}

/// Where the other side of a reference runs.
pub fn on_rank_1() -> collimate::Options {
    collimate::Options::new().rank(1)
}

#[collimate::task]
fn answer_lines(pid: u32, fd: i32, rounds: u64) -> Result<u64, String> {
    let fd: OwnedFd = File::options()
        .read(true)
        .write(true)
        .open(format!("/proc/{pid}/fd/{fd}"))
        .map_err(|e| format!("cannot open the memory of rank 0: {e}"))?
        .into();
    let lines = SharedLines::open(fd, LINES).map_err(|e| e.to_string())?;
    let [there, back] = lines.as_ref() else { unreachable!("as many as asked for") };
    serve(there.first_word(), back.first_word(), rounds).map_err(|e| e.to_string())?;
    Ok(rounds)
}

fn call(there: &AtomicU64, back: &AtomicU64, count: u64, batch: u64) -> Result<Round, Failed> {
    let mut number = 0;
    sample(count, batch, || {
        number += 1;
        there.store(number, Ordering::Release);
        spin_until("an answer", || back.load(Ordering::Acquire) == number)
    })
}

fn serve(there: &AtomicU64, back: &AtomicU64, rounds: u64) -> Result<(), Failed> {
    for number in 1..=rounds {
        spin_until("a call", || there.load(Ordering::Acquire) == number)?;
        back.store(number, Ordering::Release);
    }
    Ok(())
}

/// How a bare TCP side waits; neither ever sleeps.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Poll {
    /// `epoll_wait` without a timeout's patience until the socket is readable.
    Epoll,
    /// `read` until it yields something.
    Read,
}

/// This process and rank 1 send 64 bytes back and forth over loopback.
pub fn over_tcp(count: u64, poll: Poll) -> Result<Round, Failed> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let port = listener.local_addr()?.port();
    let pong = answer_tcp::spawn_with(on_rank_1(), port, poll == Poll::Epoll, runs(count, 1));
    listener.set_nonblocking(true)?;
    let mut stream = None;
    spin_until("a connection from rank 1", || {
        stream = listener.accept().ok();
        stream.is_some()
    })?;
    let (stream, _) = stream.ok_or("no connection")?;
    let mut side = Side::new(stream, poll)?;
    let mut message = [7; TCP_BYTES];
    let round = sample(count, 1, || {
        side.send(&message)?;
        side.receive(&mut message)
    });
    drop(side);
    pong.get()?;
    round
}

#[collimate::task]
fn answer_tcp(port: u16, epoll: bool, rounds: u64) -> Result<u64, String> {
    let answer = || -> Result<(), Failed> {
        let poll = if epoll { Poll::Epoll } else { Poll::Read };
        let mut side = Side::new(TcpStream::connect((Ipv4Addr::LOCALHOST, port))?, poll)?;
        let mut message = [0; TCP_BYTES];
        for _ in 0..rounds {
            side.receive(&mut message)?;
            side.send(&message)?;
        }
        Ok(())
    };
    answer().map(|()| rounds).map_err(|e| e.to_string())
}

struct Side {
    stream: TcpStream,
    epoll: Option<OwnedFd>,
}

impl Side {
    fn new(stream: TcpStream, poll: Poll) -> Result<Side, Failed> {
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        let epoll = match poll {
            Poll::Read => None,
            Poll::Epoll => {
                let fd = epoll::create(epoll::CreateFlags::CLOEXEC)?;
                epoll::add(&fd, &stream, epoll::EventData::new_u64(0), epoll::EventFlags::IN)?;
                Some(fd)
            }
        };
        Ok(Side { stream, epoll })
    }

    fn send(&mut self, message: &[u8]) -> Result<(), Failed> {
        // A message this small finds room, for only one is ever under way.
        Ok(self.stream.write_all(message)?)
    }

    fn receive(&mut self, message: &mut [u8]) -> Result<(), Failed> {
        let mut got = 0;
        let mut spins = 0u32;
        let mut start = None;
        while got < message.len() {
            spins = spins.wrapping_add(1);
            if spins.is_multiple_of(1 << 12) && start.get_or_insert_with(Instant::now).elapsed() > PATIENCE {
                return Err(format!("no message over TCP within {} s", PATIENCE.as_secs()).into());
            }
            if let Some(epoll) = &self.epoll {
                let mut events =
                    [epoll::Event { flags: epoll::EventFlags::empty(), data: epoll::EventData::new_u64(0) }];
                if epoll::wait(epoll, &mut events, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }))? == 0 {
                    continue;
                }
            }
            match self.stream.read(&mut message[got..]) {
                Ok(0) => return Err("the other side of the TCP reference has gone".into()),
                Ok(n) => got += n,
                Err(e) if e.kind() == ErrorKind::WouldBlock => {}
                Err(e) => return Err(e.into()),
            }
        }
        Ok(())
    }
}
