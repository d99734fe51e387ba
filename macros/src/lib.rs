//! The `#[collimate::task]` and `#[collimate::main]` attributes.
