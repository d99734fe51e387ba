//! Links that are cut while a job runs: short cuts are survived, long ones end
//! the job with both sides naming the rank that they cannot reach.

use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use collimate::base::event::Event;
use collimate::base::limits::{BULK_BYTES_MIN, GOODBYE_DEADLINE, KILL_GRACE, PEER_SILENCE_MAX, TERM_GRACE};
use collimate::node::Node;
use collimate::{Array, Error, ErrorKind, Options, Ref};
use rustix::process::{Pid, Signal, kill_process};

use crate::Scenario;
use crate::harness::{Finished, Running, Test, test};
use crate::links::wait_until;
use crate::net::Net;

pub const SCENARIOS: &[Scenario] =
    &[("busy", busy), ("quiet", quiet), ("transfers", transfers), ("broadcasts", broadcasts), ("counts", counts)];

/// Hosts of a net here, and ranks on each; the last host is the one cut off.
const HOSTS: u32 = 3;
const RANKS: u32 = 2;
const CUT: u32 = HOSTS - 1;
const CUT_RANKS: [u32; 2] = [CUT * RANKS, CUT * RANKS + 1];

/// What a busy machine may add to the runtime's own deadline.
const MARGIN: Duration = Duration::from_secs(6);

/// How long the launcher tries to end ranks that do not answer.
const LAUNCHER_GIVES_UP: Duration =
    Duration::from_secs(GOODBYE_DEADLINE.as_secs() + TERM_GRACE.as_secs() + KILL_GRACE.as_secs());

/// How long a short cut lasts.
const SHORT_CUT: Duration = Duration::from_secs(3);

/// Bytes of an array that comes from its owner as a whole.
const BLOCK: usize = 1 << 20;

/// Bytes of an array that its readers take from each other, in chunks.
const OBJECT: usize = 8 << 20;
const _: () = assert!((BLOCK as u64) < BULK_BYTES_MIN && OBJECT as u64 >= BULK_BYTES_MIN);

/// The variable that names the file which the driver makes when all ranks work.
const MARKER: &str = "COLLIMATE_TEST_MARKER";

pub fn tests() -> Vec<Test> {
    let mut tests = Vec::new();
    for fabric in ["uring", "epoll"] {
        tests.push(test(format!("both_sides_name_who_is_cut_off_{fabric}"), move || {
            // At the same time, for each waits until silence has lasted.
            let cuts = [("busy", ""), ("quiet", ""), ("busy", "--out"), ("transfers", "--in"), ("broadcasts", "")];
            let jobs = cuts.map(|(scenario, how)| Job::cut_off(fabric, scenario, how));
            for job in jobs {
                let (done, took) = job.finish();
                assert!(took < PEER_SILENCE_MAX + MARGIN, "{took:?}: {done:#?}");
                assert_eq!(done.status, Some(1), "{done:#?}");
                for rank in CUT_RANKS {
                    assert!(has_line(&done, &[&format!("rank 0: lost rank {rank}: ")]), "{rank}: {done:#?}");
                    assert!(has_line(&done, &[&format!("rank {rank}: lost rank 0: ")]), "{rank}: {done:#?}");
                }
                assert!(CUT_RANKS.iter().any(|r| has_line(&done, &["error: ", &format!("rank {r}")])), "{done:#?}");
                assert!(has_line(&done, &["rank 0, which ran the driver, is gone"]), "{done:#?}");
            }
        }));
        tests.push(test(format!("a_dead_host_sends_no_farewell_{fabric}"), move || {
            let jobs = ["busy", "quiet", "broadcasts"].map(|scenario| Job::with_dead_host(fabric, scenario));
            for job in jobs {
                let (done, took) = job.finish();
                // Then the launcher does all it can to end the ranks of the dead host.
                assert!(took < PEER_SILENCE_MAX + MARGIN + LAUNCHER_GIVES_UP, "{took:?}: {done:#?}");
                assert!(has_line(&done, &["no word of the end of rank 4, rank 5"]), "{done:#?}");
                assert_eq!(done.status, Some(1), "{done:#?}");
                for rank in CUT_RANKS {
                    assert!(has_line(&done, &[&format!("rank 0: lost rank {rank}: ")]), "{rank}: {done:#?}");
                }
                assert!(CUT_RANKS.iter().any(|r| has_line(&done, &["error: ", &format!("rank {r}")])), "{done:#?}");
            }
        }));
        tests.push(test(format!("a_short_cut_is_survived_{fabric}"), move || {
            let jobs = ["", "--out", "--in"].map(|how| {
                let job = Job::start(fabric, "counts");
                job.cut(how);
                job
            });
            std::thread::sleep(SHORT_CUT);
            for job in &jobs {
                job.net.ask(&["heal", &CUT.to_string()]);
            }
            for job in jobs {
                let (done, _) = job.finish();
                assert!(done.status == Some(0) && done.stdout.contains("counted to 600"), "{done:#?}");
            }
        }));
    }
    tests
}

