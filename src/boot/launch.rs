//! `collimate run`: starts the ranks of a job, lets them meet, waits for them
//! and leaves nothing behind.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::ops::Range;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::Signal;

use super::draw_secret;
use super::frame::{Frame, VERSION, Welcome};
use super::hostfile::{Host, HostFileError};
use super::local::{Local, Program};
use super::remote::Remote;
use super::verdict::{Action, Verdict};
use crate::base::limits::RANKS_MAX;
use crate::sys::Signals;

/// What to launch.
#[derive(Clone, Debug, Default)]
pub struct Job {
    /// How many ranks.
    pub size: u32,
    /// The program that every rank runs, and its arguments.
    pub command: Vec<OsString>,
    /// Variables to set for the ranks, on top of the launcher's own.
    pub vars: BTreeMap<String, String>,
    /// Where; empty means this host, with room for all.
    pub hosts: Vec<Host>,
    /// The death of a rank other than rank 0 does not end the job.
    pub keep_going: bool,
}

/// Why a job could not be launched.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// A number of ranks that cannot be.
    #[error("{0} ranks cannot be started: give a number from 1 to {RANKS_MAX}")]
    Size(u32),
    /// Nothing to run.
    #[error("no program was given: name it after `--`")]
    NoProgram,
    /// The host file is of no use.
    #[error(transparent)]
    HostFile(#[from] HostFileError),
    /// Too few slots.
    #[error("the host file has {slots} slots for {size} ranks: add hosts, or `slots=` to them, or lower -n")]
    Slots {
        /// Slots there are.
        slots: u64,
        /// Ranks asked for.
        size: u32,
    },
    /// A program could not be started; one line that says what to do.
    #[error("{0}")]
    Start(String),
    /// The system refused something.
    #[error("{what}: {cause}")]
    Os {
        /// What was tried.
        what: &'static str,
        /// The system's reason.
        cause: io::Error,
    },
}

/// Runs `job` to its end and returns its exit status: rank 0's, or 1 when a
/// rank died before rank 0 had ended, or 128 + the number of the signal that
/// ended the launcher. `say` gets each line for the user. The ranks write to
/// the caller's own standard output and error.
///
/// SIGINT, SIGTERM and SIGHUP are taken as the wish to end the job, so no other
/// thread may run that would be interrupted by them. The ranks are bound to the
/// calling thread: the kernel kills them should it end early.
pub fn launch(job: &Job, say: &mut dyn FnMut(&str)) -> Result<i32, LaunchError> {
    if job.size == 0 || job.size > RANKS_MAX {
        return Err(LaunchError::Size(job.size));
    }
    if job.command.is_empty() {
        return Err(LaunchError::NoProgram);
    }
    let places = assign(job)?;
    let signals = Signals::block(&[Signal::INT, Signal::TERM, Signal::HUP, Signal::CHILD])
        .map_err(|cause| LaunchError::Os { what: "receive signals", cause })?;

    let (id, key) = draw_secret().map_err(|e| LaunchError::Start(e.to_string()))?;
    let one_host = places.iter().all(|place| place.remote.is_none());
    let welcome = |rank| Welcome { version: VERSION, rank, size: job.size, job: id.0, key: key.clone(), one_host };
    let program = Program { command: job.command.clone(), vars: job.vars.clone(), directory: None, capture: false };
    let here = places.iter().filter(|place| place.remote.is_none()).flat_map(|place| place.ranks.clone());
    let local = Local::spawn(&program, here.map(welcome)).map_err(LaunchError::Start)?;
    let mut remotes = Vec::new();
    for place in &places {
        if let Some(host) = &place.remote {
            let first = welcome(place.ranks.start);
            remotes.push(Remote::start(host, place.ranks.clone(), first, &program).map_err(LaunchError::Start)?);
        }
    }
    let cards = vec![None; job.size as usize];
    let mut running = Running { local, remotes, cards, verdict: Verdict::new(job.size, job.keep_going) };
    loop {
        // Signals first: a rank that ends after this was read ends the sleep.
        while let Some(signal) = signals.take() {
            if signal != Signal::CHILD.as_raw() {
                let actions = running.verdict.interrupted(Instant::now(), signal);
                running.perform(actions, say);
            }
        }
        for frame in running.local.collect() {
            running.handle(frame, "", say);
        }
        for index in 0..running.remotes.len() {
            running.hear_remote(index, say);
        }
        let actions = running.verdict.tick(Instant::now());
        running.perform(actions, say);
        if let Some(status) = running.verdict.exit_status() {
            return Ok(status);
        }
        running.sleep(&signals);
    }
}

