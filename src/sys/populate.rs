//! Page faults taken in bulk, ahead of a copy.

use rustix::mm::{Advice, madvise};

/// Makes the pages of `bytes` resident and writable, in one system call in
/// place of one fault a page. Changes no byte; where the system cannot (Linux
/// before 5.14, huge pages, memory limits) it does nothing, and the faults
/// come as they would have.
pub fn populate_fresh(bytes: &mut [u8]) {
    let page = rustix::param::page_size();
    let skipped = bytes.as_ptr().align_offset(page).min(bytes.len());
    let whole = (bytes.len() - skipped) / page * page;
    let pages = &mut bytes[skipped..skipped + whole];
    if !pages.is_empty() {
        // SAFETY: the range is borrowed exclusively and so is mapped; the
        // advice changes neither its content nor its mapping.
        let _ = unsafe { madvise(pages.as_mut_ptr().cast(), pages.len(), Advice::LinuxPopulateWrite) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_byte_changes_at_any_alignment() {
        let mut bytes: Vec<u8> = (0..40_000u32).map(|i| i as u8).collect();
        let before = bytes.clone();
        for (start, end) in [(0, 40_000), (1, 39_999), (5, 5), (100, 200), (4095, 12_289)] {
            populate_fresh(&mut bytes[start..end]);
        }
        assert_eq!(bytes, before);
    }
}
