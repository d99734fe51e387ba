//! `collimate bench`: what the runtime costs, beside what the machine does
//! without it in the same run.
//!
//! Started by hand, it starts one job per stage through `collimate run` and
//! gathers their records. Started as ranks, by mpirun or `collimate run`, it
//! measures what that job's shape allows.

mod bare;
mod broadcast;
mod control;
mod fabric;
mod latency;
mod measure;
mod openmpi;
mod record;
mod stage;
mod start;
mod store;
mod throughput;

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};
use collimate::sys::spawn_bound;
use indicatif::ProgressBar;

use super::{Failure, print};
use control::Folder;
use measure::Effort;
use record::{Record, table};
use stage::{Plan, Stage};

/// The options of `collimate bench`.
#[derive(Args)]
#[command(after_help = "\
Every figure stands beside a reference that is taken in the same run. The ratio is our time per operation over the \
reference's, for rates too: lower is better. Under mpirun or `collimate run` it uses the ranks that it is given and \
leaves out what they cannot show.")]
pub struct Bench {
    /// What to measure
    #[arg(value_enum)]
    metric: Metric,

    /// One JSON object per line instead of a table
    #[arg(long)]
    json: bool,

    /// Few repetitions: whether it works, not how fast
    #[arg(long)]
    quick: bool,

    /// Leave out all parts but this
    #[arg(long, value_enum, value_name = "PART", hide_possible_values = true)]
    only: Option<Stage>,

    /// The one part to measure, by ranks that were started for it
    #[arg(long, hide = true, value_enum)]
    stage: Option<Stage>,
}

/// What can be measured.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Metric {
    /// Task round trips on every path, fork-join, start of a job
    Latency,
    /// Tasks per second on one and more workers, oversubscription, idling
    Throughput,
    /// put and get from 8 B to 256 MiB
    Store,
    /// Objects, messages and round trips over TCP, without the runtime
    Fabric,
    /// One object to 2 to 64 hosts of a simulated network
    Broadcast,
    /// The control store: writes, their rate beside redis and etcd, kills, memory
    Control,
}

impl Bench {
    /// Measures and prints.
    pub fn execute(self) -> Result<ExitCode, Failure> {
        let effort = Effort { quick: self.quick };
        if collimate::boot::launched() {
            let plan = Plan { metric: self.metric, stage: self.stage, only: self.only, json: self.json, effort };
            return Ok(stage::take_part(plan));
        }
        if self.stage.is_some() {
            return Err(Failure::Usage("--stage is for the ranks that `collimate bench` starts itself".into()));
        }
        let mut gathered = Gathered { json: self.json, records: Vec::new() };
        let mut failed = Vec::new();
        let stages = self.metric.chosen(self.only).map_err(Failure::Usage)?;
        let bar = ProgressBar::new(stages.len() as u64);
        for stage in &stages {
            bar.set_message(stage.name());
            match stage.obstacle() {
                Some(why) => bar.suspend(|| eprintln!("collimate: {} left out: {why}", stage.name())),
                None => {
                    if let Err(why) = bar.suspend(|| self.gather(*stage, effort, &mut gathered)) {
                        bar.suspend(|| eprintln!("collimate: {}: {why}", stage.name()));
                        failed.push(stage.name());
                    }
                }
            }
            bar.inc(1);
        }
        bar.finish_and_clear();
        if !self.json {
            print(&table(&gathered.records));
        }
        if failed.is_empty() {
            Ok(ExitCode::SUCCESS)
        } else {
            Err(Failure::Other(format!("not everything could be measured: {} failed", failed.join(", "))))
        }
    }

    fn gather(&self, stage: Stage, effort: Effort, gathered: &mut Gathered) -> Result<(), String> {
        if stage == Stage::Start {
            gathered.add(start::measure(self.metric, effort)?);
            return Ok(());
        }
        if stage == Stage::Broadcast {
            return broadcast::simulate(effort, &mut |record| gathered.add(record)).map_err(|e| e.to_string());
        }
        if stage == Stage::ControlKill {
            return control::kills(effort, &mut |record| gathered.add(record));
        }
        let mut job = Job::start(self.metric, stage, effort)?;
        while let Some(line) = job.line()? {
            let record = serde_json::from_str(&line).map_err(|e| format!("a rank printed what is no record: {e}"))?;
            gathered.add(record);
        }
        job.end()
    }
}

/// The records of all stages so far.
struct Gathered {
    json: bool,
    records: Vec<Record>,
}

impl Gathered {
    fn add(&mut self, record: Record) {
        let record = throughput::beside_fewer(record, &self.records);
        if self.json {
            print(&format!("{}\n", record.to_json()));
        }
        self.records.push(record);
    }
}

/// The ranks of one stage.
struct Job {
    child: Child,
    lines: Receiver<String>,
    /// What they say on standard error, if the user is not to see it at once.
    words: Option<Receiver<String>>,
    deadline: Duration,
    started: Instant,
    /// Where their control store is on disk; goes with the job.
    _folder: Option<Folder>,
}

impl Job {
    fn start(metric: Metric, stage: Stage, effort: Effort) -> Result<Job, String> {
        let me = std::env::current_exe().map_err(|e| format!("cannot find this program: {e}"))?;
        let shape = stage.shape(effort);
        let folder = shape.on_disk.then(|| Folder::new("gcs")).transpose().map_err(|e| e.to_string())?;
        let mut command = Command::new(&me);
        command.args(["run", "-n", &shape.ranks.to_string(), "--workers", &shape.workers.to_string()]);
        command.args(["--fabric", shape.fabric, "--store", shape.store, "--gcs-shards", &shape.shards.to_string()]);
        if let Some(folder) = &folder {
            command.arg("--gcs-dir").arg(folder.path());
        }
        command.arg("--").arg(&me).arg("bench");
        let metric = metric.to_possible_value().map(|v| v.get_name().to_string()).unwrap_or_default();
        command.args([metric, "--json".into(), "--stage".into(), stage.name()]);
        if effort.quick {
            command.arg("--quick");
        }
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        if shape.quiet {
            command.stderr(Stdio::piped());
        }
        let mut child = spawn_bound(&mut command, None).map_err(|e| format!("cannot start {}: {e}", me.display()))?;
        let lines = lines_of(child.stdout.take().ok_or("its output was not captured")?);
        let words = child.stderr.take().map(lines_of);
        Ok(Job { child, lines, words, deadline: shape.deadline, started: Instant::now(), _folder: folder })
    }

    /// The next line that rank 0 prints; `None` after the last.
    fn line(&mut self) -> Result<Option<String>, String> {
        match self.lines.recv_timeout(self.deadline.saturating_sub(self.started.elapsed())) {
            Ok(line) => Ok(Some(line)),
            Err(RecvTimeoutError::Disconnected) => Ok(None),
            Err(RecvTimeoutError::Timeout) => {
                Err(format!("its ranks did not end within {} s and were stopped", self.deadline.as_secs()))
            }
        }
    }

    fn end(mut self) -> Result<(), String> {
        let status = self.child.wait().map_err(|e| e.to_string())?;
        if status.success() {
            return Ok(());
        }
        let words: Vec<String> = self.words.iter().flatten().collect();
        Err([vec![format!("its ranks ended with {status}")], words].concat().join("; "))
    }
}

/// What comes, line by line, until its end.
fn lines_of(output: impl Read + Send + 'static) -> Receiver<String> {
    let (sender, lines) = channel();
    std::thread::spawn(move || {
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    lines
}

impl Drop for Job {
    fn drop(&mut self) {
        // Its ranks end with it; one that has been waited for stays as it is.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
