//! What every layer shares: identities, limits, configuration, errors, typed
//! events and a seeded random number generator. Knows no thread, no socket, no
//! clock.

pub mod config;
pub mod error;
pub mod event;
pub mod id;
pub mod limits;
pub mod rng;

pub use config::Config;
pub use error::{ErrorKind, Hop, TaskError};
pub use id::{FunctionId, HostId, JobId, Rank, Tag};
