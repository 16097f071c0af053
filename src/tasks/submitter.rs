//! Signs and sends, each transaction exactly once in effect: one nonce per intent, signed bytes on disk before the wire, the same bytes
//! again until a receipt stands in a canonical block.
//!
//! The only sender of its account. Never re-nonces, never takes silence or a missing receipt for an answer: what became of a
//! transaction is [`super::settle`]'s to find out.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tokio::sync::watch;

use super::{Beat, Guard, NonceRead, Pass, Task};
use crate::chain::call::Call;
use crate::chain::{Chain, Fees, Pulse, Sent, Signer};
use crate::failpoint::{self, Point};
use crate::http::{Kind, Metrics};
use crate::market::job::in_vain;
use crate::market::types::{B256, Bytes, JobId, U256};
use crate::store::{Attempt, Intent, OpenIntent, OrderKind, Ready, Signed, Store, TxOrder, clock};

/// Unmined bytes are sent again after this long, in case no node kept them; after refusals later and later.
const RESEND_AFTER: Duration = Duration::from_secs(3);
const RESEND_DOUBLINGS_MAX: u32 = 4;
/// Fees that were read longer ago are read again before anything is signed with them.
const PULSE_AGE_MAX: Duration = Duration::from_secs(60);
/// A nonce that was read longer ago is read again before anything is signed while nothing of ours is in flight: somebody else may have
/// used the key. One that is as old as a pulse may be does beside what is in flight.
const NONCE_AGE_MAX: Duration = Duration::from_secs(5);
/// After a change in the file, how long what is to be signed next is waited for before what waits already is looked at; and how many
/// changes in a row that may take.
const BREATH: Duration = Duration::from_millis(25);
const POSTPONED_MAX: u32 = 10;
/// Gas of an empty transaction.
const EMPTY_GAS: u64 = 21_000;

/// The ceilings of what is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Highest fee per gas ever offered, in wei.
    pub fee_cap_max: u128,
    /// The most transactions that wait to be mined at once.
    pub window: usize,
    /// The oldest unmined nonce is offered a higher fee after this long on the wire, and again after as long.
    pub bump_after: Duration,
}

/// The task's edges and ceilings.
pub struct Submitter {
    chain: Chain,
    store: Store,
    metrics: Metrics,
    signer: Signer,
    limits: Limits,
    beat: watch::Receiver<Beat>,
    /// Read with each block, before a job of that block is known: a claim waits for no answer.
    nonce: watch::Receiver<NonceRead>,
    /// While it refuses, claims stay queued.
    guard: Guard,
    /// The attempts that this process put on the wire. What an earlier one sent, and what a reorg gave back, goes out as
    /// it is before a higher fee is thought of.
    on_wire: HashMap<B256, OnWire>,
    /// Since when nonces are missing before those that we signed.
    gap_since: Option<Instant>,
    changes: watch::Receiver<u64>,
    /// How often what waits was let be for what may be ready.
    postponed: u32,
}

/// When an attempt was put on the wire, and what became of it there.
#[derive(Debug, Clone, Copy)]
struct OnWire {
    first: Instant,
    last: Instant,
    /// How often it was refused since a node last took it, where a higher fee would change nothing.
    refusals: u32,
    underpriced: bool,
}

impl Task for Submitter {
    const NAME: &'static str = "submitter";
    const HURRIES: bool = true;

