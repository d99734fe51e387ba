//! What goes wrong inside tasks, at their driver and in the environment.

use collimate::{Error, ErrorKind, Options};

use crate::Scenario;
use crate::harness::{Job, Test, job, program, test, under_mpi};

pub const SCENARIOS: &[Scenario] = &[
    ("errors", errors),
    ("driver fails", driver_fails),
    ("driver panics", driver_panics),
    ("driver exits", driver_exits),
    ("driver exits in a task", driver_exits_in_a_task),
    ("driver status", driver_status),
    ("strangers", strangers),
    ("nothing", nothing),
];

pub fn tests() -> Vec<Test> {
    let mut tests = Vec::new();
    for ranks in [1, 2, 4] {
        tests.push(test(format!("errors_{ranks}"), move || {
            job(ranks, "errors").run().succeeded();
        }));
        tests.push(test(format!("driver_ends_{ranks}"), move || {
            job(ranks, "driver fails").run().failed(1, &["error: out of luck"]);
            job(ranks, "driver panics").run().failed(101, &["errors.rs", "on purpose"]);
            let silent = |job: Job, status| {
                let done = job.run();
                assert!(done.status == Some(status) && done.stderr.is_empty(), "{done:#?}");
            };
            silent(job(ranks, "driver exits"), 7);
            silent(job(ranks, "driver exits in a task"), 8);
            silent(job(ranks, "driver status"), 9);
        }));
    }
    for fabric in ["uring", "epoll"] {
        tests.push(test(format!("errors_4_{fabric}"), move || {
            job(4, "errors").env("COLLIMATE_FABRIC", fabric).run().succeeded();
            let done = job(4, "driver exits").env("COLLIMATE_FABRIC", fabric).run();
            assert!(done.status == Some(7) && done.stderr.is_empty(), "{done:#?}");
        }));
    }
    for launcher in ["mpirun.openmpi", "mpirun.mpich"] {
        tests.push(test(format!("errors_under_{launcher}"), move || {
            under_mpi(launcher, 3, "errors").run().succeeded();
            let done = under_mpi(launcher, 2, "driver exits").run();
            assert_eq!(done.status, Some(7), "{done:#?}");
        }));
    }
    tests.push(test("different_binaries", different_binaries));
    tests.push(test("bad_settings", bad_settings));
    tests
}

#[collimate::task]
fn leaf(how: &str) -> Result<u64, String> {
    match how {
        "panic" => panic!("leaf fell"),
        "text" => std::panic::panic_any(String::from("a string fell")),
        "odd" => std::panic::panic_any(7u8),
        "err" => Err("leaf declined".into()),
        "long" => Err("x".repeat(100_000)),
        _ => Ok(1),
    }
}

#[collimate::task]
fn middle(how: String, leaf_rank: u32) -> Result<u64, Error> {
    Ok(leaf::spawn_with(Options::new().rank(leaf_rank), how).get()? + 1)
}

#[collimate::task]
fn top(how: String, middle_rank: u32, leaf_rank: u32) -> Result<u64, Box<dyn std::error::Error>> {
    Ok(middle::spawn_with(Options::new().rank(middle_rank), how, leaf_rank).get()? + 1)
}

#[collimate::task]
fn consume(value: u64) -> u64 {
    value
}

