//! Whose turn it is to read, within the limits of what may be under way: per
//! rank that is read from, and in all.
//!
//! Objects that want something of a rank stand in a queue and take turns there,
//! a chunk each, and the ranks take turns as well. So a short object waits for
//! one chunk of each other, however long those are.

use std::collections::{HashMap, HashSet, VecDeque};

use crate::base::Rank;
use crate::base::limits::{FETCH_BYTES_MAX, FETCH_PEER_BYTES_MAX};

/// See the module. Objects are known by the numbers that the caller gives them.
#[derive(Debug, Default)]
pub struct Flow {
    peers: HashMap<Rank, Peer>,
    /// Ranks of which something may be wanted.
    ring: VecDeque<Rank>,
    in_flight: u64,
}

#[derive(Debug, Default)]
struct Peer {
    in_flight: u64,
    /// Objects that may want something.
    queue: VecDeque<usize>,
    queued: HashSet<usize>,
    /// In the ring.
    listed: bool,
    /// Looks since a read from it ended.
    unmoved: u32,
    silent: bool,
}

/// What an object said to its turn.
pub enum Turn<T> {
    /// It reads so many bytes, and may want more.
    Reads(u64, T),
    /// It wants nothing of this rank until it is queued again.
    Passes,
}

impl Flow {
    /// Nothing queued.
    pub fn new() -> Flow {
        Flow::default()
    }

    /// Object `object` may want something of `rank`. Once more has no effect.
    pub fn want(&mut self, rank: Rank, object: usize) {
        let peer = self.peers.entry(rank).or_default();
        if peer.queued.insert(object) {
            peer.queue.push_back(object);
        }
        if !std::mem::replace(&mut peer.listed, true) {
            self.ring.push_back(rank);
        }
    }

    /// A read of `bytes` from `rank` ended; whether the rank was silent before.
    pub fn ended(&mut self, rank: Rank, bytes: u64) -> bool {
        let Some(peer) = self.peers.get_mut(&rank) else { return false };
        let was_silent = std::mem::take(&mut peer.silent);
        if was_silent {
            self.in_flight += peer.in_flight;
        }
        peer.unmoved = 0;
        self.in_flight = self.in_flight.saturating_sub(bytes);
        peer.in_flight = peer.in_flight.saturating_sub(bytes);
        if !peer.queue.is_empty() && !std::mem::replace(&mut peer.listed, true) {
            self.ring.push_back(rank);
        }
        was_silent
    }

    /// The ranks of which the last `most` calls of this and no read's end have
    /// been seen, though something is under way from them. Nothing is asked of
    /// them until a read ends, and what is under way takes no room from others.
    pub fn silent(&mut self, most: u32) -> Vec<Rank> {
        let mut silent = Vec::new();
        for (rank, peer) in self.peers.iter_mut().filter(|(_, peer)| peer.in_flight > 0) {
            peer.unmoved = peer.unmoved.saturating_add(1);
            if peer.unmoved > most {
                if !std::mem::replace(&mut peer.silent, true) {
                    self.in_flight -= peer.in_flight;
                }
                silent.push(*rank);
            }
        }
        silent.sort_unstable();
        silent
    }

    /// Bytes under way from all ranks but silent ones.
    pub fn in_flight(&self) -> u64 {
        self.in_flight
    }