    /// Signs what is ready, as far as the window allows, puts it on the wire with what waits there too long, and offers more for what
    /// does not get mined.
    ///
    /// # Errors
    /// If the endpoint or the store fails. What is signed is on disk and sent by a later pass.
    async fn pass(&mut self) -> Result<Pass> {
        let us = self.signer.address();
        self.changes.borrow_and_update();
        let ready = self.store.ready(us, self.limits.window, self.guard.refusal().is_none()).await?;
        if !ready.intents.is_empty() {
            let pulse = self.pulse().await?;
            let fresh = self.sign(ready, &pulse).await?;
            let delivered = self.deliver(&fresh).await;
            // Not before: writing lines takes time, too.
            for intent in &fresh {
                let (kind, hash) = (&intent.kind, intent.attempts[0].hash);
                tracing::info!(kind, job = ?intent.job.map(|job| job.0), nonce = intent.nonce, %hash, "signed transaction");
            }
            delivered?;
            if !fresh.is_empty() {
                return Ok(Pass::Again);
            }
        }
        // What else waits has waited for long, and takes time: what may be ready in a moment goes first.
        if self.postponed < POSTPONED_MAX
            && let Ok(changed) = tokio::time::timeout(BREATH, self.changes.changed()).await
        {
            changed?;
            self.postponed += 1;
            return Ok(Pass::Again);
        }
        self.postponed = 0;
        if self.store.finality().await?.is_some_and(|finality| finality.violated.is_some()) {
            return Ok(Pass::Idle);
        }
        let signed = self.store.signed_intents(us).await?;
        let attempts: HashSet<B256> = signed.iter().flat_map(|it| it.attempts.iter().map(|it| it.hash)).collect();
        self.on_wire.retain(|hash, _| attempts.contains(hash));
        let orders = self.take_orders(&signed).await?;
        if signed.is_empty() {
            return Ok(Pass::Idle);
        }
        self.deliver(&signed).await?;
        let (pulse, nonce) = (self.pulse().await?, self.nonce(PULSE_AGE_MAX).await?);
        let mut replaced = self.replace(&signed, &pulse, nonce, &orders).await?;
        for (intent, order) in orders {
            tracing::info!(intent, order = order.name(), "took the operator's order");
            for what in [OrderKind::Bump, OrderKind::Cancel] {
                self.store.taken_tx_order(intent, what).await?;
            }
        }
        replaced.extend(self.fill_gaps(&pulse, nonce).await?);
        self.deliver(&replaced).await?;
        Ok(Pass::Idle)
    }
}

impl Submitter {
    /// Returns the task, which signs with the fees that `beat` tells, and with nonces from the one on that was read.
    pub fn new(
        chain: Chain,
        store: Store,
        metrics: Metrics,
        signer: Signer,
        limits: Limits,
        (beat, nonce): (watch::Receiver<Beat>, watch::Receiver<NonceRead>),
        guard: Guard,
    ) -> Self {
        let (on_wire, gap_since, changes) = (HashMap::new(), None, store.changes_here());
        Self { chain, store, metrics, signer, limits, beat, nonce, guard, on_wire, gap_since, changes, postponed: 0 }
    }

    /// Takes what the operator asked for: what is queued is dropped and bytes are due again at once; what needs new bytes is returned.
    async fn take_orders(&mut self, signed: &[OpenIntent]) -> Result<HashMap<i64, OrderKind>> {
        let mut orders = HashMap::new();
        for TxOrder { intent, what, .. } in self.store.tx_orders().await? {
            match (what, signed.iter().find(|known| known.id == intent)) {
                (OrderKind::Cancel, None) => self.store.drop_intent(intent, "the operator cancelled it").await?,
                (OrderKind::Rebroadcast, Some(known)) => {
                    known.attempts.iter().for_each(|attempt| _ = self.on_wire.remove(&attempt.hash));
                }
                // It stands until there are new bytes.
                (OrderKind::Bump | OrderKind::Cancel, Some(_)) => {
                    let order = orders.entry(intent).or_insert(what);
                    *order = (*order).max(what);
                    continue;
                }
                // Settled meanwhile.
                (_, None) => {}
            }
            tracing::info!(intent, order = what.name(), "took the operator's order");
            self.store.taken_tx_order(intent, what).await?;
        }
        Ok(orders)
    }

    async fn pulse(&self) -> Result<Pulse> {
        let felt = *self.beat.borrow();
        match felt {
            Some((pulse, at)) if at.elapsed() <= PULSE_AGE_MAX => Ok(pulse),
            _ => self.chain.pulse().await,
        }
    }

    /// Returns the account's next nonce as a block had it at most so long ago.
    async fn nonce(&self, age_max: Duration) -> Result<u64> {
        let read = *self.nonce.borrow();
        match read {
            Some((nonce, at)) if at.elapsed() <= age_max => Ok(nonce),
            _ => self.chain.nonce(self.signer.address()).await,
        }
    }

