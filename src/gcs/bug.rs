//! Deliberate bugs, one per rule of the protocol, so that tests can show that
//! the simulation would see them. There are none outside of tests.

/// A rule that is broken.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Bug {
    /// Messages of earlier epochs are taken.
    SkipEpochCheck,
    /// A replica answers for a key that has changes under way.
    ReadDirty,
    /// A replica answers reads without a lease.
    DropLease,
    /// A replica forgets a command when it has passed it on.
    TruncateEarly,
    /// The head answers for the tail.
    AcknowledgeAtHead,
    /// A link that is made anew begins with what comes next.
    ForgetSuffix,
    /// A command that is sent again happens again.
    DoubleApply,
    /// A replica joins without having all of the snapshot.
    JoinEarly,
    /// A member of the quorum grants leases of an epoch while those of the
    /// epoch before may still be used.
    GrantEarly,
    /// A replica vouches for what its disk has not got.
    SkipSync,
    /// A member of the quorum forgets leases when it has closed a connection
    /// itself, so that the other side still counts them.
    ForgetUncertain,
    /// A tail commits while somebody may still read in an earlier epoch.
    CommitEarly,
}

impl Bug {
    /// All of them.
    pub const ALL: [Bug; 12] = [
        Bug::CommitEarly,
        Bug::SkipEpochCheck,
        Bug::ReadDirty,
        Bug::DropLease,
        Bug::TruncateEarly,
        Bug::AcknowledgeAtHead,
        Bug::ForgetSuffix,
        Bug::DoubleApply,
        Bug::JoinEarly,
        Bug::GrantEarly,
        Bug::SkipSync,
        Bug::ForgetUncertain,
    ];
}

/// The bug that a core has, if any.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Bugs {
    #[cfg(test)]
    pub one: Option<Bug>,
}

impl Bugs {
    /// Whether this one is there.
    #[inline]
    pub fn has(self, bug: Bug) -> bool {
        #[cfg(test)]
        return self.one == Some(bug);
        #[cfg(not(test))]
        {
            let _ = bug;
            false
        }
    }
}
