//! The transactions we owe: one nonce each, signed bytes durable before the wire, receipts while canonical.

use std::collections::BTreeMap;

use alloy::hex;
use anyhow::{Context, Result, ensure};
use sqlx::sqlite::Sqlite;
use sqlx::{QueryBuilder, Row, SqliteConnection};

use super::projection::statements;
use super::{SqliteRow, Store, address, amount, clock, hash};
use crate::failpoint::{self, Point};
use crate::market::types::{Address, B256, BlockRef, Bytes, JobId, U256};

/// A call we want on chain. `key` names the reason: a second intent with the same key is the same intent, unless the first came to
/// nothing, which makes room under a key with `~`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Intent {
    pub key: String,
    pub job: Option<JobId>,
    /// What it does, in one word: `claim`, `commit`, `complete`, `release`, `fail`, `fill`.
    pub kind: &'static str,
    pub target: Address,
    pub data: Bytes,
    pub signer: Address,
    /// Its gas limit, where the call needs no try before it is signed.
    pub gas: Option<u64>,
    /// The most wei it may cost.
    pub cost_max: Option<U256>,
}

/// Where an intent stands; see the table's diagram in the migration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IntentState {
    Queued,
    Signed,
    Mined,
    Reverted,
    Cancelled,
    Foreign,
    Dropped,
}

impl IntentState {
    const ALL: [IntentState; 7] = [
        IntentState::Queued,
        IntentState::Signed,
        IntentState::Mined,
        IntentState::Reverted,
        IntentState::Cancelled,
        IntentState::Foreign,
        IntentState::Dropped,
    ];

    /// Returns the state's name: `queued`, `signed`, `mined`, `reverted`, `cancelled`, `foreign` or `dropped`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Signed => "signed",
            Self::Mined => "mined",
            Self::Reverted => "reverted",
            Self::Cancelled => "cancelled",
            Self::Foreign => "foreign",
            Self::Dropped => "dropped",
        }
    }

    /// Returns whether the call was not made, and will not be by this intent.
    pub fn came_to_nothing(self) -> bool {
        matches!(self, Self::Reverted | Self::Cancelled | Self::Foreign | Self::Dropped)
    }

    /// Returns whether the claims of a job that is posted lead nowhere: none was made, or the one that was made is given back.
    pub fn claim_is_over(claims: &[Self]) -> bool {
        claims.iter().all(|state| state.came_to_nothing()) || claims.contains(&Self::Mined)
    }

    fn read(text: &str) -> Result<Self> {
        let state = Self::ALL.into_iter().find(|state| state.name() == text);
        state.with_context(|| format!("unknown intent state {text:?} in the database"))
    }
}

/// An intent as stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenIntent {
    pub id: i64,
    pub key: String,
    pub job: Option<JobId>,
    pub kind: String,
    pub target: Address,
    pub data: Bytes,
    pub nonce: Option<u64>,
    /// Gas limit of every attempt; `None` before the call was tried.
    pub gas: Option<u64>,
    /// The most wei it may cost.
    pub cost_max: Option<U256>,
    /// Oldest first; empty while queued.
    pub attempts: Vec<Attempt>,
}

/// What may be signed now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ready {
    pub intents: Vec<OpenIntent>,
    /// Intents that are signed and not settled; 0 where nothing may be signed.
    pub in_flight: usize,
    /// The smallest nonce after all that intents took; 0 where nothing may be signed.
    pub next_nonce: u64,
}

/// One set of signed bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attempt {
    pub hash: B256,
    pub raw: Bytes,
    /// `maxFeePerGas` in wei.
    pub fee_cap: u128,
    /// `maxPriorityFeePerGas` in wei.
    pub tip_cap: u128,
    /// Wall clock, Unix seconds.
    pub signed_at: u64,
    pub sent: bool,
    /// Whether it is an empty transaction that only takes the nonce away.
    pub cancels: bool,
}

/// An attempt to be made durable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signed {
    pub intent: i64,
    pub nonce: u64,
    pub gas: u64,
    pub attempt: Attempt,
}

/// What the chain says of a mined attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TxOutcome {
    pub hash: B256,
    pub block: BlockRef,
    pub success: bool,
    pub gas_used: u64,
    /// Wei per gas that was paid.
    pub gas_price: U256,
    /// Wei that a rollup took besides, for the chain below.
    pub l1_fee: U256,
}

/// What an intent is read from.
const COLUMNS: &str = "id, job, kind, target, data, nonce, gas, cost_max, key";
/// Nothing is begun for a job of which logs and contracts say different things.
const NOT_IN_DOUBT: &str = "(job IS NULL OR job NOT IN (SELECT job FROM doubt))";

