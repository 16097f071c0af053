//! Read-only views for people: lists of jobs, one job's timeline, and the rows an audit compares.

use alloy::primitives::keccak256;
use anyhow::{Context, Result};
use serde::Serialize;
use sqlx::{AssertSqlSafe, Row, SqliteConnection};

use super::{SqliteRow, Store, address, amount, hash, raw_log};
use crate::market::coverage::{Coverage, Proof};
use crate::market::event::{Header, Level, RawLog};
use crate::market::job::{Job, Work};
use crate::market::types::{self, Address, B256, BlockRef, JobId, U256, UnixSeconds};

/// Which jobs to list; an absent field does not filter.
#[derive(Debug, Clone, Default)]
pub struct JobFilter {
    /// One of the names of [`crate::market::job::State::name`].
    pub state: Option<String>,
    pub host: Option<Address>,
    /// At most this many, newest first.
    pub limit: u32,
}

/// A row of the job table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct JobRow {
    pub id: JobId,
    pub state: String,
    pub renter: Address,
    pub host: Option<Address>,
    pub model: String,
    /// Text of the content id of the prompt, as the renter wrote it.
    pub input: String,
    pub max_tokens: u32,
    pub token: Address,
    /// In the smallest unit of `token`.
    #[serde(serialize_with = "types::decimal")]
    pub payment: U256,
    /// Net amount paid to the host, or refunded to the renter.
    #[serde(serialize_with = "types::decimal_or_null")]
    pub paid: Option<U256>,
    pub tokens: Option<u32>,
    pub output: Option<String>,
    pub deadline: UnixSeconds,
    pub requires_proof: bool,
    pub posted_block: u64,
}

/// Everything that happened to one job, in three strands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Timeline {
    pub entries: Vec<Entry>,
}

/// One line of a timeline.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "strand", rename_all = "snake_case")]
pub enum Entry {
    Event {
        time: UnixSeconds,
        block: u64,
        tx: B256,
        name: String,
        canonical: bool,
        /// What is proven of the block; nothing of an orphan.
        proof: Option<Proof>,
    },
    Work {
        time: UnixSeconds,
        #[serde(flatten)]
        work: Work,
    },
    Transaction {
        time: UnixSeconds,
        kind: String,
        state: String,
        nonce: Option<u64>,
        hashes: Vec<B256>,
        gas_used: Option<u64>,
        #[serde(serialize_with = "types::decimal_or_null")]
        fee_wei: Option<U256>,
        note: Option<String>,
    },
}

impl Entry {
    fn order(&self) -> (UnixSeconds, u8) {
        match self {
            Entry::Event { time, .. } => (*time, 0),
            Entry::Work { time, .. } => (*time, 1),
            Entry::Transaction { time, .. } => (*time, 2),
        }
    }
}

/// A transaction of ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TxRow {
    pub id: i64,
    pub job: Option<JobId>,
    /// When it was owed.
    pub time: UnixSeconds,
    pub kind: String,
    pub target: Address,
    pub signer: Address,
    pub state: String,
    pub nonce: Option<u64>,
    pub note: Option<String>,
    /// One for each set of bytes that was signed, oldest first.
    pub hashes: Vec<B256>,
    /// Where it was mined.
    pub block: Option<u64>,
    pub gas_used: Option<u64>,
    /// Wei per gas.
    pub gas_price: Option<U256>,
    /// Wei that a rollup took besides, for the chain below.
    pub l1_fee: Option<U256>,
}

impl TxRow {
    /// Returns what it cost once it was mined.
    pub fn fee_wei(&self) -> Option<U256> {
        let gas = self.gas_price?.saturating_mul(U256::from(self.gas_used?));
        Some(gas.saturating_add(self.l1_fee.unwrap_or_default()))
    }

    fn entry(self) -> Entry {
        let fee = self.fee_wei();
        Entry::Transaction {
            time: self.time,
            kind: self.kind,
            state: self.state,
            nonce: self.nonce,
            hashes: self.hashes,
            gas_used: self.gas_used,
            fee_wei: fee,
            note: self.note,
        }
    }
}

/// Something this node finished, as stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkRow {
    pub seq: i64,
    pub job: JobId,
    pub did: String,
    pub time: UnixSeconds,
    /// JSON of a [`Work`].
    pub body: String,
}

