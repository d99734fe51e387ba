//! The ways in which a rank learns who it is and what the others published:
//! one all-gather, after which the launcher is needed for nothing else.

use std::env;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use rustix::process::{Pid, getppid};

use super::admission::Key;
use super::frame::{Decoder, Frame, VERSION, Welcome};
use super::launcher::Launcher;
use super::pmi::Pmi;
use super::{BootError, LAUNCH_FD};
use crate::base::limits::BOOT_DEADLINE;
use crate::base::{JobId, Rank};
use crate::sys::{Pmix, duplicate_inherited_socket};

/// One way to start, found in the environment.
pub(super) enum Bootstrap {
    /// `collimate run`.
    Own(Own),
    /// Hydra or Slurm.
    Pmi(Pmi, Option<Pid>),
    /// Open MPI or Slurm.
    Pmix(Pmix, u32, Option<Pid>),
    /// Whatever the linked MPI library was made for.
    #[cfg(feature = "mpi")]
    Mpi(super::mpi::Mpi, Option<Pid>),
}

impl Bootstrap {
    /// What launched this process; `None` when nothing did.
    pub(super) fn find() -> Result<Option<Bootstrap>, BootError> {
        let parent = getppid();
        let found = if let Some(stream) = own_socket()? {
            claim()?;
            Some(Bootstrap::Own(Own::greet(stream)?))
        } else if env::var_os("PMI_FD").is_some() || env::var_os("PMIX_RANK").is_some() {
            claim()?;
            Some(Bootstrap::of_mpirun(parent)?)
        } else {
            None
        };
        Ok(found)
    }

    #[cfg(feature = "mpi")]
    fn of_mpirun(parent: Option<Pid>) -> Result<Bootstrap, BootError> {
        Ok(Bootstrap::Mpi(super::mpi::Mpi::init()?, parent))
    }

    #[cfg(not(feature = "mpi"))]
    fn of_mpirun(parent: Option<Pid>) -> Result<Bootstrap, BootError> {
        if env::var_os("PMI_FD").is_none() {
            let pmix = Pmix::init()?;
            let size = pmix.size()?;
            return Ok(Bootstrap::Pmix(pmix, size, parent));
        }
        let fd = number("PMI_FD")?;
        let socket = duplicate_inherited_socket(fd as i32).map_err(|_| not_set_by_launcher("PMI_FD"))?;
        Ok(Bootstrap::Pmi(Pmi::init(socket.into(), number("PMI_RANK")?, number("PMI_SIZE")?)?, parent))
    }

    pub(super) fn rank(&self) -> Rank {
        Rank(match self {
            Bootstrap::Own(own) => own.welcome.rank,
            Bootstrap::Pmi(pmi, _) => pmi.rank,
            Bootstrap::Pmix(pmix, ..) => pmix.rank(),
            #[cfg(feature = "mpi")]
            Bootstrap::Mpi(mpi, _) => mpi.rank(),
        })
    }

    pub(super) fn size(&self) -> u32 {
        match self {
            Bootstrap::Own(own) => own.welcome.size,
            Bootstrap::Pmi(pmi, _) => pmi.size,
            Bootstrap::Pmix(_, size, _) => *size,
            #[cfg(feature = "mpi")]
            Bootstrap::Mpi(mpi, _) => mpi.size(),
        }
    }

    /// The job and its key where the launcher has drawn them; else rank 0 does.
    pub(super) fn secret(&self) -> Option<(JobId, Key)> {
        match self {
            Bootstrap::Own(own) => Some((JobId(own.welcome.job), Key(own.welcome.key))),
            _ => None,
        }
    }

    /// Whether all ranks are known to run on this host; `false` when unknown.
    pub(super) fn one_host(&self) -> bool {
        let equals = |name: &str, size: u32| env::var(name).is_ok_and(|v| v == size.to_string());
        match self {
            Bootstrap::Own(own) => own.welcome.one_host,
            _ => ["MPI_LOCALNRANKS", "OMPI_COMM_WORLD_LOCAL_SIZE"].iter().any(|name| equals(name, self.size())),
        }
    }

    /// Publishes `bytes` and returns what every rank has published.
    pub(super) fn exchange(&mut self, bytes: &[u8]) -> Result<Vec<Vec<u8>>, BootError> {
        match self {
            Bootstrap::Own(own) => own.exchange(bytes),
            Bootstrap::Pmi(pmi, _) => pmi.exchange(bytes),
            Bootstrap::Pmix(pmix, size, _) => Ok(pmix.exchange(*size, bytes, BOOT_DEADLINE.as_secs() as u32)?),
            #[cfg(feature = "mpi")]
            Bootstrap::Mpi(mpi, _) => Ok(mpi.exchange(bytes)),
        }
    }

    /// Leaves PMI, PMIx or MPI; what remains is to watch the launcher.
    pub(super) fn finish(self) -> Result<Launcher, BootError> {
        Ok(match self {
            Bootstrap::Own(own) => Launcher::own(Rank(own.welcome.rank), own.stream),
            Bootstrap::Pmi(pmi, parent) => {
                pmi.finalize()?;
                Launcher::parent(parent)
            }
            Bootstrap::Pmix(pmix, _, parent) => {
                drop(pmix);
                Launcher::parent(parent)
            }
            #[cfg(feature = "mpi")]
            Bootstrap::Mpi(mpi, parent) => {
                drop(mpi);
                Launcher::parent(parent)
            }
        })
    }
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

    fn exchange(&mut self, bytes: &[u8]) -> Result<Vec<Vec<u8>>, BootError> {
        let card = Frame::Card { rank: self.welcome.rank, bytes: bytes.to_vec() };
        self.stream.write_all(&card.encode()).map_err(BootError::os("write to the launcher"))?;
        match receive(&self.stream, &mut self.decoder)? {
            Frame::Cards(cards) => Ok(cards),
            _ => Err(out_of_turn()),
        }
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

fn number(variable: &'static str) -> Result<u32, BootError> {
    env::var(variable).ok().and_then(|v| v.parse().ok()).ok_or_else(|| not_set_by_launcher(variable))
}

fn not_set_by_launcher(variable: &'static str) -> BootError {
    let value = env::var_os(variable).map(|v| v.to_string_lossy().into_owned()).unwrap_or_default();
    BootError::Environment { variable, value, remedy: "unset it, or start through mpirun or `collimate run`" }
}

/// A launcher serves a process once: its descriptors are closed afterwards.
fn claim() -> Result<(), BootError> {
    static CLAIMED: AtomicBool = AtomicBool::new(false);
    if CLAIMED.swap(true, Ordering::Relaxed) { Err(BootError::StartedTwice) } else { Ok(()) }
}
