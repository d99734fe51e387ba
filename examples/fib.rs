//! Fibonacci numbers the slow way: every call spawns a task for one half and
//! computes the other itself, then gets the spawned one.
//!
//! Shows: tasks that spawn tasks, `get` inside a task, and what the smallest
//! possible task costs: this tree does nothing else.
//!
//! ```text
//! cargo build --release --example fib
//! mpirun -n 2 target/release/examples/fib 30
//! collimate run -n 2 -- target/release/examples/fib 30
//! ```

use std::error::Error;
use std::time::Instant;

use clap::Parser;

/// Computes a Fibonacci number with one task per addition.
#[derive(Parser)]
struct Cli {
    /// Which number: the tree has about 1.6 to the power of this many tasks
    #[arg(default_value_t = 30, value_parser = clap::value_parser!(u64).range(..=50))]
    n: u64,
}

#[collimate::task]
fn fib(n: u64) -> Result<u64, collimate::Error> {
    if n < 2 {
        return Ok(n);
    }
    let spawned = fib::spawn(n - 1);
    let here = fib(n - 2)?;
    Ok(spawned.get()? + here)
}

#[collimate::main]
fn main() -> Result<(), Box<dyn Error>> {
    let Cli { n } = Cli::parse();
    let start = Instant::now();
    let result = fib::spawn(n).get()?;
    let seconds = start.elapsed().as_secs_f64();

    let tasks = spawned(n);
    println!("fib({n}) = {result}");
    println!("{tasks} tasks in {seconds:.3} s, {:.0} tasks/s", tasks as f64 / seconds);
    Ok(())
}

/// How many tasks `fib(n)` is: itself and all that it spawns.
fn spawned(n: u64) -> u64 {
    let (mut tasks, mut next) = (1, 1);
    for _ in 1..n {
        (tasks, next) = (next, tasks + next);
    }
    if n == 0 { 1 } else { next }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tasks_are_one_and_one_per_addition() {
        fn additions(n: u64) -> u64 {
            if n < 2 { 0 } else { 1 + additions(n - 1) + additions(n - 2) }
        }
        for n in 0..20 {
            assert_eq!(spawned(n), 1 + additions(n), "fib({n})");
        }
    }
}
