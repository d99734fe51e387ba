//! Plays a [`Plan`]: the real cores of servers and clients, driven by a queue of
//! events in virtual time, and whatever goes wrong between them.

mod faults;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};

use super::check::{Truth, linearizable};
use super::disk::{Disk, Synced};
use super::plan::{MS, Plan, US};
use super::workload::{Seen, User, Watched, keys};
use crate::base::Rank;
use crate::base::rng::Rng;
use crate::gcs::{
    Action, Address, Body, Bug, Bugs, ChainConfig, ClientId, ConsensusMessage, DiskEvent, Epoch, Member, MemberAction,
    MemberOptions, Message, Options, QuorumLog, Replica, ReplicaId, Seq, ShardId, founding_chains, recover,
};

/// What came of a run.
#[derive(Debug, Default)]
pub struct Report {
    /// What did not hold.
    pub violation: Option<String>,
    pub events: u64,
    pub operations: usize,
    pub unknown: usize,
    pub crashes: u32,
    pub epochs: u64,
    pub took_ns: u64,
    /// From the end of the faults until all was well.
    pub recovery_ns: u64,
    /// Bytes of messages that keep the system going, not those of operations.
    pub control_bytes: u64,
}

/// Plays a plan to its end or to the first thing that does not hold.
pub fn play(plan: &Plan) -> Report {
    let mut world = World::new(plan.clone());
    world.run();
    world.report
}

const FIRST_CLIENT: u32 = 100;
/// The shortest turn of a server that has something to do by itself.
const TURN: u64 = 5 * US;
/// How often a rank looks whether to offer another life of a replica.
const TICK: u64 = 400 * US;
/// Whoever had trouble so long ago is not suspected any more.
const QUIET: u64 = 20 * MS;

pub struct World {
    pub plan: Plan,
    rng: Rng,
    pub now: u64,
    queue: BinaryHeap<Reverse<(u64, u64)>>,
    events: BTreeMap<u64, Event>,
    made: u64,
    pub servers: Vec<Server>,
    pub users: Vec<User>,
    cut: BTreeSet<(Rank, Rank)>,
    /// Whoever is at the first rank has done with its connection with the
    /// process of this number at the second.
    closed: BTreeSet<(Rank, Rank, u32)>,
    founding: Vec<ChainConfig>,
    /// The latest chain of each shard that was decided.
    pub latest: Vec<ChainConfig>,
    answered: Vec<Epoch>,
    truth: Vec<Truth>,
    seen: Vec<Seen>,
    watched: Vec<Watched>,
    healed_at: Option<u64>,
    members_wiped: u32,
    faults_on: bool,
    pub report: Report,
}

#[derive(Debug)]
enum Event {
    Deliver {
        way: Way,
        from: Address,
        to: Address,
        message: Message,
    },
    Consensus {
        way: Way,
        message: Box<ConsensusMessage>,
    },
    Wake(usize),
    Flush(usize),
    /// The receiver sees that its connection with the sender has ended.
    Ended(Way),
    DiskDone {
        server: usize,
        shard: usize,
        life: u32,
    },
    Think(usize),
    Fault,
    Restart(usize),
    Deafen(Rank),
}

/// A connection, in one direction: from which process to which.
#[derive(Clone, Copy, Debug)]
struct Way {
    from: (Rank, u32),
    to: (Rank, u32),
}

pub struct Server {
    rank: Rank,
    up: bool,
    /// Counts the processes that there were.
    process: u32,
    life: u32,
    pub replicas: Vec<Replica>,
    seen_applied: Vec<Seq>,
    disks: Vec<Disk>,
    pub member: Option<Member>,
    saved: Option<QuorumLog>,
    member_lost: bool,
    flush_due: bool,
    wakes_at: u64,
    slow_disk: bool,
    troubled_at: Option<u64>,
    clock_offset: u64,
    clock_ppm: i64,
}

impl Server {
    fn clock(&self, now: u64) -> u64 {
        let drift = now as i64 / 1_000_000 * self.clock_ppm + now as i64 % 1_000_000 * self.clock_ppm / 1_000_000;
        self.clock_offset + (now as i64 + drift) as u64
    }
}

