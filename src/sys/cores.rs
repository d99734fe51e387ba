//! The processors of this host.

/// How many are online, whether or not this process may run on them
/// (`sysconf(3)`, `_SC_NPROCESSORS_ONLN`).
pub fn online_cores() -> usize {
    // SAFETY: asks for a number and touches no memory of ours.
    let online = unsafe { libc::sysconf(libc::_SC_NPROCESSORS_ONLN) };
    usize::try_from(online).unwrap_or(1).max(1)
}

#[cfg(test)]
mod tests {
    #[test]
    fn there_is_one() {
        assert!(super::online_cores() >= std::thread::available_parallelism().map_or(1, usize::from).min(1));
    }
}
