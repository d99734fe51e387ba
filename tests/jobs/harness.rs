//! Starting jobs, with a deadline, and seeing that nothing of them is left.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use libtest_mimic::Trial;

/// Names the scenario that a rank runs.
pub const SCENARIO: &str = "COLLIMATE_TEST_SCENARIO";

/// What is not to be left out, in words that `scripts/setup --required` prints.
const REQUIRED: &str = "COLLIMATE_TEST_REQUIRED";

/// Marks the processes of one job.
const MARK: &str = "COLLIMATE_TEST_JOB";

/// Longer than any job here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// How long processes may take to go after the launcher has.
const LINGER: Duration = Duration::from_secs(3);

/// A test: its name and what it does. It fails by panicking.
pub type Test = (String, Box<dyn FnOnce() + Send>);

/// Makes a test.
pub fn test(name: impl Into<String>, body: impl FnOnce() + Send + 'static) -> Test {
    (name.into(), Box::new(body))
}

/// Whether it is a failure that something is not here: a word of
/// `scripts/setup --required`.
pub fn is_required(what: &str) -> bool {
    std::env::var(REQUIRED).is_ok_and(|all| all.split_whitespace().any(|word| word == what))
}

/// A test as it is run. Where it lacks something it counts as ignored, or fails
/// if that is required.
pub fn trial((name, body): Test, lacks: Option<&'static str>) -> Trial {
    let required = lacks.filter(|what| is_required(what));
    let run = move || match required {
        Some(what) => Err(format!("{what} must be here ({REQUIRED}), and is not").into()),
        None => {
            body();
            Ok(())
        }
    };
    Trial::test(name, run).with_ignored_flag(lacks.is_some() && required.is_none())
}

/// What a test needs beyond this library, by its name, and is not installed.
pub fn lacks_launcher(test: &str) -> Option<&'static str> {
    let launchers = [("openmpi", "mpirun.openmpi"), ("mpich", "mpirun.mpich")];
    let (word, _) = launchers.into_iter().find(|(_, program)| test.ends_with(program) && find(program).is_none())?;
    Some(word)
}

/// The path of an installed program.
fn find(program: &str) -> Option<PathBuf> {
    std::env::split_paths(&std::env::var_os("PATH")?).map(|folder| folder.join(program)).find(|path| path.exists())
}

/// A job to be started.
pub struct Job {
    command: Command,
    mark: String,
    scratch: PathBuf,
    patience: Duration,
    what: String,
}

/// A job that runs.
pub struct Running {
    child: Child,
    out: Option<JoinHandle<String>>,
    err: Option<JoinHandle<String>>,
    mark: String,
    scratch: PathBuf,
    what: String,
    patience: Duration,
    started: Instant,
}

/// A job that has ended, with nothing of it left.
#[derive(Debug)]
#[expect(dead_code, reason = "shown when a test fails")]
pub struct Finished {
    pub what: String,
    pub status: Option<i32>,
    pub stdout: String,
    pub stderr: String,
    pub took: Duration,
}

/// `collimate run -n ranks -- <scenario>`.
pub fn job(ranks: u32, scenario: &str) -> Job {
    program(ranks, std::env::current_exe().unwrap(), &[]).env(SCENARIO, scenario)
}

/// `collimate run -n ranks -- program arguments…`.
pub fn program(ranks: u32, program: impl AsRef<Path>, arguments: &[&str]) -> Job {
    launch(&["-n", &ranks.to_string()], program.as_ref(), arguments)
}

/// The scenario in a job that only the end of rank 0 ends.
pub fn lasting(ranks: u32, scenario: &str) -> Job {
    let options = ["-n", &ranks.to_string(), "--keep-going"];
    launch(&options, &std::env::current_exe().unwrap(), &[]).env(SCENARIO, scenario)
}

fn launch(options: &[&str], program: &Path, arguments: &[&str]) -> Job {
    let mut command = Command::new(env!("CARGO_BIN_EXE_collimate"));
    command.arg("run").args(options).arg("--").arg(program).args(arguments);
    let job = Job::new(command, format!("{} {arguments:?} {options:?}", program.display()));
    let scratch = job.scratch.clone();
    job.env("TMPDIR", scratch.to_str().unwrap())
}

/// The scenario under an MPI launcher.
pub fn under_mpi(launcher: &str, ranks: u32, scenario: &str) -> Job {
    let mut command = Command::new(find(launcher).unwrap_or_else(|| panic!("{launcher} is not installed")));
    if launcher.ends_with("openmpi") {
        command.arg("--oversubscribe");
        command.env("OMPI_ALLOW_RUN_AS_ROOT", "1").env("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1");
    }
    command.args(["-n", &ranks.to_string()]).arg(std::env::current_exe().unwrap());
    Job::new(command, format!("{launcher} {ranks}")).env(SCENARIO, scenario)
}

