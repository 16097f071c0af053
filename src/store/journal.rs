//! Extending, confirming and rewinding the journal: logs, what they mean and the cursor move together or not at all.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use anyhow::{Context, Result, ensure};
use serde::Serialize;
use sqlx::sqlite::Sqlite;
use sqlx::{QueryBuilder, Row, SqliteConnection};

use super::projection::{Facts, fold_each, statements, write};
use super::{Store, hash, history, raw_log};
use crate::failpoint::{self, Point};
use crate::market::coverage::{Coverage, lay};
use crate::market::event::{Event, Header, Level, Range, RawLog};
use crate::market::job::Fact;
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

/// A block that was stored with other logs than are proven, or as another block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Correction {
    pub block: BlockRef,
    pub logs_before: usize,
    pub logs: usize,
}

/// Logs read at once while everything is derived anew, and jobs.
const LOGS_PER_PAGE: i64 = 1000;
const JOBS_PER_PAGE: usize = 500;
/// Facts of unfinished jobs that are kept while everything is derived anew, some 500 bytes each; what is more is read a second time.
const FACTS_KEPT_MAX: usize = 60_000;

/// The newest canonical log below a block.
const NEWEST_LOG: &str = "FROM block CROSS JOIN log ON log.block = block.seq
     WHERE canonical = 1 AND number < ?1 ORDER BY number DESC, log_index DESC LIMIT 1";

/// The newest block's row, which is there in any file but a new one, and whether blocks `?2` to `?3` were stored before and orphaned.
const ROWS_OF_BLOCKS: &str = "coalesce((SELECT seq FROM block ORDER BY seq DESC LIMIT 1), 0),
     EXISTS (SELECT 1 FROM block WHERE canonical = 0 AND number BETWEEN ?2 AND ?3)";

/// The greatest number of a job that any log tells of.
const GREATEST_JOB: &str = "coalesce((SELECT job FROM log WHERE job IS NOT NULL ORDER BY job DESC LIMIT 1), 0)";

/// A log with what we make of it, as it is written.
struct Entry<'a> {
    /// Its block's row.
    block: i64,
    log: &'a RawLog,
    kind: Option<&'static str>,
    job: Option<JobId>,
    link: B256,
}

/// What logs tell of jobs, gathered while all of them are read in chain order, so that a job is folded as soon as its last log is known.
#[derive(Default)]
struct Gathered {
    /// Logs of each job that are still to come.
    left: HashMap<JobId, i64>,
    facts: Facts,
    /// How many facts that is.
    kept: usize,
    /// Jobs all of whose logs were read, with their facts.
    ready: Facts,
    complete: BTreeSet<JobId>,
    /// Jobs to be read again at the end: too many were open at once, or a log's stored meaning was wrong.
    later: BTreeSet<JobId>,
}

impl Gathered {
    /// Returns that of a file of which nothing was read yet.
    async fn of(tx: &mut SqliteConnection) -> Result<Self> {
        let rows = sqlx::query(
            "SELECT job, count(*) FROM log JOIN block ON block.seq = log.block
             WHERE canonical = 1 AND job IS NOT NULL GROUP BY job",
        )
        .fetch_all(tx)
        .await?;
        let left = rows.iter().map(|row| (JobId(row.get::<i64, _>(0) as u64), row.get(1))).collect();
        Ok(Self { left, ..Self::default() })
    }

    fn take(&mut self, job: JobId, event: Event, block: BlockRef) {
        if self.complete.contains(&job) {
            self.later.insert(job);
        }
        if self.later.contains(&job) {
            return;
        }
        let left = self.left.entry(job).or_default();
        *left -= 1;
        let is_last = *left == 0;
        let facts = self.facts.entry(job).or_default();
        if Event::OF_JOBS.contains(&event.name()) {
            facts.push(Fact::Chain { event, block });
            self.kept += 1;
        }
        if is_last {
            let facts = self.facts.remove(&job).unwrap_or_default();
            self.kept -= facts.len();
            self.ready.insert(job, facts);
            self.complete.insert(job);
        } else if self.kept > FACTS_KEPT_MAX {
            self.later.extend(std::mem::take(&mut self.facts).into_keys());
            self.kept = 0;
        }
    }

