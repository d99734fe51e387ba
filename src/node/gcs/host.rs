//! One turn of the control store's cores in this rank: they are told what
//! arrived and what time it is, and what they want sent goes to each other or
//! out.

use std::collections::{BTreeSet, VecDeque};
use std::os::fd::BorrowedFd;
use std::time::Instant;

use super::disk::{Home, LIVES_MAX, QuorumDisk, ReplicaDisk};
use super::functions::Functions;
use super::setup::Setup;
use super::waiting::{ControlRequest, Waiting};
use crate::base::limits::{GCS_DEADLINE, GCS_RANK_DETECTION};
use crate::base::{JobId, Rank};
use crate::gcs::{
    Action, Address, Bugs, ChainConfig, Client, ClientId, ClientOptions, Epoch, Key, Limits, Member, MemberAction, MemberOptions, Message,
    Nanos, Op, Options, Packet, Recovered, Replica, ReplicaId, ShardId, Table, Timing, encode_message,
};
use crate::node::registry::TaskEntry;
use crate::sync::Task;
use crate::wire::begin_gcs;

/// See the module.
pub(in crate::node) struct Gcs {
    me: Rank,
    life: u32,
    started: Instant,
    /// The time of this turn, once it has been asked for.
    now: Option<Nanos>,
    quorum: Vec<Rank>,
    timing: Timing,
    seats: Vec<Seat>,
    member: Option<Member>,
    quorum_disk: Option<QuorumDisk>,
    member_touched: bool,
    client: Client,
    client_touched: bool,
    /// Ranks with which the connection has ended: it does not come back.
    ended: BTreeSet<Rank>,
    /// Messages from here to here.
    local: VecDeque<(Address, Address, Message)>,
    /// What the last turn has for other ranks.
    pub outgoing: Outgoing,
    waiting: Waiting,
    functions: Functions,
    pending: bool,
    /// Operations that wait for the next turn, and when the first was asked for.
    gathered: usize,
    gathered_at: Nanos,
    /// Why this rank cannot go on.
    pub failed: Option<String>,
    /// What has been decided, for the log.
    pub decisions: Vec<String>,
    /// Where the files are; holds them against other processes.
    home: Option<Home>,
}

/// This rank's replica of one shard; that of every shard has a place, for it may
/// be called to join.
struct Seat {
    replica: Replica,
    disk: Option<ReplicaDisk>,
    /// How many replicas have been removed from it.
    removed: u32,
    epoch: Epoch,
    touched: bool,
}

/// Messages for other ranks, one behind the other.
#[derive(Default)]
pub(in crate::node) struct Outgoing {
    bytes: Vec<u8>,
    ends: Vec<(Rank, usize)>,
}

impl Outgoing {
    /// Gives every message to `send`, in order.
    pub fn drain(&mut self, mut send: impl FnMut(Rank, &[u8])) {
        let mut start = 0;
        for (rank, end) in self.ends.drain(..) {
            send(rank, &self.bytes[start..end]);
            start = end;
        }
        self.bytes.clear();
    }
}

/// Operations that wait for a turn; one more, and there is one.
const GATHERED_MAX: usize = 256;

/// Incarnations of one life of the job: more than a rank can be removed in it.
const INCARNATIONS: u32 = 1 << 12;

const _: () = assert!(LIVES_MAX.checked_mul(INCARNATIONS).is_some());

