//! How two ranks tell each other where their queue pairs and memory are, over
//! the TCP connection that `boot` has authenticated.

use std::io::Write;
use std::net::TcpStream;
use std::time::Instant;

use super::device::Found;
use crate::base::{Rank, limits};
use crate::fabric::setup::{Fields, receive_exactly};
use crate::fabric::{FabricError, RegionKey};
use crate::sys::{RdmaAddress as Address, RdmaRemote as Remote};

const MAGIC: u64 = u64::from_le_bytes(*b"clm-rdm1");

/// Each side sends this byte when its queue pair can receive.
const READY: u8 = 0x52;

const HELLO_HEAD: usize = 74;
const HELLO_REGION: usize = 24;

/// The largest number of a queue pair or a packet.
const NUMBER_MAX: u32 = 0xff_ffff;

/// What a rank says of itself.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Hello {
    pub(super) rank: Rank,
    /// The queue pair and the number of its first packet.
    pub(super) pair: u32,
    pub(super) first_packet: u32,
    /// The port's addresses and MTU.
    pub(super) lid: u16,
    pub(super) needs_global_route: bool,
    pub(super) mtu: u8,
    pub(super) gid: [u8; 16],
    /// Reads that it answers at once.
    pub(super) reads_in: u8,
    /// Messages and slots that it has room for.
    pub(super) credits: u32,
    pub(super) slots: u32,
    /// Where it takes long messages.
    pub(super) window_address: u64,
    pub(super) window_key: u32,
    pub(super) regions: Vec<RemoteRegion>,
}

/// A region of a peer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct RemoteRegion {
    pub(super) key: RegionKey,
    pub(super) address: u64,
    pub(super) len: u64,
    pub(super) remote_key: u32,
}

/// Sends `own` and receives the peer's.
pub(super) fn exchange(
    stream: &mut TcpStream,
    peer: Rank,
    own: &Hello,
    deadline: Instant,
) -> Result<Hello, FabricError> {
    stream.write_all(&own.encode()).map_err(|error| FabricError::os(peer, "write", error))?;
    let bad = |what: String| FabricError::BadFrame(peer, format!("{what} in the set-up of RDMA"));
    let mut bytes = vec![0; HELLO_HEAD];
    receive_exactly(stream, peer, &mut bytes, deadline)?;
    let count = Hello::check_head(&bytes).map_err(bad)?;
    bytes.resize(HELLO_HEAD + count * HELLO_REGION, 0);
    receive_exactly(stream, peer, &mut bytes[HELLO_HEAD..], deadline)?;
    let hello = Hello::parse(&bytes).map_err(bad)?;
    match hello.rank == peer {
        true => Ok(hello),
        false => Err(bad(format!("{} calls itself {}", peer, hello.rank))),
    }
}

/// Tells the peer that this side can receive, and waits until it can: a
/// message that comes before would fail.
pub(super) fn both_ready(stream: &mut TcpStream, peer: Rank, deadline: Instant) -> Result<(), FabricError> {
    stream.write_all(&[READY]).map_err(|error| FabricError::os(peer, "write", error))?;
    let mut byte = [0];
    receive_exactly(stream, peer, &mut byte, deadline)?;
    match byte {
        [READY] => Ok(()),
        _ => Err(FabricError::BadFrame(peer, "no word of being ready in the set-up of RDMA".into())),
    }
}

/// Where `hello` says that its queue pair is, for a rank that has `own`
/// and wants no more than `reads_max` reads under way.
pub(super) fn remote(own: &Found, hello: &Hello, reads_max: u8) -> Remote {
    let Hello { pair, first_packet, lid, gid, .. } = *hello;
    let is_routed = own.port.is_ethernet
        || own.port.needs_global_route
        || hello.needs_global_route
        || (own.port.lid == 0 || lid == 0)
        // The first half is the subnet.
        || own.gid.bytes[..8] != gid[..8];
    let address = if is_routed {
        Address::Global { lid, gid, own_index: own.gid.index }
    } else {
        Address::Local { lid }
    };
    let reads_out = own.adapter.reads_out_max().min(hello.reads_in).min(reads_max);
    Remote { pair, first_packet, mtu: own.port.mtu.min(hello.mtu), reads_out, address }
}

