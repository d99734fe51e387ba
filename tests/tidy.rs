//! The tree's rules, enforced: which layer may import which, where `unsafe` may
//! stand, and no dead text. Reads source as text, so that it holds for code of
//! every feature and target alike.

use std::fs;
use std::path::{Path, PathBuf};

const BASE: &[&str] = &[];
const CORE: &[&str] = &["base", "sync", "mem", "wire"];

/// Each folder under `src/` and the folders that it may import: the table of
/// docs/ARCHITECTURE.md.
const LAYERS: &[(&str, &[&str])] = &[
    ("base", BASE),
    ("sync", &["base"]),
    ("mem", &["base", "sync"]),
    ("wire", &["base"]),
    ("store", CORE),
    ("sched", CORE),
    ("gcs", CORE),
    ("graph", CORE),
    ("sys", &["base", "sync", "mem"]),
    ("fabric", &["base", "sync", "mem", "sys"]),
    ("boot", &["base", "sys"]),
    ("node", &["base", "sync", "mem", "wire", "store", "sched", "gcs", "graph", "sys", "fabric", "boot"]),
    ("api", &["base", "node"]),
    ("sim", &["base", "sync", "mem", "wire", "store", "sched", "gcs", "graph", "node"]),
];

/// The folder whose inner modules others may name.
const OPEN_LAYER: &str = "base";

/// Where `unsafe` may stand.
const UNSAFE_ALLOWED: &[&str] = &["src/sync/", "src/mem/", "src/sys/", "src/wire/generated/", "ffi/"];

/// Code that a tool wrote: only its place is checked.
const GENERATED: &[&str] = &["src/wire/generated/", "src/sys/generated/"];

/// Folders that are read.
const ROOTS: &[&str] = &["src", "tests", "examples", "bench", "benches", "ffi", "fuzz", "macros", "xtask"];

/// Where each dependency has its reason.
const DEPENDENCIES_ADR: &str = "docs/adr/0001-dependencies.md";

/// The walk through the source, whose symbols must exist.
const TOUR: &str = "docs/TOUR.md";

const FILE_LINES_MAX: usize = 1000;

#[test]
fn the_tree_is_tidy() {
    let mut files = Vec::new();
    for root in ROOTS {
        collect(&tree().join(root), &mut files);
    }
    assert!(files.iter().any(|f| f.ends_with("src/lib.rs")), "tidy does not see the tree");
    let mut problems = Vec::new();
    for file in files {
        let source = fs::read_to_string(&file).unwrap_or_else(|e| panic!("cannot read {}: {e}", file.display()));
        let path = file.strip_prefix(tree()).unwrap().to_str().expect("paths are UTF-8").to_string();
        problems.extend(check(&path, &source));
    }
    assert!(problems.is_empty(), "{} problems:\n{}", problems.len(), problems.join("\n"));
}

#[test]
fn the_layers_have_no_cycle() {
    for (position, (folder, imports)) in LAYERS.iter().enumerate() {
        for import in *imports {
            let of_import = LAYERS.iter().position(|(name, _)| name == import);
            assert!(of_import.is_some_and(|p| p < position), "{folder} imports {import}, which is not below it");
        }
    }
}

#[test]
fn every_symbol_of_the_tour_exists() {
    let mut files = Vec::new();
    for root in ["src", "macros"] {
        collect(&tree().join(root), &mut files);
    }
    let places: Vec<Place> = files.iter().map(|file| Place::of(file)).collect();
    let tour = fs::read_to_string(tree().join(TOUR)).expect("the tour");
    let symbols = symbols_in(&tour);
    assert!(symbols.len() > 30, "the tour names {} symbols", symbols.len());
    let missing: Vec<&String> = symbols.iter().filter(|s| !places.iter().any(|place| place.declares(s))).collect();
    assert!(missing.is_empty(), "{TOUR} names what does not exist: {missing:?}");
}

