//! What the launcher makes of what happens to its ranks: when to stop the
//! others, what to say, and the job's exit status. A pure state machine.

use std::time::Instant;

use super::frame::Fate;
use crate::base::Rank;
use crate::base::limits::{GOODBYE_DEADLINE, KILL_GRACE, LOSS_GRACE, TERM_GRACE};

/// What the launcher is to do.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Action {
    /// Ask every rank that still runs to end.
    Terminate,
    /// End every rank that still runs.
    Kill,
    /// Tell the user, in one line.
    Say(String),
}

/// The state of a job, from start to exit status.
pub(super) struct Verdict {
    ranks: Vec<State>,
    running: usize,
    phase: Phase,
    /// The first thing that settled the job's status.
    status: Option<i32>,
    keep_going: bool,
}

/// Exit status of a job that a rank's death has ended.
const FAILED: i32 = 1;

/// A shell's exit status for a process that a signal ended.
const SIGNAL_BASE: i32 = 128;

#[derive(Clone, Copy, Default)]
struct State {
    joined: bool,
    ended: bool,
    /// The status with which the rank said it would end.
    announced: Option<i32>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    Running,
    /// Rank 0 has ended; the others are about to.
    Closing(Instant),
    /// A rank was lost; the others may notice and report it.
    Failing(Instant),
    Terminating(Instant),
    Killing(Instant),
    /// What has not ended is on a host that cannot be reached.
    Abandoned,
}

impl Verdict {
    /// Of a job that ends with the first rank that dies, or `keep_going` goes on
    /// as long as rank 0 does.
    pub(super) fn new(size: u32, keep_going: bool) -> Self {
        let ranks = vec![State::default(); size as usize];
        Verdict { running: ranks.len(), ranks, phase: Phase::Running, status: None, keep_going }
    }

    /// A rank has told what the others must know of it, and now waits for all.
    pub(super) fn joined(&mut self, now: Instant, rank: u32) -> Vec<Action> {
        if let Some(state) = self.ranks.get_mut(rank as usize) {
            state.joined = true;
        }
        self.stranded(now)
    }

    /// A rank says that it is about to end with `status`.
    pub(super) fn announced(&mut self, rank: u32, status: i32) {
        if let Some(state) = self.ranks.get_mut(rank as usize) {
            state.announced = Some(status);
        }
    }

    /// A rank's process has ended; `place` says where it ran if not here.
    pub(super) fn ended(&mut self, now: Instant, rank: u32, pid: u32, fate: Fate, place: &str) -> Vec<Action> {
        let Some(state) = self.ranks.get_mut(rank as usize).filter(|s| !s.ended) else { return Vec::new() };
        state.ended = true;
        self.running -= 1;
        let announced = state.announced;
        let how = match fate {
            Fate::Exited(status) => format!("exited with status {status}"),
            Fate::Killed(signal) => format!("was killed by {}", signal_name(signal)),
        };
        let crashed = match fate {
            Fate::Exited(status) => status != 0 && announced != Some(status),
            Fate::Killed(_) => true,
        };
        let line = || Action::Say(format!("{} (pid {pid}{place}) {how}", Rank(rank)));
        match (self.phase, fate) {
            (Phase::Running, Fate::Exited(status)) if rank == 0 => {
                self.status = Some(status);
                self.phase =
                    if crashed { Phase::Failing(now + LOSS_GRACE) } else { Phase::Closing(now + GOODBYE_DEADLINE) };
                self.stranded(now)
            }
            (Phase::Running, _) if crashed && rank != 0 && self.goes_on() => {
                let Action::Say(text) = line() else { return Vec::new() };
                vec![Action::Say(format!("{text}; the job goes on without it"))]
            }
            (Phase::Running, _) if crashed => {
                let others = if self.running > 0 { "; the other ranks are ended" } else { "" };
                let Action::Say(text) = line() else { return Vec::new() };
                self.fail(now, format!("{text}{others}"))
            }
            (Phase::Closing(_), _) if crashed => vec![line()],
            _ => self.stranded(now),
        }
    }

