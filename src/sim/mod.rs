//! Whole clusters of the real cores in virtual time: what decides is the code
//! that ranks run, what moves bytes is a model of a network. A run with the
//! same arguments is the same run.

mod cluster;
#[cfg(test)]
mod gcs;
mod network;

pub use cluster::{End, Object, Reader, Report, Scenario};
pub use network::{Happening, Network, NetworkConfig};