/// What stands between backquotes and is a path of at least two names.
fn symbols_in(text: &str) -> Vec<String> {
    let spans = text.split('`').skip(1).step_by(2);
    let is_path = |span: &&str| span.contains("::") && span.chars().all(|c| is_word(c) || c == ':');
    spans.filter(is_path).map(String::from).collect()
}

/// A file as a place in which symbols are declared.
struct Place {
    /// What the file and its folder are called.
    names: Vec<String>,
    text: Text,
}

impl Place {
    fn of(file: &Path) -> Place {
        let source = fs::read_to_string(file).unwrap_or_else(|e| panic!("cannot read {}: {e}", file.display()));
        let inner = file.strip_prefix(tree()).unwrap().to_str().expect("paths are UTF-8");
        let names = inner.trim_end_matches(".rs").split('/').map(String::from).collect();
        Place { names, text: Text::of(&source) }
    }

    /// Whether the last two names of `path` are declared here, one within the
    /// other as far as a look at the tokens can tell.
    fn declares(&self, path: &str) -> bool {
        let mut names = path.rsplit("::");
        let (Some(name), Some(within)) = (names.next(), names.next()) else { return false };
        let of_place = self.names.iter().any(|n| n == within);
        let of_type = self.introduces(&["struct", "enum", "trait", "type"], within)
            || self.text.tokens.iter().any(|t| t.text == "impl") && self.mentions(within);
        let items = ["fn", "struct", "enum", "trait", "type", "const", "static"];
        let is_variant = self.introduces(&["enum"], within) && self.mentions(name);
        let is_field = self.introduces(&["struct"], within)
            && self.text.tokens.windows(2).any(|pair| pair[0].text == name && pair[1].text == ":");
        (of_place || of_type) && (self.introduces(&items, name) || is_variant || is_field)
    }

    fn introduces(&self, keywords: &[&str], name: &str) -> bool {
        self.text.tokens.windows(2).any(|pair| keywords.contains(&pair[0].text.as_str()) && pair[1].text == name)
    }

    fn mentions(&self, name: &str) -> bool {
        self.text.tokens.iter().any(|token| token.text == name)
    }
}

#[test]
fn every_dependency_has_its_reason() {
    let manifests = [
        "Cargo.toml",
        "macros/Cargo.toml",
        "ffi/Cargo.toml",
        "bench/Cargo.toml",
        "fuzz/Cargo.toml",
        "xtask/Cargo.toml",
    ];
    let manifests: Vec<String> =
        manifests.iter().filter_map(|path| fs::read_to_string(tree().join(path)).ok()).collect();
    let adr = fs::read_to_string(tree().join(DEPENDENCIES_ADR)).expect("the list of dependencies");
    let problems = check_dependencies(&manifests, &adr);
    assert!(problems.is_empty(), "{DEPENDENCIES_ADR}:\n{}", problems.join("\n"));
}

/// Compares what manifests use with what the tables of the ADR give reasons for.
fn check_dependencies(manifests: &[String], adr: &str) -> Vec<String> {
    let mut used = Vec::new();
    for manifest in manifests {
        let mut lists_crates = false;
        for line in manifest.lines() {
            if line.starts_with('[') {
                lists_crates = line.trim_end().ends_with("dependencies]");
            } else if let Some((name, value)) = line.split_once('=').filter(|_| lists_crates) {
                let is_ours = value.contains("path =") || line.starts_with(['#', ' ']);
                used.extend((!is_ours).then(|| name.trim().trim_end_matches(".workspace").to_string()));
            }
        }
    }
    let first_cells = adr.lines().filter_map(|line| line.strip_prefix("| ")?.split(" |").next());
    let explained: Vec<&str> = first_cells.flat_map(|cell| cell.split('`').skip(1).step_by(2)).collect();
    let mut problems = Vec::new();
    for name in &used {
        if !explained.contains(&name.as_str()) {
            problems.push(format!("`{name}` is used and has no reason"));
        }
    }
    for name in explained {
        if !used.iter().any(|n| n == name) {
            problems.push(format!("`{name}` is explained and not used"));
        }
    }
    problems.sort();
    problems.dedup();
    problems
}

