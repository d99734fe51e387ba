//! The TCP fabrics by themselves, without the runtime above them: objects,
//! bursts of messages and round trips, each beside what plain sockets, and for
//! objects Open MPI, do in the same run. Rank 1 is the far side of each.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use collimate::base::Rank;
use collimate::fabric::{EpollFabric, Event, Fabric, FabricError, Link, RegionKey, RemoteSpan, UringFabric};
use collimate::mem::{Arena, Block, Lease};
use collimate::sys::create_region;
use rustix::event::{Timespec, epoll};

use super::bare::on_rank_1;
use super::latency::record;
use super::measure::{Effort, Failed, PATIENCE, Round, Samples, compare, sample, spin_until};
use super::openmpi::OpenMpi;
use super::record::{Figure, Record, Target};

/// The object that is moved.
const OBJECT: usize = 64 << 20;
/// How it is read: parts of this size, so many at a time.
const PART: usize = 1 << 20;
const IN_FLIGHT: usize = 8;

/// Bytes of a small message.
const SMALL: usize = 64;
/// Messages that are sent in one turn.
const BURST: u64 = 64;

const KEY: RegionKey = RegionKey(1);

/// Which fabric, with how many connections for large reads.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Shape {
    uring: bool,
    lanes: u16,
}

const URING: Shape = Shape { uring: true, lanes: 1 };
const EPOLL: Shape = Shape { uring: false, lanes: 1 };

impl Shape {
    fn name(self) -> String {
        format!("{}, {} lanes", if self.uring { "uring" } else { "epoll" }, self.lanes)
    }
}

/// An object of 64 MiB.
pub fn bulk(effort: Effort, emit: &mut dyn FnMut(Record)) -> Result<(), Failed> {
    let object = if effort.quick { OBJECT / 16 } else { OBJECT };
    // Few at a time, and often: what else the machine does then meets all alike.
    let (count, rounds) = (3, 3 * effort.rounds());
    let others = [0, 2, 4].map(|lanes| Shape { lanes, ..URING });
    let shapes: Vec<Shape> = [URING, EPOLL].into_iter().chain(others).collect();
    let mpi = OpenMpi::compile();
    if let Err(why) = &mpi {
        eprintln!("collimate: Open MPI left out: {why}");
    }
    let mut taken: Vec<Vec<Round>> = vec![Vec::new(); shapes.len()];
    let (mut plain, mut in_pieces, mut with_mpi) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..rounds {
        // The other numbers of lanes need not be known as well.
        let due = if round % 3 == 0 { shapes.len() } else { 2 };
        for (shape, rounds) in shapes.iter().zip(&mut taken).take(due) {
            rounds.push(read_object(*shape, object, count)?);
        }
        plain.push(plain_object(object, object, count)?);
        in_pieces.push(plain_object(object, PIECE, count)?);
        if let Ok(mpi) = &mpi {
            with_mpi.push(mpi.run(object, count)?);
        }
    }
    let mut tell = |ours: &[Round], variant: String, name: &str, reference: &[Round], target: Option<Target>| {
        let pairs: Vec<_> = ours.iter().copied().zip(reference.iter().copied()).collect();
        let compared = compare(&pairs);
        let mut record = record("object", "tcp", &compared, name, target);
        record.variant = Some(variant);
        record.bytes = Some(object as u64);
        let figure = |round: Round| Figure::transfer(round.p50_ns, round.p99_ns, object as u64);
        record.figure = figure(compared.ours);
        record.reference.figure = figure(compared.reference);
        emit(record);
    };
    let target = Target { ratio: Some(1.0), ..Target::default() };
    tell(&taken[0], shapes[0].name(), "plain send and recv, polling, all that is left a call", &plain, Some(target));
    tell(&taken[0], shapes[0].name(), PIECES, &in_pieces, Some(target));
    if !with_mpi.is_empty() {
        tell(&taken[0], shapes[0].name(), "Open MPI over TCP", &with_mpi, Some(target));
    }
    for (shape, rounds) in shapes.iter().zip(&taken).skip(1) {
        tell(rounds, shape.name(), PIECES, &in_pieces, None);
    }
    Ok(())
}

const PIECES: &str = "plain send and recv, polling, 256 KiB a call";
const PIECE: usize = 256 * 1024;

