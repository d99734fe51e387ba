//! What the fuzz targets in `fuzz/` call, and the corpus as a test for any
//! toolchain. A target returns if all is well and panics if not.
//!
//! A parser of another fabric is added as one more function here, a file in
//! `fuzz/fuzz_targets` and a folder in `fuzz/corpus`.

use std::sync::{Arc, LazyLock};

use super::inbox::Inbox;
use super::{Event, RegionKey, RemoteSpan};
use crate::base::{Rank, limits};
use crate::mem::{Arena, Region};

/// The frames of one TCP connection. The first byte says on which lane they
/// come and how many reads are under way, the second how they are cut. However
/// they are cut, and whether bytes go to their place directly or not, the same
/// must come of them.
pub fn frames(input: &[u8]) {
    let [shape, cut, stream @ ..] = input else { return };
    let (lane, reads) = (shape & 1, shape >> 1 & 7);
    let at_once = Outcome::of(lane, reads, |inbox, outcome| outcome.feed(inbox, stream));
    let in_pieces = Outcome::of(lane, reads, |inbox, outcome| {
        let mut rest = stream;
        let mut state = u32::from(*cut);
        while !rest.is_empty() && outcome.error.is_none() {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let most = rest.len().min(1 + (state >> 16) as usize % (usize::from(*cut) + 1));
            let len = match inbox.place() {
                Some(place) => {
                    let len = most.min(place.len());
                    place[..len].copy_from_slice(&rest[..len]);
                    inbox.advance(len, &mut |event| outcome.events.push(Seen::of(event)));
                    len
                }
                None => {
                    outcome.feed(inbox, &rest[..most]);
                    most
                }
            };
            rest = &rest[len..];
        }
    });
    assert_eq!(at_once, in_pieces);
}

/// One frame between two queue pairs: what is let through has all its bytes.
pub fn rdma(input: &[u8]) {
    match super::rdma::frame::parse(input) {
        Ok(frame) => assert!(input.ends_with(frame.body) && frame.body.len() < input.len()),
        Err(why) => assert!(!why.is_empty()),
    }
}

/// One frame between two endpoints of libfabric.
pub fn ofi(input: &[u8]) {
    match super::ofi::frame::parse(input) {
        Ok(frame) => assert!(input.ends_with(frame.body) && frame.body.len() <= limits::MESSAGE_BYTES_MAX),
        Err(why) => assert!(!why.is_empty()),
    }
}

/// Where reads go; what they took comes back when they end.
static ARENA: LazyLock<Arena> = LazyLock::new(|| Arena::new(Arc::new(Region::heap(16 << 20))));

/// What came of the bytes.
#[derive(Default, PartialEq, Debug)]
struct Outcome {
    events: Vec<Seen>,
    requests: Vec<(u64, RemoteSpan, u8)>,
    missing: u64,
    error: Option<String>,
}

#[derive(PartialEq, Debug)]
enum Seen {
    Message(Vec<u8>),
    Read(u64, bool, Vec<u8>),
}

impl Outcome {
    fn of(lane: u8, reads: u8, feed: impl FnOnce(&mut Inbox, &mut Outcome)) -> Outcome {
        let mut inbox = Inbox::new(Rank(1), lane);
        for read in 0..reads {
            // Among them one of no bytes.
            let len = 37 * usize::from(read);
            let block = ARENA.alloc(len).expect("there is room for so little");
            let span = RemoteSpan { key: RegionKey(0), offset: 0, len: len as u64 };
            inbox.add_read(span, block.into_lease(), u64::from(read));
            assert!(inbox.next_request().is_some());
        }
        let mut outcome = Outcome::default();
        feed(&mut inbox, &mut outcome);
        outcome.requests.extend(inbox.requests.drain(..).map(|request| (request.id, request.span, request.lane)));
        assert!(lane == 0 || outcome.requests.is_empty());
        outcome.missing = inbox.missing();
        // Every read ends once.
        let ended = outcome.events.iter().filter(|seen| matches!(seen, Seen::Read(..))).count();
        let mut left = 0;
        inbox.take_reads(|_, _| left += 1);
        assert_eq!(ended + left, usize::from(reads));
        outcome
    }

    fn feed(&mut self, inbox: &mut Inbox, bytes: &[u8]) {
        let events = &mut self.events;
        let before = events.len();
        let mut counted = 0;
        self.error = inbox.accept(bytes, &mut counted, &mut |event| events.push(Seen::of(event))).err();
        assert!(self.error.is_some() || events.len() == before + counted);
    }
}

impl Seen {
    fn of(event: Event<'_>) -> Seen {
        match event {
            Event::Message { bytes, .. } => Seen::Message(bytes.to_vec()),
            Event::ReadDone { token, lease, result, .. } => Seen::Read(token, result.is_ok(), lease.bytes().to_vec()),
            Event::Lost { cause, .. } => panic!("{cause}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    #[test]
    fn the_corpus_holds() {
        type Target = (&'static str, fn(&[u8]), usize);
        let targets: [Target; 3] = [("frames", super::frames, 10), ("rdma", super::rdma, 5), ("ofi", super::ofi, 5)];
        for (target, run, least) in targets {
            let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
            let files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|file| file.unwrap().path()).collect();
            assert!(files.len() >= least, "{} files for {target}", files.len());
            for file in files {
                println!("{}", file.display());
                run(&std::fs::read(file).unwrap());
            }
        }
    }
}
