//! The jobs that have not ended, folded once, and again only where something changed: every task asks for them at every turn.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::Result;
use sqlx::SqliteConnection;

use super::Store;
use crate::market::job::{Fact, Job, State};
use crate::market::types::{JobId, UnixSeconds};

/// How often the file is asked whether another process changed it.
const LOOK_AGAIN: Duration = Duration::from_millis(250);
/// Changed jobs of which it is kept what the chain tells.
const TOLD_MAX: usize = 2000;
/// A job that nobody may work on any more is let be so long after its deadline: a reorg may take time back a little.
const EXPIRED_SECONDS: u64 = 3600;

/// What is folded, and what must be folded again. Clones share it.
#[derive(Debug, Clone, Default)]
pub(super) struct Live {
    /// Nobody writes here: whatever changed, others did.
    reads_only: bool,
    stale: Arc<Mutex<Stale>>,
    folded: Arc<tokio::sync::Mutex<Folded>>,
}

#[derive(Debug)]
struct Stale {
    all: bool,
    /// With what the chain told of each since it was folded, where that is all that changed: then nothing need be read.
    jobs: BTreeMap<JobId, Option<Vec<Fact>>>,
    /// The newest block, where blocks came: each draws the positions of the commitments in the one before.
    newest: Option<u64>,
}

impl Default for Stale {
    fn default() -> Self {
        Self { all: true, jobs: BTreeMap::new(), newest: None }
    }
}

#[derive(Debug, Default)]
struct Folded {
    jobs: BTreeMap<JobId, Arc<Job>>,
    /// `PRAGMA data_version` of the writer's connection, and when it was asked for.
    version: Option<(i64, Instant)>,
}

impl Folded {
    /// Has a job follow what the chain told since it was folded. Returns false where that does not do, and all must be read.
    fn follow(&mut self, id: JobId, news: Option<&[Fact]>) -> bool {
        let (Some(news), Some(known)) = (news, self.jobs.get_mut(&id)) else { return false };
        let job = Arc::make_mut(known);
        news.iter().all(|fact| job.follow(fact).is_ok())
    }

    /// Returns the jobs with a commitment whose positions a block up to `newest` drew.
    fn drawn(&self, newest: Option<u64>) -> BTreeSet<JobId> {
        let Some(newest) = newest else { return BTreeSet::new() };
        let waits = |job: &&Arc<Job>| {
            matches!(job.state, State::Committed { .. }) && job.beacon.is_none() && job.rests_on.number < newest
        };
        self.jobs.values().filter(waits).map(|job| job.id).collect()
    }
}

impl Live {
    /// Returns that of a file which is only read.
    pub(super) fn of_a_reader() -> Self {
        Self { reads_only: true, ..Self::default() }
    }

    /// Notes that what is stored of these jobs changed.
    pub(super) fn touch(&self, jobs: impl IntoIterator<Item = JobId>) {
        let mut stale = self.stale.lock().expect("no holder of this lock panics");
        for job in jobs {
            stale.jobs.insert(job, None);
        }
    }

    /// Notes what the chain tells of jobs, after all that it told before.
    pub(super) fn tell(&self, news: Vec<(JobId, Fact)>) {
        let mut stale = self.stale.lock().expect("no holder of this lock panics");
        if stale.jobs.len() + news.len() > TOLD_MAX {
            // Nobody asked for long: what is live then is read at once.
            (stale.all, stale.jobs) = (true, BTreeMap::new());
        }
        if stale.all {
            return;
        }
        for (job, fact) in news {
            if let Some(told) = stale.jobs.entry(job).or_insert_with(|| Some(Vec::new())) {
                told.push(fact);
            }
        }
    }

    /// Notes that blocks were added, up to this one.
    pub(super) fn touch_blocks(&self, newest: u64) {
        self.stale.lock().expect("no holder of this lock panics").newest = Some(newest);
    }

    /// Notes that any job may have changed.
    pub(super) fn touch_all(&self) {
        let mut stale = self.stale.lock().expect("no holder of this lock panics");
        (stale.all, stale.jobs) = (true, BTreeMap::new());
    }

    fn take(&self) -> Stale {
        let none = Stale { all: false, jobs: BTreeMap::new(), newest: None };
        std::mem::replace(&mut *self.stale.lock().expect("no holder of this lock panics"), none)
    }

