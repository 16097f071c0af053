//! Which room may use which, and who owns each heavy dependency, read from the source: no review has to look for it.
//!
//! Reads paths (`use` trees and paths in code) outside comments, texts and `#[cfg(test)]`. Knows nothing of types: an
//! arrow hidden behind a re-export is not seen.

use std::fs;
use std::path::{Path, PathBuf};

/// The rooms by layer. A room uses those of lower layers only, and the top layer uses all.
const LAYERS: [&[&str]; 4] = [
    &["market", "failpoint"],
    &["chain", "store", "content", "engine", "prover", "p2p", "http", "page", "lock"],
    &["tasks", "renter", "audit", "books", "export", "devnet"],
    &["config", "node", "cli", "lib", "main"],
];

/// What only its owners may name.
const OWNED: [(&str, &[&str]); 15] = [
    ("sqlx", &["store"]),
    ("parquet", &["export"]),
    ("csv", &["export"]),
    ("libp2p", &["p2p"]),
    ("libp2p_stream", &["p2p"]),
    ("llama_cpp_2", &["engine"]),
    ("axum", &["http"]),
    ("prometheus_client", &["http"]),
    ("alloy::providers", &["chain"]),
    ("alloy::signers", &["chain"]),
    ("alloy::rpc", &["chain"]),
    ("alloy::network", &["chain"]),
    ("alloy::consensus", &["chain"]),
    ("alloy::contract", &["chain"]),
    // EZKL, a local chain, the operator's pager, and the programs of the demonstration.
    ("tokio::process", &["prover", "devnet", "page", "cli"]),
];

/// What has a side effect, a clock or chance, and is therefore not for `market`.
const IMPURE: [&str; 11] = [
    "tokio",
    "rand",
    "reqwest",
    "std::time::SystemTime",
    "std::time::Instant",
    "std::fs",
    "std::net",
    "std::env",
    "std::process",
    "std::thread",
    "std::io",
];

#[test]
fn no_arrow_points_up_and_every_dependency_has_one_owner() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    collect(&root, &mut files);
    assert!(files.len() > 20, "only {} source files found under {}", files.len(), root.display());
    let mut wrong = Vec::new();
    for file in files {
        let module = module_of(file.strip_prefix(&root).expect("found under it"));
        if module.last().is_some_and(|name| name == "tests") {
            continue;
        }
        let source = fs::read_to_string(&file).expect("a source file is text");
        wrong.extend(violations(&module, &source));
    }
    assert!(wrong.is_empty(), "the layers of the crate (see LAYERS, OWNED and IMPURE here):\n{}", wrong.join("\n"));
}

