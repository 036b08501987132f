//! The house rules that no compiler holds: which crate may know which, what every file must and must not contain.
//!
//! Owns: rules over the repository's own text, each with an example that breaks it. Never: formatting and lints
//! (rustfmt and clippy have those).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Lines a source file may have before its tests begin.
const FILE_LINES_MAX: usize = 800;

/// Files that may be longer, each with its reason. Keep this empty if you can.
const LONG_FILES: &[(&str, &str)] = &[];

/// What each crate may depend on among ours; `client`, `cli` and the rest may start a broker in their tests only.
const OURS: &[(&str, &[&str])] = &[
    ("proto", &[]),
    ("storage", &[]),
    ("broker", &["proto", "storage"]),
    ("client", &["derive", "proto"]),
    ("client/derive", &[]),
    // For users' tests: the only one beside the benchmarks that brings brokers and clients together.
    ("client/testing", &["broker", "client", "storage"]),
    ("cli", &["client"]),
    ("examples", &["client"]),
    ("examples/shop", &["client"]),
    // The micro-benchmarks measure the codec and the log themselves.
    ("bench", &["client", "proto", "storage"]),
    // A workspace of its own, because it needs a nightly compiler.
    ("fuzz", &["proto", "storage"]),
];

/// Crates from outside that a crate of ours must not know.
const FOREIGN: &[(&str, &[&str])] = &[
    ("storage", &["tonic", "prost", "raft", "tokio", "protobuf", "axum"]),
    ("proto", &["raft", "tokio", "protobuf", "axum"]),
    ("client", &["raft", "protobuf", "axum"]),
    ("cli", &["tonic", "prost", "raft", "protobuf"]),
    ("bench", &["tonic", "prost", "raft", "protobuf"]),
    ("examples/shop", &["tonic", "prost", "raft", "protobuf"]),
    ("examples", &["tonic", "prost", "raft", "protobuf"]),
];

/// A text file of the repository: path from the root, with slashes.
struct File {
    path: String,
    text: String,
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("examples/ lies in the root").to_owned()
}

/// Every file with one of these endings, but for build output and hidden folders other than `.ci`.
fn files(endings: &[&str]) -> Vec<File> {
    let root = root();
    let mut found = Vec::new();
    let mut folders = vec![root.clone()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).expect("the repository can be read") {
            let path = entry.expect("the repository can be read").path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            if path.is_dir() {
                if name != "target" && name != "data" && !name.starts_with('.') {
                    folders.push(path);
                }
            } else if endings.iter().any(|ending| name.ends_with(ending)) {
                let text = std::fs::read_to_string(&path).expect("source files are UTF-8");
                let path = path.strip_prefix(&root).expect("below the root");
                found.push(File { path: path.to_string_lossy().into_owned(), text });
            }
        }
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    found
}

/// The part of a source file before its test module.
fn before_tests(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut lines = text.lines().enumerate().peekable();
    std::iter::from_fn(move || {
        let (number, line) = lines.next()?;
        let opens_tests = line == "#[cfg(test)]"
            && lines
                .peek()
                .is_some_and(|(_, next)| next.starts_with("mod ") || next.starts_with("#["));
        if opens_tests && !lines.peek().is_some_and(|(_, next)| next.ends_with(';')) {
            return None;
        }
        Some((number + 1, line))
    })
}

/// The code of a line: without its comment, and empty within a line that is only a comment or text of one.
fn code(line: &str) -> &str {
    line.split("//").next().unwrap_or_default()
}

/// Whether `word` stands in `line` with nothing that could be part of an identifier around it.
fn has_word(line: &str, word: &str) -> bool {
    let part = |c: char| c.is_alphanumeric() || c == '_';
    line.match_indices(word).any(|(at, _)| {
        !line[..at].chars().next_back().is_some_and(part)
            && !line[at + word.len()..].chars().next().is_some_and(part)
    })
}

/// Whether the line names the crate `name`: a path that begins with it, or a `use` or `extern crate` of it.
fn names_crate(line: &str, name: &str) -> bool {
    let code = code(line);
    code.match_indices(&format!("{name}::")).any(|(at, _)| {
        let before = &code[..at];
        let part = |c: char| c.is_alphanumeric() || c == '_' || c == ':';
        !before.chars().next_back().is_some_and(part)
    }) || code.trim() == format!("use {name};")
}

