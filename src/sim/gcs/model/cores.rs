//! The real cores as a table: what a replica does when it is told something is
//! found out once, by telling it to a real one, and looked up from then on. So a
//! world is a few numbers, and a step is a few look-ups.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;

use super::{Joiner, Scope};
use crate::base::Rank;
use crate::gcs::{
    Action, Address, Beat, Blob, Body, Bug, Bugs, ChainConfig, Change, ClientId, Command, Directory, Epoch, Found,
    Granter, Key, Limits, Message, Op, Options, Query, Replica, ReplicaId, ShardId, Table, Timing,
};

/// The ranks: those of the first chain and the one that may join.
pub const SLOTS: usize = 4;
const SHARD: ShardId = ShardId(0);
const QUORUM: Rank = Rank(9);

/// Time stands still: what is due is due at once, and a lease runs until the
/// model says that it has run out.
const NOW: u64 = 0;
const TIMING: Timing =
    Timing { beat: 1, lease: 1, hold: 1, detection: 1, resend: 0, word: 0, watch: 1, quorum_tick: 1 };

/// The commands that were carried out, first to last: one byte each.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Order {
    pub len: u8,
    commands: u32,
}

impl Order {
    fn of(bytes: &[u8]) -> Order {
        let commands = bytes.iter().rev().fold(0, |all, byte| all << 8 | u32::from(*byte));
        Order { len: bytes.len() as u8, commands }
    }

    pub fn at(self, place: u8) -> u8 {
        self.commands.checked_shr(8 * u32::from(place)).unwrap_or(0) as u8
    }

    pub fn begins(self, longer: Order) -> bool {
        self.len <= longer.len && (0..self.len).all(|place| self.at(place) == longer.at(place))
    }
}

/// What a replica would do with a query.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Read {
    Refuses,
    Answers(Order),
    Asks,
}

/// What a replica shows.
#[derive(Clone, Copy, Debug)]
pub struct View {
    pub id: ReplicaId,
    pub epoch: u64,
    pub retired: bool,
    pub last: u64,
    pub applied: u64,
    /// Whether it keeps commands that are committed, for its successor.
    pub keeps: bool,
    pub order: Order,
    pub linked: bool,
    pub may_lead: bool,
    pub is_head: bool,
    pub is_tail: bool,
    pub read: Read,
}

/// What a replica can be told.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Input {
    Message(u32),
    /// The chain of this epoch in this history.
    Chain(u32, u8),
    Command(u8),
    Query,
    /// Whatever may have been lost is sent again.
    Resend,
    /// A lease begins, as it is granted.
    Grant,
    /// The lease has run out.
    Expire,
}

/// What a client is told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Told {
    Done(u8, u64),
    Read(Order),
    NotNow,
    Refused,
}

/// What comes of telling it.
#[derive(Debug)]
pub struct Effect {
    pub core: u32,
    pub sends: Vec<u32>,
    pub told: Vec<Told>,
}

/// A message on its way.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Letter {
    pub to: usize,
    pub from: usize,
    pub message: Message,
}

/// All changes up to one, and the directory after them.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct History {
    /// The chain of every epoch.
    pub chains: Vec<ChainConfig>,
    pub kinds: Vec<Change>,
    directory: Directory,
    /// How many failures may still come.
    pub failures: u8,
}

impl History {
    pub fn latest(&self) -> &ChainConfig {
        self.chains.last().expect("the first chain")
    }
}

/// What has come up, by number.
struct Numbered<T> {
    numbers: HashMap<Arc<T>, u32>,
    items: Vec<Arc<T>>,
}

impl<T: Hash + Eq> Numbered<T> {
    fn new() -> Numbered<T> {
        Numbered { numbers: HashMap::new(), items: Vec::new() }
    }

    fn number(&mut self, item: T) -> u32 {
        if let Some(number) = self.numbers.get(&item) {
            return *number;
        }
        let (item, number) = (Arc::new(item), self.items.len() as u32);
        self.items.push(Arc::clone(&item));
        self.numbers.insert(item, number);
        number
    }
}

/// What is known of the cores, and names for what they are.
pub struct Cores {
    scope: Scope,
    bugs: Bugs,
    replicas: Numbered<Replica>,
    views: Vec<View>,
    retired: HashMap<ReplicaId, u32>,
    letters: Numbered<Letter>,
    mails: Numbered<Vec<u32>>,
    histories: Numbered<History>,
    lessors: Numbered<Granter>,
    turns: HashMap<(u32, Input), Arc<Effect>>,
    changes: HashMap<u32, Arc<Vec<u32>>>,
    grants: HashMap<Asked, (u32, bool)>,
}

