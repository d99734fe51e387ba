//! What a killed process leaves in /dev/shm. The `shm` provider removes its
//! file when it is closed, and from a signal handler; nothing runs after
//! SIGKILL, so whoever survives removes the file.

use std::os::fd::OwnedFd;
use std::path::PathBuf;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

const FOLDER: &str = "/dev/shm";

/// A peer's file, and how to tell that its process has ended.
pub(super) struct Leftover {
    path: PathBuf,
    process: OwnedFd,
}

impl Leftover {
    /// What the peer would leave, as far as it is known: `address` is that of
    /// its endpoint, `process` its number.
    pub fn of(provider: &str, address: &[u8], process: u32) -> Option<Leftover> {
        let name = (provider == "shm").then(|| file_name(address, process)).flatten()?;
        let process = pidfd_open(Pid::from_raw(process as i32)?, PidfdFlags::empty()).ok()?;
        Some(Leftover { path: PathBuf::from(FOLDER).join(name), process })
    }

    /// Removes the file if the process has ended; whether it had.
    pub fn remove(&self) -> bool {
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        let has_ended = poll(&mut [PollFd::new(&self.process, PollFlags::IN)], Some(&now)) == Ok(1);
        if has_ended {
            // Another survivor may have been faster.
            let _ = std::fs::remove_file(&self.path);
        }
        has_ended
    }
}

/// The file behind an address such as `fi_shm://1234:0:1`, which must be one
/// of that process.
fn file_name(address: &[u8], process: u32) -> Option<String> {
    let text = std::str::from_utf8(address).ok()?.trim_end_matches('\0');
    let name = text.strip_prefix("fi_shm://")?;
    let is_plain = name.chars().all(|c| c.is_ascii_digit() || c == ':');
    let is_theirs = name.split(':').next().is_some_and(|first| first.parse() == Ok(process));
    (is_plain && is_theirs).then(|| name.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_file_of_that_process_is_meant() {
        assert_eq!(file_name(b"fi_shm://12:0:1\0", 12).as_deref(), Some("12:0:1"));
        for other in [&b"fi_shm://13:0:1\0"[..], b"fi_shm://12/../x", b"fi_ns://12:0:1", b"12:0:1", b"\xff", b""] {
            assert_eq!(file_name(other, 12), None);
        }
    }

    #[test]
    fn a_living_process_keeps_its_file() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let name = format!("{}:0:0", child.id());
        let path = PathBuf::from(FOLDER).join(&name);
        std::fs::write(&path, b"x").unwrap();
        let leftover = Leftover::of("shm", format!("fi_shm://{name}\0").as_bytes(), child.id()).unwrap();
        assert!(!leftover.remove() && path.exists());
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(leftover.remove() && !path.exists());
    }
}
