//! Records of short work that come and go: whether the ranks' memory stays as it
//! was.

use std::time::Instant;

use collimate::{ControlStore, Table};

use super::super::latency::record;
use super::super::measure::{Compared, Effort, Failed, Round};
use super::super::record::{Figure, Record, Target};
use super::ours::Window;

/// Records in all, and after how many the memory is what it is to stay.
const RECORDS: u64 = 50_000_000;
const RECORDS_QUICK: u64 = 2_000_000;
const SETTLED: u64 = 1_000_000;

/// Records whose work is under way.
const LIVE: u64 = 1000;
/// Operations under way.
const UNDER_WAY: usize = 512;
/// Bytes of a record.
const BYTES: usize = 16;

/// What the memory may grow by.
const GROWTH: f64 = 1.05;

/// One record after the other is written, and deleted when its work is done.
pub fn short_records(effort: Effort, emit: &mut dyn FnMut(Record)) -> Result<(), Failed> {
    let store = ControlStore::of_job()?;
    let records = if effort.quick { RECORDS_QUICK } else { RECORDS };
    let mut window = Window::new(UNDER_WAY);
    let begun = Instant::now();
    let (mut settled, mut most): (Option<Vec<u64>>, f64) = (None, 1.0);
    let (mut first, mut last) = (0, 0);
    for number in 0..records + LIVE {
        if number < records {
            window.push(|| store.put(Table::Lineage, &key(number), &[7; BYTES]))?;
        }
        if let Some(done) = number.checked_sub(LIVE) {
            window.push(|| store.delete(Table::Lineage, &key(done)))?;
        }
        if number > 0 && number % SETTLED == 0 {
            let resident = resident_everywhere()?;
            let before = settled.get_or_insert_with(|| resident.clone());
            for (now, before) in resident.iter().zip(before.iter()) {
                most = most.max(*now as f64 / *before as f64);
            }
            (first, last) = (before.iter().sum(), resident.iter().sum());
        }
    }
    window.finish()?;
    let rate = records as f64 / begun.elapsed().as_secs_f64();
    let left = store.scan(Table::Lineage, b"")?.len();
    if left > 0 {
        return Err(format!("{left} records were deleted and are there").into());
    }
    let round = Round { p50_ns: 1e9 / rate, p99_ns: 1e9 / rate };
    let compared = Compared { ours: round, reference: round, ratio: most };
    let target = Target { ratio: Some(GROWTH), ..Target::default() };
    let mut record = record("control_memory", "cross_process", &compared, "after the first million", Some(target));
    record.variant = Some(format!("{} million records", records / 1_000_000));
    record.bytes = Some(BYTES as u64);
    record.figure = Figure { mib: Some(mib(last)), per_s: Some(rate), ..Figure::default() };
    record.reference.figure = Figure { mib: Some(mib(first)), ..Figure::default() };
    emit(record);
    Ok(())
}

fn key(number: u64) -> [u8; 8] {
    number.to_be_bytes()
}

fn mib(kib: u64) -> f64 {
    kib as f64 / 1024.0
}

/// KiB of every rank.
fn resident_everywhere() -> Result<Vec<u64>, Failed> {
    let ask = |rank| resident::spawn_with(collimate::Options::new().rank(rank));
    let asked: Vec<_> = (0..collimate::size()).map(ask).collect();
    asked.into_iter().map(|one| one.get().map_err(Failed::from)).collect()
}

#[collimate::task]
fn resident() -> Result<u64, String> {
    let status = std::fs::read_to_string("/proc/self/status").map_err(|e| format!("/proc/self/status: {e}"))?;
    resident_of(&status).ok_or_else(|| "/proc/self/status has no VmRSS".to_string())
}

fn resident_of(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    #[test]
    fn resident_memory_is_read() {
        assert_eq!(super::resident_of("VmHWM:\t  999 kB\nVmRSS:\t  1234 kB\n"), Some(1234));
        assert_eq!(super::resident_of("VmSize: 1 kB\n"), None);
        assert!(super::resident().is_ok_and(|kib| kib > 0));
    }
}
