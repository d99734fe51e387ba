//! What the control store keeps on disk: the logs of a rank's replicas and the
//! promises of its member of the quorum. The cores say what is to be written;
//! here it is, and they are told when it is there.

mod home;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::io;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};

use thiserror::Error;
use twox_hash::XxHash3_128;

pub use self::home::{DiskOptions, Home, LIVES_MAX, Layout};
use crate::gcs::{
    Action, DiskEvent, LogDamage, MemberAction, QuorumLog, Recovered, Seq, ShardId, encode_mark, is_of_a_crash, recover,
};
use crate::sys::{Journal, JournalError, JournalEvent, Mark};

/// Messages of a member that wait for its disk. They may be lost, so what is more
/// than a disk that has stopped lets gather is.
const HELD_MAX: usize = 4096;

/// Why a rank cannot use what it keeps on disk.
#[derive(Debug, Error)]
pub enum DiskError {
    /// A file cannot be used.
    #[error("the control store cannot go on: {0}")]
    Journal(#[from] JournalError),
    /// A call failed.
    #[error("the control store cannot {doing} {path}: {cause}", path = path.display())]
    Io {
        /// What was to be done.
        doing: &'static str,
        /// To what.
        path: PathBuf,
        /// What the system said.
        cause: io::Error,
    },
    /// A log is not what was written.
    #[error(
        "{path}: {damage}, and no crash leaves that. {whole} records before it are whole. Put back a copy of the file, \
         or {instead}",
        path = path.display(), instead = instead_of_a_log(*whole)
    )]
    Log {
        /// The log.
        path: PathBuf,
        /// Where and what.
        damage: LogDamage,
        /// Records that can be read.
        whole: usize,
    },
    /// What a member of the quorum has saved is not what was written.
    #[error(
        "{path} is damaged: {what}. A member of the quorum cannot go on without its promises: put back a copy of the \
         file, or begin with an empty COLLIMATE_GCS_DIR",
        path = path.display()
    )]
    Quorum {
        /// The file.
        path: PathBuf,
        /// In what way.
        what: &'static str,
    },
    /// The count of a rank's starts cannot be used.
    #[error(
        "{path} should hold the number of the rank's last start and holds {found:?}: write that number, or a greater one, into it",
        path = path.display()
    )]
    Life {
        /// The file.
        path: PathBuf,
        /// What is in it.
        found: String,
    },
    /// The rank was started too often, or the count is wrong.
    #[error(
        "{path} says that the rank was started {count} times on this folder, and no more than {LIVES_MAX} can be told apart: \
         if that is true, begin with an empty COLLIMATE_GCS_DIR; if not, write the number of its last start into the file",
        path = path.display()
    )]
    Lives {
        /// The file.
        path: PathBuf,
        /// What is in it.
        count: u64,
    },
    /// A file is gone.
    #[error("{path} is gone, though {beside} holds what earlier starts have left: {then}, or begin with an empty COLLIMATE_GCS_DIR", path = path.display(), beside = beside.display())]
    Missing {
        /// The file.
        path: PathBuf,
        /// The folder that shows that it was there.
        beside: PathBuf,
        /// What to do.
        then: &'static str,
    },
    /// The job is laid out in another way than when the folder was made.
    #[error(
        "{path} is of a job with [{found}], and this one has [{asked}]: start it as it was, or with another COLLIMATE_GCS_DIR",
        path = path.display(), found = one_line(found), asked = one_line(asked)
    )]
    Layout {
        /// The file.
        path: PathBuf,
        /// What it says.
        found: String,
        /// What this job would have it say.
        asked: String,
    },
}

impl DiskError {
    fn io(doing: &'static str, path: &Path, cause: &io::Error) -> DiskError {
        // An error of the system is its number; others have no more than a kind here.
        let cause = cause.raw_os_error().map_or_else(|| cause.kind().into(), io::Error::from_raw_os_error);
        DiskError::Io { doing, path: path.to_path_buf(), cause }
    }
}

