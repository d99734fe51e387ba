//! A journal's work by plain calls, on a thread of its own.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use rustix::event::{EventfdFlags, eventfd};

use super::files::Place;
use super::{Backend, DROP_PATIENCE, Done, JournalError, Work, failed};

/// See the module.
pub(super) struct ThreadBackend {
    shared: Arc<Shared>,
}

struct Shared {
    desk: Mutex<Desk>,
    changed: Condvar,
    /// Something is in `Desk::done`: a look without a system call.
    is_done: AtomicBool,
    /// Readable while something is in `Desk::done`: both change under the lock.
    bell: OwnedFd,
}

#[derive(Default)]
struct Desk {
    work: Option<Work>,
    done: Option<Done>,
    /// Nobody waits for what is done any more.
    is_closed: bool,
    /// The thread has put down its files.
    is_gone: bool,
}

impl ThreadBackend {
    pub(super) fn new(place: &Arc<Place>, file: File) -> Result<ThreadBackend, JournalError> {
        let bell = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
        let bell = bell.map_err(|cause| JournalError::Io { doing: "watch", path: place.path.clone(), cause })?;
        let desk = Mutex::new(Desk::default());
        let shared = Arc::new(Shared { desk, changed: Condvar::new(), is_done: AtomicBool::new(false), bell });
        let (theirs, their_place) = (Arc::clone(&shared), Arc::clone(place));
        std::thread::Builder::new()
            .name("collimate-disk".into())
            .spawn(move || {
                work(&theirs, &their_place, file);
                drop(their_place);
                theirs.lock().is_gone = true;
                theirs.changed.notify_all();
            })
            .map_err(|error| failed("start a thread for", &place.path, &error))?;
        Ok(ThreadBackend { shared })
    }
}

fn work(shared: &Shared, place: &Place, mut file: File) {
    let mut desk = shared.lock();
    while !desk.is_closed {
        let Some(work) = desk.work.take() else {
            desk = shared.changed.wait(desk).unwrap_or_else(PoisonError::into_inner);
            continue;
        };
        let done = if let Work::Pause(pause) = work {
            let until = Instant::now() + pause;
            while !desk.is_closed && Instant::now() < until {
                let left = until.saturating_duration_since(Instant::now());
                desk = shared.changed.wait_timeout(desk, left).unwrap_or_else(PoisonError::into_inner).0;
            }
            Done { bytes: Vec::new(), fault: None }
        } else {
            drop(desk);
            let done = perform(work, place, &mut file);
            desk = shared.lock();
            done
        };
        desk.done = Some(done);
        shared.is_done.store(true, Ordering::Release);
        // Its count was taken with what was done before.
        let _ = rustix::io::write(&shared.bell, &1u64.to_ne_bytes());
    }
}

fn perform(work: Work, place: &Place, file: &mut File) -> Done {
    match work {
        Work::Append { at, bytes } => {
            let fault = place.append(file, at, &bytes).err();
            Done { bytes, fault }
        }
        Work::Replace(bytes) => {
            let fault = place.replace(&bytes).map(|replaced| *file = replaced).err();
            Done { bytes, fault }
        }
        Work::Pause(_) => Done { bytes: Vec::new(), fault: None },
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Desk> {
        self.desk.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Backend for ThreadBackend {
    fn start(&mut self, work: Work) {
        self.shared.lock().work = Some(work);
        self.shared.changed.notify_all();
    }

    fn done(&mut self) -> Option<Done> {
        if !self.shared.is_done.load(Ordering::Acquire) {
            return None;
        }
        let mut desk = self.shared.lock();
        self.shared.is_done.store(false, Ordering::Relaxed);
        let _ = rustix::io::read(&self.shared.bell, &mut [0; 8]);
        desk.done.take()
    }

    fn wait_fd(&self) -> BorrowedFd<'_> {
        self.shared.bell.as_fd()
    }
}

impl Drop for ThreadBackend {
    /// Waits for what is under way, so that another journal may follow at once.
    /// A thread that the disk keeps longer keeps the lock too, and ends when it can.
    fn drop(&mut self) {
        let mut desk = self.shared.lock();
        desk.is_closed = true;
        desk.work = None;
        self.shared.changed.notify_all();
        let until = Instant::now() + DROP_PATIENCE;
        while !desk.is_gone && Instant::now() < until {
            let left = until.saturating_duration_since(Instant::now());
            desk = self.shared.changed.wait_timeout(desk, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}
