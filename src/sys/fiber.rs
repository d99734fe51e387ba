//! Stacks for tasks that wait: a fiber runs a closure on a stack of its own
//! and can be suspended and resumed by its thread. Over `corosensei`.
//!
//! A fiber belongs to the thread that first resumed it. What is absent: moving
//! a started fiber to another thread, so code with thread-locals is safe.

use std::cell::Cell;
use std::io;
use std::rc::Rc;

use corosensei::stack::{DefaultStack, Stack};
use corosensei::{Coroutine, CoroutineResult, Yielder};

type Switch = Yielder<(), ()>;

/// A closure on a stack of its own.
pub struct Fiber {
    /// `None` only while it is dropped.
    coroutine: Option<Coroutine<(), (), ()>>,
    place: Rc<Cell<Place>>,
}

/// How a resumption ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FiberEnded {
    /// The fiber called [`suspend`].
    Suspended,
    /// The closure returned.
    Returned,
}

/// Where the running fiber is: its switch and the lowest address of its stack.
#[derive(Clone, Copy)]
struct Place {
    switch: *const Switch,
    stack_limit: usize,
}

const NOWHERE: Place = Place { switch: std::ptr::null(), stack_limit: 0 };

thread_local! {
    static HERE: Cell<Place> = const { Cell::new(NOWHERE) };
}

impl Fiber {
    /// A fiber that will run `body`, which must not unwind. Fails when the
    /// system grants no memory map for the stack.
    pub fn new(stack_bytes: usize, body: impl FnOnce() + 'static) -> io::Result<Fiber> {
        let stack = DefaultStack::new(stack_bytes)?;
        let place = Rc::new(Cell::new(Place { switch: std::ptr::null(), stack_limit: stack.limit().get() }));
        let own = place.clone();
        let coroutine = Coroutine::with_stack(stack, move |switch: &Switch, ()| {
            own.set(Place { switch, ..own.get() });
            HERE.set(own.get());
            body();
        });
        Ok(Fiber { coroutine: Some(coroutine), place })
    }

    /// Runs the fiber until it suspends itself or returns. A fiber that has
    /// returned must not be resumed.
    #[inline]
    pub fn resume(&mut self) -> FiberEnded {
        let before = HERE.replace(self.place.get());
        let coroutine = self.coroutine.as_mut().expect("present until dropped");
        let ended = match coroutine.resume(()) {
            CoroutineResult::Yield(()) => FiberEnded::Suspended,
            CoroutineResult::Return(()) => FiberEnded::Returned,
        };
        HERE.set(before);
        ended
    }
}

impl Drop for Fiber {
    fn drop(&mut self) {
        let coroutine = self.coroutine.take().expect("dropped once");
        if coroutine.started() && !coroutine.done() {
            // Its frames belong to tasks that will never go on. Unwinding them
            // would run user code; their stack is left as it is instead.
            std::mem::forget(coroutine);
        }
    }
}

/// Suspends the running fiber: `resume` returns to whoever called it.
///
/// # Panics
/// Outside any fiber.
#[inline]
pub fn suspend() {
    let switch = HERE.get().switch;
    assert!(!switch.is_null(), "suspend outside a fiber");
    // SAFETY: `switch` was set by the fiber that runs on this thread now: it is
    // set at its start and at each resumption, and replaced when it leaves. The
    // yielder lives on that fiber's stack until the fiber's closure returns.
    unsafe { (*switch).suspend(()) }
}

/// Bytes that the running fiber's stack has left; `usize::MAX` outside one.
#[inline]
pub fn stack_left() -> usize {
    let limit = HERE.get().stack_limit;
    if limit == 0 {
        return usize::MAX;
    }
    let here = 0u8;
    (&raw const here as usize).saturating_sub(limit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fibers_alternate() {
        let log = Rc::new(Cell::new(0));
        let make = |n: u32| {
            let log = log.clone();
            Fiber::new(64 << 10, move || {
                log.set(log.get() * 10 + n);
                suspend();
                log.set(log.get() * 10 + n);
            })
            .unwrap()
        };
        let (mut a, mut b) = (make(1), make(2));
        assert_eq!(a.resume(), FiberEnded::Suspended);
        assert_eq!(b.resume(), FiberEnded::Suspended);
        assert_eq!(b.resume(), FiberEnded::Returned);
        assert_eq!(a.resume(), FiberEnded::Returned);
        assert_eq!(log.get(), 1221);
        assert_eq!(stack_left(), usize::MAX);
    }

    #[test]
    fn the_stack_shrinks_as_it_is_used() {
        fn depth(n: usize) -> usize {
            let pad = std::hint::black_box([0u8; 512]);
            if n == 0 { stack_left() } else { depth(n - 1) + usize::from(pad[0]) }
        }
        let mut fiber = Fiber::new(64 << 10, || {
            let (shallow, deep) = (depth(0), depth(20));
            assert!(shallow < 80 << 10 && deep + 20 * 512 <= shallow);
        })
        .unwrap();
        assert_eq!(fiber.resume(), FiberEnded::Returned);
    }
}