#[collimate::main]
fn errors() -> Result<(), Error> {
    let size = collimate::size();
    let on = |rank: u32| Options::new().rank(rank % size);
    for base in 0..size {
        let [a, b, c] = [base % size, (base + 1) % size, (base + 2) % size];
        let ask = |how: &str| top::spawn_with(on(a), how.to_string(), b, c);
        assert_eq!(ask("fine").get()?, 3);
        for (how, kind, words) in [
            ("panic", ErrorKind::Panicked, "leaf fell"),
            ("text", ErrorKind::Panicked, "a string fell"),
            ("odd", ErrorKind::Panicked, "panicked"),
            ("err", ErrorKind::Failed, "leaf declined"),
        ] {
            let error = ask(how).get().unwrap_err();
            assert_eq!(error.kind, kind, "{error}");
            assert!(error.message.contains(words), "{error}");
            let trail: Vec<(&str, u32)> =
                error.trail.iter().map(|h| (h.task.rsplit("::").next().unwrap(), h.rank)).collect();
            assert_eq!(trail, [("leaf", c), ("middle", b), ("top", a)], "{error}");
        }
        let long = ask("long").get().unwrap_err();
        assert!(long.message.starts_with("xxx") && long.kind == ErrorKind::Failed);

        // Errors reach tasks that only depend, here and there, one or many.
        let failed = leaf::spawn_with(on(c), "err");
        for rank in 0..size {
            let error = consume::spawn_with(on(rank), &failed).get().unwrap_err();
            assert!(error.kind == ErrorKind::Failed && error.message.contains("declined"), "{error}");
            assert!(error.trail.last().unwrap().task.contains("consume"), "{error}");
        }
        assert!(failed.clone().get().is_err() && failed.get().is_err());
    }
    Ok(())
}

#[collimate::main]
fn driver_fails() -> Result<(), String> {
    Err("out of luck".into())
}

#[collimate::main]
fn driver_panics() {
    panic!("on purpose")
}

#[collimate::main]
fn driver_exits() -> Result<(), Error> {
    let _pending = leaf::spawn_with(Options::new().rank(collimate::size() - 1), "fine");
    std::process::exit(7)
}

#[collimate::task]
fn leave() {
    std::process::exit(8)
}

#[collimate::main]
fn driver_exits_in_a_task() -> Result<(), Error> {
    leave::spawn_with(Options::new().rank(0)).get()
}

#[collimate::main]
fn driver_status() -> i32 {
    9
}

#[collimate::main]
fn nothing() {}

#[collimate::main]
fn strangers() -> Result<(), Error> {
    let error = leaf::spawn_with(Options::new().rank(1), "fine").get().unwrap_err();
    assert_eq!(error.kind, ErrorKind::UnknownTask, "{error}");
    // What the other rank lacks is still done here.
    assert_eq!(leaf::spawn("fine").get()?, 1);
    Err(error)
}

/// One of the ranks runs another program, whichever comes first.
fn different_binaries() {
    let me = std::env::current_exe().unwrap();
    let other = example("ring_allreduce");
    let script = format!(
        "mkdir $TMPDIR/first 2>/dev/null && exec {} || {{ rmdir $TMPDIR/first; exec {}; }}",
        me.display(),
        other.display()
    );
    let done = program(2, "/bin/sh", &["-c", &script]).env(crate::harness::SCENARIO, "strangers").run();
    assert!(done.stderr.contains("has no task `"), "{done:#?}");
    done.failed(1, &["start every rank from the same binary"]);
}

/// The path of an example, which `cargo test` has built.
pub fn example(name: &str) -> std::path::PathBuf {
    let path = std::path::Path::new(env!("CARGO_BIN_EXE_collimate")).with_file_name("examples").join(name);
    assert!(path.exists(), "{} is missing: run `cargo build --examples`", path.display());
    path
}

fn bad_settings() {
    for (name, value) in [
        ("COLLIMATE_WORKERS", "0"),
        ("COLLIMATE_FABRIC", "smoke"),
        ("COLLIMATE_STORE", "1K"),
        ("COLLIMATE_STORE", "many"),
        ("COLLIMATE_STACK", "3"),
        ("COLLIMATE_PORT", "99999"),
        ("COLLIMATE_RESOURCES", "gpu"),
        ("COLLIMATE_INTERFACE", "nowhere"),
    ] {
        for ranks in [1, 3] {
            job(ranks, "nothing").env(name, value).run().failed(1, &[name, value, "set it to"]);
        }
    }
    job(2, "nothing").env("COLLIMATE_STORE", "900000G").run().status.filter(|s| *s == 1).expect("status 1");
    program(2, "/nonexistent/program", &[]).run().failed(1, &["/nonexistent/program"]);
}
