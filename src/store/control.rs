//! What the operator and the breaker want of a running node: holds on claiming, orders to the sender, jobs retried and given up.
//!
//! Written by commands beside the running node, one short transaction each; the node sees it at its next look.

use std::fmt;

use anyhow::{Context, Result};
use serde::Serialize;
use sqlx::{Row, SqliteConnection};

use super::work::{insert_work, withdraw_queued};
use super::{SqliteRow, Store, address, amount, clock};
use crate::market::breaker::{self, Ended, Failure, Fault, History};
use crate::market::job::{Job, Work};
use crate::market::types::{Address, JobId, U256, UnixSeconds};

/// What keeps a host from claiming until the operator resumes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum HoldKind {
    /// The operator paused it.
    Paused,
    /// It claims no more before it is stopped.
    Draining,
    /// The breaker opened.
    Breaker,
}

impl HoldKind {
    /// Returns its name: `paused`, `draining` or `breaker`.
    pub fn name(self) -> &'static str {
        match self {
            HoldKind::Paused => "paused",
            HoldKind::Draining => "draining",
            HoldKind::Breaker => "breaker",
        }
    }

    fn read(text: &str) -> Result<Self> {
        let all = [HoldKind::Paused, HoldKind::Draining, HoldKind::Breaker];
        let found = all.into_iter().find(|kind| kind.name() == text);
        found.with_context(|| format!("unknown hold {text:?} in the database"))
    }
}

/// A hold on claiming.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Hold {
    pub kind: HoldKind,
    pub reason: String,
    /// Wall clock.
    pub at: UnixSeconds,
    /// Whether the operator was paged about it.
    #[serde(skip)]
    pub told: bool,
}

impl fmt::Display for Hold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            HoldKind::Paused => write!(f, "paused: {}", self.reason),
            HoldKind::Draining => write!(f, "draining: {}", self.reason),
            HoldKind::Breaker => write!(f, "the breaker is open: {}", self.reason),
        }
    }
}

/// What an operator may ask of the sender.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum OrderKind {
    /// Offer a higher fee, of one that is signed.
    Bump,
    /// Drop it, where it is queued; take its nonce with nothing, where it is signed.
    Cancel,
    /// Send the newest bytes again, of one that is signed.
    Rebroadcast,
}

impl OrderKind {
    /// Returns its name: `bump`, `cancel` or `rebroadcast`.
    pub fn name(self) -> &'static str {
        match self {
            OrderKind::Bump => "bump",
            OrderKind::Cancel => "cancel",
            OrderKind::Rebroadcast => "rebroadcast",
        }
    }

    fn read(text: &str) -> Result<Self> {
        let all = [OrderKind::Bump, OrderKind::Cancel, OrderKind::Rebroadcast];
        let found = all.into_iter().find(|kind| kind.name() == text);
        found.with_context(|| format!("unknown order {text:?} in the database"))
    }

    fn fits(self, state: &str) -> bool {
        state == "signed" || (self == OrderKind::Cancel && state == "queued")
    }
}

/// An order that the sender has not taken yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct TxOrder {
    pub intent: i64,
    pub what: OrderKind,
    /// Wall clock.
    pub at: UnixSeconds,
}

/// What came of an order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ordered {
    /// It is noted for the sender, now or already.
    Noted,
    /// There is no such transaction.
    Unknown,
    /// It is in a state to which the order does not apply.
    Unfit(String),
}

impl Store {
    /// What every abandonment that the operator asked for starts with: it is no failure of the host.
    pub const BY_OPERATOR: &str = "the operator gave it up: ";

    /// Returns what keeps this host from claiming.
    pub async fn holds(&self) -> Result<Vec<Hold>> {
        holds(&mut *self.readers.acquire().await?).await
    }

    /// Holds claiming back: from here on nothing is chosen, and claims that are not signed yet are taken back. Returns false when it is
    /// held so already: then the first reason stays.
    pub async fn hold(&self, kind: HoldKind, reason: &str) -> Result<bool> {
        let mut tx = self.writer.begin_with("BEGIN IMMEDIATE").await?;
        let added = sqlx::query("INSERT INTO hold (kind, reason, at) VALUES (?, ?, ?) ON CONFLICT DO NOTHING")
            .bind(kind.name())
            .bind(reason)
            .bind(clock().0 as i64)
            .execute(&mut *tx)
            .await
            .context("hold claiming back")?;
        let withdrawn = withdraw_queued(&mut tx, UnixSeconds(u64::MAX)).await?;
        tx.commit().await.context("hold claiming back")?;
        self.live.touch(withdrawn);
        self.wake();
        Ok(added.rows_affected() > 0)
    }

