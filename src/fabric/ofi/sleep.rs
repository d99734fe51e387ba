//! One descriptor for all that can wake a sleeper: the provider's own, the
//! peers' connections, and a clock where the provider cannot wake anybody.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::event::{Timespec, epoll};
use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, timerfd_create, timerfd_settime};

use crate::base::Rank;

/// How often a sleeper looks that nobody else would wake: late enough to cost
/// little, early enough for a message that nobody waits for in a hurry.
const TICK: Duration = Duration::from_millis(1);

const PROVIDER: u64 = u64::MAX;
const CLOCK: u64 = u64::MAX - 1;

/// See the module. Level-triggered: what is not dealt with wakes again.
pub(super) struct Sleeper {
    all: OwnedFd,
    clock: OwnedFd,
    is_ticking: bool,
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
        Ok(Sleeper { all, clock, is_ticking: false })
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
            let from = event.data.u64();
            if from != PROVIDER && from != CLOCK {
                report(Rank(from as u32));
            }
        }
    }

    /// Starts or stops the clock, which wakes every millisecond.
    pub fn tick(&mut self, ticks: bool) {
        if ticks == self.is_ticking {
            return;
        }
        let every = if ticks { TICK } else { Duration::ZERO };
        let every = Timespec { tv_sec: 0, tv_nsec: every.subsec_nanos().into() };
        let both = Itimerspec { it_interval: every, it_value: every };
        // Setting a clock also takes back that it has rung.
        if timerfd_settime(&self.clock, TimerfdTimerFlags::empty(), &both).is_ok() {
            self.is_ticking = ticks;
        }
    }
}

impl AsFd for Sleeper {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.all.as_fd()
    }
}
