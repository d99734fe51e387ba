//! What ranks say to each other about large objects: who has which chunks of
//! which copy. The bytes themselves are one-sided reads and no messages.
//!
//! Every message names the object by its [`CopyId`], which is never used again
//! for another object, so that a late one can do no harm.

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::WireError;
use super::frame::{kind, not_zero, prefix};
use crate::base::Rank;
use crate::base::limits::{BULK_SOURCES_MAX, CHUNKS_MAX, RANKS_MAX};

/// An object, for every rank that has a copy of it: the rank that lent it and
/// its number there.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct CopyId {
    /// Who lent the object to those who read it.
    pub lender: Rank,
    /// The object at the lender: index and generation.
    pub object: u64,
}

/// A message about copies of an object.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Bulk {
    /// The object.
    pub copy: CopyId,
    /// What is said about it.
    pub what: BulkBody,
}

/// What [`Bulk`] says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum BulkBody {
    /// To the lender: from whom shall the sender read? `gone` is a rank that it
    /// was told before and that has no copy.
    Locate {
        /// Not this one again.
        gone: Option<Rank>,
        /// The lowest rank of those that read each other's memory in place, the
        /// sender among them.
        group: Rank,
    },
    /// The lender's answer. The sender of the question reads from the first
    /// `primaries` of `ranks`, and from the rest if those fail.
    Sources {
        /// How many of `ranks` are to be used at once.
        primaries: u32,
        /// The best first, [`BULK_SOURCES_MAX`] at most.
        ranks: Vec<Rank>,
    },
    /// To the lender: the sender reads no more. It has the whole object, or
    /// does without.
    Arrived {
        /// It has the whole.
        complete: bool,
    },
    /// To a holder: keep your copy for me until I unsubscribe, and tell me
    /// which chunks you have as they come.
    Subscribe {
        /// Names the subscription, to tell it from later ones.
        number: u32,
        /// The sender will read it where it is, for as long as it likes, and may
        /// lend it on.
        in_place: bool,
    },
    /// To a holder: I read your copy no more.
    Unsubscribe {
        /// What [`BulkBody::Subscribe`] said.
        number: u32,
    },
    /// A holder has these chunks.
    Holding {
        /// What [`BulkBody::Subscribe`] said.
        number: u32,
        /// The first byte of the copy in the holder's arena.
        offset: u64,
        /// The word of the set of chunks that `words` begins with.
        first: u32,
        /// One bit per chunk, from the lowest; not empty.
        words: Vec<u64>,
    },
    /// A holder has no copy, or will not complete the one that it has.
    Gone {
        /// What [`BulkBody::Subscribe`] said.
        number: u32,
    },
}

/// Writes a message about copies into `buffer`, which is cleared first.
pub fn write_bulk(buffer: &mut Vec<u8>, message: &Bulk) {
    buffer.clear();
    let (op, count) = match &message.what {
        BulkBody::Locate { .. } => (op::LOCATE, 0),
        BulkBody::Sources { ranks, .. } => (op::SOURCES, ranks.len()),
        BulkBody::Arrived { complete } => (op::ARRIVED, usize::from(*complete)),
        BulkBody::Subscribe { in_place, .. } => (op::SUBSCRIBE, usize::from(*in_place)),
        BulkBody::Unsubscribe { .. } => (op::UNSUBSCRIBE, 0),
        BulkBody::Holding { words, .. } => (op::HOLDING, words.len()),
        BulkBody::Gone { .. } => (op::GONE, 0),
    };
    let head = BulkLayout {
        kind: kind::BULK,
        op,
        count: U16::new(count as u16),
        lender: U32::new(message.copy.lender.0),
        object: U64::new(message.copy.object),
    };
    buffer.extend_from_slice(head.as_bytes());
    match &message.what {
        BulkBody::Locate { gone, group } => {
            buffer.extend_from_slice(&gone.map_or(0, |rank| rank.0 + 1).to_le_bytes());
            buffer.extend_from_slice(&group.0.to_le_bytes());
        }
        BulkBody::Sources { primaries, ranks } => {
            buffer.extend_from_slice(&primaries.to_le_bytes());
            ranks.iter().for_each(|rank| buffer.extend_from_slice(&rank.0.to_le_bytes()));
        }
        BulkBody::Holding { number, offset, first, words } => {
            let holding =
                HoldingLayout { number: U32::new(*number), first: U32::new(*first), offset: U64::new(*offset) };
            buffer.extend_from_slice(holding.as_bytes());
            words.iter().for_each(|word| buffer.extend_from_slice(&word.to_le_bytes()));
        }
        BulkBody::Subscribe { number, .. } | BulkBody::Unsubscribe { number } | BulkBody::Gone { number } => {
            buffer.extend_from_slice(&number.to_le_bytes());
        }
        BulkBody::Arrived { .. } => (),
    }
}

