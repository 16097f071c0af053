//! Decides which posted jobs to claim and keeps the slots true to the chain.
//!
//! A claim is intent only: what makes a job ours is the canonical `JobClaimed` the indexer reads.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;

use super::{Guard, INDEXER, Pass, Sight, Survey, Task, abandon};
use crate::chain::Contracts;
use crate::content::Content;
use crate::failpoint::{self, Point};
use crate::http::{Declined, Health, Kind, Metrics, Skipped};
use crate::market::job::{Duty, Job, Next, State, Work};
use crate::market::policy::Policy;
use crate::market::types::{Address, Cid, JobId, UnixSeconds};
use crate::store::{Choice, Intent, IntentState, Store, clock};

/// A claim's gas limit, several times what the contract ever needs: what is not used costs nothing.
const CLAIM_GAS: u64 = 300_000;
/// A claim that waits longer to be signed follows from a judgement that is too old.
const CLAIM_AGE_MAX_SECONDS: u64 = 60;
/// Jobs chosen in one transaction, so that the first claims of many are under way while the last are decided.
const CHOICES_AT_ONCE: usize = 50;
/// How long the slots are let be after jobs were chosen.
const BREATH: Duration = Duration::from_millis(25);

/// The task's edges and the host's policy.
pub struct Scheduler {
    /// It asks no endpoint: between a job's log and its claim there is no call but the send.
    pub contracts: Contracts,
    pub store: Store,
    pub content: Content,
    pub health: Health,
    pub metrics: Metrics,
    pub policy: Policy,
    /// Whether this host may claim now.
    pub guard: Guard,
    pub survey: Survey,
    pub us: Address,
    /// Jobs that this node takes at once: those its engines compute, and those that wait for one.
    pub slots: u32,
    pub skipped: Declined,
    /// The rule that last refused each live job.
    pub declined: HashMap<JobId, &'static str>,
}

impl Task for Scheduler {
    const NAME: &'static str = "scheduler";
    const HURRIES: bool = true;

    /// Adopts, frees, gives up and chooses. Claims nothing while the indexer is not at the head of the chain, or the guard refuses.
    ///
    /// # Errors
    /// If the store fails. What was chosen stays chosen.
    async fn pass(&mut self) -> Result<Pass> {
        let (now, jobs) = self.store.live_now().await?;
        // First what others may take meanwhile.
        if self.health.is_well(INDEXER) && self.guard.refusal().is_none() && self.choose(&jobs, now).await? {
            // Whoever signs and sends their claims goes first.
            tokio::time::sleep(BREATH).await;
            return Ok(Pass::Again);
        }
        let mut reserved = self.store.reservations().await?;
        let freed = self.keep_slots(&jobs, now, &mut reserved).await?;
        for job in self.store.withdraw_queued(UnixSeconds(clock().0.saturating_sub(CLAIM_AGE_MAX_SECONDS))).await? {
            tracing::info!(%job, "its claim waited too long to be signed: judged anew");
        }
        self.metrics.reservations.set(self.store.reservations().await?.len() as i64);
        Ok(if freed { Pass::Again } else { Pass::Idle })
    }
}

impl Scheduler {
    /// Decides on what is posted, as many at once as it takes to have the first claims under way while the last are decided. Returns
    /// whether any was chosen.
    async fn choose(&mut self, jobs: &[Arc<Job>], now: UnixSeconds) -> Result<bool> {
        let open: Vec<&Arc<Job>> =
            jobs.iter().filter(|job| job.next(self.us, now) == Next::Do(Duty::Consider)).collect();
        let known: BTreeSet<JobId> = open.iter().map(|job| job.id).collect();
        self.declined.retain(|id, _| known.contains(id));
        let mut any = false;
        for open in open.chunks(CHOICES_AT_ONCE) {
            let mut choices = Vec::new();
            let jobs: Vec<&Job> = open.iter().map(|job| &***job).collect();
            let mut sight = Sight::of(&self.store, self.us, now, self.survey.outlook(), &jobs).await?;
            for job in jobs {
                choices.extend(self.consider(job, &mut sight));
            }
            if !choices.is_empty() {
                let chosen = self.store.choose(&choices, self.slots).await?;
                failpoint::hit(Point::AfterChoose).await?;
                tracing::info!(jobs = ?chosen.iter().map(|job| job.0).collect::<Vec<_>>(), "chose jobs");
                any |= !chosen.is_empty();
            }
        }
        Ok(any)
    }