    /// The connection to a host is gone and with it these ranks.
    pub(super) fn vanished(&mut self, now: Instant, ranks: std::ops::Range<u32>, why: String) -> Vec<Action> {
        let before = self.running;
        let goes_on = self.goes_on() && ranks.start > 0;
        for state in &mut self.ranks[ranks.start as usize..ranks.end as usize] {
            self.running -= usize::from(!std::mem::replace(&mut state.ended, true));
        }
        match self.phase {
            Phase::Running if self.running < before && goes_on => {
                vec![Action::Say(format!("{why}; the job goes on without its ranks"))]
            }
            Phase::Running | Phase::Closing(_) if self.running < before => self.fail(now, why),
            _ => Vec::new(),
        }
    }

    /// The user wants the job to end: politely at first, at once when asked
    /// again.
    pub(super) fn interrupted(&mut self, now: Instant, signal: i32) -> Vec<Action> {
        self.status = Some(SIGNAL_BASE + signal);
        match self.phase {
            Phase::Terminating(_) | Phase::Killing(_) | Phase::Abandoned => {
                self.phase = Phase::Killing(now + KILL_GRACE);
                vec![Action::Kill]
            }
            _ => {
                self.phase = Phase::Terminating(now + TERM_GRACE);
                vec![Action::Terminate]
            }
        }
    }

    /// When to call [`Verdict::tick`] next.
    pub(super) fn deadline(&self) -> Option<Instant> {
        match self.phase {
            Phase::Closing(at) | Phase::Failing(at) | Phase::Terminating(at) | Phase::Killing(at) => Some(at),
            Phase::Running | Phase::Abandoned => None,
        }
    }

    /// Time has passed.
    pub(super) fn tick(&mut self, now: Instant) -> Vec<Action> {
        if self.deadline().is_none_or(|at| now < at) || self.running == 0 {
            return Vec::new();
        }
        match self.phase {
            Phase::Closing(_) => {
                self.phase = Phase::Terminating(now + TERM_GRACE);
                let seconds = GOODBYE_DEADLINE.as_secs();
                let line = format!(
                    "{} of {} ranks still run {seconds} s after rank 0 has ended; they are ended",
                    self.running,
                    self.ranks.len()
                );
                vec![Action::Say(line), Action::Terminate]
            }
            Phase::Failing(_) => {
                self.phase = Phase::Terminating(now + TERM_GRACE);
                vec![Action::Terminate]
            }
            Phase::Killing(_) => {
                self.phase = Phase::Abandoned;
                let left = self.ranks.iter().enumerate().filter(|(_, state)| !state.ended);
                let names: Vec<String> = left.map(|(rank, _)| Rank(rank as u32).to_string()).collect();
                let names = names.join(", ");
                let line = format!("no word of the end of {names}: such a rank may still run, on a host out of reach");
                vec![Action::Say(line)]
            }
            _ => {
                self.phase = Phase::Killing(now + KILL_GRACE);
                vec![Action::Kill]
            }
        }
    }

    /// The job's exit status, once no rank runs any more that can be reached.
    pub(super) fn exit_status(&self) -> Option<i32> {
        (self.running == 0 || self.phase == Phase::Abandoned).then(|| self.status.unwrap_or(0))
    }

    /// Whether the death of a rank is the job's own affair: it has started.
    fn goes_on(&self) -> bool {
        self.keep_going && self.ranks.iter().all(|state| state.joined)
    }

    /// Fails the job if a rank waits for one that has ended without joining.
    fn stranded(&mut self, now: Instant) -> Vec<Action> {
        let waiting = self.ranks.iter().any(|s| s.joined && !s.ended);
        let absent = self.ranks.iter().position(|s| s.ended && !s.joined);
        match (self.phase, absent) {
            (Phase::Running | Phase::Closing(_), Some(rank)) if waiting => {
                let rank = Rank(rank as u32);
                self.fail(now, format!("{rank} ended before it had joined the job: let all ranks run the same program"))
            }
            _ => Vec::new(),
        }
    }

