//! Typed events, declared once, for counters, the log and tests. Nothing here
//! stands on the per-task path: events are for what is rare.

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! events {
    ($($(#[doc = $doc:literal])* $name:ident => $text:literal,)*) => {
        /// Something that happened and is worth counting.
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        #[repr(usize)]
        pub enum Event { $($(#[doc = $doc])* $name,)* }

        impl Event {
            /// Every event, in order of declaration.
            pub const ALL: &'static [Event] = &[$(Event::$name,)*];

            /// The event's name in logs and metrics.
            pub const fn name(self) -> &'static str {
                match self { $(Event::$name => $text,)* }
            }
        }
    };
}

events! {
    /// A connection proved the job's key.
    Admitted => "admission.admitted",
    /// A connection offered a wrong proof, a replayed one included.
    RefusedProof => "admission.refused_proof",
    /// A connection sent something that is no handshake.
    RefusedGarbage => "admission.refused_garbage",
    /// A connection did not finish the handshake in time.
    RefusedSlow => "admission.refused_slow",
    /// A connection was closed by the other side within the handshake.
    RefusedClosed => "admission.refused_closed",
    /// A rank that is already connected, or that does not exist, was offered.
    RefusedRank => "admission.refused_rank",
    /// A frame or a message failed verification and its connection was closed.
    BadFrame => "fabric.bad_frame",
    /// A peer asked for memory that it may not have.
    RefusedRead => "fabric.refused_read",
    /// A peer sent more than it had credits for.
    Overrun => "fabric.overrun",
    /// A peer took nothing for too long and was given up.
    StuckPeer => "fabric.stuck_peer",
    /// A peer's connection ended before it said goodbye.
    PeerLost => "node.peer_lost",
    /// A task was taken by another rank.
    TaskStolen => "sched.task_stolen_by_rank",
    /// A worker went to sleep.
    WorkerParked => "sched.worker_parked",
    /// A put failed because the arena was full.
    StoreFull => "store.full",
    /// Bytes of objects that were read from their owners' memory.
    ReadFromOwner => "store.bytes_read_from_owner",
    /// Bytes of objects that were read from another reader's copy.
    ReadFromCopy => "store.bytes_read_from_copy",
    /// A read of a peer's memory failed.
    ReadFailed => "store.read_failed",
}

/// A process's counters, one per event.
#[derive(Debug)]
pub struct Counters([AtomicU64; Event::ALL.len()]);

impl Counters {
    /// All zero.
    pub const fn new() -> Self {
        Counters([const { AtomicU64::new(0) }; Event::ALL.len()])
    }

    /// Counts `event` once.
    pub fn count(&self, event: Event) {
        self.0[event as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// Counts `event` `times`.
    pub fn add(&self, event: Event, times: u64) {
        self.0[event as usize].fetch_add(times, Ordering::Relaxed);
    }

    /// How often `event` happened.
    pub fn get(&self, event: Event) -> u64 {
        self.0[event as usize].load(Ordering::Relaxed)
    }
}

impl Default for Counters {
    fn default() -> Self {
        Counters::new()
    }
}
