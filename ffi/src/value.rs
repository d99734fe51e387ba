//! Calls by name, refs to their results, and views of those.

use std::ffi::{CStr, c_char, c_void};
use std::time::Duration;

use collimate::raw::{self, Arg, Bytes};
use collimate::{Options, Ref};

use crate::runtime::running;
use crate::status::clm_status::{self, CLM_BAD_ARGUMENT, CLM_BAD_CALL, CLM_TIMED_OUT};
use crate::status::{Fault, guard};

/// The future result of a task or of a put. Made by clm_spawn(), clm_put() and
/// clm_ref_clone(); belongs to the caller until clm_ref_release(). May be used
/// by several threads at once.
#[allow(non_camel_case_types)]
pub struct clm_ref(Ref<Bytes>);

/// What keeps the bytes of a view.
#[allow(non_camel_case_types)]
pub struct clm_bytes(#[expect(dead_code, reason = "is there to be dropped")] Bytes);

/// Bytes that are read where they lie, in the store of a rank of this host or
/// on the heap. They do not change, must not be written, are aligned for every
/// type, and stay valid until clm_view_release(), also after the ref is gone.
#[repr(C)]
#[derive(Debug)]
#[allow(non_camel_case_types)]
pub struct clm_view {
    /// The first byte.
    pub data: *const c_void,
    /// How many.
    pub len: usize,
    /// What keeps them; not for the caller.
    pub owner: *mut clm_bytes,
}

/// One argument of a call; see CLM_BYTES and CLM_REF.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
#[allow(non_camel_case_types)]
pub struct clm_arg {
    /// Bytes, which clm_spawn() copies.
    pub data: *const c_void,
    /// How many.
    pub len: usize,
    /// If not null, the argument is the result behind this ref instead, and the
    /// task starts when it is there. The ref stays the caller's.
    pub result: *const clm_ref,
}

/// Options of one call; begin with CLM_OPTIONS_INIT.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
#[allow(non_camel_case_types)]
pub struct clm_options {
    /// sizeof(clm_options), by which later versions tell which fields exist.
    pub size: usize,
    /// The rank to run the call on; -1 for any.
    pub rank: i32,
    /// Not 0: such calls run on all ranks in turn. Goes only with rank -1.
    pub spread: i32,
    /// The name of this call in errors, instead of the task's; or null.
    pub name: *const c_char,
}

/// Makes a task of a call of the task `name`, which a clm_register() or a Rust
/// program registered, and gives a ref to its result. Copies what `args` point
/// to. `options` may be null. Returns at once: what is wrong with the call
/// itself is the result's error, and clm_get() returns it.
///
/// # Safety
/// `name` is null or a string that ends with a null byte, `args` points to
/// `count` arguments whose pointers are valid, `options` is null or points to
/// as many bytes as its size says, `result` is null or valid to write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn clm_spawn(
    name: *const c_char,
    args: *const clm_arg,
    count: usize,
    options: *const clm_options,
    result: *mut *mut clm_ref,
) -> clm_status {
    guard(|| {
        // SAFETY: by contract.
        unsafe { clear(result, "result") }?;
        running()?;
        // SAFETY: by contract.
        let name = unsafe { text_of(name, "name") }?;
        // SAFETY: by contract.
        let options = unsafe { read_options(options) }?;
        // SAFETY: by contract.
        let args = unsafe { slice_of(args, count, "args") }?;
        let args = args.iter().enumerate().map(|(at, arg)| {
            // SAFETY: by contract the ref is null or valid.
            if let Some(r) = unsafe { arg.result.as_ref() } {
                return Ok(Arg::Ref(r.0.clone()));
            }
            // SAFETY: by contract.
            let bytes = unsafe { bytes_of(arg.data, arg.len, &format!("args[{at}].data")) }?;
            Ok(Arg::Bytes(Bytes::copy_of(bytes)?))
        });
        let args = args.collect::<Result<Vec<Arg>, Fault>>()?;
        // SAFETY: `clear` found it not null; valid by contract.
        unsafe { give(result, raw::spawn(name, args, options)) };
        Ok(())
    })
}

/// Copies `len` bytes into the object store of this rank, where tasks on all
/// ranks of the host read them in place, and gives a ref to them.
///
/// # Safety
/// `data` points to `len` bytes; `result` is null or valid to write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn clm_put(data: *const c_void, len: usize, result: *mut *mut clm_ref) -> clm_status {
    guard(|| {
        // SAFETY: by contract.
        unsafe { clear(result, "result") }?;
        running()?;
        // SAFETY: by contract.
        let bytes = unsafe { bytes_of(data, len, "data") }?;
        let put = raw::put(bytes)?;
        // SAFETY: `clear` found it not null; valid by contract.
        unsafe { give(result, put) };
        Ok(())
    })
}