impl World {
    pub fn new(plan: Plan) -> World {
        let mut rng = Rng::new(plan.seed);
        // Every server is a host of its own.
        let hosts: Vec<u32> = (0..plan.servers).collect();
        let founding = founding_chains(&hosts, plan.replicas, plan.shards);
        let mut world = World {
            now: 0,
            queue: BinaryHeap::new(),
            events: BTreeMap::new(),
            made: 0,
            servers: Vec::new(),
            users: Vec::new(),
            cut: BTreeSet::new(),
            closed: BTreeSet::new(),
            latest: founding.clone(),
            answered: vec![Epoch(0); founding.len()],
            truth: founding.iter().map(|_| Truth::default()).collect(),
            founding,
            seen: Vec::new(),
            watched: Vec::new(),
            healed_at: None,
            members_wiped: 0,
            faults_on: plan.fault_every.is_some(),
            report: Report::default(),
            rng: rng.clone(),
            plan,
        };
        for number in 0..world.plan.servers {
            let drift = world.plan.drift_ppm as i64;
            world.servers.push(Server {
                rank: Rank(number),
                up: true,
                process: 1,
                life: 1,
                replicas: Vec::new(),
                seen_applied: Vec::new(),
                disks: world.founding.iter().map(|_| Disk::default()).collect(),
                member: None,
                saved: None,
                member_lost: false,
                flush_due: false,
                wakes_at: u64::MAX,
                slow_disk: false,
                troubled_at: None,
                clock_offset: rng.next_u64() >> 20,
                clock_ppm: [-drift, 0, drift][rng.below(3)],
            });
            world.start_server(number as usize);
        }
        for number in 0..world.plan.clients {
            world.start_user(number, 1);
            world.after(0, Event::Think(number as usize));
        }
        world.rng = rng;
        world.schedule_fault();
        world
    }

    fn start_user(&mut self, number: u32, incarnation: u32) {
        let me = ClientId { rank: Rank(FIRST_CLIENT + number), incarnation };
        let quorum = (0..self.plan.members).map(Rank).collect();
        let user = User::new(&self.plan, me, quorum, self.founding.clone(), self.now);
        match self.users.get_mut(number as usize) {
            Some(place) => *place = user,
            None => self.users.push(user),
        }
    }

    /// Starts the cores of a server: at first as founders, later from what is on
    /// its disk, or from nothing.
    fn start_server(&mut self, number: usize) {
        let now = self.servers[number].clock(self.now);
        let quorum: Vec<Rank> = (0..self.plan.members).map(Rank).collect();
        let bugs = Bugs { one: self.plan.bug };
        let first = self.servers[number].life == 1;
        let rank = self.servers[number].rank;
        if quorum.contains(&rank) && !self.servers[number].member_lost {
            let options = MemberOptions {
                me: rank,
                life: self.servers[number].life,
                members: quorum,
                timing: self.plan.timing,
                replicas: self.plan.replicas,
                hosts: Vec::new(),
                founding: self.founding.clone(),
                bugs,
            };
            let saved = self.servers[number].saved.clone();
            self.servers[number].member = Some(Member::new(options, now, saved).expect("a sound configuration"));
        }
        for shard in 0..self.founding.len() {
            let options = self.options(number, shard);
            let me = options.me;
            let mut out = Vec::new();
            let server = &mut self.servers[number];
            let chain = &self.founding[shard];
            let mut replica = if first && chain.position(me).is_some() {
                Replica::founding(options, chain.clone(), now, &mut out)
            } else {
                let recovered = recover(server.disks[shard].bytes());
                server.disks[shard].truncate(recovered.clean_bytes);
                if recovered.owner > 0 { Replica::restored(options, recovered) } else { Replica::spare(options) }
            };
            if first {
                // A rank takes part once its log is on disk.
                replica.flush(now, &mut out);
                for action in &out {
                    if let Action::Replace(bytes) = action {
                        server.disks[shard].replace(bytes.clone());
                        server.disks[shard].finish_sync();
                    }
                }
                out.retain(|action| matches!(action, Action::Send(..)));
                replica.disk(DiskEvent::Synced(Seq(0)));
            }
            server.replicas.push(replica);
            server.seen_applied.push(Seq(0));
            self.act(number, shard, out);
        }
        self.touch(number);
    }

