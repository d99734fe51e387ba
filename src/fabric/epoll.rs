//! TCP through epoll (mio), for systems that refuse io_uring: all of it is what
//! the TCP backends share. Any thread may call any method.

use std::os::fd::BorrowedFd;
use std::sync::Arc;

use super::streams::{Streams, Tuning};
use super::zerocopy::Policy;
use super::{Event, Fabric, FabricError, Kind, Link, RegionKey, RemoteSpan};
use crate::base::event::Counters;
use crate::base::{Rank, limits};
use crate::mem::{Lease, Region};

/// Past this, asking epoll costs less than trying.
const ACTIVE_MAX: usize = 8;

/// See the module.
pub struct EpollFabric {
    pub(super) streams: Streams,
}

impl EpollFabric {
    /// A fabric without peers.
    pub fn new(rank: Rank, counters: Arc<Counters>) -> Result<EpollFabric, FabricError> {
        EpollFabric::with(rank, EpollFabric::tuning(), counters)
    }

    pub(super) fn with(rank: Rank, tuning: Tuning, counters: Arc<Counters>) -> Result<EpollFabric, FabricError> {
        Ok(EpollFabric { streams: Streams::new(rank, tuning, counters)? })
    }

    pub(super) fn tuning() -> Tuning {
        Tuning { active_max: ACTIVE_MAX, silence: limits::PEER_SILENCE_MAX, zero_copy: Policy::Measured }
    }
}

impl Fabric for EpollFabric {
    fn kind(&self) -> Kind {
        Kind::Epoll
    }

    fn register(&mut self, key: RegionKey, region: Arc<Region>) -> Result<(), FabricError> {
        self.streams.register(key, region);
        Ok(())
    }

    fn connect(&mut self, peer: Rank, link: Link) -> Result<(), FabricError> {
        self.streams.connect(peer, link)
    }

    fn send(&mut self, peer: Rank, parts: &[&[u8]]) -> Result<(), FabricError> {
        self.streams.send(peer, parts)
    }

    fn map(&self, _peer: Rank, _key: RegionKey) -> Option<Arc<Region>> {
        None
    }

    fn read(&mut self, peer: Rank, from: RemoteSpan, into: Lease, token: u64) -> Result<(), FabricError> {
        self.streams.read(peer, from, into, token);
        Ok(())
    }

    fn poll(&mut self, sink: &mut dyn FnMut(Event<'_>)) -> usize {
        self.streams.poll_sockets(sink)
    }

    fn arm(&mut self) -> bool {
        self.streams.arm()
    }

    fn wait_fd(&self) -> BorrowedFd<'_> {
        self.streams.wait_fd()
    }

    fn close(&mut self, peer: Rank) {
        self.streams.close(peer);
    }
}
