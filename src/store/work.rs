//! What this node intends and finishes: choices, reservations, leases, work facts, receipts from peers.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result};
use sqlx::sqlite::Sqlite;
use sqlx::{QueryBuilder, Row, SqliteConnection};

use super::projection::statements;
use super::tx::{Intent, make_room, push_intents};
use super::{SqliteRow, Store, address, clock};
use crate::market::job::{Duty, Job, Work};
use crate::market::receipt::SignedReceipt;
use crate::market::types::{B256, JobId, UnixSeconds};

/// A job that policy chose.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    pub job: JobId,
    /// [`Work::Chosen`].
    pub work: Work,
    pub claim: Intent,
}

/// What is owed to one order, whose job's number a reorg may give to another: that is owed its own, with attempts of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owed {
    pub job: JobId,
    /// The order's [`Terms::deal`](crate::market::event::Terms::deal).
    pub deal: B256,
    pub duty: Duty,
}

impl Owed {
    pub fn to(job: &Job, duty: Duty) -> Self {
        Self { job: job.id, deal: job.terms.deal(), duty }
    }
}

/// A receipt that reached us by gossip.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerReceipt {
    pub signed: SignedReceipt,
    /// The peer that published it.
    pub peer: String,
    /// Whether the chain says the same.
    pub agreed: bool,
}

