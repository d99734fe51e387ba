//! Registered memory.

use std::ffi::c_void;
use std::ptr::NonNull;

use super::OfiError;
use super::generated::*;
use super::library::Library;
use crate::mem::Region;

/// How a peer names a registered region.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RemoteKey {
    /// The provider's key.
    pub key: u64,
    /// What the first byte's address is to the provider.
    pub base: u64,
}

/// What a provider asks for when memory is registered, and where.
pub(super) struct Registrar {
    library: &'static Library,
    domain: NonNull<fid_domain>,
    endpoint: NonNull<fid_ep>,
    mode: u32,
    key_mask: u64,
}

/// One registration. Closed with [`Mr::close`], before its memory goes.
pub(super) struct Mr(NonNull<fid_mr>);

impl Registrar {
    /// Asks what the domain's attributes say, and `more`.
    ///
    /// # Safety
    /// The domain and the endpoint, which is enabled, are open while the
    /// registrar and its registrations are used; `domain` is what the endpoint
    /// belongs to and has the attributes of `attr`.
    pub unsafe fn new(
        library: &'static Library,
        domain: NonNull<fid_domain>,
        endpoint: NonNull<fid_ep>,
        attr: &fi_domain_attr,
        more: u32,
    ) -> Registrar {
        let key_mask = match attr.mr_key_size {
            bytes @ 1..8 => (1 << (8 * bytes)) - 1,
            _ => u64::MAX,
        };
        Registrar { library, domain, endpoint, mode: attr.mr_mode as u32 | more, key_mask }
    }

    /// Whether local buffers must be registered too.
    pub fn is_needed_locally(&self) -> bool {
        self.mode & FI_MR_LOCAL != 0
    }

    /// Whether registrations are the endpoint's.
    pub fn binds_to_endpoint(&self) -> bool {
        self.mode & FI_MR_ENDPOINT != 0
    }

    /// Whether pages must be there before they are registered.
    pub fn wants_pages(&self) -> bool {
        self.mode & FI_MR_ALLOCATED != 0
    }

    /// How peers name `region`, which is registered as `mr`.
    pub fn remote_key(&self, region: &Region, mr: &Mr) -> RemoteKey {
        let base = if self.mode & FI_MR_VIRT_ADDR != 0 { region.base().as_ptr().addr() as u64 } else { 0 };
        RemoteKey { key: mr.key(), base }
    }

    /// Registers `bytes`.
    ///
    /// # Safety
    /// The bytes stay mapped until the registration is closed. What `access`
    /// allows the provider to do with them happens to nobody's reference.
    pub unsafe fn register(&self, bytes: NonNull<[u8]>, access: u32) -> Result<Mr, OfiError> {
        // A key that a stranger can guess would let it read. One that is in use
        // already is refused, and the next one tried.
        for _ in 0..8 {
            let key = random_key()? & self.key_mask;
            // SAFETY: the domain is open (`new`), its table of operations
            // belongs to it, and the range is the caller's promise.
            let (status, mr) = unsafe {
                let domain = self.domain.as_ptr();
                let register = (*(*domain).mr).reg.ok_or(OfiError::missing("fi_mr_reg"))?;
                let mut mr = std::ptr::null_mut();
                let base = bytes.cast::<c_void>().as_ptr();
                let status = register(
                    &raw mut (*domain).fid,
                    base,
                    bytes.len(),
                    u64::from(access),
                    0,
                    key,
                    0,
                    &mut mr,
                    std::ptr::null_mut(),
                );
                (status, NonNull::new(mr))
            };
            match mr {
                Some(mr) if status == 0 => return self.enable(Mr(mr)),
                _ if status == -(FI_ENOKEY as i32) => {}
                _ => return Err(self.library.error("fi_mr_reg", status as isize)),
            }
        }
        Err(self.library.error("fi_mr_reg", -(FI_ENOKEY as isize)))
    }

    /// Binds a registration to the endpoint, where the provider wants that.
    fn enable(&self, mr: Mr) -> Result<Mr, OfiError> {
        if !self.binds_to_endpoint() {
            return Ok(mr);
        }
        let fid = mr.0.as_ptr();
        // SAFETY: the registration was opened a moment ago and the endpoint is
        // open (`new`); both tables of operations belong to them.
        let status = unsafe {
            let ops = &*(*fid).fid.ops;
            match (ops.bind, ops.control) {
                (Some(bind), Some(control)) => {
                    match bind(&raw mut (*fid).fid, &raw mut (*self.endpoint.as_ptr()).fid, 0) {
                        0 => control(&raw mut (*fid).fid, FI_ENABLE as i32, std::ptr::null_mut()),
                        status => status,
                    }
                }
                _ => -(FI_ENOSYS as i32),
            }
        };
        if status == 0 {
            return Ok(mr);
        }
        // It was never usable, so that it may stay if it cannot be closed.
        let _ = mr.close();
        Err(self.library.error("fi_mr_enable", status as isize))
    }
}

impl Mr {
    /// What calls with local buffers pass along.
    pub fn descriptor(&self) -> *mut c_void {
        // SAFETY: a registration is live until `close` takes it.
        unsafe { (*self.0.as_ptr()).mem_desc }
    }

    /// What `close` closes.
    #[cfg(test)]
    pub fn fid(&self) -> *mut fid {
        // SAFETY: as in `descriptor`; no reference is made.
        unsafe { &raw mut (*self.0.as_ptr()).fid }
    }

    fn key(&self) -> u64 {
        // SAFETY: as in `descriptor`.
        unsafe { (*self.0.as_ptr()).key }
    }

    /// Ends the registration; gives it back if the provider still needs it.
    pub fn close(self) -> Result<(), Mr> {
        // SAFETY: as in `descriptor`; a successful close is the last use.
        if unsafe { super::endpoint::close(&raw mut (*self.0.as_ptr()).fid) } { Ok(()) } else { Err(self) }
    }
}

/// Never all ones, which stands for no key.
fn random_key() -> Result<u64, OfiError> {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes).map_err(|error| OfiError {
        call: "getrandom",
        code: FI_EOTHER as i32,
        text: error.to_string(),
    })?;
    Ok(u64::from_ne_bytes(bytes) & (u64::MAX >> 1))
}
