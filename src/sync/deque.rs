//! The deque of a worker's runnable tasks: a bounded Chase-Lev deque.
//!
//! After D. Chase and Y. Lev, "Dynamic circular work-stealing deque", SPAA
//! 2005, in the memory-model form of N. M. Lê et al., "Correct and efficient
//! work-stealing for weak memory models", PPoPP 2013.
//!
//! # Protocol
//! The ring `slots` is indexed by two counters that only grow in effect:
//! `top`, where thieves take, and `bottom`, where the owner pushes and pops.
//! Items live in `top..bottom`.
//!
//! * Only the [`Owner`] writes `bottom` and the slots. Only a successful
//!   compare-exchange moves `top`, always by one, whoever does it.
//! * **push** writes the slot, then publishes it by a `Release` store of
//!   `bottom`; a thief that reads that `bottom` sees the slot.
//! * **pop** announces its claim by lowering `bottom`, then reads `top`. The
//!   store and the load, and the thieves' loads of `top` then `bottom`, are
//!   `SeqCst`: in their single order either the thief sees the lowered
//!   `bottom` and stays away, or the owner sees the raised `top`. Only when
//!   one item is left can both want it, and then both go through the
//!   compare-exchange on `top`, which one wins.
//! * **pop_second** lowers `bottom` by two, and else is a pop of the item at
//!   the new `bottom`; the newest item then moves down into that slot, which
//!   no thief can be reading: its `top` would have to equal that index, and by
//!   the argument above such a thief has seen the lowered `bottom`.
//! * **steal** reads the slot *before* its compare-exchange. The slot may be
//!   rewritten by a later push only once `top` has passed it, and then the
//!   compare-exchange fails and what was read is not used.
//! * A push into a full ring is refused, so `bottom - top <= slots`: a slot
//!   is rewritten only after `top` has passed it.
//!
//! Indices are `usize` counters that wrap; differences are taken as `isize`.
//!
//! # What the models check
//! The protocol uses the single order of `SeqCst` accesses for one thing only.
//! Let a pop lower `bottom` to `b` and then read `top`, and a steal read `top`
//! as `t` and then `bottom`. Then
//!
//! > **(D)** the steal reads `b` or what was stored after it, or the pop reads
//! > `t` or what was stored after it.
//!
//! *With `SeqCst` accesses*: if the pop does not see `t`, its load precedes, in
//! the single order, the exchange that stored `t`, which precedes the steal's
//! load of `t`, which precedes the steal's load of `bottom`; and the pop's
//! store precedes the pop's load. So the steal's load comes after the store.
//!
//! *With a `SeqCst` fence between the two accesses on each side*, as in the
//! paper: of the two fences one is first, and what precedes it is seen by what
//! follows the other.
//!
//! Loom treats a `SeqCst` access as `AcqRel`, under which (D) does not hold, so
//! under loom [`claim_fence`] is that fence. Elsewhere it is nothing: on x86-64
//! the store is then one `xchg`, where a store and a fence are two instructions
//! and a load gains nothing. Everything else is the same in both forms, and no
//! other step leans on the fence: a slot's content travels by the `Release`
//! stores of `bottom` and the acquiring loads of it, and `top` by its exchanges.
//!
//! What is deliberately absent: growth. A full deque hands the item back and
//! the worker puts it on the rank's shared queue.

use std::marker::PhantomData;
use std::ptr::NonNull;

use super::shim::{Arc, AtomicPtr, AtomicUsize, Ordering, fence};

/// An owned value that travels as one pointer.
///
/// # Safety
/// `from_raw(into_raw(x))` is `x`; the type may move between threads.
pub unsafe trait Token: Send {
    /// Gives up ownership for a pointer.
    fn into_raw(self) -> NonNull<()>;

    /// Takes ownership back.
    ///
    /// # Safety
    /// `raw` came from `into_raw` and is used for this once.
    unsafe fn from_raw(raw: NonNull<()>) -> Self;
}

struct Inner {
    top: Padded<AtomicUsize>,
    bottom: Padded<AtomicUsize>,
    slots: Box<[AtomicPtr<()>]>,
}

#[repr(align(128))]
struct Padded<T>(T);

/// The owner's end: push and pop, last in, first out. One thread at a time.
pub struct Owner<T: Token> {
    inner: Arc<Inner>,
    /// A lower bound of `top`, so that push need not read the thieves' line.
    top_seen: std::cell::Cell<usize>,
    _items: PhantomData<T>,
}

/// A thief's end: takes what was pushed first. May be cloned and shared.
pub struct Stealer<T: Token> {
    inner: Arc<Inner>,
    _items: PhantomData<fn() -> T>,
}

/// What came of an attempt to steal.
pub enum Steal<T> {
    /// An item.
    Got(T),
    /// There was none.
    Empty,
    /// Somebody else took it first; there may be more.
    Lost,
}

impl Inner {
    fn slot(&self, index: usize) -> &AtomicPtr<()> {
        &self.slots[index & (self.slots.len() - 1)]
    }
}

