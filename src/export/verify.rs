//! The check of an export: every digest, every row, and the journal's links from the first event to the last.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use serde::Serialize;
use sha2::{Digest, Sha256};

use super::format::read;
use super::table::{RowChain, Table, Values, log};
use super::{FORMAT, FileEntry, MANIFEST, Manifest, hex, sha256};
use crate::market::types::B256;

/// A longer manifest is none.
const MANIFEST_BYTES_MAX: u64 = 64 << 20;

/// What a check found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Verified {
    pub chain_id: u64,
    pub last_block: u64,
    /// As the manifest has it; computed from the events where there is no divergence and these were exported.
    pub journal_head: B256,
    /// Whether the events are there to compute it from.
    pub journal: bool,
    pub files: Vec<FileEntry>,
    /// Names in the folder that the manifest does not tell of; nothing is said of their content.
    pub strangers: Vec<String>,
    /// Of each file the first.
    pub divergences: Vec<Divergence>,
}

/// Something that is not as the manifest has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Divergence {
    pub file: String,
    /// The first wrong row, counted from 1; a line of headings does not count.
    pub row: Option<u64>,
    pub what: String,
}

impl Divergence {
    fn new(file: &str, row: Option<u64>, what: impl Into<String>) -> Self {
        Self { file: file.into(), row, what: what.into() }
    }
}

impl std::fmt::Display for Divergence {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let row = self.row.map_or(String::new(), |row| format!(", row {row}"));
        write!(f, "{}{row}: {}", self.file, self.what)
    }
}

/// Checks the export in `dir`; `progress` is told how many rows are done.
///
/// # Errors
/// If there is no export, one of another version, or a manifest that is none: then the cause is JSON's. A difference is not an
/// error.
pub fn verify(dir: &Path, progress: impl Fn(u64)) -> Result<Verified> {
    let path = dir.join(MANIFEST);
    let mut text = Vec::new();
    open(&path)
        .and_then(|file| Ok(file.take(MANIFEST_BYTES_MAX).read_to_end(&mut text)?))
        .with_context(|| format!("read {}", path.display()))?;
    let manifest: Manifest = serde_json::from_slice(&text).with_context(|| format!("{MANIFEST} is no manifest"))?;
    let wrong = check_manifest(&text, &manifest);
    let known = manifest.format == FORMAT;
    ensure!(known || wrong.is_some(), "the export is {:?}, this program reads {FORMAT:?}", manifest.format);
    let mut verified = Verified {
        chain_id: manifest.chain_id,
        last_block: manifest.last_block,
        journal_head: manifest.journal_head,
        journal: manifest.files.iter().any(|file| file.table == Table::Events),
        files: manifest.files.clone(),
        strangers: strangers(dir, &manifest)?,
        divergences: wrong.into_iter().collect(),
    };
    let mut done = 0;
    for file in manifest.files.iter().filter(|_| known) {
        let found = check_file(dir, file, &manifest, |rows| progress(done + rows));
        verified.divergences.extend(found.unwrap_or_else(|error| Some(unreadable(file, None, &error))));
        done += file.rows;
    }
    Ok(verified)
}

fn strangers(dir: &Path, manifest: &Manifest) -> Result<Vec<String>> {
    let mut strangers = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if name != MANIFEST && manifest.files.iter().all(|file| file.name != name) {
            strangers.push(name);
        }
    }
    strangers.sort_unstable();
    Ok(strangers)
}

fn check_manifest(text: &[u8], manifest: &Manifest) -> Option<Divergence> {
    let wrong = |what: String| Some(Divergence::new(MANIFEST, None, what));
    let told = format!("\"digest\": \"{}\"", manifest.digest);
    let text = String::from_utf8_lossy(text);
    let Some(place) = text.rfind(&told) else { return wrong("its digest is not where it belongs".into()) };
    let blank = format!("{}\"digest\": \"\"{}", &text[..place], &text[place + told.len()..]);
    let computed = sha256(blank.as_bytes());
    if computed != manifest.digest {
        return wrong(format!("its digest is {computed}, it says {:?}", manifest.digest));
    }
    let mut events = manifest.files.iter().filter(|file| file.table == Table::Events);
    match events.next() {
        Some(file) if file.rows != manifest.events => {
            wrong(format!("it tells of {} events, {} has {} rows", manifest.events, file.name, file.rows))
        }
        _ => None,
    }
}

