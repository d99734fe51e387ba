//! The connections to one peer: one for messages, and others, if `boot` made
//! some, for large reads, so that a transfer never stands before a message.
//!
//! Requests for reads go with the messages and name the connection on which
//! the chunks are to come: that one then needs to be looked at only while a
//! read is under way on it.

use std::net::TcpStream;

use super::FabricError;
use super::stream::Stream;
use super::streams::Tuning;
use crate::base::{Rank, limits};

/// All connections to one peer. They live and end together.
pub(super) struct Lanes {
    first: Stream,
    more: Vec<Stream>,
}

/// One connection of one peer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Line {
    pub(super) peer: Rank,
    pub(super) lane: u8,
}

impl Lanes {
    pub(super) fn new(
        peer: Rank,
        first: TcpStream,
        more: Vec<TcpStream>,
        tuning: &Tuning,
    ) -> Result<Lanes, FabricError> {
        if more.len() > limits::LANES_MAX {
            return Err(FabricError::os(peer, "connect", format!("more than {} lanes", limits::LANES_MAX)));
        }
        let more = more.into_iter().zip(1..).map(|(socket, lane)| Stream::new(peer, lane, socket, tuning));
        Ok(Lanes { more: more.collect::<Result<_, _>>()?, first: Stream::new(peer, 0, first, tuning)? })
    }

    /// Lane 0, for messages.
    #[inline]
    pub(super) fn first(&mut self) -> &mut Stream {
        &mut self.first
    }

    #[inline]
    pub(super) fn get(&self, lane: u8) -> Option<&Stream> {
        match lane {
            0 => Some(&self.first),
            _ => self.more.get(usize::from(lane) - 1),
        }
    }

    #[inline]
    pub(super) fn get_mut(&mut self, lane: u8) -> Option<&mut Stream> {
        match lane {
            0 => Some(&mut self.first),
            _ => self.more.get_mut(usize::from(lane) - 1),
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Stream> {
        std::iter::once(&self.first).chain(&self.more)
    }

    /// In order, lane 0 first.
    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Stream> {
        std::iter::once(&mut self.first).chain(&mut self.more)
    }

    /// The lane for a read: the one with the least to come, unless it is short.
    pub(super) fn choose(&self, bytes: u64) -> u8 {
        if bytes < limits::LANE_READ_BYTES_MIN {
            return 0;
        }
        let lanes = self.more.iter().zip(1..);
        lanes.min_by_key(|(stream, _)| stream.inbox.missing()).map_or(0, |(_, lane)| lane)
    }

    /// Asks for as many of a lane's waiting reads as may be under way.
    pub(super) fn start_reads(&mut self, lane: u8) {
        loop {
            let Some(request) = self.get_mut(lane).and_then(|stream| stream.inbox.next_request()) else { return };
            self.first.outbox.push(std::iter::once(request.as_ref()), 0);
        }
    }
}

impl Line {
    /// A number that names the line.
    pub(super) fn to_number(self) -> u32 {
        u32::from(self.lane) << 24 | self.peer.0
    }

    pub(super) fn from_number(number: u32) -> Line {
        Line { peer: Rank(number & 0xff_ffff), lane: (number >> 24) as u8 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_name_lines() {
        for peer in [0, 1, limits::RANKS_MAX - 1] {
            for lane in 0..=limits::LANES_MAX as u8 {
                let line = Line { peer: Rank(peer), lane };
                assert_eq!(Line::from_number(line.to_number()), line);
            }
        }
    }
}
