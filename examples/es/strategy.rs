//! Evolution strategies (Salimans et al., "Evolution Strategies as a Scalable
//! Alternative to Reinforcement Learning", 2017): mirrored Gaussian
//! perturbations, ranks in place of returns, Adam on the estimated gradient.
//!
//! Every sum runs over an index and never over what finished first, so that the
//! parameters after any number of generations depend on the settings alone.

use crate::noise::{Purpose, Stream};
use crate::pendulum::episode;
use crate::policy::{PARAMETERS, torque};

/// How a search is run.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Names every random stream of the run.
    pub seed: u64,
    /// Mirrored pairs in one generation; twice as many policies are tried.
    pub pairs: usize,
    /// Updates of the parameters.
    pub generations: usize,
}

/// Episodes that each policy of a generation plays. All play the same ones, so
/// that they differ by their parameters and not by their luck.
const EPISODES: usize = 64;
/// Standard deviation of a perturbation.
const SIGMA: f32 = 0.3;
/// Adam's step size in the first generation; it falls linearly to a tenth.
const LEARNING_RATE: f64 = 0.3;
/// Standard deviation of the parameters that a search starts from.
const START_SCALE: f32 = 0.3;
/// Adam's decay rates and guard against division by 0, as published.
const BETA: (f64, f64) = (0.9, 0.999);
const EPSILON: f64 = 1e-8;

/// The mean returns of the two policies `theta + σε` and `theta - σε`, where ε
/// is perturbation `pair` of generation `generation`. This is all the work of a
/// run, and a pure function of its arguments.
pub fn try_pair(theta: &[f32], seed: u64, generation: u64, pair: u64, pairs: u64) -> (f64, f64) {
    let noise = perturbation(seed, generation, pair, pairs);
    let mean_return = |sign: f32| {
        let perturbed: Vec<f32> = theta.iter().zip(&noise).map(|(theta, noise)| theta + sign * SIGMA * noise).collect();
        total_return(&perturbed, Stream::new(seed, Purpose::Training, generation), EPISODES) / EPISODES as f64
    };
    (mean_return(1.0), mean_return(-1.0))
}

/// The sum of the returns of `theta` over block `block` of fresh test episodes.
pub fn test(theta: &[f32], seed: u64, block: u64, episodes: usize) -> f64 {
    total_return(theta, Stream::new(seed, Purpose::Test, block), episodes)
}

fn total_return(theta: &[f32], starts: Stream, episodes: usize) -> f64 {
    starts.pendulums(episodes).map(|start| episode(start, |seen| torque(theta, seen))).sum()
}

fn perturbation(seed: u64, generation: u64, pair: u64, pairs: u64) -> Vec<f32> {
    Stream::new(seed, Purpose::Perturbation, generation * pairs + pair).gaussians(PARAMETERS)
}

/// The state of a search: the parameters and Adam's moments.
pub struct Search {
    settings: Settings,
    generation: u64,
    theta: Vec<f32>,
    moments: Vec<(f64, f64)>,
}

impl Search {
    /// A search at its starting parameters.
    pub fn new(settings: Settings) -> Self {
        let start = Stream::new(settings.seed, Purpose::Start, 0).gaussians(PARAMETERS);
        Search {
            settings,
            generation: 0,
            theta: start.iter().map(|x| START_SCALE * x).collect(),
            moments: vec![(0.0, 0.0); PARAMETERS],
        }
    }

    /// The parameters of the policy as they are now.
    pub fn theta(&self) -> &[f32] {
        &self.theta
    }

    /// How many updates there have been.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Moves the parameters towards what did well: `returns[i]` is what
    /// [`try_pair`] gave for pair `i` of this generation.
    pub fn update(&mut self, returns: &[(f64, f64)]) {
        let gradient = self.gradient(returns);
        self.generation += 1;
        let progress = self.generation as f64 / self.settings.generations as f64;
        let rate = LEARNING_RATE * (1.0 - 0.9 * progress.min(1.0));
        let unbias = |beta: f64| 1.0 - libm::pow(beta, self.generation as f64);
        let (unbias_mean, unbias_square) = (unbias(BETA.0), unbias(BETA.1));
        for ((theta, (mean, square)), gradient) in self.theta.iter_mut().zip(&mut self.moments).zip(gradient) {
            *mean = BETA.0 * *mean + (1.0 - BETA.0) * gradient;
            *square = BETA.1 * *square + (1.0 - BETA.1) * gradient * gradient;
            *theta += (rate * (*mean / unbias_mean) / (libm::sqrt(*square / unbias_square) + EPSILON)) as f32;
        }
    }

