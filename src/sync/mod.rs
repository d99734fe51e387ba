//! One file per lock-free algorithm, each below an essay on its protocol, and
//! the shim through which all of them run under loom as well.

pub mod ring;
pub mod shim;

pub use ring::{CONTROL_LINES, Consumer, Line, Producer, RingError};
