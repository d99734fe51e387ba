//! At the rank that lends an object: who reads it or has it, and from whom the
//! next one is to read.
//!
//! A new reader goes where it has to wait least: behind the last of a chain of
//! readers, each of which serves on what it has, or, when that chain is longer
//! than the object has chunks, beside it. So a long object goes through a chain
//! in which every rank sends it once, and a short one through a tree.
//!
//! A reader that can read the memory of some holder in place, being on the same
//! host, is sent to that one alone, and is nobody's source.
//!
//! Deliberately absent: addresses. A holder tells where its copy is and keeps
//! it there, so that an entry that is out of date costs a question and can name
//! no memory.

use std::collections::HashMap;

use crate::base::Rank;
use crate::base::limits::BULK_SOURCES_MAX;

/// See the module.
#[derive(Debug, Default)]
pub struct Directory {
    objects: HashMap<u64, Object>,
}

#[derive(Debug)]
struct Object {
    owner: Rank,
    chunks: u32,
    /// Readers that read from the owner's memory itself.
    root_readers: u32,
    holders: Vec<Holder>,
    joined: u32,
}

#[derive(Debug)]
struct Holder {
    rank: Rank,
    /// Names those that read each other's memory in place.
    group: Rank,
    /// It has no copy of its own, and waits for another one's.
    in_place: bool,
    /// Readers are numbered as they come.
    joined: u32,
    /// Ranks between it and the owner.
    depth: u32,
    complete: bool,
    /// Somebody found no copy there: nobody else is sent to it before it has
    /// the whole.
    shunned: bool,
    /// Those that read from it.
    readers: u32,
    /// From whom it reads.
    reads_from: Vec<Rank>,
    /// Everybody that it was told of and may wait for.
    told: Vec<Rank>,
}

/// A rank that asks from whom to read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Asker {
    /// Which.
    pub rank: Rank,
    /// Whose memory it can read in place: that of ranks with the same group.
    pub group: Rank,
    /// A rank that it was sent to in vain.
    pub gone: Option<Rank>,
}

/// From whom a reader is to read.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Plan {
    /// How many of `ranks` at once.
    pub primaries: u32,
    /// The best first.
    pub ranks: Vec<Rank>,
}

impl Directory {
    /// A directory without objects.
    pub fn new() -> Directory {
        Directory::default()
    }

    /// Where `asker` is to read an object from that has `chunks` chunks and that
    /// lies in the memory of `owner`; `alive` says which ranks this one still
    /// reaches.
    pub fn locate(
        &mut self,
        object: u64,
        asker: Asker,
        owner: Rank,
        chunks: u32,
        alive: impl Fn(Rank) -> bool,
    ) -> Plan {
        let new = || Object { owner, chunks, root_readers: 0, holders: Vec::new(), joined: 0 };
        let entry = self.objects.entry(object).or_insert_with(new);
        if let Some(gone) = asker.gone.filter(|gone| *gone != asker.rank) {
            entry.shun(gone);
        }
        entry.plan(asker, alive)
    }

    /// `reader` reads no more; it has the whole object, or nothing.
    pub fn finish(&mut self, object: u64, reader: Rank, complete: bool) {
        let Some(entry) = self.objects.get_mut(&object) else { return };
        if !complete {
            return entry.remove(reader);
        }
        entry.leave(reader);
        if let Some(holder) = entry.holders.iter_mut().find(|h| h.rank == reader) {
            (holder.complete, holder.shunned, holder.depth) = (true, false, 0);
            holder.told.clear();
        }
    }

    /// A rank is gone.
    pub fn lost(&mut self, rank: Rank) {
        self.objects.values_mut().for_each(|entry| entry.remove(rank));
    }

    /// An object is lent to nobody any more: its number ends.
    pub fn freed(&mut self, object: u64) {
        self.objects.remove(&object);
    }

    /// Objects with an entry.
    pub fn len(&self) -> usize {
        self.objects.len()
    }

    /// Whether no object has an entry.
    pub fn is_empty(&self) -> bool {
        self.objects.is_empty()
    }
}

