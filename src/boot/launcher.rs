//! A rank's view of what launched it, for as long as the job lives.

use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, getppid, pidfd_open};

use super::frame::Frame;
use crate::base::Rank;

/// What launched this rank. Clones are the same launcher.
#[derive(Clone, Debug)]
pub struct Launcher(Arc<Kind>);

#[derive(Debug)]
enum Kind {
    None,
    Own { rank: Rank, stream: UnixStream },
    Parent { pid: Option<Pid>, watch: Option<OwnedFd> },
}

impl Launcher {
    /// No launcher: the user started this process.
    pub(super) fn none() -> Self {
        Launcher(Arc::new(Kind::None))
    }

    /// `collimate run`, at the other end of `stream`.
    pub(super) fn own(rank: Rank, stream: UnixStream) -> Self {
        Launcher(Arc::new(Kind::Own { rank, stream }))
    }

    /// The parent process, which is the local part of mpirun or srun. `pid` was
    /// read when the bootstrap began, so that a death since then is noticed.
    pub(super) fn parent(pid: Option<Pid>) -> Self {
        let watch = pid.and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
        Launcher(Arc::new(Kind::Parent { pid, watch }))
    }

    /// Says why when the launcher is gone; the job must end then. One system
    /// call.
    pub fn lost(&self) -> Option<String> {
        match &*self.0 {
            Kind::None => None,
            Kind::Own { stream, .. } => {
                let mut fds = [PollFd::new(stream, PollFlags::RDHUP)];
                let closed = poll(&mut fds, Some(&NOW)).is_ok_and(|ready| ready > 0);
                closed.then(|| "`collimate run` has died".into())
            }
            Kind::Parent { pid, .. } => (getppid() != *pid)
                .then(|| format!("the launcher (pid {}) has died", pid.map_or(0, |p| p.as_raw_nonzero().get()))),
        }
    }

    /// Tells the launcher that this rank is about to exit with `status`, so
    /// that it takes the exit for what it is, the end of the job and no crash.
    pub fn finish(&self, status: i32) {
        if let Kind::Own { rank, stream } = &*self.0 {
            // A launcher that is gone needs no telling.
            let _ = (&*stream).write_all(&Frame::Done { rank: rank.0, status }.encode());
        }
    }

    /// Whether there is one.
    pub fn exists(&self) -> bool {
        !matches!(*self.0, Kind::None)
    }

    /// What to poll for to be woken when [`Launcher::lost`] has changed.
    pub(super) fn watch(&self) -> Option<PollFd<'_>> {
        match &*self.0 {
            Kind::None => None,
            Kind::Own { stream, .. } => Some(PollFd::new(stream, PollFlags::RDHUP)),
            Kind::Parent { watch, .. } => watch.as_ref().map(|fd| PollFd::new(fd, PollFlags::IN)),
        }
    }
}

const NOW: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_the_socket_is_the_end_of_the_launcher() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let launcher = Launcher::own(Rank(0), ours);
        assert_eq!(launcher.lost(), None);
        (&theirs).write_all(b"unread").unwrap();
        assert_eq!(launcher.lost(), None);
        drop(theirs);
        assert!(launcher.lost().is_some());
        launcher.finish(0);
    }

    #[test]
    fn another_parent_means_a_dead_launcher() {
        assert_eq!(Launcher::parent(getppid()).lost(), None);
        assert!(Launcher::parent(Pid::from_raw(i32::MAX)).lost().is_some());
        assert_eq!(Launcher::none().lost(), None);
    }
}