impl<T: Token> Owner<T> {
    /// An empty deque with room for `slots` items, a power of two.
    pub fn new(slots: usize) -> Owner<T> {
        assert!(slots.is_power_of_two());
        let inner = Arc::new(Inner {
            top: Padded(AtomicUsize::new(0)),
            bottom: Padded(AtomicUsize::new(0)),
            slots: (0..slots).map(|_| AtomicPtr::new(std::ptr::null_mut())).collect(),
        });
        Owner { inner, top_seen: std::cell::Cell::new(0), _items: PhantomData }
    }

    /// A thief's end of this deque.
    pub fn stealer(&self) -> Stealer<T> {
        Stealer { inner: self.inner.clone(), _items: PhantomData }
    }

    /// Adds an item at the owner's end, or hands it back if the deque is full.
    #[inline]
    pub fn push(&self, item: T) -> Result<(), T> {
        let inner = &*self.inner;
        let bottom = inner.bottom.0.load(Ordering::Relaxed);
        if bottom.wrapping_sub(self.top_seen.get()) >= inner.slots.len() {
            self.top_seen.set(inner.top.0.load(Ordering::Acquire));
            if bottom.wrapping_sub(self.top_seen.get()) >= inner.slots.len() {
                return Err(item);
            }
        }
        inner.slot(bottom).store(item.into_raw().as_ptr(), Ordering::Relaxed);
        inner.bottom.0.store(bottom.wrapping_add(1), Ordering::Release);
        Ok(())
    }

    /// Takes the item that was pushed last.
    #[inline]
    pub fn pop(&self) -> Option<T> {
        let inner = &*self.inner;
        let old = inner.bottom.0.load(Ordering::Relaxed);
        // `top` never passes `bottom`, so equality now means empty for good.
        if inner.top.0.load(Ordering::Relaxed) == old {
            return None;
        }
        let bottom = old.wrapping_sub(1);
        inner.bottom.0.store(bottom, Ordering::SeqCst);
        claim_fence();
        let top = inner.top.0.load(Ordering::SeqCst);
        let left = bottom.wrapping_sub(top) as isize;
        if left > 0 {
            return Some(self.take(bottom));
        }
        let won = left == 0
            && inner.top.0.compare_exchange(top, top.wrapping_add(1), Ordering::SeqCst, Ordering::Relaxed).is_ok();
        inner.bottom.0.store(old, Ordering::Release);
        won.then(|| self.take(bottom))
    }

    /// Takes the item that was pushed last but one.
    #[inline]
    pub fn pop_second(&self) -> Option<T> {
        let inner = &*self.inner;
        let old = inner.bottom.0.load(Ordering::Relaxed);
        if (old.wrapping_sub(inner.top.0.load(Ordering::Relaxed)) as isize) < 2 {
            return None;
        }
        let bottom = old.wrapping_sub(2);
        inner.bottom.0.store(bottom, Ordering::SeqCst);
        let top = inner.top.0.load(Ordering::SeqCst);
        let left = bottom.wrapping_sub(top) as isize;
        if left > 0 {
            let item = self.take(bottom);
            let newest = inner.slot(bottom.wrapping_add(1)).load(Ordering::Relaxed);
            inner.slot(bottom).store(newest, Ordering::Relaxed);
            inner.bottom.0.store(bottom.wrapping_add(1), Ordering::Release);
            return Some(item);
        }
        // It is the oldest as well, or gone; the newest stays where it is.
        let won = left == 0
            && inner.top.0.compare_exchange(top, top.wrapping_add(1), Ordering::SeqCst, Ordering::Relaxed).is_ok();
        inner.bottom.0.store(old, Ordering::Release);
        won.then(|| self.take(bottom))
    }

    /// The raw forms of the newest and second newest items, as a hint: thieves
    /// may be taking them, and the slots may be empty.
    #[inline]
    pub fn newest(&self) -> (*mut (), *mut ()) {
        let bottom = self.inner.bottom.0.load(Ordering::Relaxed);
        let raw = |back| self.inner.slot(bottom.wrapping_sub(back)).load(Ordering::Relaxed);
        (raw(1), raw(2))
    }

    /// Whether `pop` would find nothing; thieves may still empty it.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.inner.top.0.load(Ordering::Relaxed) == self.inner.bottom.0.load(Ordering::Relaxed)
    }

    fn take(&self, index: usize) -> T {
        let raw = self.inner.slot(index).load(Ordering::Relaxed);
        // SAFETY: `push` stored this pointer from `into_raw`, and the protocol
        // gives each index to exactly one taker.
        unsafe { T::from_raw(NonNull::new_unchecked(raw)) }
    }
}

impl<T: Token> Drop for Owner<T> {
    fn drop(&mut self) {
        while let Some(item) = self.pop() {
            drop(item);
        }
    }
}

