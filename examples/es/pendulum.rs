//! The inverted pendulum of Gym's `Pendulum-v1`: swing a pole up and hold it
//! there with a motor too weak to lift it in one go.
//!
//! Equations and constants are those published in
//! `gymnasium/envs/classic_control/pendulum.py` (Farama Foundation Gymnasium,
//! documented at <https://gymnasium.farama.org/environments/classic_control/pendulum/>).
//! The state is kept in `f64` as there; sine and cosine come from the pure-Rust
//! `libm`, so that an episode has the same bits on every host.

use std::f64::consts::PI;

/// Steps in one episode, after which Gym truncates it.
pub const STEPS: usize = 200;
/// The largest torque that the motor applies in either direction, in N·m.
pub const TORQUE_MAX: f64 = 2.0;
/// The largest angular speed in either direction, in rad/s.
pub const SPEED_MAX: f64 = 8.0;

const GRAVITY: f64 = 10.0;
const MASS: f64 = 1.0;
const LENGTH: f64 = 1.0;
const TIME_STEP: f64 = 0.05;

/// A pendulum at one moment.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pendulum {
    /// Radians from upright, not wrapped.
    angle: f64,
    /// Radians per second.
    speed: f64,
}

impl Pendulum {
    /// A pendulum `angle` radians from upright that turns at `speed` rad/s.
    pub fn new(angle: f64, speed: f64) -> Self {
        Pendulum { angle, speed }
    }

    /// What the policy sees: cosine and sine of the angle, and the speed.
    pub fn observe(&self) -> [f32; 3] {
        [libm::cos(self.angle) as f32, libm::sin(self.angle) as f32, self.speed as f32]
    }

    /// Applies `torque`, clipped to what the motor has, for one time step and
    /// returns the reward for it: at best 0.
    pub fn step(&mut self, torque: f64) -> f64 {
        let torque = torque.clamp(-TORQUE_MAX, TORQUE_MAX);
        let offset = wrap(self.angle);
        let cost = offset * offset + 0.1 * (self.speed * self.speed) + 0.001 * (torque * torque);

        let acceleration =
            3.0 * GRAVITY / (2.0 * LENGTH) * libm::sin(self.angle) + 3.0 / (MASS * LENGTH * LENGTH) * torque;
        self.speed = (self.speed + acceleration * TIME_STEP).clamp(-SPEED_MAX, SPEED_MAX);
        self.angle += self.speed * TIME_STEP;
        -cost
    }
}

/// The return of one episode: the sum of its rewards, between about -3255 and 0,
/// when `policy` chooses the torque for each observation.
pub fn episode(mut pendulum: Pendulum, policy: impl Fn([f32; 3]) -> f32) -> f64 {
    (0..STEPS).map(|_| pendulum.step(f64::from(policy(pendulum.observe())))).sum()
}

/// The same angle in [-π, π).
fn wrap(angle: f64) -> f64 {
    (angle + PI).rem_euclid(2.0 * PI) - PI
}

#[cfg(test)]
mod tests {
    use super::*;
    /// Torque, then the angle, speed and reward after one step, as the published
    /// Python equations give them.
    type Published = (f64, f64, f64, f64);

    fn follows(mut pendulum: Pendulum, published: &[Published]) {
        for &(torque, angle, speed, reward) in published {
            let got = pendulum.step(torque);
            let error = (pendulum.angle - angle).abs().max((pendulum.speed - speed).abs()).max((got - reward).abs());
            assert!(
                error < 1e-12,
                "torque {torque}: {pendulum:?} with reward {got}, published {angle} {speed} {reward}"
            );
        }
    }

    #[test]
    fn hanging_pendulum_follows_the_published_steps() {
        follows(
            Pendulum::new(PI, 0.0),
            &[
                (2.0, 3.1565926535897932, 0.3000000000000001, -9.873604401089358),
                (2.0, 3.1860301746833057, 0.5887504218702541, -9.78858162148166),
                (2.0, 3.2288018371221288, 0.8554332487764595, -9.631032620673293),
            ],
        );
    }

    #[test]
    fn torque_is_clipped_and_costed_as_clipped() {
        follows(
            Pendulum::new(1.0, -0.5),
            &[
                (0.3, 1.008805161930296, 0.17610323860592247, -1.0250899999999998),
                (-5.0, 1.0343426645923528, 0.5107500532411354, -1.0247890898019594),
                (1.5, 1.1033624141527691, 1.3803949912083262, -1.0982013094845917),
            ],
        );
    }

    #[test]
    fn angles_beyond_half_a_turn_are_wrapped_in_the_cost_only() {
        follows(
            Pendulum::new(4.0, 7.9),
            &[
                (2.0, 4.381619906425953, 7.632398128519054, -11.457935146920741),
                (-2.0, 4.712772580949972, 6.623053490480376, -9.445301092565444),
                (0.0, 5.006425258233042, 5.8730535456613975, -6.8526798844803585),
            ],
        );
        follows(
            Pendulum::new(-3.5, -7.95),
            &[
                (-2.0, -3.8993456289616395, -7.9869125792327855, -14.070370454100328),
                (-9.0, -4.287917846064867, -7.7714443420645605, -12.065768866276935),
                (0.25, -4.64044293812386, -7.050501841179843, -10.020689457563904),
            ],
        );
    }

    #[test]
    fn full_episode_has_the_published_return_and_meets_the_speed_limit() {
        let with_the_swing = |[_, _, speed]: [f32; 3]| if speed >= 0.0 { 2.0 } else { -2.0 };
        let total = episode(Pendulum::new(2.0, 0.5), with_the_swing);
        assert!((total - -1585.9768013501505).abs() < 1e-6, "{total}");
    }

    #[test]
    fn upright_at_rest_costs_nothing_and_stays() {
        assert_eq!(episode(Pendulum::new(0.0, 0.0), |_| 0.0), 0.0);
    }

    #[test]
    fn observation_is_cosine_sine_and_speed() {
        let [cosine, sine, speed] = Pendulum::new(PI / 6.0, -1.5).observe();
        assert!((cosine - 0.866_025_4).abs() < 1e-6 && (sine - 0.5).abs() < 1e-6, "{cosine} {sine}");
        assert_eq!(speed, -1.5);
    }
}
