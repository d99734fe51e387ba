//! Whether a process of this host can still do anything, as soon as it cannot.
//!
//! The end of a socket tells of the end of a process, but late: the kernel takes
//! a process's memory apart before it closes its descriptors, which is a quarter
//! of a second per GiB on some machines, and a child that has inherited the socket
//! keeps it open. The list of robust futexes (`set_robust_list(2)`) is gone
//! through before that, thread by thread.
//!
//! # Protocol
//! Each thread that may act for the process towards others enrols first
//! ([`enrol`]): it takes a robust mutex of its own in memory that others map, and
//! keeps it. When the thread has executed its last instruction, the kernel marks
//! the mutex (`FUTEX_OWNER_DIED`). A process is over when some thread is enrolled
//! and the mutexes of all that are have the mark ([`Witness::is_over`]).
//!
//! A thread may enrol while the others are marked. So whoever finds all of them
//! marked shuts the gate, the one word that others may write, and looks once more;
//! and a thread that has enrolled looks whether the gate is shut. These are stores
//! and loads of the kind "store mine, then read yours", all `SeqCst`: either the
//! second look sees the new thread, or that one sees the gate shut, and ends its
//! process, which is ending anyway, before it does anything else.
//!
//! A thread that ends while its process goes on leaves the list before that. One
//! for which there is no place, or whose mutex is not of the form that is expected
//! here (the word of the futex first, as in glibc), marks the list as incomplete:
//! then nothing is ever concluded from it, and the end of the socket must do.

use std::cell::UnsafeCell;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use super::memory::{AnyBits, SharedPages};

/// Threads of one process that can be enrolled at once.
const PLACES: usize = 1023;

/// The list of one process, which only that process can write: the C library
/// follows pointers in its mutexes.
#[repr(C, align(64))]
struct List {
    /// No place from here on was ever used.
    used: AtomicU32,
    incomplete: AtomicU32,
    places: [Place; PLACES],
}

/// The place of a thread in it.
#[repr(C, align(64))]
struct Place {
    mutex: UnsafeCell<libc::pthread_mutex_t>,
    state: AtomicU32,
}

/// States of a place; the first is that of fresh memory.
const FREE: u32 = 0;
const TAKEN: u32 = 1;
const ENROLLED: u32 = 2;

// SAFETY: atomic words, and mutexes that only the C library looks into, in the
// process that made them and alone can write them; others read their first word.
unsafe impl AnyBits for List {}

/// What others write: shut, when they go on as if the process were over.
#[repr(C, align(64))]
struct Gate {
    shut: AtomicU32,
}

// SAFETY: an atomic word.
unsafe impl AnyBits for Gate {}

/// The list of this process, which others can witness.
struct Presence {
    list: SharedPages<List>,
    gate: SharedPages<Gate>,
}

// SAFETY: places are used by whoever has taken them (`state`), all else is atomic.
unsafe impl Sync for Presence {}
// SAFETY: as above.
unsafe impl Send for Presence {}

/// A thread's place, for as long as it may act.
struct Enrolled {
    presence: &'static Presence,
    place: usize,
}

/// Says from outside whether a process is over.
pub struct Witness {
    list: SharedPages<List>,
    gate: SharedPages<Gate>,
}

// SAFETY: only the atomic words of the list and of its mutexes are read.
unsafe impl Send for Witness {}

/// What others need to witness this process, in the order that [`Witness::open`]
/// takes them in.
///
/// # Errors
/// Of the system, if there is no memory that can be shared.
pub fn presence_fds() -> io::Result<[BorrowedFd<'static>; 2]> {
    let Presence { list, gate } = presence()?;
    Ok([list.fd(), gate.fd()])
}

fn presence() -> io::Result<&'static Presence> {
    static OWN: OnceLock<Presence> = OnceLock::new();
    if let Some(own) = OWN.get() {
        return Ok(own);
    }
    let fresh = Presence::new()?;
    Ok(OWN.get_or_init(|| fresh))
}

