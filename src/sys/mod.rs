//! All operating-system and foreign `unsafe`.

pub mod fence;
pub mod fiber;
