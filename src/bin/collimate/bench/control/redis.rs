//! Redis as a reference: one server with one replica, nothing on disk, writes
//! that wait for the replica.

use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::process::Command;
use std::time::Duration;

use super::super::measure::{Failed, PATIENCE};
use super::load::{Heard, Speaker, rate};
use super::peer::{Folder, Server, free_ports, missing};
use super::{KEYS, VALUE_BYTES};

const PROGRAM: &str = "redis-server";

/// Why there can be no comparison, if so.
pub fn obstacle() -> Option<String> {
    missing(PROGRAM, "redis-server")
}

/// A server and its replica.
pub struct Redis {
    port: u16,
    _servers: [Server; 2],
    _folder: Folder,
}

impl Redis {
    /// Starts both and waits until the replica follows.
    pub fn start() -> Result<Redis, Failed> {
        let folder = Folder::new("redis")?;
        let [port, replica_port] = free_ports()?;
        let command = |port: u16| {
            let mut command = Command::new(PROGRAM);
            command.args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--dir"]).arg(folder.path());
            command.args(["--save", "", "--appendonly", "no", "--daemonize", "no"]);
            command.args(["--repl-diskless-sync", "yes", "--repl-diskless-sync-delay", "0"]);
            command
        };
        let mut main = Server::start("redis", folder.path(), &mut command(port))?;
        main.await_ready(|| ask(port, &[("PING", "+PONG")]))?;
        let mut replica_command = command(replica_port);
        replica_command.args(["--replicaof", "127.0.0.1", &port.to_string()]);
        let mut replica = Server::start("redis-replica", folder.path(), &mut replica_command)?;
        // On one connection: WAIT is about the writes of its own.
        replica.await_ready(|| ask(port, &[("SET ready 1", "+OK"), ("WAIT 1 100", ":1")]))?;
        Ok(Redis { port, _servers: [main, replica], _folder: folder })
    }

    /// Acknowledged writes a second with so many under way: each connection
    /// sends its part of them and one `WAIT` for all of these, and begins again
    /// when everything has been answered.
    pub fn rate(&self, connections: usize, under_way: usize, time: Duration) -> Result<f64, Failed> {
        let speaker = |number| Batches::new(number, under_way / connections);
        rate(self.port, (0..connections).map(speaker).collect(), time)
    }
}

/// Some commands, one after the other, and the answers that they should have.
fn ask(port: u16, commands: &[(&str, &str)]) -> Result<(), Failed> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut answers = BufReader::new(stream.try_clone()?);
    for (command, expected) in commands {
        stream.write_all(format!("{command}\r\n").as_bytes())?;
        let mut line = String::new();
        answers.read_line(&mut line)?;
        if line.trim_end() != *expected {
            return Err(format!("{command}: {}", line.trim_end()).into());
        }
    }
    Ok(())
}

/// `batch` times SET and then WAIT, again and again.
struct Batches {
    batch: usize,
    next_key: usize,
    value: Vec<u8>,
}

const WAIT: &[u8] = b"*3\r\n$4\r\nWAIT\r\n$1\r\n1\r\n$1\r\n0\r\n";
const STORED: &[u8] = b"+OK\r\n";
/// With one replica there is no other good answer to WAIT.
const REPLICATED: &[u8] = b":1\r\n";

impl Batches {
    fn new(number: usize, batch: usize) -> Batches {
        Batches { batch: batch.max(1), next_key: number * 7919, value: vec![b'v'; VALUE_BYTES] }
    }

    fn say(&mut self, out: &mut Vec<u8>) {
        for _ in 0..self.batch {
            let key = self.next_key % KEYS;
            self.next_key += 1;
            out.extend_from_slice(format!("*3\r\n$3\r\nSET\r\n$12\r\nkey:{key:08}\r\n${VALUE_BYTES}\r\n").as_bytes());
            out.extend_from_slice(&self.value);
            out.extend_from_slice(b"\r\n");
        }
        out.extend_from_slice(WAIT);
    }
}

impl Speaker for Batches {
    fn begin(&mut self, out: &mut Vec<u8>) {
        self.say(out);
    }

    fn hear(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> Result<Heard, String> {
        let answer = self.batch * STORED.len() + REPLICATED.len();
        if bytes.len() < answer {
            return match bytes.first() {
                Some(b'-') => Err(format!("redis refuses: {}", String::from_utf8_lossy(bytes).trim_end())),
                _ => Ok(Heard { used: 0, done: 0 }),
            };
        }
        let (stored, replicated) = bytes[..answer].split_at(self.batch * STORED.len());
        if !stored.chunks(STORED.len()).all(|line| line == STORED) || replicated != REPLICATED {
            return Err(format!("redis answers {:?}", String::from_utf8_lossy(&bytes[..answer])));
        }
        self.say(out);
        Ok(Heard { used: answer, done: self.batch as u64 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_counted_when_all_of_a_batch_are_there() {
        let mut speaker = Batches::new(0, 2);
        let mut out = Vec::new();
        speaker.begin(&mut out);
        assert!(out.ends_with(WAIT));
        assert_eq!(out.windows(3).filter(|w| w == b"SET").count(), 2);
        assert_eq!(speaker.hear(b"+OK\r\n+OK\r\n:1\r", &mut out), Ok(Heard { used: 0, done: 0 }));
        out.clear();
        assert_eq!(speaker.hear(b"+OK\r\n+OK\r\n:1\r\n", &mut out), Ok(Heard { used: 14, done: 2 }));
        assert!(out.ends_with(WAIT), "the next batch is said");
    }

    #[test]
    fn what_is_no_acknowledgement_is_an_error() {
        for answer in [&b"-OOM\r\n"[..], b"+OK\r\n+OK\r\n:0\r\n", b"+OK\r\n+NO\r\n:1\r\n"] {
            assert!(Batches::new(0, 2).hear(answer, &mut Vec::new()).is_err(), "{answer:?}");
        }
    }
}
