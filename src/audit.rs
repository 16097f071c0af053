//! The auditor's replay: fetch again, prove again, fold again, compare with what a database says.
//!
//! Believes neither the database nor the node that wrote it, and the endpoints it asks no further than it must: which chain is
//! the canonical one. What each block logged is proven by its hash where the endpoint has receipts. Changes nothing unless it is
//! told to repair.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, ensure};
use serde::Serialize;

use crate::chain::{Bundle, Chain, disproven};
use crate::market::event::{Event, Header, Range, RawLog};
use crate::market::types::B256;
use crate::store::{LogRow, Store};

/// Blocks compared in one step.
const BLOCKS_PER_STEP: u64 = 100;
/// Differences that are named; further ones are counted.
const NAMED_MAX: usize = 100;

/// Against what a database is held.
pub enum Source {
    Chain(Chain),
    /// Two endpoints, which are also held against each other.
    Both(Chain, Chain),
    /// Asks nobody.
    Bundle(Bundle),
}

/// What an audit found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    /// First and last block compared.
    pub from: u64,
    pub to: u64,
    pub blocks: u64,
    /// Of these, blocks whose logs are proven by their hashes; of the others the endpoint's word was taken.
    pub proven: u64,
    /// Why the first of the others is not proven.
    pub unproven: Option<String>,
    /// Logs on the chain in that range.
    pub events: u64,
    /// All jobs, also those of other blocks.
    pub jobs: u64,
    /// Head of the journal's hash chain at the last block, computed from the chain; of a range that does not start at the
    /// first block stored, on top of the stored link before it.
    pub journal_head: B256,
    /// Root over the rows that all jobs fold to.
    pub projection_root: B256,
    /// Differences, in the order of the chain, and then of the tables; at most a hundred, and how many there are.
    pub divergences: Vec<String>,
    pub divergences_found: u64,
    /// What an endpoint told that is disproven, or how two contradict each other.
    pub lies: Vec<String>,
}

/// Compares everything in `store` with `chain`, telling `progress` how many blocks are done, of how many.
///
/// # Errors
/// As [`Source::audit`].
pub async fn run(store: &Store, chain: &Chain, progress: impl Fn(u64, u64)) -> Result<Report> {
    Source::Chain(chain.clone()).audit(store, None, None, progress).await
}

impl Source {
    /// Compares blocks `from..=to` of `store` with this source, by default all, and everything that follows from the stored logs
    /// with their fold; tells `progress` how many blocks are done, of how many.
    ///
    /// # Errors
    /// If the endpoint or the file cannot be read, the blocks are not stored, or the chain moved on past a stored block during
    /// the audit. A difference is not an error: it is in the report.
    pub async fn audit(
        mut self,
        store: &Store,
        from: Option<u64>,
        to: Option<u64>,
        progress: impl Fn(u64, u64),
    ) -> Result<Report> {
        let (from, to) = self.blocks(store, from, to).await?;
        let chain_id = store.chain_id();
        let mut report = Report {
            from,
            to,
            blocks: to - from + 1,
            proven: 0,
            unproven: None,
            events: 0,
            jobs: 0,
            journal_head: store.link_before(from).await?,
            projection_root: B256::ZERO,
            divergences: Vec::new(),
            divergences_found: 0,
            lies: Vec::new(),
        };
        let mut relinked = false;
        let mut next = from;
        while next <= to {
            let last = to.min(next + BLOCKS_PER_STEP - 1);
            let range = self.range(next, last, &mut report).await?;
            for stretch in &range.coverage {
                report.proven += if stretch.level.is_proven() { stretch.to - stretch.from + 1 } else { 0 };
                let reason = stretch.reason.as_ref().map(|reason| format!("block {}: {reason}", stretch.from));
                report.unproven = report.unproven.take().or(reason);
            }
            let stored = store.blocks(next, last).await?;
            // After the blocks: a node that runs drops headers below each newer final block.
            let last_final = store.finality().await?;
            compare_blocks(&stored, &range, last_final.as_ref().map(|last| last.block.number), &mut report);
            if let Some(last_final) = &last_final
                && let Some(header) = range.headers.iter().find(|header| header.block.number == last_final.block.number)
                && header.block != last_final.block
            {
                report.differs(format!("finality: block {} is not {}", header.block.number, last_final.block.hash));
            }
            let rows = store.logs(next, last).await?;
            compare_logs(store, &rows, &range.logs, chain_id, &mut relinked, &mut report);
            progress(last - from + 1, report.blocks);
            next = last + 1;
        }
        let checked = store.check(&mut |what| report.differs(what)).await?;
        (report.jobs, report.projection_root) = (checked.jobs, checked.projection_root);
        Ok(report)
    }

