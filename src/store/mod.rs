//! The node's memory: one SQLite file holding the journal of facts, what follows from them, and what we intend.
//!
//! Owns sqlx. Never talks to a chain or a peer and never decides: it keeps, orders and refuses contradictions.
//! Rules of the tables stand in `migrations/`. One writer connection (`BEGIN IMMEDIATE`), a pool of readers, WAL,
//! and one connection that moves what is committed into the file when there is time.
//! A commit survives the end of the process; before a transaction goes on the wire its bytes, and all that was committed before
//! them, are made to survive the machine's end too (`synchronous = FULL`).

mod check;
mod control;
mod doubt;
mod follow;
mod history;
mod journal;
mod ledger;
mod live;
#[cfg(test)]
mod model_tests;
mod past;
#[cfg(test)]
mod plan_tests;
mod projection;
mod snapshot;
mod sql;
#[cfg(test)]
mod tests;
mod tx;
mod work;

use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, ensure};
use serde::Serialize;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{Row, SqliteConnection};
use tokio::sync::watch;

use crate::failpoint::{self, Point};
use crate::market::event::{Event, Level, RawLog};
use crate::market::gate::Ground;
use crate::market::job::Job;
use crate::market::types::{Address, B256, BlockRef, JobId, U256, UnixSeconds};

pub use check::Checked;
pub use control::{Hold, HoldKind, OrderKind, Ordered, TxOrder};
pub use doubt::Census;
pub use follow::{Follower, News};
pub use history::{Entry, JobFilter, JobRow, LogRow, Timeline, TxRow, WorkRow};
pub use journal::{Correction, Extended, Rederived};
pub use past::Scene;
pub use snapshot::{EventFilter, EventRow, NotStored, Snapshot};
pub use sql::{Answer, Cell, schema, select};
pub use tx::{Attempt, Intent, IntentState, OpenIntent, Ready, Signed, TxOutcome};
pub use work::{Choice, Owed, PeerReceipt};

/// Connections that read side by side.
const READERS: u32 = 4;
/// Rows that may wait between SQLite's thread and ours: each wait of one for the other costs more than many rows.
const ROWS_WAITING: usize = 2000;

/// Prepared statements that a connection keeps: those that write rows are one for each number of them.
const STATEMENTS_KEPT: usize = 400;
/// Jobs that ended and whose receipts are published next.
const UNANNOUNCED_MAX: i64 = 10;
/// Pages that the writer keeps in memory, in KiB: what is written in every block is all over the file's indexes, and SQLite's own
/// 2 MiB hold those of some hundred jobs.
const CACHE_KIB: u32 = 16 << 10;
/// Pages in the write-ahead log, of 4 KiB, at which whoever commits moves them into the file.
const WAL_PAGES_MAX: u32 = 8000;

/// Reads the event in a log; an error leaves the log in the journal, raw.
pub type Decode = Arc<dyn Fn(&RawLog) -> Result<Event> + Send + Sync>;

/// The handle on one database file. Clones share it.
#[derive(Clone)]
pub struct Store {
    writer: SqlitePool,
    readers: SqlitePool,
    /// For [`Store::tidy`].
    tidier: SqlitePool,
    decode: Decode,
    chain_id: u64,
    changed: watch::Sender<u64>,
    changed_here: watch::Sender<u64>,
    live: live::Live,
}

