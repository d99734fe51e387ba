//! A ring of messages from one producer to one consumer, over cache lines that
//! two processes may share.
//!
//! # Layout
//! A segment is `CONTROL_LINES` control lines and then a power of two of data
//! lines. Each line has one writer, so that a line moves between two cores in
//! one direction only:
//!
//! | line | written by | words |
//! |---|---|---|
//! | 0 | consumer | 0: lines consumed (lazy); 1: `asleep`, a count that is odd while the consumer sleeps |
//! | 1 | producer | 0: `starved`, a count of the times that the ring was full |
//! | 2.. | producer | 0: header; 1..8: 56 bytes of payload |
//!
//! A header is `lap << 32 | flags | length`. The lap is how often the producer
//! has gone round the ring, plus one, so that zeroed memory holds no message:
//! a line is new exactly if its lap is the one that the consumer is in. Every
//! line has a header, those that continue a message too (flag `MORE`): if raw
//! payload stood there, it could look like a header one lap later.
//!
//! # A push
//! The producer makes sure that there is room, writes the continuing lines and
//! the payload of the first line with relaxed stores, and then the header of
//! the first line with a release store. The consumer's acquire load of that
//! header makes the whole message visible. A message of up to 56 bytes is
//! therefore one line and costs one transfer, and a producer that dies half
//! way leaves nothing to be seen.
//!
//! A line is overwritten only when the consumer has published that it is past
//! it (release), and the producer has read that (acquire); so the consumer's
//! reads of the old content come before the new stores. The consumer publishes
//! once per quarter of the ring, and the producer looks only when what it knew
//! is used up: the line is hardly ever moved. As three quarters are always
//! accounted for, no message may need more than that.
//!
//! # Sleeping
//! Two races of the "store mine, then read yours" kind, each closed by a
//! sequentially consistent fence on both sides:
//! * The consumer makes `asleep` odd, fences, and looks for a message once
//!   more; the producer pushes, fences, and reads `asleep`. At least one of
//!   them sees the other. The producer rings once for each odd value.
//! * A producer that finds no room makes `starved` new, fences, and looks for
//!   room once more; the consumer reads `starved` after its pops, and once more
//!   after the fence of going to sleep, and if the value is new publishes its
//!   position and rings.
//!
//! Ringing itself (a byte on a socket) is the caller's business.
//!
//! # What a hostile or broken peer can do
//! Everything is an atomic word, so a peer that scribbles is no data race.
//! Each word is checked against what it may be: a lap that is neither this nor
//! the previous one, a length above the limit, a continuing line in first
//! place, a position that is not between the last one known and our own. Each
//! is [`RingError::Corrupt`], and the ring is not used any more. Payload is
//! copied before it is looked at.

use std::fmt;

use super::shim::{AtomicU64, Ordering, fence};

/// Lines that precede the data.
pub const CONTROL_LINES: usize = 2;

/// Payload of a line: what a message may have to cost one transfer.
pub const LINE_PAYLOAD: usize = 56;

const WORDS: usize = LINE_PAYLOAD / 8;
const MORE: u64 = 1 << 31;
const LENGTH_MASK: u64 = MORE - 1;

const CONSUMED: usize = 0;
const ASLEEP: usize = 1;
const STARVED: usize = 0;

/// A cache line of eight atomic words.
#[repr(C, align(64))]
#[derive(Debug)]
pub struct Line([AtomicU64; 8]);

impl Default for Line {
    fn default() -> Line {
        Line(std::array::from_fn(|_| AtomicU64::new(0)))
    }
}

impl Line {
    /// The first word, for protocols simpler than a ring's.
    pub fn first_word(&self) -> &AtomicU64 {
        &self.0[0]
    }
}

/// Why a ring cannot be used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RingError {
    /// A word that the peer writes holds what it never can.
    Corrupt(&'static str),
}

impl fmt::Display for RingError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RingError::Corrupt(what) => write!(f, "the shared ring is corrupt: {what}"),
        }
    }
}

impl std::error::Error for RingError {}

/// Lines that a message of `bytes` takes.
pub const fn lines_for(bytes: usize) -> usize {
    if bytes == 0 { 1 } else { bytes.div_ceil(LINE_PAYLOAD) }
}

/// The position arithmetic that both sides share.
#[derive(Clone, Copy, Debug)]
struct Shape {
    lines: u64,
    shift: u32,
    message_bytes_max: usize,
}

