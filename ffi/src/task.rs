//! Tasks that are written in C: their registration, and what their bodies call.

use std::ffi::{c_char, c_void};

use collimate::raw::{self, Bytes, Failure};

use crate::status::clm_status::{self, CLM_BAD_ARGUMENT, CLM_FAILED};
use crate::status::{Fault, guard, last};
use crate::value::{bytes_of, text_of};

/// One run of a task, for its body.
#[allow(non_camel_case_types)]
pub struct clm_task {
    args: *const [Bytes],
    outcome: Option<Result<Bytes, Failure>>,
}

/// The body of a task. Returns CLM_OK, or anything else if it failed. It may
/// spawn, get and wait; `task` is valid until it returns and for its thread
/// only. It must not leave by longjmp or by a C++ exception.
#[allow(non_camel_case_types)]
pub type clm_task_fn = Option<unsafe extern "C" fn(task: *mut clm_task, user_data: *mut c_void) -> i32>;

/// Registers a task by name, before clm_init(), the same ones on every rank.
/// `body` is called by several threads at once, each time with `user_data`,
/// for as long as the process lives. The name is copied.
///
/// # Safety
/// `name` is null or a string that ends with a null byte. `body` and
/// `user_data` may be used by several threads at once until the process ends.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn clm_register(name: *const c_char, body: clm_task_fn, user_data: *mut c_void) -> clm_status {
    guard(|| {
        // SAFETY: by contract.
        let name = unsafe { text_of(name, "name") }?;
        let Some(body) = body else { return Err(Fault::null("body")) };
        let c = CBody { body, user_data };
        raw::register(name, move |args| c.run(args))?;
        Ok(())
    })
}

/// How many arguments the task was given; 0 if `task` is null.
///
/// # Safety
/// `task` is null or what the running body was given.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn clm_task_arg_count(task: *const clm_task) -> usize {
    // SAFETY: by contract it is null or valid, and used by this thread only.
    unsafe { task.as_ref() }.map_or(0, |task| task.args.len())
}

/// Argument `index`, from 0, in place: `*data` is aligned for every type and
/// valid until the body returns. `len` may be null.
///
/// # Safety
/// `task` is what the running body was given; `data` and `len` are null or
/// valid to write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn clm_task_arg(
    task: *const clm_task,
    index: usize,
    data: *mut *const c_void,
    len: *mut usize,
) -> clm_status {
    guard(|| {
        // SAFETY: by contract it is null or valid, and used by this thread only.
        let task = unsafe { task.as_ref() }.ok_or_else(|| Fault::null("task"))?;
        if data.is_null() {
            return Err(Fault::null("data"));
        }
        // SAFETY: `CBody::run` keeps the arguments until the body returns.
        let args = unsafe { &*task.args };
        let arg = args.get(index).ok_or_else(|| {
            let text = format!("argument {index} does not exist: the task was given {}, counted from 0", args.len());
            Fault::new(CLM_BAD_ARGUMENT, text)
        })?;
        // SAFETY: `data` is not null, and `len` null or not; valid by contract.
        unsafe {
            data.write(arg.as_ptr().cast());
            if !len.is_null() {
                len.write(arg.len());
            }
        }
        Ok(())
    })
}

/// Sets the result: a copy of `len` bytes. Without it the result is empty; the
/// last call counts.
///
/// # Safety
/// `task` is what the running body was given; `data` points to `len` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn clm_task_return(task: *mut clm_task, data: *const c_void, len: usize) -> clm_status {
    guard(|| {
        // SAFETY: by contract it is null or valid, and used by this thread only.
        let task = unsafe { task.as_mut() }.ok_or_else(|| Fault::null("task"))?;
        // SAFETY: by contract.
        let bytes = unsafe { bytes_of(data, len, "data") }?;
        task.outcome = Some(Ok(Bytes::copy_of(bytes)?));
        Ok(())
    })
}

/// Makes the task fail: whoever gets its result gets CLM_FAILED and `message`,
/// which is copied. With a null `message` the task passes on the thread's last
/// error, clm_last_error(), with its status and its chain of tasks. Returns
/// CLM_FAILED, so that a body can end with `return clm_task_fail(task, "why")`.
///
/// # Safety
/// `task` is what the running body was given; `message` is null or a string
/// that ends with a null byte.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn clm_task_fail(task: *mut clm_task, message: *const c_char) -> clm_status {
    let done = guard(|| {
        // SAFETY: by contract it is null or valid, and used by this thread only.
        let task = unsafe { task.as_mut() }.ok_or_else(|| Fault::null("task"))?;
        let failure: Failure = if message.is_null() {
            match last() {
                Some((_, Some(error))) => error.into(),
                Some((text, None)) => text.into(),
                None => "the task failed and gave no reason".into(),
            }
        } else {
            // SAFETY: by contract.
            unsafe { text_of(message, "message") }?.into()
        };
        task.outcome = Some(Err(failure));
        Ok(())
    });
    if done == clm_status::CLM_OK { CLM_FAILED } else { done }
}

struct CBody {
    body: unsafe extern "C" fn(*mut clm_task, *mut c_void) -> i32,
    user_data: *mut c_void,
}

// SAFETY: who registered it promised that several threads may use both.
unsafe impl Send for CBody {}
// SAFETY: as above.
unsafe impl Sync for CBody {}

impl CBody {
    fn run(&self, args: &[Bytes]) -> Result<Bytes, Failure> {
        let mut task = clm_task { args, outcome: None };
        // SAFETY: a body for these arguments, by the contract of `clm_register`;
        // `task` and what it points to live until it returns.
        let status = unsafe { (self.body)(&raw mut task, self.user_data) };
        match (status, task.outcome) {
            (_, Some(Err(failure))) => Err(failure),
            (0, Some(Ok(bytes))) => Ok(bytes),
            (0, None) => Ok(Bytes::copy_of(&[])?),
            (status, _) => Err(format!("the task returned status {status}").into()),
        }
    }
}
