/*
 * Collimate: a distributed task and actor runtime for HPC clusters.
 *
 * Generated from ffi/src by `cargo xtask header`; not to be edited.
 *
 * A program registers its tasks, the same on every rank, and starts:
 *
 *     clm_register("square", square, NULL);
 *     if (clm_init() != CLM_OK) { fprintf(stderr, "%s\n", clm_last_error()); return 1; }
 *     if (clm_rank() != 0) { int32_t status; clm_serve(&status); return status; }
 *     ... clm_spawn, clm_get ...
 *     clm_finalize(0);
 *
 * Rules that hold for every function:
 *
 *  - It returns a clm_status unless it cannot fail; clm_last_error() then has
 *    the whole story in one line. What it gives comes through its last pointer
 *    and is null or empty if it fails.
 *  - What is passed in stays the caller's and is not used after the call,
 *    except by clm_register. Strings are UTF-8.
 *  - What is handed out has one release: a clm_ref clm_ref_release(), a
 *    clm_view clm_view_release(), in any order. What clm_task_arg() and
 *    clm_last_error() point to is lent and never released.
 *  - Any thread may call any of them, at the same time too. Only a clm_task is
 *    for the thread that was given it.
 */


#ifndef COLLIMATE_H
#define COLLIMATE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* An argument: `len` bytes at `data`. */
#define CLM_BYTES(data, len) { (data), (len), NULL }

/* An argument: the result behind a ref. */
#define CLM_REF(ref) { NULL, 0, (ref) }

/* Options without a wish. */
#define CLM_OPTIONS_INIT { sizeof(clm_options), -1, 0, NULL }


/**
 * What a function returns: CLM_OK, or why it did not do what it should.
 * clm_last_error() has the details.
 */
typedef enum {
    /**
     * Done.
     */
    CLM_OK = 0,
    /**
     * The task failed with a message of its own.
     */
    CLM_FAILED = 1,
    /**
     * The task, written in Rust, panicked.
     */
    CLM_PANICKED = 2,
    /**
     * The rank that ran the task, or that held its result, is gone.
     */
    CLM_RANK_LOST = 3,
    /**
     * The object store of a rank is full.
     */
    CLM_STORE_FULL = 4,
    /**
     * No task of that name is registered, here or on the rank asked.
     */
    CLM_UNKNOWN_TASK = 5,
    /**
     * Arguments, or a result, that the task does not take or give.
     */
    CLM_BAD_ARGUMENT = 6,
    /**
     * No stack was left to run another task on.
     */
    CLM_STACK_EXHAUSTED = 7,
    /**
     * The time given ran out; the task goes on.
     */
    CLM_TIMED_OUT = 8,
    /**
     * The runtime has not been started, or has ended.
     */
    CLM_NOT_RUNNING = 9,
    /**
     * The call cannot be served: a rank that does not exist, a name taken, a
     * second clm_init().
     */
    CLM_BAD_CALL = 10,
    /**
     * A pointer is null that must not be.
     */
    CLM_NULL_POINTER = 11,
    /**
     * A fault of Collimate's own.
     */
    CLM_INTERNAL = 12,
} clm_status;

/**
 * What keeps the bytes of a view.
 */
typedef struct clm_bytes clm_bytes;

/**
 * The future result of a task or of a put. Made by clm_spawn(), clm_put() and
 * clm_ref_clone(); belongs to the caller until clm_ref_release(). May be used
 * by several threads at once.
 */
typedef struct clm_ref clm_ref;

/**
 * One run of a task, for its body.
 */
typedef struct clm_task clm_task;

/**
 * The body of a task. Returns CLM_OK, or anything else if it failed. It may
 * spawn, get and wait; `task` is valid until it returns and for its thread
 * only. It must not leave by longjmp or by a C++ exception.
 */
typedef int32_t (*clm_task_fn)(clm_task *task, void *user_data);

/**
 * One argument of a call; see CLM_BYTES and CLM_REF.
 */
typedef struct {
    /**
     * Bytes, which clm_spawn() copies.
     */
    const void *data;
    /**
     * How many.
     */
    size_t len;
    /**
     * If not null, the argument is the result behind this ref instead, and the
     * task starts when it is there. The ref stays the caller's.
     */
    const clm_ref *result;
} clm_arg;

/**
 * Options of one call; begin with CLM_OPTIONS_INIT.
 */
typedef struct {
    /**
     * sizeof(clm_options), by which later versions tell which fields exist.
     */
    size_t size;
    /**
     * The rank to run the call on; -1 for any.
     */
    int32_t rank;
    /**
     * Not 0: such calls run on all ranks in turn. Goes only with rank -1.
     */
    int32_t spread;
    /**
     * The name of this call in errors, instead of the task's; or null.
     */
    const char *name;
} clm_options;

/**
 * Bytes that are read where they lie, in the store of a rank of this host or
 * on the heap. They do not change, must not be written, are aligned for every
 * type, and stay valid until clm_view_release(), also after the ref is gone.
 */
typedef struct {
    /**
     * The first byte.
     */
    const void *data;
    /**
     * How many.
     */
    size_t len;
    /**
     * What keeps them; not for the caller.
     */
    clm_bytes *owner;
} clm_view;

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

/**
 * The meaning of a status in a few words. Never null, never to be freed.
 */
const char *clm_status_text(int32_t status);

/**
 * The last error of the calling thread in one line: what happened, in which
 * tasks on which ranks, and what to do. Never null; empty if there was none.
 * Valid until the next call of the thread that fails.
 */
const char *clm_last_error(void);

