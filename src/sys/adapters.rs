//! Network adapters that the kernel knows.

/// Where the kernel lists adapters that bypass it: InfiniBand, RoCE, Omni-Path
/// and EFA under the first, Slingshot under the second.
const CLASSES: [&str; 2] = ["/sys/class/infiniband", "/sys/class/cxi"];

/// Whether there is an adapter that libfabric might have a provider for. To ask
/// libfabric itself may take a good part of a second.
pub fn has_fabric_adapter() -> bool {
    CLASSES.iter().any(|class| std::fs::read_dir(class).is_ok_and(|mut entries| entries.next().is_some()))
}
