//! All operating-system and foreign `unsafe`, behind safe functions.

mod pmix;
mod process;

pub use pmix::{Pmix, PmixError};
pub use process::{Signals, duplicate_inherited_socket, spawn_bound};