    /// Folds and writes what is ready, if there are `least` jobs of it.
    async fn write(&mut self, tx: &mut SqliteConnection, least: usize, done: &mut Rederived) -> Result<()> {
        if self.ready.len() >= least {
            let ready = std::mem::take(&mut self.ready);
            let jobs: Vec<JobId> = ready.keys().copied().collect();
            let (folded, conflicts) = fold_each(&ready);
            done.jobs_changed.extend(write(tx, &jobs, &folded, conflicts).await?);
        }
        Ok(())
    }
}

impl Store {
    /// Appends `range`, blocks that continue the cursor, folds the jobs that its logs touch and moves the cursor, in one
    /// transaction.
    ///
    /// # Errors
    /// If a header does not link to the one before or a log lies in none of the blocks: then nothing is stored.
    pub async fn extend(&self, range: &Range) -> Result<Extended> {
        let Range { headers, coverage, logs } = range;
        let Some(last) = headers.last() else {
            ensure!(logs.is_empty() && coverage.is_empty(), "{} logs without a block", logs.len());
            return Ok(Extended::default());
        };
        let begun = async {
            let mut tx = self.writer.begin_with("BEGIN IMMEDIATE").await?;
            let row = sqlx::query(sqlx::AssertSqlSafe(format!(
                "SELECT number, hash, data_version, (SELECT link {NEWEST_LOG}), {ROWS_OF_BLOCKS}, {GREATEST_JOB}
                 FROM pragma_data_version LEFT JOIN cursor"
            )))
            .bind(i64::MAX)
            .bind(headers.first().map_or(0, |header| header.block.number as i64))
            .bind(last.block.number as i64)
            .fetch_one(&mut *tx)
            .await?;
            let number: Option<i64> = row.get(0);
            let cursor = match number {
                Some(number) => Some(BlockRef { number: number as u64, hash: hash(&row, 1)? }),
                None => None,
            };
            check(cursor, range)?;
            let blocks = insert_blocks(&mut tx, headers, row.get(4), row.get(5)).await?;
            anyhow::Ok((tx, row, blocks))
        };
        // While the file is asked.
        let decoded = async {
            let mut decoded = Vec::with_capacity(logs.len());
            for log in logs {
                decoded.push((self.decode)(log));
                let_on(decoded.len()).await;
            }
            decoded
        };
        let (begun, decoded) = tokio::join!(begun, decoded);
        let (mut tx, row, blocks) = begun?;
        let version = row.get(2);
        let mut kept = self.live.kept(version);
        let mut extended = Extended { logs: logs.len(), ..Extended::default() };
        let newest: Option<&[u8]> = row.get(3);
        let greatest = JobId(row.get::<i64, _>(6) as u64);
        let mut link = newest.map_or(Ok(B256::ZERO), |_| hash(&row, 3))?;
        let mut entries = Vec::with_capacity(logs.len());
        let mut told: Vec<(JobId, Fact)> = Vec::with_capacity(logs.len());
        for (log, event) in logs.iter().zip(decoded) {
            let (kind, job) = event.as_ref().map_or((None, None), |event| (Some(event.name()), event.job()));
            let block = blocks[&log.block.number];
            entries.push(Entry { block, log, kind, job, link: B256::ZERO });
            match (event, job) {
                (Ok(event), Some(job)) => told.push((job, Fact::Chain { event, block: log.block })),
                (Ok(_), None) => {}
                (Err(_), _) => extended.undecoded.push((log.tx, log.index)),
            }
        }
        extended.jobs = told.iter().map(|(job, _)| *job).collect();
        let linked = async {
            for (place, entry) in entries.iter_mut().enumerate() {
                link = entry.log.link(link, self.chain_id);
                entry.link = link;
                let_on(place).await;
            }
        };
        let (projected, ()) = tokio::join!(self.project_on(&mut tx, &told, &mut kept.jobs, greatest), linked);
        projected?;
        insert_logs(&mut tx, &entries).await?;
        if !advance(&mut tx, coverage, last.block).await? {
            cover(&mut tx, coverage).await?;
        }
        failpoint::hit(Point::MidExtend).await?;
        tx.commit().await?;
        self.live.keep(kept);
        self.live.extend(headers, told, version);
        // Nothing that is to be sent follows from this alone.
        self.changed.send_modify(|count| *count += 1);
        Ok(extended)
    }

