//! Why a rank cannot start.

use std::io;

use crate::base::Rank;
use crate::sys::PmixError;

/// Why a rank cannot start, and what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// The launcher's part of the environment makes no sense.
    #[error("{variable}={value:?} in the environment is not what a launcher sets: {remedy}")]
    Environment {
        /// The variable.
        variable: &'static str,
        /// Its value.
        value: String,
        /// What to do.
        remedy: &'static str,
    },
    /// Launcher and ranks meet once in a process.
    #[error("this process has already been started once by its launcher, which takes it once only")]
    StartedTwice,
    /// The launcher is gone or says nonsense.
    #[error("the launcher failed this rank: {0}")]
    Launcher(String),
    /// PMI-1 went wrong.
    #[error("PMI: {0}; try `collimate run` if this launcher does not speak PMI-1")]
    Pmi(String),
    /// PMIx went wrong.
    #[error("PMIx: {0}")]
    Pmix(#[from] PmixError),
    /// MPI went wrong.
    #[error("MPI: {0}")]
    Mpi(String),
    /// More ranks than the tables hold.
    #[error("{size} ranks exceed the limit of {max}")]
    TooManyRanks {
        /// What the launcher asks for.
        size: u32,
        /// `limits::RANKS_MAX`.
        max: u32,
    },
    /// The TCP address cannot be listened on.
    #[error("{rank} cannot listen on {address}: {cause}; {remedy}")]
    Listen {
        /// This rank.
        rank: Rank,
        /// The address.
        address: String,
        /// The system's reason.
        cause: io::Error,
        /// What to do.
        remedy: &'static str,
    },
    /// Another rank has published something that is no card.
    #[error("{0} runs another version of Collimate: start all ranks from the same build")]
    Card(Rank),
    /// What this rank has to tell the others of itself cannot be said.
    #[error("{me}: {why}")]
    Note {
        /// This rank.
        me: Rank,
        /// Why.
        why: String,
    },
    /// No connection to a rank could be made.
    #[error("{me} cannot reach {peer} at {address}: {cause}")]
    Unreachable {
        /// This rank.
        me: Rank,
        /// The other.
        peer: Rank,
        /// Where it should be.
        address: String,
        /// Why.
        cause: String,
    },
    /// Ranks that never connected.
    #[error("{me} waited {seconds} s in vain for {missing}")]
    Missing {
        /// This rank.
        me: Rank,
        /// The others, as a list.
        missing: String,
        /// How long.
        seconds: u64,
    },
    /// The system refused something.
    #[error("{what}: {cause}")]
    Os {
        /// What was tried.
        what: &'static str,
        /// The system's reason.
        cause: io::Error,
    },
}

impl BootError {
    /// For `map_err`: names what was tried.
    pub(super) fn os<E: Into<io::Error>>(what: &'static str) -> impl FnOnce(E) -> BootError {
        move |cause| BootError::Os { what, cause: cause.into() }
    }
}
