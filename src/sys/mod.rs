//! All operating-system and foreign `unsafe`, behind safe functions.

pub mod fdpass;
mod fence;
mod fiber;
pub mod memory;
mod pmix;
pub mod poller;
mod populate;
mod process;
pub mod socket;
mod wait;

pub use fence::fence_everywhere;
pub use fiber::{Fiber, FiberEnded, stack_left, suspend};
pub use pmix::{Pmix, PmixError};
pub use populate::populate_fresh;
pub use process::{Signals, duplicate_inherited_socket, spawn_bound};
pub use wait::WaitSet;
