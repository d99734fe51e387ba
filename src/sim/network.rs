//! A network of hosts in virtual time. Every host has one full-duplex link to a
//! switch that is never the bottleneck. Reads between two hosts go one after
//! the other, as on one connection; connections share the links that they
//! cross max-min fairly, and go on at their new rates whenever one begins or
//! ends. Messages take the latency and no bandwidth.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};

/// What a network is like.
#[derive(Clone, Copy, Debug)]
pub struct NetworkConfig {
    /// Bits per second of every link and direction.
    pub bits_per_s: f64,
    /// One way, between any two hosts.
    pub latency_ns: u64,
    /// How long after a host's death the others notice.
    pub detection_ns: u64,
}

/// What happens at a host.
#[derive(Clone, Debug)]
pub enum Happening<M> {
    /// A message arrived.
    Message {
        /// Who sent it.
        from: usize,
        /// What was sent.
        message: M,
    },
    /// A read that was started with `token` ended.
    ReadEnded {
        /// As given.
        token: usize,
        /// Whether the bytes are here.
        ok: bool,
    },
    /// A host is known to be dead.
    Lost {
        /// Which.
        host: usize,
    },
    /// What was asked for with [`Network::at`].
    Alarm {
        /// As given.
        what: u64,
    },
}

/// See the module.
#[derive(Debug)]
pub struct Network<M> {
    config: NetworkConfig,
    now_ns: u64,
    hosts: Vec<Host>,
    /// By time, then in the order in which they were made.
    queue: BinaryHeap<Reverse<(u64, u64)>>,
    events: BTreeMap<u64, Event<M>>,
    events_made: u64,
    /// By source and reader.
    pipes: BTreeMap<(usize, usize), Pipe>,
    /// Counts changes of the rates, so that an end that was foretold for other
    /// rates is not believed.
    era: u64,
}

#[derive(Debug)]
struct Host {
    alive: bool,
    /// Until then it neither hears nor sends anything.
    stopped_until_ns: u64,
    died_ns: u64,
    sent: f64,
    /// This host's link, as a share of the others'.
    speed: f64,
}

#[derive(Debug)]
enum Event<M> {
    Happening(usize, Happening<M>),
    /// A read's request reached its source.
    Request {
        reader: usize,
        source: usize,
        read: Read,
    },
    /// The head of some pipe is done, if the rates are still of this era.
    Advance(u64),
    Death(usize),
    /// A host stops until some time, or goes on.
    Stop(usize, u64),
}

#[derive(Clone, Debug)]
struct Read {
    token: usize,
    bytes: f64,
}

#[derive(Debug, Default)]
struct Pipe {
    reads: VecDeque<Read>,
    /// Bytes per nanosecond.
    rate: f64,
    /// Up to when `reads[0]` is accounted for.
    since_ns: u64,
    /// Requests on their way to the source.
    requested: Vec<usize>,
}

/// Less than this is rounding.
const CRUMB_BYTES: f64 = 1e-3;

impl Host {
    fn speed(&self, now_ns: u64) -> f64 {
        if self.stopped_until_ns > now_ns { 0.0 } else { self.speed }
    }
}

impl<M> Network<M> {
    /// `hosts` idle hosts at time 0.
    pub fn new(hosts: usize, config: NetworkConfig) -> Network<M> {
        Network {
            config,
            now_ns: 0,
            hosts: (0..hosts)
                .map(|_| Host { alive: true, stopped_until_ns: 0, died_ns: 0, sent: 0.0, speed: 1.0 })
                .collect(),
            queue: BinaryHeap::new(),
            events: BTreeMap::new(),
            events_made: 0,
            pipes: BTreeMap::new(),
            era: 0,
        }
    }

    /// The virtual time.
    pub fn now_ns(&self) -> u64 {
        self.now_ns
    }

    /// Bytes that a host has sent to readers.
    pub fn sent(&self, host: usize) -> u64 {
        self.hosts[host].sent.round() as u64
    }

    /// Whether a host is alive.
    pub fn is_alive(&self, host: usize) -> bool {
        self.hosts[host].alive
    }

    /// Makes a host's link this much faster or slower than the others.
    pub fn set_speed(&mut self, host: usize, speed: f64) {
        self.hosts[host].speed = speed;
    }

    /// Sends a message, which arrives unless one of the two dies before.
    pub fn send(&mut self, from: usize, to: usize, message: M) {
        if self.hosts[from].alive {
            self.push(self.config.latency_ns, Event::Happening(to, Happening::Message { from, message }));
        }
    }

