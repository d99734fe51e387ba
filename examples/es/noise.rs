//! Random numbers that any rank can make again from a few integers, so that
//! only those integers travel. A stream is named by the run's seed, what it is
//! for and an index; it is ChaCha8 keyed with the first two, with the index as
//! the cipher's own stream number, so streams never overlap.

use std::f64::consts::PI;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

use crate::pendulum::Pendulum;

/// What a stream of random numbers is for. Streams of different purposes share
/// nothing: the episodes of the final test were never trained on.
#[derive(Clone, Copy, Debug)]
pub enum Purpose {
    /// The parameters that the search starts from.
    Start = 1,
    /// The directions in which a generation perturbs its parameters.
    Perturbation = 2,
    /// The episodes that a generation is measured on.
    Training = 3,
    /// The episodes that the result is tested on.
    Test = 4,
}

/// One stream of random numbers.
pub struct Stream(ChaCha8Rng);

impl Stream {
    /// Stream `index` of those for `purpose` in the run with this `seed`.
    pub fn new(seed: u64, purpose: Purpose, index: u64) -> Self {
        let mut key = [0; 32];
        key[..8].copy_from_slice(&seed.to_le_bytes());
        key[8] = purpose as u8;
        let mut cipher = ChaCha8Rng::from_seed(key);
        cipher.set_stream(index);
        Stream(cipher)
    }

    /// Uniform in [0, 1), in steps of 2⁻⁵³.
    fn unit(&mut self) -> f64 {
        (self.0.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Uniform in [-bound, bound).
    fn symmetric(&mut self, bound: f64) -> f64 {
        (2.0 * self.unit() - 1.0) * bound
    }

    /// `count` independent standard normal numbers, by Box and Muller's method.
    pub fn gaussians(mut self, count: usize) -> Vec<f32> {
        let mut numbers = Vec::with_capacity(count + 1);
        while numbers.len() < count {
            // 1 - unit lies in (0, 1], where the logarithm is finite.
            let radius = libm::sqrt(-2.0 * libm::log(1.0 - self.unit()));
            let angle = 2.0 * PI * self.unit();
            numbers.push((radius * libm::cos(angle)) as f32);
            numbers.push((radius * libm::sin(angle)) as f32);
        }
        numbers.truncate(count);
        numbers
    }

    /// `count` pendulums in Gym's starting distribution: any angle, and a speed
    /// within 1 rad/s.
    pub fn pendulums(mut self, count: usize) -> impl Iterator<Item = Pendulum> {
        (0..count).map(move |_| Pendulum::new(self.symmetric(PI), self.symmetric(1.0)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_repeats_and_differs_from_all_others() {
        let of = |seed, purpose, index| Stream::new(seed, purpose, index).gaussians(5);
        let one = of(1, Purpose::Perturbation, 2);
        assert_eq!(one, of(1, Purpose::Perturbation, 2));
        assert_ne!(one, of(2, Purpose::Perturbation, 2));
        assert_ne!(one, of(1, Purpose::Start, 2));
        assert_ne!(one, of(1, Purpose::Perturbation, 3));
        assert_eq!(one[..3], Stream::new(1, Purpose::Perturbation, 2).gaussians(3));
    }

    #[test]
    fn gaussians_have_mean_0_and_variance_1() {
        let numbers = Stream::new(7, Purpose::Perturbation, 0).gaussians(100_001);
        let mean = numbers.iter().map(|&x| f64::from(x)).sum::<f64>() / numbers.len() as f64;
        let variance = numbers.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / numbers.len() as f64;
        let within_one = numbers.iter().filter(|x| x.abs() < 1.0).count() as f64 / numbers.len() as f64;
        assert!(mean.abs() < 0.02 && (variance - 1.0).abs() < 0.03, "mean {mean}, variance {variance}");
        assert!((within_one - 0.6827).abs() < 0.01, "{within_one} within one standard deviation");
    }

    #[test]
    fn pendulums_start_where_gym_starts_them() {
        let starts: Vec<_> = Stream::new(3, Purpose::Training, 0).pendulums(1000).collect();
        let angles = starts.iter().map(|start| f64::from(start.observe()[1]));
        let speeds = starts.iter().map(|start| f64::from(start.observe()[2]));
        assert!(speeds.clone().all(|speed| speed.abs() <= 1.0));
        assert!(speeds.clone().any(|speed| speed > 0.9) && speeds.clone().any(|speed| speed < -0.9));
        assert!(angles.clone().any(|sine| sine > 0.9) && angles.clone().any(|sine| sine < -0.9));
        assert!(starts.iter().any(|start| start.observe()[0] < -0.9), "none hangs");
    }
}
