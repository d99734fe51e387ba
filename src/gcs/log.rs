//! The form of the log and of snapshots: records with checksums, and what can be
//! read of a file that a crash or a bad disk left. Knows no file.
//!
//! A record is a length, a checksum of all that follows, a kind and the bytes. A
//! log begins with nothing, or with a snapshot: whose it is and all pieces of a
//! state. It goes on with commands. Between them are marks, which say how much of
//! the log was on disk when they were written: so damage that a crash can have
//! left is told from other damage. A later life that goes on with a log says so in
//! it.

use thiserror::Error;
use twox_hash::XxHash3_128;

use super::codec;
use super::message::Entry;
use super::record::Seq;
use super::state::{Builder, State};
use crate::base::limits::GCS_PART_BYTES;

const HEADER_BYTES: usize = 4 + 8;
const KIND_PIECE: u8 = 1;
const KIND_ENTRY: u8 = 2;
const KIND_MARK: u8 = 3;
const KIND_OWNER: u8 = 4;
/// A kind and a number of bytes.
const MARK_BODY_BYTES: usize = 1 + 8;
const UNDECODABLE: Damage = Damage::Record("its bytes have no meaning");

/// What a log holds.
#[derive(Debug, Default)]
pub struct Recovered {
    /// Which life of a replica the log is of; 0 if it does not say.
    pub owner: u32,
    /// The state to begin with.
    pub state: State,
    /// The commands that follow it, without a gap.
    pub entries: Vec<Entry>,
    /// How many bytes of the log that is: what is added must be added there.
    pub clean_bytes: usize,
    /// Why not more, if there is more.
    pub damage: Option<LogDamage>,
}

/// What ends the readable part of a log.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[error("the log is damaged at byte {offset}: {what}")]
pub struct LogDamage {
    /// Where the first record begins that cannot be read.
    pub offset: usize,
    /// Why not.
    pub what: Damage,
}

