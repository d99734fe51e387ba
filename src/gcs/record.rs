//! What the store holds: records under keys in tables, and the limits that
//! every key and value keeps.

use std::cmp::Ordering;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::ops::{Deref, Range};
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use thiserror::Error;

use crate::base::Rank;
use crate::base::limits::{GCS_KEY_BYTES_MAX, GCS_KEYS_MAX, GCS_PAGE_BYTES_MAX, GCS_VALUE_BYTES_MAX, GCS_WINDOW, MESSAGE_BYTES_MAX};

/// The tables of the control store.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[repr(u8)]
pub enum Table {
    /// Ranks and what is known of them.
    Nodes,
    /// Jobs.
    Jobs,
    /// Task functions, by identity.
    Functions,
    /// What users have named.
    Names,
    /// Actors and where they live.
    Actors,
    /// Placement groups.
    PlacementGroups,
    /// Which ranks have an object.
    ObjectLocations,
    /// How an object was made.
    Lineage,
}

impl Table {
    /// Every table, by its number.
    pub const ALL: [Table; 8] = [
        Table::Nodes,
        Table::Jobs,
        Table::Functions,
        Table::Names,
        Table::Actors,
        Table::PlacementGroups,
        Table::ObjectLocations,
        Table::Lineage,
    ];

    /// The table with this number.
    pub fn from_number(number: u8) -> Result<Table, Refusal> {
        Table::ALL.get(usize::from(number)).copied().ok_or(Refusal::UnknownTable(number))
    }
}

/// Immutable bytes that many may hold. Short ones stand in place; longer ones in
/// a buffer, of which several may be parts.
#[derive(Clone)]
pub struct Blob(Bytes);

/// The tag, the length and these make up half a cache line: most keys, and values
/// that are a number or a name, need no memory of their own.
const SHORT_BYTES_MAX: usize = 30;

#[derive(Clone)]
enum Bytes {
    Short { len: u8, bytes: [u8; SHORT_BYTES_MAX] },
    Long { buffer: Arc<[u8]>, from: u32, len: u32 },
}

const _: () = assert!(size_of::<Blob>() == 32);

impl Blob {
    fn short(bytes: &[u8]) -> Option<Blob> {
        let mut short = [0; SHORT_BYTES_MAX];
        short.get_mut(..bytes.len())?.copy_from_slice(bytes);
        Some(Blob(Bytes::Short { len: bytes.len() as u8, bytes: short }))
    }

    fn long(buffer: Arc<[u8]>) -> Blob {
        // Nothing beyond the limit of a value is taken, let alone beyond this.
        let len = u32::try_from(buffer.len()).unwrap_or(u32::MAX);
        Blob(Bytes::Long { buffer, from: 0, len })
    }

    /// The bytes of `all` in `range`, as a part of a buffer that has the same as
    /// `all` and is made when it is needed first. Nothing if there are not so many,
    /// or more than a message has.
    pub(super) fn part(all: &[u8], range: Range<usize>, buffer: &mut Option<Arc<[u8]>>) -> Option<Blob> {
        let bytes = all.get(range.clone()).filter(|_| all.len() <= MESSAGE_BYTES_MAX)?;
        Blob::short(bytes).or_else(|| {
            let buffer = Arc::clone(buffer.get_or_insert_with(|| Arc::from(all)));
            Some(Blob(Bytes::Long { buffer, from: range.start as u32, len: bytes.len() as u32 }))
        })
    }

    /// The same bytes for a long time: as a part of a much longer buffer they
    /// would keep all of it.
    pub(super) fn kept(&self) -> Blob {
        match &self.0 {
            Bytes::Long { buffer, .. } if buffer.len() > self.len() + self.len() / 8 + 64 => Blob::from(&**self),
            _ => self.clone(),
        }
    }

    /// Has the bytes of `other` for a long time: where it had as many that nobody
    /// else holds, they are overwritten.
    pub(super) fn take_over(&mut self, other: &Blob) {
        if let (Bytes::Long { buffer, len, .. }, Bytes::Long { buffer: other_buffer, .. }) = (&mut self.0, &other.0)
            && buffer.len() == other.len()
            && *len as usize == other.len()
            && other_buffer.len() > other.len()
            && let Some(bytes) = Arc::get_mut(buffer)
        {
            bytes.copy_from_slice(other);
        } else {
            *self = other.kept();
        }
    }
}

impl Default for Blob {
    fn default() -> Blob {
        Blob(Bytes::Short { len: 0, bytes: [0; SHORT_BYTES_MAX] })
    }
}

impl<T: AsRef<[u8]> + ?Sized> From<&T> for Blob {
    fn from(bytes: &T) -> Blob {
        let bytes = bytes.as_ref();
        Blob::short(bytes).unwrap_or_else(|| Blob::long(Arc::from(bytes)))
    }
}

