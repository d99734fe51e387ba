//! `collimate bench store`: put and get beside memcpy.

use std::hint::black_box;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use collimate::mem::{Arena, Block};
use collimate::{Array, Ref};

use super::bare::on_rank_1;
use super::measure::{Effort, Failed, Round, Samples, compare, sample};
use super::record::{Figure, Record, Reference, Target};

const SIZES: [usize; 9] = [8, 64, 1 << 10, 4 << 10, 64 << 10, 1 << 20, 16 << 20, 64 << 20, 256 << 20];
/// Sizes that are also put into memory that was never touched.
const FRESH_SIZES: [usize; 3] = [1 << 20, 16 << 20, 256 << 20];
/// Objects of each such size: all are kept, or their memory would be recycled.
const FRESH_ROUNDS: usize = 3;
/// The least share of memcpy's bandwidth that a large put should have.
const PUT_SHARE: f64 = 0.9;

/// Puts and gets of all sizes.
pub fn objects(effort: Effort, emit: &mut dyn FnMut(Record)) -> Result<(), Failed> {
    let largest = if effort.quick { 1 << 20 } else { usize::MAX };
    let source = vec![7u8; *SIZES.iter().filter(|len| **len <= largest).max().unwrap_or(&0)];
    // First, while this rank's memory is fresh.
    for len in FRESH_SIZES.into_iter().filter(|len| *len <= largest) {
        emit(put_fresh(&source[..len])?);
    }
    for len in SIZES.into_iter().filter(|len| *len <= largest) {
        emit(put_recycled(&source[..len], effort)?);
    }
    for len in SIZES.into_iter().filter(|len| *len <= largest) {
        for way in [Way::Argument, Way::Result] {
            emit(get(&source[..len], way, effort)?);
        }
    }
    Ok(())
}

fn put_fresh(source: &[u8]) -> Result<Record, Failed> {
    let mut kept: Vec<Ref<Array<u8>>> = Vec::new();
    let mut pairs = Vec::new();
    for _ in 0..FRESH_ROUNDS {
        let (mut ours, mut reference) = (Samples::new(), Samples::new());
        let start = Instant::now();
        kept.push(collimate::put(black_box(source))?);
        ours.add(start.elapsed(), 1);
        let mut block = block(source.len())?;
        let start = Instant::now();
        block.bytes_mut().copy_from_slice(black_box(source));
        reference.add(start.elapsed(), 1);
        pairs.push((ours.round(), reference.round()));
    }
    let compared = compare(&pairs);
    let name = "memcpy into a fresh memfd";
    Ok(record("put", "fresh", source.len(), (compared.ours, compared.reference), compared.ratio, name))
}

fn put_recycled(source: &[u8], effort: Effort) -> Result<Record, Failed> {
    let mut block = block(source.len())?;
    let (count, batch) = repetitions(source.len(), effort);
    let mut pairs = Vec::new();
    for _ in 0..effort.rounds().min(5) {
        let ours = sample(count, batch, || collimate::put(black_box(source)).map(drop))?;
        let reference = copy(source, &mut block, count, batch)?;
        pairs.push((ours, reference));
    }
    let compared = compare(&pairs);
    let name = "memcpy into a used memfd";
    Ok(record("put", "recycled", source.len(), (compared.ours, compared.reference), compared.ratio, name))
}

/// How an object gets to another process.
#[derive(Clone, Copy)]
enum Way {
    /// As a task's argument, read there.
    Argument,
    /// As a task's result, read here.
    Result,
}

/// The time that an object adds to the round trip of a task that has 8 bytes
/// otherwise: everything from having the ref to having read its ends.
fn get(source: &[u8], way: Way, effort: Effort) -> Result<Record, Failed> {
    let mut block = block(source.len())?;
    let count = effort.count(2000);
    let (copies, batch) = repetitions(source.len(), effort);
    let object = match way {
        Way::Argument => Some(collimate::put(source)?),
        Way::Result => {
            keep::spawn_with(on_rank_1(), source.len() as u64).get()?;
            None
        }
    };
    let expected = u64::from(source[0]) + u64::from(source[source.len() - 1]);
    let check =
        |sum: u64| if sum == expected { Ok(()) } else { Err(Failed::from("an object arrived with other bytes")) };
    let (mut pairs, mut differences) = (Vec::new(), Vec::new());
    for _ in 0..effort.rounds().min(7) {
        let with = match &object {
            Some(object) => sample(count, 1, || check(ends::spawn_with(on_rank_1(), object).get()?))?,
            None => sample(count, 1, || {
                let array = hand_over::spawn_with(on_rank_1()).get()?;
                check(sum_of_ends(&array))
            })?,
        };
        let without = sample(count, 1, || check(echo::spawn_with(on_rank_1(), expected).get()?))?;
        differences.push((with, without));
        pairs.push(copy(source, &mut block, copies, batch)?);
    }
    // On a noisy machine the difference of small figures may come out below
    // nothing; a get of no time at all is reported as one of 1 ns.
    let difference = |of: fn(&Round) -> f64| {
        super::measure::median(differences.iter().map(|(with, without)| of(with) - of(without)).collect()).max(1.0)
    };
    let ours = Round { p50_ns: difference(|r| r.p50_ns), p99_ns: difference(|r| r.p99_ns) };
    let reference = compare(&pairs.iter().map(|r| (*r, *r)).collect::<Vec<_>>()).reference;
    let variant = match way {
        Way::Argument => "argument",
        Way::Result => "result",
    };
    let name = "memcpy into a used memfd";
    let ratio = ours.p50_ns / reference.p50_ns;
    let mut record = record("get", variant, source.len(), (ours, reference), ratio, name);
    record.in_place = Some(match &object {
        Some(object) => mapped_there::spawn_with(on_rank_1(), object).get()?,
        None => is_read_only_mapping(&hand_over::spawn_with(on_rank_1()).get()?),
    });
    forget::spawn_with(on_rank_1()).get()?;
    Ok(record)
}