    /// Starts a read of `bytes` from `source`.
    pub fn read(&mut self, reader: usize, source: usize, bytes: u64, token: usize) {
        if !self.hosts[source].alive {
            let noticed_ns = self.hosts[source].died_ns + self.config.detection_ns;
            let after_ns = noticed_ns.saturating_sub(self.now_ns);
            self.push(after_ns, Event::Happening(reader, Happening::ReadEnded { token, ok: false }));
        } else if self.hosts[reader].alive {
            self.pipes.entry((source, reader)).or_default().requested.push(token);
            let read = Read { token, bytes: bytes as f64 };
            self.push(self.config.latency_ns, Event::Request { reader, source, read });
        }
    }

    /// Lets a host die `after_ns` from now.
    pub fn kill(&mut self, host: usize, after_ns: u64) {
        self.push(after_ns, Event::Death(host));
    }

    /// Stops a host, as SIGSTOP does its process, `after_ns` from now, for
    /// `for_ns`.
    pub fn stop(&mut self, host: usize, after_ns: u64, for_ns: u64) {
        let until_ns = self.now_ns + after_ns + for_ns;
        self.push(after_ns, Event::Stop(host, until_ns));
        self.push(after_ns + for_ns, Event::Stop(host, 0));
    }

    /// Has `host` told `what` after `after_ns`.
    pub fn at(&mut self, host: usize, after_ns: u64, what: u64) {
        self.push(after_ns, Event::Happening(host, Happening::Alarm { what }));
    }

    /// What happens next, and to whom; `None` when nothing will.
    pub fn step(&mut self) -> Option<(usize, Happening<M>)> {
        while let Some(Reverse((time, number))) = self.queue.pop() {
            self.now_ns = self.now_ns.max(time);
            match self.events.remove(&number)? {
                Event::Happening(host, _) if !self.hosts[host].alive => (),
                Event::Happening(host, happening) if self.hosts[host].stopped_until_ns > self.now_ns => {
                    let after_ns = self.hosts[host].stopped_until_ns - self.now_ns;
                    self.push(after_ns, Event::Happening(host, happening));
                }
                Event::Happening(host, happening) => return Some((host, happening)),
                Event::Request { reader, source, read } => self.on_request(reader, source, read),
                Event::Advance(era) if era == self.era => self.on_advance(),
                Event::Advance(_) => (),
                Event::Death(host) => self.on_death(host),
                Event::Stop(host, until_ns) => {
                    self.settle();
                    let until = &mut self.hosts[host].stopped_until_ns;
                    *until = until_ns.max(*until);
                    self.share();
                }
            }
        }
        None
    }

    fn push(&mut self, after_ns: u64, event: Event<M>) {
        self.events_made += 1;
        self.queue.push(Reverse((self.now_ns + after_ns, self.events_made)));
        self.events.insert(self.events_made, event);
    }

    fn on_request(&mut self, reader: usize, source: usize, read: Read) {
        if !self.hosts[source].alive || !self.hosts[reader].alive {
            // The reader hears of it with the death.
            return;
        }
        let now_ns = self.now_ns;
        let pipe = self.pipes.entry((source, reader)).or_default();
        pipe.requested.retain(|token| *token != read.token);
        let idle = pipe.reads.is_empty();
        pipe.reads.push_back(read);
        if idle {
            pipe.since_ns = now_ns;
            self.settle();
            self.share();
        }
    }

    fn on_advance(&mut self) {
        self.settle();
        let latency_ns = self.config.latency_ns;
        let mut done = Vec::new();
        let mut emptied = false;
        for ((_, reader), pipe) in &mut self.pipes {
            while pipe.reads.front().is_some_and(|read| read.bytes <= CRUMB_BYTES) {
                done.extend(pipe.reads.pop_front().map(|read| (*reader, read.token)));
                emptied |= pipe.reads.is_empty();
            }
        }
        for (reader, token) in done {
            self.push(latency_ns, Event::Happening(reader, Happening::ReadEnded { token, ok: true }));
        }
        if emptied { self.share() } else { self.foretell() }
    }

    fn on_death(&mut self, host: usize) {
        if !std::mem::replace(&mut self.hosts[host].alive, false) {
            return;
        }
        self.hosts[host].died_ns = self.now_ns;
        self.settle();
        let mut failed = Vec::new();
        self.pipes.retain(|(source, reader), pipe| {
            if *source == host {
                let tokens = pipe.requested.iter().copied().chain(pipe.reads.iter().map(|read| read.token));
                failed.extend(tokens.map(|token| (*reader, token)));
            }
            *source != host && *reader != host
        });
        for (reader, token) in failed {
            self.push(self.config.detection_ns, Event::Happening(reader, Happening::ReadEnded { token, ok: false }));
        }
        for other in (0..self.hosts.len()).filter(|other| *other != host) {
            self.push(self.config.detection_ns, Event::Happening(other, Happening::Lost { host }));
        }
        self.share();
    }

