//! Status codes, and the text of the last error of each thread.

use std::any::Any;
use std::cell::RefCell;
use std::ffi::{CStr, CString, c_char};
use std::panic::{AssertUnwindSafe, catch_unwind};

use collimate::ErrorKind;

/// What a function returns: CLM_OK, or why it did not do what it should.
/// clm_last_error() has the details.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(non_camel_case_types)]
pub enum clm_status {
    /// Done.
    CLM_OK = 0,
    /// The task failed with a message of its own.
    CLM_FAILED = 1,
    /// The task, written in Rust, panicked.
    CLM_PANICKED = 2,
    /// The rank that ran the task, or that held its result, is gone.
    CLM_RANK_LOST = 3,
    /// The object store of a rank is full.
    CLM_STORE_FULL = 4,
    /// No task of that name is registered, here or on the rank asked.
    CLM_UNKNOWN_TASK = 5,
    /// Arguments, or a result, that the task does not take or give.
    CLM_BAD_ARGUMENT = 6,
    /// No stack was left to run another task on.
    CLM_STACK_EXHAUSTED = 7,
    /// The time given ran out; the task goes on.
    CLM_TIMED_OUT = 8,
    /// The runtime has not been started, or has ended.
    CLM_NOT_RUNNING = 9,
    /// The call cannot be served: a rank that does not exist, a name taken, a
    /// second clm_init().
    CLM_BAD_CALL = 10,
    /// A pointer is null that must not be.
    CLM_NULL_POINTER = 11,
    /// A fault of Collimate's own.
    CLM_INTERNAL = 12,
}

/// The meaning of a status in a few words. Never null, never to be freed.
#[unsafe(no_mangle)]
pub extern "C" fn clm_status_text(status: i32) -> *const c_char {
    let text = ALL.iter().find(|(known, _)| *known as i32 == status).map_or(c"unknown status", |(_, text)| text);
    text.as_ptr()
}

/// The last error of the calling thread in one line: what happened, in which
/// tasks on which ranks, and what to do. Never null; empty if there was none.
/// Valid until the next call of the thread that fails.
#[unsafe(no_mangle)]
pub extern "C" fn clm_last_error() -> *const c_char {
    LAST.with_borrow(|last| last.as_ref().map_or(c"".as_ptr(), |last| last.text.as_ptr()))
}

use clm_status::*;

const ALL: [(clm_status, &CStr); 13] = [
    (CLM_OK, c"done"),
    (CLM_FAILED, c"the task failed"),
    (CLM_PANICKED, c"the task panicked"),
    (CLM_RANK_LOST, c"a rank is gone"),
    (CLM_STORE_FULL, c"the object store is full"),
    (CLM_UNKNOWN_TASK, c"no such task"),
    (CLM_BAD_ARGUMENT, c"the arguments or the result do not fit"),
    (CLM_STACK_EXHAUSTED, c"no stack is left"),
    (CLM_TIMED_OUT, c"the time ran out"),
    (CLM_NOT_RUNNING, c"the runtime is not running"),
    (CLM_BAD_CALL, c"the call cannot be served"),
    (CLM_NULL_POINTER, c"a pointer is null"),
    (CLM_INTERNAL, c"a fault of Collimate itself"),
];

/// Why a function cannot do what it should.
#[derive(Clone, Debug)]
pub(crate) struct Fault {
    status: clm_status,
    text: String,
    /// With its chain, for tasks that pass it on.
    error: Option<collimate::Error>,
}

impl Fault {
    pub fn new(status: clm_status, text: impl Into<String>) -> Fault {
        Fault { status, text: text.into(), error: None }
    }

    pub fn null(what: &str) -> Fault {
        Fault::new(CLM_NULL_POINTER, format!("{what} is null"))
    }
}

impl From<collimate::Error> for Fault {
    fn from(error: collimate::Error) -> Fault {
        let status = match error.kind {
            ErrorKind::Failed => CLM_FAILED,
            ErrorKind::Panicked => CLM_PANICKED,
            ErrorKind::RankLost => CLM_RANK_LOST,
            ErrorKind::StoreFull => CLM_STORE_FULL,
            ErrorKind::UnknownTask => CLM_UNKNOWN_TASK,
            ErrorKind::BadArgument => CLM_BAD_ARGUMENT,
            ErrorKind::StackExhausted => CLM_STACK_EXHAUSTED,
            ErrorKind::TimedOut => CLM_TIMED_OUT,
            ErrorKind::NotRunning => CLM_NOT_RUNNING,
            ErrorKind::BadCall => CLM_BAD_CALL,
        };
        Fault { status, text: error.to_string(), error: Some(error) }
    }
}

/// Runs the body of a function that C called: what goes wrong becomes the
/// thread's last error, and a panic does not get out.
pub(crate) fn guard(body: impl FnOnce() -> Result<(), Fault>) -> clm_status {
    let fault = match catch_unwind(AssertUnwindSafe(body)) {
        Ok(Ok(())) => return CLM_OK,
        Ok(Err(fault)) => fault,
        Err(payload) => Fault::new(CLM_INTERNAL, format!("panicked: {}", payload_text(&*payload))),
    };
    let status = fault.status;
    keep(fault);
    status
}

/// The error that the last call of this thread that failed got from a task.
pub(crate) fn last() -> Option<(String, Option<collimate::Error>)> {
    LAST.with_borrow(|last| last.as_ref().map(|l| (l.text.to_string_lossy().into_owned(), l.error.clone())))
}

struct Last {
    text: CString,
    error: Option<collimate::Error>,
}

thread_local! {
    static LAST: RefCell<Option<Last>> = const { RefCell::new(None) };
}

fn keep(Fault { text, error, .. }: Fault) {
    let text = CString::new(text.replace('\0', " ")).expect("every null byte was replaced");
    LAST.with_borrow_mut(|last| *last = Some(Last { text, error }));
}

fn payload_text(payload: &(dyn Any + Send)) -> &str {
    match (payload.downcast_ref::<&str>(), payload.downcast_ref::<String>()) {
        (Some(text), _) => text,
        (None, Some(text)) => text,
        (None, None) => "with a value that is no text",
    }
}
