//! Turns duties into transactions, each sent exactly once in effect: one nonce per intent, signed bytes on disk before
//! the wire, the same bytes again until a receipt stands in a canonical block.
//!
//! The only sender of its account. Never re-nonces, never takes silence or a missing receipt for an answer.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::{ATTEMPTS_MAX, Pass, Task, abandon};
use crate::chain::call::Call;
use crate::chain::{Chain, Fees, Sent, Signer};
use crate::content::Content;
use crate::http::{Kind, Metrics};
use crate::market::gate::Gates;
use crate::market::job::{Duty, Job, Next};
use crate::market::types::{B256, BlockRef, Bytes, JobId, U256};
use crate::store::{Attempt, Intent, IntentState, SignedIntent, Store, TxOutcome, clock};

/// Unmined bytes are sent again after this long, in case no node kept them.
const RESEND_AFTER: Duration = Duration::from_secs(3);
/// The oldest unmined nonce is offered a higher fee after this long on the wire, and again after as long.
const BUMP_AFTER: Duration = Duration::from_secs(30);

/// A release that was refused [`ATTEMPTS_MAX`] times is asked for again after this many seconds, and again after as many.
const RELEASE_AGAIN_SECONDS: u64 = 600;

/// The task's edges and ceilings.
pub struct Submitter {
    pub chain: Chain,
    pub store: Store,
    pub content: Content,
    pub metrics: Metrics,
    pub signer: Signer,
    /// What must stand on the block that an action rests on.
    pub gates: Gates,
    /// Highest fee per gas ever offered, in wei.
    pub fee_cap_max: u128,
    /// The attempts that this process put on the wire. What an earlier one sent, and what a reorg gave back, goes out as
    /// it is before a higher fee is thought of.
    pub sent: HashMap<B256, OnWire>,
    /// The newest block we knew when the contract last refused a job's call: at that block it is not asked again.
    pub refused: HashMap<JobId, BlockRef>,
    /// The jobs that wait at a gate, each with the duty: told once.
    pub waiting: HashMap<JobId, Duty>,
}

/// When an attempt was put on the wire.
#[derive(Debug, Clone, Copy)]
pub struct OnWire {
    first: Instant,
    last: Instant,
}

impl Task for Submitter {
    const NAME: &'static str = "submitter";

    /// Queues the transactions our jobs owe, then takes every open one a step further.
    ///
    /// # Errors
    /// If the endpoint or the store fails. What is signed is on disk and sent again by a later pass.
    async fn pass(&mut self) -> Result<Pass> {
        if self.store.finality().await?.is_some_and(|finality| finality.violated.is_some()) {
            return Ok(Pass::Idle);
        }
        // One job or intent that cannot go on must not hold up the others: its error waits for the end of the pass.
        let mut failed = self.queue_duties().await?;
        let open = self.store.open_intents(self.signer.address()).await?;
        let doubts = self.store.doubts().await?;
        self.metrics.open_transactions.set(open.len() as i64);
        let mut oldest = true;
        for intent in &open {
            let signed = intent.nonce.is_some();
            if !signed && intent.job.is_some_and(|job| doubts.contains_key(&job)) {
                continue;
            }
            let stepped =
                if signed { self.follow(intent, oldest).await } else { self.start(intent).await.map(|()| false) };
            oldest &= !signed || matches!(stepped, Ok(true));
            match stepped {
                Ok(true) => self.sent.retain(|hash, _| !intent.attempts.iter().any(|attempt| attempt.hash == *hash)),
                Ok(false) => {}
                Err(error) => {
                    failed = failed.or(Some(error.context(format!("{} (intent {})", intent.kind, intent.id))))
                }
            }
        }
        failed.map_or(Ok(Pass::Idle), Err)
    }
}

