//! A file that is added to and is on disk when it says so, without its caller
//! ever waiting for the disk.
//!
//! What is given while a sync is under way is gathered, and then becomes one
//! write with one sync. That is all there is to group commit: under load the
//! groups grow until the disk keeps up. The file is replaced as a whole by
//! writing another one beside it, which takes its name once it is on disk.
//!
//! This file says what is written when; the ways to have it done are `ring`, by
//! io_uring, and `thread`, by plain calls on a thread that does nothing else.

mod files;
mod ring;
#[cfg(test)]
mod tests;
mod thread;

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use thiserror::Error;

use self::files::Place;
use self::ring::RingBackend;
use self::thread::ThreadBackend;

#[cfg(test)]
pub(crate) use self::tests::SmallDisk;

/// Between two attempts to write to a disk that was full.
const FULL_RETRY_EVERY: Duration = Duration::from_millis(250);
/// How long the end of a journal waits for the disk. What is under way longer
/// keeps its memory and the lock.
const DROP_PATIENCE: Duration = Duration::from_secs(5);
/// How long a lock that is taken may still become free: whoever was killed ends
/// when the disk has done what was under way, and what it has forked holds the
/// lock until it becomes another program.
const LOCK_PATIENCE: Duration = Duration::from_secs(1);

/// See the module.
pub struct Journal {
    backend: Box<dyn Backend>,
    place: Arc<Place>,
    mark: Option<Mark>,
    ring_refused: Option<String>,
    /// All bytes of the file that count; all of them are on disk.
    length: u64,
    gathered: Batch,
    under_way: Option<UnderWay>,
    full: bool,
    failed: bool,
    syncs: u64,
}

/// What is put before each group that is added: told how many bytes of the file
/// are on disk before the group is written. Whoever finds it in the file knows
/// that damage before that byte is not of a crash.
pub type Mark = fn(on_disk: u64) -> Vec<u8>;

/// How a journal has its work done.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum JournalBackend {
    /// By io_uring where that can be used, else by a thread.
    #[default]
    Auto,
    /// By io_uring.
    Uring,
    /// By a thread with plain calls.
    Thread,
}

/// What a journal tells.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum JournalEvent {
    /// What was given before this [`Journal::sync`] is on disk.
    Synced(u64),
    /// The disk is full. What was given is kept, and tried again now and then.
    Full,
    /// What was given while the disk was full has found its space.
    Space,
    /// The disk has failed. Nothing is written any more.
    Failed(JournalError),
}

/// Why a journal cannot be used.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum JournalError {
    /// The lock is taken.
    #[error("{0} is in use by another process (its lock is held); two must not write to one directory")]
    InUse(PathBuf),
    /// A call failed.
    #[error("cannot {doing} {path}: {cause}", path = path.display())]
    Io {
        /// What was to be done.
        doing: &'static str,
        /// To which file.
        path: PathBuf,
        /// What the system said.
        cause: Errno,
    },
    /// There is no way to have the work done.
    #[error("the journal {0} was to be written by io_uring: {1}")]
    NoRing(PathBuf, String),
}

/// Takes the lock of a directory or a journal: nobody else has it, in this
/// process or another on this host, as long as the file is open. Waits a moment
/// for one who is about to end.
pub fn lock_file(path: &Path) -> Result<File, JournalError> {
    let file = File::options().create(true).truncate(false).write(true).open(path);
    let file = file.map_err(|error| failed("open", path, &error))?;
    let until = Instant::now() + LOCK_PATIENCE;
    loop {
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(file),
            Err(Errno::WOULDBLOCK | Errno::INTR) if Instant::now() < until => {
                std::thread::sleep(Duration::from_millis(10));
            }
            Err(Errno::WOULDBLOCK) => return Err(JournalError::InUse(path.parent().unwrap_or(path).to_path_buf())),
            Err(cause) => return Err(JournalError::Io { doing: "lock", path: path.to_path_buf(), cause }),
        }
    }
}

impl Journal {
    /// Opens or makes the journal `name` in a directory that is there, and reads
    /// what it holds. May wait for the disk, as nothing later does.
    pub fn open(
        dir: &Path,
        name: &str,
        backend: JournalBackend,
        mark: Option<Mark>,
    ) -> Result<(Journal, Vec<u8>), JournalError> {
        let place = Arc::new(Place::open(dir, name)?);
        let mut file = place.open_current()?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(|error| failed("read", &place.path, &error))?;
        let mut ring_refused = None;
        let ring = match backend {
            JournalBackend::Thread => None,
            JournalBackend::Auto | JournalBackend::Uring => {
                RingBackend::new(&place, &file).map_err(|why| ring_refused = Some(why)).ok()
            }
        };
        let backend: Box<dyn Backend> = match (ring, ring_refused.clone()) {
            (Some(ring), _) => Box::new(ring),
            (None, Some(why)) if backend == JournalBackend::Uring => {
                return Err(JournalError::NoRing(place.path.clone(), why));
            }
            (None, _) => Box::new(ThreadBackend::new(&place, file)?),
        };
        let journal = Journal {
            backend,
            place,
            mark,
            ring_refused,
            length: bytes.len() as u64,
            gathered: Batch::default(),
            under_way: None,
            full: false,
            failed: false,
            syncs: 0,
        };
        Ok((journal, bytes))
    }

    /// Drops what follows these first bytes of the file. Before anything is
    /// added; waits for the disk.
    pub fn truncate(&mut self, to: u64) -> Result<(), JournalError> {
        self.place.truncate(to)?;
        self.length = to;
        Ok(())
    }

