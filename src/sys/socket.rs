//! Sending from a region that other threads may be using: by address, so that
//! no reference to its bytes is made.

use std::io;
use std::mem::MaybeUninit;
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

/// Allows [`send_uncopied`] on a socket.
pub fn allow_uncopied(socket: impl AsFd) -> io::Result<()> {
    let on: libc::c_int = 1;
    // SAFETY: the option takes an int by address and copies it.
    let done = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ZEROCOPY,
            (&raw const on).cast(),
            size_of_val(&on) as libc::socklen_t,
        )
    };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Sends `len` bytes of `region`, as much as there is room for, without waiting
/// and, if the kernel can, without copying them: they must stay as they are
/// until the other side has them. Returns how many bytes went. When the kernel
/// needs the bytes no more, [`take_send_notices`] says so, once for each call.
pub fn send_uncopied(socket: impl AsFd, region: &Region, offset: u64, len: usize) -> io::Result<usize> {
    let body = region.span(offset, len as u64).map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
    // SAFETY: the span lies in a region that is readable during the call. What
    // the kernel reads later are the pages, which it holds by itself: if they
    // are written or unmapped here meanwhile, that changes what is sent and
    // nothing else.
    let sent = unsafe {
        libc::send(
            socket.as_fd().as_raw_fd(),
            body.cast::<libc::c_void>().as_ptr(),
            len,
            libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL | libc::MSG_ZEROCOPY,
        )
    };
    if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(sent as usize) }
}

/// What the kernel has said about sends without a copy.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct SendNotices {
    /// Calls whose bytes it needs no more.
    pub done: u32,
    /// It has copied some of them after all.
    pub copied: bool,
}

/// Takes the notices that are there.
pub fn take_send_notices(socket: impl AsFd) -> SendNotices {
    let mut notices = SendNotices::default();
    while let Some((first, last, copied)) = next_notice(socket.as_fd().as_raw_fd()) {
        notices.done = notices.done.wrapping_add(last.wrapping_sub(first).wrapping_add(1));
        notices.copied |= copied;
    }
    notices
}

/// The next notice: the first and the last call that it is about, and whether
/// they were copied.
fn next_notice(socket: i32) -> Option<(u32, u32, bool)> {
    /// `SO_EE_ORIGIN_ZEROCOPY` and `SO_EE_CODE_ZEROCOPY_COPIED` of
    /// `linux/errqueue.h`.
    const ORIGIN: u8 = 5;
    const COPIED: u8 = 1;
    // Aligned as control messages are, and with room for an address as well.
    let mut control = [MaybeUninit::<u64>::zeroed(); 32];
    loop {
        // SAFETY: all-zero bytes are a valid `msghdr`: null pointers, no lengths.
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        message.msg_control = control.as_mut_ptr().cast();
        message.msg_controllen = size_of_val(&control);
        // SAFETY: the message has no place for data and one for control
        // messages, of the length that is given.
        let got = unsafe { libc::recvmsg(socket, &raw mut message, libc::MSG_ERRQUEUE | libc::MSG_DONTWAIT) };
        if got < 0 {
            return None;
        }
        // SAFETY: the message is as the kernel has filled it, so the first
        // header, if it is not null, lies in `control`.
        let header = unsafe { libc::CMSG_FIRSTHDR(&raw const message).as_ref() }?;
        let is_error = matches!(
            (header.cmsg_level, header.cmsg_type),
            (libc::SOL_IP, libc::IP_RECVERR) | (libc::SOL_IPV6, libc::IPV6_RECVERR)
        );
        // SAFETY: computes a length, nothing else.
        let needed = unsafe { libc::CMSG_LEN(size_of::<libc::sock_extended_err>() as u32) } as usize;
        if !is_error || header.cmsg_len < needed {
            continue;
        }
        // SAFETY: the header says that its data has at least this many bytes
        // (checked above); any bits are valid for the numbers in there.
        let error = unsafe { libc::CMSG_DATA(header).cast::<libc::sock_extended_err>().read_unaligned() };
        if error.ee_errno == 0 && error.ee_origin == ORIGIN {
            return Some((error.ee_info, error.ee_data, error.ee_code & COPIED != 0));
        }
    }
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

    #[test]
    fn each_send_without_a_copy_is_noticed_once() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let near = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let mut far = listener.accept().unwrap().0;
        if allow_uncopied(&near).is_err() {
            return;
        }
        assert_eq!(take_send_notices(&near), SendNotices::default());
        let region = Region::heap(100_000);
        let mut sent = 0;
        for _ in 0..3 {
            sent += send_uncopied(&near, &region, 1000, 50_000).unwrap();
        }
        assert!(send_uncopied(&near, &region, 60_000, 50_000).is_err(), "outside of the region");
        far.read_exact(&mut vec![0; sent]).unwrap();
        let mut seen = SendNotices::default();
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while seen.done < 3 && std::time::Instant::now() < deadline {
            let more = take_send_notices(&near);
            seen = SendNotices { done: seen.done + more.done, copied: seen.copied || more.copied };
        }
        assert_eq!(seen, SendNotices { done: 3, copied: true }, "loopback copies");
    }
}
