//! PMI-1, the text protocol of MPICH's Hydra and of Slurm's `pmi1`/`pmi2`
//! plugins, over the socket named by `PMI_FD`. Only what an all-gather needs.

use std::fmt::Write as _;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use rustix::process::{Pid, getppid};

use super::bootstrap::{Bootstrap, counts, not_set_by_launcher};
use super::{BootError, Launcher};
use crate::base::Rank;
use crate::base::limits::{BOOT_DEADLINE, PMI_LINE_BYTES_MAX, PMI_VALUE_BYTES_MIN};
use crate::sys::duplicate_inherited_socket;

/// A connection to the process manager.
pub(super) struct Pmi {
    stream: UnixStream,
    kvs: String,
    rank: u32,
    size: u32,
    parent: Option<Pid>,
}

impl Pmi {
    /// The process manager that the environment names.
    pub(super) fn from_env() -> Result<Pmi, BootError> {
        let fd = number("PMI_FD")?;
        let socket = duplicate_inherited_socket(fd as i32).map_err(|_| not_set_by_launcher("PMI_FD"))?;
        Pmi::init(socket.into(), number("PMI_RANK")?, number("PMI_SIZE")?)
    }

    /// Greets the process manager at the other end of `stream`.
    fn init(stream: UnixStream, rank: u32, size: u32) -> Result<Pmi, BootError> {
        stream.set_read_timeout(Some(BOOT_DEADLINE)).map_err(BootError::os("PMI socket"))?;
        let mut pmi = Pmi { stream, kvs: String::new(), rank, size, parent: getppid() };
        pmi.call("cmd=init pmi_version=1 pmi_subversion=1", "response_to_init")?;
        let maxes = pmi.call("cmd=get_maxes", "maxes")?;
        let value_max = maxes.get("vallen_max").and_then(|v| v.parse().ok()).unwrap_or(0usize);
        if value_max < PMI_VALUE_BYTES_MIN {
            return Err(BootError::Pmi(format!(
                "the process manager stores values of {value_max} bytes only, {PMI_VALUE_BYTES_MIN} are needed"
            )));
        }
        let answer = pmi.call("cmd=get_my_kvsname", "my_kvsname")?;
        pmi.kvs = answer.get("kvsname").ok_or_else(|| answer.unexpected())?.to_string();
        Ok(pmi)
    }

    fn call(&mut self, line: &str, expected: &str) -> Result<Answer, BootError> {
        let io = |cause: std::io::Error| BootError::Pmi(format!("`{}`: {cause}", first_word(line)));
        self.stream.write_all(format!("{line}\n").as_bytes()).map_err(io)?;
        let mut text = Vec::new();
        // One byte at a time, as the reference client does: what follows the
        // line is not ours, and there are a handful of lines.
        loop {
            let mut byte = [0];
            match self.stream.read(&mut byte) {
                Ok(0) => return Err(io(std::io::ErrorKind::UnexpectedEof.into())),
                Ok(_) if byte[0] == b'\n' => break,
                Ok(_) => text.push(byte[0]),
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(e) => return Err(io(e)),
            }
            if text.len() > PMI_LINE_BYTES_MAX {
                return Err(BootError::Pmi("an endless line from the process manager".into()));
            }
        }
        let answer = Answer(String::from_utf8_lossy(&text).into_owned());
        let good = answer.get("cmd") == Some(expected) && answer.get("rc").is_none_or(|rc| rc == "0");
        if good { Ok(answer) } else { Err(answer.unexpected()) }
    }
}

impl Bootstrap for Pmi {
    fn rank(&self) -> Rank {
        Rank(self.rank)
    }

    fn size(&self) -> u32 {
        self.size
    }

    fn one_host(&self) -> bool {
        counts("MPI_LOCALNRANKS", self.size)
    }