/// Waits for a result, at most `timeout_ms` milliseconds or, with -1, without a
/// limit, and gives a view of it, which the caller releases. If the task
/// failed, that is the status, and the view is empty. The ref stays valid and
/// can be got again. In a task, other tasks run meanwhile.
///
/// # Safety
/// `r` is null or a ref that is not released; `view` is null or valid to write
/// and holds nothing that is still to be released.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn clm_get(r: *const clm_ref, timeout_ms: i64, view: *mut clm_view) -> clm_status {
    guard(|| {
        if view.is_null() {
            return Err(Fault::null("view"));
        }
        // SAFETY: not null; valid by contract.
        unsafe { view.write(NOTHING) };
        // SAFETY: by contract.
        let r = unsafe { r.as_ref() }.ok_or_else(|| Fault::null("ref"))?;
        running()?;
        let bytes = match patience(timeout_ms)? {
            None => r.0.clone().get()?,
            Some(patience) => r.0.clone().get_timeout(patience)?,
        };
        let (data, len) = (bytes.as_ptr().cast(), bytes.len());
        let owner = Box::into_raw(Box::new(clm_bytes(bytes)));
        // SAFETY: as above.
        unsafe { view.write(clm_view { data, len, owner }) };
        Ok(())
    })
}

/// Waits until `enough` of `count` refs have a result, good or bad, as long as
/// clm_get() would. Sets `ready[i]` for each that has one, and for no other.
/// CLM_TIMED_OUT if they were fewer in time.
///
/// # Safety
/// `refs` points to `count` refs that are null or not released, and `ready` to
/// as many values, valid to write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn clm_wait(
    refs: *const *const clm_ref,
    count: usize,
    enough: usize,
    timeout_ms: i64,
    ready: *mut bool,
) -> clm_status {
    guard(|| {
        running()?;
        // SAFETY: by contract.
        let refs = unsafe { slice_of(refs, count, "refs") }?;
        if ready.is_null() && count > 0 {
            return Err(Fault::null("ready"));
        }
        if enough > count {
            return Err(Fault::new(CLM_BAD_CALL, format!("{enough} of {count} refs can never be ready")));
        }
        let refs = refs.iter().enumerate().map(|(at, r)| {
            // SAFETY: by contract it is null or valid.
            unsafe { r.as_ref() }.map(|r| r.0.clone()).ok_or_else(|| Fault::null(&format!("refs[{at}]")))
        });
        let refs = refs.collect::<Result<Vec<_>, Fault>>()?;
        let done = raw::wait(&refs, enough, patience(timeout_ms)?)?;
        for at in 0..count {
            // SAFETY: `count` values, by contract.
            unsafe { ready.add(at).write(done.binary_search(&at).is_ok()) };
        }
        if done.len() < enough {
            let text = format!("{} of {enough} results were there within {timeout_ms} ms", done.len());
            return Err(Fault::new(CLM_TIMED_OUT, text));
        }
        Ok(())
    })
}

/// Another ref to the same result, to be released as well.
///
/// # Safety
/// `r` is null or a ref that is not released; `copy` is null or valid to write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn clm_ref_clone(r: *const clm_ref, copy: *mut *mut clm_ref) -> clm_status {
    guard(|| {
        // SAFETY: by contract.
        unsafe { clear(copy, "copy") }?;
        // SAFETY: by contract.
        let r = unsafe { r.as_ref() }.ok_or_else(|| Fault::null("ref"))?;
        // SAFETY: `clear` found it not null; valid by contract.
        unsafe { give(copy, r.0.clone()) };
        Ok(())
    })
}

/// Gives a ref back. The result goes with its last ref and its last view; the
/// task runs all the same. Null does nothing.
///
/// # Safety
/// `r` is null or a ref that is not released, which nobody uses any more.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn clm_ref_release(r: *mut clm_ref) {
    guard(|| {
        if !r.is_null() {
            // SAFETY: every ref comes from `give`, and is released once.
            drop(unsafe { Box::from_raw(r) });
        }
        Ok(())
    });
}

/// Ends a view and empties it, so that a second release does nothing. Neither
/// does null.
///
/// # Safety
/// `view` is null, or points to a view that clm_get() filled, was emptied, or is
/// all zero.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn clm_view_release(view: *mut clm_view) {
    guard(|| {
        // SAFETY: by contract.
        if let Some(view) = unsafe { view.as_mut() } {
            let owner = std::mem::replace(view, NOTHING).owner;
            if !owner.is_null() {
                // SAFETY: it comes from `clm_get`, and is taken out once.
                drop(unsafe { Box::from_raw(owner) });
            }
        }
        Ok(())
    });
}

