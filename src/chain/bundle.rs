//! A stretch of the chain in one file: every header, and the receipts where a bloom does not leave our contracts out. Whoever has it
//! proves which logs there are without asking anybody, and needs to believe one hash: the last block's.
//!
//! JSON lines: a head, one line for each block, an end. Nothing of it is believed that is not proven.

use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, Lines, Write};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use super::follow::{Evidence, judged, told};
use super::{Chain, Contracts};
use crate::market::coverage::{self, Coverage};
use crate::market::event::Range;
use crate::market::types::BlockRef;

const FORMAT: &str = "fabstir-bundle-1";
/// Blocks read at once while a bundle is written.
const BLOCKS_PER_READ: u64 = 100;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Head {
    format: String,
    chain_id: u64,
    contracts: Contracts,
    from: u64,
    to: u64,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct End {
    last: BlockRef,
}

/// A bundle that is being read, from its first block to its last.
pub struct Bundle {
    head: Head,
    lines: Lines<BufReader<File>>,
    previous: Option<BlockRef>,
}

impl Chain {
    /// Writes blocks `from..=to` as a bundle, telling `progress` how many are done. Returns the last block.
    ///
    /// # Errors
    /// If the endpoint fails or cannot prove a block, the file exists or cannot be written; then no file is left.
    pub async fn bundle(&self, file: &Path, from: u64, to: u64, progress: impl Fn(u64)) -> Result<BlockRef> {
        ensure!(from <= to, "there are no blocks from {from} to {to}");
        ensure!(!file.exists(), "{} exists already", file.display());
        let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let scratch =
            tempfile::NamedTempFile::new_in(folder).with_context(|| format!("write in {}", folder.display()))?;
        let mut writer = BufWriter::new(scratch);
        let head = Head { format: FORMAT.into(), chain_id: self.id, contracts: self.contracts().clone(), from, to };
        line(&mut writer, &head)?;
        let (mut next, mut last) = (from, None);
        while next <= to {
            for evidence in self.evidence(next, to.min(next + BLOCKS_PER_READ - 1)).await? {
                let block = told(&evidence.header).block;
                let receipts = evidence.receipts.clone().map(Ok);
                if let Err((_, reason)) = judged(&evidence.header, receipts, &self.contracts.indexed()) {
                    anyhow::bail!("block {}: {reason}", block.number);
                }
                line(&mut writer, &evidence)?;
                last = Some(block);
            }
            next += BLOCKS_PER_READ;
            progress(next.min(to + 1) - from);
        }
        let last = last.context("no block was read")?;
        line(&mut writer, &End { last })?;
        let scratch = writer.into_inner().context("write the bundle")?;
        scratch.persist_noclobber(file).with_context(|| format!("write {}", file.display()))?;
        Ok(last)
    }
}

impl Bundle {
    /// Opens a bundle of that chain and those contracts.
    ///
    /// # Errors
    /// If the file cannot be read, is no bundle, or one of other contracts.
    pub fn open(file: &Path, chain_id: u64, contracts: Contracts) -> Result<Self> {
        let what = || format!("bundle {}", file.display());
        let mut lines = BufReader::new(File::open(file).with_context(what)?).lines();
        let first = lines.next().context("is empty").with_context(what)?.with_context(what)?;
        let head: Head = serde_json::from_str(&first).context("has no head").with_context(what)?;
        ensure!(head.format == FORMAT, "{}: its format is {:?}, not {FORMAT:?}", what(), head.format);
        ensure!(
            head.chain_id == chain_id && head.contracts == contracts,
            "{} is of chain {} or of other contracts than the configuration names",
            what(),
            head.chain_id
        );
        Ok(Self { head, lines, previous: None })
    }

    /// Returns the bundle's first and last block.
    pub fn blocks(&self) -> (u64, u64) {
        (self.head.from, self.head.to)
    }

    /// Returns the next blocks up to `to`, which the bundle must have.
    ///
    /// # Errors
    /// If it ends before, a block does not follow the one before, or one is not proven by what the bundle has.
    pub fn range(&mut self, to: u64) -> Result<Range> {
        let ours = self.head.contracts.indexed();
        let mut range = Range::default();
        while self.previous.map_or(self.head.from, |previous| previous.number + 1) <= to {
            let next = self.previous.map_or(self.head.from, |previous| previous.number + 1);
            let text = self.lines.next().with_context(|| format!("the bundle ends before block {next}"))??;
            let Evidence { header, receipts } =
                serde_json::from_str(&text).with_context(|| format!("the bundle's line of block {next}"))?;
            let seen = told(&header);
            ensure!(seen.block.number == next, "the bundle has block {} where {next} should be", seen.block.number);
            ensure!(
                self.previous.is_none_or(|previous| previous.hash == seen.parent),
                "the bundle's block {next} does not follow the one before"
            );
            let (level, logs) = judged(&header, receipts.map(Ok), &ours)
                .map_err(|(_, reason)| anyhow::anyhow!("the bundle does not prove block {next}: {reason}"))?;
            coverage::push(&mut range.coverage, Coverage::of_block(next, level, None));
            range.headers.push(seen);
            range.logs.extend(logs);
            self.previous = Some(seen.block);
        }
        if to == self.head.to {
            let text = self.lines.next().context("the bundle has no end")??;
            let End { last } = serde_json::from_str(&text).context("the bundle's end")?;
            ensure!(Some(last) == self.previous, "the bundle's last block is another than its end says");
        }
        Ok(range)
    }
}

fn line(writer: &mut impl Write, value: &impl Serialize) -> Result<()> {
    serde_json::to_writer(&mut *writer, value)?;
    writer.write_all(b"\n").context("write the bundle")
}
