//! What a member of the quorum must not forget: the consensus library's log and
//! promises, in the form in which they go to disk. Small, since decided changes
//! are folded into a directory once every member has them.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use omnipaxos::ballot_leader_election::Ballot;
use omnipaxos::storage::{Entry, NoSnapshot, StopSign, Storage, StorageOp, StorageResult};
use serde::{Deserialize, Serialize};

use super::directory::Directory;
use super::message::ChainConfig;

impl Entry for ChainConfig {
    type Snapshot = NoSnapshot;
}

/// See the module.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct QuorumLog {
    /// All changes before `trimmed`.
    base: Directory,
    trimmed: usize,
    changes: Vec<ChainConfig>,
    decided: usize,
    promise: Option<Ballot>,
    accepted: Option<Ballot>,
}

impl QuorumLog {
    /// What a member has at the start of the job.
    pub fn founded(chains: Vec<ChainConfig>) -> QuorumLog {
        QuorumLog { base: Directory::founded(chains), ..QuorumLog::default() }
    }

    /// What an earlier life of this member has saved, if it can be read.
    pub fn decode(bytes: &[u8]) -> Option<QuorumLog> {
        let log: QuorumLog = postcard::from_bytes(bytes).ok()?;
        (log.trimmed <= log.decided && log.decided <= log.trimmed + log.changes.len()).then_some(log)
    }

    /// What has been decided, and how many changes that were.
    pub(super) fn directory(&self) -> (Directory, usize) {
        let mut directory = self.base.clone();
        for change in self.changes.iter().take(self.decided - self.trimmed) {
            // One that is not allowed was decided and changed nothing.
            let _ = directory.apply(change);
        }
        (directory, self.decided)
    }

    fn fold(&mut self, through: usize) {
        let count = through.saturating_sub(self.trimmed).min(self.changes.len());
        for change in self.changes.drain(..count) {
            // One that is not allowed was decided and changed nothing.
            let _ = self.base.apply(&change);
        }
        self.trimmed += count;
    }
}

/// A [`QuorumLog`] that the library writes and its member reads.
#[derive(Clone, Debug)]
pub(super) struct SharedLog(Arc<Mutex<(QuorumLog, bool)>>);

impl SharedLog {
    pub(super) fn new(log: QuorumLog) -> SharedLog {
        SharedLog(Arc::new(Mutex::new((log, true))))
    }

    /// What is to be saved, if it has changed since this was asked last.
    pub(super) fn changed(&self) -> Option<Vec<u8>> {
        let mut guard = self.lock();
        let (log, changed) = &mut *guard;
        std::mem::take(changed).then(|| postcard::to_stdvec(log).unwrap_or_default())
    }

    /// How many changes are kept one by one.
    pub(super) fn kept(&self) -> usize {
        self.lock().0.changes.len()
    }

    /// Adds a change that one member alone has decided.
    pub(super) fn decide(&self, change: ChainConfig) {
        let mut guard = self.lock();
        guard.0.changes.push(change);
        guard.0.decided = guard.0.trimmed + guard.0.changes.len();
        guard.1 = true;
    }

    /// The changes that were decided after the first `known`.
    pub(super) fn decided(&self, known: usize) -> Vec<ChainConfig> {
        let log = &self.lock().0;
        let from = known.checked_sub(log.trimmed);
        from.and_then(|from| log.changes.get(from..log.decided - log.trimmed)).unwrap_or_default().to_vec()
    }

    /// Folds changes into the directory before them.
    pub(super) fn fold(&self, through: usize) {
        let mut guard = self.lock();
        guard.0.fold(through);
        guard.1 = true;
    }

    fn read<T>(&self, read: impl FnOnce(&QuorumLog) -> T) -> StorageResult<T> {
        Ok(read(&self.lock().0))
    }

