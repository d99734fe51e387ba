//! Launching for real: this test binary starts itself as the ranks of jobs,
//! under our launcher and under the MPI launchers that are installed.

use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use collimate::base::Config;
use collimate::boot::{Card, Mesh, Stream, Via, start};

/// Set in processes that are to be ranks: what to do once they have met.
const ROLE: &str = "COLLIMATE_TEST_ROLE";

/// Longer than anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// Not a test but the program that the tests launch.
#[test]
fn rank_program() {
    let Ok(role) = std::env::var(ROLE) else { return };
    if role == "one never joins" && !joins() {
        return;
    }
    let config = Config::from_env().unwrap();
    let tcp = role == "meet-by-tcp";
    let via = |me: &Card, peer: &Card| if me.host == peer.host && !tcp { Via::Unix } else { Via::Tcp };
    let mesh = match start(&config, &via, &|_, _| Ok(Vec::new())) {
        Ok(mesh) => mesh,
        Err(error) => {
            println!("\nerror: {error}");
            std::process::exit(1);
        }
    };
    let rank = mesh.rank.0;
    let status = match role.as_str() {
        "meet" | "meet-by-tcp" => {
            println!("\n{}", meet(mesh));
            0
        }
        "has a child" => {
            let [me, arguments @ ..] = rank_command();
            let child = Command::new(me).args(arguments).env(ROLE, "meet").status().unwrap();
            child.code().unwrap()
        }
        "status" => {
            let status = 3;
            mesh.launcher.finish(status);
            status
        }
        "linger" => {
            println!("\npid={}", std::process::id());
            std::thread::sleep(PATIENCE);
            1
        }
        "rank 1 exits" if rank == 1 => 7,
        "rank 1 is killed" if rank == 1 => {
            let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
            1
        }
        _ => {
            std::thread::sleep(PATIENCE);
            1
        }
    };
    std::process::exit(status);
}

/// Lets the second of two processes leave: whichever finds the other's lock.
fn joins() -> bool {
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::{SocketAddr, UnixListener};
    let name = format!("collimate-test-{}", rustix::process::getppid().map_or(0, |pid| pid.as_raw_nonzero().get()));
    match UnixListener::bind_addr(&SocketAddr::from_abstract_name(name).unwrap()) {
        Ok(lock) => {
            std::mem::forget(lock);
            true
        }
        Err(_) => false,
    }
}

/// Sends each peer a byte, checks theirs and describes the mesh in one line.
fn meet(mut mesh: Mesh) -> String {
    mesh.links.sort_by_key(|(peer, _)| *peer);
    let mut line = format!("rank={} size={} local={}/{}", mesh.rank.0, mesh.size, mesh.local_rank, mesh.local_size);
    for (_, link) in &mut mesh.links {
        link.write_all(&[mesh.rank.0 as u8]).unwrap();
    }
    for (peer, link) in &mut mesh.links {
        let mut byte = [0];
        link.read_exact(&mut byte).unwrap();
        assert_eq!(u32::from(byte[0]), peer.0);
        let via = if matches!(link, Stream::Unix(_)) { "unix" } else { "tcp" };
        write!(line, " {}:{via}", peer.0).unwrap();
    }
    mesh.launcher.finish(0);
    line
}

fn collimate() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_collimate"));
    for name in ["PMI_FD", "PMI_RANK", "PMI_SIZE", "PMIX_RANK", "COLLIMATE_LAUNCH_FD", "COLLIMATE_PORT"] {
        command.env_remove(name);
    }
    command.stdin(Stdio::null());
    command
}

/// `collimate run` with this binary in `role` as its program.
fn run(ranks: u32, role: &str) -> Command {
    let mut command = collimate();
    command.args(["run", "-n", &ranks.to_string(), "--"]).args(rank_command()).env(ROLE, role);
    command
}

fn rank_command() -> [std::ffi::OsString; 5] {
    let me = std::env::current_exe().unwrap().into();
    [me, "rank_program".into(), "--exact".into(), "--nocapture".into(), "--test-threads=1".into()]
}

/// The lines that ranks have printed, in order of rank.
fn met(output: &Output) -> Vec<String> {
    let text = String::from_utf8_lossy(&output.stdout);
    let mut lines: Vec<String> =
        text.lines().filter_map(|line| Some(line[line.find("rank=")?..].to_string())).collect();
    lines.sort();
    lines
}

