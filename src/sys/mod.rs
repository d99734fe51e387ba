//! All operating-system and foreign `unsafe`.

pub mod fence;
pub mod fiber;
mod populate;

pub use populate::populate_fresh;