impl Store {
    /// Records that policy chose jobs: of each the fact, a reservation and the claim intent, all in one transaction. A job whose
    /// earlier claim stands or is under way is left as it is, and so is every one past `slots` reservations, or while something holds
    /// claiming back. Returns the jobs that were chosen now.
    pub async fn choose(&self, choices: &[Choice], slots: u32) -> Result<Vec<JobId>> {
        let jobs: Vec<JobId> = choices.iter().map(|choice| choice.job).collect();
        let keys: Vec<&str> = choices.iter().map(|choice| choice.claim.key.as_str()).collect();
        let mut tx = self.writer.begin_with("BEGIN IMMEDIATE").await?;
        let (taken, held, busy): (i64, bool, String) = sqlx::query_as(
            "SELECT (SELECT count(*) FROM reservation), EXISTS (SELECT 1 FROM hold), (SELECT json_group_array(job) FROM (
                 SELECT job FROM reservation WHERE job IN (SELECT value FROM json_each(?))
                 UNION SELECT job FROM tx_intent
                 WHERE key IN (SELECT value FROM json_each(?)) AND state IN ('queued', 'signed', 'mined')))",
        )
        .bind(serde_json::to_string(&jobs)?)
        .bind(serde_json::to_string(&keys)?)
        .fetch_one(&mut *tx)
        .await?;
        let busy: Vec<i64> = serde_json::from_str(&busy)?;
        let room = if held { 0 } else { i64::from(slots).saturating_sub(taken).max(0) as usize };
        let free = |choice: &&Choice| !busy.contains(&(choice.job.0 as i64));
        let made: Vec<&Choice> = choices.iter().filter(free).take(room).collect();
        let chosen: Vec<JobId> = made.iter().map(|choice| choice.job).collect();
        if chosen.is_empty() {
            return Ok(chosen);
        }
        for made in statements(&made) {
            insert_choices(&mut tx, made).await?;
        }
        tx.commit().await?;
        self.live.tell(made.iter().map(|choice| (choice.job, &choice.work)));
        self.wake();
        Ok(chosen)
    }

    /// Makes sure `job`, which the chain says is ours, has its reservation, even past the configured number of slots.
    pub async fn adopt(&self, job: JobId) -> Result<bool> {
        let added = sqlx::query("INSERT INTO reservation (job, at) VALUES (?, ?) ON CONFLICT DO NOTHING")
            .bind(job.0 as i64)
            .bind(clock().0 as i64)
            .execute(&self.writer)
            .await?;
        Ok(added.rows_affected() > 0)
    }

    /// Records a finished piece of work.
    pub async fn record(&self, job: JobId, work: &Work) -> Result<()> {
        let mut tx = self.writer.begin_with("BEGIN IMMEDIATE").await?;
        insert_work(&mut tx, job, work).await?;
        tx.commit().await?;
        self.live.tell([(job, work)].into_iter());
        self.wake();
        Ok(())
    }

    /// Returns the jobs that hold a reservation.
    pub async fn reservations(&self) -> Result<BTreeSet<JobId>> {
        let ids: Vec<i64> =
            sqlx::query_scalar("SELECT job FROM reservation ORDER BY job").fetch_all(&self.readers).await?;
        Ok(ids.into_iter().map(|id| JobId(id as u64)).collect())
    }

    /// Frees the slots of `jobs` and drops their unsigned transactions, but not those that ask for our money or give a job up.
    pub async fn free(&self, jobs: &[JobId]) -> Result<()> {
        if jobs.is_empty() {
            return Ok(());
        }
        let mut tx = self.writer.begin_with("BEGIN IMMEDIATE").await?;
        free(&mut tx, jobs).await?;
        tx.commit().await?;
        self.wake();
        Ok(())
    }

    /// Returns those of `jobs` that the chain has.
    pub async fn posted(&self, jobs: &[JobId]) -> Result<BTreeSet<JobId>> {
        if jobs.is_empty() {
            return Ok(BTreeSet::new());
        }
        let ids: Vec<i64> = sqlx::query_scalar("SELECT id FROM job WHERE id IN (SELECT value FROM json_each(?))")
            .bind(serde_json::to_string(jobs)?)
            .fetch_all(&self.readers)
            .await?;
        Ok(ids.into_iter().map(|id| JobId(id as u64)).collect())
    }

    /// Takes the choice of `job` back, whose posting is not on the chain any more, and frees its slot: of each order that was chosen
    /// under this number.
    pub async fn withdraw(&self, job: JobId) -> Result<()> {
        let at = self.time().await?;
        let mut tx = self.writer.begin_with("BEGIN IMMEDIATE").await?;
        let deals = sqlx::query_scalar("SELECT DISTINCT body ->> '$.deal' FROM work WHERE job = ? AND did = 'Chosen'")
            .bind(job.0 as i64)
            .fetch_all(&mut *tx)
            .await?;
        for deal in deals {
            insert_work(&mut tx, job, &Work::Withdrawn { at, deal: deal_of(job, deal)? }).await?;
        }
        free(&mut tx, &[job]).await?;
        tx.commit().await?;
        self.live.touch([job]);
        self.wake();
        Ok(())
    }

    /// Takes the choices back whose claims were queued before `before` (wall clock) and are not signed yet: what was judged then is to
    /// be judged again. Returns their jobs.
    pub async fn withdraw_queued(&self, before: UnixSeconds) -> Result<Vec<JobId>> {
        let queued: bool = sqlx::query_scalar(
            "SELECT EXISTS (SELECT 1 FROM tx_intent WHERE state = 'queued' AND kind = 'claim' AND at < ?)",
        )
        .bind(before.0.min(i64::MAX as u64) as i64)
        .fetch_one(&self.readers)
        .await?;
        if !queued {
            return Ok(Vec::new());
        }
        let mut tx = self.writer.begin_with("BEGIN IMMEDIATE").await?;
        let jobs = withdraw_queued(&mut tx, before).await?;
        tx.commit().await?;
        self.live.touch(jobs.iter().copied());
        self.wake();
        Ok(jobs)
    }

    /// Takes the lease on what is owed for `seconds`. Returns false when somebody holds it, if for another order, or its back-off has
    /// not passed.
    pub async fn lease(&self, owed: Owed, seconds: u64) -> Result<bool> {
        let now = clock().0 as i64;
        let taken = sqlx::query(
            "INSERT INTO lease (job, duty, until, not_before, attempts, deal) VALUES (?1, ?2, ?3, 0, 1, ?4)
             ON CONFLICT (job, duty) DO UPDATE SET until = excluded.until, deal = excluded.deal,
                 attempts = iif(ifnull(deal = excluded.deal, 1), attempts, 0) + 1,
                 not_before = iif(ifnull(deal = excluded.deal, 1), not_before, 0),
                 last_error = iif(ifnull(deal = excluded.deal, 1), last_error, NULL)
             WHERE until <= ?5 AND (not_before <= ?5 OR deal <> excluded.deal)",
        )
        .bind(owed.job.0 as i64)
        .bind(owed.duty.name())
        .bind(now + seconds as i64)
        .bind(owed.deal.as_slice())
        .bind(now)
        .execute(&self.writer)
        .await?;
        Ok(taken.rows_affected() > 0)
    }

    /// Returns the jobs whose `duty` cannot be leased now: with an order, for that one, whose back-off has not passed.
    pub async fn leased(&self, duty: Duty) -> Result<BTreeMap<JobId, Option<B256>>> {
        let rows = sqlx::query(
            "SELECT job, iif(until > ?2, NULL, deal) FROM lease WHERE duty = ?1 AND (until > ?2 OR not_before > ?2)",
        )
        .bind(duty.name())
        .bind(clock().0 as i64)
        .fetch_all(&self.readers)
        .await?;
        let leased = |row: &SqliteRow| {
            let deal = row.get::<Option<&[u8]>, _>(1).map(B256::try_from).transpose().context("a lease's order")?;
            Ok((JobId(row.get::<i64, _>(0) as u64), deal))
        };
        rows.iter().map(leased).collect()
    }

    /// Returns the lease of the given duties that nobody gave back for longest, with the time it lasts until. A duty whose lease is
    /// only its back-off is not to be asked for.
    pub async fn oldest_lease(&self, duties: [Duty; 2]) -> Result<Option<(JobId, String, UnixSeconds)>> {
        let oldest: Option<(i64, String, i64)> = sqlx::query_as(
            "SELECT job, duty, until FROM lease WHERE duty IN (?, ?) AND until > 0 ORDER BY until LIMIT 1",
        )
        .bind(duties[0].name())
        .bind(duties[1].name())
        .fetch_optional(&self.readers)
        .await?;
        Ok(oldest.map(|(job, duty, until)| (JobId(job as u64), duty, UnixSeconds(until as u64))))
    }

    /// Returns how many leases of these duties last now.
    pub async fn under_way(&self, duties: [Duty; 2]) -> Result<usize> {
        let count: i64 = sqlx::query_scalar("SELECT count(*) FROM lease WHERE duty IN (?, ?) AND until > ?")
            .bind(duties[0].name())
            .bind(duties[1].name())
            .bind(clock().0 as i64)
            .fetch_one(&self.readers)
            .await?;
        Ok(count as usize)
    }

    /// Gives a lease back: for good after success, or with a back-off that doubles with each failure (1 s to 64 s).
    /// Returns the number of attempts so far; 0 where another order has the lease by now.
    pub async fn release(&self, owed: Owed, failure: Option<&str>) -> Result<u32> {
        let attempts = match failure {
            None => {
                sqlx::query("DELETE FROM lease WHERE job = ? AND duty = ? AND ifnull(deal = ?, 1)")
                    .bind(owed.job.0 as i64)
                    .bind(owed.duty.name())
                    .bind(owed.deal.as_slice())
                    .execute(&self.writer)
                    .await?;
                0
            }
            Some(error) => sqlx::query_scalar::<_, i64>(
                "UPDATE lease SET until = 0, not_before = ? + (1 << min(attempts - 1, 6)), last_error = ?
                 WHERE job = ? AND duty = ? AND ifnull(deal = ?, 1) RETURNING attempts",
            )
            .bind(clock().0 as i64)
            .bind(error)
            .bind(owed.job.0 as i64)
            .bind(owed.duty.name())
            .bind(owed.deal.as_slice())
            .fetch_optional(&self.writer)
            .await?
            .unwrap_or(0),
        };
        self.wake();
        Ok(attempts as u32)
    }

    /// Gives a lease back as if it had not been taken: nothing was tried, so no attempt counts and nobody is woken.
    pub async fn put_back(&self, owed: Owed) -> Result<()> {
        sqlx::query(
            "UPDATE lease SET until = 0, attempts = attempts - 1 WHERE job = ? AND duty = ? AND ifnull(deal = ?, 1)",
        )
        .bind(owed.job.0 as i64)
        .bind(owed.duty.name())
        .bind(owed.deal.as_slice())
        .execute(&self.writer)
        .await?;
        Ok(())
    }

    /// Frees every lease: called once at start, when no worker of an earlier process can be alive.
    pub async fn free_leases(&self) -> Result<u64> {
        let freed = sqlx::query("UPDATE lease SET until = 0 WHERE until > 0").execute(&self.writer).await?;
        Ok(freed.rows_affected())
    }

    /// Keeps a peer's receipt; a later one for the same job and host replaces it.
    pub async fn keep_receipt(&self, receipt: &PeerReceipt) -> Result<()> {
        let body = serde_json::to_string(&receipt.signed).context("write receipt")?;
        sqlx::query(
            "INSERT INTO peer_receipt VALUES (?, ?, ?, ?, ?, ?)
             ON CONFLICT (job, host) DO UPDATE SET body = excluded.body, peer = excluded.peer, agreed = excluded.agreed",
        )
        .bind(receipt.signed.receipt.job.0 as i64)
        .bind(receipt.signed.receipt.host.as_slice())
        .bind(body)
        .bind(&receipt.peer)
        .bind(receipt.agreed)
        .bind(clock().0 as i64)
        .execute(&self.writer)
        .await?;
        self.wake();
        Ok(())
    }

    /// Returns the receipts peers sent, by job.
    pub async fn peer_receipts(&self) -> Result<Vec<PeerReceipt>> {
        let rows = sqlx::query("SELECT body, peer, agreed, host FROM peer_receipt ORDER BY job, host")
            .fetch_all(&self.readers)
            .await?;
        rows.iter()
            .map(|row| {
                let host = address(row, 3)?;
                let signed = serde_json::from_str(row.get(0)).with_context(|| format!("stored receipt of {host}"))?;
                Ok(PeerReceipt { signed, peer: row.get(1), agreed: row.get(2) })
            })
            .collect()
    }
}

