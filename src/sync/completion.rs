//! The word that says whether a result is there, and who waits for it.
//!
//! # Protocol
//! One pointer: null (nobody waits), a list of waiters (last in, first out),
//! or the mark `DONE`. It becomes `DONE` once and stays so.
//!
//! * **register** pushes a waiter by compare-exchange, or finds `DONE` and
//!   hands the waiter back: a waiter is either in the list that `complete`
//!   takes, or refused, never both and never neither.
//! * **complete** swaps in `DONE` with `AcqRel`: what the completer wrote
//!   before it (the result) is visible to whoever reads `DONE` with `Acquire`,
//!   and the waiters' nodes, published by `Release`, are visible to it. It then
//!   calls the waiters in the order they came (those that a sweep kept, in
//!   reverse).
//!
//! The list's nodes belong to the word from the push until the swap and to
//! `complete` afterwards, so nobody follows a freed node. What is absent:
//! removal. A waiter that no longer cares stays in the list as a closure that
//! does nothing; [`Completion::sweep`] drops those.

use std::alloc::Layout;
use std::ptr::NonNull;

use super::shim::{AtomicPtr, Ordering};
use super::slab;

/// Somebody who waits.
pub trait Wait: Send + 'static {
    /// The result is there.
    fn wake(self);

    /// Whether being woken would still do something.
    fn cares(&self) -> bool {
        true
    }
}

impl<F: FnOnce() + Send + 'static> Wait for F {
    fn wake(self) {
        self();
    }
}

/// A [`Wait`] of any type: what is woken, once, when the result is there. It is
/// the node of the list that it will be in, so waiting costs one piece of
/// memory, and that from the thread's own lists.
pub struct Wake(NonNull<Node>);

// SAFETY: what is in the node is `Send` (by `Wait`), and the wake owns it.
unsafe impl Send for Wake {}

#[repr(C)]
struct Node {
    next: *mut Node,
    vtable: &'static VTable,
}

#[repr(C)]
struct NodeOf<W> {
    node: Node,
    wait: W,
}

/// What to do with a node whose type is forgotten. Each function but `cares`
/// ends the node.
struct VTable {
    wake: unsafe fn(NonNull<Node>),
    drop: unsafe fn(NonNull<Node>),
    cares: unsafe fn(NonNull<Node>) -> bool,
}

impl Wake {
    /// Wraps somebody who waits.
    pub fn new<W: Wait>(wait: W) -> Wake {
        let memory = slab::allocate(Layout::new::<NodeOf<W>>()).cast::<NodeOf<W>>();
        let node = Node { next: std::ptr::null_mut(), vtable: &NodeOf::<W>::VTABLE };
        // SAFETY: fresh memory of this layout.
        unsafe { memory.write(NodeOf { node, wait }) };
        Wake(memory.cast())
    }

    /// Wakes.
    pub fn wake(self) {
        let node = self.0;
        std::mem::forget(self);
        // SAFETY: the wake owned the node and is gone.
        unsafe { (node.as_ref().vtable.wake)(node) }
    }

    fn cares(&self) -> bool {
        // SAFETY: the wake owns the node.
        unsafe { (self.0.as_ref().vtable.cares)(self.0) }
    }

    /// Gives the node to a list.
    fn into_raw(self) -> *mut Node {
        let node = self.0.as_ptr();
        std::mem::forget(self);
        node
    }

    /// Takes a node out of a list, with the one that follows it.
    ///
    /// # Safety
    /// `node` came from `into_raw` and is used for this once.
    unsafe fn from_raw(node: *mut Node) -> (Wake, *mut Node) {
        // SAFETY: the caller's promise.
        unsafe { (Wake(NonNull::new_unchecked(node)), (*node).next) }
    }
}

impl Drop for Wake {
    fn drop(&mut self) {
        // SAFETY: the wake owns the node and is not used after.
        unsafe { (self.0.as_ref().vtable.drop)(self.0) }
    }
}

impl<W: Wait> NodeOf<W> {
    const VTABLE: VTable = VTable {
        // SAFETY: see `take`.
        wake: |node| unsafe { NodeOf::<W>::take(node) }.wake(),
        // SAFETY: see `take`.
        drop: |node| drop(unsafe { NodeOf::<W>::take(node) }),
        // SAFETY: the node is alive and of this type.
        cares: |node| unsafe { node.cast::<NodeOf<W>>().as_ref() }.wait.cares(),
    };

    /// Moves the content out and frees the memory.
    ///
    /// # Safety
    /// The node is of this type, alive, and not used after.
    unsafe fn take(node: NonNull<Node>) -> W {
        let node = node.cast::<NodeOf<W>>();
        // SAFETY: the caller's promise; the layout is that of `Wake::new`.
        unsafe {
            let wait = node.read().wait;
            slab::free(node.cast(), Layout::new::<NodeOf<W>>());
            wait
        }
    }
}

/// See the module.
pub struct Completion {
    head: AtomicPtr<Node>,
}

// SAFETY: the nodes are owned by the word and hold `Send` content only.
unsafe impl Send for Completion {}
// SAFETY: all shared access is through the atomic word.
unsafe impl Sync for Completion {}

/// An address that no node has: nodes are aligned to more than one byte.
const DONE: *mut Node = std::ptr::without_provenance_mut(1);

impl Completion {
    /// Not done, nobody waits.
    #[inline]
    pub fn new() -> Completion {
        Completion { head: AtomicPtr::new(std::ptr::null_mut()) }
    }