impl Bulk {
    pub(super) fn parse(bytes: &[u8]) -> Result<Bulk, WireError> {
        let (head, body): (&BulkLayout, _) = prefix(MESSAGE, bytes)?;
        let lender = existing("lender", head.lender.get())?;
        let count = usize::from(head.count.get());
        let what = match head.op {
            op::LOCATE => {
                flag("count", count, 0)?;
                let locate: [u8; size_of::<LocateLayout>()] = exactly(body)?;
                let LocateLayout { gone, group } = zerocopy::transmute!(locate);
                let gone = gone.get().checked_sub(1).map(|rank| existing("gone rank", rank)).transpose()?;
                BulkBody::Locate { gone, group: existing("group", group.get())? }
            }
            op::SOURCES => {
                let (primaries, ranks): (&U32, _) = prefix(MESSAGE, body)?;
                let primaries = primaries.get();
                let ranks = <[U32]>::ref_from_bytes(ranks).ok().filter(|ranks| ranks.len() == count);
                let ranks = ranks.filter(|ranks| {
                    let fits = ranks.len() <= BULK_SOURCES_MAX && primaries as usize <= ranks.len();
                    fits && (primaries == 0) == ranks.is_empty()
                });
                let ranks = ranks.ok_or(WireError::BadField { message: MESSAGE, field: "sources", value: count as u64 })?;
                let ranks = ranks.iter().map(|rank| existing("source", rank.get()));
                BulkBody::Sources { primaries, ranks: ranks.collect::<Result<_, _>>()? }
            }
            op::HOLDING => {
                let (holding, words): (&HoldingLayout, _) = prefix(MESSAGE, body)?;
                not_zero(MESSAGE, "words of a set of chunks", count as u64)?;
                let first = holding.first.get();
                let words = <[U64]>::ref_from_bytes(words).ok().filter(|words| words.len() == count);
                let words = words.filter(|words| first as usize + words.len() <= CHUNKS_MAX / 64);
                let words = words.ok_or(WireError::BadField { message: MESSAGE, field: "chunks", value: count as u64 })?;
                let words = words.iter().map(|word| word.get()).collect();
                BulkBody::Holding { number: holding.number.get(), offset: holding.offset.get(), first, words }
            }
            op::ARRIVED => {
                flag("count", count, 1)?;
                let _nothing: [u8; 0] = exactly(body)?;
                BulkBody::Arrived { complete: count == 1 }
            }
            op @ (op::SUBSCRIBE | op::UNSUBSCRIBE | op::GONE) => {
                flag("count", count, usize::from(op == op::SUBSCRIBE))?;
                let number = u32::from_le_bytes(exactly(body)?);
                match op {
                    op::SUBSCRIBE => BulkBody::Subscribe { number, in_place: count == 1 },
                    op::UNSUBSCRIBE => BulkBody::Unsubscribe { number },
                    _ => BulkBody::Gone { number },
                }
            }
            op => return Err(WireError::BadField { message: MESSAGE, field: "operation", value: u64::from(op) }),
        };
        Ok(Bulk { copy: CopyId { lender, object: head.object.get() }, what })
    }
}

const MESSAGE: &str = "bulk";

/// Second bytes of bulk messages.
mod op {
    pub const LOCATE: u8 = 1;
    pub const SOURCES: u8 = 2;
    pub const ARRIVED: u8 = 3;
    pub const SUBSCRIBE: u8 = 4;
    pub const UNSUBSCRIBE: u8 = 5;
    pub const HOLDING: u8 = 6;
    pub const GONE: u8 = 7;
}

/// Head of a bulk message.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct BulkLayout {
    /// [`kind::BULK`].
    kind: u8,
    /// One of [`op`].
    op: u8,
    /// Entries that follow; whether the object is complete or is read in place;
    /// else 0.
    count: U16,
    lender: U32,
    object: U64,
}