    /// Corrects what differs in blocks `from..=to` of `store`, by default all, as far as this source proves it, and derives
    /// everything anew. Returns how many blocks were corrected.
    ///
    /// # Errors
    /// If the endpoint or the file cannot be read or written.
    pub async fn repair(
        mut self,
        store: &Store,
        from: Option<u64>,
        to: Option<u64>,
        progress: impl Fn(u64, u64),
    ) -> Result<u64> {
        let (from, to) = self.blocks(store, from, to).await?;
        let (mut next, mut corrected) = (from, 0);
        while next <= to {
            let last = to.min(next + BLOCKS_PER_STEP - 1);
            let range = match &mut self {
                Source::Chain(chain) | Source::Both(chain, _) => chain.range(next, last).await?,
                Source::Bundle(bundle) => bundle.range(last)?,
            };
            corrected += store.confirm(&range).await?.len() as u64;
            progress(last - from + 1, to - from + 1);
            next = last + 1;
        }
        store.rederive(|_| ()).await?;
        Ok(corrected)
    }

    async fn blocks(&self, store: &Store, from: Option<u64>, to: Option<u64>) -> Result<(u64, u64)> {
        let cursor = store.cursor().await?.context("the database is empty: there is nothing to audit")?;
        let first = store.first_block().await?.context("the database has a cursor but no block")?;
        let (mut lowest, mut highest) = (first, cursor.number);
        if let Source::Bundle(bundle) = self {
            let (from, to) = bundle.blocks();
            ensure!(
                from <= highest && to >= lowest,
                "the bundle has blocks {from} to {to}, the database {lowest} to {highest}"
            );
            ensure!(from >= lowest, "the bundle starts at block {from}, before the database's first, {lowest}");
            (lowest, highest) = (from, to.min(highest));
        }
        let (from, to) = (from.unwrap_or(lowest), to.unwrap_or(highest));
        ensure!(
            lowest <= from && from <= to && to <= highest,
            "blocks {from} to {to} cannot be audited: there are {lowest} to {highest}"
        );
        ensure!(
            !matches!(self, Source::Bundle(_)) || from == lowest,
            "a bundle is read from its first block, {lowest}, on"
        );
        Ok((from, to))
    }

    /// Reads the next blocks, and notes which endpoint lies.
    async fn range(&mut self, from: u64, to: u64, report: &mut Report) -> Result<Range> {
        match self {
            Source::Bundle(bundle) => bundle.range(to),
            Source::Chain(chain) => {
                let range = chain.range(from, to).await?;
                told_otherwise(chain, &range, report).await;
                Ok(range)
            }
            Source::Both(one, other) => {
                let (first, second) = tokio::try_join!(one.range(from, to), other.range(from, to))?;
                let range = held_against(one.name(), &first, other.name(), second, report);
                told_otherwise(one, &range, report).await;
                told_otherwise(other, &range, report).await;
                Ok(range)
            }
        }
    }
}

/// Holds two endpoints' answers against each other, and returns of each block the better proven.
fn held_against(one: &str, first: &Range, other: &str, second: Range, report: &mut Report) -> Range {
    let mut best = Range::default();
    for (mine, theirs) in first.headers.iter().zip(&second.headers) {
        let number = mine.block.number;
        let (a, b) = (first.at(number), second.at(number));
        let proven = (a.coverage.level.is_proven(), b.coverage.level.is_proven());
        match proven {
            (true, true) if mine != theirs => report.lies.push(format!(
                "block {number}: {one} has {}, {other} has {}, and each proves its own: two chains",
                mine.block.hash, theirs.block.hash
            )),
            (true, false) | (false, true) => {
                let (liar, reason) = if proven.0 { (other, &b.coverage.reason) } else { (one, &a.coverage.reason) };
                let reason = reason.as_deref().unwrap_or("it does not prove it");
                // One that only lacks receipts tells no lie as long as it tells the same.
                if mine != theirs || a.logs != b.logs || disproven(reason) {
                    report.lies.push(format!("block {number}: {liar} lies: {reason}"));
                }
            }
            (false, false) if mine != theirs || a.logs != b.logs => {
                report
                    .lies
                    .push(format!("block {number}: {one} and {other} contradict each other, and neither proves it"));
            }
            _ => {}
        }
        let taken = if proven.1 && !proven.0 { (theirs, b) } else { (mine, a) };
        best.headers.push(*taken.0);
        crate::market::coverage::push(&mut best.coverage, taken.1.coverage);
        best.logs.extend(taken.1.logs.iter().cloned());
    }
    best
}

