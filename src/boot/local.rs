//! The rank processes of this host, as their launcher sees them.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::{self, IsTerminal, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};

use super::LAUNCH_FD;
use super::frame::{Decoder, Fate, Frame, Welcome};
use crate::base::limits::STUCK_RANK_DEADLINE;
use crate::sys::spawn_bound;

/// What to run as a rank.
#[derive(Clone, Debug)]
pub(super) struct Program {
    /// The program and its arguments.
    pub(super) command: Vec<OsString>,
    /// Variables on top of the launcher's own.
    pub(super) vars: BTreeMap<String, String>,
    /// Where, if not where the launcher is.
    pub(super) directory: Option<PathBuf>,
    /// Whether the ranks' output comes back as frames; else they write to the
    /// launcher's own.
    pub(super) capture: bool,
}

/// The ranks of this host. Dropping it kills what still runs.
#[derive(Default)]
pub(super) struct Local {
    ranks: Vec<LocalRank>,
}

struct LocalRank {
    rank: u32,
    child: Child,
    pid: Pid,
    link: Option<UnixStream>,
    decoder: Decoder,
    ended: bool,
}

impl Local {
    /// Starts one rank per welcome; the error is one line for the user.
    pub(super) fn spawn(program: &Program, welcomes: impl Iterator<Item = Welcome>) -> Result<Local, String> {
        let mut local = Local::default();
        for welcome in welcomes {
            let rank = LocalRank::spawn(program, &welcome).map_err(|e| cannot_start(program, &e))?;
            local.ranks.push(rank);
        }
        Ok(local)
    }

    /// What becomes readable when a rank says something. (That one has ended is
    /// told by SIGCHLD.)
    pub(super) fn fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.ranks.iter().flat_map(|rank| {
            let out = rank.child.stdout.as_ref().map(AsFd::as_fd);
            let error = rank.child.stderr.as_ref().map(AsFd::as_fd);
            rank.link.as_ref().map(AsFd::as_fd).into_iter().chain(out).chain(error)
        })
    }

    /// Everything that has happened since the last call: `Card`, `Done`,
    /// `Output` and, last of a rank, `Ended`.
    pub(super) fn collect(&mut self) -> Vec<Frame> {
        let mut frames = Vec::new();
        for rank in &mut self.ranks {
            // The order matters: what a rank said before it ended comes first.
            let ended = rank.has_ended();
            rank.read_link(&mut frames);
            rank.read_output(&mut frames);
            if ended {
                frames.extend(rank.reap());
            }
        }
        frames
    }

    /// Sends `frame` to every rank that listens.
    pub(super) fn tell(&mut self, frame: &Frame) {
        let bytes = frame.encode();
        for rank in &mut self.ranks {
            if let Some(link) = &mut rank.link
                && link.write_all(&bytes).is_err()
            {
                // A rank that is gone, or stuck: its end is seen elsewhere.
                rank.link = None;
            }
        }
    }

    /// Sends `signal` to the process groups of all ranks that run.
    pub(super) fn signal(&self, signal: Signal) {
        for rank in self.ranks.iter().filter(|rank| !rank.ended) {
            // The rank has not been waited for, so its number is still its own.
            let _ = kill_process_group(rank.pid, signal);
        }
    }

    /// Whether every rank has ended and been reported.
    pub(super) fn all_ended(&self) -> bool {
        self.ranks.iter().all(|rank| rank.ended)
    }
}

impl Drop for Local {
    fn drop(&mut self) {
        self.signal(Signal::KILL);
        for rank in self.ranks.iter_mut().filter(|rank| !rank.ended) {
            // A killed child can always be waited for.
            let _ = rank.child.wait();
        }
    }
}

