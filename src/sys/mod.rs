//! All operating-system and foreign `unsafe`, behind safe functions.

pub mod fdpass;
mod fence;
mod fiber;
pub mod memory;
mod pmix;
mod poller;
mod populate;
mod process;
mod socket;
pub mod uring;
mod wait;

pub use fence::fence_everywhere;
pub use fiber::{Fiber, FiberEnded, stack_left, suspend};
pub use memory::SharedLines;
pub use pmix::{Pmix, PmixError};
pub use poller::Poller;
pub use populate::populate_fresh;
pub use process::{Signals, duplicate_inherited_socket, on_exit, spawn_bound};
pub use socket::send_from_region;
pub use uring::{ReceiveRing, Received};
pub use wait::WaitSet;