impl<T: Token> Stealer<T> {
    /// Takes the item that was pushed first.
    pub fn steal(&self) -> Steal<T> {
        let inner = &*self.inner;
        let top = inner.top.0.load(Ordering::SeqCst);
        claim_fence();
        let bottom = inner.bottom.0.load(Ordering::SeqCst);
        if bottom.wrapping_sub(top) as isize <= 0 {
            return Steal::Empty;
        }
        let raw = inner.slot(top).load(Ordering::Relaxed);
        match inner.top.0.compare_exchange(top, top.wrapping_add(1), Ordering::SeqCst, Ordering::Relaxed) {
            // SAFETY: the exchange gave index `top` to us alone, and the slot
            // still held it when we read it, or the exchange would have failed.
            Ok(_) => Steal::Got(unsafe { T::from_raw(NonNull::new_unchecked(raw)) }),
            Err(_) => Steal::Lost,
        }
    }

    /// How many items there were a moment ago.
    pub fn len(&self) -> usize {
        let top = self.inner.top.0.load(Ordering::Relaxed);
        let bottom = self.inner.bottom.0.load(Ordering::Relaxed);
        (bottom.wrapping_sub(top) as isize).max(0) as usize
    }

    /// Whether there was nothing to steal a moment ago.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl<T: Token> Clone for Stealer<T> {
    fn clone(&self) -> Self {
        Stealer { inner: self.inner.clone(), _items: PhantomData }
    }
}

/// Between the two accesses of a claim: what loom needs in place of the order
/// of `SeqCst` accesses.
#[inline(always)]
fn claim_fence() {
    if cfg!(loom) {
        fence(Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sync::shim::thread;

    // SAFETY: a box is one pointer and moves between threads when its content may.
    unsafe impl Token for Box<usize> {
        fn into_raw(self) -> NonNull<()> {
            NonNull::from(Box::leak(self)).cast()
        }
        unsafe fn from_raw(raw: NonNull<()>) -> Self {
            // SAFETY: the caller's promise.
            unsafe { Box::from_raw(raw.cast().as_ptr()) }
        }
    }

    fn steal_one(stealer: &Stealer<Box<usize>>) -> Option<usize> {
        match stealer.steal() {
            Steal::Got(item) => Some(*item),
            Steal::Empty | Steal::Lost => None,
        }
    }

    /// Every item is taken exactly once, whoever takes it.
    fn race(items: usize, thieves: usize, attempts: usize) {
        let owner = Owner::new(4);
        let handles: Vec<_> = (0..thieves)
            .map(|_| {
                let stealer = owner.stealer();
                thread::spawn(move || (0..attempts).filter_map(|_| steal_one(&stealer)).collect::<Vec<_>>())
            })
            .collect();
        let mut taken = Vec::new();
        for item in 0..items {
            if let Err(refused) = owner.push(Box::new(item)) {
                taken.push(*refused);
            }
            match item % 4 {
                1 => taken.extend(owner.pop_second().map(|b| *b)),
                3 => taken.extend(owner.pop().map(|b| *b)),
                _ => (),
            }
        }
        while let Some(item) = owner.pop() {
            taken.push(*item);
        }
        for handle in handles {
            taken.extend(handle.join().unwrap());
        }
        taken.sort_unstable();
        assert_eq!(taken, (0..items).collect::<Vec<_>>());
    }

    #[cfg(loom)]
    #[test]
    fn loom_each_item_is_taken_once() {
        loom::model(|| race(3, 1, 2));
    }

    #[cfg(loom)]
    #[test]
    fn loom_two_thieves_and_the_last_item() {
        loom::model(|| race(2, 2, 1));
    }

    #[cfg(not(loom))]
    #[test]
    fn each_item_is_taken_once() {
        for _ in 0..50 {
            race(2_000, 2, 3_000);
        }
    }

    #[cfg(not(loom))]
    #[test]
    fn owner_takes_the_newest_and_thieves_the_oldest() {
        let owner = Owner::new(4);
        let stealer = owner.stealer();
        for item in 0..4 {
            owner.push(Box::new(item)).unwrap();
        }
        assert_eq!(*owner.push(Box::new(9)).unwrap_err(), 9);
        assert_eq!(steal_one(&stealer), Some(0));
        assert_eq!(owner.pop().map(|b| *b), Some(3));
        assert_eq!(stealer.len(), 2);
        owner.push(Box::new(4)).unwrap();
        owner.push(Box::new(5)).unwrap();
        assert_eq!(steal_one(&stealer), Some(1));
        assert_eq!(std::iter::from_fn(|| owner.pop()).map(|b| *b).collect::<Vec<_>>(), [5, 4, 2]);
        assert!(owner.is_empty() && stealer.is_empty());

        assert!(owner.pop_second().is_none());
        for item in 6..9 {
            owner.push(Box::new(item)).unwrap();
        }
        assert_eq!(owner.pop_second().map(|b| *b), Some(7));
        assert_eq!(owner.pop_second().map(|b| *b), Some(6), "the oldest");
        assert!(owner.pop_second().is_none());
        assert_eq!(owner.pop().map(|b| *b), Some(8));
    }
}
