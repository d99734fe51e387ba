//! The ways in which a rank learns who it is and what the others published:
//! one all-gather, after which the launcher is needed for nothing else.

use std::env;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use super::frame::{Decoder, Frame, VERSION, Welcome};
use super::launcher::Launcher;
use super::{BootError, LAUNCH_FD, Secret};
use crate::base::limits::BOOT_DEADLINE;
use crate::base::{JobId, Rank};
use crate::sys::duplicate_inherited_socket;

/// One way to start.
pub(super) trait Bootstrap {
    fn rank(&self) -> Rank;

    /// Ranks of the job.
    fn size(&self) -> u32;

    /// The job and its key where the launcher has drawn them; else rank 0 does.
    fn secret(&self) -> Option<Secret> {
        None
    }

    /// Whether all ranks are known to run on this host; `false` when unknown.
    fn one_host(&self) -> bool;

    /// Publishes `bytes` and returns what every rank has published.
    fn exchange(&mut self, bytes: &[u8]) -> Result<Vec<Vec<u8>>, BootError>;

    /// Leaves PMI, PMIx or MPI; what remains is to watch the launcher.
    fn finish(self: Box<Self>) -> Result<Launcher, BootError>;
}

/// Whether a launcher started this process as a rank of a job.
pub fn launched() -> bool {
    own_socket().is_ok_and(|socket| socket.is_some())
        || env::var_os("PMI_FD").is_some()
        || env::var_os("PMIX_RANK").is_some()
}

/// What launched this process; `None` when nothing did.
pub(super) fn find() -> Result<Option<Box<dyn Bootstrap>>, BootError> {
    if let Some(stream) = own_socket()? {
        claim()?;
        return Ok(Some(Box::new(Own::greet(stream)?)));
    }
    let by_pmi = env::var_os("PMI_FD").is_some();
    if by_pmi || env::var_os("PMIX_RANK").is_some() {
        claim()?;
        return by_mpirun(by_pmi).map(Some);
    }
    Ok(None)
}

#[cfg(feature = "mpi")]
fn by_mpirun(_by_pmi: bool) -> Result<Box<dyn Bootstrap>, BootError> {
    Ok(Box::new(super::mpi::Mpi::init()?))
}

#[cfg(not(feature = "mpi"))]
fn by_mpirun(by_pmi: bool) -> Result<Box<dyn Bootstrap>, BootError> {
    Ok(if by_pmi { Box::new(super::pmi::Pmi::from_env()?) } else { Box::new(super::pmix::Pmix::init()?) })
}

/// The error for a variable of a launcher that no launcher would set so.
pub(super) fn not_set_by_launcher(variable: &'static str) -> BootError {
    let value = env::var_os(variable).map(|v| v.to_string_lossy().into_owned()).unwrap_or_default();
    BootError::Environment { variable, value, remedy: "unset it, or start through mpirun or `collimate run`" }
}

/// Whether the launcher says in `variable` that it runs `size` ranks here.
pub(super) fn counts(variable: &str, size: u32) -> bool {
    env::var(variable).is_ok_and(|v| v == size.to_string())
}

/// The conversation with `collimate run`.
pub(super) struct Own {
    stream: UnixStream,
    decoder: Decoder,
    welcome: Welcome,
}

impl Own {
    fn greet(stream: UnixStream) -> Result<Own, BootError> {
        let mut decoder = Decoder::default();
        match receive(&stream, &mut decoder)? {
            Frame::Welcome(welcome) if welcome.version == VERSION => Ok(Own { stream, decoder, welcome }),
            Frame::Welcome(_) => {
                Err(BootError::Launcher("it is of another version: use the `collimate` of the same build".into()))
            }
            _ => Err(out_of_turn()),
        }
    }
}

impl Bootstrap for Own {
    fn rank(&self) -> Rank {
        Rank(self.welcome.rank)
    }

    fn size(&self) -> u32 {
        self.welcome.size
    }

    fn secret(&self) -> Option<Secret> {
        Some((JobId(self.welcome.job), self.welcome.key.clone()))
    }

    fn one_host(&self) -> bool {
        self.welcome.one_host
    }

    fn exchange(&mut self, bytes: &[u8]) -> Result<Vec<Vec<u8>>, BootError> {
        let card = Frame::Card { rank: self.welcome.rank, bytes: bytes.to_vec() };
        self.stream.write_all(&card.encode()).map_err(BootError::os("write to the launcher"))?;
        match receive(&self.stream, &mut self.decoder)? {
            Frame::Cards(cards) => Ok(cards),
            _ => Err(out_of_turn()),
        }
    }

    fn finish(self: Box<Self>) -> Result<Launcher, BootError> {
        Ok(Launcher::own(self.rank(), self.stream))
    }
}

fn out_of_turn() -> BootError {
    BootError::Launcher("it spoke out of turn".into())
}

/// Waits for one frame, `BOOT_DEADLINE` at most.
fn receive(mut stream: &UnixStream, decoder: &mut Decoder) -> Result<Frame, BootError> {
    let deadline = Instant::now() + BOOT_DEADLINE;
    let mut buffer = [0; 16 * 1024];
    loop {
        if let Some(frame) = decoder.take().map_err(|e| BootError::Launcher(e.to_string()))? {
            return Ok(frame);
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            let seconds = BOOT_DEADLINE.as_secs();
            return Err(BootError::Launcher(format!("not all ranks were there within {seconds} s")));
        }
        stream.set_read_timeout(Some(left)).map_err(BootError::os("launcher socket"))?;
        match stream.read(&mut buffer) {
            Ok(0) => return Err(BootError::Launcher("it ended while this rank was starting".into())),
            Ok(n) => decoder.push(&buffer[..n]),
            Err(e) if matches!(e.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::Interrupted) => {}
            Err(e) => return Err(BootError::Os { what: "read from the launcher", cause: e }),
        }
    }
}

/// The socket to `collimate run`. The variable names the descriptor and the
/// socket's inode, so that a process that inherits the variable but not the
/// socket (a child of a rank) is not taken for a rank.
fn own_socket() -> Result<Option<UnixStream>, BootError> {
    let Ok(value) = env::var(LAUNCH_FD) else { return Ok(None) };
    let (fd, inode) = value
        .split_once(':')
        .and_then(|(fd, inode)| Some((fd.parse::<i32>().ok()?, inode.parse::<u64>().ok()?)))
        .ok_or_else(|| not_set_by_launcher(LAUNCH_FD))?;
    let Ok(socket) = duplicate_inherited_socket(fd) else { return Ok(None) };
    let found = rustix::fs::fstat(&socket).map_err(BootError::os("fstat of the launcher's socket"))?.st_ino;
    Ok((found == inode).then(|| socket.into()))
}

/// A launcher serves a process once: its descriptors are closed afterwards.
fn claim() -> Result<(), BootError> {
    static CLAIMED: AtomicBool = AtomicBool::new(false);
    if CLAIMED.swap(true, Ordering::Relaxed) { Err(BootError::StartedTwice) } else { Ok(()) }
}
