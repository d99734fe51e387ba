//! The service thread: keeps the network and the timers going while every
//! worker is busy with tasks or asleep.
//!
//! Workers that search poll the fabrics themselves, which is the fast path. The
//! service thread looks once a tick whether somebody has. If nobody does, it
//! polls once a tick for a few ticks, and then arms the fabrics and sleeps
//! until something arrives. With the last worker asleep it does so at once.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::rank::{Ended, Node, lock};
use super::state::Command;
use super::worker::Waiter;
use crate::base::limits::STALL_CHECK_EVERY;
use crate::sys::WaitSet;

/// Between two looks while workers are awake.
const TICK: Duration = Duration::from_millis(1);
/// Ticks without a worker's poll before the thread sleeps on the network.
const QUIET_TICKS: u32 = 3;
/// Longest sleep while a worker is awake: how late a task is that a push left
/// to a searcher who did not see it.
const LEFTOVER_MAX: Duration = Duration::from_millis(10);
/// So many times, while nobody searches.
const LEFTOVER_LOOKS: u32 = 2;
/// Longest sleep while somebody waits for another rank: an end that only its
/// presence tells of wakes nobody.
const CLOSE_LOOK: Duration = Duration::from_millis(2);
/// Longest sleep, and between two looks at the launcher: how late its death is
/// seen. Transfers are looked at in the same turns.
const SLEEP_MAX: Duration = STALL_CHECK_EVERY;

/// What the other threads share with the service thread.
pub(super) struct Service {
    /// The bell alone: for sleeps in which the network is not our business.
    pub bell: WaitSet,
    /// The same bell and the fabrics.
    pub network: WaitSet,
    /// The fabrics were armed and nobody has polled since, so `network` is
    /// readable when something arrives.
    pub armed: AtomicBool,
    /// The thread sleeps on the network, or is about to.
    dozing: AtomicBool,
    timers: Mutex<BTreeMap<(Instant, u64), Arc<Waiter>>>,
    timer_numbers: AtomicU64,
    /// The start of this rank's time.
    pub started: Instant,
    /// When the control store has something to do, in nanoseconds from `started`.
    control_due: AtomicU64,
    /// Somebody waits for what another rank has to do for the control store.
    closely: AtomicBool,
}

impl Service {
    pub fn new() -> std::io::Result<Service> {
        let bell = WaitSet::new()?;
        Ok(Service {
            network: WaitSet::with_bell_of(&bell)?,
            bell,
            armed: AtomicBool::new(false),
            dozing: AtomicBool::new(false),
            timers: Mutex::default(),
            timer_numbers: AtomicU64::new(0),
            started: Instant::now(),
            control_due: AtomicU64::new(0),
            closely: AtomicBool::new(false),
        })
    }

    /// Wakes `waiter` at `deadline`, unless it is woken before. Returns what
    /// [`Service::remove_timer`] takes.
    pub fn add_timer(&self, deadline: Instant, waiter: Arc<Waiter>) -> (Instant, u64) {
        let number = self.timer_numbers.fetch_add(1, Ordering::Relaxed);
        let first = {
            let mut timers = lock(&self.timers);
            timers.insert((deadline, number), waiter);
            timers.first_key_value().is_some_and(|((d, n), _)| (*d, *n) == (deadline, number))
        };
        if first {
            self.ring();
        }
        (deadline, number)
    }

    /// Forgets a timer whose waiter was woken, if it is still there.
    pub fn remove_timer(&self, timer: (Instant, u64)) {
        lock(&self.timers).remove(&timer);
    }

    /// The control store has something to do at this time, in nanoseconds from
    /// `started`, if nothing happens before.
    pub fn control_due(&self, due: u64) {
        let before = self.control_due.load(Ordering::Relaxed);
        self.control_due.store(due, Ordering::Relaxed);
        // The thread sleeps no longer than until what was due before.
        if due < before {
            self.ring();
        }
    }

    /// Whether ends of other processes are to be seen at once, from the next sleep on.
    pub fn watch_closely(&self, closely: bool) {
        self.closely.store(closely, Ordering::Relaxed);
    }

