//! Jobs across several hosts: network namespaces that `scripts/netns` makes,
//! with links that are cut while the job runs. Like `tests/jobs`, this program
//! is both the tests and the ranks of the jobs that they start.

mod bulk;
#[path = "../jobs/harness.rs"]
#[allow(dead_code, reason = "`tests/jobs` uses the rest of it")]
mod harness;
mod links;
mod net;
mod partition;

use std::process::ExitCode;

use libtest_mimic::Arguments;

/// What a rank runs.
type Scenario = (&'static str, fn() -> ExitCode);

fn main() -> ExitCode {
    if let Some(name) = std::env::var_os(harness::SCENARIO) {
        let known = bulk::SCENARIOS.iter().chain(partition::SCENARIOS).find(|(n, _)| name == *n);
        return known.expect("the tests name scenarios that exist").1();
    }
    let no_nets = net::why_not();
    if let Some(reason) = &no_nets {
        eprintln!("no test of several hosts can be run: {reason}");
    }
    let no_mpi = links::open_mpi().is_none();
    let no_ofi = bulk::why_no_ofi();
    if let Some(reason) = &no_ofi {
        eprintln!("no test can be run that needs libfabric: {reason}");
    }
    let lacks = |name: &str| match name {
        _ if no_nets.is_some() => Some("netns"),
        links::UNDER_MPIRUN if no_mpi => Some("openmpi"),
        bulk::BROADCAST_OFI if no_ofi.is_some() => Some("ofi"),
        _ => None,
    };
    let tests = links::tests().into_iter().chain(bulk::tests()).chain(partition::tests());
    let trials = tests.map(|test| {
        let lacking = lacks(&test.0);
        harness::trial(test, lacking)
    });
    libtest_mimic::run(&Arguments::from_args(), trials.collect()).exit_code()
}
