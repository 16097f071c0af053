//! The transactions we owe: one nonce each, signed bytes durable before the wire, receipts while canonical.

use anyhow::{Context, Result, bail};
use sqlx::{Row, SqliteConnection};

use super::{SqliteRow, Store, address, clock, hash};
use crate::market::types::{Address, B256, BlockRef, Bytes, JobId, U256};

/// A call we want on chain. `key` names the reason: a second intent with the same key is the same intent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Intent {
    pub key: String,
    pub job: Option<JobId>,
    /// What it does, in one word: `claim`, `commit`, `complete`, `release`.
    pub kind: &'static str,
    pub target: Address,
    pub data: Bytes,
    pub signer: Address,
}

/// Where an intent stands; see the table's diagram in the migration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IntentState {
    Queued,
    Signed,
    Mined,
    Reverted,
    Dropped,
}

impl IntentState {
    fn read(text: &str) -> Result<Self> {
        Ok(match text {
            "queued" => Self::Queued,
            "signed" => Self::Signed,
            "mined" => Self::Mined,
            "reverted" => Self::Reverted,
            "dropped" => Self::Dropped,
            other => bail!("unknown intent state {other:?} in the database"),
        })
    }
}

/// An intent as stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignedIntent {
    pub id: i64,
    pub job: Option<JobId>,
    pub kind: String,
    pub target: Address,
    pub data: Bytes,
    pub nonce: Option<u64>,
    /// Gas limit of every attempt; 0 before the first.
    pub gas: u64,
    /// Oldest first; empty while queued.
    pub attempts: Vec<Attempt>,
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

impl Store {
    /// Queues an intent. Returns false when one with its key exists already, whatever became of it.
    pub async fn queue(&self, intent: &Intent) -> Result<bool> {
        let mut tx = self.writer.begin_with("BEGIN IMMEDIATE").await?;
        let added = insert_intent(&mut tx, intent).await?;
        tx.commit().await?;
        self.wake();
        Ok(added)
    }

    /// Returns how many intents of `kind` were made for `job`, since it was last retried, and how they stand.
    pub async fn intents_of(&self, job: JobId, kind: &str) -> Result<Vec<IntentState>> {
        let states: Vec<String> = sqlx::query_scalar(
            "SELECT state FROM tx_intent WHERE job = ? AND kind = ? AND key NOT LIKE '%~%' ORDER BY id",
        )
        .bind(job.0 as i64)
        .bind(kind)
        .fetch_all(&self.readers)
        .await?;
        states.iter().map(|state| IntentState::read(state)).collect()
    }

    /// Returns the intents of `signer` in one of the two unfinished states: signed ones by nonce, then queued ones by age.
    pub async fn open_intents(&self, signer: Address) -> Result<Vec<SignedIntent>> {
        let rows = sqlx::query(
            "SELECT id, job, kind, target, data, nonce, gas FROM tx_intent
             WHERE signer = ? AND state IN ('queued', 'signed') ORDER BY nonce IS NULL, nonce, id",
        )
        .bind(signer.as_slice())
        .fetch_all(&self.readers)
        .await?;
        let mut intents = Vec::with_capacity(rows.len());
        for row in &rows {
            let id: i64 = row.get(0);
            let attempts = sqlx::query(
                "SELECT hash, raw, fee_cap, tip_cap, signed_at, sent_at FROM tx_attempt WHERE intent = ? ORDER BY rowid",
            )
            .bind(id)
            .fetch_all(&self.readers)
            .await?;
            intents.push(SignedIntent {
                id,
                job: row.get::<Option<i64>, _>(1).map(|job| JobId(job as u64)),
                kind: row.get(2),
                target: address(row, 3)?,
                data: row.get::<Vec<u8>, _>(4).into(),
                nonce: row.get::<Option<i64>, _>(5).map(|nonce| nonce as u64),
                gas: row.get::<Option<i64>, _>(6).unwrap_or(0) as u64,
                attempts: attempts.iter().map(attempt).collect::<Result<_>>()?,
            });
        }
        Ok(intents)
    }

    /// Returns the smallest nonce that no intent of `signer` has taken, at least `floor` (the account's nonce on chain).
    pub async fn next_nonce(&self, signer: Address, floor: u64) -> Result<u64> {
        let taken: Option<i64> = sqlx::query_scalar("SELECT max(nonce) FROM tx_intent WHERE signer = ?")
            .bind(signer.as_slice())
            .fetch_one(&self.readers)
            .await?;
        Ok(taken.map_or(floor, |nonce| floor.max(nonce as u64 + 1)))
    }

