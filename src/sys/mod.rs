//! All operating-system and foreign `unsafe`, behind safe functions.

mod adapters;
mod cores;
mod fdpass;
mod fence;
mod fiber;
mod journal;
mod memory;
mod ofi;
mod pmix;
mod poller;
mod populate;
mod presence;
mod process;
mod say;
mod socket;
mod uring;
mod verbs;
#[allow(
    missing_docs,
    unsafe_op_in_unsafe_fn,
    dead_code,
    non_camel_case_types,
    non_upper_case_globals,
    clippy::all,
    clippy::undocumented_unsafe_blocks,
    reason = "generated"
)]
#[rustfmt::skip]
#[path = "generated/verbs.rs"]
mod verbs_bindings;
mod wait;

pub use adapters::has_fabric_adapter;
pub use cores::online_cores;
pub use fdpass::{FDS_MAX, receive as receive_fds, send as send_fds};
pub use fence::fence_everywhere;
pub use fiber::{Fiber, FiberEnded, stack_left, suspend};
#[cfg(test)]
pub(crate) use journal::SmallDisk;
pub use journal::{Journal, JournalBackend, JournalError, JournalEvent, Mark, lock_file};
pub use memory::{SharedLines, create_region, open_region, region_fd};
pub use ofi::{
    Address as OfiAddress, Capacity as OfiCapacity, OFI_ANY, OfiEndpoint, OfiError, OfiEvent, OfiOffer, OfiSummary, Posted as OfiPosted, RemoteKey as OfiKey, TransferId as OfiTransfer, ofi_available,
};
pub use pmix::{Pmix, PmixError};
pub use poller::Poller;
pub use populate::populate_fresh;
pub use presence::{Witness, enrol, presence_fds};
pub use process::{Signals, duplicate_inherited_socket, on_exit, spawn_bound};
pub use say::say_line;
#[cfg(test)]
pub(crate) use socket::deafen;
pub use socket::{SendNotices, allow_uncopied, send_from_region, send_uncopied, take_send_notices};
pub use uring::{Features as UringFeatures, ReceiveRing, Received};
pub use verbs::{
    Adapter as RdmaAdapter, Address as RdmaAddress, AsyncEvent, Completion, CompletionQueue, Filled, Gid, GidKind,
    Memory as RdmaMemory, PairCounts, Port as RdmaPort, QueuePair, ReadId, ReceiveQueue, Remote as RdmaRemote,
    Transport as RdmaTransport, Window as RdmaWindow, adapter_names,
};
pub use wait::WaitSet;
