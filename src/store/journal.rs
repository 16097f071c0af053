//! Extending and rewinding the journal: logs, what they mean and the cursor move together or not at all.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use serde::Serialize;
use sqlx::{Row, SqliteConnection};

use super::{JobRow, Store, hash, history::job_rows, raw_log};
use crate::market::event::{Header, Proof, Range, RawLog};
use crate::market::job::Job;
use crate::market::types::{B256, BlockRef, JobId};

/// What one extension of the journal brought.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Extended {
    pub logs: usize,
    /// Jobs whose facts changed.
    pub jobs: BTreeSet<JobId>,
    /// Logs of our contracts that could not be decoded; they are kept raw.
    pub undecoded: Vec<(B256, u64)>,
}

/// What deriving everything anew brought.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Rederived {
    /// Canonical logs read.
    pub logs: u64,
    /// Logs that were stored with another meaning or link.
    pub logs_changed: u64,
    pub jobs: u64,
    /// Jobs whose row was another, missing or too many.
    pub jobs_changed: Vec<JobId>,
    pub journal_head: B256,
}

/// Logs read at once while everything is derived anew.
const LOGS_PER_PAGE: i64 = 1000;

impl Store {
    /// Appends `range`, blocks that continue the cursor, folds the jobs that its logs touch and moves the cursor, in one
    /// transaction.
    ///
    /// # Errors
    /// If a header does not link to the one before, a log lies in none of the blocks, or a job's facts conflict:
    /// then nothing is stored.
    pub async fn extend(&self, range: &Range) -> Result<Extended> {
        let Range { headers, proofs, logs } = range;
        ensure!(proofs.len() == headers.len(), "{} proofs of {} blocks", proofs.len(), headers.len());
        let Some(last) = headers.last() else {
            ensure!(logs.is_empty(), "{} logs without a block", logs.len());
            return Ok(Extended::default());
        };
        let mut tx = self.writer.begin_with("BEGIN IMMEDIATE").await?;
        self.check_linked(&mut tx, headers, logs).await?;
        for (header, proof) in headers.iter().zip(proofs) {
            insert_block(&mut tx, header, proof).await?;
        }
        let mut extended = Extended { logs: logs.len(), ..Extended::default() };
        let mut head = journal_head(&mut tx).await?;
        for log in logs {
            head = log.link(head, self.chain_id);
            let event = (self.decode)(log);
            if event.is_err() {
                extended.undecoded.push((log.tx, log.index));
            }
            let (kind, job) = event.map_or((None, None), |event| (Some(event.name()), event.job()));
            extended.jobs.extend(job);
            insert_log(&mut tx, log, kind, job, head).await?;
        }
        for &job in &extended.jobs {
            self.project(&mut tx, job).await?;
        }
        move_cursor(&mut tx, last.block).await?;
        tx.commit().await?;
        self.wake();
        Ok(extended)
    }

    /// Makes everything that follows from the journal anew: what each log means, the journal's links, and every job. Asks
    /// nobody. `progress` is told how many logs are done.
    ///
    /// # Errors
    /// If the file cannot be read or written, or a job's facts conflict: then nothing is changed.
    pub async fn rederive(&self, progress: impl Fn(u64)) -> Result<Rederived> {
        let mut tx = self.writer.begin_with("BEGIN IMMEDIATE").await?;
        let before: Vec<JobRow> = job_rows(&mut tx).await?;
        let mut done = Rederived::default();
        let (mut head, mut place) = (B256::ZERO, (-1, -1));
        loop {
            let rows = sqlx::query(
                "SELECT block_number, block_hash, log_index, tx_hash, address, topics, data, kind, job, link, seq FROM log
                 WHERE canonical = 1 AND (block_number, log_index) > (?, ?) ORDER BY block_number, log_index LIMIT ?",
            )
            .bind(place.0)
            .bind(place.1)
            .bind(LOGS_PER_PAGE)
            .fetch_all(&mut *tx)
            .await?;
            let Some(last) = rows.last() else { break };
            place = (last.get(0), last.get(2));
            for row in &rows {
                let log = raw_log(row)?;
                head = log.link(head, self.chain_id);
                let (kind, job) = (self.decode)(&log).map_or((None, None), |event| (Some(event.name()), event.job()));
                let stored: (Option<&str>, Option<i64>, &[u8]) = (row.get(7), row.get(8), row.get(9));
                if stored == (kind, job.map(|job| job.0 as i64), head.as_slice()) {
                    continue;
                }
                done.logs_changed += 1;
                sqlx::query("UPDATE log SET (kind, job, link) = (?, ?, ?) WHERE seq = ?")
                    .bind(kind)
                    .bind(job.map(|job| job.0 as i64))
                    .bind(head.as_slice())
                    .bind(row.get::<i64, _>(10))
                    .execute(&mut *tx)
                    .await?;
            }
            done.logs += rows.len() as u64;
            progress(done.logs);
        }
        sqlx::query("DELETE FROM job").execute(&mut *tx).await?;
        let jobs: Vec<i64> =
            sqlx::query_scalar("SELECT DISTINCT job FROM log WHERE canonical = 1 AND job IS NOT NULL ORDER BY job")
                .fetch_all(&mut *tx)
                .await?;
        for job in jobs {
            self.project(&mut tx, JobId(job as u64)).await?;
        }
        let after = job_rows(&mut tx).await?;
        done.jobs = after.len() as u64;
        let differs = |row: &&JobRow| !before.contains(row);
        done.jobs_changed = after.iter().filter(differs).map(|row| row.id).collect();
        done.jobs_changed.extend(before.iter().map(|row| row.id).filter(|id| !after.iter().any(|row| row.id == *id)));
        done.journal_head = head;
        tx.commit().await?;
        self.wake();
        Ok(done)
    }

