//! Sending from a region that other threads may be using: by address, so that
//! no reference to its bytes is made.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use crate::mem::Region;

/// Sends `header` and then `len` bytes of `region`, as much as there is room
/// for, without waiting. Returns how many bytes went, the header's included.
pub fn send_from_region(
    socket: impl AsFd,
    header: &[u8],
    region: &Region,
    offset: u64,
    len: usize,
) -> io::Result<usize> {
    let body = region.span(offset, len as u64).map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
    let mut parts = [
        libc::iovec { iov_base: header.as_ptr().cast_mut().cast(), iov_len: header.len() },
        libc::iovec { iov_base: body.cast::<libc::c_void>().as_ptr(), iov_len: len },
    ];
    // SAFETY: all-zero bytes are a valid `msghdr`: null pointers, no lengths.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = parts.as_mut_ptr();
    message.msg_iovlen = parts.len();
    // SAFETY: `message` points to two ranges that are readable during the call:
    // `header` is borrowed, the span lies in a region that is. The kernel only
    // reads them; that others may write the region meanwhile changes what is
    // sent and nothing else.
    let sent = unsafe {
        libc::sendmsg(socket.as_fd().as_raw_fd(), &raw const message, libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL)
    };
    if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(sent as usize) }
}

/// Makes a socket deaf, for a test: whatever the other side sends is dropped on
/// arrival, as if the network were cut.
#[cfg(test)]
pub(crate) fn deafen(socket: impl AsFd) {
    const RETURN_CONSTANT: u16 = 0x06;
    let mut drop_all = [libc::sock_filter { code: RETURN_CONSTANT, jt: 0, jf: 0, k: 0 }];
    let program = libc::sock_fprog { len: 1, filter: drop_all.as_mut_ptr() };
    // SAFETY: the option takes a program by address, with its length, and
    // copies it; both live during the call.
    let done = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            (&raw const program).cast(),
            size_of_val(&program) as libc::socklen_t,
        )
    };
    assert_eq!(done, 0, "{}", io::Error::last_os_error());
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::os::unix::net::UnixStream;

    #[test]
    fn header_and_bytes_arrive_joined() {
        let (a, mut b) = UnixStream::pair().unwrap();
        let region = Region::heap(100);
        assert_eq!(send_from_region(&a, b"head", &region, 10, 90).unwrap(), 94);
        assert!(send_from_region(&a, b"head", &region, 11, 90).is_err());
        drop(a);
        let mut all = Vec::new();
        b.read_to_end(&mut all).unwrap();
        assert_eq!((&all[..4], all.len()), (&b"head"[..], 94));
    }
}
