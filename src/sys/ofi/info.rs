//! Which providers there are, and which one to take.

use std::ffi::{CStr, CString, c_char};
use std::ptr::NonNull;

use super::OfiError;
use super::generated::*;
use super::super::adapters::has_fabric_adapter;
use super::library::Library;

/// Asks for any provider: hardware first, else one over sockets.
pub const ANY: &str = "any";

/// Providers of networks that are made for this, the best one first. `verbs`
/// comes last, since machines that have it are served by our own backend.
const HARDWARE: [&str; 6] = ["cxi", "opx", "psm3", "psm2", "efa", "verbs"];

/// Providers over what every machine has: for tests and where they are asked
/// for by name.
const SOFTWARE: [&str; 2] = ["tcp", "sockets"];

/// What a program may see of the provider that would be taken.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct OfiSummary {
    /// The provider's short name, as it is asked for: `tcp`.
    pub provider: String,
    /// Its full name, with the layers above it: `tcp;ofi_rxm`.
    pub full_name: String,
    /// The device or network.
    pub domain: String,
    /// Whether it drives a network of its own.
    pub is_hardware: bool,
    /// libfabric's version.
    pub version: (u32, u32),
    /// What is known to be wrong with it.
    pub caveat: Option<&'static str>,
}

/// The provider that would be taken: the one named, any one for [`ANY`], or the
/// best one with hardware. An error says why there is none.
///
/// Loading libfabric and asking takes a third of a second, so that it is not
/// asked for hardware where the system shows none.
pub fn available(provider: Option<&str>) -> Result<OfiSummary, String> {
    if provider.is_none() && !has_fabric_adapter() {
        return Err("there is no network adapter that libfabric has a provider for".into());
    }
    let library = Library::get()?;
    choose(library, provider, None).map(|(_, summary)| summary)
}

/// One offer of a provider, and what can be told of it. `source` is the
/// address to use, where the provider has addresses of hosts.
pub(super) fn choose(
    library: &'static Library,
    provider: Option<&str>,
    source: Option<&str>,
) -> Result<(Info, OfiSummary), String> {
    // Asked by name, the other providers need not look for their hardware.
    let named = provider.filter(|name| *name != ANY);
    let offers = Info::query(library, named, source).map_err(|error| match named {
        Some(name) => format!("libfabric has no provider `{name}` with messages and reads here ({error}){}", others(library)),
        None => format!("libfabric has no provider with messages and reads here ({error})"),
    })?;
    let wanted = wanted(provider);
    let best = offers.iter().filter(|offer| is_usable(offer)).filter_map(|offer| {
        let summary = summary(library, offer);
        let place = wanted.iter().position(|name| *name == summary.provider)?;
        Some((place, offer, summary))
    });
    let Some((_, offer, summary)) = best.min_by_key(|(place, ..)| *place) else {
        return Err(match named {
            Some(name) => format!("libfabric has no usable provider `{name}` here{}", others(library)),
            None => format!("libfabric has no provider for this machine's network{}", others(library)),
        });
    };
    Ok((offer.duplicate(library)?, summary))
}

/// The names that will do, the best one first.
fn wanted(provider: Option<&str>) -> Vec<&str> {
    match provider {
        None => HARDWARE.to_vec(),
        Some(ANY) => HARDWARE.into_iter().chain(SOFTWARE).collect(),
        Some(name) => vec![name],
    }
}

/// What to say about the providers that were not asked for.
fn others(library: &'static Library) -> String {
    let Ok(offers) = Info::query(library, None, None) else { return String::new() };
    let mut names: Vec<String> =
        offers.iter().filter(|offer| is_usable(offer)).map(|offer| summary(library, offer).provider).collect();
    names.sort();
    names.dedup();
    if names.is_empty() {
        return String::new();
    }
    format!("; COLLIMATE_OFI_PROVIDER may name one of those that there are: {}", names.join(", "))
}

/// What was asked for is what is there: a provider may leave out what it only
/// might have. Link-local addresses cannot be told to another host.
fn is_usable(offer: &fi_info) -> bool {
    // SAFETY: every attribute of an offer points to a structure that lives as
    // long as the offer, which is borrowed.
    let (tx, rx) = unsafe { (&*offer.tx_attr, &*offer.rx_attr) };
    let is_ordered = (tx.msg_order & rx.msg_order) & u64::from(FI_ORDER_SAS) != 0;
    is_ordered && !(offer.addr_format == FI_SOCKADDR_IN6 && bytes_of_source(offer).get(8..10) == Some(&[0xfe, 0x80]))
}

fn bytes_of_source(offer: &fi_info) -> &[u8] {
    if offer.src_addr.is_null() {
        return &[];
    }
    // SAFETY: `src_addr` points to `src_addrlen` bytes that belong to the offer.
    unsafe { std::slice::from_raw_parts(offer.src_addr.cast::<u8>(), offer.src_addrlen) }
}

fn summary(library: &Library, offer: &fi_info) -> OfiSummary {
    // SAFETY: as in `is_usable`; the names are null or end in NUL.
    let (full_name, domain) =
        unsafe { (text((*offer.fabric_attr).prov_name), text((*offer.domain_attr).name)) };
    // The layers above a provider begin with `ofi_`.
    let provider = full_name.split(';').find(|part| !part.starts_with("ofi_")).unwrap_or(&full_name).to_string();
    let is_hardware = HARDWARE.contains(&provider.as_str());
    let caveat = (provider == "shm").then_some(
        "a process that is killed within this provider may leave its partners waiting there for ever: use it for tests",
    );
    OfiSummary { provider, full_name, domain, is_hardware, version: library.version, caveat }
}

