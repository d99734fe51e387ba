//! Which parts of an arena are free: best fit over offsets, kept in ordinary
//! memory. Knows no address, no lock and no thread.
//!
//! What was never handed out lies between two marks, `fresh.start` and
//! `fresh.end`, and is used only when nothing that was used before is large
//! enough: its pages cost a fault each. Large objects grow the lower side,
//! slabs of small objects the upper one, so that a long-lived small object
//! does not stand in the middle of where large ones come and go.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

/// The free parts of `0..capacity`.
pub(super) struct Extents {
    capacity: u64,
    free: u64,
    fresh: Range<u64>,
    /// Start → length of every free part outside `fresh`; no two of them touch.
    by_offset: BTreeMap<u64, u64>,
    /// The same as (length, start).
    by_len: BTreeSet<(u64, u64)>,
}

/// A part that was handed out.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Taken {
    pub offset: u64,
    /// The bytes of it that were never handed out before, if any.
    pub fresh: Range<u64>,
}

/// How many free parts [`Extents::take_high`] looks at before it takes fresh
/// memory.
const HIGH_PROBES: usize = 8;

impl Extents {
    pub fn new(capacity: u64) -> Extents {
        Extents { capacity, free: capacity, fresh: 0..capacity, by_offset: BTreeMap::new(), by_len: BTreeSet::new() }
    }

    pub fn capacity(&self) -> u64 {
        self.capacity
    }

    pub fn free(&self) -> u64 {
        self.free
    }

    /// The longest part that [`Extents::take`] can hand out now.
    pub fn largest(&self) -> u64 {
        let used_before = self.by_len.last().map_or(0, |&(len, _)| len);
        let gap = self.gap();
        used_before.max(gap.end - gap.start)
    }

    /// `len` bytes, as low as best fit allows.
    pub fn take(&mut self, len: u64) -> Option<Taken> {
        debug_assert!(len > 0);
        if let Some(&(have, offset)) = self.by_len.range((len, 0)..).next() {
            self.remove(offset, have);
            self.insert(offset + len, have - len);
            self.free -= len;
            return Some(Taken { offset, fresh: 0..0 });
        }
        let gap = self.gap();
        if gap.end - gap.start < len {
            return None;
        }
        let end = gap.start + len;
        if gap.start < self.fresh.start {
            self.remove(gap.start, self.fresh.start - gap.start);
        }
        let fresh = self.fresh.start..end.min(self.fresh.end);
        if end > self.fresh.end {
            self.remove(self.fresh.end, gap.end - self.fresh.end);
            self.insert(end, gap.end - end);
        }
        self.fresh.start = fresh.end;
        self.free -= len;
        Some(Taken { offset: gap.start, fresh })
    }

    /// `len` bytes, as high as is cheap to find; for slabs.
    pub fn take_high(&mut self, len: u64) -> Option<Taken> {
        let high = self.by_offset.range(self.fresh.end..).rev().take(HIGH_PROBES).find(|&(_, &have)| have >= len);
        if let Some((&offset, &have)) = high {
            self.remove(offset, have);
            self.insert(offset, have - len);
            self.free -= len;
            return Some(Taken { offset: offset + have - len, fresh: 0..0 });
        }
        if self.fresh.end - self.fresh.start < len {
            return self.take(len);
        }
        self.fresh.end -= len;
        self.free -= len;
        Some(Taken { offset: self.fresh.end, fresh: self.fresh.end..self.fresh.end + len })
    }

    /// Takes back what was handed out.
    pub fn give(&mut self, offset: u64, len: u64) {
        self.free += len;
        let (mut start, mut end) = (offset, offset + len);
        if let Some((&before, &before_len)) = self.by_offset.range(..offset).next_back()
            && before + before_len == offset
        {
            self.remove(before, before_len);
            start = before;
        }
        if let Some(&after_len) = self.by_offset.get(&end) {
            self.remove(end, after_len);
            end += after_len;
        }
        self.insert(start, end - start);
    }

