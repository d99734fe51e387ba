//! The one-sided reads from one peer: cut into parts, a limited number of them
//! under way, the rest waiting in order.

use std::collections::VecDeque;

use crate::base::{Rank, limits};
use crate::fabric::{FabricError, RemoteSpan};
use crate::mem::Lease;
use crate::sys::{OfiAddress, OfiEndpoint, OfiKey, OfiPosted, OfiTransfer};

/// Bytes that are asked for in one turn: a provider may copy them at once.
const TURN_BYTES: usize = 2 * limits::OFI_READ_BYTES;

#[derive(Default)]
pub(super) struct Reads {
    waiting: VecDeque<Waiting>,
    active: Vec<Active>,
    /// Parts under way, and those that have ended.
    parts: usize,
    ended: u64,
}

/// A read that ended.
pub(super) struct Done {
    pub token: u64,
    pub lease: Lease,
    pub result: Result<(), FabricError>,
}

struct Waiting {
    lease: Lease,
    span: RemoteSpan,
    key: OfiKey,
    token: u64,
}

struct Active {
    transfer: OfiTransfer,
    len: usize,
    span: RemoteSpan,
    key: OfiKey,
    token: u64,
    posted: usize,
    parts: usize,
    failed: Option<FabricError>,
}

impl Reads {
    /// Adds a read of memory that the peer has, of at least one byte.
    pub fn push(&mut self, lease: Lease, span: RemoteSpan, key: OfiKey, token: u64) {
        self.waiting.push_back(Waiting { lease, span, key, token });
    }

    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty() && self.active.is_empty()
    }

    /// Whether there is a part to ask for, and may be.
    pub fn can_post(&self) -> bool {
        self.parts < limits::OFI_READS_PEER_MAX
            && (self.active.iter().any(Active::has_more)
                || !self.waiting.is_empty() && self.active.len() < limits::OFI_READS_PEER_MAX)
    }

    /// Whether parts are under way.
    pub fn are_under_way(&self) -> bool {
        self.parts > 0
    }

    /// Whether a read has ended that was not taken yet.
    pub fn some_done(&self) -> bool {
        self.active.iter().any(Active::is_over)
    }

    /// Parts that have ended.
    pub fn ended(&self) -> u64 {
        self.ended
    }

    pub fn some_failed(&self) -> bool {
        self.active.iter().any(|read| read.failed.is_some())
    }

    /// Asks for some parts; `false` if the provider had no room. Reads that
    /// cannot even begin are added to `done`.
    pub fn post(
        &mut self,
        endpoint: &mut OfiEndpoint,
        peer: Rank,
        from: OfiAddress,
        tag: u64,
        done: &mut Vec<Done>,
    ) -> bool {
        let part_max = limits::OFI_READ_BYTES.min(endpoint.read_bytes_max());
        let mut budget = TURN_BYTES;
        while budget > 0 && self.can_post() {
            let Some(read) = self.active.iter_mut().find(|read| read.has_more()) else {
                self.begin(endpoint, peer, tag, done);
                continue;
            };
            let len = part_max.min(read.len - read.posted);
            let offset = read.span.offset + read.posted as u64;
            match endpoint.read(read.transfer, read.posted, len, from, read.key, offset) {
                Ok(OfiPosted::Full) => return false,
                Ok(_) => {
                    read.posted += len;
                    read.parts += 1;
                    self.parts += 1;
                    budget = budget.saturating_sub(len);
                }
                Err(error) => read.failed = Some(FabricError::os(peer, "fi_read", error)),
            }
        }
        true
    }

    /// A part of `transfer` ended.
    pub fn part_ended(&mut self, peer: Rank, transfer: OfiTransfer, result: Result<(), String>) {
        let Some(read) = self.active.iter_mut().find(|read| read.transfer == transfer) else { return };
        read.parts -= 1;
        self.parts -= 1;
        self.ended += 1;
        if let Err(cause) = result {
            read.failed.get_or_insert(FabricError::os(peer, "fi_read", cause));
        }
    }

    /// Nothing more is asked for: what waits has failed, and what is under way
    /// will have.
    pub fn fail(&mut self, cause: &FabricError, done: &mut Vec<Done>) {
        for Waiting { lease, token, .. } in self.waiting.drain(..) {
            done.push(Done { token, lease, result: Err(cause.clone()) });
        }
        for read in &mut self.active {
            if read.has_more() || read.parts > 0 || read.failed.is_some() {
                read.failed = Some(cause.clone());
            }
        }
    }

    /// Takes the reads that have ended.
    pub fn take_done(&mut self, endpoint: &mut OfiEndpoint, done: &mut Vec<Done>) {
        let mut i = 0;
        while let Some(read) = self.active.get_mut(i) {
            match read.is_over().then(|| endpoint.end_transfer(read.transfer)).flatten() {
                Some(lease) => {
                    let result = read.failed.take().map_or(Ok(()), Err);
                    done.push(Done { token: read.token, lease, result });
                    self.active.remove(i);
                }
                None => i += 1,
            }
        }
    }

    /// Gives up reads that the provider does not end. Their leases stay with
    /// it, for it may still write there; others come back in their place.
    pub fn abandon(&mut self, endpoint: &mut OfiEndpoint, cause: &FabricError, done: &mut Vec<Done>) {
        self.fail(cause, done);
        for read in self.active.drain(..) {
            endpoint.abandon_transfer(read.transfer);
            done.push(Done { token: read.token, lease: Lease::heap(read.len), result: Err(cause.clone()) });
        }
        self.parts = 0;
    }

    fn begin(&mut self, endpoint: &mut OfiEndpoint, peer: Rank, tag: u64, done: &mut Vec<Done>) {
        let Some(Waiting { lease, span, key, token }) = self.waiting.pop_front() else { return };
        let len = lease.range().len();
        match endpoint.begin_transfer(lease, tag) {
            Ok(transfer) => {
                self.active.push(Active { transfer, len, span, key, token, posted: 0, parts: 0, failed: None });
            }
            Err((lease, error)) => {
                let result = Err(FabricError::os(peer, "registration for a read", endpoint.explain(&error)));
                done.push(Done { token, lease, result });
            }
        }
    }
}

impl Active {
    fn has_more(&self) -> bool {
        self.failed.is_none() && self.posted < self.len
    }

    fn is_over(&self) -> bool {
        self.parts == 0 && !self.has_more()
    }
}