pub(super) async fn withdraw_queued(tx: &mut SqliteConnection, before: UnixSeconds) -> Result<Vec<JobId>> {
    // A claim is queued with the choice that it follows from: the newest.
    let queued: Vec<(i64, Option<String>)> = sqlx::query_as(
        "SELECT job, (SELECT body ->> '$.deal' FROM work
                      WHERE work.job = tx_intent.job AND did = 'Chosen' ORDER BY seq DESC LIMIT 1)
         FROM tx_intent WHERE state = 'queued' AND kind = 'claim' AND at < ? AND job IS NOT NULL ORDER BY id",
    )
    .bind(before.0.min(i64::MAX as u64) as i64)
    .fetch_all(&mut *tx)
    .await?;
    let at: Option<i64> =
        sqlx::query_scalar("SELECT time FROM block JOIN cursor USING (number, hash) WHERE canonical = 1")
            .fetch_optional(&mut *tx)
            .await?;
    let at = UnixSeconds(at.unwrap_or(0) as u64);
    let mut jobs = Vec::with_capacity(queued.len());
    for (job, deal) in queued {
        let job = JobId(job as u64);
        insert_work(tx, job, &Work::Withdrawn { at, deal: deal_of(job, deal)? }).await?;
        jobs.push(job);
    }
    free(tx, &jobs).await?;
    Ok(jobs)
}

