//! How the ranks of a job find each other and prove that they belong together:
//! a launcher's all-gather of addresses, then one authenticated connection per
//! pair of ranks. What the connections carry is not known here.

mod acceptor;
mod admission;
mod bootstrap;
mod dial;
mod error;
mod frame;
mod hostfile;
mod lanes;
mod launch;
mod launcher;
mod local;
#[cfg(feature = "mpi")]
mod mpi;
#[cfg(not(feature = "mpi"))]
mod pmi;
#[cfg(not(feature = "mpi"))]
mod pmix;
mod remote;
mod stream;
mod verdict;

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::time::Instant;

use serde::{Deserialize, Serialize};

pub use acceptor::Acceptor;
pub use bootstrap::launched;
pub use error::BootError;
pub use hostfile::{Host, HostFileError};
pub use launch::{Job, LaunchError, launch};
pub use launcher::Launcher;
pub use remote::serve_remote;
pub use stream::Stream;

use acceptor::{Identity, Listeners};
use admission::{KEY_BYTES, Key};
use bootstrap::Bootstrap;

use crate::base::event::{Counters, Event};
use crate::base::limits::{BACKLOG, BOOT_DEADLINE, LANES_MAX, RANKS_MAX};
use crate::base::{Config, HostId, JobId, Rank};

/// How one rank connects to another.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Via {
    /// A Unix socket; both must be on one host.
    Unix,
    /// TCP.
    Tcp,
}

/// What a rank tells all others of itself.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Card {
    /// Which rank.
    pub rank: Rank,
    /// Its host.
    pub host: HostId,
    /// Where it listens for other hosts.
    pub tcp: SocketAddr,
    /// The name of the abstract Unix socket where it listens for its host.
    pub unix: String,
    /// Its process.
    pub pid: u32,
    /// How many connections, besides the first, it can have with each peer that
    /// it reaches by TCP; a pair has as many as both can.
    pub lanes: u8,
    /// What the layers above have to say; not known here.
    pub note: Vec<u8>,
}

/// A rank connected to all others.
#[derive(Debug)]
pub struct Mesh {
    /// This rank.
    pub rank: Rank,
    /// Ranks of the job.
    pub size: u32,
    /// This rank's number among the ranks of its host.
    pub local_rank: u32,
    /// Ranks of this host.
    pub local_size: u32,
    /// The job.
    pub job: JobId,
    /// All ranks' cards, by rank.
    pub cards: Vec<Card>,
    /// One connection per peer, in no order.
    pub links: Vec<(Rank, Stream)>,
    /// Further connections to peers that were reached by TCP, as authenticated
    /// as the first, and in the same order on both sides.
    pub lanes: HashMap<Rank, Vec<TcpStream>>,
    /// Why there are fewer of them than were asked for.
    pub lanes_note: Option<String>,
    /// What started this rank.
    pub launcher: Launcher,
    /// Keeps strangers and latecomers out for as long as it lives; `None` when
    /// nothing launched this process, for then nothing listens.
    pub acceptor: Option<Acceptor>,
    /// What happened at the door.
    pub counters: Arc<Counters>,
}

/// Most bytes of [`Card::note`]: some launchers carry no more than a line.
pub const NOTE_BYTES_MAX: usize = 64;

/// The variable by which `collimate run` names the socket to it.
const LAUNCH_FD: &str = "COLLIMATE_LAUNCH_FD";

/// What one launch is known by, and what proves that one belongs to it.
type Secret = (JobId, Key);