    /// Gives nonces to what is ready, signs it and makes it durable, all at once. What may not cost what it would cost now stays
    /// queued; a claim is dropped.
    async fn sign(&mut self, ready: Ready, pulse: &Pulse) -> Result<Vec<OpenIntent>> {
        let Ready { intents: ready, in_flight, next_nonce } = ready;
        let age_max = if in_flight == 0 { NONCE_AGE_MAX } else { PULSE_AGE_MAX };
        let mut nonce = next_nonce.max(self.nonce(age_max).await?);
        let mut signing = Vec::with_capacity(ready.len());
        for intent in ready {
            let gas = intent.gas.context("a ready intent has a gas limit")?;
            let fees = self.capped(pulse.fees, &intent, gas);
            if fees.fee_cap < pulse.base_fee {
                if intent.kind == "claim" {
                    let note = format!("gas costs {} wei, {} may be paid", pulse.base_fee, fees.fee_cap);
                    tracing::info!(job = ?intent.job.map(|job| job.0), note, "not claimed");
                    self.store.drop_intent(intent.id, &note).await?;
                }
                continue;
            }
            // Side by side: it is all processors' work, or each a question to whoever keeps the key.
            let attempt = tokio::spawn(self.attempt(&intent, nonce, gas, fees, false));
            signing.push((intent, nonce, gas, attempt));
            nonce += 1;
        }
        let (mut signed, mut bytes) = (Vec::with_capacity(signing.len()), Vec::with_capacity(signing.len()));
        for (mut intent, nonce, gas, attempt) in signing {
            let attempt = attempt.await.context("sign")??;
            bytes.push(Signed { intent: intent.id, nonce, gas, attempt: attempt.clone() });
            (intent.nonce, intent.attempts) = (Some(nonce), vec![attempt]);
            signed.push(intent);
        }
        if !bytes.is_empty() {
            self.store.sign(&bytes).await?;
        }
        Ok(signed)
    }

    /// Signs one attempt of an intent: its call, or an empty transaction that takes its nonce away.
    fn attempt(
        &self,
        intent: &OpenIntent,
        nonce: u64,
        gas: u64,
        fees: Fees,
        cancels: bool,
    ) -> impl Future<Output = Result<Attempt>> + use<> {
        let (signer, chain_id) = (self.signer.clone(), self.chain.id());
        let call = if cancels || intent.kind == "fill" {
            Call { to: signer.address(), data: Bytes::new(), value: U256::ZERO }
        } else {
            Call { to: intent.target, data: intent.data.clone(), value: U256::ZERO }
        };
        async move {
            let (hash, raw) = signer.sign(chain_id, nonce, gas, fees, &call).await?;
            let Fees { fee_cap, tip_cap } = fees;
            Ok(Attempt { hash, raw, fee_cap, tip_cap, signed_at: clock().0, sent: false, cancels })
        }
    }

    /// Puts the newest bytes of each intent on the wire, in the order of their nonces, unless they were just sent.
    async fn deliver(&mut self, signed: &[OpenIntent]) -> Result<()> {
        let due = |attempt: &&Attempt| {
            self.on_wire.get(&attempt.hash).is_none_or(|sent| {
                sent.last.elapsed() >= RESEND_AFTER * 2_u32.pow(sent.refusals.min(RESEND_DOUBLINGS_MAX))
            })
        };
        let newest = signed.iter().filter_map(|intent| Some((intent, intent.attempts.last()?)));
        let due: Vec<(&OpenIntent, &Attempt)> = newest.filter(|(_, attempt)| due(attempt)).collect();
        /// Sent at once: of many the first are there before the last are read.
        const AT_ONCE: usize = 48;
        let mut accepted = Vec::new();
        for due in due.chunks(AT_ONCE) {
            let raw: Vec<Bytes> = due.iter().map(|(_, attempt)| attempt.raw.clone()).collect();
            failpoint::hit(Point::BeforeSend).await?;
            let began = Instant::now();
            let said = match self.chain.send(&raw).await {
                Ok(said) => said,
                Err(error) => {
                    self.store.mark_sent(&accepted).await?;
                    return Err(error);
                }
            };
            failpoint::hit(Point::AfterSend).await?;
            tracing::debug!(transactions = raw.len(), took = ?began.elapsed(), "sent");
            for ((intent, attempt), said) in due.iter().zip(said) {
                self.note(intent, attempt.hash, &said);
                if said == Sent::Accepted && !attempt.sent {
                    accepted.push(attempt.hash);
                }
            }
        }
        self.store.mark_sent(&accepted).await
    }

