//! The endpoint: what is open, and what can be done with it.

use std::ffi::{c_int, c_void};
use std::mem::ManuallyDrop;
use std::os::fd::{BorrowedFd, RawFd};
use std::ptr::{NonNull, null_mut};
use std::sync::Arc;

use super::buffers::Buffers;
use super::generated::*;
use super::info::{Info, OfiOffer, OfiSummary};
use super::library::Library;
use super::memory::{Mr, Registrar, RemoteKey};
use super::operations::{Operation, Operations};
use super::OfiError;
use crate::mem::{Lease, Region};

/// Completions that are taken at a time.
const BATCH: usize = 32;

/// Batches of one call of [`OfiEndpoint::progress`].
const BATCHES: usize = 4;

/// An endpoint's name among the peers of this one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Address(fi_addr_t);

/// A lease that is being filled.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TransferId(u32);

/// What became of an operation that was to be posted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Posted {
    /// It is done; no event will follow.
    Done,
    /// Its end will be an event.
    UnderWay,
    /// There is no room now.
    Full,
}

/// What [`OfiEndpoint::progress`] reports.
#[derive(Debug)]
pub enum OfiEvent<'a> {
    /// A message, from anybody.
    Message(&'a [u8]),
    /// A message that could not be received.
    Unreceived(OfiError),
    /// A message left, or never will.
    Sent((u64, u64), Result<(), OfiError>),
    /// Part of a transfer with that tag ended.
    Read(u64, TransferId, Result<(), OfiError>),
}

/// See the folder's module.
pub struct OfiEndpoint {
    library: &'static Library,
    summary: OfiSummary,
    info: Info,
    handles: Handles,
    registrar: Registrar,
    wait: Option<RawFd>,
    inject_max: usize,
    /// Where a message is joined that is injected.
    scratch: Vec<u8>,
    regions: ManuallyDrop<Vec<(Arc<Region>, Mr)>>,
    /// Registrations that were refused to be closed while the endpoint is open.
    unclosed: Vec<Mr>,
    receives: ManuallyDrop<Buffers>,
    /// Buffers that wait to be posted.
    unposted: Vec<u32>,
    sends: ManuallyDrop<Buffers>,
    operations: ManuallyDrop<Operations>,
    transfers: ManuallyDrop<Vec<Option<Transfer>>>,
}

// SAFETY: the provider is asked for FI_THREAD_DOMAIN, which allows any thread
// to call it as long as calls within a domain are serialised. Every call goes
// through `&mut self`, or `&self` of a value that is not Sync.
unsafe impl Send for OfiEndpoint {}

struct Handles {
    fabric: NonNull<fid_fabric>,
    domain: NonNull<fid_domain>,
    completions: NonNull<fid_cq>,
    addresses: NonNull<fid_av>,
    endpoint: NonNull<fid_ep>,
}

struct Transfer {
    lease: Lease,
    tag: u64,
    mr: Option<Mr>,
    descriptor: *mut c_void,
    under_way: u32,
    /// Nobody waits for the lease any more.
    is_abandoned: bool,
}

/// How much an endpoint is to hold.
#[derive(Clone, Copy, Debug)]
pub struct Capacity {
    /// Bytes of the largest message.
    pub message_bytes_max: usize,
    /// Buffers that wait for messages.
    pub receives: usize,
    /// Messages that may be on their way.
    pub sends_max: usize,
}

impl OfiEndpoint {
    /// Opens an endpoint as offered.
    pub fn open(offer: OfiOffer, capacity: Capacity) -> Result<OfiEndpoint, String> {
        OfiEndpoint::demanding(offer, capacity, 0)
    }

