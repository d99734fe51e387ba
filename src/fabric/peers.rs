//! The peers of a fabric: dense to walk, found by rank in one step.

use crate::base::Rank;

const NONE: u32 = u32::MAX;

/// Something per peer.
pub(super) struct Peers<T> {
    items: Vec<(Rank, T)>,
    /// By rank, the place in `items`.
    places: Vec<u32>,
}

impl<T> Peers<T> {
    pub(super) fn new() -> Peers<T> {
        Peers { items: Vec::new(), places: Vec::new() }
    }

    pub(super) fn contains(&self, rank: Rank) -> bool {
        self.place(rank).is_some()
    }

    #[inline]
    pub(super) fn get(&self, rank: Rank) -> Option<&T> {
        Some(&self.items[self.place(rank)?].1)
    }

    #[inline]
    pub(super) fn get_mut(&mut self, rank: Rank) -> Option<&mut T> {
        let place = self.place(rank)?;
        Some(&mut self.items[place].1)
    }

    /// Adds a peer that is not in the table.
    pub(super) fn insert(&mut self, rank: Rank, item: T) {
        if self.places.len() <= rank.index() {
            self.places.resize(rank.index() + 1, NONE);
        }
        self.places[rank.index()] = self.items.len() as u32;
        self.items.push((rank, item));
    }

    pub(super) fn remove(&mut self, rank: Rank) -> Option<T> {
        let place = self.place(rank)?;
        self.places[rank.index()] = NONE;
        let (_, item) = self.items.swap_remove(place);
        if let Some((moved, _)) = self.items.get(place) {
            self.places[moved.index()] = place as u32;
        }
        Some(item)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (Rank, &T)> {
        self.items.iter().map(|(rank, item)| (*rank, item))
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = (Rank, &mut T)> {
        self.items.iter_mut().map(|(rank, item)| (*rank, item))
    }

    #[inline]
    fn place(&self, rank: Rank) -> Option<usize> {
        self.places.get(rank.index()).filter(|place| **place != NONE).map(|place| *place as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn removal_keeps_the_others_findable() {
        let mut peers = Peers::new();
        for rank in [5, 0, 9, 2] {
            peers.insert(Rank(rank), rank * 10);
        }
        assert_eq!(peers.remove(Rank(0)), Some(0));
        assert_eq!(peers.remove(Rank(0)), None);
        assert_eq!(peers.remove(Rank(2)), Some(20));
        peers.insert(Rank(0), 1);
        assert_eq!(peers.get_mut(Rank(9)), Some(&mut 90));
        assert_eq!(peers.get_mut(Rank(5)), Some(&mut 50));
        assert_eq!(peers.get_mut(Rank(0)), Some(&mut 1));
        assert!(!peers.contains(Rank(2)) && !peers.contains(Rank(1000)));
    }
}
