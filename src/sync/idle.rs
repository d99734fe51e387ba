//! Who sleeps, who searches, and whom to wake: the idle protocol.
//!
//! # Protocol
//! An idle worker is a *searcher* (it looks for work again and again) or a
//! *sleeper* (it is parked). Both are counted in one word.
//!
//! * **push**, after the work is visible: read the word. If nobody sleeps, or
//!   somebody searches, nothing more is to do; this is the common case and it
//!   costs one load. Otherwise one sleeper is taken off the list, counted as a
//!   searcher on its behalf, and unparked.
//! * **sleep**: put yourself on the list and count yourself a sleeper instead
//!   of a searcher, *then* look for work once more, and only then park.
//! * **a searcher that finds work** stops being one; if it was the last and
//!   there is more work than its own, it does what a push does.
//!
//! Nobody is forgotten: a push whose read of the word missed a sleeper came,
//! in the order of all fences, before that sleeper's count, so the sleeper's
//! second look sees the work. That needs a full fence between the push's two
//! steps and between the sleeper's two. Pushes are frequent and sleeps are
//! not, so the push's fence only stops the compiler, and the sleeper's makes
//! every thread of the process execute a full one (`membarrier(2)`,
//! `MEMBARRIER_CMD_PRIVATE_EXPEDITED`), see [`Fences`]. The idea is Dice,
//! Huang and Yang's "Asymmetric Dekker synchronization" (2001). Where the
//! system call is refused, and under loom, both are full fences.
//!
//! One window is left open where the push's fence is the cheap one: a push may
//! have relied on a searcher that is just leaving with other work and does not
//! see the new one yet. The pushing worker still has it in its own deque, so
//! it is late and not lost; the node's service thread looks for such a task after
//! a searcher has polled, twice more 10 ms apart, and then each quarter of a second.
//!
//! At most one worker is woken per push, and none while one searches; the
//! woken one wakes the next if it finds work, so a burst wakes as many as it
//! has work for, one after the other.

use super::shim::{AtomicU32, Mutex, Ordering, fence};

/// The two halves of an asymmetric fence.
#[derive(Clone, Copy)]
pub struct Fences {
    /// Makes all threads of the process execute a full fence, the caller too;
    /// `None` where that cannot be had: then both halves are full fences.
    pub everywhere: Option<fn()>,
}

/// The sleepers and searchers of a rank.
pub struct Idle {
    /// Searchers in the high half, sleepers in the low half.
    word: AtomicU32,
    sleeping: Mutex<Sleepers>,
    fences: Fences,
}

#[derive(Default)]
struct Sleepers {
    workers: Vec<usize>,
    /// See [`Idle::enlist`].
    enlisted: Vec<usize>,
}

const SLEEPER: u32 = 1;
const SEARCHER: u32 = 1 << 16;

fn sleepers(word: u32) -> u32 {
    word & (SEARCHER - 1)
}

fn searchers(word: u32) -> u32 {
    word >> 16
}

impl Idle {
    /// Nobody idle.
    pub fn new(fences: Fences) -> Idle {
        Idle { word: AtomicU32::new(0), sleeping: Mutex::new(Sleepers::default()), fences }
    }

    /// To be called after work has become visible. The worker to unpark, if any.
    #[inline]
    pub fn pushed(&self) -> Option<usize> {
        self.light();
        let word = self.word.load(Ordering::Relaxed);
        if sleepers(word) == 0 || searchers(word) > 0 { None } else { self.wake_one() }
    }

    /// The caller begins to search.
    pub fn start_search(&self) {
        self.word.fetch_add(SEARCHER, Ordering::SeqCst);
    }

    /// The caller, a searcher, found work; `more` looks whether there is more
    /// than that. The worker to unpark, if any.
    #[must_use]
    pub fn found(&self, more: impl FnOnce() -> bool) -> Option<usize> {
        let before = self.word.fetch_sub(SEARCHER, Ordering::SeqCst);
        debug_assert!(searchers(before) > 0);
        if searchers(before) > 1 {
            return None;
        }
        self.light();
        if more() { self.pushed() } else { None }
    }

    /// Puts `sleeper`, which is no worker and does not park, on the list: it is
    /// returned by a push when all workers are awake. It is no searcher then,
    /// for it would keep pushes from waking workers and finds nothing itself.
    pub fn enlist(&self, sleeper: usize) {
        let mut sleeping = self.lock();
        sleeping.enlisted.push(sleeper);
        self.word.fetch_add(SLEEPER, Ordering::SeqCst);
    }

    /// The caller, searcher `worker`, wants to sleep. `look` looks for work a
    /// last time. `true`: park until unparked, and be a searcher again then.
    /// `false`: there is work; the caller is a searcher still.
    #[must_use]
    pub fn sleep(&self, worker: usize, look: impl FnOnce() -> bool) -> bool {
        {
            let mut sleeping = self.lock();
            sleeping.workers.push(worker);
            // Wraps to "one sleeper more, one searcher less".
            self.word.fetch_add(SLEEPER.wrapping_sub(SEARCHER), Ordering::SeqCst);
        }
        self.heavy();
        if !look() {
            return true;
        }
        // Awake after all, unless somebody has just counted us as a searcher.
        self.rise(worker);
        false
    }

    /// Counts sleeper `worker` as a searcher if nobody has done so yet: for one
    /// that woke by itself.
    pub fn rise(&self, worker: usize) {
        let mut sleeping = self.lock();
        if let Some(at) = sleeping.workers.iter().position(|w| *w == worker) {
            sleeping.workers.swap_remove(at);
            self.word.fetch_add(SEARCHER.wrapping_sub(SLEEPER), Ordering::SeqCst);
        }
    }