/// A beat as it is heard: by a granter who knows a history up to an epoch, of a
/// replica in an epoch.
type Asked = (u32, u32, u8, ReplicaId, u64);

/// Where all begins.
pub struct Start {
    pub cores: [u32; SLOTS],
    pub mail: u32,
    pub history: u32,
    pub lessor: u32,
}

pub fn id(slot: usize) -> ReplicaId {
    ReplicaId { rank: Rank(slot as u32), incarnation: 1 }
}

fn key() -> Key {
    Key::new(Table::Names, b"k")
}

impl Cores {
    pub fn new(scope: Scope, bugs: Bugs) -> (Cores, Start) {
        let mut cores = Cores {
            scope,
            bugs,
            replicas: Numbered::new(),
            views: Vec::new(),
            retired: HashMap::new(),
            letters: Numbered::new(),
            mails: Numbered::new(),
            histories: Numbered::new(),
            lessors: Numbered::new(),
            turns: HashMap::new(),
            changes: HashMap::new(),
            grants: HashMap::new(),
        };
        let members = (0..scope.founding).map(id).collect();
        let chain = ChainConfig { shard: SHARD, epoch: Epoch(1), members, joining: None };
        let directory = Directory::founded(vec![chain.clone()]);
        let mut letters = Vec::new();
        let slots = std::array::from_fn(|slot| {
            let options = cores.options(id(slot));
            if slot >= scope.founding {
                return cores.core(Replica::spare(options));
            }
            let mut out = Vec::new();
            let mut replica = Replica::founding(options, chain.clone(), NOW, &mut out);
            replica.flush(NOW, &mut out);
            let effect = cores.effect(replica, out);
            letters.extend(&effect.sends);
            effect.core
        });
        letters.sort_unstable();
        let history = History { chains: vec![chain], kinds: Vec::new(), directory, failures: scope.failures };
        let start = Start {
            cores: slots,
            mail: cores.lay_out(letters),
            history: cores.histories.number(history),
            lessor: cores.expire(),
        };
        (cores, start)
    }

    pub fn view(&self, core: u32) -> View {
        self.views[core as usize]
    }

    pub fn history(&self, history: u32) -> &Arc<History> {
        &self.histories.items[history as usize]
    }

    pub fn letter(&self, letter: u32) -> &Letter {
        &self.letters.items[letter as usize]
    }

    fn options(&self, me: ReplicaId) -> Options {
        let quorum = vec![QUORUM];
        let limits = Limits::default();
        Options { me, shard: SHARD, quorum, timing: TIMING, durable: false, limits, bugs: self.bugs }
    }

    /// The next life of a rank, which knows nothing.
    pub fn next_life(&mut self, of: ReplicaId) -> u32 {
        self.core(Replica::spare(self.options(ReplicaId { incarnation: of.incarnation + 1, ..of })))
    }

    fn core(&mut self, replica: Replica) -> u32 {
        // All who know that they were removed are alike: they do nothing.
        if replica.is_retired()
            && let Some(core) = self.retired.get(&replica.id())
        {
            return *core;
        }
        let number = self.replicas.number(replica);
        if number as usize == self.views.len() {
            let view = self.look(&self.replicas.items[number as usize]);
            self.views.push(view);
            if view.retired {
                self.retired.insert(view.id, number);
            }
        }
        number
    }

    fn look(&self, replica: &Replica) -> View {
        let order = match replica.state().answer(&Query::Get(vec![key()])) {
            Found::Records(records) => {
                records[0].as_ref().map_or(Order::default(), |record| Order::of(&record.value[..]))
            }
            Found::Page { .. } => Order::default(),
        };
        let mut read = Read::Refuses;
        if replica.may_read(NOW) {
            let (mut replica, mut out) = (replica.clone(), Vec::new());
            self.tell(&mut replica, Input::Query, &mut out);
            read = match out.into_iter().flat_map(told).next() {
                Some(Told::Read(order)) => Read::Answers(order),
                _ => Read::Asks,
            };
        }
        View {
            id: replica.id(),
            epoch: replica.epoch().0,
            retired: replica.is_retired(),
            last: replica.last().0,
            applied: replica.state().applied().0,
            keeps: replica.sizes().1 as u64 + replica.state().applied().0 > replica.last().0,
            order,
            linked: replica.is_linked(),
            may_lead: replica.may_lead(),
            is_head: replica.chain().is_some_and(|chain| chain.head() == Some(replica.id())),
            is_tail: replica.chain().is_some_and(|chain| chain.tail() == Some(replica.id())),
            read,
        }
    }

