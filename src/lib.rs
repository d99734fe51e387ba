//! Collimate: a distributed task and actor runtime for HPC clusters.
//!
//! This crate is laid out in layers; `docs/ARCHITECTURE.md` has the map and
//! `tests/tidy.rs` enforces it. Users need only what [`api`] exports, which is
//! re-exported here.

pub mod base;
#[doc(hidden)]
pub mod boot;
#[doc(hidden)]
pub mod fabric;
#[doc(hidden)]
pub mod mem;
#[doc(hidden)]
pub mod store;
#[doc(hidden)]
pub mod sync;
#[doc(hidden)]
pub mod sys;
#[doc(hidden)]
pub mod wire;