fn instead_of_a_log(whole: usize) -> &'static str {
    match whole {
        0 => "begin with an empty COLLIMATE_GCS_DIR",
        _ => "start once with COLLIMATE_GCS_TRUNCATE=1 to go on with those and drop the rest",
    }
}

fn one_line(text: &str) -> String {
    text.lines().collect::<Vec<_>>().join(", ")
}

/// The log of one shard's replica.
pub struct ReplicaDisk {
    journal: Journal,
    /// Syncs that the replica waits for, by the journal's number.
    waiting: VecDeque<(u64, Seq)>,
    syncs: u64,
    full: bool,
    /// What the replica has not been told: it is another than the disk told.
    untold: bool,
    decision: String,
}

impl ReplicaDisk {
    /// Opens the log of a shard and reads what an earlier life has left; nothing
    /// if none has ever had a state here. What a crash has left half-written at
    /// its end is dropped. Waits for the disk.
    pub fn open(home: &Home, shard: ShardId) -> Result<(ReplicaDisk, Option<Recovered>), DiskError> {
        let name = format!("shard-{}.log", shard.0);
        let (mut journal, bytes) = open_journal(home, &name, Some(encode_mark))?;
        let recovered = recover(&bytes);
        let whole = recovered.entries.len() + usize::from(recovered.owner > 0);
        let mut decision = format!("control store: {whole} records in {}", journal.path().display());
        if let Some(damage) = &recovered.damage {
            let may_drop = is_of_a_crash(&bytes, damage) || whole > 0 && home.options.truncate_damaged;
            if !may_drop {
                let path = journal.path().to_path_buf();
                return Err(DiskError::Log { path, damage: damage.clone(), whole });
            }
            journal.truncate(recovered.clean_bytes as u64)?;
            decision += &format!(", {} bytes after them dropped: {damage}", bytes.len() - recovered.clean_bytes);
        }
        if let Some(why) = journal.ring_refused() {
            decision += &format!("; written by a thread, for {why}");
        }
        let disk = ReplicaDisk { journal, waiting: VecDeque::new(), syncs: 0, full: false, untold: false, decision };
        Ok((disk, (recovered.owner > 0).then_some(recovered)))
    }

    /// What was found and decided, in a line for the log.
    pub fn decision(&self) -> &str {
        &self.decision
    }

    /// Does what is for the disk, and gives back what is not.
    pub fn perform(&mut self, action: Action) -> Option<Action> {
        match action {
            Action::Append(bytes) => self.journal.append(bytes),
            Action::Replace(bytes) => self.journal.replace(bytes),
            Action::Sync(seq) => {
                self.syncs += 1;
                self.waiting.push_back((self.syncs, seq));
                self.journal.sync(self.syncs);
            }
            Action::Send(..) => return Some(action),
        }
        None
    }

    /// Another replica has the disk from here on: it is not told of what was
    /// done for the one before.
    pub fn change_replica(&mut self) {
        self.waiting.clear();
        self.untold = self.full;
    }

    /// Tells what the disk has done. An error is the last word: nothing is
    /// written any more.
    pub fn poll(&mut self, on: &mut dyn FnMut(DiskEvent)) -> Result<(), DiskError> {
        if std::mem::take(&mut self.untold) {
            on(DiskEvent::Full);
        }
        let ReplicaDisk { journal, waiting, full, .. } = self;
        let mut failure = None;
        journal.poll(&mut |event| match event {
            JournalEvent::Synced(number) => {
                while let Some((_, seq)) = waiting.pop_front_if(|(first, _)| *first <= number) {
                    on(DiskEvent::Synced(seq));
                }
            }
            JournalEvent::Full => {
                *full = true;
                on(DiskEvent::Full);
            }
            JournalEvent::Space => {
                *full = false;
                on(DiskEvent::Space);
            }
            JournalEvent::Failed(error) => failure = Some(error),
        });
        failure.map_or(Ok(()), |error| Err(error.into()))
    }

