//! What each operation under way is, and the context that the provider keeps
//! for it until it has completed.

use std::ffi::c_void;
use std::ptr::NonNull;

use super::generated::fi_context2;

/// An operation under way.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Operation {
    Receive { buffer: u32 },
    Send { buffer: u32, tag: (u64, u64) },
    Read { transfer: u32 },
}

/// What the provider gets a pointer to. The first part is the provider's to
/// write; the number is written once, before anybody else sees it.
#[repr(C)]
struct Context {
    provider: fi_context2,
    number: u32,
}

/// All operations, by the number in their context.
pub(super) struct Operations {
    contexts: Vec<NonNull<Context>>,
    under_way: Vec<Option<Operation>>,
    free: Vec<u32>,
}

impl Operations {
    pub fn new() -> Operations {
        Operations { contexts: Vec::new(), under_way: Vec::new(), free: Vec::new() }
    }

    /// A context for an operation that is about to begin.
    pub fn begin(&mut self, operation: Operation) -> (u32, *mut c_void) {
        let number = self.free.pop().unwrap_or_else(|| {
            let number = self.contexts.len() as u32;
            let context = Context { provider: fi_context2 { internal: [std::ptr::null_mut(); 8] }, number };
            self.contexts.push(NonNull::from(Box::leak(Box::new(context))));
            self.under_way.push(None);
            number
        });
        self.under_way[number as usize] = Some(operation);
        (number, self.contexts[number as usize].as_ptr().cast())
    }

    /// Takes back an operation that the provider has refused.
    pub fn refused(&mut self, number: u32) {
        self.under_way[number as usize] = None;
        self.free.push(number);
    }

    /// The operation that has completed, if it was under way.
    ///
    /// # Safety
    /// `context` is null or was returned by [`Operations::begin`] of this value.
    pub unsafe fn completed(&mut self, context: *mut c_void) -> Option<Operation> {
        let context = NonNull::new(context.cast::<Context>())?;
        // SAFETY: it is one of ours, which live as long as `self`; the number
        // was written before the provider had the pointer.
        let number = unsafe { (*context.as_ptr()).number };
        let operation = self.under_way[number as usize].take()?;
        self.free.push(number);
        Some(operation)
    }
}

impl Drop for Operations {
    fn drop(&mut self) {
        for context in &self.contexts {
            // SAFETY: each came from a box and is freed once; the provider has
            // none any more, since its endpoint is closed before this value is
            // dropped (or the value is leaked).
            drop(unsafe { Box::from_raw(context.as_ptr()) });
        }
    }
}
