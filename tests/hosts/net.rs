//! Nets of simulated hosts, by `scripts/netns`, removed when they are dropped.

use std::os::linux::fs::MetadataExt;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};

use crate::harness::{Job, SCENARIO};

/// A net of hosts.
pub struct Net {
    name: String,
}

/// `scripts/netns`, to be given its arguments.
pub fn netns() -> Command {
    let mut command = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/netns"));
    command.env_remove("NETNS");
    command
}

/// Why nets cannot be made here, if this machine or this user may not make what
/// they consist of. It says nothing about `scripts/netns`, which has to work
/// wherever that can be made.
pub fn why_not() -> Option<String> {
    let name = format!("clm-probe{}-sw", std::process::id());
    let parts = [
        &["netns", "add", &name][..],
        &["-n", &name, "link", "add", "type", "bridge"],
        &["-n", &name, "link", "add", "type", "veth"],
    ];
    let lacking = parts.into_iter().find_map(|words| match ip(words) {
        Err(error) => Some(format!("the program ip cannot be run: {error}")),
        Ok(done) if done.status.success() => None,
        Ok(done) => Some(String::from_utf8_lossy(&done.stderr).trim().to_string()),
    });
    let _nothing_to_remove = ip(&["netns", "del", &name]);
    let lacking = lacking?;
    // Whatever else goes wrong will do so in the tests, and be seen there.
    let known =
        ["cannot be run", "Operation not permitted", "Permission denied", "Unknown device type", "not supported"];
    known.iter().any(|words| lacking.contains(words)).then_some(lacking)
}

fn ip(words: &[&str]) -> std::io::Result<Output> {
    let path = std::env::var("PATH").unwrap_or_default();
    Command::new("ip").args(words).env("PATH", format!("{path}:/usr/sbin:/sbin")).output()
}

impl Net {
    /// A net of `hosts` hosts.
    pub fn up(hosts: u32) -> Net {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let name = format!("clm-test{}x{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let net = Net { name };
        net.ask(&["up", &hosts.to_string()]);
        net
    }

    /// A job of this program with `ranks` ranks on each host.
    pub fn job(&self, ranks: u32, scenario: &str) -> Job {
        self.program(ranks, &[std::env::current_exe().unwrap().to_str().unwrap()]).env(SCENARIO, scenario)
    }

    /// `words` as a job with `ranks` ranks on each host.
    pub fn program(&self, ranks: u32, words: &[&str]) -> Job {
        let mut command = self.command();
        command.args(["run", "--ranks", &ranks.to_string(), "--launcher", env!("CARGO_BIN_EXE_collimate"), "--"]);
        command.args(words);
        Job::new(command, format!("{words:?} on {}", self.name))
    }

    /// Runs a command of `scripts/netns` that must succeed.
    pub fn ask(&self, words: &[&str]) -> Output {
        let output = self.command().args(words).output().unwrap();
        assert!(output.status.success(), "netns {words:?}: {output:?}");
        output
    }

    /// Those of `processes` that run on host `host`.
    pub fn of_host(&self, host: u32, processes: Vec<u32>) -> Vec<u32> {
        let inode = std::fs::metadata(format!("/run/netns/{}-{host}", self.name)).unwrap().st_ino();
        let theirs = format!("net:[{inode}]");
        let namespace = |pid: &u32| std::fs::read_link(format!("/proc/{pid}/ns/net"));
        processes.into_iter().filter(|pid| namespace(pid).is_ok_and(|n| n.as_os_str() == theirs.as_str())).collect()
    }

    fn command(&self) -> Command {
        let mut command = netns();
        command.args(["--net", &self.name]);
        command
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        let _ = self.command().arg("down").output();
    }
}