    fn options(&self, number: usize, shard: usize) -> Options {
        let server = &self.servers[number];
        Options {
            me: ReplicaId { rank: server.rank, incarnation: server.life },
            shard: ShardId(shard as u16),
            quorum: (0..self.plan.members).map(Rank).collect(),
            timing: self.plan.timing,
            durable: self.plan.durable,
            bugs: Bugs { one: self.plan.bug },
        }
    }

    pub fn run(&mut self) {
        while self.report.violation.is_none() && self.step() {
            if self.is_over() {
                break;
            }
        }
        self.report.took_ns = self.now;
        self.report.epochs = self.latest.iter().map(|chain| chain.epoch.0).sum();
        if self.report.violation.is_none()
            && let Err(violation) = self.judge()
        {
            self.report.violation = Some(violation);
        }
    }

    /// Plays one event.
    pub fn step(&mut self) -> bool {
        let Some(Reverse((at, number))) = self.queue.pop() else { return false };
        self.now = at;
        self.report.events += 1;
        match self.events.remove(&number).expect("an event for each place in the queue") {
            Event::Deliver { way, from, to, message } => {
                if self.arrives(way) {
                    self.deliver(from, to, message);
                }
            }
            Event::Consensus { way, message } => {
                if self.arrives(way) {
                    let number = way.to.0.index();
                    if let Some(member) = &mut self.servers[number].member {
                        member.consensus(*message);
                        self.touch(number);
                    }
                }
            }
            Event::Wake(number) => {
                let now = self.servers[number].clock(self.now);
                let server = &mut self.servers[number];
                if server.wakes_at <= self.now {
                    server.wakes_at = u64::MAX;
                }
                if server.up {
                    server.replicas.iter_mut().for_each(|replica| replica.tick(now));
                    server.member.iter_mut().for_each(|member| member.tick(now));
                    self.reincarnate(number);
                    self.flush(number);
                }
            }
            Event::Ended(way) => {
                // Whoever lives has another connection since all was healed.
                let lives = self.is_up(way.from.0) && self.process(way.from.0) == way.from.1;
                if !lives || self.healed_at.is_none() {
                    self.ended(way, true);
                }
            }
            Event::Flush(number) => self.flush(number),
            Event::DiskDone { server, shard, life } => self.disk_done(server, shard, life),
            Event::Think(number) => {
                self.think(number);
                self.after(self.plan.idle_ns, Event::Think(number));
            }
            Event::Restart(number) => self.restart(number),
            Event::Deafen(rank) => self.deafen(rank),
            Event::Fault => {
                if self.faults_on {
                    self.fault();
                    self.schedule_fault();
                }
            }
        }
        true
    }

    /// The process at a rank now.
    fn process(&self, rank: Rank) -> u32 {
        match rank.0.checked_sub(FIRST_CLIENT) {
            Some(client) => self.users[client as usize].client.id().incarnation,
            // Whoever is not there yet will be the first.
            None => self.servers.get(rank.index()).map_or(1, |server| server.process),
        }
    }

    fn is_up(&self, rank: Rank) -> bool {
        match rank.0.checked_sub(FIRST_CLIENT) {
            Some(client) => self.users[client as usize].alive,
            None => self.servers[rank.index()].up,
        }
    }

    fn way(&self, from: Rank, to: Rank) -> Way {
        Way { from: (from, self.process(from)), to: (to, self.process(to)) }
    }

    /// Whether what was sent on this way gets there. Who hears of a later process
    /// has seen the end of the one before.
    fn arrives(&mut self, way: Way) -> bool {
        let Way { from: (from, sender), to: (to, receiver) } = way;
        let lost = self.cut.contains(&(from, to)) || self.closed.contains(&(to, from, sender));
        if lost || receiver != self.process(to) || !self.is_up(to) {
            return false;
        }
        for before in 1..sender {
            self.ended(Way { from: (from, before), ..way }, true);
        }
        true
    }

