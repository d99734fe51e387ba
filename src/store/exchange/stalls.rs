//! An exchange that does not go on: ranks that send nothing or do not answer,
//! and memory that is taken.
//!
//! A rank that is stopped is not lost: its connections stand, and it may come
//! back. So whoever waits looks now and then whether something has come, and
//! finds another source if nothing has for [`SOURCE_STALL_MAX`]. Looks are
//! counted and no clock is read, so that a rank that was stopped itself does not
//! blame the others for the time.
//!
//! A holder that waits, too, says so at every look. So of a chain behind a
//! stopped rank the first one alone finds another source.

use super::{Action, Exchange, Room, Serving};
use crate::base::Rank;
use crate::base::limits::{BULK_LOCATES_MAX, ROOM_WAIT_MAX, SOURCE_STALL_MAX, STALL_CHECK_EVERY};

/// Looks that see nothing new of a rank before it is taken to be stopped.
const SILENT_LOOKS: u32 = (SOURCE_STALL_MAX.as_millis() / STALL_CHECK_EVERY.as_millis()) as u32;

/// Looks that see nothing new of an object, whatever its sources say, before
/// its owner is asked.
const QUIET_LOOKS: u32 = 4 * SILENT_LOOKS;

const ROOM_LOOKS: u32 = (ROOM_WAIT_MAX.as_millis() / STALL_CHECK_EVERY.as_millis()) as u32;

impl Exchange {
    /// Looks for ranks that send nothing or do not answer, and asks others. To be
    /// called every [`STALL_CHECK_EVERY`], after all that has come was told.
    pub fn check_stalls(&mut self) {
        let stalled = self.flow.silent(SILENT_LOOKS);
        let all: Vec<usize> = self.arrivals.iter().filter(|(_, entry)| !entry.ended).map(|(n, _)| n).collect();
        for arrival in all {
            let helpless = self.look(arrival, &stalled);
            for rank in helpless {
                self.find_help(arrival, rank);
            }
            let entry = &self.arrivals[arrival];
            let waits_for_room = entry.room != Room::Unasked;
            let unanswered = entry.locating && entry.unanswered == SILENT_LOOKS + 1;
            if unanswered || entry.quiet.is_multiple_of(QUIET_LOOKS) && !waits_for_room {
                self.help_oneself(arrival);
            }
            if self.arrivals[arrival].failed {
                // It waits for nothing; its memory lasts as long as those reads.
                self.reclaim(arrival);
                self.proceed(arrival);
            } else if self.arrivals[arrival].fetch.is_late() {
                self.begin_move(arrival);
            }
        }
        match self.arrivals.iter().any(|(_, entry)| entry.holds_memory()) {
            true => self.unfreed = 0,
            false => self.unfreed = self.unfreed.saturating_add(1),
        }
        self.retry_parked();
    }

    /// An arrival goes to `offset` of this rank's arena.
    pub fn placed(&mut self, arrival: usize, offset: u64) {
        let entry = &mut self.arrivals[arrival];
        entry.room = Room::Unasked;
        if entry.to.replace(offset).is_some() {
            // It was moved: all that is here is news.
            (entry.moving, entry.blocked) = (false, false);
            entry.changed = Some((0, entry.fetch.here().words().len() as u32 - 1));
            self.news.push(arrival);
            self.reclaim(arrival);
        }
        self.proceed(arrival);
        self.retry_parked();
    }

    /// There is no memory for an arrival just now. It waits until one that has
    /// memory ends; without such a one it fails.
    pub fn no_room(&mut self, arrival: usize) {
        let others = self.arrivals.iter().any(|(n, entry)| n != arrival && entry.holds_memory());
        let entry = &mut self.arrivals[arrival];
        if std::mem::take(&mut entry.moving) && !entry.blocked {
            // It stays where it is, and waits for what is under way.
            return self.proceed(arrival);
        }
        let has_waited = entry.room == Room::Asked(true);
        let waits = has_waited || !self.parked.is_empty();
        if others || waits && self.unfreed <= ROOM_LOOKS {
            entry.room = Room::Parked;
            match has_waited {
                true => self.parked.push_front(arrival),
                false => self.parked.push_back(arrival),
            }
        } else {
            entry.room = Room::Unasked;
            entry.failed = true;
            self.proceed(arrival);
            self.retry_parked();
        }
    }

    /// The memory of a chunk that is to be read is still with a fabric, which
    /// has given up an earlier read of it.
    pub fn cannot_read(&mut self, token: usize) {
        let Some(read) = self.reads.try_remove(token) else { return };
        self.flow.ended(read.rank, read.len);
        let Some(entry) = self.arrivals.get_mut(read.arrival) else { return };
        entry.fetch.failed(read.rank, read.chunk);
        entry.blocked = true;
        self.begin_move(read.arrival);
        self.proceed(read.arrival);
    }