impl Job {
    /// A job that `command` starts; `what` names it when it fails.
    pub fn new(mut command: Command, what: String) -> Job {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let mark = format!("{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let scratch = std::env::temp_dir().join(format!("clm-test-{mark}"));
        std::fs::create_dir(&scratch).unwrap();
        for (name, _) in std::env::vars_os() {
            let name = name.to_string_lossy().into_owned();
            if name.starts_with("COLLIMATE_") || name.starts_with("PMI") {
                command.env_remove(name);
            }
        }
        command.env(MARK, &mark).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        Job { command, mark, scratch, patience: PATIENCE, what }
    }

    pub fn env(mut self, name: &str, value: impl AsRef<str>) -> Job {
        self.what = format!("{} {name}={}", self.what, value.as_ref());
        self.command.env(name, value.as_ref());
        self
    }

    pub fn within(mut self, patience: Duration) -> Job {
        self.patience = patience;
        self
    }

    pub fn start(mut self) -> Running {
        let mut child = self.command.spawn().unwrap_or_else(|e| panic!("{}: {e}", self.what));
        let out = drain(child.stdout.take().unwrap());
        let err = drain(child.stderr.take().unwrap());
        let Job { mark, scratch, what, patience, .. } = self;
        Running { child, out: Some(out), err: Some(err), mark, scratch, what, patience, started: Instant::now() }
    }

    pub fn run(self) -> Finished {
        self.start().finish()
    }
}

impl Running {
    /// The launcher.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The processes of the job.
    pub fn processes(&self) -> Vec<u32> {
        marked(&self.mark)
    }

    /// Waits for the end, and that nothing is left.
    pub fn finish(mut self) -> Finished {
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break Some(status);
            }
            if self.started.elapsed() > self.patience {
                break None;
            }
            std::thread::sleep(Duration::from_millis(3));
        };
        let took = self.started.elapsed();
        let Some(status) = status else {
            if std::env::var_os("COLLIMATE_TEST_HOLD").is_some() {
                eprintln!("{} hangs; its processes: {:?}", self.what, marked(&self.mark));
                std::thread::sleep(Duration::from_secs(600));
            }
            let (stdout, stderr) = self.stop();
            panic!("{} has not ended within {:?}\n{stdout}\n{stderr}", self.what, self.patience);
        };
        let ended = Instant::now();
        while !marked(&self.mark).is_empty() && ended.elapsed() < LINGER {
            std::thread::sleep(Duration::from_millis(5));
        }
        let left: Vec<String> = marked(&self.mark).into_iter().map(describe).collect();
        let files: Vec<_> = std::fs::read_dir(&self.scratch).unwrap().map(|e| e.unwrap().path()).collect();
        let (stdout, stderr) = self.stop();
        assert!(left.is_empty(), "{} left processes: {left:?}\n{stdout}\n{stderr}", self.what);
        assert!(files.is_empty(), "{} left files: {files:?}", self.what);
        let shared = std::fs::read_dir("/dev/shm").into_iter().flatten().flatten();
        let shared: Vec<_> =
            shared.map(|e| e.file_name()).filter(|n| n.to_string_lossy().contains("collimate")).collect();
        assert!(shared.is_empty(), "{} left segments: {shared:?}", self.what);
        Finished { what: self.what.clone(), status: status.code(), stdout, stderr, took }
    }

    /// Ends what still runs and returns what was written.
    fn stop(&mut self) -> (String, String) {
        for pid in marked(&self.mark) {
            let pid = rustix::process::Pid::from_raw(pid as i32).unwrap();
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
        let _ = self.child.wait();
        let text = |reader: Option<JoinHandle<String>>| reader.map(|r| r.join().unwrap()).unwrap_or_default();
        let texts = (text(self.out.take()), text(self.err.take()));
        let _ = std::fs::remove_dir_all(&self.scratch);
        texts
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Finished {
    /// The job has succeeded and complained about nothing.
    pub fn succeeded(self) -> Finished {
        assert!(self.status == Some(0) && self.stderr.is_empty(), "{self:#?}");
        self
    }

    /// The job ended with `status` and one line that has all of `words`.
    pub fn failed(self, status: i32, words: &[&str]) -> Finished {
        let lines = self.stderr.lines().count();
        assert!(self.status == Some(status) && lines == 1, "expected status {status} and one line: {self:#?}");
        assert!(words.iter().all(|w| self.stderr.contains(w)), "expected {words:?}: {self:#?}");
        self
    }

    /// The number behind `name=` on a line of the output.
    pub fn number(&self, name: &str) -> f64 {
        let mut values = self.stdout.lines().filter_map(|l| l.strip_prefix(name)?.strip_prefix('=')?.parse().ok());
        values.next_back().unwrap_or_else(|| panic!("no line {name}=…: {self:#?}"))
    }
}

fn drain(mut stream: impl Read + Send + 'static) -> JoinHandle<String> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = stream.read_to_end(&mut bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

/// Processes with a job's mark in their environment, zombies left out.
fn marked(mark: &str) -> Vec<u32> {
    let wanted = format!("{MARK}={mark}");
    let pids = std::fs::read_dir("/proc").unwrap().flatten();
    let pids = pids.filter_map(|e| e.file_name().to_str()?.parse::<u32>().ok());
    let has_mark = |pid: &u32| {
        let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        environment.split(|b| *b == 0).any(|variable| variable == wanted.as_bytes())
    };
    pids.filter(has_mark).collect()
}

fn describe(pid: u32) -> String {
    let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    format!("{pid}: {}", String::from_utf8_lossy(&command).replace('\0', " "))
}

/// Processor time that the threads of a process have used; `stat` counts it in
/// hundredths of a second only.
pub fn processor_time(pid: u32) -> Duration {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let of_one = |thread: std::fs::DirEntry| {
        let schedstat = std::fs::read_to_string(thread.path().join("schedstat")).unwrap();
        schedstat.split_whitespace().next().unwrap().parse::<u64>().unwrap()
    };
    Duration::from_nanos(threads.map(|thread| of_one(thread.unwrap())).sum())
}
