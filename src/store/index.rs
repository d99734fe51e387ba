//! The owner's table of objects that other ranks know. An object stays while
//! it is exported (this rank may still name it to a peer) or borrowed (a peer
//! said that it reads it); when both have ended, its memory goes.
//!
//! A large object keeps its number for as long as its bytes live here, so that
//! a rank that read it before is known to have a copy.
//!
//! Deliberately absent: a count of local refs. Those are clones of
//! [`Bytes`], and cost no table.

use std::collections::HashMap;
use std::fmt;

use crate::base::Rank;
use crate::base::limits::{BULK_BYTES_MIN, SHARED_BYTES_MIN};
use crate::mem::{Bytes, WeakSealed};

/// An object's name between its owner and the ranks that borrow it. Not used
/// again for another object: a stale one is refused.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ObjectId {
    slot: u32,
    generation: u32,
}

impl ObjectId {
    /// The ID as it travels.
    pub const fn to_bits(self) -> u64 {
        (self.generation as u64) << 32 | self.slot as u64
    }

    /// The ID that travelled as `bits`; whether there is such an object only
    /// the index can say.
    pub const fn from_bits(bits: u64) -> ObjectId {
        ObjectId { slot: bits as u32, generation: (bits >> 32) as u32 }
    }
}

impl fmt::Display for ObjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "object {}.{}", self.slot, self.generation)
    }
}

/// Where a borrower finds an object.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ObjectInfo {
    /// Its first byte in the owner's arena; `None` if it is not there and has
    /// to be sent.
    pub offset: Option<u64>,
    /// Its bytes.
    pub len: u64,
    /// How many ranks have it, this one among them.
    pub borrowers: usize,
}

/// What the index refuses. Nothing changes then.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum StoreError {
    /// There is no such object, or there is none any more.
    #[error("{by} asked for {id}, which its owner does not keep; it borrowed nothing and must take the ref again")]
    Unknown {
        /// Who named it.
        by: Rank,
        /// The object.
        id: ObjectId,
    },
    /// A peer gave back more than it borrowed.
    #[error("{by} gave back {id} {returned} times but holds it {held} times: that rank is broken, disconnect it")]
    NotHeld {
        /// The peer.
        by: Rank,
        /// The object.
        id: ObjectId,
        /// Borrows that it has.
        held: u64,
        /// Borrows that it gave back.
        returned: u64,
    },
    /// An export was ended more often than it was made.
    #[error("{id} is not exported by this rank")]
    NotExported {
        /// The object.
        id: ObjectId,
    },
}

/// What an index holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Stats {
    /// Objects.
    pub objects: usize,
    /// Their bytes.
    pub bytes: u64,
    /// Exports, counted as often as they were made.
    pub exports: u64,
    /// Borrows, over all peers.
    pub borrows: u64,
}

/// The table. One thread at a time uses it.
#[derive(Debug, Default)]
pub struct Index {
    slots: Vec<Slot>,
    vacant: Vec<u32>,
    /// Identity of the bytes → slot, so that an object has one ID.
    known: HashMap<usize, u32>,
    /// Slots of large objects that nobody has borrowed just now.
    dormant: Vec<u32>,
    /// How many of those there may be before the ones that are gone are looked for.
    sweep_at: usize,
    /// Objects of `SHARED_BYTES_MIN` and more whose numbers have ended.
    ended: Vec<ObjectId>,
    stats: Stats,
}

/// Dormant slots at which the ones that are gone are looked for first.
const SWEEP_MIN: usize = 64;

#[derive(Debug, Default)]
struct Slot {
    generation: u32,
    object: Option<Object>,
    /// The object while it is neither exported nor borrowed, and its identity.
    dormant: Option<(WeakSealed, usize)>,
}

#[derive(Debug)]
struct Object {
    bytes: Bytes,
    exports: u64,
    /// By rank, each with at least one borrow.
    borrows: Vec<(Rank, u64)>,
}

impl Index {
    /// An empty index.
    pub fn new() -> Index {
        Index::default()
    }

