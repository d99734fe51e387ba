//! The periods of the protocol and the assumption about clocks that relates
//! them.

use super::message::Nanos;
use crate::base::limits::{GCS_DETECTION, GCS_RANK_DETECTION};

/// What is assumed of clocks: two monotonic clocks of different hosts run apart
/// by at most this part of the time, in parts per million each. Quartz clocks
/// stay below 100; the rest is for clocks that are being slewed (Linux: 500).
pub const CLOCK_DRIFT_PPM: u64 = 1_000;

/// So that watchers hear of a change within a millisecond in a job of ranks.
const WORDS_PER_DETECTION: Nanos = 1_000;

/// See the module. All are measured on the clock of whoever waits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Timing {
    /// How often a replica tells the quorum that it lives.
    pub beat: Nanos,
    /// How long a replica may answer reads after a beat that was granted.
    pub lease: Nanos,
    /// How long a member of the quorum takes a lease that it granted to last.
    pub hold: Nanos,
    /// How long a replica may be silent before it is removed.
    pub detection: Nanos,
    /// After what time something is sent again that may have been lost.
    pub resend: Nanos,
    /// How long a tail that commits much keeps the word of it back from those before
    /// it, who do not wait for it: each word wakes them.
    pub word: Nanos,
    /// How long a watch lasts that is not renewed.
    pub watch: Nanos,
    /// The time between two rounds of heartbeats of the quorum's members, while
    /// they have a leader: after two to three without its word they elect another.
    /// A multiple of `beat`, so that an idle rank wakes for both at once.
    pub quorum_tick: Nanos,
}

impl Timing {
    /// Periods for a detection time.
    pub const fn for_detection(detection: Nanos) -> Timing {
        let (beat, lease) = (detection / 5, detection / 2);
        Timing {
            beat,
            lease,
            hold: Timing::hold_for(lease),
            detection,
            resend: detection / 5,
            word: detection / WORDS_PER_DETECTION,
            watch: detection * 8,
            quorum_tick: 2 * beat,
        }
    }

    /// When something of this period is due again: at its multiples, so that all
    /// that one rank does by time alone is done when it wakes once.
    pub(super) const fn after(now: Nanos, period: Nanos) -> Nanos {
        (now / period + 1) * period
    }

    /// How long a lease may last on another clock than that of its holder: the
    /// holder's may run slow while this one runs fast.
    const fn hold_for(lease: Nanos) -> Nanos {
        lease / (1_000_000 - CLOCK_DRIFT_PPM) * (1_000_000 + CLOCK_DRIFT_PPM) + 1_000_000 + CLOCK_DRIFT_PPM
    }

    /// Whether the periods are such that reads are safe, and that a dead
    /// replica's lease has run out when it is found dead.
    pub const fn is_sound(&self) -> bool {
        self.hold >= Timing::hold_for(self.lease) && self.hold < self.detection && self.beat < self.lease
    }
}

impl Default for Timing {
    fn default() -> Timing {
        Timing::for_detection(GCS_DETECTION.as_nanos() as Nanos)
    }
}

const _: () = assert!(Timing::for_detection(GCS_DETECTION.as_nanos() as Nanos).is_sound());
const _: () = assert!(Timing::for_detection(GCS_RANK_DETECTION.as_nanos() as Nanos).is_sound());