    fn exchange(&mut self, bytes: &[u8]) -> Result<Vec<Vec<u8>>, BootError> {
        let (kvs, rank) = (self.kvs.clone(), self.rank);
        self.call(&format!("cmd=put kvsname={kvs} key=collimate-{rank} value={}", to_hex(bytes)), "put_result")?;
        self.call("cmd=barrier_in", "barrier_out")?;
        let mut all = Vec::with_capacity(self.size as usize);
        for rank in 0..self.size {
            let answer = self.call(&format!("cmd=get kvsname={kvs} key=collimate-{rank}"), "get_result")?;
            all.push(answer.get("value").and_then(from_hex).ok_or_else(|| answer.unexpected())?);
        }
        Ok(all)
    }

    fn finish(mut self: Box<Self>) -> Result<Launcher, BootError> {
        self.call("cmd=finalize", "finalize_ack")?;
        Ok(Launcher::parent(self.parent))
    }
}

/// A line of `name=value` words.
struct Answer(String);

impl Answer {
    fn get(&self, name: &str) -> Option<&str> {
        self.0.split_ascii_whitespace().find_map(|word| word.strip_prefix(name)?.strip_prefix('='))
    }

    fn unexpected(&self) -> BootError {
        // Never the values: one of them is the job's key.
        BootError::Pmi(format!("the process manager answered `{}`", first_word(&self.0)))
    }
}

/// The number in a variable that a launcher has set.
fn number(variable: &'static str) -> Result<u32, BootError> {
    std::env::var(variable).ok().and_then(|v| v.parse().ok()).ok_or_else(|| not_set_by_launcher(variable))
}

fn first_word(line: &str) -> &str {
    line.split_ascii_whitespace().next().unwrap_or("nothing")
}

fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        write!(text, "{byte:02x}").expect("a String takes everything");
        text
    })
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    let digit = |b: u8| char::from(b).to_digit(16).map(|d| d as u8);
    let pairs = text.as_bytes().chunks_exact(2);
    if !pairs.remainder().is_empty() {
        return None;
    }
    pairs.map(|p| Some(digit(p[0])? << 4 | digit(p[1])?)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead, BufReader};

    #[test]
    fn hex_survives() {
        let bytes: Vec<u8> = (0..=255).collect();
        assert_eq!(from_hex(&to_hex(&bytes)), Some(bytes));
        assert_eq!(from_hex("0"), None);
        assert_eq!(from_hex("0g"), None);
    }

    /// Plays the process manager with canned answers.
    fn manager(answers: &'static [&'static str]) -> (UnixStream, std::thread::JoinHandle<Vec<String>>) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let thread = std::thread::spawn(move || {
            let mut lines = BufReader::new(theirs.try_clone().unwrap()).lines();
            let mut heard = Vec::new();
            for answer in answers {
                let Some(Ok(line)) = lines.next() else { break };
                heard.push(line);
                writeln!(&theirs, "{answer}").unwrap();
            }
            heard
        });
        (ours, thread)
    }

    #[test]
    fn one_rank_exchanges_with_itself() {
        let (stream, manager) = manager(&[
            "cmd=response_to_init pmi_version=1 pmi_subversion=1 rc=0",
            "cmd=maxes kvsname_max=256 keylen_max=64 vallen_max=1024",
            "cmd=my_kvsname kvsname=kvs_7",
            "cmd=put_result rc=0 msg=success",
            "cmd=barrier_out",
            "cmd=get_result rc=0 msg=success value=0a0b",
            "cmd=finalize_ack",
        ]);
        let mut pmi = Pmi::init(stream, 0, 1).unwrap();
        assert_eq!(pmi.exchange(&[10, 11]).unwrap(), [vec![10, 11]]);
        Box::new(pmi).finish().unwrap();
        let heard = manager.join().unwrap();
        assert_eq!(heard[3], "cmd=put kvsname=kvs_7 key=collimate-0 value=0a0b");
    }

    #[test]
    fn a_refusal_and_a_closed_socket_are_errors() {
        let (stream, _manager) = manager(&["cmd=response_to_init rc=-1"]);
        assert!(matches!(Pmi::init(stream, 0, 1), Err(BootError::Pmi(_))));
        let (stream, other) = UnixStream::pair().unwrap();
        drop(other);
        assert!(matches!(Pmi::init(stream, 0, 1), Err(BootError::Pmi(_))));
    }
}