impl Gcs {
    /// The cores of this rank as they are at the start of the job, or with `home`
    /// as what is there says; time counts from `started`.
    ///
    /// # Errors
    /// In words, if what is there cannot be used.
    pub fn new(me: Rank, setup: Setup, started: Instant, home: Option<Home>) -> Result<Gcs, String> {
        let timing = Timing::for_detection(GCS_RANK_DETECTION.as_nanos() as Nanos);
        let Setup { replicas, hosts, quorum, chains, life, has_past } = setup;
        let mut decisions = Vec::new();
        let mut saved = None;
        let mut quorum_disk = None;
        let mut is_member = quorum.contains(&me);
        // All ranks have their part of the folder before any of them keeps
        // something there.
        let is_lost = home.as_ref().is_some_and(|home| home.life() == 1 && life > 1 && has_past);
        if let Some(home) = home.as_ref().filter(|_| is_member) {
            // What this rank has promised as a member in earlier runs is lost:
            // it must not promise anything else.
            is_member = !is_lost;
            if is_member {
                let (disk, log) = QuorumDisk::open(home).map_err(|error| error.to_string())?;
                (quorum_disk, saved) = (Some(disk), log);
            } else {
                decisions.push("control store: no member of the quorum, for what it had saved is gone".into());
            }
        }
        let mut member = None;
        if is_member {
            let options = MemberOptions {
                me,
                life,
                members: quorum.clone(),
                timing,
                replicas,
                hosts,
                founding: chains.clone(),
                bugs: Bugs::default(),
            };
            member = Some(Member::new(options, 0, saved).map_err(|error| error.to_string())?);
        }
        let client = Client::new(ClientOptions {
            me: ClientId { rank: me, incarnation: life },
            quorum: quorum.clone(),
            founding: chains.clone(),
            timing,
            deadline: GCS_DEADLINE.as_nanos() as Nanos,
        });
        let mut gcs = Gcs {
            me,
            life,
            started,
            now: None,
            quorum,
            timing,
            seats: Vec::new(),
            member,
            quorum_disk,
            member_touched: true,
            client,
            client_touched: true,
            ended: BTreeSet::new(),
            local: VecDeque::new(),
            outgoing: Outgoing::default(),
            waiting: Waiting::default(),
            functions: Functions::default(),
            pending: true,
            gathered: 0,
            gathered_at: 0,
            failed: None,
            decisions,
            home,
        };
        for chain in chains {
            let at = usize::from(chain.shard.0);
            let (disk, recovered) = match &gcs.home {
                Some(home) => {
                    let (disk, recovered) = ReplicaDisk::open(home, chain.shard).map_err(|error| error.to_string())?;
                    gcs.decisions.push(disk.decision().to_string());
                    (Some(disk), recovered)
                }
                None => (None, None),
            };
            let options = gcs.options(chain.shard, 0);
            let mut actions = Vec::new();
            let replica = match recovered {
                Some(recovered) if recovered.owner >= options.me.incarnation => {
                    return Err(format!(
                        "COLLIMATE_GCS_DIR has records of run {} of this job here, and on rank 0 this is run {life}: give \
                         rank 0 the folder that it had, or begin with an empty one on all ranks",
                        recovered.owner / INCARNATIONS + 1
                    ));
                }
                Some(recovered) => Replica::restored(options, recovered),
                None if chain.position(options.me).is_some() => {
                    Replica::founding(options, chain.clone(), 0, &mut actions)
                }
                // An earlier run ended before the state with which this member of
                // the first chain begins was on disk: nothing was ever committed
                // with it, and it still begins with that.
                None if disk.is_some() && !is_lost && chain.position(ReplicaId { incarnation: 1, ..options.me }).is_some() => {
                    Replica::restored(options, Recovered { owner: 1, ..Recovered::default() })
                }
                None => Replica::spare(options),
            };
            gcs.seats.push(Seat { replica, disk, removed: 0, epoch: chain.epoch, touched: true });
            gcs.perform(at, actions.drain(..));
        }
        Ok(gcs)
    }