    /// Asks one object after the other until one reads within the limits.
    pub fn next<T>(&mut self, mut ask: impl FnMut(Rank, usize) -> Turn<T>) -> Option<T> {
        if self.in_flight >= FETCH_BYTES_MAX {
            return None;
        }
        while let Some(rank) = self.ring.pop_front() {
            let peer = self.peers.get_mut(&rank)?;
            peer.listed = false;
            // The rank comes back when a read from it has ended.
            if peer.silent || peer.in_flight >= FETCH_PEER_BYTES_MAX {
                continue;
            }
            while let Some(object) = peer.queue.pop_front() {
                let Turn::Reads(bytes, what) = ask(rank, object) else {
                    peer.queued.remove(&object);
                    continue;
                };
                peer.in_flight += bytes;
                self.in_flight += bytes;
                peer.queue.push_back(object);
                peer.listed = true;
                self.ring.push_back(rank);
                return Some(what);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    /// Reads of `bytes` for each object, as they are started.
    fn started(flow: &mut Flow, left: &mut [u64], bytes: u64) -> Vec<usize> {
        let mut order = Vec::new();
        while let Some(object) = flow.next(|_, object| match left[object].checked_sub(1) {
            Some(rest) => {
                left[object] = rest;
                Turn::Reads(bytes, object)
            }
            None => Turn::Passes,
        }) {
            order.push(object);
        }
        order
    }

    #[test]
    fn a_short_object_waits_for_one_chunk_of_a_long_one() {
        let mut flow = Flow::new();
        let mut left = [1000, 1, 1];
        (0..3).for_each(|object| flow.want(Rank(1), object));
        let order = started(&mut flow, &mut left, MIB);
        assert_eq!(order.len() as u64, FETCH_PEER_BYTES_MAX / MIB);
        assert_eq!(order[..5], [0, 1, 2, 0, 0]);
        // Later ones come in at the next read that ends.
        left[1] = 1;
        flow.want(Rank(1), 1);
        flow.ended(Rank(1), MIB);
        flow.ended(Rank(1), MIB);
        assert_eq!(started(&mut flow, &mut left, MIB), [0, 1]);
    }

    #[test]
    fn limits_hold_per_rank_and_in_all() {
        let mut flow = Flow::new();
        let ranks = (FETCH_BYTES_MAX / FETCH_PEER_BYTES_MAX) as u32 + 2;
        let mut left = vec![u64::MAX; ranks as usize];
        (0..ranks).for_each(|rank| flow.want(Rank(rank), rank as usize));
        let order = started(&mut flow, &mut left, MIB);
        assert_eq!(order.len() as u64 * MIB, FETCH_BYTES_MAX);
        assert!((0..ranks as usize).all(|object| order.contains(&object)), "every rank has its turn");
        let most = (0..ranks as usize).map(|o| order.iter().filter(|x| **x == o).count()).max();
        assert!(most.unwrap() as u64 * MIB <= FETCH_PEER_BYTES_MAX);
        order.iter().for_each(|object| assert!(!flow.ended(Rank(*object as u32), MIB)));
        assert_eq!(flow.in_flight(), 0);
    }

    #[test]
    fn a_chunk_larger_than_a_limit_goes_alone() {
        let mut flow = Flow::new();
        flow.want(Rank(1), 0);
        flow.want(Rank(2), 1);
        assert_eq!(started(&mut flow, &mut [2, 2], 2 * FETCH_BYTES_MAX), [0]);
        flow.ended(Rank(1), 2 * FETCH_BYTES_MAX);
        assert_eq!(started(&mut flow, &mut [1, 2], 2 * FETCH_BYTES_MAX), [1]);
    }

    #[test]
    fn silent_ranks_take_no_room_from_others() {
        let mut flow = Flow::new();
        let ranks = (FETCH_BYTES_MAX / FETCH_PEER_BYTES_MAX) as usize;
        let mut left = vec![u64::MAX; ranks + 1];
        (0..ranks).for_each(|rank| flow.want(Rank(rank as u32), rank));
        assert_eq!(started(&mut flow, &mut left, MIB).len() as u64 * MIB, FETCH_BYTES_MAX);
        flow.want(Rank(ranks as u32), ranks);
        assert!(started(&mut flow, &mut left, MIB).is_empty());
        assert_eq!((flow.silent(1).len(), flow.silent(1).len()), (0, ranks));
        let order = started(&mut flow, &mut left, MIB);
        assert!(order.len() as u64 * MIB == FETCH_PEER_BYTES_MAX && order.iter().all(|object| *object == ranks));
        // One of them goes on, and is asked again as soon as there is room.
        assert!(flow.ended(Rank(0), MIB) && !flow.ended(Rank(0), MIB));
        assert_eq!(flow.in_flight(), 2 * FETCH_PEER_BYTES_MAX - 2 * MIB);
        assert_eq!(started(&mut flow, &mut left, MIB), [0, 0]);
    }
}