    /// Keeps an object until [`Index::withdraw`], so that it can be named to
    /// peers. The same object again has the same ID and one more export.
    pub fn export(&mut self, bytes: &Bytes) -> ObjectId {
        self.stats.exports += 1;
        if let Some(&slot) = self.known.get(&bytes.identity()) {
            let entry = &mut self.slots[slot as usize];
            if entry.dormant.take().is_some() {
                self.dormant.retain(|dormant| *dormant != slot);
                self.stats.objects += 1;
                self.stats.bytes += bytes.len() as u64;
                entry.object = Some(Object { bytes: bytes.clone(), exports: 0, borrows: Vec::new() });
            }
            entry.object.as_mut().expect("a known object is in its slot").exports += 1;
            return ObjectId { slot, generation: entry.generation };
        }
        let slot = self.vacant.pop().unwrap_or_else(|| {
            self.slots.push(Slot::default());
            u32::try_from(self.slots.len() - 1).expect("an object has at least 64 bytes of book-keeping")
        });
        self.known.insert(bytes.identity(), slot);
        self.stats.objects += 1;
        self.stats.bytes += bytes.len() as u64;
        let entry = &mut self.slots[slot as usize];
        entry.object = Some(Object { bytes: bytes.clone(), exports: 1, borrows: Vec::new() });
        ObjectId { slot, generation: entry.generation }
    }

    /// Ends one export.
    pub fn withdraw(&mut self, id: ObjectId) -> Result<(), StoreError> {
        let object = self.object_mut(id).filter(|object| object.exports > 0);
        object.ok_or(StoreError::NotExported { id })?.exports -= 1;
        self.stats.exports -= 1;
        self.drop_if_done(id);
        Ok(())
    }

    /// The object's bytes, to serve a read by `reader`.
    pub fn get(&self, id: ObjectId, reader: Rank) -> Result<&Bytes, StoreError> {
        let slot = self.slots.get(id.slot as usize).filter(|slot| slot.generation == id.generation);
        let object = slot.and_then(|slot| slot.object.as_ref());
        Ok(&object.ok_or(StoreError::Unknown { by: reader, id })?.bytes)
    }

    /// The bytes of an object that `borrower` has borrowed.
    pub fn lent(&self, id: ObjectId, borrower: Rank) -> Option<&Bytes> {
        let slot = self.slots.get(id.slot as usize).filter(|slot| slot.generation == id.generation)?;
        let object = slot.object.as_ref()?;
        object.borrows.binary_search_by_key(&borrower, |b| b.0).ok()?;
        Some(&object.bytes)
    }

    /// An object of `limits::SHARED_BYTES_MIN` or more whose number has ended;
    /// each once.
    pub fn next_ended(&mut self) -> Option<ObjectId> {
        self.ended.pop()
    }

    /// Counts one borrow by `borrower`, and says where the object is.
    pub fn lend(&mut self, id: ObjectId, borrower: Rank) -> Result<ObjectInfo, StoreError> {
        let object = self.object_mut(id).ok_or(StoreError::Unknown { by: borrower, id })?;
        match object.borrows.binary_search_by_key(&borrower, |b| b.0) {
            Ok(at) => object.borrows[at].1 += 1,
            Err(at) => object.borrows.insert(at, (borrower, 1)),
        }
        let info = ObjectInfo { offset: object.bytes.offset(), len: object.bytes.len() as u64, borrowers: object.borrows.len() };
        self.stats.borrows += 1;
        Ok(info)
    }

    /// Ends `count` borrows by `borrower`.
    pub fn give_back(&mut self, id: ObjectId, borrower: Rank, count: u64) -> Result<(), StoreError> {
        let object = self.object_mut(id).ok_or(StoreError::Unknown { by: borrower, id })?;
        let found = object.borrows.binary_search_by_key(&borrower, |b| b.0);
        let held = found.map_or(0, |at| object.borrows[at].1);
        match found {
            Ok(at) if held == count => drop(object.borrows.remove(at)),
            Ok(at) if held > count => object.borrows[at].1 -= count,
            _ => return Err(StoreError::NotHeld { by: borrower, id, held, returned: count }),
        }
        self.stats.borrows -= count;
        self.drop_if_done(id);
        Ok(())
    }