    /// The next arrival that can move, as nothing but what is stalled is under
    /// way to it.
    pub(super) fn next_move(&mut self) -> Option<Action> {
        loop {
            let can_move = |arrival: &usize| self.arrivals[*arrival].fetch.only_stalled_under_way();
            let arrival = self.moving.swap_remove(self.moving.iter().position(can_move)?);
            let entry = &mut self.arrivals[arrival];
            if !entry.ended && !entry.failed && (entry.blocked || entry.fetch.is_late()) {
                return Some(Action::Move { arrival });
            }
            // What was late has come.
            entry.moving = false;
            self.proceed(arrival);
        }
    }

    /// Something came from `rank`, which sent nothing for long.
    pub(super) fn revive(&mut self, rank: Rank) {
        let revived = self.arrivals.iter_mut().filter_map(|(n, entry)| entry.fetch.revive(rank).then_some(n));
        for arrival in revived.collect::<Vec<_>>() {
            self.proceed(arrival);
        }
    }

    /// An arrival's number ends; whether it had memory.
    pub(super) fn forget_moves(&mut self, arrival: usize, had_memory: bool) {
        self.moving.retain(|other| *other != arrival);
        self.parked.retain(|other| *other != arrival);
        if had_memory {
            self.unfreed = 0;
            self.retry_parked();
        }
    }

    /// Looks after one arrival: those of its sources that have just been silent
    /// for too long.
    fn look(&mut self, arrival: usize, stalled: &[Rank]) -> Vec<Rank> {
        let entry = &mut self.arrivals[arrival];
        entry.quiet += 1;
        entry.unanswered += 1;
        // Those that read from here know then that this rank is alive.
        if self.served.get(&entry.wanted.copy).is_some_and(|served| served.state == Serving::Partly(arrival)) {
            entry.changed.get_or_insert((0, 0));
            self.news.push(arrival);
        }
        let mut helpless: Vec<Rank> = stalled.iter().copied().filter(|rank| entry.fetch.stall(*rank)).collect();
        for subscription in entry.subscribed.iter_mut().filter(|s| !s.leaving) {
            subscription.quiet += 1;
            // Who has told of all has nothing more to say.
            let awaited = !entry.fetch.is_whole_at(subscription.rank) && !helpless.contains(&subscription.rank);
            if awaited && subscription.quiet == SILENT_LOOKS + 1 {
                helpless.push(subscription.rank);
            }
        }
        helpless
    }

    /// Finds another source beside `rank`, which may come back.
    fn find_help(&mut self, arrival: usize, rank: Rank) {
        let entry = &self.arrivals[arrival];
        let lender = entry.wanted.copy.lender;
        if entry.failed || !entry.wanted.is_exchanged() {
            return;
        }
        let mute = self.lost.contains_key(&lender) || entry.locating && entry.unanswered > SILENT_LOOKS;
        match rank == lender || mute || entry.locates >= BULK_LOCATES_MAX {
            true => self.help_oneself(arrival),
            false => self.locate(arrival, Some(rank)),
        }
    }

    /// Reads from a rank that the lender named before, or else from the owner.
    fn help_oneself(&mut self, arrival: usize) {
        let entry = &mut self.arrivals[arrival];
        let owner = entry.wanted.owner;
        if entry.failed || !entry.wanted.is_exchanged() {
            return;
        }
        if let Some(reserve) = entry.reserves.pop() {
            self.use_source(arrival, reserve);
        } else if owner != self.me && !entry.fetch.has_source(owner) && !self.lost.contains_key(&owner) {
            self.use_source(arrival, owner);
        }
    }

    /// Gives up what is under way to an arrival from stalled sources.
    fn reclaim(&mut self, arrival: usize) {
        let reclaimed = self.arrivals[arrival].fetch.reclaim();
        for (_, read) in self.reads.iter_mut().filter(|(_, read)| read.arrival == arrival) {
            read.reclaimed |= reclaimed.contains(&(read.rank, read.chunk));
        }
    }

    fn begin_move(&mut self, arrival: usize) {
        let entry = &mut self.arrivals[arrival];
        if entry.room == Room::Unasked && !std::mem::replace(&mut entry.moving, true) {
            self.moving.push(arrival);
        }
    }

    /// Tries again to find memory for the first arrival that waits for it.
    fn retry_parked(&mut self) {
        while let Some(arrival) = self.parked.pop_front() {
            let entry = &mut self.arrivals[arrival];
            if entry.ended || entry.failed {
                continue;
            }
            entry.room = Room::Asked(true);
            if entry.to.is_some() {
                entry.moving = true;
                self.moving.push(arrival);
            } else {
                self.actions.push_back(Action::Place { arrival });
            }
            return;
        }
    }
}
