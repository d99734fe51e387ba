//! Copies into an arena. A large one bypasses the caches: its source is read
//! once, and its destination is read next by another process or much later.

/// Copies from this size on bypass the caches; below it the reader is likely
/// to find the bytes in a cache (docs/adr/0003-arena.md has the measurement).
const STREAM_BYTES_MIN: usize = 4 << 20;

/// Copies `from` to `to`, which must be as long.
pub(super) fn copy(to: &mut [u8], from: &[u8]) {
    stream_from(STREAM_BYTES_MIN, to, from);
}

fn stream_from(bytes_min: usize, to: &mut [u8], from: &[u8]) {
    assert_eq!(to.len(), from.len(), "a copy between different lengths");
    if cfg!(target_arch = "x86_64") && to.len() >= bytes_min {
        #[cfg(target_arch = "x86_64")]
        stream(to, from);
    } else {
        to.copy_from_slice(from);
    }
}

/// Non-temporal stores; SSE2 is part of x86-64, so nothing is detected.
#[cfg(target_arch = "x86_64")]
fn stream(to: &mut [u8], from: &[u8]) {
    use std::arch::x86_64::{__m128i, _mm_loadu_si128, _mm_sfence, _mm_stream_si128};
    const LINE: usize = 64;

    let head = to.as_ptr().align_offset(LINE).min(to.len());
    let (to_head, to) = to.split_at_mut(head);
    let (from_head, from) = from.split_at(head);
    to_head.copy_from_slice(from_head);

    let (to_lines, to_tail) = to.as_chunks_mut::<LINE>();
    let (from_lines, from_tail) = from.as_chunks::<LINE>();
    for (to, from) in to_lines.iter_mut().zip(from_lines) {
        let (to, from) = (to.as_mut_ptr().cast::<__m128i>(), from.as_ptr().cast::<__m128i>());
        // SAFETY: both point to 64 bytes, four vectors of 16, of which `to` is
        // borrowed exclusively; `to` is 64-byte aligned because the head ended
        // there, and the loads ask for no alignment.
        unsafe {
            let line = [0, 1, 2, 3].map(|i| _mm_loadu_si128(from.add(i)));
            for (i, vector) in line.into_iter().enumerate() {
                _mm_stream_si128(to.add(i), vector);
            }
        }
    }
    // Streaming stores are weakly ordered: whoever is told of the object after
    // this must see its bytes. `_mm_sfence` touches no memory.
    // SAFETY: SSE2 is part of x86-64.
    unsafe { _mm_sfence() };
    to_tail.copy_from_slice(from_tail);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_alignment_and_length_is_copied_exactly() {
        let from: Vec<u8> = (0..2000u32).map(|i| (i * 7 + i / 251) as u8).collect();
        for start in 0..70 {
            for len in [0, 1, 63, 64, 65, 128, 1000, 1800] {
                let mut to = vec![0xEE; 2000];
                stream_from(0, &mut to[start..start + len], &from[130..130 + len]);
                assert!(to[..start].iter().chain(&to[start + len..]).all(|b| *b == 0xEE), "{start}, {len}");
                assert_eq!(to[start..start + len], from[130..130 + len], "{start}, {len}");
            }
        }
    }
}