impl Object {
    fn plan(&mut self, asker: Asker, alive: impl Fn(Rank) -> bool) -> Plan {
        let Asker { rank: reader, group, gone } = asker;
        self.leave(reader);
        let waits_for_reader = self.behind(reader);
        // What a reader waits for: what its source sends to others, and how far
        // the source itself is behind. Of equals the later one, and the owner
        // last: its memory is everybody's last resort.
        let mut candidates: Vec<(u32, u32, &Holder)> = self
            .holders
            .iter()
            .filter(|h| !h.shunned && !h.in_place && !waits_for_reader.contains(h.rank) && alive(h.rank))
            .map(|h| (h.readers * self.chunks + h.depth, u32::MAX - h.joined, h))
            .collect();
        candidates.sort_unstable_by_key(|(cost, order, _)| (*cost, *order));
        // The oldest one of the host: it will have the whole first.
        let near = candidates.iter().map(|(_, _, h)| h).filter(|h| h.group == group).min_by_key(|h| (!h.complete, h.joined));
        if let Some(near) = near.map(|h| h.rank) {
            self.join(asker, 0, &[near], 0, true);
            return Plan { primaries: 1, ranks: vec![near] };
        }
        let owner = Some(self.owner).filter(|owner| Some(*owner) != gone && alive(*owner) && *owner != reader);
        let root_cost = self.root_readers * self.chunks;

        let best = candidates.first().map(|(cost, _, _)| *cost);
        let from_root = owner.is_some() && best.is_none_or(|best| root_cost < best);
        let idle = candidates.iter().take_while(|(cost, _, h)| h.complete && *cost == 0).count();
        let primaries = if from_root { 1 } else { idle.clamp(1, BULK_SOURCES_MAX - 1).min(candidates.len()) };
        let others = candidates.iter().map(|(_, _, h)| h.rank).filter(|rank| Some(*rank) != owner);
        let ranks: Vec<Rank> = match owner {
            Some(owner) if from_root => std::iter::once(owner).chain(others.take(BULK_SOURCES_MAX - 1)).collect(),
            Some(owner) => others.take(BULK_SOURCES_MAX - 1).chain([owner]).collect(),
            None => others.take(BULK_SOURCES_MAX).collect(),
        };
        let primaries = primaries.min(ranks.len());
        let depth = match from_root {
            true => 1,
            false => candidates.first().map_or(1, |(_, _, h)| h.depth + 1),
        };
        self.join(asker, depth, &ranks, primaries, false);
        Plan { primaries: primaries as u32, ranks }
    }

    /// `reader` and all that wait for it, directly or through others.
    fn behind(&self, reader: Rank) -> RankSet {
        let most = self.holders.iter().map(|h| h.rank).max().unwrap_or(reader).max(reader);
        let mut behind = RankSet { words: vec![0; most.index() / 64 + 1] };
        behind.insert(reader);
        if !self.holders.iter().any(|h| h.rank != reader && h.told.contains(&reader)) {
            return behind;
        }
        let waiting = self.holders.iter().filter(|h| !h.complete);
        let mut waits: Vec<(Rank, Rank)> = waiting.flat_map(|h| h.told.iter().map(|told| (*told, h.rank))).collect();
        waits.sort_unstable();
        let mut next = vec![reader];
        while let Some(rank) = next.pop() {
            let first = waits.partition_point(|(told, _)| *told < rank);
            for (_, waiter) in waits[first..].iter().take_while(|(told, _)| *told == rank) {
                if behind.insert(*waiter) {
                    next.push(*waiter);
                }
            }
        }
        behind
    }

    /// Notes that `reader` reads from the first `primaries` of `ranks` and knows
    /// of the others.
    fn join(&mut self, asker: Asker, depth: u32, ranks: &[Rank], primaries: usize, in_place: bool) {
        let Asker { rank: reader, group, .. } = asker;
        let reads_from = ranks[..primaries].to_vec();
        for source in &reads_from {
            match self.holders.iter_mut().find(|h| h.rank == *source) {
                Some(holder) => holder.readers += 1,
                None => self.root_readers += 1,
            }
        }
        let at = self.holders.iter().position(|h| h.rank == reader).unwrap_or_else(|| {
            let joined = self.joined;
            self.joined += 1;
            let holder = Holder {
                rank: reader,
                group,
                in_place,
                joined,
                depth,
                complete: false,
                shunned: false,
                readers: 0,
                reads_from: Vec::new(),
                told: Vec::new(),
            };
            self.holders.push(holder);
            self.holders.len() - 1
        });
        let holder = &mut self.holders[at];
        (holder.complete, holder.in_place, holder.depth) = (false, in_place, depth);
        holder.reads_from = reads_from;
        for rank in ranks {
            if !holder.told.contains(rank) {
                holder.told.push(*rank);
            }
        }
    }

    /// Notes that `reader` reads from nobody any more.
    fn leave(&mut self, reader: Rank) {
        let Some(holder) = self.holders.iter_mut().find(|h| h.rank == reader) else { return };
        for source in std::mem::take(&mut holder.reads_from) {
            match self.holders.iter_mut().find(|h| h.rank == source) {
                Some(source) => source.readers = source.readers.saturating_sub(1),
                None if source == self.owner => self.root_readers = self.root_readers.saturating_sub(1),
                None => (),
            }
        }
    }

    /// Sends nobody else to a holder. One that still reads must stay, for the
    /// sake of those that wait for it.
    fn shun(&mut self, rank: Rank) {
        match self.holders.iter_mut().find(|h| h.rank == rank) {
            Some(holder) if !holder.complete => holder.shunned = true,
            Some(_) => self.remove(rank),
            None => (),
        }
    }

    fn remove(&mut self, rank: Rank) {
        self.leave(rank);
        self.holders.retain(|h| h.rank != rank);
    }
}

/// Ranks, a bit each.
struct RankSet {
    words: Vec<u64>,
}

impl RankSet {
    /// Whether the rank was not in the set. The set must have been made for it.
    fn insert(&mut self, rank: Rank) -> bool {
        let (word, bit) = (&mut self.words[rank.index() / 64], 1 << (rank.index() % 64));
        let new = *word & bit == 0;
        *word |= bit;
        new
    }

