//! Whether a connection's chunks are sent without copying them: found out by
//! trying, since the kernel alone knows whether it could (over loopback and
//! virtual networks it copies in the end, and loses by it). The first chunks go
//! either way in turn; then the cheaper one stays. No socket and no clock here.

use std::time::Duration;

use crate::sys::SendNotices;

/// Bytes of a call from which on it is worth trying: below, pinning pages and
/// reading the notice cost more than the copy.
pub(super) const BYTES_MIN: usize = 64 * 1024;

/// Calls of each kind that are compared.
const TRIALS: u32 = 16;

/// Not copying must be cheaper by a tenth: it costs notices besides.
const GAIN: f64 = 0.9;

/// What may be tried.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Policy {
    /// What the trial says.
    Measured,
    /// No trial.
    Never,
    /// Without a trial, even if the kernel copies.
    #[cfg_attr(not(test), expect(dead_code, reason = "tests force it"))]
    Always,
}

/// See the module.
#[derive(Debug)]
pub(super) struct ZeroCopy {
    state: State,
    /// Calls of which the kernel has not said that it is done.
    outstanding: u32,
}

#[derive(Debug)]
enum State {
    Off,
    Trying { copied: Trial, uncopied: Trial },
    On,
    Forced,
}

/// What the calls of one kind have cost.
#[derive(Default, Debug)]
struct Trial {
    calls: u32,
    bytes: f64,
    seconds: f64,
}

impl ZeroCopy {
    pub(super) fn new(policy: Policy) -> ZeroCopy {
        let state = match policy {
            Policy::Never => State::Off,
            Policy::Measured => State::Trying { copied: Trial::default(), uncopied: Trial::default() },
            Policy::Always => State::Forced,
        };
        ZeroCopy { state, outstanding: 0 }
    }

    /// Whether the next call is to be without a copy.
    pub(super) fn wants(&self, bytes: usize) -> bool {
        bytes >= BYTES_MIN
            && match &self.state {
                State::Off => false,
                State::On | State::Forced => true,
                State::Trying { copied, uncopied } => uncopied.calls < TRIALS && uncopied.calls <= copied.calls,
            }
    }

    /// Whether calls are to be timed.
    pub(super) fn is_trying(&self) -> bool {
        matches!(self.state, State::Trying { .. })
    }

    /// Whether notices are to be read.
    pub(super) fn is_owed_notices(&self) -> bool {
        self.outstanding > 0
    }

    /// Takes note of a call; `time` is given while trying.
    pub(super) fn sent(&mut self, uncopied: bool, bytes: usize, time: Option<Duration>) {
        self.outstanding += u32::from(uncopied);
        if let State::Trying { copied: there, uncopied: here } = &mut self.state
            && let Some(time) = time
            && bytes >= BYTES_MIN
        {
            let trial = if uncopied { here } else { there };
            trial.calls += 1;
            trial.bytes += bytes as f64;
            trial.seconds += time.as_secs_f64();
        }
        self.decide();
    }

    /// Takes note of what the kernel says.
    pub(super) fn noticed(&mut self, notices: SendNotices) {
        self.outstanding = self.outstanding.saturating_sub(notices.done);
        if notices.copied && !matches!(self.state, State::Forced) {
            self.state = State::Off;
        }
        self.decide();
    }

    fn decide(&mut self) {
        let State::Trying { copied, uncopied } = &self.state else { return };
        if copied.calls >= TRIALS && uncopied.calls >= TRIALS && self.outstanding == 0 {
            let cost = |trial: &Trial| trial.seconds / trial.bytes;
            self.state = if cost(uncopied) < GAIN * cost(copied) { State::On } else { State::Off };
        }
    }

    /// Whether the trial is over, and what it has said.
    #[cfg(test)]
    pub(super) fn verdict(&self) -> Option<bool> {
        match self.state {
            State::Off => Some(false),
            State::On | State::Forced => Some(true),
            State::Trying { .. } => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BYTES: usize = 256 * 1024;

    /// Runs a trial in which a call takes so many microseconds.
    fn try_out(copied_us: u64, uncopied_us: u64, kernel_copies: bool) -> Option<bool> {
        let mut zero_copy = ZeroCopy::new(Policy::Measured);
        for call in 0..200 {
            let uncopied = zero_copy.wants(BYTES);
            let time = Duration::from_micros(if uncopied { uncopied_us } else { copied_us });
            zero_copy.sent(uncopied, BYTES, zero_copy.is_trying().then_some(time));
            if call % 5 == 0 && zero_copy.is_owed_notices() {
                let copied = kernel_copies && call > 20;
                zero_copy.noticed(SendNotices { done: zero_copy.outstanding, copied });
            }
        }
        zero_copy.verdict()
    }

    #[test]
    fn the_cheaper_way_stays_unless_the_kernel_copies_anyway() {
        assert_eq!(try_out(50, 20, false), Some(true));
        assert_eq!(try_out(50, 49, false), Some(false));
        assert_eq!(try_out(50, 80, false), Some(false));
        assert_eq!(try_out(50, 20, true), Some(false));
    }

    #[test]
    fn no_verdict_while_notices_are_owed_and_no_trial_with_little() {
        let mut zero_copy = ZeroCopy::new(Policy::Measured);
        assert!(!zero_copy.wants(BYTES_MIN - 1));
        for _ in 0..100 {
            let uncopied = zero_copy.wants(BYTES);
            zero_copy.sent(uncopied, BYTES, Some(Duration::from_micros(10)));
        }
        assert_eq!((zero_copy.verdict(), zero_copy.outstanding), (None, TRIALS));
        zero_copy.noticed(SendNotices { done: TRIALS, copied: false });
        assert_eq!(zero_copy.verdict(), Some(false));
    }

    #[test]
    fn a_policy_needs_no_trial() {
        assert_eq!(ZeroCopy::new(Policy::Never).verdict(), Some(false));
        let mut forced = ZeroCopy::new(Policy::Always);
        forced.sent(true, BYTES, None);
        forced.noticed(SendNotices { done: 1, copied: true });
        assert_eq!(forced.verdict(), Some(true));
    }

    #[test]
    fn what_pays_at_first_ends_when_the_kernel_begins_to_copy() {
        let mut zero_copy = ZeroCopy { state: State::On, outstanding: 3 };
        zero_copy.noticed(SendNotices { done: 1, copied: true });
        assert!(!zero_copy.wants(BYTES) && zero_copy.is_owed_notices());
    }
}
