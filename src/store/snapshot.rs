//! The stored canonical chain as it was at the end of one block, read from one unchanging state of the file, in pages.

use std::fmt;

use anyhow::{Context, Result};
use sqlx::sqlite::Sqlite;
use sqlx::{QueryBuilder, Row, SqliteConnection, Transaction};

use super::history::{Moment, TxRow, WorkRow, coverage, timeline, transactions};
use super::{Finality, JobFilter, JobRow, LogRow, SqliteRow, Store, Timeline, canonical_hash, hash, raw_log};
use crate::market::coverage::{Coverage, Proof};
use crate::market::event::{Event, Header, Level};
use crate::market::job::{Conflict, Job};
use crate::market::types::{Address, B256, JobId, UnixSeconds};

/// Jobs folded at once.
const JOBS_PER_PAGE: u32 = 500;

/// A block that is not stored was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NotStored {
    /// `None` where the newest was asked for.
    pub block: Option<u64>,
    /// First and last block that are stored.
    pub stored: Option<(u64, u64)>,
}

impl fmt::Display for NotStored {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.stored, self.block) {
            (Some((first, last)), Some(block)) => {
                write!(f, "block {block} is not stored: the database has blocks {first} to {last}")
            }
            _ => f.write_str("the database holds no block yet: `fabstir index` reads them"),
        }
    }
}
impl std::error::Error for NotStored {}

/// Which events; an absent field does not filter.
#[derive(Debug, Clone, Default)]
pub struct EventFilter {
    /// A name of [`Event::name`] in any case, or `undecoded`.
    pub kind: Option<String>,
    pub job: Option<JobId>,
    /// The contract that logged it.
    pub address: Option<Address>,
    /// First and last block.
    pub from: Option<u64>,
    pub to: Option<u64>,
}

impl EventFilter {
    /// Returns whether `row` is one of these.
    pub fn takes(&self, row: &EventRow) -> bool {
        let EventRow { row: LogRow { log, kind, job, .. }, .. } = row;
        let number = log.block.number;
        self.kind.as_ref().is_none_or(|name| kind.as_deref().unwrap_or("undecoded").eq_ignore_ascii_case(name))
            && (self.job.is_none() || self.job == *job)
            && self.address.is_none_or(|address| address == log.address)
            && self.from.is_none_or(|from| number >= from)
            && self.to.is_none_or(|to| number <= to)
    }
}

/// A canonical log with what it means and what is proven of its block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventRow {
    pub row: LogRow,
    pub time: UnixSeconds,
    /// `None` when it cannot be decoded.
    pub event: Option<Event>,
    pub proof: Proof,
}

/// See the module.
pub struct Snapshot {
    tx: Transaction<'static, Sqlite>,
    store: Store,
    /// First block stored.
    pub first: u64,
    /// The block at whose end this is.
    pub block: u64,
    /// Its hash; `None` where its header was dropped as final and without logs.
    pub hash: Option<B256>,
    moment: Option<Moment>,
    finality: Option<Finality>,
}

impl Store {
    /// Returns the stored chain at the end of block `at`, or of the newest. It stays so while others write; until it is dropped
    /// the file's write-ahead log grows.
    ///
    /// # Errors
    /// [`NotStored`] if the block is not.
    pub async fn snapshot(&self, at: Option<u64>) -> Result<Snapshot> {
        let mut tx = self.readers.begin().await?;
        let last: Option<i64> = sqlx::query_scalar("SELECT number FROM cursor").fetch_optional(&mut *tx).await?;
        let first: Option<i64> = sqlx::query_scalar("SELECT min(first) FROM coverage").fetch_one(&mut *tx).await?;
        let stored = first.zip(last).map(|(first, last)| (first as u64, last as u64));
        let (first, last) = stored.ok_or(NotStored { block: at, stored })?;
        let block = at.unwrap_or(last);
        if !(first..=last).contains(&block) {
            return Err(NotStored { block: at, stored }.into());
        }
        let moment = match at {
            Some(block) => Some(Moment { block, time: time_of(&mut tx, block).await? }),
            None => None,
        };
        let hash = canonical_hash(&mut tx, block).await?;
        let finality = super::finality(&mut tx).await?;
        Ok(Snapshot { tx, store: self.clone(), first, block, hash, moment, finality })
    }
}

impl Snapshot {
    /// Returns the chain's id.
    pub fn chain_id(&self) -> u64 {
        self.store.chain_id
    }

    /// Returns number and, where it is known, hash of the newest block at or below this one that is final, and how an endpoint
    /// contradicted that.
    pub fn finality(&self) -> Option<(u64, Option<B256>, Option<&str>)> {
        let Finality { block, violated, .. } = self.finality.as_ref()?;
        let here = if block.number <= self.block { (block.number, Some(block.hash)) } else { (self.block, self.hash) };
        Some((here.0, here.1, violated.as_deref()))
    }

