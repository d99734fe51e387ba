//! Collimate: a distributed task and actor runtime for HPC clusters.
//!
//! This crate is laid out in layers; `docs/ARCHITECTURE.md` has the map and
//! `tests/tidy.rs` enforces it. Users need only what [`api`] exports, which is
//! re-exported here.
//!
//! Under `--cfg loom` only `base` and `sync` exist: the models need no more.

// So that what the attributes expand to also works inside this crate.
extern crate self as collimate;

pub mod base;

macro_rules! layers {
    ($($name:ident)*) => {
        $(#[cfg(not(loom))] #[doc(hidden)] pub mod $name;)*
    };
}

layers! { api boot fabric gcs mem node sched store sys wire }

#[cfg(all(not(loom), any(test, feature = "sim")))]
#[doc(hidden)]
pub mod sim;

#[doc(hidden)]
pub mod sync;

/// The examples of the README, compiled and run as tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
pub struct Readme;

#[cfg(not(loom))]
pub use api::*;
