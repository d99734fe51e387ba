//! Replicas and members on real files: what they find again, what they refuse,
//! and what they do while a disk is full.

mod chain;

use std::fs;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::*;
use crate::base::Rank;
use crate::base::rng::Rng;
use crate::gcs::{
    Address, Beat, Body, Bugs, ChainConfig, ClientId, Command, Epoch, Key, Message, Op, Options, Outcome, Refusal,
    Replica, ReplicaId, Table, Timing,
};
use crate::sys::{JournalBackend, SmallDisk};

/// Longer than any step takes, however slow the machine is.
const PATIENCE: Duration = Duration::from_secs(60);
const SHARD: ShardId = ShardId(0);
const CLIENT: ClientId = ClientId { rank: Rank(9), incarnation: 1 };

/// A folder of its own, gone at the end.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Folder {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("collimate-disk-{}-{number}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Folder(path)
    }

    fn home(&self, rank: u32) -> Home {
        Home::open(&self.0, Rank(rank), DiskOptions::default()).unwrap()
    }

    fn log(&self, rank: u32) -> PathBuf {
        self.0.join(format!("rank-{rank}/shard-0.log"))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn options(rank: u32, incarnation: u32) -> Options {
    Options {
        me: ReplicaId { rank: Rank(rank), incarnation },
        shard: SHARD,
        quorum: vec![Rank(0)],
        timing: Timing::default(),
        durable: true,
        bugs: Bugs::default(),
    }
}

fn key(number: u64) -> Key {
    Key::new(Table::Names, &number.to_be_bytes())
}

fn put(number: u64, settled: u64) -> Command {
    let op = Op::Put { key: key(number), value: number.to_string().repeat(10).as_bytes().into() };
    Command { client: CLIENT, number, settled, op }
}

/// What a member of the quorum answers to a beat.
fn granted(epoch: Epoch, beat: &Beat) -> Message {
    Message { shard: SHARD, epoch, body: Body::Grant { to: beat.from, echo: beat.sent } }
}

/// Sleeps until one of them has something to tell.
fn sleep_on(fds: &[BorrowedFd<'_>]) {
    let mut fds: Vec<_> = fds.iter().map(|fd| PollFd::from_borrowed_fd(*fd, PollFlags::IN)).collect();
    let patience = Timespec { tv_sec: PATIENCE.as_secs() as i64, tv_nsec: 0 };
    assert_ne!(poll(&mut fds, Some(&patience)), Ok(0), "no disk had anything to tell");
}

/// A chain of one, which commits what is on its disk.
struct Solo {
    replica: Replica,
    disk: ReplicaDisk,
    events: Vec<DiskEvent>,
    done: Vec<(u64, Outcome)>,
    refused: Vec<Refusal>,
}

impl Solo {
    fn founded(home: &Home) -> Solo {
        let (disk, recovered) = ReplicaDisk::open(home, SHARD).unwrap();
        assert!(recovered.is_none(), "{recovered:?}");
        let me = options(0, 1);
        let chain = ChainConfig { shard: SHARD, epoch: Epoch(1), members: vec![me.me], joining: None };
        let mut actions = Vec::new();
        let replica = Replica::founding(me, chain, 0, &mut actions);
        let mut solo = Solo { replica, disk, events: Vec::new(), done: Vec::new(), refused: Vec::new() };
        solo.turn(actions);
        solo.until(|solo| solo.events.contains(&DiskEvent::Synced(Seq(0))));
        solo
    }

    /// A log with this many commands, each with a sync of its own.
    fn with(home: &Home, count: u64) -> Solo {
        let mut solo = Solo::founded(home);
        for number in 1..=count {
            solo.put(number);
            solo.until(|solo| solo.done.len() as u64 == number);
        }
        solo
    }

    fn put(&mut self, number: u64) {
        let message = Message { shard: SHARD, epoch: Epoch(1), body: Body::Commands(vec![put(number, 0)]) };
        let mut actions = Vec::new();
        self.replica.receive(0, Address::Client(CLIENT.rank), message, &mut actions);
        self.turn(actions);
    }

    fn turn(&mut self, mut actions: Vec<Action>) {
        self.replica.flush(0, &mut actions);
        let mut said = VecDeque::from(actions);
        while let Some(action) = said.pop_front() {
            let Some(action) = self.disk.perform(action) else { continue };
            let Action::Send(to, message) = action else { panic!("{action:?}") };
            match message.body {
                Body::Beat(beat) => {
                    let mut actions = Vec::new();
                    self.replica.receive(0, to, granted(message.epoch, &beat), &mut actions);
                    self.replica.flush(0, &mut actions);
                    said.extend(actions);
                }
                Body::Outcomes(outcomes) => self.done.extend(outcomes.into_iter().map(|(_, number, o)| (number, o))),
                Body::NotNow(_, _, why) => self.refused.push(why),
                _ => {}
            }
        }
    }

    fn until(&mut self, is_there: impl Fn(&Solo) -> bool) {
        let start = Instant::now();
        while !is_there(self) {
            assert!(start.elapsed() < PATIENCE, "{:?}", self.events);
            sleep_on(&[self.disk.wait_fd()]);
            let (replica, events) = (&mut self.replica, &mut self.events);
            self.disk
                .poll(&mut |event| {
                    replica.disk(event);
                    events.push(event);
                })
                .unwrap();
            self.turn(Vec::new());
        }
    }
}

/// Where records begin in a log, and where it ends.
fn records(log: &[u8]) -> Vec<usize> {
    let mut offsets = vec![0];
    while let Some(rest) = log.get(*offsets.last().unwrap()..).filter(|rest| !rest.is_empty()) {
        let body = u32::from_le_bytes(rest[..4].try_into().unwrap()) as usize;
        offsets.push(offsets.last().unwrap() + 12 + body);
    }
    offsets
}

#[test]
fn what_was_acknowledged_is_found_again() {
    let folder = Folder::new();
    drop(Solo::with(&folder.home(0), 20));
    let home = folder.home(0);
    assert_eq!(home.life(), 2);
    let (disk, recovered) = ReplicaDisk::open(&home, SHARD).unwrap();
    let recovered = recovered.unwrap();
    assert_eq!((recovered.owner, recovered.last()), (1, Seq(20)));
    assert!(disk.decision().contains("21 records"), "{}", disk.decision());
    let restored = Replica::restored(options(0, 2), recovered);
    assert_eq!(restored.last(), Seq(20));
}

#[test]
fn an_end_torn_anywhere_is_dropped_and_the_log_goes_on() {
    let folder = Folder::new();
    drop(Solo::with(&folder.home(0), 5));
    let whole = fs::read(folder.log(0)).unwrap();
    let offsets = records(&whole);
    // The last two records are a mark and a command.
    let last_group = offsets[offsets.len() - 3];
    for end in last_group..whole.len() {
        for zeros in [0, 100] {
            let mut torn = whole[..end].to_vec();
            torn.resize(end + zeros, 0);
            fs::write(folder.log(0), &torn).unwrap();
            let home = folder.home(0);
            let (mut disk, recovered) = ReplicaDisk::open(&home, SHARD).unwrap();
            assert_eq!(recovered.unwrap().last(), Seq(4), "cut at {end}, {zeros} zeros");
            // What follows has its place at the end of what is whole.
            let command = offsets[offsets.len() - 2];
            disk.perform(Action::Append(whole[command..].to_vec()));
            disk.perform(Action::Sync(Seq(5)));
            let mut told = Vec::new();
            while told != [DiskEvent::Synced(Seq(5))] {
                sleep_on(&[disk.wait_fd()]);
                disk.poll(&mut |event| told.push(event)).unwrap();
            }
            drop(disk);
            assert_eq!(recover(&fs::read(folder.log(0)).unwrap()).last(), Seq(5));
        }
    }
}

#[test]
fn a_log_that_is_damaged_within_is_refused_with_the_place() {
    let folder = Folder::new();
    drop(Solo::with(&folder.home(0), 9));
    let whole = fs::read(folder.log(0)).unwrap();
    let offsets = records(&whole);
    // A snapshot, then pairs of a mark and a command: this is the fourth command.
    let (start, clean_records) = (offsets[8], 4);
    for (what, at) in [("length", 0), ("length", 3), ("checksum", 4), ("kind", 12), ("body", 20)] {
        let mut bytes = whole.clone();
        bytes[start + at] ^= 0x55;
        fs::write(folder.log(0), &bytes).unwrap();
        let error = ReplicaDisk::open(&folder.home(0), SHARD).err().unwrap().to_string();
        let needed = [
            folder.log(0).display().to_string(),
            format!("at byte {start}:"),
            format!("{clean_records} records before it are whole"),
            "COLLIMATE_GCS_TRUNCATE=1".to_string(),
        ];
        assert!(needed.iter().all(|needed| error.contains(needed)), "{what}: {error}");
        assert!(fs::read(folder.log(0)).unwrap() == bytes, "what is refused is left as it is");

        let truncate = DiskOptions { truncate_damaged: true, ..DiskOptions::default() };
        let home = Home::open(&folder.0, Rank(0), truncate).unwrap();
        let (disk, recovered) = ReplicaDisk::open(&home, SHARD).unwrap();
        assert_eq!(recovered.unwrap().last(), Seq(3), "{what}");
        assert!(disk.decision().contains(&format!("{} bytes after them dropped", whole.len() - start)), "{what}");
        drop((disk, home));
        let (_, recovered) = ReplicaDisk::open(&folder.home(0), SHARD).unwrap();
        assert_eq!(recovered.unwrap().last(), Seq(3), "once is enough");
    }
    for at in [0, 5, 12, 14] {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x55;
        fs::write(folder.log(0), &bytes).unwrap();
        let error = ReplicaDisk::open(&folder.home(0), SHARD).err().unwrap().to_string();
        let needed = ["at byte 0:", "0 records before", "or begin with an empty"];
        assert!(needed.iter().all(|needed| error.contains(needed)), "{error}");
        let truncate = DiskOptions { truncate_damaged: true, ..DiskOptions::default() };
        let home = Home::open(&folder.0, Rank(0), truncate).unwrap();
        assert!(ReplicaDisk::open(&home, SHARD).is_err(), "there is nothing to go on with");
    }
}

#[test]
fn a_log_that_was_never_written_is_empty_and_one_that_was_lost_is_missed() {
    let folder = Folder::new();
    let home = folder.home(0);
    assert!(!home.found_layout());
    for _ in 0..2 {
        assert!(ReplicaDisk::open(&home, SHARD).unwrap().1.is_none());
        assert!(QuorumDisk::open(&home).unwrap().1.is_none());
    }
    fs::remove_file(folder.log(0)).unwrap();
    fs::remove_file(folder.0.join("rank-0/quorum")).unwrap();
    let errors = [ReplicaDisk::open(&home, SHARD).err().unwrap(), QuorumDisk::open(&home).err().unwrap()];
    for (error, file) in errors.iter().zip(["shard-0.log", "quorum"]) {
        let error = error.to_string();
        assert!(error.contains(&format!("rank-0/{file} is gone")) && error.contains("put it back"), "{error}");
    }
}

#[test]
fn no_bytes_make_reading_panic() {
    let folder = Folder::new();
    drop(Solo::with(&folder.home(0), 6));
    let whole = fs::read(folder.log(0)).unwrap();
    let offsets = records(&whole);
    let mut rng = Rng::new(14);
    for round in 0..20_000 {
        // Noise, or a log with some of its bytes and records exchanged.
        let mut bytes: Vec<u8> = if round % 2 == 0 {
            (0..rng.below(200)).map(|_| rng.next_u64() as u8).collect()
        } else {
            let pick = |rng: &mut Rng| {
                let at = rng.below(offsets.len() - 1);
                whole[offsets[at]..offsets[at + 1]].to_vec()
            };
            (0..rng.below(6)).flat_map(|_| pick(&mut rng)).collect()
        };
        for _ in 0..rng.below(4) {
            if !bytes.is_empty() {
                let at = rng.below(bytes.len());
                bytes[at] = rng.next_u64() as u8;
            }
        }
        let recovered = recover(&bytes);
        assert!(recovered.clean_bytes <= bytes.len());
        if let Some(damage) = &recovered.damage {
            let _either = is_of_a_crash(&bytes, damage);
        }
        if round % 100 == 0 {
            fs::write(folder.log(0), &bytes).unwrap();
            let opened = ReplicaDisk::open(&folder.home(0), SHARD);
            drop(opened.map_err(|error| error.to_string()));
        }
    }
}

#[test]
fn a_full_disk_stops_commands_and_no_acknowledged_one_is_lost() {
    for backend in [JournalBackend::Auto, JournalBackend::Thread] {
        let small = match SmallDisk::new(256) {
            Ok(small) => small,
            Err(why) => return eprintln!("left out: {why}"),
        };
        let disk_options = DiskOptions { backend, ..DiskOptions::default() };
        let home = Home::open(&small.0, Rank(0), disk_options).unwrap();
        let mut solo = Solo::with(&home, 3);
        small.fill();
        let mut number = 3;
        while !solo.events.contains(&DiskEvent::Full) {
            number += 1;
            solo.put(number);
            solo.until(|solo| solo.done.len() as u64 == number || solo.events.contains(&DiskEvent::Full));
        }
        solo.put(number + 1);
        assert_eq!(solo.refused, [Refusal::DiskFull(Rank(0))], "and that at once");
        small.free();
        solo.until(|solo| solo.events.contains(&DiskEvent::Space));
        solo.put(number + 1);
        solo.until(|solo| solo.done.len() as u64 == number + 1);
        drop(solo);
        let (_, recovered) = ReplicaDisk::open(&home, SHARD).unwrap();
        assert_eq!(recovered.unwrap().last(), Seq(number + 1));
    }
}

#[test]
fn a_folder_that_cannot_be_written_says_so() {
    let folder = Folder::new();
    fs::write(folder.0.join("file"), b"").unwrap();
    let below_a_file = folder.0.join("file/store");
    let error = Home::open(&below_a_file, Rank(0), DiskOptions::default()).unwrap_err().to_string();
    let file = folder.0.join("file").display().to_string();
    assert!(error.contains(&format!("cannot make {file}: File exists")), "{error}");
    let small = match SmallDisk::new(256) {
        Ok(small) => small,
        Err(why) => return eprintln!("left out: {why}"),
    };
    small.make_read_only();
    let error = Home::open(&small.0, Rank(3), DiskOptions::default()).unwrap_err().to_string();
    assert!(error.contains("rank-3") && error.contains("Read-only file system"), "{error}");
}

#[test]
fn a_replica_that_takes_over_is_not_told_of_the_one_before() {
    let folder = Folder::new();
    let home = folder.home(0);
    let (mut disk, _) = ReplicaDisk::open(&home, SHARD).unwrap();
    disk.perform(Action::Replace(b"of the one before".to_vec()));
    disk.perform(Action::Sync(Seq(900)));
    disk.change_replica();
    disk.perform(Action::Replace(b"of the new one".to_vec()));
    disk.perform(Action::Sync(Seq(1)));
    let mut told = Vec::new();
    while told.is_empty() {
        sleep_on(&[disk.wait_fd()]);
        disk.poll(&mut |event| told.push(event)).unwrap();
    }
    assert_eq!(told, [DiskEvent::Synced(Seq(1))]);
    assert_eq!(fs::read(folder.log(0)).unwrap(), b"of the new one");
}

#[test]
fn lives_are_counted_and_a_folder_has_one_user() {
    let folder = Folder::new();
    let home = folder.home(4);
    assert_eq!(home.life(), 1);
    let error = Home::open(&folder.0, Rank(4), DiskOptions::default()).unwrap_err().to_string();
    assert!(error.contains("rank-4") && error.contains("another process"), "{error}");
    assert_eq!(folder.home(5).life(), 1);
    drop(home);
    for life in 2..5 {
        assert_eq!(folder.home(4).life(), life);
    }
    let life = folder.0.join("rank-4/life");
    for damage in ["", "seven", "-1", "99999999999999999999"] {
        fs::write(&life, damage).unwrap();
        let error = Home::open(&folder.0, Rank(4), DiskOptions::default()).unwrap_err().to_string();
        assert!(error.contains("rank-4/life") && error.contains(damage), "{error}");
    }
    fs::write(&life, (LIVES_MAX - 1).to_string()).unwrap();
    assert_eq!(folder.home(4).life(), LIVES_MAX);
    for count in [LIVES_MAX, 1 << 20, 1 << 31] {
        fs::write(&life, count.to_string()).unwrap();
        let error = Home::open(&folder.0, Rank(4), DiskOptions::default()).unwrap_err().to_string();
        assert!(error.contains(&format!("rank-4/life says that the rank was started {count} times")), "{error}");
        assert!(error.contains("begin with an empty COLLIMATE_GCS_DIR"), "{error}");
        assert_eq!(fs::read_to_string(&life).unwrap(), count.to_string(), "it is left as it was");
    }
    fs::remove_file(&life).unwrap();
    assert_eq!(folder.home(4).life(), 1, "nothing has happened in the lives before");
    fs::remove_file(&life).unwrap();
    fs::write(folder.0.join("rank-4/shard-2.log"), b"something").unwrap();
    let error = Home::open(&folder.0, Rank(4), DiskOptions::default()).unwrap_err().to_string();
    assert!(error.contains("rank-4/life is gone"), "{error}");
}

#[test]
fn another_layout_is_refused_with_both() {
    let folder = Folder::new();
    let layout = Layout { ranks: 4, replicas: 3, shards: 2, quorum: vec![Rank(0), Rank(2), Rank(3)] };
    folder.home(1).check_layout(&layout).unwrap();
    assert!(!folder.0.join("layout").exists(), "only rank 0 writes it");
    folder.home(0).check_layout(&layout).unwrap();
    folder.home(0).check_layout(&layout).unwrap();
    folder.home(1).check_layout(&layout).unwrap();
    let others = [
        Layout { ranks: 5, ..layout.clone() },
        Layout { replicas: 2, ..layout.clone() },
        Layout { shards: 1, ..layout.clone() },
        Layout { quorum: vec![Rank(0)], ..layout.clone() },
    ];
    for other in others {
        for rank in [0, 1] {
            let error = folder.home(rank).check_layout(&other).unwrap_err().to_string();
            let both = [&layout, &other].map(|layout| one_line(&layout.to_text()));
            assert!(both.iter().all(|layout| error.contains(layout)), "{error}");
        }
    }
    let text = fs::read_to_string(folder.0.join("layout")).unwrap();
    fs::write(folder.0.join("layout"), text.replace("format 1", "format 7")).unwrap();
    let error = folder.home(0).check_layout(&layout).unwrap_err().to_string();
    assert!(error.contains("format 7") && error.contains("format 1"), "{error}");
    fs::remove_file(folder.0.join("layout")).unwrap();
    fs::write(folder.0.join("rank-0/quorum"), b"something").unwrap();
    let error = folder.home(0).check_layout(&layout).unwrap_err().to_string();
    assert!(error.contains("layout is gone"), "{error}");
}

/// With what rank 0 had, its part in what was promised and the count of the job's
/// lives are lost.
#[test]
fn the_job_does_not_begin_anew_where_rank_0_has_lost_its_folder() {
    let folder = Folder::new();
    let layout = Layout { ranks: 2, replicas: 2, shards: 1, quorum: vec![Rank(0)] };
    folder.home(0).check_layout(&layout).unwrap();
    folder.home(1).check_layout(&layout).unwrap();
    fs::remove_dir_all(folder.0.join("rank-0")).unwrap();
    for attempt in 0..2 {
        let error = Home::open(&folder.0, Rank(0), DiskOptions::default()).unwrap_err().to_string();
        assert!(error.contains("rank-0/life is gone") && error.contains("put back the folder"), "{attempt}: {error}");
    }
    fs::remove_dir_all(folder.0.join("rank-1")).unwrap();
    assert_eq!(folder.home(1).life(), 1, "the others can go on without");
    fs::remove_file(folder.0.join("layout")).unwrap();
    assert_eq!(folder.home(0).life(), 1, "all of it was removed");
}

#[test]
fn a_member_says_nothing_before_its_promise_is_on_disk() {
    let folder = Folder::new();
    let home = folder.home(0);
    let saved = quorum_bytes(3);
    let (mut disk, found) = QuorumDisk::open(&home).unwrap();
    assert!(found.is_none());
    let mut released = Vec::new();
    let say = |epoch| MemberAction::Send(Address::Replica(Rank(epoch as u32)), locate(epoch));
    disk.perform(say(1), &mut |action| released.push(action));
    assert_eq!(released.len(), 1, "nothing to wait for");
    for (epoch, bytes) in [(2, b"overtaken".to_vec()), (3, saved.clone())] {
        disk.perform(MemberAction::Save(bytes), &mut |_| panic!("a save is not to be sent"));
        disk.perform(say(epoch), &mut |_| panic!("not saved yet"));
    }
    while released.len() < 3 {
        sleep_on(&[disk.wait_fd()]);
        let path = folder.0.join("rank-0/quorum");
        disk.poll(&mut |action| {
            assert!(fs::metadata(&path).unwrap().len() > 8, "on disk before it is told");
            released.push(action);
        })
        .unwrap();
    }
    let is_from =
        |(action, epoch): (&MemberAction, u64)| matches!(action, MemberAction::Send(_, m) if m.epoch.0 == epoch);
    assert!(released.iter().zip(1..).all(is_from), "in their order: {released:?}");
    drop(disk);
    assert!(QuorumDisk::open(&home).unwrap().1.is_some());

    let path = folder.0.join("rank-0/quorum");
    let whole = fs::read(&path).unwrap();
    for at in 0..whole.len() {
        let mut bytes = whole.clone();
        bytes[at] ^= 1;
        fs::write(&path, &bytes).unwrap();
        let error = QuorumDisk::open(&home).err().unwrap().to_string();
        assert!(error.contains("rank-0/quorum is damaged: its checksum"), "{error}");
    }
    for end in 1..whole.len() {
        fs::write(&path, &whole[..end]).unwrap();
        assert!(QuorumDisk::open(&home).is_err(), "cut at {end}");
    }
}

fn locate(epoch: u64) -> Message {
    Message { shard: SHARD, epoch: Epoch(epoch), body: Body::Locate }
}

/// What a member of a quorum of three saves at its start.
fn quorum_bytes(replicas: usize) -> Vec<u8> {
    use crate::gcs::{Member, MemberOptions};
    let members = vec![options(0, 1).me, options(1, 1).me];
    let founding = vec![ChainConfig { shard: SHARD, epoch: Epoch(1), members, joining: None }];
    let quorum = vec![Rank(0), Rank(1), Rank(2)];
    let options = MemberOptions {
        me: Rank(0),
        life: 1,
        members: quorum,
        timing: Timing::default(),
        replicas,
        hosts: Vec::new(),
        founding,
        bugs: Bugs::default(),
    };
    let mut member = Member::new(options, 0, None).unwrap();
    let mut actions = Vec::new();
    member.flush(0, &mut actions);
    let saves = actions.into_iter().filter_map(|action| match action {
        MemberAction::Save(bytes) => Some(bytes),
        _ => None,
    });
    saves.last().expect("a member saves what it begins with")
}