impl Store {
    /// Opens the file, creating and migrating it where needed, for one marketplace on one chain.
    ///
    /// # Errors
    /// If the file cannot be opened, was made by a newer program, or belongs to another chain or marketplace.
    pub async fn open(path: &Path, chain_id: u64, marketplace: Address, decode: Decode) -> Result<Self> {
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).with_context(|| format!("create folder {}", folder.display()))?;
        }
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Normal)
            .foreign_keys(true)
            .row_buffer_size(ROWS_WAITING)
            .statement_cache_capacity(STATEMENTS_KEPT)
            // As a rule in [`Store::tidy`]: whose commit it falls to waits for the disk.
            .pragma("wal_autocheckpoint", WAL_PAGES_MAX.to_string())
            .busy_timeout(Duration::from_secs(10));
        let at = || format!("open database {}", path.display());
        // Readers forget their pages with every commit of the writer's.
        let caching = options.clone().pragma("cache_size", format!("-{CACHE_KIB}"));
        let writer = connections(1).connect_with(caching).await.with_context(at)?;
        migrate(&writer).await.with_context(at)?;
        let tidier = connections(1).connect_lazy_with(options.clone());
        let readers = connections(READERS).connect_with(options.read_only(true)).await?;
        let (changed, changed_here) = (watch::Sender::new(0), watch::Sender::new(0));
        let live = Default::default();
        let store = Self { writer, readers, tidier, decode, chain_id, changed, changed_here, live };
        store.identify(marketplace).await.with_context(at)?;
        Ok(store)
    }

    /// Opens a file for reading only, as an auditor does with another's: nothing of it is changed, not even its format.
    ///
    /// # Errors
    /// If the file is missing, was made by another version of this program, or belongs to another chain or marketplace.
    pub async fn open_to_read(path: &Path, chain_id: u64, marketplace: Address, decode: Decode) -> Result<Self> {
        let at = || format!("open database {}", path.display());
        let options = SqliteConnectOptions::new().filename(path).read_only(true).row_buffer_size(ROWS_WAITING);
        let readers = connections(READERS).connect_with(options).await.with_context(at)?;
        let newest: Option<i64> = sqlx::query_scalar("SELECT max(version) FROM _sqlx_migrations")
            .fetch_one(&readers)
            .await
            .with_context(at)?;
        let mine = sqlx::migrate!().iter().map(|migration| migration.version).max();
        ensure!(newest == mine, "{}: its format is {newest:?}, this program reads {mine:?}", at());
        let (changed, changed_here) = (watch::Sender::new(0), watch::Sender::new(0));
        let live = live::Live::of_a_reader();
        let (writer, tidier) = (readers.clone(), readers.clone());
        let store = Self { writer, readers, tidier, decode, chain_id, changed, changed_here, live };
        store.belongs_to(marketplace).await.with_context(at)?;
        Ok(store)
    }

    async fn identify(&self, marketplace: Address) -> Result<()> {
        sqlx::query("INSERT INTO identity VALUES (1, ?, ?) ON CONFLICT DO NOTHING")
            .bind(self.chain_id as i64)
            .bind(marketplace.as_slice())
            .execute(&self.writer)
            .await?;
        self.belongs_to(marketplace).await
    }

    async fn belongs_to(&self, marketplace: Address) -> Result<()> {
        let row = sqlx::query("SELECT chain_id, marketplace FROM identity").fetch_one(&self.readers).await?;
        let (chain, contract) = (row.get::<i64, _>(0) as u64, address(&row, 1)?);
        ensure!(
            (chain, contract) == (self.chain_id, marketplace),
            "the file belongs to chain {chain}, marketplace {contract}, but the configuration names chain {}, \
             marketplace {marketplace}: use another data_dir or correct the configuration",
            self.chain_id
        );
        Ok(())
    }

    /// Returns the chain the file belongs to.
    pub fn chain_id(&self) -> u64 {
        self.chain_id
    }

    /// Reads the event in a log, as it is read when it is stored.
    ///
    /// # Errors
    /// If it cannot be read: then the log stays in the journal, raw.
    pub fn read(&self, log: &RawLog) -> Result<Event> {
        (self.decode)(log)
    }

    /// Moves what was committed from the write-ahead log into the file, as far as nobody reads what was before. To be called when there
    /// is time: nobody waits for it.
    pub async fn tidy(&self) -> Result<()> {
        sqlx::query("PRAGMA wal_checkpoint(PASSIVE)").execute(&self.tidier).await?;
        Ok(())
    }

    /// Returns a receiver that is woken after every change. It carries no data: look at the store.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// As [`Store::changes`], but not woken by blocks that were added: what we want on chain changes when something follows from them.
    pub fn changes_here(&self) -> watch::Receiver<u64> {
        self.changed_here.subscribe()
    }

    /// Closes the file after the running statements; later calls fail.
    pub async fn close(&self) {
        self.readers.close().await;
        self.tidier.close().await;
        self.writer.close().await;
    }

    fn wake(&self) {
        self.changed_here.send_modify(|count| *count += 1);
        self.changed.send_modify(|count| *count += 1);
    }

    /// Returns the newest block whose logs are stored, or `None` in a new file.
    pub async fn cursor(&self) -> Result<Option<BlockRef>> {
        let row = sqlx::query("SELECT number, hash FROM cursor").fetch_optional(&self.readers).await?;
        row.map(|row| Ok(BlockRef { number: row.get::<i64, _>(0) as u64, hash: hash(&row, 1)? })).transpose()
    }

    /// Returns the time of the cursor's block, the store's notion of now; 0 in a new file.
    pub async fn time(&self) -> Result<UnixSeconds> {
        let time =
            sqlx::query_scalar::<_, i64>("SELECT time FROM block JOIN cursor USING (number, hash) WHERE canonical = 1")
                .fetch_optional(&self.readers)
                .await?;
        Ok(UnixSeconds(time.unwrap_or(0) as u64))
    }

    /// Returns the hash of the canonical block at `number`, or `None` when it is not stored.
    pub async fn canonical_hash(&self, number: u64) -> Result<Option<B256>> {
        canonical_hash(&mut *self.readers.acquire().await?, number).await
    }

    /// Returns the job, or `None` when the chain has not posted it.
    ///
    /// # Errors
    /// A [`crate::market::job::Conflict`] when the stored facts contradict each other.
    pub async fn job(&self, id: JobId) -> Result<Option<Job>> {
        Ok(self.fold(&mut *self.readers.acquire().await?, &[id]).await?.pop())
    }

    /// Returns the newest block known to be final.
    pub async fn finality(&self) -> Result<Option<Finality>> {
        finality(&mut *self.readers.acquire().await?).await
    }

    /// Returns what is known of the block at `number`, for those who act on it.
    pub async fn ground(&self, number: u64) -> Result<Ground> {
        let row = sqlx::query(GROUNDS).bind(serde_json::to_string(&[number])?).fetch_one(&self.readers).await?;
        ground(number, &row)
    }

    /// Notes that the chain calls `block` safe, if it is stored as canonical and newer than the one noted before. Nothing is noted
    /// before a first block is final.
    pub async fn set_safe(&self, block: BlockRef) -> Result<()> {
        if self.canonical_hash(block.number).await? == Some(block.hash) {
            sqlx::query("UPDATE finality SET safe = ?1 WHERE safe < ?1")
                .bind(block.number as i64)
                .execute(&self.writer)
                .await?;
        }
        Ok(())
    }

    /// Notes that `block` is final, if it is stored as canonical and newer than the one noted before, and drops the headers below it
    /// that hold no log and no transaction of ours and draw no positions: what is proven of their blocks stays known.
    pub async fn set_final(&self, block: BlockRef) -> Result<()> {
        let before = self.finality().await?;
        if before.as_ref().is_some_and(|before| before.violated.is_some() || before.block.number >= block.number)
            || self.canonical_hash(block.number).await? != Some(block.hash)
        {
            return Ok(());
        }
        let mut tx = self.writer.begin_with("BEGIN IMMEDIATE").await?;
        sqlx::query(
            "INSERT INTO finality (only, number, hash) VALUES (1, ?, ?)
             ON CONFLICT DO UPDATE SET (number, hash) = (excluded.number, excluded.hash)",
        )
        .bind(block.number as i64)
        .bind(block.hash.as_slice())
        .execute(&mut *tx)
        .await?;
        sqlx::query(
            "DELETE FROM block WHERE canonical = 1 AND number BETWEEN ? AND ? - 1
             AND number > (SELECT min(first) FROM coverage)
             AND NOT EXISTS (SELECT 1 FROM log WHERE log.block = block.seq)
             AND NOT EXISTS (SELECT 1 FROM tx_receipt WHERE block_number = block.number)
             AND NOT EXISTS (SELECT 1 FROM block before JOIN log ON log.block = before.seq
                             WHERE before.canonical = 1 AND before.number = block.number - 1)",
        )
        .bind(before.map_or(0, |before| before.block.number as i64))
        .bind(block.number as i64)
        .execute(&mut *tx)
        .await?;
        tx.commit().await?;
        Ok(())
    }

    /// Notes how the final block was contradicted, or that it no longer is.
    pub async fn set_violated(&self, how: Option<&str>) -> Result<()> {
        sqlx::query("UPDATE finality SET violated = ?").bind(how).execute(&self.writer).await?;
        self.wake();
        Ok(())
    }

    /// Returns the oldest jobs that ended on chain with the result of `host`, this node's, and whose receipt is still unpublished.
    pub async fn unannounced_jobs(&self, host: Address) -> Result<Vec<Job>> {
        let ids: Vec<i64> = sqlx::query_scalar(
            "SELECT id FROM unannounced CROSS JOIN job ON id = unannounced.job WHERE state = 'released' AND host = ?
             ORDER BY unannounced.job LIMIT ?",
        )
        .bind(host.as_slice())
        .bind(UNANNOUNCED_MAX)
        .fetch_all(&self.readers)
        .await?;
        let ids: Vec<JobId> = ids.into_iter().map(|id| JobId(id as u64)).collect();
        let jobs = self.fold(&mut *self.readers.acquire().await?, &ids).await?;
        let (told, untold): (Vec<Job>, Vec<Job>) = jobs.into_iter().partition(|job| job.announced);
        if !told.is_empty() {
            // A reorg took them away and brought them back as they were; perhaps another has by now.
            sqlx::query(
                "DELETE FROM unannounced WHERE job IN (SELECT value FROM json_each(?))
                 AND EXISTS (SELECT 1 FROM job WHERE id = unannounced.job AND state = 'released')",
            )
            .bind(serde_json::to_string(&told.iter().map(|job| job.id).collect::<Vec<_>>())?)
            .execute(&self.writer)
            .await?;
        }
        Ok(untold)
    }
}