/// Compares one file with what the manifest tells of it.
fn check_file(dir: &Path, file: &FileEntry, manifest: &Manifest, progress: impl Fn(u64)) -> Result<Option<Divergence>> {
    // The name is a stranger's: it leads to this folder only.
    let name = format!("{}.{}", file.table.name(), manifest.encoding.name());
    if file.name != name {
        return Ok(Some(Divergence::new(MANIFEST, None, format!("{:?} is not the name {name}", file.name))));
    }
    let path = dir.join(&name);
    let (bytes, sha256) = digest(&path)?;
    let mut rows = Rows { file, manifest, chain: RowChain::default(), link: B256::ZERO, count: 0, found: None };
    let readable = read(&path, file.table, manifest.encoding, &mut |row| {
        if rows.count.is_multiple_of(10_000) {
            progress(rows.count);
        }
        rows.take(row)
    });
    if let Some(found) = rows.found {
        return Ok(Some(found));
    }
    if let Err(error) = readable {
        return Ok(Some(unreadable(file, None, &error)));
    }
    let wrong = |row, what: String| Ok(Some(Divergence::new(&name, row, what)));
    if rows.count < file.rows {
        return wrong(Some(rows.count + 1), format!("missing: the manifest tells of {} rows", file.rows));
    }
    if (bytes, &sha256) != (file.bytes, &file.sha256) {
        let told = format!("{} bytes, SHA-256 {}", file.bytes, file.sha256);
        return wrong(None, format!("{bytes} bytes, SHA-256 {sha256}; the manifest says {told}"));
    }
    if rows.chain.digest() != file.rows_sha256 {
        let told = &file.rows_sha256;
        return wrong(None, format!("the digest of its rows is {}, the manifest says {told}", rows.chain.digest()));
    }
    if file.table == Table::Events && rows.link != manifest.journal_head {
        let told = manifest.journal_head;
        return wrong(None, format!("the journal ends in {}, the manifest says {told}", rows.link));
    }
    Ok(None)
}

/// The rows of a file as they are gone through.
struct Rows<'a> {
    file: &'a FileEntry,
    manifest: &'a Manifest,
    chain: RowChain,
    link: B256,
    count: u64,
    found: Option<Divergence>,
}

impl Rows<'_> {
    /// Checks the next row and says whether to go on.
    fn take(&mut self, row: Result<(Values, String)>) -> bool {
        self.count += 1;
        if let Err(error) = row.and_then(|(values, check)| self.check(&values, &check)) {
            self.found = Some(unreadable(self.file, Some(self.count), &error));
        }
        self.found.is_none()
    }

    fn check(&mut self, values: &Values, check: &str) -> Result<()> {
        if self.count > self.file.rows {
            bail!("the manifest tells of {} rows only", self.file.rows);
        }
        let computed = self.chain.add(values, self.file.table.columns())?;
        ensure!(computed == check, "its check is {computed}, it says {check}");
        if self.file.table == Table::Events {
            let (log, link) = log(values)?;
            self.link = log.link(self.link, self.manifest.chain_id);
            ensure!(self.link == link, "its journal link is {}, it says {link}", hex(self.link));
        }
        Ok(())
    }
}

fn unreadable(file: &FileEntry, row: Option<u64>, error: &anyhow::Error) -> Divergence {
    Divergence::new(&file.name, row, format!("{error:#}"))
}

/// Opens a plain file: a stranger's folder may hold what never ends.
fn open(path: &Path) -> Result<File> {
    ensure!(std::fs::symlink_metadata(path)?.is_file(), "it is no plain file");
    Ok(File::open(path)?)
}

fn digest(path: &Path) -> Result<(u64, String)> {
    let (mut file, mut sha256, mut bytes) = (open(path)?, Sha256::new(), 0);
    let mut part = vec![0; 1 << 16];
    loop {
        let length = file.read(&mut part)?;
        if length == 0 {
            return Ok((bytes, alloy::hex::encode(sha256.finalize())));
        }
        sha256.update(&part[..length]);
        bytes += length as u64;
    }
}