    /// Compares stored blocks with `range`, which was read again, better proven, and corrects those that are proven and
    /// differ. Says which these were.
    ///
    /// # Errors
    /// If the range is not all stored, or its final block is another: then nothing is changed.
    pub async fn confirm(&self, range: &Range) -> Result<Vec<Correction>> {
        let Range { headers, coverage, .. } = range;
        let (Some(first), Some(last)) = (headers.first(), headers.last()) else { return Ok(Vec::new()) };
        let (from, to) = (first.block.number, last.block.number);
        let cursor = self.cursor().await?.context("nothing is stored yet")?;
        ensure!(to <= cursor.number, "block {to} is past the newest stored, {}", cursor.number);
        check(None, range)?;
        let mut tx = self.writer.begin_with("BEGIN IMMEDIATE").await?;
        let stored: BTreeMap<u64, Header> =
            history::blocks(&mut tx, from, to).await?.into_iter().map(|header| (header.block.number, header)).collect();
        let mine = history::logs(&mut tx, from, to).await?;
        let mut corrections = Vec::new();
        let mut jobs = BTreeSet::new();
        for header in headers {
            let number = header.block.number;
            let proven = range.at(number);
            if !proven.coverage.level.is_proven() {
                continue;
            }
            let first = mine.partition_point(|row| row.log.block.number < number);
            let old = &mine[first..mine.partition_point(|row| row.log.block.number <= number)];
            let new = proven.logs;
            let here = stored.get(&number);
            // The hash of the block after a commitment draws the positions to open.
            let draws = !range.at(number.saturating_sub(1)).logs.is_empty();
            if here.is_none() && draws && new.is_empty() {
                insert_block(&mut tx, header).await?;
            }
            let same_block = here.map_or(new.is_empty(), |stored| stored == header);
            if same_block && old.iter().map(|row| &row.log).eq(new) {
                continue;
            }
            let known = cursor.number == number && cursor.hash != header.block.hash;
            let last =
                self.finality().await?.is_some_and(|last| last.block.number == number && last.block != header.block);
            ensure!(!known && !last, "block {number} is stored as another than {}", header.block.hash);
            sqlx::query("UPDATE block SET canonical = 0 WHERE number = ? AND canonical = 1")
                .bind(number as i64)
                .execute(&mut *tx)
                .await?;
            let block = insert_block(&mut tx, header).await?;
            let mut entries = Vec::with_capacity(new.len());
            for log in new {
                let event = (self.decode)(log);
                let (kind, job) = event.map_or((None, None), |event| (Some(event.name()), event.job()));
                jobs.extend(job);
                entries.push(Entry { block, log, kind, job, link: B256::ZERO });
            }
            insert_logs(&mut tx, &entries).await?;
            jobs.extend(old.iter().filter_map(|row| row.job));
            corrections.push(Correction { block: header.block, logs_before: old.len(), logs: new.len() });
        }
        if let Some(first) = corrections.first() {
            self.derive_logs(&mut tx, first.block.number, &mut Rederived::default(), None, |_| ()).await?;
            let jobs: Vec<JobId> = jobs.into_iter().collect();
            self.project(&mut tx, &jobs).await?;
            look_for_receipts(&mut tx, &jobs).await?;
        }
        cover(&mut tx, coverage).await?;
        tx.commit().await?;
        if !corrections.is_empty() {
            self.live.touch_all();
        }
        self.wake();
        Ok(corrections)
    }

