//! Publishes our signed receipts and keeps those of others, once signature and chain agree.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tokio::time::timeout;

use super::{Held, LEASE_SECONDS, Pass, Task, sign_receipt};
use crate::chain::{Chain, Signer};
use crate::failpoint::{self, Point};
use crate::http::{Kind, Metrics};
use crate::market::job::{Duty, Job, Next, State, Work};
use crate::market::receipt::SignedReceipt;
use crate::p2p::{P2p, PeerId, Verdict};
use crate::store::{Owed, PeerReceipt, Store};

/// How long no peer is looked for after there was none.
const ALONE: Duration = Duration::from_secs(1);
/// How long a receipt may wait for our indexer to reach the block it speaks of.
const CHAIN_WAIT: Duration = Duration::from_secs(8);

/// Publishes what this host finished.
pub struct Announcer {
    pub chain: Chain,
    pub store: Store,
    pub p2p: P2p,
    pub signer: Signer,
    /// When a peer was last looked for in vain.
    pub alone: Option<Instant>,
}

impl Task for Announcer {
    const NAME: &'static str = "announcer";

    /// Publishes the receipt of one finished job, if one is owed.
    ///
    /// # Errors
    /// If the store fails. Finding no peer is not an error here: it is tried again later.
    async fn pass(&mut self) -> Result<Pass> {
        if self.alone.is_some_and(|since| since.elapsed() < ALONE) {
            return Ok(Pass::Idle);
        }
        let us = self.signer.address();
        let now = self.store.time().await?;
        let mut jobs = self.store.live_jobs().await?;
        jobs.extend(self.store.unannounced_jobs(us).await?.into_iter().map(Arc::new));
        for job in jobs {
            let owed = job.next(us, now) == Next::Do(Duty::Announce);
            if owed && self.store.lease(Owed::to(&job, Duty::Announce), LEASE_SECONDS).await? {
                let held = Held::new(&self.store, Job::clone(&job), Duty::Announce);
                match self.announce(&held).await {
                    Ok(true) => return held.conclude(Ok(())).await,
                    Ok(false) => {
                        tracing::debug!("no peer takes receipts: trying again later");
                        self.alone = Some(Instant::now());
                        held.put_back().await?;
                        return Ok(Pass::Idle);
                    }
                    Err(error) => held.try_later(error).await?,
                }
            }
        }
        Ok(Pass::Idle)
    }
}

impl Announcer {
    /// Returns whether a peer took the receipt.
    async fn announce(&self, job: &Job) -> Result<bool> {
        let signed = sign_receipt(&self.chain, &self.signer, job).await?;
        let bytes = serde_json::to_vec(&signed).context("write the receipt")?;
        if !self.p2p.publish_receipt(bytes).await? {
            return Ok(false);
        }
        failpoint::hit(Point::AfterAnnounce).await?;
        let at = self.store.time().await?;
        self.store.record(job.id, &Work::Announced { at, deal: Some(job.terms.deal()) }).await?;
        tracing::info!(job = %job.id, "published receipt");
        Ok(true)
    }
}

/// Judges receipts that arrive by gossip.
#[derive(Clone)]
pub struct Listener {
    pub chain: Chain,
    pub store: Store,
    pub metrics: Metrics,
}

/// What to do with a receipt.
enum Judgement {
    Keep(Box<SignedReceipt>),
    /// It is false: whoever sent it is to blame.
    Reject(anyhow::Error),
    /// We cannot tell.
    Ignore(anyhow::Error),
}

impl Listener {
    /// Judges one receipt, waiting a little for the chain to reach it, and answers its verdict.
    ///
    /// # Errors
    /// If the store fails; the receipt is then ignored.
    pub async fn hear(&self, from: PeerId, bytes: Vec<u8>, verdict: Verdict) -> Result<()> {
        let count = |kind: &str| self.metrics.receipts.get_or_create(&Kind::of(kind)).inc();
        match self.judge(&bytes).await? {
            Judgement::Keep(signed) => {
                let job = signed.receipt.job;
                self.store.keep_receipt(&PeerReceipt { signed: *signed, peer: from.to_string(), agreed: true }).await?;
                verdict.accept();
                count("accept");
                tracing::info!(%job, peer = %from, "kept receipt");
            }
            Judgement::Reject(error) => {
                verdict.reject();
                count("reject");
                tracing::warn!(peer = %from, error = format!("{error:#}"), "rejected receipt");
            }
            Judgement::Ignore(error) => {
                verdict.ignore();
                count("ignore");
                tracing::debug!(peer = %from, error = format!("{error:#}"), "ignored receipt");
            }
        }
        Ok(())
    }

    async fn judge(&self, bytes: &[u8]) -> Result<Judgement> {
        let signed = match SignedReceipt::read(bytes) {
            Ok(signed) => signed,
            Err(error) => return Ok(Judgement::Reject(error)),
        };
        let mut changes = self.store.changes();
        let committed = async {
            loop {
                if let Some(job) = self.store.job(signed.receipt.job).await?
                    && !matches!(job.state, State::Posted | State::Claimed { .. })
                {
                    return anyhow::Ok(job);
                }
                changes.changed().await.context("the store closed")?;
            }
        };
        let Ok(job) = timeout(CHAIN_WAIT, committed).await else {
            let id = signed.receipt.job;
            return Ok(Judgement::Ignore(anyhow::anyhow!("the chain has no result of job {id}")));
        };
        Ok(match signed.agrees_with(self.chain.id(), self.chain.contracts().job_marketplace, &job?) {
            Ok(()) => Judgement::Keep(Box::new(signed)),
            Err(error) => Judgement::Reject(error),
        })
    }
}
