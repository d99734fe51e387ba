//! A disk: what was written and synced is there after a crash, of the rest some
//! part.

use std::collections::VecDeque;

use crate::base::rng::Rng;
use crate::gcs::Seq;

/// One replica's log, and what is on its way there.
#[derive(Debug, Default)]
pub struct Disk {
    file: Vec<u8>,
    queue: VecDeque<Write>,
    /// Nothing can be added.
    pub full: bool,
    /// When the last sync that was asked for is done.
    pub busy_until: u64,
}

#[derive(Debug)]
enum Write {
    Append(Vec<u8>),
    Replace(Vec<u8>),
    Sync(Seq),
}

/// What a sync came to.
#[derive(Debug, PartialEq)]
pub enum Synced {
    Done(Seq),
    Full,
    Nothing,
}

impl Disk {
    pub fn append(&mut self, bytes: Vec<u8>) {
        self.queue.push_back(Write::Append(bytes));
    }

    pub fn replace(&mut self, bytes: Vec<u8>) {
        self.queue.push_back(Write::Replace(bytes));
    }

    pub fn sync(&mut self, through: Seq) {
        self.queue.push_back(Write::Sync(through));
    }

    /// The oldest sync is done.
    pub fn finish_sync(&mut self) -> Synced {
        while let Some(write) = self.queue.pop_front() {
            match write {
                Write::Append(_) | Write::Replace(_) if self.full => {
                    self.queue.clear();
                    return Synced::Full;
                }
                Write::Append(bytes) => self.file.extend(bytes),
                Write::Replace(bytes) => self.file = bytes,
                Write::Sync(seq) => return Synced::Done(seq),
            }
        }
        Synced::Nothing
    }

    /// What a crash leaves: what was synced, and of what was not some part, the
    /// last of it perhaps torn.
    pub fn crash(&mut self, rng: &mut Rng) {
        let survive = rng.below(self.queue.len() + 1);
        for write in self.queue.drain(..).take(survive).collect::<Vec<_>>() {
            match write {
                _ if self.full => {}
                Write::Append(bytes) => self.file.extend(bytes),
                Write::Replace(bytes) => self.file = bytes,
                Write::Sync(_) => {}
            }
        }
        if survive > 0 && rng.below(2) == 0 && !self.full {
            let junk = rng.below(40);
            self.file.extend((0..junk).map(|_| rng.next_u64() as u8));
        }
        self.busy_until = 0;
    }

    pub fn bytes(&self) -> &[u8] {
        &self.file
    }

    /// What cannot be read is cut off.
    pub fn truncate(&mut self, bytes: usize) {
        self.file.truncate(bytes);
    }

    pub fn wipe(&mut self) {
        *self = Disk::default();
    }
}
