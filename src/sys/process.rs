//! Processes: an inherited descriptor, children that die with their parent,
//! signals as something to poll, a word before the exit.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};
use std::sync::OnceLock;

use rustix::process::{Signal, getpid, getppid, set_parent_process_death_signal};

/// A close-on-exec duplicate of the socket that the environment says this
/// process inherited as `fd`; the original is marked close-on-exec too, so that
/// no child of this process inherits it again. An error if `fd` is no socket.
pub fn duplicate_inherited_socket(fd: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: F_DUPFD_CLOEXEC takes and returns plain integers. It fails with
    // EBADF when `fd` is not open, and touches no memory of this process.
    let copy = unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 3) };
    if copy < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made `copy` for this call, so nobody else
    // owns it.
    let copy = unsafe { OwnedFd::from_raw_fd(copy) };
    let kind = rustix::fs::FileType::from_raw_mode(rustix::fs::fstat(&copy)?.st_mode);
    if kind != rustix::fs::FileType::Socket {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a socket"));
    }
    // SAFETY: F_SETFD takes plain integers and changes one flag of a
    // descriptor that the kernel checks.
    if unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(copy)
}

/// Starts `command` in a process group of its own, with no signal blocked, with
/// `inherit` left open under its number; the kernel kills the child when the
/// calling thread ends, however it ends.
pub fn spawn_bound(command: &mut Command, inherit: Option<BorrowedFd<'_>>) -> io::Result<Child> {
    let parent = getpid();
    let inherit = inherit.map(|fd| fd.as_raw_fd());
    command.process_group(0);
    // SAFETY: between fork and exec the closure makes system calls only (prctl,
    // getppid, fcntl, rt_sigprocmask): it allocates nothing and takes no lock,
    // so it is sound in the child of a process with several threads. `inherit`
    // is open there because the caller's borrow lasts until spawn returns,
    // which is after exec.
    unsafe {
        command.pre_exec(move || {
            set_parent_process_death_signal(Some(Signal::KILL))?;
            if getppid() != Some(parent) {
                return Err(io::Error::from_raw_os_error(libc::ESRCH));
            }
            if let Some(fd) = inherit
                && libc::fcntl(fd, libc::F_SETFD, 0) < 0
            {
                return Err(io::Error::last_os_error());
            }
            let mut none = std::mem::zeroed();
            libc::sigemptyset(&mut none);
            libc::sigprocmask(libc::SIG_SETMASK, &none, std::ptr::null_mut());
            Ok(())
        });
    }
    command.spawn()
}

static EXIT_HOOK: OnceLock<fn(i32)> = OnceLock::new();

/// Has `hook` called with the status when this process ends itself by `exit`,
/// by the thread that does so. The first hook stays; it must not unwind. Does
/// nothing where the C library is not GNU's, which alone tells the status.
pub fn on_exit(hook: fn(i32)) {
    if EXIT_HOOK.set(hook).is_ok() {
        register_exit_hook();
    }
}

#[cfg(not(target_env = "gnu"))]
fn register_exit_hook() {}

#[cfg(target_env = "gnu")]
fn register_exit_hook() {
    use std::ffi::{c_int, c_void};

    // SAFETY: the declaration is that of glibc's `stdlib.h`.
    unsafe extern "C" {
        fn on_exit(hook: extern "C" fn(c_int, *mut c_void), argument: *mut c_void) -> c_int;
    }
    extern "C" fn call(status: c_int, _argument: *mut c_void) {
        if let Some(hook) = EXIT_HOOK.get() {
            hook(status);
        }
    }
    // SAFETY: `call` has the type that `on_exit` takes and lives as long as the
    // process's code; it uses no argument, so a null one is right. When there
    // is no memory to register it, nothing is.
    unsafe { on_exit(call, std::ptr::null_mut()) };
}

/// Signals that are read from a descriptor instead of interrupting. To be made
/// before other threads start, for they would still be interrupted.
pub struct Signals {
    fd: OwnedFd,
    before: libc::sigset_t,
}

impl Signals {
    /// Blocks `signals` in the calling thread until the value is dropped.
    pub fn block(signals: &[Signal]) -> io::Result<Signals> {
        // SAFETY: an all-zero sigset_t is a valid value (the empty set); every
        // pointer is to a live local of the right type; the number returned by
        // signalfd is fresh, so owning it is right.
        unsafe {
            let mut set: libc::sigset_t = std::mem::zeroed();
            let mut before: libc::sigset_t = std::mem::zeroed();
            libc::sigemptyset(&mut set);
            for signal in signals {
                libc::sigaddset(&mut set, signal.as_raw());
            }
            let error = libc::pthread_sigmask(libc::SIG_BLOCK, &set, &mut before);
            if error != 0 {
                return Err(io::Error::from_raw_os_error(error));
            }
            let fd = libc::signalfd(-1, &set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK);
            if fd < 0 {
                let error = io::Error::last_os_error();
                libc::pthread_sigmask(libc::SIG_SETMASK, &before, std::ptr::null_mut());
                return Err(error);
            }
            Ok(Signals { fd: OwnedFd::from_raw_fd(fd), before })
        }
    }

    /// The number of a signal that has arrived.
    pub fn take(&self) -> Option<i32> {
        let mut record = [0u8; size_of::<libc::signalfd_siginfo>()];
        match rustix::io::read(&self.fd, &mut record) {
            // The first field, `ssi_signo`, is the signal's number.
            Ok(n) if n == record.len() => Some(i32::from_ne_bytes([record[0], record[1], record[2], record[3]])),
            _ => None,
        }
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Drop for Signals {
    fn drop(&mut self) {
        while self.take().is_some() {}
        // SAFETY: `before` was filled by pthread_sigmask in `block`.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &self.before, std::ptr::null_mut()) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_sockets_are_inherited() {
        let (a, _b) = std::os::unix::net::UnixStream::pair().unwrap();
        assert!(duplicate_inherited_socket(a.as_raw_fd()).is_ok());
        let file = std::fs::File::open("/dev/null").unwrap();
        assert!(duplicate_inherited_socket(file.as_raw_fd()).is_err());
        assert!(duplicate_inherited_socket(1_000_000).is_err());
    }

    #[test]
    fn a_bound_child_dies_with_its_thread() {
        let mut child =
            std::thread::spawn(|| spawn_bound(Command::new("sleep").arg("60"), None).unwrap()).join().unwrap();
        use std::os::unix::process::ExitStatusExt;
        assert_eq!(child.wait().unwrap().signal(), Some(libc::SIGKILL));
    }
}