    fn contains(&self, rank: Rank) -> bool {
        self.words.get(rank.index() / 64).is_some_and(|word| word & 1 << (rank.index() % 64) != 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWNER: Rank = Rank(0);

    fn asker(rank: u32, gone: Option<u32>) -> Asker {
        Asker { rank: Rank(rank), group: Rank(rank), gone: gone.map(Rank) }
    }

    fn plan(directory: &mut Directory, reader: u32, chunks: u32) -> Vec<u32> {
        let plan = directory.locate(7, asker(reader, None), OWNER, chunks, |_| true);
        plan.ranks[..plan.primaries as usize].iter().map(|r| r.0).collect()
    }

    #[test]
    fn a_long_object_goes_through_a_chain() {
        let mut directory = Directory::new();
        for reader in 1..64 {
            assert_eq!(plan(&mut directory, reader, 1024), [reader - 1]);
        }
    }

    #[test]
    fn a_short_object_goes_through_a_tree() {
        let mut directory = Directory::new();
        for reader in 1..64 {
            plan(&mut directory, reader, 4);
        }
        let entry = &directory.objects[&7];
        let deepest = entry.holders.iter().map(|h| h.depth).max().unwrap();
        let widest = entry.holders.iter().map(|h| h.readers).max().unwrap().max(entry.root_readers);
        assert!((4..=10).contains(&deepest) && widest <= 4, "{deepest} deep, {widest} wide");
    }

    #[test]
    fn several_that_are_done_serve_one_together() {
        let mut directory = Directory::new();
        for reader in 1..4 {
            plan(&mut directory, reader, 100);
        }
        directory.finish(7, Rank(1), true);
        directory.finish(7, Rank(2), true);
        directory.finish(7, Rank(3), true);
        let told = directory.locate(7, asker(4, None), OWNER, 100, |_| true);
        assert_eq!((told.primaries, told.ranks), (3, vec![Rank(3), Rank(2), Rank(1), OWNER]));
    }

    #[test]
    fn whoever_is_lost_or_has_nothing_is_not_named_again() {
        let mut directory = Directory::new();
        for reader in 1..5 {
            plan(&mut directory, reader, 100);
        }
        directory.lost(Rank(3));
        let told = directory.locate(7, asker(4, Some(3)), OWNER, 100, |_| true);
        assert_eq!(told.ranks[0], Rank(2), "{told:?}");
        // Rank 4 came before rank 5, so it must not wait for it.
        assert_eq!(plan(&mut directory, 5, 100), [4]);
        let told = directory.locate(7, asker(4, Some(2)), OWNER, 100, |_| true);
        assert_eq!(told.ranks, [OWNER, Rank(1)], "rank 1 has a reader, too, and is farther");
        let told = directory.locate(7, asker(4, Some(1)), OWNER, 100, |rank| rank != OWNER);
        assert_eq!((told.primaries, told.ranks), (0, vec![]));
    }

    #[test]
    fn ranks_of_a_host_share_one_copy() {
        let mut directory = Directory::new();
        let mut told = |rank: u32| {
            let asker = Asker { rank: Rank(rank), group: Rank(rank / 4 * 4), gone: None };
            directory.locate(7, asker, OWNER, 100, |_| true).ranks
        };
        assert_eq!(told(4), [OWNER]);
        assert_eq!(told(5), [Rank(4)]);
        assert_eq!(told(6), [Rank(4)]);
        // The next host goes on behind the copy, not behind those that share it.
        assert_eq!(told(8)[0], Rank(4));
        assert_eq!(told(9), [Rank(8)]);
        directory.lost(Rank(4));
        let asker = Asker { rank: Rank(5), group: Rank(4), gone: Some(Rank(4)) };
        assert_eq!(directory.locate(7, asker, OWNER, 100, |_| true).ranks, [OWNER, Rank(8)]);
    }

    #[test]
    fn nobody_is_sent_behind_itself_in_a_chain_of_thousands() {
        const READERS: u32 = 2000;
        let mut directory = Directory::new();
        (1..READERS).for_each(|reader| assert_eq!(plan(&mut directory, reader, 1 << 20), [reader - 1]));
        for reader in (2..READERS).step_by(500) {
            let told = directory.locate(7, asker(reader, Some(reader - 1)), OWNER, 1 << 20, |_| true);
            assert!(told.ranks.iter().all(|rank| rank.0 < reader), "{reader}: {told:?}");
        }
    }

    #[test]
    fn nothing_is_left_of_what_is_freed() {
        let mut directory = Directory::new();
        for reader in 1..5 {
            plan(&mut directory, reader, 100);
        }
        for reader in 1..4 {
            directory.finish(7, Rank(reader), true);
        }
        directory.finish(7, Rank(4), false);
        let entry = &directory.objects[&7];
        assert!(entry.root_readers == 0 && entry.holders.iter().all(|h| h.complete && h.readers == 0), "{entry:?}");
        directory.freed(7);
        directory.finish(7, Rank(1), true);
        assert!(directory.is_empty());
    }
}