    fn give_back(&self, taken: Stale) {
        let mut stale = self.stale.lock().expect("no holder of this lock panics");
        stale.all |= taken.all;
        stale.newest = stale.newest.or(taken.newest);
        for job in taken.jobs.into_keys() {
            stale.jobs.insert(job, None);
        }
    }
}

impl Store {
    /// Returns every job that has not reached its end on chain and can still do so here, oldest first: one whose deadline passed
    /// long ago is nobody's work.
    pub async fn live_jobs(&self) -> Result<Vec<Arc<Job>>> {
        let mut folded = self.live.folded.lock().await;
        self.see_other_writers(&mut folded).await?;
        let stale = self.live.take();
        if let Err(error) = self.fold_again(&mut folded, &stale).await {
            self.live.give_back(stale);
            return Err(error);
        }
        Ok(folded.jobs.values().cloned().collect())
    }

    async fn see_other_writers(&self, folded: &mut Folded) -> Result<()> {
        if folded.version.is_some_and(|(_, asked)| asked.elapsed() < LOOK_AGAIN) {
            return Ok(());
        }
        // Of the writer's one connection: its own commits do not count.
        let version = match self.live.reads_only {
            true => folded.version.map_or(0, |(before, _)| before + 1),
            false => sqlx::query_scalar("PRAGMA data_version").fetch_one(&self.writer).await?,
        };
        if folded.version.is_some_and(|(before, _)| before != version) {
            self.live.touch_all();
        }
        folded.version = Some((version, Instant::now()));
        Ok(())
    }

    async fn fold_again(&self, folded: &mut Folded, stale: &Stale) -> Result<()> {
        let since = self.time().await?.0.saturating_sub(EXPIRED_SECONDS);
        let mut reader = self.readers.acquire().await?;
        let mut wanted: BTreeSet<JobId>;
        if stale.all {
            wanted = workable(&mut reader, UnixSeconds(since)).await?.into_iter().collect();
            folded.jobs.retain(|id, _| wanted.contains(id));
        } else {
            wanted = folded.drawn(stale.newest);
            for (id, news) in &stale.jobs {
                if wanted.contains(id) || !folded.follow(*id, news.as_deref()) {
                    wanted.insert(*id);
                }
            }
            wanted.append(&mut folded.drawn(stale.newest));
            if stale.newest.is_some() || !stale.jobs.is_empty() {
                folded.jobs.retain(|_, job| is_live(job, since));
            }
            if wanted.is_empty() {
                return Ok(());
            }
        }
        // A job whose logs contradict each other has no row.
        let ids: Vec<i64> = sqlx::query_scalar("SELECT id FROM job WHERE id IN (SELECT value FROM json_each(?))")
            .bind(serde_json::to_string(&wanted)?)
            .fetch_all(&mut *reader)
            .await?;
        let ids: Vec<JobId> = ids.into_iter().map(|id| JobId(id as u64)).collect();
        let mut fresh: BTreeMap<JobId, Arc<Job>> = BTreeMap::new();
        for ids in ids.chunks(500) {
            for job in self.fold(&mut reader, ids).await? {
                fresh.insert(job.id, Arc::new(job));
            }
        }
        for id in wanted {
            match fresh.remove(&id).filter(|job| is_live(job, since)) {
                Some(job) => folded.jobs.insert(id, job),
                None => folded.jobs.remove(&id),
            };
        }
        Ok(())
    }
}

/// As [`workable`] has it.
fn is_live(job: &Job, since: u64) -> bool {
    match job.state {
        State::Released { .. } | State::Refunded { .. } => false,
        State::Completed { .. } | State::Disputed { .. } => true,
        _ => job.terms.deadline.0 >= since,
    }
}

/// Returns the jobs that have not ended on chain, but those whose deadline passed before `since` without a result.
async fn workable(connection: &mut SqliteConnection, since: UnixSeconds) -> Result<Vec<JobId>> {
    let ids: Vec<i64> = sqlx::query_scalar(
        "SELECT id FROM job WHERE state IN ('completed', 'disputed')
         OR (state NOT IN ('released', 'refunded') AND deadline >= ?) ORDER BY id",
    )
    .bind(since.0.min(i64::MAX as u64) as i64)
    .fetch_all(connection)
    .await?;
    Ok(ids.into_iter().map(|id| JobId(id as u64)).collect())
}