    /// Makes everything that follows from the journal anew: what each log means, the journal's links, and every job. Asks
    /// nobody. `progress` is told how many logs are done.
    ///
    /// # Errors
    /// If the file cannot be read or written: then nothing is changed.
    pub async fn rederive(&self, progress: impl Fn(u64)) -> Result<Rederived> {
        let mut tx = self.writer.begin_with("BEGIN IMMEDIATE").await?;
        let mut done = Rederived::default();
        let mut gathered = Gathered::of(&mut tx).await?;
        self.derive_logs(&mut tx, 0, &mut done, Some(&mut gathered), progress).await?;
        gathered.write(&mut tx, 1, &mut done).await?;
        // Then those of which not all was at hand, and rows of jobs that no log tells of.
        let mut after = 0;
        loop {
            let page: Vec<i64> = sqlx::query_scalar(
                "SELECT job FROM log WHERE job > ?1 UNION SELECT id FROM job WHERE id > ?1 ORDER BY 1 LIMIT ?2",
            )
            .bind(after)
            .bind(JOBS_PER_PAGE as i64)
            .fetch_all(&mut *tx)
            .await?;
            let Some(last) = page.last() else { break };
            after = *last;
            let mut jobs: Vec<JobId> = page.into_iter().map(|job| JobId(job as u64)).collect();
            jobs.retain(|job| !gathered.complete.contains(job) || gathered.later.contains(job));
            if !jobs.is_empty() {
                done.jobs_changed.extend(self.project(&mut tx, &jobs).await?.1);
            }
        }
        done.jobs_changed.sort_unstable();
        done.jobs_changed.dedup();
        let jobs: i64 = sqlx::query_scalar("SELECT count(*) FROM job").fetch_one(&mut *tx).await?;
        done.jobs = jobs as u64;
        tx.commit().await?;
        self.live.touch_all();
        self.wake();
        Ok(done)
    }