    fn write(&self, write: impl FnOnce(&mut QuorumLog)) -> StorageResult<()> {
        let mut guard = self.lock();
        write(&mut guard.0);
        guard.1 = true;
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, (QuorumLog, bool)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Storage<ChainConfig> for SharedLog {
    fn write_atomically(&mut self, ops: Vec<StorageOp<ChainConfig>>) -> StorageResult<()> {
        for op in ops {
            match op {
                StorageOp::AppendEntry(entry) => self.append_entry(entry)?,
                StorageOp::AppendEntries(entries) => self.append_entries(entries)?,
                StorageOp::AppendOnPrefix(from, entries) => self.append_on_prefix(from, entries)?,
                StorageOp::SetPromise(ballot) => self.set_promise(ballot)?,
                StorageOp::SetDecidedIndex(decided) => self.set_decided_idx(decided)?,
                StorageOp::SetAcceptedRound(ballot) => self.set_accepted_round(ballot)?,
                StorageOp::SetCompactedIdx(trimmed) => self.set_compacted_idx(trimmed)?,
                StorageOp::Trim(trimmed) => self.trim(trimmed)?,
                StorageOp::SetStopsign(stop) => self.set_stopsign(stop)?,
                StorageOp::SetSnapshot(snapshot) => self.set_snapshot(snapshot)?,
            }
        }
        Ok(())
    }

    fn append_entry(&mut self, entry: ChainConfig) -> StorageResult<()> {
        self.write(|log| log.changes.push(entry))
    }

    fn append_entries(&mut self, entries: Vec<ChainConfig>) -> StorageResult<()> {
        self.write(|log| log.changes.extend(entries))
    }

    fn append_on_prefix(&mut self, from: usize, entries: Vec<ChainConfig>) -> StorageResult<()> {
        self.write(|log| {
            log.changes.truncate(from.saturating_sub(log.trimmed));
            log.changes.extend(entries);
        })
    }

    fn set_promise(&mut self, ballot: Ballot) -> StorageResult<()> {
        self.write(|log| log.promise = Some(ballot))
    }

    fn set_decided_idx(&mut self, decided: usize) -> StorageResult<()> {
        self.write(|log| log.decided = decided)
    }

    fn get_decided_idx(&self) -> StorageResult<usize> {
        self.read(|log| log.decided)
    }

    fn set_accepted_round(&mut self, ballot: Ballot) -> StorageResult<()> {
        self.write(|log| log.accepted = Some(ballot))
    }

    fn get_accepted_round(&self) -> StorageResult<Option<Ballot>> {
        self.read(|log| log.accepted)
    }

    fn get_entries(&self, from: usize, to: usize) -> StorageResult<Vec<ChainConfig>> {
        self.read(|log| {
            let range = from.checked_sub(log.trimmed).zip(to.checked_sub(log.trimmed));
            range.and_then(|(from, to)| log.changes.get(from..to)).unwrap_or_default().to_vec()
        })
    }

    fn get_log_len(&self) -> StorageResult<usize> {
        self.read(|log| log.changes.len())
    }

    fn get_suffix(&self, from: usize) -> StorageResult<Vec<ChainConfig>> {
        self.read(|log| {
            let from = from.checked_sub(log.trimmed);
            from.and_then(|from| log.changes.get(from..)).unwrap_or_default().to_vec()
        })
    }

    fn get_promise(&self) -> StorageResult<Option<Ballot>> {
        self.read(|log| log.promise)
    }

    fn set_stopsign(&mut self, stop: Option<StopSign>) -> StorageResult<()> {
        match stop {
            None => Ok(()),
            Some(_) => Err("the quorum's own members never change".into()),
        }
    }

    fn get_stopsign(&self) -> StorageResult<Option<StopSign>> {
        Ok(None)
    }

    fn trim(&mut self, trimmed: usize) -> StorageResult<()> {
        self.write(|log| log.fold(trimmed))
    }

    fn set_compacted_idx(&mut self, trimmed: usize) -> StorageResult<()> {
        self.trim(trimmed)
    }

    fn get_compacted_idx(&self) -> StorageResult<usize> {
        self.read(|log| log.trimmed)
    }

    fn set_snapshot(&mut self, _: Option<NoSnapshot>) -> StorageResult<()> {
        Ok(())
    }

    fn get_snapshot(&self) -> StorageResult<Option<NoSnapshot>> {
        Ok(None)
    }
}
