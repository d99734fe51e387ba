//! The configuration of a rank, read once from `COLLIMATE_*`.

use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::limits;

/// Which transport a rank may use for its peers.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub enum FabricChoice {
    /// The fastest that works for each peer: shared memory on one host, else
    /// RDMA verbs, a libfabric provider with its own hardware, TCP.
    #[default]
    Auto,
    /// Shared memory for every peer; an error for a peer on another host.
    Shm,
    /// RDMA verbs for every peer.
    Rdma,
    /// libfabric for every peer, a provider without hardware included.
    Ofi,
    /// TCP through io_uring for every peer.
    Uring,
    /// TCP through epoll for every peer.
    Epoll,
}

impl fmt::Display for FabricChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            FabricChoice::Auto => "auto",
            FabricChoice::Shm => "shm",
            FabricChoice::Rdma => "rdma",
            FabricChoice::Ofi => "ofi",
            FabricChoice::Uring => "uring",
            FabricChoice::Epoll => "epoll",
        })
    }
}

/// A rank's settings. Every field has an environment variable of the same
/// meaning; [`Config::from_vars`] parses them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Config {
    /// `COLLIMATE_WORKERS`: worker threads of this rank; `None` means the cores
    /// of the affinity mask divided among the ranks of the host, at least one.
    pub workers: Option<usize>,
    /// `COLLIMATE_STORE`: bytes of the object arena, as `512M`, `2G` or a plain
    /// count; `None` means a share of the host's memory.
    pub store_bytes: Option<usize>,
    /// `COLLIMATE_FABRIC`: `auto`, `shm`, `rdma`, `ofi`, `uring` or `epoll`.
    pub fabric: FabricChoice,
    /// `COLLIMATE_RDMA_DEVICE`: the RDMA device to use, as `mlx5_0`, or one of
    /// its ports, as `mlx5_0:2`; `None` takes the first with an active port.
    pub rdma_device: Option<String>,
    /// `COLLIMATE_RDMA_GID_INDEX`: the entry of the port's GID table that this
    /// rank is addressed by; `None` takes a RoCE v2 entry, an IPv4 one first.
    pub rdma_gid_index: Option<u8>,
    /// `COLLIMATE_OFI_PROVIDER`: the libfabric provider to use, as `cxi` or
    /// `tcp`; `None` takes the best that has hardware here.
    pub ofi_provider: Option<String>,
    /// `COLLIMATE_LANES`: connections to each peer by TCP for large transfers,
    /// besides the one for messages; `None` means as many as pay.
    pub lanes: Option<u8>,
    /// `COLLIMATE_STACK`: bytes of a task's stack.
    pub stack_bytes: usize,
    /// `COLLIMATE_INTERFACE`: the address that other hosts reach this one by;
    /// `None` lets the routing table decide.
    pub interface: Option<std::net::IpAddr>,
    /// `COLLIMATE_PORT`: the first TCP port of the job: rank `r` listens on
    /// this one + `r`; 0 takes any free port.
    pub port: u16,
    /// `COLLIMATE_RESOURCES`: what tasks may ask for on this rank besides a
    /// worker, by name and amount, as `gpu=2,licence=1`.
    pub resources: String,
    /// `COLLIMATE_GCS_REPLICAS`: on how many ranks the control store keeps each
    /// record, on different hosts where there are enough; the same on all ranks.
    pub gcs_replicas: u8,
    /// `COLLIMATE_GCS_SHARDS`: into how many chains its records are divided; the
    /// same on all ranks.
    pub gcs_shards: u16,
    /// `COLLIMATE_GCS_DIR`: where its replicas keep what they have on disk, so
    /// that a job that is started again finds it; `None` keeps nothing.
    pub gcs_dir: Option<PathBuf>,
    /// `COLLIMATE_GCS_TRUNCATE`: what was kept is used up to where it is damaged,
    /// instead of refused.
    pub gcs_truncate: bool,
    /// `COLLIMATE_LOG`: one line per decision on standard error.
    pub log: bool,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            workers: None,
            store_bytes: None,
            fabric: FabricChoice::Auto,
            rdma_device: None,
            rdma_gid_index: None,
            ofi_provider: None,
            lanes: None,
            stack_bytes: limits::STACK_BYTES_DEFAULT,
            interface: None,
            port: 0,
            resources: String::new(),
            gcs_replicas: limits::GCS_REPLICAS_DEFAULT,
            gcs_shards: 1,
            gcs_dir: None,
            gcs_truncate: false,
            log: false,
        }
    }
}

