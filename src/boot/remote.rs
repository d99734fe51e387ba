//! Ranks on another host: the launcher starts `collimate _remote` there through
//! ssh, whose standard input and output carry frames. The job's key travels in
//! the first frame, never in a command line.

use std::env;
use std::ffi::{OsStr, OsString};
use std::io::{self, Read, Write};
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};

use super::LAUNCH_FD;
use super::frame::{Decoder, Frame, Start, Welcome};
use super::launch::wait;
use super::local::{Local, Program};
use crate::base::limits::{BOOT_DEADLINE, SHELL_EXIT_DEADLINE};
use crate::sys::{Signals, spawn_bound};

/// The variable that replaces `ssh`: a command to which the host and the remote
/// command are appended.
const RSH: &str = "COLLIMATE_RSH";

/// What starts ranks where there is no other way; it must not ask anything.
const SSH: &str = "ssh -o BatchMode=yes";

/// The launcher's end of the connection to another host.
pub(super) struct Remote {
    host: String,
    ranks: Range<u32>,
    shell: String,
    child: Child,
    decoder: Decoder,
    lost: bool,
}

impl Remote {
    /// Starts the ranks `ranks` on `host`; the error is one line for the user.
    pub(super) fn start(host: &str, ranks: Range<u32>, first: Welcome, program: &Program) -> Result<Remote, String> {
        let rsh = env::var(RSH).ok().filter(|v| !v.trim().is_empty()).unwrap_or_else(|| SSH.into());
        let mut words = rsh.split_ascii_whitespace();
        let shell = words.next().unwrap_or_default().to_string();
        let failed = |e: io::Error| format!("cannot reach {host} with `{shell}`: {e}; install it or set {RSH}");
        let own = env::current_exe().map_err(|e| format!("cannot name this program: {e}"))?;
        let mut command = Command::new(&shell);
        command.args(words).arg(host).arg(quoted(own.as_os_str())).arg("_remote");
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let child = spawn_bound(&mut command, None).map_err(failed)?;
        let start = Start {
            count: ranks.end - ranks.start,
            first,
            command: program.command.iter().map(|word| word.as_bytes().to_vec()).collect(),
            directory: env::current_dir().map(|d| d.into_os_string().into_vec()).unwrap_or_default(),
            vars: own_vars().chain(program.vars.clone()).collect(),
        };
        let mut remote =
            Remote { host: host.into(), ranks, shell: shell.clone(), child, decoder: Decoder::default(), lost: false };
        if let Some(out) = &remote.child.stdout {
            rustix::io::ioctl_fionbio(out, true).map_err(|e| failed(e.into()))?;
        }
        remote.tell(&Frame::Start(Box::new(start)));
        Ok(remote)
    }

    pub(super) fn host(&self) -> &str {
        &self.host
    }

    pub(super) fn ranks(&self) -> Range<u32> {
        self.ranks.clone()
    }

    pub(super) fn fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.child.stdout.iter().filter(|_| !self.lost).map(AsFd::as_fd)
    }

    /// Sends a frame; a host that is gone is noticed by [`Remote::collect`].
    pub(super) fn tell(&mut self, frame: &Frame) {
        if let Some(input) = &mut self.child.stdin
            && input.write_all(&frame.encode()).and_then(|()| input.flush()).is_err()
        {
            self.child.stdin = None;
        }
    }

    /// What came from there, and why nothing more will come.
    pub(super) fn collect(&mut self) -> (Vec<Frame>, Option<String>) {
        let mut frames = Vec::new();
        let mut buffer = vec![0; 64 * 1024];
        while let Some(out) = self.child.stdout.as_mut().filter(|_| !self.lost) {
            let ended = match out.read(&mut buffer) {
                Ok(0) => true,
                Ok(n) => {
                    self.decoder.push(&buffer[..n]);
                    false
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                Err(e) => e.kind() != io::ErrorKind::Interrupted,
            };
            let bad = loop {
                match self.decoder.take() {
                    Ok(Some(frame)) => frames.push(frame),
                    Ok(None) => break None,
                    Err(e) => break Some(e.to_string()),
                }
            };
            if bad.is_some() || ended {
                self.lost = true;
                let how = self.how_ended();
                let why = bad.unwrap_or_else(|| format!("`{}` {how} before its ranks did", self.shell));
                return (frames, Some(format!("{}: {why}", self.host)));
            }
        }
        (frames, None)
    }

    fn how_ended(&mut self) -> String {
        let deadline = Instant::now() + SHELL_EXIT_DEADLINE;
        loop {
            match self.child.try_wait() {
                Ok(Some(status)) => return format!("ended ({status})"),
                Ok(None) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(5)),
                _ => return "closed the connection".into(),
            }
        }
    }
}