    /// Makes the meaning and the links of all canonical logs from block `from` on anew.
    async fn derive_logs(
        &self,
        tx: &mut SqliteConnection,
        from: u64,
        done: &mut Rederived,
        mut gathered: Option<&mut Gathered>,
        progress: impl Fn(u64),
    ) -> Result<()> {
        done.journal_head = link_before(tx, from).await?;
        let mut place = (from as i64, -1);
        loop {
            let rows = sqlx::query(
                "SELECT number, hash, log_index, tx_hash, address, topics, data, kind, job, link, log.seq
                 FROM block JOIN log ON log.block = block.seq
                 WHERE canonical = 1 AND (number, log_index) > (?, ?) ORDER BY number, log_index LIMIT ?",
            )
            .bind(place.0)
            .bind(place.1)
            .bind(LOGS_PER_PAGE)
            .fetch_all(&mut *tx)
            .await?;
            let Some(last) = rows.last() else { return Ok(()) };
            place = (last.get(0), last.get(2));
            for row in &rows {
                let log = raw_log(row)?;
                done.journal_head = log.link(done.journal_head, self.chain_id);
                let event = (self.decode)(&log).ok();
                let (kind, job) = event.as_ref().map_or((None, None), |event| (Some(event.name()), event.job()));
                if let (Some(gathered), Some(event), Some(job)) = (&mut gathered, event, job) {
                    gathered.take(job, event, log.block);
                }
                let stored: (Option<&str>, Option<i64>, &[u8]) = (row.get(7), row.get(8), row.get(9));
                if stored == (kind, job.map(|job| job.0 as i64), done.journal_head.as_slice()) {
                    continue;
                }
                done.logs_changed += 1;
                sqlx::query("UPDATE log SET (kind, job, link) = (?, ?, ?) WHERE seq = ?")
                    .bind(kind)
                    .bind(job.map(|job| job.0 as i64))
                    .bind(done.journal_head.as_slice())
                    .bind(row.get::<i64, _>(10))
                    .execute(&mut *tx)
                    .await?;
            }
            done.logs += rows.len() as u64;
            if let Some(gathered) = &mut gathered {
                gathered.write(tx, JOBS_PER_PAGE, done).await?;
            }
            progress(done.logs);
        }
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
            "SELECT DISTINCT job FROM block JOIN log ON log.block = block.seq
             WHERE number > ? AND canonical = 1 AND job IS NOT NULL",
        )
        .bind(to as i64)
        .fetch_all(&mut *tx)
        .await?;
        for statement in [
            "UPDATE block SET canonical = 0 WHERE number > ? AND canonical = 1",
            "DELETE FROM coverage WHERE first > ?",
            "UPDATE coverage SET last = ?1 WHERE last > ?1",
            "UPDATE finality SET safe = ?1 WHERE safe > ?1",
            "UPDATE tx_intent SET state = 'signed' WHERE id IN (
                 SELECT intent FROM tx_attempt JOIN tx_receipt USING (hash) WHERE block_number > ?)",
            "DELETE FROM tx_receipt WHERE block_number > ?",
        ] {
            sqlx::query(statement).bind(to as i64).execute(&mut *tx).await?;
        }
        let jobs: Vec<JobId> = jobs.into_iter().map(|job| JobId(job as u64)).collect();
        self.project(&mut tx, &jobs).await?;
        look_for_receipts(&mut tx, &jobs).await?;
        failpoint::hit(Point::MidRewind).await?;
        move_cursor(&mut tx, BlockRef { number: to, hash: target }).await?;
        tx.commit().await?;
        self.live.touch_all();
        self.wake();
        Ok(jobs.len())
    }

    /// Returns the journal's link of the last canonical log below block `number`.
    pub async fn link_before(&self, number: u64) -> Result<B256> {
        link_before(&mut *self.readers.acquire().await?, number).await
    }

    /// Returns the head of the journal's hash chain and the number of canonical logs behind it.
    pub async fn journal_head(&self) -> Result<(B256, u64)> {
        let mut reader = self.readers.acquire().await?;
        let head = journal_head(&mut reader).await?;
        let count: i64 = sqlx::query_scalar(
            "SELECT (SELECT count(*) FROM log)
                    - (SELECT count(*) FROM block JOIN log ON log.block = block.seq WHERE canonical = 0)",
        )
        .fetch_one(&mut *reader)
        .await?;
        Ok((head, count as u64))
    }
}

/// Lets what is done beside this go on, now and then: what waits for the file waits for this task to look, too.
async fn let_on(done: usize) {
    if done.is_multiple_of(8) {
        tokio::task::yield_now().await;
    }
}

/// Fails unless the range continues `cursor`, its headers link as far as they follow one another, its coverage is whole, and
/// every log lies in one of its blocks, in order.
fn check(cursor: Option<BlockRef>, range: &Range) -> Result<()> {
    let Range { headers, coverage, logs } = range;
    let mut previous = cursor;
    for header in headers {
        if let Some(previous) = previous {
            let next = header.block.number == previous.number + 1;
            let sparse = header.block.number > previous.number + 1 && Some(previous) != cursor;
            let claimed = |number| coverage.iter().any(|range| range.level == Level::Claimed && range.to >= number);
            ensure!(
                (next && header.parent == previous.hash) || (sparse && claimed(header.block.number)),
                "block {} ({}) does not follow block {} ({})",
                header.block.number,
                header.block.hash,
                previous.number,
                previous.hash
            );
        }
        previous = Some(header.block);
    }
    let (first, last) = (headers.first().map(|h| h.block.number), headers.last().map(|h| h.block.number));
    let ends = (coverage.first().map(|range| range.from), coverage.last().map(|range| range.to));
    let whole = coverage.windows(2).all(|pair| pair[0].to + 1 == pair[1].from);
    ensure!(ends == (first, last) && whole, "what is proven is not told of each block from {first:?} to {last:?}");
    let mut place = None;
    for log in logs {
        let at = headers.binary_search_by_key(&log.block.number, |header| header.block.number);
        ensure!(
            at.is_ok_and(|at| headers[at].block == log.block),
            "log {} of block {} ({}) lies in none of the blocks",
            log.index,
            log.block.number,
            log.block.hash
        );
        ensure!(Some(log.place()) > place, "logs of block {} are out of order", log.block.number);
        place = Some(log.place());
    }
    Ok(())
}

