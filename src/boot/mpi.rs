//! Bootstrap through an MPI library (feature `mpi`), for programs that are MPI
//! programs themselves or whose launcher speaks neither PMI-1 nor PMIx.

use mpi::datatype::PartitionMut;
use mpi::environment::Universe;
use mpi::topology::{Communicator, SimpleCommunicator};
use mpi::traits::CommunicatorCollectives;

use rustix::process::{Pid, getppid};

use super::bootstrap::{Bootstrap, counts};
use super::{BootError, Launcher};
use crate::base::Rank;

/// MPI for the time of one all-gather. Finalised at its end, unless the program
/// had initialised it before: then it is the program's.
pub(super) struct Mpi {
    world: SimpleCommunicator,
    ours: Option<Universe>,
    parent: Option<Pid>,
}

impl Mpi {
    pub(super) fn init() -> Result<Mpi, BootError> {
        let parent = getppid();
        if mpi::environment::is_finalized() {
            return Err(BootError::Mpi("it was finalised before this rank was started: start it earlier".into()));
        }
        let ours = mpi::initialize();
        Ok(Mpi { world: SimpleCommunicator::world(), ours, parent })
    }
}

impl Bootstrap for Mpi {
    fn rank(&self) -> Rank {
        Rank(self.world.rank() as u32)
    }

    fn size(&self) -> u32 {
        self.world.size() as u32
    }

    fn one_host(&self) -> bool {
        ["OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS"].iter().any(|name| counts(name, self.size()))
    }

    fn exchange(&mut self, bytes: &[u8]) -> Result<Vec<Vec<u8>>, BootError> {
        let mut counts = vec![0i32; self.size() as usize];
        self.world.all_gather_into(&(bytes.len() as i32), &mut counts[..]);
        let mut starts = Vec::with_capacity(counts.len());
        let mut end = 0;
        for count in &counts {
            starts.push(end);
            end += count;
        }
        let mut all = vec![0u8; end as usize];
        self.world.all_gather_varcount_into(bytes, &mut PartitionMut::new(&mut all[..], &counts[..], &starts[..]));
        Ok(starts
            .iter()
            .zip(&counts)
            .map(|(start, count)| all[*start as usize..][..*count as usize].to_vec())
            .collect())
    }

    fn finish(self: Box<Self>) -> Result<Launcher, BootError> {
        drop(self.ours);
        Ok(Launcher::parent(self.parent))
    }
}