impl WorkRow {
    /// Reads the columns `seq, job, did, at, body`.
    pub(super) fn read(row: &SqliteRow) -> Self {
        WorkRow {
            seq: row.get(0),
            job: JobId(row.get::<i64, _>(1) as u64),
            did: row.get(2),
            time: UnixSeconds(row.get::<i64, _>(3) as u64),
            body: row.get(4),
        }
    }
}

/// The end of a block: what the chain told up to the block, and what we did up to its time.
#[derive(Debug, Clone, Copy)]
pub(super) struct Moment {
    pub block: u64,
    pub time: UnixSeconds,
}

impl Moment {
    /// Returns its time for a query; of the present, a time that never comes.
    pub(super) fn seconds(moment: Option<Moment>) -> i64 {
        moment.and_then(|moment| i64::try_from(moment.time.0).ok()).unwrap_or(i64::MAX)
    }

    fn block(moment: Option<Moment>) -> i64 {
        moment.map_or(i64::MAX, |moment| moment.block as i64)
    }
}

/// A stored log with what we made of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogRow {
    pub log: RawLog,
    pub kind: Option<String>,
    pub job: Option<JobId>,
    pub link: B256,
}

impl Store {
    /// Returns the jobs that match, newest first.
    pub async fn jobs(&self, filter: &JobFilter) -> Result<Vec<JobRow>> {
        let rows = sqlx::query(AssertSqlSafe(format!(
            "SELECT {} FROM job WHERE (?1 IS NULL OR state = ?1) AND (?2 IS NULL OR host = ?2) ORDER BY id DESC LIMIT ?3",
            JobRow::COLUMNS
        )))
        .bind(&filter.state)
        .bind(filter.host.map(|host| host.to_vec()))
        .bind(i64::from(filter.limit))
        .fetch_all(&self.readers)
        .await?;
        rows.iter().map(job_row).collect()
    }

    /// Returns what is proven of the stored blocks, in order.
    pub async fn coverage(&self) -> Result<Vec<Coverage>> {
        let rows = sqlx::query("SELECT first, last, level, reason FROM coverage ORDER BY first")
            .fetch_all(&self.readers)
            .await?;
        rows.iter().map(coverage).collect()
    }

    /// Returns blocks in a row that are stored on an endpoint's word with nothing against it, or `None`: those that hold logs first,
    /// of these the newest.
    pub async fn newest_claimed(&self) -> Result<Option<Coverage>> {
        let with_logs: Vec<i64> = sqlx::query_scalar(
            "SELECT number FROM coverage JOIN block ON number BETWEEN first AND last
             WHERE level = 'claimed' AND reason IS NULL AND canonical = 1
             AND EXISTS (SELECT 1 FROM log WHERE log.block = block.seq) ORDER BY first DESC, number DESC LIMIT 1000",
        )
        .fetch_all(&self.readers)
        .await?;
        if let [to, ..] = with_logs[..] {
            let in_a_row = with_logs.iter().zip(0..).take_while(|(number, place)| **number == to - place).count();
            return Ok(Some(Coverage::of((to + 1) as u64 - in_a_row as u64, to as u64, Level::Claimed, None)));
        }
        let row = sqlx::query(
            "SELECT first, last, level, reason FROM coverage WHERE level = 'claimed' AND reason IS NULL
             ORDER BY first DESC LIMIT 1",
        )
        .fetch_optional(&self.readers)
        .await?;
        row.as_ref().map(coverage).transpose()
    }

    /// Returns what is proven of the stored block `number`, or `None` when it is not stored.
    pub async fn level(&self, number: u64) -> Result<Option<Level>> {
        let row = sqlx::query(
            "SELECT first, last, level, reason FROM coverage WHERE first <= ?1 AND last >= ?1 ORDER BY first DESC LIMIT 1",
        )
        .bind(number as i64)
        .fetch_optional(&self.readers)
        .await?;
        Ok(row.as_ref().map(coverage).transpose()?.map(|range| range.level))
    }

    /// Returns whether which logs the canonical block `number` has is proven.
    pub async fn is_proven(&self, number: u64) -> Result<bool> {
        Ok(self.level(number).await?.is_some_and(Level::is_proven))
    }

