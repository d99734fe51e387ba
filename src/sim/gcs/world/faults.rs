//! What goes wrong in a world: processes, disks, connections and messages.

use std::collections::BTreeSet;

use super::{Disk, Event, FIRST_CLIENT, QUIET, Server, World};
use crate::base::Rank;
use crate::gcs::{ChainConfig, DiskEvent, ReplicaId, ShardId, Timing, recover};
use crate::sim::gcs::plan::{MS, US};

impl World {
    pub(super) fn schedule_fault(&mut self) {
        if let Some(every) = self.plan.fault_every {
            let delay = self.rng.below(2 * every as usize) as u64;
            self.after(delay, Event::Fault);
        }
    }

    pub(super) fn fault(&mut self) {
        let number = self.rng.below(self.servers.len());
        match self.rng.below(18) {
            0..3 if self.plan.crashes => self.crash(number),
            3..5 if self.plan.crashes => self.restart(number),
            5..8 if self.plan.partitions => self.partition(number),
            8 => self.mend(),
            9 if self.plan.slow_disks => self.servers[number].slow_disk ^= true,
            10 if self.plan.slow_disks && self.plan.durable => self.toggle_space(number),
            11 if self.plan.client_crashes => {
                let number = self.rng.below(self.users.len());
                self.crash_user(number);
            }
            12..14 if self.plan.closes => self.close(number),
            14..17 if self.plan.closes => self.lose_one(),
            17 if self.plan.job_restarts => self.restart_job(),
            _ => {}
        }
    }

    /// A process has connections only with those that are there.
    fn begin_connections(&mut self, at: Rank) {
        self.closed.retain(|(who, ..)| *who != at);
        let clients = (0..self.plan.clients).map(|client| Rank(FIRST_CLIENT + client));
        for of in (0..self.plan.servers).map(Rank).chain(clients) {
            let past = self.process(of) + u32::from(!self.is_up(of));
            self.closed.extend((1..past).map(|process| (at, of, process)));
        }
    }

    /// All others see soon that a process has ended.
    pub(super) fn end_connections(&mut self, of: Rank, within: u64) {
        let clients = (0..self.plan.clients).map(|client| Rank(FIRST_CLIENT + client));
        let ranks = (0..self.plan.servers).map(Rank).chain(clients).filter(|at| *at != of);
        for at in ranks.collect::<Vec<_>>() {
            let delay = self.rng.below(within as usize) as u64;
            self.after(delay, Event::Ended(self.way(of, at)));
        }
    }

    /// A server closes its connections with another or with all for this life of
    /// both, or those close theirs with it.
    fn close(&mut self, number: usize) {
        let rank = self.servers[number].rank;
        let one = Rank(self.rng.below(self.servers.len()) as u32);
        let (all, from_here) = (self.rng.below(2) == 0, self.rng.below(2) == 0);
        for other in (0..self.plan.servers).map(Rank).filter(|other| *other != rank && (all || *other == one)) {
            let (at, of) = if from_here { (rank, other) } else { (other, rank) };
            self.close_one(at, of);
        }
    }

    /// One side closes a connection, and drops what it was granted over it; the
    /// other sees the end later, or not at all.
    fn close_one(&mut self, at: Rank, of: Rank) -> bool {
        // Whoever the others have just died beside must not be cut off as well.
        if !self.is_up(at)
            || !self.is_up(of)
            || self.closed.contains(&(at, of, self.process(of)))
            || !self.is_quiet() && !self.has_others(&[at, of])
        {
            return false;
        }
        for server in &mut self.servers {
            server.troubled_at = Some(self.now);
        }
        self.ended(self.way(of, at), false);
        if self.rng.below(4) > 0 {
            let delay = self.rng.below(2 * MS as usize) as u64;
            self.after(delay, Event::Ended(self.way(at, of)));
        }
        true
    }

    /// A member of a chain loses its neighbour, and when the chain is about to go
    /// on without it for that, it hears no other server any more: it answers
    /// clients for as long as its leases last.
    fn lose_one(&mut self) {
        let shard = self.rng.below(self.latest.len());
        let members: Vec<Rank> = self.latest[shard].members.iter().map(|member| member.rank).collect();
        if members.len() > 1 {
            let later = 1 + self.rng.below(members.len() - 1);
            if self.close_one(members[later - 1], members[later]) {
                let Timing { detection, beat, .. } = self.plan.timing;
                let delay = detection - beat + self.rng.below(2 * beat as usize) as u64;
                self.after(delay, Event::Deafen(members[later]));
            }
        }
    }

    /// No server is heard by this one any more.
    pub(super) fn deafen(&mut self, rank: Rank) {
        if self.faults_on {
            let others = (0..self.plan.servers).map(Rank).filter(|other| *other != rank);
            self.cut.extend(others.map(|other| (other, rank)));
            self.servers.iter_mut().for_each(|server| server.troubled_at = Some(self.now));
        }
    }

