//! Chains of three on real files: everything is killed again and again, comes
//! back from disk, and what was acknowledged is there.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::*;
use crate::gcs::{Found, Nanos, Query, Record};

const RANKS: u32 = 3;
/// Commands under way.
const WINDOW: usize = 64;

/// Three ranks, one client, and a quorum whose word is always right.
struct Chain {
    folder: Folder,
    options: DiskOptions,
    started: Instant,
    ranks: Vec<Option<Running>>,
    epoch: u64,
    on_the_way: VecDeque<(Address, Address, Message)>,
    under_way: BTreeSet<u64>,
    next: u64,
    /// What is acknowledged, and at which place it was done.
    done: BTreeMap<u64, Seq>,
}

/// One rank while it lives.
struct Running {
    replica: Replica,
    disk: ReplicaDisk,
    _home: Home,
}

impl Chain {
    fn founded(options: DiskOptions) -> Chain {
        let mut chain = Chain {
            folder: Folder::new(),
            options,
            started: Instant::now(),
            ranks: Vec::new(),
            epoch: 0,
            on_the_way: VecDeque::new(),
            under_way: BTreeSet::new(),
            next: 1,
            done: BTreeMap::new(),
        };
        chain.start(|_, recovered| assert!(recovered.is_none()));
        chain
    }

    /// Starts all ranks on what is on their disks.
    fn start(&mut self, mut check: impl FnMut(u32, &Option<Recovered>)) {
        let mut lives = Vec::new();
        for rank in 0..RANKS {
            let home = Home::open(&self.folder.0, Rank(rank), self.options).unwrap();
            let (disk, recovered) = ReplicaDisk::open(&home, SHARD).unwrap();
            check(rank, &recovered);
            lives.push((home, disk, recovered));
        }
        // Those that have more come before those that have less.
        self.epoch += 1;
        let mut members: Vec<(Seq, ReplicaId)> = Vec::new();
        for (rank, (home, _, recovered)) in lives.iter().enumerate() {
            let has = recovered.as_ref().map_or(Seq(0), Recovered::last);
            members.push((has, options(rank as u32, home.life()).me));
        }
        members.sort_by_key(|(has, _)| std::cmp::Reverse(*has));
        let members = members.into_iter().map(|(_, id)| id).collect();
        let chain = ChainConfig { shard: SHARD, epoch: Epoch(self.epoch), members, joining: None };
        self.on_the_way.clear();
        for (rank, (home, disk, recovered)) in lives.into_iter().enumerate() {
            let options = options(rank as u32, home.life());
            let mut actions = Vec::new();
            let replica = match recovered {
                None => Replica::founding(options, chain.clone(), 0, &mut actions),
                Some(recovered) => Replica::restored(options, recovered),
            };
            self.ranks.push(Some(Running { replica, disk, _home: home }));
            self.perform(rank, actions);
            let word = Message { shard: SHARD, epoch: chain.epoch, body: Body::Chain(Some(chain.clone())) };
            self.on_the_way.push_back((Address::Replica(Rank(rank as u32)), Address::Quorum(Rank(0)), word));
        }
        // What was under way may or may not be done: the client asks again.
        let again: Vec<u64> = self.under_way.iter().copied().collect();
        self.say(&again);
    }

    /// Ends all ranks as a kill does: nothing more is written than what the kernel
    /// has been given, and nobody is told.
    fn kill(&mut self) {
        self.ranks.clear();
    }

    fn now(&self) -> Nanos {
        self.started.elapsed().as_nanos() as Nanos
    }

    /// Sends commands to the head.
    fn say(&mut self, numbers: &[u64]) {
        let settled = self.under_way.first().map_or(self.next - 1, |first| first - 1);
        let commands: Vec<Command> = numbers.iter().map(|number| put(*number, settled)).collect();
        let head = self.ranks.iter().flatten().find_map(|running| running.replica.chain()?.members.first().copied());
        let head = head.map_or(Rank(0), |head| head.rank);
        if !commands.is_empty() {
            let message = Message { shard: SHARD, epoch: Epoch(self.epoch), body: Body::Commands(commands) };
            self.on_the_way.push_back((Address::Replica(head), Address::Client(CLIENT.rank), message));
        }
    }

    /// Sends as many new commands as may be under way.
    fn fill_window(&mut self) {
        let count = WINDOW - self.under_way.len();
        let numbers: Vec<u64> = (self.next..).take(count).collect();
        self.next += count as u64;
        self.under_way.extend(&numbers);
        self.say(&numbers);
    }

    /// Delivers what is on the way and takes what disks tell, until neither has
    /// anything more just now.
    fn turn(&mut self) {
        let mut quiet = false;
        while !quiet {
            quiet = self.on_the_way.is_empty();
            for (to, from, message) in std::mem::take(&mut self.on_the_way) {
                match to {
                    Address::Replica(rank) => {
                        let (now, mut actions) = (self.now(), Vec::new());
                        let Some(Some(running)) = self.ranks.get_mut(rank.index()) else { continue };
                        running.replica.receive(now, from, message, &mut actions);
                        self.perform(rank.index(), actions);
                    }
                    Address::Client(_) => self.hear(message),
                    Address::Quorum(_) => {
                        if let Body::Beat(beat) = &message.body {
                            let word = granted(message.epoch, beat);
                            self.on_the_way.push_back((Address::Replica(beat.from.rank), to, word));
                        }
                    }
                }
            }
            for rank in 0..self.ranks.len() {
                let (now, mut actions) = (self.now(), Vec::new());
                let Some(running) = &mut self.ranks[rank] else { continue };
                let replica = &mut running.replica;
                running
                    .disk
                    .poll(&mut |event| {
                        quiet = false;
                        replica.disk(event);
                    })
                    .unwrap();
                replica.tick(now);
                replica.flush(now, &mut actions);
                self.perform(rank, actions);
            }
        }
    }