    /// What is readable when [`Gcs::poll_disks`] has something to do.
    pub fn wait_fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let replicas = self.seats.iter().filter_map(|seat| seat.disk.as_ref()).map(ReplicaDisk::wait_fd);
        replicas.chain(self.quorum_disk.as_ref().map(QuorumDisk::wait_fd))
    }

    /// Tells the cores what their disks have done.
    pub fn poll_disks(&mut self) {
        if self.home.is_none() {
            return;
        }
        for seat in &mut self.seats {
            let Some(disk) = &mut seat.disk else { continue };
            let polled = disk.poll(&mut |event| {
                seat.replica.disk(event);
                seat.touched = true;
            });
            self.pending |= seat.touched;
            if let Err(error) = polled {
                self.failed = Some(error.to_string());
            }
        }
        if let Some(mut disk) = self.quorum_disk.take() {
            if let Err(error) = disk.poll(&mut |action| self.release(action)) {
                self.failed = Some(error.to_string());
            }
            self.quorum_disk = Some(disk);
        }
    }

    /// Whether a turn is due.
    #[inline]
    pub fn is_pending(&self) -> bool {
        self.pending
    }

    /// A message of another rank.
    ///
    /// # Errors
    /// In words, if it is none.
    pub fn receive(&mut self, peer: Rank, bytes: &[u8]) -> Result<(), String> {
        // A lease that is looked at for this message must be looked at after it came.
        self.now = None;
        match Packet::decode(bytes).map_err(|error| error.to_string())? {
            Packet::Message { to, from, message } => {
                if from.rank() != peer || to.rank() != self.me {
                    return Err(format!("a message of the control store from {from:?} to {to:?}"));
                }
                self.deliver(to, from, message);
            }
            Packet::Consensus(message) => {
                let sender = message.sender().and_then(|at| self.quorum.get(at));
                if sender != Some(&peer) {
                    return Err(format!("a message of the quorum in the name of {sender:?}"));
                }
                if let Some(member) = &mut self.member {
                    member.consensus(message);
                    self.member_touched = true;
                    self.pending = true;
                }
            }
        }
        Ok(())
    }

    /// The connection with a rank has ended; `surely` if its process has, or has
    /// closed the connection itself, and so has given up its leases. To be told
    /// before this rank closes one.
    pub fn ended(&mut self, rank: Rank, surely: bool) {
        self.now = None;
        let now = self.now();
        self.ended.insert(rank);
        for seat in &mut self.seats {
            seat.replica.ended(now, rank);
        }
        if let Some(member) = self.member.as_mut().filter(|_| surely) {
            member.ended(now, rank);
        }
        self.client.ended(now, rank);
        if self.me == Rank(0) {
            self.forget(rank);
        }
        self.touch_all();
    }

    /// How many operations of this rank are under way.
    pub fn under_way(&self) -> usize {
        self.waiting.operations()
    }

    /// Whether anybody here waits for another rank.
    pub fn awaits(&self) -> bool {
        self.under_way() > 0 || self.seats.iter().any(|seat| seat.replica.awaits())
    }

    /// What is due by time alone is to be done.
    pub fn tick(&mut self) {
        self.touch_all();
    }

    /// An operation of this rank. A change waits, while others are under way, for
    /// the next turn, which comes with their answers at the latest, so that many
    /// go out as one message.
    pub fn ask(&mut self, request: ControlRequest, task: Task) {
        // The turn is so soon that the clock is not read for each.
        if self.gathered == 0 {
            self.now = None;
            self.gathered_at = self.now();
        }
        let now = self.gathered_at;
        self.client_touched = true;
        self.gathered += 1;
        let may_wait = matches!(request, ControlRequest::Command(_)) && self.gathered < GATHERED_MAX;
        self.pending |= !may_wait || self.client.under_way() == 0;
        self.waiting.ask(&mut self.client, now, request, task);
    }

    /// A turn begins: what was asked for since the last one goes out with it.
    #[inline]
    pub fn begin_turn(&mut self) {
        self.pending |= self.gathered > 0;
    }

    /// Writes who this rank is, and rank 0 the job.
    pub fn introduce(&mut self, job: JobId, about: &str) {
        let now = self.now();
        let node = Op::Put { key: node_key(self.me), value: about.as_bytes().into() };
        // What comes of it concerns nobody: the job does not need it to run.
        let _ = self.client.command(now, node);
        if self.me == Rank(0) {
            let text = format!("life={}", self.life);
            let value = text.as_bytes().into();
            let _ = self.client.command(now, Op::Put { key: Key::new(Table::Jobs, &job.0.to_be_bytes()), value });
        }
        self.client_touched = true;
        self.pending = true;
    }

    /// Writes our table of tasks.
    pub fn register_tasks(&mut self, hash: u64, entries: &[TaskEntry]) {
        let now = self.now();
        self.functions.register(&mut self.client, now, hash, entries);
        self.client_touched = true;
        self.pending = true;
    }

    /// Has the table of tasks of another binary read.
    pub fn want_tasks(&mut self, hash: u64) {
        let now = self.now();
        self.functions.want(&mut self.client, now, hash);
        self.client_touched = true;
        self.pending = true;
    }

    /// Tables that have been read since this was asked last.
    pub fn tasks_read(&mut self) -> Vec<(u64, Vec<TaskEntry>)> {
        std::mem::take(&mut self.functions.read)
    }

    /// Why tables of tasks cannot be had, if so.
    pub fn tasks_failed(&mut self) -> Option<String> {
        self.functions.failed.take()
    }

    /// Ends a turn: everything that it has led to is done, but for the sending
    /// of `outgoing`. Returns when something is due if nothing happens.
    pub fn turn(&mut self) -> Nanos {
        self.now = None;
        let now = self.now();
        self.waiting.expire(&mut self.client, now);
        loop {
            self.flush_replicas(now);
            self.flush_member(now);
            self.flush_client(now);
            if self.local.is_empty() {
                break;
            }
            while let Some((to, from, message)) = self.local.pop_front() {
                self.deliver(to, from, message);
            }
        }
        self.pending = false;
        self.gathered = 0;
        self.now = None;
        self.next_due()
    }

    fn flush_replicas(&mut self, now: Nanos) {
        let mut actions = Vec::new();
        for at in 0..self.seats.len() {
            let seat = &mut self.seats[at];
            if !std::mem::take(&mut seat.touched) {
                continue;
            }
            seat.replica.tick(now);
            seat.replica.flush(now, &mut actions);
            // Removed more often than that, it stays away for this life.
            if seat.replica.is_retired() && seat.removed + 1 < INCARNATIONS {
                seat.removed += 1;
                let (shard, removed) = (ShardId(at as u16), seat.removed);
                self.decisions.push(format!("the control store goes on without this rank's replica of shard {at}"));
                let options = self.options(shard, removed);
                let seat = &mut self.seats[at];
                seat.replica = Replica::spare(options);
                self.ended.iter().for_each(|rank| seat.replica.ended(now, *rank));
                if let Some(disk) = &mut seat.disk {
                    disk.change_replica();
                }
                seat.touched = true;
            } else if seat.replica.epoch() > seat.epoch {
                seat.epoch = seat.replica.epoch();
                self.decisions.extend(seat.replica.chain().map(describe));
            }
            self.perform(at, actions.drain(..));
        }
    }

    fn flush_member(&mut self, now: Nanos) {
        if !std::mem::take(&mut self.member_touched) {
            return;
        }
        let Some(member) = &mut self.member else { return };
        let mut actions = Vec::new();
        member.tick(now);
        member.flush(now, &mut actions);
        self.perform_as_member(actions);
    }

    fn flush_client(&mut self, now: Nanos) {
        if !std::mem::take(&mut self.client_touched) {
            return;
        }
        let mut actions = Vec::new();
        self.client.flush(now, &mut actions);
        for action in actions {
            if let Action::Send(to, message) = action {
                self.send(to, Address::Client(self.me), message);
            }
        }
        for notice in self.client.notices() {
            if let Some(notice) = self.functions.notice(&mut self.client, now, notice) {
                self.waiting.notice(notice);
            } else {
                self.client_touched = true;
            }
        }
        if self.client_touched {
            self.flush_client(now);
        }
    }

    /// What a replica wants done.
    fn perform(&mut self, at: usize, actions: impl Iterator<Item = Action>) {
        for action in actions {
            let rest = match &mut self.seats[at].disk {
                Some(disk) => disk.perform(action),
                None => Some(action),
            };
            if let Some(Action::Send(to, message)) = rest {
                self.send(to, Address::Replica(self.me), message);
            }
        }
    }

    /// What the member wants done: with a disk, what follows something that is to
    /// be saved waits for that.
    fn perform_as_member(&mut self, actions: Vec<MemberAction>) {
        let mut disk = self.quorum_disk.take();
        for action in actions {
            match &mut disk {
                Some(disk) => disk.perform(action, &mut |action| self.release(action)),
                None => self.release(action),
            }
        }
        self.quorum_disk = disk;
    }

    fn release(&mut self, action: MemberAction) {
        match action {
            MemberAction::Send(to, message) => self.send(to, Address::Quorum(self.me), message),
            MemberAction::Consensus(to, message) => {
                begin_gcs(&mut self.outgoing.bytes);
                Packet::Consensus(message).encode(&mut self.outgoing.bytes);
                self.outgoing.ends.push((to, self.outgoing.bytes.len()));
                self.pending = true;
            }
            // Without a disk nothing is kept beyond the process.
            MemberAction::Save(_) => (),
        }
    }

    fn send(&mut self, to: Address, from: Address, message: Message) {
        let rank = to.rank();
        self.pending = true;
        if rank == self.me {
            self.local.push_back((to, from, message));
        } else {
            begin_gcs(&mut self.outgoing.bytes);
            encode_message(to, from, &message, &mut self.outgoing.bytes);
            self.outgoing.ends.push((rank, self.outgoing.bytes.len()));
        }
    }

    fn deliver(&mut self, to: Address, from: Address, message: Message) {
        let now = self.now();
        match to {
            Address::Replica(_) => {
                let Some(seat) = self.seats.get_mut(usize::from(message.shard.0)) else { return };
                let mut actions = Vec::new();
                let at = usize::from(message.shard.0);
                seat.replica.receive(now, from, message, &mut actions);
                seat.touched = true;
                self.perform(at, actions.drain(..));
            }
            Address::Quorum(_) => {
                let Some(member) = &mut self.member else { return };
                let mut actions = Vec::new();
                member.receive(now, from, message, &mut actions);
                self.member_touched = true;
                self.perform_as_member(actions);
            }
            Address::Client(_) => {
                self.client.receive(now, message);
                self.client_touched = true;
            }
        }
        self.pending = true;
    }

    fn now(&mut self) -> Nanos {
        let started = self.started;
        *self.now.get_or_insert_with(|| started.elapsed().as_nanos() as Nanos)
    }

    fn next_due(&self) -> Nanos {
        let replicas = self.seats.iter().map(|seat| seat.replica.next_due()).min();
        let member = self.member.as_ref().map(Member::next_due);
        let client = self.client.next_due().min(self.waiting.next_due());
        [replicas, member].into_iter().flatten().fold(client, Nanos::min)
    }

    fn touch_all(&mut self) {
        self.seats.iter_mut().for_each(|seat| seat.touched = true);
        self.member_touched = true;
        self.client_touched = true;
        self.pending = true;
    }

    fn options(&self, shard: ShardId, removed: u32) -> Options {
        let incarnation = (self.life - 1) * INCARNATIONS + removed + 1;
        let me = ReplicaId { rank: self.me, incarnation };
        Options {
            me,
            shard,
            quorum: self.quorum.clone(),
            timing: self.timing,
            durable: self.home.is_some(),
            limits: Limits::default(),
            bugs: Bugs::default(),
        }
    }

    /// What was kept for a rank that is gone goes.
    fn forget(&mut self, rank: Rank) {
        let now = self.now();
        let client = ClientId { rank, incarnation: self.life };
        for at in 0..self.seats.len() {
            let _ = self.client.command_in(now, ShardId(at as u16), Op::EndClient { client });
        }
        let _ = self.client.command(now, Op::Delete { key: node_key(rank) });
    }
}

fn describe(chain: &ChainConfig) -> String {
    let members: Vec<String> = chain.members.iter().map(|member| member.rank.to_string()).collect();
    let joining = chain.joining.map_or_else(String::new, |joining| format!(", {} joins", joining.rank));
    format!("control store: shard {}, epoch {}: {}{joining}", chain.shard.0, chain.epoch.0, members.join(", "))
}

fn node_key(rank: Rank) -> Key {
    Key::new(Table::Nodes, &rank.0.to_be_bytes())
}
