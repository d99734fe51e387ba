//! A load of many connections from one thread: what is said on them is a
//! `Speaker`'s business, here bytes are moved and answers counted.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::time::{Duration, Instant};

use rustix::event::{Timespec, epoll};

use super::super::measure::{Failed, PATIENCE};

/// One side of a connection: keeps a number of writes under way on it.
pub trait Speaker {
    /// What to say first.
    fn begin(&mut self, out: &mut Vec<u8>);

    /// Takes what has come, as far as it is whole, and says more.
    ///
    /// # Errors
    /// If the other side refuses, or speaks another language.
    fn hear(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> Result<Heard, String>;
}

/// What a [`Speaker`] has made of some bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Heard {
    /// Bytes that it is done with.
    pub used: usize,
    /// Writes that were acknowledged in them.
    pub done: u64,
}

/// Acknowledged writes a second: those of `time`, after a warm-up of a quarter of
/// it.
pub fn rate(port: u16, speakers: Vec<impl Speaker>, time: Duration) -> Result<f64, Failed> {
    let poll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    let mut lines = Vec::new();
    for (number, speaker) in (0..).zip(speakers) {
        let line = Line::connect(port, speaker)?;
        // Edge-triggered: one look per event, both ways at once.
        let flags = epoll::EventFlags::IN | epoll::EventFlags::OUT | epoll::EventFlags::ET;
        epoll::add(&poll, &line.stream, epoll::EventData::new_u64(number), flags)?;
        lines.push(line);
    }
    for line in &mut lines {
        line.speaker.begin(&mut line.out);
        line.flush()?;
    }
    let mut counted: Option<(Instant, u64)> = None;
    let begun = Instant::now();
    let mut done = 0;
    let mut last = begun;
    let patience = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };
    loop {
        let mut events =
            [const { epoll::Event { flags: epoll::EventFlags::empty(), data: epoll::EventData::new_u64(0) } }; 64];
        let ready = epoll::wait(&poll, &mut events, Some(&patience))?;
        for event in &events[..ready] {
            done += lines[event.data.u64() as usize].turn()?;
        }
        let now = Instant::now();
        if ready > 0 {
            last = now;
        } else if now - last > PATIENCE {
            return Err(format!("no acknowledgement for {} s", PATIENCE.as_secs()).into());
        }
        match counted {
            None if now - begun > time / 4 => counted = Some((now, done)),
            // At least one, or there would be no telling how slow it is.
            Some((since, before)) if now - since > time && done > before => {
                return Ok((done - before) as f64 / (now - since).as_secs_f64());
            }
            _ => {}
        }
    }
}

struct Line<S> {
    stream: TcpStream,
    speaker: S,
    /// What is to be sent, and how much of it is.
    out: Vec<u8>,
    sent: usize,
    input: Vec<u8>,
}

impl<S: Speaker> Line<S> {
    fn connect(port: u16, speaker: S) -> Result<Line<S>, Failed> {
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        Ok(Line { stream, speaker, out: Vec::new(), sent: 0, input: Vec::new() })
    }

    /// Takes all that has come, and sends what can be sent.
    fn turn(&mut self) -> Result<u64, Failed> {
        let mut buffer = [0; 64 * 1024];
        let mut done = 0;
        loop {
            match self.stream.read(&mut buffer) {
                Ok(0) => return Err("the server has closed the connection".into()),
                Ok(n) => {
                    self.input.extend_from_slice(&buffer[..n]);
                    let heard = self.speaker.hear(&self.input, &mut self.out)?;
                    self.input.drain(..heard.used);
                    done += heard.done;
                    if n < buffer.len() {
                        break;
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        self.flush()?;
        Ok(done)
    }

    fn flush(&mut self) -> Result<(), Failed> {
        while self.sent < self.out.len() {
            match self.stream.write(&self.out[self.sent..]) {
                Ok(n) => self.sent += n,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        self.out.clear();
        self.sent = 0;
        Ok(())
    }
}
