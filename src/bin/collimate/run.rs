//! `collimate run`: launches a job without MPI.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use collimate::base::Config;
use collimate::base::limits::RANKS_MAX;
use collimate::boot::{Host, Job, LaunchError, launch};

use super::Failure;

/// The options of `collimate run`.
#[derive(Args)]
#[command(
    after_help = "The exit status is that of rank 0, which runs the driver; 1 when another rank died before it and the job was not to keep going."
)]
pub struct Run {
    /// How many ranks to start
    #[arg(short = 'n', value_name = "N", value_parser = clap::value_parser!(u32).range(1..=i64::from(RANKS_MAX)))]
    ranks: u32,

    /// One host per line, `HOST [slots=N]`; a host takes one rank unless it says more
    #[arg(long, value_name = "FILE")]
    hostfile: Option<PathBuf>,

    /// Worker threads of each rank
    #[arg(long, value_name = "W", value_parser = |v: &str| setting("COLLIMATE_WORKERS", v))]
    workers: Option<String>,

    /// Transport between ranks: auto, shm, rdma, ofi, uring or epoll
    #[arg(long, value_name = "F", value_parser = |v: &str| setting("COLLIMATE_FABRIC", v))]
    fabric: Option<String>,

    /// Object memory of each rank, such as 512M or 2G
    #[arg(long, value_name = "SIZE", value_parser = |v: &str| setting("COLLIMATE_STORE", v))]
    store: Option<String>,

    /// On how many ranks, of different hosts where there are enough, the control store keeps each record
    #[arg(long, value_name = "R", value_parser = |v: &str| setting("COLLIMATE_GCS_REPLICAS", v))]
    gcs_replicas: Option<String>,

    /// Into how many chains the control store's records are divided
    #[arg(long, value_name = "S", value_parser = |v: &str| setting("COLLIMATE_GCS_SHARDS", v))]
    gcs_shards: Option<String>,

    /// Where the control store keeps its records on disk, for a later run to go on with them
    #[arg(long, value_name = "DIR", value_parser = |v: &str| setting("COLLIMATE_GCS_DIR", v))]
    gcs_dir: Option<String>,

    /// Let the job go on when a rank other than rank 0 dies
    #[arg(long)]
    keep_going: bool,

    /// The program, and after it its arguments
    #[arg(last = true, required = true, value_name = "PROGRAM")]
    program: Vec<OsString>,
}

impl Run {
    /// Runs the job to its end.
    pub fn execute(self) -> Result<ExitCode, Failure> {
        // So that one line says it, and not one of every rank.
        Config::from_env().map_err(|e| Failure::Other(e.to_string()))?;
        let hosts = match &self.hostfile {
            Some(path) => Host::read_file(path).map_err(|e| Failure::Other(e.to_string()))?,
            None => Vec::new(),
        };
        let settings = [
            ("COLLIMATE_WORKERS", self.workers),
            ("COLLIMATE_FABRIC", self.fabric),
            ("COLLIMATE_STORE", self.store),
            ("COLLIMATE_GCS_REPLICAS", self.gcs_replicas),
            ("COLLIMATE_GCS_SHARDS", self.gcs_shards),
            ("COLLIMATE_GCS_DIR", self.gcs_dir),
        ];
        let vars: BTreeMap<String, String> =
            settings.into_iter().filter_map(|(name, value)| Some((name.to_string(), value?))).collect();
        let job = Job { size: self.ranks, command: self.program, vars, hosts, keep_going: self.keep_going };
        let status = launch(&job, &mut |line| eprintln!("collimate: {line}")).map_err(|error| match error {
            LaunchError::Size(_) | LaunchError::NoProgram => Failure::Usage(error.to_string()),
            _ => Failure::Other(error.to_string()),
        })?;
        Ok(ExitCode::from(u8::try_from(status).unwrap_or(1)))
    }
}

/// Checks an option as the rank would check the variable that it sets.
fn setting(variable: &str, value: &str) -> Result<String, String> {
    match Config::from_vars(|name| (name == variable).then(|| value.to_string())) {
        Ok(_) => Ok(value.to_string()),
        Err(error) => Err(format!("it takes {}", error.expected)),
    }
}