/// A job on a net of its own.
struct Job {
    running: Running,
    net: Net,
    cut_at: Instant,
}

impl Job {
    /// A job whose ranks all work.
    fn start(fabric: &str, scenario: &str) -> Job {
        let net = Net::up(HOSTS);
        let folder = std::env::temp_dir();
        let marker = folder.join(format!("clm-marker-{}-{:p}", std::process::id(), &net));
        let job = net.job(RANKS, scenario).env("COLLIMATE_FABRIC", fabric).env("COLLIMATE_LOG", "1");
        let running = job.env(MARKER, marker.to_str().unwrap()).start();
        wait_until("all ranks work", || marker.exists());
        std::fs::remove_file(&marker).unwrap();
        Job { running, net, cut_at: Instant::now() }
    }

    fn cut(&self, how: &str) {
        let host = CUT.to_string();
        let words = ["partition", &host, how];
        self.net.ask(&words[..if how.is_empty() { 2 } else { 3 }]);
    }

    /// A job of which one host has just been cut off.
    fn cut_off(fabric: &str, scenario: &str, how: &str) -> Job {
        let mut job = Job::start(fabric, scenario);
        job.cut_at = Instant::now();
        job.cut(how);
        job
    }

    /// A job of which one host has lost its power: its ranks die while nothing
    /// can leave it, and its connection to the launcher says nothing either.
    fn with_dead_host(fabric: &str, scenario: &str) -> Job {
        let job = Job::cut_off(fabric, scenario, "");
        for (program, count, what) in [(launcher(), 1, Signal::STOP), (own(), RANKS as usize, Signal::KILL)] {
            let all = job.net.of_host(CUT, job.running.processes());
            let pids: Vec<u32> = all.into_iter().filter(|pid| runs(*pid, &program)).collect();
            assert_eq!(pids.len(), count, "processes of {}", program.display());
            pids.into_iter().for_each(|pid| signal(pid, what));
        }
        job
    }

    /// The job's end, and how long after the cut it came.
    fn finish(self) -> (Finished, Duration) {
        let done = self.running.finish();
        (done, self.cut_at.elapsed())
    }
}

/// The program that starts ranks, here and on other hosts.
fn launcher() -> PathBuf {
    Path::new(env!("CARGO_BIN_EXE_collimate")).canonicalize().unwrap()
}

/// The program of the ranks.
fn own() -> PathBuf {
    std::env::current_exe().unwrap().canonicalize().unwrap()
}

fn runs(pid: u32, program: &Path) -> bool {
    std::fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|path| path == program)
}

fn signal(pid: u32, signal: Signal) {
    kill_process(Pid::from_raw(pid as i32).unwrap(), signal).unwrap();
}

fn has_line(done: &Finished, words: &[&str]) -> bool {
    done.stderr.lines().any(|line| words.iter().all(|word| line.contains(word)))
}

#[collimate::task]
fn echo(value: u64) -> u64 {
    value
}

#[collimate::task]
fn block(value: u32) -> Result<Array<u8>, Error> {
    collimate::put(&vec![value as u8; BLOCK])?.get()
}

/// Checks an object that all ranks read at a time, and keeps it until the next one
/// for those who read from here; bytes that this rank has had from copies.
#[collimate::task]
fn check(bytes: Array<u8>, value: u8) -> Result<u64, String> {
    if *bytes != *vec![value; OBJECT] {
        return Err(format!("rank {} has other bytes", collimate::rank()));
    }
    *KEPT.lock().unwrap() = Some(bytes);
    Ok(Node::current().expect("this is a rank").count_of(Event::ReadFromCopy))
}

static KEPT: Mutex<Option<Array<u8>>> = Mutex::new(None);

#[collimate::task]
fn sleep(ms: u64) -> u64 {
    std::thread::sleep(Duration::from_millis(ms));
    ms
}

fn on(rank: u32) -> Options {
    Options::new().rank(rank)
}

/// Calls every rank, then tells the test that the link can be cut.
fn warm_up() -> Result<(), Error> {
    for rank in 0..collimate::size() {
        echo::spawn_with(on(rank), u64::from(rank)).get()?;
    }
    std::fs::write(std::env::var(MARKER).unwrap(), b"").unwrap();
    Ok(())
}

/// Calls all ranks without end: messages are on their way at every moment.
#[collimate::main]
fn busy() -> Result<(), Error> {
    warm_up()?;
    Err(call_until_cut(|rank| echo::spawn_with(on(rank), u64::from(rank)), |rank, value| value == u64::from(rank)))
}