    /// How many search now.
    pub fn searching(&self) -> u32 {
        searchers(self.word.load(Ordering::SeqCst))
    }

    /// How many sleepers of a kind there are.
    pub fn asleep(&self, kind: impl Fn(usize) -> bool) -> usize {
        let sleeping = self.lock();
        sleeping.workers.iter().chain(&sleeping.enlisted).filter(|sleeper| kind(**sleeper)).count()
    }

    #[cold]
    fn wake_one(&self) -> Option<usize> {
        let mut sleeping = self.lock();
        if searchers(self.word.load(Ordering::SeqCst)) > 0 {
            return None;
        }
        let Some(worker) = sleeping.workers.pop() else {
            let other = sleeping.enlisted.pop()?;
            self.word.fetch_sub(SLEEPER, Ordering::SeqCst);
            return Some(other);
        };
        self.word.fetch_add(SEARCHER.wrapping_sub(SLEEPER), Ordering::SeqCst);
        Some(worker)
    }

    fn lock(&self) -> impl std::ops::DerefMut<Target = Sleepers> {
        self.sleeping.lock().unwrap_or_else(|e| e.into_inner())
    }

    #[inline]
    fn light(&self) {
        if cfg!(loom) || self.fences.everywhere.is_none() {
            fence(Ordering::SeqCst);
        } else {
            std::sync::atomic::compiler_fence(Ordering::SeqCst);
        }
    }

    fn heavy(&self) {
        match self.fences.everywhere {
            Some(everywhere) if !cfg!(loom) => everywhere(),
            _ => fence(Ordering::SeqCst),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sync::shim::{Arc, Condvar, thread};

    struct Rank {
        idle: Idle,
        work: AtomicU32,
        parkers: [Parker; 2],
    }

    /// What a worker sleeps on. A wake that never comes is a deadlock, which
    /// loom reports.
    #[derive(Default)]
    struct Parker(Mutex<bool>, Condvar);

    impl Parker {
        fn park(&self) {
            let mut unparked = self.0.lock().unwrap();
            while !std::mem::take(&mut *unparked) {
                unparked = self.1.wait(unparked).unwrap();
            }
        }

        fn unpark(&self) {
            *self.0.lock().unwrap() = true;
            self.1.notify_one();
        }
    }

    impl Rank {
        fn new() -> Rank {
            Rank { idle: Idle::new(Fences { everywhere: None }), work: AtomicU32::new(0), parkers: Default::default() }
        }

        fn unpark(&self, worker: Option<usize>) {
            if let Some(worker) = worker {
                self.parkers[worker].unpark();
            }
        }

        fn push(&self) {
            self.work.fetch_add(1, Ordering::Relaxed);
            self.unpark(self.idle.pushed());
        }

        fn take(&self) -> bool {
            self.work.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1)).is_ok()
        }

        /// Searches, sleeps and is woken until it has taken one piece of work.
        fn work_once(&self, worker: usize) {
            self.idle.start_search();
            loop {
                if self.take() {
                    self.unpark(self.idle.found(|| self.work.load(Ordering::Relaxed) > 0));
                    return;
                }
                if self.idle.sleep(worker, || self.work.load(Ordering::Relaxed) > 0) {
                    self.parkers[worker].park();
                }
            }
        }
    }

    /// Two pieces of work, two workers: both end, so no wake was lost.
    fn nobody_sleeps_beside_work() {
        let rank = Arc::new(Rank::new());
        let workers: Vec<_> = (0..2)
            .map(|w| {
                let rank = rank.clone();
                thread::spawn(move || rank.work_once(w))
            })
            .collect();
        rank.push();
        rank.push();
        for worker in workers {
            worker.join().unwrap();
        }
        assert_eq!(rank.idle.searching(), 0);
    }

    #[cfg(loom)]
    #[test]
    fn loom_one_worker_is_not_forgotten() {
        loom::model(|| {
            let rank = Arc::new(Rank::new());
            let worker = {
                let rank = rank.clone();
                thread::spawn(move || rank.work_once(0))
            };
            rank.push();
            worker.join().unwrap();
        });
    }

    #[cfg(loom)]
    #[test]
    fn loom_two_workers_are_not_forgotten() {
        let mut model = loom::model::Builder::new();
        model.preemption_bound = Some(2);
        model.check(nobody_sleeps_beside_work);
    }

    #[cfg(not(loom))]
    #[test]
    fn workers_are_not_forgotten() {
        for _ in 0..300 {
            nobody_sleeps_beside_work();
        }
    }

    #[cfg(not(loom))]
    #[test]
    fn one_push_wakes_one_and_none_while_one_searches() {
        let idle = Idle::new(Fences { everywhere: None });
        idle.start_search();
        idle.start_search();
        assert!(idle.sleep(0, || false));
        assert_eq!(idle.pushed(), None, "one searches");
        assert!(idle.sleep(1, || false));
        assert_eq!(idle.pushed(), Some(1));
        assert_eq!(idle.pushed(), None, "the woken one searches");
        assert_eq!(idle.found(|| true), Some(0));
        idle.enlist(77);
        assert_eq!(idle.found(|| false), None);
        assert_eq!(idle.pushed(), Some(77), "all workers are awake");
        assert_eq!(idle.searching(), 0);
        idle.start_search();
        assert!(idle.sleep(2, || false));
        assert_eq!(idle.pushed(), Some(2), "who was enlisted does not stand in for a searcher");
    }
}
