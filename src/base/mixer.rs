//! A hash of a few numbers.

use std::hash::{BuildHasherDefault, Hasher};

/// A hash of a few numbers that is the same in every run. Those who could choose
/// numbers that collide have the job's key, and would only slow themselves down.
#[derive(Clone, Copy, Default)]
pub struct Mixer(u64);

/// What makes a [`Mixer`] for each key of a map.
pub type Mix = BuildHasherDefault<Mixer>;

impl Hasher for Mixer {
    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_u64(u64::from(*byte)));
    }

    #[inline]
    fn write_u32(&mut self, number: u32) {
        self.write_u64(u64::from(number));
    }

    #[inline]
    fn write_u64(&mut self, number: u64) {
        self.0 = (self.0 ^ number).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29);
    }

    #[inline]
    fn finish(&self) -> u64 {
        self.0
    }
}