    fn deliver(&mut self, from: Address, to: Address, message: Message) {
        match to {
            Address::Replica(rank) => {
                let Some(server) = self.servers.get_mut(rank.index()).filter(|server| server.up) else { return };
                let now = server.clock(self.now);
                let shard = usize::from(message.shard.0);
                let mut out = Vec::new();
                server.replicas[shard].receive(now, from, message, &mut out);
                self.act(rank.index(), shard, out);
                self.touch(rank.index());
            }
            Address::Quorum(rank) => {
                let Some(server) = self.servers.get_mut(rank.index()).filter(|server| server.up) else { return };
                let now = server.clock(self.now);
                let Some(member) = &mut server.member else { return };
                let mut out = Vec::new();
                member.receive(now, from, message, &mut out);
                self.act_as_member(rank.index(), out);
                self.touch(rank.index());
            }
            Address::Client(rank) => {
                let number = (rank.0 - FIRST_CLIENT) as usize;
                if self.users[number].alive {
                    self.users[number].receive(self.now, message);
                    self.think(number);
                }
            }
        }
    }

    fn think(&mut self, number: usize) {
        let mut out = Vec::new();
        let user = &mut self.users[number];
        if user.alive {
            let stop = self.healed_at.is_some() && user.done_since_heal >= 8;
            user.turn(self.now, self.now, &self.plan, stop, &mut out);
            if let Some(wrong) = user.wrong.take() {
                self.fail(wrong);
            }
        }
        let from = Address::Client(Rank(FIRST_CLIENT + number as u32));
        for action in out {
            if let Action::Send(to, message) = action {
                self.send(from, to, message);
            }
        }
    }

    /// A turn of the server ends soon.
    fn touch(&mut self, number: usize) {
        if !std::mem::replace(&mut self.servers[number].flush_due, true) {
            let turn = self.rng.below(10 * US as usize) as u64;
            self.after(turn, Event::Flush(number));
        }
    }

    fn flush(&mut self, number: usize) {
        let now = self.servers[number].clock(self.now);
        self.servers[number].flush_due = false;
        if !self.servers[number].up {
            return;
        }
        for shard in 0..self.founding.len() {
            let mut out = Vec::new();
            self.servers[number].replicas[shard].flush(now, &mut out);
            self.act(number, shard, out);
        }
        let mut out = Vec::new();
        if let Some(member) = &mut self.servers[number].member {
            member.flush(now, &mut out);
            for (shard, latest) in self.latest.iter_mut().enumerate() {
                if let Some(chain) = member.directory().chain(ShardId(shard as u16))
                    && chain.epoch > latest.epoch
                {
                    *latest = chain.clone();
                }
            }
        }
        self.act_as_member(number, out);
        self.plan_wake(number);
    }

    /// A server sleeps until something is due, however long that is.
    fn plan_wake(&mut self, number: usize) {
        let server = &mut self.servers[number];
        let replicas = server.replicas.iter().map(Replica::next_due);
        let due = replicas.chain(server.member.iter().map(Member::next_due)).min().unwrap_or(u64::MAX);
        let mut wait = due.saturating_sub(server.clock(self.now)).min(1_000 * MS);
        // Its clock may run slow.
        wait = (wait + wait / 500).max(TURN);
        if server.replicas.iter().any(Replica::is_retired) {
            wait = wait.min(TICK);
        }
        let at = self.now + wait;
        if at < server.wakes_at {
            server.wakes_at = at;
            self.after(wait, Event::Wake(number));
        }
    }

