//! Open MPI's TCP as a reference: a small C program, compiled with the `mpicc`
//! that is there and started with its `mpirun`.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use collimate::sys::spawn_bound;

use super::measure::{Failed, Round, Samples};

const SOURCE: &str = include_str!("mpi_bulk.c");

/// How long one run may take.
const RUN_DEADLINE: Duration = Duration::from_secs(60);

/// The compiled program; its folder goes with it.
pub struct OpenMpi {
    folder: PathBuf,
    mpirun: &'static str,
}

impl OpenMpi {
    /// Compiles the program, or says why not.
    pub fn compile() -> Result<OpenMpi, String> {
        let pairs = [("mpicc.openmpi", "mpirun.openmpi"), ("mpicc", "mpirun")];
        let is_open_mpi = |mpirun: &str| {
            let output = Command::new(mpirun).arg("--version").stdin(Stdio::null()).output();
            output.is_ok_and(|output| String::from_utf8_lossy(&output.stdout).contains("Open MPI"))
        };
        let (mpicc, mpirun) = pairs.into_iter().find(|(_, mpirun)| is_open_mpi(mpirun)).ok_or("it is not installed")?;
        let folder = std::env::temp_dir().join(format!("collimate-bench-{}", std::process::id()));
        std::fs::create_dir(&folder).map_err(|e| format!("cannot make {}: {e}", folder.display()))?;
        let made = OpenMpi { folder, mpirun };
        let source = made.folder.join("bulk.c");
        std::fs::write(&source, SOURCE).map_err(|e| format!("cannot write {}: {e}", source.display()))?;
        let mut command = Command::new(mpicc);
        command.arg("-O2").arg("-o").arg(made.program()).arg(&source).stdin(Stdio::null());
        let output = command.output().map_err(|e| format!("cannot run {mpicc}: {e}"))?;
        match output.status.success() {
            true => Ok(made),
            false => Err(format!("{mpicc} fails: {}", String::from_utf8_lossy(&output.stderr))),
        }
    }

    /// Moves an object of `bytes` so many times; the first, which opens the
    /// connection, does not count.
    pub fn run(&self, bytes: usize, rounds: u64) -> Result<Round, Failed> {
        let mut command = Command::new(self.mpirun);
        command.args(["--mca", "pml", "ob1", "--mca", "btl", "tcp,self", "--mca", "btl_tcp_if_include", "lo"]);
        command.args(["--bind-to", "none", "--oversubscribe", "-n", "2"]);
        if rustix::process::geteuid().is_root() {
            command.arg("--allow-run-as-root");
        }
        command.arg(self.program()).args([bytes.to_string(), (rounds + 1).to_string()]);
        // It is to be a job of its own, not a part of this one.
        for (name, _) in std::env::vars_os() {
            if ["COLLIMATE_", "OMPI_", "PMIX_", "PMI_"].iter().any(|p| name.to_string_lossy().starts_with(p)) {
                command.env_remove(name);
            }
        }
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = spawn_bound(&mut command, None)?;
        let deadline = Instant::now() + RUN_DEADLINE;
        let status = loop {
            match child.try_wait()? {
                Some(status) => break status,
                None if Instant::now() > deadline => {
                    child.kill()?;
                    child.wait()?;
                    return Err(format!("{} did not end within {} s", self.mpirun, RUN_DEADLINE.as_secs()).into());
                }
                None => std::thread::sleep(Duration::from_millis(5)),
            }
        };
        let text = std::io::read_to_string(child.stdout.take().ok_or("its output was not captured")?)?;
        if !status.success() {
            return Err(format!("{} ends with {status}", self.mpirun).into());
        }
        let mut samples = Samples::new();
        for line in text.lines().skip(1) {
            samples.add(Duration::from_nanos(line.trim().parse()?), 1);
        }
        Ok(samples.round())
    }

    fn program(&self) -> PathBuf {
        self.folder.join("bulk")
    }
}

impl Drop for OpenMpi {
    fn drop(&mut self) {
        remove(&self.folder);
    }
}

fn remove(folder: &Path) {
    // What cannot be removed stays in the system's folder for such things.
    let _ = std::fs::remove_dir_all(folder);
}