/// Has all ranks send large arrays without end. What came before the cut stays
/// as it was, and the ranks that can be reached go on.
#[collimate::main]
fn transfers() -> Result<(), Error> {
    let all = || (1..collimate::size()).map(|rank| (rank, block::spawn_with(on(rank), rank)));
    let is_right = |rank: u32, bytes: &[u8]| bytes == vec![rank as u8; BLOCK];
    let own = collimate::put(&vec![77u8; BLOCK])?.get()?;
    let before = all().map(|(rank, call)| Ok((rank, call.get()?))).collect::<Result<Vec<_>, Error>>()?;
    warm_up()?;
    let error = call_until_cut(|rank| block::spawn_with(on(rank), rank), |rank, bytes| is_right(rank, &bytes));
    assert!(is_right(77, &own) && before.iter().all(|(rank, bytes)| is_right(*rank, bytes)));
    for (rank, call) in all().filter(|(rank, _)| !CUT_RANKS.contains(rank)) {
        assert!(is_right(rank, &call.get()?));
    }
    Err(error)
}

/// Has all ranks read one object after another: the hosts read from each other
/// when one is cut off. Those that can be reached get every byte, in time.
#[collimate::main]
fn broadcasts() -> Result<(), Error> {
    let check_on = |rank: u32, object: &Ref<Array<u8>>, value| check::spawn_with(on(rank), object, value);
    let mut value = 0;
    // One host after the other, so that the last ones find it with the first.
    let mut from_copies = 0;
    let object = collimate::put(&vec![value; OBJECT])?;
    for rank in 1..collimate::size() {
        from_copies += check_on(rank, &object, value).get()?;
    }
    assert!(from_copies > 0, "nobody read from a copy");
    println!("from_copies={from_copies}");
    warm_up()?;
    let mut first = None;
    let mut gone = Vec::new();
    while gone.len() < CUT_RANKS.len() {
        value = value.wrapping_add(1);
        let object = collimate::put(&vec![value; OBJECT])?;
        let ranks = (1..collimate::size()).filter(|rank| !gone.contains(rank));
        let calls: Vec<(u32, Ref<u64>)> = ranks.map(|rank| (rank, check_on(rank, &object, value))).collect();
        for (rank, call) in calls {
            if let Err(error) = call.get() {
                names(&error, rank);
                gone.push(rank);
                first.get_or_insert(error);
            }
        }
    }
    Err(first.expect("a call has failed"))
}

/// Calls all ranks at a time until those that were cut off are lost; the first
/// error. The others must answer, and rightly.
fn call_until_cut<T: Clone + Send + Sync + 'static>(
    call: impl Fn(u32) -> Ref<T>,
    is_right: impl Fn(u32, T) -> bool,
) -> Error {
    let mut first = None;
    let mut gone = Vec::new();
    while gone.len() < CUT_RANKS.len() {
        let ranks = (1..collimate::size()).filter(|rank| !gone.contains(rank));
        let calls: Vec<(u32, Ref<T>)> = ranks.map(|rank| (rank, call(rank))).collect();
        for (rank, call) in calls {
            match call.get() {
                Ok(value) => assert!(is_right(rank, value), "what rank {rank} answered"),
                Err(error) => {
                    names(&error, rank);
                    gone.push(rank);
                    first.get_or_insert(error);
                }
            }
        }
    }
    first.expect("a call has failed")
}

/// Waits for ranks with which nothing is exchanged.
#[collimate::main]
fn quiet() -> Result<(), Error> {
    warm_up()?;
    let calls = CUT_RANKS.map(|rank| (rank, sleep::spawn_with(on(rank), 60_000)));
    let errors = calls.map(|(rank, call)| {
        let error = call.get().unwrap_err();
        names(&error, rank);
        error
    });
    let [first, _] = errors;
    Err(first)
}

/// Counts to 600 on the rank that is cut off for a while, one call at a time.
#[collimate::main]
fn counts() -> Result<(), Error> {
    warm_up()?;
    for value in 0..600 {
        assert_eq!(echo::spawn_with(on(CUT_RANKS[0]), value).get()?, value);
        std::thread::sleep(Duration::from_millis(2));
    }
    println!("counted to 600");
    Ok(())
}

/// The error says which rank cannot be reached.
fn names(error: &Error, rank: u32) {
    assert!(CUT_RANKS.contains(&rank), "rank {rank} was not cut off: {error}");
    let name = format!("rank {rank}");
    assert!(error.kind == ErrorKind::RankLost && error.message.contains(&name), "{error}");
}
