//! Which providers there are, and which one to take.

use std::ffi::{CStr, CString, c_char};
use std::net::IpAddr;
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

/// What a provider offers, to open an endpoint of it.
pub struct OfiOffer {
    pub(super) info: Info,
    pub(super) summary: OfiSummary,
}

impl OfiOffer {
    /// The provider that would be taken: the one named, any one for [`ANY`], or
    /// the best one with hardware. Where it offers several addresses of this
    /// host, `source` is taken if it is among them. An error says why there is
    /// no provider.
    ///
    /// Loading libfabric and asking takes a third of a second, so that it is
    /// not asked for hardware where the system shows none.
    pub fn find(provider: Option<&str>, source: Option<IpAddr>) -> Result<OfiOffer, String> {
        if provider.is_none() && !has_fabric_adapter() {
            return Err("there is no network adapter that libfabric has a provider for".into());
        }
        choose(Library::get()?, provider, source)
    }

    /// What is offered.
    pub fn summary(&self) -> &OfiSummary {
        &self.summary
    }
}

/// The summary of [`OfiOffer::find`].
pub fn available(provider: Option<&str>) -> Result<OfiSummary, String> {
    OfiOffer::find(provider, None).map(|offer| offer.summary)
}

fn choose(library: &'static Library, provider: Option<&str>, source: Option<IpAddr>) -> Result<OfiOffer, String> {
    // Asked by name, the other providers need not look for their hardware.
    let named = provider.filter(|name| *name != ANY);
    let offers = Info::query(library, named).map_err(|error| match named {
        Some(name) => format!("libfabric has no provider `{name}` with messages and reads here ({error}){}", others(library)),
        None => format!("libfabric has no provider with messages and reads here ({error})"),
    })?;
    let wanted = wanted(provider);
    let best = offers.iter().filter(|offer| is_usable(offer)).filter_map(|offer| {
        let summary = summary(library, offer);
        let place = wanted.iter().position(|name| *name == summary.provider)?;
        let is_elsewhere = source.is_some() && address_of(offer) != source;
        Some(((place, is_elsewhere), offer, summary))
    });
    let Some((_, offer, summary)) = best.min_by_key(|(rating, ..)| *rating) else {
        return Err(match named {
            Some(name) => format!("libfabric has no usable provider `{name}` here{}", others(library)),
            None => format!("libfabric has no provider for this machine's network{}", others(library)),
        });
    };
    Ok(OfiOffer { info: offer.duplicate(library)?, summary })
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
    let Ok(offers) = Info::query(library, None) else { return String::new() };
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

/// The host's address that an endpoint of the offer would have.
fn address_of(offer: &fi_info) -> Option<IpAddr> {
    let bytes = bytes_of_source(offer);
    match offer.addr_format {
        FI_SOCKADDR_IN => bytes.get(4..8)?.try_into().map(|ip: [u8; 4]| ip.into()).ok(),
        FI_SOCKADDR_IN6 => bytes.get(8..24)?.try_into().map(|ip: [u8; 16]| ip.into()).ok(),
        _ => None,
    }
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
    fn query(library: &'static Library, provider: Option<&str>) -> Result<Info, OfiError> {
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
        let (mut head, any) = (std::ptr::null_mut(), std::ptr::null());
        // SAFETY: no node or service is named, the hints are live, and on
        // success the library stores a list that the caller owns.
        let status = unsafe { (library.get_info)(library.api(), any, any, 0, hints.head.as_ptr(), &mut head) };
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
    fn the_address_that_is_asked_for_is_taken_where_it_is_offered() {
        let Ok(unasked) = OfiOffer::find(Some("tcp"), None) else { return };
        for loopback in [IpAddr::from([127, 0, 0, 1]), "::1".parse().unwrap()] {
            let Ok(offers) = Info::query(Library::get().unwrap(), Some("tcp")) else { continue };
            let is_offered = offers.iter().any(|offer| address_of(offer) == Some(loopback));
            let found = OfiOffer::find(Some("tcp"), Some(loopback)).unwrap();
            assert_eq!(address_of(found.info.get()) == Some(loopback), is_offered, "{loopback}");
        }
        // An address of no host: what there is must do.
        let elsewhere = OfiOffer::find(Some("tcp"), Some([192, 0, 2, 77].into())).unwrap();
        assert_eq!(elsewhere.summary(), unasked.summary());
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
