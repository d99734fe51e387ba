//! libfabric, loaded at run time: one reliable-datagram endpoint of one
//! provider, with messages and one-sided reads.
//!
//! [`OfiEndpoint`] owns all memory that the provider may touch: the buffers,
//! the operations' contexts, the registered regions and the leases that reads
//! fill. It gives a lease back only when no read into it is under way, and
//! frees nothing before the provider has closed the endpoint. So what is left
//! to callers is safe: whom to send to, what to read, when to look.

mod buffers;
mod endpoint;
#[allow(
    missing_docs,
    non_camel_case_types,
    unsafe_op_in_unsafe_fn,
    dead_code,
    clippy::all,
    clippy::undocumented_unsafe_blocks,
    reason = "generated"
)]
#[rustfmt::skip]
#[path = "../generated/ofi.rs"]
mod generated;
mod info;
mod library;
mod memory;
mod operations;

pub use endpoint::{Address, Capacity, OfiEndpoint, OfiEvent, Posted, TransferId};
pub use info::{ANY as OFI_ANY, OfiOffer, OfiSummary, available as ofi_available};
pub use memory::RemoteKey;

/// What libfabric can fail with.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{call}: {text}")]
pub struct OfiError {
    /// The function.
    pub call: &'static str,
    /// The positive error number.
    pub code: i32,
    /// What `fi_strerror` says.
    pub text: String,
}

impl OfiError {
    /// Whether memory could not be had, or not be locked.
    pub fn is_out_of_memory(&self) -> bool {
        self.code == generated::FI_ENOMEM as i32
    }

    fn missing(call: &'static str) -> OfiError {
        OfiError { call, code: generated::FI_ENOSYS as i32, text: "the provider does not have it".into() }
    }
}
