//! The runs that every change must pass.

use super::plan::Plan;
use super::world::{Report, play};
use crate::gcs::Bug;

/// Seeds of the ordinary test.
const SEEDS: u64 = 2_000;

fn replay(seed: u64) -> String {
    format!("replay it with: cargo xtask sim --seed {seed}")
}

#[test]
fn one_seed() {
    let Ok(seed) = std::env::var("COLLIMATE_SIM_SEED") else { return };
    let seed = seed.parse().expect("a number");
    let plan = Plan::of_seed(seed);
    println!("{plan:#?}");
    let report = play(&plan);
    println!("{report:#?}");
    assert_eq!(report.violation, None);
}

#[test]
fn two_thousand_seeds() {
    let count: u64 = std::env::var("COLLIMATE_SIM_SEEDS").map_or(SEEDS, |count| count.parse().expect("a number"));
    let mut total = Report::default();
    for seed in 0..count {
        let report = play(&Plan::of_seed(seed));
        if let Some(violation) = report.violation {
            panic!("{}\n{violation}", replay(seed));
        }
        total.events += report.events;
        total.operations += report.operations;
        total.unknown += report.unknown;
        total.crashes += report.crashes;
        total.epochs += report.epochs;
    }
    println!("{total:?}");
}

#[test]
fn every_deliberate_bug_is_caught() {
    for bug in Bug::ALL {
        let caught = (0..SEEDS).find(|seed| play(&Plan::of_seed(*seed).with_bug(bug)).violation.is_some());
        println!("{bug:?} is caught by seed {caught:?}");
        assert!(caught.is_some(), "{bug:?} is not caught by {SEEDS} seeds");
    }
}