    /// Whether a server cannot talk to half of the others for the rest of its life.
    fn is_apart(&self, at: Rank) -> bool {
        let others = self.plan.servers as usize - 1;
        let closed = self.closed_with(at);
        closed > 0 && 2 * closed >= others
    }

    /// How many live connections of a rank have been closed, on either side.
    fn closed_with(&self, at: Rank) -> usize {
        let apart = |other: &Rank| {
            self.closed.contains(&(at, *other, self.process(*other)))
                || self.closed.contains(&(*other, at, self.process(at)))
        };
        (0..self.plan.servers).map(Rank).filter(|other| *other != at).filter(apart).count()
    }

    fn crash_user(&mut self, number: usize) {
        let rank = Rank(FIRST_CLIENT + number as u32);
        self.end_connections(rank, MS);
        let user = &mut self.users[number];
        user.crash();
        self.seen.append(&mut user.seen);
        self.watched.append(&mut user.watched);
        let incarnation = user.client.id().incarnation + 1;
        self.start_user(number as u32, incarnation);
        self.begin_connections(rank);
    }

    fn crash(&mut self, number: usize) {
        let keeps_disk = self.plan.durable && self.rng.below(3) > 0;
        if self.servers[number].up && self.may_crash(number, keeps_disk) {
            let may_forget = self.plan.members > 1 && self.members_wiped == 0 && number < self.plan.members as usize;
            let keeps_member = !may_forget || self.rng.below(4) > 0;
            self.crash_with(number, keeps_disk, keeps_member);
        }
    }

    /// All processes of the job end and come back, servers with their disks; but
    /// of each chain only one must have it.
    pub fn restart_job(&mut self) {
        let keepers: Option<BTreeSet<Rank>> =
            self.latest.iter().enumerate().map(|(shard, chain)| self.keeper(shard, chain)).collect();
        let Some(keepers) = keepers else { return };
        let quiet = self.is_quiet();
        for number in 0..self.servers.len() {
            let keeps_disk = !quiet || keepers.contains(&self.servers[number].rank) || self.rng.below(4) > 0;
            if self.servers[number].up {
                self.crash_with(number, keeps_disk, true);
            } else if !keeps_disk {
                self.servers[number].disks.iter_mut().for_each(Disk::wipe);
            }
            let delay = self.rng.below(2 * MS as usize) as u64;
            self.after(delay, Event::Restart(number));
        }
        (0..self.users.len()).for_each(|number| self.crash_user(number));
    }

    /// Whether no change is on its way that would leave out members whose disks
    /// are counted on.
    fn is_quiet(&self) -> bool {
        let long_ago = |server: &Server| server.troubled_at.is_none_or(|at| self.now > at + QUIET);
        let well = |server: &Server| server.up && long_ago(server) && !self.is_apart(server.rank);
        self.cut.is_empty() && self.servers.iter().all(well)
    }

    /// A member of the chain whose disk has all that was acknowledged.
    fn keeper(&self, shard: usize, chain: &ChainConfig) -> Option<Rank> {
        chain.members.iter().find(|member| self.is_on_disk(shard, **member)).map(|member| member.rank)
    }

    /// Whether a member's disk has all that was acknowledged, whoever has it now.
    fn is_on_disk(&self, shard: usize, member: ReplicaId) -> bool {
        let server = &self.servers[member.rank.index()];
        let owner = recover(server.disks[shard].bytes()).owner;
        let directories = self.servers.iter().filter_map(|server| Some(server.member.as_ref()?.directory()));
        let shard = ShardId(shard as u16);
        let latest = directories.max_by_key(|directory| directory.chain(shard).map(|chain| chain.epoch));
        latest.is_some_and(|directory| directory.is_state_of(shard, member, owner))
    }

    fn crash_with(&mut self, number: usize, keeps_disk: bool, keeps_member: bool) {
        self.report.crashes += 1;
        if self.rng.below(4) > 0 {
            let within = [100 * US, MS, 20 * MS][self.rng.below(3)];
            self.end_connections(self.servers[number].rank, within);
        }
        let server = &mut self.servers[number];
        server.up = false;
        server.replicas.clear();
        server.seen_applied.clear();
        server.member = None;
        for disk in &mut server.disks {
            disk.crash(&mut self.rng);
            if !keeps_disk {
                disk.wipe();
            }
        }
        if !keeps_member {
            self.members_wiped += 1;
            server.member_lost = true;
        }
    }

    /// Whether every chain has a member beside these that has all that was
    /// committed and will not be taken for dead.
    fn has_others(&self, beside: &[Rank]) -> bool {
        let good = |shard, member: &ReplicaId| !beside.contains(&member.rank) && self.is_good(shard, member);
        self.latest.iter().enumerate().all(|(shard, chain)| chain.members.iter().any(|member| good(shard, member)))
    }