    /// The receiver on a way sees that there is no more to come, or has closed it
    /// itself: then the other side still counts what it was granted.
    fn ended(&mut self, way: Way, by_the_other: bool) {
        let Way { from: (of, process), to: (at, receiver) } = way;
        if receiver != self.process(at) || !self.is_up(at) || !self.closed.insert((at, of, process)) {
            return;
        }
        if let Some(number) = at.0.checked_sub(FIRST_CLIENT) {
            self.users[number as usize].client.ended(self.now, of);
            return self.think(number as usize);
        }
        let server = &mut self.servers[at.index()];
        let now = server.clock(self.now);
        server.replicas.iter_mut().for_each(|replica| replica.ended(now, of));
        let told = by_the_other || self.plan.bug == Some(Bug::ForgetUncertain);
        server.member.iter_mut().filter(|_| told).for_each(|member| member.ended(now, of));
        self.touch(at.index());
    }

    /// Does what a replica wants, and looks at what it has become.
    fn act(&mut self, number: usize, shard: usize, actions: Vec<Action>) {
        let server = &mut self.servers[number];
        let replica = &server.replicas[shard];
        if replica.is_retired() && !actions.is_empty() {
            let who = replica.id();
            return self.fail(format!("{who:?} was removed and does {actions:?}"));
        }
        let before = std::mem::replace(&mut server.seen_applied[shard], replica.state().applied());
        if before != replica.state().applied()
            && let Err(violation) = self.truth[shard].add(replica, before.min(replica.state().applied()))
        {
            return self.fail(violation);
        }
        let from = Address::Replica(server.rank);
        for action in actions {
            match action {
                Action::Send(to, message) => {
                    if let Body::Answers(..) = message.body {
                        let answered = &mut self.answered[shard];
                        if message.epoch < *answered {
                            let (who, latest) = (self.servers[number].rank, *answered);
                            let old = message.epoch;
                            return self.fail(format!("{who} answers a read in {old:?} after one in {latest:?}"));
                        }
                        *answered = message.epoch;
                    }
                    self.send(from, to, message);
                }
                Action::Append(bytes) => self.servers[number].disks[shard].append(bytes),
                Action::Replace(bytes) => self.servers[number].disks[shard].replace(bytes),
                Action::Sync(seq) => {
                    let slow = self.servers[number].slow_disk;
                    let life = self.servers[number].replicas[shard].id().incarnation;
                    let takes = self.rng.below(if slow { 8 * MS } else { 200 * US } as usize) as u64;
                    let disk = &mut self.servers[number].disks[shard];
                    disk.sync(seq);
                    disk.busy_until = disk.busy_until.max(self.now) + takes;
                    let at = disk.busy_until - self.now;
                    self.after(at, Event::DiskDone { server: number, shard, life });
                }
            }
        }
    }

    fn act_as_member(&mut self, number: usize, actions: Vec<MemberAction>) {
        let rank = self.servers[number].rank;
        for action in actions {
            match action {
                MemberAction::Save(bytes) => {
                    self.servers[number].saved = QuorumLog::decode(&bytes);
                    assert!(self.servers[number].saved.is_some(), "what is saved can be read");
                }
                MemberAction::Send(to, message) => self.send(Address::Quorum(rank), to, message),
                MemberAction::Consensus(to, message) => {
                    self.report.control_bytes += postcard::to_stdvec(&message).map_or(0, |bytes| bytes.len() as u64);
                    for delay in self.delays(rank, to) {
                        let message = Box::new(message.clone());
                        self.after(delay, Event::Consensus { way: self.way(rank, to), message });
                    }
                }
            }
        }
    }

    fn disk_done(&mut self, number: usize, shard: usize, life: u32) {
        let server = &mut self.servers[number];
        if server.replicas.get(shard).is_none_or(|replica| replica.id().incarnation != life) {
            return;
        }
        match server.disks[shard].finish_sync() {
            Synced::Done(seq) => server.replicas[shard].disk(DiskEvent::Synced(seq)),
            Synced::Full => server.replicas[shard].disk(DiskEvent::Full),
            Synced::Nothing => return,
        }
        self.touch(number);
    }

    /// A rank whose replica was removed offers another life of it.
    fn reincarnate(&mut self, number: usize) {
        for shard in 0..self.founding.len() {
            if self.servers[number].replicas[shard].is_retired() && self.rng.below(8) == 0 {
                self.servers[number].life += 1;
                let options = self.options(number, shard);
                let server = &mut self.servers[number];
                server.disks[shard].wipe();
                server.replicas[shard] = Replica::spare(options);
                server.seen_applied[shard] = Seq(0);
            }
        }
    }