    /// The last worker goes to sleep: the network is the service thread's now.
    pub fn watch_network(&self) {
        if !self.armed.load(Ordering::SeqCst) {
            self.ring();
        }
    }

    /// A worker that has polled, so that the fabrics are not armed any more, goes
    /// on to something that may take long: the thread must not sleep on them.
    pub fn take_over(&self) {
        if self.dozing.load(Ordering::Relaxed) && !self.armed.load(Ordering::Relaxed) {
            self.ring();
        }
    }

    /// Ends whatever sleep the thread is in.
    pub fn ring(&self) {
        self.bell.ring();
    }

    fn fire_timers(&self, now: Instant) -> Option<Instant> {
        loop {
            let due = {
                let mut timers = lock(&self.timers);
                match timers.first_entry() {
                    Some(entry) if entry.key().0 <= now => entry.remove(),
                    Some(entry) => return Some(entry.key().0),
                    None => return None,
                }
            };
            due.fire();
        }
    }

    /// Sleeps on the armed network until something arrives, the bell rings or the
    /// time is over. That a worker may have left a task is no reason to poll and
    /// to arm anew; and who searches from here on polls, and rings when it stops, so
    /// that after a few looks there is hardly anything to look for.
    fn doze(&self, node: &'static Node, patience: Duration) {
        let closely = self.closely.load(Ordering::Relaxed);
        let mut left = if closely { patience.min(CLOSE_LOOK) } else { patience };
        for look in 1.. {
            let is_quiet = look > LEFTOVER_LOOKS || node.all_asleep();
            let part = left.min(if is_quiet { SLEEP_MAX } else { LEFTOVER_MAX });
            left -= part;
            if self.network.sleep(part) || left.is_zero() || !self.armed.load(Ordering::Relaxed) {
                return;
            }
            node.wake_for_leftovers();
        }
    }

    /// The thread's main function. `lost` says whether the launcher is gone.
    pub fn run(node: &'static Node, lost: impl Fn() -> Option<String>) {
        let service = &node.service;
        let mut turns_seen = node.turns_taken.load(Ordering::Relaxed);
        let mut quiet = 0;
        let mut next_look = Instant::now();
        // The first to poll should be a worker: see `Running`.
        service.bell.sleep(TICK);
        while !node.stopping.load(Ordering::Acquire) {
            let now = Instant::now();
            if now >= next_look {
                next_look = now + SLEEP_MAX;
                if let Some(why) = lost() {
                    node.end(Ended { status: 1, reason: Some(why) });
                }
                node.submit(Command::CheckTransfers);
            }
            let next_timer = service.fire_timers(now);
            let until_timer = next_timer.map_or(SLEEP_MAX, |t| t.saturating_duration_since(now).min(SLEEP_MAX));
            let now = now.saturating_duration_since(service.started).as_nanos() as u64;
            if now >= service.control_due.load(Ordering::Relaxed) {
                // What is due next is known once this was done, by whoever has the state.
                service.control_due.store(u64::MAX, Ordering::Relaxed);
                node.submit(Command::ControlTick);
            }
            let control_due = service.control_due.load(Ordering::Relaxed);
            let until_timer = until_timer.min(Duration::from_nanos(control_due.saturating_sub(now)));

            let turns = node.turns_taken.load(Ordering::Relaxed);
            let moved = std::mem::replace(&mut turns_seen, turns) != turns;
            // Who has polled and gone to sleep since has left the network to us.
            let polled = !node.all_asleep() && (moved || node.idle.searching() > 0);
            quiet = if polled { 0 } else { quiet + 1 };
            if !polled {
                node.turn();
                turns_seen = node.turns_taken.load(Ordering::Relaxed);
            }
            node.wake_for_leftovers();
            if polled || (quiet <= QUIET_TICKS && !node.all_asleep()) {
                service.bell.sleep(TICK.min(until_timer));
            } else {
                service.dozing.store(true, Ordering::SeqCst);
                if node.arm() {
                    service.doze(node, until_timer);
                } else if !node.turn() {
                    // A peer takes nothing just now.
                    service.bell.sleep(TICK.min(until_timer));
                }
                service.dozing.store(false, Ordering::SeqCst);
            }
        }
    }
}