    /// Adds bytes behind everything given before. They are written with the next
    /// sync, and until then not at all.
    pub fn append(&mut self, bytes: Vec<u8>) {
        match self.gathered.bytes.is_empty() {
            true => self.gathered.bytes = bytes,
            false => self.gathered.bytes.extend_from_slice(&bytes),
        }
    }

    /// Gives the file other content, at once or not at all, at the next sync.
    pub fn replace(&mut self, bytes: Vec<u8>) {
        self.gathered.replaces = true;
        self.gathered.is_marked = false;
        self.gathered.bytes = bytes;
    }

    /// Wants everything that was given on disk, and to be told of it by this
    /// number.
    pub fn sync(&mut self, tag: u64) {
        self.gathered.tags.push(tag);
        self.start();
    }

    /// Tells what has happened, and begins what is next. Does not wait.
    pub fn poll(&mut self, on: &mut dyn FnMut(JournalEvent)) {
        while let Some(done) = self.backend.done() {
            match self.under_way.take() {
                Some(UnderWay::Group { replaces, is_marked, tags }) => {
                    let batch = Batch { bytes: done.bytes, replaces, is_marked, tags };
                    self.settle(batch, done.fault, on);
                }
                Some(UnderWay::Pause) | None => {}
            }
            self.start();
        }
    }

    /// Readable when [`Journal::poll`] has something to tell.
    pub fn wait_fd(&self) -> BorrowedFd<'_> {
        self.backend.wait_fd()
    }

    /// Its file.
    pub fn path(&self) -> &Path {
        &self.place.path
    }

    /// Why it is not written by io_uring, if that was wanted or left open.
    pub fn ring_refused(&self) -> Option<&str> {
        self.ring_refused.as_deref()
    }

    /// How often the disk was synced: less often than was asked for, if groups
    /// have formed.
    pub fn syncs(&self) -> u64 {
        self.syncs
    }

    /// Begins the next group, if one is wanted and none is under way.
    fn start(&mut self) {
        if self.under_way.is_some() || self.failed || self.gathered.tags.is_empty() {
            return;
        }
        let Batch { mut bytes, replaces, mut is_marked, tags } = std::mem::take(&mut self.gathered);
        if let Some(mark) = self.mark.filter(|_| !replaces && !is_marked && !bytes.is_empty()) {
            let mut marked = mark(self.length);
            marked.append(&mut bytes);
            (bytes, is_marked) = (marked, true);
        }
        let work = match replaces {
            true => Work::Replace(bytes),
            false => Work::Append { at: self.length, bytes },
        };
        self.under_way = Some(UnderWay::Group { replaces, is_marked, tags });
        self.backend.start(work);
    }

    fn settle(&mut self, batch: Batch, fault: Option<Fault>, on: &mut dyn FnMut(JournalEvent)) {
        let Some(fault) = fault else {
            let written = batch.bytes.len() as u64;
            self.length = if batch.replaces { written } else { self.length + written };
            self.syncs += 1;
            batch.tags.into_iter().for_each(|tag| on(JournalEvent::Synced(tag)));
            if std::mem::take(&mut self.full) {
                on(JournalEvent::Space);
            }
            return;
        };
        if matches!(fault.cause, Errno::NOSPC | Errno::DQUOT) {
            self.gathered.put_before(batch);
            self.under_way = Some(UnderWay::Pause);
            self.backend.start(Work::Pause(FULL_RETRY_EVERY));
            if !std::mem::replace(&mut self.full, true) {
                on(JournalEvent::Full);
            }
            return;
        }
        self.failed = true;
        self.gathered = Batch::default();
        let path = self.place.path.clone();
        on(JournalEvent::Failed(JournalError::Io { doing: fault.doing, path, cause: fault.cause }));
    }
}

/// What becomes one write and one sync.
#[derive(Default)]
struct Batch {
    bytes: Vec<u8>,
    /// They are the whole file, not added to it.
    replaces: bool,
    /// They begin with a mark.
    is_marked: bool,
    tags: Vec<u64>,
}

impl Batch {
    /// What came to nothing goes before what was given since, or gives way to it.
    fn put_before(&mut self, earlier: Batch) {
        let Batch { bytes: mut all, replaces, is_marked, mut tags } = earlier;
        tags.append(&mut self.tags);
        self.tags = tags;
        if !self.replaces {
            all.append(&mut self.bytes);
            (self.bytes, self.replaces, self.is_marked) = (all, replaces, is_marked);
        }
    }
}

enum UnderWay {
    Group { replaces: bool, is_marked: bool, tags: Vec<u64> },
    Pause,
}

/// Does one work at a time, away from the caller.
trait Backend: Send {
    /// Begins a work; none is under way.
    fn start(&mut self, work: Work);

    /// The work that was begun, if it has ended. A work that failed has left
    /// the file as it was.
    fn done(&mut self) -> Option<Done>;

    /// Readable when [`Backend::done`] has something.
    fn wait_fd(&self) -> BorrowedFd<'_>;
}

/// What a backend does.
enum Work {
    /// Writes to the file from this byte on, and syncs it.
    Append { at: u64, bytes: Vec<u8> },
    /// Writes another file, syncs it, gives it the name of the first and syncs
    /// the directory.
    Replace(Vec<u8>),
    /// Lets time pass.
    Pause(Duration),
}

/// A work that has ended.
struct Done {
    /// What was to be written.
    bytes: Vec<u8>,
    fault: Option<Fault>,
}

/// What failed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Fault {
    doing: &'static str,
    cause: Errno,
}

fn failed(doing: &'static str, path: &Path, error: &io::Error) -> JournalError {
    JournalError::Io { doing, path: path.to_path_buf(), cause: Errno::from_io_error(error).unwrap_or(Errno::IO) }
}
