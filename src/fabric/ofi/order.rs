//! The order of messages between two ranks. Most arrive in order; a long one
//! may be overtaken by the short ones behind it, by as many as its sender may
//! have sent meanwhile.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use super::waited::Waited;
use crate::base::limits;

/// What one side sends: numbers, and which messages have not left.
#[derive(Default)]
pub(super) struct Outgoing {
    next: u64,
    bytes: u64,
    /// From the oldest that has not left.
    leaving: VecDeque<Leaving>,
}

struct Leaving {
    number: u64,
    bytes_before: u64,
    has_left: bool,
}

/// What the other side takes.
#[derive(Default)]
pub(super) struct Incoming {
    next: u64,
    /// Messages before their turn.
    early: BTreeMap<u64, Vec<u8>>,
    early_bytes: u64,
    /// How long the next one has been missing.
    gap: Option<Waited>,
}

/// Why a message cannot be taken.
#[derive(PartialEq, Eq, Debug)]
pub(super) enum Misplaced {
    /// Its number was there before.
    Again(u64),
    /// More are early than a sender may have under way.
    TooEarly(u64),
}

impl Outgoing {
    /// The number of the next message, of `bytes` bytes, if it may go now.
    pub fn next(&self, bytes: usize) -> Option<u64> {
        let may_go = self.leaving.front().is_none_or(|oldest| {
            self.leaving.len() < limits::OFI_SENDS_PEER_MAX
                && self.next - oldest.number < limits::OFI_WINDOW_MESSAGES
                && self.bytes - oldest.bytes_before + bytes as u64 <= limits::OFI_WINDOW_BYTES
        });
        may_go.then_some(self.next)
    }

    /// Notes that this message went, or is on its way.
    pub fn went(&mut self, bytes: usize, is_under_way: bool) {
        if is_under_way {
            self.leaving.push_back(Leaving { number: self.next, bytes_before: self.bytes, has_left: false });
        }
        self.next += 1;
        self.bytes += bytes as u64;
    }

    /// Notes that message `number` has left.
    pub fn has_left(&mut self, number: u64) {
        if let Ok(place) = self.leaving.binary_search_by_key(&number, |message| message.number) {
            self.leaving[place].has_left = true;
        }
        while self.leaving.pop_front_if(|message| message.has_left).is_some() {}
    }

    /// The oldest message that has not left.
    pub fn oldest(&self) -> Option<u64> {
        self.leaving.front().map(|message| message.number)
    }

    /// How many messages there have been.
    pub fn count(&self) -> u64 {
        self.next
    }
}

impl Incoming {
    /// Takes message `number`; hands over what is in order by now.
    pub fn take(&mut self, number: u64, body: &[u8], deliver: &mut dyn FnMut(&[u8])) -> Result<(), Misplaced> {
        if number != self.next {
            return self.keep(number, body);
        }
        deliver(body);
        self.next += 1;
        if self.gap.is_none() {
            return Ok(());
        }
        while let Some(body) = self.early.remove(&self.next) {
            deliver(&body);
            self.early_bytes -= body.len() as u64;
            self.next += 1;
        }
        self.gap = (!self.early.is_empty()).then(|| Waited::since(Instant::now()));
        Ok(())
    }

    /// How many messages were handed over.
    pub fn count(&self) -> u64 {
        self.next
    }

    /// Whether messages wait for one that is missing.
    pub fn has_gap(&self) -> bool {
        self.gap.is_some()
    }

    /// Whether one is missing for longer than `patience`. To be asked from time
    /// to time.
    pub fn misses_one(&mut self, patience: Duration) -> bool {
        self.gap.as_mut().is_some_and(|waited| waited.look(Instant::now(), patience))
    }

    fn keep(&mut self, number: u64, body: &[u8]) -> Result<(), Misplaced> {
        if number < self.next || self.early.contains_key(&number) {
            return Err(Misplaced::Again(number));
        }
        let bytes = self.early_bytes + body.len() as u64;
        if number - self.next > limits::OFI_WINDOW_MESSAGES || bytes > limits::OFI_WINDOW_BYTES {
            return Err(Misplaced::TooEarly(number));
        }
        self.gap.get_or_insert_with(|| Waited::since(Instant::now()));
        self.early_bytes = bytes;
        self.early.insert(number, body.to_vec());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::rng::Rng;

    #[test]
    fn any_order_that_a_sender_allows_is_put_right() {
        let mut rng = Rng::new(7);
        for _ in 0..50 {
            let (mut out, mut inward) = (Outgoing::default(), Incoming::default());
            let (mut in_transit, mut got) = (Vec::new(), Vec::new());
            while inward.count() < 500 {
                if out.count() < 500 && rng.below(2) == 0 && let Some(number) = out.next(8) {
                    let is_long = rng.below(3) == 0;
                    out.went(8, is_long);
                    in_transit.push(number);
                } else if !in_transit.is_empty() {
                    let number: u64 = in_transit.remove(rng.below(in_transit.len()));
                    let deliver = &mut |body: &[u8]| got.push(body.to_vec());
                    inward.take(number, &number.to_le_bytes(), deliver).unwrap();
                    out.has_left(number);
                }
            }
            assert!(got.iter().enumerate().all(|(i, body)| *body == (i as u64).to_le_bytes()));
            assert!(out.oldest().is_none() && !inward.has_gap() && inward.early_bytes == 0);
        }
    }

    #[test]
    fn a_sender_keeps_to_the_window() {
        let mut out = Outgoing::default();
        out.went(10, true);
        for number in 1..limits::OFI_WINDOW_MESSAGES {
            assert_eq!(out.next(0), Some(number));
            out.went(0, false);
        }
        assert_eq!(out.next(0), None, "too many since the oldest");
        out.has_left(0);
        assert_eq!(out.next(0), Some(limits::OFI_WINDOW_MESSAGES));
        for _ in 0..limits::OFI_SENDS_PEER_MAX {
            out.went(1, true);
        }
        assert_eq!(out.next(0), None, "too many under way");
        let mut out = Outgoing::default();
        out.went(limits::OFI_WINDOW_BYTES as usize - 1, true);
        assert_eq!((out.next(1), out.next(2)), (Some(1), None));
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let mut inward = Incoming::default();
        let mut none = |_: &[u8]| ();
        inward.take(0, b"a", &mut none).unwrap();
        assert_eq!(inward.take(0, b"a", &mut none), Err(Misplaced::Again(0)));
        inward.take(5, b"b", &mut none).unwrap();
        assert_eq!(inward.take(5, b"b", &mut none), Err(Misplaced::Again(5)));
        let beyond = limits::OFI_WINDOW_MESSAGES + 2;
        assert_eq!(inward.take(beyond, b"c", &mut none), Err(Misplaced::TooEarly(beyond)));
        assert_eq!(inward.take(u64::MAX, b"c", &mut none), Err(Misplaced::TooEarly(u64::MAX)));
        let long = vec![0; limits::MESSAGE_BYTES_MAX];
        let fitting = (6..).take_while(|number| inward.take(*number, &long, &mut none).is_ok()).count();
        assert_eq!(fitting as u64, limits::OFI_WINDOW_BYTES / long.len() as u64 - 1);
        let short = Duration::from_nanos(4);
        assert!(!inward.misses_one(Duration::from_secs(3600)) && (0..9).any(|_| inward.misses_one(short)));
    }
}