impl Hello {
    /// Little-endian: magic u64, rank u32, pair u32, first packet u32, lid u16,
    /// mtu u8, reads u8, gid 16, flags u8, nothing u8, credits u16, slots u16,
    /// spare u16, buffer u32, slot u32, window address u64, window key u32,
    /// count of regions u32, nothing u16; for each region its key u32, remote
    /// key u32, address u64 and length u64.
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HELLO_HEAD + self.regions.len() * HELLO_REGION);
        bytes.extend_from_slice(&MAGIC.to_le_bytes());
        for number in [self.rank.0, self.pair, self.first_packet] {
            bytes.extend_from_slice(&number.to_le_bytes());
        }
        bytes.extend_from_slice(&self.lid.to_le_bytes());
        bytes.extend_from_slice(&[self.mtu, self.reads_in]);
        bytes.extend_from_slice(&self.gid);
        bytes.extend_from_slice(&[u8::from(self.needs_global_route), 0]);
        bytes.extend_from_slice(&(self.credits as u16).to_le_bytes());
        bytes.extend_from_slice(&(self.slots as u16).to_le_bytes());
        bytes.extend_from_slice(&terms());
        bytes.extend_from_slice(&self.window_address.to_le_bytes());
        bytes.extend_from_slice(&self.window_key.to_le_bytes());
        bytes.extend_from_slice(&(self.regions.len() as u32).to_le_bytes());
        bytes.extend_from_slice(&[0, 0]);
        for region in &self.regions {
            bytes.extend_from_slice(&region.key.0.to_le_bytes());
            bytes.extend_from_slice(&region.remote_key.to_le_bytes());
            bytes.extend_from_slice(&region.address.to_le_bytes());
            bytes.extend_from_slice(&region.len.to_le_bytes());
        }
        bytes
    }

    /// How many regions follow a head.
    fn check_head(head: &[u8]) -> Result<usize, String> {
        let mut fields = Fields(head);
        if fields.u64() != Some(MAGIC) {
            return Err("another program or version".into());
        }
        fields.0 = head.get(HELLO_HEAD - 6..).unwrap_or_default();
        match fields.u32().map(|count| count as usize) {
            Some(count @ 0..=limits::RDMA_REGIONS_MAX) => Ok(count),
            Some(count) => Err(format!("{count} regions")),
            None => Err("too few bytes".into()),
        }
    }

    /// Takes a set-up message apart and checks all of it.
    pub(super) fn parse(bytes: &[u8]) -> Result<Hello, String> {
        let count = Hello::check_head(bytes)?;
        if bytes.len() != HELLO_HEAD + count * HELLO_REGION {
            return Err(format!("{count} regions in {} bytes", bytes.len()));
        }
        Hello::fields(bytes, count).ok_or("too few bytes")?
    }

    /// `None` if there are too few bytes.
    fn fields(bytes: &[u8], count: usize) -> Option<Result<Hello, String>> {
        let mut fields = Fields(bytes);
        fields.u64()?;
        let (rank, pair, first_packet) = (Rank(fields.u32()?), fields.u32()?, fields.u32()?);
        let lid = u16::from_le_bytes(fields.take()?);
        let [mtu, reads_in] = fields.take()?;
        let gid = fields.take()?;
        let [flags, _] = fields.take()?;
        let (credits, slots) = (u32::from(fields.u16()?), u32::from(fields.u16()?));
        if !(1..=limits::RDMA_CREDITS).contains(&credits) || !(1..=limits::RDMA_SLOTS).contains(&slots) {
            return Some(Err(format!("{credits} credits and {slots} slots")));
        }
        if fields.take()? != terms() {
            return Some(Err("other buffers".into()));
        }
        let (window_address, window_key) = (fields.u64()?, fields.u32()?);
        let [..] = fields.take::<6>()?;
        if pair == 0 || pair > NUMBER_MAX || first_packet > NUMBER_MAX {
            return Some(Err(format!("queue pair {pair}, packet {first_packet}")));
        }
        if !(1..=5).contains(&mtu) || reads_in == 0 || flags > 1 {
            return Some(Err(format!("MTU {mtu}, {reads_in} reads, flags {flags}")));
        }
        let window_bytes = u64::from(slots) * limits::RDMA_SLOT_BYTES as u64;
        if window_address.checked_add(window_bytes).is_none() {
            return Some(Err(format!("a window at {window_address:#x}")));
        }
        let mut regions: Vec<RemoteRegion> = Vec::with_capacity(count);
        for _ in 0..count {
            let (key, remote_key) = (RegionKey(fields.u32()?), fields.u32()?);
            let (address, len) = (fields.u64()?, fields.u64()?);
            if address.checked_add(len).is_none() {
                return Some(Err(format!("a region of {len} bytes at {address:#x}")));
            }
            if regions.iter().any(|region| region.key == key) {
                return Some(Err(format!("region {} twice", key.0)));
            }
            regions.push(RemoteRegion { key, address, len, remote_key });
        }
        let needs_global_route = flags == 1;
        Some(Ok(Hello {
            rank,
            pair,
            first_packet,
            lid,
            needs_global_route,
            mtu,
            gid,
            reads_in,
            credits,
            slots,
            window_address,
            window_key,
            regions,
        }))
    }
}