    async fn check_linked(&self, tx: &mut SqliteConnection, headers: &[Header], logs: &[RawLog]) -> Result<()> {
        let cursor = sqlx::query("SELECT number, hash FROM cursor").fetch_optional(tx).await?;
        let mut previous = match cursor {
            Some(row) => Some(BlockRef { number: row.get::<i64, _>(0) as u64, hash: hash(&row, 1)? }),
            None => None,
        };
        for header in headers {
            if let Some(previous) = previous {
                ensure!(
                    header.block.number == previous.number + 1 && header.parent == previous.hash,
                    "block {} ({}) does not follow block {} ({})",
                    header.block.number,
                    header.block.hash,
                    previous.number,
                    previous.hash
                );
            }
            previous = Some(header.block);
        }
        let first = headers[0].block.number;
        let mut place = None;
        for log in logs {
            let header = log.block.number.checked_sub(first).and_then(|offset| headers.get(offset as usize));
            ensure!(
                header.is_some_and(|header| header.block == log.block),
                "log {} of block {} ({}) lies in none of the blocks",
                log.index,
                log.block.number,
                log.block.hash
            );
            let here = Some((log.block.number, log.index));
            ensure!(here > place, "logs of block {} are out of order", log.block.number);
            place = here;
        }
        Ok(())
    }

    /// Takes every block above `to` out of the canonical chain, folds the jobs their logs had touched again, and moves
    /// the cursor back to `to`. Orphaned rows stay; our work stays; transactions mined there are owed again.
    ///
    /// # Errors
    /// If block `to` is not stored as canonical.
    pub async fn rewind(&self, to: u64) -> Result<usize> {
        let mut tx = self.writer.begin_with("BEGIN IMMEDIATE").await?;
        let target =
            super::canonical_hash(&mut tx, to).await?.with_context(|| format!("rewind to unknown block {to}"))?;
        let jobs: Vec<i64> = sqlx::query_scalar(
            "SELECT DISTINCT job FROM log WHERE block_number > ? AND canonical = 1 AND job IS NOT NULL",
        )
        .bind(to as i64)
        .fetch_all(&mut *tx)
        .await?;
        for statement in [
            "UPDATE log SET canonical = 0 WHERE block_number > ? AND canonical = 1",
            "UPDATE block SET canonical = 0 WHERE number > ? AND canonical = 1",
            "UPDATE tx_intent SET state = 'signed' WHERE id IN (
                 SELECT intent FROM tx_attempt JOIN tx_receipt USING (hash) WHERE block_number > ?)",
            "DELETE FROM tx_receipt WHERE block_number > ?",
        ] {
            sqlx::query(statement).bind(to as i64).execute(&mut *tx).await?;
        }
        for &job in &jobs {
            self.project(&mut tx, JobId(job as u64)).await?;
        }
        move_cursor(&mut tx, BlockRef { number: to, hash: target }).await?;
        tx.commit().await?;
        self.wake();
        Ok(jobs.len())
    }

    /// Folds a job anew and writes its row, or removes the row when the job is no longer posted.
    async fn project(&self, tx: &mut SqliteConnection, id: JobId) -> Result<()> {
        match self.fold(&mut *tx, id).await? {
            Some(job) => write_job(tx, &job).await,
            None => {
                sqlx::query("DELETE FROM job WHERE id = ?").bind(id.0 as i64).execute(tx).await?;
                Ok(())
            }
        }
    }

    /// Returns the head of the journal's hash chain and the number of canonical logs behind it.
    pub async fn journal_head(&self) -> Result<(B256, u64)> {
        let mut reader = self.readers.acquire().await?;
        let head = journal_head(&mut reader).await?;
        let count: i64 =
            sqlx::query_scalar("SELECT count(*) FROM log WHERE canonical = 1").fetch_one(&mut *reader).await?;
        Ok((head, count as u64))
    }
}

