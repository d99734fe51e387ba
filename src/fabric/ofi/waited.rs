//! How long something has been waited for, by a process that may be stopped
//! itself.

use std::time::{Duration, Instant};

/// Looks that it takes at least before patience ends.
const LOOKS_MIN: u32 = 4;

/// Time in which a change would have been seen. Of a time without looks, for
/// this process was stopped or its thread had a long task, only a part counts:
/// the answer may be there and not have been fetched.
#[derive(Clone, Copy)]
pub(super) struct Waited {
    looked: Instant,
    total: Duration,
}

impl Waited {
    pub fn since(now: Instant) -> Waited {
        Waited { looked: now, total: Duration::ZERO }
    }

    /// Looks; whether it was waited for longer than `patience`.
    pub fn look(&mut self, now: Instant, patience: Duration) -> bool {
        self.total += now.saturating_duration_since(self.looked).min(patience / LOOKS_MIN);
        self.looked = now;
        self.total > patience
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patience_ends_by_looks_and_not_by_one_long_sleep() {
        let (begin, second) = (Instant::now(), Duration::from_secs(1));
        let mut often = Waited::since(begin);
        let seen = (1..20).find(|i| often.look(begin + *i * second, 10 * second));
        assert_eq!(seen, Some(11));
        let mut stopped = Waited::since(begin);
        assert!(!stopped.look(begin + 3600 * second, 10 * second));
        assert!(!stopped.look(begin + 3607 * second, 10 * second));
        let mut rarely = Waited::since(begin);
        let seen = (1..20).find(|i| rarely.look(begin + 60 * *i * second, 10 * second));
        assert_eq!(seen, Some(LOOKS_MIN + 1), "a rank that looks rarely finds out as well");
    }
}