/// To be called by every thread before it acts towards other processes, each time.
#[inline]
pub fn enrol() {
    thread_local! {
        static PLACE: Option<Enrolled> = presence().ok().and_then(Presence::enrol);
    }
    // A thread that is ending has left the list and may act still, in a destructor
    // of its own; such a process is taken to live.
    if PLACE.try_with(|_| ()).is_err()
        && let Ok(presence) = presence()
    {
        presence.give_up();
    }
}

impl Presence {
    fn new() -> io::Result<Presence> {
        let list = SharedPages::create_for_readers("collimate-presence")?;
        Ok(Presence { list, gate: SharedPages::create("collimate-gate")? })
    }

    fn enrol(&'static self) -> Option<Enrolled> {
        let list: &List = &self.list;
        let take = |place: &&Place| place.state.compare_exchange(FREE, TAKEN, Ordering::SeqCst, Ordering::SeqCst).is_ok();
        let Some(at) = list.places.iter().position(|place| take(&place)) else {
            self.give_up();
            return None;
        };
        let place = &list.places[at];
        if !place.lock() {
            self.give_up();
            return None;
        }
        list.used.fetch_max(at as u32 + 1, Ordering::SeqCst);
        place.state.store(ENROLLED, Ordering::SeqCst);
        self.stop_if_shut();
        Some(Enrolled { presence: self, place: at })
    }

    /// A thread acts that is not on the list.
    fn give_up(&self) {
        self.list.incomplete.store(1, Ordering::SeqCst);
        self.stop_if_shut();
    }

    /// Others go on as if this process were over.
    fn stop_if_shut(&self) {
        if self.gate.shut.load(Ordering::SeqCst) != 0 {
            std::process::abort();
        }
    }
}

impl Drop for Enrolled {
    fn drop(&mut self) {
        let place = &self.presence.list.places[self.place];
        // In a child that was forked and ends, the place is its parent's still.
        if !place.is_mine() {
            return;
        }
        place.state.store(TAKEN, Ordering::SeqCst);
        place.unlock();
        place.state.store(FREE, Ordering::SeqCst);
    }
}

impl Place {
    /// Makes the mutex and takes it; whether it is what [`Place::word`] expects.
    fn lock(&self) -> bool {
        let mut attributes = MaybeUninit::<libc::pthread_mutexattr_t>::uninit();
        // SAFETY: the attributes are initialised by the first call and used only if
        // that succeeded; the mutex is this thread's alone while the state is
        // `TAKEN`, and stays where it is: the mapping of the list is never undone
        // in its own process.
        let locked = unsafe {
            libc::pthread_mutexattr_init(attributes.as_mut_ptr()) == 0
                && libc::pthread_mutexattr_setpshared(attributes.as_mut_ptr(), libc::PTHREAD_PROCESS_SHARED) == 0
                && libc::pthread_mutexattr_setrobust(attributes.as_mut_ptr(), libc::PTHREAD_MUTEX_ROBUST) == 0
                && libc::pthread_mutex_init(self.mutex.get(), attributes.as_ptr()) == 0
                && libc::pthread_mutex_lock(self.mutex.get()) == 0
        };
        locked && self.is_mine()
    }

    /// Whether this thread holds the mutex.
    fn is_mine(&self) -> bool {
        self.word().load(Ordering::SeqCst) & libc::FUTEX_TID_MASK == rustix::thread::gettid().as_raw_pid() as u32
    }

    fn unlock(&self) {
        // SAFETY: this thread has taken the mutex in `lock` and nobody else uses it.
        unsafe {
            libc::pthread_mutex_unlock(self.mutex.get());
            libc::pthread_mutex_destroy(self.mutex.get());
        }
    }

    /// The word that the kernel marks.
    fn word(&self) -> &AtomicU32 {
        // SAFETY: within the mutex, aligned as it is, and memory that is shared
        // between processes; the C library and the kernel access it atomically.
        unsafe { AtomicU32::from_ptr(self.mutex.get().cast::<u32>()) }
    }
}

impl Witness {
    /// Of a process that has passed its [`presence_fds`].
    ///
    /// # Errors
    /// If it is something else, or cannot be mapped.
    pub fn open([list, gate]: [OwnedFd; 2]) -> io::Result<Witness> {
        Ok(Witness { list: SharedPages::open(list, false)?, gate: SharedPages::open(gate, true)? })
    }