impl Drop for Remote {
    fn drop(&mut self) {
        // The end of its input makes the other side end what still runs.
        self.child.stdin = None;
        self.how_ended();
        if let Ok(None) = self.child.try_wait() {
            let _ = kill_process_group(Pid::from_child(&self.child), Signal::KILL);
            let _ = self.child.wait();
        }
    }
}

/// `collimate _remote`: serves a launcher on another host over standard input
/// and output, until every rank has ended or the launcher is gone. The error is
/// one line for the user.
pub fn serve_remote() -> Result<(), String> {
    let signals = Signals::block(&[Signal::CHILD]).map_err(|e| format!("cannot receive signals: {e}"))?;
    let input = rustix::stdio::stdin();
    let mut decoder = Decoder::default();
    let deadline = Instant::now() + BOOT_DEADLINE;
    let start = loop {
        match decoder.take().map_err(|e| e.to_string())? {
            Some(Frame::Start(start)) => break start,
            Some(_) => return Err("this command is started by `collimate run`".into()),
            None => {}
        }
        wait([input].into_iter(), Some(deadline));
        if Instant::now() >= deadline || !read_input(&mut decoder) {
            return Err("this command is started by `collimate run`".into());
        }
    };
    let mut local = match start_ranks(&start) {
        Ok(local) => local,
        Err(why) => return send(&[Frame::Failed(why)]),
    };
    loop {
        // Signals first: a rank that ends after this was read ends the wait.
        while signals.take().is_some() {}
        send(&local.collect())?;
        if local.all_ended() {
            return Ok(());
        }
        wait(local.fds().chain([input, signals.as_fd()]), None);
        if is_readable(input) {
            if !read_input(&mut decoder) {
                // The launcher is gone: dropping the ranks ends them.
                return Ok(());
            }
            while let Some(frame) = decoder.take().map_err(|e| e.to_string())? {
                match frame {
                    Frame::Signal(number) => local.signal(Signal::from_named_raw(number).unwrap_or(Signal::KILL)),
                    cards @ Frame::Cards(_) => local.tell(&cards),
                    _ => {}
                }
            }
        }
    }
}

fn start_ranks(start: &Start) -> Result<Local, String> {
    let program = Program {
        command: start.command.iter().map(|word| OsString::from_vec(word.clone())).collect(),
        vars: start.vars.clone(),
        directory: Some(OsString::from_vec(start.directory.clone()).into()),
        capture: true,
    };
    let ranks = start.first.rank..start.first.rank.saturating_add(start.count);
    Local::spawn(&program, ranks.map(|rank| Welcome { rank, ..start.first.clone() }))
}

/// `false` at the end of standard input.
fn read_input(decoder: &mut Decoder) -> bool {
    let mut buffer = [0; 16 * 1024];
    match rustix::io::read(rustix::stdio::stdin(), &mut buffer) {
        Ok(0) => false,
        Ok(n) => {
            decoder.push(&buffer[..n]);
            true
        }
        Err(e) => e == rustix::io::Errno::INTR || e == rustix::io::Errno::AGAIN,
    }
}

fn is_readable(fd: BorrowedFd<'_>) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let mut fds = [PollFd::from_borrowed_fd(fd, PollFlags::IN)];
    poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).is_ok_and(|n| n > 0)
}

fn send(frames: &[Frame]) -> Result<(), String> {
    let mut out = io::stdout().lock();
    let written = frames.iter().try_for_each(|frame| out.write_all(&frame.encode())).and_then(|()| out.flush());
    written.map_err(|e| format!("the launcher is gone: {e}"))
}

/// The launcher's own settings, which the ranks of other hosts get too, save
/// those that hold for this host or this process only.
fn own_vars() -> impl Iterator<Item = (String, String)> {
    let kept = |name: &str| name.starts_with("COLLIMATE_") && ![LAUNCH_FD, RSH, "COLLIMATE_INTERFACE"].contains(&name);
    env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .filter(move |(name, _)| kept(name))
}

/// A word as a remote shell must see it.
fn quoted(word: &OsStr) -> OsString {
    let plain = |b: &u8| b.is_ascii_alphanumeric() || b"/._-+".contains(b);
    if word.as_bytes().iter().all(plain) {
        return word.to_os_string();
    }
    let mut bytes = b"'".to_vec();
    for byte in word.as_bytes() {
        if *byte == b'\'' { bytes.extend_from_slice(b"'\\''") } else { bytes.push(*byte) }
    }
    bytes.push(b'\'');
    OsString::from_vec(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_survive_a_shell() {
        for word in ["/usr/bin/collimate", "/a b/it's"] {
            let script = OsString::from(format!("printf %s {}", quoted(OsStr::new(word)).to_string_lossy()));
            let output = Command::new("sh").arg("-c").arg(script).output().unwrap();
            assert_eq!(String::from_utf8(output.stdout).unwrap(), word);
        }
    }
}