/// Notes where an endpoint's `eth_getLogs` tells other logs of proven blocks than there are. One that has no such call, or not
/// for so many blocks, is not asked again.
async fn told_otherwise(chain: &Chain, range: &Range, report: &mut Report) {
    let (Some(first), Some(last)) = (range.headers.first(), range.headers.last()) else { return };
    let Ok(claimed) = chain.claimed(first.block.number, last.block.number).await else { return };
    let proven = |log: &&RawLog| range.at(log.block.number).coverage.level.is_proven();
    let truth: BTreeSet<_> = range.logs.iter().filter(proven).map(RawLog::place).collect();
    let told: BTreeSet<_> = claimed.logs.iter().filter(proven).map(RawLog::place).collect();
    for (number, index) in truth.difference(&told) {
        report.lies.push(format!("block {number}: {} leaves log {index} out of eth_getLogs", chain.name()));
    }
    for (number, index) in told.difference(&truth) {
        report.lies.push(format!("block {number}: {} makes log {index} up in eth_getLogs", chain.name()));
    }
}

/// Compares the stored headers, of which there must be those above the final block, those with logs and the ones after these.
fn compare_blocks(stored: &[Header], range: &Range, last_final: Option<u64>, report: &mut Report) {
    let needed: BTreeSet<u64> = range.logs.iter().flat_map(|log| [log.block.number, log.block.number + 1]).collect();
    let stored: BTreeMap<u64, &Header> = stored.iter().map(|header| (header.block.number, header)).collect();
    for header in &range.headers {
        let number = header.block.number;
        match stored.get(&number) {
            None if needed.contains(&number) || last_final.is_none_or(|last| number >= last) => {
                report.differs(format!("block {number}: missing in the database"));
            }
            Some(row) if *row != header => {
                let (column, row, chain) = if row.block.hash != header.block.hash {
                    ("hash", row.block.hash.to_string(), header.block.hash.to_string())
                } else if row.parent != header.parent {
                    ("parent", row.parent.to_string(), header.parent.to_string())
                } else {
                    ("time", row.time.0.to_string(), header.time.0.to_string())
                };
                report.differs(format!("block {number}: column {column} is {row}, the chain says {chain}"));
            }
            _ => {}
        }
    }
}

/// Compares logs by their places, so that one missing row shifts no other.
fn compare_logs(
    store: &Store,
    rows: &[LogRow],
    logs: &[RawLog],
    chain_id: u64,
    relinked: &mut bool,
    report: &mut Report,
) {
    let mut rows = rows.iter().peekable();
    let place = |log: &RawLog| format!("block {}, log {}", log.block.number, log.index);
    for log in logs {
        report.events += 1;
        report.journal_head = log.link(report.journal_head, chain_id);
        while let Some(row) = rows.next_if(|row| row.log.place() < log.place()) {
            report.differs(format!("{}: in the database, not on the chain", place(&row.log)));
        }
        let Some(row) = rows.next_if(|row| row.log.place() == log.place()) else {
            report.differs(format!("{}: missing in the database", place(log)));
            continue;
        };
        if row.log != *log {
            let column = match &row.log {
                row if row.tx != log.tx => "tx_hash",
                row if row.address != log.address => "address",
                row if row.topics != log.topics => "topics",
                row if row.data != log.data => "data",
                _ => "block",
            };
            report.differs(format!("{}: column {column} is another than on the chain", place(log)));
        }
        let read = store.read(log).ok();
        let means = (read.as_ref().map(Event::name), read.as_ref().and_then(Event::job));
        if (row.kind.as_deref(), row.job) != means {
            report.differs(format!(
                "{}: column kind or job is {:?}, the log says {means:?}",
                place(log),
                (&row.kind, row.job)
            ));
        }
        if row.link != report.journal_head && !*relinked {
            // Every link after it may follow from this one.
            *relinked = true;
            report.differs(format!("{}: the journal's link is {}", place(log), row.link));
        }
    }
    for row in rows {
        report.differs(format!("{}: in the database, not on the chain", place(&row.log)));
    }
}

impl Report {
    fn differs(&mut self, what: String) {
        self.divergences_found += 1;
        if self.divergences.len() < NAMED_MAX {
            self.divergences.push(what);
        }
    }
}