    fn send(&mut self, from: Address, to: Address, message: Message) {
        let control = matches!(
            message.body,
            Body::Beat(_) | Body::Grant { .. } | Body::Chain(_) | Body::Locate | Body::Watch(_) | Body::Link(_)
        );
        if control {
            self.report.control_bytes += postcard::to_stdvec(&message).map_or(0, |bytes| bytes.len() as u64);
        }
        let way = self.way(rank_of(from), rank_of(to));
        for delay in self.delays(rank_of(from), rank_of(to)) {
            self.after(delay, Event::Deliver { way, from, to, message: message.clone() });
        }
    }

    /// When a message arrives: never, once, or more often.
    fn delays(&mut self, from: Rank, to: Rank) -> Vec<u64> {
        let net = self.plan.net;
        let mut delays = Vec::new();
        if from == to {
            return vec![US];
        }
        if self.cut.contains(&(from, to)) || self.closed.contains(&(from, to, self.process(to))) {
            return delays;
        }
        let bad = self.healed_at.is_none();
        let mut chance = |thousandth: usize| bad && self.rng.below(1000) < thousandth;
        let (lost, doubled, late) = (chance(net.lost), chance(net.doubled), chance(net.late));
        for _ in usize::from(lost)..1 + usize::from(doubled) {
            let spread = self.rng.below((net.delay_max - net.delay_min) as usize) as u64;
            let extra = if late { self.rng.below(net.late_by as usize) as u64 } else { 0 };
            delays.push(net.delay_min + spread + extra);
        }
        delays
    }

    fn after(&mut self, delay: u64, event: Event) {
        self.made += 1;
        self.queue.push(Reverse((self.now + delay, self.made)));
        self.events.insert(self.made, event);
    }

    fn fail(&mut self, what: String) {
        self.report.violation.get_or_insert(format!("at {} us: {what}", self.now / US));
    }
}

/// What a test of one change of a chain needs.
impl World {
    /// A server ends, whatever that does.
    pub fn kill(&mut self, number: usize) {
        let server = &mut self.servers[number];
        server.up = false;
        server.replicas.clear();
        server.seen_applied.clear();
        server.member = None;
    }

    /// A server's process ends, and everybody sees the end of the connection.
    pub fn end(&mut self, number: usize) {
        self.kill(number);
        self.end_connections(self.servers[number].rank, 100 * US);
    }

    /// Whether every chain is whole again after `epoch` and every client knows it.
    pub fn has_settled(&self, after: Epoch) -> bool {
        let shards = 0..self.founding.len();
        shards.into_iter().all(|shard| {
            let epoch = self.latest[shard].epoch;
            let known = |user: &User| user.client.epoch(ShardId(shard as u16)) == epoch;
            epoch > after && self.is_whole(shard) && self.users.iter().all(known)
        })
    }
}

/// What must have become of a run.
impl World {
    /// Whether all has been seen. After the faults everything must come to rest.
    fn is_over(&mut self) -> bool {
        let Some(healed_at) = self.healed_at else {
            if self.now >= self.plan.safety_ns {
                self.heal();
            }
            return false;
        };
        let whole = (0..self.founding.len()).all(|shard| self.is_whole(shard));
        let served = self.users.iter().all(|user| user.done_since_heal >= 8 && user.pending() == 0);
        let watched = whole && served && (0..self.founding.len()).all(|shard| self.is_watched(shard));
        if watched {
            self.report.recovery_ns = self.now - healed_at;
            return true;
        }
        if self.now > healed_at + self.plan.liveness_ns {
            self.fail(format!("not well again: whole: {whole}, {}", self.describe()));
            return true;
        }
        false
    }