    /// The same, as if the provider demanded more of memory than it does.
    fn demanding(offer: OfiOffer, capacity: Capacity, more: u32) -> Result<OfiEndpoint, String> {
        let library = Library::get()?;
        let OfiOffer { info, summary } = offer;
        let named = |error: OfiError| format!("provider {} on {}: {error}", summary.full_name, summary.domain);
        // The fd of shm is not signalled by other processes.
        let may_wait = summary.provider != "shm";
        let mut opened = Opened::default();
        let wait = opened.open(library, &info, may_wait).map_err(named)?;
        let handles = opened.finish();
        // SAFETY: both are open until `drop` closes them, which is after the
        // last use of the registrar; the attributes are the domain's.
        let registrar =
            unsafe { Registrar::new(library, handles.domain, handles.endpoint, &*info.get().domain_attr, more) };
        // SAFETY: an offer's attributes live as long as the offer.
        let inject_max = unsafe { (*info.get().tx_attr).inject_size }.min(4096);
        let size = capacity.message_bytes_max;
        let mut endpoint = OfiEndpoint {
            library,
            info,
            handles,
            registrar,
            wait,
            inject_max,
            scratch: Vec::with_capacity(inject_max),
            regions: ManuallyDrop::new(Vec::new()),
            unclosed: Vec::new(),
            receives: ManuallyDrop::new(Buffers::new(size, capacity.receives, FI_RECV)),
            unposted: Vec::new(),
            sends: ManuallyDrop::new(Buffers::new(size, capacity.sends_max, FI_SEND)),
            operations: ManuallyDrop::new(Operations::new()),
            transfers: ManuallyDrop::new(Vec::new()),
            summary,
        };
        endpoint.make_receives().map_err(|error| endpoint.explain(&error))?;
        Ok(endpoint)
    }

    /// What was opened.
    pub fn summary(&self) -> &OfiSummary {
        &self.summary
    }

    /// The protocol and its version, and the form of addresses: what two
    /// endpoints must have in common.
    pub fn protocol(&self) -> [u32; 3] {
        let info = self.info.get();
        // SAFETY: an offer's attributes live as long as the offer.
        let attr = unsafe { &*info.ep_attr };
        [attr.protocol, attr.protocol_version, info.addr_format]
    }

    /// The largest part of a transfer.
    pub fn read_bytes_max(&self) -> usize {
        // SAFETY: as in `protocol`.
        unsafe { (*self.info.get().ep_attr).max_msg_size }
    }

    /// An error with what was tried and, where memory lacks, what to raise.
    pub fn explain(&self, error: &OfiError) -> String {
        let at = format!("provider {} on {}: {error}", self.summary.full_name, self.summary.domain);
        if !error.is_out_of_memory() {
            return at;
        }
        let limit = match rustix::process::getrlimit(rustix::process::Resource::Memlock).current {
            Some(bytes) => format!("{} KiB", bytes >> 10),
            None => "unlimited".into(),
        };
        format!("{at}; memory that is registered is locked, and the limit is {limit}: raise it (`ulimit -l`, LimitMEMLOCK=)")
    }

    /// This endpoint's address, for [`OfiEndpoint::insert`] of a peer.
    pub fn address(&self) -> Result<Vec<u8>, OfiError> {
        let endpoint = self.handles.endpoint.as_ptr();
        let mut bytes = vec![0_u8; 512];
        let mut len = bytes.len();
        // SAFETY: the endpoint is open; the call writes at most `len` bytes.
        let status = unsafe {
            let call = (*(*endpoint).cm).getname.ok_or(OfiError::missing("fi_getname"))?;
            call(&raw mut (*endpoint).fid, bytes.as_mut_ptr().cast(), &mut len)
        };
        if status != 0 || len > bytes.len() {
            return Err(self.library.error("fi_getname", status as isize));
        }
        bytes.truncate(len);
        Ok(bytes)
    }

    /// Makes a peer's endpoint known by its address.
    pub fn insert(&mut self, address: &[u8]) -> Result<Address, OfiError> {
        // Providers read as many bytes as their form of address has, which for
        // text is up to its NUL: these are always behind it.
        let mut bytes = address.to_vec();
        bytes.resize(address.len() + 512, 0);
        let addresses = self.handles.addresses.as_ptr();
        let mut known = u64::MAX;
        // SAFETY: the table is open, and the address lies in more bytes than
        // any provider's form has; one is inserted and one result written.
        let inserted = unsafe {
            let call = (*(*addresses).ops).insert.ok_or(OfiError::missing("fi_av_insert"))?;
            call(addresses, bytes.as_ptr().cast(), 1, &mut known, 0, null_mut())
        };
        if inserted != 1 || known == u64::MAX {
            let status = if inserted < 0 { inserted as isize } else { -(FI_EOTHER as isize) };
            return Err(self.library.error("fi_av_insert", status));
        }
        Ok(Address(known))
    }