/// What follows the head of [`BulkBody::Locate`].
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct LocateLayout {
    /// The rank and 1; 0 for none.
    gone: U32,
    group: U32,
}

/// What follows the head of [`BulkBody::Holding`], before its words.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct HoldingLayout {
    number: U32,
    first: U32,
    offset: U64,
}

const _: () = assert!(size_of::<BulkLayout>() == 16);
const _: () = assert!(size_of::<HoldingLayout>() == 16);

fn existing(field: &'static str, rank: u32) -> Result<Rank, WireError> {
    if rank < RANKS_MAX {
        return Ok(Rank(rank));
    }
    Err(WireError::BadField { message: MESSAGE, field, value: u64::from(rank) })
}

fn flag(field: &'static str, value: usize, most: usize) -> Result<(), WireError> {
    if value <= most { Ok(()) } else { Err(WireError::BadField { message: MESSAGE, field, value: value as u64 }) }
}

fn exactly<const N: usize>(bytes: &[u8]) -> Result<[u8; N], WireError> {
    match bytes.split_first_chunk() {
        Some((all, [])) => Ok(*all),
        Some((_, rest)) => Err(WireError::Trailing { message: MESSAGE, extra: rest.len() }),
        None => Err(WireError::Truncated { message: MESSAGE, needs: N, has: bytes.len() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::Message;

    fn written(what: BulkBody) -> (Bulk, Vec<u8>) {
        let message = Bulk { copy: CopyId { lender: Rank(3), object: u64::MAX - 7 }, what };
        let mut buffer = vec![0xff; 3];
        write_bulk(&mut buffer, &message);
        (message, buffer)
    }

    #[test]
    fn every_bulk_message_survives_the_wire() {
        for what in [
            BulkBody::Locate { gone: None, group: Rank(1) },
            BulkBody::Locate { gone: Some(Rank(0)), group: Rank(0) },
            BulkBody::Sources { primaries: 0, ranks: Vec::new() },
            BulkBody::Sources { primaries: 1, ranks: vec![Rank(4), Rank(0)] },
            BulkBody::Arrived { complete: false },
            BulkBody::Arrived { complete: true },
            BulkBody::Subscribe { number: 5, in_place: false },
            BulkBody::Subscribe { number: 5, in_place: true },
            BulkBody::Unsubscribe { number: u32::MAX },
            BulkBody::Holding { number: 9, offset: 1 << 40, first: 63, words: vec![u64::MAX] },
            BulkBody::Gone { number: 0 },
        ] {
            let (message, bytes) = written(what);
            assert_eq!(Message::parse(&bytes), Ok(Message::Bulk(message)));
            for len in 0..bytes.len() {
                assert!(Message::parse(&bytes[..len]).is_err(), "{len} bytes of {bytes:?}");
            }
            assert!(Message::parse(&[&bytes[..], &[0]].concat()).is_err());
        }
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let refused = |what, spoil: fn(&mut Vec<u8>)| {
            let (_, mut bytes) = written(what);
            spoil(&mut bytes);
            let error = Message::parse(&bytes).unwrap_err();
            assert!(!error.to_string().is_empty());
        };
        refused(BulkBody::Gone { number: 0 }, |b| b[1] = 99);
        refused(BulkBody::Gone { number: 0 }, |b| b[2] = 1);
        refused(BulkBody::Gone { number: 0 }, |b| b[4..8].copy_from_slice(&RANKS_MAX.to_le_bytes()));
        refused(BulkBody::Arrived { complete: true }, |b| b[2] = 2);
        refused(BulkBody::Locate { gone: None, group: Rank(1) }, |b| b[16..20].copy_from_slice(&u32::MAX.to_le_bytes()));
        refused(BulkBody::Sources { primaries: 1, ranks: vec![Rank(1)] }, |b| b[16] = 2);
        refused(BulkBody::Sources { primaries: 0, ranks: vec![Rank(1)] }, |_| ());
        refused(BulkBody::Sources { primaries: 1, ranks: vec![Rank(1); BULK_SOURCES_MAX + 1] }, |_| ());
        refused(BulkBody::Holding { number: 9, offset: 0, first: 0, words: vec![1] }, |b| b[20] = 64);
        refused(BulkBody::Holding { number: 9, offset: 0, first: 0, words: Vec::new() }, |_| ());
    }
}
