//! The frames of the TCP backends: an 8-byte header (length of the body u32,
//! kind u8, three zeros; little-endian), then the body.
//!
//! | kind | body |
//! |---|---|
//! | message | the message |
//! | read | id u64, offset u64, length u64, region u32, lane u32 |
//! | chunk | id u64, the next bytes of that read |
//! | refused | id u64 |
//!
//! A read's lane is the connection on which its chunks, or its refusal, are to
//! come; ids count per lane. Messages and reads stand on lane 0 only.

use super::{RegionKey, RemoteSpan};
use crate::base::limits;

pub(super) const HEADER: usize = 8;
/// The header of a chunk with its id, before the bytes.
pub(super) const CHUNK_HEADER: usize = HEADER + 8;

const READ_BODY: usize = 32;

const MESSAGE: u8 = 1;
const READ: u8 = 2;
const CHUNK: u8 = 3;
const REFUSED: u8 = 4;

/// A frame whose lengths were verified.
#[derive(PartialEq, Eq, Debug)]
pub(super) enum Frame<'a> {
    Message(&'a [u8]),
    Read {
        id: u64,
        span: RemoteSpan,
        lane: u8,
    },
    /// The start of a chunk: `bytes` more follow.
    Chunk {
        id: u64,
        bytes: usize,
    },
    Refused {
        id: u64,
    },
}

/// What [`parse`] makes of a run of bytes.
#[derive(PartialEq, Eq, Debug)]
pub(super) enum Parsed<'a> {
    /// A frame, and how many bytes it took.
    Frame(Frame<'a>, usize),
    /// That many bytes, from the start of the frame, are needed to tell more.
    Needs(usize),
}

/// Parses the frame at the start of `bytes`.
pub(super) fn parse(bytes: &[u8]) -> Result<Parsed<'_>, String> {
    let Some((header, rest)) = bytes.split_first_chunk::<HEADER>() else {
        return Ok(Parsed::Needs(HEADER));
    };
    let [l0, l1, l2, l3, kind, zeros @ ..] = *header;
    let len = u32::from_le_bytes([l0, l1, l2, l3]) as usize;
    if zeros != [0; 3] {
        return Err("a header with reserved bytes set".into());
    }
    // The part of the body that is looked at as a whole.
    let whole = match kind {
        MESSAGE if len <= limits::MESSAGE_BYTES_MAX => len,
        READ if len == READ_BODY => len,
        CHUNK if (8..=8 + limits::LANE_CHUNK_BYTES).contains(&len) => 8,
        REFUSED if len == 8 => 8,
        MESSAGE | READ | CHUNK | REFUSED => return Err(format!("kind {kind} with {len} bytes")),
        _ => return Err(format!("kind {kind}")),
    };
    let Some(body) = rest.get(..whole) else {
        return Ok(Parsed::Needs(HEADER + whole));
    };
    let frame = match kind {
        MESSAGE => Frame::Message(body),
        READ => Frame::Read {
            id: u64_at(body, 0),
            span: RemoteSpan {
                offset: u64_at(body, 8),
                len: u64_at(body, 16),
                key: RegionKey(u64_at(body, 24) as u32),
            },
            lane: lane_of(u64_at(body, 24))?,
        },
        CHUNK => Frame::Chunk { id: u64_at(body, 0), bytes: len - 8 },
        _ => Frame::Refused { id: u64_at(body, 0) },
    };
    Ok(Parsed::Frame(frame, HEADER + whole))
}

pub(super) fn message_header(len: usize) -> [u8; HEADER] {
    header(len, MESSAGE)
}

/// A read names a lane that there can be.
fn lane_of(word: u64) -> Result<u8, String> {
    let lane = word >> 32;
    let known = u8::try_from(lane).ok().filter(|lane| usize::from(*lane) <= limits::LANES_MAX);
    known.ok_or_else(|| format!("a read by way of lane {lane}"))
}

pub(super) fn read_request(id: u64, span: RemoteSpan, lane: u8) -> [u8; HEADER + READ_BODY] {
    join([
        header(READ_BODY, READ),
        id.to_le_bytes(),
        span.offset.to_le_bytes(),
        span.len.to_le_bytes(),
        (u64::from(lane) << 32 | u64::from(span.key.0)).to_le_bytes(),
    ])
}

pub(super) fn chunk_header(id: u64, bytes: usize) -> [u8; CHUNK_HEADER] {
    join([header(8 + bytes, CHUNK), id.to_le_bytes()])
}

pub(super) fn refusal(id: u64) -> [u8; HEADER + 8] {
    join([header(8, REFUSED), id.to_le_bytes()])
}

fn header(len: usize, kind: u8) -> [u8; HEADER] {
    let [a, b, c, d] = (len as u32).to_le_bytes();
    [a, b, c, d, kind, 0, 0, 0]
}

fn join<const WORDS: usize, const BYTES: usize>(words: [[u8; 8]; WORDS]) -> [u8; BYTES] {
    const { assert!(WORDS * 8 == BYTES) };
    std::array::from_fn(|i| words[i / 8][i % 8])
}

fn u64_at(body: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(std::array::from_fn(|i| body[at + i]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_parsed() {
        let span = RemoteSpan { key: RegionKey(7), offset: 1 << 40, len: 9 };
        let request = read_request(3, span, 2);
        assert_eq!(parse(&request), Ok(Parsed::Frame(Frame::Read { id: 3, span, lane: 2 }, 40)));
        assert_eq!(parse(&request[..39]), Ok(Parsed::Needs(40)));
        assert_eq!(parse(&chunk_header(4, 100)), Ok(Parsed::Frame(Frame::Chunk { id: 4, bytes: 100 }, 16)));
        assert_eq!(parse(&refusal(5)), Ok(Parsed::Frame(Frame::Refused { id: 5 }, 16)));
        let mut message = message_header(2).to_vec();
        assert_eq!(parse(&message), Ok(Parsed::Needs(10)));
        message.extend_from_slice(b"hi and more");
        assert_eq!(parse(&message), Ok(Parsed::Frame(Frame::Message(b"hi"), 10)));
        assert_eq!(parse(b""), Ok(Parsed::Needs(8)));
    }

    #[test]
    fn lengths_and_kinds_are_verified() {
        let longest = header(limits::MESSAGE_BYTES_MAX, MESSAGE);
        assert!(matches!(parse(&longest), Ok(Parsed::Needs(_))));
        for bad in [
            header(limits::MESSAGE_BYTES_MAX + 1, MESSAGE),
            header(31, READ),
            header(7, CHUNK),
            header(9 + limits::LANE_CHUNK_BYTES, CHUNK),
            header(9, REFUSED),
            header(0, 0),
            header(0, 5),
            [0, 0, 0, 0, MESSAGE, 0, 0, 1],
        ] {
            assert!(parse(&bad).is_err(), "{bad:?}");
        }
        let span = RemoteSpan { key: RegionKey(7), offset: 0, len: 9 };
        let most = limits::LANES_MAX as u8;
        assert!(parse(&read_request(1, span, most)).is_ok());
        assert!(parse(&read_request(1, span, most + 1)).is_err());
    }
}