/// What is known of each block of `?1`: a row.
const GROUNDS: &str =
    "SELECT coalesce((SELECT number FROM cursor), 0), coalesce((SELECT max(safe, number) FROM finality), 0),
         coalesce((SELECT number FROM finality), 0),
         (SELECT time FROM block WHERE number = asked.value AND canonical = 1),
         (SELECT level FROM coverage WHERE first <= asked.value AND last >= asked.value ORDER BY first DESC LIMIT 1)
     FROM json_each(?1) AS asked ORDER BY asked.key";

/// Reads [`GROUNDS`].
fn ground(number: u64, row: &SqliteRow) -> Result<Ground> {
    let [head, safe, last_final] = [0, 1, 2].map(|column| row.get::<i64, _>(column) as u64);
    let time = row.get::<Option<i64>, _>(3).map(|time| UnixSeconds(time as u64));
    let level = row.get::<Option<&str>, _>(4).map(history::level).transpose()?.unwrap_or(Level::Claimed);
    Ok(Ground { number, level, head, safe, last_final, time })
}

/// Returns a pool of at most so many connections. A file does not hang up: none is tried before it is used, and none grows old and
/// forgets the statements it prepared.
fn connections(max: u32) -> SqlitePoolOptions {
    SqlitePoolOptions::new().max_connections(max).test_before_acquire(false).idle_timeout(None).max_lifetime(None)
}