    /// Brings every pipe's head up to now.
    fn settle(&mut self) {
        for ((source, _), pipe) in &mut self.pipes {
            let Some(read) = pipe.reads.front_mut() else { continue };
            let sent = (pipe.rate * (self.now_ns - pipe.since_ns) as f64).min(read.bytes);
            read.bytes -= sent;
            pipe.since_ns = self.now_ns;
            self.hosts[*source].sent += sent;
        }
    }

    /// Gives every busy pipe its max-min fair share, by filling all at the same
    /// pace until a link is full.
    fn share(&mut self) {
        let link = self.config.bits_per_s / 8.0 / 1e9;
        let mut left: Vec<[f64; 2]> = self.hosts.iter().map(|h| [h.speed(self.now_ns) * link; 2]).collect();
        let mut open: Vec<(usize, usize)> =
            self.pipes.iter().filter(|(_, pipe)| !pipe.reads.is_empty()).map(|(ends, _)| *ends).collect();
        while !open.is_empty() {
            let mut users = vec![[0u32; 2]; self.hosts.len()];
            for (source, reader) in &open {
                users[*source][0] += 1;
                users[*reader][1] += 1;
            }
            let fair = |host: usize, way: usize| match users[host][way] {
                0 => f64::INFINITY,
                n => left[host][way] / f64::from(n),
            };
            let tightest =
                (0..self.hosts.len()).flat_map(|host| [fair(host, 0), fair(host, 1)]).fold(f64::INFINITY, f64::min);
            let full = |host: usize, way: usize| fair(host, way) <= tightest * (1.0 + 1e-9);
            let (closed, rest): (Vec<_>, Vec<_>) =
                open.iter().copied().partition(|(source, reader)| full(*source, 0) || full(*reader, 1));
            for (source, reader) in closed {
                left[source][0] -= tightest;
                left[reader][1] -= tightest;
                if let Some(pipe) = self.pipes.get_mut(&(source, reader)) {
                    pipe.rate = tightest;
                }
            }
            open = rest;
        }
        self.foretell();
    }

    /// Plans for the first head that will be done.
    fn foretell(&mut self) {
        self.era += 1;
        let busy = self.pipes.values().filter_map(|pipe| pipe.reads.front().map(|read| read.bytes / pipe.rate));
        let soonest = busy.fold(f64::INFINITY, f64::min);
        if soonest.is_finite() {
            self.push(soonest.ceil() as u64, Event::Advance(self.era));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: NetworkConfig = NetworkConfig { bits_per_s: 8e9, latency_ns: 1000, detection_ns: 5000 };

    fn ends(network: &mut Network<()>) -> Vec<(usize, usize, bool, u64)> {
        let mut all = Vec::new();
        while let Some((host, happening)) = network.step() {
            if let Happening::ReadEnded { token, ok } = happening {
                all.push((host, token, ok, network.now_ns()));
            }
        }
        all
    }

    #[test]
    fn one_read_takes_two_latencies_and_its_bytes() {
        let mut network = Network::new(2, CONFIG);
        network.read(1, 0, 1_000_000, 7);
        assert_eq!(ends(&mut network), [(1, 7, true, 1_002_000)]);
        assert_eq!(network.sent(0), 1_000_000);
    }

    #[test]
    fn readers_of_one_host_share_its_link_and_those_of_two_do_not() {
        let mut network = Network::new(4, CONFIG);
        network.read(1, 0, 1_000_000, 1);
        network.read(2, 0, 1_000_000, 2);
        network.read(0, 3, 1_000_000, 3);
        let ends = ends(&mut network);
        assert_eq!(ends[0], (0, 3, true, 1_002_000));
        assert_eq!((ends[1].3, ends[2].3), (2_002_000, 2_002_000));
    }

    #[test]
    fn shares_are_max_min_fair() {
        // Host 0 serves two, one of which is slow: the other takes the rest.
        let mut network = Network::new(3, CONFIG);
        network.set_speed(1, 0.25);
        network.read(1, 0, 250_000, 1);
        network.read(2, 0, 750_000, 2);
        assert_eq!(ends(&mut network).iter().map(|e| e.3).collect::<Vec<_>>(), [1_002_000, 1_002_000]);
    }

    #[test]
    fn a_death_fails_what_is_read_and_is_told() {
        let mut network: Network<()> = Network::new(3, CONFIG);
        network.read(1, 0, 1_000_000, 1);
        network.read(1, 2, 500_000, 2);
        network.kill(0, 500_000);
        let mut lost = 0;
        let mut all = Vec::new();
        while let Some((host, happening)) = network.step() {
            match happening {
                Happening::Lost { host: 0 } => lost += 1,
                Happening::ReadEnded { token, ok } => all.push((host, token, ok, network.now_ns())),
                _ => (),
            }
        }
        assert_eq!(lost, 2);
        assert_eq!(all[0], (1, 1, false, 505_000));
        assert!(all[1].2 && all[1].1 == 2 && all[1].3 < 760_000, "{all:?}");
    }
}
