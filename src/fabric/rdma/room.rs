//! How much room each peer gets: as much as the device and the memory that a
//! fabric may lock hold for all peers together.

use crate::base::limits;

/// The fewest messages that a peer may send before it is given room again.
const CREDITS_MIN: u32 = 2;

/// What a device holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Capacity {
    /// Buffers of a shared receive queue.
    pub(super) receives: u32,
    /// Entries of a completion queue.
    pub(super) completions: u32,
    /// Work requests of a queue pair.
    pub(super) work_requests: u32,
    /// Queue pairs.
    pub(super) pairs: u32,
}

/// What each of so many peers gets. All follows from the credits, so that a
/// peer with half of them has half of everything else.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Room {
    peers: u32,
    /// Messages that it may send before it is given room again.
    pub(super) credits: u32,
}

impl Room {
    /// The most that can be had for `peers`, or what there is too little of.
    pub(super) fn plan(peers: u32, capacity: &Capacity) -> Result<Room, String> {
        let room = |credits| Room { peers: peers.max(1), credits };
        let all = (CREDITS_MIN..=limits::RDMA_CREDITS).rev().map(room);
        all.into_iter().find(|room| room.lacks(capacity).is_none()).ok_or_else(|| {
            let lack = room(CREDITS_MIN).lacks(capacity).unwrap_or_default();
            format!("{peers} peers are too many for it: {lack}; use fewer ranks or another fabric")
        })
    }

    fn lacks(&self, capacity: &Capacity) -> Option<String> {
        let peers = u64::from(self.peers);
        let completions = peers * u64::from(self.buffers() + self.work_requests());
        let needs = [
            ("queue pairs", peers, capacity.pairs.into()),
            ("receive buffers", peers * u64::from(self.buffers()), capacity.receives.into()),
            ("completions", completions, capacity.completions.into()),
            ("work requests for each", self.work_requests().into(), capacity.work_requests.into()),
            ("bytes of locked memory", self.bytes() as u64, limits::RDMA_MEMORY_MAX as u64),
        ];
        let (what, needed, there) = needs.into_iter().find(|(_, needed, there)| needed > there)?;
        Some(format!("they need {needed} {what}, and it holds {there}"))
    }

    /// How many peers there may be.
    pub(super) fn peers(&self) -> u32 {
        self.peers
    }

    /// Long messages that a peer may have written before it is given room again.
    pub(super) fn slots(&self) -> u32 {
        self.share(limits::RDMA_SLOTS)
    }

    /// Reads under way from a peer.
    pub(super) fn reads(&self) -> u8 {
        self.share(limits::RDMA_READS_MAX.into()) as u8
    }

    /// Sends of which only the last asks for a completion.
    pub(super) fn sends_per_completion(&self) -> u32 {
        self.share(limits::RDMA_SENDS_PER_COMPLETION)
    }

    /// Receive buffers of a peer.
    pub(super) fn buffers(&self) -> u32 {
        self.credits + limits::RDMA_SPARE_BUFFERS
    }

    /// Work requests to one peer that are not known to be done: all messages,
    /// all reads, those whose completion nobody asked for, and the fabric's own.
    pub(super) fn work_requests(&self) -> u32 {
        self.credits + u32::from(self.reads()) + self.sends_per_completion() + limits::RDMA_WORK_REQUESTS_OWN
    }

    /// Receive buffers of all peers.
    pub(super) fn receives(&self) -> u32 {
        self.peers * self.buffers()
    }

    /// What may complete before the next poll: everything of every peer.
    pub(super) fn completions(&self) -> u32 {
        self.peers * (self.buffers() + self.work_requests())
    }

    /// Send memory for one peer. Two messages, for one that is cut off by the
    /// end of the memory begins at its start and must not meet itself.
    pub(super) fn send_bytes(&self) -> usize {
        self.slots().max(2) as usize * limits::RDMA_SLOT_BYTES
    }

    /// Memory that is locked for all peers.
    pub(super) fn bytes(&self) -> usize {
        let window = self.slots() as usize * limits::RDMA_SLOT_BYTES;
        let buffers = self.buffers() as usize * limits::RDMA_BUFFER_BYTES;
        self.peers as usize * (buffers + window + self.send_bytes())
    }

    fn share(&self, of: u32) -> u32 {
        (of * self.credits / limits::RDMA_CREDITS).max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A ConnectX-5, soft-RoCE as of Linux 6.1, and one with little of each.
    const CONNECTX: Capacity =
        Capacity { receives: 32_767, completions: 4_194_303, work_requests: 32_768, pairs: 131_072 };
    const RXE: Capacity = Capacity { receives: 1_048_576, completions: 32_767, work_requests: 1_048_576, pairs: 1_048_560 };
    const SMALL: Capacity = Capacity { receives: 4096, completions: 8192, work_requests: 100, pairs: 256 };

    #[test]
    fn many_peers_have_less_room_each() {
        let table = [
            (CONNECTX, 0, 64),
            (CONNECTX, 1, 64),
            (CONNECTX, 468, 64),
            (CONNECTX, 469, 63),
            (CONNECTX, 900, 30),
            (CONNECTX, limits::RANKS_MAX - 1, 2),
            (RXE, 64, 64),
            (RXE, 400, 24),
            (RXE, 1600, 2),
            (SMALL, 1, 53),
            (SMALL, 256, 7),
        ];
        for (capacity, peers, credits) in table {
            let room = Room::plan(peers, &capacity).unwrap();
            assert_eq!(room.credits, credits, "{peers} peers of {capacity:?}");
            assert!(room.receives() <= capacity.receives && room.completions() <= capacity.completions);
            assert!(room.work_requests() <= capacity.work_requests && room.bytes() <= limits::RDMA_MEMORY_MAX);
        }
    }

    #[test]
    fn what_there_is_too_little_of_is_named() {
        let refused = |peers, capacity| Room::plan(peers, &capacity).unwrap_err();
        assert!(refused(4095, RXE).contains("completions, and it holds 32767"));
        assert!(refused(257, SMALL).contains("257 queue pairs, and it holds 256"));
        assert!(refused(1, Capacity { receives: 0, ..CONNECTX }).contains("8 receive buffers"));
        assert!(refused(1, Capacity { work_requests: 11, ..CONNECTX }).contains("12 work requests for each"));
        assert!(refused(4 * limits::RANKS_MAX, Capacity { receives: u32::MAX, ..CONNECTX }).contains("locked memory"));
    }

    /// Whatever the credits: a queue pair that is full knows of something that
    /// will be done, and what stays over when a peer is told of half its room
    /// needs no more than the spare buffers.
    #[test]
    fn every_size_works() {
        for credits in CREDITS_MIN..=limits::RDMA_CREDITS {
            let room = Room { peers: 1, credits };
            assert!(room.slots() >= 1 && room.reads() >= 1 && room.sends_per_completion() >= 1);
            assert!(room.sends_per_completion() <= credits);
            assert!(room.send_bytes() >= 2 * limits::RDMA_SLOT_BYTES);
        }
        let most = Room { peers: 1, credits: limits::RDMA_CREDITS };
        assert_eq!((most.slots(), most.reads()), (limits::RDMA_SLOTS, limits::RDMA_READS_MAX));
    }
}
