//! The part of PMIx that an all-gather needs, from `libpmix.so.2` loaded at
//! run time. The types follow `pmix_common.h` of PMIx 2 to 5, whose client
//! interface is stable.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::fmt;

use libloading::Library;

/// A connection to the PMIx server of this host; finalised when dropped.
pub struct Pmix {
    calls: Calls,
    me: Proc,
}

/// What PMIx can fail with.
#[derive(Debug, thiserror::Error)]
pub enum PmixError {
    /// The library is not there, or lacks a function.
    #[error(
        "the launcher speaks PMIx, and libpmix.so.2 cannot be loaded: install libpmix2, or use `collimate run` ({0})"
    )]
    Library(String),
    /// A call failed.
    #[error("{call} failed: {text}")]
    Call {
        /// The PMIx function.
        call: &'static str,
        /// What `PMIx_Error_string` says.
        text: String,
    },
    /// A value that another rank has put is missing or has another type.
    #[error("rank {0} has published no usable value")]
    Value(u32),
}

impl Pmix {
    /// Loads the library and connects to the server.
    pub fn init() -> Result<Pmix, PmixError> {
        let calls = Calls::load()?;
        let mut me = Proc { nspace: [0; 256], rank: 0 };
        // SAFETY: `me` is a live pmix_proc_t that the call fills; no info is
        // passed.
        let status = unsafe { (calls.init)(&mut me, std::ptr::null_mut(), 0) };
        calls.check("PMIx_Init", status)?;
        Ok(Pmix { calls, me })
    }

    /// This process's rank.
    pub fn rank(&self) -> u32 {
        self.me.rank
    }

    /// The ranks of the job.
    pub fn size(&self) -> Result<u32, PmixError> {
        let value = self.get(RANK_WILDCARD, c"pmix.job.size", &[])?;
        // SAFETY: `get` returns a value that the library has filled; the type
        // is checked before the union's member of that type is read.
        let size = unsafe { ((*value.0).kind == UINT32).then(|| (*value.0).data.uint32) };
        size.ok_or(PmixError::Value(self.me.rank))
    }

    /// Publishes `bytes`, waits for all ranks and returns what each published.
    pub fn exchange(&self, size: u32, bytes: &[u8], timeout_s: u32) -> Result<Vec<Vec<u8>>, PmixError> {
        let mut value = Value { kind: BYTE_OBJECT, data: Data { bytes: ByteObject::of(bytes) } };
        // SAFETY: PMIx_Put copies the value and its bytes, which live until the
        // call returns; the key ends in NUL. It does not write to the bytes.
        let status = unsafe { (self.calls.put)(SCOPE_GLOBAL, KEY.as_ptr(), &mut value) };
        self.calls.check("PMIx_Put", status)?;
        // SAFETY: takes no argument; the client is initialised.
        let status = unsafe { (self.calls.commit)() };
        self.calls.check("PMIx_Commit", status)?;
        let infos = [
            Info::new(c"pmix.collect", Value { kind: BOOL, data: Data { flag: true } }),
            Info::new(c"pmix.timeout", Value { kind: INT, data: Data { integer: timeout_s as c_int } }),
        ];
        // SAFETY: a null list of processes means the whole job; `infos` is an
        // array of as many initialised pmix_info_t as the count says.
        let status = unsafe { (self.calls.fence)(std::ptr::null(), 0, infos.as_ptr(), infos.len()) };
        self.calls.check("PMIx_Fence", status)?;
        let (_, timeout) = infos.split_at(1);
        (0..size).map(|rank| self.bytes_of(rank, timeout)).collect()
    }

    fn bytes_of(&self, rank: u32, timeout: &[Info]) -> Result<Vec<u8>, PmixError> {
        let value = self.get(rank, KEY, timeout)?;
        // SAFETY: as in `size`; a byte object's pointer is to as many bytes as
        // its size says, owned by the value, which outlives the copy.
        unsafe {
            if (*value.0).kind != BYTE_OBJECT || (*value.0).data.bytes.at.is_null() {
                return Err(PmixError::Value(rank));
            }
            let bytes = (*value.0).data.bytes;
            Ok(std::slice::from_raw_parts(bytes.at.cast::<u8>(), bytes.size).to_vec())
        }
    }

    fn get(&self, rank: u32, key: &CStr, infos: &[Info]) -> Result<Fetched, PmixError> {
        let from = Proc { nspace: self.me.nspace, rank };
        let mut value = std::ptr::null_mut();
        // SAFETY: `from` and `key` live over the call, and so does `infos`, an
        // array of as many pmix_info_t as the count says; on success the
        // library stores a pointer to a value that the caller owns.
        let status = unsafe { (self.calls.get)(&from, key.as_ptr(), infos.as_ptr(), infos.len(), &mut value) };
        self.calls.check("PMIx_Get", status)?;
        if value.is_null() { Err(PmixError::Value(rank)) } else { Ok(Fetched(value)) }
    }
}

