//! A journal's work by io_uring: a write with its sync in one call of the
//! kernel, carried out by the kernel's own threads.
//!
//! The ring is a plain one: any thread may submit and look, one at a time, and
//! completions appear in memory by themselves. Its descriptor is readable while
//! there are some. The steps of a work are linked: each begins when the one
//! before has done all that it should, and if it has not, even a write that was
//! only short, the others are cancelled. Then the work goes on from there. A
//! thread that ends takes along what it has submitted; that is seen as
//! cancelled, too.

use std::collections::VecDeque;
use std::fs::File;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use io_uring::types::{Fd, FsyncFlags, SubmitArgs, Timespec};
use io_uring::{IoUring, Probe, opcode, squeue};
use rustix::io::Errno;

use super::super::uring::explain;
use super::files::{FILE_MODE, Place, TEMP_FLAGS};
use super::{Backend, DROP_PATIENCE, Done, Fault, Work};

/// More than a work has steps.
const ENTRIES: u32 = 8;
/// The most that is written at once; the kernel's limit is a page below 2 GiB.
const WRITE_BYTES_MAX: usize = 1 << 30;

/// See the module.
pub(super) struct RingBackend {
    ring: IoUring,
    place: Arc<Place>,
    file: File,
    task: Option<Task>,
}

/// A work under way. What the kernel reads stays in place: the bytes until the
/// last completion is there, the rest until it is submitted, which is sooner.
struct Task {
    bytes: Vec<u8>,
    /// Of the file, where they go.
    at: u64,
    written: usize,
    replaces: bool,
    /// The file that is to replace the other, once it is open.
    temp: Option<File>,
    pause: Box<Timespec>,
    /// What is still to be done.
    left: VecDeque<Step>,
    /// How many of them are with the kernel, and what became of those that
    /// have ended.
    submitted: usize,
    results: [Option<i32>; 5],
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Step {
    Open,
    Write,
    Sync,
    Rename,
    SyncDir,
    Pause,
}

impl Step {
    /// What it is called if it fails.
    fn name(self, replaces: bool) -> &'static str {
        match (self, replaces) {
            (Step::Open, _) => "open anew",
            (Step::Write, false) => "write",
            (Step::Write, true) => "write anew",
            (Step::Sync, false) => "sync",
            (Step::Sync, true) => "sync anew",
            (Step::Rename, _) => "replace",
            (Step::SyncDir, _) => "sync the directory of",
            (Step::Pause, _) => "wait for",
        }
    }
}

impl RingBackend {
    /// Fails with the reason if io_uring cannot be used here.
    pub(super) fn new(place: &Arc<Place>, file: &File) -> Result<RingBackend, String> {
        let ring = IoUring::builder().dontfork().build(ENTRIES).map_err(|error| explain(&error))?;
        let mut probe = Probe::new();
        ring.submitter().register_probe(&mut probe).map_err(|error| explain(&error))?;
        let needed = [
            (opcode::Write::CODE, "write"),
            (opcode::Fsync::CODE, "fsync"),
            (opcode::OpenAt::CODE, "openat"),
            (opcode::RenameAt::CODE, "renameat"),
            (opcode::Timeout::CODE, "timeout"),
        ];
        if let Some((_, name)) = needed.iter().find(|(code, _)| !probe.is_supported(*code)) {
            return Err(format!("this kernel's io_uring has no {name}; Linux 5.11 has all that is needed"));
        }
        let file = file.try_clone().map_err(|error| error.to_string())?;
        Ok(RingBackend { ring, place: Arc::clone(place), file, task: None })
    }

    /// Hands as many steps to the kernel as can follow each other.
    fn submit(&mut self) {
        let Some(task) = &mut self.task else { return };
        let target = Fd(task.temp.as_ref().unwrap_or(&self.file).as_raw_fd());
        let dir = Fd(self.place.dir.as_raw_fd());
        let rest = &task.bytes[task.written..];
        let in_parts = rest.len() > WRITE_BYTES_MAX;
        // What follows an opening needs what it opens.
        let ends_chain = |step| step == Step::Open || step == Step::Write && in_parts;
        let count = task.left.iter().position(|step| ends_chain(*step)).map_or(task.left.len(), |last| last + 1);
        let mut queue = self.ring.submission();
        for (i, step) in task.left.iter().take(count).enumerate() {
            let entry = match step {
                Step::Open => opcode::OpenAt::new(dir, self.place.temp.as_ptr())
                    .flags(TEMP_FLAGS.bits() as i32)
                    .mode(FILE_MODE.bits())
                    .build(),
                Step::Write => opcode::Write::new(target, rest.as_ptr(), rest.len().min(WRITE_BYTES_MAX) as u32)
                    .offset(task.at + task.written as u64)
                    .build(),
                Step::Sync if task.replaces => opcode::Fsync::new(target).build(),
                Step::Sync => opcode::Fsync::new(target).flags(FsyncFlags::DATASYNC).build(),
                Step::Rename => {
                    opcode::RenameAt::new(dir, self.place.temp.as_ptr(), dir, self.place.name.as_ptr()).build()
                }
                Step::SyncDir => opcode::Fsync::new(dir).build(),
                Step::Pause => opcode::Timeout::new(&raw const *task.pause).build(),
            };
            // Away from this thread at once: all of them wait for the disk.
            let mut flags = if *step == Step::Pause { squeue::Flags::empty() } else { squeue::Flags::ASYNC };
            flags.set(squeue::Flags::IO_LINK, i + 1 < count);
            // SAFETY: the bytes stay where they are and as they are until all
            // steps have ended: nothing changes `task.bytes` before, and `drop`
            // waits or leaks them. The names and the time are read while the
            // entry is submitted; they, and the descriptors, live in `place`
            // (which `drop` leaks likewise), in `self` and in the task.
            let pushed = unsafe { queue.push(&entry.user_data(i as u64).flags(flags)) };
            pushed.expect("a work has fewer steps than the ring has entries, and is alone in it");
        }
        drop(queue);
        task.submitted = count;
        task.results = [None; 5];
        self.enter();
    }

