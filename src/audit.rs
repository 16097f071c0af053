//! The auditor's replay: fetch again, fold again, compare with what a database says.
//!
//! Believes neither the database nor the node that wrote it, and the endpoint it asks no further than it must: which chain is
//! the canonical one. What each block logged is proven by its hash where the endpoint has receipts. Changes nothing.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, bail};
use serde::Serialize;

use crate::chain::Chain;
use crate::market::event::{Event, Range};
use crate::market::job::{Fact, Job};
use crate::market::types::{B256, JobId};
use crate::store::{JobFilter, JobRow, Store};

/// Blocks compared in one step.
const BLOCKS_PER_STEP: u64 = 100;

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
    pub jobs: u64,
    /// Head of the journal's hash chain, computed from the chain.
    pub journal_head: B256,
    /// Differences found; the audit stops at the first log or block that differs and compares all jobs.
    pub divergences: Vec<String>,
}

/// Compares everything in `store` with `chain`, telling `progress` how many blocks are done, of how many.
///
/// # Errors
/// If the endpoint or the file cannot be read, or the chain moved on past a stored block during the audit. A difference
/// is not an error: it is in the report.
pub async fn run(store: &Store, chain: &Chain, progress: impl Fn(u64, u64)) -> Result<Report> {
    let Some(cursor) = store.cursor().await? else { bail!("the database is empty: there is nothing to audit") };
    let from = store.first_block().await?.context("the database has a cursor but no block")?;
    let to = cursor.number;
    let mut report = Report {
        from,
        to,
        blocks: to - from + 1,
        proven: 0,
        unproven: None,
        events: 0,
        jobs: 0,
        journal_head: B256::ZERO,
        divergences: Vec::new(),
    };
    let mut facts: BTreeMap<JobId, Vec<Fact>> = BTreeMap::new();
    let decode = chain.decoder();
    let last_final = store.finality().await?.map(|last| last.block.number);
    let mut next = from;
    while next <= to {
        let last = to.min(next + BLOCKS_PER_STEP - 1);
        let Range { headers, coverage, logs } = chain.range(next, last).await?;
        for range in coverage {
            report.proven += if range.level.is_proven() { range.to - range.from + 1 } else { 0 };
            let reason = range.reason.map(|reason| format!("block {}: {reason}", range.from));
            report.unproven = report.unproven.take().or(reason);
        }
        let blocks = store.blocks(next, last).await?;
        let mine = store.logs(next, last).await?;
        let needed: BTreeSet<u64> = logs.iter().flat_map(|log| [log.block.number, log.block.number + 1]).collect();
        for header in &headers {
            let number = header.block.number;
            match blocks.iter().find(|row| row.block.number == number) {
                None if needed.contains(&number) || last_final.is_none_or(|last| number > last) => {
                    report.differs(format!("block {number}: missing in the database"));
                }
                None => {}
                Some(row) if row != header => {
                    report.differs(format!(
                        "block {number}: stored as {}, the chain has {}",
                        row.block.hash, header.block.hash
                    ));
                }
                Some(_) => {}
            }
        }
        let mut rows = mine.iter();
        for log in &logs {
            report.events += 1;
            report.journal_head = log.link(report.journal_head, chain.id());
            let place = format!("block {}, log {}", log.block.number, log.index);
            match rows.next() {
                None => report.differs(format!("{place}: missing in the database")),
                Some(row) if row.log != *log => {
                    report.differs(format!(
                        "{place}: the database has log {} of block {} with other content",
                        row.log.index, row.log.block.number
                    ));
                }
                Some(row) if row.link != report.journal_head => {
                    report.differs(format!("{place}: the journal's link is {}", row.link))
                }
                Some(_) => {}
            }
            if let Ok(event) = decode(log)
                && let Some(job) = event.job()
                && !matches!(event, Event::Noted { .. })
            {
                facts.entry(job).or_default().push(Fact::Chain { event, block: log.block });
            }
        }
        if let Some(row) = rows.next() {
            let (block, index) = (row.log.block.number, row.log.index);
            report.differs(format!("block {block}, log {index}: in the database, not on the chain"));
        }
        progress(last - from + 1, report.blocks);
        next = last + 1;
    }
    compare_jobs(store, &facts, &mut report).await?;
    Ok(report)
}

async fn compare_jobs(store: &Store, facts: &BTreeMap<JobId, Vec<Fact>>, report: &mut Report) -> Result<()> {
    let stored = store.jobs(&JobFilter { limit: u32::MAX, ..JobFilter::default() }).await?;
    let mut stored: BTreeMap<JobId, JobRow> = stored.into_iter().map(|row| (row.id, row)).collect();
    for (id, facts) in facts {
        let Some(job) = Job::fold(*id, facts)? else { continue };
        report.jobs += 1;
        let folded = JobRow::of(&job);
        match stored.remove(id) {
            None => report.divergences.push(format!("job {id}: missing in the database")),
            Some(row) if row != folded => report.divergences.push(format!("job {id}: {}", difference(&row, &folded)?)),
            Some(_) => {}
        }
    }
    report.divergences.extend(stored.keys().map(|id| format!("job {id}: in the database, not on the chain")));
    Ok(())
}

/// Names the first column that differs.
fn difference(row: &JobRow, folded: &JobRow) -> Result<String> {
    let (row, folded) = (serde_json::to_value(row)?, serde_json::to_value(folded)?);
    let columns = row.as_object().context("a row is an object")?;
    let column = columns.iter().find(|(name, value)| folded[name.as_str()] != **value);
    Ok(column.map_or_else(
        || "no column differs".into(),
        |(name, value)| format!("column {name} is {value}, the chain says {}", folded[name.as_str()]),
    ))
}

impl Report {
    /// Keeps only the first difference among blocks and logs: one missing row shifts every row after it.
    fn differs(&mut self, what: String) {
        if self.divergences.is_empty() {
            self.divergences.push(what);
        }
    }
}