    /// Ends every borrow by a rank that is gone; how many there were.
    pub fn forget(&mut self, borrower: Rank) -> u64 {
        let mut ended = 0;
        for slot in 0..self.slots.len() {
            let entry = &mut self.slots[slot];
            let Some(object) = &mut entry.object else { continue };
            if let Ok(at) = object.borrows.binary_search_by_key(&borrower, |b| b.0) {
                ended += object.borrows.remove(at).1;
                let id = ObjectId { slot: slot as u32, generation: entry.generation };
                self.drop_if_done(id);
            }
        }
        self.stats.borrows -= ended;
        ended
    }

    /// What the index holds.
    pub fn stats(&self) -> Stats {
        self.stats
    }

    fn object_mut(&mut self, id: ObjectId) -> Option<&mut Object> {
        let slot = self.slots.get_mut(id.slot as usize).filter(|slot| slot.generation == id.generation);
        slot.and_then(|slot| slot.object.as_mut())
    }

    fn drop_if_done(&mut self, id: ObjectId) {
        let slot = &mut self.slots[id.slot as usize];
        let Some(object) = slot.object.take_if(|object| object.exports == 0 && object.borrows.is_empty()) else {
            return;
        };
        self.stats.objects -= 1;
        self.stats.bytes -= object.bytes.len() as u64;
        let identity = object.bytes.identity();
        let len = object.bytes.len() as u64;
        match object.bytes {
            Bytes::Sealed(sealed) if len >= BULK_BYTES_MIN => {
                // The weak handle keeps the identity from being used again.
                slot.dormant = Some((sealed.downgrade(), identity));
                self.dormant.push(id.slot);
                if self.dormant.len() >= self.sweep_at.max(SWEEP_MIN) {
                    self.sweep();
                }
            }
            _ => self.vacate(id.slot, identity, len >= SHARED_BYTES_MIN),
        }
    }

    /// Ends the numbers of dormant objects that are gone.
    fn sweep(&mut self) {
        for slot in std::mem::take(&mut self.dormant) {
            match &self.slots[slot as usize].dormant {
                Some((object, _)) if object.is_alive() => self.dormant.push(slot),
                Some((_, identity)) => self.vacate(slot, *identity, true),
                None => (),
            }
        }
        self.sweep_at = self.dormant.len() * 2;
    }

