//! The parts of a benchmark, each of which wants a job of its own shape, and
//! what the ranks of such a job do.

use std::process::ExitCode;
use std::sync::OnceLock;
use std::time::Duration;

use clap::ValueEnum;
use collimate::base::Config;
use collimate::base::config::FabricChoice;

use super::measure::{Effort, Failed, cores};
use super::record::{Record, table};
use super::{Metric, broadcast, control, fabric, latency, print, store, throughput};

/// How long one stage may take, unless it has its own deadline.
const DEADLINE: Duration = Duration::from_secs(300);
/// One job of many, which takes a second.
const KILL_DEADLINE: Duration = Duration::from_secs(60);
/// 100 million operations, at 30,000 a second.
const MEMORY_DEADLINE: Duration = Duration::from_secs(3600);

/// One part.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Stage {
    /// One rank, one worker.
    InWorker,
    /// One rank, two workers.
    CrossWorker,
    /// Two ranks of one host.
    CrossProcess,
    /// Two ranks over TCP through io_uring.
    TcpUring,
    /// Two ranks over TCP through epoll.
    TcpEpoll,
    /// Empty tasks on one worker.
    Tasks,
    /// Empty tasks on two workers.
    TasksShared,
    /// Tasks spread over two ranks with one worker each.
    Spread,
    /// The same over four ranks with two workers each, and their idling.
    SpreadMore,
    /// Objects.
    Store,
    /// Objects over a TCP fabric.
    FabricObject,
    /// Bursts of messages over a TCP fabric.
    FabricMessages,
    /// Round trips over a TCP fabric.
    FabricRoundTrip,
    /// Nothing but a first task.
    Start,
    /// Hosts that only exist in virtual time.
    Broadcast,
    /// Writes to the control store, one after the other.
    ControlLatency,
    /// Many at a time.
    ControlRate,
    /// Many at a time, and on disk.
    ControlDurable,
    /// Writes while a rank is killed.
    ControlKill,
    /// Records that come and go.
    ControlMemory,
}

/// The job that a stage wants.
pub struct Shape {
    /// Ranks.
    pub ranks: u32,
    /// Workers of each.
    pub workers: u32,
    /// Their fabric.
    pub fabric: &'static str,
    /// Their object memory.
    pub store: &'static str,
    /// Shards of their control store.
    pub shards: u16,
    /// Whether it is on disk.
    pub on_disk: bool,
    /// How long the stage may take.
    pub deadline: Duration,
    /// What they say on standard error is of interest only if they fail.
    pub quiet: bool,
}

impl Metric {
    /// The parts of this benchmark, in order.
    pub fn stages(self) -> &'static [Stage] {
        use Stage::*;
        match self {
            Metric::Latency => &[InWorker, CrossWorker, CrossProcess, TcpUring, TcpEpoll, Start],
            Metric::Throughput => &[Tasks, TasksShared, Spread, SpreadMore],
            Metric::Store => &[Store],
            Metric::Fabric => &[FabricObject, FabricMessages, FabricRoundTrip],
            Metric::Broadcast => &[Broadcast],
            Metric::Control => &[ControlLatency, ControlRate, ControlDurable, ControlKill, ControlMemory],
        }
    }
}

impl Metric {
    /// Its parts, or the one that was asked for.
    pub fn chosen(self, only: Option<Stage>) -> Result<Vec<Stage>, String> {
        let stages = self.stages();
        let chosen: Vec<Stage> = stages.iter().copied().filter(|s| only.is_none_or(|only| only == *s)).collect();
        if chosen.is_empty() {
            let names: Vec<String> = stages.iter().map(|stage| stage.name()).collect();
            return Err(format!("--only takes a part of what is measured: {}", names.join(", ")));
        }
        Ok(chosen)
    }
}

impl Stage {
    /// As the command line names it.
    pub fn name(self) -> String {
        self.to_possible_value().map(|v| v.get_name().to_string()).unwrap_or_default()
    }

    /// The job that it wants.
    pub fn shape(self, effort: Effort) -> Shape {
        let shape = |ranks, workers, fabric| Shape {
            ranks,
            workers,
            fabric,
            store: "64M",
            shards: 1,
            on_disk: false,
            deadline: DEADLINE,
            quiet: false,
        };
        match self {
            Stage::InWorker | Stage::Tasks | Stage::Broadcast => shape(1, 1, "auto"),
            Stage::CrossWorker | Stage::TasksShared => shape(1, 2, "auto"),
            Stage::CrossProcess | Stage::Spread | Stage::Start => shape(2, 1, "auto"),
            Stage::FabricObject | Stage::FabricMessages | Stage::FabricRoundTrip => shape(2, 1, "auto"),
            Stage::TcpUring => shape(2, 1, "uring"),
            Stage::TcpEpoll => shape(2, 1, "epoll"),
            Stage::SpreadMore => shape(4, 2, "auto"),
            Stage::ControlLatency | Stage::ControlRate => shape(3, 1, "auto"),
            Stage::ControlDurable => Shape { on_disk: true, ..shape(3, 1, "auto") },
            Stage::ControlKill => Shape { shards: 3, deadline: KILL_DEADLINE, quiet: true, ..shape(3, 1, "auto") },
            Stage::ControlMemory => Shape { deadline: MEMORY_DEADLINE, ..shape(3, 1, "auto") },
            Stage::Store if effort.quick => shape(2, 1, "auto"),
            Stage::Store => Shape { store: "2G", ..shape(2, 1, "auto") },
        }
    }