/// Small messages in bursts, one way.
pub fn messages(effort: Effort, emit: &mut dyn FnMut(Record)) -> Result<(), Failed> {
    let count = effort.count(400_000);
    let mut rounds = Vec::new();
    for _ in 0..effort.rounds() {
        let writes = write_each(count)?;
        rounds.push((send_bursts(URING, count)?, send_bursts(EPOLL, count)?, writes));
    }
    let target = Target { ratio: Some(1.0 / 3.0), ..Target::default() };
    let uring: Vec<_> = rounds.iter().map(|(uring, _, writes)| (*uring, *writes)).collect();
    let epoll: Vec<_> = rounds.iter().map(|(_, epoll, writes)| (*epoll, *writes)).collect();
    for (pairs, variant, target) in [(uring, "uring", Some(target)), (epoll, "epoll", None)] {
        let compared = compare(&pairs);
        let mut record = record("messages", "tcp", &compared, "epoll, one write a message", target);
        record.variant = Some(variant.into());
        record.bytes = Some(SMALL as u64);
        record.figure = Figure::rate(1e9 / compared.ours.p50_ns);
        record.reference.figure = Figure::rate(1e9 / compared.reference.p50_ns);
        emit(record);
    }
    Ok(())
}

/// A small message there and back.
pub fn round_trip(effort: Effort, emit: &mut dyn FnMut(Record)) -> Result<(), Failed> {
    let count = effort.count(5000);
    let mut pairs = Vec::new();
    for round in 0..2 * effort.rounds() {
        // Whoever goes second may find a warmer machine.
        let first = if round % 2 == 0 { URING } else { EPOLL };
        let second = if round % 2 == 0 { EPOLL } else { URING };
        let (first, second) = (echo(first, count)?, echo(second, count)?);
        pairs.push(if round % 2 == 0 { (first, second) } else { (second, first) });
    }
    let compared = compare(&pairs);
    let target = Target { ratio: Some(1.0), ..Target::default() };
    let mut record = record("round_trip", "tcp", &compared, "the epoll fabric", Some(target));
    record.variant = Some("uring".into());
    record.bytes = Some(SMALL as u64);
    emit(record);
    Ok(())
}

/// What the far side does with a message, by its first byte.
const ECHO: u8 = 1;
/// The next 8 bytes say how many such messages there are; the last one is
/// answered.
const COUNT: u8 = 2;

fn read_object(shape: Shape, object: usize, count: u64) -> Result<Round, Failed> {
    let far = Far::start(shape, object)?;
    let mut near = far.connect()?;
    let arena = Arena::new(Arc::new(create_region(object + PART)?));
    let mut blocks: Vec<Option<Block>> = Vec::new();
    for _ in 0..object / PART {
        let mut block = arena.alloc(PART)?;
        block.bytes_mut().fill(1);
        blocks.push(Some(block));
    }
    let round = sample(count, 1, || -> Result<(), Failed> {
        let (mut started, mut done) = (0, 0);
        let deadline = Instant::now() + PATIENCE;
        while done < blocks.len() {
            while started < blocks.len() && started < done + IN_FLIGHT {
                let block = blocks[started].take().ok_or("a part is read twice")?;
                let from = RemoteSpan { key: KEY, offset: (started * PART) as u64, len: PART as u64 };
                near.fabric.read(Rank(1), from, block.into_lease(), started as u64)?;
                started += 1;
            }
            for (token, lease) in near.poll()?.reads {
                blocks[token as usize] = Some(Block::from_lease(lease).map_err(|_| "a lease of another arena")?);
                done += 1;
            }
            if Instant::now() > deadline {
                return Err("the object does not come".into());
            }
        }
        Ok(())
    })?;
    let is_right = blocks.iter().flatten().all(|block| block.bytes()[PART / 2] == 7);
    drop(near);
    far.end()?;
    if is_right { Ok(round) } else { Err("the object came with other bytes".into()) }
}

fn send_bursts(shape: Shape, count: u64) -> Result<Round, Failed> {
    let far = Far::start(shape, 0)?;
    let mut near = far.connect()?;
    let mut message = [COUNT; SMALL];
    message[1..9].copy_from_slice(&count.to_le_bytes());
    let mut samples = Samples::new();
    for round in 0..4 {
        let start = Instant::now();
        let mut sent = 0;
        while sent < count {
            let goal = count.min(sent + BURST);
            while sent < goal {
                match near.fabric.send(Rank(1), &[&message]) {
                    Ok(()) => sent += 1,
                    Err(FabricError::Full(_)) => break,
                    Err(error) => return Err(error.into()),
                }
            }
            near.poll()?;
            if start.elapsed() > PATIENCE {
                return Err("the messages do not go".into());
            }
        }
        near.await_message()?;
        if round > 0 {
            samples.add(start.elapsed(), count);
        }
    }
    drop(near);
    far.end()?;
    Ok(samples.round())
}

