//! The libraries that C programs link; everything is in `collimate-ffi`.

pub use collimate_ffi::*;
