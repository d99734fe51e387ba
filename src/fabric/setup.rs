//! What the set-up exchanges over a fresh connection have in common: bytes are
//! waited for until a deadline, and numbers are taken off them.

use std::io::{self, ErrorKind, Read};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use super::FabricError;
use crate::base::Rank;

/// Fills `bytes` with what `peer` sends over a blocking stream until `deadline`.
pub fn receive_exactly(
    mut stream: &TcpStream,
    peer: Rank,
    bytes: &mut [u8],
    deadline: Instant,
) -> Result<(), FabricError> {
    fill(peer, bytes, deadline, |left| stream.set_read_timeout(Some(left)), |bytes| stream.read(bytes))
}

/// The same by any calls: one that limits how long the next may take, and one
/// that takes some bytes.
pub(super) fn fill(
    peer: Rank,
    bytes: &mut [u8],
    deadline: Instant,
    limit: impl Fn(Duration) -> io::Result<()>,
    mut read: impl FnMut(&mut [u8]) -> io::Result<usize>,
) -> Result<(), FabricError> {
    let mut have = 0;
    while have < bytes.len() {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            let why = "it sent no set-up in time: is its process stopped, or its host overloaded?";
            return Err(FabricError::os(peer, "connect", why));
        }
        limit(left).map_err(|error| FabricError::os(peer, "setsockopt", error))?;
        match read(&mut bytes[have..]) {
            Ok(0) => return Err(FabricError::Closed(peer)),
            Ok(count) => have += count,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            Err(error) => return Err(FabricError::os(peer, "receive of the set-up", error)),
        }
    }
    Ok(())
}

/// Takes little-endian numbers off bytes that may be too few.
pub(super) struct Fields<'a>(pub(super) &'a [u8]);

impl Fields<'_> {
    pub(super) fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (field, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*field)
    }

    pub(super) fn u16(&mut self) -> Option<u16> {
        self.take().map(u16::from_le_bytes)
    }

    pub(super) fn u32(&mut self) -> Option<u32> {
        self.take().map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self) -> Option<u64> {
        self.take().map(u64::from_le_bytes)
    }

    /// Bytes behind their length.
    pub(super) fn bytes(&mut self) -> Option<Vec<u8>> {
        let len = self.u16()?;
        let (field, rest) = self.0.split_at_checked(len.into())?;
        self.0 = rest;
        Some(field.to_vec())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::net::TcpListener;

    #[test]
    fn who_sends_a_byte_now_and_then_has_no_more_time() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut far = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let near = listener.accept().unwrap().0;
        let trickle = std::thread::spawn(move || {
            while far.write_all(b"x").is_ok() {
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        let begun = Instant::now();
        let error = receive_exactly(&near, Rank(3), &mut [0; 100_000], begun + Duration::from_millis(200)).unwrap_err();
        assert!(begun.elapsed() >= Duration::from_millis(200));
        assert!(error.to_string().contains("rank 3") && error.to_string().contains("in time"), "{error}");
        drop(near);
        trickle.join().unwrap();
    }

    #[test]
    fn an_end_in_the_middle_is_an_end() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut far = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let near = listener.accept().unwrap().0;
        far.write_all(b"some").unwrap();
        drop(far);
        let deadline = Instant::now() + Duration::from_secs(10);
        assert_eq!(receive_exactly(&near, Rank(3), &mut [0; 5], deadline), Err(FabricError::Closed(Rank(3))));
    }

    #[test]
    fn fields_run_out() {
        let mut fields = Fields(&[1, 0, 0, 0, 2, 0, b'h', b'i', 9]);
        assert_eq!((fields.u32(), fields.bytes()), (Some(1), Some(b"hi".to_vec())));
        assert_eq!((fields.u16(), fields.u64(), fields.take()), (None, None, Some([9])));
        assert_eq!(Fields(&[5, 0, 1]).bytes(), None);
    }
}
