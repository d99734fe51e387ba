//! Bootstrap through an MPI library (feature `mpi`), for programs that are MPI
//! programs themselves or whose launcher speaks neither PMI-1 nor PMIx.

use mpi::datatype::PartitionMut;
use mpi::environment::Universe;
use mpi::topology::{Communicator, SimpleCommunicator};
use mpi::traits::CommunicatorCollectives;

use super::BootError;

/// MPI for the time of one all-gather. Finalised when dropped, unless the
/// program had initialised it before: then it is the program's.
pub(super) struct Mpi {
    world: SimpleCommunicator,
    _ours: Option<Universe>,
}

impl Mpi {
    pub(super) fn init() -> Result<Mpi, BootError> {
        if mpi::environment::is_finalized() {
            return Err(BootError::Mpi("it was finalised before this rank was started: start it earlier".into()));
        }
        let ours = mpi::initialize();
        Ok(Mpi { world: SimpleCommunicator::world(), _ours: ours })
    }

    pub(super) fn rank(&self) -> u32 {
        self.world.rank() as u32
    }

    pub(super) fn size(&self) -> u32 {
        self.world.size() as u32
    }

    /// Publishes `bytes` and returns what every rank has published.
    pub(super) fn exchange(&self, bytes: &[u8]) -> Vec<Vec<u8>> {
        let mut counts = vec![0i32; self.size() as usize];
        self.world.all_gather_into(&(bytes.len() as i32), &mut counts[..]);
        let starts: Vec<i32> = counts
            .iter()
            .scan(0, |next, count| {
                let start = *next;
                *next += count;
                Some(start)
            })
            .collect();
        let mut all = vec![0u8; counts.iter().sum::<i32>() as usize];
        self.world.all_gather_varcount_into(bytes, &mut PartitionMut::new(&mut all[..], &counts[..], &starts[..]));
        starts.iter().zip(&counts).map(|(start, count)| all[*start as usize..][..*count as usize].to_vec()).collect()
    }
}