fn is_test_file(path: &str) -> bool {
    path.contains("/tests/") || path.ends_with("tests.rs") || path.contains("/benches/")
}

fn opening_comment(file: &File) -> Option<String> {
    (!file.text.starts_with("//!"))
        .then(|| format!("{}: does not open with //! (what it is, owns, never does)", file.path))
}

fn leftovers(file: &File) -> Vec<String> {
    // Spelled in pieces, so that this file does not break its own rule.
    let words = [concat!("to", "do!"), concat!("db", "g!"), concat!("unimple", "mented!")];
    let mut problems = Vec::new();
    for (number, line) in file.text.lines().enumerate() {
        for word in words {
            let name = word.trim_end_matches('!');
            if code(line).contains(word) && has_word(code(line), name) {
                problems.push(format!("{}:{}: {word} left behind", file.path, number + 1));
            }
        }
    }
    problems
}

/// The mapping, and the buffer that keeps payloads whole (ADR 15).
const UNSAFE_FILES: [&str; 2] = ["storage/src/mapping.rs", "proto/src/grpc.rs"];

fn unsafe_elsewhere(file: &File) -> Vec<String> {
    if UNSAFE_FILES.contains(&file.path.as_str()) {
        return Vec::new();
    }
    let word = concat!("un", "safe");
    let mut problems = Vec::new();
    for (number, line) in file.text.lines().enumerate() {
        let code = code(line);
        let opens = ["{", "fn", "impl", "trait", "extern"]
            .iter()
            .any(|next| code.contains(&format!("{word} {next}")) && has_word(code, word));
        if opens || code.contains(&format!("allow({word}_code")) {
            let at = number + 1;
            problems.push(format!("{}:{at}: {word} outside of {UNSAFE_FILES:?}", file.path));
        }
    }
    problems
}

fn too_long(file: &File) -> Option<String> {
    if is_test_file(&file.path) || LONG_FILES.iter().any(|(path, _)| *path == file.path) {
        return None;
    }
    let lines = before_tests(&file.text).count();
    (lines > FILE_LINES_MAX).then(|| {
        format!("{}: {lines} lines before its tests, {FILE_LINES_MAX} are allowed", file.path)
    })
}

/// Inside the broker: `rpc -> groups -> cluster -> replica -> storage`, and who may name tonic, axum and the raft crate.
fn broker_layers(file: &File) -> Vec<String> {
    let Some(path) = file.path.strip_prefix("broker/src/") else { return Vec::new() };
    let replica = path.starts_with("replica/");
    let metadata_group = path.starts_with("cluster/metadata");
    let mut problems = Vec::new();
    for (number, line) in before_tests(&file.text) {
        let mut forbid = |broken: bool, why: &str| {
            if broken {
                problems.push(format!("{}:{number}: {why}", file.path));
            }
        };
        let names = |name| names_crate(line, name);
        let within = |module: &str| code(line).contains(&format!("crate::{module}"));
        forbid(names("tonic") && !path.starts_with("rpc/"), "only rpc/ names tonic");
        forbid(names("axum") && path != "http.rs", "only http.rs names axum");
        let raft = names("raft") || names("protobuf");
        forbid(
            raft && !replica && !metadata_group,
            "only replica/ and the metadata group name raft",
        );
        let below = replica || path.starts_with("cluster/");
        forbid(below && (within("rpc") || within("http")), "cluster and replica never name rpc");
        forbid(replica && within("cluster"), "replica never names cluster");
        let groups = path.starts_with("groups/");
        forbid(below && within("groups"), "cluster and replica never name groups");
        forbid(groups && (within("rpc") || within("http")), "groups never names rpc");
        let engine = path.starts_with("groups/engine/");
        let outside = names("tokio") || within("env") || within("cluster") || within("replica");
        forbid(engine && outside, "the groups' engine knows no runtime, clock or node");
    }
    problems
}

fn storage_words(file: &File) -> Vec<String> {
    if !file.path.starts_with("storage/src/") {
        return Vec::new();
    }
    before_tests(&file.text)
        .filter(|(_, line)| ["tokio", "tonic", "raft"].iter().any(|name| names_crate(line, name)))
        .map(|(number, _)| {
            format!("{}:{number}: storage names no runtime, tonic or raft", file.path)
        })
        .collect()
}