fn echo(shape: Shape, count: u64) -> Result<Round, Failed> {
    let far = Far::start(shape, 0)?;
    let mut near = far.connect()?;
    let round = sample(count, 1, || {
        near.fabric.send(Rank(1), &[&[ECHO; SMALL]])?;
        near.await_message()
    });
    drop(near);
    far.end()?;
    round
}

/// A fabric with one peer.
struct Near {
    fabric: Box<dyn Fabric>,
}

/// What one poll has found.
#[derive(Default)]
struct Found {
    messages: u64,
    reads: Vec<(u64, Lease)>,
}

impl Near {
    fn poll(&mut self) -> Result<Found, Failed> {
        let mut found = Found::default();
        let mut failure = None;
        self.fabric.poll(&mut |event| match event {
            Event::Message { .. } => found.messages += 1,
            Event::ReadDone { token, lease, result: Ok(()), .. } => found.reads.push((token, lease)),
            Event::ReadDone { result: Err(cause), .. } | Event::Lost { cause, .. } => failure = Some(cause),
        });
        failure.map_or(Ok(found), |cause| Err(cause.into()))
    }

    fn await_message(&mut self) -> Result<(), Failed> {
        let mut failure = None;
        spin_until("an answer of rank 1", || match self.poll() {
            Ok(found) => found.messages > 0,
            Err(cause) => {
                failure = Some(cause);
                true
            }
        })?;
        failure.map_or(Ok(()), Err)
    }
}

/// Rank 1, which serves a region and answers messages until it is left.
struct Far {
    listener: TcpListener,
    shape: Shape,
    task: collimate::Ref<u64>,
}

impl Far {
    fn start(shape: Shape, region: usize) -> Result<Far, Failed> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let port = listener.local_addr()?.port();
        let task = serve::spawn_with(on_rank_1(), port, shape.uring, shape.lanes, region as u64);
        Ok(Far { listener, shape, task })
    }

    fn connect(&self) -> Result<Near, Failed> {
        let mut sockets = accept(&self.listener, usize::from(self.shape.lanes) + 1)?;
        let first = sockets.remove(0);
        let mut fabric = make(self.shape, Rank(0))?;
        fabric.connect(Rank(1), Link::Lanes(first, sockets))?;
        Ok(Near { fabric })
    }

    fn end(self) -> Result<(), Failed> {
        self.task.get()?;
        Ok(())
    }
}

fn make(shape: Shape, rank: Rank) -> Result<Box<dyn Fabric>, FabricError> {
    Ok(match shape.uring {
        true => Box::new(UringFabric::new(rank, Default::default())?),
        false => Box::new(EpollFabric::new(rank, Default::default())?),
    })
}

#[collimate::task]
fn serve(port: u16, uring: bool, lanes: u16, region: u64) -> Result<u64, String> {
    let serve = || -> Result<(), Failed> {
        let connect = || TcpStream::connect((Ipv4Addr::LOCALHOST, port));
        let first = connect()?;
        let lanes = (0..lanes).map(|_| connect()).collect::<Result<Vec<_>, _>>()?;
        let mut fabric = make(Shape { uring, lanes: 0 }, Rank(1))?;
        if region > 0 {
            let arena = Arena::new(Arc::new(create_region(region as usize)?));
            let mut block = arena.alloc(region as usize)?;
            block.bytes_mut().fill(7);
            fabric.register(KEY, arena.region().clone())?;
        }
        fabric.connect(Rank(0), Link::Lanes(first, lanes))?;
        let mut counted = 0;
        let mut idle_since = Instant::now();
        let mut left = false;
        let mut polls = 0u32;
        while !left {
            let mut answers = 0;
            let events = fabric.poll(&mut |event| match event {
                Event::Message { bytes, .. } if bytes[0] == COUNT => {
                    counted += 1;
                    let expected = u64::from_le_bytes(std::array::from_fn(|i| bytes[1 + i]));
                    if counted == expected {
                        counted = 0;
                        answers += 1;
                    }
                }
                Event::Message { .. } => answers += 1,
                Event::ReadDone { .. } => {}
                Event::Lost { .. } => left = true,
            });
            for _ in 0..answers {
                fabric.send(Rank(0), &[&[ECHO; SMALL]])?;
            }
            polls = polls.wrapping_add(1);
            if events > 0 {
                idle_since = Instant::now();
            } else if polls.is_multiple_of(1 << 16) && idle_since.elapsed() > 6 * PATIENCE {
                return Err("rank 0 has forgotten this connection".into());
            }
        }
        Ok(())
    };
    serve().map(|()| 0).map_err(|e| e.to_string())
}