impl From<Vec<u8>> for Blob {
    fn from(bytes: Vec<u8>) -> Blob {
        Blob::short(&bytes).unwrap_or_else(|| Blob::long(bytes.into()))
    }
}

impl Deref for Blob {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        match &self.0 {
            Bytes::Short { len, bytes } => &bytes[..usize::from(*len)],
            Bytes::Long { buffer, from, len } => &buffer[*from as usize..][..*len as usize],
        }
    }
}

impl PartialEq for Blob {
    fn eq(&self, other: &Blob) -> bool {
        **self == **other
    }
}

impl Eq for Blob {}

impl PartialOrd for Blob {
    fn partial_cmp(&self, other: &Blob) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Blob {
    #[inline(always)]
    fn cmp(&self, other: &Blob) -> Ordering {
        match (&self.0, &other.0) {
            // Most keys are short, and whoever looks for one compares it with many.
            (Bytes::Short { len, bytes }, Bytes::Short { len: other_len, bytes: other }) => {
                compare_short(bytes, other).then(len.cmp(other_len))
            }
            _ => (**self).cmp(&**other),
        }
    }
}

/// Compares short ones with the zeros behind them, as two numbers: where all are
/// equal the shorter comes first.
#[inline(always)]
fn compare_short(one: &[u8; SHORT_BYTES_MAX], other: &[u8; SHORT_BYTES_MAX]) -> Ordering {
    let number = |bytes: &[u8; SHORT_BYTES_MAX], at: usize| {
        bytes[at..].first_chunk().map_or(0, |word| u128::from_be_bytes(*word))
    };
    let end = |bytes| number(bytes, SHORT_BYTES_MAX - size_of::<u128>());
    number(one, 0).cmp(&number(other, 0)).then_with(|| end(one).cmp(&end(other)))
}

impl Hash for Blob {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (**self).hash(state);
    }
}

impl fmt::Debug for Blob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\"", self.escape_ascii())
    }
}

impl Serialize for Blob {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(self)
    }
}

impl<'de> Deserialize<'de> for Blob {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Blob, D::Error> {
        struct Bytes;
        impl de::Visitor<'_> for Bytes {
            type Value = Blob;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("bytes")
            }

            fn visit_bytes<E: de::Error>(self, bytes: &[u8]) -> Result<Blob, E> {
                Ok(Blob::from(bytes))
            }
        }
        deserializer.deserialize_bytes(Bytes)
    }
}

/// Where a record stands.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct Key {
    /// In which table.
    pub table: Table,
    /// Under which bytes.
    pub bytes: Blob,
}

impl Key {
    /// The key `bytes` of `table`.
    pub fn new(table: Table, bytes: &[u8]) -> Key {
        Key { table, bytes: bytes.into() }
    }

    /// See [`Blob::kept`].
    pub(super) fn kept(&self) -> Key {
        Key { table: self.table, bytes: self.bytes.kept() }
    }

    /// Whether the key keeps the limit.
    pub fn check(&self) -> Result<(), Refusal> {
        match self.bytes.len() {
            0 => Err(Refusal::EmptyKey),
            _ => check_prefix(&self.bytes),
        }
    }
}

/// Whether a key may begin so, or end where these bytes do.
pub fn check_prefix(bytes: &[u8]) -> Result<(), Refusal> {
    if bytes.len() > GCS_KEY_BYTES_MAX { Err(Refusal::KeyTooLong { bytes: bytes.len() }) } else { Ok(()) }
}

/// The place of a command in the order of its shard, from 1; 0 stands before all.
/// A record's version is the place of the command that wrote it last, so that
/// no version of a key is ever used again, not even after a deletion.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize)]
pub struct Seq(pub u64);

impl Seq {
    /// The next place.
    pub const fn next(self) -> Seq {
        Seq(self.0 + 1)
    }
}

impl fmt::Display for Seq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "#{}", self.0)
    }
}

/// What stands under a key.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct Record {
    /// The command that wrote it.
    pub version: Seq,
    /// The bytes.
    pub value: Blob,
}

