//! The frames between two endpoints of libfabric: a 32-byte header, then the
//! body. Little-endian: magic u32, kind u8, three zeros, sender u32, 0 u32,
//! cookie u64, number u64.
//!
//! An endpoint takes messages from anybody who knows its address. The cookie,
//! which the receiver has given to this sender alone over the authenticated
//! connection, tells which of them are the sender's.

use crate::base::{Rank, limits};

/// Bytes before the body.
pub(super) const HEADER: usize = 32;

const MAGIC: u32 = u32::from_le_bytes(*b"clmo");

const GREETING: u8 = 1;
const MESSAGE: u8 = 2;

/// What a frame is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Shows that the way is open. Has no body, and its number is 0.
    Greeting,
    /// A message of the node.
    Message,
}

/// A frame whose form was verified, though not yet its cookie.
#[derive(PartialEq, Eq, Debug)]
pub struct Frame<'a> {
    /// What it is for.
    pub kind: Kind,
    /// Whom it says it comes from.
    pub from: Rank,
    /// What the receiver has given to that rank.
    pub cookie: u64,
    /// Counts the messages of this sender to this receiver.
    pub number: u64,
    /// The message.
    pub body: &'a [u8],
}

/// Verifies the form of a received frame.
pub fn parse(bytes: &[u8]) -> Result<Frame<'_>, String> {
    let Some((header, body)) = bytes.split_first_chunk::<HEADER>() else {
        return Err(format!("{} bytes, which is less than a header", bytes.len()));
    };
    if u32_at(header, 0) != MAGIC || header[5..8] != [0; 3] || u32_at(header, 12) != 0 {
        return Err("a header that is not ours".into());
    }
    let number = u64_at(header, 24);
    let kind = match header[4] {
        GREETING if body.is_empty() && number == 0 => Kind::Greeting,
        MESSAGE if body.len() <= limits::MESSAGE_BYTES_MAX => Kind::Message,
        kind @ (GREETING | MESSAGE) => return Err(format!("kind {kind} with {} bytes and number {number}", body.len())),
        kind => return Err(format!("kind {kind}")),
    };
    Ok(Frame { kind, from: Rank(u32_at(header, 8)), cookie: u64_at(header, 16), number, body })
}

/// The header of a frame.
pub(super) fn header(kind: Kind, from: Rank, cookie: u64, number: u64) -> [u8; HEADER] {
    let kind = match kind {
        Kind::Greeting => GREETING,
        Kind::Message => MESSAGE,
    };
    let mut bytes = [0; HEADER];
    bytes[..4].copy_from_slice(&MAGIC.to_le_bytes());
    bytes[4] = kind;
    bytes[8..12].copy_from_slice(&from.0.to_le_bytes());
    bytes[16..24].copy_from_slice(&cookie.to_le_bytes());
    bytes[24..].copy_from_slice(&number.to_le_bytes());
    bytes
}

fn u32_at(bytes: &[u8; HEADER], at: usize) -> u32 {
    u32::from_le_bytes(std::array::from_fn(|i| bytes[at + i]))
}

fn u64_at(bytes: &[u8; HEADER], at: usize) -> u64 {
    u64::from_le_bytes(std::array::from_fn(|i| bytes[at + i]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_parsed() {
        let mut bytes = header(Kind::Message, Rank(7), 0x0123_4567_89ab_cdef, 9).to_vec();
        bytes.extend_from_slice(b"hi");
        let frame =
            Frame { kind: Kind::Message, from: Rank(7), cookie: 0x0123_4567_89ab_cdef, number: 9, body: b"hi" };
        assert_eq!(parse(&bytes), Ok(frame));
        let greeting = header(Kind::Greeting, Rank(1), 2, 0);
        assert_eq!(parse(&greeting).map(|frame| frame.kind), Ok(Kind::Greeting));
    }

    #[test]
    fn every_field_is_verified() {
        let message = header(Kind::Message, Rank(7), 1, 2);
        for cut in 0..HEADER {
            assert!(parse(&message[..cut]).is_err(), "{cut} bytes");
        }
        for at in [0, 3, 4, 5, 7, 12, 15] {
            let mut bad = message;
            bad[at] ^= 0x80;
            assert!(parse(&bad).is_err(), "byte {at}");
        }
        let long = [&message[..], &vec![0; limits::MESSAGE_BYTES_MAX + 1]].concat();
        assert!(parse(&long[..long.len() - 1]).is_ok() && parse(&long).is_err());
        assert!(parse(&[&header(Kind::Greeting, Rank(1), 1, 0)[..], b"x"].concat()).is_err());
        assert!(parse(&header(Kind::Greeting, Rank(1), 1, 1)).is_err());
    }
}
