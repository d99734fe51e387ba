//! `collimate bench store`: put and get beside memcpy.

use std::hint::black_box;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use collimate::mem::{Arena, Block};
use collimate::{Array, Ref};

use super::bare::on_rank_1;
use super::measure::{Compared, Effort, Failed, Round, Samples, compare, sample};
use super::record::{Figure, Record, Reference, Target};

const SIZES: [usize; 9] = [8, 64, 1 << 10, 4 << 10, 64 << 10, 1 << 20, 16 << 20, 64 << 20, 256 << 20];
/// Sizes that are also put into memory that was never touched.
const FRESH_SIZES: [usize; 3] = [1 << 20, 16 << 20, 256 << 20];
/// Objects of each such size: all are kept, or their memory would be recycled.
const FRESH_ROUNDS: usize = 3;
/// What most sizes are compared with.
const USED: &str = "memcpy into a used memfd";
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
    Ok(record("put", "fresh", source.len(), &compared, "memcpy into a fresh memfd"))
}

fn put_recycled(source: &[u8], effort: Effort) -> Result<Record, Failed> {
    let (count, batch) = repetitions(source.len(), effort);
    let ours = || sample(count, batch, || collimate::put(black_box(source)).map(drop));
    let mut block = block(source.len())?;
    let mut pairs = Vec::new();
    for _ in 0..effort.rounds().min(5) {
        pairs.push((ours()?, copy(source, &mut block, count, batch)?));
    }
    Ok(record("put", "recycled", source.len(), &compare(&pairs), USED))
}

/// How an object gets to another process.
#[derive(Clone, Copy)]
enum Way {
    /// As a task's argument, read there.
    Argument,
    /// As a task's result, read here.
    Result,
}

/// Everything from having a ref to having read the ends of the object in the
/// other process, as the time that the object adds to the round trip of a task
/// that has 8 bytes otherwise. The two kinds of round trips take turns.
fn get(source: &[u8], way: Way, effort: Effort) -> Result<Record, Failed> {
    let count = effort.count(2000);
    let object = match way {
        Way::Argument => Some(collimate::put(source)?),
        Way::Result => {
            keep::spawn_with(on_rank_1(), source.len() as u64).get()?;
            None
        }
    };
    let expected = u64::from(source[0]) + u64::from(source[source.len() - 1]);
    let with_object = || match &object {
        Some(object) => ends::spawn_with(on_rank_1(), object).get(),
        None => hand_over::spawn_with(on_rank_1()).get().map(|array| sum_of_ends(&array)),
    };
    let without = || echo::spawn_with(on_rank_1(), expected).get();
    let mut rounds = Vec::new();
    for _ in 0..effort.rounds().min(7) {
        let mut differences = Vec::new();
        for _ in 0..count + count / 10 {
            let (with_object, without) = (timed(expected, with_object)?, timed(expected, without)?);
            differences.push(with_object - without);
        }
        differences.drain(..(count / 10) as usize);
        differences.sort_by(f64::total_cmp);
        // Where it costs less than the noise, the middle may be below nothing.
        let at = |percent: usize| differences[differences.len() * percent / 100].max(1.0);
        rounds.push(Round { p50_ns: at(50), p99_ns: at(99) });
    }
    let in_place = match &object {
        Some(object) => mapped_there::spawn_with(on_rank_1(), object).get()?,
        None => is_read_only_mapping(&hand_over::spawn_with(on_rank_1()).get()?),
    };
    if matches!(way, Way::Result) {
        forget::spawn_with(on_rank_1()).get()?;
    }
    let variant = match way {
        Way::Argument => "argument",
        Way::Result => "result",
    };
    let mut record = beside_memcpy("get", variant, source, &rounds, effort)?;
    record.figure.gib_s = None;
    record.in_place = Some(in_place);
    Ok(record)
}

/// The time of one round trip, whose result must be right.
fn timed(expected: u64, trip: impl Fn() -> Result<u64, collimate::Error>) -> Result<f64, Failed> {
    let start = Instant::now();
    let sum = trip()?;
    let elapsed = start.elapsed();
    if sum == expected { Ok(elapsed.as_nanos() as f64) } else { Err("an object arrived with other bytes".into()) }
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
    let region = collimate::sys::create_region(len.next_multiple_of(4096).max(1 << 20))?;
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

/// Rounds of ours beside copies of the same bytes.
fn beside_memcpy(
    metric: &str,
    variant: &str,
    source: &[u8],
    rounds: &[Round],
    effort: Effort,
) -> Result<Record, Failed> {
    let mut block = block(source.len())?;
    let (count, batch) = repetitions(source.len(), effort);
    let mut pairs = Vec::new();
    for ours in rounds {
        pairs.push((*ours, copy(source, &mut block, count, batch)?));
    }
    Ok(record(metric, variant, source.len(), &compare(&pairs), USED))
}

fn record(metric: &str, variant: &str, len: usize, compared: &Compared, name: &str) -> Record {
    let Compared { ours, reference, ratio } = *compared;
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