    /// The fresh part together with the free parts that touch it.
    fn gap(&self) -> Range<u64> {
        let below = self.by_offset.range(..self.fresh.start).next_back();
        let start = below.filter(|&(&o, &l)| o + l == self.fresh.start).map_or(self.fresh.start, |(&o, _)| o);
        let above = self.by_offset.get(&self.fresh.end).copied().unwrap_or(0);
        start..self.fresh.end + above
    }

    fn insert(&mut self, offset: u64, len: u64) {
        if len > 0 {
            self.by_offset.insert(offset, len);
            self.by_len.insert((len, offset));
        }
    }

    fn remove(&mut self, offset: u64, len: u64) {
        self.by_offset.remove(&offset);
        self.by_len.remove(&(len, offset));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::rng::Rng;

    #[test]
    fn used_memory_is_preferred_to_fresh_memory() {
        let mut extents = Extents::new(1 << 20);
        let first = extents.take(4096).unwrap();
        assert_eq!(first.fresh, 0..4096);
        extents.take(64).unwrap();
        extents.give(first.offset, 4096);
        let again = extents.take(4096).unwrap();
        assert_eq!((again.offset, again.fresh.is_empty()), (0, true));
    }

    #[test]
    fn the_gap_grows_by_what_touches_it() {
        let mut extents = Extents::new(1000);
        assert_eq!(extents.take(300).unwrap().offset, 0);
        assert_eq!(extents.take_high(200).unwrap().offset, 800);
        extents.give(0, 300);
        assert_eq!(extents.largest(), 800);
        assert_eq!(extents.take(700).unwrap(), Taken { offset: 0, fresh: 300..700 });
        extents.give(800, 200);
        assert_eq!(extents.largest(), 300);
        assert_eq!(extents.take(300).unwrap(), Taken { offset: 700, fresh: 700..800 });
        assert_eq!((extents.free(), extents.largest()), (0, 0));
        assert_eq!(extents.take(1), None);
        extents.give(0, 700);
        extents.give(700, 300);
        assert_eq!(extents.take(1000).unwrap().offset, 0);
    }

    /// The oracle is one flag per unit.
    #[test]
    fn agrees_with_an_oracle() {
        for seed in 0..200 {
            let mut rng = Rng::new(seed);
            let units = 256;
            let mut used = vec![false; units];
            let mut touched = vec![false; units];
            let mut extents = Extents::new(units as u64);
            let mut live: Vec<(usize, usize)> = Vec::new();
            for _ in 0..400 {
                if rng.below(5) < 3 || live.is_empty() {
                    let longest = if rng.below(4) == 0 { 120 } else { 12 };
                    let len = 1 + rng.below(longest);
                    let high = rng.below(4) == 0;
                    let taken = if high { extents.take_high(len as u64) } else { extents.take(len as u64) };
                    let fits = longest_run(&used) >= len;
                    assert_eq!(taken.is_some(), fits, "seed {seed}, {len} units");
                    if let Some(t) = taken {
                        for u in t.offset..t.offset + len as u64 {
                            let (at, fresh) = (u as usize, t.fresh.contains(&u));
                            assert!(!used[at], "seed {seed}");
                            assert_eq!(fresh, !touched[at], "seed {seed}, unit {u}");
                            (used[at], touched[at]) = (true, true);
                        }
                        live.push((t.offset as usize, len));
                    }
                } else {
                    let (offset, len) = live.swap_remove(rng.below(live.len()));
                    used[offset..offset + len].fill(false);
                    extents.give(offset as u64, len as u64);
                }
                assert_eq!(extents.free() as usize, used.iter().filter(|u| !**u).count(), "seed {seed}");
                assert_eq!(extents.largest() as usize, longest_run(&used), "seed {seed}");
            }
            for (offset, len) in live {
                extents.give(offset as u64, len as u64);
            }
            assert_eq!(extents.largest() as usize, units, "seed {seed}");
        }
    }

    fn longest_run(used: &[bool]) -> usize {
        used.split(|u| *u).map(<[bool]>::len).max().unwrap_or(0)
    }
}
