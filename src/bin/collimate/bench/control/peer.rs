//! Servers of others that are started for a comparison: on loopback, in a
//! folder of their own, gone when the comparison ends.

use std::fs::File;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use collimate::sys::spawn_bound;

use super::super::measure::Failed;

/// How long a server may take to be ready.
const START_DEADLINE: Duration = Duration::from_secs(30);

/// What their output says last is part of an error: so many bytes of it.
const LAST_WORDS_BYTES: usize = 600;

/// A folder that goes when this does.
pub struct Folder(PathBuf);

impl Folder {
    /// A new one in the system's folder for temporary files.
    pub fn new(name: &str) -> Result<Folder, Failed> {
        let path = std::env::temp_dir().join(format!("collimate-bench-{}-{name}", std::process::id()));
        std::fs::create_dir(&path).map_err(|e| format!("cannot make {}: {e}", path.display()))?;
        Ok(Folder(path))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // What cannot be removed stays in the system's folder for such things.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A running server; it is killed with this, and by the kernel when the thread
/// that started it ends in any other way.
pub struct Server {
    child: Child,
    name: String,
    log: PathBuf,
}

impl Server {
    /// Starts `command`, whose output goes to a file in `folder`.
    pub fn start(name: &str, folder: &Path, command: &mut Command) -> Result<Server, Failed> {
        let log = folder.join(format!("{name}.log"));
        let output = File::create(&log)?;
        command.stdin(Stdio::null()).stderr(output.try_clone()?).stdout(output);
        let child = spawn_bound(command, None).map_err(|e| format!("cannot start {name}: {e}"))?;
        Ok(Server { child, name: name.into(), log })
    }

    /// Waits until `ready`.
    pub fn await_ready(&mut self, mut ready: impl FnMut() -> Result<(), Failed>) -> Result<(), Failed> {
        let deadline = Instant::now() + START_DEADLINE;
        loop {
            let why = match ready() {
                Ok(()) => return Ok(()),
                Err(why) => why,
            };
            if let Some(status) = self.child.try_wait()? {
                return Err(format!("{} ended with {status}: {}", self.name, self.last_words()).into());
            }
            if Instant::now() > deadline {
                let seconds = START_DEADLINE.as_secs();
                return Err(
                    format!("{} is not ready after {seconds} s ({why}): {}", self.name, self.last_words()).into()
                );
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn last_words(&self) -> String {
        let said = std::fs::read(&self.log).unwrap_or_default();
        String::from_utf8_lossy(&said[said.len().saturating_sub(LAST_WORDS_BYTES)..]).trim().replace('\n', "; ")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // One that has ended by itself was told of where that mattered.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// So many ports of loopback that are free now.
pub fn free_ports<const N: usize>() -> Result<[u16; N], Failed> {
    let mut listeners = Vec::new();
    for _ in 0..N {
        listeners.push(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?);
    }
    let mut ports = [0; N];
    for (port, listener) in ports.iter_mut().zip(&listeners) {
        *port = listener.local_addr()?.port();
    }
    Ok(ports)
}

/// Why a program cannot be used, with what to type, unless it is in the path.
pub fn missing(program: &str, package: &str) -> Option<String> {
    let paths = std::env::var_os("PATH").unwrap_or_default();
    let is_here = std::env::split_paths(&paths).any(|folder| folder.join(program).is_file());
    (!is_here)
        .then(|| format!("{program} is not installed; type: scripts/setup --peers (or apt-get install {package})"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_ends_says_why() {
        let folder = Folder::new("peer-test").unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", "echo no such luck; exit 3"]);
        let mut server = Server::start("luckless", folder.path(), &mut command).unwrap();
        let error = server.await_ready(|| Err("not yet".into())).unwrap_err().to_string();
        assert!(error.contains("no such luck") && error.contains('3'), "{error}");
        let path = folder.path().to_path_buf();
        drop((server, folder));
        assert!(!path.exists());
    }

    #[test]
    fn what_is_missing_is_named() {
        assert_eq!(missing("sh", "dash"), None);
        assert!(missing("no-such-server", "its-package").is_some_and(|why| why.contains("its-package")));
    }
}