    /// Returns the jobs whose canonical logs contradict each other, each with how.
    pub async fn conflicts(&self) -> Result<Vec<(JobId, String)>> {
        let rows = sqlx::query("SELECT job, what FROM conflict ORDER BY job").fetch_all(&self.readers).await?;
        Ok(rows.iter().map(|row| (JobId(row.get::<i64, _>(0) as u64), row.get(1))).collect())
    }

    /// Returns what happened to a job, oldest first: events with orphans marked, our work, our transactions.
    pub async fn timeline(&self, job: JobId) -> Result<Timeline> {
        timeline(&mut *self.readers.acquire().await?, job, None).await
    }

    /// Returns our transactions, of one job or all, oldest first.
    pub async fn transactions(&self, job: Option<JobId>) -> Result<Vec<Entry>> {
        let rows = transactions(&mut *self.readers.acquire().await?, job, None, 0, u32::MAX).await?;
        Ok(rows.into_iter().map(TxRow::entry).collect())
    }

    /// Returns our transactions as they are now, oldest first: all, or those that are open.
    pub async fn tx_rows(&self, open: bool) -> Result<Vec<TxRow>> {
        let rows = transactions(&mut *self.readers.acquire().await?, None, None, 0, u32::MAX).await?;
        Ok(rows.into_iter().filter(|row| !open || matches!(&*row.state, "queued" | "signed")).collect())
    }

    /// Returns the stored canonical headers of `from..=to`, in order.
    pub async fn blocks(&self, from: u64, to: u64) -> Result<Vec<Header>> {
        blocks(&mut *self.readers.acquire().await?, from, to).await
    }

    /// Returns the canonical logs of blocks `from..=to`, in chain order.
    pub async fn logs(&self, from: u64, to: u64) -> Result<Vec<LogRow>> {
        logs(&mut *self.readers.acquire().await?, from, to).await
    }

    /// Returns the lowest block indexed, or `None` in a new file.
    pub async fn first_block(&self) -> Result<Option<u64>> {
        let number: Option<i64> = sqlx::query_scalar(
            "SELECT min(lowest) FROM (SELECT min(first) AS lowest FROM coverage
                 UNION ALL SELECT min(number) FROM block WHERE canonical = 1)",
        )
        .fetch_one(&self.readers)
        .await?;
        Ok(number.map(|number| number as u64))
    }
}

impl JobRow {
    /// Returns the row that `job` folds to: what the table must hold.
    pub fn of(job: &Job) -> Self {
        use crate::market::job::State;
        let (tokens, output, paid) = match &job.state {
            State::Posted | State::Claimed { .. } => (None, None, None),
            State::Committed { commitment, .. } => (Some(commitment.tokens), None, None),
            State::Completed { commitment, output, .. } | State::Disputed { commitment, output, .. } => {
                (Some(commitment.tokens), Some(output.clone()), None)
            }
            State::Released { commitment, output, amount, .. } => {
                (Some(commitment.tokens), Some(output.clone()), Some(*amount))
            }
            State::Refunded { amount, .. } => (None, None, Some(*amount)),
        };
        JobRow {
            id: job.id,
            state: job.state.name().into(),
            renter: job.terms.renter,
            host: job.host(),
            model: job.terms.model.clone(),
            input: job.terms.input.clone(),
            max_tokens: job.terms.max_tokens,
            token: job.terms.token,
            payment: job.terms.payment,
            paid,
            tokens,
            output,
            // As far as the table's integers go.
            deadline: UnixSeconds(job.terms.deadline.0.min(i64::MAX as u64)),
            requires_proof: job.terms.requires_proof,
            posted_block: job.posted.number,
        }
    }

    /// Its columns, in the order in which they are read and written.
    pub(super) const COLUMNS: &str =
        "id, state, renter, host, model, input, max_tokens, token, payment, deadline, requires_proof,
        posted_block, tokens, output, paid";

    /// Returns the digest of the row: `keccak256` of its columns as JSON.
    pub(super) fn digest(&self) -> B256 {
        keccak256(serde_json::to_vec(self).unwrap_or_default())
    }

