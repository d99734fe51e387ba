//! What the store holds: records under keys in tables, and the limits that
//! every key and value keeps.

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use thiserror::Error;

use crate::base::Rank;
use crate::base::limits::{GCS_KEY_BYTES_MAX, GCS_KEYS_MAX, GCS_PAGE_BYTES_MAX, GCS_VALUE_BYTES_MAX, GCS_WINDOW};

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

/// Immutable bytes that many may hold.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Blob(Arc<[u8]>);

impl Default for Blob {
    fn default() -> Blob {
        Blob(Arc::from([]))
    }
}

impl<T: AsRef<[u8]> + ?Sized> From<&T> for Blob {
    fn from(bytes: &T) -> Blob {
        Blob(Arc::from(bytes.as_ref()))
    }
}

impl From<Vec<u8>> for Blob {
    fn from(bytes: Vec<u8>) -> Blob {
        Blob(bytes.into())
    }
}

impl Deref for Blob {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
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