impl LocalRank {
    fn spawn(program: &Program, welcome: &Welcome) -> io::Result<LocalRank> {
        let (ours, theirs) = UnixStream::pair()?;
        (&ours).write_all(&Frame::Welcome(welcome.clone()).encode())?;
        ours.set_write_timeout(Some(STUCK_RANK_DEADLINE))?;
        let inode = rustix::fs::fstat(&theirs)?.st_ino;

        let (name, arguments) = program.command.split_first().ok_or(io::ErrorKind::InvalidInput)?;
        let mut command = Command::new(name);
        command.args(arguments).envs(&program.vars);
        command.env(LAUNCH_FD, format!("{}:{inode}", std::os::fd::AsRawFd::as_raw_fd(&theirs)));
        if let Some(directory) = &program.directory {
            command.current_dir(directory);
        }
        // Ranks are no foreground processes: reading a terminal would stop them.
        let reads = welcome.rank == 0 && !program.capture && !io::stdin().is_terminal();
        command.stdin(if reads { Stdio::inherit() } else { Stdio::null() });
        if program.capture {
            command.stdout(Stdio::piped()).stderr(Stdio::piped());
        }
        let child = spawn_bound(&mut command, Some(theirs.as_fd()))?;
        let pid = Pid::from_child(&child);
        for fd in child.stdout.iter().map(AsFd::as_fd).chain(child.stderr.iter().map(AsFd::as_fd)) {
            rustix::io::ioctl_fionbio(fd, true)?;
        }
        Ok(LocalRank { rank: welcome.rank, child, pid, link: Some(ours), decoder: Decoder::default(), ended: false })
    }

    fn has_ended(&self) -> bool {
        let how = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        !self.ended && matches!(waitid(WaitId::Pid(self.pid), how), Ok(Some(_)))
    }

    /// Waits for a process that has ended, and ends what it left behind.
    fn reap(&mut self) -> Option<Frame> {
        let _ = kill_process_group(self.pid, Signal::KILL);
        let status = self.child.wait().ok()?;
        self.ended = true;
        self.link = None;
        let fate = match status.signal() {
            Some(signal) => Fate::Killed(signal),
            None => Fate::Exited(status.code().unwrap_or(1)),
        };
        Some(Frame::Ended { rank: self.rank, pid: self.pid.as_raw_nonzero().get() as u32, fate })
    }

    fn read_link(&mut self, frames: &mut Vec<Frame>) {
        let mut buffer = [0; 4096];
        while let Some(link) = &self.link {
            match rustix::net::recv(link, &mut buffer[..], rustix::net::RecvFlags::DONTWAIT) {
                Ok((n, _)) if n > 0 => self.decoder.push(&buffer[..n]),
                Err(rustix::io::Errno::AGAIN) => break,
                Err(rustix::io::Errno::INTR) => {}
                // Closed: a rank may end its job long before its process.
                Ok(_) | Err(_) => self.link = None,
            }
        }
        // A rank speaks for itself only; what else it says is not heard.
        while let Ok(Some(frame)) = self.decoder.take() {
            match frame {
                Frame::Card { bytes, .. } => frames.push(Frame::Card { rank: self.rank, bytes }),
                Frame::Done { status, .. } => frames.push(Frame::Done { rank: self.rank, status }),
                _ => self.link = None,
            }
        }
    }

    fn read_output(&mut self, frames: &mut Vec<Frame>) {
        read_pipe(&mut self.child.stdout, false, frames);
        read_pipe(&mut self.child.stderr, true, frames);
    }
}

/// Reads what a pipe holds, bounded, so that an endless writer starves nobody.
fn read_pipe<P: Read>(pipe: &mut Option<P>, error: bool, frames: &mut Vec<Frame>) {
    let mut buffer = vec![0; 64 * 1024];
    for _ in 0..4 {
        let Some(open) = pipe else { return };
        match open.read(&mut buffer) {
            Ok(0) => *pipe = None,
            Ok(n) => frames.push(Frame::Output { error, bytes: buffer[..n].to_vec() }),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => *pipe = None,
        }
    }
}

fn cannot_start(program: &Program, error: &io::Error) -> String {
    let name = program.command.first().map(|name| name.to_string_lossy()).unwrap_or_default();
    match (error.kind(), &program.directory) {
        (io::ErrorKind::NotFound, Some(directory)) if !directory.is_dir() => {
            format!("there is no directory {}: run from one that every host has", directory.display())
        }
        (io::ErrorKind::NotFound, _) => {
            format!("there is no program `{name}`: give its path, or a name that is found in PATH")
        }
        (io::ErrorKind::PermissionDenied, _) => {
            format!("`{name}` may not be executed: give the path of a program, or make it one with chmod +x")
        }
        _ => format!("cannot start `{name}`: {error}"),
    }
}