    /// Names the first column that differs from what the chain says.
    pub(super) fn differs_from(&self, folded: &JobRow) -> Result<String> {
        let (row, folded) = (serde_json::to_value(self)?, serde_json::to_value(folded)?);
        let columns = row.as_object().context("a row is an object")?;
        let column = columns.iter().find(|(name, value)| folded[name.as_str()] != **value);
        Ok(column.map_or_else(
            || "no column differs".into(),
            |(name, value)| format!("column {name} is {value}, the chain says {}", folded[name.as_str()]),
        ))
    }
}

/// Returns what happened to a job, now or up to a moment: then without orphans, as it was then.
pub(super) async fn timeline(connection: &mut SqliteConnection, job: JobId, until: Option<Moment>) -> Result<Timeline> {
    let mut entries = Vec::new();
    let last_final = super::finality(&mut *connection).await?.map(|finality| finality.block.number);
    let events = sqlx::query(
        "SELECT time, number, tx_hash, kind, canonical,
                (SELECT level FROM coverage WHERE first <= number ORDER BY first DESC LIMIT 1)
         FROM log JOIN block ON block.seq = log.block
         WHERE job = ?1 AND number <= ?2 AND (canonical = 1 OR ?3) ORDER BY number, log.block, log_index",
    )
    .bind(job.0 as i64)
    .bind(Moment::block(until))
    .bind(until.is_none())
    .fetch_all(&mut *connection)
    .await?;
    for row in &events {
        let (block, canonical) = (row.get::<i64, _>(1) as u64, row.get(4));
        let level = row.get::<Option<&str>, _>(5).and_then(Level::named);
        entries.push(Entry::Event {
            time: UnixSeconds(row.get::<i64, _>(0) as u64),
            block,
            tx: hash(row, 2)?,
            name: row.get::<Option<String>, _>(3).unwrap_or_else(|| "undecoded".into()),
            canonical,
            proof: level.filter(|_| canonical).map(|level| Proof::of(level, block, last_final)),
        });
    }
    let work = sqlx::query("SELECT seq, job, did, at, body FROM work WHERE job = ? AND at <= ? ORDER BY seq")
        .bind(job.0 as i64)
        .bind(Moment::seconds(until))
        .fetch_all(&mut *connection)
        .await?;
    for WorkRow { time, body, .. } in work.iter().map(WorkRow::read) {
        entries.push(Entry::Work { time, work: serde_json::from_str(&body)? });
    }
    let transactions = transactions(connection, Some(job), until, 0, u32::MAX).await?;
    entries.extend(transactions.into_iter().map(TxRow::entry));
    entries.sort_by_key(Entry::order);
    Ok(Timeline { entries })
}

/// Returns our transactions after the one with id `after`, of one job or all, oldest first: as they are now, or were at a moment.
/// That one was dropped has no time: it was so ever since it was owed.
pub(super) async fn transactions(
    connection: &mut SqliteConnection,
    job: Option<JobId>,
    until: Option<Moment>,
    after: i64,
    limit: u32,
) -> Result<Vec<TxRow>> {
    let rows = sqlx::query(
        "SELECT i.id, i.job, i.at, i.kind, i.target, i.signer, i.state, i.nonce, i.note,
                (SELECT group_concat(lower(hex(hash)) ORDER BY signed_at, hash) FROM tx_attempt
                 WHERE intent = i.id AND signed_at <= ?3),
                r.block_number, r.gas_used, r.gas_price, r.l1_fee
         FROM tx_intent i LEFT JOIN tx_attempt a ON a.intent = i.id
              AND a.hash IN (SELECT hash FROM tx_receipt WHERE block_number <= ?2)
         LEFT JOIN tx_receipt r ON r.hash = a.hash
         WHERE (?1 IS NULL OR i.job = ?1) AND i.at <= ?3 AND i.id > ?4 ORDER BY i.id LIMIT ?5",
    )
    .bind(job.map(|job| job.0 as i64))
    .bind(Moment::block(until))
    .bind(Moment::seconds(until))
    .bind(after)
    .bind(limit)
    .fetch_all(connection)
    .await?;
    let number = |row: &SqliteRow, column| row.get::<Option<i64>, _>(column).map(|number| number as u64);
    rows.iter()
        .map(|row| {
            let hashes = row.get::<Option<&str>, _>(9).unwrap_or_default();
            let hashes: Vec<B256> =
                hashes.split(',').filter(|hash| !hash.is_empty()).map(str::parse).collect::<Result<_, _>>()?;
            let block = number(row, 10);
            let (mut state, mut nonce): (&str, _) = (row.get(6), number(row, 7));
            // Signed or mined only later.
            if until.is_some() && block.is_none() && state != "dropped" {
                (state, nonce) = if hashes.is_empty() { ("queued", None) } else { ("signed", nonce) };
            }
            Ok(TxRow {
                id: row.get(0),
                job: number(row, 1).map(JobId),
                time: UnixSeconds(row.get::<i64, _>(2) as u64),
                kind: row.get(3),
                target: address(row, 4)?,
                signer: address(row, 5)?,
                state: state.into(),
                nonce,
                note: row.get(8),
                hashes,
                block,
                gas_used: number(row, 11),
                gas_price: block.map(|_| amount(row, 12)).transpose()?,
                l1_fee: block.map(|_| amount(row, 13)).transpose()?,
            })
        })
        .collect()
}

