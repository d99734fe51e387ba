//! From a program's `main` to a running job and back.

use std::any::Any;
use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::sync::Once;

use crate::base::{Config, ErrorKind, Rank, TaskError};
use crate::node::{self, Call, Ended, Node, Stored, say_line};

/// What a driver may return, and the exit status that the job has then.
pub trait Outcome {
    /// The exit status, after saying on standard error what went wrong.
    fn report(self) -> i32;
}

impl Outcome for () {
    fn report(self) -> i32 {
        0
    }
}

/// An exit status of its own choice.
impl Outcome for i32 {
    fn report(self) -> i32 {
        self
    }
}

impl<T: Outcome, E: std::fmt::Display> Outcome for Result<T, E> {
    fn report(self) -> i32 {
        match self {
            Ok(value) => value.report(),
            Err(error) => {
                say_line(format_args!("error: {error}"));
                1
            }
        }
    }
}

/// Runs a program: the driver on rank 0, service on the others. What
/// `#[collimate::main]` expands to.
pub fn main<R: Outcome + 'static>(driver: fn() -> R) -> ExitCode {
    catch_panics();
    let (rank, status, reason) = match run(driver) {
        Ok((rank, ended)) => (Some(rank), ended.status, ended.reason),
        Err(e) => (None, 1, Some(e)),
    };
    if let Some(reason) = reason {
        match rank {
            Some(rank) => say_line(format_args!("collimate: {rank}: {reason}")),
            None => say_line(format_args!("collimate: {reason}")),
        }
    }
    // Without running destructors of threads that are inside a task.
    std::process::exit(status & 0xff)
}

fn run<R: Outcome + 'static>(driver: fn() -> R) -> Result<(Rank, Ended), String> {
    let config = Config::from_env().map_err(|e| e.to_string())?;
    let running = node::start(config).map_err(|e| e.to_string())?;
    let rank = running.node.rank();
    let ended = if rank == Rank(0) { running.drive(Driver(driver)) } else { running.serve() };
    running.finish(&ended);
    Ok((rank, ended))
}

/// The root task.
struct Driver<R>(fn() -> R);

impl<R: Outcome + 'static> Call for Driver<R> {
    type Output = i32;
    fn run(self, out: &mut Stored<i32>) {
        let status = match catch_unwind(AssertUnwindSafe(|| (self.0)().report())) {
            Ok(status) => status,
            Err(payload) => {
                say_line(format_args!("error: the driver {}", last_panic(&*payload).message));
                101
            }
        };
        *out = Stored::Value(status);
    }
    fn kind(&self) -> &'static (dyn Any + Send + Sync) {
        unreachable!("the root task stays on rank 0")
    }
}

thread_local! {
    static LAST_PANIC: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Panics in tasks become error values; they are not printed as well.
fn catch_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if Node::on_worker() {
                let place = info.location().map(ToString::to_string).unwrap_or_default();
                let text = format!("panicked at {place}: {}", payload_text(info.payload()));
                LAST_PANIC.with_borrow_mut(|last| *last = Some(text));
            } else {
                before(info);
            }
        }));
    });
}

/// The error of a panic that was just caught on this thread.
pub(super) fn last_panic(payload: &(dyn Any + Send)) -> Box<TaskError> {
    let text = LAST_PANIC.with_borrow_mut(Option::take);
    let text = text.unwrap_or_else(|| format!("panicked: {}", payload_text(payload)));
    Box::new(TaskError::new(ErrorKind::Panicked, text))
}

fn payload_text(payload: &(dyn Any + Send)) -> &str {
    match (payload.downcast_ref::<&str>(), payload.downcast_ref::<String>()) {
        (Some(text), _) => text,
        (None, Some(text)) => text,
        (None, None) => "with a value that is no text",
    }
}