/// See [`LogDamage`].
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum Damage {
    /// The log ends within a record, as after a crash while it was written.
    #[error("it ends within a record, {missing} bytes early")]
    Torn {
        /// How many bytes are not there.
        missing: usize,
    },
    /// The bytes are not those that were written.
    #[error("the checksum does not match")]
    Checksum,
    /// A record that was written well and means nothing here.
    #[error("a record that does not follow: {0}")]
    Record(&'static str),
}

/// Reads as much of a log as is whole.
pub fn recover(bytes: &[u8]) -> Recovered {
    let mut recovered = Recovered::default();
    let mut snapshot = None;
    let mut at = 0;
    let damage = loop {
        if at == bytes.len() && snapshot.is_none() {
            break None;
        }
        let record = next_record(&bytes[at..]);
        match record.and_then(|(record, len)| recovered.take(record, at, &mut snapshot).map(|()| len)) {
            Ok(len) => at += len,
            Err(what) => break Some(what),
        }
        // A snapshot is there as a whole or not at all.
        if snapshot.is_none() {
            recovered.clean_bytes = at;
        }
    };
    recovered.damage = damage.map(|what| LogDamage { offset: recovered.clean_bytes, what });
    recovered
}

/// What a group of commands begins with in a log of which this many bytes are on
/// disk already.
pub fn encode_mark(on_disk: u64) -> Vec<u8> {
    let mut mark = vec![0; HEADER_BYTES];
    mark.push(KIND_MARK);
    mark.extend_from_slice(&on_disk.to_le_bytes());
    seal(&mut mark);
    mark
}

/// Whether a crash can have left this damage in a log: in what was being written,
/// of which any parts may be there, and not in what was on disk.
pub fn is_of_a_crash(bytes: &[u8], damage: &LogDamage) -> bool {
    // Snapshots are there as a whole or not at all.
    if damage.offset == 0 || matches!(damage.what, Damage::Record(_)) {
        return false;
    }
    let behind = bytes.get(damage.offset..).unwrap_or_default();
    let start = (MARK_BODY_BYTES as u32).to_le_bytes();
    let candidates = behind.windows(start.len()).enumerate().filter(|(_, window)| **window == start);
    !candidates.into_iter().any(|(at, _)| {
        matches!(next_record(&behind[at..]), Ok((Record::Mark(on_disk), _)) if on_disk > damage.offset as u64)
    })
}

impl Recovered {
    /// Takes the next record; `snapshot` is the one that is being read.
    fn take(&mut self, record: Record<'_>, at: usize, snapshot: &mut Option<(u32, Builder)>) -> Result<(), Damage> {
        let last = self.entries.last().map_or(self.state.applied(), |entry| entry.seq);
        match record {
            Record::Owner(owner) if at == 0 => *snapshot = Some((owner, Builder::default())),
            Record::Piece(piece) => {
                let Some((owner, builder)) = snapshot else {
                    return Err(Damage::Record("a snapshot that is not the first record"));
                };
                builder.take(piece).ok_or(UNDECODABLE)?;
                if let Some(state) = builder.finish() {
                    (self.owner, self.state) = (*owner, state);
                    *snapshot = None;
                }
            }
            _ if snapshot.is_some() => return Err(Damage::Record("a snapshot that does not end")),
            Record::Owner(owner) => self.owner = owner,
            Record::Entry(entry) if entry.seq == last.next() => self.entries.push(entry),
            Record::Entry(_) => return Err(Damage::Record("a command out of its order")),
            Record::Mark(_) => {}
        }
        Ok(())
    }

    /// The last command in it.
    pub fn last(&self) -> Seq {
        self.entries.last().map_or(self.state.applied(), |entry| entry.seq)
    }
}

enum Record<'b> {
    Owner(u32),
    Piece(&'b [u8]),
    Entry(Entry),
    Mark(u64),
}

fn next_record(bytes: &[u8]) -> Result<(Record<'_>, usize), Damage> {
    let torn = |needed: usize| Damage::Torn { missing: needed - bytes.len() };
    let (len, rest) = bytes.split_first_chunk::<4>().ok_or_else(|| torn(HEADER_BYTES))?;
    let (checksum, rest) = rest.split_first_chunk::<8>().ok_or_else(|| torn(HEADER_BYTES))?;
    let len = u32::from_le_bytes(*len) as usize;
    let body = rest.get(..len).ok_or_else(|| torn(HEADER_BYTES.saturating_add(len)))?;
    if checksum_of(body) != u64::from_le_bytes(*checksum) {
        return Err(Damage::Checksum);
    }
    let record = match body.split_first() {
        Some((&KIND_OWNER, body)) => Record::Owner(u32::from_le_bytes(body.try_into().map_err(|_| UNDECODABLE)?)),
        Some((&KIND_PIECE, body)) => Record::Piece(body),
        Some((&KIND_ENTRY, body)) => Record::Entry(codec::read_entry(body).ok_or(UNDECODABLE)?),
        Some((&KIND_MARK, body)) => {
            Record::Mark(u64::from_le_bytes(body.try_into().map_err(|_| UNDECODABLE)?))
        }
        _ => return Err(Damage::Record("its kind is unknown")),
    };
    Ok((record, HEADER_BYTES + len))
}

/// Adds a command to the end of a log.
pub(super) fn encode_entry(entry: &Entry, log: &mut Vec<u8>) {
    encode(KIND_ENTRY, log, |log| codec::put_entry(entry, log));
}

/// A log that begins with this state, of this life of a replica.
pub(super) fn encode_snapshot(owner: u32, state: &State) -> Vec<u8> {
    let mut log = Vec::new();
    encode_owner(owner, &mut log);
    state.pieces(GCS_PART_BYTES).for_each(|piece| encode_piece(&piece, &mut log));
    log
}

/// Says whose a log is from here on; a log that has a snapshot begins so.
pub(super) fn encode_owner(owner: u32, log: &mut Vec<u8>) {
    encode(KIND_OWNER, log, |log| log.extend_from_slice(&owner.to_le_bytes()));
}

/// Adds the next piece of the state that a log begins with.
pub(super) fn encode_piece(piece: &[u8], log: &mut Vec<u8>) {
    encode(KIND_PIECE, log, |log| log.extend_from_slice(piece));
}

/// About how many bytes a command has in a log or a message, for limits.
pub(super) fn entry_bytes(entry: &Entry) -> usize {
    HEADER_BYTES + entry.command.op.bytes()
}

fn encode(kind: u8, log: &mut Vec<u8>, body: impl FnOnce(&mut Vec<u8>)) {
    let start = log.len();
    log.extend_from_slice(&[0; HEADER_BYTES]);
    log.push(kind);
    body(log);
    if let Some(record) = log.get_mut(start..) {
        seal(record);
    }
}

/// Puts the length and the checksum of a record in its place.
fn seal(record: &mut [u8]) {
    let Some((header, body)) = record.split_at_mut_checked(HEADER_BYTES) else { return };
    header[..4].copy_from_slice(&(body.len() as u32).to_le_bytes());
    header[4..].copy_from_slice(&checksum_of(body).to_le_bytes());
}

fn checksum_of(bytes: &[u8]) -> u64 {
    XxHash3_128::oneshot(bytes) as u64
}

#[cfg(test)]
mod tests {
    use super::super::bug::Bugs;
    use super::super::record::{Blob, Key, Table};
    use super::super::state::{ClientId, Command, Op};
    use super::*;
    use crate::base::Rank;

    fn entry(seq: u64) -> Entry {
        let key = Key::new(Table::Names, format!("name {seq}").as_bytes());
        let client = ClientId { rank: Rank(3), incarnation: 1 };
        let op = Op::Put { key, value: Blob::from(&[seq as u8; 40]) };
        Entry { seq: Seq(seq), command: Command { client, number: seq, settled: 0, op } }
    }

    /// A snapshot at 5 and the commands 6 to 9, with the offsets of the records.
    fn log() -> (Vec<u8>, Vec<usize>) {
        let mut state = State::default();
        (1..=5).for_each(|seq| _ = state.apply(Seq(seq), &entry(seq).command, Bugs::default()));
        let mut bytes = encode_snapshot(4, &state);
        let mut offsets = vec![0, bytes.len()];
        for seq in 6..=9 {
            encode_entry(&entry(seq), &mut bytes);
            offsets.push(bytes.len());
        }
        (bytes, offsets)
    }

    #[test]
    fn a_log_is_read_back() {
        let (bytes, _) = log();
        let recovered = recover(&bytes);
        assert_eq!((recovered.owner, recovered.state.applied(), recovered.last()), (4, Seq(5), Seq(9)));
        assert_eq!(recovered.entries[3], entry(9));
        assert_eq!((recovered.clean_bytes, recovered.damage), (bytes.len(), None));
        let mut bytes = bytes;
        encode_owner(7, &mut bytes);
        encode_entry(&entry(10), &mut bytes);
        let recovered = recover(&bytes);
        assert_eq!((recovered.owner, recovered.last(), recovered.damage), (7, Seq(10), None));
    }

    #[test]
    fn a_log_that_ends_anywhere_gives_its_whole_records() {
        let (bytes, offsets) = log();
        for end in 0..bytes.len() {
            let recovered = recover(&bytes[..end]);
            let whole = offsets.iter().rev().find(|offset| **offset <= end).unwrap();
            assert_eq!(recovered.clean_bytes, *whole, "cut at {end}");
            match recovered.damage {
                None => assert_eq!(end, *whole),
                Some(damage) => assert!(matches!(damage.what, Damage::Torn { .. }) && damage.offset == *whole),
            }
        }
    }

    #[test]
    fn no_bit_that_flips_goes_unseen() {
        let (bytes, offsets) = log();
        for at in 0..bytes.len() {
            let mut bytes = bytes.clone();
            bytes[at] ^= 1 << (at % 8);
            let recovered = recover(&bytes);
            let record = offsets.iter().rposition(|offset| *offset <= at).unwrap();
            assert_eq!(recovered.clean_bytes, offsets[record], "a bit of byte {at}");
            assert_eq!(recovered.damage.unwrap().offset, offsets[record]);
        }
    }

    /// The log of `log`, its commands in two groups: 6 and 7, 8 and 9.
    fn marked_log() -> (Vec<u8>, Vec<usize>) {
        let (plain, offsets) = log();
        let mut bytes = plain[..offsets[1]].to_vec();
        let mut groups = Vec::new();
        for group in [offsets[1]..offsets[3], offsets[3]..offsets[5]] {
            groups.push(bytes.len());
            bytes.extend(encode_mark(bytes.len() as u64));
            bytes.extend(&plain[group]);
        }
        (bytes, groups)
    }

    #[test]
    fn only_damage_to_what_was_not_on_disk_is_of_a_crash() {
        let (bytes, groups) = marked_log();
        assert_eq!(recover(&bytes).last(), Seq(9), "marks are passed over");
        for at in 0..bytes.len() {
            let mut bytes = bytes.clone();
            bytes[at] ^= 0x40;
            let damage = recover(&bytes).damage.unwrap();
            assert_eq!(is_of_a_crash(&bytes, &damage), at >= groups[1], "a bit of byte {at}");
        }
        // Of the last group any part may be there, its end without its beginning.
        let mut hollow = bytes.clone();
        hollow[groups[1]..groups[1] + 60].fill(0);
        let recovered = recover(&hollow);
        assert_eq!((recovered.last(), recovered.clean_bytes), (Seq(7), groups[1]));
        assert!(is_of_a_crash(&hollow, &recovered.damage.unwrap()));
    }

    #[test]
    fn records_that_do_not_follow_are_refused() {
        let mut bytes = Vec::new();
        encode_entry(&entry(1), &mut bytes);
        let first = bytes.len();
        encode_entry(&entry(3), &mut bytes);
        let damage = recover(&bytes).damage.unwrap();
        assert_eq!(damage.offset, first);
        assert!(damage.to_string().contains("out of its order"), "{damage}");
        bytes.truncate(first);
        bytes.extend(encode_snapshot(4, &State::default()));
        assert!(recover(&bytes).damage.unwrap().to_string().contains("not the first"));
    }
}
