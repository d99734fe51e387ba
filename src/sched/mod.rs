//! Scheduling policy: who may start, and where. A pure core: it is told what
//! is there and says what to do. Tasks themselves move through `sync` deques.

mod placement;
mod resources;

pub use placement::{Choice, Place, choose};
pub use resources::{Demand, Ledger, Shortage};
