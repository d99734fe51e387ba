//! The real cores as a table: what a replica does when it is told something is
//! found out once, by telling it to a real one, and looked up from then on. So a
//! world is a few numbers, and a step is a few look-ups.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;

use crate::base::Rank;
use crate::gcs::{
    Action, Address, Beat, Blob, Body, Bug, Bugs, ChainConfig, Change, ClientId, Command, Directory, Epoch, Found,
    Granter, Key, Message, Op, Options, Query, Replica, ReplicaId, ShardId, Table, Timing,
};

/// The ranks: those of the first chain and the one that may join.
pub const SLOTS: usize = 4;
const QUORUM: Rank = Rank(9);

/// A replica's clock while its lease runs, and once it has run out: nothing else
/// in the model depends on time.
const NOW: u64 = 0;
const LATE: u64 = 1;

/// Everything that is due is due at once.
const TIMING: Timing =
    Timing { beat: 0, lease: LATE, hold: LATE, detection: LATE, resend: 0, watch: LATE, quorum_tick: LATE };

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
    pub order: Order,
    pub linked: bool,
    pub may_lead: bool,
    pub is_head: bool,
    pub is_tail: bool,
    /// While its lease runs, and after.
    pub reads: [Read; 2],
}

/// What a replica can be told.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Input {
    Message(u32),
    /// The chain of this epoch in this history.
    Chain(u32, u8),
    Command(u8),
    Query,
    Resend,
    Grant,
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
    pub chains: Vec<ChainConfig>,
    directory: Directory,
    pub failures: u8,
    pub kinds: Vec<Change>,
}

/// The granting side of leases.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct Lessor {
    granter: Granter,
}

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

/// Who may join.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Joiner {
    Nobody,
    /// A rank that was in no chain.
    Another,
    /// The next life of a rank that was removed and has ended.
    NextLife,
}

pub struct Cores {
    bugs: Bugs,
    joiner: Joiner,
    founding: usize,
    closed_loop: bool,
    retired: [Option<u32>; SLOTS],
    replicas: Numbered<Replica>,
    views: Vec<View>,
    letters: Numbered<Letter>,
    histories: Numbered<History>,
    changes: HashMap<u32, Arc<Vec<u32>>>,
    lessors: Numbered<Lessor>,
    mails: Numbered<Vec<u32>>,
    turns: HashMap<(u32, Input, bool), Arc<Effect>>,
    grants: HashMap<(u32, u32, u8, ReplicaId, u64), (u32, bool)>,
}

pub fn id(slot: usize) -> ReplicaId {
    ReplicaId { rank: Rank(slot as u32), incarnation: 1 }
}

fn key() -> Key {
    Key::new(Table::Names, b"k")
}

