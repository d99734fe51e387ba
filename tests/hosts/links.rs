//! Whole links: the answer of a job is the same on one host and on several,
//! and `scripts/netns` keeps its word.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::harness::{Test, program, test};
use crate::net::{Net, netns};

/// The test that needs Open MPI.
pub const UNDER_MPIRUN: &str = "under_mpirun";

pub fn tests() -> Vec<Test> {
    let mut tests = Vec::new();
    for fabric in ["auto", "uring", "epoll"] {
        tests.push(test(format!("three_hosts_one_answer_{fabric}"), move || {
            let words = ["es", "ring_allreduce"].map(|name| example(name).to_str().unwrap().to_string());
            let alone = program(2, &words[0], &["--quick"]).run();
            let net = Net::up(3);
            let across = net.program(2, &[&words[0], "--quick"]).env("COLLIMATE_FABRIC", fabric).run();
            assert!(alone.stdout.starts_with("digest ") && alone.status == Some(0), "{alone:#?}");
            assert!(across.stdout == alone.stdout && across.status == Some(0), "{across:#?}");
            let ring = net.program(2, &[&words[1]]).env("COLLIMATE_FABRIC", fabric).run().succeeded();
            assert!(ring.stdout.contains("every rank holds the sum"), "{ring:#?}");
        }));
    }
    // As on hosts with a container runtime: all have an address in common,
    // which leads nowhere.
    tests.push(test("libfabric_takes_the_address_that_reaches_the_others", || {
        let Some(net) = has_libfabric().then(|| Net::up(2)) else { return };
        for host in ["0", "1"] {
            net.ask(&["exec", host, "ip", "addr", "add", "172.19.0.1/16", "dev", "eth0"]);
        }
        let ring = net.program(2, &[example("ring_allreduce").to_str().unwrap(), "65536"]);
        let ring = ring.env("COLLIMATE_FABRIC", "ofi").env("COLLIMATE_OFI_PROVIDER", "tcp").env("COLLIMATE_LOG", "1");
        let done = ring.run();
        assert!(done.status == Some(0) && done.stdout.contains("every rank holds the sum"), "{done:#?}");
        assert!(done.stderr.contains("rank 0: ofi to rank 2"), "{done:#?}");
    }));
    tests.push(test("each_namespace_is_a_host", || {
        let net = Net::up(2);
        let done = net.program(2, &[example("fib").to_str().unwrap(), "12"]).env("COLLIMATE_LOG", "1").run();
        assert!(done.status == Some(0) && done.stdout.contains("fib(12) = 144"), "{done:#?}");
        for (pair, fabric) in [("rank 0: shm to rank 1", "shm"), ("rank 0: uring to rank 2", "uring")] {
            let or_epoll = pair.replace("uring", "epoll");
            assert!(done.stderr.contains(pair) || done.stderr.contains(&or_epoll), "{fabric}: {done:#?}");
        }
    }));
    tests.push(test(UNDER_MPIRUN, || {
        let fib = example("fib");
        let run = ["run", "-n", "2", "--ranks", "2", "--launcher", open_mpi().expect("Open MPI"), "--"];
        let output = netns().args(run).arg(&fib).arg("12").output().unwrap();
        assert!(output.status.success(), "{output:?}");
        assert!(String::from_utf8_lossy(&output.stdout).contains("fib(12) = 144"), "{output:?}");
    }));
    tests.push(test("netem_or_a_clear_no", || {
        let link = ["--delay", "20ms", "--loss", "0.1%", "--rate", "100mbit"];
        let has_netem = Path::new("/sys/module/sch_netem").exists();
        let run = ["run", "-n", "2", "--launcher", env!("CARGO_BIN_EXE_collimate")];
        let fib = example("fib");
        let shown = ["sh", "-c", "tc qdisc show dev eth0 >&2 && exec $0 5", fib.to_str().unwrap()];
        let output = netns().args(run).args(link).arg("--").args(shown).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        if has_netem || output.status.success() {
            assert!(output.status.success() && said.contains("delay 20ms loss 0.1% rate 100Mbit"), "{output:?}");
        } else {
            assert!(output.status.code() == Some(1) && said.contains("run it inside scripts/rdma-vm"), "{output:?}");
        }
    }));
    tests.push(test("a_run_removes_its_net", || {
        for signal in ["TERM", "INT"] {
            let mut command = netns();
            command.args(["run", "-n", "2", "--launcher", env!("CARGO_BIN_EXE_collimate"), "--", "sleep", "60"]);
            let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
            let name = format!("clm-run{}", child.id());
            wait_until("the net is there", || has_processes(&format!("{name}-1")));
            assert!(
                Command::new("kill").args([&format!("-{signal}"), &child.id().to_string()]).status().unwrap().success()
            );
            let status = child.wait().unwrap();
            assert!(!status.success());
            let left = Command::new("ip").args(["netns", "list"]).output().unwrap();
            assert!(!String::from_utf8_lossy(&left.stdout).contains(&name), "{left:?}");
        }
    }));
    tests
}

/// The path of an example, which `scripts/test` has built.
pub fn example(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_BIN_EXE_collimate")).with_file_name("examples").join(name);
    assert!(path.exists(), "{} is missing: run `cargo build --examples`", path.display());
    path
}

/// Waits for `done`, with patience.
pub fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !done() {
        assert!(begun.elapsed() < Duration::from_secs(30), "{what}: not within 30 s");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn has_processes(namespace: &str) -> bool {
    let output = Command::new("ip").args(["netns", "pids", namespace]).output().unwrap();
    !output.stdout.is_empty()
}

fn has_libfabric() -> bool {
    let mut info = Command::new(env!("CARGO_BIN_EXE_collimate"));
    let output = info.arg("info").env("COLLIMATE_OFI_PROVIDER", "tcp").output().unwrap();
    String::from_utf8_lossy(&output.stdout).contains("libfabric: provider tcp")
}

/// The program that starts jobs of Open MPI.
pub fn open_mpi() -> Option<&'static str> {
    ["mpirun.openmpi", "mpirun"].into_iter().find(|program| {
        let version = Command::new(program).arg("--version").output();
        version.is_ok_and(|v| String::from_utf8_lossy(&v.stdout).contains("Open MPI"))
    })
}
