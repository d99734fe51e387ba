//! The thread that lets peers in and strangers not. It lives as long as the
//! mesh, asleep in `poll`, and also watches the launcher, because it is the one
//! thread of a rank that no user code can hold up.

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::process::{Signal, getpid, kill_process};

use super::admission::{self, Key, NONCE_BYTES, Step};
use super::launcher::Launcher;
use super::stream::Stream;
use crate::base::event::{Counters, Event};
use crate::base::limits::{ADMISSION_DEADLINE, ORPHAN_GRACE, PENDING_MAX};
use crate::base::{JobId, Rank};

/// Who this rank is to its peers.
#[derive(Clone)]
pub(super) struct Identity {
    pub(super) key: Key,
    pub(super) job: JobId,
    pub(super) me: Rank,
    pub(super) size: u32,
    /// By rank, how many connections besides the first there are to be with
    /// each, if that one is TCP.
    pub(super) lanes: Vec<u8>,
}

/// Where peers call; nothing for a job of one rank.
#[derive(Default)]
pub(super) struct Listeners {
    pub(super) tcp: Option<TcpListener>,
    pub(super) unix: Option<UnixListener>,
}

/// Who has connected.
pub(super) struct Arrived {
    pub(super) links: Vec<(Rank, Stream)>,
    /// The other connections of those that came by TCP, in order.
    pub(super) lanes: Vec<(Rank, u8, TcpStream)>,
}

/// The running thread; dropping it ends the thread and closes the listeners.
#[derive(Debug)]
pub struct Acceptor {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Acceptor {
    pub(super) fn start(
        identity: Identity,
        listeners: Listeners,
        launcher: Launcher,
        counters: Arc<Counters>,
    ) -> io::Result<Acceptor> {
        if let Some(tcp) = &listeners.tcp {
            tcp.set_nonblocking(true)?;
        }
        if let Some(unix) = &listeners.unix {
            unix.set_nonblocking(true)?;
        }
        let shared = Arc::new(Shared {
            stop: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
            arrivals: Mutex::new(Arrivals {
                links: Vec::new(),
                lanes: Vec::new(),
                seen: vec![Seen::default(); identity.size as usize],
            }),
            changed: Condvar::new(),
        });
        let turn = Turn {
            identity,
            listeners,
            launcher,
            counters,
            shared: shared.clone(),
            pending: Vec::new(),
            deaf_until: None,
            orphan_since: None,
        };
        let thread = std::thread::Builder::new().name("clm-acceptor".into()).spawn(move || turn.run())?;
        Ok(Acceptor { shared, thread: Some(thread) })
    }

    /// Waits until all `ranks` have connected with all their lanes, or says which
    /// have not by then or when `give_up` first returns true.
    pub(super) fn wait_for(
        &self,
        ranks: std::ops::Range<u32>,
        deadline: Instant,
        give_up: impl Fn() -> bool,
    ) -> Result<Arrived, Vec<Rank>> {
        let mut arrivals = self.shared.lock();
        loop {
            let missing: Vec<Rank> = ranks.clone().map(Rank).filter(|rank| !arrivals.seen[rank.index()].is_complete()).collect();
            if missing.is_empty() {
                let mut lanes = std::mem::take(&mut arrivals.lanes);
                lanes.sort_by_key(|(rank, lane, _)| (*rank, *lane));
                return Ok(Arrived { links: std::mem::take(&mut arrivals.links), lanes });
            }
            if Instant::now() >= deadline || give_up() {
                return Err(missing);
            }
            let (guard, _) = self.shared.changed.wait_timeout(arrivals, LOOK_AROUND).unwrap_or_else(|e| e.into_inner());
            arrivals = guard;
        }
    }
}

impl Drop for Acceptor {
    fn drop(&mut self) {
        // An eventfd takes a 1 unless it is at its end, and then it is readable
        // already.
        let _ = rustix::io::write(&self.shared.stop, &1u64.to_ne_bytes());
        if let Some(thread) = self.thread.take() {
            // A panic in the thread has nothing to tell here: the listeners are
            // closed either way.
            let _ = thread.join();
        }
    }
}

/// How often a waiting rank looks whether its launcher still lives.
const LOOK_AROUND: Duration = Duration::from_millis(100);

/// How long the listeners rest when the process is out of descriptors.
const DEAF: Duration = Duration::from_millis(100);

/// How often to ask for the launcher's life where it has no descriptor.
const ASK_LAUNCHER: Duration = Duration::from_millis(500);

#[derive(Debug)]
struct Shared {
    stop: OwnedFd,
    arrivals: Mutex<Arrivals>,
    changed: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Arrivals> {
        // Every update of the arrivals is complete before the lock is left.
        self.arrivals.lock().unwrap_or_else(|e| e.into_inner())
    }
}

#[derive(Debug)]
struct Arrivals {
    links: Vec<(Rank, Stream)>,
    lanes: Vec<(Rank, u8, TcpStream)>,
    /// By rank.
    seen: Vec<Seen>,
}

/// Which connections of a rank have come.
#[derive(Clone, Copy, Default, Debug)]
struct Seen {
    /// A bit for each lane.
    lanes: u64,
    /// A bit for each that is to come; known with the first.
    due: u64,
}

impl Seen {
    fn is_complete(self) -> bool {
        self.lanes != 0 && self.lanes == self.due
    }

