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

use libtest_mimic::{Arguments, Trial};

/// What a rank runs.
type Scenario = (&'static str, fn() -> ExitCode);

fn main() -> ExitCode {
    if let Some(name) = std::env::var_os(harness::SCENARIO) {
        let known = bulk::SCENARIOS.iter().chain(partition::SCENARIOS).find(|(n, _)| name == *n);
        return known.expect("the tests name scenarios that exist").1();
    }
    let missing = net::why_not();
    if let Some(reason) = &missing {
        eprintln!("the tests of several hosts are skipped: {reason}");
    }
    let tests = links::tests().into_iter().chain(bulk::tests()).chain(partition::tests());
    let trials = tests.map(|(name, test)| {
        let trial = Trial::test(name, move || {
            test();
            Ok(())
        });
        trial.with_ignored_flag(missing.is_some())
    });
    libtest_mimic::run(&Arguments::from_args(), trials.collect()).exit_code()
}
