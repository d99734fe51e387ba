//! Lines on standard error from several processes at once.

use std::io::Write;

/// Writes one line to standard error in one piece, so that the lines of a
/// job's ranks do not run into each other.
pub fn say_line(line: impl std::fmt::Display) {
    let text = format!("{line}\n");
    // Nothing can be said about a standard error that does not take it.
    let _closed = std::io::stderr().write_all(text.as_bytes());
}