    /// Whether a lane is still to come.
    fn lacks(self, lane: u32) -> bool {
        let due = if self.lanes == 0 { 1 } else { self.due };
        lane < u64::BITS && due & !self.lanes & 1 << lane != 0
    }
}

/// A connection within the handshake.
struct Pending {
    stream: Stream,
    handshake: admission::Listener,
    deadline: Instant,
}

/// The thread's state.
struct Turn {
    identity: Identity,
    listeners: Listeners,
    launcher: Launcher,
    counters: Arc<Counters>,
    shared: Arc<Shared>,
    /// By age, the oldest first.
    pending: Vec<Pending>,
    deaf_until: Option<Instant>,
    orphan_since: Option<Instant>,
}

impl Turn {
    fn run(mut self) {
        loop {
            let ready = self.sleep();
            if ready.stop {
                return;
            }
            self.watch_launcher();
            for (index, _) in ready.pending.iter().enumerate().rev().filter(|(_, ready)| **ready) {
                self.advance(index);
            }
            self.expire(Instant::now());
            if ready.listeners {
                self.accept();
            }
        }
    }

    fn sleep(&self) -> Ready {
        let readable = |fd| PollFd::from_borrowed_fd(fd, PollFlags::IN);
        let mut fds = vec![readable(self.shared.stop.as_fd())];
        fds.extend(self.pending.iter().map(|p| readable(p.stream.as_fd())));
        let first_listener = fds.len();
        if self.deaf_until.is_none() {
            fds.extend(self.listeners.fds().map(readable));
        }
        let end_of_listeners = fds.len();
        if self.orphan_since.is_none() {
            fds.extend(self.launcher.watch());
        }
        let timeout = self.timeout(Instant::now());
        // An interrupted poll reports nothing, and the next turn asks again.
        let reported = poll(&mut fds, timeout.as_ref()).is_ok();
        let is_ready = |fd: &PollFd<'_>| reported && !fd.revents().is_empty();
        Ready {
            stop: is_ready(&fds[0]),
            pending: fds[1..first_listener].iter().map(is_ready).collect(),
            listeners: fds[first_listener..end_of_listeners].iter().any(is_ready) || self.deaf_until.is_some(),
        }
    }

    /// Until the next thing that time alone brings about.
    fn timeout(&self, now: Instant) -> Option<Timespec> {
        let orphan = self.orphan_since.map(|t| t + ORPHAN_GRACE);
        let unwatched = self.launcher.exists() && self.launcher.watch().is_none() && orphan.is_none();
        let next =
            [self.pending.first().map(|p| p.deadline), self.deaf_until, orphan, unwatched.then(|| now + ASK_LAUNCHER)];
        let next = next.into_iter().flatten().min()?;
        // A deadline must have passed when poll returns for it.
        let wait = next.saturating_duration_since(now) + Duration::from_millis(1);
        Some(Timespec { tv_sec: wait.as_secs() as i64, tv_nsec: i64::from(wait.subsec_nanos()) })
    }

    /// Ends this process when its launcher has been dead for a while and the
    /// node, which asks [`Launcher::lost`] too, has not ended the job: a rank
    /// in endless user code would otherwise stay behind. Nothing of a rank
    /// outlives it: no file, no named segment.
    fn watch_launcher(&mut self) {
        match self.orphan_since {
            Some(since) if since.elapsed() >= ORPHAN_GRACE => {
                // Signalling oneself cannot fail.
                let _ = kill_process(getpid(), Signal::KILL);
            }
            Some(_) => {}
            None => self.orphan_since = self.launcher.lost().map(|_| Instant::now()),
        }
    }

