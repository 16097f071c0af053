//! The stored chain at the end of a block as files for other programs, and their check by anyone who has nothing else.
//!
//! A folder holds a file per table and `manifest.json`, which has the digest of each and the head of the journal. Equal states
//! make equal bytes: rows are in order and nothing tells when or where it was written. [`verify()`] needs neither the database nor
//! the chain; that the journal's head is the chain's is for an audit to say.

mod format;
mod table;
#[cfg(test)]
mod tests;
mod verify;

use std::collections::BTreeMap;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::chain::Contracts;
use crate::market::event::Level;
use crate::market::types::{Address, B256, JobId};
use crate::store::{EventFilter, Snapshot};

pub use format::Format;
pub use table::Table;
pub use verify::{Divergence, Verified, verify};

/// The name and version of the layout of these files.
const FORMAT: &str = "fabstir-export-2";
const MANIFEST: &str = "manifest.json";
/// Rows read at once.
const PAGE: u32 = 1000;

/// What an export holds, in `manifest.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// `fabstir-export-1`.
    pub format: String,
    /// Name and version of the program that wrote it.
    pub program: String,
    pub chain_id: u64,
    /// By the names of the configuration.
    pub contracts: BTreeMap<String, Address>,
    pub first_block: u64,
    /// The block at whose end this is.
    pub last_block: u64,
    /// `None` where the database dropped its header as final and without events.
    pub last_block_hash: Option<B256>,
    /// Canonical events up to that block, exported or not.
    pub events: u64,
    pub journal_head: B256,
    pub coverage: Covered,
    /// Jobs left out because their events contradict each other, if jobs are exported.
    pub conflicts: Vec<JobId>,
    pub encoding: Format,
    pub files: Vec<FileEntry>,
    /// SHA-256 of this file with nothing between the quotes of this value.
    pub digest: String,
}

/// How many blocks are proven how far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Covered {
    pub claimed: u64,
    pub linked: u64,
    pub complete: u64,
    /// The newest block that the chain had called final when this was written, at most the last.
    pub last_final: Option<u64>,
}

/// A file of an export.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileEntry {
    pub name: String,
    pub table: Table,
    pub rows: u64,
    pub bytes: u64,
    pub sha256: String,
    /// The last digest of the chain through its rows; the same in every format.
    pub rows_sha256: String,
}

impl Manifest {
    /// Returns the file's text with the digest in its place.
    fn sealed(mut self) -> Result<(Self, String)> {
        self.digest.clear();
        self.digest = sha256(self.text()?.as_bytes());
        let text = self.text()?;
        Ok((self, text))
    }

    fn text(&self) -> Result<String> {
        Ok(serde_json::to_string_pretty(self).context("write the manifest")? + "\n")
    }
}

