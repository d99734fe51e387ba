//! io_uring for receiving: one multishot receive per socket, into buffers that
//! the kernel picks from a ring of provided ones.
//!
//! The ring is set up with `SINGLE_ISSUER | DEFER_TASKRUN` (Linux 6.1): one
//! thread, the owner, submits, and *only within its calls to*
//! [`ReceiveRing::progress`] *and* [`ReceiveRing::receive`] does the kernel move
//! bytes from a socket to a buffer or post a completion. That is more than a
//! matter of speed: it is what lets other threads read the completions that are
//! there, and then the sockets themselves, without breaking the order of a
//! stream. The older modes (`COOP_TASKRUN`, none) complete whenever the owner
//! enters the kernel for any reason, so they are not offered; multishot receive
//! itself came only one release earlier.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU16, Ordering};
use std::thread::ThreadId;

use io_uring::types::{BufRingEntry, Fd};
use io_uring::{IoUring, cqueue, opcode, squeue};

const GROUP: u16 = 0;
/// The token of requests whose completion nobody waits for.
const NOBODY: u64 = u64::MAX;
const SUBMISSIONS: u32 = 64;
/// Completions that fit; the kernel keeps more aside until there is room.
const COMPLETIONS: u32 = 1024;

/// See the module.
pub struct ReceiveRing {
    // Dropped before the buffers: see `Drop` of `Buffers`.
    ring: IoUring,
    buffers: Buffers,
    owner: ThreadId,
    /// The sockets of requests that are queued and not submitted.
    unsubmitted: Vec<Option<OwnedFd>>,
}

/// What a multishot receive reports.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Received<'a> {
    /// The next bytes of the stream.
    Bytes(&'a [u8]),
    /// The other side has closed.
    End,
    /// All provided buffers were in use; nothing is lost, receive again.
    NoBuffers,
    /// The socket failed with this error number.
    Failed(i32),
}

impl ReceiveRing {
    /// A ring owned by the calling thread, with `count` (a power of two)
    /// buffers of `bytes` each. `incremental` lets several receives fill one
    /// buffer (Linux 6.12); else each takes a whole one.
    pub fn new(count: u16, bytes: u32, incremental: bool) -> io::Result<ReceiveRing> {
        let mut made = ReceiveRing::without_buffers(count, bytes)?;
        made.register(if incremental { BUFFERS_INCREMENTAL } else { 0 })?;
        Ok(made)
    }

    fn without_buffers(count: u16, bytes: u32) -> io::Result<ReceiveRing> {
        let ring = IoUring::builder()
            .dontfork()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_taskrun_flag()
            .setup_cqsize(COMPLETIONS)
            .build(SUBMISSIONS)?;
        Ok(ReceiveRing { ring, buffers: Buffers::new(count, bytes)?, owner: this_thread(), unsubmitted: Vec::new() })
    }

    fn register(&mut self, flags: u16) -> io::Result<()> {
        let buffers = &mut self.buffers;
        let entries = buffers.entries.as_ptr() as u64;
        // SAFETY: the entries are page-aligned, `count` of them, zeroed, and
        // live until after the ring is gone (field order).
        unsafe { self.ring.submitter().register_buf_ring_with_flags(entries, buffers.count, GROUP, flags)? };
        (0..buffers.count).for_each(|buffer| buffers.provide(buffer));
        Ok(())
    }

    /// Whether the calling thread is the one that may receive and progress.
    #[inline]
    pub fn is_owner(&self) -> bool {
        this_thread() == self.owner
    }

    /// Starts to receive from a socket, until it ends or buffers run out. The
    /// request keeps the socket open: it is ended by shutting the socket down.
    pub fn receive(&mut self, socket: impl AsFd, token: u64) -> io::Result<()> {
        // A descriptor of the ring's own: the caller's may be another socket's
        // by the time that a submission which failed is made up for.
        let socket = socket.as_fd().try_clone_to_owned()?;
        let entry = opcode::RecvMulti::new(Fd(socket.as_raw_fd()), GROUP).build().user_data(token);
        self.submit(&entry, Some(socket))
    }