impl Shape {
    /// # Panics
    /// If the segment is too small for the limit or not a power of two of data
    /// lines; both are the caller's constants.
    fn of(memory: &[Line], message_bytes_max: usize) -> Shape {
        let lines = memory.len().saturating_sub(CONTROL_LINES);
        assert!(lines.is_power_of_two() && lines >= 4, "a ring of {lines} data lines");
        assert!(lines_for(message_bytes_max) <= lines / 4 * 3, "the largest message needs over three quarters");
        assert!(message_bytes_max as u64 <= LENGTH_MASK);
        Shape { lines: lines as u64, shift: lines.trailing_zeros(), message_bytes_max }
    }

    fn line(self, memory: &[Line], position: u64) -> &Line {
        &memory[CONTROL_LINES + (position & (self.lines - 1)) as usize]
    }

    fn lap(self, position: u64) -> u32 {
        ((position >> self.shift) as u32).wrapping_add(1)
    }
}

/// The writing end. `M` is what holds the segment's lines.
#[derive(Debug)]
pub struct Producer<M> {
    memory: M,
    shape: Shape,
    /// Next line to write.
    head: u64,
    /// The consumer's position as last read.
    consumed: u64,
    /// The odd `asleep` value that was last reported.
    rung: u64,
    starved: u64,
}

impl<M: AsRef<[Line]>> Producer<M> {
    /// The producer of a zeroed segment of `CONTROL_LINES` and a power of two
    /// of data lines.
    pub fn new(memory: M, message_bytes_max: usize) -> Producer<M> {
        let shape = Shape::of(memory.as_ref(), message_bytes_max);
        Producer { memory, shape, head: 0, consumed: 0, rung: 0, starved: 0 }
    }

    /// Writes one message, the parts joined; `false` if there is no room now.
    ///
    /// # Panics
    /// If the parts exceed the limit given to [`Producer::new`].
    pub fn try_push(&mut self, parts: &[&[u8]]) -> Result<bool, RingError> {
        let bytes: usize = parts.iter().map(|part| part.len()).sum();
        assert!(bytes <= self.shape.message_bytes_max, "a message of {bytes} bytes");
        let needed = lines_for(bytes) as u64;
        if self.free() < needed && !self.make_room(needed)? {
            return Ok(false);
        }

        let memory = self.memory.as_ref();
        let mut source = Gather { parts, at: 0 };
        let first = self.shape.line(memory, self.head);
        source.store_next(first);
        for i in 1..needed {
            let position = self.head + i;
            let line = self.shape.line(memory, position);
            line.0[0].store(u64::from(self.shape.lap(position)) << 32 | MORE, Ordering::Relaxed);
            source.store_next(line);
        }
        let header = u64::from(self.shape.lap(self.head)) << 32 | bytes as u64;
        first.0[0].store(header, Ordering::Release);
        self.head += needed;
        Ok(true)
    }

    /// To be asked after a push: whether the consumer sleeps and nobody has
    /// rung yet, so that the caller must.
    pub fn must_ring(&mut self) -> bool {
        fence(Ordering::SeqCst);
        let asleep = self.memory.as_ref()[0].0[ASLEEP].load(Ordering::Relaxed);
        let ring = asleep % 2 == 1 && asleep != self.rung;
        if ring {
            self.rung = asleep;
        }
        ring
    }

    fn free(&self) -> u64 {
        self.shape.lines - (self.head - self.consumed)
    }

    #[cold]
    fn make_room(&mut self, needed: u64) -> Result<bool, RingError> {
        self.refresh()?;
        if self.free() >= needed {
            return Ok(true);
        }
        self.starved += 1;
        self.memory.as_ref()[1].0[STARVED].store(self.starved, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        self.refresh()?;
        Ok(self.free() >= needed)
    }

    fn refresh(&mut self) -> Result<(), RingError> {
        let published = self.memory.as_ref()[0].0[CONSUMED].load(Ordering::Acquire);
        if published < self.consumed || published > self.head {
            return Err(RingError::Corrupt("the consumer's position"));
        }
        self.consumed = published;
        Ok(())
    }
}

/// The reading end. `M` is what holds the segment's lines.
#[derive(Debug)]
pub struct Consumer<M> {
    memory: M,
    shape: Shape,
    /// Next line to read.
    tail: u64,
    /// What the producer was told.
    published: u64,
    asleep: u64,
    starved_seen: u64,
    /// A message of several lines, joined.
    joined: Vec<u8>,
}

impl<M: AsRef<[Line]>> Consumer<M> {
    /// The consumer of a segment as given to [`Producer::new`].
    pub fn new(memory: M, message_bytes_max: usize) -> Consumer<M> {
        let shape = Shape::of(memory.as_ref(), message_bytes_max);
        Consumer { memory, shape, tail: 0, published: 0, asleep: 0, starved_seen: 0, joined: Vec::new() }
    }

