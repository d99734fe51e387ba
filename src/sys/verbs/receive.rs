//! The receive queue that all queue pairs of a fabric share, with its buffers.

use std::io;
use std::mem::zeroed;
use std::ptr::{NonNull, null_mut};
use std::sync::Arc;

use super::adapter::Adapter;
use super::completion::Completion;
use super::memory::Memory;
use super::{check, ffi, next_owner, non_null, work_id};
use crate::mem::Region;

/// A shared receive queue and the buffers in it.
pub struct ReceiveQueue {
    pub(super) inner: Arc<Inner>,
    owner: u32,
    buffers: u32,
    buffer_bytes: usize,
    /// All buffers.
    memory: Memory,
    region: Arc<Region>,
    /// Buffers that are to be offered again.
    waiting: Vec<u32>,
}

/// The queue itself, kept by the queue pairs that receive from it.
pub(super) struct Inner {
    pub(super) queue: NonNull<ffi::ibv_srq>,
    adapter: Arc<Adapter>,
}

// SAFETY: a shared receive queue may be used from any thread.
unsafe impl Send for Inner {}
// SAFETY: as above.
unsafe impl Sync for Inner {}

/// A buffer that the card has given back, with the completion that says so.
#[derive(Debug)]
pub struct Filled(Completion);

impl Filled {
    /// What happened.
    #[inline]
    pub fn completion(&self) -> &Completion {
        &self.0
    }
}

impl ReceiveQueue {
    /// A queue with so many buffers, which are all offered to the card.
    pub fn new(adapter: &Arc<Adapter>, buffers: u32, buffer_bytes: usize) -> io::Result<ReceiveQueue> {
        // SAFETY: all-zero bytes are valid: a null context and numbers.
        let mut attributes: ffi::ibv_srq_init_attr = unsafe { zeroed() };
        attributes.attr.max_wr = buffers;
        attributes.attr.max_sge = 1;
        // SAFETY: the domain lives with the adapter.
        let queue = unsafe { (adapter.verbs.ibv_create_srq)(adapter.domain.as_ptr(), &raw mut attributes) };
        let inner = Arc::new(Inner { queue: non_null(queue)?, adapter: adapter.clone() });
        let region = Arc::new(Region::heap(buffers as usize * buffer_bytes));
        let memory = Memory::private(adapter, &region, 0..region.len())?;
        let waiting = (0..buffers).collect();
        let mut queue = ReceiveQueue { inner, owner: next_owner(), buffers, buffer_bytes, memory, region, waiting };
        queue.flush()?;
        Ok(queue)
    }

    /// The buffer that a completion is about, or the completion if it is about
    /// something else.
    #[inline]
    pub fn take(&self, completion: Completion) -> Result<Filled, Completion> {
        if completion.owner == self.owner { Ok(Filled(completion)) } else { Err(completion) }
    }

    /// What was received; nothing, if it failed.
    #[inline]
    pub fn bytes(&self, Filled(completion): &Filled) -> &[u8] {
        let len = if completion.is_ok() { completion.bytes() as usize } else { 0 };
        assert!(completion.owner == self.owner && len <= self.buffer_bytes, "a buffer of another queue");
        let offset = self.offset(completion.number);
        // SAFETY: within the region: `offset` says that the buffer lies there,
        // and the length was checked. The card wrote it and has given it
        // back: that is what a `Filled` stands for, and there is one at most for
        // each time, since it is made of the one completion. So nobody writes
        // it before `give_back`, which takes the `Filled`; and it is zeroed
        // where the card wrote nothing.
        unsafe { std::slice::from_raw_parts(self.region.base().as_ptr().add(offset), len) }
    }

    /// Lets the card have the buffer again at the next [`ReceiveQueue::flush`].
    #[inline]
    pub fn give_back(&mut self, Filled(completion): Filled) {
        assert_eq!(completion.owner, self.owner, "a buffer of another queue");
        self.waiting.push(completion.number);
    }

    /// Offers what was given back, with one call.
    pub fn flush(&mut self) -> io::Result<()> {
        const AT_ONCE: usize = 32;
        while !self.waiting.is_empty() {
            let from = self.waiting.len().saturating_sub(AT_ONCE);
            let count = self.waiting.len() - from;
            let mut pieces = [ffi::ibv_sge { addr: 0, length: 0, lkey: 0 }; AT_ONCE];
            // SAFETY: all-zero bytes are valid work requests: null and numbers.
            let mut requests: [ffi::ibv_recv_wr; AT_ONCE] = unsafe { zeroed() };
            for (i, buffer) in self.waiting[from..].iter().enumerate() {
                pieces[i] = ffi::ibv_sge {
                    addr: self.memory.address() + self.offset(*buffer) as u64,
                    length: self.buffer_bytes as u32,
                    lkey: self.memory.local_key(),
                };
                requests[i].wr_id = work_id(self.owner, *buffer);
                requests[i].sg_list = &raw mut pieces[i];
                requests[i].num_sge = 1;
            }
            for i in 0..count - 1 {
                requests[i].next = &raw mut requests[i + 1];
            }
            let queue = self.inner.queue.as_ptr();
            let mut bad = null_mut();
            // SAFETY: the list and its pieces live over the call, which copies
            // them. Each buffer lies in registered memory that lives until the
            // queue is destroyed (`drop`), and nobody refers to its bytes: it
            // is new or was given back.
            let offered = check(unsafe {
                let post = (*(*queue).context).ops.post_srq_recv.expect("every provider with shared queues posts");
                post(queue, &raw mut requests[0], &raw mut bad)
            });
            let taken = if offered.is_ok() { count } else { taken_before(&requests[..count], bad) };
            self.waiting.drain(from..from + taken);
            offered?;
        }
        Ok(())
    }

    fn offset(&self, buffer: u32) -> usize {
        assert!(buffer < self.buffers, "no buffer {buffer}");
        buffer as usize * self.buffer_bytes
    }
}

/// How many of the requests the card took before a bad one. Those that it took
/// must not be offered again, so without a word about that it took all.
fn taken_before(requests: &[ffi::ibv_recv_wr], bad: *const ffi::ibv_recv_wr) -> usize {
    requests.iter().position(|request| std::ptr::eq(request, bad)).unwrap_or(requests.len())
}

impl Drop for ReceiveQueue {
    fn drop(&mut self) {
        // While a queue pair is left, the card may still fill buffers.
        if Arc::strong_count(&self.inner) > 1 {
            std::mem::forget(self.region.clone());
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // SAFETY: made by `new`, destroyed once, and no queue pair uses it: each
        // keeps an `Arc` of this value.
        unsafe { (self.adapter.verbs.ibv_destroy_srq)(self.queue.as_ptr()) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_card_took_is_not_offered_again() {
        // SAFETY: all-zero bytes are valid work requests: null and numbers.
        let requests: [ffi::ibv_recv_wr; 4] = unsafe { zeroed() };
        for (i, bad) in requests.iter().enumerate() {
            assert_eq!(taken_before(&requests, bad), i);
        }
        assert_eq!(taken_before(&requests, std::ptr::null()), 4);
        assert_eq!(taken_before(&requests[..2], &requests[3]), 2);
    }
}