    /// Makes signed bytes durable: the intent takes `nonce` (its first attempt) or keeps it (a replacement).
    /// Only after this returns may the bytes be sent.
    ///
    /// # Errors
    /// If the nonce is another intent's, or the intent has another one: the database refuses.
    pub async fn sign(&self, intent: i64, nonce: u64, gas: u64, attempt: &Attempt) -> Result<()> {
        let mut tx = self.writer.begin_with("BEGIN IMMEDIATE").await?;
        let updated = sqlx::query(
            "UPDATE tx_intent SET nonce = ?, gas = ?, state = 'signed' WHERE id = ? AND state IN ('queued', 'signed')",
        )
        .bind(nonce as i64)
        .bind(gas as i64)
        .bind(intent)
        .execute(&mut *tx)
        .await
        .with_context(|| format!("give nonce {nonce} to intent {intent}"))?;
        if updated.rows_affected() == 0 {
            bail!("intent {intent} is finished: nothing to sign");
        }
        sqlx::query(
            "INSERT INTO tx_attempt (hash, intent, raw, fee_cap, tip_cap, signed_at) VALUES (?, ?, ?, ?, ?, ?)",
        )
        .bind(attempt.hash.as_slice())
        .bind(intent)
        .bind(attempt.raw.as_ref())
        .bind(attempt.fee_cap.to_string())
        .bind(attempt.tip_cap.to_string())
        .bind(attempt.signed_at as i64)
        .execute(&mut *tx)
        .await?;
        tx.commit().await?;
        Ok(())
    }

    /// Notes that a node accepted the bytes.
    pub async fn mark_sent(&self, attempt: B256) -> Result<()> {
        sqlx::query("UPDATE tx_attempt SET sent_at = ? WHERE hash = ? AND sent_at IS NULL")
            .bind(clock().0 as i64)
            .bind(attempt.as_slice())
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

    /// Records what the chain made of one attempt. Ignored, returning false, unless the outcome's block is one of our
    /// canonical blocks: the indexer must have seen it first, and a reorg takes the outcome away with the block.
    pub async fn settle(&self, intent: i64, outcome: &TxOutcome) -> Result<bool> {
        let mut tx = self.writer.begin_with("BEGIN IMMEDIATE").await?;
        if super::canonical_hash(&mut tx, outcome.block.number).await? != Some(outcome.block.hash) {
            return Ok(false);
        }
        sqlx::query("INSERT INTO tx_receipt VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING")
            .bind(outcome.hash.as_slice())
            .bind(outcome.block.hash.as_slice())
            .bind(outcome.block.number as i64)
            .bind(outcome.success)
            .bind(outcome.gas_used as i64)
            .bind(outcome.gas_price.to_string())
            .bind(outcome.l1_fee.to_string())
            .execute(&mut *tx)
            .await?;
        sqlx::query("UPDATE tx_intent SET state = ? WHERE id = ? AND state = 'signed'")
            .bind(if outcome.success { "mined" } else { "reverted" })
            .bind(intent)
            .execute(&mut *tx)
            .await?;
        tx.commit().await?;
        self.wake();
        Ok(true)
    }
}

pub(super) async fn insert_intent(tx: &mut SqliteConnection, intent: &Intent) -> Result<bool> {
    let added = sqlx::query(
        "INSERT INTO tx_intent (key, job, kind, target, data, signer, state, at) VALUES (?, ?, ?, ?, ?, ?, 'queued', ?)
         ON CONFLICT (key) DO NOTHING",
    )
    .bind(&intent.key)
    .bind(intent.job.map(|job| job.0 as i64))
    .bind(intent.kind)
    .bind(intent.target.as_slice())
    .bind(intent.data.as_ref())
    .bind(intent.signer.as_slice())
    .bind(clock().0 as i64)
    .execute(tx)
    .await
    .with_context(|| format!("queue intent {}", intent.key))?;
    Ok(added.rows_affected() > 0)
}

fn attempt(row: &SqliteRow) -> Result<Attempt> {
    Ok(Attempt {
        hash: hash(row, 0)?,
        raw: row.get::<Vec<u8>, _>(1).into(),
        fee_cap: row.get::<&str, _>(2).parse().context("a stored fee is not a number")?,
        tip_cap: row.get::<&str, _>(3).parse().context("a stored tip is not a number")?,
        signed_at: row.get::<i64, _>(4) as u64,
        sent: row.get::<Option<i64>, _>(5).is_some(),
    })
}