/// A variable with a value that cannot be used.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ConfigError {
    /// The variable's name.
    pub variable: &'static str,
    /// What it was set to.
    pub value: String,
    /// What it takes.
    pub expected: String,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={:?} is not usable: set it to {} or unset it", self.variable, self.value, self.expected)
    }
}

impl std::error::Error for ConfigError {}

impl Config {
    /// Reads the environment of this process.
    pub fn from_env() -> Result<Config, ConfigError> {
        Config::from_vars(|name| std::env::var_os(name).map(|v| v.to_string_lossy().into_owned()))
    }

    /// Reads the variables that `lookup` knows.
    pub fn from_vars(lookup: impl Fn(&str) -> Option<String>) -> Result<Config, ConfigError> {
        let mut config = Config::default();
        let var = |name: &'static str| lookup(name).filter(|v| !v.is_empty()).map(|v| (name, v));
        let bad =
            |(variable, value): (&'static str, String), expected: String| ConfigError { variable, value, expected };

        if let Some(v) = var("COLLIMATE_WORKERS") {
            config.workers = match v.1.parse() {
                Ok(n) if (1..=limits::WORKERS_MAX).contains(&n) => Some(n),
                _ => return Err(bad(v, format!("a number from 1 to {}", limits::WORKERS_MAX))),
            };
        }
        if let Some(v) = var("COLLIMATE_STORE") {
            config.store_bytes = match parse_bytes(&v.1) {
                Some(n) if n >= limits::ARENA_BYTES_MIN => Some(n),
                _ => {
                    return Err(bad(
                        v,
                        format!("a size of at least {} bytes, such as 512M or 2G", limits::ARENA_BYTES_MIN),
                    ));
                }
            };
        }
        if let Some(v) = var("COLLIMATE_FABRIC") {
            config.fabric = match v.1.as_str() {
                "auto" => FabricChoice::Auto,
                "shm" => FabricChoice::Shm,
                "rdma" => FabricChoice::Rdma,
                "ofi" => FabricChoice::Ofi,
                "uring" => FabricChoice::Uring,
                "epoll" => FabricChoice::Epoll,
                _ => return Err(bad(v, "auto, shm, rdma, ofi, uring or epoll".into())),
            };
        }
        if let Some(v) = var("COLLIMATE_RDMA_DEVICE") {
            config.rdma_device = match is_name(&v.1) {
                true => Some(v.1),
                false => return Err(bad(v, "the name of an RDMA device, as mlx5_0 or mlx5_0:1".into())),
            };
        }
        if let Some(v) = var("COLLIMATE_RDMA_GID_INDEX") {
            config.rdma_gid_index = match v.1.parse() {
                Ok(index) => Some(index),
                Err(_) => return Err(bad(v, "an index of the port's GID table, from 0 to 255".into())),
            };
        }
        if let Some(v) = var("COLLIMATE_OFI_PROVIDER") {
            config.ofi_provider = match is_name(&v.1) {
                true => Some(v.1),
                false => return Err(bad(v, "the name of a libfabric provider, as cxi or tcp".into())),
            };
        }
        if let Some(v) = var("COLLIMATE_LANES") {
            config.lanes = match v.1.parse() {
                Ok(n) if usize::from(n) <= limits::LANES_MAX => Some(n),
                _ => return Err(bad(v, format!("a number from 0 to {}", limits::LANES_MAX))),
            };
        }
        if let Some(v) = var("COLLIMATE_STACK") {
            config.stack_bytes = match parse_bytes(&v.1) {
                Some(n) if n >= 64 << 10 => n.next_multiple_of(4096),
                _ => return Err(bad(v, "a size of at least 64K".into())),
            };
        }
        if let Some(v) = var("COLLIMATE_INTERFACE") {
            config.interface = match v.1.parse() {
                Ok(a) => Some(a),
                Err(_) => return Err(bad(v, "an IP address of this host".into())),
            };
        }
        if let Some(v) = var("COLLIMATE_PORT") {
            config.port = match v.1.parse() {
                Ok(p) => p,
                Err(_) => return Err(bad(v, "a TCP port, 0 for any".into())),
            };
        }
        if let Some(v) = var("COLLIMATE_RESOURCES") {
            let well_formed = |part: &str| {
                let (name, amount) = part.split_once('=')?;
                (!name.trim().is_empty()).then_some(())?;
                amount.trim().parse::<u64>().ok()
            };
            config.resources = match v.1.split(',').all(|part| well_formed(part).is_some()) {
                true => v.1,
                false => return Err(bad(v, "names and whole amounts, as gpu=2,licence=1".into())),
            };
        }
        if let Some(v) = var("COLLIMATE_GCS_REPLICAS") {
            config.gcs_replicas = match v.1.parse() {
                Ok(n) if (1..=limits::GCS_REPLICAS_MAX).contains(&n) => n,
                _ => return Err(bad(v, format!("a number from 1 to {}", limits::GCS_REPLICAS_MAX))),
            };
        }
        if let Some(v) = var("COLLIMATE_GCS_SHARDS") {
            config.gcs_shards = match v.1.parse() {
                Ok(n) if (1..=limits::GCS_SHARDS_MAX).contains(&n) => n,
                _ => return Err(bad(v, format!("a number from 1 to {}", limits::GCS_SHARDS_MAX))),
            };
        }
        config.gcs_dir = var("COLLIMATE_GCS_DIR").map(|v| v.1.into());
        if let Some(v) = var("COLLIMATE_GCS_TRUNCATE") {
            config.gcs_truncate = switch(&v.1).ok_or_else(|| bad(v, "0 or 1".into()))?;
        }
        if let Some(v) = var("COLLIMATE_LOG") {
            config.log = switch(&v.1).ok_or_else(|| bad(v, "0 or 1".into()))?;
        }
        Ok(config)
    }
}

/// What is on or off.
fn switch(text: &str) -> Option<bool> {
    match text {
        "0" | "off" => Some(false),
        "1" | "on" => Some(true),
        _ => None,
    }
}

/// Whether a text can be the name of a device or a provider: what is printed
/// back in errors should be short and plain.
fn is_name(text: &str) -> bool {
    text.len() <= 64 && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-:;.".contains(&byte))
}

/// Parses `123`, `64K`, `512M`, `2G` (powers of 1024).
pub fn parse_bytes(text: &str) -> Option<usize> {
    let (digits, shift) = match text.as_bytes().last()? {
        b'k' | b'K' => (&text[..text.len() - 1], 10),
        b'm' | b'M' => (&text[..text.len() - 1], 20),
        b'g' | b'G' => (&text[..text.len() - 1], 30),
        _ => (text, 0),
    };
    digits.parse::<usize>().ok()?.checked_mul(1 << shift)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(name: &str, value: &str) -> Result<Config, ConfigError> {
        Config::from_vars(|n| (n == name).then(|| value.to_string()))
    }

    #[test]
    fn sizes_take_suffixes() {
        assert_eq!(parse_bytes("64K"), Some(65536));
        assert_eq!(parse_bytes("2G"), Some(2 << 30));
        assert_eq!(parse_bytes("77"), Some(77));
        assert_eq!(parse_bytes("G"), None);
        assert_eq!(parse_bytes("99999999999999999999G"), None);
    }

    #[test]
    fn a_bad_value_names_its_variable_and_what_to_do() {
        for (name, value) in [
            ("COLLIMATE_WORKERS", "0"),
            ("COLLIMATE_WORKERS", "many"),
            ("COLLIMATE_STORE", "1K"),
            ("COLLIMATE_FABRIC", "smoke"),
            ("COLLIMATE_RDMA_DEVICE", "a device"),
            ("COLLIMATE_RDMA_GID_INDEX", "256"),
            ("COLLIMATE_OFI_PROVIDER", "x\n"),
            ("COLLIMATE_LANES", "9"),
            ("COLLIMATE_LANES", "-1"),
            ("COLLIMATE_STACK", "1"),
            ("COLLIMATE_INTERFACE", "here"),
            ("COLLIMATE_PORT", "70000"),
            ("COLLIMATE_RESOURCES", "gpu"),
            ("COLLIMATE_GCS_REPLICAS", "0"),
            ("COLLIMATE_GCS_REPLICAS", "three"),
            ("COLLIMATE_GCS_SHARDS", "0"),
            ("COLLIMATE_GCS_SHARDS", "65536"),
            ("COLLIMATE_GCS_TRUNCATE", "maybe"),
            ("COLLIMATE_LOG", "maybe"),
        ] {
            let error = parse(name, value).unwrap_err().to_string();
            assert!(error.contains(name) && error.contains("set it to"), "{error}");
        }
    }

    #[test]
    fn good_values_are_taken() {
        assert_eq!(parse("COLLIMATE_STORE", "512M").unwrap().store_bytes, Some(512 << 20));
        assert_eq!(parse("COLLIMATE_FABRIC", "epoll").unwrap().fabric, FabricChoice::Epoll);
        assert_eq!(parse("COLLIMATE_LANES", "0").unwrap().lanes, Some(0));
        assert_eq!(parse("NONE", "").unwrap(), Config::default());
    }
}
