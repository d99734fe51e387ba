//! The policy: a network of three inputs, one hidden layer and one output that
//! turns what is observed of a pendulum into a torque. Its parameters are one
//! flat vector, which is what evolution strategies search over.
//!
//! The pendulum looks the same in a mirror: with angle and speed negated, the
//! best torque is negated too. The network has that symmetry built in. Without
//! it, a search often learns to swing up on one side only and stays there.

use crate::pendulum::{SPEED_MAX, TORQUE_MAX};

const HIDDEN: usize = 16;

/// How many parameters a policy has: for every hidden unit the weights of
/// cosine, sine and speed, its bias and its weight in the output; all units'
/// first weights come first, then all their second ones, and so on.
pub const PARAMETERS: usize = 5 * HIDDEN;

/// The torque that the policy `theta` asks for when it sees `observation`, before
/// the motor clips it.
///
/// It uses addition and multiplication in one fixed order and nothing else, so
/// that the answer has the same bits on every host.
///
/// # Panics
/// When `theta` does not have [`PARAMETERS`] entries.
pub fn torque(theta: &[f32], observation: [f32; 3]) -> f32 {
    assert_eq!(theta.len(), PARAMETERS, "a policy has {PARAMETERS} parameters");
    let (of_cosine, theta) = theta.split_at(HIDDEN);
    let (of_sine, theta) = theta.split_at(HIDDEN);
    let (of_speed, theta) = theta.split_at(HIDDEN);
    let (bias, of_output) = theta.split_at(HIDDEN);
    let [cosine, sine, speed] = observation;
    let speed = speed / SPEED_MAX as f32;

    let mut terms = [0.0; HIDDEN];
    for (unit, term) in terms.iter_mut().enumerate() {
        let same_in_mirror = of_cosine[unit] * cosine + bias[unit];
        let negated_in_mirror = of_sine[unit] * sine + of_speed[unit] * speed;
        *term = of_output[unit]
            * (activation(same_in_mirror + negated_in_mirror) - activation(same_in_mirror - negated_in_mirror));
    }
    0.5 * TORQUE_MAX as f32 * terms.iter().fold(0.0, |sum, term| sum + term)
}

/// Tanh in three straight lines.
fn activation(x: f32) -> f32 {
    x.clamp(-1.0, 1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_weight_acts_on_its_own_input() {
        let mut theta = [0.0; PARAMETERS];
        for (input, weight) in [0.2, 0.5, 0.25, 0.125, 3.0].into_iter().enumerate() {
            theta[input * HIDDEN + 2] = weight;
        }
        // Same 0.2·0.5 + 0.125 = 0.225, negated 0.5·0.25 + 0.25·4/8 = 0.25:
        // 3 · (0.475 - (-0.025)) = 1.5.
        assert!((torque(&theta, [0.5, 0.25, 4.0]) - 1.5).abs() < 1e-6);
        // Same 0.825, negated 0.25: 3 · (1 - 0.575) = 1.275, since units saturate at 1.
        theta[3 * HIDDEN + 2] = 0.725;
        assert!((torque(&theta, [0.5, 0.25, 4.0]) - 1.275).abs() < 1e-6);
    }

    #[test]
    fn mirrored_observation_gets_the_negated_torque() {
        let theta: Vec<f32> = (0..PARAMETERS).map(|i| ((i * 37 % 41) as f32 - 20.0) / 10.0).collect();
        let there = torque(&theta, [0.3, 0.9, -2.0]);
        assert_ne!(there, 0.0);
        assert_eq!(torque(&theta, [0.3, -0.9, 2.0]), -there);
    }
}
