//! Chains on real files.
