//! Small objects: size classes carved from slabs, one set of slabs per shard.
//! Knows offsets and bits; the lock around it and the memory behind it are the
//! arena's.

use crate::base::limits::OBJECT_ALIGN;

/// Bytes of one slab.
pub(super) const SLAB_BYTES: u64 = 64 * 1024;

/// Objects above this size come from the extents directly.
pub(super) const SMALL_BYTES_MAX: usize = 8 * 1024;

const UNIT: usize = OBJECT_ALIGN;

/// Every size in units of 64 bytes up to 512 bytes, then four to a doubling:
/// at most a fifth is lost to rounding past that.
const CLASS_UNITS: [u8; 24] =
    [1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 28, 32, 40, 48, 56, 64, 80, 96, 112, 128];

/// Units → class, so that finding the class is one load.
const CLASS_OF: [u8; SMALL_BYTES_MAX / UNIT + 1] = {
    let mut table = [0; SMALL_BYTES_MAX / UNIT + 1];
    let (mut units, mut class) = (1, 0);
    while units < table.len() {
        if units > CLASS_UNITS[class] as usize {
            class += 1;
        }
        table[units] = class as u8;
        units += 1;
    }
    table
};

const WORDS: usize = SLAB_BYTES as usize / UNIT / 64;

const _: () = assert!(CLASS_UNITS[CLASS_UNITS.len() - 1] as usize * UNIT == SMALL_BYTES_MAX);

/// A size class.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Class(u8);

impl Class {
    /// The class for `len` bytes, at most [`SMALL_BYTES_MAX`].
    pub fn of(len: usize) -> Class {
        Class(CLASS_OF[len.div_ceil(UNIT).max(1)])
    }

    /// Bytes of each block of the class.
    pub fn bytes(self) -> u64 {
        u64::from(CLASS_UNITS[self.0 as usize]) * UNIT as u64
    }

    fn blocks(self) -> u16 {
        (SLAB_BYTES / self.bytes()) as u16
    }
}

/// Which slab a block is from: an index into its shard's slabs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct SlabId(u32);

/// One slab: a bit per block, set while the block is free.
struct Slab {
    base: u64,
    class: Class,
    free: u16,
    /// No word below this one has a free block.
    first: u8,
    /// Whether the class's list of open slabs has this one.
    open: bool,
    bits: [u64; WORDS],
}

impl Slab {
    fn is_empty(&self) -> bool {
        self.free == self.class.blocks()
    }
}

/// The slabs of one shard.
pub(super) struct Slabs {
    slabs: Vec<Slab>,
    /// Entries of `slabs` that describe no slab now.
    vacant: Vec<u32>,
    /// Per class, the slabs with a free block; the last one is in use.
    open: [Vec<u32>; CLASS_UNITS.len()],
}

impl Slabs {
    pub fn new() -> Slabs {
        Slabs { slabs: Vec::new(), vacant: Vec::new(), open: Default::default() }
    }

    /// Bytes of free blocks and of empty slabs. Looks at every open slab.
    pub fn free(&self) -> u64 {
        let free = |slab: &Slab| if slab.is_empty() { SLAB_BYTES } else { u64::from(slab.free) * slab.class.bytes() };
        self.open.iter().flatten().map(|id| free(&self.slabs[*id as usize])).sum()
    }

    /// A block of the smallest class above `class` that has one.
    pub fn take_larger(&mut self, class: Class) -> Option<(u64, SlabId)> {
        (class.0 + 1..CLASS_UNITS.len() as u8).find_map(|larger| self.take(Class(larger)))
    }

    /// A block of `class`, if a slab has one.
    pub fn take(&mut self, class: Class) -> Option<(u64, SlabId)> {
        let open = &mut self.open[class.0 as usize];
        let id = *open.last()?;
        let slab = &mut self.slabs[id as usize];
        let mut word = slab.first as usize;
        while slab.bits[word] == 0 {
            word += 1;
        }
        let bit = slab.bits[word].trailing_zeros();
        slab.bits[word] &= slab.bits[word] - 1;
        slab.first = word as u8;
        slab.free -= 1;
        if slab.free == 0 {
            slab.open = false;
            open.pop();
        }
        let block = word as u64 * 64 + u64::from(bit);
        Some((slab.base + block * class.bytes(), SlabId(id)))
    }