/// Reads which order something was done for.
fn deal_of(job: JobId, text: Option<String>) -> Result<Option<B256>> {
    text.map(|text| text.parse()).transpose().with_context(|| format!("work of job {job}: its order"))
}

async fn free(tx: &mut SqliteConnection, jobs: &[JobId]) -> Result<()> {
    let jobs = serde_json::to_string(jobs)?;
    for statement in [
        "DELETE FROM reservation WHERE job IN (SELECT value FROM json_each(?))",
        "UPDATE tx_intent SET state = 'dropped', note = 'the job needs it no more'
         WHERE job IN (SELECT value FROM json_each(?)) AND state = 'queued' AND kind NOT IN ('release', 'fail')",
    ] {
        sqlx::query(statement).bind(&jobs).execute(&mut *tx).await?;
    }
    Ok(())
}

pub(super) async fn insert_work(tx: &mut SqliteConnection, job: JobId, work: &Work) -> Result<()> {
    sqlx::query("INSERT INTO work (job, did, body, at) VALUES (?, ?, ?, ?)")
        .bind(job.0 as i64)
        .bind(work.name())
        .bind(serde_json::to_string(work).context("write work")?)
        .bind(work.at().0 as i64)
        .execute(tx)
        .await
        .with_context(|| format!("record {} of job {job}", work.name()))?;
    Ok(())
}

/// Adds the rows of choices, all with one statement: each passes between threads once.
async fn insert_choices(tx: &mut SqliteConnection, choices: &[&Choice]) -> Result<()> {
    let now = clock().0 as i64;
    let mut query = QueryBuilder::<Sqlite>::new("INSERT INTO reservation (job, at) ");
    query.push_values(choices, |mut values, choice| {
        values.push_bind(choice.job.0 as i64).push_bind(now);
    });
    let bodies: Vec<String> = choices
        .iter()
        .map(|choice| serde_json::to_string(&choice.work))
        .collect::<Result<_, _>>()
        .context("write work")?;
    query.push("; INSERT INTO work (job, did, body, at) ");
    query.push_values(choices.iter().zip(bodies), |mut values, (Choice { job, work, .. }, body)| {
        values.push_bind(job.0 as i64).push_bind(work.name()).push_bind(body).push_bind(work.at().0 as i64);
    });
    query.push("; ");
    let claims: Vec<&Intent> = choices.iter().map(|choice| &choice.claim).collect();
    push_intents(&mut query, &claims);
    let added = query.build().execute(&mut *tx).await.with_context(|| {
        let jobs: Vec<String> = choices.iter().map(|choice| choice.job.to_string()).collect();
        format!("choose jobs {}", jobs.join(", "))
    })?;
    if (added.rows_affected() as usize) < 3 * choices.len() {
        make_room(tx, &claims).await?;
    }
    Ok(())
}
