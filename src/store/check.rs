//! What one file can say of itself, without a chain: that everything which follows from the journal is what it must be, and whole.

use std::collections::BTreeMap;
use std::path::Path;

use alloy::primitives::{Keccak256, keccak256};
use anyhow::{Context, Result};
use serde::Serialize;
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, Row};

use super::history::job_row;
use super::{JobRow, Store, hash};
use crate::market::job::{Job, Work};
use crate::market::types::{Address, B256, JobId};

/// Jobs looked at in one step.
const JOBS_PER_PAGE: i64 = 500;

/// What was looked through.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Checked {
    pub jobs: u64,
    /// The root over the rows that the jobs fold to, by id: two nodes with the same have the same jobs.
    pub projection_root: B256,
}

impl Store {
    /// Returns whether the file at `path` was made by an older program, so that to open it is to change its format; to look changes
    /// nothing. One that is not a file of ours is not older: opening it says what is wrong with it.
    pub async fn is_older(path: &Path) -> Result<bool> {
        let options = SqliteConnectOptions::new().filename(path).read_only(true);
        let mut reader = options.connect().await.with_context(|| format!("look into database {}", path.display()))?;
        let newest = sqlx::query_scalar::<_, Option<i64>>("SELECT max(version) FROM _sqlx_migrations");
        let newest = newest.fetch_one(&mut reader).await.ok().flatten();
        reader.close().await?;
        Ok(newest.is_some() && newest < sqlx::migrate!().iter().map(|migration| migration.version).max())
    }

