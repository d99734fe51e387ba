//! How `collimate bench` takes its samples: warm-up, percentiles of a round,
//! ours and the reference in turn, medians over rounds.

use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// Why a measurement could not be taken.
pub type Failed = Box<dyn std::error::Error>;

/// How long anything in a benchmark may wait for another thread or process.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// How much to measure.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    /// Few repetitions, for a test.
    pub quick: bool,
}

impl Effort {
    /// Rounds of ours and the reference in turn.
    pub fn rounds(self) -> usize {
        if self.quick { 3 } else { 11 }
    }

    /// `full`, or a small part of it.
    pub fn count(self, full: u64) -> u64 {
        if self.quick { (full / 50).max(10) } else { full }
    }
}

/// The percentiles of one round.
#[derive(Clone, Copy, Debug)]
pub struct Round {
    /// Median.
    pub p50_ns: f64,
    /// 99th percentile.
    pub p99_ns: f64,
}

/// Medians over rounds.
#[derive(Clone, Copy, Debug)]
pub struct Compared {
    /// Ours.
    pub ours: Round,
    /// The reference.
    pub reference: Round,
    /// Ours over the reference: the median of the rounds' ratios, so that what
    /// slows both of a round does not count.
    pub ratio: f64,
}

/// Samples of one round.
pub struct Samples(Histogram<u64>);

impl Samples {
    /// None yet.
    pub fn new() -> Samples {
        // Picoseconds, up to a thousand seconds.
        Samples(Histogram::new_with_bounds(1, 1_000_000_000_000_000, 3).expect("bounds that fit"))
    }

    /// Adds one that took `elapsed` in all for `operations`.
    pub fn add(&mut self, elapsed: Duration, operations: u64) {
        let each = elapsed.as_nanos() * 1000 / u128::from(operations.max(1));
        self.0.saturating_record(each.clamp(1, u128::from(u64::MAX)) as u64);
    }

    /// Their percentiles.
    pub fn round(&self) -> Round {
        let at = |quantile| self.0.value_at_quantile(quantile) as f64 / 1000.0;
        Round { p50_ns: at(0.5), p99_ns: at(0.99) }
    }
}

/// How often [`sample`] runs its operation.
pub fn runs(count: u64, batch: u64) -> u64 {
    (count + count / 10 + 1) * batch
}

/// Takes `count` samples after a warm-up of a tenth as many, each the mean of
/// `batch` runs, so that reading the clock does not count where an operation
/// takes less than a microsecond.
pub fn sample<E>(count: u64, batch: u64, mut operation: impl FnMut() -> Result<(), E>) -> Result<Round, E> {
    let mut samples = Samples::new();
    for number in 0..count + count / 10 + 1 {
        let start = Instant::now();
        for _ in 0..batch {
            operation()?;
        }
        let elapsed = start.elapsed();
        if number > count / 10 {
            samples.add(elapsed, batch);
        }
    }
    Ok(samples.round())
}

/// Takes `rounds` of each in turn.
pub fn interleave(
    rounds: usize,
    mut ours: impl FnMut() -> Result<Round, Failed>,
    mut reference: impl FnMut() -> Result<Round, Failed>,
) -> Result<Compared, Failed> {
    let mut pairs = Vec::with_capacity(rounds);
    for _ in 0..rounds {
        pairs.push((ours()?, reference()?));
    }
    Ok(compare(&pairs))
}

/// Medians of rounds taken in pairs.
pub fn compare(pairs: &[(Round, Round)]) -> Compared {
    let of = |figure: &dyn Fn(&(Round, Round)) -> f64| median(pairs.iter().map(figure).collect());
    Compared {
        ours: Round { p50_ns: of(&|p| p.0.p50_ns), p99_ns: of(&|p| p.0.p99_ns) },
        reference: Round { p50_ns: of(&|p| p.1.p50_ns), p99_ns: of(&|p| p.1.p99_ns) },
        ratio: of(&|p| p.0.p50_ns / p.1.p50_ns),
    }
}

/// The middle of `values`, which are not empty.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Spins until `done`.
pub fn spin_until(what: &str, mut done: impl FnMut() -> bool) -> Result<(), Failed> {
    let mut spins = 0u32;
    let mut start = None;
    while !done() {
        std::hint::spin_loop();
        spins = spins.wrapping_add(1);
        if spins.is_multiple_of(1 << 16) && start.get_or_insert_with(Instant::now).elapsed() > PATIENCE {
            return Err(format!("{what} did not happen within {} s", PATIENCE.as_secs()).into());
        }
    }
    Ok(())
}

/// The cores that this thread may run on.
pub fn cores() -> Vec<usize> {
    let set = sched_getaffinity(None).unwrap_or_default();
    (0..CpuSet::MAX_CPU).filter(|core| set.is_set(*core)).collect()
}

/// Binds the calling thread to one core.
pub fn pin(core: usize) -> Result<(), Failed> {
    let mut set = CpuSet::new();
    set.set(core);
    sched_setaffinity(None, &set).map_err(|e| format!("cannot bind a thread to core {core}: {e}").into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ratio_is_the_median_of_the_rounds() {
        let round = |ns| Round { p50_ns: ns, p99_ns: 2.0 * ns };
        let compared = compare(&[(round(10.0), round(5.0)), (round(300.0), round(100.0)), (round(40.0), round(4.0))]);
        assert_eq!(compared.ratio, 3.0);
        assert_eq!((compared.ours.p50_ns, compared.reference.p50_ns), (40.0, 5.0));
    }

    #[test]
    fn batches_are_divided() {
        let mut samples = Samples::new();
        for _ in 0..100 {
            samples.add(Duration::from_millis(1), 1000);
        }
        let p50 = samples.round().p50_ns;
        assert!((990.0..=1001.0).contains(&p50), "{p50}");
    }

    #[test]
    fn a_wait_ends_when_it_is_over() {
        let mut left = 3;
        spin_until("a countdown", || {
            left -= 1;
            left == 0
        })
        .unwrap();
    }
}