/// Writes tables of `snapshot` to the new folder `dir`, which is there only once it is whole. `progress` is told how many rows of a
/// table are written.
///
/// # Errors
/// If the folder exists, or something cannot be read or written: then nothing is left.
pub async fn write(
    snapshot: &mut Snapshot,
    contracts: &Contracts,
    tables: &[Table],
    format: Format,
    dir: &Path,
    progress: impl Fn(Table, u64),
) -> Result<Manifest> {
    ensure!(!dir.exists(), "{} exists: an export overwrites nothing", dir.display());
    let name = dir.file_name().context("the folder has no name")?.to_string_lossy();
    let parent = dir.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    // Beside its place, to be moved there in one step. Who may read it is for the user's mask.
    let folder = tempfile::Builder::new()
        .prefix(&format!(".{name}.partial-"))
        .permissions(std::fs::Permissions::from_mode(0o777))
        .tempdir_in(parent)
        .with_context(|| format!("make a folder in {}", parent.display()))?;
    let mut tables = tables.to_vec();
    tables.sort_unstable();
    tables.dedup();
    let (mut files, mut conflicts) = (Vec::new(), Vec::new());
    for table in tables {
        let name = format!("{}.{}", table.name(), format.name());
        let path = folder.path().join(&name);
        let mut writer = format::Writer::create(&path, table, format).with_context(|| format!("make {name}"))?;
        let rows = write_table(snapshot, contracts, table, &mut writer, &progress).await;
        conflicts.extend(rows.with_context(|| format!("write {name}"))?);
        let format::Written { rows, bytes, sha256, rows_sha256 } =
            writer.finish().with_context(|| format!("write {name}"))?;
        files.push(FileEntry { name, table, rows, bytes, sha256, rows_sha256 });
    }
    let (journal_head, events) = snapshot.journal_head().await?;
    let mut coverage = Covered { last_final: snapshot.finality().map(|(block, ..)| block), ..Covered::default() };
    for range in snapshot.coverage().await? {
        let blocks = range.to - range.from + 1;
        match range.level {
            Level::Claimed => coverage.claimed += blocks,
            Level::Linked => coverage.linked += blocks,
            Level::Absent | Level::Complete => coverage.complete += blocks,
        }
    }
    let manifest = Manifest {
        format: FORMAT.into(),
        program: concat!("fabstir ", env!("CARGO_PKG_VERSION")).into(),
        chain_id: snapshot.chain_id(),
        contracts: contracts.named().into_iter().map(|(name, address)| (name.to_owned(), address)).collect(),
        first_block: snapshot.first,
        last_block: snapshot.block,
        last_block_hash: snapshot.hash,
        events,
        journal_head,
        coverage,
        conflicts,
        encoding: format,
        files,
        digest: String::new(),
    };
    let (manifest, text) = manifest.sealed()?;
    let mut file = std::fs::File::create_new(folder.path().join(MANIFEST)).context("make the manifest")?;
    file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).context("write the manifest")?;
    std::fs::File::open(folder.path()).and_then(|folder| folder.sync_all()).context("write the folder")?;
    std::fs::rename(folder.path(), dir).with_context(|| format!("move the export to {}", dir.display()))?;
    let _ = folder.keep();
    Ok(manifest)
}

/// Writes the rows of one table, and returns the jobs that were left out.
async fn write_table(
    snapshot: &mut Snapshot,
    contracts: &Contracts,
    table: Table,
    writer: &mut format::Writer,
    progress: &impl Fn(Table, u64),
) -> Result<Vec<JobId>> {
    let (mut conflicts, mut done) = (Vec::new(), 0);
    let (mut place, mut block, mut row, mut job) = (None, None, 0, JobId(0));
    loop {
        let page: Vec<table::Values> = match table {
            Table::Events => {
                let events = snapshot.events(&EventFilter::default(), place, PAGE).await?;
                place = events.last().map(|event| event.row.log.place());
                events.iter().map(|event| table::event(event, contracts)).collect::<Result<_>>()?
            }
            Table::Jobs => {
                let Some((jobs, last)) = snapshot.jobs_after(job).await? else { break };
                job = last;
                conflicts.extend(jobs.iter().filter_map(|job| job.as_ref().err()).map(|conflict| conflict.job));
                let rows: Vec<_> = jobs.iter().filter_map(|job| job.as_ref().ok()).map(table::job).collect();
                if rows.is_empty() {
                    continue;
                }
                rows
            }
            Table::Blocks => {
                let headers = snapshot.headers(block, PAGE).await?;
                block = headers.last().map(|header| header.block.number);
                headers.iter().map(table::header).collect()
            }
            Table::Coverage if done > 0 => break,
            Table::Coverage => snapshot.coverage().await?.into_iter().map(table::coverage).collect(),
            Table::Work => {
                let work = snapshot.work(row, PAGE).await?;
                row = work.last().map_or(row, |work| work.seq);
                work.into_iter().map(table::work).collect()
            }
            Table::Transactions => {
                let transactions = snapshot.transactions(row, PAGE).await?;
                row = transactions.last().map_or(row, |tx| tx.id);
                transactions.into_iter().map(table::transaction).collect()
            }
        };
        if page.is_empty() {
            break;
        }
        done += page.len() as u64;
        for values in page {
            writer.write(values)?;
        }
        progress(table, done);
    }
    Ok(conflicts)
}

fn sha256(bytes: &[u8]) -> String {
    alloy::hex::encode(Sha256::digest(bytes))
}

fn hex(bytes: impl AsRef<[u8]>) -> String {
    alloy::hex::encode_prefixed(bytes)
}