#[collimate::task]
fn echo(x: u64) -> u64 {
    x
}

#[collimate::task]
fn ends(bytes: &[u8]) -> u64 {
    sum_of_ends(bytes)
}

#[collimate::task]
fn mapped_there(bytes: &[u8]) -> bool {
    is_read_only_mapping(bytes)
}

static KEPT: Mutex<Option<Array<u8>>> = Mutex::new(None);

/// Makes an object of this rank, for [`hand_over`].
#[collimate::task]
fn keep(len: u64) -> Result<u64, collimate::Error> {
    let array = collimate::put(&vec![7u8; len as usize])?.get()?;
    *kept() = Some(array);
    Ok(len)
}

#[collimate::task]
fn hand_over() -> Result<Array<u8>, String> {
    kept().clone().ok_or_else(|| "no object was kept".to_string())
}

#[collimate::task]
fn forget() {
    *kept() = None;
}

fn kept() -> std::sync::MutexGuard<'static, Option<Array<u8>>> {
    KEPT.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn sum_of_ends(bytes: &[u8]) -> u64 {
    u64::from(bytes.first().copied().unwrap_or(0)) + u64::from(bytes.last().copied().unwrap_or(0))
}

/// Whether `bytes` lie in a mapping of a memfd that this process may only
/// read: a peer's arena.
fn is_read_only_mapping(bytes: &[u8]) -> bool {
    let address = bytes.as_ptr() as u64;
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
    maps.lines().any(|line| {
        let Some((range, rest)) = line.split_once(' ') else { return false };
        let Some((first, end)) = range.split_once('-') else { return false };
        let bounds = u64::from_str_radix(first, 16).ok().zip(u64::from_str_radix(end, 16).ok());
        bounds.is_some_and(|(first, end)| (first..end).contains(&address))
            && rest.starts_with("r--s")
            && rest.contains("memfd:")
    })
}

/// Writable memory of the kind that objects lie in, never touched.
fn block(len: usize) -> Result<Block, Failed> {
    let region = collimate::sys::memory::create_region(len.next_multiple_of(4096).max(1 << 20))?;
    Ok(Arena::new(Arc::new(region)).alloc(len)?)
}

fn copy(source: &[u8], to: &mut Block, count: u64, batch: u64) -> Result<Round, Failed> {
    sample(count, batch, || {
        to.bytes_mut().copy_from_slice(black_box(source));
        black_box(to.bytes());
        Ok(())
    })
}

/// Samples, and operations in each: about as much time for every size.
fn repetitions(len: usize, effort: Effort) -> (u64, u64) {
    let batch = ((64 << 10) / len as u64).clamp(1, 100);
    let count = ((1u64 << 30) / (len as u64 * batch)).clamp(3, 500);
    (effort.count(count).min(count), batch)
}

fn record(
    metric: &str,
    variant: &str,
    len: usize,
    (ours, reference): (Round, Round),
    ratio: f64,
    name: &str,
) -> Record {
    let bytes = len as u64;
    let target = match (metric, variant, len) {
        ("put", "fresh", 0x1000_0000) => Some(Target { ratio: Some(1.0 / PUT_SHARE), ..Target::default() }),
        ("get", _, 0x1000_0000) => Some(Target { p50_ns: Some(2000.0), ..Target::default() }),
        _ => None,
    };
    Record {
        metric: metric.into(),
        path: if metric == "put" { "in_worker" } else { "cross_process" }.into(),
        variant: Some(variant.into()),
        bytes: Some(bytes),
        ranks: collimate::size(),
        workers: collimate::workers() as u32,
        figure: Figure::transfer(ours.p50_ns, ours.p99_ns, bytes),
        in_place: None,
        reference: Reference { name: name.into(), figure: Figure::transfer(reference.p50_ns, reference.p99_ns, bytes) },
        ratio,
        target,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_memory_is_no_read_only_mapping() {
        assert!(!is_read_only_mapping(&[1, 2, 3]));
        let mut block = block(100).unwrap();
        assert!(!is_read_only_mapping(block.bytes_mut()));
    }
}