    /// Why it cannot be run on this machine, if so.
    pub fn obstacle(self) -> Option<String> {
        match self {
            Stage::TcpUring | Stage::FabricObject | Stage::FabricMessages | Stage::FabricRoundTrip => {
                let tried = collimate::fabric::UringFabric::new(collimate::base::Rank(0), Default::default());
                tried.err().map(|why| format!("io_uring is not available: {why}"))
            }
            Stage::CrossWorker if cores().len() < 2 => Some("two workers need two cores, and there is one".into()),
            Stage::ControlRate => control::redis_obstacle(),
            Stage::ControlDurable => control::durable_obstacle(),
            _ => None,
        }
    }

    /// Why the job that this process is a rank of cannot run it, if so.
    fn misfit(self, config: &Config) -> Option<&'static str> {
        let (ranks, workers) = (collimate::size(), collimate::workers());
        let two_ranks = (ranks < 2).then_some("it needs two ranks");
        match self {
            Stage::InWorker => (workers > 1).then_some("it needs a rank 0 of one worker"),
            Stage::CrossWorker => (workers < 2).then_some("it needs two workers in rank 0"),
            Stage::Tasks => (ranks > 1 || workers > 1).then_some("it needs one rank of one worker"),
            Stage::TasksShared => (ranks > 1 || workers < 2).then_some("it needs one rank of two workers"),
            Stage::CrossProcess => two_ranks.or_else(|| {
                let tcp = matches!(config.fabric, FabricChoice::Uring | FabricChoice::Epoll);
                tcp.then_some("COLLIMATE_FABRIC asks for TCP")
            }),
            Stage::TcpUring => {
                two_ranks.or((config.fabric != FabricChoice::Uring).then_some("it needs COLLIMATE_FABRIC=uring"))
            }
            Stage::TcpEpoll => {
                two_ranks.or((config.fabric != FabricChoice::Epoll).then_some("it needs COLLIMATE_FABRIC=epoll"))
            }
            Stage::Spread | Stage::Store => two_ranks,
            Stage::FabricObject | Stage::FabricMessages | Stage::FabricRoundTrip => two_ranks,
            Stage::SpreadMore => Some("it compares two jobs: leave the ranks to `collimate bench`"),
            Stage::Broadcast => None,
            Stage::ControlLatency | Stage::ControlRate | Stage::ControlMemory => {
                (ranks != 3).then_some("it needs three ranks")
            }
            Stage::ControlDurable | Stage::ControlKill => {
                Some("it starts ranks in its own way: leave them to `collimate bench`")
            }
            Stage::Start => Some("the ranks have started already: leave them to `collimate bench`"),
        }
    }

    fn run(self, effort: Effort, emit: &mut dyn FnMut(Record)) -> Result<(), Failed> {
        match self {
            Stage::InWorker => latency::in_worker(effort, emit),
            Stage::CrossWorker => latency::cross_worker(effort, emit),
            Stage::CrossProcess => latency::cross_process(effort, emit),
            Stage::TcpUring => latency::tcp("uring", effort, emit),
            Stage::TcpEpoll => latency::tcp("epoll", effort, emit),
            Stage::Tasks | Stage::TasksShared => throughput::tasks(effort, emit),
            Stage::Spread => throughput::spread(effort, emit),
            Stage::SpreadMore => throughput::spread(effort, emit).and_then(|()| throughput::idle(effort, emit)),
            Stage::Store => store::objects(effort, emit),
            Stage::FabricObject => fabric::bulk(effort, emit),
            Stage::FabricMessages => fabric::messages(effort, emit),
            Stage::FabricRoundTrip => fabric::round_trip(effort, emit),
            Stage::Start => super::start::first_task(),
            Stage::Broadcast => broadcast::simulate(effort, emit),
            Stage::ControlLatency => control::write_latency(effort, emit),
            Stage::ControlRate => control::write_rate(effort, emit),
            Stage::ControlDurable => control::durable_rate(effort, emit),
            Stage::ControlKill => control::one_kill(),
            Stage::ControlMemory => control::short_records(effort, emit),
        }
    }
}

/// What the driver of this process's job measures.
pub struct Plan {
    /// What.
    pub metric: Metric,
    /// The stage that `collimate bench` has started this job for.
    pub stage: Option<Stage>,
    /// The stage that the user wants, of all that fit the job.
    pub only: Option<Stage>,
    /// Whether records are printed as JSON.
    pub json: bool,
    /// How much to measure.
    pub effort: Effort,
}

static PLAN: OnceLock<Plan> = OnceLock::new();

/// Takes part in the job that this process was started for: measures one stage
/// for the `collimate bench` that wants it, or all that fit the job.
pub fn take_part(plan: Plan) -> ExitCode {
    PLAN.get_or_init(|| plan);
    rank()
}

#[collimate::main]
fn rank() -> Result<(), Failed> {
    let plan = PLAN.get().ok_or("a rank without a plan")?;
    let mut records = Vec::new();
    let mut emit = |record: Record| {
        if plan.json || plan.stage.is_some() {
            print(&format!("{}\n", record.to_json()));
        }
        records.push(record);
    };
    if let Some(stage) = plan.stage {
        return stage.run(plan.effort, &mut emit);
    }
    let config = Config::from_env()?;
    for stage in plan.metric.chosen(plan.only)? {
        match stage.misfit(&config) {
            Some(why) => eprintln!("collimate: {} left out: {why}", stage.name()),
            None => stage.run(plan.effort, &mut emit)?,
        }
    }
    if !plan.json {
        print(&table(&records));
    }
    Ok(())
}