    /// Takes in callers, from both doors in turn, and not without end: those
    /// that are within the handshake must get on too.
    fn accept(&mut self) {
        self.deaf_until = None;
        for _ in 0..PENDING_MAX / 4 {
            let accepted = [self.listeners.accept_unix(), self.listeners.accept_tcp()];
            let empty = accepted.iter().all(|a| matches!(a, Ok(None)));
            for result in accepted {
                match result {
                    Ok(Some(stream)) => self.greet(stream),
                    Ok(None) => {}
                    // Out of descriptors or memory: rest, lest this spin.
                    Err(_) => self.deaf_until = Some(Instant::now() + DEAF),
                }
            }
            if empty || self.deaf_until.is_some() {
                return;
            }
        }
    }

    fn greet(&mut self, stream: Stream) {
        let mut nonce = [0; NONCE_BYTES];
        if stream.set_nonblocking(true).is_err() || getrandom::fill(&mut nonce).is_err() {
            return;
        }
        if self.pending.len() == PENDING_MAX {
            self.refuse(0, Event::RefusedSlow);
        }
        let Identity { key, job, me, .. } = &self.identity;
        self.pending.push(Pending {
            stream,
            handshake: admission::Listener::new(key.clone(), *job, *me, nonce),
            deadline: Instant::now() + ADMISSION_DEADLINE,
        });
        self.advance(self.pending.len() - 1);
    }

    /// Takes the handshake with number `index` as far as its bytes go.
    fn advance(&mut self, index: usize) {
        loop {
            let Pending { stream, handshake, .. } = &mut self.pending[index];
            let mut buffer = [0; admission::HELLO_BYTES];
            let step = match stream.read(&mut buffer[..handshake.wanted()]) {
                Ok(0) => return self.refuse(index, Event::RefusedClosed),
                Ok(n) => handshake.feed(&buffer[..n]),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(_) => return self.refuse(index, Event::RefusedClosed),
            };
            match step {
                Ok(Step::More) => {}
                Ok(Step::Send(bytes)) => {
                    // A fresh socket has room for 32 bytes.
                    if !matches!(stream.write(&bytes), Ok(n) if n == bytes.len()) {
                        return self.refuse(index, Event::RefusedClosed);
                    }
                }
                Ok(Step::Proven(rank, lane)) => return self.admit(index, rank, lane),
                Err(refusal) => return self.refuse(index, refusal.event()),
            }
        }
    }

    fn admit(&mut self, index: usize, rank: Rank, lane: u32) {
        let mut arrivals = self.shared.lock();
        // Ranks call lower ranks, once for each lane, and lanes are TCP.
        let is_tcp = matches!(self.pending[index].stream, Stream::Tcp(_));
        let expected = rank > self.identity.me
            && arrivals.seen.get(rank.index()).is_some_and(|seen| seen.lacks(lane))
            && (lane == 0 || is_tcp);
        if !expected {
            drop(arrivals);
            return self.refuse(index, Event::RefusedRank);
        }
        let Pending { mut stream, handshake, .. } = self.pending.remove(index);
        let admission = handshake.admission();
        if !matches!(stream.write(&admission), Ok(n) if n == admission.len()) || stream.hand_over().is_err() {
            self.counters.count(Event::RefusedClosed);
            return;
        }
        self.counters.count(Event::Admitted);
        if lane == 0 {
            let more = if is_tcp { self.identity.lanes.get(rank.index()).copied().unwrap_or(0) } else { 0 };
            arrivals.seen[rank.index()].due = (1 << (more + 1)) - 1;
        }
        arrivals.seen[rank.index()].lanes |= 1 << lane;
        match stream {
            Stream::Tcp(socket) if lane > 0 => arrivals.lanes.push((rank, lane as u8, socket)),
            first => arrivals.links.push((rank, first)),
        }
        self.shared.changed.notify_all();
    }

    fn expire(&mut self, now: Instant) {
        while self.pending.first().is_some_and(|p| p.deadline <= now) {
            self.refuse(0, Event::RefusedSlow);
        }
    }

