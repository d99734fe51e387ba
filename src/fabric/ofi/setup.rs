//! What two ranks tell each other over their authenticated connection before
//! they use libfabric: their endpoints' addresses, the cookies that make a
//! frame believable, and the keys of their regions.

use std::io::Write;
use std::net::TcpStream;
use std::time::Instant;

use crate::base::{Rank, limits};
use crate::fabric::setup::{Fields, receive_exactly};
use crate::fabric::{FabricError, RegionKey};
use crate::sys::OfiKey;

const MAGIC: u64 = u64::from_le_bytes(*b"clm-ofi1");

/// The magic number and the length of what follows.
const HEAD: usize = 12;

/// Where a region of a peer can be read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Readable {
    pub name: RegionKey,
    pub len: u64,
    pub key: OfiKey,
}

/// What one side says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Hello {
    pub rank: Rank,
    /// The provider's protocol, its version, and the form of addresses.
    pub protocol: [u32; 3],
    /// What frames to this side must carry.
    pub cookie: u64,
    /// This side's process, for what it leaves behind when it is killed.
    pub process: u32,
    /// The provider's full name.
    pub provider: String,
    /// Where the endpoint can be reached from; empty is everywhere.
    pub place: String,
    pub address: Vec<u8>,
    pub regions: Vec<Readable>,
}

impl Hello {
    /// Tells the peer and hears from it, within `limits::SET_UP_DEADLINE`.
    pub fn exchange(&self, peer: Rank, stream: &mut TcpStream, deadline: Instant) -> Result<Hello, FabricError> {
        let os = |what: &'static str| move |error: std::io::Error| FabricError::os(peer, what, error);
        stream.set_nonblocking(false).map_err(os("connect"))?;
        stream.set_write_timeout(Some(limits::SET_UP_DEADLINE)).map_err(os("connect"))?;
        stream.write_all(&self.encode()).map_err(os("send of the set-up"))?;
        let mut head = [0; HEAD];
        receive_exactly(stream, peer, &mut head, deadline)?;
        let bad = |what: &str| FabricError::BadFrame(peer, format!("{what} in the set-up of libfabric"));
        let (magic, len) = head.split_at(8);
        if magic != MAGIC.to_le_bytes() {
            return Err(bad("another program or version"));
        }
        let len = u32::from_le_bytes([len[0], len[1], len[2], len[3]]) as usize;
        if len > limits::OFI_SETUP_BYTES_MAX {
            return Err(bad("too many bytes"));
        }
        let mut body = vec![0; len];
        receive_exactly(stream, peer, &mut body, deadline)?;
        let theirs = Hello::parse(&body).ok_or_else(|| bad("a wrong length"))?;
        if theirs.rank != peer {
            return Err(bad("another rank"));
        }
        if (&theirs.provider, theirs.protocol) != (&self.provider, self.protocol) {
            let name = |hello: &Hello| format!("{} (protocol {:?})", hello.provider, hello.protocol);
            let cause = format!("it uses {} where this side uses {}", name(&theirs), name(self));
            return Err(FabricError::os(peer, "libfabric", cause));
        }
        if theirs.place != self.place {
            let cause = format!("{} reaches only ranks of the same host", self.provider);
            return Err(FabricError::os(peer, "libfabric", cause));
        }
        stream.set_nonblocking(true).map_err(os("connect"))?;
        Ok(theirs)
    }

    fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend_from_slice(&MAGIC.to_le_bytes());
        bytes.extend_from_slice(&[0; 4]);
        bytes.extend_from_slice(&self.rank.0.to_le_bytes());
        self.protocol.iter().for_each(|number| bytes.extend_from_slice(&number.to_le_bytes()));
        bytes.extend_from_slice(&self.cookie.to_le_bytes());
        bytes.extend_from_slice(&self.process.to_le_bytes());
        for text in [self.provider.as_bytes(), self.place.as_bytes(), &self.address] {
            bytes.extend_from_slice(&(text.len() as u16).to_le_bytes());
            bytes.extend_from_slice(text);
        }
        for region in &self.regions {
            bytes.extend_from_slice(&region.name.0.to_le_bytes());
            for number in [region.len, region.key.base, region.key.key] {
                bytes.extend_from_slice(&number.to_le_bytes());
            }
        }
        let len = (bytes.len() - HEAD) as u32;
        bytes[8..HEAD].copy_from_slice(&len.to_le_bytes());
        bytes
    }

    /// What follows the head. The regions take what is left.
    fn parse(bytes: &[u8]) -> Option<Hello> {
        let mut fields = Fields(bytes);
        let mut hello = Hello {
            rank: Rank(fields.u32()?),
            protocol: [fields.u32()?, fields.u32()?, fields.u32()?],
            cookie: fields.u64()?,
            process: fields.u32()?,
            provider: String::from_utf8(fields.bytes()?).ok()?,
            place: String::from_utf8(fields.bytes()?).ok()?,
            address: fields.bytes()?,
            regions: Vec::new(),
        };
        while !fields.0.is_empty() {
            let (name, len, base, key) = (fields.u32()?, fields.u64()?, fields.u64()?, fields.u64()?);
            hello.regions.push(Readable { name: RegionKey(name), len, key: OfiKey { key, base } });
        }
        Some(hello)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hello() -> Hello {
        let key = OfiKey { key: u64::MAX - 1, base: 1 << 47 };
        Hello {
            rank: Rank(3),
            protocol: [1, 2, 3],
            cookie: 99,
            process: 1234,
            provider: "tcp;ofi_rxm".into(),
            place: String::new(),
            address: vec![1, 2, 3],
            regions: vec![Readable { name: RegionKey(5), len: 10, key }; 2],
        }
    }

    #[test]
    fn what_is_said_is_heard() {
        let bytes = hello().encode();
        assert_eq!(Hello::parse(&bytes[HEAD..]), Some(hello()));
        let of_two_regions = 2 * 28;
        for cut in HEAD..bytes.len() {
            let whole_regions = cut >= bytes.len() - of_two_regions && (bytes.len() - cut).is_multiple_of(28);
            assert_eq!(Hello::parse(&bytes[HEAD..cut]).is_some(), whole_regions, "{cut} bytes");
        }
    }

    #[test]
    fn what_does_not_match_is_named() {
        let exchange = |change: fn(&mut Hello)| {
            let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            let mut far = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let mut near = listener.accept().unwrap().0;
            let mut theirs = hello();
            change(&mut theirs);
            far.write_all(&theirs.encode()).unwrap();
            let deadline = Instant::now() + limits::SET_UP_DEADLINE;
            hello().exchange(Rank(3), &mut near, deadline)
        };
        assert_eq!(exchange(|_| ()), Ok(hello()));
        let error = exchange(|theirs| theirs.provider = "shm".into()).unwrap_err().to_string();
        assert!(error.contains("shm") && error.contains("tcp;ofi_rxm") && error.contains(&Rank(3).to_string()), "{error}");
        assert!(exchange(|theirs| theirs.protocol[1] = 7).is_err());
        assert!(exchange(|theirs| theirs.place = "elsewhere".into()).is_err());
        assert!(matches!(exchange(|theirs| theirs.rank = Rank(4)), Err(FabricError::BadFrame(Rank(3), _))));
    }
}