/// The string at `text`.
///
/// # Safety
/// It is null or ends with a null byte, and stays as it is for `'a`.
pub(crate) unsafe fn text_of<'a>(text: *const c_char, what: &str) -> Result<&'a str, Fault> {
    if text.is_null() {
        return Err(Fault::null(what));
    }
    // SAFETY: by contract.
    let text = unsafe { CStr::from_ptr(text) };
    text.to_str().map_err(|e| Fault::new(CLM_BAD_ARGUMENT, format!("{what} is no UTF-8: {e}")))
}

/// The `len` bytes at `data`, which may be null if there are none.
///
/// # Safety
/// They are there, and stay as they are for `'a`.
pub(crate) unsafe fn bytes_of<'a>(data: *const c_void, len: usize, what: &str) -> Result<&'a [u8], Fault> {
    // SAFETY: by contract.
    unsafe { slice_of(data.cast::<u8>(), len, what) }
}

const NOTHING: clm_view = clm_view { data: std::ptr::null(), len: 0, owner: std::ptr::null_mut() };

/// # Safety
/// `data` is null or points to `len` values, which stay as they are for `'a`.
unsafe fn slice_of<'a, T>(data: *const T, len: usize, what: &str) -> Result<&'a [T], Fault> {
    if len == 0 {
        return Ok(&[]);
    }
    if data.is_null() {
        return Err(Fault::null(what));
    }
    if !data.is_aligned() {
        return Err(Fault::new(CLM_BAD_ARGUMENT, format!("{what} is not aligned to {} bytes", align_of::<T>())));
    }
    if len.checked_mul(size_of::<T>()).is_none_or(|bytes| bytes > isize::MAX as usize) {
        return Err(Fault::new(CLM_BAD_ARGUMENT, format!("{what} cannot have {len} values")));
    }
    // SAFETY: not null, aligned, not too long, and valid by contract.
    Ok(unsafe { std::slice::from_raw_parts(data, len) })
}

/// # Safety
/// `to` is null or valid to write.
unsafe fn clear(to: *mut *mut clm_ref, what: &str) -> Result<(), Fault> {
    if to.is_null() {
        return Err(Fault::null(what));
    }
    // SAFETY: not null; valid by contract.
    unsafe { to.write(std::ptr::null_mut()) };
    Ok(())
}

/// # Safety
/// `to` is valid to write.
unsafe fn give(to: *mut *mut clm_ref, r: Ref<Bytes>) {
    // SAFETY: by contract.
    unsafe { to.write(Box::into_raw(Box::new(clm_ref(r)))) };
}

/// # Safety
/// `options` is null or points to as many bytes as its size says.
unsafe fn read_options(options: *const clm_options) -> Result<Options, Fault> {
    if options.is_null() {
        return Ok(Options::new());
    }
    let bad = |text: String| Err(Fault::new(CLM_BAD_CALL, text));
    // SAFETY: the size is there in every version.
    let size = unsafe { (&raw const (*options).size).read() };
    if size < size_of::<clm_options>() || size > OPTIONS_BYTES_MAX {
        return bad(format!("options have size {size}: begin with CLM_OPTIONS_INIT"));
    }
    // SAFETY: as many bytes as the size says, by contract.
    let (given, rest) = unsafe {
        let rest = options.add(1).cast::<u8>();
        (options.read(), std::slice::from_raw_parts(rest, size - size_of::<clm_options>()))
    };
    if rest.iter().any(|byte| *byte != 0) {
        return bad("options that this version of the library does not have: update it".into());
    }
    let mut read = Options::new();
    match (given.rank, given.spread) {
        (-1, 0) => (),
        (-1, _) => read = read.spread(),
        (0.., 0) => read = read.rank(given.rank as u32),
        (0.., _) => return bad(format!("options ask for rank {} and for spread", given.rank)),
        (..-1, _) => return bad(format!("options ask for rank {}: -1 is any", given.rank)),
    }
    if !given.name.is_null() {
        // SAFETY: by contract.
        read = read.name(unsafe { text_of(given.name, "options.name") }?);
    }
    Ok(read)
}

/// Far more than any version of the options will have.
const OPTIONS_BYTES_MAX: usize = 4096;

/// Longer than any process lives, and short enough to be added to a clock.
const PATIENCE_MAX: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

fn patience(timeout_ms: i64) -> Result<Option<Duration>, Fault> {
    match timeout_ms {
        -1 => Ok(None),
        0.. => Ok(Some(Duration::from_millis(timeout_ms as u64).min(PATIENCE_MAX))),
        ..-1 => Err(Fault::new(CLM_BAD_ARGUMENT, format!("a timeout of {timeout_ms} ms: -1 is without a limit"))),
    }
}