    /// Whether a message (or garbage) is there.
    pub fn ready(&self) -> bool {
        let header = self.shape.line(self.memory.as_ref(), self.tail).0[0].load(Ordering::Acquire);
        (header >> 32) as u32 != self.shape.lap(self.tail).wrapping_sub(1)
    }

    /// Gives the next message to `take`; `None` if there is none.
    #[inline]
    pub fn try_pop<R>(&mut self, take: impl FnOnce(&[u8]) -> R) -> Result<Option<R>, RingError> {
        let memory = self.memory.as_ref();
        let first = self.shape.line(memory, self.tail);
        let header = first.0[0].load(Ordering::Acquire);
        let lap = self.shape.lap(self.tail);
        if (header >> 32) as u32 != lap {
            let previous = (header >> 32) as u32 == lap.wrapping_sub(1);
            return if previous { Ok(None) } else { Err(RingError::Corrupt("the lap of a line")) };
        }
        let bytes = (header & LENGTH_MASK) as usize;
        if header & MORE != 0 || bytes > self.shape.message_bytes_max {
            return Err(RingError::Corrupt("the length of a message"));
        }
        let needed = lines_for(bytes);
        let result = if needed == 1 {
            let mut block = [0; LINE_PAYLOAD];
            load_payload(first, &mut block, bytes);
            self.tail += 1;
            take(&block[..bytes])
        } else {
            self.joined.resize(needed * LINE_PAYLOAD, 0);
            for (i, block) in self.joined.as_chunks_mut::<LINE_PAYLOAD>().0.iter_mut().enumerate() {
                let line = self.shape.line(memory, self.tail + i as u64);
                match bytes - i * LINE_PAYLOAD {
                    // A length that is known makes seven loads of a loop.
                    LINE_PAYLOAD.. => load_payload(line, block, LINE_PAYLOAD),
                    used => load_payload(line, block, used),
                }
            }
            self.tail += needed as u64;
            take(&self.joined[..bytes])
        };
        if self.tail - self.published >= self.shape.lines / 4 {
            self.memory.as_ref()[0].0[CONSUMED].store(self.tail, Ordering::Release);
            self.published = self.tail;
        }
        Ok(Some(result))
    }

    /// Says that this consumer is about to sleep. `false` if a message is
    /// there; then it must not.
    pub fn arm(&mut self) -> bool {
        if self.asleep.is_multiple_of(2) {
            self.asleep += 1;
            self.memory.as_ref()[0].0[ASLEEP].store(self.asleep, Ordering::Relaxed);
        }
        fence(Ordering::SeqCst);
        !self.ready()
    }

    /// Says that this consumer is awake.
    pub fn disarm(&mut self) {
        if !self.asleep.is_multiple_of(2) {
            self.asleep += 1;
            self.memory.as_ref()[0].0[ASLEEP].store(self.asleep, Ordering::Relaxed);
        }
    }

    /// To be asked after pops: whether the producer ran out of room and has
    /// some again and nobody has rung yet, so that the caller must. A consumer
    /// that is about to sleep asks after [`Consumer::arm`].
    pub fn must_ring(&mut self) -> bool {
        let memory = self.memory.as_ref();
        if memory[1].0[STARVED].load(Ordering::Relaxed) == self.starved_seen {
            return false;
        }
        if self.published != self.tail {
            memory[0].0[CONSUMED].store(self.tail, Ordering::Release);
            self.published = self.tail;
        }
        fence(Ordering::SeqCst);
        self.starved_seen = memory[1].0[STARVED].load(Ordering::Relaxed);
        true
    }
}

/// Reads parts as one run of bytes.
struct Gather<'a> {
    parts: &'a [&'a [u8]],
    at: usize,
}

impl Gather<'_> {
    /// Writes the next bytes to a line.
    #[inline]
    fn store_next(&mut self, line: &Line) {
        // Most lines of a long message are full, and of one part.
        if let Some(block) = self.parts.first().and_then(|part| part[self.at..].first_chunk::<LINE_PAYLOAD>()) {
            self.at += LINE_PAYLOAD;
            return store_payload(line, block, LINE_PAYLOAD);
        }
        let mut block = [0; LINE_PAYLOAD];
        let filled = self.fill(&mut block);
        store_payload(line, &block, filled);
    }

    /// Fills `block` as far as there are bytes; returns how many.
    #[inline]
    fn fill(&mut self, block: &mut [u8; LINE_PAYLOAD]) -> usize {
        let mut filled = 0;
        while let Some(part) = self.parts.first() {
            let rest = &part[self.at..];
            let n = rest.len().min(LINE_PAYLOAD - filled);
            block[filled..filled + n].copy_from_slice(&rest[..n]);
            filled += n;
            if n < rest.len() {
                self.at += n;
                break;
            }
            self.parts = &self.parts[1..];
            self.at = 0;
        }
        filled
    }
}

