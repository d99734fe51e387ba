//! Whole jobs: this program is both the tests and, under a launcher with
//! `COLLIMATE_TEST_SCENARIO` set, the ranks of the jobs that they start.

mod bulk;
mod control;
mod deep;
mod errors;
mod full_disk;
mod harness;
mod life;
mod store;
mod stress;
mod values;

use std::process::ExitCode;

use libtest_mimic::{Arguments, Trial};

/// What a rank runs.
type Scenario = (&'static str, fn() -> ExitCode);

fn main() -> ExitCode {
    let all = [
        values::SCENARIOS,
        errors::SCENARIOS,
        deep::SCENARIOS,
        store::SCENARIOS,
        bulk::SCENARIOS,
        stress::SCENARIOS,
        life::SCENARIOS,
        control::SCENARIOS,
        full_disk::SCENARIOS,
    ];
    if let Some(name) = std::env::var_os(harness::SCENARIO) {
        let known = all.iter().copied().flatten().find(|(n, _)| name == *n);
        return known.expect("the tests name scenarios that exist").1();
    }
    let mut trials: Vec<Trial> = Vec::new();
    for tests in [
        values::tests(),
        errors::tests(),
        deep::tests(),
        store::tests(),
        bulk::tests(),
        stress::tests(),
        life::tests(),
        control::tests(),
        full_disk::tests(),
    ] {
        trials.extend(tests.into_iter().map(|test| {
            let lacks = harness::lacks_launcher(&test.0);
            harness::trial(test, lacks)
        }));
    }
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}
