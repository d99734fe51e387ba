//! The C interface from C: the header compiles cleanly as C and as C++, the
//! example runs, and what a C program can do wrong it is told.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// Longer than anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);

const STRICT: [&str; 4] = ["-Wall", "-Wextra", "-Wpedantic", "-Werror"];

#[test]
fn the_header_is_clean_c_and_cpp() {
    let scratch = Scratch::new("header");
    for (compiler, standard, name) in [("cc", "-std=c11", "a.c"), ("c++", "-std=c++11", "a.cpp")] {
        let file = scratch.0.join(name);
        // Twice, to see that it guards itself.
        std::fs::write(&file, "#include <collimate.h>\n#include <collimate.h>\n").unwrap();
        let mut command = Command::new(compiler);
        command.args([standard, "-fsyntax-only"]).args(STRICT).arg("-I").arg(include()).arg(&file);
        assert_eq!(run(&mut command), (0, String::new(), String::new()), "{compiler}");
    }
}

#[test]
fn the_example_sums_on_one_rank_and_on_two() {
    let scratch = Scratch::new("sum");
    for library in [Library::Static, Library::Shared] {
        let program = compile(&scratch, "examples/sum.c", library);
        for ranks in [1, 2] {
            let (status, out, err) = run(&mut launched(&program, ranks));
            assert_eq!(status, 0, "{out}{err}");
            let sum = format!("sum 34359607296 of 34359607296 on {ranks} of {ranks} ranks");
            let chain = format!(
                "doomed: the task failed: there is no such part (in task `part_sum` on rank R, needed by task \
                 `doomed` on rank {})",
                ranks - 1
            );
            // Which rank ran the inner task is the scheduler's affair.
            let out = out.replacen("`part_sum` on rank 0", "`part_sum` on rank R", 1);
            let out = out.replacen("`part_sum` on rank 1", "`part_sum` on rank R", 1);
            assert_eq!(out.lines().collect::<Vec<_>>(), [sum, chain], "{err}");
            assert_eq!(err, "");
        }
    }
}

#[test]
fn wrong_use_is_told_and_harms_nothing() {
    let scratch = Scratch::new("bad");
    let program = compile(&scratch, "tests/bad_input.c", Library::Static);
    for ranks in [1, 2] {
        // 3 is the status that the program gives to `clm_finalize`.
        assert_eq!(run(&mut launched(&program, ranks)), (3, "ok\n".into(), String::new()), "{ranks} ranks");
    }
}

#[derive(Clone, Copy)]
enum Library {
    Static,
    Shared,
}

/// A file of this package, compiled and linked.
fn compile(scratch: &Scratch, source: &str, library: Library) -> PathBuf {
    let folder = built();
    let program = scratch.0.join("program");
    let mut command = Command::new("cc");
    command.arg("-std=c11").args(STRICT).arg("-I").arg(include()).arg(package().join(source));
    match library {
        Library::Static => command.arg(folder.join("libcollimate.a")).args(["-lpthread", "-ldl", "-lm"]),
        Library::Shared => {
            command.arg("-L").arg(folder).arg("-lcollimate").arg(format!("-Wl,-rpath,{}", folder.display()))
        }
    };
    assert_eq!(run(command.arg("-o").arg(&program)), (0, String::new(), String::new()));
    program
}

/// The program alone, or several of it by our launcher.
fn launched(program: &Path, ranks: u32) -> Command {
    let mut command = match ranks {
        1 => Command::new(program),
        _ => {
            let mut command = Command::new(built().join("collimate"));
            command.args(["run", "-n", &ranks.to_string(), "--"]).arg(program);
            command
        }
    };
    for name in ["PMI_FD", "PMI_RANK", "PMI_SIZE", "PMIX_RANK", "COLLIMATE_LAUNCH_FD", "COLLIMATE_PORT"] {
        command.env_remove(name);
    }
    command
}

/// The folder with the C libraries and the `collimate` command, as they are in
/// the tree now.
fn built() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        // target/<profile>/deps/<this test>
        let me = std::env::current_exe().unwrap();
        let folder = me.ancestors().nth(2).unwrap().to_path_buf();
        let profile = match folder.file_name().unwrap().to_str().unwrap() {
            "debug" => "dev",
            name => name,
        };
        let mut cargo = Command::new(env!("CARGO"));
        cargo.current_dir(package()).args(["build", "--locked", "--quiet", "--profile", profile]);
        cargo.args(["-p", "collimate", "-p", "collimate-c", "--lib", "--bins", "--target-dir"]);
        let output = cargo.arg(folder.parent().unwrap()).stdin(Stdio::null()).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        folder
    })
}

fn package() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn include() -> PathBuf {
    package().join("include")
}

/// Status, output and errors of a command, which must end in time.
fn run(command: &mut Command) -> (i32, String, String) {
    let piped = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = piped.spawn().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    let deadline = Instant::now() + PATIENCE;
    while child.try_wait().unwrap().is_none() {
        if Instant::now() > deadline {
            child.kill().unwrap();
            panic!("{command:?} has not ended: {:?}", child.wait_with_output().unwrap());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    let Output { status, stdout, stderr } = child.wait_with_output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (status.code().unwrap_or(-1), text(&stdout), text(&stderr))
}

/// A directory that is removed at the end of its test.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Scratch {
        let path = std::env::temp_dir().join(format!("collimate-c-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Scratch(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
