//! Devices, their ports and addresses.

use std::ffi::{CStr, CString};
use std::fmt;
use std::io;
use std::mem::zeroed;
use std::net::Ipv6Addr;
use std::os::fd::{AsFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::Arc;

use super::{check, ffi, library, non_null};

/// Entries of a GID table that are looked at.
const GIDS_MAX: u32 = 256;

/// The link layer of `ibv_port_attr` that stands for Ethernet.
const LINK_LAYER_ETHERNET: u8 = 2;

/// `IBV_QPF_GRH_REQUIRED` of `ibv_port_attr`.
const FLAG_GRH_REQUIRED: u8 = 1;

/// The devices of this host, or why there can be none.
pub fn adapter_names() -> Result<Vec<String>, String> {
    let verbs = library()?;
    let list = List::get(verbs)?;
    Ok(list.devices().map(|device| name_of(verbs, device)).collect())
}

/// An opened device with a protection domain.
pub struct Adapter {
    pub(super) verbs: &'static ffi::Library,
    pub(super) context: NonNull<ffi::ibv_context>,
    pub(super) domain: NonNull<ffi::ibv_pd>,
    name: String,
    attributes: ffi::ibv_device_attr,
}

// SAFETY: libibverbs is thread-safe ("the data path and control path verbs may
// be called from any thread", rdma-core's documentation of threads); the value
// itself is not changed after `open`.
unsafe impl Send for Adapter {}
// SAFETY: as above.
unsafe impl Sync for Adapter {}

/// How an adapter talks to others.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Transport {
    /// As InfiniBand does, or RoCE.
    InfiniBand,
    /// RDMA over TCP, whose connections are made in another way.
    Iwarp,
    /// In a way of its own, as EFA or usNIC, without reliable connections.
    Other,
}

/// What a port is like now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Port {
    /// From 1.
    pub number: u8,
    /// Whether it carries data.
    pub is_active: bool,
    /// Whether it is RoCE; else InfiniBand.
    pub is_ethernet: bool,
    /// Whether packets need a global route even within the subnet.
    pub needs_global_route: bool,
    /// InfiniBand's local address; 0 with Ethernet.
    pub lid: u16,
    /// The active MTU, 1 to 5 for 256 to 4096 bytes.
    pub mtu: u8,
    /// The longest message, in bytes.
    pub message_bytes_max: u32,
    /// Entries of its GID table, in use or not.
    pub gids: u32,
}

/// What an entry of a GID table is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum GidKind {
    /// InfiniBand.
    InfiniBand,
    /// RoCE without IP: one subnet only.
    RoceV1,
    /// RoCE over UDP.
    RoceV2,
}

/// An entry of a port's GID table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Gid {
    /// Its place in the table.
    pub index: u8,
    /// The address.
    pub bytes: [u8; 16],
    /// What it is for.
    pub kind: GidKind,
}

/// What a device reports aside from completions.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AsyncEvent {
    /// The peer of this queue pair asked for memory that it may not have.
    Access(u32),
    /// This queue pair failed.
    Pair(u32),
    /// The whole device failed.
    Device,
    /// Nothing that needs an answer.
    Other,
}

impl Adapter {
    /// Opens the device of that name.
    pub fn open(name: &str) -> Result<Arc<Adapter>, String> {
        let verbs = library()?;
        let list = List::get(verbs)?;
        let found = list.devices().find(|device| name_of(verbs, *device) == name);
        let device = found.ok_or_else(|| format!("there is no device {name}"))?;
        let refused = |what: &str, error: io::Error| format!("{what} of {name} failed: {error}");
        // SAFETY: the device is of the list, which lives until the end of this
        // function; an opened context does not need the list.
        let context = unsafe { non_null((verbs.ibv_open_device)(device)) }.map_err(|e| refused("opening", e))?;
        // SAFETY: the context was opened above.
        let domain = match unsafe { non_null((verbs.ibv_alloc_pd)(context.as_ptr())) } {
            Ok(domain) => domain,
            Err(error) => {
                // SAFETY: opened above, and nothing else uses it.
                unsafe { (verbs.ibv_close_device)(context.as_ptr()) };
                return Err(refused("the protection domain", error));
            }
        };
        // SAFETY: all-zero bytes are a valid `ibv_device_attr`: numbers only.
        let attributes = unsafe { zeroed() };
        let mut adapter = Adapter { verbs, context, domain, name: name.into(), attributes };
        // SAFETY: the context is open; the attributes are written in the call.
        let status = unsafe { (verbs.ibv_query_device)(context.as_ptr(), &raw mut adapter.attributes) };
        check(status).map_err(|e| refused("the query", e))?;
        rustix::io::ioctl_fionbio(adapter.async_fd(), true).map_err(|e| refused("the event descriptor", e.into()))?;
        Ok(Arc::new(adapter))
    }

