//! Page faults taken in bulk, ahead of a copy.

use rustix::mm::{Advice, madvise};

use crate::mem::Region;

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

/// The same for a whole region, parts of which may be in use.
pub(super) fn populate_region(region: &Region) {
    let advice = if region.is_writable() { Advice::LinuxPopulateWrite } else { Advice::LinuxPopulateRead };
    if !region.is_empty() && region.base().as_ptr().addr().is_multiple_of(rustix::param::page_size()) {
        // SAFETY: the region is mapped while it is borrowed; populating changes
        // neither its content nor its mapping, whoever uses it meanwhile.
        let _ = unsafe { madvise(region.base().as_ptr().cast(), region.len(), advice) };
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