impl Store {
    /// Queues intents, each unless one with its key stands or is under way. Returns how many were added.
    pub async fn queue(&self, intents: &[Intent]) -> Result<usize> {
        if intents.is_empty() {
            return Ok(0);
        }
        let mut tx = self.writer.begin_with("BEGIN IMMEDIATE").await?;
        let added = insert_intents(&mut tx, intents.iter()).await?;
        tx.commit().await?;
        self.wake();
        Ok(added)
    }

    /// Returns how the intents made for each of the jobs stand, by job and kind, oldest first. Of those that came to nothing, only what
    /// was made since the operator last had the job retried, and since its newest claim: what came before may have been for another
    /// order, to which a reorg had given the number.
    pub async fn intents_of(&self, jobs: &[JobId]) -> Result<BTreeMap<(JobId, String), Vec<IntentState>>> {
        let mut intents = BTreeMap::<_, Vec<_>>::new();
        if jobs.is_empty() {
            return Ok(intents);
        }
        let rows = sqlx::query(
            "SELECT job, kind, state FROM tx_intent AS made WHERE job IN (SELECT value FROM json_each(?))
             AND key NOT LIKE '%~%'
             AND (state IN ('queued', 'signed', 'mined')
                  OR id >= coalesce((SELECT max(id) FROM tx_intent WHERE job = made.job AND kind = 'claim'), 0))
             ORDER BY id",
        )
        .bind(serde_json::to_string(jobs)?)
        .fetch_all(&self.readers)
        .await?;
        for row in &rows {
            let key = (JobId(row.get::<i64, _>(0) as u64), row.get::<String, _>(1));
            intents.entry(key).or_default().push(IntentState::read(row.get(2))?);
        }
        Ok(intents)
    }

    /// Returns the intents of `signer` that are signed and not settled, by nonce.
    pub async fn signed_intents(&self, signer: Address) -> Result<Vec<OpenIntent>> {
        let mut intents = self.intents(signer, "state = 'signed' ORDER BY nonce", i64::MAX).await?;
        let rows = sqlx::query(
            "SELECT hash, raw, fee_cap, tip_cap, signed_at, sent_at, cancels, intent FROM tx_attempt
             WHERE intent IN (SELECT value FROM json_each(?)) ORDER BY rowid",
        )
        .bind(serde_json::to_string(&intents.iter().map(|intent| intent.id).collect::<Vec<_>>())?)
        .fetch_all(&self.readers)
        .await?;
        let mut attempts = BTreeMap::<i64, Vec<Attempt>>::new();
        for row in &rows {
            attempts.entry(row.get(7)).or_default().push(attempt(row)?);
        }
        for intent in &mut intents {
            intent.attempts = attempts.remove(&intent.id).unwrap_or_default();
        }
        Ok(intents)
    }

    /// Returns the queued intents of `signer` whose gas limit is known and that may be signed now, in the order in which they are to be:
    /// claims last, because everything else is of jobs that are ours already, and only where `claims` are wanted. They are no more than
    /// make up `window` with those that are signed and not settled, and none while finality is violated.
    pub async fn ready(&self, signer: Address, window: usize, claims: bool) -> Result<Ready> {
        let claims = if claims { "" } else { "AND kind <> 'claim'" };
        let rows = sqlx::query(sqlx::AssertSqlSafe(format!(
            "SELECT {COLUMNS}, (SELECT count(*) FROM tx_intent WHERE signer = ?1 AND state = 'signed'),
                 (SELECT coalesce(max(nonce) + 1, 0) FROM tx_intent WHERE signer = ?1 AND nonce IS NOT NULL)
             FROM tx_intent WHERE signer = ?1 AND state = 'queued' AND gas IS NOT NULL AND kind <> 'fill' {claims}
                 AND {NOT_IN_DOUBT} AND id NOT IN (SELECT intent FROM tx_order WHERE what = 'cancel')
                 AND NOT EXISTS (SELECT 1 FROM finality WHERE violated IS NOT NULL)
             ORDER BY kind = 'claim', id
             LIMIT max(0, ?2 - (SELECT count(*) FROM tx_intent WHERE signer = ?1 AND state = 'signed'))"
        )))
        .bind(signer.as_slice())
        .bind(i64::try_from(window).unwrap_or(i64::MAX))
        .fetch_all(&self.readers)
        .await?;
        let number = |column: usize| rows.first().map_or(0, |row| row.get::<i64, _>(column) as u64);
        let (in_flight, next_nonce) = (number(9) as usize, number(10));
        Ok(Ready { intents: rows.iter().map(open_intent).collect::<Result<_>>()?, in_flight, next_nonce })
    }

