//! Start and end of the runtime in a process, and who we are in the job.

use std::sync::{Mutex, MutexGuard, PoisonError};

use collimate::Runtime;
use collimate::node::Node;

use crate::status::clm_status::{self, CLM_BAD_CALL, CLM_NOT_RUNNING};
use crate::status::{Fault, guard};

/// Starts the runtime in this process and joins the other ranks of the job, if
/// mpirun, srun or `collimate run` started several; waits for them all.
///
/// Once per process, after every clm_register(). Then rank 0 is the driver: it
/// spawns tasks, from any of its threads, and calls clm_finalize() at the end.
/// The other ranks call clm_serve().
#[unsafe(no_mangle)]
pub extern "C" fn clm_init() -> clm_status {
    guard(|| {
        let mut life = life();
        match *life {
            Life::Fresh => (),
            Life::Started(_) | Life::Serving => return Err(Fault::new(CLM_BAD_CALL, "clm_init was called before")),
            Life::Ended => return Err(Fault::new(CLM_BAD_CALL, "the runtime has ended: it starts once per process")),
        }
        *life = Life::Started(Runtime::start()?);
        Ok(())
    })
}

/// Rank 0: ends the job. Every rank's clm_serve() then gives `exit_status`,
/// with which all of them should exit. Views may be used until they are
/// released; tasks that nobody waited for may not have run.
///
/// If the job had ended before, the status tells why.
#[unsafe(no_mangle)]
pub extern "C" fn clm_finalize(exit_status: i32) -> clm_status {
    guard(|| {
        not_in_a_task()?;
        let mut life = life();
        if matches!(*life, Life::Started(_)) && collimate::rank() != 0 {
            let text = format!("rank {} ends with the job: call clm_serve", collimate::rank());
            return Err(Fault::new(CLM_BAD_CALL, text));
        }
        let runtime = life.take(Life::Ended)?;
        runtime.finish(exit_status)?;
        Ok(())
    })
}

/// Other ranks than 0: runs tasks until the job ends, and ends the runtime in
/// this process. `*exit_status` is then what the process should exit with, even
/// if the status is not CLM_OK because the job ended before its time.
///
/// # Safety
/// `exit_status` is valid to write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn clm_serve(exit_status: *mut i32) -> clm_status {
    guard(|| {
        if exit_status.is_null() {
            return Err(Fault::null("exit_status"));
        }
        // SAFETY: not null, and valid to write by contract.
        unsafe { exit_status.write(1) };
        not_in_a_task()?;
        let mut life = life();
        if matches!(*life, Life::Started(_)) && collimate::rank() == 0 {
            return Err(Fault::new(CLM_BAD_CALL, "rank 0 is the driver: it spawns tasks and calls clm_finalize"));
        }
        let runtime = life.take(Life::Serving)?;
        drop(life);
        let served = runtime.serve();
        *self::life() = Life::Ended;
        // SAFETY: as above.
        unsafe { exit_status.write(served?) };
        Ok(())
    })
}

/// This rank, from 0; -1 where the runtime is not running.
#[unsafe(no_mangle)]
pub extern "C" fn clm_rank() -> i32 {
    if is_running() { collimate::rank() as i32 } else { -1 }
}

/// The ranks of the job; -1 where the runtime is not running.
#[unsafe(no_mangle)]
pub extern "C" fn clm_size() -> i32 {
    if is_running() { collimate::size() as i32 } else { -1 }
}

/// Refuses what needs the runtime.
pub(crate) fn running() -> Result<(), Fault> {
    if is_running() { Ok(()) } else { Err(not_running()) }
}

enum Life {
    Fresh,
    Started(Runtime),
    Serving,
    Ended,
}

static LIFE: Mutex<Life> = Mutex::new(Life::Fresh);

fn life() -> MutexGuard<'static, Life> {
    LIFE.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Life {
    fn take(&mut self, next: Life) -> Result<Runtime, Fault> {
        match std::mem::replace(self, next) {
            Life::Started(runtime) => Ok(runtime),
            Life::Serving => {
                *self = Life::Serving;
                Err(Fault::new(CLM_BAD_CALL, "clm_serve was called before and has not returned"))
            }
            before => {
                *self = before;
                Err(not_running())
            }
        }
    }
}

fn is_running() -> bool {
    Node::current().is_some()
}

fn not_running() -> Fault {
    Fault::new(
        CLM_NOT_RUNNING,
        "the runtime is not running in this process: call clm_init first, and clm_finalize last",
    )
}

fn not_in_a_task() -> Result<(), Fault> {
    if Node::on_worker() {
        return Err(Fault::new(CLM_BAD_CALL, "a task cannot end the runtime: call this from the program's own thread"));
    }
    Ok(())
}