#[test]
fn a_violation_is_found_however_it_is_written() {
    let told = |module: &str, source: &str| {
        let module: Vec<String> = module.split("::").map(str::to_owned).collect();
        violations(&module, source).join("\n")
    };
    for (module, source, says) in [
        ("market::job", "use crate::store::Store;", "market::job uses store: an arrow up"),
        ("market", "fn f() { crate::chain::head() }", "market uses chain: an arrow up"),
        ("store::tx", "use crate::{market::{job, event}, chain::Chain};", "store::tx uses chain: a room beside it"),
        ("store", "use super::p2p::Peer;", "store uses p2p: a room beside it"),
        ("store::tx", "use super::super::http::Server;", "store::tx uses http: a room beside it"),
        ("http", "use crate::tasks;", "http uses tasks: an arrow up"),
        ("audit", "use crate::renter::Renter;", "audit uses renter: a room beside it"),
        ("tasks::worker", "use super::{Pass, indexer};", "tasks::worker uses tasks::indexer: a task beside it"),
        ("tasks::worker", "use crate::tasks::indexer::PART;", "tasks::worker uses tasks::indexer: a task beside it"),
        ("tasks::worker", "fn f() { crate::node::stop() }", "tasks::worker uses node: an arrow up"),
        ("helpers", "", "helpers: the room has no layer"),
        ("chain", "use crate::helpers::x;", "chain uses helpers: the room has no layer"),
        ("tasks::worker", "use sqlx as db;", "tasks::worker names sqlx, which is for store"),
        ("cli", "fn f() { ::sqlx::query(\"\"); }", "cli names sqlx, which is for store"),
        ("config", "use libp2p::Multiaddr;", "config names libp2p, which is for p2p"),
        ("renter", "use alloy::{primitives::U256, signers::local::X};", "renter names alloy::signers"),
        ("renter", "use alloy::rpc;", "renter names alloy::rpc"),
        ("store", "use alloy::*;", "store names alloy::providers"),
        ("engine", "type C = tokio::process::Command;", "engine names tokio::process, which is for prover or"),
        ("market::job", "use std::{fmt, time::{Duration, Instant}};", "market::job names std::time::Instant"),
        ("market::job", "use std::time;", "market::job names std::time::SystemTime"),
        ("market", "fn f() -> u8 { rand::random() }", "market names rand: market is pure"),
        ("market", "#[cfg(test)] mod t { use tokio::f; }\nuse tokio::g;", "market names tokio: market is pure"),
        ("market", "#[cfg(test)]\nuse x::{a, b};\nuse std::fs::read;", "market names std::fs"),
        ("market", "const C: char = '\"'; use tokio::x; // \"", "market names tokio"),
        ("market", "fn f<'a>(x: &'a u8) { let y = r#\"\"\"#; std::env::var(x) }", "market names std::env"),
    ] {
        let found = told(module, source);
        assert!(found.contains(says), "in {module}: {source}\nexpected {says:?}, found {found:?}");
    }
}

#[test]
fn what_is_allowed_is_not_reported() {
    for (module, source) in [
        ("store::tx", "use super::{Store, hash}; use crate::market::types::JobId; use sqlx::Row;"),
        ("tasks::worker", "use super::{Pass, take}; use crate::{chain::Chain, store::Store, http};"),
        ("tasks", "pub mod worker; fn f() { worker::run() }"),
        ("cli::run", "use crate::{node::Node, tasks::indexer::Indexer, audit}; use std::process::ExitCode;"),
        ("config", "use crate::p2p::Multiaddr; use crate::config::Part;"),
        ("market", "use alloy::primitives::U256; use alloy::sol_types::SolValue; use std::time::Duration;"),
        (
            "market",
            "//! [`crate::store`]\n/* crate::chain::x /* tokio::y */ */ const T: &str = \"tokio::fs \\\" rand::x\";",
        ),
        ("market", "#[cfg(test)]\nmod tests { use tokio::x; fn f() { let b = '}'; crate::store::f() } }"),
        ("market", "#[cfg(test)]\nfn f(x: [u8; 3]) { tokio::x() }"),
        ("market", "#[cfg(test)]\n#[path = \"x\"]\nmod tests;\nfn f() { let rand = 1; let tokio = rand; }"),
        ("chain", "use crate::market::event::{self as e, RawLog}; macro_rules! m { () => { $crate::market::x } }"),
    ] {
        let module: Vec<String> = module.split("::").map(str::to_owned).collect();
        assert_eq!(violations(&module, source), Vec::<String>::new(), "{source}");
    }
}

