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
    buffer_bytes: usize,
    /// As many buffers as each was grown by; never given back before the end.
    chunks: Vec<Chunk>,
    /// Buffers that are to be offered again.
    waiting: Vec<u32>,
}

struct Chunk {
    memory: Memory,
    region: Arc<Region>,
    first: u32,
    count: u32,
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
    /// A queue that can hold `buffers`, and holds none.
    pub fn new(adapter: &Arc<Adapter>, buffers: u32, buffer_bytes: usize) -> io::Result<ReceiveQueue> {
        // SAFETY: all-zero bytes are valid: a null context and numbers.
        let mut attributes: ffi::ibv_srq_init_attr = unsafe { zeroed() };
        attributes.attr.max_wr = buffers;
        attributes.attr.max_sge = 1;
        // SAFETY: the domain lives with the adapter.
        let queue = unsafe { (adapter.verbs.ibv_create_srq)(adapter.domain.as_ptr(), &raw mut attributes) };
        let inner = Arc::new(Inner { queue: non_null(queue)?, adapter: adapter.clone() });
        Ok(ReceiveQueue { inner, owner: next_owner(), buffer_bytes, chunks: Vec::new(), waiting: Vec::new() })
    }

    /// Adds buffers and offers them to the card.
    pub fn grow(&mut self, count: u32) -> io::Result<()> {
        let region = Arc::new(Region::heap(count as usize * self.buffer_bytes));
        let memory = Memory::private(&self.inner.adapter, &region, 0..region.len())?;
        let first = self.chunks.last().map_or(0, |chunk| chunk.first + chunk.count);
        self.chunks.push(Chunk { memory, region, first, count });
        self.waiting.extend(first..first + count);
        self.flush()
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
        let (chunk, offset) = self.place(completion.number);
        // SAFETY: within the chunk's region: `place` says that the buffer lies
        // there, and the length was checked. The card wrote it and has given it
        // back: that is what a `Filled` stands for, and there is one at most for
        // each time, since it is made of the one completion. So nobody writes
        // it before `give_back`, which takes the `Filled`; and it is zeroed
        // where the card wrote nothing.
        unsafe { std::slice::from_raw_parts(chunk.region.base().as_ptr().add(offset), len) }
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
                let (chunk, offset) = self.place(*buffer);
                pieces[i] = ffi::ibv_sge {
                    addr: chunk.memory.address() + offset as u64,
                    length: self.buffer_bytes as u32,
                    lkey: chunk.memory.local_key(),
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
            check(unsafe {
                let post = (*(*queue).context).ops.post_srq_recv.expect("every provider with shared queues posts");
                post(queue, &raw mut requests[0], &raw mut bad)
            })?;
            self.waiting.truncate(from);
        }
        Ok(())
    }

    fn place(&self, buffer: u32) -> (&Chunk, usize) {
        let chunk = self.chunks.partition_point(|chunk| chunk.first + chunk.count <= buffer);
        let chunk = &self.chunks[chunk];
        (chunk, (buffer - chunk.first) as usize * self.buffer_bytes)
    }
}

impl Drop for ReceiveQueue {
    fn drop(&mut self) {
        // While a queue pair is left, the card may still fill buffers.
        if Arc::strong_count(&self.inner) > 1 {
            std::mem::forget(std::mem::take(&mut self.chunks));
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