    /// Makes a region readable by whoever has its key.
    pub fn register(&mut self, region: Arc<Region>) -> Result<RemoteKey, OfiError> {
        if self.registrar.wants_pages() {
            super::super::populate::populate_region(&region);
        }
        let all = NonNull::slice_from_raw_parts(region.base(), region.len());
        let access = FI_REMOTE_READ | if region.is_writable() { FI_READ } else { 0 };
        // SAFETY: the region is kept until its registration has been closed
        // (`drop`). Others read it; this process writes it only through reads
        // into leases, which are exclusive.
        let mr = unsafe { self.registrar.register(all, access) }?;
        let key = self.registrar.remote_key(&region, &mr);
        self.regions.push((region, mr));
        Ok(key)
    }

    /// Sends one message of `bytes` bytes, the concatenation of `parts`.
    pub fn send<'p>(
        &mut self,
        to: Address,
        tag: (u64, u64),
        bytes: usize,
        parts: impl Iterator<Item = &'p [u8]>,
    ) -> Result<Posted, OfiError> {
        let endpoint = self.handles.endpoint.as_ptr();
        if bytes <= self.inject_max {
            self.scratch.clear();
            parts.for_each(|part| self.scratch.extend_from_slice(part));
            // SAFETY: the endpoint is open, and the provider has taken the
            // bytes when the call returns.
            let status = unsafe {
                let call = (*(*endpoint).msg).inject.ok_or(OfiError::missing("fi_inject"))?;
                call(endpoint, self.scratch.as_ptr().cast(), self.scratch.len(), to.0)
            };
            return self.posted("fi_inject", status, Posted::Done);
        }
        assert!(bytes <= self.sends.bytes(), "a message that no buffer holds");
        let Some(buffer) = self.sends.take(&self.registrar)? else { return Ok(Posted::Full) };
        let place = self.sends.place(buffer);
        let mut len = 0;
        for part in parts {
            let part = &part[..part.len().min(bytes - len)];
            // SAFETY: the buffer is ours alone until it is posted, and `len`
            // never exceeds `bytes`, which it holds.
            unsafe { std::ptr::copy_nonoverlapping(part.as_ptr(), place.start.as_ptr().add(len), part.len()) };
            len += part.len();
        }
        let (number, context) = self.operations.begin(Operation::Send { buffer, tag });
        // SAFETY: the endpoint is open; the buffer and the context stay as they
        // are until the operation completes, for nothing else takes them.
        let status = unsafe {
            match (*(*endpoint).msg).send {
                Some(call) => call(endpoint, place.start.as_ptr().cast(), len, place.descriptor, to.0, context),
                None => -(FI_ENOSYS as isize),
            }
        };
        let posted = self.posted("fi_send", status, Posted::UnderWay);
        if posted != Ok(Posted::UnderWay) {
            self.operations.refused(number);
            self.sends.give_back(buffer);
        }
        posted
    }

    /// Takes a lease to fill it with reads.
    pub fn begin_transfer(&mut self, lease: Lease, tag: u64) -> Result<TransferId, (Lease, OfiError)> {
        let (mut mr, mut descriptor) = (None, null_mut());
        if self.registrar.is_needed_locally() {
            match self.regions.iter().find(|(region, _)| Arc::ptr_eq(region, lease.region())) {
                Some((_, known)) => descriptor = known.descriptor(),
                None => {
                    let range = lease.range();
                    let Ok(bytes) = lease.region().span(range.start as u64, range.len() as u64) else {
                        return Err((lease, OfiError::missing("fi_mr_reg")));
                    };
                    // SAFETY: the lease, and with it the region, is kept until
                    // the registration has been closed; it is exclusive.
                    match unsafe { self.registrar.register(bytes, FI_READ) } {
                        Ok(fresh) => descriptor = mr.insert(fresh).descriptor(),
                        Err(error) => return Err((lease, error)),
                    }
                }
            }
        }
        let transfer = Transfer { lease, tag, mr, descriptor, under_way: 0, is_abandoned: false };
        let free = self.transfers.iter().position(Option::is_none);
        let place = free.unwrap_or_else(|| {
            self.transfers.push(None);
            self.transfers.len() - 1
        });
        self.transfers[place] = Some(transfer);
        Ok(TransferId(place as u32))
    }

    /// Starts to read `len` bytes at `offset` of a peer's region into a
    /// transfer, at `at`. Never [`Posted::Done`].
    pub fn read(
        &mut self,
        transfer: TransferId,
        at: usize,
        len: usize,
        from: Address,
        remote: RemoteKey,
        offset: u64,
    ) -> Result<Posted, OfiError> {
        let Some(state) = self.transfers.get_mut(transfer.0 as usize).and_then(Option::as_mut) else {
            return Err(OfiError::missing("fi_read"));
        };
        let range = state.lease.range();
        assert!(at.checked_add(len).is_some_and(|end| end <= range.len()), "a read beyond its lease");
        let (number, context) = self.operations.begin(Operation::Read { transfer: transfer.0 });
        let endpoint = self.handles.endpoint.as_ptr();
        // SAFETY: the endpoint is open; the destination lies in the lease
        // (asserted), which is exclusive and is kept until `under_way` is zero
        // again; the context stays until the operation completes.
        let status = unsafe {
            let to = state.lease.region().base().add(range.start + at).as_ptr().cast::<c_void>();
            match (*(*endpoint).rma).read {
                Some(call) => {
                    call(endpoint, to, len, state.descriptor, from.0, remote.base.wrapping_add(offset), remote.key, context)
                }
                None => -(FI_ENOSYS as isize),
            }
        };
        if status == 0 {
            state.under_way += 1;
        } else {
            self.operations.refused(number);
        }
        self.posted("fi_read", status, Posted::UnderWay)
    }

    /// The lease of a transfer, if no read into it is under way.
    pub fn end_transfer(&mut self, transfer: TransferId) -> Option<Lease> {
        let place = self.transfers.get_mut(transfer.0 as usize)?;
        let transfer = place.take_if(|transfer| transfer.under_way == 0)?;
        if let Some(Err(mr)) = transfer.mr.map(Mr::close) {
            self.unclosed.push(mr);
        }
        Some(transfer.lease)
    }

    /// Keeps the lease of a transfer until its reads have ended, however long
    /// that takes.
    pub fn abandon_transfer(&mut self, transfer: TransferId) {
        if self.end_transfer(transfer).is_none()
            && let Some(Some(transfer)) = self.transfers.get_mut(transfer.0 as usize)
        {
            transfer.is_abandoned = true;
        }
    }

    /// Lets the provider work and reports what has ended; whether anything had.
    /// An error is the endpoint's own: nothing works any more.
    pub fn progress(&mut self, sink: &mut dyn FnMut(OfiEvent<'_>)) -> Result<bool, OfiError> {
        self.post_receives()?;
        let mut some = false;
        for _ in 0..BATCHES {
            // SAFETY: plain numbers and a pointer, for which zero is valid.
            let mut entries: [fi_cq_msg_entry; BATCH] = unsafe { std::mem::zeroed() };
            let queue = self.handles.completions.as_ptr();
            // SAFETY: the queue is open and of this format, and writes as many
            // entries as are asked for.
            let got = unsafe {
                let call = (*(*queue).ops).read.ok_or(OfiError::missing("fi_cq_read"))?;
                call(queue, entries.as_mut_ptr().cast(), BATCH)
            };
            if got == -(FI_EAGAIN as isize) {
                break;
            }
            some = true;
            if got == -(FI_EAVAIL as isize) {
                self.take_error(sink)?;
                continue;
            }
            if got < 0 {
                return Err(self.library.error("fi_cq_read", got));
            }
            for entry in &entries[..(got as usize).min(BATCH)] {
                // SAFETY: the queue gives back the contexts of our operations.
                let operation = unsafe { self.operations.completed(entry.op_context) };
                if let Some(operation) = operation {
                    self.complete(operation, Ok(entry.len), sink);
                }
            }
            self.post_receives()?;
            if (got as usize) < BATCH {
                break;
            }
        }
        Ok(some)
    }

    /// Whether [`OfiEndpoint::wait_fd`] will tell of what comes next, and there
    /// is nothing now.
    pub fn try_wait(&mut self) -> bool {
        if self.wait.is_none() || !self.unposted.is_empty() {
            return false;
        }
        let fabric = self.handles.fabric.as_ptr();
        // SAFETY: the fabric and the queue are open; one object is passed.
        unsafe {
            let mut objects = [&raw mut (*self.handles.completions.as_ptr()).fid];
            (*(*fabric).ops).trywait.is_some_and(|call| call(fabric, objects.as_mut_ptr(), 1) == 0)
        }
    }

    /// Readable when there is something to do after a [`OfiEndpoint::try_wait`]
    /// that said so. Without one, look from time to time.
    pub fn wait_fd(&self) -> Option<BorrowedFd<'_>> {
        // SAFETY: the descriptor belongs to the queue, which is open as long as
        // `self`.
        self.wait.map(|fd| unsafe { BorrowedFd::borrow_raw(fd) })
    }

    fn make_receives(&mut self) -> Result<(), OfiError> {
        while let Some(buffer) = self.receives.take(&self.registrar)? {
            self.unposted.push(buffer);
        }
        self.post_receives()
    }

    /// Posts the buffers that wait, as far as the provider takes them.
    fn post_receives(&mut self) -> Result<(), OfiError> {
        while let Some(buffer) = self.unposted.pop() {
            let place = self.receives.place(buffer);
            let (number, context) = self.operations.begin(Operation::Receive { buffer });
            let endpoint = self.handles.endpoint.as_ptr();
            let bytes = self.receives.bytes();
            // SAFETY: the endpoint is open; the buffer has that many bytes, and
            // nobody looks at them before the operation has completed.
            let status = unsafe {
                match (*(*endpoint).msg).recv {
                    Some(call) => {
                        call(endpoint, place.start.as_ptr().cast(), bytes, place.descriptor, u64::MAX, context)
                    }
                    None => -(FI_ENOSYS as isize),
                }
            };
            if status != 0 {
                self.operations.refused(number);
                self.unposted.push(buffer);
                return self.posted("fi_recv", status, Posted::Full).map(|_| ());
            }
        }
        Ok(())
    }

    fn complete(
        &mut self,
        operation: Operation,
        result: Result<usize, OfiError>,
        sink: &mut dyn FnMut(OfiEvent<'_>),
    ) {
        match operation {
            Operation::Receive { buffer } => {
                match result {
                    Ok(len) => {
                        let start = self.receives.place(buffer).start;
                        let len = len.min(self.receives.bytes());
                        // SAFETY: the provider has filled the buffer and does
                        // not touch it before it is posted again, which is
                        // after the sink has returned.
                        sink(OfiEvent::Message(unsafe { std::slice::from_raw_parts(start.as_ptr(), len) }));
                    }
                    Err(error) => sink(OfiEvent::Unreceived(error)),
                }
                self.unposted.push(buffer);
            }
            Operation::Send { buffer, tag } => {
                self.sends.give_back(buffer);
                sink(OfiEvent::Sent(tag, result.map(|_| ())));
            }
            Operation::Read { transfer } => {
                let Some(Some(state)) = self.transfers.get_mut(transfer as usize) else { return };
                state.under_way -= 1;
                if state.is_abandoned {
                    self.end_transfer(TransferId(transfer));
                } else {
                    sink(OfiEvent::Read(state.tag, TransferId(transfer), result.map(|_| ())));
                }
            }
        }
    }

    fn take_error(&mut self, sink: &mut dyn FnMut(OfiEvent<'_>)) -> Result<(), OfiError> {
        // SAFETY: plain numbers and pointers, for which zero is valid; no room
        // is offered for the provider's own data.
        let mut entry: fi_cq_err_entry = unsafe { std::mem::zeroed() };
        let queue = self.handles.completions.as_ptr();
        // SAFETY: the queue is open; the call fills one entry.
        let got = unsafe {
            let call = (*(*queue).ops).readerr.ok_or(OfiError::missing("fi_cq_readerr"))?;
            call(queue, &mut entry, 0)
        };
        if got == -(FI_EAGAIN as isize) {
            return Ok(());
        }
        if got < 0 {
            return Err(self.library.error("fi_cq_readerr", got));
        }
        // SAFETY: as in `progress`.
        if let Some(operation) = unsafe { self.operations.completed(entry.op_context) } {
            let call = match operation {
                Operation::Receive { .. } => "fi_recv",
                Operation::Send { .. } => "fi_send",
                Operation::Read { .. } => "fi_read",
            };
            let error = self.library.error(call, entry.err as isize);
            self.complete(operation, Err(error), sink);
        }
        Ok(())
    }

    fn posted(&self, call: &'static str, status: isize, done: Posted) -> Result<Posted, OfiError> {
        match status {
            0 => Ok(done),
            again if again == -(FI_EAGAIN as isize) => Ok(Posted::Full),
            status => Err(self.library.error(call, status)),
        }
    }
}

impl OfiEndpoint {
    /// Ends the registrations that the provider lets go. Memory that an
    /// operation may still touch stays.
    fn unregister(&mut self) {
        let regions = std::mem::take(&mut *self.regions).into_iter();
        *self.regions = regions.filter_map(|(region, mr)| Some((region, mr.close().err()?))).collect();
        self.unclosed = std::mem::take(&mut self.unclosed).into_iter().filter_map(|mr| mr.close().err()).collect();
        for transfer in self.transfers.iter_mut().flatten() {
            transfer.mr = transfer.mr.take().and_then(|mr| mr.close().err());
        }
        self.receives.unregister();
        self.sends.unregister();
    }
}

impl Drop for OfiEndpoint {
    fn drop(&mut self) {
        // Registrations that are bound to the endpoint keep it open. Others are
        // best closed after it, when no operation uses them.
        if self.registrar.binds_to_endpoint() {
            self.unregister();
        }
        let Handles { fabric, domain, completions, addresses, endpoint } = self.handles;
        // SAFETY: each is open and closed once, the endpoint before what it is
        // bound to. After it the provider has no operation under way, so that
        // the memory of all may go; if it cannot be closed, nothing is freed.
        // Memory that cannot be unregistered stays as well: peers may read it.
        unsafe {
            if !close(&raw mut (*endpoint.as_ptr()).fid) {
                return;
            }
            self.unregister();
            // What is left in the list is still registered.
            if self.regions.is_empty() {
                ManuallyDrop::drop(&mut self.regions);
            }
            for transfer in ManuallyDrop::take(&mut self.transfers).drain(..).flatten() {
                if transfer.mr.is_some() {
                    std::mem::forget(transfer.lease);
                }
            }
            for buffers in [&mut self.receives, &mut self.sends] {
                if !buffers.are_registered() {
                    ManuallyDrop::drop(buffers);
                }
            }
            close(&raw mut (*addresses.as_ptr()).fid);
            close(&raw mut (*completions.as_ptr()).fid);
            close(&raw mut (*domain.as_ptr()).fid);
            close(&raw mut (*fabric.as_ptr()).fid);
            ManuallyDrop::drop(&mut self.operations);
        }
    }
}

/// Closes an object; whether it is closed.
///
/// # Safety
/// `object` is open, and not used after it was closed.
pub(super) unsafe fn close(object: *mut fid) -> bool {
    // SAFETY: an open object has its table of operations.
    unsafe { (*(*object).ops).close.is_some_and(|call| call(object) == 0) }
}

/// What has been opened so far; closes it unless [`Opened::finish`] takes it.
#[derive(Default)]
struct Opened {
    fabric: Option<NonNull<fid_fabric>>,
    domain: Option<NonNull<fid_domain>>,
    completions: Option<NonNull<fid_cq>>,
    addresses: Option<NonNull<fid_av>>,
    endpoint: Option<NonNull<fid_ep>>,
}

impl Opened {
    /// Opens everything; returns the descriptor to wait on, if there is one.
    fn open(&mut self, library: &'static Library, info: &Info, may_wait: bool) -> Result<Option<RawFd>, OfiError> {
        let check = |call: &'static str, status: c_int| match status {
            0 => Ok(()),
            status => Err(library.error(call, status as isize)),
        };
        // SAFETY: every call gets objects that the calls before it have opened
        // and attributes that live over the call, and stores a pointer to what
        // it opened when it returns 0. `info` is an offer of the provider.
        unsafe {
            let offer = info.get();
            let (domain_attr, tx, rx) = (&*offer.domain_attr, &*offer.tx_attr, &*offer.rx_attr);

            let mut fabric = null_mut();
            check("fi_fabric", (library.open_fabric)(offer.fabric_attr, &mut fabric, null_mut()))?;
            self.fabric = NonNull::new(fabric);

            let mut domain = null_mut();
            let call = (*(*fabric).ops).domain.ok_or(OfiError::missing("fi_domain"))?;
            check("fi_domain", call(fabric, info.as_ptr(), &mut domain, null_mut()))?;
            self.domain = NonNull::new(domain);

            let (completions, wait) = open_completions(domain, (tx.size + rx.size).clamp(1024, 16_384), may_wait)
                .map_err(|status| library.error("fi_cq_open", status as isize))?;
            self.completions = NonNull::new(completions);

            let mut attr: fi_av_attr = std::mem::zeroed();
            attr.type_ = if domain_attr.av_type == FI_AV_UNSPEC { FI_AV_TABLE } else { domain_attr.av_type };
            let mut addresses = null_mut();
            let call = (*(*domain).ops).av_open.ok_or(OfiError::missing("fi_av_open"))?;
            check("fi_av_open", call(domain, &mut attr, &mut addresses, null_mut()))?;
            self.addresses = NonNull::new(addresses);

            let mut endpoint = null_mut();
            let call = (*(*domain).ops).endpoint.ok_or(OfiError::missing("fi_endpoint"))?;
            check("fi_endpoint", call(domain, info.as_ptr(), &mut endpoint, null_mut()))?;
            self.endpoint = NonNull::new(endpoint);

            let of_endpoint = &raw mut (*endpoint).fid;
            let ops = &*(*of_endpoint).ops;
            let (Some(bind), Some(control)) = (ops.bind, ops.control) else {
                return Err(OfiError::missing("fi_ep_bind"));
            };
            check("fi_ep_bind", bind(of_endpoint, &raw mut (*addresses).fid, 0))?;
            check("fi_ep_bind", bind(of_endpoint, &raw mut (*completions).fid, u64::from(FI_SEND | FI_RECV)))?;
            check("fi_enable", control(of_endpoint, FI_ENABLE as c_int, null_mut()))?;
            Ok(wait)
        }
    }

    fn finish(mut self) -> Handles {
        let taken = (
            self.fabric.take(),
            self.domain.take(),
            self.completions.take(),
            self.addresses.take(),
            self.endpoint.take(),
        );
        match taken {
            (Some(fabric), Some(domain), Some(completions), Some(addresses), Some(endpoint)) => {
                Handles { fabric, domain, completions, addresses, endpoint }
            }
            _ => unreachable!("`open` stores each of them"),
        }
    }
}