/// So many connections, each within the usual patience.
fn accept(listener: &TcpListener, count: usize) -> Result<Vec<TcpStream>, Failed> {
    listener.set_nonblocking(true)?;
    let mut sockets = Vec::new();
    spin_until("a connection from rank 1", || {
        sockets.extend(listener.accept().map(|(socket, _)| socket));
        sockets.len() == count
    })?;
    Ok(sockets)
}

/// An object by `send` there and `recv` here, at most `piece` bytes a call;
/// neither side ever sleeps.
fn plain_object(object: usize, piece: usize, count: u64) -> Result<Round, Failed> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let port = listener.local_addr()?.port();
    let task = send_plainly::spawn_with(on_rank_1(), port, object as u64, piece as u64);
    let mut socket = accept(&listener, 1)?.remove(0);
    prepare(&socket)?;
    let mut buffer = vec![1; object];
    let round = sample(count, 1, || {
        socket.write_all(&[1])?;
        patiently(object, |at| socket.read(&mut buffer[at..object.min(at + piece)]))
    });
    drop(socket);
    task.get()?;
    round
}

#[collimate::task]
fn send_plainly(port: u16, object: u64, piece: u64) -> Result<u64, String> {
    let send = || -> Result<(), Failed> {
        let mut socket = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
        prepare(&socket)?;
        let buffer = vec![7; object as usize];
        loop {
            let mut request = [0];
            match patiently(1, |_| socket.read(&mut request)) {
                Ok(()) => {
                    patiently(buffer.len(), |at| socket.write(&buffer[at..buffer.len().min(at + piece as usize)]))?
                }
                Err(_) => return Ok(()),
            }
        }
    };
    send().map(|()| 0).map_err(|e| e.to_string())
}

/// One write for each message here; epoll and a read there.
fn write_each(count: u64) -> Result<Round, Failed> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let port = listener.local_addr()?.port();
    let task = read_each::spawn_with(on_rank_1(), port, count * SMALL as u64);
    let mut socket = accept(&listener, 1)?.remove(0);
    prepare(&socket)?;
    let message = [3; SMALL];
    let mut samples = Samples::new();
    for round in 0..4 {
        let start = Instant::now();
        for _ in 0..count {
            patiently(SMALL, |at| socket.write(&message[at..]))?;
        }
        patiently(1, |_| socket.read(&mut [0]))?;
        if round > 0 {
            samples.add(start.elapsed(), count);
        }
    }
    drop(socket);
    task.get()?;
    Ok(samples.round())
}

#[collimate::task]
fn read_each(port: u16, bytes: u64) -> Result<u64, String> {
    let read = || -> Result<(), Failed> {
        let mut socket = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
        prepare(&socket)?;
        let poll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        epoll::add(&poll, &socket, epoll::EventData::new_u64(0), epoll::EventFlags::IN)?;
        let mut buffer = vec![0; 64 * 1024];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        loop {
            let received = patiently(bytes as usize, |_| {
                let mut events =
                    [epoll::Event { flags: epoll::EventFlags::empty(), data: epoll::EventData::new_u64(0) }];
                match epoll::wait(&poll, &mut events, Some(&now))? {
                    0 => Err(ErrorKind::WouldBlock.into()),
                    _ => socket.read(&mut buffer),
                }
            });
            match received {
                Ok(()) => patiently(1, |_| socket.write(&[1]))?,
                Err(_) => return Ok(()),
            }
        }
    };
    read().map(|()| 0).map_err(|e| e.to_string())
}

fn prepare(socket: &TcpStream) -> Result<(), Failed> {
    socket.set_nodelay(true)?;
    Ok(socket.set_nonblocking(true)?)
}

/// Repeats a call until it has moved so many bytes.
fn patiently(bytes: usize, mut call: impl FnMut(usize) -> std::io::Result<usize>) -> Result<(), Failed> {
    let mut moved = 0;
    let mut spins = 0u32;
    let mut start: Option<Instant> = None;
    while moved < bytes {
        match call(moved) {
            Ok(0) => return Err("the other side has gone".into()),
            Ok(n) => moved += n,
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                spins = spins.wrapping_add(1);
                let is_late = || start.get_or_insert_with(Instant::now).elapsed() > PATIENCE + Duration::from_secs(1);
                if spins.is_multiple_of(1 << 12) && { is_late }() {
                    return Err("the other side does nothing".into());
                }
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}
