//! What a failed task leaves behind: an error *value* that every consumer of
//! its result receives, with the chain of tasks that it passed through.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::Rank;

/// Why a task has no result.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[repr(u8)]
pub enum ErrorKind {
    /// The body returned `Err`.
    Failed = 1,
    /// The body panicked.
    Panicked = 2,
    /// The rank that ran the task, or that held its result, is gone.
    RankLost = 3,
    /// The object store of a rank is full.
    StoreFull = 4,
    /// The peer has no task of that name: its binary differs.
    UnknownTask = 5,
    /// Arguments or a result that do not have the declared type.
    BadArgument = 6,
    /// No stack was left to run another task on.
    StackExhausted = 7,
    /// The time given to `get` or `wait` ran out; the task goes on.
    TimedOut = 8,
    /// The runtime is ending, or was never started in this process.
    NotRunning = 9,
    /// The call itself cannot be served: a rank that does not exist, a value
    /// too large.
    BadCall = 10,
}

impl ErrorKind {
    /// The kind with the number `code`, which came from a peer.
    pub fn from_code(code: u8) -> Option<ErrorKind> {
        use ErrorKind::*;
        [Failed, Panicked, RankLost, StoreFull, UnknownTask, BadArgument, StackExhausted, TimedOut, NotRunning, BadCall]
            .into_iter()
            .find(|k| *k as u8 == code)
    }
}

/// One task that an error passed through, the one that failed first.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Hop {
    /// The task's name.
    pub task: String,
    /// The rank that it ran on.
    pub rank: u32,
}

/// The error value of a task: what happened, and the chain of tasks from the
/// one that failed to the one whose result was asked for.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct TaskError {
    /// What kind of failure it was.
    pub kind: ErrorKind,
    /// What happened and what to do, in one line.
    pub message: String,
    /// The tasks it passed through, the failed one first.
    pub trail: Vec<Hop>,
}

impl TaskError {
    /// An error that has not passed through any task yet.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        TaskError { kind, message: message.into(), trail: Vec::new() }
    }

    /// The same error, having passed through `task` on `rank`.
    #[must_use]
    pub fn through(mut self, task: &str, rank: Rank) -> Self {
        self.trail.push(Hop { task: task.to_string(), rank: rank.0 });
        self
    }
}

impl fmt::Display for TaskError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        for (i, hop) in self.trail.iter().enumerate() {
            let word = if i == 0 { " (in" } else { ", needed by" };
            write!(f, "{word} task `{}` on rank {}", hop.task, hop.rank)?;
        }
        if !self.trail.is_empty() {
            f.write_str(")")?;
        }
        Ok(())
    }
}

impl std::error::Error for TaskError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_names_its_chain() {
        let e = TaskError::new(ErrorKind::Panicked, "panicked: index out of bounds")
            .through("leaf", Rank(2))
            .through("root", Rank(0));
        assert_eq!(
            e.to_string(),
            "panicked: index out of bounds (in task `leaf` on rank 2, needed by task `root` on rank 0)"
        );
    }

    #[test]
    fn kinds_survive_their_codes() {
        for code in 0..=255 {
            if let Some(kind) = ErrorKind::from_code(code) {
                assert_eq!(kind as u8, code);
            }
        }
        assert_eq!(ErrorKind::from_code(0), None);
    }
}
