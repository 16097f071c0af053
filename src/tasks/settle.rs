//! Reads what became of our transactions, once a block: by the hashes of everything we signed, never by guess. And feels the chain's
//! pulse for whoever signs the next one.

use std::time::{Duration, Instant};

use anyhow::Result;
use tokio::sync::watch;

use super::{LONG_PASS_MAX, Pass, Task};
use crate::chain::{Chain, Ended, Pulse};
use crate::failpoint::{self, Point};
use crate::http::Metrics;
use crate::market::types::{Address, B256, BlockRef};
use crate::store::{OpenIntent, Store, TxOutcome};

/// Fees are read again after this long, though no block came and nothing of ours waits.
const PULSE_AGE_MAX: Duration = Duration::from_secs(10);
/// And after this long at least with each block.
const PULSE_AGE_MIN: Duration = Duration::from_millis(500);

/// A pulse and when it was felt.
pub type Beat = Option<(Pulse, Instant)>;

/// The task's edges.
pub struct Settle {
    chain: Chain,
    store: Store,
    metrics: Metrics,
    us: Address,
    beat: watch::Sender<Beat>,
    /// The newest block whose receipts are all settled.
    seen: Option<BlockRef>,
    /// The newest final block at which the nonce was compared.
    compared: u64,
}

impl Task for Settle {
    const NAME: &'static str = "settle";

    /// Settles what is mined, if there is a new block.
    ///
    /// # Errors
    /// If the endpoint or the store fails: then nothing is known about any transaction.
    async fn pass(&mut self) -> Result<Pass> {
        let cursor = self.store.cursor().await?;
        let signed = self.store.signed_intents(self.us).await?;
        let (known, felt) = (cursor == self.seen, self.beat.borrow().map(|(_, at)| at.elapsed()));
        let due = |age: Duration| age > PULSE_AGE_MAX || (!known && (!signed.is_empty() || age > PULSE_AGE_MIN));
        if !felt.is_none_or(due) {
            self.metrics.open_transactions.set(self.store.open_intents(self.us).await? as i64);
            return Ok(Pass::Idle);
        }
        let chain = self.chain.steady();
        let hashes: Vec<B256> = signed.iter().flat_map(|intent| intent.attempts.iter().map(|it| it.hash)).collect();
        let (pulse, outcomes) = tokio::try_join!(chain.pulse(), mined(&chain, &hashes))?;
        self.beat.send_replace(Some((pulse, Instant::now())));
        if !outcomes.is_empty() {
            failpoint::hit(Point::BeforeSettle).await?;
        }
        let finals = self.finals(&chain, &outcomes).await?;
        let settled = self.store.settle(&outcomes, &finals).await?;
        if settled > 0 {
            failpoint::hit(Point::AfterSettle).await?;
        }
        // Some are of a block that is not stored yet: they are told when it is.
        for outcome in outcomes.iter().filter(|_| settled == outcomes.len()) {
            let intent = signed.iter().find(|intent| intent.attempts.iter().any(|it| it.hash == outcome.hash));
            if let Some(OpenIntent { kind, job, .. }) = intent {
                let job = job.map(|job| job.0);
                tracing::info!(kind, ?job, block = outcome.block.number, success = outcome.success, "mined");
            }
        }
        self.find_foreign(&chain, &signed, &outcomes).await?;
        // A block that the indexer has not stored yet: it soon will, or the block goes away.
        if settled == outcomes.len() {
            self.seen = cursor;
        }
        self.metrics.open_transactions.set(self.store.open_intents(self.us).await? as i64);
        Ok(Pass::Idle)
    }

    fn pass_max(&self) -> Duration {
        LONG_PASS_MAX
    }
}

impl Settle {
    /// Returns the task and what it tells of the chain.
    pub fn new(chain: Chain, store: Store, metrics: Metrics, us: Address) -> (Self, watch::Receiver<Beat>) {
        let (beat, felt) = watch::channel(None);
        (Self { chain, store, metrics, us, beat, seen: None, compared: 0 }, felt)
    }

    /// Returns those final blocks of the outcomes whose headers are not stored, as the chain has them: a transaction that does nothing
    /// leaves no log, and what became of it while this node was off may be final by now.
    async fn finals(&self, chain: &Chain, outcomes: &[TxOutcome]) -> Result<Vec<BlockRef>> {
        let last = self.store.finality().await?.map_or(0, |finality| finality.block.number);
        let mut finals = Vec::new();
        for block in outcomes.iter().map(|outcome| outcome.block).filter(|block| block.number <= last) {
            if !finals.contains(&block)
                && self.store.canonical_hash(block.number).await?.is_none()
                && chain.header(block.number).await?.is_some_and(|header| header.block == block)
            {
                finals.push(block);
            }
        }
        Ok(finals)
    }

    /// Finds intents whose nonce is used in a final block by a transaction that is not ours: somebody else signs with our key. No
    /// receipt alone says that: endpoints lag and forget.
    async fn find_foreign(&mut self, chain: &Chain, signed: &[OpenIntent], outcomes: &[TxOutcome]) -> Result<()> {
        let Some(last) = self.store.finality().await?.map(|finality| finality.block.number) else { return Ok(()) };
        if signed.is_empty() || last <= self.compared {
            return Ok(());
        }
        let nonce = chain.final_nonce(self.us).await?;
        for intent in signed.iter().filter(|intent| intent.nonce.is_some_and(|taken| taken < nonce)) {
            let hashes: Vec<B256> = intent.attempts.iter().map(|attempt| attempt.hash).collect();
            let mut ours = outcomes.iter().any(|outcome| hashes.contains(&outcome.hash));
            for chain in self.chain.each() {
                ours = ours || !mined(&chain, &hashes).await?.is_empty();
            }
            if ours {
                continue;
            }
            let (kind, taken) = (&intent.kind, intent.nonce.unwrap_or_default());
            tracing::error!(
                kind,
                nonce = taken,
                account = %self.us,
                "a transaction that is not ours has this nonce: another program signs with this key"
            );
            self.store.lose_nonce(intent.id, "its nonce went to a transaction that is not ours").await?;
        }
        self.compared = last;
        Ok(())
    }
}

/// Returns what became of those of the transactions that are mined.
async fn mined(chain: &Chain, hashes: &[B256]) -> Result<Vec<TxOutcome>> {
    let outcome = |ended: Ended| {
        let Ended { hash, block, success, gas_used, gas_price, l1_fee } = ended;
        TxOutcome { hash, block, success, gas_used, gas_price, l1_fee }
    };
    Ok(chain.ended(hashes).await?.into_iter().map(outcome).collect())
}
