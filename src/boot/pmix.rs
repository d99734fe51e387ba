//! PMIx, which Open MPI's `mpirun` and Slurm speak, for the time of one fence.

use rustix::process::{Pid, getppid};

use super::bootstrap::{Bootstrap, counts};
use super::{BootError, Launcher};
use crate::base::Rank;
use crate::base::limits::BOOT_DEADLINE;
use crate::sys;

/// A connection to the PMIx server of this host.
pub(super) struct Pmix {
    client: sys::Pmix,
    size: u32,
    parent: Option<Pid>,
}

impl Pmix {
    pub(super) fn init() -> Result<Pmix, BootError> {
        let parent = getppid();
        let client = sys::Pmix::init()?;
        Ok(Pmix { size: client.size()?, client, parent })
    }
}

impl Bootstrap for Pmix {
    fn rank(&self) -> Rank {
        Rank(self.client.rank())
    }

    fn size(&self) -> u32 {
        self.size
    }

    fn one_host(&self) -> bool {
        counts("OMPI_COMM_WORLD_LOCAL_SIZE", self.size)
    }

    fn exchange(&mut self, bytes: &[u8]) -> Result<Vec<Vec<u8>>, BootError> {
        Ok(self.client.exchange(self.size, bytes, BOOT_DEADLINE.as_secs() as u32)?)
    }

    fn finish(self: Box<Self>) -> Result<Launcher, BootError> {
        drop(self.client);
        Ok(Launcher::parent(self.parent))
    }
}