#[inline]
fn store_payload(line: &Line, block: &[u8; LINE_PAYLOAD], used: usize) {
    for (word, bytes) in line.0[1..].iter().zip(block.as_chunks::<8>().0).take(used.div_ceil(8)) {
        word.store(u64::from_ne_bytes(*bytes), Ordering::Relaxed);
    }
}

#[inline]
fn load_payload(line: &Line, block: &mut [u8; LINE_PAYLOAD], used: usize) {
    for (word, bytes) in line.0[1..].iter().zip(block.as_chunks_mut::<8>().0).take(used.div_ceil(8)) {
        *bytes = word.load(Ordering::Relaxed).to_ne_bytes();
    }
}

const _: () = assert!(WORDS == 7 && size_of::<[u64; 8]>() == 64);

#[cfg(all(test, not(loom)))]
mod tests {
    use std::collections::VecDeque;
    use std::sync::Arc;

    use super::*;
    use crate::base::rng::Rng;

    struct Shared(Arc<Vec<Line>>);

    impl AsRef<[Line]> for Shared {
        fn as_ref(&self) -> &[Line] {
            &self.0
        }
    }

    fn ring(lines: usize, limit: usize) -> (Producer<Shared>, Consumer<Shared>, Arc<Vec<Line>>) {
        let memory: Arc<Vec<Line>> = Arc::new((0..CONTROL_LINES + lines).map(|_| Line::default()).collect());
        let producer = Producer::new(Shared(memory.clone()), limit);
        let consumer = Consumer::new(Shared(memory.clone()), limit);
        (producer, consumer, memory)
    }

    #[test]
    fn random_operations_agree_with_a_queue() {
        for seed in 0..20 {
            let mut rng = Rng::new(seed);
            let (mut producer, mut consumer, _) = ring(64, 48 * LINE_PAYLOAD);
            let mut oracle: VecDeque<Vec<u8>> = VecDeque::new();
            let mut refused = 0;
            for _ in 0..20_000 {
                if rng.below(2) == 0 {
                    let long = if rng.below(10) == 0 { 48 * LINE_PAYLOAD } else { 130 };
                    let message: Vec<u8> = (0..rng.below(long + 1)).map(|_| rng.next_u64() as u8).collect();
                    let cut = rng.below(message.len() + 1);
                    if producer.try_push(&[&message[..cut], &[], &message[cut..]]).unwrap() {
                        oracle.push_back(message);
                    } else {
                        refused += 1;
                        assert!(!oracle.is_empty(), "an empty ring takes any message");
                    }
                } else {
                    let popped = consumer.try_pop(|bytes| bytes.to_vec()).unwrap();
                    assert_eq!(popped, oracle.pop_front());
                }
            }
            assert!(refused > 0, "the test must fill the ring");
        }
    }

    #[test]
    fn two_threads_see_every_message_once_and_in_order() {
        let (mut producer, mut consumer, _) = ring(64, 200);
        let writer = std::thread::spawn(move || {
            for i in 0..50_000_u64 {
                let body = vec![i as u8; (i % 193) as usize];
                while !producer.try_push(&[&i.to_le_bytes(), &body]).unwrap() {
                    std::thread::yield_now();
                }
            }
        });
        for i in 0..50_000_u64 {
            let check = |bytes: &[u8]| {
                assert_eq!(bytes[..8], i.to_le_bytes());
                assert_eq!(bytes.len(), 8 + (i % 193) as usize);
                assert!(bytes[8..].iter().all(|b| *b == i as u8));
            };
            while consumer.try_pop(check).unwrap().is_none() {
                std::thread::yield_now();
            }
        }
        writer.join().unwrap();
    }

    #[test]
    fn a_sleeper_is_rung_once_and_a_starved_producer_too() {
        let (mut producer, mut consumer, _) = ring(4, 56);
        assert!(producer.try_push(&[b"1"]).unwrap());
        assert!(!producer.must_ring());
        assert!(!consumer.arm(), "there is a message");
        consumer.disarm();
        consumer.try_pop(|_| ()).unwrap().unwrap();
        assert!(consumer.arm());
        assert!(producer.try_push(&[b"2"]).unwrap());
        assert!(producer.must_ring());
        assert!(producer.try_push(&[b"3"]).unwrap());
        assert!(!producer.must_ring(), "once for each sleep");
        consumer.disarm();
        assert!(!consumer.must_ring(), "nobody starves");
        while producer.try_push(&[b"4"]).unwrap() {}
        consumer.try_pop(|_| ()).unwrap().unwrap();
        assert!(consumer.must_ring());
        assert!(!consumer.must_ring());
        assert!(producer.try_push(&[b"5"]).unwrap());
    }