/// The ranks of one host.
struct Place {
    /// Its name; `None` for this host.
    remote: Option<String>,
    ranks: Range<u32>,
}

/// Fills the hosts with ranks, in their order.
fn assign(job: &Job) -> Result<Vec<Place>, LaunchError> {
    if job.hosts.is_empty() {
        return Ok(vec![Place { remote: None, ranks: 0..job.size }]);
    }
    let slots = job.hosts.iter().map(|host| u64::from(host.slots)).sum();
    if slots < u64::from(job.size) {
        return Err(LaunchError::Slots { slots, size: job.size });
    }
    let mut next = 0u32;
    let places = job.hosts.iter().map(|host| {
        let ranks = next..job.size.min(next.saturating_add(host.slots));
        next = ranks.end;
        Place { remote: (!host.is_local()).then(|| host.name.clone()), ranks }
    });
    Ok(places.filter(|place| !place.ranks.is_empty()).collect())
}

struct Running {
    local: Local,
    remotes: Vec<Remote>,
    cards: Vec<Option<Vec<u8>>>,
    verdict: Verdict,
}

impl Running {
    fn handle(&mut self, frame: Frame, place: &str, say: &mut dyn FnMut(&str)) {
        match frame {
            Frame::Card { rank, bytes } => {
                let actions = self.verdict.joined(Instant::now(), rank);
                self.perform(actions, say);
                self.take_card(rank, bytes);
            }
            Frame::Done { rank, status } => self.verdict.announced(rank, status),
            Frame::Ended { rank, pid, fate } => {
                let actions = self.verdict.ended(Instant::now(), rank, pid, fate, place);
                self.perform(actions, say);
            }
            // Local output is inherited, and the rest only a launcher says.
            _ => {}
        }
    }

    fn take_card(&mut self, rank: u32, bytes: Vec<u8>) {
        let Some(slot @ None) = self.cards.get_mut(rank as usize) else { return };
        *slot = Some(bytes);
        if self.cards.iter().all(Option::is_some) {
            let all = Frame::Cards(self.cards.iter().flatten().cloned().collect());
            self.local.tell(&all);
            self.remotes.iter_mut().for_each(|remote| remote.tell(&all));
        }
    }

    fn hear_remote(&mut self, index: usize, say: &mut dyn FnMut(&str)) {
        let (frames, lost) = self.remotes[index].collect();
        let ranks = self.remotes[index].ranks();
        let place = format!(" on {}", self.remotes[index].host());
        for frame in frames {
            match frame {
                Frame::Output { error: false, bytes } => pass_on(io::stdout(), &bytes),
                Frame::Output { error: true, bytes } => pass_on(io::stderr(), &bytes),
                Frame::Failed(why) => {
                    let line = format!("{}: {why}", self.remotes[index].host());
                    let actions = self.verdict.vanished(Instant::now(), ranks.clone(), line);
                    self.perform(actions, say);
                }
                Frame::Card { rank, .. } | Frame::Done { rank, .. } | Frame::Ended { rank, .. }
                    if ranks.contains(&rank) =>
                {
                    self.handle(frame, &place, say);
                }
                _ => {}
            }
        }
        if let Some(why) = lost {
            let actions = self.verdict.vanished(Instant::now(), ranks, why);
            self.perform(actions, say);
        }
    }

    fn perform(&mut self, actions: Vec<Action>, say: &mut dyn FnMut(&str)) {
        for action in actions {
            let signal = match action {
                Action::Say(line) => {
                    say(&line);
                    continue;
                }
                Action::Terminate => Signal::TERM,
                Action::Kill => Signal::KILL,
            };
            self.local.signal(signal);
            self.remotes.iter_mut().for_each(|remote| remote.tell(&Frame::Signal(signal.as_raw())));
        }
    }

    fn sleep(&self, signals: &Signals) {
        let fds = self.local.fds().chain(self.remotes.iter().flat_map(Remote::fds));
        wait(fds.chain([signals.as_fd()]), self.verdict.deadline());
    }
}

/// Sleeps until one of `fds` is readable or `deadline` has passed.
pub(super) fn wait<'a>(fds: impl Iterator<Item = std::os::fd::BorrowedFd<'a>>, deadline: Option<Instant>) {
    let mut fds: Vec<_> = fds.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)).collect();
    let timeout = deadline.map(|at| {
        let left = at.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
        Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) }
    });
    // Interrupted or not, the caller looks at everything again.
    let _ = poll(&mut fds, timeout.as_ref());
}

fn pass_on(mut to: impl io::Write, bytes: &[u8]) {
    // A reader that went away is no reason to end the job, as for local ranks.
    let _ = to.write_all(bytes).and_then(|()| to.flush());
}