    /// Returns at most `limit` queued intents of `signer` whose call was not tried yet, oldest first.
    pub async fn untried_intents(&self, signer: Address, limit: usize) -> Result<Vec<OpenIntent>> {
        self.intents(signer, &format!("state = 'queued' AND gas IS NULL AND {NOT_IN_DOUBT} ORDER BY id"), limit as i64)
            .await
    }

    /// Returns the queued empty transactions of `signer` that take missing nonces.
    pub async fn fill_intents(&self, signer: Address) -> Result<Vec<OpenIntent>> {
        self.intents(signer, "state = 'queued' AND kind = 'fill' ORDER BY id", i64::MAX).await
    }

    async fn intents(&self, signer: Address, which: &str, limit: i64) -> Result<Vec<OpenIntent>> {
        let rows = sqlx::query(sqlx::AssertSqlSafe(format!(
            "SELECT {COLUMNS} FROM tx_intent WHERE signer = ? AND {which} LIMIT ?"
        )))
        .bind(signer.as_slice())
        .bind(limit)
        .fetch_all(&self.readers)
        .await?;
        rows.iter().map(open_intent).collect()
    }

    /// Returns how many intents of `signer` are not finished.
    pub async fn open_intents(&self, signer: Address) -> Result<u64> {
        let count: i64 =
            sqlx::query_scalar("SELECT count(*) FROM tx_intent WHERE signer = ? AND state IN ('queued', 'signed')")
                .bind(signer.as_slice())
                .fetch_one(&self.readers)
                .await?;
        Ok(count as u64)
    }

