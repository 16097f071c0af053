//! Stops claiming when too much went wrong, or when what the node sees is not to be relied on; pages the operator.
//!
//! Stops nothing else: what was claimed is finished. An open breaker is a row, so it outlives a restart, and only
//! `fabstir resume` closes it; a refusal by what is seen now ends with its cause.

use std::time::{Duration, Instant};

use anyhow::Result;
use serde_json::json;

use super::{Guard, Pass, Task};
use crate::chain::Chain;
use crate::http::{Health, Metrics};
use crate::market::breaker::{Limits, Seen};
use crate::market::types::{Address, U256, UnixSeconds};
use crate::page::Pager;
use crate::store::{Hold, HoldKind, Store, clock};

/// The name under which the breaker reports whether this host may claim.
pub const PART: &str = "breaker";

/// The least time between two looks.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// How often the account's balance is asked for, and how long an answer holds when no other comes.
const BALANCE_EVERY: Duration = Duration::from_secs(30);
const BALANCE_AGE_MAX: Duration = Duration::from_secs(300);
/// The longest wait for it: a pause must be seen meanwhile.
const BALANCE_WAIT: Duration = Duration::from_secs(5);
/// How long a pager that failed is let be.
const PAGE_AGAIN: Duration = Duration::from_secs(60);
/// Jobs looked at for drift, of all tokens together, for each that a limit asks for of one.
const TOKENS_MAX: u32 = 20;

/// The task's edges and limits.
pub struct Breaker {
    chain: Chain,
    store: Store,
    health: Health,
    metrics: Metrics,
    us: Address,
    limits: Limits,
    /// The fee of jobs to come, in hundredths of a percent.
    fee_bps: u16,
    pager: Pager,
    guard: Guard,
    looked: Option<Instant>,
    balance: Option<U256>,
    balance_at: Option<Instant>,
    balance_due: Instant,
    page_due: Instant,
}

impl Task for Breaker {
    const NAME: &'static str = "breaker";

    /// Looks at what happened and at what is seen, opens the breaker where a limit was passed, and pages until somebody was reached.
    ///
    /// # Errors
    /// If the store fails. Nothing is claimed on what was seen long ago.
    async fn pass(&mut self) -> Result<Pass> {
        if self.looked.is_some_and(|looked| looked.elapsed() < LOOK_EVERY) {
            return Ok(Pass::Idle);
        }
        self.looked = Some(Instant::now());
        let now = self.store.time().await?;
        // First, as it may take a while, and what an operator wrote meanwhile counts.
        let seen = self.see(now).await;
        let mut holds = self.store.holds().await?;
        if !holds.iter().any(|hold| hold.kind == HoldKind::Breaker) && self.trip(now).await? {
            holds = self.store.holds().await?;
        }
        let reasons: Vec<String> = holds.iter().map(ToString::to_string).chain(self.limits.refusals(&seen)).collect();
        let refusal = (!reasons.is_empty()).then(|| reasons.join("; "));
        self.metrics.claims_held.set(i64::from(refusal.is_some()));
        if self.guard.set(refusal.clone()) {
            match &refusal {
                None => tracing::info!("jobs are claimed"),
                Some(refusal) => tracing::warn!(refusal, "no job is claimed; what was claimed is finished"),
            }
        }
        match &refusal {
            None => self.health.well(PART),
            Some(refusal) => self.health.ill(PART, refusal.clone()),
        }
        self.page(&holds).await?;
        Ok(Pass::Idle)
    }
}

impl Breaker {
    /// Returns the task, which has not begun. `guard` refuses until it has.
    pub fn new(
        edges: (Chain, Store, Health, Metrics),
        us: Address,
        limits: Limits,
        fee_bps: u16,
        pager: Pager,
        guard: Guard,
    ) -> Self {
        let (chain, store, health, metrics) = edges;
        Self {
            chain,
            store,
            health,
            metrics,
            us,
            limits,
            fee_bps,
            pager,
            guard,
            looked: None,
            balance: None,
            balance_at: None,
            balance_due: Instant::now(),
            page_due: Instant::now(),
        }
    }

    /// Opens the breaker if a limit was passed since the operator last resumed. Returns whether it did.
    async fn trip(&self, now: UnixSeconds) -> Result<bool> {
        let since = UnixSeconds(now.0.saturating_sub(self.limits.seconds));
        let jobs_max = self.limits.drift_jobs.saturating_mul(TOKENS_MAX);
        let history = self.store.breaker_history(self.us, since, self.fee_bps, jobs_max).await?;
        let Some(tripped) = self.limits.judge(&history, now) else { return Ok(false) };
        let reason = tripped.to_string();
        let opened = self.store.hold(HoldKind::Breaker, &reason).await?;
        if opened {
            tracing::error!(reason, "the breaker opened: no job is claimed until `fabstir resume`");
        }
        Ok(opened)
    }

    async fn see(&mut self, now: UnixSeconds) -> Seen {
        if Instant::now() >= self.balance_due {
            self.balance_due = Instant::now() + BALANCE_EVERY;
            let asked = self.chain.balance(Address::ZERO, self.us);
            match tokio::time::timeout(BALANCE_WAIT, asked).await {
                Ok(Ok(balance)) => (self.balance, self.balance_at) = (Some(balance), Some(Instant::now())),
                Ok(Err(error)) => tracing::debug!(error = format!("{error:#}"), "the balance is not known"),
                Err(_) => tracing::debug!("the balance is not known: no answer in time"),
            }
        }
        let endpoints = self.chain.endpoints();
        Seen {
            head_age: (now.0 > 0).then(|| clock().0.saturating_sub(now.0)),
            balance: self.balance.filter(|_| self.balance_at.is_some_and(|at| at.elapsed() < BALANCE_AGE_MAX)),
            lags: endpoints.iter().filter_map(|endpoint| endpoint.lag).collect(),
            endpoints: endpoints.len(),
        }
    }

    /// Tells the operator once that the breaker opened.
    async fn page(&mut self, holds: &[Hold]) -> Result<()> {
        let Some(hold) = holds.iter().find(|hold| hold.kind == HoldKind::Breaker && !hold.told) else { return Ok(()) };
        if !self.pager.is_set() {
            return self.store.told(hold.kind).await;
        }
        if Instant::now() < self.page_due {
            return Ok(());
        }
        let message = json!({
            "event": "breaker_open", "host": self.us, "chain": self.chain.id(), "reason": hold.reason, "at": hold.at,
            "text": format!("fabstir host {} claims no more: {}. See `fabstir ledger`, then `fabstir resume`.", self.us, hold.reason),
        });
        match self.pager.page(&message.to_string()).await {
            Ok(()) => self.store.told(hold.kind).await,
            Err(error) => {
                self.page_due = Instant::now() + PAGE_AGAIN;
                tracing::error!(error = format!("{error:#}"), "the operator could not be paged: trying again");
                Ok(())
            }
        }
    }
}
