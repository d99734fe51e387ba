//! Evolution strategies on the pendulum of Gym: the ranks try perturbed
//! policies, the driver combines what they scored.
//!
//! Shows: one `put` per generation that every task reads in place, many small
//! tasks, and a result that is bit-identical for any number of ranks, because
//! noise is made again from seeds and sums run by index, never by who was first.
//!
//! ```text
//! cargo build --release --example es
//! mpirun -n 2 target/release/examples/es
//! collimate run -n 2 -- target/release/examples/es --seed 7
//! ```
//!
//! The last line is `digest <hex>`, SHA-256 over the little-endian bytes of the
//! final parameters; the line before it is the mean return over 100 episodes that
//! were not trained on. Below -300 the program fails.

mod noise;
mod pendulum;
mod policy;
mod strategy;

use std::error::Error;
use std::fmt::Write;
use std::time::{Duration, Instant};

use clap::Parser;
use collimate::{Options, Ref};
use indicatif::{ProgressBar, ProgressStyle};
use sha2::{Digest, Sha256};

use strategy::{Search, Settings};

/// The mean return that a run must reach, and over how many fresh episodes.
const GOAL: f64 = -300.0;
const TEST_EPISODES: usize = 100;
/// Test episodes in one task.
const TEST_BLOCK: usize = 25;

/// Learns to swing up a pendulum by evolution strategies.
#[derive(Parser)]
struct Cli {
    /// Updates of the policy
    #[arg(long, default_value_t = 150, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    generations: u32,
    /// Policies tried per update: an even number, for they come in mirrored pairs
    #[arg(long, default_value_t = 64, value_parser = population)]
    population: u32,
    /// Names all the random numbers of a run
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// A few small generations for a test: prints the digest and has no goal
    #[arg(long, conflicts_with_all = ["generations", "population"])]
    quick: bool,
}

impl Cli {
    fn settings(&self) -> Settings {
        let (population, generations) = if self.quick { (16, 4) } else { (self.population, self.generations) };
        Settings { seed: self.seed, pairs: population as usize / 2, generations: generations as usize }
    }
}

#[collimate::task]
fn try_pair(theta: &[f32], seed: u64, generation: u64, pair: u64, pairs: u64) -> (f64, f64) {
    strategy::try_pair(theta, seed, generation, pair, pairs)
}

#[collimate::task]
fn test(theta: &[f32], seed: u64, block: u64) -> f64 {
    strategy::test(theta, seed, block, TEST_BLOCK)
}

#[collimate::main]
fn main() -> Result<(), Box<dyn Error>> {
    let cli = Cli::parse();
    let settings = cli.settings();
    let mut search = Search::new(settings);
    let mut progress = Progress::new(settings.generations as u64);
    for _ in 0..settings.generations {
        let returns = try_all(&search, settings)?;
        search.update(&returns);
        progress.show(search.generation(), mean(&returns));
    }
    progress.finish();

    if !cli.quick {
        let mean = test_mean(search.theta(), settings.seed)?;
        if mean.is_nan() || mean < GOAL {
            return Err(format!(
                "mean return {mean:.1} over {TEST_EPISODES} fresh episodes is below the goal of {GOAL}: \
                 try more --generations, a larger --population or another --seed"
            )
            .into());
        }
        println!("mean return {mean:.1} over {TEST_EPISODES} fresh episodes");
    }
    println!("digest {}", digest(search.theta()));
    Ok(())
}

/// The returns of all pairs of the next generation, in the order of their index.
fn try_all(search: &Search, settings: Settings) -> Result<Vec<(f64, f64)>, Box<dyn Error>> {
    let theta: Ref<collimate::Array<f32>> = collimate::put(search.theta())?;
    let pairs = settings.pairs as u64;
    let refs: Vec<Ref<(f64, f64)>> = (0..pairs)
        .map(|pair| {
            let spread = Options::new().spread();
            try_pair::spawn_with(spread, &theta, settings.seed, search.generation(), pair, pairs)
        })
        .collect();
    refs.into_iter().map(|returns| Ok(returns.get()?)).collect()
}

/// The mean return of `theta` over the fresh episodes.
fn test_mean(theta: &[f32], seed: u64) -> Result<f64, Box<dyn Error>> {
    let theta: Ref<collimate::Array<f32>> = collimate::put(theta)?;
    let blocks = (TEST_EPISODES / TEST_BLOCK) as u64;
    let sums: Vec<Ref<f64>> =
        (0..blocks).map(|block| test::spawn_with(Options::new().spread(), &theta, seed, block)).collect();
    let mut total = 0.0;
    for sum in sums {
        total += sum.get()?;
    }
    Ok(total / TEST_EPISODES as f64)
}

/// The mean over both policies of every pair.
fn mean(returns: &[(f64, f64)]) -> f64 {
    returns.iter().map(|(plus, minus)| plus + minus).sum::<f64>() / (2 * returns.len()) as f64
}

fn digest(theta: &[f32]) -> String {
    let bytes: Vec<u8> = theta.iter().flat_map(|x| x.to_le_bytes()).collect();
    Sha256::digest(&bytes).iter().fold(String::new(), |mut hex, byte| {
        write!(hex, "{byte:02x}").expect("writing to a string cannot fail");
        hex
    })
}

fn population(text: &str) -> Result<u32, String> {
    match text.parse::<u32>() {
        Ok(number) if number >= 2 && number % 2 == 0 && number <= 1_000_000 => Ok(number),
        _ => Err("want an even number from 2 to 1000000".into()),
    }
}

/// What the user sees while the search runs, on standard error: a live line on a
/// terminal, otherwise a plain line now and then.
struct Progress {
    bar: ProgressBar,
    generations: u64,
    spoke: Instant,
}

impl Progress {
    const PLAIN_EVERY: Duration = Duration::from_secs(5);

    fn new(generations: u64) -> Self {
        let style = ProgressStyle::with_template("generation {pos}/{len} {wide_bar} {msg} {eta}")
            .expect("the template is well formed");
        let bar = ProgressBar::new(generations).with_style(style);
        Progress { bar, generations, spoke: Instant::now() }
    }

    fn show(&mut self, generation: u64, mean: f64) {
        self.bar.set_message(format!("mean return {mean:.0}"));
        self.bar.set_position(generation);
        if self.bar.is_hidden() && (self.spoke.elapsed() >= Self::PLAIN_EVERY || generation == self.generations) {
            self.spoke = Instant::now();
            eprintln!("generation {generation}/{} mean return {mean:.0}", self.generations);
        }
    }

    fn finish(&self) {
        self.bar.finish();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digest_is_sha256_of_the_little_endian_bytes() {
        // printf '\x00\x00\x80\x3f' | sha256sum
        assert_eq!(digest(&[1.0]), "e00e5eb9444182f352323374ef4e08ebcb784725fdd4fd612d7730540b3e0c8c");
    }

    #[test]
    fn options_are_checked() {
        assert!(Cli::try_parse_from(["es", "--population", "3"]).is_err());
        assert!(Cli::try_parse_from(["es", "--generations", "0"]).is_err());
        assert_eq!(Cli::try_parse_from(["es", "--no-such-option"]).err().map(|error| error.exit_code()), Some(2));
        assert_eq!(Cli::try_parse_from(["es", "--quick"]).map(|cli| cli.settings().generations).ok(), Some(4));
    }
}