    /// Slots follow the chain: jobs that are ours have one, finished and lost ones give theirs back. Returns whether any did.
    async fn keep_slots(&self, jobs: &[Arc<Job>], now: UnixSeconds, reserved: &mut BTreeSet<JobId>) -> Result<bool> {
        let hoping: Vec<JobId> = jobs
            .iter()
            .filter(|job| job.state == State::Posted && job.chosen && !job.claim_failed)
            .map(|job| job.id)
            .collect();
        let claims = self.store.intents_of(&hoping).await?;
        let mut kept = BTreeSet::new();
        for job in jobs {
            let ended = matches!(job.next(self.us, now), Next::Done(_));
            // What we gave up needs no slot: all that is left is to say so.
            let claimed = matches!(job.state, State::Claimed { .. } | State::Committed { .. });
            let ours = !ended && claimed && job.abandoned.is_none();
            if ours && self.is_too_late(job, now) {
                let left = job.terms.deadline.0.saturating_sub(now.0);
                abandon(&self.store, job, format!("{left} s are left and it is not computed: too late")).await?;
            }
            let states = claims.get(&(job.id, "claim".to_owned()));
            let failed = states.is_some_and(|states| IntentState::claim_is_over(states));
            if failed && !ended && job.doubt.is_none() {
                let reason = "the claim was refused, or given back".to_owned();
                tracing::warn!(job = %job.id, reason, "gave up job");
                let deal = Some(job.terms.deal());
                self.store.record(job.id, &Work::ClaimFailed { at: now, reason, deal }).await?;
            }
            // A job in doubt keeps what it has.
            if job.doubt.is_some() || ours || (!ended && job.state == State::Posted && job.chosen && !failed) {
                kept.insert(job.id);
            }
            // What we still hope for has one too, where a reorg took its end away.
            if kept.contains(&job.id) && job.doubt.is_none() && !reserved.contains(&job.id) {
                self.store.adopt(job.id).await?;
                failpoint::hit(Point::AfterAdopt).await?;
                tracing::warn!(job = %job.id, state = job.state.name(), "adopted a job that is ours, or for which our claim is under way");
                reserved.insert(job.id);
            }
        }
        let over: Vec<JobId> = reserved.difference(&kept).copied().collect();
        let (over, gone): (Vec<JobId>, Vec<JobId>) = {
            let posted = self.store.posted(&over).await?;
            over.into_iter().partition(|job| posted.contains(job))
        };
        for job in &gone {
            tracing::warn!(%job, "a reorg took the posting of a chosen job");
            self.store.withdraw(*job).await?;
        }
        self.store.free(&over).await?;
        Ok(!over.is_empty() || !gone.is_empty())
    }

    /// Returns whether a job that is ours has no result yet and too little time for what comes after one.
    fn is_too_late(&self, job: &Job, now: UnixSeconds) -> bool {
        let left = job.terms.deadline.0.saturating_sub(now.0);
        job.inferred.is_none() && left < self.policy.margin_seconds / 2
    }

    /// Returns the choice of a job that every rule lets pass.
    fn consider(&mut self, job: &Job, sight: &mut Sight) -> Option<Choice> {
        let input: Option<Cid> = job.terms.input.parse().ok();
        let at = sight.circumstances(job, input.is_some_and(|cid| self.content.has(&cid)));
        let refused = self.policy.decide(job, &at).err();
        // The same refusal is met again in every pass; it counts and is told once.
        if refused.is_some() && self.declined.get(&job.id).copied() == refused {
            return None;
        }
        let verdict = self.policy.judge(job, &at);
        if let Some(refusal) = verdict.refusal() {
            let (rule, detail) = (refusal.rule, refusal.detail.clone());
            self.declined.insert(job.id, rule);
            self.metrics.jobs_declined.get_or_create(&Kind::of(rule)).inc();
            tracing::info!(job = %job.id, rule, detail, "declined job");
            self.skipped.note(Skipped { job: job.id, rule, detail, at: at.now });
            return None;
        }
        sight.choose(job);
        let deal = job.terms.deal();
        let call = self.contracts.claim(job.id, deal);
        let claim = Intent {
            key: format!("claim:{}", job.id),
            job: Some(job.id),
            kind: "claim",
            target: call.to,
            data: call.data,
            signer: self.us,
            gas: Some(CLAIM_GAS),
            cost_max: self.policy.ceiling(&job.terms),
        };
        let work = Work::Chosen { at: at.now, reasons: verdict.lines(), deal: Some(deal) };
        Some(Choice { job: job.id, work, claim })
    }
}
