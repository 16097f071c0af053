//! Compares what the logs told with what the contracts keep, at the same block: where the two differ, logs were missed or made up.
//!
//! Raises the alarm, has the blocks in question proven again, and keeps everybody's hands off the job until both say the same.
//! Corrects nothing itself: what is proven is for the indexer to store. Where everything is proven, the logs are believed.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::{INDEXER, LONG_PASS_MAX, Pass, Task};
use crate::chain::Chain;
use crate::http::{Health, Metrics};
use crate::market::coverage::Coverage;
use crate::market::event::Level;
use crate::market::record::Registration;
use crate::market::types::{Address, JobId};
use crate::store::{Census, Store};

/// The name under which the sweep reports its health.
pub const PART: &str = "sweep";

/// What is compared: a job, or our registration.
type Subject = Option<JobId>;

/// What is otherwise.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Difference {
    what: String,
    /// Whether every block in question was proven again and it is still so: then the logs are believed, not what an endpoint says
    /// of the state.
    believed: bool,
}

/// The task's edges.
pub struct Sweep {
    chain: Chain,
    store: Store,
    health: Health,
    metrics: Metrics,
    /// The host whose registration is compared.
    us: Option<Address>,
    every: Duration,
    due: Instant,
    /// Look again as soon as the blocks in question are proven.
    again: bool,
    /// What the last sweep found.
    found: BTreeMap<Subject, Difference>,
    /// What was found with every block proven, each of which is therefore being read once more, or was.
    reread: BTreeSet<(Subject, String)>,
}

impl Task for Sweep {
    const NAME: &'static str = "sweep";

    /// Compares everything, when it is time and the indexer is at the head of the chain.
    ///
    /// # Errors
    /// If the store fails or the endpoint does not tell the state at the newest block stored: it is asked again when the next
    /// sweep is due.
    async fn pass(&mut self) -> Result<Pass> {
        let mut swept = Ok(());
        if self.health.is_well(INDEXER) && self.is_due().await? {
            (self.due, self.again) = (Instant::now() + self.every, false);
            swept = self.sweep().await;
        }
        match self.found.first_key_value() {
            None => self.health.well(PART),
            Some((subject, Difference { what, .. })) => {
                let more = self.found.len() - 1;
                self.health.ill(PART, format!("{}: {what} (and {more} more)", named(*subject)));
            }
        }
        swept.map(|()| Pass::Idle)
    }

    fn pass_max(&self) -> Duration {
        LONG_PASS_MAX
    }
}

impl Sweep {
    /// Returns the task, which has not begun.
    pub fn new(
        chain: Chain,
        store: Store,
        health: Health,
        metrics: Metrics,
        us: Option<Address>,
        every: Duration,
    ) -> Self {
        let (due, again) = (Instant::now(), false);
        let (found, reread) = (BTreeMap::new(), BTreeSet::new());
        Self { chain, store, health, metrics, us, every, due, again, found, reread }
    }

    async fn is_due(&self) -> Result<bool> {
        let proven = self.again && self.store.newest_claimed().await?.is_none();
        Ok(proven || Instant::now() >= self.due)
    }

    async fn sweep(&mut self) -> Result<()> {
        let host = self.us.map(|us| (self.chain.contracts().node_registry, us));
        let Some(census) = self.store.census(host).await? else { return Ok(()) };
        let coverage = self.store.coverage().await?;
        let mut found = BTreeMap::new();
        for (subject, what) in self.compare(&census).await? {
            let believed = self.prove_again(subject, &what, &coverage).await?;
            let difference = Difference { what, believed };
            if self.found.get(&subject) != Some(&difference) {
                let then = match believed {
                    true => "every block is proven, so the logs are believed: fabstir rederive folds them anew",
                    false => "logs were missed or made up",
                };
                tracing::error!(block = census.at.number, "{}: {}: {then}", named(subject), difference.what);
            }
            found.insert(subject, difference);
        }
        for subject in self.found.keys().filter(|subject| !found.contains_key(subject)) {
            tracing::warn!(block = census.at.number, "{}: logs and contract say the same again", named(*subject));
        }
        self.reread.retain(|(subject, what)| found.get(subject).is_some_and(|found| found.what == *what));
        let doubted = found.iter().filter(|(_, difference)| !difference.believed);
        let doubts = doubted.filter_map(|(subject, difference)| Some(((*subject)?, difference.what.clone()))).collect();
        self.store.set_doubts(&doubts).await?;
        self.metrics.sweeps.inc();
        self.metrics.sweep_differences.set(found.len() as i64);
        self.found = found;
        Ok(())
    }

    /// Returns what the contracts say otherwise than the logs.
    async fn compare(&self, census: &Census) -> Result<BTreeMap<Subject, String>> {
        // One endpoint: what it tells is of one piece.
        let chain = self.chain.steady();
        let mut found = BTreeMap::new();
        let posted = chain.jobs_posted(census.at).await?;
        let (known, made_up): (Vec<_>, Vec<_>) = census.jobs.iter().partition(|job| job.id.0 <= posted);
        let unseen = (census.newest.0 + 1..=posted).rev().map(JobId);
        let missing: Vec<JobId> = unseen.chain(census.missing.iter().copied()).take(Census::MISSING_MAX).collect();
        let ids: Vec<JobId> = known.iter().map(|job| job.id).chain(missing.iter().copied()).collect();
        let records = chain.records(&ids, census.at).await?;
        for (job, record) in known.iter().zip(&records) {
            found.extend(record.difference(job).map(|what| (Some(job.id), what)));
        }
        for (job, record) in missing.iter().zip(&records[known.len()..]).filter(|(_, record)| record.is_live()) {
            found.insert(Some(*job), format!("it is {} by the contract, and no log posted it", record.state));
        }
        for job in made_up {
            found.insert(Some(job.id), format!("it is {} by the logs, unknown to the contract", job.state.name()));
        }
        if let Some(us) = self.us {
            let told = Registration::of(us, &census.host_events, &census.jobs);
            let kept = chain.registration(us, census.at).await?;
            found.extend(told.difference(&kept).map(|what| (None, what)));
        }
        Ok(found)
    }

    /// Has the blocks proven again in which logs may have been missed, unless that is under way. Returns whether all of them are
    /// proven, and were read again since.
    async fn prove_again(&mut self, subject: Subject, what: &str, coverage: &[Coverage]) -> Result<bool> {
        let from = match subject {
            Some(job) => self.store.posted_from(job).await.context("find the posting of a job")?,
            None => 0,
        };
        let since: Vec<&Coverage> = coverage.iter().filter(|range| range.to >= from).collect();
        if since.iter().any(|range| range.level == Level::Claimed && range.reason.is_none()) {
            self.again = true;
            return Ok(false);
        }
        let unproven = since.iter().any(|range| !range.level.is_proven());
        if !unproven && (subject.is_none() || !self.reread.insert((subject, what.to_owned()))) {
            return Ok(true);
        }
        // Those of which something is not proven; where there are none, all, once.
        let most = if unproven { Level::Linked } else { Level::Complete };
        let blocks = self.store.doubt(from, most).await?;
        tracing::warn!(from, blocks, "blocks are proven again for {}", named(subject));
        self.again = true;
        Ok(false)
    }
}

fn named(subject: Subject) -> String {
    subject.map_or("our registration".into(), |job| format!("job {job}"))
}
