//! What needs the operating system and `unsafe` at once: shared memory, passing
//! of descriptors, waiting for sockets, io_uring.

pub mod fdpass;
pub mod memory;
mod poller;
mod socket;
pub mod uring;

pub use memory::SharedLines;
pub use poller::Poller;
pub use socket::send_from_region;
pub use uring::{ReceiveRing, Received};