/// What the chain called final, and safe.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finality {
    pub block: BlockRef,
    /// The newest block that the chain called safe, or final.
    pub safe: u64,
    /// How an endpoint contradicted it; while there is this, nothing is rewound, claimed or sent.
    pub violated: Option<String>,
}

/// Brings the file to this program's format. Each migration is done in one transaction, with the row that says so: one that is cut
/// off between two goes on with the second.
async fn migrate(writer: &SqlitePool) -> Result<()> {
    let migrations = sqlx::migrate!();
    // Does none, and refuses a file of a newer program.
    migrations.run_to(0, writer).await?;
    let newest: Option<i64> = sqlx::query_scalar("SELECT max(version) FROM _sqlx_migrations").fetch_one(writer).await?;
    for next in migrations.iter().map(|migration| migration.version).filter(|version| Some(*version) > newest) {
        migrations.run_to(next, writer).await?;
        failpoint::hit(Point::BetweenMigrations).await?;
    }
    // Looks whether each was done as it stands here.
    Ok(migrations.run(writer).await?)
}

/// Returns the wall clock, for leases and retries only: what the chain decides is measured in block time.
pub fn clock() -> UnixSeconds {
    UnixSeconds(SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs()))
}

async fn live_ids(connection: &mut SqliteConnection) -> Result<Vec<JobId>> {
    let ids: Vec<i64> =
        sqlx::query_scalar("SELECT id FROM job WHERE state NOT IN ('released', 'refunded') ORDER BY id")
            .fetch_all(connection)
            .await?;
    Ok(ids.into_iter().map(|id| JobId(id as u64)).collect())
}

