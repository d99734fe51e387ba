//! A memory fence in every thread of the process: `membarrier(2)`.

use std::sync::OnceLock;

/// A function that makes every thread of this process execute a full memory
/// fence, or `None` where the kernel refuses (before Linux 4.14, or a seccomp
/// profile that forbids it).
pub fn fence_everywhere() -> Option<fn()> {
    static REGISTERED: OnceLock<bool> = OnceLock::new();
    let registered = *REGISTERED.get_or_init(|| call(libc::MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED) == 0);
    registered.then_some(fence)
}

fn fence() {
    let status = call(libc::MEMBARRIER_CMD_PRIVATE_EXPEDITED);
    assert_eq!(status, 0, "membarrier was registered, so it cannot fail");
}

fn call(command: libc::c_int) -> libc::c_long {
    // SAFETY: membarrier takes three integers and touches no memory of ours.
    unsafe { libc::syscall(libc::SYS_membarrier, command, 0, 0) }
}

#[cfg(test)]
mod tests {
    #[test]
    fn can_be_called_where_it_can_be_had() {
        if let Some(fence) = super::fence_everywhere() {
            fence();
        }
    }
}