/// What both sides must have in common.
fn terms() -> [u8; 10] {
    let mut terms = [0; 10];
    terms[..2].copy_from_slice(&(limits::RDMA_SPARE_BUFFERS as u16).to_le_bytes());
    terms[2..6].copy_from_slice(&(limits::RDMA_BUFFER_BYTES as u32).to_le_bytes());
    terms[6..].copy_from_slice(&(limits::RDMA_SLOT_BYTES as u32).to_le_bytes());
    terms
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hello() -> Hello {
        let region = RemoteRegion { key: RegionKey(5), address: 4096, len: 100, remote_key: 77 };
        Hello {
            rank: Rank(3),
            pair: 17,
            first_packet: 5,
            lid: 9,
            needs_global_route: true,
            mtu: 3,
            gid: [7; 16],
            reads_in: 16,
            credits: 30,
            slots: 2,
            window_address: 1 << 40,
            window_key: 99,
            regions: vec![region, RemoteRegion { key: RegionKey(6), ..region }],
        }
    }

    #[test]
    fn a_set_up_message_comes_back() {
        let bytes = hello().encode();
        assert_eq!(bytes.len(), HELLO_HEAD + 2 * HELLO_REGION);
        assert_eq!(Hello::parse(&bytes), Ok(hello()));
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let good = hello().encode();
        (0..good.len()).for_each(|len| assert!(Hello::parse(&good[..len]).is_err(), "{len} bytes"));
        let refused = |change: &dyn Fn(&mut Hello)| {
            let mut hello = hello();
            change(&mut hello);
            Hello::parse(&hello.encode()).unwrap_err()
        };
        refused(&|hello| hello.pair = 0);
        refused(&|hello| hello.pair = NUMBER_MAX + 1);
        refused(&|hello| hello.first_packet = u32::MAX);
        refused(&|hello| hello.mtu = 0);
        refused(&|hello| hello.mtu = 6);
        refused(&|hello| hello.reads_in = 0);
        refused(&|hello| hello.credits = 0);
        refused(&|hello| hello.credits = limits::RDMA_CREDITS + 1);
        refused(&|hello| hello.slots = 0);
        refused(&|hello| hello.slots = limits::RDMA_SLOTS + 1);
        refused(&|hello| hello.window_address = u64::MAX - 5);
        refused(&|hello| hello.regions[1].len = u64::MAX);
        assert!(refused(&|hello| hello.regions[1].key = RegionKey(5)).contains("twice"));
        assert!(refused(&|hello| hello.regions = vec![hello.regions[0]; 65]).contains("65 regions"));
        // Another version, and other terms.
        for place in [0, 40, 46] {
            let mut bytes = good.clone();
            bytes[place] ^= 0x80;
            assert!(Hello::parse(&bytes).is_err(), "byte {place}");
        }
    }
}