fn expected(size: u32, via: &str) -> Vec<String> {
    let peers = |me| (0..size).filter(move |r| *r != me).map(|r| format!(" {r}:{via}")).collect::<String>();
    (0..size).map(|me| format!("rank={me} size={size} local={me}/{size}{}", peers(me))).collect()
}

fn assert_met(output: &Output, size: u32, via: &str) {
    assert!(output.status.success(), "{output:?}");
    assert_eq!(met(output), expected(size, via), "{output:?}");
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A directory that is removed at the end of its test.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Scratch {
        let path = std::env::temp_dir().join(format!("collimate-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Scratch(path)
    }

    fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.join(name);
        std::fs::write(&path, text).unwrap();
        path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn wait_until(what: &str, within: Duration, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < within, "{what} within {within:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Whether a process runs (a zombie that waits for its parent does not).
fn runs(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(')').next().is_some_and(|rest| !rest.trim_start().starts_with('Z') && !rest.trim().is_empty())
}

/// Starts a job that lingers and reads its ranks' process numbers.
fn start_lingering(mut command: Command, ranks: usize) -> (Child, Vec<u32>) {
    let mut launcher = command.stdout(Stdio::piped()).spawn().unwrap();
    let lines = BufReader::new(launcher.stdout.take().unwrap()).lines();
    let pids = lines.map_while(Result::ok).filter_map(|line| line.strip_prefix("pid=")?.parse().ok());
    let pids: Vec<u32> = pids.take(ranks).collect();
    assert_eq!(pids.len(), ranks, "all ranks start");
    (launcher, pids)
}

#[test]
fn alone_without_a_launcher() {
    let [me, arguments @ ..] = rank_command();
    let output = Command::new(me).args(arguments).env(ROLE, "meet").output().unwrap();
    assert_met(&output, 1, "none");
}

#[test]
fn our_launcher_with_1_2_and_4_ranks() {
    for size in [1, 2, 4] {
        assert_met(&run(size, "meet").output().unwrap(), size, "unix");
    }
    assert_met(&run(3, "meet-by-tcp").output().unwrap(), 3, "tcp");
}

#[test]
fn open_mpi_and_mpich_launch_the_same_binary() {
    for mpirun in mpiruns() {
        for size in [1, 2, 4] {
            assert_met(&mpirun.command(size, "meet").output().unwrap(), size, "unix");
        }
    }
}

/// An MPI launcher and the options that it needs here.
struct Mpirun(&'static [&'static str]);

/// Those that are installed; `.ci/run` says which ones must be.
fn mpiruns() -> Vec<Mpirun> {
    let all =
        [("openmpi", &["mpirun.openmpi", "--oversubscribe", "--bind-to", "none"][..]), ("mpich", &["mpirun.mpich"])];
    let required = std::env::var("COLLIMATE_TEST_REQUIRED").unwrap_or_default();
    let mut installed = Vec::new();
    for (name, words) in all {
        if Command::new(words[0]).arg("--version").output().is_ok() {
            installed.push(Mpirun(words));
        } else {
            assert!(!required.split_whitespace().any(|word| word == name), "{} must be installed", words[0]);
            // Past the test harness, which shows nothing of a test that passes.
            let _ = writeln!(std::io::stderr(), "skipped: {} is not installed", words[0]);
        }
    }
    installed
}

impl Mpirun {
    fn command(&self, size: u32, role: &str) -> Command {
        let mut command = Command::new(self.0[0]);
        command.args(&self.0[1..]).args(["-n", &size.to_string()]).args(rank_command());
        // Open MPI refuses root unless told twice.
        command.env("OMPI_ALLOW_RUN_AS_ROOT", "1").env("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1");
        command.env(ROLE, role).stdin(Stdio::null());
        command
    }
}

#[test]
fn killed_launchers_leave_no_rank_and_the_next_job_starts() {
    let (mut launcher, pids) = start_lingering(run(3, "linger"), 3);
    launcher.kill().unwrap();
    launcher.wait().unwrap();
    wait_until("the ranks end", Duration::from_secs(2), || pids.iter().all(|pid| !runs(*pid)));
    assert_met(&run(3, "meet").output().unwrap(), 3, "unix");
}

#[test]
fn the_ranks_of_a_killed_mpirun_end_too() {
    for mpirun in mpiruns() {
        let (mut launcher, pids) = start_lingering(mpirun.command(2, "linger"), 2);
        launcher.kill().unwrap();
        launcher.wait().unwrap();
        wait_until("the ranks end", Duration::from_secs(10), || pids.iter().all(|pid| !runs(*pid)));
    }
}

#[test]
fn a_rank_behind_a_shell_ends_with_the_launcher() {
    let mut command = collimate();
    command.args(["run", "-n", "1", "--", "sh", "-c", "\"$@\"; true", "sh"]).args(rank_command()).env(ROLE, "linger");
    let (mut launcher, pids) = start_lingering(command, 1);
    launcher.kill().unwrap();
    launcher.wait().unwrap();
    wait_until("the rank ends", Duration::from_secs(10), || pids.iter().all(|pid| !runs(*pid)));
}

#[test]
fn a_rank_that_leaves_before_joining_strands_nobody() {
    let start = Instant::now();
    let output = run(2, "one never joins").output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(stderr(&output).contains("ended before it had joined"), "{output:?}");
    assert!(start.elapsed() < Duration::from_secs(30), "ended by the launcher, not by patience");
}

#[test]
fn an_interrupt_ends_all_ranks_and_gives_the_shells_status() {
    let (mut launcher, pids) = start_lingering(run(2, "linger"), 2);
    let pid = rustix::process::Pid::from_child(&launcher);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    assert_eq!(launcher.wait().unwrap().code(), Some(130));
    assert!(pids.iter().all(|pid| !runs(*pid)));
}

#[test]
fn a_rank_that_dies_ends_the_job_and_is_named() {
    for (role, how) in [("rank 1 exits", "exited with status 7"), ("rank 1 is killed", "was killed by SIGKILL")] {
        let start = Instant::now();
        let output = run(3, role).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        let text = stderr(&output);
        assert_eq!(text.lines().filter(|l| l.starts_with("collimate: ")).count(), 1, "{text}");
        assert!(text.contains("rank 1 (pid ") && text.contains(how), "{text}");
        assert!(start.elapsed() < Duration::from_secs(30), "ended by the launcher, not by patience");
    }
}

#[test]
fn the_exit_status_is_the_drivers() {
    let output = run(2, "status").output().unwrap();
    assert_eq!((output.status.code(), stderr(&output).as_str()), (Some(3), ""));
    for (status, script) in [(0, "exit 0"), (5, "exit 5")] {
        let output = collimate().args(["run", "-n", "1", "--", "sh", "-c", script]).output().unwrap();
        assert_eq!(output.status.code(), Some(status));
    }
}

#[test]
fn the_key_stands_in_no_command_line_and_no_environment() {
    let (mut launcher, pids) = start_lingering(run(2, "linger"), 2);
    for pid in pids.iter().copied().chain([launcher.id()]) {
        let read = |name| std::fs::read(format!("/proc/{pid}/{name}")).unwrap();
        let arguments = String::from_utf8_lossy(&read("cmdline")).into_owned();
        assert!(!arguments.contains("COLLIMATE") && longest_hex(&arguments) < 32, "{arguments}");
        let environment = read("environ");
        let own = environment.split(|b| *b == 0).filter(|v| v.starts_with(b"COLLIMATE_"));
        for variable in own.map(|v| String::from_utf8_lossy(v).into_owned()) {
            assert!(longest_hex(&variable) < 32, "{variable}");
        }
    }
    let pid = rustix::process::Pid::from_child(&launcher);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    launcher.wait().unwrap();
}

fn longest_hex(text: &str) -> usize {
    text.split(|c: char| !c.is_ascii_hexdigit()).map(str::len).max().unwrap_or(0)
}

#[test]
fn a_child_of_a_rank_is_no_rank() {
    // The ranks of this job say nothing of themselves; the child of each does.
    let output = run(2, "has a child").output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert_eq!(met(&output), [expected(1, ""), expected(1, "")].concat());
}

#[test]
fn a_taken_port_is_named_with_the_variable_to_set() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let output = run(2, "meet").env("COLLIMATE_PORT", port.to_string()).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let line = text.lines().find(|l| l.contains("error: ")).unwrap_or_default();
    assert!(line.contains(&format!("rank 0 cannot listen on 127.0.0.1:{port}")), "{text}");
    assert!(line.contains("set COLLIMATE_PORT"), "{text}");
    assert_eq!(output.status.code(), Some(1));
}

#[test]
fn ranks_of_another_host_join_through_a_remote_shell() {
    let scratch = Scratch::new("rsh");
    // Stands in for ssh: drops the host's name and runs the command here.
    let rsh = scratch.file("rsh", "#!/bin/sh\necho \"$*\" >> \"$(dirname \"$0\")/log\"\nshift\nexec sh -c \"$*\"\n");
    make_executable(&rsh);
    let hosts = scratch.file("hosts", "localhost slots=1\nfar slots=2 # two there\n");
    let job = |role| {
        let mut command = collimate();
        command.args(["run", "-n", "3", "--hostfile"]).arg(&hosts).arg("--").args(rank_command());
        command.env(ROLE, role).env("COLLIMATE_RSH", &rsh);
        command
    };
    assert_met(&job("meet").output().unwrap(), 3, "unix");
    let log = std::fs::read_to_string(scratch.0.join("log")).unwrap();
    assert!(log.starts_with("far ") && log.trim().ends_with("_remote") && longest_hex(&log) < 32, "{log}");

    let output = job("rank 1 is killed").output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains(" on far) was killed by SIGKILL"), "{output:?}");

    let (mut launcher, pids) = start_lingering(job("linger"), 3);
    launcher.kill().unwrap();
    launcher.wait().unwrap();
    wait_until("the ranks end", Duration::from_secs(10), || pids.iter().all(|pid| !runs(*pid)));
}

#[test]
fn an_unreachable_host_ends_the_job_with_its_name() {
    let scratch = Scratch::new("norsh");
    let hosts = scratch.file("hosts", "far\n");
    let mut job = collimate();
    job.args(["run", "-n", "1", "--hostfile"]).arg(&hosts).args(["--", "true"]);
    let output = job.env("COLLIMATE_RSH", "false").output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).starts_with("collimate: far: `false` ended (exit status: 1)"), "{output:?}");
    let output = job.env("COLLIMATE_RSH", "/no/such/rsh").output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).starts_with("collimate: cannot reach far with `/no/such/rsh`"), "{output:?}");
}