    fn note(&mut self, intent: &OpenIntent, hash: B256, said: &Sent) {
        let now = Instant::now();
        let wire =
            self.on_wire.entry(hash).or_insert(OnWire { first: now, last: now, refusals: 0, underpriced: false });
        wire.last = now;
        wire.underpriced = *said == Sent::Underpriced;
        match said {
            Sent::Accepted | Sent::Underpriced => wire.refusals = 0,
            Sent::NonceAhead | Sent::Full => {}
            Sent::NonceUsed | Sent::InsufficientFunds | Sent::Refused(_) => wire.refusals += 1,
        }
        match said {
            Sent::Accepted => {
                self.metrics.transactions_sent.get_or_create(&Kind::of(&intent.kind)).inc();
            }
            // Receipts of all attempts are looked for at every block.
            Sent::NonceUsed => tracing::debug!(%hash, "the nonce is used: waiting for the receipt"),
            Sent::NonceAhead => tracing::debug!(%hash, "an earlier nonce is missing there: sending again"),
            Sent::Underpriced => tracing::debug!(%hash, "underpriced: waiting to bump"),
            Sent::Full => tracing::warn!(%hash, "the node has no room for more of ours: sending again later"),
            Sent::InsufficientFunds => {
                tracing::error!(%hash, account = %self.signer.address(), "the account cannot pay for gas: fund it");
            }
            Sent::Refused(reason) => tracing::error!(%hash, reason, "the node refused a transaction"),
        }
    }

    /// Signs new bytes for what does not get mined, oldest nonce first: higher fees, or nothing at all for a claim that is in vain.
    async fn replace(
        &mut self,
        signed: &[OpenIntent],
        pulse: &Pulse,
        next_nonce: u64,
        orders: &HashMap<i64, OrderKind>,
    ) -> Result<Vec<OpenIntent>> {
        let in_vain = self.in_vain(signed).await?;
        let (mut replaced, mut bytes, mut oldest) = (Vec::new(), Vec::new(), true);
        for intent in signed {
            let (Some(nonce), Some(last), Some(gas)) = (intent.nonce, intent.attempts.last(), intent.gas) else {
                continue;
            };
            // Mined, as it seems: its receipt is being looked for.
            if nonce < next_nonce {
                continue;
            }
            let was_oldest = std::mem::replace(&mut oldest, false);
            let order = orders.get(&intent.id);
            let Some(wire) = self.on_wire.get(&last.hash).filter(|wire| wire.refusals == 0 || order.is_some()) else {
                continue;
            };
            let waited = wire.first.elapsed();
            let in_vain = in_vain.contains(&intent.id) && waited >= RESEND_AFTER;
            let cancels = last.cancels || in_vain || order == Some(&OrderKind::Cancel);
            let late = (was_oldest && waited >= self.limits.bump_after) || order == Some(&OrderKind::Bump);
            let priced_out = (last.fee_cap < pulse.base_fee || wire.underpriced) && waited >= RESEND_AFTER;
            if !late && !priced_out && cancels == last.cancels {
                continue;
            }
            let least = Fees { fee_cap: last.fee_cap, tip_cap: last.tip_cap }.bumped();
            let wanted =
                Fees { fee_cap: least.fee_cap.max(pulse.fees.fee_cap), tip_cap: least.tip_cap.max(pulse.fees.tip_cap) };
            let gas = if cancels { EMPTY_GAS } else { gas };
            let fees = self.capped(wanted, intent, gas);
            // Under the ceiling no node would take it for a replacement.
            if fees.fee_cap < least.fee_cap || fees.tip_cap < least.tip_cap {
                if let Some(order) = order {
                    let (order, most) = (order.name(), fees.fee_cap);
                    tracing::error!(
                        intent = intent.id,
                        order,
                        most,
                        "not done: it would cost more than the ceiling allows"
                    );
                }
                continue;
            }
            let kind = &intent.kind;
            tracing::warn!(kind, nonce, cancels, fee_cap = fees.fee_cap, "not mined in time: offering more");
            if let Some(job) = intent.job.filter(|_| in_vain && kind == "claim" && !last.cancels)
                && self.store.job(job).await?.is_none()
            {
                self.store.withdraw(job).await?;
            }
            let attempt = self.attempt(intent, nonce, gas, fees, cancels).await?;
            bytes.push(Signed { intent: intent.id, nonce, gas: intent.gas.unwrap_or(gas), attempt: attempt.clone() });
            replaced.push(OpenIntent { attempts: vec![attempt], ..intent.clone() });
        }
        if !bytes.is_empty() {
            self.store.sign(&bytes).await?;
        }
        Ok(replaced)
    }

