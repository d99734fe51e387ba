//! How many connections a rank can have with each peer: what is asked for, as
//! far as the process's descriptors go.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::base::config::{Config, FabricChoice};
use crate::base::limits::{DESCRIPTORS_SPARE, LANE_CONNECTIONS_MAX, LANES_DEFAULT};

/// The connections besides the first that this rank can have with each peer,
/// and why they are fewer than were asked for. Raises the process's limit of
/// descriptors, as far as it may, if that is needed.
pub(super) fn afford(config: &Config, size: u32, one_host: bool) -> (u8, Option<String>) {
    // These bring their own way for large reads.
    if matches!(config.fabric, FabricChoice::Rdma | FabricChoice::Ofi) {
        return (0, None);
    }
    let shares_memory = one_host && matches!(config.fabric, FabricChoice::Auto | FabricChoice::Shm);
    let peers = if shares_memory { 0 } else { u64::from(size) - 1 };
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let has = current.unwrap_or(u64::MAX);
    let plan = plan(config.lanes, peers, has, maximum.unwrap_or(u64::MAX));
    // Never above the hard limit, so it is not refused; and if it were, fewer
    // lanes would do.
    if plan.descriptors > has && setrlimit(Resource::Nofile, Rlimit { current: Some(plan.descriptors), maximum }).is_err()
    {
        return (0, Some(format!("no extra connections: the limit of {has} descriptors cannot be raised")));
    }
    (plan.lanes, plan.note)
}

#[derive(PartialEq, Eq, Debug)]
struct Plan {
    lanes: u8,
    /// What the limit of descriptors must be at least.
    descriptors: u64,
    note: Option<String>,
}

/// For so many peers by TCP, with `has` descriptors now and `may` at most.
fn plan(asked: Option<u8>, peers: u64, has: u64, may: u64) -> Plan {
    let wanted = u64::from(asked.unwrap_or(LANES_DEFAULT as u8));
    if peers == 0 {
        return Plan { lanes: wanted as u8, descriptors: 0, note: None };
    }
    let by_memory = LANE_CONNECTIONS_MAX as u64 / peers;
    let by_descriptors = (may.saturating_sub(DESCRIPTORS_SPARE) / peers).saturating_sub(1);
    let lanes = wanted.min(by_memory).min(by_descriptors);
    let needed = DESCRIPTORS_SPARE + peers * (1 + lanes);
    let note = (lanes < wanted).then(|| {
        let why = match by_memory <= by_descriptors {
            true => format!("{LANE_CONNECTIONS_MAX} in all for {peers} peers"),
            false => format!("the hard limit of {may} descriptors (ulimit -Hn)"),
        };
        format!("{lanes} of {wanted} extra connections to each peer: {why}")
    });
    Plan { lanes: lanes as u8, descriptors: needed.min(may).max(has), note }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lanes_fit_the_descriptors() {
        let simple = |asked, peers, has, may| {
            let Plan { lanes, descriptors, note } = plan(asked, peers, has, may);
            (lanes, descriptors, note.is_some())
        };
        assert_eq!(simple(Some(3), 7, 1024, 4096), (3, 1024, false));
        assert_eq!(simple(None, 7, 1024, 4096), (LANES_DEFAULT as u8, 1024, false));
        assert_eq!(simple(Some(0), 4095, 1024, 20_000), (0, 4351, false), "the first connections need some too");
        assert_eq!(simple(Some(8), 100, 1024, 20_000), (8, 1156, false));
        assert_eq!(simple(Some(8), 1000, 1024, 20_000), (1, 2256, true), "memory");
        assert_eq!(simple(Some(8), 100, 512, 512), (1, 512, true), "descriptors");
        assert_eq!(simple(Some(2), 1000, 1024, 1024), (0, 1024, true));
        assert_eq!(simple(Some(2), 0, 10, 10), (2, 0, false), "nobody by TCP");
        assert!(plan(Some(8), 100, 512, 512).note.unwrap().contains("ulimit -Hn"));
    }
}