    /// Where everybody stands.
    pub fn describe(&self) -> String {
        let waiting: Vec<usize> = self.users.iter().map(|user| user.pending()).collect();
        let latest = &self.latest;
        let replicas: Vec<String> = self.servers.iter().flat_map(|s| &s.replicas).map(state_of).collect();
        let members = self.servers.iter().filter_map(|server| server.member.as_ref());
        let members: Vec<_> =
            members.map(|m| (m.leads(), m.directory().chains().map(|c| c.epoch.0).collect::<Vec<_>>())).collect();
        format!("operations under way {waiting:?}, chains {latest:?}, replicas {replicas:?}, quorum {members:?}")
    }

    /// Whether every watch has told of all that is committed.
    fn is_watched(&self, shard: usize) -> bool {
        let head = self.latest[shard].members[0].rank.index();
        let applied = self.servers[head].replicas[shard].state().applied();
        self.users.iter().all(|user| user.has_seen(ShardId(shard as u16), applied))
    }

    /// Whether a chain has all its replicas, linked and with the same state.
    fn is_whole(&self, shard: usize) -> bool {
        let chain = &self.latest[shard];
        let mut members = chain.members.iter().map(|member| (member, &self.servers[member.rank.index()]));
        let same = members.all(|(member, server)| {
            let Some(replica) = server.replicas.get(shard) else { return false };
            let head = chain.members[0].rank.index();
            let last = self.servers[head].replicas.get(shard).map(|replica| replica.last());
            replica.id() == *member
                && replica.epoch() == chain.epoch
                && replica.is_linked()
                && last == Some(replica.state().applied())
        });
        chain.members.len() == self.plan.replicas && chain.joining.is_none() && same
    }

    /// Looks at the whole run.
    fn judge(&mut self) -> Result<(), String> {
        let mut seen = std::mem::take(&mut self.seen);
        let current = self.users.iter().map(|user| user.watched.len()).collect::<Vec<_>>();
        for (user, count) in self.users.iter_mut().zip(current) {
            user.give_up();
            seen.append(&mut user.seen);
            for (place, watched) in user.watched.iter().enumerate() {
                let last = place + 1 == count && self.plan.shards == 1 && self.healed_at.is_some();
                self.truth[usize::from(watched.shard.0)].explains(watched, last)?;
            }
        }
        for watched in &self.watched {
            self.truth[usize::from(watched.shard.0)].explains(watched, false)?;
        }
        self.report.operations = seen.len();
        self.report.unknown = seen.iter().filter(|seen| seen.returned.is_none()).count();
        for (shard, truth) in self.truth.iter().enumerate() {
            let of_shard = |seen: &&Seen| usize::from(self.users[0].client.shard_of(&seen.key).0) == shard;
            let seen: Vec<Seen> = seen.iter().filter(of_shard).cloned().collect();
            truth.has_all_acknowledged(&seen)?;
            linearizable(&seen, truth)?;
        }
        self.is_small()
    }

    /// What is kept is a function of what is alive.
    fn is_small(&self) -> Result<(), String> {
        for (shard, chain) in self.latest.iter().enumerate() {
            for member in &chain.members {
                let (sizes, log) = self.servers[member.rank.index()].replicas[shard].sizes();
                let clients = self.plan.clients as usize;
                // One command that is lost on its way keeps back those behind it.
                let outcomes_max = clients * 50;
                if sizes.records > keys(&self.plan).len()
                    || sizes.sessions > clients
                    || sizes.outcomes > outcomes_max
                    || log > 0
                {
                    return Err(format!("{member:?} keeps {sizes:?} and {log} commands at rest"));
                }
            }
        }
        Ok(())
    }
}

fn state_of(replica: &Replica) -> String {
    let ReplicaId { rank, incarnation } = replica.id();
    let (applied, last) = (replica.state().applied().0, replica.last().0);
    let (linked, leads) = (replica.is_linked(), replica.may_lead());
    format!("{rank}.{incarnation} epoch {} has {applied}..{last}, linked {linked}, may lead {leads}", replica.epoch().0)
}

fn rank_of(address: Address) -> Rank {
    match address {
        Address::Replica(rank) | Address::Quorum(rank) | Address::Client(rank) => rank,
    }
}