    #[test]
    fn garbage_is_an_error_and_nothing_worse() {
        for (word, what) in [
            (1 << 32 | 201, "a length above the limit"),
            (1 << 32 | MORE | 3, "a continuing line in first place"),
            (7 << 32 | 3, "a lap of the future"),
        ] {
            let (_, mut consumer, memory) = ring(64, 200);
            memory[CONTROL_LINES].0[0].store(word, Ordering::Relaxed);
            assert!(consumer.try_pop(|_| ()).is_err(), "{what}");
        }
        let (mut producer, _, memory) = ring(4, 56);
        memory[0].0[CONSUMED].store(99, Ordering::Relaxed);
        let outcome = (0..5).try_for_each(|_| producer.try_push(&[b"x"]).map(drop));
        assert!(outcome.is_err(), "a position ahead of the producer");
    }
}

#[cfg(all(test, loom))]
mod models {
    use loom::sync::Arc;
    use loom::thread;

    use super::*;

    struct Shared(Arc<Vec<Line>>);

    impl AsRef<[Line]> for Shared {
        fn as_ref(&self) -> &[Line] {
            &self.0
        }
    }

    fn ring(limit: usize) -> (Producer<Shared>, Consumer<Shared>) {
        let memory: Arc<Vec<Line>> = Arc::new((0..CONTROL_LINES + 4).map(|_| Line::default()).collect());
        (Producer::new(Shared(memory.clone()), limit), Consumer::new(Shared(memory), limit))
    }

    fn pop(consumer: &mut Consumer<Shared>) -> u64 {
        loop {
            let number = |bytes: &[u8]| u64::from_le_bytes(bytes[bytes.len() - 8..].try_into().unwrap());
            if let Some(n) = consumer.try_pop(number).unwrap() {
                return n;
            }
            thread::yield_now();
        }
    }

    #[test]
    fn messages_arrive_whole_and_in_order_round_the_ring() {
        let mut model = loom::model::Builder::new();
        model.preemption_bound = Some(3);
        model.check(|| {
            let (mut producer, mut consumer) = ring(LINE_PAYLOAD);
            let writer = thread::spawn(move || {
                for i in 0..6_u64 {
                    while !producer.try_push(&[&i.to_le_bytes()]).unwrap() {
                        thread::yield_now();
                    }
                }
            });
            for i in 0..6 {
                assert_eq!(pop(&mut consumer), i);
            }
            writer.join().unwrap();
        });
    }

    #[test]
    fn a_message_of_two_lines_is_seen_whole() {
        loom::model(|| {
            let (mut producer, mut consumer) = ring(2 * LINE_PAYLOAD);
            let writer = thread::spawn(move || {
                let body = [7_u8; LINE_PAYLOAD];
                assert!(producer.try_push(&[&body, &9_u64.to_le_bytes()]).unwrap());
            });
            assert_eq!(pop(&mut consumer), 9);
            writer.join().unwrap();
        });
    }

    #[test]
    fn no_wake_up_is_lost() {
        loom::model(|| {
            let (mut producer, mut consumer) = ring(LINE_PAYLOAD);
            let writer = thread::spawn(move || {
                assert!(producer.try_push(&[b"wake up!"]).unwrap());
                producer.must_ring()
            });
            let may_sleep = consumer.arm();
            let rung = writer.join().unwrap();
            assert!(!may_sleep || rung, "asleep beside a message");
        });
    }

    #[test]
    fn no_starved_producer_is_forgotten() {
        loom::model(|| {
            let (mut producer, mut consumer) = ring(LINE_PAYLOAD);
            for _ in 0..4 {
                assert!(producer.try_push(&[b"x"]).unwrap());
            }
            let reader = thread::spawn(move || {
                let mut rung = false;
                for _ in 0..4 {
                    consumer.try_pop(|_| ()).unwrap().unwrap();
                }
                consumer.arm();
                rung |= consumer.must_ring();
                rung
            });
            let pushed = producer.try_push(&[b"x"]).unwrap();
            let rung = reader.join().unwrap();
            assert!(pushed || rung, "waiting beside free lines");
        });
    }
}
