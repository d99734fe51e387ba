//! One descriptor for all that can wake a sleeper: the provider's own, the
//! peers' connections, and a clock where the provider cannot wake anybody.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::event::{Timespec, epoll};
use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, timerfd_create, timerfd_settime};

use crate::base::Rank;

const PROVIDER: u64 = u64::MAX;
const CLOCK: u64 = u64::MAX - 1;

/// See the module. Level-triggered: what is not dealt with wakes again.
pub(super) struct Sleeper {
    all: OwnedFd,
    clock: OwnedFd,
    every: Duration,
}

impl Sleeper {
    /// Wakes for what `provider` says, if it has a descriptor.
    pub fn new(provider: Option<BorrowedFd<'_>>) -> io::Result<Sleeper> {
        let all = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let clock = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK)?;
        epoll::add(&all, &clock, epoll::EventData::new_u64(CLOCK), epoll::EventFlags::IN)?;
        if let Some(provider) = provider {
            epoll::add(&all, provider, epoll::EventData::new_u64(PROVIDER), epoll::EventFlags::IN)?;
        }
        Ok(Sleeper { all, clock, every: Duration::ZERO })
    }

    pub fn watch(&self, peer: Rank, stream: impl AsFd) -> io::Result<()> {
        let flags = epoll::EventFlags::IN | epoll::EventFlags::RDHUP;
        Ok(epoll::add(&self.all, stream, epoll::EventData::new_u64(peer.0.into()), flags)?)
    }

    pub fn forget(&self, stream: impl AsFd) {
        // Fails only for a stream that is not watched any more.
        let _ = epoll::delete(&self.all, stream);
    }

    /// Reports the connections on which something came.
    pub fn look(&self, mut report: impl FnMut(Rank)) {
        let mut events = [epoll::Event { flags: epoll::EventFlags::empty(), data: epoll::EventData::new_u64(0) }; 64];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        // A failing call finds nothing; the next one looks again.
        let count = epoll::wait(&self.all, &mut events, Some(&now)).unwrap_or(0);
        for event in &events[..count] {
            match event.data.u64() {
                PROVIDER => {}
                // Until it is read it would wake every sleeper.
                CLOCK => _ = rustix::io::read(&self.clock, &mut [0; 8]),
                peer => report(Rank(peer as u32)),
            }
        }
    }

    /// Sets how often the clock wakes; zero stops it.
    pub fn tick(&mut self, every: Duration) {
        if every == self.every {
            return;
        }
        let interval = Timespec { tv_sec: every.as_secs() as i64, tv_nsec: every.subsec_nanos().into() };
        let both = Itimerspec { it_interval: interval, it_value: interval };
        // Setting a clock also takes back that it has rung.
        if timerfd_settime(&self.clock, TimerfdTimerFlags::empty(), &both).is_ok() {
            self.every = every;
        }
    }
}

impl AsFd for Sleeper {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.all.as_fd()
    }
}
