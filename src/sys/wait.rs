//! Sleeping until one of several descriptors is readable, or another thread
//! rings.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::event::{EventfdFlags, Timespec, epoll, eventfd};

/// What an event is of.
const OTHER: u64 = 0;
const BELL: u64 = 1;

/// A set of descriptors to sleep on, and a bell.
pub struct WaitSet {
    epoll: OwnedFd,
    bell: OwnedFd,
}

impl WaitSet {
    /// Nothing but the bell.
    pub fn new() -> io::Result<WaitSet> {
        let set = WaitSet {
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
            bell: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
        };
        epoll::add(&set.epoll, &set.bell, epoll::EventData::new_u64(BELL), epoll::EventFlags::IN)?;
        Ok(set)
    }

    /// The same with the bell of another set, for a thread that sleeps on the one or
    /// the other: what rings ends its next sleep, and only that.
    pub fn with_bell_of(other: &WaitSet) -> io::Result<WaitSet> {
        let set = WaitSet { epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?, bell: other.bell.try_clone()? };
        epoll::add(&set.epoll, &set.bell, epoll::EventData::new_u64(BELL), epoll::EventFlags::IN)?;
        Ok(set)
    }

    /// Adds a descriptor, for as long as it is open.
    pub fn add(&self, fd: impl AsFd) -> io::Result<()> {
        Ok(epoll::add(&self.epoll, fd, epoll::EventData::new_u64(OTHER), epoll::EventFlags::IN)?)
    }

    /// Ends the sleep of [`WaitSet::sleep`], or the next one.
    pub fn ring(&self) {
        // Fails only when the count is full, and then the bell rings already.
        let _full = rustix::io::write(&self.bell, &1u64.to_ne_bytes());
    }

    /// Sleeps until a descriptor is readable, the bell rings, a signal comes or
    /// the time is over; says whether one of the first two happened.
    pub fn sleep(&self, patience: Duration) -> bool {
        let timeout = Timespec { tv_sec: patience.as_secs() as i64, tv_nsec: i64::from(patience.subsec_nanos()) };
        let mut events: [epoll::Event; 8] = [epoll::Event { flags: epoll::EventFlags::empty(), data: epoll::EventData::new_u64(0) }; 8];
        let woken = epoll::wait(&self.epoll, &mut events, Some(&timeout)).unwrap_or(0);
        if events[..woken].iter().any(|event| event.data.u64() == BELL) {
            let mut count = [0; 8];
            let _empty = rustix::io::read(&self.bell, &mut count);
        }
        woken > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ring_ends_the_sleep_and_is_used_up() {
        let set = WaitSet::new().unwrap();
        set.ring();
        let start = std::time::Instant::now();
        assert!(set.sleep(Duration::from_secs(20)));
        assert!(start.elapsed() < Duration::from_secs(10));
        assert!(!set.sleep(Duration::from_millis(1)));
        assert!(start.elapsed() >= Duration::from_millis(1));
    }

    #[test]
    fn of_two_sets_with_one_bell_only_the_next_sleep_ends() {
        let one = WaitSet::new().unwrap();
        let other = WaitSet::with_bell_of(&one).unwrap();
        for (first, second) in [(&one, &other), (&other, &one)] {
            one.ring();
            assert!(first.sleep(Duration::from_secs(20)));
            assert!(!second.sleep(Duration::ZERO));
        }
    }
}
