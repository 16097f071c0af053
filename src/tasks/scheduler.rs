//! Decides which posted jobs to claim and keeps the slots true to the chain.
//!
//! A claim is intent only: what makes a job ours is the canonical `JobClaimed` the indexer reads.

use std::collections::HashMap;

use anyhow::Result;

use super::{INDEXER, Pass, Survey, Task};
use crate::chain::Chain;
use crate::content::Content;
use crate::http::{Declined, Health, Kind, Metrics, Skipped};
use crate::market::job::{Duty, Job, Next, State, Work};
use crate::market::policy::Policy;
use crate::market::types::{Address, Cid, JobId, UnixSeconds};
use crate::store::{Intent, IntentState, Store};

/// The task's edges and the host's policy.
pub struct Scheduler {
    pub chain: Chain,
    pub store: Store,
    pub content: Content,
    pub health: Health,
    pub metrics: Metrics,
    pub policy: Policy,
    pub survey: Survey,
    pub us: Address,
    /// Engine slots of this node.
    pub slots: u32,
    pub skipped: Declined,
    /// The rule that last refused each live job.
    pub declined: HashMap<JobId, &'static str>,
}

impl Task for Scheduler {
    const NAME: &'static str = "scheduler";

    /// Adopts, frees and chooses. Claims nothing while the indexer is not at the head of the chain.
    ///
    /// # Errors
    /// If the store or the endpoint fails. What was chosen stays chosen.
    async fn pass(&mut self) -> Result<Pass> {
        let jobs = self.store.live_jobs().await?;
        let now = self.store.time().await?;
        self.keep_slots(&jobs, now).await?;
        if !self.health.is_well(INDEXER) {
            return Ok(Pass::Idle);
        }
        self.declined.retain(|id, _| jobs.iter().any(|job| job.id == *id));
        for job in &jobs {
            if job.next(self.us, now) == Next::Do(Duty::Consider) {
                self.consider(job, now).await?;
            }
        }
        Ok(Pass::Idle)
    }
}

impl Scheduler {
    /// Slots follow the chain: jobs that are ours have one, finished and lost ones give theirs back.
    async fn keep_slots(&self, jobs: &[Job], now: UnixSeconds) -> Result<()> {
        let reserved = self.store.reservations().await?;
        self.metrics.reservations.set(reserved.len() as i64);
        // A job in doubt keeps what it has.
        for job in jobs.iter().filter(|job| job.doubt.is_none()) {
            let ended = matches!(job.next(self.us, now), Next::Done(_));
            let ours = !ended && matches!(job.state, State::Claimed { .. } | State::Committed { .. });
            let hoping = !ended && job.state == State::Posted && !self.claim_failed(job).await?;
            match reserved.contains(&job.id) {
                false if ours && self.store.adopt(job.id).await? => {
                    tracing::warn!(job = %job.id, "adopted a job the chain says is ours");
                }
                true if !ours && !hoping => self.store.free(job.id).await?,
                _ => {}
            }
        }
        let gone = reserved.iter().filter(|id| !jobs.iter().any(|job| job.id == **id));
        for id in gone {
            self.store.free(*id).await?;
        }
        Ok(())
    }

    /// Returns whether our claim of a posted job came to nothing, and records that we gave the job up.
    async fn claim_failed(&self, job: &Job) -> Result<bool> {
        if !job.chosen {
            return Ok(false);
        }
        let claims = self.store.intents_of(job.id, "claim").await?;
        if !claims.iter().all(|state| matches!(state, IntentState::Reverted | IntentState::Dropped)) {
            return Ok(false);
        }
        let reason = "the claim was refused".to_owned();
        tracing::warn!(job = %job.id, "gave up job: the claim was refused");
        self.store.record(job.id, &Work::Abandoned { at: self.store.time().await?, reason }).await?;
        Ok(true)
    }

    async fn consider(&mut self, job: &Job, now: UnixSeconds) -> Result<()> {
        let input: Option<Cid> = job.terms.input.parse().ok();
        let held = input.is_some_and(|cid| self.content.has(&cid));
        let at = self.survey.circumstances(&self.store, self.us, job, held).await?;
        let refused = self.policy.decide(job, &at).err();
        // The same refusal is met again in every pass; it counts and is told once.
        if refused.is_some() && self.declined.get(&job.id).copied() == refused {
            return Ok(());
        }
        let verdict = self.policy.judge(job, &at);
        if let Some(refusal) = verdict.refusal() {
            let (rule, detail) = (refusal.rule, refusal.detail.clone());
            self.declined.insert(job.id, rule);
            self.metrics.jobs_declined.get_or_create(&Kind::of(rule)).inc();
            tracing::info!(job = %job.id, rule, detail, "declined job");
            self.skipped.note(Skipped { job: job.id, rule, detail, at: now });
            return Ok(());
        }
        let call = self.chain.contracts().claim(job.id);
        let claim = Intent {
            key: format!("claim:{}", job.id),
            job: Some(job.id),
            kind: "claim",
            target: call.to,
            data: call.data,
            signer: self.us,
        };
        let work = Work::Chosen { at: now, reasons: verdict.lines() };
        if self.store.choose(job.id, &work, self.slots, &claim).await? {
            tracing::info!(job = %job.id, payment = %job.terms.payment, "chose job");
        }
        Ok(())
    }
}
