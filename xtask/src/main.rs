//! Chores of the tree. `cargo xtask schema` regenerates the control
//! messages from `schema/`, `header` the C header from `ffi/src`, and
//! `bindings` what Rust knows of the headers of libibverbs; with `--check` they
//! only compare.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

const USAGE: &str = "usage: cargo xtask schema|header|bindings [--check]";

/// A file that is made from others.
struct Generated {
    /// Where it is committed.
    path: &'static str,
    /// What it is made from.
    source: &'static str,
    /// The argument that makes it.
    command: &'static str,
    make: fn() -> Result<String, String>,
    /// What the machine must have to make it; without it nothing is checked.
    needs: Option<&'static str>,
}

const ALL: [Generated; 3] = [
    Generated {
        path: "src/wire/generated/control.rs",
        source: SCHEMA,
        command: "schema",
        make: control_messages,
        needs: None,
    },
    Generated { path: "ffi/include/collimate.h", source: FFI, command: "header", make: header, needs: None },
    Generated {
        path: "src/sys/generated/verbs.rs",
        source: VERBS,
        command: "bindings",
        make: verbs,
        needs: Some(VERBS),
    },
];

const SCHEMA: &str = "schema/control.fbs";
const FFI: &str = "ffi/src";
const VERBS: &str = "/usr/include/infiniband/verbs.h";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let chosen = arguments.first().and_then(|command| ALL.iter().find(|g| g.command == *command));
    let outcome = match (chosen, &arguments[..]) {
        (Some(generated), [_]) => generated.write(),
        (Some(generated), [_, "--check"]) => generated.check(),
        _ => {
            eprintln!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    match outcome {
        Ok(line) => {
            println!("{line}");
            ExitCode::SUCCESS
        }
        Err(line) => {
            eprintln!("xtask: {line}");
            ExitCode::FAILURE
        }
    }
}

impl Generated {
    /// Makes it and writes it where it belongs.
    fn write(&self) -> Result<String, String> {
        let path = root().join(self.path);
        fs::write(&path, (self.make)()?).map_err(|e| format!("cannot write {}: {e}", path.display()))?;
        Ok(format!("{} written", self.path))
    }

    /// Compares what is committed with what would be made.
    fn check(&self) -> Result<String, String> {
        let Generated { path, source, command, make, needs } = self;
        if let Some(missing) = needs.filter(|file| !Path::new(file).exists()) {
            return Ok(format!("{path} was not compared: this machine has no {missing}"));
        }
        let full = root().join(path);
        let committed = fs::read_to_string(&full).map_err(|e| format!("cannot read {}: {e}", full.display()))?;
        if committed != make()? {
            return Err(format!("{path} does not match {source}: run `cargo xtask {command}` and commit it"));
        }
        Ok(format!("{path} is current"))
    }
}

/// The C header of the functions in `ffi/src`, in the order of its files.
fn header() -> Result<String, String> {
    let ffi = root().join("ffi");
    let config = cbindgen::Config::from_file(ffi.join("cbindgen.toml"))?;
    let files = ["status", "runtime", "task", "value"].map(|name| ffi.join("src").join(name).with_extension("rs"));
    let builder = files.iter().fold(cbindgen::Builder::new().with_config(config), |b, file| b.with_src(file));
    let mut text = Vec::new();
    builder.generate().map_err(|e| format!("{FFI}: {e}"))?.write(&mut text);
    let text = String::from_utf8(text).map_err(|e| format!("{FFI}: {e}"))?;
    // What Rust calls safety, C programmers know as what is asked of them.
    Ok(text.replace(" * # Safety\n", " * The caller makes sure:\n"))
}

/// The Rust code of the schema, laid out by a library so that it does not
/// depend on the machine's rustfmt.
fn control_messages() -> Result<String, String> {
    // The generated comments quote the path as given: it must be relative.
    std::env::set_current_dir(root()).map_err(|e| format!("cannot enter {}: {e}", root().display()))?;
    let declarations = planus_translation::translate_files(&[SCHEMA])
        .ok_or_else(|| format!("{SCHEMA} is not a valid schema; the lines above say where"))?;
    let code = planus_codegen::generate_rust(&declarations, false).map_err(|e| format!("{SCHEMA}: {e}"))?;
    let tree = syn::parse_file(&code).map_err(|e| format!("planus gave code that does not parse: {e}"))?;
    Ok(format!(
        "// Generated from {SCHEMA} by `cargo xtask schema`; not to be edited.\n{}",
        prettyplease::unparse(&tree)
    ))
}

/// The types, constants and function types of libibverbs that `src/sys/verbs`
/// uses. The functions become fields that are looked up when the library is
/// loaded at run time, so that nothing links it.
fn verbs() -> Result<String, String> {
    let functions = [
        "get_device_list",
        "free_device_list",
        "get_device_name",
        "open_device",
        "close_device",
        "query_device",
        "query_port",
        "query_gid",
        "alloc_pd",
        "dealloc_pd",
        "reg_mr",
        "dereg_mr",
        "create_comp_channel",
        "destroy_comp_channel",
        "create_cq",
        "destroy_cq",
        "resize_cq",
        "get_cq_event",
        "ack_cq_events",
        "create_srq",
        "destroy_srq",
        "create_qp",
        "modify_qp",
        "destroy_qp",
        "get_async_event",
        "ack_async_event",
        "wc_status_str",
        "event_type_str",
    ];
    let types = [
        "access_flags",
        "device_attr",
        "port_attr",
        "qp_attr_mask",
        "send_flags",
        "wc",
        "wc_flags",
        "wc_opcode",
        "wc_status",
        "wr_opcode",
    ];
    let ours = |names: &[&str]| format!("ibv_({})", names.join("|"));
    let code = bindgen::builder()
        .header(VERBS)
        .allowlist_function(ours(&functions))
        .allowlist_type(ours(&types))
        .dynamic_library_name("Verbs")
        .dynamic_link_require_all(true)
        .default_enum_style(bindgen::EnumVariation::Consts)
        .prepend_enum_name(false)
        .blocklist_type("pthread_.*")
        .raw_line("use libc::{pthread_cond_t, pthread_mutex_t};")
        .generate_comments(false)
        .merge_extern_blocks(true)
        .rust_target(bindgen::RustTarget::stable(85, 0).expect("a version that bindgen knows"))
        .rust_edition(bindgen::RustEdition::Edition2024)
        .formatter(bindgen::Formatter::Prettyplease)
        .disable_header_comment()
        .clang_arg("-w")
        .generate()
        .map_err(|e| format!("{VERBS}: {e}"))?
        .to_string();
    // What bindgen writes is for libloading 0.8, whose trait had another name.
    let code = code.replace("AsRef<::std::ffi::OsStr>", "::libloading::AsFilename");
    Ok(format!("// Generated from {VERBS} by `cargo xtask bindings`; not to be edited.\n{code}"))
}

/// The workspace's folder.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask lies in the workspace").to_path_buf()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_generated_is_current() {
        for generated in &ALL {
            generated.check().unwrap();
        }
    }
}