    /// The direction in which the shaped fitness rises, estimated from the pairs
    /// in the order of their index.
    fn gradient(&self, returns: &[(f64, f64)]) -> Vec<f64> {
        let both: Vec<f64> = returns.iter().flat_map(|&(plus, minus)| [plus, minus]).collect();
        let fitness = centred_ranks(&both);
        let mut gradient = vec![0.0; PARAMETERS];
        for (pair, fitness) in fitness.chunks_exact(2).enumerate() {
            let noise = perturbation(self.settings.seed, self.generation, pair as u64, returns.len() as u64);
            let weight = (fitness[0] - fitness[1]) / (2.0 * returns.len() as f64 * f64::from(SIGMA));
            for (sum, noise) in gradient.iter_mut().zip(noise) {
                *sum += weight * f64::from(noise);
            }
        }
        gradient
    }
}

/// Each value's rank, scaled to [-0.5, 0.5]: one lucky or disastrous policy
/// weighs no more than its place. Equal values rank by index.
fn centred_ranks(values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&a, &b| values[a].total_cmp(&values[b]));
    let mut ranks = vec![0.0; values.len()];
    let last = values.len().saturating_sub(1).max(1) as f64;
    for (rank, index) in order.into_iter().enumerate() {
        ranks[index] = rank as f64 / last - 0.5;
    }
    ranks
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(settings: Settings) -> Vec<f32> {
        let mut search = Search::new(settings);
        for generation in 0..settings.generations as u64 {
            let pairs = 0..settings.pairs as u64;
            let returns: Vec<_> = pairs
                .map(|pair| try_pair(search.theta(), settings.seed, generation, pair, settings.pairs as u64))
                .collect();
            search.update(&returns);
        }
        search.theta().to_vec()
    }

    #[test]
    fn ranks_are_centred_and_ties_go_by_index() {
        assert_eq!(centred_ranks(&[-3.0, 10.0, -900.0]), [0.0, 0.5, -0.5]);
        assert_eq!(centred_ranks(&[1.0, 1.0, 0.0]), [0.0, 0.5, -0.5]);
        assert_eq!(centred_ranks(&[4.0]), [-0.5]);
    }

    #[test]
    fn update_moves_towards_the_better_half_of_a_pair() {
        let mut search = Search::new(Settings { seed: 5, pairs: 1, generations: 10 });
        let before = search.theta().to_vec();
        let noise = perturbation(5, 0, 0, 1);
        search.update(&[(-100.0, -200.0)]);
        let moved_with_noise =
            search.theta().iter().zip(before).zip(noise).all(|((new, old), e)| (new - old) * e > 0.0);
        assert!(moved_with_noise);
        assert_eq!(search.generation(), 1);
    }

    #[test]
    fn mirrored_policies_of_a_pair_differ_and_repeat() {
        let search = Search::new(Settings { seed: 5, pairs: 2, generations: 1 });
        let (plus, minus) = try_pair(search.theta(), 5, 0, 1, 2);
        assert_ne!(plus, minus);
        assert_eq!(try_pair(search.theta(), 5, 0, 1, 2), (plus, minus));
        assert_ne!(try_pair(search.theta(), 5, 1, 1, 2), (plus, minus));
    }

    #[test]
    fn a_short_search_improves_and_repeats() {
        let settings = Settings { seed: 1, pairs: 8, generations: 10 };
        let theta = run(settings);
        assert_eq!(theta, run(settings));
        assert_ne!(theta, run(Settings { seed: 2, ..settings }));
        let before = test(Search::new(settings).theta(), 1, 0, 20) / 20.0;
        let after = test(&theta, 1, 0, 20) / 20.0;
        assert!(after > before + 100.0, "mean return went from {before} to {after}");
    }
}