async fn journal_head(connection: &mut SqliteConnection) -> Result<B256> {
    link_before(connection, i64::MAX as u64).await
}

/// Returns the link of the last canonical log below block `number`.
async fn link_before(connection: &mut SqliteConnection, number: u64) -> Result<B256> {
    let row = sqlx::query(sqlx::AssertSqlSafe(format!("SELECT link {NEWEST_LOG}")))
        .bind(number as i64)
        .fetch_optional(connection)
        .await?;
    row.map_or(Ok(B256::ZERO), |row| hash(&row, 0))
}

/// Adds blocks, or takes orphaned ones back, without their logs: this program may read more of them now. Returns the row of
/// each, by number. `newest` and `orphaned` are what [`ROWS_OF_BLOCKS`] says.
async fn insert_blocks(
    tx: &mut SqliteConnection,
    headers: &[Header],
    newest: i64,
    orphaned: bool,
) -> Result<BTreeMap<u64, i64>> {
    let (mut seq, mut rows) = (newest, BTreeMap::new());
    let orphans = match (headers.first(), headers.last()) {
        (Some(first), Some(last)) if orphaned => {
            sqlx::query("SELECT number, hash, seq FROM block WHERE canonical = 0 AND number BETWEEN ? AND ?")
                .bind(first.block.number as i64)
                .bind(last.block.number as i64)
                .fetch_all(&mut *tx)
                .await?
        }
        _ => Vec::new(),
    };
    for row in &orphans {
        let block = BlockRef { number: row.get::<i64, _>(0) as u64, hash: hash(row, 1)? };
        let Some(header) = headers.iter().find(|header| header.block == block) else { continue };
        let seq: i64 = row.get(2);
        sqlx::query("UPDATE block SET (canonical, parent, time) = (1, ?, ?) WHERE seq = ?")
            .bind(header.parent.as_slice())
            .bind(header.time.0 as i64)
            .bind(seq)
            .execute(&mut *tx)
            .await?;
        sqlx::query("DELETE FROM log WHERE block = ?").bind(seq).execute(&mut *tx).await?;
        rows.insert(block.number, seq);
    }
    let new: Vec<&Header> = headers.iter().filter(|header| !rows.contains_key(&header.block.number)).collect();
    for headers in statements(&new) {
        let mut query = QueryBuilder::<Sqlite>::new("INSERT INTO block (seq, hash, number, parent, time, canonical) ");
        query.push_values(headers, |mut values, header| {
            seq += 1;
            rows.insert(header.block.number, seq);
            values.push_bind(seq).push_bind(header.block.hash.to_vec()).push_bind(header.block.number as i64);
            values.push_bind(header.parent.to_vec()).push_bind(header.time.0 as i64).push_bind(1);
        });
        let from = headers[0].block.number;
        query.build().execute(&mut *tx).await.with_context(|| format!("store blocks from {from} on"))?;
    }
    Ok(rows)
}

/// As [`insert_blocks`], one.
async fn insert_block(tx: &mut SqliteConnection, header: &Header) -> Result<i64> {
    let number = header.block.number as i64;
    let row = sqlx::query(sqlx::AssertSqlSafe(format!("SELECT ?1, {ROWS_OF_BLOCKS}")))
        .bind(number)
        .bind(number)
        .bind(number)
        .fetch_one(&mut *tx)
        .await?;
    let rows = insert_blocks(tx, std::slice::from_ref(header), row.get(1), row.get(2)).await?;
    Ok(rows[&header.block.number])
}

