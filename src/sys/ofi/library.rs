//! The functions that libfabric exports. Everything else is reached through
//! the tables of operations of the objects that these give.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::sync::OnceLock;

use super::OfiError;
use super::generated::{FI_MAJOR_VERSION, FI_MINOR_VERSION, fi_fabric_attr, fi_info, fid_fabric};

type GetInfo =
    unsafe extern "C" fn(u32, *const c_char, *const c_char, u64, *const fi_info, *mut *mut fi_info) -> c_int;
type FreeInfo = unsafe extern "C" fn(*mut fi_info);
type DupInfo = unsafe extern "C" fn(*const fi_info) -> *mut fi_info;
type OpenFabric = unsafe extern "C" fn(*mut fi_fabric_attr, *mut *mut fid_fabric, *mut c_void) -> c_int;
type Version = unsafe extern "C" fn() -> u32;
type StrError = unsafe extern "C" fn(c_int) -> *const c_char;

/// See the module.
pub struct Library {
    pub get_info: GetInfo,
    pub free_info: FreeInfo,
    pub dup_info: DupInfo,
    pub open_fabric: OpenFabric,
    str_error: StrError,
    /// The library's own version: major, minor.
    pub version: (u32, u32),
}

impl Library {
    /// The library, loaded by the first call.
    pub fn get() -> Result<&'static Library, String> {
        static LIBRARY: OnceLock<Result<Library, String>> = OnceLock::new();
        LIBRARY.get_or_init(Library::load).as_ref().map_err(String::clone)
    }

    /// The version of the interface to ask for: that of the headers which the
    /// bindings were made from, or the library's own if it is older.
    pub fn api(&self) -> u32 {
        let (major, minor) = self.version.min((FI_MAJOR_VERSION, FI_MINOR_VERSION));
        major << 16 | minor
    }

    /// The error of a call that returned a negative number.
    pub fn error(&self, call: &'static str, status: isize) -> OfiError {
        let code = status.unsigned_abs() as i32;
        // SAFETY: fi_strerror returns a static NUL-terminated string for every
        // number.
        let text = unsafe { CStr::from_ptr((self.str_error)(code)) };
        OfiError { call, code, text: text.to_string_lossy().into_owned() }
    }

    fn load() -> Result<Library, String> {
        let missing = |e: libloading::Error| {
            format!("libfabric.so.1 cannot be loaded: install libfabric1, or the library of the machine's vendor ({e})")
        };
        // SAFETY: libfabric's constructors only set up its own state. The
        // library is never unloaded (its providers may have threads), so the
        // functions stay valid.
        let handle = unsafe { libloading::os::unix::Library::new("libfabric.so.1") }.map_err(missing)?.into_raw();
        // SAFETY: the types are those of the headers whose interface these
        // versions of the symbols are: FABRIC_1.3 is libfabric 1.9 to 1.19,
        // and later libraries still export it, with the structures as they
        // were then. A plain look-up would give the newest version.
        unsafe {
            let version: Version = std::mem::transmute(symbol(handle, c"fi_version", c"FABRIC_1.0")?);
            let number = version();
            Ok(Library {
                get_info: std::mem::transmute::<*mut c_void, GetInfo>(symbol(handle, c"fi_getinfo", c"FABRIC_1.3")?),
                free_info: std::mem::transmute::<*mut c_void, FreeInfo>(symbol(handle, c"fi_freeinfo", c"FABRIC_1.3")?),
                dup_info: std::mem::transmute::<*mut c_void, DupInfo>(symbol(handle, c"fi_dupinfo", c"FABRIC_1.3")?),
                open_fabric: std::mem::transmute::<*mut c_void, OpenFabric>(symbol(
                    handle,
                    c"fi_fabric",
                    c"FABRIC_1.1",
                )?),
                str_error: std::mem::transmute::<*mut c_void, StrError>(symbol(handle, c"fi_strerror", c"FABRIC_1.0")?),
                version: (number >> 16, number & 0xffff),
            })
        }
    }
}

/// The address of a function, never null.
fn symbol(library: *mut c_void, name: &CStr, version: &CStr) -> Result<*mut c_void, String> {
    // SAFETY: the handle is that of a loaded library and both names end in NUL.
    let address = unsafe { libc::dlvsym(library, name.as_ptr(), version.as_ptr()) };
    if address.is_null() {
        let (name, version) = (name.to_string_lossy(), version.to_string_lossy());
        return Err(format!("libfabric.so.1 lacks {name} of {version}: 1.9 or later is needed"));
    }
    Ok(address)
}
