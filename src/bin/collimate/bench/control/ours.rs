//! The control store's side: writes of one client, one at a time or many under
//! way.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use collimate::{ControlError, ControlStore, Pending, Table};

use super::super::measure::{Failed, Round, sample};
use super::{KEYS, VALUE_BYTES};

/// Bytes of a value that is written by itself.
const SHORT: usize = 64;

/// Writes between two looks at the clock.
const WRITES_PER_LOOK: u64 = 32;

/// A client that writes.
pub struct Writer {
    store: ControlStore,
    keys: Vec<Vec<u8>>,
}

impl Writer {
    /// One whose first write has been acknowledged.
    pub fn new() -> Result<Writer, Failed> {
        let keys = (0..KEYS).map(|key| format!("key:{key:08}").into_bytes()).collect();
        let writer = Writer { store: ControlStore::of_job()?, keys };
        writer.write(0, SHORT).wait()?;
        Ok(writer)
    }

    /// Of a write with nothing else under way.
    pub fn latency(&self, count: u64) -> Result<Round, Failed> {
        let mut number = 0;
        sample(count, 1, || {
            number += 1;
            self.write(number, SHORT).wait().map(drop).map_err(Failed::from)
        })
    }

    /// Acknowledged writes a second: those of `time`, after a warm-up of a quarter
    /// of it.
    pub fn rate(&self, under_way: usize, time: Duration) -> Result<f64, Failed> {
        let mut window = Window::new(under_way);
        let begun = Instant::now();
        let mut number = 0;
        let mut counted: Option<(Instant, u64)> = None;
        loop {
            for _ in 0..WRITES_PER_LOOK {
                window.push(|| self.write(number as usize, VALUE_BYTES))?;
                number += 1;
            }
            // As many are under way at both ends, so what was begun was ended.
            let now = Instant::now();
            match counted {
                None if now - begun > time / 4 => counted = Some((now, number)),
                Some((since, before)) if now - since > time => {
                    let rate = (number - before) as f64 / (now - since).as_secs_f64();
                    window.finish()?;
                    return Ok(rate);
                }
                _ => {}
            }
        }
    }

    fn write(&self, number: usize, bytes: usize) -> Pending<u64> {
        self.store.put(Table::Names, &self.keys[number % KEYS], &[b'v'; VALUE_BYTES][..bytes])
    }
}

/// Operations under way, at most so many.
pub struct Window {
    under_way: usize,
    pending: VecDeque<Pending<u64>>,
}

impl Window {
    /// None yet.
    pub fn new(under_way: usize) -> Window {
        Window { under_way, pending: VecDeque::with_capacity(under_way) }
    }

    /// Begins one more; waits for the oldest before if need be, and says whether
    /// it did.
    pub fn push(&mut self, begin: impl FnOnce() -> Pending<u64>) -> Result<bool, ControlError> {
        let is_full = self.pending.len() >= self.under_way;
        if is_full {
            self.take()?;
        }
        self.pending.push_back(begin());
        Ok(is_full)
    }

    /// Waits for all.
    pub fn finish(mut self) -> Result<(), ControlError> {
        while !self.pending.is_empty() {
            self.take()?;
        }
        Ok(())
    }

    fn take(&mut self) -> Result<(), ControlError> {
        self.pending.pop_front().map_or(Ok(()), |oldest| oldest.wait().map(drop))
    }
}