/// Joins this process to its job. `choose` says how the pair of this rank (the
/// first card) and a lower rank connects, `note` what this rank tells all others
/// on its card, at most [`NOTE_BYTES_MAX`] bytes; its error is [`BootError::Note`].
/// A process that nothing launched is a job of one rank.
pub fn start(
    config: &Config,
    choose: &dyn Fn(&Card, &Card) -> Via,
    note: &dyn Fn(Rank, u32) -> Result<Vec<u8>, String>,
) -> Result<Mesh, BootError> {
    let Some(bootstrap) = bootstrap::find()? else { return single(Launcher::none(), None, noted(note, Rank(0), 1)?) };
    match bootstrap.size() {
        0 | 1 => {
            let job = bootstrap.secret().map(|(job, _)| job);
            let note = noted(note, Rank(0), 1)?;
            single(bootstrap.finish()?, job, note)
        }
        size if size > RANKS_MAX => Err(BootError::TooManyRanks { size, max: RANKS_MAX }),
        size => {
            let note = noted(note, bootstrap.rank(), size)?;
            join(bootstrap, config, choose, note)
        }
    }
}

fn noted(note: &dyn Fn(Rank, u32) -> Result<Vec<u8>, String>, me: Rank, size: u32) -> Result<Vec<u8>, BootError> {
    let note = note(me, size).map_err(|why| BootError::Note { me, why })?;
    assert!(note.len() <= NOTE_BYTES_MAX, "launchers carry short cards only");
    Ok(note)
}

/// A job of one rank: nobody to listen for.
fn single(launcher: Launcher, job: Option<JobId>, note: Vec<u8>) -> Result<Mesh, BootError> {
    let counters = Arc::new(Counters::new());
    let job = match job {
        Some(job) => job,
        None => draw_secret()?.0,
    };
    let me = Rank(0);
    let acceptor = if launcher.exists() {
        let identity = Identity { key: Key([0; KEY_BYTES]), job, me, size: 1, lanes: vec![0] };
        let acceptor = Acceptor::start(identity, Listeners::default(), launcher.clone(), counters.clone());
        Some(acceptor.map_err(BootError::os("start a thread"))?)
    } else {
        None
    };
    let card = Card {
        rank: me,
        host: host_id()?,
        tcp: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
        unix: String::new(),
        pid: std::process::id(),
        lanes: 0,
        note,
    };
    Ok(Mesh {
        rank: me,
        size: 1,
        local_rank: 0,
        local_size: 1,
        job,
        cards: vec![card],
        links: Vec::new(),
        lanes: HashMap::new(),
        lanes_note: None,
        launcher,
        acceptor,
        counters,
    })
}

fn join(
    mut bootstrap: Box<dyn Bootstrap>,
    config: &Config,
    choose: &dyn Fn(&Card, &Card) -> Via,
    note: Vec<u8>,
) -> Result<Mesh, BootError> {
    let (me, size) = (bootstrap.rank(), bootstrap.size());
    let deadline = Instant::now() + BOOT_DEADLINE;

    let one_host = bootstrap.one_host();
    let (most_lanes, lanes_note) = lanes::afford(config, size, one_host);
    // Listen first and publish then: whoever has the card can call at once.
    let (listeners, mut card) = listen(config, me, one_host)?;
    card.lanes = most_lanes;
    card.note = note;
    let launcher_secret = bootstrap.secret();
    let drawn = if me == Rank(0) && launcher_secret.is_none() { Some(draw_secret()?) } else { None };
    let offers = bootstrap.exchange(&Offer::new(&card, drawn.as_ref()).encode())?;
    let launcher = bootstrap.finish()?;
    let (cards, published) = read_offers(&offers, size)?;
    let (job, key) = launcher_secret.or(published).ok_or(BootError::Card(Rank(0)))?;

    let counters = Arc::new(Counters::new());
    let agreed = cards.iter().map(|peer| peer.lanes.min(card.lanes)).collect();
    let identity = Identity { key, job, me, size, lanes: agreed };
    let acceptor = Acceptor::start(identity.clone(), listeners, launcher.clone(), counters.clone())
        .map_err(BootError::os("start a thread"))?;
    let mut links = Vec::with_capacity(size as usize - 1);
    let mut lanes: HashMap<Rank, Vec<TcpStream>> = HashMap::new();
    for peer in &cards[..me.index()] {
        let call = |lane| dial::call(&identity, peer, lane, choose(&card, peer), &launcher);
        let first = call(0)?;
        let more = if let Stream::Tcp(_) = &first { identity.lanes[peer.rank.index()] } else { 0 };
        for lane in 1..=more {
            if let Stream::Tcp(socket) = call(lane)? {
                lanes.entry(peer.rank).or_default().push(socket);
            }
        }
        links.push((peer.rank, first));
        (0..=more).for_each(|_| counters.count(Event::Admitted));
    }
    let higher = acceptor.wait_for(me.0 + 1..size, deadline, || launcher.lost().is_some());
    let higher = higher.map_err(|missing| match launcher.lost() {
        Some(why) => BootError::Launcher(why),
        None => BootError::Missing { me, missing: list(&missing), seconds: BOOT_DEADLINE.as_secs() },
    })?;
    links.extend(higher.links);
    for (rank, _, socket) in higher.lanes {
        lanes.entry(rank).or_default().push(socket);
    }

    let of_my_host = || cards.iter().filter(|c| c.host == card.host);
    Ok(Mesh {
        rank: me,
        size,
        local_rank: of_my_host().filter(|c| c.rank < me).count() as u32,
        local_size: of_my_host().count() as u32,
        job,
        links,
        lanes,
        lanes_note,
        launcher,
        acceptor: Some(acceptor),
        counters,
        cards,
    })
}

