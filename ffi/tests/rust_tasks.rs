//! Tasks that are written in Rust, called through the C interface: right
//! arguments, wrong ones, and C's results as arguments. This test binary starts
//! itself as the program.

mod common;

use std::ffi::{CStr, CString, c_void};
use std::ptr::{null, null_mut};

use collimate_ffi::clm_status::{self, *};
use collimate_ffi::*;
use common::{launched, run};

/// Set in the process that is to be the program.
const ROLE: &str = "COLLIMATE_TEST_ROLE";

#[collimate::task]
fn dot(x: &[f64], y: &[f64]) -> f64 {
    x.iter().zip(y).map(|(x, y)| x * y).sum()
}

#[collimate::task]
fn shift(x: &[f64], by: f64) -> Vec<f64> {
    x.iter().map(|x| x + by).collect()
}

#[collimate::task]
fn divide(x: u32, y: u32) -> u32 {
    x / y
}

#[collimate::task]
fn shout(text: &str) -> String {
    text.to_uppercase()
}

/// Where the tasks above are registered.
const PREFIX: &str = module_path!();

#[test]
fn rust_tasks_are_called_by_name() {
    let me = std::env::current_exe().unwrap();
    let program = [me.as_os_str(), "program".as_ref(), "--exact".as_ref(), "--nocapture".as_ref()];
    for ranks in [1, 2] {
        let (status, out, err) = run(launched(&program, ranks).env(ROLE, "program"));
        assert_eq!((status, out.matches("all is well").count()), (0, 1), "{ranks} ranks: {out}{err}");
    }
}

/// Not a test but the program that the test runs.
#[test]
fn program() {
    if std::env::var_os(ROLE).is_none() {
        return;
    }
    assert_eq!(clm_init(), CLM_OK, "{}", last_error());
    if clm_rank() != 0 {
        let mut status = -1;
        // SAFETY: it is there for the time of the call.
        assert_eq!(unsafe { clm_serve(&raw mut status) }, CLM_OK, "{}", last_error());
        assert_eq!(status, 0);
        return;
    }
    let ones = vec![1.0f64; 10_000];
    let anywhere = clm_options { size: size_of::<clm_options>(), rank: -1, spread: 0, name: null() };
    let last = clm_options { rank: clm_size() - 1, name: c"Friday".as_ptr(), ..anywhere };
    for options in [null(), &raw const anywhere, &raw const last] {
        right(&ones, options);
    }
    wrong(&last);
    assert_eq!(clm_finalize(0), CLM_OK, "{}", last_error());
    println!("all is well");
}

fn right(ones: &[f64], options: *const clm_options) {
    let shifted = spawn("shift", &[bytes(ones), bytes(&[2.0])], options);
    let of_ref = clm_arg { data: null(), len: 0, result: shifted };
    assert_eq!(get(spawn("dot", &[of_ref, bytes(ones)], options)), Ok(30_000f64.to_ne_bytes().to_vec()));
    let threes: Vec<u8> = vec![3.0f64; ones.len()].iter().flat_map(|v| v.to_ne_bytes()).collect();
    assert_eq!(get(shifted), Ok(threes));
    assert_eq!(get(spawn("divide", &[bytes(&[7u32]), bytes(&[2u32])], options)), Ok(3u32.to_ne_bytes().to_vec()));
    assert_eq!(get(spawn("shout", &[bytes(b"psst")], options)), Ok(b"PSST".to_vec()));
}

fn wrong(named: &clm_options) {
    let refused = |name: &str, args: &[clm_arg], options, status, part: &str| {
        let (got, text) = get(spawn(name, args, options)).unwrap_err();
        assert_eq!((got, text.contains(part)), (status, true), "{name}: {text}");
    };
    let two = bytes(&[2u32]);
    let unsent = format!("(in task `{PREFIX}::divide` on rank 0)");
    let refused_there = format!("(in task `{PREFIX}::divide` on rank {})", named.rank);
    let failed_there = format!("(in task `Friday` on rank {})", named.rank);
    refused("divide", &[], null(), CLM_BAD_ARGUMENT, "takes 2 arguments and was given 0");
    refused("divide", &[two], null(), CLM_BAD_ARGUMENT, "takes 2 arguments and was given 1");
    refused("divide", &[two, two, two], named, CLM_BAD_ARGUMENT, &unsent);
    refused("divide", &[two, bytes(&[2u8])], null(), CLM_BAD_ARGUMENT, "1 bytes are no u32, which has 4");
    refused("divide", &[two, bytes(&[2u8])], named, CLM_BAD_ARGUMENT, &refused_there);
    refused("divide", &[two, bytes(&[0u32])], null(), CLM_PANICKED, "divide by zero");
    refused("divide", &[two, bytes(&[0u32])], named, CLM_PANICKED, &failed_there);
    refused("dot", &[two, two], null(), CLM_BAD_ARGUMENT, "4 bytes are no array of f64");
    refused("dot", &[bytes(&[1.0]), bytes(&vec![2u8; 10_001])], null(), CLM_BAD_ARGUMENT, "f64");
    refused("shout", &[bytes(b"\xff")], null(), CLM_BAD_ARGUMENT, "no UTF-8");
    refused("whisper", &[two], null(), CLM_UNKNOWN_TASK, &format!("{PREFIX}::shout"));

    // An error goes on to who needs the result, with its chain.
    let failed = spawn("divide", &[two, bytes(&[0u32])], null());
    let of_ref = clm_arg { data: null(), len: 0, result: failed };
    let (status, text) = get(spawn("divide", &[two, of_ref], null())).unwrap_err();
    assert_eq!((status, text.matches("::divide").count()), (CLM_PANICKED, 2), "{text}");
    assert_eq!(get(failed).unwrap_err().0, CLM_PANICKED);
}

fn bytes<T>(values: &[T]) -> clm_arg {
    clm_arg { data: values.as_ptr().cast::<c_void>(), len: size_of_val(values), result: null() }
}

fn spawn(name: &str, args: &[clm_arg], options: *const clm_options) -> *mut clm_ref {
    let name = CString::new(format!("{PREFIX}::{name}")).unwrap();
    let mut result = null_mut();
    // SAFETY: everything is there for the time of the call; the callers' arguments
    // come from slices and refs that live.
    let status = unsafe { clm_spawn(name.as_ptr(), args.as_ptr(), args.len(), options, &raw mut result) };
    assert_eq!(status, CLM_OK, "{}", last_error());
    result
}

/// The result, and releases the ref.
fn get(r: *mut clm_ref) -> Result<Vec<u8>, (clm_status, String)> {
    let mut view = clm_view { data: null(), len: 0, owner: null_mut() };
    // SAFETY: the ref comes from `spawn` and is released here, once; the view is
    // read before its release.
    unsafe {
        let status = clm_get(r, 60_000, &raw mut view);
        let result = match status {
            CLM_OK => Ok(std::slice::from_raw_parts(view.data.cast::<u8>(), view.len).to_vec()),
            _ => Err((status, last_error())),
        };
        clm_view_release(&raw mut view);
        clm_ref_release(r);
        result
    }
}

fn last_error() -> String {
    // SAFETY: a string that is valid until the thread's next failing call.
    unsafe { CStr::from_ptr(clm_last_error()) }.to_string_lossy().into_owned()
}