    /// Lifts one hold. Returns whether there was one.
    pub async fn lift(&self, kind: HoldKind) -> Result<bool> {
        let gone = sqlx::query("DELETE FROM hold WHERE kind = ?").bind(kind.name()).execute(&self.writer).await?;
        self.wake();
        Ok(gone.rows_affected() > 0)
    }

    /// Notes that the operator was paged about a hold.
    pub async fn told(&self, kind: HoldKind) -> Result<()> {
        sqlx::query("UPDATE hold SET told = 1 WHERE kind = ?").bind(kind.name()).execute(&self.writer).await?;
        Ok(())
    }

    /// Lifts every hold, and has the breaker forget what went wrong so far. Returns what was lifted.
    pub async fn resume(&self) -> Result<Vec<Hold>> {
        let mut tx = self.writer.begin_with("BEGIN IMMEDIATE").await?;
        let lifted = holds(&mut tx).await?;
        sqlx::query("DELETE FROM hold").execute(&mut *tx).await?;
        sqlx::query(
            "INSERT INTO resumed (only, block, time, work) VALUES (1, coalesce((SELECT number FROM cursor), 0),
                 coalesce((SELECT time FROM block JOIN cursor USING (number, hash) WHERE canonical = 1), 0),
                 coalesce((SELECT max(seq) FROM work), 0))
             ON CONFLICT DO UPDATE SET (block, time, work) = (excluded.block, excluded.time, excluded.work)",
        )
        .execute(&mut *tx)
        .await?;
        tx.commit().await.context("resume")?;
        self.wake();
        Ok(lifted)
    }

    /// Asks the sender to do something about a transaction.
    pub async fn order_tx(&self, intent: i64, what: OrderKind) -> Result<Ordered> {
        let mut tx = self.writer.begin_with("BEGIN IMMEDIATE").await?;
        let state: Option<String> = sqlx::query_scalar("SELECT state FROM tx_intent WHERE id = ?")
            .bind(intent)
            .fetch_optional(&mut *tx)
            .await?;
        let Some(state) = state else { return Ok(Ordered::Unknown) };
        if !what.fits(&state) {
            return Ok(Ordered::Unfit(state));
        }
        sqlx::query("INSERT INTO tx_order VALUES (?, ?, ?) ON CONFLICT DO NOTHING")
            .bind(intent)
            .bind(what.name())
            .bind(clock().0 as i64)
            .execute(&mut *tx)
            .await?;
        tx.commit().await?;
        self.wake();
        Ok(Ordered::Noted)
    }

    /// Returns the orders that the sender has not taken yet, oldest first.
    pub async fn tx_orders(&self) -> Result<Vec<TxOrder>> {
        let rows = sqlx::query("SELECT intent, what, at FROM tx_order ORDER BY at, intent, what")
            .fetch_all(&self.readers)
            .await?;
        let order = |row: &SqliteRow| {
            let (what, at) = (OrderKind::read(row.get(1))?, UnixSeconds(row.get::<i64, _>(2) as u64));
            Ok(TxOrder { intent: row.get(0), what, at })
        };
        rows.iter().map(order).collect()
    }

    /// Takes an order away: the sender has seen to it, or it applies no more.
    pub async fn taken_tx_order(&self, intent: i64, what: OrderKind) -> Result<()> {
        sqlx::query("DELETE FROM tx_order WHERE intent = ? AND what = ?")
            .bind(intent)
            .bind(what.name())
            .execute(&self.writer)
            .await?;
        Ok(())
    }

    /// Has a job taken up again: what was given up of this order counts no more, nor do the attempts so far, of its duties and of
    /// transactions that came to nothing. Their rows stay, the transactions' under keys with `~`.
    pub async fn retry(&self, job: &Job) -> Result<()> {
        let (at, deal, job) = (self.time().await?, job.terms.deal(), job.id);
        let mut tx = self.writer.begin_with("BEGIN IMMEDIATE").await?;
        insert_work(&mut tx, job, &Work::Retried { at, deal: Some(deal) }).await?;
        sqlx::query("DELETE FROM lease WHERE job = ? AND until <= ? AND ifnull(deal = ?, 1)")
            .bind(job.0 as i64)
            .bind(clock().0 as i64)
            .bind(deal.as_slice())
            .execute(&mut *tx)
            .await?;
        sqlx::query(
            "UPDATE tx_intent SET key = key || '~' || id
             WHERE job = ? AND state NOT IN ('queued', 'signed', 'mined') AND key NOT LIKE '%~%'",
        )
        .bind(job.0 as i64)
        .execute(&mut *tx)
        .await?;
        // It is not to be given up any more.
        sqlx::query(
            "UPDATE tx_intent SET state = 'dropped', note = 'the operator had the job taken up again', key = key || '~' || id
             WHERE job = ? AND kind = 'fail' AND state = 'queued'",
        )
        .bind(job.0 as i64)
        .execute(&mut *tx)
        .await?;
        tx.commit().await.with_context(|| format!("retry job {job}"))?;
        self.live.touch([job]);
        self.wake();
        Ok(())
    }

    /// Gives a job up because the operator says so: its slot is free, and what is queued for it is dropped.
    pub async fn abandon(&self, job: &Job, reason: &str) -> Result<()> {
        let at = self.time().await?;
        let reason = format!("{}{reason}", Store::BY_OPERATOR);
        self.record(job.id, &Work::Abandoned { at, reason, deal: Some(job.terms.deal()) }).await?;
        self.free(&[job.id]).await
    }

    /// Returns for which duties of a job the attempts so far failed, with the last error of each.
    pub async fn failing(&self, job: &Job) -> Result<Vec<(String, String)>> {
        let rows = sqlx::query(
            "SELECT duty, last_error FROM lease
             WHERE job = ? AND last_error IS NOT NULL AND ifnull(deal = ?, 1) ORDER BY duty",
        )
        .bind(job.id.0 as i64)
        .bind(job.terms.deal().to_vec())
        .fetch_all(&self.readers)
        .await?;
        Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
    }

    /// Returns what happened to host `us` since the operator last resumed, as far as the breaker looks: failures since `since`, gas
    /// of the last hour, and the `jobs_max` jobs that ended last. `fee_bps` is the fee that a job not paid out would have cost.
    pub async fn breaker_history(
        &self,
        us: Address,
        since: UnixSeconds,
        fee_bps: u16,
        jobs_max: u32,
    ) -> Result<History> {
        let mut tx = self.readers.begin().await?;
        let mark: Option<(i64, i64, i64)> =
            sqlx::query_as("SELECT block, time, work FROM resumed").fetch_optional(&mut *tx).await?;
        let now: Option<i64> =
            sqlx::query_scalar("SELECT time FROM block JOIN cursor USING (number, hash) WHERE canonical = 1")
                .fetch_optional(&mut *tx)
                .await?;
        let now = now.unwrap_or(0);
        let mut span = Span { us: us.to_vec(), now, since: since.0 as i64, block: -1, time: 0, work: 0 };
        if let Some((block, time, work)) = mark {
            (span.block, span.time, span.work) = (block, time, work);
        }
        let mut history = History::default();
        span.transactions(self, &mut tx, &mut history).await?;
        span.jobs_given_up(&mut tx, &mut history).await?;
        span.jobs_ended(&mut tx, &mut history, fee_bps, jobs_max).await?;
        Ok(history)
    }
}

