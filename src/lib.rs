//! Collimate: a distributed task and actor runtime for HPC clusters.
//!
//! This crate is laid out in layers; `docs/ARCHITECTURE.md` has the map and
//! `tests/tidy.rs` enforces it. Users need only what [`api`] exports, which is
//! re-exported here.
//!
//! Under `--cfg loom` only `base` and `sync` exist: the models need no more.

pub mod base;
#[cfg(not(loom))]
#[doc(hidden)]
pub mod boot;
#[cfg(not(loom))]
#[doc(hidden)]
pub mod fabric;
#[cfg(not(loom))]
#[doc(hidden)]
pub mod mem;
#[cfg(not(loom))]
#[doc(hidden)]
pub mod store;
#[doc(hidden)]
pub mod sync;
#[cfg(not(loom))]
#[doc(hidden)]
pub mod sys;
#[cfg(not(loom))]
#[doc(hidden)]
pub mod wire;