async fn finality(connection: &mut SqliteConnection) -> Result<Option<Finality>> {
    let row = sqlx::query("SELECT number, hash, violated, max(safe, number) FROM finality")
        .fetch_optional(connection)
        .await?;
    let Some(row) = row else { return Ok(None) };
    let block = BlockRef { number: row.get::<i64, _>(0) as u64, hash: hash(&row, 1)? };
    Ok(Some(Finality { block, safe: row.get::<i64, _>(3) as u64, violated: row.get(2) }))
}

async fn canonical_hash(connection: &mut SqliteConnection, number: u64) -> Result<Option<B256>> {
    let row = sqlx::query("SELECT hash FROM block WHERE number = ? AND canonical = 1")
        .bind(number as i64)
        .fetch_optional(connection)
        .await?;
    row.map(|row| hash(&row, 0)).transpose()
}

type SqliteRow = sqlx::sqlite::SqliteRow;

fn hash(row: &SqliteRow, column: usize) -> Result<B256> {
    B256::try_from(row.get::<&[u8], _>(column)).context("a stored hash is not 32 bytes")
}

fn address(row: &SqliteRow, column: usize) -> Result<Address> {
    Address::try_from(row.get::<&[u8], _>(column)).context("a stored address is not 20 bytes")
}

fn amount(row: &SqliteRow, column: usize) -> Result<U256> {
    let text: &str = row.get(column);
    let amount = U256::from_str(text).ok().filter(|amount| amount.to_string() == text);
    amount.with_context(|| format!("a stored amount is {text:?}, not a plain number"))
}

/// Reads the columns `block number, block hash, log_index, tx_hash, address, topics, data`.
fn raw_log(row: &SqliteRow) -> Result<RawLog> {
    Ok(RawLog {
        block: BlockRef { number: row.get::<i64, _>(0) as u64, hash: hash(row, 1)? },
        index: row.get::<i64, _>(2) as u64,
        tx: hash(row, 3)?,
        address: address(row, 4)?,
        topics: row.get::<&[u8], _>(5).chunks_exact(32).map(B256::from_slice).collect(),
        data: row.get::<Vec<u8>, _>(6).into(),
    })
}
