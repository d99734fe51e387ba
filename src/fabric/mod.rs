//! A fabric moves bytes between ranks. It knows ranks, bytes and registered
//! regions, and no message type: what the bytes mean is the node's business.

use std::fmt;
use std::net::TcpStream;
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use crate::base::Rank;
use crate::mem::{Lease, Region};

mod choice;
mod epoll;
mod frame;
mod inbox;
mod lanes;
mod ofi;
mod outbox;
mod peers;
mod rdma;
mod setup;
mod shm;
mod stream;
mod streams;
mod uring;
mod zerocopy;

#[cfg(test)]
mod conformance;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzzing;

pub use choice::{Choice, Grade, Offer, choose};
pub use epoll::EpollFabric;
pub use ofi::{OfiFabric, parse_ofi_frame};
pub use rdma::{RdmaCounts, RdmaDevice, RdmaFabric, RdmaFrame, RdmaFrameKind, parse_rdma_frame, rdma_available};
pub use setup::receive_exactly;
pub use shm::ShmFabric;
pub use uring::UringFabric;

/// Which backend a fabric is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Rings in memory shared by the processes of a host.
    Shm,
    /// RDMA verbs.
    Rdma,
    /// libfabric.
    Ofi,
    /// TCP through io_uring.
    Uring,
    /// TCP through epoll.
    Epoll,
}

/// An authenticated connection, handed over by `boot`.
#[derive(Debug)]
pub enum Link {
    /// To a rank of the same host.
    Unix(UnixStream),
    /// To any rank.
    Tcp(TcpStream),
    /// To any rank, with further connections for large reads.
    Lanes(TcpStream, Vec<TcpStream>),
}

/// A registered region's name: the same number at its owner and at every peer.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct RegionKey(pub u32);

/// Part of a region of a peer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RemoteSpan {
    /// The peer's region.
    pub key: RegionKey,
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
}

/// What [`Fabric::poll`] reports.
#[derive(Debug)]
pub enum Event<'a> {
    /// One whole message, as sent.
    Message {
        /// Who sent it.
        peer: Rank,
        /// The bytes that were given to [`Fabric::send`], joined.
        bytes: &'a [u8],
    },
    /// A read ended; the lease comes back, filled if it went well.
    ReadDone {
        /// Whose memory was read.
        peer: Rank,
        /// What [`Fabric::read`] was given.
        token: u64,
        /// The destination.
        lease: Lease,
        /// How it went.
        result: Result<(), FabricError>,
    },
    /// The connection ended, once per peer. Reads under way were reported as
    /// failed before this.
    Lost {
        /// The peer.
        peer: Rank,
        /// Why.
        cause: FabricError,
    },
}

/// What a fabric can fail with.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum FabricError {
    /// No room now: call again after a poll. Nothing was queued.
    #[error("the queue to {0} is full")]
    Full(Rank),
    /// There is no connection to that rank, or there is none any more.
    #[error("no connection to {0}")]
    NotConnected(Rank),
    /// The message exceeds `limits::MESSAGE_BYTES_MAX`.
    #[error("a message of {0} bytes exceeds the limit of {1}")]
    TooLong(usize, usize),
    /// The other side closed the connection, or its process ended.
    #[error("the connection to {0} was closed by the other side")]
    Closed(Rank),
    /// The other side sent bytes that are no frame of this fabric, or asked
    /// for memory that it may not have.
    #[error("{0} sent a frame that cannot be: {1}")]
    BadFrame(Rank, String),
    /// The peer has no such memory; the connection stays.
    #[error("{0} has no {1}")]
    NoSuchMemory(Rank, RemoteSpan),
    /// The other side's host does not answer, or its process takes nothing.
    #[error("{peer} has not answered for {seconds} s: is its host down, the network cut or its process stopped?")]
    Silent {
        /// Who.
        peer: Rank,
        /// For how long.
        seconds: u64,
    },
    /// The operating system refused something.
    #[error("{what} for {peer}: {cause}")]
    Os {
        /// Whom it concerned.
        peer: Rank,
        /// The call.
        what: &'static str,
        /// The system's text.
        cause: String,
    },
}

impl Kind {
    /// Its name, as `COLLIMATE_FABRIC` takes it.
    pub const fn name(self) -> &'static str {
        match self {
            Kind::Shm => "shm",
            Kind::Rdma => "rdma",
            Kind::Ofi => "ofi",
            Kind::Uring => "uring",
            Kind::Epoll => "epoll",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl fmt::Display for RemoteSpan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes at offset {} of region {}", self.len, self.offset, self.key.0)
    }
}

impl FabricError {
    fn os(peer: Rank, what: &'static str, cause: impl fmt::Display) -> FabricError {
        FabricError::Os { peer, what, cause: cause.to_string() }
    }
}

/// One transport, with all its peers. Messages to one peer arrive once, whole
/// and in order, or the peer is reported as lost. All methods but `connect`
/// return without waiting.
pub trait Fabric: Send {
    /// Which backend this is.
    fn kind(&self) -> Kind;

    /// Makes `region` readable by every peer under `key`. Regions are
    /// registered before the first `connect`.
    fn register(&mut self, key: RegionKey, region: Arc<Region>) -> Result<(), FabricError>;

    /// Takes over an authenticated connection. May exchange set-up messages
    /// with the peer's `connect` and wait for them, `limits::SET_UP_DEADLINE`
    /// at most.
    fn connect(&mut self, peer: Rank, link: Link) -> Result<(), FabricError>;

    /// Queues one message, the concatenation of `parts`; on its way at the
    /// latest when the next [`Fabric::poll`] returns.
    fn send(&mut self, peer: Rank, parts: &[&[u8]]) -> Result<(), FabricError>;

    /// The peer's region, read in place, where this fabric can.
    fn map(&self, peer: Rank, key: RegionKey) -> Option<Arc<Region>>;

    /// Starts to read `from`, which must be as long as `into`; ends in one
    /// [`Event::ReadDone`] with the same token. What fails at once is reported
    /// there as well, so that the lease comes back; an error of the call itself
    /// would have consumed it, and no backend here returns one.
    fn read(&mut self, peer: Rank, from: RemoteSpan, into: Lease, token: u64) -> Result<(), FabricError>;

    /// Makes progress and reports what happened; returns how many events.
    /// Never waits.
    fn poll(&mut self, sink: &mut dyn FnMut(Event<'_>)) -> usize;

    /// Prepares to sleep: after `true`, the descriptor of [`Fabric::wait_fd`]
    /// becomes readable when the next poll would do something. `false` says
    /// that there is something to poll now. The next poll disarms.
    fn arm(&mut self) -> bool;

    /// Readable when an armed fabric has something to poll.
    fn wait_fd(&self) -> BorrowedFd<'_>;

    /// Ends the connection to one peer without reporting it as lost; what was
    /// queued before is still sent where that needs no waiting.
    fn close(&mut self, peer: Rank);
}