/**
 * Starts the runtime in this process and joins the other ranks of the job, if
 * mpirun, srun or `collimate run` started several; waits for them all.
 *
 * Once per process, after every clm_register(). Then rank 0 is the driver: it
 * spawns tasks, from any of its threads, and calls clm_finalize() at the end.
 * The other ranks call clm_serve().
 */
clm_status clm_init(void);

/**
 * Rank 0: ends the job. Every rank's clm_serve() then gives `exit_status`,
 * with which all of them should exit. Views may be used until they are
 * released; tasks that nobody waited for may not have run.
 *
 * If the job had ended before, the status tells why.
 */
clm_status clm_finalize(int32_t exit_status);

/**
 * Other ranks than 0: runs tasks until the job ends, and ends the runtime in
 * this process. `*exit_status` is then what the process should exit with, even
 * if the status is not CLM_OK because the job ended before its time.
 *
 * The caller makes sure:
 * `exit_status` is valid to write.
 */
clm_status clm_serve(int32_t *exit_status);

/**
 * This rank, from 0; -1 where the runtime is not running.
 */
int32_t clm_rank(void);

/**
 * The ranks of the job; -1 where the runtime is not running.
 */
int32_t clm_size(void);

/**
 * Registers a task by name, before clm_init(), the same ones on every rank.
 * `body` is called by several threads at once, each time with `user_data`,
 * for as long as the process lives. The name is copied.
 *
 * The caller makes sure:
 * `name` is null or a string that ends with a null byte. `body` and
 * `user_data` may be used by several threads at once until the process ends.
 */
clm_status clm_register(const char *name, clm_task_fn body, void *user_data);

/**
 * How many arguments the task was given; 0 if `task` is null.
 *
 * The caller makes sure:
 * `task` is null or what the running body was given.
 */
size_t clm_task_arg_count(const clm_task *task);

/**
 * Argument `index`, from 0, in place: `*data` is aligned for every type and
 * valid until the body returns. `len` may be null.
 *
 * The caller makes sure:
 * `task` is what the running body was given; `data` and `len` are null or
 * valid to write.
 */
clm_status clm_task_arg(const clm_task *task, size_t index, const void **data, size_t *len);

/**
 * Sets the result: a copy of `len` bytes. Without it the result is empty; the
 * last call counts.
 *
 * The caller makes sure:
 * `task` is what the running body was given; `data` points to `len` bytes.
 */
clm_status clm_task_return(clm_task *task, const void *data, size_t len);

/**
 * Makes the task fail: whoever gets its result gets CLM_FAILED and `message`,
 * which is copied. With a null `message` the task passes on the thread's last
 * error, clm_last_error(), with its status and its chain of tasks. Returns
 * CLM_FAILED, so that a body can end with `return clm_task_fail(task, "why")`.
 *
 * The caller makes sure:
 * `task` is what the running body was given; `message` is null or a string
 * that ends with a null byte.
 */
clm_status clm_task_fail(clm_task *task, const char *message);

/**
 * Makes a task of a call of the task `name`, which a clm_register() or a Rust
 * program registered, and gives a ref to its result. Copies what `args` point
 * to. `options` may be null. Returns at once: what is wrong with the call
 * itself is the result's error, and clm_get() returns it.
 *
 * The caller makes sure:
 * `name` is null or a string that ends with a null byte, `args` points to
 * `count` arguments whose pointers are valid, `options` is null or points to
 * as many bytes as its size says, `result` is null or valid to write.
 */
clm_status clm_spawn(const char *name,
                     const clm_arg *args,
                     size_t count,
                     const clm_options *options,
                     clm_ref **result);

/**
 * Copies `len` bytes into the object store of this rank, where tasks on all
 * ranks of the host read them in place, and gives a ref to them.
 *
 * The caller makes sure:
 * `data` points to `len` bytes; `result` is null or valid to write.
 */
clm_status clm_put(const void *data, size_t len, clm_ref **result);

/**
 * Waits for a result, at most `timeout_ms` milliseconds or, with -1, without a
 * limit, and gives a view of it, which the caller releases. If the task
 * failed, that is the status, and the view is empty. The ref stays valid and
 * can be got again. In a task, other tasks run meanwhile.
 *
 * The caller makes sure:
 * `r` is null or a ref that is not released; `view` is null or valid to write
 * and holds nothing that is still to be released.
 */
clm_status clm_get(const clm_ref *r, int64_t timeout_ms, clm_view *view);

/**
 * Waits until `enough` of `count` refs have a result, good or bad, as long as
 * clm_get() would. Sets `ready[i]` for each that has one, and for no other.
 * CLM_TIMED_OUT if they were fewer in time.
 *
 * The caller makes sure:
 * `refs` points to `count` refs that are null or not released, and `ready` to
 * as many values, valid to write.
 */
clm_status clm_wait(const clm_ref *const *refs,
                    size_t count,
                    size_t enough,
                    int64_t timeout_ms,
                    bool *ready);

/**
 * Another ref to the same result, to be released as well.
 *
 * The caller makes sure:
 * `r` is null or a ref that is not released; `copy` is null or valid to write.
 */
clm_status clm_ref_clone(const clm_ref *r, clm_ref **copy);

/**
 * Gives a ref back. The result goes with its last ref and its last view; the
 * task runs all the same. Null does nothing.
 *
 * The caller makes sure:
 * `r` is null or a ref that is not released, which nobody uses any more.
 */
void clm_ref_release(clm_ref *r);

/**
 * Ends a view and empties it, so that a second release does nothing. Neither
 * does null.
 *
 * The caller makes sure:
 * `view` is null, or points to a view that clm_get() filled, was emptied, or is
 * all zero.
 */
void clm_view_release(clm_view *view);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* COLLIMATE_H */