impl Cores {
    pub fn new(
        bugs: Bugs,
        founding: usize,
        failures: u8,
        joiner: Joiner,
        closed_loop: bool,
    ) -> (Cores, [u32; SLOTS], u32, u32, Vec<u32>) {
        let mut cores = Cores {
            bugs,
            joiner,
            founding,
            closed_loop,
            retired: [None; SLOTS],
            replicas: Numbered::new(),
            views: Vec::new(),
            letters: Numbered::new(),
            histories: Numbered::new(),
            changes: HashMap::new(),
            lessors: Numbered::new(),
            mails: Numbered::new(),
            turns: HashMap::new(),
            grants: HashMap::new(),
        };
        let chain =
            ChainConfig { shard: ShardId(0), epoch: Epoch(1), members: (0..founding).map(id).collect(), joining: None };
        let history = History {
            chains: vec![chain.clone()],
            directory: Directory::founded(vec![chain.clone()]),
            failures,
            kinds: Vec::new(),
        };
        let history = cores.histories.number(history);
        let lessor = cores.lessors.number(Lessor { granter: Granter::new(NOW, TIMING.hold, true) });
        let mut mail = Vec::new();
        let slots = std::array::from_fn(|slot| {
            let options = cores.options(id(slot));
            if slot >= founding {
                return cores.core(Replica::spare(options));
            }
            let mut out = Vec::new();
            let mut replica = Replica::founding(options, chain.clone(), NOW, &mut out);
            replica.flush(NOW, &mut out);
            let effect = cores.effect(slot, replica, out);
            mail.extend(&effect.sends);
            effect.core
        });
        (cores, slots, history, lessor, mail)
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

    pub fn sizes(&self) -> [usize; 5] {
        [
            self.mails.items.len(),
            self.replicas.items.len(),
            self.letters.items.len(),
            self.histories.items.len(),
            self.turns.len(),
        ]
    }

    fn options(&self, me: ReplicaId) -> Options {
        let quorum = vec![QUORUM];
        Options { me, shard: ShardId(0), quorum, timing: TIMING, durable: false, bugs: self.bugs }
    }

    /// The next life of a rank, which knows nothing.
    pub fn next_life(&mut self, of: ReplicaId) -> u32 {
        self.core(Replica::spare(self.options(ReplicaId { incarnation: of.incarnation + 1, ..of })))
    }

    fn core(&mut self, replica: Replica) -> u32 {
        // All who know that they were removed are alike: they do nothing.
        if replica.is_retired()
            && let Some(core) = self.retired[replica.id().rank.index()]
        {
            return core;
        }
        let number = self.replicas.number(replica);
        if number as usize == self.views.len() {
            let view = self.look(&self.replicas.items[number as usize]);
            self.views.push(view);
            if view.retired {
                self.retired[view.id.rank.index()] = Some(number);
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
        let reads = [NOW, LATE].map(|now| {
            let (mut replica, mut out) = (replica.clone(), Vec::new());
            if !replica.may_read(now) {
                return Read::Refuses;
            }
            self.tell(&mut replica, Input::Query, now, &mut out);
            let mut read = Read::Asks;
            for action in out {
                match told(action).first() {
                    Some(Told::Read(order)) => read = Read::Answers(*order),
                    Some(_) => read = Read::Refuses,
                    None => {}
                }
            }
            if replica.is_retired() { Read::Refuses } else { read }
        });
        View {
            id: replica.id(),
            epoch: replica.epoch().0,
            retired: replica.is_retired(),
            last: replica.last().0,
            applied: replica.state().applied().0,
            order,
            linked: replica.is_linked(),
            may_lead: replica.may_lead(),
            is_head: replica.chain().is_some_and(|chain| chain.head() == Some(replica.id())),
            is_tail: replica.chain().is_some_and(|chain| chain.tail() == Some(replica.id())),
            reads,
        }
    }

    /// One turn of a replica.
    pub fn turn(&mut self, core: u32, input: Input, expired: bool) -> Arc<Effect> {
        if let Some(effect) = self.turns.get(&(core, input, expired)) {
            return Arc::clone(effect);
        }
        let mut replica = Replica::clone(&self.replicas.items[core as usize]);
        let mut out = Vec::new();
        let now = if expired { LATE } else { NOW };
        self.tell(&mut replica, input, now, &mut out);
        replica.flush(now, &mut out);
        let slot = replica.id().rank.index();
        let effect = Arc::new(self.effect(slot, replica, out));
        self.turns.insert((core, input, expired), Arc::clone(&effect));
        effect
    }

    fn tell(&self, replica: &mut Replica, input: Input, now: u64, out: &mut Vec<Action>) {
        let shard = ShardId(0);
        // A client that knows the replica's own epoch: the worst there is.
        let epoch = replica.epoch();
        match input {
            Input::Message(letter) => {
                let Letter { from, message, .. } = &*self.letters.items[letter as usize];
                replica.receive(now, Address::Replica(Rank(*from as u32)), message.clone(), out);
            }
            Input::Chain(history, of) => {
                let chain = self.histories.items[history as usize].chains[of as usize - 1].clone();
                let message = Message { shard, epoch: chain.epoch, body: Body::Chain(Some(chain)) };
                replica.receive(NOW, Address::Quorum(QUORUM), message, out);
            }
            Input::Command(number) => {
                let body = Body::Commands(vec![self.command(number)]);
                replica.receive(now, Address::Client(Rank(10)), Message { shard, epoch, body }, out);
            }
            Input::Query => {
                let reader = ClientId { rank: Rank(20), incarnation: 1 };
                let body = Body::Queries(reader, vec![(1, Query::Get(vec![key()]))]);
                replica.receive(now, Address::Client(reader.rank), Message { shard, epoch, body }, out);
            }
            Input::Resend => replica.tick(LATE),
            Input::Grant => {
                let body = Body::Grant { to: replica.id(), echo: NOW };
                replica.receive(NOW, Address::Quorum(QUORUM), Message { shard, epoch, body }, out);
            }
        }
    }

    fn command(&self, number: u8) -> Command {
        let op = Op::Append { key: key(), bytes: Blob::from(&[number]) };
        if self.closed_loop {
            let client = ClientId { rank: Rank(10), incarnation: 1 };
            Command { client, number: number.into(), settled: u64::from(number) - 1, op }
        } else {
            let client = ClientId { rank: Rank(10 + u32::from(number)), incarnation: 1 };
            Command { client, number: 1, settled: 0, op }
        }
    }

    fn effect(&mut self, slot: usize, replica: Replica, out: Vec<Action>) -> Effect {
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
        let now = before.chains.last().expect("the first chain");
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
        let fresh: Vec<ReplicaId> = match self.joiner {
            Joiner::Nobody => Vec::new(),
            Joiner::Another => vec![id(self.founding)],
            Joiner::NextLife => (0..self.founding).map(|slot| ReplicaId { incarnation: 2, ..id(slot) }).collect(),
        };
        match now.joining {
            Some(joining) => next.push(([&now.members[..], &[joining]].concat(), None, 0)),
            None if before.kinds.contains(&Change::Joins) => {}
            None => next.extend(fresh.into_iter().map(|fresh| (now.members.clone(), Some(fresh), 0))),
        }
        let mut changes = Vec::new();
        for (members, joining, failures) in next {
            let chain = ChainConfig { shard: ShardId(0), epoch: Epoch(now.epoch.0 + 1), members, joining };
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
        let mut granter = self.lessors.items[lessor as usize].granter.clone();
        let beat = Beat { from, sent: NOW, received: None, linked: false, restored: None };
        let chain = &self.histories.items[history as usize].chains[usize::from(known) - 1];
        let granted = granter.grant(NOW, chain, Epoch(epoch), &beat, TIMING.hold, self.bugs);
        let answer = (self.lessors.number(Lessor { granter }), granted);
        self.grants.insert(asked, answer);
        answer
    }

    /// The leases that were granted have run out.
    pub fn expire(&mut self) -> u32 {
        self.lessors.number(Lessor { granter: Granter::new(NOW, TIMING.hold, true) })
    }

    pub fn print(&self) {
        for letter in &self.letters.items {
            println!("{} -> {} epoch {}: {:?}", letter.from, letter.to, letter.message.epoch.0, letter.message.body);
        }
    }

    /// Letters that lie about, by their number.
    pub fn mail(&self, mail: u32) -> &[u32] {
        &self.mails.items[mail as usize]
    }

    /// Letters in the order of their numbers.
    pub fn lay_out(&mut self, letters: Vec<u32>) -> u32 {
        self.mails.number(letters)
    }

    /// Whether a message means nothing to its receiver, now and ever after.
    pub fn is_dead(&self, letter: u32, view: &View, lean: u8) -> bool {
        if self.bugs.has(Bug::SkipEpochCheck) {
            return view.retired;
        }
        let Letter { message, .. } = &*self.letters.items[letter as usize];
        if view.retired || message.epoch.0 < view.epoch {
            return true;
        }
        if lean == 0 || message.epoch.0 != view.epoch {
            return false;
        }
        match &message.body {
            Body::Committed { through, .. } => through.0 <= view.applied,
            Body::Forward(forward) => {
                view.linked && forward.entries.last().map_or(forward.after, |entry| entry.seq).0 <= view.last
            }
            _ => false,
        }
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
