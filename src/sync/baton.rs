//! A value that one thread at a time has: a lock that is tried and not waited
//! for on any hot path.
//!
//! # Why not the standard mutex
//! The node's users leave work in a queue when they find the baton taken, and
//! its holder looks into the queue after it has let go. Either the one sees the
//! other's entry or the other finds the baton free: a race of the "store mine,
//! then read yours" kind, which needs the release of the baton and the look at
//! the queue in one order for all, that is `SeqCst`. A mutex promises less, so
//! a full fence would have to follow it at each turn of the node. Here the
//! release itself is a `SeqCst` exchange.
//!
//! # Protocol
//! `taken` is set by whoever finds it clear (`SeqCst` exchange), who then has
//! the value alone until it clears it. A panic while it is held leaves it
//! cleared by the guard's drop, the value as it is.

use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};

use super::shim::{AtomicBool, Ordering, UnsafeCell};

/// See the module.
pub struct Baton<T> {
    taken: AtomicBool,
    value: UnsafeCell<T>,
}

// SAFETY: the value moves between threads, one of which has it at a time.
unsafe impl<T: Send> Send for Baton<T> {}
// SAFETY: as above: sharing the baton only ever hands the value on.
unsafe impl<T: Send> Sync for Baton<T> {}

/// The right to the value, until it is dropped.
pub struct Held<'b, T>(&'b Baton<T>, PhantomData<*const ()>);

// SAFETY: sharing the right shares the value, and nothing else.
unsafe impl<T: Sync> Sync for Held<'_, T> {}

impl<T> Baton<T> {
    /// A free baton.
    pub fn new(value: T) -> Baton<T> {
        Baton { taken: AtomicBool::new(false), value: UnsafeCell::new(value) }
    }

    /// The value, unless somebody has it.
    #[inline]
    pub fn try_take(&self) -> Option<Held<'_, T>> {
        // The load keeps the line shared while somebody else has the baton.
        (!self.taken.load(Ordering::SeqCst) && !self.taken.swap(true, Ordering::SeqCst)).then_some(())?;
        Some(Held(self, PhantomData))
    }

    /// The value, after waiting for whoever has it. Not for hot paths.
    pub fn take(&self) -> Held<'_, T> {
        loop {
            if let Some(held) = self.try_take() {
                return held;
            }
            super::shim::thread::yield_now();
        }
    }
}

impl<T> Deref for Held<'_, T> {
    type Target = T;
    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: the holder is the only one with the value (see the module).
        self.0.value.with(|value| unsafe { &*value })
    }
}

impl<T> DerefMut for Held<'_, T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: as in `deref`, and the holder is borrowed exclusively.
        self.0.value.with_mut(|value| unsafe { &mut *value })
    }
}

impl<T> Drop for Held<'_, T> {
    #[inline]
    fn drop(&mut self) {
        // A store would do for the value; the exchange is for the queue.
        self.0.taken.swap(false, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sync::shim::{Arc, AtomicUsize, fence, thread};

    /// What two threads leave behind for the holder is all done in the end.
    fn nothing_is_left() {
        let baton = Arc::new(Baton::new(0));
        let queue = Arc::new(AtomicUsize::new(0));
        let submit = |baton: &Baton<usize>, queue: &AtomicUsize| {
            queue.fetch_add(1, Ordering::SeqCst);
            loop {
                // Loom's exchanges are weaker than `SeqCst`; its fences are not.
                if cfg!(loom) {
                    fence(Ordering::SeqCst);
                }
                if queue.load(Ordering::SeqCst) == 0 {
                    return;
                }
                let Some(mut done) = baton.try_take() else { return };
                *done += queue.swap(0, Ordering::SeqCst);
            }
        };
        let other = {
            let (baton, queue) = (baton.clone(), queue.clone());
            thread::spawn(move || submit(&baton, &queue))
        };
        submit(&baton, &queue);
        other.join().unwrap();
        assert_eq!(*baton.take(), 2);
        assert_eq!(queue.load(Ordering::SeqCst), 0);
    }

    #[cfg(loom)]
    #[test]
    fn loom_nothing_is_left() {
        let mut model = loom::model::Builder::new();
        model.preemption_bound = Some(3);
        model.check(nothing_is_left);
    }

    #[cfg(not(loom))]
    #[test]
    fn one_at_a_time_and_nothing_is_left() {
        for _ in 0..500 {
            nothing_is_left();
        }
        let baton = Baton::new(1);
        let held = baton.try_take().unwrap();
        assert!(baton.try_take().is_none());
        drop(held);
        assert!(baton.try_take().is_some());
    }
}