/// # Safety
/// `name` is null or ends in NUL, and lives over the call.
unsafe fn text(name: *const c_char) -> String {
    if name.is_null() {
        return String::new();
    }
    // SAFETY: not null, and the rest is the caller's promise.
    unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned()
}

/// A list of offers that libfabric allocated.
pub(super) struct Info {
    head: NonNull<fi_info>,
    library: &'static Library,
}

impl Info {
    /// Asks for reliable-datagram endpoints with messages and reads, at any
    /// demands on memory registration that we can meet.
    fn query(library: &'static Library, provider: Option<&str>, source: Option<&str>) -> Result<Info, OfiError> {
        let hints = Info::empty(library)?;
        // SAFETY: fi_dupinfo(NULL) allocates the structure with all attributes,
        // zeroed; it is ours until it is freed. The name is allocated by
        // malloc, since fi_freeinfo frees it.
        unsafe {
            let hints = &mut *hints.head.as_ptr();
            hints.caps = u64::from(FI_MSG | FI_RMA | FI_SEND | FI_RECV | FI_READ | FI_REMOTE_READ);
            hints.mode = FI_CONTEXT | FI_CONTEXT2;
            (*hints.ep_attr).type_ = FI_EP_RDM;
            (*hints.tx_attr).msg_order = u64::from(FI_ORDER_SAS);
            (*hints.rx_attr).msg_order = u64::from(FI_ORDER_SAS);
            let domain = &mut *hints.domain_attr;
            domain.threading = FI_THREAD_DOMAIN;
            domain.control_progress = FI_PROGRESS_MANUAL;
            domain.data_progress = FI_PROGRESS_MANUAL;
            domain.resource_mgmt = FI_RM_ENABLED;
            domain.mr_mode =
                (FI_MR_LOCAL | FI_MR_VIRT_ADDR | FI_MR_ALLOCATED | FI_MR_PROV_KEY | FI_MR_ENDPOINT) as i32;
            if let Some(name) = provider.and_then(|name| CString::new(name).ok()) {
                (*hints.fabric_attr).prov_name = libc::strdup(name.as_ptr());
            }
        }
        let source = source.and_then(|name| CString::new(name).ok());
        let node = source.as_ref().map_or(std::ptr::null(), |name| name.as_ptr());
        let flags = if source.is_some() { FI_SOURCE | FI_NUMERICHOST } else { 0 };
        let mut head = std::ptr::null_mut();
        // SAFETY: `node` is null or ends in NUL, the hints are live, and on
        // success the library stores a list that the caller owns.
        let status =
            unsafe { (library.get_info)(library.api(), node, std::ptr::null(), flags, hints.head.as_ptr(), &mut head) };
        match NonNull::new(head) {
            Some(head) if status == 0 => Ok(Info { head, library }),
            _ => Err(library.error("fi_getinfo", if status == 0 { -(FI_ENODATA as isize) } else { status as isize })),
        }
    }

    fn empty(library: &'static Library) -> Result<Info, OfiError> {
        // SAFETY: null asks for a fresh structure, which the caller owns.
        let head = unsafe { (library.dup_info)(std::ptr::null()) };
        let head = NonNull::new(head).ok_or_else(|| library.error("fi_dupinfo", -(FI_ENOMEM as isize)))?;
        Ok(Info { head, library })
    }

    fn iter(&self) -> impl Iterator<Item = &fi_info> {
        // SAFETY: the list is owned by `self`, which the references borrow; its
        // end is a null pointer.
        std::iter::successors(Some(unsafe { self.head.as_ref() }), |offer| unsafe { offer.next.as_ref() })
    }

    /// The first offer, to read and to pass on.
    pub fn get(&self) -> &fi_info {
        // SAFETY: as in `iter`.
        unsafe { self.head.as_ref() }
    }

    /// For calls that take it as mutable, and change nothing.
    pub fn as_ptr(&self) -> *mut fi_info {
        self.head.as_ptr()
    }
}

impl fi_info {
    fn duplicate(&self, library: &'static Library) -> Result<Info, String> {
        // SAFETY: `self` is a live offer; the copy is of this one alone and the
        // caller owns it.
        let head = unsafe { (library.dup_info)(self) };
        let head = NonNull::new(head).ok_or("fi_dupinfo: out of memory")?;
        Ok(Info { head, library })
    }
}

impl Drop for Info {
    fn drop(&mut self) {
        // SAFETY: the list is owned and freed once.
        unsafe { (self.library.free_info)(self.head.as_ptr()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn software_is_taken_only_when_asked_for() {
        assert!(SOFTWARE.iter().all(|name| !wanted(None).contains(name)));
        assert_eq!(wanted(None)[0], "cxi");
        assert_eq!(wanted(Some(ANY)).last(), Some(&"sockets"));
        assert_eq!(wanted(Some("shm")), ["shm"]);
    }

    #[test]
    fn a_provider_that_is_not_there_is_named_with_those_that_are() {
        if Library::get().is_err() {
            return;
        }
        let why = available(Some("no-such-provider")).unwrap_err();
        assert!(why.contains("`no-such-provider`"), "{why}");
        if let Ok(summary) = available(Some("tcp")) {
            assert!(!summary.is_hardware && summary.full_name.starts_with("tcp"), "{summary:?}");
            assert!(why.contains("tcp"), "{why}");
        }
    }
}
