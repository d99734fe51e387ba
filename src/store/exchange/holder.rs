//! An exchange as holder: who reads from here, and what they are told.

use super::super::chunks::{ChunkSet, Chunking};
use super::{Arrival, Exchange, Memory, NO_ARRIVAL, Violation};
use crate::base::Rank;
use crate::base::limits::IN_PLACE_MAX;
use crate::wire::{BulkBody, CopyId};

#[derive(Debug)]
pub(super) struct Served {
    pub readers: Vec<ReaderHere>,
    pub state: Serving,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct ReaderHere {
    pub rank: Rank,
    pub number: u32,
    pub in_place: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Serving {
    /// While it arrives.
    Partly(usize),
    /// All of it, pinned from `offset` on.
    Whole { offset: u64, chunks: u32 },
    /// What has come before it was given up, pinned.
    Broken,
}

impl Exchange {
    pub(super) fn on_subscribe(
        &mut self,
        copy: CopyId,
        reader: ReaderHere,
        memory: &mut dyn Memory,
    ) -> Result<(), Violation> {
        let ReaderHere { rank: from, number, in_place } = reader;
        let arriving = self.by_copy.get(&copy).copied().filter(|arrival| !self.arrivals[*arrival].failed);
        let state = match (self.served.get(&copy), arriving) {
            (Some(served), _) if served.readers.iter().any(|r| (r.rank, r.number) == (from, number)) => {
                return Err("a subscription with a number that is in use");
            }
            (None, Some(arrival)) => Some(Serving::Partly(arrival)),
            (None, None) => memory.pin(copy).map(|(offset, len)| {
                Serving::Whole { offset, chunks: Chunking::of(len).count() }
            }),
            (Some(Served { state: Serving::Broken, .. }), _) => None,
            (Some(served), _) => Some(served.state),
        };
        let earlier = self.served.get(&copy).map_or(&[][..], |served| &served.readers);
        let in_use = earlier.iter().filter(|r| r.rank == from && r.in_place).count();
        // A reader that still uses so many asks for its own copy elsewhere.
        let state = state.filter(|_| !in_place || in_use < IN_PLACE_MAX);
        let (offset, words) = match state {
            Some(Serving::Partly(arrival)) => {
                let entry = &self.arrivals[arrival];
                (entry.to.unwrap_or(0), entry.fetch.here().words().to_vec())
            }
            Some(Serving::Whole { offset, chunks }) => (offset, ChunkSet::all(chunks).words().to_vec()),
            Some(Serving::Broken) | None => {
                self.send(from, copy, BulkBody::Gone { number });
                return Ok(());
            }
        };
        let state = state.unwrap_or(Serving::Broken);
        let served = self.served.entry(copy).or_insert_with(|| Served { readers: Vec::new(), state });
        // A reader reads a copy once at a time, but may use it in place repeatedly.
        served.readers.retain(|r| r.rank != from || r.in_place);
        served.readers.push(reader);
        self.send(from, copy, BulkBody::Holding { number, offset, first: 0, words });
        Ok(())
    }

    /// Ends the subscriptions of those readers for whom `leaves` holds.
    pub(super) fn unsubscribe(&mut self, copy: CopyId, memory: &mut dyn Memory, leaves: impl Fn(&ReaderHere) -> bool) {
        let Some(served) = self.served.get_mut(&copy) else { return };
        served.readers.retain(|reader| !leaves(reader));
        if served.readers.is_empty() {
            let state = served.state;
            self.served.remove(&copy);
            if !matches!(state, Serving::Partly(_)) {
                memory.unpin(copy);
            }
        }
    }

    /// Forgets an arrival whose end is being told; whether others read from it.
    pub(super) fn settle(&mut self, arrival: usize) -> bool {
        let Arrival { wanted, to, fetch, .. } = self.arrivals.remove(arrival);
        // What may still come belongs to no arrival any more.
        self.reads.iter_mut().filter(|(_, read)| read.arrival == arrival).for_each(|(_, read)| read.arrival = NO_ARRIVAL);
        self.forget_moves(arrival, to.is_some());
        let served = self.served.get_mut(&wanted.copy).filter(|served| served.state == Serving::Partly(arrival));
        let Some(served) = served else { return false };
        let complete = to.filter(|_| fetch.is_complete());
        served.state = match complete {
            Some(offset) => Serving::Whole { offset, chunks: fetch.chunking().count() },
            None => Serving::Broken,
        };
        for ReaderHere { rank, number, .. } in served.readers.clone() {
            let what = match complete {
                Some(offset) => {
                    BulkBody::Holding { number, offset, first: 0, words: fetch.here().words().to_vec() }
                }
                None => BulkBody::Gone { number },
            };
            self.send(rank, wanted.copy, what);
        }
        true
    }

    /// Tells those that read from here what has come since.
    pub(super) fn tell_news(&mut self) {
        for arrival in std::mem::take(&mut self.news) {
            let Some(entry) = self.arrivals.get_mut(arrival) else { continue };
            let Some((first, last)) = entry.changed.take() else { continue };
            let copy = entry.wanted.copy;
            let Some(served) = self.served.get(&copy) else { continue };
            if served.state != Serving::Partly(arrival) {
                continue;
            }
            let words = &entry.fetch.here().words()[first as usize..=last as usize];
            let (offset, words) = (entry.to.unwrap_or(0), words.to_vec());
            for ReaderHere { rank, number, .. } in served.readers.clone() {
                self.send(rank, copy, BulkBody::Holding { number, offset, first, words: words.clone() });
            }
        }
    }
}
