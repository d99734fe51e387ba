//! `collimate info`: what this machine offers and what a rank started here
//! would use.

use std::process::ExitCode;

use clap::Args;
use collimate::base::Config;
use collimate::fabric::{Choice, Kind};
use collimate::node::Survey;
use rustix::process::{Resource, getrlimit};
use rustix::thread::{CpuSet, sched_getaffinity};
use serde::Serialize;
use serde_json::{Map, Value};

use super::Failure;

/// The programs that start ranks.
const LAUNCHERS: [&str; 5] = ["mpirun", "mpirun.openmpi", "mpirun.mpich", "srun", "ssh"];

/// The options of `collimate info`.
#[derive(Args)]
pub struct Info {
    /// One JSON object instead of text
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Report {
    version: &'static str,
    fabrics: Vec<FabricState>,
    /// What would serve a rank of another host with the same means.
    to_other_hosts: ToOtherHosts,
    /// How much an adapter may have pinned; `None` is without limit.
    locked_memory_bytes: Option<u64>,
    /// Those of the affinity mask.
    cores: Vec<usize>,
    memory_bytes: u64,
    /// The object memory of a single rank, when nothing else is asked for.
    store_default_bytes: u64,
    launchers: Vec<Found>,
    /// Every setting, by its variable.
    config: Map<String, Value>,
}

#[derive(Serialize)]
struct FabricState {
    name: &'static str,
    what: &'static str,
    available: bool,
    /// The device or provider, or why it cannot be used.
    detail: String,
}

#[derive(Serialize)]
struct ToOtherHosts {
    fabric: Option<&'static str>,
    reason: String,
}

#[derive(Serialize)]
struct Found {
    name: String,
    path: String,
}

impl Info {
    /// Prints it.
    pub fn execute(self) -> Result<ExitCode, Failure> {
        let config = Config::from_env().map_err(|e| Failure::Other(e.to_string()))?;
        let report = Report::gather(&config);
        let text = if self.json {
            serde_json::to_string(&report).map_err(|e| Failure::Other(e.to_string()))? + "\n"
        } else {
            report.to_text()
        };
        super::print(&text);
        Ok(ExitCode::SUCCESS)
    }
}

impl Report {
    fn gather(config: &Config) -> Report {
        let survey = Survey::take(config);
        let set = sched_getaffinity(None).unwrap_or_default();
        let memory = rustix::system::sysinfo();
        let store = collimate::node::default_store_bytes(1) as u64;
        Report {
            version: env!("CARGO_PKG_VERSION"),
            fabrics: survey.findings.into_iter().map(|(kind, found)| FabricState::of(kind, found)).collect(),
            to_other_hosts: ToOtherHosts::of(survey.far),
            locked_memory_bytes: getrlimit(Resource::Memlock).current,
            cores: (0..CpuSet::MAX_CPU).filter(|core| set.is_set(*core)).collect(),
            memory_bytes: memory.totalram * u64::from(memory.mem_unit.max(1)),
            store_default_bytes: store,
            launchers: launchers(),
            config: settings(config),
        }
    }