    /// Readable when [`ReplicaDisk::poll`] has something to tell.
    pub fn wait_fd(&self) -> BorrowedFd<'_> {
        self.journal.wait_fd()
    }

    /// How often the disk was synced.
    pub fn syncs(&self) -> u64 {
        self.journal.syncs()
    }
}

/// What a member of the quorum has saved, and what it must not do before that is
/// on disk.
pub struct QuorumDisk {
    journal: Journal,
    asked: u64,
    saved: u64,
    /// With the save that each waits for.
    held: VecDeque<(u64, MemberAction)>,
}

impl QuorumDisk {
    /// Opens the member's file and reads what an earlier life has saved; nothing
    /// if it never got that far, and then it has never said anything either.
    /// Waits for the disk.
    pub fn open(home: &Home) -> Result<(QuorumDisk, Option<QuorumLog>), DiskError> {
        let (journal, bytes) = open_journal(home, "quorum", None)?;
        let damaged = |what| DiskError::Quorum { path: journal.path().to_path_buf(), what };
        let saved = match bytes.split_first_chunk() {
            _ if bytes.is_empty() => None,
            None => return Err(damaged("it ends within its checksum")),
            Some((checksum, rest)) => {
                if checksum_of(rest) != *checksum {
                    return Err(damaged("its checksum does not match"));
                }
                Some(QuorumLog::decode(rest).ok_or_else(|| damaged("its bytes have no meaning in this version"))?)
            }
        };
        Ok((QuorumDisk { journal, asked: 0, saved: 0, held: VecDeque::new() }, saved))
    }

    /// Takes what the member wants done, in its order, and gives to `release` what
    /// may be done now: all but saves, and what follows one that is not on disk.
    pub fn perform(&mut self, action: MemberAction, release: &mut dyn FnMut(MemberAction)) {
        match action {
            MemberAction::Save(bytes) => {
                self.asked += 1;
                self.journal.replace([&checksum_of(&bytes)[..], &bytes].concat());
                self.journal.sync(self.asked);
            }
            action if self.saved == self.asked => release(action),
            action if self.held.len() < HELD_MAX => self.held.push_back((self.asked, action)),
            _ => {}
        }
    }

    /// Gives to `release` what had to wait. An error is the last word: the member
    /// must not go on.
    pub fn poll(&mut self, release: &mut dyn FnMut(MemberAction)) -> Result<(), DiskError> {
        let QuorumDisk { journal, saved, held, .. } = self;
        let mut failure = None;
        journal.poll(&mut |event| match event {
            JournalEvent::Synced(number) => {
                *saved = number;
                while let Some((_, action)) = held.pop_front_if(|(save, _)| *save <= number) {
                    release(action);
                }
            }
            // The member is silent until there is space, and the others go on.
            JournalEvent::Full | JournalEvent::Space => {}
            JournalEvent::Failed(error) => failure = Some(error),
        });
        failure.map_or(Ok(()), |error| Err(error.into()))
    }

    /// Readable when [`QuorumDisk::poll`] has something to tell.
    pub fn wait_fd(&self) -> BorrowedFd<'_> {
        self.journal.wait_fd()
    }
}

/// Opens a file of the folder, if it is not one that was lost: its lock stays.
fn open_journal(home: &Home, name: &str, mark: Option<Mark>) -> Result<(Journal, Vec<u8>), DiskError> {
    let path = home.dir.join(name);
    if home.dir.join(format!("{name}.lock")).exists() && !path.exists() {
        return Err(DiskError::Missing { path, beside: home.dir.clone(), then: "put it back" });
    }
    Ok(Journal::open(&home.dir, name, home.options.backend, mark)?)
}

fn checksum_of(bytes: &[u8]) -> [u8; 8] {
    (XxHash3_128::oneshot(bytes) as u64).to_le_bytes()
}
