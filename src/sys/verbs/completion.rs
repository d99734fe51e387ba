//! Where work requests are reported as done.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::Arc;

use super::adapter::Adapter;
use super::{check, ffi, non_null};

/// Completions taken with one call.
const BATCH: usize = 32;

/// A queue of completions, and a descriptor to sleep on.
pub struct CompletionQueue {
    pub(super) inner: Arc<Inner>,
}

/// The queue itself, kept by what reports to it.
pub(super) struct Inner {
    pub(super) queue: NonNull<ffi::ibv_cq>,
    channel: NonNull<ffi::ibv_comp_channel>,
    pub(super) adapter: Arc<Adapter>,
}

// SAFETY: completion queues and channels may be used from any thread; the
// library locks.
unsafe impl Send for Inner {}
// SAFETY: as above.
unsafe impl Sync for Inner {}

/// One work request that is done.
#[derive(Debug)]
pub struct Completion {
    pub(super) owner: u32,
    pub(super) number: u32,
    status: u32,
    pair: u32,
    bytes: u32,
    immediate: Option<u32>,
}

impl CompletionQueue {
    /// A queue with room for `entries` at least.
    pub fn new(adapter: &Arc<Adapter>, entries: u32) -> io::Result<CompletionQueue> {
        let verbs = adapter.verbs;
        // SAFETY: the context is open.
        let channel = non_null(unsafe { (verbs.ibv_create_comp_channel)(adapter.context.as_ptr()) })?;
        // SAFETY: the context is open, the channel was made above, no cookie.
        let queue = unsafe {
            let context = adapter.context.as_ptr();
            (verbs.ibv_create_cq)(context, entries as i32, std::ptr::null_mut(), channel.as_ptr(), 0)
        };
        let queue = match non_null(queue) {
            Ok(queue) => queue,
            Err(error) => {
                // SAFETY: made above; nothing uses it.
                unsafe { (verbs.ibv_destroy_comp_channel)(channel.as_ptr()) };
                return Err(error);
            }
        };
        let inner = Inner { queue, channel, adapter: adapter.clone() };
        rustix::io::ioctl_fionbio(inner.fd(), true)?;
        Ok(CompletionQueue { inner: Arc::new(inner) })
    }

    /// Takes some of the completions that are there; fewer than [`Self::BATCH`]
    /// means that there are no more now.
    #[inline]
    pub fn poll(&mut self, into: &mut Vec<Completion>) -> io::Result<usize> {
        let mut entries = [const { MaybeUninit::<ffi::ibv_wc>::uninit() }; BATCH];
        let queue = self.inner.queue.as_ptr();
        // SAFETY: the queue lives; its context has the provider's functions, of
        // which this one is never absent. It writes at most BATCH entries.
        let count = unsafe {
            let poll = (*(*queue).context).ops.poll_cq.expect("every provider polls");
            poll(queue, BATCH as i32, entries.as_mut_ptr().cast())
        };
        if count < 0 {
            return Err(io::Error::other("the completion queue is broken"));
        }
        for entry in &entries[..count as usize] {
            // SAFETY: one of the entries that were written.
            let entry = unsafe { entry.assume_init_ref() };
            let is_immediate = entry.status == ffi::IBV_WC_SUCCESS && entry.wc_flags & ffi::IBV_WC_WITH_IMM != 0;
            // SAFETY: both members are 32-bit numbers.
            let immediate = unsafe { entry.__bindgen_anon_1.imm_data };
            into.push(Completion {
                owner: (entry.wr_id >> 32) as u32,
                number: entry.wr_id as u32,
                status: entry.status,
                pair: entry.qp_num,
                bytes: entry.byte_len,
                immediate: is_immediate.then(|| u32::from_be(immediate)),
            });
        }
        Ok(count as usize)
    }

    /// As many as one [`CompletionQueue::poll`] takes.
    pub const BATCH: usize = BATCH;

    /// Makes the descriptor readable at the next completion. One that came
    /// before is not told: poll after this.
    pub fn arm(&mut self) -> io::Result<()> {
        let queue = self.inner.queue.as_ptr();
        // SAFETY: as in `poll`.
        check(unsafe {
            let notify = (*(*queue).context).ops.req_notify_cq.expect("every provider notifies");
            notify(queue, 0)
        })
    }

    /// Empties the descriptor.
    pub fn disarm(&mut self) {
        let Inner { queue, channel, adapter } = &*self.inner;
        let (mut whose, mut cookie) = (std::ptr::null_mut(), std::ptr::null_mut());
        let mut events = 0;
        // SAFETY: the channel lives and does not block; the queue is the only
        // one that it serves, so all events are the queue's, and every one that
        // was got is acknowledged.
        unsafe {
            while (adapter.verbs.ibv_get_cq_event)(channel.as_ptr(), &raw mut whose, &raw mut cookie) == 0 {
                events += 1;
            }
            (adapter.verbs.ibv_ack_cq_events)(queue.as_ptr(), events);
        }
    }
}

impl AsFd for CompletionQueue {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inner.fd()
    }
}

impl Completion {
    /// The queue pair that it happened on.
    pub fn pair(&self) -> u32 {
        self.pair
    }

    /// Whether the work was done.
    pub fn is_ok(&self) -> bool {
        self.status == ffi::IBV_WC_SUCCESS
    }

    /// Whether it was not tried because the queue pair had failed before.
    pub fn is_flushed(&self) -> bool {
        self.status == ffi::IBV_WC_WR_FLUSH_ERR
    }

    /// Whether the peer refused memory that was named.
    pub fn is_remote_access(&self) -> bool {
        self.status == ffi::IBV_WC_REM_ACCESS_ERR
    }

    /// Whether the peer did not answer.
    pub fn is_silence(&self) -> bool {
        matches!(self.status, ffi::IBV_WC_RETRY_EXC_ERR | ffi::IBV_WC_RESP_TIMEOUT_ERR)
    }

    /// What the status means.
    pub fn text(&self, adapter: &Adapter) -> String {
        adapter.status_text(self.status)
    }

    /// For a receive: how many bytes came.
    pub fn bytes(&self) -> u32 {
        self.bytes
    }

    /// For a receive: the number that came with a write.
    pub fn immediate(&self) -> Option<u32> {
        self.immediate
    }
}

impl Inner {
    fn fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor is open as long as the channel, which `self`
        // destroys when it is dropped.
        unsafe { BorrowedFd::borrow_raw((*self.channel.as_ptr()).fd) }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // SAFETY: made by `new`, destroyed once; everything that reports to the
        // queue keeps an `Arc` of this value, so nothing does any more, and all
        // events were acknowledged.
        unsafe {
            (self.adapter.verbs.ibv_destroy_cq)(self.queue.as_ptr());
            (self.adapter.verbs.ibv_destroy_comp_channel)(self.channel.as_ptr());
        }
    }
}