    fn to_text(&self) -> String {
        let mut text = format!("collimate {}\n\nfabrics\n", self.version);
        for FabricState { name, what, available, detail } in &self.fabrics {
            let state = if *available { "available" } else { "not available" };
            text += &format!("  {name:<6} {state}: {what}{}{detail}\n", if detail.is_empty() { "" } else { ": " });
        }
        let ToOtherHosts { fabric, reason } = &self.to_other_hosts;
        text += &format!("\nto other hosts like this one: {}: {reason}\n", fabric.unwrap_or("nothing"));
        let locked = self.locked_memory_bytes.map_or("without limit".into(), |bytes| format!("{} KiB", bytes >> 10));
        text += &format!("memory that an adapter may pin (ulimit -l): {locked}\n");
        let cores: Vec<String> = self.cores.iter().map(usize::to_string).collect();
        text += &format!("\ncores    {} ({})\n", self.cores.len(), cores.join(", "));
        text += &format!("memory   {}\n", mebibytes(self.memory_bytes));
        text +=
            &format!("store    {} for a rank alone on this host\n\nlaunchers\n", mebibytes(self.store_default_bytes));
        for Found { name, path } in &self.launchers {
            text += &format!("  {name:<14} {path}\n");
        }
        text += "\nsettings in force\n";
        for (name, value) in &self.config {
            let value = value.as_str().map_or_else(|| value.to_string(), str::to_string);
            text += &format!("  {name:<20} {value}\n");
        }
        text
    }
}

impl FabricState {
    fn of(kind: Kind, found: Result<String, String>) -> FabricState {
        let what = match kind {
            Kind::Shm => "shared memory, within a host",
            Kind::Rdma => "RDMA verbs",
            Kind::Ofi => "libfabric",
            Kind::Uring => "TCP through io_uring",
            Kind::Epoll => "TCP through epoll",
        };
        let available = found.is_ok();
        FabricState { name: kind.name(), what, available, detail: found.unwrap_or_else(|why| why) }
    }
}

impl ToOtherHosts {
    fn of(choice: Result<Choice, String>) -> ToOtherHosts {
        match choice {
            Ok(Choice { kind, reason }) => ToOtherHosts { fabric: Some(kind.name()), reason },
            Err(reason) => ToOtherHosts { fabric: None, reason },
        }
    }
}

/// `collimate run`, and what else is there to start ranks.
fn launchers() -> Vec<Found> {
    let me = std::env::current_exe().map(|path| path.display().to_string()).unwrap_or_default();
    let mut found = vec![Found { name: "collimate run".into(), path: me }];
    let path = std::env::var_os("PATH").unwrap_or_default();
    for name in LAUNCHERS {
        let mut places = std::env::split_paths(&path).map(|folder| folder.join(name));
        if let Some(place) = places.find(|place| is_program(place)) {
            found.push(Found { name: name.into(), path: place.display().to_string() });
        }
    }
    found
}

fn is_program(path: &std::path::Path) -> bool {
    path.is_file() && rustix::fs::access(path, rustix::fs::Access::EXEC_OK).is_ok()
}

/// Every setting as its variable would be set; `auto` is decided at start.
fn settings(config: &Config) -> Map<String, Value> {
    let Config {
        workers,
        store_bytes,
        fabric,
        rdma_device,
        rdma_gid_index,
        ofi_provider,
        lanes,
        stack_bytes,
        interface,
        port,
        resources,
        gcs_replicas,
        gcs_shards,
        gcs_dir,
        gcs_truncate,
        log,
    } = config;
    let or_auto = |value: Option<String>| value.unwrap_or_else(|| "auto".into());
    let pairs = [
        ("COLLIMATE_WORKERS", or_auto(workers.map(|n| n.to_string()))),
        ("COLLIMATE_STORE", or_auto(store_bytes.map(|n| n.to_string()))),
        ("COLLIMATE_FABRIC", fabric.to_string()),
        ("COLLIMATE_RDMA_DEVICE", or_auto(rdma_device.clone())),
        ("COLLIMATE_RDMA_GID_INDEX", or_auto(rdma_gid_index.map(|index| index.to_string()))),
        ("COLLIMATE_OFI_PROVIDER", or_auto(ofi_provider.clone())),
        ("COLLIMATE_LANES", or_auto(lanes.map(|n| n.to_string()))),
        ("COLLIMATE_STACK", stack_bytes.to_string()),
        ("COLLIMATE_INTERFACE", or_auto(interface.map(|a| a.to_string()))),
        ("COLLIMATE_PORT", port.to_string()),
        ("COLLIMATE_RESOURCES", resources.clone()),
        ("COLLIMATE_GCS_REPLICAS", gcs_replicas.to_string()),
        ("COLLIMATE_GCS_SHARDS", gcs_shards.to_string()),
        ("COLLIMATE_GCS_DIR", gcs_dir.as_ref().map_or_else(String::new, |dir| dir.display().to_string())),
        ("COLLIMATE_GCS_TRUNCATE", u8::from(*gcs_truncate).to_string()),
        ("COLLIMATE_LOG", u8::from(*log).to_string()),
    ];
    pairs.into_iter().map(|(name, value)| (name.to_string(), Value::String(value))).collect()
}

fn mebibytes(bytes: u64) -> String {
    format!("{} MiB", bytes >> 20)
}