    /// The device's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether the processor does its work, as with `rxe` and `siw`: then it
    /// hangs on no bus.
    pub fn is_emulated(&self) -> bool {
        let place = std::fs::canonicalize(format!("/sys/class/infiniband/{}", self.name));
        place.is_ok_and(|place| place.starts_with("/sys/devices/virtual"))
    }

    /// How it talks to others.
    pub fn transport(&self) -> Transport {
        // SAFETY: the context is open, and so its device lives.
        Transport::of(unsafe { (*(*self.context.as_ptr()).device).transport_type })
    }

    /// Queue pairs that it can have.
    pub fn pairs_max(&self) -> u32 {
        positive(self.attributes.max_qp)
    }

    /// How many ports it has.
    pub fn ports(&self) -> u8 {
        self.attributes.phys_port_cnt
    }

    /// Entries that a completion queue can have.
    pub fn completions_max(&self) -> u32 {
        positive(self.attributes.max_cqe)
    }

    /// Buffers that a shared receive queue can hold.
    pub fn receives_max(&self) -> u32 {
        positive(self.attributes.max_srq_wr)
    }

    /// Work requests that a queue pair can hold.
    pub fn work_requests_max(&self) -> u32 {
        positive(self.attributes.max_qp_wr)
    }

    /// Reads that a queue pair can have under way at its peer.
    pub fn reads_out_max(&self) -> u8 {
        positive(self.attributes.max_qp_init_rd_atom).min(255) as u8
    }

    /// Reads that a queue pair can answer at once.
    pub fn reads_in_max(&self) -> u8 {
        positive(self.attributes.max_qp_rd_atom).min(255) as u8
    }

    /// Looks at a port.
    pub fn port(&self, number: u8) -> io::Result<Port> {
        // SAFETY: all-zero bytes are a valid `ibv_port_attr`.
        let mut port: ffi::ibv_port_attr = unsafe { zeroed() };
        // SAFETY: the context is open. The function writes the attributes of an
        // older, shorter layout, or the whole, whose first part is the same
        // (as verbs.h's own fallback passes it).
        let status =
            unsafe { (self.verbs.ibv_query_port)(self.context.as_ptr(), number, (&raw mut port).cast()) };
        check(status)?;
        Ok(Port {
            number,
            is_active: matches!(port.state, ffi::IBV_PORT_ACTIVE | ffi::IBV_PORT_ACTIVE_DEFER),
            is_ethernet: port.link_layer == LINK_LAYER_ETHERNET,
            needs_global_route: port.flags & FLAG_GRH_REQUIRED != 0,
            lid: port.lid,
            mtu: port.active_mtu.clamp(1, 5) as u8,
            message_bytes_max: port.max_msg_sz,
            gids: positive(port.gid_tbl_len),
        })
    }

    /// The port's addresses. What an entry is for stands in sysfs only.
    pub fn gids(&self, port: &Port) -> Vec<Gid> {
        let attributes = format!("/sys/class/infiniband/{}/ports/{}/gid_attrs/types", self.name, port.number);
        let mut gids = Vec::new();
        for index in 0..port.gids.min(GIDS_MAX) {
            let mut gid = ffi::ibv_gid { raw: [0; 16] };
            // SAFETY: the context is open; the entry is written in the call.
            let status = unsafe {
                (self.verbs.ibv_query_gid)(self.context.as_ptr(), port.number, index as i32, &raw mut gid)
            };
            // SAFETY: every bit pattern is 16 bytes.
            let bytes = unsafe { gid.raw };
            if status != 0 || bytes == [0; 16] {
                continue;
            }
            let kind = match std::fs::read_to_string(format!("{attributes}/{index}")) {
                _ if !port.is_ethernet => GidKind::InfiniBand,
                Ok(text) if text.trim() == "RoCE v2" => GidKind::RoceV2,
                Ok(_) => GidKind::RoceV1,
                // An entry that is not in use has no type.
                Err(_) => continue,
            };
            gids.push(Gid { index: index as u8, bytes, kind });
        }
        gids
    }

