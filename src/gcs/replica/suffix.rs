//! The latest commands that a replica has, in their order and without a gap.

use std::collections::VecDeque;

use super::super::log::entry_bytes;
use super::super::message::Entry;
use super::super::record::Seq;

/// See the module.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub(super) struct Suffix {
    entries: VecDeque<Entry>,
    bytes: usize,
}

impl Suffix {
    pub(super) fn push(&mut self, entry: Entry) {
        self.bytes += entry_bytes(&entry);
        self.entries.push_back(entry);
    }

    /// Drops the first ones, as long as they are to go.
    pub(super) fn drop_while(&mut self, mut goes: impl FnMut(&Suffix, Seq) -> bool) {
        while let Some(first) = self.first()
            && goes(self, first)
            && let Some(entry) = self.entries.pop_front()
        {
            self.bytes -= entry_bytes(&entry);
        }
    }

    pub(super) fn clear(&mut self) {
        *self = Suffix::default();
    }

    /// The place of the first one.
    pub(super) fn first(&self) -> Option<Seq> {
        self.entries.front().map(|entry| entry.seq)
    }

    /// Those from this place on.
    pub(super) fn from(&self, seq: Seq) -> impl Iterator<Item = &Entry> {
        let before = self.first().map_or(0, |first| seq.0.saturating_sub(first.0));
        self.entries.range(self.entries.len().min(before as usize)..)
    }

    /// How many.
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// About how many bytes they have.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }
}
