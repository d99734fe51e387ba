//! What goes into an exchange and what comes out.

use std::fmt;

use super::super::chunks::Chunking;
use super::super::fetch::ChunkRead;
use crate::base::Rank;
use crate::base::limits::{BULK_BYTES_MIN, SHARED_BYTES_MIN};
use crate::wire::{Bulk, CopyId};

/// An object that is to be brought here.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Wanted {
    /// Its name.
    pub copy: CopyId,
    /// In whose memory it lies, on loan to us.
    pub owner: Rank,
    /// Its first byte there.
    pub from: u64,
    /// Its bytes.
    pub len: u64,
    /// Several ranks read it just now.
    pub shared: bool,
}

impl Wanted {
    /// Whether others are read from and served, or it is just read from its
    /// owner.
    pub fn is_exchanged(&self) -> bool {
        self.len >= BULK_BYTES_MIN || self.shared && self.len >= SHARED_BYTES_MIN
    }

    /// How the object is cut.
    pub fn chunking(&self) -> Chunking {
        if self.is_exchanged() { Chunking::of(self.len) } else { Chunking::whole(self.len) }
    }
}

/// What the exchange wants done.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Action {
    /// Send a message.
    Send(Rank, Bulk),
    /// Take memory for the whole of an arrival, before the first of it is read;
    /// to be answered at once by `Exchange::placed` or `Exchange::no_room`.
    Place {
        /// The arrival.
        arrival: usize,
    },
    /// Read a chunk; to be answered by `Exchange::read_ended`, or at once by
    /// `Exchange::cannot_read`.
    Read {
        /// Names the read.
        token: usize,
        /// The arrival that it is for.
        arrival: usize,
        /// From whom.
        rank: Rank,
        /// What.
        read: ChunkRead,
    },
    /// Part of an arrival is under way from a rank that may never send it. The
    /// arrival is to go on in other memory, with what is here; to be answered at
    /// once by `Exchange::placed` or `Exchange::no_room`. All that was under
    /// way is asked for again, and may still come to where it was.
    Move {
        /// The arrival.
        arrival: usize,
    },
    /// An object is here. If it is `kept`, its memory must stay until
    /// [`Memory::unpin`].
    Done {
        /// The arrival, whose number is used again.
        arrival: usize,
        /// The object.
        copy: CopyId,
        /// Others still read from it.
        kept: bool,
    },
    /// An object is in the memory of a rank whose memory this one reads in
    /// place. It stays there until `Exchange::left`.
    Near {
        /// The arrival, whose number is used again.
        arrival: usize,
        /// Where it is.
        place: NearCopy,
    },
    /// An object will not come; otherwise as [`Action::Done`].
    Failed {
        /// The arrival.
        arrival: usize,
        /// The object.
        copy: CopyId,
        /// Others still read from it.
        kept: bool,
        /// Why.
        error: FetchError,
    },
}

/// A copy that is read in place.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NearCopy {
    /// The object.
    pub copy: CopyId,
    /// Who keeps it.
    pub holder: Rank,
    /// The subscription under which it does.
    pub number: u32,
    /// Its first byte in the holder's arena.
    pub offset: u64,
    /// Its bytes.
    pub len: u64,
}

/// An object that could not be read from anybody.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FetchError {
    /// The object.
    pub copy: CopyId,
    /// In whose memory it was.
    pub owner: Rank,
    /// Its bytes.
    pub len: u64,
    /// Who was tried, and why each had to be given up.
    pub causes: Vec<(Rank, String)>,
}

impl fmt::Display for FetchError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let FetchError { copy, owner, len, causes } = self;
        let (lender, object) = (copy.lender, copy.object);
        write!(f, "object {object:#x} of {lender}, {len} bytes in the memory of {owner}, has no source left")?;
        for (at, (rank, cause)) in causes.iter().enumerate() {
            write!(f, "{}{rank}: {cause}", if at == 0 { ": " } else { "; " })?;
        }
        Ok(())
    }
}

impl std::error::Error for FetchError {}

/// What the exchange asks of this rank's memory.
pub trait Memory {
    /// The object that this rank has lent to `borrower`: whose memory it lies
    /// in, and its bytes.
    fn lent(&self, object: u64, borrower: Rank) -> Option<(Rank, u64)>;

    /// Keeps the complete copy where it is, if there still is one: its first
    /// byte in this rank's arena, and its bytes.
    fn pin(&mut self, copy: CopyId) -> Option<(u64, u64)>;

    /// Ends [`Memory::pin`], or what [`Action::Done`] and [`Action::Failed`] say
    /// is kept.
    fn unpin(&mut self, copy: CopyId);
}

/// A chunk that has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Landed {
    /// Its bytes.
    pub bytes: u64,
    /// From the owner's memory, not from another reader's copy.
    pub from_owner: bool,
}

/// A message that a peer must not send: what it did.
pub type Violation = &'static str;