    /// Returns the events after the place `(block, log index)`, in chain order, at most `limit`.
    pub async fn events(
        &mut self,
        filter: &EventFilter,
        after: Option<(u64, u64)>,
        limit: u32,
    ) -> Result<Vec<EventRow>> {
        let rows = select_events(&mut self.tx, filter, after, self.block, Order::Ascending, limit).await?;
        self.read_events(&rows)
    }

    /// Returns the newest `limit` events, in chain order.
    pub async fn last_events(&mut self, filter: &EventFilter, limit: u32) -> Result<Vec<EventRow>> {
        let mut rows = select_events(&mut self.tx, filter, None, self.block, Order::Descending, limit).await?;
        rows.reverse();
        self.read_events(&rows)
    }

    fn read_events(&self, rows: &[SqliteRow]) -> Result<Vec<EventRow>> {
        let last_final = self.finality.as_ref().map(|finality| finality.block.number);
        rows.iter().map(|row| self.store.event_row(row, last_final)).collect()
    }

    /// Returns the head of the journal's hash chain and the number of logs behind it.
    pub async fn journal_head(&mut self) -> Result<(B256, u64)> {
        let last = self.last_events(&EventFilter::default(), 1).await?.pop();
        let count: i64 = sqlx::query_scalar(
            "SELECT count(*) FROM block JOIN log ON log.block = block.seq WHERE canonical = 1 AND number <= ?",
        )
        .bind(self.block as i64)
        .fetch_one(&mut *self.tx)
        .await?;
        Ok((last.map_or(B256::ZERO, |event| event.row.link), count as u64))
    }

    /// Returns the jobs that match, newest first, folded from the events up to this block.
    pub async fn jobs(&mut self, filter: &JobFilter) -> Result<Vec<JobRow>> {
        let (mut jobs, mut before, limit) = (Vec::new(), i64::MAX, filter.limit as usize);
        while jobs.len() < limit {
            let page =
                self.job_ids("SELECT DISTINCT job FROM log WHERE job < ? ORDER BY job DESC LIMIT ?", before).await?;
            let Some(last) = page.last() else { break };
            before = last.0 as i64;
            let folded = self.fold_jobs(&page).await?;
            let rows = folded.iter().rev().filter_map(|job| job.as_ref().ok()).map(JobRow::of).filter(|row| {
                filter.state.as_ref().is_none_or(|state| row.state == *state)
                    && (filter.host.is_none() || row.host == filter.host)
            });
            jobs.extend(rows);
        }
        jobs.truncate(limit);
        Ok(jobs)
    }

    /// Returns some of the jobs above `after`, by number, and the number to go on after; at the end none. Those whose events
    /// contradict each other say how.
    pub async fn jobs_after(&mut self, after: JobId) -> Result<Option<(Vec<Result<Job, Conflict>>, JobId)>> {
        let after = i64::try_from(after.0).unwrap_or(i64::MAX);
        let page = self.job_ids("SELECT DISTINCT job FROM log WHERE job > ? ORDER BY job LIMIT ?", after).await?;
        let Some(last) = page.last() else { return Ok(None) };
        Ok(Some((self.fold_jobs(&page).await?, *last)))
    }

    /// Returns the job, or `None` when it was not posted by then.
    ///
    /// # Errors
    /// A [`Conflict`] when the events contradict each other.
    pub async fn job(&mut self, id: JobId) -> Result<Option<Job>> {
        Ok(self.fold_jobs(&[id]).await?.pop().transpose()?)
    }

    async fn job_ids(&mut self, select: &'static str, from: i64) -> Result<Vec<JobId>> {
        let ids: Vec<i64> = sqlx::query_scalar(select).bind(from).bind(JOBS_PER_PAGE).fetch_all(&mut *self.tx).await?;
        Ok(ids.into_iter().map(|id| JobId(id as u64)).collect())
    }

    /// Folds jobs from their events alone, by number; those not posted are left out.
    async fn fold_jobs(&mut self, jobs: &[JobId]) -> Result<Vec<Result<Job, Conflict>>> {
        let facts = self.store.chain_facts_until(&mut self.tx, jobs, self.block).await?;
        Ok(facts.iter().filter_map(|(id, told)| Job::fold(*id, told).transpose()).collect())
    }

    /// Returns what happened to a job; our work and our transactions as far as they came before the block's time.
    pub async fn timeline(&mut self, job: JobId) -> Result<Timeline> {
        timeline(&mut self.tx, job, self.moment).await
    }

    /// Returns what is proven of the blocks, in order.
    pub async fn coverage(&mut self) -> Result<Vec<Coverage>> {
        let rows =
            sqlx::query("SELECT first, min(last, ?1), level, reason FROM coverage WHERE first <= ?1 ORDER BY first")
                .bind(self.block as i64)
                .fetch_all(&mut *self.tx)
                .await?;
        rows.iter().map(coverage).collect()
    }

