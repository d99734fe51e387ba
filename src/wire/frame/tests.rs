//! Round trips of every message, and the promise that no byte string panics.

use super::*;
use crate::wire::write_bulk;
use crate::base::rng::Rng;
use crate::base::ErrorKind;
use crate::wire::{BulkBody, CopyId, Goodbye, Hello, Shutdown};

const CALL: SpawnCall =
    SpawnCall { function: 0xdead_beef, request: u64::MAX - 1, parent: Tag(1 << 127 | 5), call: 77, stolen: false };

const RECORD: ObjectRecord = ObjectRecord { owner: Rank(3), region: 9, shared: true, offset: 1 << 33, len: 1 << 28, object: 0xabcd };

fn spawn(call: SpawnCall, arguments: &[Argument<'_>]) -> Vec<u8> {
    let mut buffer = vec![0xff; 99];
    let mut builder = SpawnBuilder::new(&mut buffer, call, arguments.len());
    for argument in arguments {
        match *argument {
            Argument::Inline { bytes, align } => builder.inline(bytes, align),
            Argument::Object(record) => builder.object(record),
        };
    }
    builder.finish().unwrap();
    buffer
}

fn error() -> TaskError {
    TaskError::new(ErrorKind::Panicked, "panicked: index out of bounds")
        .through("leaf", Rank(2))
        .through("root", Rank(0))
}

fn written(write: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut buffer = vec![0xff; 5];
    write(&mut buffer);
    buffer
}

/// One message of every kind and form.
fn samples() -> Vec<Vec<u8>> {
    let inline = |bytes| Argument::Inline { bytes, align: 8 };
    let hello = Hello {
        schema: 1,
        rank: Rank(1),
        workers: 2,
        store_bytes: 1 << 30,
        tasks_hash: 1 << 60,
        region_bytes: 1 << 31,
        resources: "gpu=2".into(),
    };
    let control = |control| written(|b| write_control(b, &control).unwrap());
    let bulk = |what| {
        let copy = CopyId { lender: Rank(2), object: 77 };
        written(|b| write_bulk(b, &Bulk { copy, what }))
    };
    vec![
        bulk(BulkBody::Locate { gone: Some(Rank(1)), group: Rank(0) }),
        bulk(BulkBody::Sources { primaries: 1, ranks: vec![Rank(1), Rank(0)] }),
        bulk(BulkBody::Holding { number: 3, offset: 64, first: 1, words: vec![7, 9] }),
        spawn(CALL, &[]),
        spawn(CALL, &[inline(b"12345678")]),
        spawn(SpawnCall { stolen: true, ..CALL }, &[inline(b"123"), Argument::Object(RECORD), inline(b"")]),
        written(|b| write_inline_result(b, 5, b"result", 4).unwrap()),
        written(|b| write_object_result(b, 5, RECORD)),
        written(|b| write_error(b, 5, &error()).unwrap()),
        written(|b| write_release(b, Release { object: 7, count: 3 })),
        written(|b| write_steal_request(b, StealRequest { want: 4 })),
        control(Control::Hello(hello)),
        [&[super::kind::GCS][..], b"a packet"].concat(),
        control(Control::ErrorReport(ErrorReport { request: 5, error: error() })),
        control(Control::Goodbye(Goodbye { status: 0, reason: "done".into() })),
        control(Control::Shutdown(Shutdown { status: 1, reason: "driver failed".into() })),
    ]
}

/// Reads everything that a message offers, as the node would.
fn touch(bytes: &[u8]) -> bool {
    match Message::parse(bytes) {
        Ok(Message::Spawn(spawn)) => {
            let declared = spawn.arguments.len();
            assert_eq!(spawn.arguments.count(), declared, "an argument that parse let through was lost");
            true
        }
        Ok(_) => true,
        Err(error) => {
            assert!(!error.to_string().is_empty());
            false
        }
    }
}

#[test]
fn a_small_spawn_fits_a_cache_line() {
    let bytes = spawn(CALL, &[Argument::Inline { bytes: &[7; 8], align: 8 }]);
    assert_eq!(bytes.len(), 48);
    let bytes =
        spawn(CALL, &[Argument::Inline { bytes: &[7; 4], align: 4 }, Argument::Inline { bytes: &[7], align: 1 }]);
    assert!(bytes.len() <= 64);
}

#[test]
fn spawns_survive_the_wire() {
    let mut rng = Rng::new(11);
    for argc in (0..40).chain([1000, 5000]) {
        let bytes: Vec<u8> = (0..=255).collect();
        let arguments: Vec<Argument<'_>> = (0..argc)
            .map(|_| match rng.below(if argc > 40 { 1 } else { 4 }) {
                0 => Argument::Inline { bytes: &[], align: 1 },
                1 => Argument::Object(ObjectRecord { object: rng.next_u64(), ..RECORD }),
                _ => Argument::Inline { bytes: &bytes[..rng.below(256)], align: 1 << rng.below(7) },
            })
            .collect();
        for stolen in [false, true] {
            let call = SpawnCall { stolen, call: argc, ..CALL };
            let message = spawn(call, &arguments);
            let Message::Spawn(got) = Message::parse(&message).unwrap() else { panic!() };
            assert_eq!(got.call, call);
            assert_eq!(got.arguments.len(), arguments.len());
            assert!(got.arguments.eq(arguments.iter().copied()));
        }
    }
}

#[test]
fn inline_payloads_start_at_multiples_of_eight() {
    for argc in 1..9 {
        let message = spawn(CALL, &vec![Argument::Inline { bytes: b"x", align: 1 }; argc]);
        let Message::Spawn(got) = Message::parse(&message).unwrap() else { panic!() };
        for argument in got.arguments {
            let Argument::Inline { bytes, .. } = argument else { panic!() };
            assert_eq!((bytes.as_ptr().addr() - message.as_ptr().addr()) % PAYLOAD_ALIGN, 0);
        }
    }
}

#[test]
fn results_survive_the_wire() {
    for len in [0, 1, 8, 100, INLINE_BYTES_MAX] {
        let value = vec![5; len];
        let message = written(|b| write_inline_result(b, 9, &value, 16).unwrap());
        let outcome = Outcome::Inline { bytes: &value, align: 16 };
        let expected = TaskResult { request: 9, outcome };
        assert_eq!(Message::parse(&message), Ok(Message::Result(expected)));
    }
    let message = written(|b| write_object_result(b, 9, RECORD));
    let expected = TaskResult { request: 9, outcome: Outcome::Object(RECORD) };
    assert_eq!(Message::parse(&message), Ok(Message::Result(expected)));

    let message = written(|b| write_error(b, 9, &error()).unwrap());
    let expected = TaskResult { request: 9, outcome: Outcome::Error(error()) };
    assert_eq!(Message::parse(&message), Ok(Message::Result(expected)));
}

#[test]
fn small_messages_survive_the_wire() {
    let release = Release { object: u64::MAX, count: 1 };
    assert_eq!(Message::parse(&written(|b| write_release(b, release))), Ok(Message::Release(release)));
    let steal = StealRequest { want: 513 };
    assert_eq!(Message::parse(&written(|b| write_steal_request(b, steal))), Ok(Message::StealRequest(steal)));
    let goodbye = Control::Goodbye(Goodbye { status: 3, reason: "why".into() });
    let message = written(|b| write_control(b, &goodbye).unwrap());
    assert_eq!(Message::parse(&message), Ok(Message::Control(goodbye)));
}

#[test]
fn what_cannot_be_written_is_refused_and_leaves_nothing_behind() {
    let mut buffer = Vec::new();
    let mut builder = SpawnBuilder::new(&mut buffer, CALL, 1);
    builder.inline(&[0; INLINE_BYTES_MAX + 1], 1);
    assert!(matches!(builder.finish(), Err(WireError::TooLarge { what: "an inline argument", .. })));
    assert!(buffer.is_empty());

    let mut builder = SpawnBuilder::new(&mut buffer, CALL, 1);
    builder.inline(&[0], 3);
    assert!(matches!(builder.finish(), Err(WireError::BadField { field: "alignment", value: 3, .. })));

    let mut builder = SpawnBuilder::new(&mut buffer, CALL, 1);
    builder.inline(&[0], 1).inline(&[0], 1);
    assert_eq!(builder.finish(), Err(WireError::ArgumentCount { declared: 1, given: 2 }));
    assert_eq!(
        SpawnBuilder::new(&mut buffer, CALL, 1).finish(),
        Err(WireError::ArgumentCount { declared: 1, given: 0 })
    );

    let mut builder = SpawnBuilder::new(&mut buffer, CALL, 20);
    (0..20).for_each(|_| _ = builder.inline(&[0; INLINE_BYTES_MAX], 1));
    assert!(matches!(builder.finish(), Err(WireError::TooLarge { what: "a spawn message", .. })));
    let builder = SpawnBuilder::new(&mut buffer, CALL, 100_000);
    assert!(matches!(builder.finish(), Err(WireError::TooLarge { what: "an argument list", .. })));

    let result = write_inline_result(&mut buffer, 1, &[0; INLINE_BYTES_MAX + 1], 1);
    assert!(matches!(result, Err(WireError::TooLarge { what: "an inline result", .. })));
    assert!(buffer.is_empty());
}

#[test]
fn every_field_is_verified() {
    let refused = |mut message: Vec<u8>, at: usize, value: u8| {
        message[at] = value;
        Message::parse(&message).unwrap_err()
    };
    let one = || spawn(CALL, &[Argument::Inline { bytes: b"123", align: 8 }]);
    let object = || spawn(CALL, &[Argument::Object(RECORD)]);
    let result = || written(|b| write_inline_result(b, 5, b"result", 4).unwrap());
    let field = |error| match error {
        WireError::BadField { field, .. } => field,
        other => panic!("{other:?}"),
    };
    assert_eq!(refused(one(), 0, 0), WireError::UnknownKind(0));
    assert_eq!(field(refused(one(), 1, 2)), "flags");
    assert!(matches!(refused(one(), 2, 2), WireError::Truncated { .. } | WireError::BadField { .. }));
    assert_eq!(field(refused(one(), 36, 3)), "argument form");
    assert_eq!(field(refused(one(), 37, 7)), "alignment exponent");
    assert!(matches!(refused(one(), 38, 9), WireError::Truncated { .. }));
    assert!(matches!(refused(one(), 39, 0xff), WireError::TooLarge { .. }));
    assert_eq!(field(refused(one(), 43, 1)), "padding byte");
    assert_eq!(field(refused(object(), 38, 1)), "object descriptor length");
    assert_eq!(field(refused(object(), 41, 0xff)), "object owner");
    let mut wraps = object();
    wraps[48..64].fill(0xff);
    assert_eq!(field(Message::parse(&wraps).unwrap_err()), "object length");
    assert_eq!(field(refused(result(), 1, 4)), "status");
    assert_eq!(field(refused(result(), 3, 1)), "reserved byte");
    assert_eq!(field(refused(result(), 5, 1)), "reserved byte");
    assert!(matches!(refused(result(), 6, 7), WireError::Truncated { needs: 23, has: 22, .. }));
    assert!(matches!(refused(result(), 6, 5), WireError::Trailing { extra: 1, .. }));
    assert!(matches!(refused(result(), 1, 3), WireError::Control(_)));
    assert_eq!(field(refused(written(|b| write_release(b, Release { object: 1, count: 1 })), 4, 0)), "count");
    assert_eq!(field(refused(written(|b| write_steal_request(b, StealRequest { want: 1 })), 2, 0)), "want");

    // An error for another request than the head's.
    assert!(matches!(refused(written(|b| write_error(b, 5, &error()).unwrap()), 8, 6), WireError::Control(_)));
}

#[test]
fn a_shortened_or_lengthened_message_is_refused() {
    for message in samples() {
        assert!(touch(&message));
        // The control store and control messages are read elsewhere.
        let fixed_layout = !matches!(message[0], kind::CONTROL | kind::GCS);
        for end in 0..message.len() {
            let accepted = touch(&message[..end]);
            assert!(!accepted || !fixed_layout, "{end} of {} bytes were accepted", message.len());
        }
        let longer = [&message[..], &[0]].concat();
        assert!(!touch(&longer) || !fixed_layout, "a trailing byte was accepted");
    }
}

#[test]
fn no_single_flipped_bit_panics() {
    for mut message in samples() {
        for bit in 0..message.len() * 8 {
            message[bit / 8] ^= 1 << (bit % 8);
            touch(&message);
            message[bit / 8] ^= 1 << (bit % 8);
        }
    }
}

#[test]
fn no_byte_string_panics() {
    let mut rng = Rng::new(0x636f_6c6c);
    let samples = samples();
    for round in 0..60_000 {
        let mut message = if round % 2 == 0 {
            let mut bytes: Vec<u8> = (0..rng.below(200)).map(|_| rng.next_u64() as u8).collect();
            if let Some(first) = bytes.first_mut() {
                *first = rng.below(8) as u8;
            }
            bytes
        } else {
            samples[rng.below(samples.len())].clone()
        };
        for _ in 0..rng.below(6) {
            if message.is_empty() {
                break;
            }
            let at = rng.below(message.len());
            match rng.below(4) {
                0 => message[at] = rng.next_u64() as u8,
                1 => message[at] = [0, 0xff, 0x7f, 0x80][rng.below(4)],
                2 => message.truncate(at),
                _ => message.insert(at, rng.next_u64() as u8),
            }
        }
        touch(&message);
    }
}
