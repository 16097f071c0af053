//! What the account's books are made of: its mined transactions, its jobs, and what the escrow paid it.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;

use anyhow::Result;
use sqlx::{Row, SqliteConnection};

use super::{SqliteRow, Store, address, amount, raw_log};
use crate::market::event::Event;
use crate::market::job::{Job, State};
use crate::market::ledger::{Account, Credit, Movement, Payment, Spent, Why, taken};
use crate::market::types::{Address, B256, JobId, U256};

/// Jobs folded at once.
const JOBS_PER_STEP: usize = 500;

impl Store {
    /// Returns the transactions of `us` that were mined, by nonce.
    pub async fn spent(&self, us: Address) -> Result<Vec<Spent>> {
        let rows = sqlx::query(
            "SELECT i.id, i.job, i.kind, i.nonce, r.block_number, r.success, i.state, r.gas_used, r.gas_price, r.l1_fee
             FROM tx_receipt r JOIN tx_attempt a ON a.hash = r.hash JOIN tx_intent i ON i.id = a.intent
             WHERE i.signer = ? ORDER BY i.nonce",
        )
        .bind(us.as_slice())
        .fetch_all(&self.readers)
        .await?;
        let spent = |row: &SqliteRow| {
            let gas = U256::from(row.get::<i64, _>(7) as u64).saturating_mul(amount(row, 8)?);
            Ok(Spent {
                intent: row.get(0),
                job: row.get::<Option<i64>, _>(1).map(|job| JobId(job as u64)),
                kind: row.get(2),
                nonce: row.get::<i64, _>(3) as u64,
                block: row.get::<i64, _>(4) as u64,
                success: row.get(5),
                cancelled: row.get::<&str, _>(6) == "cancelled",
                fee_wei: gas.saturating_add(amount(row, 9)?),
            })
        };
        rows.iter().map(spent).collect()
    }

    /// Returns the jobs that `us` has or had on chain, and those that a transaction of `us` concerns.
    pub async fn accounts(&self, us: Address) -> Result<Vec<Account>> {
        let ids: Vec<i64> = sqlx::query_scalar(
            "SELECT id FROM job WHERE host = ?1
             UNION SELECT job FROM tx_intent JOIN job ON job.id = tx_intent.job WHERE signer = ?1 ORDER BY 1",
        )
        .bind(us.as_slice())
        .fetch_all(&self.readers)
        .await?;
        let ids: Vec<JobId> = ids.into_iter().map(|id| JobId(id as u64)).collect();
        let mut accounts = Vec::with_capacity(ids.len());
        for ids in ids.chunks(JOBS_PER_STEP) {
            let mut reader = self.readers.acquire().await?;
            let (jobs, mut taken) = (self.fold(&mut reader, ids).await?, self.taken(&mut reader, us, ids).await?);
            accounts.extend(jobs.iter().map(|job| account(job, taken.remove(&job.id).unwrap_or_default())));
        }
        Ok(accounts)
    }

    /// Returns which of these transactions were signed by the node of this file, whatever it knows of what became of them.
    pub async fn signed_here(&self, hashes: &[B256]) -> Result<BTreeSet<B256>> {
        let mut signed = BTreeSet::new();
        for hash in hashes {
            let found: bool = sqlx::query_scalar("SELECT EXISTS (SELECT 1 FROM tx_attempt WHERE hash = ?)")
                .bind(hash.as_slice())
                .fetch_one(&self.readers)
                .await?;
            signed.extend(found.then_some(*hash));
        }
        Ok(signed)
    }