    fn fail(&mut self, now: Instant, line: String) -> Vec<Action> {
        self.status = Some(FAILED);
        self.phase = Phase::Failing(now + LOSS_GRACE);
        vec![Action::Say(line)]
    }
}

fn signal_name(number: i32) -> String {
    let name = match number {
        libc::SIGHUP => "SIGHUP",
        libc::SIGINT => "SIGINT",
        libc::SIGQUIT => "SIGQUIT",
        libc::SIGILL => "SIGILL",
        libc::SIGABRT => "SIGABRT",
        libc::SIGBUS => "SIGBUS",
        libc::SIGFPE => "SIGFPE",
        libc::SIGKILL => "SIGKILL",
        libc::SIGSEGV => "SIGSEGV",
        libc::SIGPIPE => "SIGPIPE",
        libc::SIGTERM => "SIGTERM",
        _ => return format!("signal {number}"),
    };
    format!("{name} (signal {number})")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_status_is_rank_0s() {
        let now = Instant::now();
        let mut verdict = Verdict::new(2, false);
        assert_eq!(verdict.ended(now, 1, 11, Fate::Exited(0), ""), []);
        assert_eq!(verdict.exit_status(), None);
        assert_eq!(verdict.ended(now, 0, 10, Fate::Exited(3), ""), []);
        assert_eq!(verdict.exit_status(), Some(3));
    }

    #[test]
    fn a_rank_that_announced_its_status_has_not_crashed() {
        let now = Instant::now();
        let mut verdict = Verdict::new(2, false);
        verdict.announced(1, 3);
        assert_eq!(verdict.ended(now, 1, 11, Fate::Exited(3), ""), []);
        verdict.ended(now, 0, 10, Fate::Exited(3), "");
        assert_eq!(verdict.exit_status(), Some(3));
    }

    #[test]
    fn a_lost_rank_ends_the_others_in_three_steps() {
        let now = Instant::now();
        let mut verdict = Verdict::new(3, false);
        let line = "rank 1 (pid 11) was killed by SIGKILL (signal 9); the other ranks are ended";
        assert_eq!(verdict.ended(now, 1, 11, Fate::Killed(9), ""), [Action::Say(line.into())]);
        assert_eq!(verdict.tick(now), []);
        let now = now + LOSS_GRACE;
        assert_eq!(verdict.tick(now), [Action::Terminate]);
        assert_eq!(verdict.ended(now, 2, 12, Fate::Killed(15), ""), []);
        assert_eq!(verdict.tick(now), []);
        let now = now + TERM_GRACE;
        assert_eq!(verdict.tick(now), [Action::Kill]);
        assert_eq!(verdict.ended(now, 0, 10, Fate::Killed(9), ""), []);
        assert_eq!(verdict.exit_status(), Some(1));
    }

    #[test]
    fn nobody_waits_for_a_host_out_of_reach() {
        let now = Instant::now();
        let mut verdict = Verdict::new(3, false);
        verdict.ended(now, 0, 10, Fate::Exited(1), "");
        verdict.ended(now, 1, 11, Fate::Exited(0), "");
        let now = verdict.deadline().unwrap();
        assert_eq!(verdict.tick(now), [Action::Terminate]);
        assert_eq!(verdict.tick(now + TERM_GRACE), [Action::Kill]);
        assert_eq!(verdict.exit_status(), None);
        let actions = verdict.tick(now + TERM_GRACE + KILL_GRACE);
        assert!(matches!(&actions[..], [Action::Say(line)] if line.contains("rank 2: ")), "{actions:?}");
        assert_eq!(verdict.exit_status(), Some(1));
    }

    #[test]
    fn a_killed_rank_0_fails_the_job() {
        let now = Instant::now();
        let mut verdict = Verdict::new(1, false);
        let line = "rank 0 (pid 10 on far) was killed by SIGSEGV (signal 11)";
        assert_eq!(verdict.ended(now, 0, 10, Fate::Killed(11), " on far"), [Action::Say(line.into())]);
        assert_eq!(verdict.exit_status(), Some(1));
    }

    #[test]
    fn stragglers_are_named_and_do_not_change_the_status() {
        let now = Instant::now();
        let mut verdict = Verdict::new(2, false);
        verdict.ended(now, 0, 10, Fate::Exited(0), "");
        let actions = verdict.tick(now + GOODBYE_DEADLINE);
        assert!(matches!(&actions[..], [Action::Say(_), Action::Terminate]), "{actions:?}");
        verdict.ended(now, 1, 11, Fate::Killed(15), "");
        assert_eq!(verdict.exit_status(), Some(0));
    }

    #[test]
    fn the_second_interrupt_kills() {
        let now = Instant::now();
        let mut verdict = Verdict::new(1, false);
        assert_eq!(verdict.interrupted(now, 2), [Action::Terminate]);
        assert_eq!(verdict.interrupted(now, 2), [Action::Kill]);
        assert_eq!(verdict.ended(now, 0, 10, Fate::Killed(9), ""), []);
        assert_eq!(verdict.exit_status(), Some(130));
    }

    #[test]
    fn nobody_waits_for_a_rank_that_ended_without_joining() {
        let now = Instant::now();
        for joined_first in [true, false] {
            let mut verdict = Verdict::new(2, false);
            let mut actions = Vec::new();
            if joined_first {
                actions.extend(verdict.joined(now, 0));
                actions.extend(verdict.ended(now, 1, 11, Fate::Exited(0), ""));
            } else {
                actions.extend(verdict.ended(now, 1, 11, Fate::Exited(0), ""));
                actions.extend(verdict.joined(now, 0));
            }
            assert!(matches!(&actions[..], [Action::Say(line)] if line.starts_with("rank 1 ended")), "{actions:?}");
            assert_eq!(verdict.deadline(), Some(now + LOSS_GRACE));
        }
        let mut verdict = Verdict::new(2, false);
        verdict.ended(now, 0, 10, Fate::Exited(0), "");
        assert!(matches!(&verdict.joined(now, 1)[..], [Action::Say(line)] if line.starts_with("rank 0 ended")));
    }

    #[test]
    fn a_lost_host_loses_its_ranks() {
        let now = Instant::now();
        let mut verdict = Verdict::new(3, false);
        assert_eq!(verdict.vanished(now, 1..3, "far is gone".into()), [Action::Say("far is gone".into())]);
        assert_eq!(verdict.ended(now, 0, 10, Fate::Exited(4), ""), []);
        assert_eq!(verdict.exit_status(), Some(1));
        assert_eq!(verdict.vanished(now, 1..3, "again".into()), []);
    }

    #[test]
    fn a_job_that_keeps_going_ends_with_rank_0_only() {
        let now = Instant::now();
        let mut verdict = Verdict::new(3, true);
        for rank in 0..3 {
            verdict.joined(now, rank);
        }
        let line = "rank 1 (pid 11) was killed by SIGKILL (signal 9); the job goes on without it";
        assert_eq!(verdict.ended(now, 1, 11, Fate::Killed(9), ""), [Action::Say(line.into())]);
        assert_eq!(verdict.tick(now + 10 * LOSS_GRACE), []);
        let line = "rank 0 (pid 10) was killed by SIGKILL (signal 9); the other ranks are ended";
        assert_eq!(verdict.ended(now, 0, 10, Fate::Killed(9), ""), [Action::Say(line.into())]);

        let mut starting = Verdict::new(2, true);
        let line = "rank 1 (pid 11) was killed by SIGKILL (signal 9); the other ranks are ended";
        assert_eq!(starting.ended(now, 1, 11, Fate::Killed(9), ""), [Action::Say(line.into())]);
    }
}
