//! Ring all-reduce: every rank starts with a vector of numbers and ends with the
//! sum of all ranks' vectors.
//!
//! Shows: tasks pinned to ranks and refs passed from task to task. The driver
//! wires the whole graph at once and sees no number; each chunk travels around
//! the ring as its tasks become ready, first collecting the sum (reduce-scatter),
//! then delivering it (all-gather).
//!
//! ```text
//! cargo build --release --example ring_allreduce
//! mpirun -n 2 target/release/examples/ring_allreduce 4000000
//! collimate run -n 2 -- target/release/examples/ring_allreduce 4000000
//! ```

use std::error::Error;
use std::ops::Range;
use std::time::{Duration, Instant};

use clap::Parser;
use collimate::{Options, Ref};

/// How long a step of the example may take before it is given up.
const DEADLINE: Duration = Duration::from_secs(120);

/// Sums one vector per rank and leaves the sum on every rank.
#[derive(Parser)]
struct Cli {
    /// Length of each rank's vector of 32-bit floating point numbers
    #[arg(default_value_t = 1 << 20, value_parser = clap::value_parser!(u64).range(1..=1 << 32))]
    elements: u64,
}

/// What `rank` brings to the sum in the elements from `start` to `end`.
#[collimate::task]
fn contribute(rank: u64, start: u64, end: u64) -> Vec<f32> {
    (start..end).map(|element| contribution(rank, element)).collect()
}

/// Reduce-scatter: adds what this rank brings to what came around the ring.
#[collimate::task]
fn add(mut sum: Vec<f32>, own: Vec<f32>) -> Vec<f32> {
    for (sum, own) in sum.iter_mut().zip(own) {
        *sum += own;
    }
    sum
}

/// All-gather: takes a finished chunk from the rank before.
#[collimate::task]
fn receive(chunk: Vec<f32>) -> Vec<f32> {
    chunk
}

/// Compares a chunk that starts at element `start` with the sum taken one rank
/// after the other. Run where the chunk is, so that nothing moves.
#[collimate::task]
fn check(chunk: Vec<f32>, start: u64, ranks: u64) -> Result<u64, String> {
    for (element, &got) in (start..).zip(&chunk) {
        let want: f32 = (0..ranks).map(|rank| contribution(rank, element)).sum();
        if got != want {
            return Err(format!("element {element} is {got}, but the sum over {ranks} ranks is {want}"));
        }
    }
    Ok(chunk.len() as u64)
}

#[collimate::main]
fn main() -> Result<(), Box<dyn Error>> {
    let Cli { elements } = Cli::parse();
    let ranks = collimate::size() as usize;

    // One row per rank, one column per chunk.
    let own: Vec<Vec<Ref<Vec<f32>>>> = (0..ranks)
        .map(|rank| {
            let chunks = (0..ranks).map(|chunk| bounds(elements, ranks, chunk));
            chunks.map(|part| contribute::spawn_with(on(rank), rank as u64, part.start, part.end)).collect()
        })
        .collect();
    await_all(&own)?;

    let start = Instant::now();
    let sums = all_reduce(&own);
    await_all(&sums)?;
    let seconds = start.elapsed().as_secs_f64();

    for (rank, row) in sums.into_iter().enumerate() {
        let mut checked = 0;
        for (chunk, sum) in row.into_iter().enumerate() {
            let first = bounds(elements, ranks, chunk).start;
            checked += check::spawn_with(on(rank), sum, first, ranks as u64).get()?;
        }
        if checked != elements {
            return Err(format!("rank {rank} holds {checked} elements of {elements}").into());
        }
    }

    let gigabytes = elements as f64 * size_of::<f32>() as f64 / 1e9;
    println!("{ranks} ranks, {elements} elements each: every rank holds the sum");
    match ranks {
        1 => println!("nothing had to move: start more ranks to see a rate"),
        _ => println!("{seconds:.6} s, {:.3} GB/s", gigabytes / seconds),
    }
    Ok(())
}

/// Wires the ring: `own[rank][chunk]` is what a rank brings, the same place in
/// the answer is the sum as that rank holds it.
fn all_reduce(own: &[Vec<Ref<Vec<f32>>>]) -> Vec<Vec<Ref<Vec<f32>>>> {
    let ranks = own.len();
    let mut sums = own.to_vec();
    for chunk in 0..ranks {
        // Chunk c sets out at rank c and has the whole sum after one round less a step.
        let mut sum = own[chunk][chunk].clone();
        for step in 1..ranks {
            let rank = (chunk + step) % ranks;
            sum = add::spawn_with(on(rank), sum, &own[rank][chunk]);
        }
        let finisher = (chunk + ranks - 1) % ranks;
        sums[finisher][chunk] = sum.clone();
        for step in 1..ranks {
            let rank = (finisher + step) % ranks;
            sum = receive::spawn_with(on(rank), sum);
            sums[rank][chunk] = sum.clone();
        }
    }
    sums
}

/// Waits until every task of the grid has ended, well or not.
fn await_all(grid: &[Vec<Ref<Vec<f32>>>]) -> Result<(), Box<dyn Error>> {
    let refs: Vec<_> = grid.iter().flatten().cloned().collect();
    let ready = collimate::wait(&refs, refs.len(), DEADLINE)?;
    if ready.len() < refs.len() {
        return Err(format!("only {} of {} tasks ended within {DEADLINE:?}", ready.len(), refs.len()).into());
    }
    Ok(())
}

fn on(rank: usize) -> Options {
    Options::new().rank(rank as u32)
}

/// The elements of chunk `chunk` when `elements` are divided evenly: chunks
/// differ by at most one, and some are empty when there are few elements.
fn bounds(elements: u64, chunks: usize, chunk: usize) -> Range<u64> {
    let at = |chunk: usize| (u128::from(elements) * chunk as u128 / chunks as u128) as u64;
    at(chunk)..at(chunk + 1)
}

/// A small whole number, so that sums are exact in any order.
fn contribution(rank: u64, element: u64) -> f32 {
    ((element * 31 + rank * 17) % 251) as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_cover_all_elements_once() {
        for (elements, chunks) in [(10, 3), (2, 4), (1 << 20, 7), (1, 1)] {
            let parts: Vec<_> = (0..chunks).map(|chunk| bounds(elements, chunks, chunk)).collect();
            assert_eq!((parts[0].start, parts[chunks - 1].end), (0, elements));
            assert!(parts.windows(2).all(|pair| pair[0].end == pair[1].start), "{parts:?}");
        }
    }
}
