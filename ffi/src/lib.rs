//! The C interface of Collimate: what `ffi/include/collimate.h` declares, which
//! is generated from these files.
//!
//! Thin: each function checks what it is given, calls [`collimate::raw`] or
//! [`collimate::Runtime`], and makes a status of what comes back. No panic gets
//! out, no pointer is kept beyond the call that was given it unless the header
//! says so.

mod runtime;
mod status;
mod task;
mod value;

pub use runtime::{clm_finalize, clm_init, clm_rank, clm_serve, clm_size};
pub use status::{clm_last_error, clm_status, clm_status_text};
pub use task::{clm_register, clm_task, clm_task_arg, clm_task_arg_count, clm_task_fail, clm_task_fn, clm_task_return};
pub use value::{
    clm_arg, clm_bytes, clm_get, clm_options, clm_put, clm_ref, clm_ref_clone, clm_ref_release, clm_spawn, clm_view,
    clm_view_release, clm_wait,
};
