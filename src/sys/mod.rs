//! All operating-system and foreign `unsafe`, behind safe functions.

mod fence;
mod fiber;
mod pmix;
mod populate;
mod process;
mod wait;

pub use fence::fence_everywhere;
pub use fiber::{Fiber, FiberEnded, stack_left, suspend};
pub use pmix::{Pmix, PmixError};
pub use populate::populate_fresh;
pub use process::{Signals, duplicate_inherited_socket, spawn_bound};
pub use wait::WaitSet;
