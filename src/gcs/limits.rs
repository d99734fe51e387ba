//! How much of anything a replica keeps, and does in one turn.

use crate::base::limits::{
    GCS_LOG_BYTES_MAX, GCS_LOG_ENTRIES_MAX, GCS_LOG_REWRITE_BYTES, GCS_PART_BYTES, GCS_PARTS_AT_ONCE, GCS_TURN_BYTES,
};

/// See the module. Those of a job are constants; a simulation has smaller ones,
/// so that little meets them.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Limits {
    /// Commands under way, and as many again that a joiner has not got.
    pub log_entries: usize,
    /// The same in bytes.
    pub log_bytes: usize,
    /// Bytes of one part of a state.
    pub part_bytes: usize,
    /// Parts on their way at once.
    pub parts_at_once: usize,
    /// Bytes of commands that are passed on, carried out or written in one turn
    /// where there may be any number of them.
    pub turn_bytes: usize,
    /// Bytes of a log after which it is begun anew from the state.
    pub rewrite_bytes: usize,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            log_entries: GCS_LOG_ENTRIES_MAX,
            log_bytes: GCS_LOG_BYTES_MAX,
            part_bytes: GCS_PART_BYTES,
            parts_at_once: GCS_PARTS_AT_ONCE,
            turn_bytes: GCS_TURN_BYTES,
            rewrite_bytes: GCS_LOG_REWRITE_BYTES,
        }
    }
}
