//! Queues the transactions that our jobs owe, and tries each call before it is signed: what the contract would refuse costs nothing
//! then. Claims need no try: policy decided them from what is stored, and each answer of an endpoint would come too late.

use std::collections::HashMap;
use std::time::Duration;

use anyhow::{Context, Result};
use futures::StreamExt;

use super::{INDEXER, LONG_PASS_MAX, Pass, Task, abandon};
use crate::chain::Chain;
use crate::chain::call::Call;
use crate::content::Content;
use crate::failpoint::{self, Point};
use crate::http::Health;
use crate::market::gate::Gates;
use crate::market::job::{Duty, Job, Next};
use crate::market::policy::Policy;
use crate::market::types::{Address, BlockRef, JobId, U256};
use crate::store::{Intent, IntentState, OpenIntent, Owed, Store};

/// Tries since a job was claimed after which it is given up: a reorg alone can spoil a few.
const TRIES_MAX: u32 = 10;
/// What was refused [`TRIES_MAX`] times but is never given up is asked for again after this many seconds, and again after as many.
const AGAIN_SECONDS: u64 = 600;
/// Calls tried at once, and in one pass.
const TRIES_AT_ONCE: usize = 8;
const TRIES_PER_PASS: usize = 64;
/// The contract takes no longer reason, in bytes.
const REASON_MAX: usize = 128;

/// The task's edges.
pub struct Prepare {
    pub chain: Chain,
    pub store: Store,
    pub content: Content,
    pub health: Health,
    pub us: Address,
    pub policy: Policy,
    /// What must stand on the block that an action rests on.
    pub gates: Gates,
    /// The newest block we knew when the contract last refused a job's call: at that block it is not asked again.
    pub refused: HashMap<JobId, BlockRef>,
    /// The jobs that wait at a gate, each with the duty: told once.
    pub waiting: HashMap<JobId, Duty>,
}

impl Task for Prepare {
    const NAME: &'static str = "prepare";

    /// Queues what is owed, then tries what was not tried yet.
    ///
    /// # Errors
    /// If the endpoint or the store fails. What is queued stays queued.
    async fn pass(&mut self) -> Result<Pass> {
        // What a contract refuses while the file is behind it, or on a fork, says nothing.
        let violated = self.store.finality().await?.is_some_and(|finality| finality.violated.is_some());
        if violated || !self.health.is_well(INDEXER) {
            return Ok(Pass::Idle);
        }
        // One job or call that cannot go on must not hold up the others: its error waits for the end of the pass.
        let mut failed = self.queue_duties().await?;
        let untried = self.store.untried_intents(self.us, TRIES_PER_PASS).await?;
        let cursor = self.store.cursor().await?;
        let (chain, us) = (self.chain.clone(), self.us);
        let mut tries = futures::stream::iter(untried)
            .map(|intent| {
                let chain = chain.clone();
                async move {
                    let call = Call { to: intent.target, data: intent.data.clone(), value: U256::ZERO };
                    (chain.rehearse(us, &call).await, intent)
                }
            })
            .buffer_unordered(TRIES_AT_ONCE);
        while let Some((tried, intent)) = tries.next().await {
            let OpenIntent { id, job, kind, .. } = &intent;
            match tried {
                Ok(Ok(gas)) => self.store.set_gas(*id, gas).await?,
                Ok(Err(reason)) => {
                    if let Some((job, at)) = job.zip(cursor) {
                        self.refused.insert(job, at);
                    }
                    tracing::warn!(kind, ?job, reason, "the contract would refuse: not sent");
                    self.store.drop_intent(*id, &reason).await?;
                }
                Err(error) => failed = failed.or(Some(error.context(format!("{kind} (intent {id})")))),
            }
        }
        failed.map_or(Ok(Pass::Idle), Err)
    }

    fn pass_max(&self) -> Duration {
        LONG_PASS_MAX
    }
}

impl Prepare {
    /// Queues what our jobs owe. Returns the first error that concerns one job alone, such as a damaged file.
    async fn queue_duties(&mut self) -> Result<Option<anyhow::Error>> {
        let (mut failed, mut intents) = (None, Vec::new());
        let (now, cursor) = (self.store.time().await?, self.store.cursor().await?);
        let jobs = self.store.live_jobs().await?;
        let owed: HashMap<JobId, (&Job, Duty)> = jobs
            .iter()
            .filter_map(|job| match job.next(self.us, now) {
                Next::Do(duty @ (Duty::Commit | Duty::Complete | Duty::Fail | Duty::Release)) => {
                    Some((job.id, (&**job, duty)))
                }
                _ => None,
            })
            .collect();
        self.waiting.retain(|id, _| owed.contains_key(id));
        self.refused.retain(|id, _| owed.contains_key(id));
        let ids: Vec<JobId> = owed.keys().copied().collect();
        let earlier = self.store.intents_of(&ids).await?;
        for (id, (job, duty)) in owed {
            if self.refused.get(&id).copied().is_some_and(|at| Some(at) == cursor) {
                continue;
            }
            let earlier = earlier.get(&(id, duty.name().to_owned())).map(Vec::as_slice).unwrap_or_default();
            if !earlier.iter().all(|state: &IntentState| state.came_to_nothing()) || self.waits(job, duty).await? {
                continue;
            }
            if earlier.len() as u32 >= TRIES_MAX {
                if !matches!(duty, Duty::Release | Duty::Fail) {
                    abandon(&self.store, job, format!("{} was refused {} times", duty.name(), earlier.len())).await?;
                    continue;
                }
                // Our money and our stake: never given up, but asked for seldom.
                if !self.store.lease(Owed::to(job, duty), AGAIN_SECONDS).await? {
                    continue;
                }
            }
            match self.call(job, duty) {
                Ok(Call { to, data, .. }) => intents.push(Intent {
                    key: format!("{}:{id}:{}", duty.name(), earlier.len()),
                    job: Some(id),
                    kind: duty.name(),
                    target: to,
                    data,
                    signer: self.us,
                    gas: None,
                    // Of a job that is ours: stake stands for it until it ends. Money that is due can wait for cheaper gas.
                    cost_max: self.policy.ceiling(&job.terms).filter(|_| duty == Duty::Release),
                }),
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        if self.store.queue(&intents).await? > 0 {
            failpoint::hit(Point::AfterQueue).await?;
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
            Duty::Commit => contracts.commit(job.id, job.terms.order(), &inferred()?.commitment),
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
            Duty::Fail => contracts.fail(job.id, job.terms.deal(), told(job.abandoned.as_deref().unwrap_or_default())),
            _ => contracts.release(job.id),
        })
    }
}

/// Returns a reason as the contract takes it.
fn told(reason: &str) -> String {
    let end = (0..=REASON_MAX.min(reason.len())).rev().find(|end| reason.is_char_boundary(*end)).unwrap_or(0);
    if end == 0 { "given up".into() } else { reason[..end].into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_fits_the_contract() {
        assert_eq!(told(""), "given up");
        assert_eq!(told("the model failed"), "the model failed");
        let long = "ä".repeat(100);
        assert_eq!(told(&long), "ä".repeat(64));
        assert_eq!(told(&format!("x{long}")).len(), 127);
    }
}