    /// Whether a member has all that was committed and will not be taken for dead.
    fn is_good(&self, shard: usize, member: &ReplicaId) -> bool {
        let server = &self.servers[member.rank.index()];
        let touched = self.cut.iter().any(|(a, b)| *a == member.rank || *b == member.rank);
        // Whoever leads must hear it: one closed connection may be with the leader.
        let heard = !touched && self.closed_with(member.rank) == 0;
        let quiet = server.troubled_at.is_none_or(|at| self.now > at + QUIET);
        let holds = server.up && server.replicas[shard].id() == *member;
        holds && quiet && heard && server.replicas[shard].may_lead()
    }

    /// Whether this crash is one that the store must survive: somebody has all
    /// that was committed and will not be taken for dead, or the disks of the
    /// whole chain come back.
    fn may_crash(&self, number: usize, keeps_disk: bool) -> bool {
        self.latest.iter().enumerate().all(|(shard, chain)| {
            let on_disk = |member: &ReplicaId| {
                let keeps = keeps_disk || member.rank.index() != number;
                keeps && self.is_on_disk(shard, *member)
            };
            let is_member = chain.members.iter().any(|member| member.rank.index() == number);
            !is_member
                || chain.members.iter().any(|member| member.rank.index() != number && self.is_good(shard, member))
                || self.plan.durable
                    && if self.is_quiet() {
                        chain.members.iter().any(on_disk)
                    } else {
                        chain.members.iter().all(on_disk)
                    }
        })
    }

    pub(super) fn restart(&mut self, number: usize) {
        if !self.servers[number].up {
            self.servers[number].up = true;
            self.servers[number].process += 1;
            self.servers[number].clock_offset = self.rng.next_u64() >> 20;
            self.servers[number].life += 1;
            self.servers[number].flush_due = false;
            self.servers[number].troubled_at = Some(self.now);
            self.begin_connections(self.servers[number].rank);
            self.start_server(number);
        }
    }

    fn partition(&mut self, number: usize) {
        let rank = self.servers[number].rank;
        let others: Vec<Rank> = (0..self.plan.servers).map(Rank).filter(|other| *other != rank).collect();
        if others.is_empty() {
            return;
        }
        let some = match self.rng.below(3) {
            0 => vec![others[self.rng.below(others.len())]],
            1 => others.iter().copied().filter(|_| self.rng.below(2) == 0).collect(),
            _ => others,
        };
        let ways = self.rng.below(4);
        for other in some {
            if ways != 1 {
                self.cut.insert((rank, other));
            }
            if ways != 2 {
                self.cut.insert((other, rank));
            }
        }
        if self.rng.below(6) == 0 {
            for client in 0..self.plan.clients {
                self.cut.insert((Rank(FIRST_CLIENT + client), rank));
            }
        }
        for server in &mut self.servers {
            server.troubled_at = Some(self.now);
        }
    }

    fn mend(&mut self) {
        if !self.cut.is_empty() {
            for server in &mut self.servers {
                server.troubled_at = Some(self.now);
            }
        }
        self.cut.clear();
    }

    fn toggle_space(&mut self, number: usize) {
        for shard in 0..self.founding.len() {
            self.servers[number].disks[shard].full ^= true;
            let gained = !self.servers[number].disks[shard].full;
            if let Some(replica) = self.servers[number].replicas.get_mut(shard).filter(|_| gained) {
                replica.disk(DiskEvent::Space);
            }
        }
    }

    /// The end of all faults.
    pub(super) fn heal(&mut self) {
        self.healed_at = Some(self.now);
        self.faults_on = false;
        self.mend();
        self.reconnect();
        for number in 0..self.servers.len() {
            self.servers[number].slow_disk = false;
            if self.servers[number].disks.iter().any(|disk| disk.full) {
                self.toggle_space(number);
            }
            self.restart(number);
        }
        self.users.iter_mut().for_each(|user| user.done_since_heal = 0);
    }

    /// Whoever has closed a connection for good begins another: only after both
    /// sides have seen the end.
    fn reconnect(&mut self) {
        let ranks: Vec<Rank> = (0..self.plan.servers).map(Rank).collect();
        for (at, of) in ranks.iter().flat_map(|at| ranks.iter().map(|of| (*at, *of))) {
            if self.is_up(at) && self.is_up(of) && self.closed.contains(&(at, of, self.process(of))) {
                self.ended(self.way(at, of), true);
            }
        }
        let open = |(at, of, process): &(Rank, Rank, u32)| *process != self.process(*of) || !self.is_up(*at);
        let closed = self.closed.iter().copied().filter(open).collect();
        self.closed = closed;
    }
}
