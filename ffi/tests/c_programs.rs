//! The C interface from C: the header compiles cleanly as C and as C++, the
//! example runs, and what a C program can do wrong it is told.

mod common;

use std::path::PathBuf;
use std::process::Command;

use common::{built, launched, package, run};

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
            let (status, out, err) = run(&mut launched(&[program.as_os_str()], ranks));
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
        assert_eq!(
            run(&mut launched(&[program.as_os_str()], ranks)),
            (3, "ok\n".into(), String::new()),
            "{ranks} ranks"
        );
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

fn include() -> PathBuf {
    package().join("include")
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