fn draw_secret() -> Result<Secret, BootError> {
    Ok((JobId(u64::from_le_bytes(random()?)), Key(random()?)))
}

/// Random bytes from the operating system.
fn random<const N: usize>() -> Result<[u8; N], BootError> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes)
        .map_err(|e| BootError::Os { what: "draw random numbers", cause: std::io::Error::other(e.to_string()) })?;
    Ok(bytes)
}

/// The first ranks of a list, in words.
fn list(ranks: &[Rank]) -> String {
    const SHOWN: usize = 8;
    let mut text = ranks.iter().take(SHOWN).map(Rank::to_string).collect::<Vec<_>>().join(", ");
    if ranks.len() > SHOWN {
        text.push_str(&format!(" and {} more", ranks.len() - SHOWN));
    }
    text
}

/// Opens both doors and writes the card that names them.
fn listen(config: &Config, me: Rank, one_host: bool) -> Result<(Listeners, Card), BootError> {
    let (bind_to, address) = match config.interface {
        Some(address) => (address, address),
        None if one_host => (Ipv4Addr::LOCALHOST.into(), Ipv4Addr::LOCALHOST.into()),
        None => match routed_address() {
            address @ IpAddr::V4(_) => (Ipv4Addr::UNSPECIFIED.into(), address),
            address @ IpAddr::V6(_) => (Ipv6Addr::UNSPECIFIED.into(), address),
        },
    };
    let failed = |address: String, cause, remedy| BootError::Listen { rank: me, address, cause, remedy };
    let port = match config.port {
        0 => 0,
        first => u16::try_from(u32::from(first) + me.0).map_err(|_| {
            let cause = std::io::Error::other("no such port");
            failed(format!("port {first} + {}", me.0), cause, "set COLLIMATE_PORT lower or unset it")
        })?,
    };
    let remedy = match config.port {
        0 => "set COLLIMATE_INTERFACE to an address of this host or unset it",
        _ => "set COLLIMATE_PORT to the first of as many free ports as there are ranks, or unset it",
    };
    let tcp = TcpListener::bind((bind_to, port))
        .map_err(|cause| failed(SocketAddr::from((bind_to, port)).to_string(), cause, remedy))?;
    let port = tcp.local_addr().map_err(BootError::os("getsockname"))?.port();

    let unix = format!("collimate-{:032x}", u128::from_le_bytes(random()?));
    let unix_address = std::os::unix::net::SocketAddr::from_abstract_name(&unix);
    let unix_listener = unix_address
        .and_then(|address| UnixListener::bind_addr(&address))
        .map_err(BootError::os("listen on an abstract Unix socket"))?;
    rustix::net::listen(&tcp, BACKLOG).map_err(BootError::os("listen"))?;
    rustix::net::listen(&unix_listener, BACKLOG).map_err(BootError::os("listen"))?;

    let address = SocketAddr::new(address, port);
    let card = Card { rank: me, host: host_id()?, tcp: address, unix, pid: std::process::id(), lanes: 0, note: Vec::new() };
    Ok((Listeners { tcp: Some(tcp), unix: Some(unix_listener) }, card))
}