    /// Looks through the whole file and tells `found` each thing that is not as it must be, table and row first.
    ///
    /// Looked at: SQLite's own structure, coverage, blocks past the cursor, every job and conflict against the journal's fold, the
    /// hashes of signed transactions, peers' receipts against their signatures, and that our own work can be read. Leases and
    /// reservations say nothing that could be held against anything.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub async fn check(&self, found: &mut impl FnMut(String)) -> Result<Checked> {
        let mut reader = self.readers.acquire().await?;
        let whole: Vec<String> = sqlx::query_scalar("PRAGMA integrity_check(10)").fetch_all(&mut *reader).await?;
        whole.iter().filter(|line| *line != "ok").for_each(|line| found(format!("the file is damaged: {line}")));
        self.check_coverage(found).await?;
        let mut conflicts: BTreeMap<JobId, String> = self.conflicts().await?.into_iter().collect();
        let (mut jobs, mut root, mut after) = (0, Keccak256::new(), 0);
        loop {
            let page: Vec<i64> = sqlx::query_scalar(
                "SELECT job FROM log WHERE job > ?1 UNION SELECT id FROM job WHERE id > ?1 ORDER BY 1 LIMIT ?2",
            )
            .bind(after)
            .bind(JOBS_PER_PAGE)
            .fetch_all(&mut *reader)
            .await?;
            let Some(last) = page.last() else { break };
            after = *last;
            let ids: Vec<JobId> = page.into_iter().map(|job| JobId(job as u64)).collect();
            let facts = self.chain_facts(&mut reader, &ids).await?;
            let rows = sqlx::query(AssertSqlSafe(format!(
                "SELECT {} FROM job WHERE id IN (SELECT value FROM json_each(?)) ORDER BY id",
                JobRow::COLUMNS
            )))
            .bind(serde_json::to_string(&ids)?)
            .fetch_all(&mut *reader)
            .await?;
            let mut stored: BTreeMap<JobId, Result<JobRow>> =
                rows.iter().map(|row| (JobId(row.get::<i64, _>(0) as u64), job_row(row))).collect();
            for (id, told) in &facts {
                match (Job::fold(*id, told), stored.remove(id)) {
                    (Ok(None), None) => {}
                    (Ok(None), Some(_)) => found(format!("job {id}: in the database, not on the chain")),
                    (Ok(Some(job)), row) => {
                        let folded = JobRow::of(&job);
                        jobs += 1;
                        root.update(folded.digest());
                        match row {
                            None => found(format!("job {id}: missing in the database")),
                            Some(Err(error)) => found(format!("job {id}: {error:#}")),
                            Some(Ok(row)) if row != folded => {
                                found(format!("job {id}: {}", row.differs_from(&folded)?))
                            }
                            Some(Ok(_)) => {}
                        }
                    }
                    (Err(conflict), row) => {
                        if conflicts.remove(id) != Some(conflict.to_string()) {
                            found(format!("conflict {id}: missing in the database or another: {conflict}"));
                        }
                        if row.is_some() {
                            found(format!("job {id}: in the database, although its logs contradict each other"));
                        }
                    }
                }
            }
            stored.keys().for_each(|id| found(format!("job {id}: in the database, not on the chain")));
        }
        conflicts.keys().for_each(|id| found(format!("conflict {id}: in the database, but its logs fold")));
        self.check_our_own(found).await?;
        Ok(Checked { jobs, projection_root: root.finalize() })
    }

    async fn check_coverage(&self, found: &mut impl FnMut(String)) -> Result<()> {
        let cursor = self.cursor().await?;
        let ranges = match self.coverage().await {
            Ok(ranges) => ranges,
            Err(error) => {
                found(format!("coverage: {error:#}"));
                return Ok(());
            }
        };
        for pair in ranges.windows(2).filter(|pair| pair[0].to + 1 != pair[1].from) {
            found(format!(
                "coverage: says nothing, or two things, of blocks between {} and {}",
                pair[0].to, pair[1].from
            ));
        }
        let (covered, at) = (ranges.last().map(|range| range.to), cursor.map(|cursor| cursor.number));
        if covered != at {
            found(format!("coverage: ends at block {covered:?}, the cursor is at {at:?}"));
        }
        let past: Option<i64> = sqlx::query_scalar("SELECT max(number) FROM block WHERE canonical = 1 AND number > ?")
            .bind(at.unwrap_or(0) as i64)
            .fetch_one(&self.readers)
            .await?;
        if let Some(past) = past {
            found(format!("block {past}: in the database, past the newest that was read"));
        }
        if let Some(cursor) = cursor
            && self.canonical_hash(cursor.number).await? != Some(cursor.hash)
        {
            found(format!("cursor: block {} ({}) is not the stored one", cursor.number, cursor.hash));
        }
        Ok(())
    }

    /// Looks at what no chain tells: our transactions' bytes, peers' receipts, our work.
    async fn check_our_own(&self, found: &mut impl FnMut(String)) -> Result<()> {
        let attempts = sqlx::query("SELECT hash, raw FROM tx_attempt").fetch_all(&self.readers).await?;
        for row in &attempts {
            let said = hash(row, 0)?;
            let computed = keccak256(row.get::<&[u8], _>(1));
            if said != computed {
                found(format!("tx_attempt {said}: its bytes are those of {computed}"));
            }
        }
        let receipts =
            sqlx::query("SELECT job, host, body FROM peer_receipt ORDER BY job").fetch_all(&self.readers).await?;
        for row in &receipts {
            let job = JobId(row.get::<i64, _>(0) as u64);
            let signed =
                serde_json::from_str::<crate::market::receipt::SignedReceipt>(row.get(2)).context("no receipt");
            let verified = signed.and_then(|signed| {
                signed.verify()?;
                let host = Address::try_from(row.get::<&[u8], _>(1))?;
                anyhow::ensure!(
                    (signed.receipt.job, signed.receipt.host) == (job, host),
                    "it is another job's or host's"
                );
                Ok(())
            });
            if let Err(error) = verified {
                found(format!("peer_receipt of job {job}: {error:#}"));
            }
        }
        let work = sqlx::query("SELECT seq, did, body FROM work ORDER BY seq").fetch_all(&self.readers).await?;
        for row in &work {
            let read = serde_json::from_str::<Work>(row.get(2));
            if read.as_ref().map(Work::name).ok() != Some(row.get(1)) {
                found(format!("work {}: its body is not that of {}", row.get::<i64, _>(0), row.get::<&str, _>(1)));
            }
        }
        Ok(())
    }
}