    fn refuse(&mut self, index: usize, event: Event) {
        self.pending.remove(index);
        self.counters.count(event);
    }
}

/// What a sleep ended with.
struct Ready {
    stop: bool,
    pending: Vec<bool>,
    listeners: bool,
}

impl Listeners {
    fn fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.tcp.iter().map(AsFd::as_fd).chain(self.unix.iter().map(AsFd::as_fd))
    }

    fn accept_unix(&self) -> io::Result<Option<Stream>> {
        let Some(unix) = &self.unix else { return Ok(None) };
        accepted(|| Ok(Stream::Unix(unix.accept()?.0)))
    }

    fn accept_tcp(&self) -> io::Result<Option<Stream>> {
        let Some(tcp) = &self.tcp else { return Ok(None) };
        accepted(|| Ok(Stream::Tcp(tcp.accept()?.0)))
    }
}

/// The next connection, if one waits.
fn accepted(accept: impl Fn() -> io::Result<Stream>) -> io::Result<Option<Stream>> {
    loop {
        match accept() {
            Ok(stream) => return Ok(Some(stream)),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            // The caller went away while it queued.
            Err(e) if matches!(e.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::Interrupted) => {}
            Err(e) => return Err(e),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::admission::{Caller, CallerStep, HELLO_BYTES, REPLY_BYTES};
    use super::super::{BootError, Card, Via, dial};
    use super::*;
    use crate::base::HostId;
    use std::net::{SocketAddr, TcpStream};
    use std::os::linux::net::SocketAddrExt;

    /// Rank 1 of 4 listening, and what its peers know of it.
    struct Door {
        acceptor: Acceptor,
        card: Card,
        counters: Arc<Counters>,
    }

    fn identity(rank: u32, key: u8) -> Identity {
        Identity { key: Key([key; 32]), job: JobId(5), me: Rank(rank), size: 4, lanes: vec![0, 0, 0, 2] }
    }

    fn open() -> Door {
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let name = format!("collimate-test-{:032x}", u128::from_le_bytes(super::super::random().unwrap()));
        let address = std::os::unix::net::SocketAddr::from_abstract_name(&name).unwrap();
        let unix = UnixListener::bind_addr(&address).unwrap();
        rustix::net::listen(&tcp, crate::base::limits::BACKLOG).unwrap();
        let card = Card { rank: Rank(1), host: HostId(0), tcp: tcp.local_addr().unwrap(), unix: name, pid: 0, lanes: 2, note: Vec::new() };
        let counters = Arc::new(Counters::new());
        let listeners = Listeners { tcp: Some(tcp), unix: Some(unix) };
        let acceptor = Acceptor::start(identity(1, 1), listeners, Launcher::none(), counters.clone()).unwrap();
        Door { acceptor, card, counters }
    }

    impl Door {
        fn connect(&self) -> TcpStream {
            let stream = TcpStream::connect(self.card.tcp).unwrap();
            stream.set_read_timeout(Some(2 * ADMISSION_DEADLINE)).unwrap();
            stream
        }

        fn call(&self, rank: u32, key: u8, via: Via) -> Result<Stream, BootError> {
            self.call_for(rank, 0, key, via)
        }

        fn call_for(&self, rank: u32, lane: u8, key: u8, via: Via) -> Result<Stream, BootError> {
            dial::call(&identity(rank, key), &self.card, lane, via, &Launcher::none())
        }

        /// Waits until `event` has been counted `times`.
        fn expect(&self, event: Event, times: u64) {
            let start = Instant::now();
            while self.counters.get(event) < times && start.elapsed() < 2 * ADMISSION_DEADLINE {
                std::thread::sleep(Duration::from_millis(5));
            }
            assert_eq!(self.counters.get(event), times, "{}", event.name());
        }

        fn wait_for(&self, ranks: std::ops::Range<u32>) -> Vec<(Rank, Stream)> {
            self.acceptor.wait_for(ranks, Instant::now() + ADMISSION_DEADLINE, || false).unwrap().links
        }
    }

    /// Whether the other side has closed the connection without another byte.
    fn is_closed(mut stream: &TcpStream) -> bool {
        match stream.read(&mut [0; 64]) {
            Ok(n) => n == 0,
            Err(e) => e.kind() == io::ErrorKind::ConnectionReset,
        }
    }

    #[test]
    fn peers_are_let_in_by_either_door_and_bytes_flow() {
        let door = open();
        let mut unix = door.call(2, 1, Via::Unix).unwrap();
        let mut tcp = door.call(3, 1, Via::Tcp).unwrap();
        let lanes = [1, 2].map(|lane| door.call_for(3, lane, 1, Via::Tcp).unwrap());
        unix.write_all(&[2]).unwrap();
        tcp.write_all(&[3]).unwrap();
        for (rank, mut link) in door.wait_for(2..4) {
            let mut byte = [0];
            link.read_exact(&mut byte).unwrap();
            assert_eq!(u32::from(byte[0]), rank.0);
        }
        door.expect(Event::Admitted, 4);
        drop(lanes);
    }

    #[test]
    fn a_rank_is_there_with_its_last_lane_and_each_comes_once_and_after_the_first() {
        let door = open();
        let is_refused = |rank, lane, via| {
            let error = door.call_for(rank, lane, 1, via).unwrap_err();
            assert!(error.to_string().contains("it refused this rank"), "{error}");
        };
        is_refused(3, 1, Via::Tcp);
        let _first = door.call(3, 1, Via::Tcp).unwrap();
        let mut second = door.call_for(3, 2, 1, Via::Tcp).unwrap();
        is_refused(3, 2, Via::Tcp);
        is_refused(3, 3, Via::Tcp);
        is_refused(3, 1, Via::Unix);
        let soon = Instant::now() + Duration::from_millis(50);
        assert_eq!(door.acceptor.wait_for(3..4, soon, || false).err(), Some(vec![Rank(3)]));
        let mut first = door.call_for(3, 1, 1, Via::Tcp).unwrap();
        first.write_all(&[1]).unwrap();
        second.write_all(&[2]).unwrap();
        let arrived = door.acceptor.wait_for(3..4, Instant::now() + ADMISSION_DEADLINE, || false).unwrap();
        assert_eq!(arrived.links.len(), 1);
        for ((rank, lane, mut socket), expected) in arrived.lanes.into_iter().zip([1, 2]) {
            let mut byte = [0];
            socket.read_exact(&mut byte).unwrap();
            assert_eq!((rank, lane, byte[0]), (Rank(3), expected, expected));
        }
        // One that came by the Unix door has no lanes.
        let _unix = door.call(2, 1, Via::Unix).unwrap();
        is_refused(2, 1, Via::Tcp);
        door.wait_for(2..3);
    }

    #[test]
    fn silence_and_drip_are_closed_in_time_and_delay_nobody() {
        let door = open();
        let start = Instant::now();
        let silent = door.connect();
        let drip = door.connect();
        let dripping = {
            let mut drip = drip.try_clone().unwrap();
            let hello = *Caller::new(Key([1; 32]), JobId(5), Rank(2), Rank(1), 0, [0; 32]).hello();
            std::thread::spawn(move || {
                for byte in hello.iter().cycle() {
                    if drip.write_all(&[*byte]).is_err() {
                        return;
                    }
                    std::thread::sleep(ADMISSION_DEADLINE / 20);
                }
            })
        };
        door.call(2, 1, Via::Tcp).unwrap();
        door.wait_for(2..3);
        assert!(start.elapsed() < ADMISSION_DEADLINE, "the honest peer did not wait for the others");
        assert!(is_closed(&silent) && is_closed(&drip));
        assert!(start.elapsed() < ADMISSION_DEADLINE * 2);
        door.expect(Event::RefusedSlow, 2);
        dripping.join().unwrap();
    }

    #[test]
    fn a_flood_of_silent_strangers_does_not_keep_a_peer_out() {
        let door = open();
        let strangers: Vec<_> = (0..PENDING_MAX + 40).map(|_| door.connect()).collect();
        door.call(2, 1, Via::Tcp).unwrap();
        door.wait_for(2..3);
        assert!(door.counters.get(Event::RefusedSlow) >= 40);
        drop(strangers);
    }

    #[test]
    fn garbage_and_an_early_end_are_counted() {
        let door = open();
        let mut garbage = door.connect();
        garbage.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
        assert!(is_closed(&garbage));
        door.expect(Event::RefusedGarbage, 1);
        door.connect().write_all(b"COLL").unwrap();
        door.expect(Event::RefusedClosed, 1);
        assert!(door.call(2, 1, Via::Tcp).is_ok());
    }

    #[test]
    fn a_wrong_key_is_refused_on_both_sides() {
        let door = open();
        let mut stranger = door.connect();
        let mut caller = Caller::new(Key([9; 32]), JobId(5), Rank(2), Rank(1), 0, [3; 32]);
        stranger.write_all(caller.hello()).unwrap();
        let mut challenge = [0; REPLY_BYTES];
        stranger.read_exact(&mut challenge).unwrap();
        let Ok(CallerStep::Send(proof)) = caller.feed(&challenge) else { panic!("no proof") };
        stranger.write_all(&proof).unwrap();
        assert!(is_closed(&stranger));
        door.expect(Event::RefusedProof, 1);

        // And a listener that cannot prove itself is not talked to.
        let impostor = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = impostor.local_addr().unwrap();
        let answering = std::thread::spawn(move || {
            let (mut stream, _) = impostor.accept().unwrap();
            stream.read_exact(&mut [0; HELLO_BYTES]).unwrap();
            stream.write_all(&[7; REPLY_BYTES]).unwrap();
            stream.read_exact(&mut [0; REPLY_BYTES]).unwrap();
            stream.write_all(&[8; REPLY_BYTES]).unwrap();
        });
        let card = Card { tcp: address, ..door.card.clone() };
        let error = dial::call(&identity(2, 1), &card, 0, Via::Tcp, &Launcher::none()).unwrap_err();
        assert!(error.to_string().contains("does not have this job's key"), "{error}");
        answering.join().unwrap();
    }

    #[test]
    fn a_recorded_handshake_cannot_be_replayed() {
        let door = open();
        let mut honest = door.connect();
        let mut caller = Caller::new(Key([1; 32]), JobId(5), Rank(2), Rank(1), 0, [3; 32]);
        honest.write_all(caller.hello()).unwrap();
        let mut challenge = [0; REPLY_BYTES];
        honest.read_exact(&mut challenge).unwrap();
        let Ok(CallerStep::Send(proof)) = caller.feed(&challenge) else { panic!("no proof") };
        honest.write_all(&proof).unwrap();
        let mut admission = [0; REPLY_BYTES];
        honest.read_exact(&mut admission).unwrap();
        assert_eq!(caller.feed(&admission), Ok(CallerStep::Admitted));

        let mut replay = door.connect();
        replay.write_all(&[&caller.hello()[..], &proof].concat()).unwrap();
        let mut other = [0; REPLY_BYTES];
        replay.read_exact(&mut other).unwrap();
        assert_ne!(challenge, other);
        assert!(is_closed(&replay));
        door.expect(Event::RefusedProof, 1);
        assert_eq!(door.counters.get(Event::Admitted), 1);
    }

    #[test]
    fn a_rank_comes_once_and_only_from_above() {
        let door = open();
        door.call(2, 1, Via::Tcp).unwrap();
        for (times, rank) in [2, 1, 0, 4].into_iter().enumerate() {
            // One call by hand: the caller itself would try again.
            let mut stream = door.connect();
            let mut caller = Caller::new(Key([1; 32]), JobId(5), Rank(rank), Rank(1), 0, [rank as u8; 32]);
            stream.write_all(caller.hello()).unwrap();
            let mut challenge = [0; REPLY_BYTES];
            stream.read_exact(&mut challenge).unwrap();
            let Ok(CallerStep::Send(proof)) = caller.feed(&challenge) else { panic!("no proof") };
            stream.write_all(&proof).unwrap();
            assert!(is_closed(&stream));
            door.expect(Event::RefusedRank, times as u64 + 1);
        }
        door.expect(Event::Admitted, 1);
    }

    #[test]
    fn who_has_not_come_is_known_and_the_door_closes_with_its_owner() {
        let door = open();
        door.call(3, 1, Via::Unix).unwrap();
        let missing = door.acceptor.wait_for(2..4, Instant::now() + Duration::from_millis(50), || false);
        assert_eq!(missing.err(), Some(vec![Rank(2)]));
        let (address, card): (SocketAddr, Card) = (door.card.tcp, door.card.clone());
        drop(door);
        assert!(TcpStream::connect(address).is_err());
        let error = dial::call(&identity(2, 1), &card, 0, Via::Unix, &Launcher::none()).unwrap_err();
        assert!(error.to_string().contains("rank 2 cannot reach rank 1"), "{error}");
    }
}
