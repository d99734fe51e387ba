//! Which fabric serves which peer: makes those that work here, agrees with each
//! peer on one, and hands the connections over.

use std::collections::HashMap;
use std::io::Write;
use std::net::{IpAddr, TcpStream};
use std::sync::Arc;
use std::time::Instant;

use super::start::StartError;
use super::state::ARENA;
use crate::base::config::FabricChoice;
use crate::base::event::Counters;
use crate::base::{Config, Rank, limits};
use crate::boot::Stream;
use crate::fabric::{
    Choice, EpollFabric, Fabric, FabricError, Grade, Kind, Link, OfiFabric, Offer, RdmaFabric, ShmFabric, UringFabric,
    choose, rdma_available, receive_exactly,
};
use crate::mem::{Arena, Region};
use crate::sys;

/// Fabrics and the peers that each reaches.
pub(super) type Connected = Vec<(Box<dyn Fabric>, Vec<Rank>)>;

/// The first byte of an offer on the wire.
const OFFER_VERSION: u8 = 1;

/// The longest offer, in bytes: a few grades and a provider's name.
const OFFER_BYTES_MAX: usize = 255;

/// Hands every connection to the fabric that serves it.
pub(super) fn connect(
    config: &Config,
    rank: Rank,
    mut links: Vec<(Rank, Stream)>,
    mut lanes: HashMap<Rank, Vec<TcpStream>>,
    arena: Option<&Arena>,
    counters: &Arc<Counters>,
) -> Result<Connected, StartError> {
    // All ranks connect in one order, so that no two wait for each other.
    links.sort_by_key(|(peer, _)| *peer);
    let (mut near, mut far) = (Vec::new(), Vec::new());
    for (peer, stream) in links {
        match stream {
            Stream::Unix(stream) => near.push((peer, stream)),
            Stream::Tcp(stream) => far.push((peer, stream)),
        }
    }
    let failed = |cause| StartError::Fabric { rank, cause };
    let region = arena.map(|arena| arena.region().clone());
    let mut table = Table { config, rank, connected: Vec::new() };
    if !near.is_empty() {
        let mut fabric = ShmFabric::new(rank, counters.clone()).map_err(failed)?;
        if let Some(region) = &region {
            fabric.register(ARENA, region.clone()).map_err(failed)?;
        }
        table.connected.push((Box::new(fabric), Vec::new()));
    }
    for (peer, stream) in near {
        table.add(Kind::Shm, "the same host", peer, Link::Unix(stream))?;
    }
    if far.is_empty() {
        return Ok(table.finish());
    }

    let local = || far.iter().find_map(|(_, stream)| Some(stream.local_addr().ok()?.ip().to_canonical()));
    let source = config.interface.or_else(local);
    let site = Site { config, rank, source, peers: far.len() as u32, counters };
    let means = Means::find(&site, region)?;
    for (peer, stream) in &far {
        send_offer(stream, &means.offer).map_err(|e| failed(os(*peer, "offer", e)))?;
    }
    table.connected.extend(means.fabrics.into_iter().map(|fabric| (fabric, Vec::new())));
    // All offers first: who waits for a slow rank's would keep the others, who
    // have this rank's, waiting in the midst of their set-up.
    let deadline = Instant::now() + limits::BOOT_DEADLINE;
    let theirs = far.iter().map(|(peer, stream)| receive_offer(stream, *peer, deadline)).collect::<Result<Vec<_>, _>>();
    for ((peer, stream), theirs) in far.into_iter().zip(theirs.map_err(failed)?) {
        let choice = choose(&means.offer, &theirs).map_err(|why| StartError::NoFabric { rank, peer, why })?;
        let mine = means.missing.iter().map(|why| format!("; here {why}")).collect::<String>();
        // Others bring their own way for large reads.
        let link = match (choice.kind, lanes.remove(&peer)) {
            (Kind::Uring | Kind::Epoll, Some(more)) => Link::Lanes(stream, more),
            _ => Link::Tcp(stream),
        };
        table.add(choice.kind, &(choice.reason + &mine), peer, link)?;
    }
    Ok(table.finish())
}

/// What a fabric is made for.
struct Site<'a> {
    config: &'a Config,
    rank: Rank,
    /// This rank's address.
    source: Option<IpAddr>,
    /// Peers that it may be chosen for.
    peers: u32,
    counters: &'a Arc<Counters>,
}

impl Site<'_> {
    fn make(&self, kind: Kind, found: &mut Found) -> Result<Box<dyn Fabric>, FabricError> {
        let Site { config, rank, peers, .. } = *self;
        let counters = self.counters.clone();
        Ok(match kind {
            Kind::Rdma => {
                let device = config.rdma_device.as_deref();
                Box::new(RdmaFabric::new(rank, peers, device, config.rdma_gid_index, counters)?)
            }
            Kind::Ofi => {
                let offer = found.ofi.take().expect("a probe that succeeds has an offer");
                Box::new(OfiFabric::new(rank, offer, counters)?)
            }
            Kind::Uring => Box::new(UringFabric::new(rank, counters)?),
            Kind::Shm | Kind::Epoll => Box::new(EpollFabric::new(rank, counters)?),
        })
    }
}

