//! From a program's `main` to a running job and back.

use std::any::Any;
use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::sync::Once;

use super::reference::Error;
use crate::base::{Config, ErrorKind, Rank, TaskError};
use crate::node::{self, Call, Ended, Node, Running, Stored, say_line};

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
    let (rank, status, reason) = match run(driver) {
        Ok((rank, ended)) => (Some(rank), ended.status, ended.reason),
        Err(e) => (None, 1, Some(e.to_string())),
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

fn run<R: Outcome + 'static>(driver: fn() -> R) -> Result<(Rank, Ended), Error> {
    let Runtime(running) = Runtime::start()?;
    let rank = running.node.rank();
    let ended = if rank == Rank(0) { running.drive(Driver(driver)) } else { running.serve() };
    running.finish(&ended);
    Ok((rank, ended))
}

/// This rank, for programs whose `main` is their own: those written in C, and
/// those that use Collimate for a part of their work.
///
/// On rank 0 the program itself is the driver: it spawns tasks from any thread
/// and then calls [`finish`](Runtime::finish). The other ranks call
/// [`serve`](Runtime::serve).
///
/// # Examples
/// ```
/// #[collimate::task]
/// fn square(x: u64) -> u64 {
///     x * x
/// }
///
/// fn main() -> Result<(), collimate::Error> {
///     let runtime = collimate::Runtime::start()?;
///     if collimate::rank() != 0 {
///         std::process::exit(runtime.serve()?);
///     }
///     assert_eq!(square::spawn(7).get()?, 49);
///     std::process::exit(runtime.finish(0)?);
/// }
/// ```
pub struct Runtime(Running);

impl Runtime {
    /// Joins the job that the environment names, or makes one of one rank.
    /// Panics in tasks are from then on not printed; they become error values.
    ///
    /// # Errors
    /// What in the environment cannot be read, or what kept the rank from its
    /// peers.
    pub fn start() -> Result<Runtime, Error> {
        let failed = |why: String| Error::new(ErrorKind::NotRunning, why);
        if let Some(node) = Node::current() {
            return Err(failed(format!("{} runs in this process already", node.rank())));
        }
        catch_panics();
        let config = Config::from_env().map_err(|e| failed(e.to_string()))?;
        node::start(config).map(Runtime).map_err(|e| failed(e.to_string()))
    }

    /// Serves the other ranks until the job ends. The exit status that it ends
    /// with.
    ///
    /// # Errors
    /// Why the job ended before its driver was done; the exit status is 1 then.
    pub fn serve(self) -> Result<i32, Error> {
        let ended = self.0.serve();
        self.end(&ended)
    }

    /// Rank 0: ends the job with an exit status. Tasks that nobody got the
    /// result of may not have run.
    ///
    /// # Errors
    /// Why the job had ended before.
    pub fn finish(self, status: i32) -> Result<i32, Error> {
        let ended = self.0.node.ended().unwrap_or(Ended { status, reason: None });
        self.end(&ended)
    }

    fn end(self, ended: &Ended) -> Result<i32, Error> {
        let status = self.0.finish(ended);
        match &ended.reason {
            None => Ok(status),
            Some(reason) => Err(Error::new(ErrorKind::NotRunning, reason.clone())),
        }
    }
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