    /// Whether no thread of that process will ever do anything again. `false` is
    /// no proof of the contrary.
    #[inline]
    pub fn is_over(&self) -> bool {
        self.are_all_marked() && self.is_over_for_good()
    }

    #[cold]
    fn is_over_for_good(&self) -> bool {
        self.gate.shut.store(1, Ordering::SeqCst);
        self.are_all_marked()
    }

    fn are_all_marked(&self) -> bool {
        let used = (self.list.used.load(Ordering::SeqCst) as usize).min(PLACES);
        let mut enrolled = self.list.places[..used].iter().filter(|place| place.state.load(Ordering::SeqCst) == ENROLLED).peekable();
        enrolled.peek().is_some()
            && enrolled.all(|place| place.word().load(Ordering::SeqCst) & libc::FUTEX_OWNER_DIED != 0)
            && self.list.incomplete.load(Ordering::SeqCst) == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;

    fn listed() -> (&'static Presence, Witness) {
        let presence: &Presence = Box::leak(Box::new(Presence::new().unwrap()));
        let fds = [presence.list.fd(), presence.gate.fd()].map(|fd| fd.try_clone_to_owned().unwrap());
        (presence, Witness::open(fds).unwrap())
    }

    /// A thread that enrols and ends as if its process did.
    fn end_enrolled(presence: &'static Presence) {
        thread::spawn(|| std::mem::forget(presence.enrol().unwrap())).join().unwrap();
    }

    #[test]
    fn a_process_is_over_when_all_its_threads_are() {
        let (presence, witness) = listed();
        assert!(!witness.is_over(), "nobody has enrolled");
        let (go_on, wait) = std::sync::mpsc::channel::<()>();
        let (enrolled, is_there) = std::sync::mpsc::channel();
        let last = thread::spawn(move || {
            let place = presence.enrol().unwrap();
            enrolled.send(()).unwrap();
            wait.recv().unwrap_err();
            std::mem::forget(place);
        });
        is_there.recv().unwrap();
        end_enrolled(presence);
        assert!(!witness.is_over(), "one lives");
        drop(go_on);
        last.join().unwrap();
        assert!(witness.is_over());
        assert_eq!(presence.gate.shut.load(Ordering::SeqCst), 1);
    }

    #[test]
    fn who_leaves_the_list_counts_no_more() {
        let (presence, witness) = listed();
        let places: Vec<_> = (0..10).map(|_| thread::spawn(|| drop(presence.enrol())).join()).collect();
        assert!(places.iter().all(Result::is_ok));
        assert_eq!(presence.list.used.load(Ordering::SeqCst), 1, "a place is used again");
        assert!(!witness.is_over());
        end_enrolled(presence);
        assert!(witness.is_over());
    }

    #[test]
    fn a_list_that_is_not_complete_proves_nothing() {
        let (presence, witness) = listed();
        let places: Vec<_> = (0..PLACES).map(|_| presence.enrol().unwrap()).collect();
        assert!(presence.enrol().is_none());
        drop(places);
        end_enrolled(presence);
        assert!(!witness.is_over());
    }

    #[test]
    fn what_is_no_list_is_refused_and_what_is_one_cannot_be_written() {
        let region = crate::sys::create_region(4096).unwrap();
        let other = || crate::sys::region_fd(&region).unwrap().try_clone_to_owned().unwrap();
        assert!(Witness::open([other(), other()]).is_err());
        let (presence, _) = listed();
        let list = presence.list.fd().try_clone_to_owned().unwrap();
        assert!(rustix::io::pwrite(&list, b"x", 0).is_err());
        assert!(SharedPages::<List>::open(list, true).is_err());
    }

    /// A child that was forked has its parent's places in what it drops at its end.
    #[test]
    fn only_the_thread_that_holds_a_place_gives_it_up() {
        let (presence, witness) = listed();
        let place = presence.enrol().unwrap();
        thread::spawn(move || drop(place)).join().unwrap();
        assert_eq!(presence.list.places[0].state.load(Ordering::SeqCst), ENROLLED);
        assert!(!witness.is_over());
    }
}