/// What this rank can use towards other hosts.
struct Means {
    /// Those that work, with the arena registered.
    fabrics: Vec<Box<dyn Fabric>>,
    offer: Offer,
    /// Why others do not.
    missing: Vec<String>,
}

impl Means {
    /// Makes what the configuration leaves open and is worth its memory. What
    /// it asks for by name must work.
    fn find(site: &Site<'_>, region: Option<Arc<Region>>) -> Result<Means, StartError> {
        let Site { config, rank, source, .. } = *site;
        let mut means = Means {
            fabrics: Vec::new(),
            offer: Offer { wish: config.fabric, ..Offer::default() },
            missing: Vec::new(),
        };
        for kind in FAR_KINDS {
            let (asked_for, is_open) = stance(config.fabric, kind);
            if !asked_for && (!is_open || is_needless(kind, &means.offer)) {
                continue;
            }
            let failed = |cause| StartError::Fabric { rank, cause };
            let mut found = match probe(kind, config, source) {
                // Not made unasked: it would pin the arena for nothing.
                Ok(found) if !asked_for && found.grade == Grade::Emulated => {
                    means.missing.push(format!("{kind} only by {}", found.detail));
                    continue;
                }
                Ok(found) => found,
                Err(why) if asked_for => return Err(StartError::NotHere { rank, kind, why }),
                Err(why) => {
                    means.missing.push(why);
                    continue;
                }
            };
            let made = site.make(kind, &mut found).and_then(|mut fabric| {
                if let Some(region) = &region {
                    fabric.register(ARENA, region.clone())?;
                }
                Ok(fabric)
            });
            match made {
                Ok(fabric) => {
                    found.offer(kind, &mut means.offer);
                    means.fabrics.push(fabric);
                }
                Err(cause) if asked_for => return Err(failed(cause)),
                Err(cause) => {
                    // Slower by an order of magnitude, for a limit that one
                    // line can raise: said unasked.
                    if matches!(kind, Kind::Rdma | Kind::Ofi) {
                        sys::say_line(format_args!("collimate: {rank}: goes on without {kind}: {cause}"));
                    }
                    means.missing.push(format!("{kind} is not to be had: {cause}"));
                }
            }
        }
        Ok(means)
    }
}

/// What could serve ranks of other hosts, in the order in which it is tried.
const FAR_KINDS: [Kind; 4] = [Kind::Rdma, Kind::Ofi, Kind::Uring, Kind::Epoll];

/// What a probe of one kind found.
struct Found {
    grade: Grade,
    /// The device or provider.
    detail: String,
    /// libfabric's provider, and what it offers.
    provider: String,
    ofi: Option<sys::OfiOffer>,
}

impl Found {
    fn plain(grade: Grade, detail: String) -> Found {
        Found { grade, detail, provider: String::new(), ofi: None }
    }

    fn offer(self, kind: Kind, offer: &mut Offer) {
        match kind {
            Kind::Rdma => offer.rdma = self.grade,
            Kind::Ofi => (offer.ofi, offer.provider) = (self.grade, self.provider),
            Kind::Uring => offer.uring = self.grade,
            Kind::Shm | Kind::Epoll => (),
        }
    }
}

/// Whether this machine has what a kind needs, without registering anything.
fn probe(kind: Kind, config: &Config, source: Option<IpAddr>) -> Result<Found, String> {
    match kind {
        Kind::Rdma => {
            let device = rdma_available(config.rdma_device.as_deref(), config.rdma_gid_index)?;
            let grade = if device.is_emulated { Grade::Emulated } else { Grade::Native };
            Ok(Found::plain(grade, device.to_string()))
        }
        Kind::Ofi => {
            let provider = ofi_provider(config);
            if provider.is_none() && !sys::has_fabric_adapter() {
                return Err("no network for libfabric here: no adapter in /sys/class/infiniband or /sys/class/cxi".into());
            }
            let offer = sys::OfiOffer::find(provider, source)?;
            let found = offer.summary().clone();
            let grade = if found.is_hardware { Grade::Native } else { Grade::Emulated };
            let (major, minor) = found.version;
            let mut detail = format!("provider {} on {}, libfabric {major}.{minor}", found.full_name, found.domain);
            if let Some(caveat) = &found.caveat {
                detail = format!("{detail}; {caveat}");
            }
            Ok(Found { grade, detail, provider: found.provider, ofi: Some(offer) })
        }
        Kind::Uring => {
            let features = sys::UringFeatures::here();
            features.suffice().map(|()| Found::plain(Grade::Native, String::new()))
        }
        Kind::Shm | Kind::Epoll => Ok(Found::plain(Grade::Native, String::new())),
    }
}

/// The provider to ask libfabric for; `None` for one with hardware.
fn ofi_provider(config: &Config) -> Option<&str> {
    match (&config.ofi_provider, config.fabric) {
        (Some(name), _) => Some(name),
        (None, FabricChoice::Ofi) => Some(sys::OFI_ANY),
        (None, _) => None,
    }
}