/// Everything that is wrong with one file, one line each.
fn check(path: &str, source: &str) -> Vec<String> {
    if GENERATED.iter().any(|folder| path.starts_with(folder)) {
        return Vec::new();
    }
    let text = Text::of(source);
    let mut problems = Vec::new();
    let mut report = |line: usize, what: String| problems.push(format!("{path}:{}: {what}", line + 1));

    if !source.starts_with("//!") {
        report(0, "a file starts with a `//!` line that says what it is for".into());
    }
    let lines = source.lines().count();
    if lines > FILE_LINES_MAX {
        report(lines - 1, format!("{lines} lines: split it by role below {FILE_LINES_MAX}"));
    }
    check_dead_text(source, &text, &mut report);
    check_unsafe(path, &text, &mut report);
    if let Some(inner) = path.strip_prefix("src/").filter(|p| *p != "lib.rs" && !p.starts_with("bin/")) {
        check_imports(inner, &text, &mut report);
    }
    problems
}

fn check_dead_text(source: &str, text: &Text, report: &mut impl FnMut(usize, String)) {
    let markers = [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("X", "XX")];
    for (number, line) in source.lines().enumerate() {
        for word in line.split(|c: char| !c.is_alphanumeric() && c != '_') {
            if markers.contains(&word) {
                report(number, format!("{word}: do it now or leave it out"));
            }
        }
    }
    for (number, line) in text.code.iter().enumerate() {
        for stub in ["todo!", "unimplemented!", "dbg!"] {
            if line.contains(stub) {
                report(number, format!("`{stub}` is a stub"));
            }
        }
    }
    for (number, comment) in text.comments.iter().enumerate() {
        // Code in documentation is an example; code in a plain comment is dead.
        let Some(comment) = comment.trim().strip_prefix("//").filter(|c| !c.starts_with(['/', '!'])) else { continue };
        let comment = comment.trim();
        let starts = ["let ", "let mut ", "fn ", "pub ", "use crate::", "use std::", "#[", "println!", "eprintln!"];
        let declares = starts.iter().any(|start| comment.starts_with(start))
            && [";", "{", "}", "]", ")", ","].iter().any(|end| comment.ends_with(end));
        let is_code = declares || comment.ends_with(");") || comment == "}" || comment.ends_with(") {");
        if is_code {
            report(number, format!("commented-out code: `{comment}`"));
        }
    }
}

fn check_unsafe(path: &str, text: &Text, report: &mut impl FnMut(usize, String)) {
    let allowed = UNSAFE_ALLOWED.iter().any(|folder| path.starts_with(folder));
    let tokens = &text.tokens;
    for (i, token) in tokens.iter().enumerate().filter(|(_, token)| token.text == "unsafe") {
        // `#[unsafe(no_mangle)]` and `unsafe fn` in a type promise, they prove nothing.
        let next = tokens.get(i + 1).map_or("", |t| t.text.as_str());
        if !allowed {
            report(token.line, format!("`unsafe` stands only in {}", UNSAFE_ALLOWED.join(", ")));
        } else if (next == "{" || next == "impl") && !text.has_safety_comment(token.line) {
            report(token.line, "an `unsafe` without a `SAFETY:` proof just above".into());
        }
    }
}

/// `inner` is the path below `src/`.
fn check_imports(inner: &str, text: &Text, report: &mut impl FnMut(usize, String)) {
    let folder = inner.split('/').next().unwrap();
    let Some((_, imports)) = LAYERS.iter().find(|(name, _)| *name == folder) else {
        report(0, format!("`src/{folder}` is not in the table of layers (tests/tidy.rs, docs/ARCHITECTURE.md)"));
        return;
    };
    for (line, path) in text.crate_paths(module_of(inner)) {
        let Some(target) = path.first().filter(|target| *target != folder) else { continue };
        if target == "*" || target == "self" {
            report(line, "names the crate's root: name the folder that is meant".into());
        } else if !imports.contains(&target.as_str()) {
            report(line, format!("`{folder}` imports `{target}`, which the table of layers does not allow"));
        } else if target != OPEN_LAYER && path.len() > 2 && path[1].starts_with(|c: char| c.is_lowercase()) {
            report(line, format!("`crate::{}` names an inner module of `{target}`", path.join("::")));
        } else if target != OPEN_LAYER && path.len() == 2 && is_module(target, &path[1]) {
            report(line, format!("`crate::{}` is an inner module of `{target}`", path.join("::")));
        }
    }
}

