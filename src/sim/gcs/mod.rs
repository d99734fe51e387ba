//! The control store in virtual time: the real cores on a network that delays,
//! loses, doubles and reorders, with partitions, crashes, slow and full disks
//! and clocks that run apart. A run is a function of its seed:
//! `cargo xtask sim --seed S` replays one.
//!
//! [`plan`] says what a seed means, [`world`] plays it, [`workload`] is what
//! clients do, [`check`] judges what came of it, [`model`] is the exhaustive
//! check of reconfiguration at small scope.

mod check;
mod disk;
mod model;
mod plan;
mod tests;
mod workload;
mod world;