    fn perform(&mut self, rank: usize, actions: Vec<Action>) {
        let Some(running) = &mut self.ranks[rank] else { return };
        for action in actions.into_iter().filter_map(|action| running.disk.perform(action)) {
            if let Action::Send(to, message) = action {
                self.on_the_way.push_back((to, Address::Replica(Rank(rank as u32)), message));
            }
        }
    }

    fn hear(&mut self, message: Message) {
        match message.body {
            Body::Outcomes(outcomes) => {
                for (_, number, outcome) in outcomes {
                    self.under_way.remove(&number);
                    self.done.insert(number, outcome.expect("a put is done"));
                }
            }
            // The head is not linked yet, or this client knew an earlier one.
            Body::NotNow(..) | Body::Chain(_) => {
                let again: Vec<u64> = self.under_way.iter().copied().collect();
                self.say(&again);
            }
            _ => {}
        }
    }

    /// Goes on until it is so.
    fn until(&mut self, is_so: impl Fn(&Chain) -> bool) {
        let start = Instant::now();
        loop {
            self.turn();
            if is_so(self) {
                return;
            }
            assert!(start.elapsed() < PATIENCE, "{} done, {:?} not", self.done.len(), self.under_way);
            let fds: Vec<_> = self.ranks.iter().flatten().map(|running| running.disk.wait_fd()).collect();
            let mut fds: Vec<_> = fds.iter().map(|fd| PollFd::from_borrowed_fd(*fd, PollFlags::IN)).collect();
            // What was said to a head that was not there yet is said again.
            let _ = poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 2_000_000 }));
        }
    }

    /// All that was acknowledged is in this state, as it was done.
    fn assert_has_all(&self, rank: usize) {
        let state = self.ranks[rank].as_ref().unwrap().replica.state();
        for (number, seq) in &self.done {
            let Found::Records(found) = state.answer(&Query::Get(vec![key(*number)])) else { panic!("a get") };
            let Op::Put { value, .. } = put(*number, 0).op else { unreachable!() };
            assert_eq!(found, [Some(Record { version: *seq, value })], "command {number} at rank {rank}");
        }
    }
}

#[test]
fn what_was_acknowledged_outlives_every_kill() {
    for backend in [JournalBackend::Auto, JournalBackend::Thread] {
        let mut rng = Rng::new(9);
        let mut chain = Chain::founded(DiskOptions { backend, ..DiskOptions::default() });
        for round in 0..12 {
            let target = chain.done.len() + rng.below(150);
            while chain.done.len() < target {
                chain.fill_window();
                let before = chain.done.len();
                chain.until(|chain| chain.done.len() > before);
            }
            chain.fill_window();
            if rng.below(2) == 0 {
                chain.turn();
            }
            chain.kill();
            // A crash of the machine may leave anything behind what was synced.
            for rank in 0..RANKS {
                if rng.below(2) == 0 {
                    let mut log = fs::read(chain.folder.log(rank)).unwrap();
                    log.extend((0..rng.below(60)).map(|_| rng.next_u64() as u8));
                    fs::write(chain.folder.log(rank), log).unwrap();
                }
            }
            let last = chain.done.values().max().copied().unwrap_or_default();
            chain.start(|rank, recovered| {
                let recovered = recovered.as_ref().expect("its log is there");
                assert!(recovered.last() >= last, "rank {rank} has lost something in round {round}");
            });
        }
        chain.until(|chain| chain.under_way.is_empty());
        let all = chain.done.len() as u64;
        assert_eq!(all, chain.next - 1, "every command is done");
        assert_eq!(chain.done.values().collect::<BTreeSet<_>>().len() as u64, all, "and once");
        chain.until(|chain| chain.ranks.iter().flatten().all(|running| running.replica.state().applied() >= Seq(all)));
        (0..RANKS as usize).for_each(|rank| chain.assert_has_all(rank));
    }
}

/// Prints how many durable commands a second that is, if `--nocapture` is given.
#[test]
fn commands_that_gather_share_a_sync() {
    for backend in [JournalBackend::Auto, JournalBackend::Thread] {
        let mut chain = Chain::founded(DiskOptions { backend, ..DiskOptions::default() });
        chain.fill_window();
        chain.until(|chain| chain.under_way.is_empty());
        let syncs = |chain: &Chain| chain.ranks.iter().flatten().map(|running| running.disk.syncs()).max().unwrap();
        let (before, done, start) = (syncs(&chain), chain.done.len(), Instant::now());
        while start.elapsed() < Duration::from_millis(500) {
            chain.fill_window();
            let before = chain.done.len();
            chain.until(|chain| chain.done.len() > before);
        }
        let (seconds, done, syncs) = (start.elapsed().as_secs_f64(), chain.done.len() - done, syncs(&chain) - before);
        println!(
            "{backend:?}: {:.0} durable puts/s, {WINDOW} under way, {:.0} syncs/s on each disk; one at a time {:.0}",
            done as f64 / seconds,
            syncs as f64 / seconds,
            plain_syncs_per_second(&chain.folder.0),
        );
        assert!(done as u64 > 4 * syncs, "{done} commands took {syncs} syncs");
    }
}

/// What the disk does with one small append and one sync after the other.
fn plain_syncs_per_second(dir: &Path) -> f64 {
    let mut file = fs::File::create(dir.join("plain")).unwrap();
    let (start, mut count) = (Instant::now(), 0);
    while start.elapsed() < Duration::from_millis(300) {
        io::Write::write_all(&mut file, &[0; 200]).unwrap();
        file.sync_data().unwrap();
        count += 1;
    }
    f64::from(count) / start.elapsed().as_secs_f64()
}