impl Submitter {
    /// Queues what our jobs owe. Returns the first error that concerns one job alone, such as a damaged file.
    async fn queue_duties(&mut self) -> Result<Option<anyhow::Error>> {
        let mut failed = None;
        let (now, cursor) = (self.store.time().await?, self.store.cursor().await?);
        let us = self.signer.address();
        let jobs = self.store.live_jobs().await?;
        self.waiting.retain(|id, _| jobs.iter().any(|job| job.id == *id));
        for job in jobs {
            if self.refused.get(&job.id).copied().is_some_and(|at| Some(at) == cursor) {
                continue;
            }
            let Next::Do(duty @ (Duty::Commit | Duty::Complete | Duty::Release)) = job.next(us, now) else { continue };
            if self.waits(&job, duty).await? {
                continue;
            }
            let earlier = self.store.intents_of(job.id, duty.name()).await?;
            if earlier
                .iter()
                .any(|state| matches!(state, IntentState::Queued | IntentState::Signed | IntentState::Mined))
            {
                continue;
            }
            if earlier.len() as u32 >= ATTEMPTS_MAX {
                if duty != Duty::Release {
                    let reason = format!("{} was refused {} times", duty.name(), earlier.len());
                    abandon(&self.store, job.id, reason).await?;
                    continue;
                }
                // Our money: never given up, but asked for seldom.
                if !self.store.lease(job.id, duty, RELEASE_AGAIN_SECONDS).await? {
                    continue;
                }
            }
            let call = match self.call(&job, duty) {
                Ok(call) => call,
                Err(error) => {
                    failed = failed.or(Some(error));
                    continue;
                }
            };
            let intent = Intent {
                key: format!("{}:{}:{}", duty.name(), job.id, earlier.len()),
                job: Some(job.id),
                kind: duty.name(),
                target: call.to,
                data: call.data,
                signer: us,
            };
            self.store.queue(&intent).await?;
        }
        Ok(failed)
    }

    /// Returns whether the block that the job rests on does not yet have what the duty's gate asks.
    async fn waits(&mut self, job: &Job, duty: Duty) -> Result<bool> {
        let Some(gate) = self.gates.of(duty) else { return Ok(false) };
        let Some(refusal) = gate.refusal(&self.store.ground(job.rests_on.number).await?) else {
            self.waiting.remove(&job.id);
            return Ok(false);
        };
        if self.waiting.insert(job.id, duty) != Some(duty) {
            tracing::info!(job = %job.id, duty = duty.name(), refusal, "waits for its block");
        }
        Ok(true)
    }

    fn call(&self, job: &Job, duty: Duty) -> Result<Call> {
        let contracts = self.chain.contracts();
        let inferred = || job.inferred.as_ref().with_context(|| format!("job {} has no result here", job.id));
        Ok(match duty {
            Duty::Commit => contracts.commit(job.id, &inferred()?.commitment),
            Duty::Complete => {
                let proof = match &job.proved {
                    Some(proved) if job.terms.requires_proof => self
                        .content
                        .get(&proved.completion)?
                        .with_context(|| format!("the proof of job {} is gone", job.id))?,
                    _ => Vec::new(),
                };
                contracts.complete(job.id, &inferred()?.output, proof.into())
            }
            _ => contracts.release(job.id),
        })
    }

    /// Signs and sends a queued intent, or drops it when the contract would refuse it now.
    async fn start(&mut self, intent: &SignedIntent) -> Result<()> {
        let call = Call { to: intent.target, data: intent.data.clone(), value: U256::ZERO };
        let us = self.signer.address();
        let cursor = self.store.cursor().await?;
        if let Some(reason) = self.chain.refusal(us, &call).await? {
            if let Some((job, at)) = intent.job.zip(cursor) {
                self.refused.insert(job, at);
            }
            tracing::warn!(kind = intent.kind, job = ?intent.job, reason, "the contract would refuse: not sent");
            return self.store.drop_intent(intent.id, &reason).await;
        }
        let gas = self.chain.gas(us, &call).await?;
        let fees = self.capped(self.chain.fees().await?);
        let floor = self.chain.nonce(us).await?;
        let nonce = self.store.next_nonce(us, floor).await?;
        self.sign_and_send(intent, nonce, gas, fees).await
    }

