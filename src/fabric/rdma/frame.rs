//! What stands before each message: what it is, and how much room it gives back.

/// Bytes of the head of a frame.
pub(super) const HEAD_BYTES: usize = 8;

/// What a frame is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum FrameKind {
    /// A message of the node.
    Message = 1,
    /// Room given back, and nothing else.
    Room = 2,
    /// The last frame: the sender has closed the connection.
    Goodbye = 3,
}

/// A frame as received.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Frame<'a> {
    /// What it is.
    pub kind: FrameKind,
    /// Slots that the receiver of the frame may write again.
    pub slots: u8,
    /// Messages that it may send besides.
    pub credits: u16,
    /// The node's bytes.
    pub body: &'a [u8],
}

/// The head of a frame: kind u8, slots u8, credits u16, length of the body u32,
/// little-endian.
#[inline]
pub(super) fn head(kind: FrameKind, slots: u8, credits: u16, body: usize) -> [u8; HEAD_BYTES] {
    let mut head = [kind as u8, slots, 0, 0, 0, 0, 0, 0];
    head[2..4].copy_from_slice(&credits.to_le_bytes());
    head[4..].copy_from_slice(&(body as u32).to_le_bytes());
    head
}

/// Takes a frame apart, or says what is wrong with it.
#[inline]
pub fn parse(bytes: &[u8]) -> Result<Frame<'_>, String> {
    let Some((head, body)) = bytes.split_first_chunk::<HEAD_BYTES>() else {
        return Err(format!("a frame of {} bytes, shorter than its head", bytes.len()));
    };
    let [kind, slots, c0, c1, l0, l1, l2, l3] = *head;
    let kind = match kind {
        1 => FrameKind::Message,
        2 => FrameKind::Room,
        3 => FrameKind::Goodbye,
        other => return Err(format!("a frame of kind {other}")),
    };
    let len = u32::from_le_bytes([l0, l1, l2, l3]) as usize;
    if len != body.len() {
        return Err(format!("a frame of {len} bytes in {} bytes", body.len()));
    }
    if kind != FrameKind::Message && len != 0 {
        return Err(format!("{kind:?} with a body of {len} bytes"));
    }
    Ok(Frame { kind, slots, credits: u16::from_le_bytes([c0, c1]), body })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        for (kind, body) in [(FrameKind::Message, &b"hello"[..]), (FrameKind::Message, b""), (FrameKind::Room, b"")] {
            let bytes = [&head(kind, 3, 700, body.len())[..], body].concat();
            assert_eq!(parse(&bytes), Ok(Frame { kind, slots: 3, credits: 700, body }));
        }
    }

    #[test]
    fn what_is_no_frame_is_named() {
        let message = [&head(FrameKind::Message, 0, 0, 3)[..], b"abc"].concat();
        for len in 0..message.len() {
            assert!(parse(&message[..len]).is_err(), "{len} bytes");
        }
        assert!(parse(&[&message[..], b"d"].concat()).is_err(), "longer than it says");
        assert!(parse(&[&head(FrameKind::Goodbye, 0, 0, 1)[..], b"x"].concat()).is_err());
        for kind in (0..=255).filter(|kind| !(1..=3).contains(kind)) {
            assert!(parse(&[kind, 0, 0, 0, 0, 0, 0, 0]).unwrap_err().contains("kind"));
        }
    }
}
