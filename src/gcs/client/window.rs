//! The commands of a client to one shard, by their numbers. Most end in about the
//! order in which they began, so that they stand in a row.

use std::collections::VecDeque;

use super::super::record::Refusal;
use super::super::state::Op;
use super::{Attempt, Nanos, Token};
use crate::base::limits::GCS_WINDOW;

/// See the module.
#[derive(Debug)]
pub(super) struct Window {
    /// The number of the first in the row: all before it have ended.
    first: u64,
    row: VecDeque<Option<Attempt<Op>>>,
    /// How many of the row have not ended.
    open: usize,
    /// The first number that has never been sent.
    unsent: u64,
}

impl Window {
    pub(super) fn new() -> Window {
        Window { first: 1, row: VecDeque::new(), open: 0, unsent: 1 }
    }

    pub(super) fn push(&mut self, attempt: Attempt<Op>) {
        self.row.push_back(Some(attempt));
        self.open += 1;
    }

    /// How many have not ended.
    pub(super) fn len(&self) -> usize {
        self.open
    }

    /// The outcomes of all up to this one are known.
    pub(super) fn settled(&self) -> u64 {
        self.first - 1
    }

    /// The number behind the last that may be sent now.
    fn end(&self) -> u64 {
        self.first + GCS_WINDOW.min(self.row.len() as u64)
    }

    /// Whether one that has never been sent may be.
    pub(super) fn has_news(&self) -> bool {
        self.unsent < self.end()
    }

    fn place(&self, number: u64) -> Option<usize> {
        Some(number.checked_sub(self.first)? as usize)
    }

    pub(super) fn get_mut(&mut self, number: u64) -> Option<&mut Attempt<Op>> {
        let place = self.place(number)?;
        self.row.get_mut(place)?.as_mut()
    }

    pub(super) fn remove(&mut self, number: u64) -> Option<Attempt<Op>> {
        let place = self.place(number)?;
        let attempt = self.row.get_mut(place)?.take()?;
        self.open -= 1;
        self.advance();
        Some(attempt)
    }

    fn advance(&mut self) {
        while let Some(None) = self.row.front() {
            self.row.pop_front();
            self.first += 1;
        }
        self.unsent = self.unsent.max(self.first);
        if self.row.is_empty() && self.row.capacity() > 4 * GCS_WINDOW as usize {
            self.row.shrink_to(GCS_WINDOW as usize);
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Attempt<Op>> {
        self.row.iter().flatten()
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Attempt<Op>> {
        self.row.iter_mut().flatten()
    }

    /// Ends what took too long.
    pub(super) fn expire(&mut self, now: Nanos, mut over: impl FnMut(Token, Option<Refusal>)) {
        for slot in &mut self.row {
            if let Some(attempt) = slot.take_if(|attempt| now >= attempt.deadline) {
                self.open -= 1;
                over(attempt.token, attempt.cause);
            }
        }
        self.advance();
    }

    /// What may be sent now and is due: what has never been sent, and if `again`,
    /// also what has been and whose time has come.
    pub(super) fn due(&mut self, now: Nanos, again: bool) -> impl Iterator<Item = (u64, &mut Attempt<Op>)> {
        let (first, end) = (self.first, self.end());
        let unsent = self.unsent;
        self.unsent = unsent.max(end);
        let start = if again { first } else { unsent.min(end) };
        let slots = self.row.range_mut((start - first) as usize..(end - first) as usize);
        (start..).zip(slots).filter_map(move |(number, slot)| {
            let attempt = slot.as_mut()?;
            (number >= unsent || attempt.again_at <= now).then_some((number, attempt))
        })
    }
}