    /// Readable when [`Adapter::take_event`] has something.
    pub fn async_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor is open as long as the context, which `self`
        // closes when it is dropped.
        unsafe { BorrowedFd::borrow_raw((*self.context.as_ptr()).async_fd) }
    }

    /// The next event that is not about a completion, if there is one.
    pub fn take_event(&self) -> Option<AsyncEvent> {
        // SAFETY: all-zero bytes are a valid `ibv_async_event`.
        let mut event: ffi::ibv_async_event = unsafe { zeroed() };
        // SAFETY: the context is open and its descriptor does not block; on
        // success the event is written and must be acknowledged.
        if unsafe { (self.verbs.ibv_get_async_event)(self.context.as_ptr(), &raw mut event) } != 0 {
            return None;
        }
        let pair = || {
            // SAFETY: for these types the union holds a queue pair, and one is
            // not destroyed before its events are acknowledged.
            unsafe { (*event.element.qp).qp_num }
        };
        let taken = match event.event_type {
            ffi::IBV_EVENT_QP_ACCESS_ERR => AsyncEvent::Access(pair()),
            ffi::IBV_EVENT_QP_FATAL | ffi::IBV_EVENT_QP_REQ_ERR => AsyncEvent::Pair(pair()),
            ffi::IBV_EVENT_DEVICE_FATAL | ffi::IBV_EVENT_CQ_ERR | ffi::IBV_EVENT_SRQ_ERR => AsyncEvent::Device,
            _ => AsyncEvent::Other,
        };
        // SAFETY: the event that was got above, once.
        unsafe { (self.verbs.ibv_ack_async_event)(&raw mut event) };
        Some(taken)
    }

    /// What a completion's status number means.
    pub(super) fn status_text(&self, status: u32) -> String {
        // SAFETY: the function returns a static string for every number.
        let text = unsafe { CStr::from_ptr((self.verbs.ibv_wc_status_str)(status)) };
        text.to_string_lossy().into_owned()
    }
}

impl AsFd for Adapter {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.async_fd()
    }
}

impl Drop for Adapter {
    fn drop(&mut self) {
        // SAFETY: made by `open`. Everything made from them keeps an `Arc` of
        // this value, so nothing is left that uses them.
        unsafe {
            (self.verbs.ibv_dealloc_pd)(self.domain.as_ptr());
            (self.verbs.ibv_close_device)(self.context.as_ptr());
        }
    }
}

impl fmt::Debug for Adapter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Adapter").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Transport {
    fn of(number: ffi::ibv_transport_type) -> Transport {
        match number {
            ffi::IBV_TRANSPORT_IB => Transport::InfiniBand,
            ffi::IBV_TRANSPORT_IWARP => Transport::Iwarp,
            _ => Transport::Other,
        }
    }
}

impl Gid {
    /// Whether it is an IPv4 address in IPv6's clothes.
    pub fn is_ipv4(&self) -> bool {
        Ipv6Addr::from(self.bytes).to_ipv4_mapped().is_some()
    }

    /// Whether it reaches no further than the link.
    pub fn is_link_local(&self) -> bool {
        self.bytes[0] == 0xfe && self.bytes[1] & 0xc0 == 0x80
    }
}

impl fmt::Display for Gid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let address = Ipv6Addr::from(self.bytes);
        match address.to_ipv4_mapped() {
            Some(ipv4) => ipv4.fmt(f),
            None => address.fmt(f),
        }
    }
}

/// A device list, given back when dropped.
struct List {
    verbs: &'static ffi::Library,
    first: NonNull<*mut ffi::ibv_device>,
    count: usize,
}

impl List {
    fn get(verbs: &'static ffi::Library) -> Result<List, String> {
        let mut count = 0;
        // SAFETY: writes the count and returns a list that is freed below.
        let first = unsafe { (verbs.ibv_get_device_list)(&raw mut count) };
        match NonNull::new(first) {
            Some(first) => Ok(List { verbs, first, count: count.max(0) as usize }),
            None if io::Error::last_os_error().raw_os_error() == Some(libc::ENOSYS) => {
                Err("the kernel has no RDMA support loaded (ib_uverbs)".into())
            }
            None => Err(format!("the devices cannot be listed: {}", io::Error::last_os_error())),
        }
    }

    fn devices(&self) -> impl Iterator<Item = *mut ffi::ibv_device> {
        // SAFETY: the list has as many entries as the count that came with it,
        // and lives as long as `self`.
        unsafe { std::slice::from_raw_parts(self.first.as_ptr(), self.count) }.iter().copied()
    }
}

impl Drop for List {
    fn drop(&mut self) {
        // SAFETY: made by `ibv_get_device_list`, freed once.
        unsafe { (self.verbs.ibv_free_device_list)(self.first.as_ptr()) };
    }
}

fn name_of(verbs: &ffi::Library, device: *mut ffi::ibv_device) -> String {
    // SAFETY: a device of a living list; its name ends in NUL and lives with it.
    let name = unsafe { CStr::from_ptr((verbs.ibv_get_device_name)(device)) };
    CString::from(name).to_string_lossy().into_owned()
}

fn positive(number: i32) -> u32 {
    number.max(0) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_infiniband_and_roce_talk_as_infiniband() {
        assert_eq!(Transport::of(ffi::IBV_TRANSPORT_IB), Transport::InfiniBand);
        assert_eq!(Transport::of(ffi::IBV_TRANSPORT_IWARP), Transport::Iwarp);
        let others = [
            ffi::IBV_TRANSPORT_UNKNOWN,
            ffi::IBV_TRANSPORT_USNIC,
            ffi::IBV_TRANSPORT_USNIC_UDP,
            // EFA's.
            ffi::IBV_TRANSPORT_UNSPECIFIED,
            99,
        ];
        others.into_iter().for_each(|number| assert_eq!(Transport::of(number), Transport::Other));
    }
}