/// Which crates a manifest depends on outside its tests, unless a feature asks for more: the drivers of other brokers.
fn dependencies(manifest: &str) -> Vec<String> {
    let manifest: toml::Table = manifest.parse().expect("a manifest is TOML");
    ["dependencies", "build-dependencies"]
        .iter()
        .filter_map(|section| manifest.get(*section).and_then(toml::Value::as_table))
        .flatten()
        .filter(|(_, how)| how.get("optional").and_then(toml::Value::as_bool) != Some(true))
        .map(|(name, _)| name.clone())
        .collect()
}

fn crate_directions(name: &str, manifest: &str) -> Vec<String> {
    let table = |rows: &[(&str, &[&'static str])]| -> Option<Vec<&'static str>> {
        rows.iter().find(|(row, _)| *row == name).map(|(_, list)| list.to_vec())
    };
    let Some(allowed) = table(OURS) else {
        return vec![format!("{name}: a crate this test does not know; say what it may depend on")];
    };
    let foreign = table(FOREIGN).unwrap_or_default();
    let mut problems = Vec::new();
    for dependency in dependencies(manifest) {
        match dependency.strip_prefix("highwater-") {
            Some(ours) if !allowed.contains(&ours) => {
                problems.push(format!("{name} must not depend on {dependency}"));
            }
            None if foreign.contains(&dependency.as_str()) => {
                problems.push(format!("{name} must not depend on {dependency}"));
            }
            _ => {}
        }
    }
    problems
}

/// Documents under `docs/` that no other document and no source file mentions. Decisions are found by their number, so a link
/// to their folder is enough for them.
fn unlinked(documents: &[File], mentions: &[File]) -> Vec<String> {
    documents
        .iter()
        .filter(|document| document.path.starts_with("docs/"))
        .filter(|document| {
            let file_name = document.path.rsplit('/').next().unwrap_or_default();
            let is_decision = document.path.starts_with("docs/adr/");
            let name = if is_decision { "docs/adr" } else { file_name };
            !mentions.iter().any(|file| file.path != document.path && file.text.contains(name))
        })
        .map(|document| format!("{}: nothing links to it", document.path))
        .collect()
}

fn none(problems: Vec<String>) {
    assert!(problems.is_empty(), "\n{}\n", problems.join("\n"));
}

#[test]
fn every_source_file_says_what_it_is() {
    none(files(&[".rs"]).iter().filter_map(opening_comment).collect());
}

#[test]
fn nothing_unfinished_is_left_behind() {
    none(files(&[".rs"]).iter().flat_map(leftovers).collect());
}

#[test]
fn unsafe_code_lives_in_two_files() {
    none(files(&[".rs"]).iter().flat_map(unsafe_elsewhere).collect());
}

#[test]
fn source_files_fit_a_head() {
    let files = files(&[".rs"]);
    none(files.iter().filter_map(too_long).collect());
    for (path, _) in LONG_FILES {
        assert!(
            files.iter().any(|file| file.path == *path),
            "{path} is excused but does not exist"
        );
    }
}

#[test]
fn the_brokers_layers_look_down_only() {
    none(files(&[".rs"]).iter().flat_map(broker_layers).collect());
}

#[test]
fn storage_knows_no_runtime_and_no_network() {
    none(files(&[".rs"]).iter().flat_map(storage_words).collect());
}

#[test]
fn crates_depend_in_one_direction() {
    let manifests: BTreeMap<String, String> = files(&["Cargo.toml"])
        .into_iter()
        .filter_map(|file| Some((file.path.strip_suffix("/Cargo.toml")?.to_owned(), file.text)))
        .collect();
    assert!(manifests.len() >= OURS.len(), "found only {:?}", manifests.keys());
    none(manifests.iter().flat_map(|(name, text)| crate_directions(name, text)).collect());
}

#[test]
fn every_document_is_linked() {
    none(unlinked(&files(&[".md"]), &files(&[".md", ".rs", ".toml"])));
}

/// Each rule must be able to fail.
mod each_rule_finds_its_offender {
    use super::*;

    fn file(path: &str, text: &str) -> File {
        File { path: path.to_owned(), text: text.to_owned() }
    }

    #[test]
    fn a_file_without_an_opening_comment() {
        assert!(opening_comment(&file("a.rs", "use std::fmt;\n")).is_some());
        assert!(opening_comment(&file("a.rs", "//! A.\n")).is_none());
    }

    #[test]
    fn a_leftover() {
        let text = concat!("fn a() {\n    to", "do!()\n}\n");
        assert_eq!(leftovers(&file("a.rs", text)).len(), 1);
        assert!(leftovers(&file("a.rs", "// nothing to do! here\n")).is_empty());
    }

    #[test]
    fn a_block_that_is_not_safe() {
        let text = concat!("    un", "safe { read() }\n");
        assert_eq!(unsafe_elsewhere(&file("broker/src/a.rs", text)).len(), 1);
        assert!(unsafe_elsewhere(&file("storage/src/mapping.rs", text)).is_empty());
        let lint = concat!("#![deny(un", "safe_code)]\n");
        assert!(unsafe_elsewhere(&file("broker/src/a.rs", lint)).is_empty());
    }

    #[test]
    fn a_long_file() {
        let body = "//! A.\n".repeat(FILE_LINES_MAX + 1);
        assert!(too_long(&file("a/src/a.rs", &body)).is_some());
        assert!(too_long(&file("a/src/a/tests.rs", &body)).is_none());
        let tests = format!("//! A.\n#[cfg(test)]\nmod tests {{\n{}}}\n", "\n".repeat(2000));
        assert!(too_long(&file("a/src/a.rs", &tests)).is_none());
    }

    #[test]
    fn a_layer_that_looks_up() {
        let broken = [
            ("broker/src/cluster/node.rs", "use tonic::Status;"),
            ("broker/src/replica/core.rs", "use crate::cluster::NodeId;"),
            ("broker/src/cluster/node.rs", "use crate::rpc::status;"),
            ("broker/src/cluster/node.rs", "use crate::groups::Groups;"),
            ("broker/src/groups/shard.rs", "use crate::rpc::status;"),
            ("broker/src/groups/engine/mod.rs", "use tokio::sync::mpsc;"),
            ("broker/src/groups/engine/mod.rs", "use crate::env::Clock;"),
            ("broker/src/rpc/mod.rs", "use raft::RawNode;"),
            ("broker/src/rpc/mod.rs", "let router = axum::Router::new();"),
        ];
        for (path, text) in broken {
            assert_eq!(broker_layers(&file(path, text)).len(), 1, "{path}: {text}");
        }
        let fine = [
            ("broker/src/replica/core.rs", "use raft::RawNode;"),
            ("broker/src/cluster/metadata.rs", "use raft::prelude::Entry;"),
            ("broker/src/rpc/mod.rs", "use crate::cluster::NodeId;"),
            ("broker/src/cluster/node.rs", "use highwater_proto::internal::raft::Message;"),
            ("broker/src/cluster/node.rs", "// tonic::Status would be wrong here"),
        ];
        for (path, text) in fine {
            assert!(broker_layers(&file(path, text)).is_empty(), "{path}: {text}");
        }
    }

    #[test]
    fn a_log_that_knows_tokio() {
        assert_eq!(storage_words(&file("storage/src/log.rs", "use tokio::fs;")).len(), 1);
        assert!(storage_words(&file("storage/src/log.rs", "use std::fs;")).is_empty());
    }

    #[test]
    fn a_crate_that_depends_upwards() {
        let manifest = "[dependencies]\nhighwater-broker.workspace = true\n";
        assert_eq!(crate_directions("storage", manifest).len(), 1);
        assert_eq!(crate_directions("storage", "[dependencies]\ntokio = \"1\"\n").len(), 1);
        assert!(crate_directions("client", "[dependencies]\nhighwater-proto = \"1\"\n").is_empty());
        assert!(
            crate_directions("client", "[dev-dependencies]\nhighwater-broker = \"1\"\n").is_empty()
        );
        assert_eq!(crate_directions("utils", "").len(), 1);
    }

    #[test]
    fn a_document_that_nothing_links_to() {
        let documents = [file("docs/a.md", "see b.md"), file("docs/b.md", "")];
        assert_eq!(unlinked(&documents, &documents), ["docs/a.md: nothing links to it"]);
        let decision = [file("docs/adr/0001-why.md", "")];
        assert_eq!(unlinked(&decision, &documents).len(), 1);
        assert!(unlinked(&decision, &[file("README.md", "see docs/adr")]).is_empty());
    }
}