    /// Returns in which blocks those of `jobs` that a claim of `us` was refused for were another's, or gone.
    pub(super) async fn taken(
        &self,
        connection: &mut SqliteConnection,
        us: Address,
        jobs: &[JobId],
    ) -> Result<BTreeMap<JobId, Vec<RangeInclusive<u64>>>> {
        let rows = sqlx::query(
            "SELECT number, hash, log_index, tx_hash, address, topics, data FROM log JOIN block ON block.seq = log.block
             WHERE canonical = 1 AND kind IN ('JobClaimed', 'JobReopened', 'PaymentRefunded')
                 AND log.job IN (SELECT job FROM tx_intent WHERE job IN (SELECT value FROM json_each(?1))
                                 AND kind = 'claim' AND state = 'reverted' AND signer = ?2)
             ORDER BY number, log_index",
        )
        .bind(serde_json::to_string(jobs)?)
        .bind(us.as_slice())
        .fetch_all(connection)
        .await?;
        let mut told = BTreeMap::<JobId, Vec<(u64, Event)>>::new();
        for row in &rows {
            let log = raw_log(row)?;
            let event = (self.decode)(&log)?;
            if let Some(job) = event.job() {
                told.entry(job).or_default().push((log.block.number, event));
            }
        }
        Ok(told.into_iter().map(|(job, events)| (job, taken(us, &events))).collect())
    }

    /// Returns what the escrow paid `us`, for jobs it did and for jobs it had posted, and took of it for those, in chain order.
    pub async fn payments(&self, us: Address) -> Result<Vec<Payment>> {
        let rows = sqlx::query(
            "SELECT number, hash, log_index, tx_hash, address, topics, data, (SELECT token FROM job WHERE id = log.job)
             FROM log JOIN block ON block.seq = log.block
             WHERE canonical = 1 AND kind IN ('JobTerms', 'PaymentReleased', 'PaymentRefunded')
                 AND log.job IN (SELECT id FROM job WHERE host = ?1 OR renter = ?1)
                 AND (kind <> 'JobTerms' OR log.job IN (SELECT id FROM job WHERE renter = ?1))
             ORDER BY number, log_index",
        )
        .bind(us.as_slice())
        .fetch_all(&self.readers)
        .await?;
        let mut payments = Vec::new();
        for row in &rows {
            let log = raw_log(row)?;
            let (job, why, amount) = match (self.decode)(&log) {
                Ok(Event::JobTerms { job, terms }) if terms.renter == us => (job, Why::Posted, terms.payment),
                Ok(Event::PaymentReleased { job, host, amount }) if host == us => (job, Why::Income, amount),
                Ok(Event::PaymentRefunded { job, renter, amount }) if renter == us => (job, Why::Refund, amount),
                _ => continue,
            };
            let movement = Movement { block: log.block.number, why, amount };
            payments.push(Payment { job, token: address(row, 7)?, tx: log.tx, movement });
        }
        Ok(payments)
    }

    /// Returns what the escrow credited `us`, whom it could not pay, and what `us` withdrew of that, in chain order.
    pub async fn credits(&self, us: Address) -> Result<Vec<Credit>> {
        let rows = sqlx::query(
            "SELECT number, hash, log_index, tx_hash, address, topics, data FROM log JOIN block ON block.seq = log.block
             WHERE canonical = 1 AND log.job IS NULL AND kind IN ('PaymentCredited', 'CreditWithdrawn')
             ORDER BY number, log_index",
        )
        .fetch_all(&self.readers)
        .await?;
        let mut credits = Vec::new();
        for row in &rows {
            let log = raw_log(row)?;
            let (token, amount, to) = match (self.decode)(&log) {
                Ok(Event::PaymentCredited { payee, token, amount }) if payee == us => (token, amount, None),
                Ok(Event::CreditWithdrawn { payee, token, to, amount }) if payee == us => (token, amount, Some(to)),
                _ => continue,
            };
            credits.push(Credit { token, block: log.block.number, tx: log.tx, amount, to });
        }
        Ok(credits)
    }
}

fn account(job: &Job, taken: Vec<RangeInclusive<u64>>) -> Account {
    Account {
        id: job.id,
        model: job.terms.model.clone(),
        renter: job.terms.renter,
        host: job.host(),
        taken,
        refunded: matches!(job.state, State::Refunded { .. }),
        completed: matches!(job.state, State::Completed { .. } | State::Disputed { .. } | State::Released { .. }),
        deadline: job.terms.deadline,
        token: job.terms.token,
        payment: job.terms.payment,
        released: job.escrow_released,
    }
}
