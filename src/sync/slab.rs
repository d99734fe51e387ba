//! Memory for task frames: per-thread free lists by size class, so that a
//! task in steady state costs no heap allocation and touches no shared line.
//!
//! A frame may be freed on another thread than it was made on. Lists that grow
//! past [`KEEP`] give half of themselves to a shared pool under a lock, and
//! empty ones take a batch from it: the lock is amortised over a batch. Memory
//! goes back to the allocator only with the process. Under loom every request
//! goes to the allocator, so that loom sees each object once.

use std::alloc::{Layout, handle_alloc_error};
use std::cell::Cell;
use std::ptr::NonNull;
use std::sync::Mutex;

/// Size classes: multiples of a cache line.
const CLASS_BYTES: usize = 64;
const CLASSES: usize = 8;
/// Frames of one class that a thread keeps before it gives half away.
const KEEP: usize = 2048;
/// Frames taken from the heap, or from the pool, at once.
const BATCH: usize = 64;

struct Free {
    next: *mut Free,
}

/// A thread's free frames of one size class.
struct List {
    head: Cell<*mut Free>,
    len: Cell<usize>,
}

thread_local! {
    static LISTS: [List; CLASSES] =
        const { [const { List { head: Cell::new(std::ptr::null_mut()), len: Cell::new(0) } }; CLASSES] };
}

/// A chain of free frames on its way between threads.
struct Batch(*mut Free, usize);
// SAFETY: free memory has no owner and no content.
unsafe impl Send for Batch {}

static POOL: [Mutex<Vec<Batch>>; CLASSES] = [const { Mutex::new(Vec::new()) }; CLASSES];

/// The calling thread's list of a class, for use before the thread ends. A
/// closure this small is inlined with its caller, the thread-local with it.
#[inline(always)]
fn list(class: usize) -> *const List {
    LISTS.with(|lists| &raw const lists[class])
}

/// Memory for `layout`, uninitialised.
#[inline(always)]
pub(super) fn allocate(layout: Layout) -> NonNull<u8> {
    let Some(class) = class_of(layout) else { return from_heap(layout) };
    // SAFETY: a thread-local without a destructor lives as long as its thread,
    // which is this one.
    let list = unsafe { &*list(class) };
    let head = list.head.get();
    if head.is_null() {
        return refill(list, class);
    }
    // SAFETY: the list holds free frames of this class, each at least a pointer
    // long, written by `free` or `refill`.
    list.head.set(unsafe { (*head).next });
    list.len.set(list.len.get() - 1);
    // SAFETY: not null, checked above.
    unsafe { NonNull::new_unchecked(head.cast()) }
}

/// Takes back what `allocate` gave for the same layout.
///
/// # Safety
/// `memory` came from `allocate(layout)` and is not used any more.
#[inline(always)]
pub(super) unsafe fn free(memory: NonNull<u8>, layout: Layout) {
    let Some(class) = class_of(layout) else {
        // SAFETY: large layouts come from the heap with this very layout.
        return unsafe { std::alloc::dealloc(memory.as_ptr(), layout) };
    };
    // SAFETY: as in `allocate`.
    let list = unsafe { &*list(class) };
    let frame = memory.cast::<Free>().as_ptr();
    // SAFETY: the caller gives the memory up; it is large enough.
    unsafe { (*frame).next = list.head.get() };
    list.head.set(frame);
    list.len.set(list.len.get() + 1);
    if list.len.get() > KEEP {
        give(list, class, KEEP / 2);
    }
}

/// Gives this thread's free frames to the others; for a thread about to end.
pub fn flush_thread() {
    LISTS.with(|lists| {
        for (class, list) in lists.iter().enumerate() {
            give(list, class, list.len.get());
        }
    });
}

#[inline(always)]
fn class_of(layout: Layout) -> Option<usize> {
    let fits = layout.size() <= CLASS_BYTES * CLASSES && layout.align() <= CLASS_BYTES && layout.size() > 0;
    (fits && !cfg!(loom)).then(|| (layout.size() - 1) / CLASS_BYTES)
}

fn from_heap(layout: Layout) -> NonNull<u8> {
    // SAFETY: frames have a header, so the size is not zero.
    NonNull::new(unsafe { std::alloc::alloc(layout) }).unwrap_or_else(|| handle_alloc_error(layout))
}

#[cold]
fn refill(list: &List, class: usize) -> NonNull<u8> {
    let batch = POOL[class].lock().unwrap_or_else(|e| e.into_inner()).pop();
    let Batch(head, len) = batch.unwrap_or_else(|| carve(class));
    // SAFETY: a batch has at least one frame.
    list.head.set(unsafe { (*head).next });
    list.len.set(len - 1);
    // SAFETY: as above, so not null.
    unsafe { NonNull::new_unchecked(head.cast()) }
}

/// A fresh batch from the heap, for good.
fn carve(class: usize) -> Batch {
    let bytes = CLASS_BYTES * (class + 1);
    let layout = Layout::from_size_align(bytes * BATCH, CLASS_BYTES).expect("a few tens of KiB");
    let chunk = from_heap(layout);
    let mut head = std::ptr::null_mut();
    for i in (0..BATCH).rev() {
        // SAFETY: frame `i` lies within the chunk of `BATCH` frames.
        unsafe {
            let frame = chunk.add(i * bytes).cast::<Free>().as_ptr();
            (*frame).next = head;
            head = frame;
        }
    }
    Batch(head, BATCH)
}

#[cold]
fn give(list: &List, class: usize, count: usize) {
    let mut left = count;
    while left > 0 {
        let len = left.min(BATCH);
        let head = list.head.get();
        let mut last = head;
        for _ in 1..len {
            // SAFETY: the list has at least `count` frames.
            last = unsafe { (*last).next };
        }
        // SAFETY: `last` is a frame of the list; what follows it stays ours.
        list.head.set(unsafe { std::mem::replace(&mut (*last).next, std::ptr::null_mut()) });
        list.len.set(list.len.get() - len);
        POOL[class].lock().unwrap_or_else(|e| e.into_inner()).push(Batch(head, len));
        left -= len;
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn freed_frames_are_used_again_and_wander_between_threads() {
        let layout = Layout::from_size_align(100, 16).unwrap();
        let a = allocate(layout);
        // SAFETY: allocated just above and not used.
        unsafe { free(a, layout) };
        assert_eq!(allocate(layout), a);

        let made: Vec<usize> = (0..3 * KEEP).map(|_| allocate(layout).as_ptr() as usize).collect();
        let distinct: std::collections::HashSet<_> = made.iter().collect();
        assert_eq!(distinct.len(), made.len());
        std::thread::spawn(move || {
            for address in made {
                // SAFETY: allocated above with the same layout, moved here whole.
                unsafe { free(NonNull::new(address as *mut u8).unwrap(), layout) };
            }
            flush_thread();
        })
        .join()
        .unwrap();
        let class = class_of(layout).unwrap();
        assert!(POOL[class].lock().unwrap().len() >= 2 * KEEP / BATCH);
    }
}
