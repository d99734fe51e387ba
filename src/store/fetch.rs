//! One object on its way here: which chunks there are, who has them, which is
//! asked of whom next.
//!
//! Chunks are asked for in order, so that whoever reads from us can go on as
//! well. A source that is slower than the others gets less to do, and nothing
//! at the end that the others would be done with sooner.

use super::chunks::{ChunkSet, Chunking, NoSuchChunk};
use crate::base::Rank;
use crate::base::limits::FETCH_SOURCE_BYTES_MAX;

/// See the module.
#[derive(Debug)]
pub struct Fetch {
    chunking: Chunking,
    /// Neither here nor under way.
    missing: ChunkSet,
    here: ChunkSet,
    sources: Vec<Source>,
    in_flight: u32,
}

/// A rank that has some of the object.
#[derive(Debug)]
struct Source {
    rank: Rank,
    /// The first byte of its copy in its arena.
    offset: u64,
    has: ChunkSet,
    /// Chunks under way, each with when it was asked for.
    in_flight: Vec<(u32, u64)>,
    /// What it takes for a byte, by the last few chunks.
    ns_per_byte: Option<f64>,
    last_ns: u64,
    /// Nothing more is asked of it.
    gone: bool,
    /// It has sent nothing for long; asked again when something has come.
    stalled: bool,
}

/// A read to be started.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ChunkRead {
    /// Which chunk.
    pub chunk: u32,
    /// Where it is in the source's arena.
    pub offset: u64,
    /// Its bytes.
    pub len: u64,
}

/// How much of the last measurement enters a source's speed.
const NEW_SHARE: f64 = 0.3;

impl Fetch {
    /// An object of which nothing is here, and of which nobody is known to have
    /// anything.
    pub fn new(chunking: Chunking) -> Fetch {
        let count = chunking.count();
        Fetch {
            chunking,
            missing: ChunkSet::all(count),
            here: ChunkSet::none(count),
            sources: Vec::new(),
            in_flight: 0,
        }
    }

    /// The cut of the object.
    pub fn chunking(&self) -> &Chunking {
        &self.chunking
    }

    /// The chunks that are here.
    pub fn here(&self) -> &ChunkSet {
        &self.here
    }

    /// Whether every chunk is here.
    pub fn is_complete(&self) -> bool {
        self.here.is_full()
    }

    /// Reads under way.
    pub fn in_flight(&self) -> u32 {
        self.in_flight
    }

    /// `rank` has the whole object, from `offset` of its arena on.
    pub fn add_whole(&mut self, rank: Rank, offset: u64) {
        let all = ChunkSet::all(self.chunking.count());
        self.source_mut(rank, offset).has = all;
    }

    /// `rank` has these chunks of its copy, which begins at `offset` of its
    /// arena.
    pub fn add_chunks(&mut self, rank: Rank, offset: u64, first: u32, words: &[u64]) -> Result<(), NoSuchChunk> {
        self.source_mut(rank, offset).has.merge(first, words)
    }

    /// Asks `rank` for nothing more; what is under way from it will still end.
    pub fn drop_source(&mut self, rank: Rank) {
        if let Some(at) = self.at(rank) {
            self.sources[at].gone = true;
            self.sources[at].has = ChunkSet::none(self.chunking.count());
            self.forget_idle(at);
        }
    }

    /// Whether something may be asked of `rank`, now or later.
    pub fn has_source(&self, rank: Rank) -> bool {
        self.at(rank).is_some_and(|at| !self.sources[at].gone)
    }

    /// Whether `rank` has the whole object.
    pub fn is_whole_at(&self, rank: Rank) -> bool {
        self.at(rank).is_some_and(|at| self.sources[at].has.is_full())
    }

    /// Whether `rank` has something that is missing.
    pub fn wants_of(&self, rank: Rank) -> bool {
        self.at(rank).is_some_and(|at| self.sources[at].has.common(&self.missing, 0).next().is_some())
    }

    /// Reads under way from `rank`.
    pub fn in_flight_from(&self, rank: Rank) -> usize {
        self.at(rank).map_or(0, |at| self.sources[at].in_flight.len())
    }

