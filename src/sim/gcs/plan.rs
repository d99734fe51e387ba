//! What a seed means: how bad the network is, how many there are, which faults
//! happen.

use crate::base::rng::Rng;
use crate::gcs::{Bug, CLOCK_DRIFT_PPM, Limits, Timing};

pub const US: u64 = 1_000;
pub const MS: u64 = 1_000_000;

/// A run.
#[derive(Clone, Debug)]
pub struct Plan {
    pub seed: u64,
    pub servers: u32,
    pub clients: u32,
    /// The first so many servers are the quorum.
    pub members: u32,
    pub replicas: usize,
    pub shards: u16,
    pub timing: Timing,
    pub durable: bool,
    pub limits: Limits,
    pub bug: Option<Bug>,
    pub net: Net,
    /// On average, between two faults; none without.
    pub fault_every: Option<u64>,
    pub crashes: bool,
    pub partitions: bool,
    /// Servers close connections with others that live.
    pub closes: bool,
    /// Everybody ends at once, and comes back with its disk.
    pub job_restarts: bool,
    pub slow_disks: bool,
    /// Parts per million, each way.
    pub drift_ppm: u64,
    /// How long faults go on, and how long all must be well after.
    pub safety_ns: u64,
    pub liveness_ns: u64,
    /// Operations of a client under way at once, and the pause between them.
    pub pipeline: usize,
    pub think_ns: u64,
    /// How often a client looks whether something is due.
    pub idle_ns: u64,
    /// How many keys there are.
    pub keys: usize,
    /// Of a client's operations, how many are short of time.
    pub impatient_percent: usize,
    pub client_crashes: bool,
    pub watches: bool,
}

/// Limits that small states and logs meet: to one that joins the state comes in
/// dozens of parts, and meanwhile more happens than a log holds.
pub const TIGHT: Limits = Limits {
    log_entries: 12,
    log_bytes: 800,
    part_bytes: 400,
    parts_at_once: 3,
    turn_bytes: 400,
    rewrite_bytes: 3_000,
};

/// What the network does to messages.
#[derive(Clone, Copy, Debug)]
pub struct Net {
    pub delay_min: u64,
    pub delay_max: u64,
    /// In a thousand.
    pub lost: usize,
    pub doubled: usize,
    pub late: usize,
    /// How late.
    pub late_by: u64,
}

impl Plan {
    /// The run of a seed. Each seed has some faults and lacks others, so that
    /// rare combinations occur in some.
    pub fn of_seed(seed: u64) -> Plan {
        let mut rng = Rng::new(seed ^ 0x9c5);
        let mut pick = |values: &[u64]| values[rng.below(values.len())];
        let net = Net {
            delay_min: 5 * US,
            delay_max: pick(&[20 * US, 60 * US, 200 * US]),
            lost: pick(&[0, 0, 5, 50]) as usize,
            doubled: pick(&[0, 0, 20, 100]) as usize,
            late: pick(&[0, 0, 10, 60]) as usize,
            late_by: pick(&[MS, 3 * MS, 12 * MS]),
        };
        // A job of one or two ranks has a quorum of one.
        let ranks = pick(&[1, 2, 3, 4, 4, 5, 5, 5, 6, 6]) as u32;
        let durable = pick(&[0, 0, 1]) == 1;
        let mut plan = Plan {
            seed,
            servers: ranks,
            clients: pick(&[2, 3, 4]) as u32,
            members: if ranks < 3 { 1 } else { 3 },
            replicas: pick(&[2, 3, 3, 3]).min(u64::from(ranks)) as usize,
            shards: pick(&[1, 1, 1, 2]) as u16,
            durable,
            limits: Limits::default(),
            bug: None,
            net,
            fault_every: [None, Some(4 * MS), Some(8 * MS), Some(15 * MS)][pick(&[0, 1, 1, 2, 2, 3, 3]) as usize],
            crashes: pick(&[0, 1, 1]) == 1,
            partitions: pick(&[0, 1, 1]) == 1,
            closes: pick(&[0, 1, 1]) == 1,
            job_restarts: durable && pick(&[0, 1]) == 1,
            slow_disks: pick(&[0, 1]) == 1,
            drift_ppm: pick(&[0, CLOCK_DRIFT_PPM]),
            safety_ns: pick(&[25, 40, 60]) * MS,
            liveness_ns: 200 * MS,
            pipeline: pick(&[1, 2, 4]) as usize,
            think_ns: pick(&[200 * US, 600 * US, 1_500 * US]),
            idle_ns: 150 * US,
            keys: pick(&[1, 2, 4, 8]) as usize,
            impatient_percent: pick(&[0, 0, 15]) as usize,
            client_crashes: pick(&[0, 0, 1]) == 1,
            watches: pick(&[0, 1]) == 1,
            timing: Timing {
                beat: pick(&[500 * US, 500 * US, MS]),
                word: pick(&[0, 0, 0, 300 * US]),
                ..Timing::for_detection(5 * MS)
            },
        };
        if pick(&[0, 0, 1]) == 1 {
            plan.limits = TIGHT;
            plan.pipeline = 4;
        }
        plan
    }

    /// Many ranks on a good network, without a fault of its own.
    pub fn large(ranks: u32) -> Plan {
        let servers = 6;
        let net = Net { delay_min: 5 * US, delay_max: 60 * US, lost: 0, doubled: 0, late: 0, late_by: MS };
        Plan {
            servers,
            clients: ranks - servers,
            members: 3,
            replicas: 3,
            shards: 1,
            durable: false,
            net,
            timing: Timing::for_detection(5 * MS),
            fault_every: None,
            safety_ns: u64::MAX,
            pipeline: 1,
            think_ns: 50 * MS,
            idle_ns: 2 * MS,
            keys: 8,
            impatient_percent: 0,
            client_crashes: false,
            watches: false,
            ..Plan::of_seed(0)
        }
    }

    /// One chain of three, whose ranks are the quorum as well, with the periods
    /// that ranks have, and one client that writes all the time.
    pub fn small(seed: u64) -> Plan {
        let net = Net { delay_min: 20 * US, delay_max: 20 * US + 1, lost: 0, doubled: 0, late: 0, late_by: MS };
        Plan {
            seed,
            servers: 3,
            clients: 1,
            timing: Timing::for_detection(1_000 * MS),
            net,
            pipeline: 4,
            think_ns: 20 * US,
            idle_ns: 50 * US,
            drift_ppm: CLOCK_DRIFT_PPM,
            ..Plan::large(7)
        }
    }

    /// A job of so many ranks on disk, with no fault of its own.
    pub fn durable(seed: u64, ranks: u32) -> Plan {
        Plan {
            seed,
            servers: ranks,
            clients: 2,
            members: if ranks < 3 { 1 } else { 3 },
            replicas: ranks.min(3) as usize,
            durable: true,
            safety_ns: 40 * MS,
            pipeline: 4,
            think_ns: 200 * US,
            idle_ns: 150 * US,
            watches: true,
            ..Plan::large(7)
        }
    }

    /// A job of five ranks on a good network whose clients write all the time,
    /// more than a log holds while one joins.
    pub fn busy(seed: u64) -> Plan {
        let durable = seed % 2 == 1;
        let limits = Limits { log_entries: 32, log_bytes: 1 << 20, ..TIGHT };
        Plan { durable, limits, clients: 4, think_ns: 30 * US, idle_ns: 30 * US, ..Plan::durable(seed, 5) }
    }

    /// The same with a deliberate bug.
    pub fn with_bug(self, bug: Bug) -> Plan {
        Plan { bug: Some(bug), ..self }
    }
}