    fn vacate(&mut self, number: u32, identity: usize, tell: bool) {
        self.known.remove(&identity);
        let slot = &mut self.slots[number as usize];
        slot.dormant = None;
        if tell {
            self.ended.push(ObjectId { slot: number, generation: slot.generation });
        }
        // A slot whose generations are used up is never used again.
        if let Some(next) = slot.generation.checked_add(1) {
            slot.generation = next;
            self.vacant.push(number);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Arc;

    use super::*;
    use crate::base::rng::Rng;
    use crate::mem::{Arena, Heap, Region};

    const A: Rank = Rank(1);
    const B: Rank = Rank(2);

    fn arena() -> Arena {
        Arena::new(Arc::new(Region::heap(1 << 20)))
    }

    fn heap_object(len: usize) -> Bytes {
        Heap::filled(len, |_| ()).into()
    }

    #[test]
    fn memory_goes_with_the_last_export_and_borrow() {
        let (arena, mut index) = (arena(), Index::new());
        let free = arena.usage().free;
        let object = Bytes::from(arena.put(&[7; 100_000]).unwrap());
        let offset = object.offset();
        let id = index.export(&object);
        assert_eq!(index.lend(id, A), Ok(ObjectInfo { offset, len: 100_000, borrowers: 1 }));
        assert!(index.lent(id, A).is_some() && index.lent(id, B).is_none());
        drop(object);
        index.withdraw(id).unwrap();
        assert!(arena.usage().free < free);
        assert_eq!(index.stats(), Stats { objects: 1, bytes: 100_000, exports: 0, borrows: 1 });
        assert!(index.get(id, A).unwrap().iter().all(|b| *b == 7));
        index.give_back(id, A, 1).unwrap();
        assert!(index.lent(id, A).is_none());
        assert_eq!(arena.usage().free, free);
        assert_eq!(index.stats(), Stats::default());
    }

    #[test]
    fn an_object_has_one_id() {
        let mut index = Index::new();
        let (one, other) = (heap_object(8), heap_object(8));
        let id = index.export(&one);
        assert_eq!(index.export(&one.clone()), id);
        assert_ne!(index.export(&other), id);
        index.withdraw(id).unwrap();
        assert!(index.lend(id, A).is_ok());
        index.withdraw(id).unwrap();
        assert_eq!(index.withdraw(id), Err(StoreError::NotExported { id }));
        index.give_back(id, A, 1).unwrap();
        assert_ne!(index.export(&one), id, "a new stay has a new name");
    }

    #[test]
    fn a_large_object_keeps_its_number_while_its_bytes_live() {
        let arena = Arena::new(Arc::new(Region::heap(8 << 20)));
        let mut index = Index::new();
        let free = arena.usage().free;
        let object = Bytes::from(arena.alloc(BULK_BYTES_MIN as usize).unwrap().seal());
        let id = index.export(&object);
        index.lend(id, A).unwrap();
        index.withdraw(id).unwrap();
        index.give_back(id, A, 1).unwrap();
        assert!(index.lend(id, A).is_err() && index.lent(id, A).is_none());
        assert_eq!((index.export(&object), index.stats().objects), (id, 1));
        index.withdraw(id).unwrap();
        drop(object);
        assert_eq!((arena.usage().free, index.stats()), (free, Stats::default()));
        for _ in 0..2 * SWEEP_MIN {
            let other = Bytes::from(arena.alloc(BULK_BYTES_MIN as usize).unwrap().seal());
            let other_id = index.export(&other);
            assert_ne!(other_id, id);
            index.withdraw(other_id).unwrap();
        }
        assert!(index.dormant.len() <= SWEEP_MIN && index.known.len() <= SWEEP_MIN, "{}", index.known.len());
        let ended: Vec<ObjectId> = std::iter::from_fn(|| index.next_ended()).collect();
        assert!(ended.contains(&id) && ended.len() >= SWEEP_MIN, "{ended:?}");
    }

    #[test]
    fn a_stale_id_is_refused() {
        let mut index = Index::new();
        let stale = index.export(&heap_object(8));
        index.withdraw(stale).unwrap();
        let id = index.export(&heap_object(8));
        assert_eq!((id.slot, id.generation), (stale.slot, stale.generation + 1));
        assert_eq!(index.lend(stale, A), Err(StoreError::Unknown { by: A, id: stale }));
        assert_eq!(index.give_back(stale, A, 1), Err(StoreError::Unknown { by: A, id: stale }));
        assert!(index.get(stale, A).is_err());
        let made_up = ObjectId::from_bits(u64::MAX);
        assert!(index.lend(made_up, A).is_err());
        assert_eq!(ObjectId::from_bits(id.to_bits()), id);
    }

    #[test]
    fn a_slot_ends_with_its_last_generation() {
        let mut index = Index::new();
        let first = index.export(&heap_object(8));
        index.slots[0].generation = u32::MAX;
        let last = ObjectId { slot: first.slot, generation: u32::MAX };
        index.withdraw(last).unwrap();
        assert_eq!(index.export(&heap_object(8)).slot, 1);
        assert!(index.lend(last, A).is_err());
    }

    #[test]
    fn giving_back_too_much_names_the_peer_and_changes_nothing() {
        let mut index = Index::new();
        let id = index.export(&heap_object(8));
        index.lend(id, A).unwrap();
        index.lend(id, B).unwrap();
        let before = index.stats();
        for (by, held, returned) in [(A, 1, 2), (Rank(9), 0, 1), (Rank(9), 0, 0), (B, 1, u64::MAX)] {
            let error = index.give_back(id, by, returned).unwrap_err();
            assert_eq!(error, StoreError::NotHeld { by, id, held, returned });
            assert!(error.to_string().contains(&by.to_string()), "{error}");
            assert_eq!(index.stats(), before);
        }
        index.withdraw(id).unwrap();
        index.give_back(id, A, 1).unwrap();
        assert!(index.get(id, B).is_ok());
    }

    #[test]
    fn a_dead_rank_gives_everything_back() {
        let mut index = Index::new();
        let shared = index.export(&heap_object(8));
        let own = index.export(&heap_object(8));
        for id in [shared, own, own] {
            index.lend(id, A).unwrap();
        }
        index.lend(shared, B).unwrap();
        index.withdraw(shared).unwrap();
        index.withdraw(own).unwrap();
        assert_eq!(index.forget(A), 3);
        assert_eq!(index.forget(A), 0);
        assert_eq!(index.stats(), Stats { objects: 1, bytes: 8, exports: 0, borrows: 1 });
        assert!(index.get(own, B).is_err());
    }

    /// The oracle keeps every object ever made with its plain counts.
    #[test]
    fn agrees_with_an_oracle() {
        struct Truth {
            bytes: Option<Bytes>,
            exports: u64,
            borrows: BTreeMap<Rank, u64>,
            len: u64,
        }
        for seed in 0..100 {
            let mut rng = Rng::new(seed);
            let (arena, mut index) = (arena(), Index::new());
            let free = arena.usage().free;
            let mut truth: BTreeMap<ObjectId, Truth> = BTreeMap::new();
            for _ in 0..500 {
                let rank = Rank(rng.below(4) as u32);
                let some = (!truth.is_empty()).then(|| *truth.keys().nth(rng.below(truth.len())).unwrap());
                let alive = |t: &Truth| t.exports > 0 || !t.borrows.is_empty();
                match (rng.below(6), some) {
                    (0, _) | (_, None) => {
                        let len = rng.below(3000);
                        let bytes = Bytes::from(arena.put(&vec![seed as u8; len]).unwrap());
                        let id = index.export(&bytes);
                        let entry = Truth { bytes: Some(bytes), exports: 1, borrows: BTreeMap::new(), len: len as u64 };
                        assert!(truth.insert(id, entry).is_none(), "seed {seed}: {id} used twice");
                    }
                    (1, Some(id)) => {
                        let t = truth.get_mut(&id).unwrap();
                        if let Some(bytes) = t.bytes.clone().filter(|_| alive(t)) {
                            assert_eq!(index.export(&bytes), id, "seed {seed}");
                            t.exports += 1;
                        }
                    }
                    (2, Some(id)) => {
                        let t = truth.get_mut(&id).unwrap();
                        assert_eq!(index.withdraw(id).is_ok(), t.exports > 0, "seed {seed}");
                        t.exports = t.exports.saturating_sub(1);
                        if rng.below(2) == 0 {
                            t.bytes = None;
                        }
                    }
                    (3, Some(id)) => {
                        let t = truth.get_mut(&id).unwrap();
                        assert_eq!(index.lend(id, rank).is_ok(), alive(t), "seed {seed}");
                        if alive(t) {
                            *t.borrows.entry(rank).or_default() += 1;
                        }
                    }
                    (4, Some(id)) => {
                        let t = truth.get_mut(&id).unwrap();
                        let held = t.borrows.get(&rank).copied().unwrap_or(0);
                        let count = rng.below(4) as u64;
                        let right = held > 0 && count <= held;
                        assert_eq!(index.give_back(id, rank, count).is_ok(), right, "seed {seed}");
                        if right {
                            t.borrows.insert(rank, held - count);
                            t.borrows.retain(|_, n| *n > 0);
                        }
                    }
                    (_, Some(_)) if rng.below(20) == 0 => {
                        let held: u64 = truth.values_mut().filter_map(|t| t.borrows.remove(&rank)).sum();
                        assert_eq!(index.forget(rank), held, "seed {seed}");
                    }
                    _ => {}
                }
                let living = || truth.values().filter(|t| alive(t));
                let stats = Stats {
                    objects: living().count(),
                    bytes: living().map(|t| t.len).sum(),
                    exports: truth.values().map(|t| t.exports).sum(),
                    borrows: truth.values().flat_map(|t| t.borrows.values()).sum(),
                };
                assert_eq!(index.stats(), stats, "seed {seed}");
            }
            drop((index, truth));
            assert_eq!(arena.usage().free, free, "seed {seed}");
        }
    }
}