impl Drop for Pmix {
    fn drop(&mut self) {
        // SAFETY: the client was initialised once by this value, and no call
        // of it is under way, for this is the only reference.
        unsafe { (self.calls.finalize)(std::ptr::null(), 0) };
    }
}

impl fmt::Debug for Pmix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pmix").field("rank", &self.me.rank).finish_non_exhaustive()
    }
}

const KEY: &CStr = c"collimate.card";
const SCOPE_GLOBAL: u8 = 3;
const RANK_WILDCARD: u32 = u32::MAX - 1;
const BOOL: u16 = 1;
const INT: u16 = 6;
const UINT32: u16 = 14;
const BYTE_OBJECT: u16 = 27;

/// `pmix_proc_t`
#[repr(C)]
struct Proc {
    nspace: [u8; 256],
    rank: u32,
}

/// `pmix_byte_object_t`
#[repr(C)]
#[derive(Clone, Copy)]
struct ByteObject {
    at: *mut c_char,
    size: usize,
}

impl ByteObject {
    fn of(bytes: &[u8]) -> Self {
        ByteObject { at: bytes.as_ptr().cast_mut().cast(), size: bytes.len() }
    }
}

/// The union in `pmix_value_t`: three pointers are its largest member
/// (`pmix_envar_t`).
#[repr(C)]
#[derive(Clone, Copy)]
union Data {
    flag: bool,
    integer: c_int,
    uint32: u32,
    bytes: ByteObject,
    whole: [usize; 3],
}

/// `pmix_value_t`
#[repr(C)]
struct Value {
    kind: u16,
    data: Data,
}

/// `pmix_info_t`
#[repr(C)]
struct Info {
    key: [u8; 512],
    flags: u32,
    value: Value,
}

const _: () = assert!(size_of::<Proc>() == 260);
const _: () = assert!(size_of::<Value>() == 32);
const _: () = assert!(size_of::<Info>() == 552);

impl Info {
    fn new(name: &CStr, value: Value) -> Self {
        let mut key = [0; 512];
        key[..name.count_bytes()].copy_from_slice(name.to_bytes());
        Info { key, flags: 0, value }
    }
}

/// A value that `PMIx_Get` allocated.
struct Fetched(*mut Value);

impl Drop for Fetched {
    fn drop(&mut self) {
        // SAFETY: PMIx allocates the value and a byte object's bytes with
        // malloc and leaves freeing them to the caller (PMIX_VALUE_RELEASE is
        // this code). Other types that are asked for here own nothing.
        unsafe {
            if (*self.0).kind == BYTE_OBJECT {
                libc::free((*self.0).data.bytes.at.cast::<c_void>());
            }
            libc::free(self.0.cast::<c_void>());
        }
    }
}

type Init = unsafe extern "C" fn(*mut Proc, *mut Info, usize) -> c_int;
type Put = unsafe extern "C" fn(u8, *const c_char, *mut Value) -> c_int;
type Commit = unsafe extern "C" fn() -> c_int;
type Fence = unsafe extern "C" fn(*const Proc, usize, *const Info, usize) -> c_int;
type Get = unsafe extern "C" fn(*const Proc, *const c_char, *const Info, usize, *mut *mut Value) -> c_int;
type Finalize = unsafe extern "C" fn(*const Info, usize) -> c_int;
type ErrorString = unsafe extern "C" fn(c_int) -> *const c_char;

struct Calls {
    init: Init,
    put: Put,
    commit: Commit,
    fence: Fence,
    get: Get,
    finalize: Finalize,
    error_string: ErrorString,
}

impl Calls {
    fn load() -> Result<Calls, PmixError> {
        let missing = |e: libloading::Error| PmixError::Library(e.to_string());
        // SAFETY: libpmix's constructors only set up its own state. The library
        // is never unloaded (its progress thread may outlive a finalise), so
        // the functions stay valid; their types are those of pmix.h.
        unsafe {
            let library: &'static Library = Box::leak(Box::new(Library::new("libpmix.so.2").map_err(missing)?));
            Ok(Calls {
                init: *library.get::<Init>(c"PMIx_Init").map_err(missing)?,
                put: *library.get::<Put>(c"PMIx_Put").map_err(missing)?,
                commit: *library.get::<Commit>(c"PMIx_Commit").map_err(missing)?,
                fence: *library.get::<Fence>(c"PMIx_Fence").map_err(missing)?,
                get: *library.get::<Get>(c"PMIx_Get").map_err(missing)?,
                finalize: *library.get::<Finalize>(c"PMIx_Finalize").map_err(missing)?,
                error_string: *library.get::<ErrorString>(c"PMIx_Error_string").map_err(missing)?,
            })
        }
    }

    fn check(&self, call: &'static str, status: c_int) -> Result<(), PmixError> {
        if status == 0 {
            return Ok(());
        }
        // SAFETY: PMIx_Error_string returns a static NUL-terminated string for
        // every number.
        let text = unsafe { CStr::from_ptr((self.error_string)(status)) };
        Err(PmixError::Call { call, text: text.to_string_lossy().into_owned() })
    }
}