    /// Returns how many transactions of `signer` are wanted and never were on the wire; claims, which may stay undone, not counted.
    pub async fn unsent_intents(&self, signer: Address) -> Result<usize> {
        let count: i64 = sqlx::query_scalar(
            "SELECT count(*) FROM tx_intent WHERE signer = ? AND (state = 'queued' AND kind NOT IN ('claim', 'fill')
             OR state = 'signed' AND NOT EXISTS
                 (SELECT 1 FROM tx_attempt WHERE intent = tx_intent.id AND sent_at IS NOT NULL))",
        )
        .bind(signer.as_slice())
        .fetch_one(&self.readers)
        .await?;
        Ok(count as usize)
    }

    /// Returns the nonces from `from` up to the newest of `signer` that no intent has.
    pub async fn nonce_gaps(&self, signer: Address, from: u64) -> Result<Vec<u64>> {
        let taken: Vec<i64> =
            sqlx::query_scalar("SELECT nonce FROM tx_intent WHERE signer = ? AND nonce >= ? ORDER BY nonce")
                .bind(signer.as_slice())
                .bind(from as i64)
                .fetch_all(&self.readers)
                .await?;
        let (mut gaps, mut next) = (Vec::new(), from);
        for nonce in taken {
            gaps.extend(next..nonce as u64);
            next = nonce as u64 + 1;
        }
        Ok(gaps)
    }

    /// Notes the gas limit of a queued intent whose call was tried.
    pub async fn set_gas(&self, intent: i64, gas: u64) -> Result<()> {
        sqlx::query("UPDATE tx_intent SET gas = ? WHERE id = ? AND state = 'queued'")
            .bind(gas as i64)
            .bind(intent)
            .execute(&self.writer)
            .await?;
        self.wake();
        Ok(())
    }

    /// Makes signed bytes durable, all or none: each intent takes its nonce (a first attempt) or keeps it (a replacement).
    /// Only after this returns may the bytes be sent: they survive the machine's end.
    ///
    /// # Errors
    /// If a nonce is another intent's, or an intent has another one or is finished: the database refuses.
    pub async fn sign(&self, signed: &[Signed]) -> Result<()> {
        let mut writer = self.writer.acquire().await?;
        let stored = store_signed(&mut writer, signed).await;
        // Whoever writes next may wait for this; whoever sends need not. Undone it costs time, and no more.
        tokio::spawn(async move { sqlx::query("PRAGMA synchronous = NORMAL").execute(&mut *writer).await });
        stored
    }

    /// Notes that a node accepted the bytes.
    pub async fn mark_sent(&self, attempts: &[B256]) -> Result<()> {
        if attempts.is_empty() {
            return Ok(());
        }
        let hashes: Vec<String> = attempts.iter().map(hex::encode).collect();
        sqlx::query(
            "UPDATE tx_attempt SET sent_at = ? WHERE hash IN (SELECT unhex(value) FROM json_each(?)) AND sent_at IS NULL",
        )
        .bind(clock().0 as i64)
        .bind(serde_json::to_string(&hashes)?)
        .execute(&self.writer)
        .await?;
        Ok(())
    }

    /// Ends a queued intent that will never be signed, and says why.
    pub async fn drop_intent(&self, intent: i64, note: &str) -> Result<()> {
        sqlx::query("UPDATE tx_intent SET state = 'dropped', note = ? WHERE id = ? AND state = 'queued'")
            .bind(note)
            .bind(intent)
            .execute(&self.writer)
            .await?;
        self.wake();
        Ok(())
    }

    /// Ends a signed intent whose nonce a transaction took that is not ours, in a block that is final.
    pub async fn lose_nonce(&self, intent: i64, note: &str) -> Result<()> {
        sqlx::query("UPDATE tx_intent SET state = 'foreign', note = ? WHERE id = ? AND state = 'signed'")
            .bind(note)
            .bind(intent)
            .execute(&self.writer)
            .await?;
        self.wake();
        Ok(())
    }

    /// Records what the chain made of attempts, and returns how many of them count: those whose block is one of our canonical blocks.
    /// The indexer must have seen it first, and a reorg takes the outcome away with the block. Those of `finals` count too: final
    /// blocks that the chain has and whose headers are not stored, as they hold no log of ours.
    pub async fn settle(&self, outcomes: &[TxOutcome], finals: &[BlockRef]) -> Result<usize> {
        if outcomes.is_empty() {
            return Ok(0);
        }
        let mut settled = 0;
        let mut tx = self.writer.begin_with("BEGIN IMMEDIATE").await?;
        let last_final = super::finality(&mut tx).await?.map_or(0, |finality| finality.block.number);
        for outcome in outcomes {
            match super::canonical_hash(&mut tx, outcome.block.number).await? {
                Some(hash) if hash == outcome.block.hash => {}
                None if outcome.block.number <= last_final && finals.contains(&outcome.block) => {}
                _ => continue,
            }
            sqlx::query(
                "INSERT INTO tx_receipt (hash, block_hash, block_number, success, gas_used, gas_price, l1_fee)
                 VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
            )
            .bind(outcome.hash.as_slice())
            .bind(outcome.block.hash.as_slice())
            .bind(outcome.block.number as i64)
            .bind(outcome.success)
            .bind(outcome.gas_used as i64)
            .bind(outcome.gas_price.to_string())
            .bind(outcome.l1_fee.to_string())
            .execute(&mut *tx)
            .await?;
            sqlx::query(
                "UPDATE tx_intent SET state = CASE WHEN cancels THEN 'cancelled' WHEN ? THEN 'mined' ELSE 'reverted' END
                 FROM tx_attempt WHERE intent = tx_intent.id AND hash = ? AND state IN ('signed', 'foreign')",
            )
            .bind(outcome.success)
            .bind(outcome.hash.as_slice())
            .execute(&mut *tx)
            .await?;
            settled += 1;
        }
        tx.commit().await?;
        if settled > 0 {
            self.wake();
        }
        Ok(settled)
    }
}

async fn store_signed(writer: &mut SqliteConnection, signed: &[Signed]) -> Result<()> {
    use sqlx::Connection;
    let mut tx = writer.begin_with("PRAGMA synchronous = FULL; BEGIN IMMEDIATE").await?;
    for signed in statements(signed) {
        let rows: Vec<(i64, u64, u64)> = signed.iter().map(|it| (it.intent, it.nonce, it.gas)).collect();
        let nonces = || rows.iter().map(|(intent, nonce, _)| format!("nonce {nonce} to intent {intent}"));
        let mut query = QueryBuilder::<Sqlite>::new(
            "UPDATE tx_intent SET nonce = value ->> 1, gas = value ->> 2, state = 'signed' FROM json_each(",
        );
        query.push_bind(serde_json::to_string(&rows)?).push(
            ") WHERE tx_intent.id = value ->> 0 AND state IN ('queued', 'signed');
             INSERT INTO tx_attempt (hash, intent, raw, fee_cap, tip_cap, signed_at, cancels) ",
        );
        query.push_values(signed, |mut values, Signed { intent, attempt, .. }| {
            values.push_bind(attempt.hash.to_vec()).push_bind(*intent).push_bind(attempt.raw.to_vec());
            values.push_bind(attempt.fee_cap.to_string()).push_bind(attempt.tip_cap.to_string());
            values.push_bind(attempt.signed_at as i64).push_bind(attempt.cancels);
        });
        let stored = query.build().execute(&mut *tx).await;
        let stored = stored.with_context(|| format!("give {}", nonces().collect::<Vec<_>>().join(", ")))?;
        ensure!(
            stored.rows_affected() as usize == 2 * signed.len(),
            "one of these intents is finished: nothing to sign ({})",
            nonces().collect::<Vec<_>>().join(", ")
        );
    }
    failpoint::hit(Point::BeforeSignCommit).await?;
    tx.commit().await?;
    failpoint::hit(Point::AfterSignCommit).await
}