    /// Ends what [`ReceiveRing::receive`] started: it reports what it has, and
    /// then [`Received::Failed`] with `ECANCELED`, unless it has ended already.
    /// The owner's only.
    pub fn cancel(&mut self, token: u64) -> io::Result<()> {
        let entry = opcode::AsyncCancel::new(token).build().user_data(NOBODY).flags(squeue::Flags::SKIP_SUCCESS);
        self.submit(&entry, None)
    }

    /// Queues a request and submits it. Should the kernel not take it now, it
    /// stays queued, and [`ReceiveRing::progress`] tries again.
    fn submit(&mut self, entry: &squeue::Entry, socket: Option<OwnedFd>) -> io::Result<()> {
        if !self.unsubmitted.is_empty() {
            self.submit_queued()?;
        }
        self.unsubmitted.push(socket);
        // SAFETY: both requests of this module have no memory but the provided
        // buffers; a descriptor in them is kept open in `unsubmitted` until a
        // submission has looked it up.
        unsafe { self.ring.submission().push(entry).map_err(io::Error::other)? };
        let _tried_again = self.submit_queued();
        Ok(())
    }

    fn submit_queued(&mut self) -> io::Result<()> {
        loop {
            match self.ring.submit() {
                Ok(_) => {
                    self.unsubmitted.clear();
                    return Ok(());
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Lets the kernel complete what has become ready; a look at a flag in
    /// memory if nothing has. The owner's only.
    #[inline]
    pub fn progress(&mut self) -> io::Result<()> {
        if !self.unsubmitted.is_empty() {
            self.submit_queued()?;
        }
        if !self.is_due() {
            return Ok(());
        }
        // SAFETY: an enter without submissions, waiting or argument.
        match unsafe { self.ring.submitter().enter::<libc::sigset_t>(0, 0, ENTER_GETEVENTS, None) } {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(()),
            other => other.map(drop),
        }
    }

    /// Whether [`ReceiveRing::drain`] would report something. Any thread.
    pub fn has_completions(&mut self) -> bool {
        !self.ring.completion().is_empty()
    }

    /// Reports the completions that are there: whose, what, and whether the
    /// receive goes on. Memory only; any thread. Returns how many there were.
    pub fn drain(&mut self, mut take: impl FnMut(u64, Received<'_>, bool)) -> usize {
        let mut count = 0;
        for entry in self.ring.completion() {
            if entry.user_data() == NOBODY {
                continue;
            }
            count += 1;
            let buffer = cqueue::buffer_select(entry.flags());
            let received = match (entry.result(), buffer) {
                (len @ 1.., Some(buffer)) => Received::Bytes(self.buffers.take(buffer, len as usize)),
                (0.., _) => Received::End,
                (error, _) if -error == libc::ENOBUFS => Received::NoBuffers,
                (error, _) => Received::Failed(-error),
            };
            take(entry.user_data(), received, cqueue::more(entry.flags()));
            // What is left of a buffer the kernel fills next.
            if let Some(buffer) = buffer
                && !cqueue::buffer_more(entry.flags())
            {
                self.buffers.provide(buffer);
            }
        }
        count
    }

    #[inline]
    fn is_due(&mut self) -> bool {
        let queue = self.ring.submission();
        queue.taskrun() || queue.cq_overflow()
    }
}

/// The calling thread, asked for in every poll: std's own way would take and give
/// back a reference to the thread each time.
#[inline]
fn this_thread() -> ThreadId {
    thread_local! {
        static ME: ThreadId = std::thread::current().id();
    }
    ME.with(|me| *me)
}

/// `IORING_ENTER_GETEVENTS`, which the crate keeps to itself.
const ENTER_GETEVENTS: u32 = 1;

/// `IOU_PBUF_RING_INC`, likewise.
const BUFFERS_INCREMENTAL: u16 = 2;

/// The provided buffers and the ring that offers them to the kernel.
struct Buffers {
    entries: NonNull<BufRingEntry>,
    memory: NonNull<u8>,
    count: u16,
    each: u32,
    tail: u16,
    /// Bytes of each buffer that were filled since it was provided.
    filled: Vec<u32>,
}

// SAFETY: the memory is this value's own; other writers are the kernel only,
// within calls on the ring that the value goes along with.
unsafe impl Send for Buffers {}

impl Buffers {
    fn new(count: u16, each: u32) -> io::Result<Buffers> {
        if !count.is_power_of_two() || each == 0 {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let layout = Buffers::entries_layout(count);
        // SAFETY: the layout has a size, since `count` is not 0.
        let entries = NonNull::new(unsafe { alloc_zeroed(layout) }).unwrap_or_else(|| handle_alloc_error(layout));
        let layout = Buffers::memory_layout(count, each);
        // SAFETY: as above, and `each` is not 0.
        let memory = NonNull::new(unsafe { alloc_zeroed(layout) }).unwrap_or_else(|| handle_alloc_error(layout));
        Ok(Buffers { entries: entries.cast(), memory, count, each, tail: 0, filled: vec![0; usize::from(count)] })
    }

    fn entries_layout(count: u16) -> Layout {
        Layout::from_size_align(usize::from(count) * size_of::<BufRingEntry>(), 4096).expect("a page is a power of two")
    }

    fn memory_layout(count: u16, each: u32) -> Layout {
        Layout::from_size_align(usize::from(count) * each as usize, 4096).expect("a page is a power of two")
    }

    /// What the kernel has put into a buffer, behind what it put there before.
    fn take(&mut self, buffer: u16, len: usize) -> &[u8] {
        let known = self.filled.get_mut(usize::from(buffer));
        let filled = known.unwrap_or_else(|| panic!("the kernel names buffer {buffer} of {}", self.count));
        let start = *filled as usize;
        assert!(len <= self.each as usize - start, "the kernel says that {len} bytes follow {start} of {}", self.each);
        *filled += len as u32;
        // SAFETY: within the memory (asserted), zeroed at first; the kernel
        // writes a part of it only while that is provided, which these bytes
        // are not between their completion and `provide`.
        unsafe {
            let start = self.memory.as_ptr().add(usize::from(buffer) * self.each as usize + start);
            std::slice::from_raw_parts(start, len)
        }
    }

    /// Offers a buffer to the kernel (again).
    fn provide(&mut self, buffer: u16) {
        self.filled[usize::from(buffer)] = 0;
        let slot = usize::from(self.tail & (self.count - 1));
        self.tail = self.tail.wrapping_add(1);
        // SAFETY: the slot lies within the entries; the kernel does not read
        // it before the tail is past it. `set_*` leaves the word alone that is
        // the tail in the first entry. That word is 16 bits, aligned, lives as
        // long as the entries, and this is its only writer.
        unsafe {
            let entry = &mut *self.entries.as_ptr().add(slot);
            entry.set_addr(self.memory.as_ptr() as u64 + u64::from(buffer) * u64::from(self.each));
            entry.set_len(self.each);
            entry.set_bid(buffer);
            let tail = BufRingEntry::tail(self.entries.as_ptr()).cast_mut();
            AtomicU16::from_ptr(tail).store(self.tail, Ordering::Release);
        }
    }
}

impl Drop for Buffers {
    fn drop(&mut self) {
        // SAFETY: made by `new` with these layouts. The ring was closed before;
        // what it still had under way could write only within a call of the
        // owner on the ring (deferred task work), and there can be none now.
        unsafe {
            dealloc(self.entries.as_ptr().cast(), Buffers::entries_layout(self.count));
            dealloc(self.memory.as_ptr(), Buffers::memory_layout(self.count, self.each));
        }
    }
}

/// What io_uring offers to this process, each found out once by use; if not,
/// why.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Features {
    /// io_uring itself.
    pub ring: Result<(), String>,
    /// Work that is done within the owner's calls only.
    pub deferred_work: Result<(), String>,
    /// Buffers that the kernel picks from.
    pub buffer_rings: Result<(), String>,
    /// A receive that goes on.
    pub multishot: Result<(), String>,
    /// Buffers that several receives fill. Done without where it is missing.
    pub incremental: Result<(), String>,
}

impl Features {
    /// Those of this system.
    pub fn here() -> &'static Features {
        static PROBE: OnceLock<Features> = OnceLock::new();
        PROBE.get_or_init(|| {
            let tell = |result: io::Result<()>| result.map_err(|error| explain(&error));
            Features {
                ring: tell(IoUring::new(2).map(drop)),
                deferred_work: tell(ReceiveRing::without_buffers(2, 4096).map(drop)),
                buffer_rings: tell(ReceiveRing::new(2, 4096, false).map(drop)),
                multishot: tell(try_receiving(false)),
                incremental: tell(try_receiving(true)),
            }
        })
    }

    /// Whether there is what this module cannot do without.
    pub fn suffice(&self) -> Result<(), String> {
        let Features { ring, deferred_work, buffer_rings, multishot, incremental: _ } = self.clone();
        ring.and(deferred_work).and(buffer_rings).and(multishot)
    }
}

/// Whether two receives by one request come, in one buffer or in two.
fn try_receiving(incremental: bool) -> io::Result<()> {
    let (near, far) = std::os::unix::net::UnixStream::pair()?;
    let mut ring = ReceiveRing::new(2, 4096, incremental)?;
    ring.receive(&near, 7)?;
    let mut received = Vec::new();
    for part in [b"pro", b"be."] {
        rustix::io::write(&far, part)?;
        ring.progress()?;
        ring.drain(|token, what, more| match what {
            Received::Bytes(bytes) if token == 7 && more => received.extend_from_slice(bytes),
            _ => received.clear(),
        });
    }
    let in_one = ring.buffers.filled[0] == 6;
    near.shutdown(std::net::Shutdown::Both)?;
    match received == b"probe." && in_one == incremental {
        true => Ok(()),
        false => Err(io::Error::other("multishot receive does not work")),
    }
}

pub(super) fn explain(error: &io::Error) -> String {
    let setting = std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled").unwrap_or_default();
    match error.raw_os_error() {
        Some(libc::ENOSYS) => "this kernel has no io_uring, or a sandbox hides it".into(),
        Some(libc::EPERM | libc::EACCES) if !matches!(setting.trim(), "" | "0") => {
            format!("io_uring is forbidden by kernel.io_uring_disabled={}", setting.trim())
        }
        Some(libc::EPERM | libc::EACCES) => "io_uring is forbidden, as container runtimes do (seccomp)".into(),
        Some(libc::EINVAL) => "this kernel's io_uring lacks something; Linux 6.1 has all that is needed, 6.12 all of use".into(),
        Some(libc::ENOMEM) => "no memory for io_uring: raise the limit of locked memory (ulimit -l)".into(),
        _ => format!("io_uring does not work: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::unix::net::UnixStream;

    #[test]
    fn a_refusal_says_what_refuses() {
        assert!(explain(&io::Error::from_raw_os_error(libc::ENOSYS)).contains("no io_uring"));
        assert!(explain(&io::Error::from_raw_os_error(libc::EPERM)).contains("forbidden"));
        assert!(explain(&io::Error::from_raw_os_error(libc::EINVAL)).contains("6.1"));
        assert!(explain(&io::Error::from_raw_os_error(libc::EIO)).contains("does not work"));
    }

    #[test]
    fn small_receives_share_a_buffer_where_that_is_possible() {
        if Features::here().suffice().and(Features::here().incremental.clone()).is_err() {
            return;
        }
        let (near, mut far) = UnixStream::pair().unwrap();
        let mut ring = ReceiveRing::new(2, 4096, true).unwrap();
        ring.receive(&near, 1).unwrap();
        let (mut all, mut sent) = (Vec::new(), Vec::new());
        for i in 0..100_u8 {
            far.write_all(&[i; 77]).unwrap();
            sent.extend_from_slice(&[i; 77]);
            ring.progress().unwrap();
            // Left for later, now and then, as a busy rank leaves it.
            if i % 7 == 0 {
                ring.drain(|_, what, _| match what {
                    Received::Bytes(bytes) => all.extend_from_slice(bytes),
                    other => panic!("{other:?}"),
                });
            }
        }
        ring.drain(|_, what, _| if let Received::Bytes(bytes) = what { all.extend_from_slice(bytes) });
        assert!(all == sent);
    }

    #[test]
    fn a_cancelled_receive_says_so_after_its_bytes() {
        if Features::here().suffice().is_err() {
            return;
        }
        let (near, mut far) = UnixStream::pair().unwrap();
        let mut ring = ReceiveRing::new(2, 64, false).unwrap();
        ring.receive(&near, 3).unwrap();
        far.write_all(b"before").unwrap();
        ring.progress().unwrap();
        far.write_all(b", left").unwrap();
        ring.cancel(3).unwrap();
        let (mut bytes, mut ended) = (Vec::new(), false);
        while !ended {
            ring.progress().unwrap();
            ring.drain(|token, what, more| {
                assert!(token == 3 && !ended);
                match what {
                    Received::Bytes(more) => bytes.extend_from_slice(more),
                    what => assert_eq!(what, Received::Failed(libc::ECANCELED)),
                }
                ended = !more;
            });
        }
        // What it has not taken is still in the socket, for anybody.
        near.set_nonblocking(true).unwrap();
        let mut rest = [0; 64];
        let left = std::io::Read::read(&mut &near, &mut rest).unwrap_or(0);
        bytes.extend_from_slice(&rest[..left]);
        assert_eq!(bytes, b"before, left");
        // Nothing to cancel is no error.
        ring.cancel(3).unwrap();
        ring.progress().unwrap();
        assert_eq!(ring.drain(|token, _, _| panic!("{token}")), 0);
    }

    #[test]
    fn buffers_run_out_and_come_back() {
        for incremental in [false, true] {
            if Features::here().suffice().is_ok() && (!incremental || Features::here().incremental.is_ok()) {
                run_out_and_come_back(incremental);
            }
        }
    }

    fn run_out_and_come_back(incremental: bool) {
        let (near, mut far) = UnixStream::pair().unwrap();
        let mut ring = ReceiveRing::new(2, 8, incremental).unwrap();
        ring.receive(&near, 1).unwrap();
        far.write_all(b"0123456789abcdef and more").unwrap();
        let (mut all, mut ran_out) = (Vec::new(), 0);
        while all.len() < 25 {
            ring.progress().unwrap();
            let mut stopped = false;
            ring.drain(|_, what, more| {
                match what {
                    Received::Bytes(bytes) => all.extend_from_slice(bytes),
                    Received::NoBuffers => ran_out += 1,
                    other => panic!("{other:?}"),
                }
                stopped |= !more;
            });
            if stopped {
                ring.receive(&near, 1).unwrap();
            }
        }
        assert_eq!(all, b"0123456789abcdef and more");
        assert!(ran_out > 0, "two buffers hold 16 bytes");
        drop(far);
        let mut ended = false;
        while !ended {
            ring.progress().unwrap();
            ring.drain(|_, what, more| ended = what == Received::End && !more);
        }
    }
}