/// Whether what is there already would always be preferred.
fn is_needless(kind: Kind, offer: &Offer) -> bool {
    match kind {
        Kind::Ofi => offer.rdma == Grade::Native,
        Kind::Epoll => offer.uring == Grade::Native,
        _ => false,
    }
}

/// What a rank that is started here finds: for `collimate info`.
pub struct Survey {
    /// Each fabric, with the device or provider, or why it cannot be used.
    pub findings: Vec<(Kind, Result<String, String>)>,
    /// What would serve a rank of another host with the same means.
    pub far: Result<Choice, String>,
}

impl Survey {
    /// Looks at this machine; opens devices, registers nothing.
    pub fn take(config: &Config) -> Survey {
        let mut offer = Offer { wish: config.fabric, ..Offer::default() };
        let shm = ShmFabric::new(Rank(0), Arc::default()).map(|_| String::new()).map_err(|why| why.to_string());
        let mut findings = vec![(Kind::Shm, shm)];
        for kind in FAR_KINDS {
            let found = probe(kind, config, config.interface).map(|found| {
                let detail = found.detail.clone();
                found.offer(kind, &mut offer);
                detail
            });
            findings.push((kind, found));
        }
        Survey { findings, far: choose(&offer, &offer) }
    }
}

/// Whether a kind is asked for by name, and whether it may be used unasked.
fn stance(wish: FabricChoice, kind: Kind) -> (bool, bool) {
    let asked_for = matches!(
        (wish, kind),
        (FabricChoice::Rdma, Kind::Rdma)
            | (FabricChoice::Ofi, Kind::Ofi)
            | (FabricChoice::Uring, Kind::Uring)
            | (FabricChoice::Epoll, Kind::Epoll)
    );
    (asked_for, matches!(wish, FabricChoice::Auto | FabricChoice::Shm))
}

/// The fabrics while they take their connections over.
struct Table<'a> {
    config: &'a Config,
    rank: Rank,
    connected: Connected,
}

impl Table<'_> {
    fn add(&mut self, kind: Kind, reason: &str, peer: Rank, link: Link) -> Result<(), StartError> {
        let (fabric, peers) =
            self.connected.iter_mut().find(|(fabric, _)| fabric.kind() == kind).expect("only what was made is chosen");
        fabric.connect(peer, link).map_err(|cause| StartError::Fabric { rank: self.rank, cause })?;
        peers.push(peer);
        if self.config.log {
            sys::say_line(format_args!("collimate: {}: {kind} to {peer}: {reason}", self.rank));
        }
        Ok(())
    }

    /// Those that have a peer.
    fn finish(self) -> Connected {
        self.connected.into_iter().filter(|(_, peers)| !peers.is_empty()).collect()
    }
}

fn send_offer(mut stream: &TcpStream, offer: &Offer) -> std::io::Result<()> {
    let body = postcard::to_stdvec(offer).map_err(std::io::Error::other)?;
    stream.set_nonblocking(false)?;
    stream.set_write_timeout(Some(limits::SET_UP_DEADLINE))?;
    stream.write_all(&[&[OFFER_VERSION, body.len() as u8], &body[..]].concat())
}

/// A peer may need long before it sends its offer: it registers its memory
/// first.
fn receive_offer(stream: &TcpStream, peer: Rank, deadline: Instant) -> Result<Offer, FabricError> {
    let bad = |what: &str| FabricError::BadFrame(peer, what.into());
    let mut head = [0; 2];
    receive_exactly(stream, peer, &mut head, deadline)?;
    if head[0] != OFFER_VERSION {
        return Err(bad("an offer of another version: start all ranks from one build of Collimate"));
    }
    let mut body = [0; OFFER_BYTES_MAX];
    let body = &mut body[..usize::from(head[1])];
    receive_exactly(stream, peer, body, deadline)?;
    postcard::from_bytes(body).map_err(|_| bad("an offer that cannot be read"))
}

fn os(peer: Rank, what: &'static str, cause: std::io::Error) -> FabricError {
    FabricError::Os { peer, what, cause: cause.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    #[test]
    fn offers_arrive_and_bad_ones_are_refused() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let far = listener.accept().unwrap().0;
        let deadline = Instant::now() + std::time::Duration::from_secs(20);
        let offer = Offer { ofi: Grade::Emulated, provider: "x".repeat(64), ..Offer::default() };
        send_offer(&near, &offer).unwrap();
        assert_eq!(receive_offer(&far, Rank(3), deadline), Ok(offer));
        for bytes in [&[9, 0][..], &[OFFER_VERSION, 1, 77], &[OFFER_VERSION, 0]] {
            near.write_all(bytes).unwrap();
            assert!(matches!(receive_offer(&far, Rank(3), deadline), Err(FabricError::BadFrame(Rank(3), _))));
        }
        drop(near);
        assert!(matches!(receive_offer(&far, Rank(3), deadline), Err(FabricError::Closed(Rank(3)))));
    }
}
