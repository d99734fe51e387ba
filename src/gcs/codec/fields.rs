//! Numbers and bytes as they stand in a packet.

use std::sync::Arc;

use serde::de::DeserializeOwned;
use serde::Serialize;

use super::super::record::Blob;
use crate::base::Rank;

/// Seven bits a byte, the lowest first; the last byte is below 128.
#[inline]
pub(in crate::gcs) fn put_number(mut number: u64, bytes: &mut Vec<u8>) {
    while number >= 0x80 {
        bytes.push(number as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
}

#[inline]
pub(in crate::gcs) fn put_bytes(what: &[u8], bytes: &mut Vec<u8>) {
    put_number(what.len() as u64, bytes);
    bytes.extend_from_slice(what);
}

/// What has no form of its own.
pub(in crate::gcs) fn put<T: Serialize>(what: &T, bytes: &mut Vec<u8>) {
    // Writing to memory cannot fail, and these types have no value that cannot
    // be written.
    if let Ok(longer) = postcard::to_extend(what, std::mem::take(bytes)) {
        *bytes = longer;
    }
}

/// Reads one after the other. Nothing is what there is no sense in.
pub(in crate::gcs) struct Reader<'b> {
    bytes: &'b [u8],
    at: usize,
    /// All bytes once more, for what is kept of them.
    buffer: Option<Arc<[u8]>>,
    /// Whether what is kept is to be kept for long.
    copies: bool,
}

impl<'b> Reader<'b> {
    pub(in crate::gcs) fn new(bytes: &'b [u8]) -> Reader<'b> {
        Reader { bytes, at: 0, buffer: None, copies: false }
    }

    /// What it reads shares no memory, and there may be more than one packet of it.
    pub(in crate::gcs) fn copying(bytes: &'b [u8]) -> Reader<'b> {
        Reader { copies: true, ..Reader::new(bytes) }
    }

    pub(in crate::gcs) fn is_at_end(&self) -> bool {
        self.at == self.bytes.len()
    }

    #[inline]
    pub(in crate::gcs) fn byte(&mut self) -> Option<u8> {
        let byte = self.bytes.get(self.at).copied()?;
        self.at += 1;
        Some(byte)
    }

    #[inline]
    pub(in crate::gcs) fn number(&mut self) -> Option<u64> {
        let first = self.byte()?;
        if first < 0x80 {
            return Some(u64::from(first));
        }
        let mut number = u64::from(first & 0x7f);
        for shift in (7..64).step_by(7) {
            let byte = self.byte()?;
            let bits = u64::from(byte & 0x7f);
            if bits << shift >> shift != bits {
                return None;
            }
            number |= bits << shift;
            if byte < 0x80 {
                return Some(number);
            }
        }
        None
    }

    pub(in crate::gcs) fn flag(&mut self) -> Option<bool> {
        match self.byte()? {
            0 => Some(false),
            1 => Some(true),
            _ => None,
        }
    }

    #[inline]
    pub(in crate::gcs) fn rank(&mut self) -> Option<Rank> {
        Some(Rank(self.short_number()?))
    }

    #[inline]
    pub(in crate::gcs) fn short_number(&mut self) -> Option<u32> {
        u32::try_from(self.number()?).ok()
    }

    /// How many follow of what has at least so many bytes each.
    #[inline]
    pub(in crate::gcs) fn count(&mut self, each: usize) -> Option<usize> {
        let count = usize::try_from(self.number()?).ok()?;
        (count <= (self.bytes.len() - self.at) / each).then_some(count)
    }

    /// So many items of at least so many bytes each.
    #[inline(always)]
    pub(in crate::gcs) fn items<T>(&mut self, each: usize, mut item: impl FnMut(&mut Self) -> Option<T>) -> Option<Vec<T>> {
        let count = self.count(each)?;
        let mut items = Vec::with_capacity(count);
        for _ in 0..count {
            items.push(item(self)?);
        }
        Some(items)
    }

    #[inline]
    pub(in crate::gcs) fn blob(&mut self) -> Option<Blob> {
        let len = self.count(1)?;
        let range = self.at..self.at + len;
        self.at += len;
        if self.copies {
            return self.bytes.get(range).map(Blob::from);
        }
        Blob::part(self.bytes, range, &mut self.buffer)
    }

    /// What has no form of its own.
    pub(in crate::gcs) fn other<T: DeserializeOwned>(&mut self) -> Option<T> {
        let (what, rest) = postcard::take_from_bytes(self.bytes.get(self.at..)?).ok()?;
        self.at = self.bytes.len() - rest.len();
        Some(what)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_read_back() {
        for number in (0..64).flat_map(|bit| [(1 << bit) - 1, 1 << bit, u64::MAX - (1 << bit)]) {
            let mut bytes = Vec::new();
            put_number(number, &mut bytes);
            let mut reader = Reader::new(&bytes);
            assert_eq!((reader.number(), reader.is_at_end()), (Some(number), true));
            assert!(bytes.len() <= 10);
            assert_eq!(Reader::new(&bytes[..bytes.len() - 1]).number(), None);
        }
        assert_eq!(Reader::new(&[0xff; 20]).number(), None, "no end");
        assert_eq!(Reader::new(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2]).number(), None, "too much");
    }
}