    /// Gives the kernel what is queued. What it does not take now it is given
    /// again by the next look.
    fn enter(&mut self) {
        if !self.ring.submission().is_empty() {
            let _later = self.ring.submit();
        }
    }

    /// Whether all steps that are with the kernel have ended.
    fn collect(&mut self) -> bool {
        let Some(task) = &mut self.task else { return false };
        for entry in self.ring.completion() {
            if let Some(result) = task.results.get_mut(entry.user_data() as usize) {
                *result = Some(entry.result());
            }
        }
        task.results.iter().take(task.submitted).all(Option::is_some)
    }
}

impl Task {
    fn new(work: Work) -> Task {
        let mut task = Task {
            bytes: Vec::new(),
            at: 0,
            written: 0,
            replaces: false,
            temp: None,
            pause: Box::new(Timespec::new()),
            left: VecDeque::new(),
            submitted: 0,
            results: [None; 5],
        };
        match work {
            Work::Append { at, bytes } => {
                let write = (!bytes.is_empty()).then_some(Step::Write);
                task.left = write.into_iter().chain([Step::Sync]).collect();
                (task.at, task.bytes) = (at, bytes);
            }
            Work::Replace(bytes) => {
                let write = (!bytes.is_empty()).then_some(Step::Write);
                let rest = [Step::Sync, Step::Rename, Step::SyncDir];
                task.left = [Step::Open].into_iter().chain(write).chain(rest).collect();
                (task.replaces, task.bytes) = (true, bytes);
            }
            Work::Pause(pause) => {
                task.pause = Box::new(Timespec::from(pause));
                task.left.push_back(Step::Pause);
            }
        }
        task
    }

    /// Takes note of what has ended. What was only cut short is still `left`.
    fn advance(&mut self) -> Result<(), Fault> {
        for result in self.results.into_iter().take(self.submitted).flatten() {
            let Some(step) = self.left.front().copied() else { return Ok(()) };
            let ended_well = match step {
                // Whether in time or because its thread has ended.
                Step::Pause => true,
                _ if result < 0 => {
                    let cause = Errno::from_raw_os_error(-result);
                    if matches!(cause, Errno::CANCELED | Errno::INTR | Errno::AGAIN) {
                        return Ok(());
                    }
                    return Err(Fault { doing: step.name(self.replaces), cause });
                }
                Step::Open => {
                    // SAFETY: the kernel has just made this descriptor for us.
                    self.temp = Some(unsafe { File::from_raw_fd(result) });
                    true
                }
                Step::Write if result == 0 => {
                    return Err(Fault { doing: step.name(self.replaces), cause: Errno::IO });
                }
                Step::Write => {
                    self.written += result as usize;
                    self.written == self.bytes.len()
                }
                Step::Sync | Step::Rename | Step::SyncDir => true,
            };
            if !ended_well {
                return Ok(());
            }
            self.left.pop_front();
        }
        Ok(())
    }
}

impl Backend for RingBackend {
    fn start(&mut self, work: Work) {
        self.task = Some(Task::new(work));
        self.submit();
    }

    fn done(&mut self) -> Option<Done> {
        self.task.as_ref()?;
        self.enter();
        if !self.collect() {
            return None;
        }
        let task = self.task.as_mut()?;
        let fault = task.advance().err();
        if fault.is_none() && !task.left.is_empty() {
            self.submit();
            return None;
        }
        let Task { bytes, at, replaces, temp, .. } = self.task.take()?;
        match (&fault, replaces) {
            (Some(_), true) => self.place.remove_temp(),
            (Some(_), false) => self.place.undo_append(&self.file, at),
            (None, true) => self.file = temp?,
            (None, false) => {}
        }
        Some(Done { bytes, fault })
    }

    fn wait_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor is open as long as the ring, which the borrow
        // keeps.
        unsafe { BorrowedFd::borrow_raw(self.ring.as_raw_fd()) }
    }
}

impl Drop for RingBackend {
    /// Waits for what the kernel has under way, so that another journal may
    /// follow at once.
    fn drop(&mut self) {
        let until = Instant::now() + DROP_PATIENCE;
        while self.task.as_ref().is_some_and(|task| task.left.front() != Some(&Step::Pause)) && !self.collect() {
            let left = until.saturating_duration_since(Instant::now());
            if left == Duration::ZERO {
                // The disk hangs. The kernel may still read the bytes and write
                // to the file: nobody else may.
                std::mem::forget(self.task.take());
                std::mem::forget(Arc::clone(&self.place));
                return;
            }
            let wait = Timespec::from(left.min(Duration::from_millis(100)));
            let _ = self.ring.submitter().submit_with_args(1, &SubmitArgs::new().timespec(&wait));
        }
        if let Some(task) = &mut self.task {
            // A file that it has opened is closed with it.
            let _ = task.advance();
        }
    }
}