    /// Takes a block back. Returns the base of its slab if that is empty now
    /// and the class has another one with room: the slab is no longer ours.
    pub fn give(&mut self, offset: u64, id: SlabId) -> Option<u64> {
        let slab = &mut self.slabs[id.0 as usize];
        let class = slab.class;
        let block = ((offset - slab.base) / class.bytes()) as usize;
        debug_assert_eq!(slab.bits[block / 64] >> (block % 64) & 1, 0, "a block freed twice");
        slab.bits[block / 64] |= 1 << (block % 64);
        slab.first = slab.first.min((block / 64) as u8);
        slab.free += 1;
        let empty = slab.is_empty();
        let open = &mut self.open[class.0 as usize];
        if !slab.open {
            slab.open = true;
            open.push(id.0);
        }
        (empty && open.len() > 1).then(|| self.remove(id))
    }

    /// A new slab at `base`.
    pub fn add(&mut self, class: Class, base: u64) {
        let mut bits = [0; WORDS];
        for block in 0..class.blocks() as usize {
            bits[block / 64] |= 1 << (block % 64);
        }
        let slab = Slab { base, class, free: class.blocks(), first: 0, open: true, bits };
        let id = match self.vacant.pop() {
            Some(id) => {
                self.slabs[id as usize] = slab;
                id
            }
            None => {
                self.slabs.push(slab);
                (self.slabs.len() - 1) as u32
            }
        };
        self.open[class.0 as usize].push(id);
    }

    /// Gives up every empty slab; their bases.
    pub fn release_empty(&mut self) -> Vec<u64> {
        let empty: Vec<u32> =
            self.open.iter().flatten().copied().filter(|id| self.slabs[*id as usize].is_empty()).collect();
        empty.into_iter().map(|id| self.remove(SlabId(id))).collect()
    }

    fn remove(&mut self, id: SlabId) -> u64 {
        let slab = &mut self.slabs[id.0 as usize];
        slab.open = false;
        self.open[slab.class.0 as usize].retain(|open| *open != id.0);
        self.vacant.push(id.0);
        slab.base
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_class_holds_its_sizes_without_much_waste() {
        for len in 0..=SMALL_BYTES_MAX {
            let bytes = Class::of(len).bytes() as usize;
            assert!(bytes >= len && bytes.is_multiple_of(UNIT), "{len}");
            assert!(bytes - len <= UNIT.max(bytes / 5), "{len} bytes in a block of {bytes}");
        }
    }

    #[test]
    fn blocks_of_a_slab_do_not_overlap_and_all_come_back() {
        for len in [1, 65, 300, 1000, 5000, SMALL_BYTES_MAX] {
            let class = Class::of(len);
            let mut slabs = Slabs::new();
            assert_eq!(slabs.take(class), None);
            slabs.add(class, 1 << 20);
            let mut blocks = Vec::new();
            while let Some(block) = slabs.take(class) {
                blocks.push(block);
            }
            assert_eq!(blocks.len(), class.blocks() as usize);
            assert_eq!(slabs.free(), 0);
            for pair in blocks.windows(2) {
                assert_eq!(pair[1].0 - pair[0].0, class.bytes());
            }
            assert!(blocks.last().unwrap().0 + class.bytes() <= (1 << 20) + SLAB_BYTES);
            for (offset, id) in blocks {
                assert_eq!(slabs.give(offset, id), None, "the last slab of a class is kept");
            }
            assert_eq!(slabs.release_empty(), [1 << 20]);
            assert_eq!(slabs.free(), 0);
        }
    }

    #[test]
    fn the_block_freed_last_is_taken_next() {
        let class = Class::of(64);
        let mut slabs = Slabs::new();
        slabs.add(class, 0);
        for _ in 0..100 {
            slabs.take(class);
        }
        let id = SlabId(0);
        slabs.give(64, id);
        assert_eq!(slabs.take(class), Some((64, id)));
    }

    #[test]
    fn an_empty_slab_goes_when_there_is_another() {
        let class = Class::of(SMALL_BYTES_MAX);
        let mut slabs = Slabs::new();
        slabs.add(class, 0);
        let first: Vec<_> = std::iter::from_fn(|| slabs.take(class)).collect();
        slabs.add(class, SLAB_BYTES);
        let (offset, id) = slabs.take(class).unwrap();
        let mut released: Vec<u64> = first.into_iter().filter_map(|(o, i)| slabs.give(o, i)).collect();
        assert_eq!(released, [0]);
        assert_eq!(slabs.give(offset, id), None);
        released.extend(slabs.release_empty());
        assert_eq!(released, [0, SLAB_BYTES]);
    }
}