    /// One turn of a replica.
    pub fn turn(&mut self, core: u32, input: Input) -> Arc<Effect> {
        if let Some(effect) = self.turns.get(&(core, input)) {
            return Arc::clone(effect);
        }
        let mut replica = Replica::clone(&self.replicas.items[core as usize]);
        let mut out = Vec::new();
        self.tell(&mut replica, input, &mut out);
        replica.flush(NOW, &mut out);
        let effect = Arc::new(self.effect(replica, out));
        self.turns.insert((core, input), Arc::clone(&effect));
        effect
    }

    fn tell(&self, replica: &mut Replica, input: Input, out: &mut Vec<Action>) {
        let shard = SHARD;
        // Clients know the replica's own epoch: the worst there is.
        let epoch = replica.epoch();
        match input {
            Input::Message(letter) => {
                let Letter { from, message, .. } = &*self.letters.items[letter as usize];
                replica.receive(NOW, Address::Replica(Rank(*from as u32)), message.clone(), out);
            }
            Input::Chain(history, of) => {
                let chain = self.histories.items[history as usize].chains[of as usize - 1].clone();
                let message = Message { shard, epoch: chain.epoch, body: Body::Chain(Some(chain)) };
                replica.receive(NOW, Address::Quorum(QUORUM), message, out);
            }
            Input::Command(number) => {
                let body = Body::Commands(vec![self.command(number)]);
                replica.receive(NOW, Address::Client(Rank(10)), Message { shard, epoch, body }, out);
            }
            Input::Query => {
                let reader = ClientId { rank: Rank(20), incarnation: 1 };
                let body = Body::Queries(reader, vec![(1, Query::Get(vec![key()]))]);
                replica.receive(NOW, Address::Client(reader.rank), Message { shard, epoch, body }, out);
            }
            Input::Resend => replica.tick(NOW),
            // Whether it ran out or was given up is the same.
            Input::Expire => replica.ended(NOW, QUORUM),
            Input::Grant => {
                let body = Body::Grant { to: replica.id(), echo: NOW };
                replica.receive(NOW, Address::Quorum(QUORUM), Message { shard, epoch, body }, out);
            }
        }
    }

    fn command(&self, number: u8) -> Command {
        let op = Op::Append { key: key(), bytes: Blob::from(&[number]) };
        if self.scope.closed_loop {
            let client = ClientId { rank: Rank(10), incarnation: 1 };
            Command { client, number: number.into(), settled: u64::from(number) - 1, op }
        } else {
            let client = ClientId { rank: Rank(10 + u32::from(number)), incarnation: 1 };
            Command { client, number: 1, settled: 0, op }
        }
    }

    fn effect(&mut self, replica: Replica, out: Vec<Action>) -> Effect {
        let slot = replica.id().rank.index();
        let mut effect = Effect { core: self.core(replica), sends: Vec::new(), told: Vec::new() };
        for action in out {
            match action {
                Action::Send(Address::Replica(to), message) => {
                    effect.sends.push(self.letters.number(Letter { to: to.index(), from: slot, message }));
                }
                action => effect.told.extend(told(action)),
            }
        }
        effect
    }

