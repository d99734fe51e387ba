//! Identity newtypes: an index, a count and a size never share a type.

use std::fmt;

use serde::{Deserialize, Serialize};
use twox_hash::XxHash3_128;

/// One Collimate process of a job, counted from 0 as in MPI.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize)]
pub struct Rank(pub u32);

impl Rank {
    /// The rank as an index into a table with one entry per rank.
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

impl fmt::Display for Rank {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rank {}", self.0)
    }
}

/// One launch of a program; drawn at random by rank 0 or by the launcher.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct JobId(pub u64);

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// What two ranks must share to reach each other through shared memory: the
/// machine's boot ID and the network namespace, hashed.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct HostId(pub u64);

/// A task function's identity on the wire: a hash of its name and signature,
/// the same in every binary that was built from the same declaration.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct FunctionId(pub u64);

impl FunctionId {
    /// Hashes a task's name and signature.
    pub fn of(name: &str, signature: &str) -> Self {
        let mut bytes = Vec::with_capacity(name.len() + signature.len() + 1);
        bytes.extend_from_slice(name.as_bytes());
        bytes.push(0);
        bytes.extend_from_slice(signature.as_bytes());
        FunctionId(XxHash3_128::oneshot(&bytes) as u64)
    }
}

/// The identity of a task, an object, an actor call or a graph value: 128 bits
/// that a second run of the same program derives again.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Tag(pub u128);

impl Tag {
    /// The tag of a job's root task. Deliberately the same for every launch of
    /// a job: what differs between launches is the job, not the work.
    pub const ROOT: Tag = Tag(0x436f_6c6c_696d_6174_6500_0000_0000_0001);

    /// The tag of the call with number `index` made by the task `self`.
    pub fn child(self, index: u32) -> Tag {
        self.derive(index, 0)
    }

    /// The tag of one of several results of the task `self`.
    pub fn output(self, output: u32) -> Tag {
        self.derive(u32::MAX, output + 1)
    }

    /// One step of a permutation of 128 bits per call, since this runs for
    /// every task that makes another: the numbers enter by exclusive or, an odd
    /// multiplier carries them upwards, a shift back down. For one parent no
    /// two calls have the same tag; tags of different parents meet as seldom as
    /// random ones (ADR 4).
    #[inline]
    fn derive(self, index: u32, output: u32) -> Tag {
        /// The fraction of the golden ratio, made odd.
        const MULTIPLIER: u128 = 0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835;
        let numbers = u128::from(output) << 32 | u128::from(index);
        let product = (self.0 ^ numbers).wrapping_mul(MULTIPLIER);
        Tag(product ^ product >> 64)
    }
}

impl fmt::Debug for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Display for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_are_derived_not_drawn() {
        let a = Tag::ROOT.child(0).child(7);
        assert_eq!(a, Tag::ROOT.child(0).child(7));
        assert_ne!(a, Tag::ROOT.child(7).child(0));
        assert_ne!(a, a.output(0));
        assert_ne!(a.output(0), a.output(1));
        assert_ne!(Tag::ROOT.child(u32::MAX), Tag::ROOT.output(0));
    }

    /// Not one of the tags of some large and regular trees is met twice, not
    /// even in either half.
    #[test]
    fn tags_of_regular_trees_do_not_meet() {
        let mut tags = Vec::new();
        for (fan_out, levels) in [(2, 15), (3, 9), (20, 3), (300, 1), (1, 10_000)] {
            let mut level = vec![Tag::ROOT.child(fan_out)];
            for _ in 0..levels {
                level = level.iter().flat_map(|tag| (0..fan_out).map(|call| tag.child(call))).collect();
                tags.extend_from_slice(&level);
            }
        }
        let calls = (0..50_000u32).map(|call| Tag::ROOT.child(call << 8));
        tags.extend(calls.chain((0..255).map(|output| Tag::ROOT.output(output))));
        for half in [64, 0] {
            let mut halves: Vec<u64> = tags.iter().map(|tag| (tag.0 >> half) as u64).collect();
            halves.sort_unstable();
            halves.dedup();
            assert_eq!(halves.len(), tags.len());
        }
    }
}