/// Adds the Rust files under `folder`.
fn collect(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("a folder of the source") {
        let path = entry.expect("a folder of the source").path();
        if path.is_dir() {
            collect(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
}

/// Returns the module a file under `src` holds: `store::tx` for `store/tx.rs`, `store` for `store/mod.rs`.
fn module_of(file: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        file.with_extension("").iter().map(|name| name.to_str().expect("names are ASCII").to_owned()).collect();
    if names.last().is_some_and(|name| name == "mod") {
        names.pop();
    }
    names
}

fn layer(room: &str) -> Option<usize> {
    LAYERS.iter().position(|rooms| rooms.contains(&room))
}

/// Returns what `source`, the text of `module`, must not name.
fn violations(module: &[String], source: &str) -> Vec<String> {
    let (here, room) = (module.join("::"), module[0].as_str());
    let Some(own) = layer(room) else { return vec![format!("{here}: the room has no layer")] };
    let code = without_tests(&without_texts(source));
    let mut wrong = Vec::new();
    for path in paths(&tokens(&code)) {
        for (name, owners) in OWNED {
            if reaches(&path, name) && !owners.contains(&room) {
                wrong.push(format!("{here} names {name}, which is for {}", owners.join(" or ")));
            }
        }
        for name in IMPURE.iter().filter(|name| room == "market" && reaches(&path, name)) {
            wrong.push(format!("{here} names {name}: market is pure"));
        }
        let Some(target) = absolute(module, &path) else { continue };
        let Some(other) = target.first().filter(|name| name.starts_with(|c: char| c.is_ascii_lowercase())) else {
            continue;
        };
        let sibling = |name: &String| module.len() > 1 && *name != module[1] && name.starts_with(char::is_lowercase);
        match layer(other) {
            None => wrong.push(format!("{here} uses {other}: the room has no layer")),
            Some(_) if own == LAYERS.len() - 1 => {}
            Some(_) if other == room && room == "tasks" => {
                if let Some(task) = target.get(1).filter(|name| sibling(name) && task_exists(name)) {
                    wrong.push(format!("{here} uses tasks::{task}: a task beside it"));
                }
            }
            Some(_) if other == room => {}
            Some(layer) if layer > own => wrong.push(format!("{here} uses {other}: an arrow up")),
            Some(layer) if layer == own => wrong.push(format!("{here} uses {other}: a room beside it")),
            Some(_) => {}
        }
    }
    wrong.dedup();
    wrong
}

/// Tells a task's module from a function that the tasks share.
fn task_exists(name: &str) -> bool {
    let tasks = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/tasks");
    tasks.join(name).with_extension("rs").exists() || tasks.join(name).is_dir()
}

/// Whether a path names `what`, something in it, or the module it is in as a whole.
fn reaches(path: &[String], what: &str) -> bool {
    let what: Vec<&str> = what.split("::").collect();
    let (whole, inner) = (&what[..what.len() - 1], path.strip_suffix(&["*".to_owned()]).unwrap_or(path));
    let in_it = path.len() >= what.len() && path[..what.len()].iter().eq(&what);
    in_it || (!whole.is_empty() && inner.iter().eq(whole) && (inner.len() > 1 || inner.len() < path.len()))
}

/// Returns where a path that starts with `crate`, `super` or `fabstir` leads, from the crate's root.
fn absolute(module: &[String], path: &[String]) -> Option<Vec<String>> {
    match path.first()?.as_str() {
        "crate" | "fabstir" => Some(path[1..].to_vec()),
        "super" => {
            let ups = path.iter().take_while(|name| *name == "super").count();
            let base = module.len().checked_sub(ups)?;
            Some([&module[..base], &path[ups..]].concat())
        }
        _ => None,
    }
}

/// Blanks comments and the insides of texts and character literals.
fn without_texts(source: &str) -> String {
    let chars: Vec<char> = source.chars().collect();
    let starts = |at: usize, text: &str| text.chars().enumerate().all(|(i, c)| chars.get(at + i) == Some(&c));
    let find = |from: usize, text: &str| (from..chars.len()).find(|at| starts(*at, text)).unwrap_or(chars.len());
    let mut code = String::new();
    let mut at = 0;
    while at < chars.len() {
        let hashes = (at + 1..chars.len()).take_while(|i| chars[*i] == '#').count();
        let after_name = at > 0 && (chars[at - 1].is_alphanumeric() && chars[at - 1] != 'b' || chars[at - 1] == '_');
        let from = at;
        at = if starts(at, "//") {
            find(at, "\n")
        } else if starts(at, "/*") {
            let (mut depth, mut end) = (1, at + 2);
            while depth > 0 && end < chars.len() {
                let step = if starts(end, "/*") {
                    (1, 2)
                } else if starts(end, "*/") {
                    (-1, 2)
                } else {
                    (0, 1)
                };
                (depth, end) = (depth + step.0, end + step.1);
            }
            end
        } else if chars[at] == 'r' && !after_name && chars.get(at + 1 + hashes) == Some(&'"') {
            let close = format!("\"{}", "#".repeat(hashes));
            find(at + 2 + hashes, &close) + close.len()
        } else if chars[at] == '"' {
            let mut end = at + 1;
            while end < chars.len() && chars[end] != '"' {
                end += if chars[end] == '\\' { 2 } else { 1 };
            }
            end + 1
        } else if chars[at] == '\'' && (chars.get(at + 1) == Some(&'\\') || chars.get(at + 2) == Some(&'\'')) {
            find(at + if chars.get(at + 1) == Some(&'\\') { 3 } else { 2 }, "'") + 1
        } else {
            code.push(chars[at]);
            at + 1
        };
        if at > from + 1 {
            code.push(' ');
        }
    }
    code
}

/// Leaves out what stands under `#[cfg(test)]`: up to the next `;`, or the block that opens before it.
fn without_tests(code: &str) -> String {
    const MARK: &str = "#[cfg(test)]";
    let mut kept = String::new();
    let mut rest = code;
    while let Some(place) = rest.find(MARK) {
        kept.push_str(&rest[..place]);
        rest = &rest[place + MARK.len()..];
        let is_use = rest.trim_start().starts_with("use ");
        let mut depth = 0;
        let end = rest.char_indices().find(|(_, c)| {
            depth += match c {
                '{' | '(' | '[' => 1,
                '}' | ')' | ']' => -1,
                _ => 0,
            };
            depth == 0 && (*c == ';' || *c == '}' && !is_use)
        });
        rest = end.map_or("", |(place, _)| &rest[place + 1..]);
    }
    kept + rest
}

/// Splits code into names, `::` and single characters.
fn tokens(code: &str) -> Vec<&str> {
    let mut tokens = Vec::new();
    let mut rest = code.trim_start();
    while let Some(first) = rest.chars().next() {
        let is_name = |c: char| c.is_alphanumeric() || c == '_';
        let length = if is_name(first) {
            rest.find(|c| !is_name(c)).unwrap_or(rest.len())
        } else if rest.starts_with("::") {
            2
        } else {
            first.len_utf8()
        };
        tokens.push(&rest[..length]);
        rest = rest[length..].trim_start();
    }
    tokens
}

fn is_name(token: &str) -> bool {
    token.starts_with(|c: char| c.is_alphanumeric() || c == '_')
}

/// Returns every path of two or more names, and what a `use` names alone; trees in braces are spread out.
fn paths(tokens: &[&str]) -> Vec<Vec<String>> {
    let mut found = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        if !is_name(tokens[at]) {
            at += 1;
            continue;
        }
        let used = at > 0 && tokens[at - 1] == "use";
        let mut here = Vec::new();
        at = path(tokens, at, &[], &mut here);
        found.extend(here.into_iter().filter(|path| path.len() > 1 || used));
    }
    found
}

/// Reads the path, or tree of paths, at `at`; returns the place after it.
fn path(tokens: &[&str], mut at: usize, prefix: &[String], found: &mut Vec<Vec<String>>) -> usize {
    let mut path = prefix.to_vec();
    loop {
        path.push(tokens[at].to_owned());
        at += 1;
        if tokens.get(at) != Some(&"::") {
            break;
        }
        match tokens.get(at + 1) {
            Some(&"{") => {
                at += 2;
                while at < tokens.len() && tokens[at] != "}" {
                    at = match tokens[at] {
                        "as" => at + 2,
                        token if is_name(token) || token == "*" => self::path(tokens, at, &path, found),
                        _ => at + 1,
                    };
                }
                return at + 1;
            }
            Some(token) if is_name(token) || *token == "*" => at += 1,
            _ => {
                at += 1;
                break;
            }
        }
    }
    found.push(path);
    at
}