async fn insert_logs(tx: &mut SqliteConnection, entries: &[Entry<'_>]) -> Result<()> {
    for entries in statements(entries) {
        let mut query = QueryBuilder::<Sqlite>::new(
            "INSERT INTO log (block, log_index, tx_hash, address, topics, data, kind, job, link) ",
        );
        query.push_values(entries, |mut values, Entry { block, log, kind, job, link }| {
            values.push_bind(*block).push_bind(log.index as i64).push_bind(log.tx.to_vec());
            values.push_bind(log.address.to_vec()).push_bind(log.topics.concat()).push_bind(log.data.to_vec());
            values.push_bind(*kind).push_bind(job.map(|job| job.0 as i64)).push_bind(link.to_vec());
        });
        let from = entries[0].log.block.number;
        query.build().execute(&mut *tx).await.with_context(|| format!("store logs from block {from} on"))?;
    }
    Ok(())
}

/// Notes what is proven of blocks, over what was noted of them before.
pub(super) async fn cover(tx: &mut SqliteConnection, over: &[Coverage]) -> Result<()> {
    let (Some(first), Some(last)) = (over.first(), over.last()) else { return Ok(()) };
    // With its neighbours, to be joined with them.
    let (from, to) = (first.from.saturating_sub(1) as i64, last.to as i64 + 1);
    let under = sqlx::query("DELETE FROM coverage WHERE last >= ? AND first <= ? RETURNING first, last, level, reason")
        .bind(from)
        .bind(to)
        .fetch_all(&mut *tx)
        .await?;
    let mut under = under.iter().map(history::coverage).collect::<Result<Vec<_>>>()?;
    under.sort_by_key(|range| range.from);
    for range in lay(&under, over) {
        sqlx::query("INSERT INTO coverage VALUES (?, ?, ?, ?)")
            .bind(range.from as i64)
            .bind(range.to as i64)
            .bind(range.level.name())
            .bind(range.reason)
            .execute(&mut *tx)
            .await?;
    }
    Ok(())
}

/// Has the receipts of those of `jobs` that have a result here looked for among the unpublished ones, also where one was published: the
/// number may become another order's.
async fn look_for_receipts(tx: &mut SqliteConnection, jobs: &[JobId]) -> Result<()> {
    sqlx::query(
        "INSERT OR IGNORE INTO unannounced
         SELECT job FROM work WHERE job IN (SELECT value FROM json_each(?)) AND did = 'Inferred'",
    )
    .bind(serde_json::to_string(jobs)?)
    .execute(tx)
    .await?;
    Ok(())
}

/// Moves the cursor to `last` and, where what is proven of the blocks up to it only goes on, notes that. Returns whether it was so.
async fn advance(tx: &mut SqliteConnection, over: &[Coverage], last: BlockRef) -> Result<bool> {
    let [Coverage { from, to, level, reason }] = over else {
        move_cursor(tx, last).await?;
        return Ok(false);
    };
    let done = sqlx::query(sqlx::AssertSqlSafe(format!(
        "{MOVE_CURSOR}; UPDATE coverage SET last = ? WHERE last = ? AND level = ? AND reason IS ?"
    )))
    .bind(last.number as i64)
    .bind(last.hash.to_vec())
    .bind(*to as i64)
    .bind(from.checked_sub(1).map(|before| before as i64))
    .bind(level.name())
    .bind(reason)
    .execute(tx)
    .await?;
    Ok(done.rows_affected() == 2)
}

const MOVE_CURSOR: &str =
    "INSERT INTO cursor VALUES (1, ?, ?) ON CONFLICT DO UPDATE SET number = excluded.number, hash = excluded.hash";

async fn move_cursor(tx: &mut SqliteConnection, to: BlockRef) -> Result<()> {
    sqlx::query(MOVE_CURSOR).bind(to.number as i64).bind(to.hash.as_slice()).execute(tx).await?;
    Ok(())
}