pub(super) async fn blocks(connection: &mut SqliteConnection, from: u64, to: u64) -> Result<Vec<Header>> {
    let rows = sqlx::query(
        "SELECT number, hash, parent, time FROM block WHERE canonical = 1 AND number BETWEEN ? AND ? ORDER BY number",
    )
    .bind(from as i64)
    .bind(to as i64)
    .fetch_all(connection)
    .await?;
    rows.iter().map(header).collect()
}

/// Reads the columns `number, hash, parent, time`.
pub(super) fn header(row: &SqliteRow) -> Result<Header> {
    Ok(Header {
        block: BlockRef { number: row.get::<i64, _>(0) as u64, hash: hash(row, 1)? },
        parent: hash(row, 2)?,
        time: UnixSeconds(row.get::<i64, _>(3) as u64),
    })
}

pub(super) async fn logs(connection: &mut SqliteConnection, from: u64, to: u64) -> Result<Vec<LogRow>> {
    let rows = sqlx::query(
        "SELECT number, hash, log_index, tx_hash, address, topics, data, kind, job, link
         FROM block JOIN log ON log.block = block.seq
         WHERE canonical = 1 AND number BETWEEN ? AND ? ORDER BY number, log_index",
    )
    .bind(from as i64)
    .bind(to as i64)
    .fetch_all(connection)
    .await?;
    rows.iter()
        .map(|row| {
            Ok(LogRow {
                log: raw_log(row)?,
                kind: row.get(7),
                job: row.get::<Option<i64>, _>(8).map(|job| JobId(job as u64)),
                link: hash(row, 9)?,
            })
        })
        .collect()
}

/// Reads a level's stored name.
pub(super) fn level(name: &str) -> Result<Level> {
    Level::named(name).with_context(|| format!("a stored level is {name:?}"))
}

/// Reads the columns `first, last, level, reason`.
pub(super) fn coverage(row: &SqliteRow) -> Result<Coverage> {
    Ok(Coverage {
        from: row.get::<i64, _>(0) as u64,
        to: row.get::<i64, _>(1) as u64,
        level: level(row.get(2))?,
        reason: row.get(3),
    })
}

/// Reads [`JobRow::COLUMNS`].
pub(super) fn job_row(row: &SqliteRow) -> Result<JobRow> {
    Ok(JobRow {
        id: JobId(row.get::<i64, _>(0) as u64),
        state: row.get(1),
        renter: address(row, 2)?,
        host: if row.get::<Option<&[u8]>, _>(3).is_some() { Some(address(row, 3)?) } else { None },
        model: row.get(4),
        input: row.get(5),
        max_tokens: row.get::<i64, _>(6) as u32,
        token: address(row, 7)?,
        payment: amount(row, 8)?,
        deadline: UnixSeconds(row.get::<i64, _>(9) as u64),
        requires_proof: row.get(10),
        posted_block: row.get::<i64, _>(11) as u64,
        tokens: row.get::<Option<i64>, _>(12).map(|tokens| tokens as u32),
        output: row.get(13),
        paid: if row.get::<Option<&str>, _>(14).is_some() { Some(amount(row, 14)?) } else { None },
    })
}