    /// Returns the stored headers above block `after`, in order, at most `limit`.
    pub async fn headers(&mut self, after: Option<u64>, limit: u32) -> Result<Vec<Header>> {
        let rows = sqlx::query(
            "SELECT number, hash, parent, time FROM block
             WHERE canonical = 1 AND number > ? AND number <= ? ORDER BY number LIMIT ?",
        )
        .bind(after.map_or(-1, |after| after as i64))
        .bind(self.block as i64)
        .bind(limit)
        .fetch_all(&mut *self.tx)
        .await?;
        rows.iter().map(super::history::header).collect()
    }

    /// Returns our finished work after the row `after`, in order, at most `limit`.
    pub async fn work(&mut self, after: i64, limit: u32) -> Result<Vec<WorkRow>> {
        let rows =
            sqlx::query("SELECT seq, job, did, at, body FROM work WHERE seq > ? AND at <= ? ORDER BY seq LIMIT ?")
                .bind(after)
                .bind(Moment::seconds(self.moment))
                .bind(limit)
                .fetch_all(&mut *self.tx)
                .await?;
        Ok(rows.iter().map(WorkRow::read).collect())
    }

    /// Returns our transactions after the one with id `after`, in order, at most `limit`.
    pub async fn transactions(&mut self, after: i64, limit: u32) -> Result<Vec<TxRow>> {
        transactions(&mut self.tx, None, self.moment, after, limit).await
    }
}

impl Store {
    /// Reads a row of [`select_events`].
    pub(super) fn event_row(&self, row: &SqliteRow, last_final: Option<u64>) -> Result<EventRow> {
        let log = raw_log(row)?;
        let name: Option<&str> = row.get(11);
        let level = name.and_then(Level::named).with_context(|| format!("a stored level is {name:?}"))?;
        let proof = Proof::of(level, log.block.number, last_final);
        let event = (self.decode)(&log).ok();
        let job = row.get::<Option<i64>, _>(8).map(|job| JobId(job as u64));
        let row_time = UnixSeconds(row.get::<i64, _>(10) as u64);
        let row = LogRow { log, kind: row.get(7), job, link: hash(row, 9)? };
        Ok(EventRow { row, time: row_time, event, proof })
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    Ascending,
    Descending,
}

/// Selects canonical logs up to block `to`, after a place where one is given.
pub(super) async fn select_events(
    connection: &mut SqliteConnection,
    filter: &EventFilter,
    after: Option<(u64, u64)>,
    to: u64,
    order: Order,
    limit: u32,
) -> Result<Vec<SqliteRow>> {
    let number = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
    let mut query = QueryBuilder::<Sqlite>::new(
        "SELECT b.number, b.hash, log_index, tx_hash, address, topics, data, kind, job, link, time,
                (SELECT level FROM coverage WHERE first <= b.number ORDER BY first DESC LIMIT 1) FROM ",
    );
    // Few logs are a job's; otherwise the blocks are gone through in order, which nothing has to sort.
    query.push(match filter.job {
        Some(_) => "log JOIN block b ON b.seq = log.block",
        None => "block b CROSS JOIN log ON log.block = b.seq",
    });
    let from = filter.from.unwrap_or(0).max(after.map_or(0, |place| place.0));
    query.push(" WHERE canonical = 1 AND b.number >= ").push_bind(number(from));
    query.push(" AND b.number <= ").push_bind(number(filter.to.map_or(to, |last| last.min(to))));
    if let Some((block, index)) = after {
        query.push(" AND (b.number > ").push_bind(number(block));
        query.push(" OR log_index > ").push_bind(number(index)).push(")");
    }
    if let Some(kind) = &filter.kind {
        query.push(" AND coalesce(kind, 'undecoded') = ").push_bind(kind.clone()).push(" COLLATE NOCASE");
    }
    if let Some(job) = filter.job {
        query.push(" AND job = ").push_bind(number(job.0));
    }
    if let Some(address) = filter.address {
        query.push(" AND address = ").push_bind(address.to_vec());
    }
    query.push(match order {
        Order::Ascending => " ORDER BY b.number, log_index LIMIT ",
        Order::Descending => " ORDER BY b.number DESC, log_index DESC LIMIT ",
    });
    Ok(query.push_bind(limit).build().fetch_all(connection).await?)
}

/// Returns the time of a canonical block; where its header was dropped, what its neighbours' times make it.
async fn time_of(connection: &mut SqliteConnection, number: u64) -> Result<UnixSeconds> {
    let mut near = [(0u64, 0u64); 2];
    let selects = [
        "SELECT number, time FROM block WHERE canonical = 1 AND number <= ? ORDER BY number DESC LIMIT 1",
        "SELECT number, time FROM block WHERE canonical = 1 AND number >= ? ORDER BY number LIMIT 1",
    ];
    for (place, select) in near.iter_mut().zip(selects) {
        let row = sqlx::query(select).bind(number as i64).fetch_one(&mut *connection).await?;
        *place = (row.get::<i64, _>(0) as u64, row.get::<i64, _>(1) as u64);
    }
    let [(low, early), (high, late)] = near;
    let blocks = high.saturating_sub(low).max(1);
    let share = u128::from(late.saturating_sub(early)) * u128::from(number - low) / u128::from(blocks);
    Ok(UnixSeconds(early + share as u64))
}