/// Queues intents, and returns how many were added; see [`Store::queue`].
pub(super) async fn insert_intents<'a>(
    tx: &mut SqliteConnection,
    intents: impl Iterator<Item = &'a Intent>,
) -> Result<usize> {
    let intents: Vec<&Intent> = intents.collect();
    let mut added = 0;
    for intents in statements(&intents) {
        let new = insert_new(tx, intents).await?;
        added += new;
        if new < intents.len() {
            added += make_room(tx, intents).await?;
        }
    }
    Ok(added)
}

/// Has those that came to nothing make room for the intents of the same keys, and queues these. Returns how many.
pub(super) async fn make_room(tx: &mut SqliteConnection, intents: &[&Intent]) -> Result<usize> {
    let keys: Vec<&str> = intents.iter().map(|intent| intent.key.as_str()).collect();
    let moved = sqlx::query(
        "UPDATE tx_intent SET key = key || '~' || id
         WHERE key IN (SELECT value FROM json_each(?)) AND state NOT IN ('queued', 'signed', 'mined')",
    );
    match moved.bind(serde_json::to_string(&keys)?).execute(&mut *tx).await?.rows_affected() {
        0 => Ok(0),
        _ => insert_new(tx, intents).await,
    }
}

/// Queues those of the intents whose keys none has, and returns how many these were.
async fn insert_new(tx: &mut SqliteConnection, intents: &[&Intent]) -> Result<usize> {
    let mut query = QueryBuilder::<Sqlite>::new("");
    push_intents(&mut query, intents);
    let done = query.build().execute(&mut *tx).await.with_context(|| {
        let keys: Vec<&str> = intents.iter().map(|intent| intent.key.as_str()).collect();
        format!("queue intents {}", keys.join(", "))
    })?;
    Ok(done.rows_affected() as usize)
}

/// Adds the statement that queues those of the intents whose keys none has.
pub(super) fn push_intents(query: &mut QueryBuilder<Sqlite>, intents: &[&Intent]) {
    let now = clock().0 as i64;
    query.push("INSERT INTO tx_intent (key, job, kind, target, data, signer, gas, cost_max, state, at) ");
    query.push_values(intents, |mut values, intent| {
        values.push_bind(&intent.key).push_bind(intent.job.map(|job| job.0 as i64)).push_bind(intent.kind);
        values.push_bind(intent.target.to_vec()).push_bind(intent.data.to_vec()).push_bind(intent.signer.to_vec());
        values.push_bind(intent.gas.map(|gas| gas as i64)).push_bind(intent.cost_max.map(|wei| wei.to_string()));
        values.push_bind("queued").push_bind(now);
    });
    query.push(" ON CONFLICT (key) DO NOTHING");
}

/// Reads [`COLUMNS`].
fn open_intent(row: &SqliteRow) -> Result<OpenIntent> {
    let number = |column| row.get::<Option<i64>, _>(column).map(|number| number as u64);
    Ok(OpenIntent {
        id: row.get(0),
        key: row.get(8),
        job: number(1).map(JobId),
        kind: row.get(2),
        target: address(row, 3)?,
        data: row.get::<Vec<u8>, _>(4).into(),
        nonce: number(5),
        gas: number(6),
        cost_max: row.get::<Option<&str>, _>(7).map(|_| amount(row, 7)).transpose()?,
        attempts: Vec::new(),
    })
}

fn attempt(row: &SqliteRow) -> Result<Attempt> {
    Ok(Attempt {
        hash: hash(row, 0)?,
        raw: row.get::<Vec<u8>, _>(1).into(),
        fee_cap: row.get::<&str, _>(2).parse().context("a stored fee is not a number")?,
        tip_cap: row.get::<&str, _>(3).parse().context("a stored tip is not a number")?,
        signed_at: row.get::<i64, _>(4) as u64,
        sent: row.get::<Option<i64>, _>(5).is_some(),
        cancels: row.get(6),
    })
}