    /// What the directory may become in one change.
    pub fn changes(&mut self, history: u32) -> Arc<Vec<u32>> {
        if let Some(changes) = self.changes.get(&history) {
            return Arc::clone(changes);
        }
        let before = Arc::clone(&self.histories.items[history as usize]);
        let now = before.latest();
        let mut next = Vec::new();
        // Any who are there may go, all at once or one after the other.
        for gone in 1_u32..1 << SLOTS {
            let stays = |replica: &ReplicaId| gone & 1 << replica.rank.0 == 0;
            let there = now.members.iter().chain(&now.joining).filter(|replica| !stays(replica)).count();
            if there == gone.count_ones() as usize && there <= usize::from(before.failures) {
                let members: Vec<ReplicaId> = now.members.iter().copied().filter(stays).collect();
                next.push((members, now.joining.filter(stays), there as u8));
            }
        }
        let fresh: Vec<ReplicaId> = match self.scope.joiner {
            Joiner::Nobody => Vec::new(),
            Joiner::Another => vec![id(self.scope.founding)],
            Joiner::NextLife => (0..self.scope.founding).map(|slot| ReplicaId { incarnation: 2, ..id(slot) }).collect(),
        };
        match now.joining {
            Some(joining) => next.push(([&now.members[..], &[joining]].concat(), None, 0)),
            None if before.kinds.contains(&Change::Joins) => {}
            None => next.extend(fresh.into_iter().map(|fresh| (now.members.clone(), Some(fresh), 0))),
        }
        let mut changes = Vec::new();
        for (members, joining, failures) in next {
            let chain = ChainConfig { shard: SHARD, epoch: Epoch(now.epoch.0 + 1), members, joining };
            let mut after = History::clone(&before);
            let Ok(kind) = after.directory.apply(&chain) else { continue };
            after.failures -= failures;
            after.kinds.push(kind);
            after.chains.push(chain);
            changes.push(self.histories.number(after));
        }
        let changes = Arc::new(changes);
        self.changes.insert(history, Arc::clone(&changes));
        changes
    }

    /// A replica's beat at a member of the quorum that knows the chain of this
    /// epoch: whether it is answered by a grant.
    pub fn beat(&mut self, lessor: u32, history: u32, known: u8, from: ReplicaId, epoch: u64) -> (u32, bool) {
        let asked = (lessor, history, known, from, epoch);
        if let Some(answer) = self.grants.get(&asked) {
            return *answer;
        }
        let mut granter = Granter::clone(&self.lessors.items[lessor as usize]);
        let beat = Beat { from, sent: NOW, received: None, linked: false, restored: None, cut: Vec::new() };
        let chain = &self.histories.items[history as usize].chains[usize::from(known) - 1];
        let granted = granter.grant(NOW, chain, Epoch(epoch), &beat, TIMING.hold, self.bugs);
        let answer = (self.lessors.number(granter), granted);
        self.grants.insert(asked, answer);
        answer
    }

    /// Whoever grants leases, once all that were granted have run out.
    pub fn expire(&mut self) -> u32 {
        self.lessors.number(Granter::new(NOW, TIMING.hold, true))
    }

    /// Letters that lie about, by their number.
    pub fn mail(&self, mail: u32) -> &[u32] {
        &self.mails.items[mail as usize]
    }

    /// Letters in the order of their numbers.
    pub fn lay_out(&mut self, letters: Vec<u32>) -> u32 {
        self.mails.number(letters)
    }

    /// Whether a message means nothing to its receiver, now and ever after: it
    /// is of an earlier epoch, or tells what is known.
    pub fn is_spent(&self, letter: u32, view: &View) -> bool {
        let message = &self.letters.items[letter as usize].message;
        if view.retired {
            return true;
        }
        if self.bugs.has(Bug::SkipEpochCheck) || message.epoch.0 > view.epoch {
            return false;
        }
        let known = match &message.body {
            Body::Committed { through, .. } => through.0 <= view.applied && !view.keeps,
            Body::Forward(forward) => {
                view.linked && forward.entries.last().map_or(forward.after, |entry| entry.seq).0 <= view.last
            }
            _ => false,
        };
        message.epoch.0 < view.epoch || known
    }
}

/// What clients are told by this.
fn told(action: Action) -> Vec<Told> {
    let Action::Send(Address::Client(_), Message { body, .. }) = action else { return Vec::new() };
    match body {
        Body::Outcomes(outcomes) => {
            let told = outcomes.into_iter().map(|(client, number, outcome)| {
                let command = if client.rank == Rank(10) { number as u8 } else { (client.rank.0 - 10) as u8 };
                outcome.map_or(Told::Refused, |seq| Told::Done(command, seq.0))
            });
            told.collect()
        }
        Body::Answers(_, answers) => {
            let told = answers.into_iter().map(|(_, answer)| match answer {
                Ok((_, Found::Records(records))) => {
                    Told::Read(records[0].as_ref().map_or(Order::default(), |record| Order::of(&record.value[..])))
                }
                _ => Told::Refused,
            });
            told.collect()
        }
        _ => vec![Told::NotNow],
    }
}