#[test]
fn wrong_use_is_one_line_and_status_2() {
    let cases: &[(&[&str], &str)] = &[
        (&[], "no command was given"),
        (&["walk"], "unrecognized subcommand 'walk'"),
        (&["run", "--hops", "3"], "unexpected argument '--hops'"),
        (&["run", "-n", "0", "--", "true"], "invalid value '0' for '-n <N>'"),
        (&["run", "-n", "many", "--", "true"], "invalid value 'many' for '-n <N>'"),
        (&["run", "-n", "2"], "<PROGRAM>"),
        (&["run", "--", "true"], "-n <N>"),
        (&["run", "-n", "2", "--fabric", "smoke", "--", "true"], "auto, shm, rdma, ofi, uring or epoll"),
        (&["run", "-n", "2", "--workers", "0", "--", "true"], "a number from 1"),
        (&["run", "-n", "2", "--store", "1K", "--", "true"], "such as 512M"),
    ];
    for (arguments, part) in cases {
        assert_refused(collimate().args(*arguments), 2, part);
    }
}

#[test]
fn what_cannot_be_run_is_one_line_and_status_1() {
    let scratch = Scratch::new("bad");
    let plain = scratch.file("plain", "text");
    let empty = scratch.file("empty", "# nobody\n");
    let malformed = scratch.file("malformed", "here slots=two\n");
    let small = scratch.file("small", "localhost slots=2\n");
    let program = |name: &Path| ["run", "-n", "2", "--", name.to_str().unwrap()].map(str::to_string);
    assert_refused(collimate().args(program(Path::new("/no/such/program"))), 1, "there is no program");
    assert_refused(collimate().args(program(&plain)), 1, "chmod +x");
    assert_refused(collimate().args(program(&scratch.0)), 1, "may not be executed");
    let with = |hosts: &Path| {
        let mut command = collimate();
        command.args(["run", "-n", "3", "--hostfile"]).arg(hosts).args(["--", "true"]);
        command
    };
    assert_refused(&mut with(Path::new("/no/such/hosts")), 1, "/no/such/hosts cannot be read");
    assert_refused(&mut with(&empty), 1, "names no host");
    assert_refused(&mut with(&malformed), 1, "line 1: `here slots=two`");
    assert_refused(&mut with(&small), 1, "2 slots for 3 ranks");
}

fn assert_refused(command: &mut Command, status: i32, part: &str) {
    let output = command.output().unwrap();
    let text = stderr(&output);
    assert_eq!((output.status.code(), output.status.signal()), (Some(status), None), "{output:?}");
    assert!(text.starts_with("collimate: ") && text.lines().count() == 1 && text.contains(part), "{text}");
}

fn make_executable(path: &Path) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
}
