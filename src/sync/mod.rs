//! One file per lock-free algorithm, each below an essay on its protocol, and
//! the shim through which all of them run under loom as well.

mod baton;
mod completion;
mod deque;
mod idle;
mod ring;
mod shim;
mod slab;
mod task;

pub use baton::{Baton, Held};
pub use completion::{Wait, Wake};
pub use deque::{Owner, Steal, Stealer};
pub use idle::{Fences, Idle};
pub use ring::{CONTROL_LINES, Consumer, Line, Producer, RingError};
pub use slab::flush_thread as flush_frames;
pub use task::{Call, Handle, Lineage, Share, Stored, Task, done, frame};
