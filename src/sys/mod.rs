//! What needs the operating system and `unsafe` at once: shared memory, passing
//! of descriptors, waiting for sockets, io_uring.

pub mod fdpass;
pub mod memory;
pub mod poller;
pub mod socket;
pub mod uring;
