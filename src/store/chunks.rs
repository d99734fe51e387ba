//! How an object is cut into chunks, and sets of them.

use crate::base::limits::{CHUNK_BYTES_MAX, CHUNK_BYTES_MIN, CHUNKS_AIM, CHUNKS_MAX};

/// The cut of one object: the same on every rank that knows its length.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Chunking {
    len: u64,
    size: u64,
}

impl Chunking {
    /// The cut of an object of `len` bytes.
    pub fn of(len: u64) -> Chunking {
        let aimed = (len / CHUNKS_AIM).next_power_of_two().clamp(CHUNK_BYTES_MIN, CHUNK_BYTES_MAX);
        let least = len.div_ceil(CHUNKS_MAX as u64).next_power_of_two();
        Chunking { len, size: aimed.max(least) }
    }

    /// One chunk, whatever the length.
    pub fn whole(len: u64) -> Chunking {
        Chunking { len, size: len.max(1) }
    }

    /// Bytes of every chunk but the last.
    pub fn chunk_bytes(&self) -> u64 {
        self.size
    }

    /// How many there are; one for an object without bytes.
    pub fn count(&self) -> u32 {
        self.len.div_ceil(self.size).max(1) as u32
    }

    /// Where chunk `chunk` starts, and its bytes.
    pub fn span(&self, chunk: u32) -> (u64, u64) {
        let start = u64::from(chunk) * self.size;
        (start, self.size.min(self.len - start))
    }
}

/// Some chunks of an object.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ChunkSet {
    words: Box<[u64]>,
    count: u32,
    /// Those in the set.
    filled: u32,
}

impl ChunkSet {
    /// None of `count` chunks.
    pub fn none(count: u32) -> ChunkSet {
        ChunkSet { words: vec![0; count.div_ceil(64) as usize].into(), count, filled: 0 }
    }

    /// All of `count` chunks.
    pub fn all(count: u32) -> ChunkSet {
        let mut set = ChunkSet::none(count);
        for at in 0..set.words.len() {
            set.words[at] = set.mask(at);
        }
        set.filled = count;
        set
    }

    /// Adds a chunk; whether it was not in the set.
    pub fn insert(&mut self, chunk: u32) -> bool {
        let (word, bit) = (chunk as usize / 64, 1 << (chunk % 64));
        let new = self.words[word] & bit == 0;
        self.words[word] |= bit;
        self.filled += u32::from(new);
        new
    }

    /// Takes a chunk out; whether it was in the set.
    pub fn remove(&mut self, chunk: u32) -> bool {
        let (word, bit) = (chunk as usize / 64, 1 << (chunk % 64));
        let was = self.words[word] & bit != 0;
        self.words[word] &= !bit;
        self.filled -= u32::from(was);
        was
    }

    /// Whether a chunk is in the set.
    pub fn contains(&self, chunk: u32) -> bool {
        self.words[chunk as usize / 64] & 1 << (chunk % 64) != 0
    }

    /// How many are in the set.
    pub fn filled(&self) -> u32 {
        self.filled
    }

    /// Whether all are.
    pub fn is_full(&self) -> bool {
        self.filled == self.count
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.filled == 0
    }

    /// The chunks in both sets, the lowest first, from `from` on.
    pub fn common<'s>(&'s self, other: &'s ChunkSet, from: u32) -> impl Iterator<Item = u32> + 's {
        let skipped = !0u64 << (from % 64);
        let first = from as usize / 64;
        let words = self.words.iter().zip(&*other.words).enumerate().skip(first);
        words.flat_map(move |(at, (a, b))| {
            let mut both = a & b & if at == first { skipped } else { !0 };
            std::iter::from_fn(move || {
                let bit = both.trailing_zeros();
                (both != 0).then(|| both &= both - 1).map(|()| at as u32 * 64 + bit)
            })
        })
    }

    /// The words from `first` on; what [`ChunkSet::merge`] takes.
    pub fn words(&self) -> &[u64] {
        &self.words
    }

    /// Adds the chunks of `words`, which begin with word `first`. Refuses words
    /// with chunks that do not exist.
    pub fn merge(&mut self, first: u32, words: &[u64]) -> Result<(), NoSuchChunk> {
        let first = first as usize;
        if first + words.len() > self.words.len() {
            return Err(NoSuchChunk { chunks: self.count });
        }
        if words.iter().enumerate().any(|(at, word)| word & !self.mask(first + at) != 0) {
            return Err(NoSuchChunk { chunks: self.count });
        }
        for (have, more) in self.words[first..].iter_mut().zip(words) {
            self.filled += (more & !*have).count_ones();
            *have |= more;
        }
        Ok(())
    }

    /// The bits of a word that stand for chunks.
    fn mask(&self, word: usize) -> u64 {
        match self.count as usize - word * 64 {
            64.. => !0,
            rest => (1 << rest) - 1,
        }
    }
}

/// A set of chunks that an object of this many chunks cannot have.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("a set of chunks with some that do not exist: the object has {chunks}")]
pub struct NoSuchChunk {
    /// Chunks of the object.
    pub chunks: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_length_is_covered_once() {
        let lengths = [0, 1, 1 << 20, (1 << 20) + 1, 1 << 30, (1 << 30) + 7, 10 << 30, 1 << 38];
        for len in lengths {
            let chunking = Chunking::of(len);
            assert!(chunking.count() as usize <= CHUNKS_MAX, "{len}");
            let mut end = 0;
            for chunk in 0..chunking.count() {
                let (start, bytes) = chunking.span(chunk);
                assert_eq!(start, end);
                end += bytes;
            }
            assert_eq!(end, len);
        }
        assert_eq!((Chunking::of(1 << 30).chunk_bytes(), Chunking::of(1 << 30).count()), (1 << 20, 1024));
        assert_eq!(Chunking::of(1 << 20).count(), 4);
        assert_eq!((Chunking::whole(0).count(), Chunking::whole(0).span(0)), (1, (0, 0)));
    }

    #[test]
    fn sets_agree_with_plain_lists() {
        for count in [1, 63, 64, 65, 300] {
            let mut set = ChunkSet::none(count);
            let all = ChunkSet::all(count);
            assert!(all.is_full() && set.is_empty());
            for chunk in (0..count).filter(|c| c % 3 == 0) {
                assert!(set.insert(chunk) && !set.insert(chunk));
            }
            let expected: Vec<u32> = (0..count).filter(|c| c % 3 == 0).collect();
            assert_eq!(all.common(&set, 0).collect::<Vec<_>>(), expected);
            let from: Vec<u32> = expected.iter().copied().filter(|c| *c >= 5).collect();
            assert_eq!(all.common(&set, 5.min(count - 1)).filter(|c| *c >= 5).collect::<Vec<_>>(), from);
            let mut copy = ChunkSet::none(count);
            copy.merge(0, set.words()).unwrap();
            assert_eq!(copy, set);
            for chunk in expected {
                assert!(set.remove(chunk) && !set.remove(chunk));
            }
            assert_eq!(set.filled(), 0);
        }
    }

    #[test]
    fn chunks_that_do_not_exist_are_refused() {
        let mut set = ChunkSet::none(65);
        assert!(set.merge(1, &[1]).is_ok());
        for (first, words) in [(1, vec![2]), (2, vec![0]), (0, vec![0, 0, 0]), (u32::MAX, vec![1])] {
            assert_eq!(set.merge(first, &words), Err(NoSuchChunk { chunks: 65 }));
        }
        assert_eq!(set.filled(), 1);
    }
}