async fn journal_head(connection: &mut SqliteConnection) -> Result<B256> {
    let row =
        sqlx::query("SELECT link FROM log WHERE canonical = 1 ORDER BY block_number DESC, log_index DESC LIMIT 1")
            .fetch_optional(connection)
            .await?;
    row.map_or(Ok(B256::ZERO), |row| hash(&row, 0))
}

/// Adds a block, or takes an orphaned one back.
async fn insert_block(tx: &mut SqliteConnection, header: &Header, proof: &Proof) -> Result<()> {
    let Header { block, parent, time } = header;
    let what = || format!("store block {} ({})", block.number, block.hash);
    let stored = sqlx::query(
        "INSERT INTO block (hash, number, parent, time, proof, unproven, canonical) VALUES (?, ?, ?, ?, ?, ?, 1)
         ON CONFLICT (hash) DO UPDATE SET (canonical, proof, unproven) = (1, excluded.proof, excluded.unproven)
         WHERE canonical = 0 AND (number, parent, time) = (excluded.number, excluded.parent, excluded.time)",
    )
    .bind(block.hash.as_slice())
    .bind(block.number as i64)
    .bind(parent.as_slice())
    .bind(time.0 as i64)
    .bind(proof.level.name())
    .bind(&proof.reason)
    .execute(tx)
    .await
    .with_context(what)?;
    ensure!(stored.rows_affected() == 1, "{}: its hash is stored already, with another number, parent or time", what());
    Ok(())
}

/// Adds a log. One of a block that was orphaned and is back is written anew: this program may read more of it.
async fn insert_log(
    tx: &mut SqliteConnection,
    log: &RawLog,
    kind: Option<&str>,
    job: Option<JobId>,
    link: B256,
) -> Result<()> {
    sqlx::query(
        "INSERT INTO log (block_hash, block_number, log_index, tx_hash, address, topics, data, kind, job, link, canonical)
         VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 1)
         ON CONFLICT (block_hash, log_index) DO UPDATE SET (tx_hash, address, topics, data, kind, job, link, canonical) =
             (excluded.tx_hash, excluded.address, excluded.topics, excluded.data, excluded.kind, excluded.job,
              excluded.link, 1) WHERE canonical = 0",
    )
    .bind(log.block.hash.as_slice())
    .bind(log.block.number as i64)
    .bind(log.index as i64)
    .bind(log.tx.as_slice())
    .bind(log.address.as_slice())
    .bind(log.topics.concat())
    .bind(log.data.as_ref())
    .bind(kind)
    .bind(job.map(|job| job.0 as i64))
    .bind(link.as_slice())
    .execute(tx)
    .await
    .with_context(|| format!("store log {} of block {}", log.index, log.block.number))?;
    Ok(())
}

async fn move_cursor(tx: &mut SqliteConnection, to: BlockRef) -> Result<()> {
    sqlx::query(
        "INSERT INTO cursor VALUES (1, ?, ?) ON CONFLICT DO UPDATE SET number = excluded.number, hash = excluded.hash",
    )
    .bind(to.number as i64)
    .bind(to.hash.as_slice())
    .execute(tx)
    .await?;
    Ok(())
}

async fn write_job(tx: &mut SqliteConnection, job: &Job) -> Result<()> {
    let row = JobRow::of(job);
    let terms = &job.terms;
    sqlx::query(
        "INSERT INTO job (id, state, renter, host, model, input, max_tokens, token, payment, deadline, requires_proof,
                          posted_block, tokens, output, paid)
         VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
         ON CONFLICT (id) DO UPDATE SET (state, renter, host, model, input, max_tokens, token, payment, deadline,
             requires_proof, posted_block, tokens, output, paid) = (excluded.state, excluded.renter, excluded.host,
             excluded.model, excluded.input, excluded.max_tokens, excluded.token, excluded.payment, excluded.deadline,
             excluded.requires_proof, excluded.posted_block, excluded.tokens, excluded.output, excluded.paid)",
    )
    .bind(job.id.0 as i64)
    .bind(job.state.name())
    .bind(terms.renter.as_slice())
    .bind(job.host().map(|host| host.to_vec()))
    .bind(&terms.model)
    .bind(&terms.input)
    .bind(i64::from(terms.max_tokens))
    .bind(terms.token.as_slice())
    .bind(terms.payment.to_string())
    .bind(i64::try_from(terms.deadline.0).unwrap_or(i64::MAX))
    .bind(terms.requires_proof)
    .bind(job.posted.number as i64)
    .bind(row.tokens.map(i64::from))
    .bind(row.output)
    .bind(row.paid.map(|amount| amount.to_string()))
    .execute(tx)
    .await
    .with_context(|| format!("write job {}", job.id))?;
    Ok(())
}