/// Why a command or a query is not carried out. It changed nothing.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Error, Serialize, Deserialize)]
pub enum Refusal {
    /// There is no such table.
    #[error("there is no table {0}: tables have the numbers 0 to {max}", max = Table::ALL.len() - 1)]
    UnknownTable(u8),
    /// A key has at least one byte.
    #[error("the key is empty")]
    EmptyKey,
    /// The key is too long.
    #[error("a key of {bytes} bytes: the longest has {GCS_KEY_BYTES_MAX}; use its hash as the key")]
    KeyTooLong {
        /// How long.
        bytes: usize,
    },
    /// The value is too long, or would be after the append.
    #[error("a value of {bytes} bytes: the longest has {GCS_VALUE_BYTES_MAX}; put it as an object and store its reference")]
    ValueTooLong {
        /// How long.
        bytes: usize,
    },
    /// A query asks for more keys than an answer can hold.
    #[error("a query for {keys} keys: at most {GCS_KEYS_MAX} at once")]
    TooManyKeys {
        /// How many.
        keys: usize,
    },
    /// A query's keys do not fit a message.
    #[error("a query for keys of {bytes} bytes in all: at most {GCS_PAGE_BYTES_MAX} at once; ask for some of them, then for the others")]
    QueryTooLong {
        /// How long they are together.
        bytes: usize,
    },
    /// The record has another version than the command expects.
    #[error("the record has version {current}, not the one expected: read it again")]
    VersionMismatch {
        /// What the record has; 0 if there is none.
        current: Seq,
    },
    /// The client has been declared gone, or a later one took its rank's place.
    #[error("the client of {0} has ended: its commands are not carried out any more")]
    ClientEnded(Rank),
    /// A client has too many commands under way.
    #[error("more than {GCS_WINDOW} commands of one client under way: wait for the first of them")]
    WindowExceeded,
    /// Too much is under way in the shard.
    #[error("the shard has too much under way: try again later")]
    Busy,
    /// A replica cannot answer reads, or be sure of what it has.
    #[error(
        "the replica on {0} has neither a lease nor the word of the tail: most members of the quorum, or the tail, \
         cannot be reached from there"
    )]
    NoLease(Rank),
    /// A replica cannot write its log.
    #[error("the disk of {0} is full: writes resume when there is space")]
    DiskFull(Rank),
}

/// Whether a value of this length may be stored.
pub fn check_value(bytes: usize) -> Result<(), Refusal> {
    if bytes > GCS_VALUE_BYTES_MAX { Err(Refusal::ValueTooLong { bytes }) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::rng::Rng;

    #[test]
    fn bytes_are_the_same_wherever_they_stand() {
        for len in [0, 1, 30, 31, 500] {
            let all: Vec<u8> = (0..len + 20).map(|byte| byte as u8).collect();
            let mut buffer = None;
            let part = Blob::part(&all, 10..10 + len, &mut buffer).unwrap();
            assert_eq!(buffer.is_some(), len > 30);
            let alone = Blob::from(&all[10..10 + len]);
            assert_eq!((&part, &part.kept()), (&alone, &Blob::from(all[10..10 + len].to_vec())));
            assert_eq!(part.cmp(&Blob::from(&all[10..])), Ordering::Less);
            assert!(Blob::part(&all, 10..len + 21, &mut buffer).is_none());
        }
        let mut buffer = None;
        let few = Blob::part(&[1; 5_000], 0..100, &mut buffer).unwrap();
        let (all, kept) = (buffer.take().unwrap(), few.kept());
        drop(few);
        assert_eq!((Arc::strong_count(&all), kept), (1, Blob::from(&[1; 100])));
    }

    #[test]
    fn bytes_stand_in_the_order_of_their_bytes() {
        let mut rng = Rng::new(7);
        let mut bytes = |most: usize| -> Vec<u8> { (0..rng.below(most + 1)).map(|_| rng.below(3) as u8 * 127).collect() };
        for _ in 0..50_000 {
            let begin = bytes(30);
            let [one, other] = [bytes(6), bytes(6)].map(|end| [&begin[..], &end].concat());
            assert_eq!(Blob::from(&one).cmp(&Blob::from(&other)), one.cmp(&other), "{one:?} and {other:?}");
            assert_eq!(Blob::from(&one) == Blob::from(&other), one == other);
        }
    }

    #[test]
    fn limits_are_named() {
        assert_eq!(Table::from_number(7), Ok(Table::Lineage));
        assert_eq!(Table::from_number(8), Err(Refusal::UnknownTable(8)));
        assert!(Table::ALL.iter().enumerate().all(|(number, table)| *table as usize == number));
        assert_eq!(Key::new(Table::Names, b"").check(), Err(Refusal::EmptyKey));
        let long = vec![b'k'; GCS_KEY_BYTES_MAX + 1];
        assert_eq!(Key::new(Table::Names, &long[1..]).check(), Ok(()));
        assert_eq!(Key::new(Table::Names, &long).check(), Err(Refusal::KeyTooLong { bytes: long.len() }));
        assert_eq!(check_value(GCS_VALUE_BYTES_MAX), Ok(()));
        let error = check_value(GCS_VALUE_BYTES_MAX + 1).unwrap_err().to_string();
        assert!(error.contains("put it as an object"), "{error}");
    }
}