/// The time that the breaker looks at.
struct Span {
    us: Vec<u8>,
    now: i64,
    /// Failures before it are too old to matter.
    since: i64,
    /// When the operator last resumed; see the table.
    block: i64,
    time: i64,
    work: i64,
}

impl Span {
    async fn transactions(&self, store: &Store, tx: &mut SqliteConnection, history: &mut History) -> Result<()> {
        let hour_ago = self.now - 3600;
        let oldest = self.since.min(hour_ago);
        let before = last_block(tx, oldest).await?;
        // A block whose header was dropped is as old as the next one known, or older.
        let rows = sqlx::query(
            "SELECT * FROM (
                 SELECT coalesce((SELECT time FROM block WHERE canonical = 1 AND number >= block_number ORDER BY number LIMIT 1), ?1)
                            AS time,
                        gas_used, gas_price, l1_fee, success, i.job, i.kind, block_number,
                        EXISTS (SELECT 1 FROM job WHERE id = i.job AND state = 'released')
                 FROM tx_receipt r JOIN tx_attempt a ON a.hash = r.hash JOIN tx_intent i ON i.id = a.intent
                 WHERE block_number > ?3 AND signer = ?2)
             WHERE time > ?4",
        )
        .bind(self.now)
        .bind(&self.us)
        .bind(self.block.max(before.unwrap_or(-1)))
        .bind(oldest)
        .fetch_all(&mut *tx)
        .await?;
        let job = |row: &SqliteRow| row.get::<Option<i64>, _>(5).map(|job| JobId(job as u64));
        let failed = |row: &&SqliteRow| !row.get::<bool, _>(4) && row.get::<i64, _>(0) > self.since;
        let jobs: Vec<JobId> = rows.iter().filter(failed).filter_map(job).collect();
        let taken = store.taken(tx, Address::from_slice(&self.us), &jobs).await?;
        for row in &rows {
            let at: i64 = row.get(0);
            if at > hour_ago {
                let gas = amount(row, 2)?.saturating_mul(U256::from(row.get::<i64, _>(1) as u64));
                history.gas_wei = history.gas_wei.saturating_add(gas).saturating_add(amount(row, 3)?);
            }
            let (job, block) = (job(row), row.get::<i64, _>(7) as u64);
            let faster = match row.get(6) {
                "claim" => {
                    job.and_then(|job| taken.get(&job)).is_some_and(|of| of.iter().any(|it| it.contains(&block)))
                }
                // Anyone may ask for the payment of a job: it came all the same.
                "release" => row.get(8),
                _ => false,
            };
            if failed(&row) && !faster {
                history.failures.push(Failure { fault: Fault::Reverted, job, at: UnixSeconds(at as u64) });
            }
        }
        Ok(())
    }

    /// Also orders whose number a reorg gave to another: they failed here all the same.
    async fn jobs_given_up(&self, tx: &mut SqliteConnection, history: &mut History) -> Result<()> {
        let rows = sqlx::query(
            "SELECT work.job, work.at FROM work JOIN job ON job.id = work.job
             WHERE +seq > ?1 AND work.did = 'Abandoned' AND work.at > ?2
                 AND NOT EXISTS (SELECT 1 FROM work AS later
                                 WHERE later.job = work.job AND later.did = 'Retried' AND later.seq > work.seq
                                     AND ifnull(later.body ->> '$.deal' = work.body ->> '$.deal', 1))
                 AND substr(json_extract(work.body, '$.reason'), 1, length(?3)) <> ?3
                 AND (job.host = ?4 OR EXISTS (SELECT 1 FROM tx_intent
                                               WHERE job = work.job AND kind = 'claim' AND state = 'mined' AND signer = ?4))",
        )
        .bind(self.work)
        .bind(self.since)
        .bind(Store::BY_OPERATOR)
        .bind(&self.us)
        .fetch_all(tx)
        .await?;
        let failure = |row: &SqliteRow| Failure {
            fault: Fault::Abandoned,
            job: Some(JobId(row.get::<i64, _>(0) as u64)),
            at: UnixSeconds(row.get::<i64, _>(1) as u64),
        };
        history.failures.extend(rows.iter().map(failure));
        Ok(())
    }

    async fn jobs_ended(&self, tx: &mut SqliteConnection, history: &mut History, fee_bps: u16, max: u32) -> Result<()> {
        // Those that this host has or had on chain: a job ends when its money goes, else at its deadline. To look when each of them
        // ended would take longer with every job: of the older ones those of the latest deadlines and those claimed last are looked at.
        let had = "WITH over AS NOT MATERIALIZED (
                 SELECT id, deadline, token, payment, iif(state = 'released', paid, '0') AS got FROM job
                 WHERE host = ?1 AND posted_block > ?2
                     AND (state IN ('released', 'refunded') OR (state IN ('claimed', 'committed') AND deadline <= ?3))),
             newest AS (
                 SELECT log.job AS id FROM block CROSS JOIN log ON log.block = block.seq
                 WHERE canonical = 1 AND number > ?5 AND kind IN ('PaymentReleased', 'PaymentRefunded')
                 UNION SELECT id FROM (SELECT id FROM over ORDER BY deadline DESC LIMIT ?4)
                 UNION SELECT id FROM (SELECT over.id FROM (SELECT id, job FROM tx_intent
                                                            WHERE kind = 'claim' AND state = 'mined' AND signer = ?1
                                                            ORDER BY id DESC LIMIT 10 * ?4) AS claim
                                       CROSS JOIN over ON over.id = claim.job ORDER BY claim.id DESC LIMIT ?4))
             SELECT coalesce((SELECT max(time) FROM log JOIN block ON block.seq = log.block
                              WHERE log.job = over.id AND canonical = 1 AND kind IN ('PaymentReleased', 'PaymentRefunded')),
                             deadline) AS ended, id, token, payment, got
             FROM newest CROSS JOIN over USING (id) ORDER BY ended DESC, id DESC LIMIT ?4";
        // And those that it gave back, which ended for it when it did.
        let gave_back = "SELECT max(work.at) AS ended, id, token, payment, '0' FROM work JOIN job ON job.id = work.job
             WHERE did = 'Abandoned' AND host IS NOT ?1 AND posted_block > ?2
                 AND EXISTS (SELECT 1 FROM tx_intent WHERE job = work.job AND kind = 'claim' AND state = 'mined' AND signer = ?1)
             GROUP BY id ORDER BY ended DESC, id DESC LIMIT ?4";
        let bound = self.since.max(self.time);
        let before = last_block(tx, bound).await?.unwrap_or(-1);
        let mut ended: Vec<((i64, i64), Ended)> = Vec::new();
        for query in [had, gave_back] {
            let query = sqlx::query(query).bind(&self.us).bind(self.block).bind(self.now).bind(max).bind(before);
            for row in &query.fetch_all(&mut *tx).await? {
                let expected = breaker::expected(amount(row, 3)?, fee_bps);
                ended.push((
                    (row.get(0), row.get(1)),
                    Ended { token: address(row, 2)?, expected, real: amount(row, 4)? },
                ));
            }
        }
        ended.sort_unstable_by_key(|(order, _)| std::cmp::Reverse(*order));
        history.ended = ended.into_iter().map(|(_, ended)| ended).collect();
        // A job that was claimed before the operator resumed may end badly afterwards. The arbiter gives back the money of one that was
        // completed long after its deadline: that counts from when it does.
        let rows = sqlx::query(
            "WITH lately AS (
                 SELECT id FROM job WHERE host = ?1 AND deadline > ?3 AND deadline <= ?2
                 UNION SELECT log.job FROM block CROSS JOIN log ON log.block = block.seq
                 WHERE canonical = 1 AND number > ?4 AND kind = 'PaymentRefunded')
             SELECT id, deadline,
                    (SELECT max(time) FROM log JOIN block ON block.seq = log.block
                     WHERE log.job = job.id AND kind = 'PaymentRefunded' AND canonical = 1),
                    EXISTS (SELECT 1 FROM log JOIN block ON block.seq = log.block
                            WHERE log.job = job.id AND kind = 'JobCompleted' AND canonical = 1)
             FROM lately CROSS JOIN job USING (id)
             WHERE host = ?1 AND (state = 'refunded' OR (state IN ('claimed', 'committed') AND deadline <= ?2))",
        )
        .bind(&self.us)
        .bind(self.now)
        .bind(bound)
        .bind(before)
        .fetch_all(tx)
        .await?;
        for row in &rows {
            let (deadline, refunded, completed): (i64, Option<i64>, bool) = (row.get(1), row.get(2), row.get(3));
            let (fault, at) = match refunded {
                Some(time) if completed || time < deadline => (Fault::Refunded, time),
                _ => (Fault::Expired, deadline),
            };
            if at > bound {
                let job = Some(JobId(row.get::<i64, _>(0) as u64));
                history.failures.push(Failure { fault, job, at: UnixSeconds(at as u64) });
            }
        }
        Ok(())
    }
}

/// Returns the newest canonical block stored that was made at `time` or before.
async fn last_block(connection: &mut SqliteConnection, time: i64) -> Result<Option<i64>> {
    let block = "SELECT number FROM block WHERE canonical = 1 AND time <= ? ORDER BY number DESC LIMIT 1";
    Ok(sqlx::query_scalar(block).bind(time).fetch_optional(connection).await?)
}

async fn holds(connection: &mut SqliteConnection) -> Result<Vec<Hold>> {
    let rows = sqlx::query("SELECT kind, reason, at, told FROM hold ORDER BY at, kind").fetch_all(connection).await?;
    let hold = |row: &SqliteRow| {
        let (kind, at) = (HoldKind::read(row.get(0))?, UnixSeconds(row.get::<i64, _>(2) as u64));
        Ok(Hold { kind, reason: row.get(1), at, told: row.get(3) })
    };
    rows.iter().map(hold).collect()
}