/// The module path of a file below `src/`.
fn module_of(inner: &str) -> Vec<String> {
    let mut path: Vec<String> = inner.trim_end_matches(".rs").split('/').map(String::from).collect();
    if path.last().is_some_and(|last| last == "mod") {
        path.pop();
    }
    path
}

fn is_module(folder: &str, name: &str) -> bool {
    let folder = tree().join("src").join(folder);
    folder.join(name).is_dir() || folder.join(format!("{name}.rs")).is_file()
}

fn tree() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.expect("a readable folder").path()).collect();
    paths.sort();
    for path in paths {
        if path.is_dir() && path.file_name().is_none_or(|name| name != "target") {
            collect(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
}

/// A source file taken apart: code without comments and literals, comments
/// without code, line by line, and the code's tokens.
struct Text {
    code: Vec<String>,
    comments: Vec<String>,
    tokens: Vec<Token>,
}

struct Token {
    line: usize,
    text: String,
}

impl Text {
    fn of(source: &str) -> Text {
        let (code, comments) = separate(source);
        let mut tokens = Vec::new();
        for (line, text) in code.iter().enumerate() {
            let mut rest = text.trim_start();
            while let Some(first) = rest.chars().next() {
                let len = if is_word(first) {
                    rest.find(|c| !is_word(c)).unwrap_or(rest.len())
                } else if rest.starts_with("::") {
                    2
                } else {
                    first.len_utf8()
                };
                tokens.push(Token { line, text: rest[..len].into() });
                rest = rest[len..].trim_start();
            }
        }
        Text { code, comments, tokens }
    }

    /// Whether the statement that reaches line `line` has a proof above it or
    /// beside it.
    fn has_safety_comment(&self, line: usize) -> bool {
        let ends_statement = |code: &str| [";", "{", "}"].iter().any(|end| code.trim_end().ends_with(end));
        let reach = (0..line).rev().take_while(|above| !ends_statement(&self.code[*above]));
        std::iter::once(line).chain(reach).any(|number| self.comments[number].contains("SAFETY:"))
    }

    /// Every path from the crate's root that the code names, without the root,
    /// braces resolved: through `crate::`, or through `super::` from `module`.
    fn crate_paths(&self, module: Vec<String>) -> Vec<(usize, Vec<String>)> {
        let mut paths = Vec::new();
        // One entry per open brace: whether it opened a module.
        let mut braces = Vec::new();
        let mut i = 0;
        while i < self.tokens.len() {
            match self.text(i) {
                "{" => braces.push(i >= 2 && self.text(i - 2) == "mod"),
                "}" => _ = braces.pop(),
                "crate" if self.text(i + 1) == "::" => {
                    i = self.read_tree(i + 2, &mut Vec::new(), &mut paths);
                    continue;
                }
                "super" => {
                    let depth = module.len() + braces.iter().filter(|is_module| **is_module).count();
                    let mut ups = 1;
                    while self.text(i + 1) == "::" && self.text(i + 2) == "super" {
                        (i, ups) = (i + 2, ups + 1);
                    }
                    if ups >= depth && self.text(i + 1) == "::" {
                        i = self.read_tree(i + 2, &mut Vec::new(), &mut paths);
                        continue;
                    }
                }
                _ => {}
            }
            i += 1;
        }
        paths
    }

    /// Reads `a::b::{c, d::*}` from token `i`; returns the token after it.
    fn read_tree(&self, mut i: usize, prefix: &mut Vec<String>, paths: &mut Vec<(usize, Vec<String>)>) -> usize {
        let (depth, line) = (prefix.len(), self.tokens.get(i).map_or(0, |t| t.line));
        loop {
            match self.text(i) {
                "{" => {
                    i += 1;
                    while !matches!(self.text(i), "}" | "") {
                        i = if self.text(i) == "," { i + 1 } else { self.read_tree(i, prefix, paths) };
                    }
                    i += 1;
                    break;
                }
                "*" => {
                    prefix.push("*".into());
                    paths.push((line, prefix.clone()));
                    i += 1;
                    break;
                }
                "self" if depth > 0 => {
                    paths.push((line, prefix.clone()));
                    i += 1;
                    break;
                }
                segment if segment.starts_with(is_word) => {
                    prefix.push(segment.into());
                    i += 1;
                    let goes_on =
                        self.text(i) == "::" && self.text(i + 1).starts_with(|c| is_word(c) || "{*".contains(c));
                    if !goes_on {
                        paths.push((line, prefix.clone()));
                        if self.text(i) == "as" {
                            i += 2;
                        }
                        break;
                    }
                    i += 1;
                }
                _ => {
                    i += 1;
                    break;
                }
            }
        }
        prefix.truncate(depth);
        i
    }

    fn text(&self, i: usize) -> &str {
        self.tokens.get(i).map_or("", |token| &token.text)
    }
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// The lines of a source file twice: without comments and literals, and with
/// nothing but comments.
fn separate(source: &str) -> (Vec<String>, Vec<String>) {
    enum State {
        Code,
        LineComment,
        BlockComment(usize),
        String,
        /// Ends with a quote and so many hashes.
        RawString(usize),
    }
    let chars: Vec<char> = source.chars().collect();
    let at = |i: usize| chars.get(i).copied().unwrap_or('\0');
    let (mut code, mut comments) = (vec![String::new()], vec![String::new()]);
    let mut state = State::Code;
    let mut i = 0;
    while i < chars.len() {
        let c = chars[i];
        if c == '\n' {
            code.push(String::new());
            comments.push(String::new());
            if matches!(state, State::LineComment) {
                state = State::Code;
            }
            i += 1;
            continue;
        }
        let (code, comment) = (code.last_mut().unwrap(), comments.last_mut().unwrap());
        let mut len = 1;
        match state {
            State::Code => match c {
                '/' if at(i + 1) == '/' => {
                    comment.push('/');
                    state = State::LineComment;
                }
                '/' if at(i + 1) == '*' => {
                    state = State::BlockComment(1);
                    len = 2;
                }
                '"' => state = State::String,
                'r' if !code.ends_with(is_word) || code.ends_with('b') || code.ends_with('c') => {
                    let hashes = (i + 1..chars.len()).take_while(|j| at(*j) == '#').count();
                    if at(i + 1 + hashes) == '"' {
                        state = State::RawString(hashes);
                        len = hashes + 2;
                    } else {
                        code.push(c);
                    }
                }
                '\'' if at(i + 1) == '\\' => {
                    len = 3 + (i + 3..chars.len()).take_while(|j| at(*j) != '\'').count() + 1;
                }
                '\'' if at(i + 2) == '\'' => len = 3,
                _ => code.push(c),
            },
            State::LineComment => comment.push(c),
            State::BlockComment(depth) => match (c, at(i + 1)) {
                ('*', '/') => {
                    state = if depth == 1 { State::Code } else { State::BlockComment(depth - 1) };
                    len = 2;
                }
                ('/', '*') => {
                    state = State::BlockComment(depth + 1);
                    len = 2;
                }
                _ => comment.push(c),
            },
            State::String => match c {
                // An escaped line end is still a line end.
                '\\' if at(i + 1) != '\n' => len = 2,
                '"' => state = State::Code,
                _ => {}
            },
            State::RawString(hashes) => {
                if c == '"' && (1..=hashes).all(|j| at(i + j) == '#') {
                    state = State::Code;
                    len = 1 + hashes;
                }
            }
        }
        i += len;
    }
    (code, comments)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What `check` finds in `body` if it stood at `path`.
    fn problems(path: &str, body: &str) -> Vec<String> {
        check(path, &format!("//! A module.\n{body}\n"))
    }

    fn assert_clean(path: &str, body: &str) {
        assert_eq!(problems(path, body), Vec::<String>::new(), "in {body}");
    }

    fn assert_refused(path: &str, body: &str, why: &str) {
        let found = problems(path, body);
        assert!(found.len() == 1 && found[0].contains(why), "expected one `{why}` for {body}, got {found:?}");
    }

    #[test]
    fn imports_follow_the_table() {
        assert_clean("src/fabric/shm.rs", "use crate::mem::{Lease, Region};\nuse crate::sys::Mapping;");
        assert_clean("src/fabric/shm.rs", "use super::Fabric;\nuse crate::fabric::shm::ring::Ring;");
        assert_clean("src/lib.rs", "pub use api::spawn;\npub use crate::node::Node;");
        assert_clean("src/bin/collimate/main.rs", "use collimate::boot::launch;");
        assert_refused("src/fabric/shm.rs", "use crate::wire::Message;", "`fabric` imports `wire`");
        assert_refused("src/fabric/shm.rs", "use crate::{base::Rank, wire::Message};", "`fabric` imports `wire`");
        assert_refused("src/fabric/shm.rs", "fn f() { crate::node::run() }", "`fabric` imports `node`");
        assert_refused("src/fabric/shm.rs", "use super::super::wire::Message;", "`fabric` imports `wire`");
        assert_refused("src/fabric/mod.rs", "use super::{base::Rank, wire::Message};", "`fabric` imports `wire`");
        assert_refused("src/mem/a.rs", "mod tests { use super::super::super::sys::Map; }", "`mem` imports `sys`");
        assert_clean("src/mem/a.rs", "mod tests { use super::super::Region; }");
        assert_refused("src/base/id.rs", "use crate::mem::Region;", "`base` imports `mem`");
        assert_refused("src/base/id.rs", "use crate::*;", "names the crate's root");
    }

    #[test]
    fn cores_do_not_import_each_other() {
        for core in ["store", "sched", "gcs", "graph"] {
            for other in ["store", "sched", "gcs", "graph"].iter().filter(|other| **other != core) {
                let body = format!("use crate::{other}::Thing;");
                assert_refused(&format!("src/{core}/mod.rs"), &body, &format!("`{core}` imports `{other}`"));
            }
            assert_refused(&format!("src/{core}/mod.rs"), "use crate::sys::Clock;", "imports `sys`");
        }
    }

    #[test]
    fn inner_modules_stay_inside() {
        assert_clean("src/node/mod.rs", "use crate::base::event::Event;\nuse crate::base::limits;");
        assert_clean("src/node/mod.rs", "use crate::store::Index;\nfn f() { crate::sys::now(); }");
        assert_clean("src/node/mod.rs", "use crate::store::Index::new as new_index;");
        assert_refused("src/node/mod.rs", "use crate::store::inner::Index;", "inner module");
        assert_refused("src/node/mod.rs", "use crate::{store::{Pin, inner::*}};", "inner module");
        assert_refused("src/node/mod.rs", "use crate::mem::region;", "is an inner module");
        assert_refused("src/node/mod.rs", "use crate::mem::region::{self};", "is an inner module");
        assert_refused("src/node/mod.rs", "macro_rules! m { () => { $crate::mem::region::Region } }", "inner module");
    }

    #[test]
    fn a_folder_outside_the_table_is_refused() {
        assert_refused("src/utils/mod.rs", "", "not in the table");
        assert_refused("src/helpers.rs", "", "not in the table");
    }

    #[test]
    fn unsafe_has_its_places_and_its_proofs() {
        let proven = "// SAFETY: the pointer is\n// valid.\nunsafe { f() };";
        assert_clean("src/sys/a.rs", proven);
        assert_clean("src/sys/a.rs", "// SAFETY: valid.\nlet x =\n    unsafe { f() };");
        assert_clean("src/mem/a.rs", "// SAFETY: plain bytes.\nunsafe impl Send for A {}");
        assert_clean("src/mem/a.rs", "pub unsafe fn f();");
        assert_clean("src/node/a.rs", "/// unsafe { }\nlet text = \"unsafe { }\"; let raw = r#\"unsafe \" { }\"#;");
        assert_refused("src/node/a.rs", proven, "`unsafe` stands only in");
        assert_refused("tests/a.rs", proven, "`unsafe` stands only in");
        assert_refused("src/wire/frame.rs", proven, "`unsafe` stands only in");
        assert_refused("src/sys/a.rs", "unsafe { f() };", "SAFETY:");
        assert_refused("src/sys/a.rs", "unsafe impl Send for A {}", "SAFETY:");
        assert_refused("src/sys/a.rs", &format!("{proven}\nunsafe {{ g() }};"), "SAFETY:");
        assert_refused("src/sys/a.rs", "let s = \"SAFETY:\";\nunsafe { g() };", "SAFETY:");
        assert_clean("src/wire/generated/control.rs", "fn f() { unsafe { g() } }");
    }

    #[test]
    fn dead_text_is_refused() {
        for word in [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("X", "XX")] {
            assert_refused("src/base/a.rs", &format!("// {word}: later"), word);
        }
        assert_clean("src/base/a.rs", concat!("let template = \"/tmp/a-XX", "XXXX\";"));
        assert_refused("src/base/a.rs", concat!("fn f() { to", "do!() }"), "stub");
        for line in ["let x = 3;", "fn f() {", "println!(\"{x}\");", "use crate::base::Rank;", "f(a, b);", "}"] {
            assert_refused("src/base/a.rs", &format!("// {line}"), "commented-out code");
        }
        assert_clean("src/base/a.rs", "// Let the others go first; see the essay above.\n/// let x = 3;\nlet y = 4;");
        assert_clean("src/base/a.rs", "let url = \"http://let x = 3;\"; let c = '\"'; let d = '\\''; // let us see");
    }

    #[test]
    fn dependencies_and_reasons_match() {
        let manifest = "[package]\nname = \"x\"\n[dependencies]\nserde = \"1\"\nours = { path = \"ours\" }\n\
                        [target.'cfg(loom)'.dependencies]\nloom = \"0.7\"\n[features]\nfast = []\n";
        let manifests = [manifest.to_string()];
        assert!(check_dependencies(&manifests, "| `serde`, `loom` | why |").is_empty());
        assert_eq!(
            check_dependencies(&manifests, "| Crate | Why |\n| `serde` | not `json` |\n| `mio` | why |"),
            ["`loom` is used and has no reason", "`mio` is explained and not used"]
        );
    }

    #[test]
    fn symbols_are_found_where_they_are_declared() {
        assert_eq!(symbols_in("`a::b` and `c` call `d::e::f` or `g::h(1)`"), ["a::b", "d::e::f"]);
        let source = "enum Command { Feed { peer: u8 } }\nstruct Node;\nimpl Node { fn push() { gone(); } }";
        let place = Place { names: vec!["src".into(), "node".into(), "rank".into()], text: Text::of(source) };
        for there in ["Node::push", "rank::Node", "node::Command", "Command::Feed", "node::rank::Node::push"] {
            assert!(place.declares(there), "{there}");
        }
        for absent in ["Node::gone", "Node::pop", "worker::Node", "Other::push", "rank::gone"] {
            assert!(!place.declares(absent), "{absent}");
        }
    }

    #[test]
    fn files_are_short_and_say_what_they_are_for() {
        let missing = check("src/base/a.rs", "pub fn f() {}\n");
        assert!(missing.len() == 1 && missing[0].contains("starts with a `//!`"), "{missing:?}");
        assert_refused("src/base/a.rs", &"\n".repeat(FILE_LINES_MAX), "split it by role");
        assert_clean("src/base/a.rs", &"\n".repeat(FILE_LINES_MAX - 2));
    }
}