/// The address from which this host would reach others, by its routing table:
/// connecting a datagram socket sends nothing. (The targets are addresses that
/// are reserved for documentation.)
fn routed_address() -> IpAddr {
    let ask = |from: IpAddr, to: IpAddr| {
        let socket = UdpSocket::bind((from, 0))?;
        socket.connect((to, 9))?;
        socket.local_addr().map(|address| address.ip())
    };
    ask(Ipv4Addr::UNSPECIFIED.into(), Ipv4Addr::new(192, 0, 2, 1).into())
        .or_else(|_| ask(Ipv6Addr::UNSPECIFIED.into(), Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).into()))
        .unwrap_or(Ipv4Addr::LOCALHOST.into())
}

/// Names what two ranks share that can reach each other through abstract
/// sockets: one boot of one kernel, and the network namespace.
fn host_id() -> Result<HostId, BootError> {
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").map_err(BootError::os("read the boot ID"))?;
    let namespace = std::fs::read_link("/proc/self/ns/net").map_err(BootError::os("read the network namespace"))?;
    let text = format!("{}\0{}", boot.trim(), namespace.display());
    Ok(HostId(twox_hash::XxHash3_128::oneshot(text.as_bytes()) as u64))
}

/// A card as it is published, with the secret when rank 0 draws it.
#[derive(Serialize, Deserialize)]
struct Offer {
    version: u32,
    rank: u32,
    host: u64,
    tcp: SocketAddr,
    unix: String,
    pid: u32,
    lanes: u8,
    note: Vec<u8>,
    secret: Option<(u64, Key)>,
}

const OFFER_VERSION: u32 = 3;

impl Offer {
    fn new(card: &Card, secret: Option<&Secret>) -> Offer {
        Offer {
            version: OFFER_VERSION,
            rank: card.rank.0,
            host: card.host.0,
            tcp: card.tcp,
            unix: card.unix.clone(),
            pid: card.pid,
            lanes: card.lanes,
            note: card.note.clone(),
            secret: secret.map(|(job, key)| (job.0, key.clone())),
        }
    }

    fn encode(&self) -> Vec<u8> {
        postcard::to_stdvec(self).expect("an offer always encodes")
    }
}

/// All cards by rank, and the secret if it was published.
fn read_offers(offers: &[Vec<u8>], size: u32) -> Result<(Vec<Card>, Option<Secret>), BootError> {
    let mut secret = None;
    let mut cards = Vec::with_capacity(offers.len());
    for (rank, bytes) in (0..size).map(Rank).zip(offers) {
        let offer: Offer = postcard::from_bytes(bytes).map_err(|_| BootError::Card(rank))?;
        if offer.version != OFFER_VERSION || offer.rank != rank.0 {
            return Err(BootError::Card(rank));
        }
        secret = secret.or(offer.secret.map(|(job, key)| (JobId(job), key)));
        let Offer { host, tcp, unix, pid, lanes, note, .. } = offer;
        if usize::from(lanes) > LANES_MAX || note.len() > NOTE_BYTES_MAX {
            return Err(BootError::Card(rank));
        }
        cards.push(Card { rank, host: HostId(host), tcp, unix, pid, lanes, note });
    }
    if cards.len() == size as usize { Ok((cards, secret)) } else { Err(BootError::Card(Rank(cards.len() as u32))) }
}