impl Drop for Opened {
    fn drop(&mut self) {
        // SAFETY: what is still here is open, and closed once, in the order in
        // which one needs the other.
        unsafe {
            self.endpoint.map(|object| close(&raw mut (*object.as_ptr()).fid));
            self.addresses.map(|object| close(&raw mut (*object.as_ptr()).fid));
            self.completions.map(|object| close(&raw mut (*object.as_ptr()).fid));
            self.domain.map(|object| close(&raw mut (*object.as_ptr()).fid));
            self.fabric.map(|object| close(&raw mut (*object.as_ptr()).fid));
        }
    }
}

/// A completion queue with a descriptor to wait on, or one without.
///
/// # Safety
/// The domain is open.
unsafe fn open_completions(
    domain: *mut fid_domain,
    size: usize,
    may_wait: bool,
) -> Result<(*mut fid_cq, Option<RawFd>), c_int> {
    let mut status = -(FI_ENOSYS as c_int);
    for wait_obj in [FI_WAIT_FD, FI_WAIT_NONE] {
        if wait_obj == FI_WAIT_FD && !may_wait {
            continue;
        }
        // SAFETY: zero is valid for every field of the attributes and means
        // the default; the domain is open; the queue is stored on success. The
        // control call fills an int.
        unsafe {
            let mut attr: fi_cq_attr = std::mem::zeroed();
            attr.size = size;
            attr.format = FI_CQ_FORMAT_MSG;
            attr.wait_obj = wait_obj;
            let Some(call) = (*(*domain).ops).cq_open else { return Err(status) };
            let mut queue: *mut fid_cq = null_mut();
            status = call(domain, &mut attr, &mut queue, null_mut());
            if status != 0 {
                continue;
            }
            if wait_obj == FI_WAIT_NONE {
                return Ok((queue, None));
            }
            let mut fd: RawFd = -1;
            let fid = &raw mut (*queue).fid;
            let got = (*(*fid).ops).control.map(|call| call(fid, FI_GETWAIT as c_int, (&raw mut fd).cast()));
            if got == Some(0) && fd >= 0 {
                return Ok((queue, Some(fd)));
            }
            close(fid);
        }
    }
    Err(status)
}

#[cfg(test)]
mod tests;
