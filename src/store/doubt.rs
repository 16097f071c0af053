//! What is compared with the contracts' own word, and what follows where that is another: jobs in doubt, and blocks to prove again.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use sqlx::{Row, SqliteConnection};

use super::journal::cover;
use super::{Store, address, hash, history, raw_log};
use crate::market::coverage::Coverage;
use crate::market::event::{Event, Level};
use crate::market::job::Job;
use crate::market::types::{Address, BlockRef, JobId};

/// What the logs up to one block tell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Census {
    pub at: BlockRef,
    /// Those that have not reached their end on chain, oldest first.
    pub jobs: Vec<Job>,
    /// The newest job posted; 0 when there is none.
    pub newest: JobId,
    /// Jobs before that one that no log posted, newest first; of many only the newest.
    pub missing: Vec<JobId>,
    /// What the registry logged of the host, in order.
    pub host_events: Vec<Event>,
}

impl Census {
    /// Most jobs that are told as missing.
    pub const MISSING_MAX: usize = 200;
}

impl Store {
    /// Returns what the logs up to the cursor tell, and what a registry logged of a host; `None` in a new file.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub async fn census(&self, host: Option<(Address, Address)>) -> Result<Option<Census>> {
        // One transaction, so that all of it is of one moment.
        let mut tx = self.readers.begin().await?;
        let row = sqlx::query("SELECT number, hash FROM cursor").fetch_optional(&mut *tx).await?;
        let Some(row) = row else { return Ok(None) };
        let at = BlockRef { number: row.get::<i64, _>(0) as u64, hash: hash(&row, 1)? };
        let live: Vec<JobId> = super::live_ids(&mut tx).await?;
        let jobs = self.fold(&mut tx, &live).await?;
        let (jobs_known, newest): (i64, i64) =
            sqlx::query_as("SELECT count(*), coalesce(max(id), 0) FROM job").fetch_one(&mut *tx).await?;
        let missing = if jobs_known == newest { Vec::new() } else { missing(&mut tx).await? };
        let mut host_events = Vec::new();
        if let Some((registry, host)) = host {
            let rows = sqlx::query(
                "SELECT number, hash, log_index, tx_hash, address, topics, data FROM log JOIN block ON block.seq = log.block
                 WHERE job IS NULL AND canonical = 1 AND address = ? AND substr(topics, 33, 32) = ? AND kind IN
                     ('NodeRegistered', 'StakeAdded', 'NodeSlashed', 'NodeUnregistered', 'StakeMoved')
                 ORDER BY number, log_index",
            )
            .bind(registry.as_slice())
            .bind(host.into_word().to_vec())
            .fetch_all(&mut *tx)
            .await?;
            for row in &rows {
                host_events.extend((self.decode)(&raw_log(row)?));
            }
        }
        Ok(Some(Census { at, jobs, newest: JobId(newest as u64), missing, host_events }))
    }

    /// Returns the block that posted `job`, or where no log did, the one that posted the job before it: in it or later ones the
    /// posting is to be looked for.
    pub async fn posted_from(&self, job: JobId) -> Result<u64> {
        let block: Option<i64> =
            sqlx::query_scalar("SELECT posted_block FROM job WHERE id <= ? ORDER BY id DESC LIMIT 1")
                .bind(job.0 as i64)
                .fetch_optional(&self.readers)
                .await?;
        Ok(block.unwrap_or(0) as u64)
    }

    /// Forgets what is proven of the blocks from `from` on, where it is no more than `most`, and what stood against it: they are
    /// proven again in the background, and corrected. Returns how many.
    pub async fn doubt(&self, from: u64, most: Level) -> Result<u64> {
        let mut tx = self.writer.begin_with("BEGIN IMMEDIATE").await?;
        let rows = sqlx::query("SELECT first, last, level, reason FROM coverage WHERE last >= ? ORDER BY first")
            .bind(from as i64)
            .fetch_all(&mut *tx)
            .await?;
        let ranges = rows.iter().map(history::coverage).collect::<Result<Vec<_>>>()?;
        let doubted = ranges.into_iter().filter(|range| range.level <= most);
        let doubted: Vec<Coverage> =
            doubted.map(|range| Coverage::of(range.from.max(from), range.to, Level::Claimed, None)).collect();
        cover(&mut tx, &doubted).await?;
        tx.commit().await?;
        self.wake();
        Ok(doubted.iter().map(|range| range.to - range.from + 1).sum())
    }

    /// Notes whose logs the file holds. Where a contract is new to it, every block is read again in the background.
    ///
    /// # Errors
    /// If the file holds logs of a contract that is not among `addresses`.
    pub async fn watch(&self, addresses: &[Address]) -> Result<()> {
        let known: Vec<Vec<u8>> = sqlx::query_scalar("SELECT address FROM watched").fetch_all(&self.readers).await?;
        let gone = known.iter().find(|known| !addresses.iter().any(|address| address.as_slice() == known.as_slice()));
        if let Some(gone) = gone {
            anyhow::bail!(
                "the file holds the logs of contract {}, which the configuration does not name: use another data_dir or \
                 correct [contracts]",
                Address::try_from(&gone[..]).context("a stored address is not 20 bytes")?
            );
        }
        let new = addresses.iter().filter(|address| !known.iter().any(|known| known.as_slice() == address.as_slice()));
        let new: Vec<&Address> = new.collect();
        // A file without any is new, or older than this list.
        if !known.is_empty() && !new.is_empty() {
            let blocks = self.doubt(0, Level::Complete).await?;
            tracing::warn!(blocks, contracts = ?new, "contracts are new to the file: its blocks are read again");
        }
        for address in new {
            sqlx::query("INSERT INTO watched VALUES (?)").bind(address.as_slice()).execute(&self.writer).await?;
        }
        Ok(())
    }

    /// Returns each time that a contract said of itself that its code was replaced, or may be by another: block, contract and
    /// event, in order.
    pub async fn replaced_code(&self) -> Result<Vec<(u64, Address, String)>> {
        let rows = sqlx::query(
            "SELECT number, address, kind FROM log JOIN block ON block.seq = log.block
             WHERE job IS NULL AND canonical = 1 AND kind IN (SELECT value FROM json_each(?)) ORDER BY number, log_index",
        )
        .bind(serde_json::to_string(&Event::CODE_REPLACED)?)
        .fetch_all(&self.readers)
        .await?;
        rows.iter().map(|row| Ok((row.get::<i64, _>(0) as u64, address(row, 1)?, row.get(2)))).collect()
    }

    /// Returns the jobs in doubt, each with what is otherwise.
    pub async fn doubts(&self) -> Result<BTreeMap<JobId, String>> {
        let rows = sqlx::query("SELECT job, what FROM doubt").fetch_all(&self.readers).await?;
        Ok(rows.iter().map(|row| (JobId(row.get::<i64, _>(0) as u64), row.get(1))).collect())
    }

    /// Replaces the jobs in doubt: nothing is done for these until they are left out again.
    pub async fn set_doubts(&self, doubts: &BTreeMap<JobId, String>) -> Result<()> {
        if self.doubts().await? == *doubts {
            return Ok(());
        }
        let mut tx = self.writer.begin_with("BEGIN IMMEDIATE").await?;
        sqlx::query("DELETE FROM doubt").execute(&mut *tx).await?;
        for (job, what) in doubts {
            sqlx::query("INSERT INTO doubt VALUES (?, ?)").bind(job.0 as i64).bind(what).execute(&mut *tx).await?;
        }
        tx.commit().await?;
        self.live.touch_all();
        self.wake();
        Ok(())
    }
}

/// Returns the ids below the highest that have no row, the highest first.
async fn missing(connection: &mut SqliteConnection) -> Result<Vec<JobId>> {
    let gaps: Vec<(i64, i64)> = sqlx::query_as(
        "SELECT coalesce((SELECT max(id) FROM job WHERE id < later.id), 0) + 1, id - 1 FROM job AS later
         WHERE id > 1 AND NOT EXISTS (SELECT 1 FROM job WHERE id = later.id - 1) ORDER BY id DESC LIMIT ?",
    )
    .bind(Census::MISSING_MAX as i64)
    .fetch_all(connection)
    .await?;
    let ids = gaps.into_iter().flat_map(|(first, last)| (first..=last).rev()).map(|id| JobId(id as u64));
    Ok(ids.take(Census::MISSING_MAX).collect())
}