    async fn sign_and_send(&mut self, intent: &SignedIntent, nonce: u64, gas: u64, fees: Fees) -> Result<()> {
        let call = Call { to: intent.target, data: intent.data.clone(), value: U256::ZERO };
        let (hash, raw) = self.signer.sign(self.chain.id(), nonce, gas, fees, &call)?;
        let Fees { fee_cap, tip_cap } = fees;
        let attempt = Attempt { hash, raw: raw.clone(), fee_cap, tip_cap, signed_at: clock().0, sent: false };
        self.store.sign(intent.id, nonce, gas, &attempt).await?;
        tracing::info!(kind = intent.kind, job = ?intent.job.map(|job| job.0), nonce, %hash, "signed transaction");
        self.send(intent, hash, &raw).await
    }

    async fn send(&mut self, intent: &SignedIntent, hash: B256, raw: &Bytes) -> Result<()> {
        let said = self.chain.send(raw).await?;
        let now = Instant::now();
        self.sent.entry(hash).or_insert(OnWire { first: now, last: now }).last = now;
        match said {
            Sent::Accepted => {
                self.metrics.transactions_sent.get_or_create(&Kind::of(&intent.kind)).inc();
                self.store.mark_sent(hash).await?;
            }
            // Receipts of all attempts are looked for before anything is sent again.
            Sent::NonceUsed => tracing::debug!(%hash, "the nonce is used: waiting for the receipt"),
            Sent::Underpriced => tracing::debug!(%hash, "underpriced: waiting to bump"),
            Sent::InsufficientFunds => {
                tracing::error!(%hash, account = %self.signer.address(), "the account cannot pay for gas: fund it");
            }
            Sent::Refused(reason) => tracing::error!(%hash, reason, "the node refused a transaction"),
        }
        Ok(())
    }

    /// Looks for a receipt of any attempt; without one, sends again or offers more. Returns whether it is settled.
    async fn follow(&mut self, intent: &SignedIntent, oldest: bool) -> Result<bool> {
        for attempt in &intent.attempts {
            let Some(receipt) = self.chain.receipt(attempt.hash).await? else { continue };
            let (Some(number), Some(hash)) = (receipt.block_number, receipt.block_hash) else { continue };
            let outcome = TxOutcome {
                hash: attempt.hash,
                block: BlockRef { number, hash },
                success: receipt.status(),
                gas_used: receipt.gas_used,
                gas_price: U256::from(receipt.effective_gas_price),
                l1_fee: self.chain.l1_fee(attempt.hash).await?,
            };
            if self.store.settle(intent.id, &outcome).await? {
                let kind = intent.kind.as_str();
                tracing::info!(kind, job = ?intent.job.map(|job| job.0), block = number, success = outcome.success, "mined");
                return Ok(true);
            }
            // Mined in a block the indexer has not stored: it soon will, or the block goes away.
            return Ok(false);
        }
        let Some(last) = intent.attempts.last() else { return Ok(false) };
        let nonce = intent.nonce.context("a signed intent has a nonce")?;
        let on_wire = self.sent.get(&last.hash);
        let resend = on_wire.is_none_or(|sent| sent.last.elapsed() >= RESEND_AFTER);
        if oldest
            && on_wire.is_some_and(|sent| sent.first.elapsed() >= BUMP_AFTER)
            && self.chain.nonce(self.signer.address()).await? <= nonce
        {
            let fees = Fees { fee_cap: last.fee_cap, tip_cap: last.tip_cap }.bumped();
            if fees.fee_cap <= self.fee_cap_max {
                tracing::warn!(kind = intent.kind, nonce, fee_cap = fees.fee_cap, "not mined in time: offering more");
                self.sign_and_send(intent, nonce, intent.gas, fees).await?;
                return Ok(false);
            }
        }
        if resend {
            self.send(intent, last.hash, &last.raw).await?;
        }
        Ok(false)
    }

    fn capped(&self, fees: Fees) -> Fees {
        let fee_cap = fees.fee_cap.min(self.fee_cap_max);
        Fees { fee_cap, tip_cap: fees.tip_cap.min(fee_cap) }
    }
}