    /// The ranks of which something may be asked.
    pub fn sources(&self) -> impl Iterator<Item = Rank> + '_ {
        self.sources.iter().filter(|s| !s.gone).map(|s| s.rank)
    }

    /// The next chunk to be asked of `rank`, which is under way from then on.
    pub fn next(&mut self, rank: Rank, now_ns: u64) -> Option<ChunkRead> {
        let at = self.at(rank)?;
        let source = &self.sources[at];
        let chunk_bytes = self.chunking.chunk_bytes();
        let window = (FETCH_SOURCE_BYTES_MAX / chunk_bytes).max(2) as usize;
        if source.gone || source.stalled || source.in_flight.len() >= window {
            return None;
        }
        let chunk = source.has.common(&self.missing, 0).find(|chunk| self.is_worth(at, *chunk, now_ns))?;
        self.missing.remove(chunk);
        self.in_flight += 1;
        let (start, len) = self.chunking.span(chunk);
        let source = &mut self.sources[at];
        source.in_flight.push((chunk, now_ns));
        Some(ChunkRead { chunk, offset: source.offset + start, len })
    }

    /// A chunk from `rank` is here.
    pub fn arrived(&mut self, rank: Rank, chunk: u32, now_ns: u64) {
        let len = self.chunking.span(chunk).1;
        let Some((at, asked_ns)) = self.landed(rank, chunk) else { return };
        self.here.insert(chunk);
        let source = &mut self.sources[at];
        let took_ns = now_ns.saturating_sub(asked_ns.max(source.last_ns)).max(1);
        let sample = took_ns as f64 / len.max(1) as f64;
        let before = source.ns_per_byte.unwrap_or(sample);
        source.ns_per_byte = Some(before + NEW_SHARE * (sample - before));
        source.last_ns = now_ns;
        self.forget_idle(at);
    }

    /// `rank` sends nothing: asks nothing more of it until it is revived. Whether
    /// that is new, and something could still have been asked of it.
    pub fn stall(&mut self, rank: Rank) -> bool {
        let Some(at) = self.at(rank) else { return false };
        let source = &mut self.sources[at];
        !std::mem::replace(&mut source.stalled, true) && !source.gone
    }

    /// Something has come from `rank`; whether it was thought not to send.
    pub fn revive(&mut self, rank: Rank) -> bool {
        self.at(rank).is_some_and(|at| std::mem::take(&mut self.sources[at].stalled))
    }

    /// Whether others have chunks that are under way from stalled sources.
    pub fn is_late(&self) -> bool {
        let helps = |other: &Source, chunk| !other.gone && !other.stalled && other.has.contains(chunk);
        let mut late = self.sources.iter().filter(|source| source.stalled).flat_map(|source| &source.in_flight);
        late.any(|(chunk, _)| self.sources.iter().any(|other| helps(other, *chunk)))
    }

    /// Whether all that is under way is from stalled sources.
    pub fn only_stalled_under_way(&self) -> bool {
        self.sources.iter().all(|source| source.stalled || source.in_flight.is_empty())
    }

    /// Gives up what is under way from stalled sources, which is missing again.
    /// Whatever still comes of it must go elsewhere.
    pub fn reclaim(&mut self) -> Vec<(Rank, u32)> {
        let under_way = |source: &Source| {
            let rank = source.rank;
            source.in_flight.iter().map(move |(chunk, _)| (rank, *chunk)).collect::<Vec<_>>()
        };
        let reclaimed: Vec<_> = self.sources.iter().filter(|source| source.stalled).flat_map(under_way).collect();
        for (rank, chunk) in &reclaimed {
            self.failed(*rank, *chunk);
        }
        reclaimed
    }

    /// A read of a chunk from `rank` failed: it is missing again.
    pub fn failed(&mut self, rank: Rank, chunk: u32) {
        if let Some((at, _)) = self.landed(rank, chunk) {
            self.missing.insert(chunk);
            self.forget_idle(at);
        }
    }

    /// Ends a read under way: the source's index, and when it was started.
    fn landed(&mut self, rank: Rank, chunk: u32) -> Option<(usize, u64)> {
        let at = self.at(rank)?;
        let flying = &mut self.sources[at].in_flight;
        let (_, asked_ns) = flying.remove(flying.iter().position(|(c, _)| *c == chunk)?);
        self.in_flight -= 1;
        Some((at, asked_ns))
    }

    /// Whether asking source `at` for a chunk gets it here about as soon as
    /// leaving the rest to the others that have it.
    fn is_worth(&self, at: usize, chunk: u32, now_ns: u64) -> bool {
        let others = self.sources.iter().enumerate().filter(|(i, s)| *i != at && !s.gone && !s.stalled && s.has.contains(chunk));
        let mut others = others.map(|(_, s)| s).peekable();
        if others.peek().is_none() {
            return true;
        }
        let me = &self.sources[at];
        let Some(mine) = me.ns_per_byte else {
            // Two to measure it by.
            return me.in_flight.len() < 2;
        };
        let (mut their_rate, mut theirs_in_flight, mut first_of_theirs) = (0.0, 0, f64::INFINITY);
        for other in others {
            let Some(ns_per_byte) = other.pace(now_ns, self.chunking.chunk_bytes()) else { continue };
            their_rate += 1.0 / ns_per_byte;
            theirs_in_flight += other.in_flight.len();
            first_of_theirs = (ns_per_byte * (other.in_flight.len() + 1) as f64).min(first_of_theirs);
        }
        let here_after = (me.in_flight.len() + 1) as f64 * mine;
        let all_of_theirs = f64::from(self.missing.filled() + theirs_in_flight as u32) / their_rate;
        // The fastest of idle sources is never refused, so that there is always one.
        their_rate == 0.0 || here_after <= all_of_theirs.max(first_of_theirs)
    }

    fn at(&self, rank: Rank) -> Option<usize> {
        self.sources.iter().position(|source| source.rank == rank)
    }

    fn source_mut(&mut self, rank: Rank, offset: u64) -> &mut Source {
        let at = self.at(rank).unwrap_or_else(|| {
            let has = ChunkSet::none(self.chunking.count());
            let source =
                Source { rank, offset, has, in_flight: Vec::new(), ns_per_byte: None, last_ns: 0, gone: false, stalled: false };
            self.sources.push(source);
            self.sources.len() - 1
        });
        let source = &mut self.sources[at];
        source.offset = offset;
        source.gone = false;
        source
    }

    fn forget_idle(&mut self, at: usize) {
        if self.sources[at].gone && self.sources[at].in_flight.is_empty() {
            self.sources.swap_remove(at);
        }
    }
}

impl Source {
    /// What a byte takes; more than was measured if a chunk has been under way
    /// for longer than that.
    fn pace(&self, now_ns: u64, chunk_bytes: u64) -> Option<f64> {
        let measured = self.ns_per_byte?;
        let waiting = match self.in_flight.first() {
            Some((_, asked_ns)) => now_ns.saturating_sub(self.last_ns.max(*asked_ns)) as f64 / chunk_bytes as f64,
            None => 0.0,
        };
        Some(measured.max(waiting))
    }
}