    /// Returns what can only cost.
    async fn in_vain(&self, signed: &[OpenIntent]) -> Result<HashSet<i64>> {
        if !signed.iter().any(|intent| ["claim", "commit", "complete", "fail"].contains(&intent.kind.as_str())) {
            return Ok(HashSet::new());
        }
        let ((now, jobs), us) = (self.store.live_now().await?, self.signer.address());
        let jobs: HashMap<JobId, _> = jobs.into_iter().map(|job| (job.id, job)).collect();
        let job = |intent: &OpenIntent| intent.job.and_then(|job| jobs.get(&job)).map(|job| &**job);
        Ok(signed.iter().filter(|it| in_vain(&it.kind, job(it), us, now)).map(|intent| intent.id).collect())
    }

    /// Signs empty transactions for nonces that are missing before ours, so that ours get their turn: they were lost with an older
    /// file, or never sent by another program.
    async fn fill_gaps(&mut self, pulse: &Pulse, next_nonce: u64) -> Result<Vec<OpenIntent>> {
        let us = self.signer.address();
        let gaps = self.store.nonce_gaps(us, next_nonce).await?;
        if gaps.is_empty() {
            self.gap_since = None;
            return Ok(Vec::new());
        }
        if self.gap_since.get_or_insert_with(Instant::now).elapsed() < self.limits.bump_after {
            return Ok(Vec::new());
        }
        let key = |nonce: &u64| format!("fill:{us}:{nonce}");
        let fill = |nonce| Intent {
            key: key(nonce),
            job: None,
            kind: "fill",
            target: us,
            data: Bytes::new(),
            signer: us,
            gas: Some(EMPTY_GAS),
            cost_max: None,
        };
        tracing::warn!(?gaps, account = %us, "nonces are missing before ours: filling them");
        self.store.queue(&gaps.iter().map(fill).collect::<Vec<_>>()).await?;
        let mut filled = Vec::new();
        for mut intent in self.store.fill_intents(us).await? {
            let Some(nonce) = gaps.iter().copied().find(|nonce| key(nonce) == intent.key) else { continue };
            let attempt =
                self.attempt(&intent, nonce, EMPTY_GAS, self.capped(pulse.fees, &intent, EMPTY_GAS), false).await?;
            let signed = Signed { intent: intent.id, nonce, gas: EMPTY_GAS, attempt: attempt.clone() };
            self.store.sign(&[signed]).await?;
            (intent.nonce, intent.attempts) = (Some(nonce), vec![attempt]);
            filled.push(intent);
        }
        Ok(filled)
    }

    /// Returns fees under every ceiling: the absolute one, and what the transaction may cost.
    fn capped(&self, fees: Fees, intent: &OpenIntent, gas: u64) -> Fees {
        let own = intent.cost_max.map_or(u128::MAX, |wei| (wei / U256::from(gas.max(1))).saturating_to());
        let fee_cap = fees.fee_cap.min(self.limits.fee_cap_max).min(own);
        Fees { fee_cap, tip_cap: fees.tip_cap.min(fee_cap) }
    }
}