    /// Done from the start.
    pub fn done() -> Completion {
        Completion { head: AtomicPtr::new(DONE) }
    }

    /// Whether the result is there; if so, it is visible to the caller.
    #[inline]
    pub fn is_done(&self) -> bool {
        self.head.load(Ordering::Acquire) == DONE
    }

    /// Has `wake` called at completion, or hands it back if that has been.
    pub fn register(&self, wake: Wake) -> Result<(), Wake> {
        let node = wake.into_raw();
        let mut head = self.head.load(Ordering::Acquire);
        loop {
            if head == DONE {
                // SAFETY: the node was not published, so it is still ours.
                return Err(unsafe { Wake::from_raw(node) }.0);
            }
            // SAFETY: as above.
            unsafe { (*node).next = head };
            match self.head.compare_exchange_weak(head, node, Ordering::Release, Ordering::Acquire) {
                Ok(_) => return Ok(()),
                Err(now) => head = now,
            }
        }
    }

    /// Publishes the result and wakes everybody. Called once.
    #[inline]
    pub fn complete(&self) {
        let list = self.head.swap(DONE, Ordering::AcqRel);
        debug_assert!(list != DONE, "completed twice");
        if !list.is_null() {
            Completion::wake_all(list);
        }
    }

    #[inline(never)]
    fn wake_all(mut list: *mut Node) {
        let mut in_order = std::ptr::null_mut();
        while !list.is_null() {
            // SAFETY: the swap gave us the whole list; every node in it came
            // from `Wake::into_raw` and is in it once.
            unsafe {
                let next = (*list).next;
                (*list).next = in_order;
                in_order = list;
                list = next;
            }
        }
        while !in_order.is_null() {
            // SAFETY: as above; each node is taken once.
            let (wake, next) = unsafe { Wake::from_raw(in_order) };
            in_order = next;
            wake.wake();
        }
    }

    /// Drops the waiters that no longer care. For waits that can time out.
    pub fn sweep(&self) {
        let head = self.head.load(Ordering::Acquire);
        if head == DONE || head.is_null() {
            return;
        }
        let mut list = match self.head.compare_exchange(head, std::ptr::null_mut(), Ordering::AcqRel, Ordering::Relaxed)
        {
            Ok(list) => list,
            Err(_) => return,
        };
        while !list.is_null() {
            // SAFETY: the exchange gave us the list, as in `complete`.
            let (wake, next) = unsafe { Wake::from_raw(list) };
            list = next;
            if wake.cares()
                && let Err(wake) = self.register(wake)
            {
                wake.wake();
            }
        }
    }
}

impl Default for Completion {
    fn default() -> Self {
        Completion::new()
    }
}

impl Drop for Completion {
    #[inline]
    fn drop(&mut self) {
        let list = self.head.load(Ordering::Acquire);
        if list != DONE && !list.is_null() {
            drop_list(list);
        }
    }
}

/// Drops the nodes of a list that the caller took.
#[cold]
fn drop_list(mut list: *mut Node) {
    while !list.is_null() {
        // SAFETY: nobody else has the word any more, so the list is ours.
        let (wake, next) = unsafe { Wake::from_raw(list) };
        list = next;
        drop(wake);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sync::shim::{Arc, AtomicUsize, thread};

    fn counting(counter: &Arc<AtomicUsize>) -> Wake {
        let counter = counter.clone();
        Wake::new(move || {
            counter.fetch_add(1, Ordering::SeqCst);
        })
    }

    /// A registration that races with the completion is woken exactly once.
    fn race() {
        let word = Arc::new(Completion::new());
        let woken = Arc::new(AtomicUsize::new(0));
        let waiter = {
            let (word, woken) = (word.clone(), woken.clone());
            thread::spawn(move || {
                if let Err(wake) = word.register(counting(&woken)) {
                    assert!(word.is_done());
                    wake.wake();
                }
            })
        };
        let second = {
            let (word, woken) = (word.clone(), woken.clone());
            thread::spawn(move || match word.register(counting(&woken)) {
                Ok(()) => word.sweep(),
                Err(wake) => wake.wake(),
            })
        };
        word.complete();
        waiter.join().unwrap();
        second.join().unwrap();
        assert_eq!(woken.load(Ordering::SeqCst), 2);
    }

    #[cfg(loom)]
    #[test]
    fn loom_nobody_is_forgotten() {
        let mut model = loom::model::Builder::new();
        model.preemption_bound = Some(3);
        model.check(race);
    }

    #[cfg(not(loom))]
    #[test]
    fn nobody_is_forgotten() {
        for _ in 0..500 {
            race();
        }
    }

    #[cfg(not(loom))]
    #[test]
    fn waiters_are_woken_in_order_and_the_careless_are_swept() {
        struct Careless(Arc<AtomicUsize>);
        impl Wait for Careless {
            fn wake(self) {
                self.0.fetch_add(100, Ordering::SeqCst);
            }
            fn cares(&self) -> bool {
                false
            }
        }
        let word = Completion::new();
        let sum = Arc::new(AtomicUsize::new(0));
        assert!(word.register(Wake::new(Careless(sum.clone()))).is_ok());
        assert!(word.register(counting(&sum)).is_ok());
        word.sweep();
        assert!(!word.is_done());
        word.complete();
        assert_eq!(sum.load(Ordering::SeqCst), 1);
        assert!(word.is_done() && word.register(counting(&sum)).is_err());
    }
}
