//! The jobs that have not ended, folded once, and again only where something changed: every task asks for them at every turn.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::Result;
use sqlx::SqliteConnection;

use super::Store;
use crate::market::event::Header;
use crate::market::job::{Fact, Job, State, Work};
use crate::market::types::{BlockRef, JobId, UnixSeconds};

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
    kept: Arc<Mutex<Kept>>,
}

/// What the chain alone tells of jobs that have not ended, folded up to the newest block stored, for the one who writes their rows.
#[derive(Debug, Default)]
pub(super) struct Kept {
    pub(super) jobs: HashMap<JobId, Job>,
    /// `PRAGMA data_version` of the writer's connection.
    version: i64,
}

#[derive(Debug)]
struct Stale {
    all: bool,
    /// With what was told of each since it was folded, where that is all that changed: then nothing need be read.
    jobs: BTreeMap<JobId, Option<Vec<Fact>>>,
    /// The first blocks of what was added, each of which draws the positions of the commitments in the one before.
    firsts: BTreeMap<u64, BlockRef>,
    /// The newest block, where blocks were added.
    newest: Option<Header>,
    /// `PRAGMA data_version` of the writer's connection as it was when they were, and when that was.
    version: Option<(i64, Instant)>,
}

impl Default for Stale {
    fn default() -> Self {
        Self { all: true, ..Self::none() }
    }
}

impl Stale {
    fn none() -> Self {
        Self { all: false, jobs: BTreeMap::new(), firsts: BTreeMap::new(), newest: None, version: None }
    }
}

#[derive(Debug, Default)]
struct Folded {
    jobs: BTreeMap<JobId, Arc<Job>>,
    /// The time of the newest block, 0 before the first.
    now: UnixSeconds,
    /// `PRAGMA data_version` of the writer's connection, and when it was asked for.
    version: Option<(i64, Instant)>,
}

impl Folded {
    /// Has jobs follow what was told of them since they were folded. Returns those with which that does not do, of which all must be
    /// read, and those that are new, of which all was told, unless something was done for them before.
    fn follow<'a>(&mut self, stale: &'a Stale) -> (BTreeSet<JobId>, Vec<(JobId, &'a [Fact])>) {
        let (mut unread, mut new) = (BTreeSet::new(), Vec::new());
        for job in self.jobs.values_mut().filter(|job| job.beacon.is_none()) {
            let Some(first) = stale.firsts.get(&(job.rests_on.number + 1)) else { continue };
            if let State::Committed { .. } = job.state {
                let _ = Arc::make_mut(job).follow(&[Fact::Beacon(*first)]);
            } else if let State::Completed { .. } | State::Disputed { .. } = job.state {
                // In the block of its commitment, perhaps.
                unread.insert(job.id);
            }
        }
        for (id, news) in &stale.jobs {
            let follows = match (news, self.jobs.get_mut(id)) {
                (Some(news), Some(job)) => Arc::make_mut(job).follow(news).is_ok(),
                (Some(news), None) if news.iter().any(Fact::posts) => {
                    new.push((*id, &news[..]));
                    true
                }
                _ => false,
            };
            if !follows {
                unread.insert(*id);
            }
        }
        if let Some(newest) = stale.newest {
            let drawn = |job: &&Arc<Job>| {
                let waits = matches!(job.state, State::Committed { .. }) && job.beacon.is_none();
                waits && job.rests_on.number < newest.block.number
            };
            unread.extend(self.jobs.values().filter(drawn).map(|job| job.id));
            self.now = newest.time;
        }
        (unread, new)
    }
}

/// Puts in the block that draws the positions of a commitment in the block before.
fn draw(facts: &mut Vec<Fact>, block: BlockRef) {
    for place in (0..facts.len()).rev() {
        if facts[place].drawn_by() == Some(block.number) && !matches!(facts.get(place + 1), Some(Fact::Beacon(_))) {
            facts.insert(place + 1, Fact::Beacon(block));
        }
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

    /// Notes what was finished for jobs, after all that was told before.
    pub(super) fn tell<'a>(&self, news: impl ExactSizeIterator<Item = (JobId, &'a Work)>) {
        let mut stale = self.stale.lock().expect("no holder of this lock panics");
        stale.tell(news.map(|(job, work)| (job, Fact::Work(work.clone()))));
    }

    /// Notes that blocks were added, and what they tell of jobs, after all that was told before; `version` is `PRAGMA data_version` of
    /// the writer's connection at the time.
    pub(super) fn extend(&self, headers: &[Header], told: Vec<(JobId, Fact)>, version: i64) {
        let (Some(first), Some(last)) = (headers.first(), headers.last()) else { return };
        let mut stale = self.stale.lock().expect("no holder of this lock panics");
        (stale.newest, stale.version) = (Some(*last), Some((version, Instant::now())));
        if stale.all {
            return;
        }
        stale.jobs.values_mut().flatten().for_each(|facts| draw(facts, first.block));
        stale.firsts.insert(first.block.number, first.block);
        let with_beacon = told.into_iter().flat_map(|(job, fact)| {
            let number = fact.drawn_by();
            let by = number.and_then(|number| headers.binary_search_by_key(&number, |header| header.block.number).ok());
            let beacon = by.map(|place| (job, Fact::Beacon(headers[place].block)));
            std::iter::once((job, fact)).chain(beacon)
        });
        let told: Vec<(JobId, Fact)> = with_beacon.collect();
        stale.tell(told.into_iter());
    }

    /// Notes that any job may have changed.
    pub(super) fn touch_all(&self) {
        *self.stale.lock().expect("no holder of this lock panics") = Stale::default();
        *self.kept.lock().expect("no holder of this lock panics") = Kept::default();
    }

    /// Takes what was kept of jobs, to be kept again once what follows from it is stored: nothing, where another process changed the
    /// file meanwhile, as `version` tells.
    pub(super) fn kept(&self, version: i64) -> Kept {
        let kept = std::mem::take(&mut *self.kept.lock().expect("no holder of this lock panics"));
        if kept.version == version { kept } else { Kept { version, ..Kept::default() } }
    }

    pub(super) fn keep(&self, kept: Kept) {
        *self.kept.lock().expect("no holder of this lock panics") = kept;
    }

    fn take(&self) -> Stale {
        std::mem::replace(&mut *self.stale.lock().expect("no holder of this lock panics"), Stale::none())
    }

    fn give_back(&self, taken: Stale) {
        let mut stale = self.stale.lock().expect("no holder of this lock panics");
        stale.all |= taken.all;
        stale.newest = stale.newest.or(taken.newest);
        stale.firsts.extend(taken.firsts);
        for job in taken.jobs.into_keys() {
            stale.jobs.insert(job, None);
        }
    }
}

impl Stale {
    fn tell(&mut self, news: impl ExactSizeIterator<Item = (JobId, Fact)>) {
        if self.jobs.len().max(self.firsts.len()) + news.len() > TOLD_MAX {
            // Nobody asked for long: what is live then is read at once.
            (self.all, self.jobs, self.firsts) = (true, BTreeMap::new(), BTreeMap::new());
        }
        if self.all {
            return;
        }
        for (job, fact) in news {
            if let Some(told) = self.jobs.entry(job).or_insert_with(|| Some(Vec::new())) {
                told.push(fact);
            }
        }
    }
}

impl Store {
    /// Returns every job that has not reached its end on chain and can still do so here, oldest first: one whose deadline passed
    /// long ago is nobody's work.
    pub async fn live_jobs(&self) -> Result<Vec<Arc<Job>>> {
        Ok(self.live_now().await?.1)
    }

    /// As [`Store::live_jobs`], with the time of the newest block.
    pub async fn live_now(&self) -> Result<(UnixSeconds, Vec<Arc<Job>>)> {
        let mut folded = self.live.folded.lock().await;
        self.see_other_writers(&mut folded).await?;
        let stale = self.live.take();
        if let Err(error) = self.fold_again(&mut folded, &stale).await {
            self.live.give_back(stale);
            return Err(error);
        }
        Ok((folded.now, folded.jobs.values().cloned().collect()))
    }

    async fn see_other_writers(&self, folded: &mut Folded) -> Result<()> {
        if folded.version.is_some_and(|(_, asked)| asked.elapsed() < LOOK_AGAIN) {
            return Ok(());
        }
        // Of the writer's one connection: its own commits do not count.
        let seen = self.live.stale.lock().expect("no holder of this lock panics").version.take();
        let (version, asked) = match seen.filter(|(_, asked)| asked.elapsed() < LOOK_AGAIN) {
            _ if self.live.reads_only => (folded.version.map_or(0, |(before, _)| before + 1), Instant::now()),
            Some(seen) => seen,
            None => (sqlx::query_scalar("PRAGMA data_version").fetch_one(&self.writer).await?, Instant::now()),
        };
        if folded.version.is_some_and(|(before, _)| before != version) {
            self.live.touch_all();
        }
        folded.version = Some((version, asked));
        Ok(())
    }

    async fn fold_again(&self, folded: &mut Folded, stale: &Stale) -> Result<()> {
        if stale.all {
            folded.now = self.time().await?;
        } else if stale.newest.is_none() && stale.jobs.is_empty() {
            return Ok(());
        }
        let (mut wanted, new) = if stale.all { Default::default() } else { folded.follow(stale) };
        let since = folded.now.0.saturating_sub(EXPIRED_SECONDS);
        let mut reader = self.readers.acquire().await?;
        if stale.all {
            wanted = workable(&mut reader, UnixSeconds(since)).await?.into_iter().collect();
            folded.jobs.retain(|id, _| wanted.contains(id));
        } else {
            let known = known_here(&mut reader, &new).await?;
            for (id, news) in new {
                match Job::fold(id, news) {
                    Ok(Some(job)) if !known.contains(&id) => _ = folded.jobs.insert(id, Arc::new(job)),
                    _ => _ = wanted.insert(id),
                }
            }
            folded.jobs.retain(|_, job| is_live(job, since));
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

/// Returns those of `jobs` of which more than the chain tells is stored: their postings came before, until a reorg took them.
async fn known_here(connection: &mut SqliteConnection, jobs: &[(JobId, &[Fact])]) -> Result<BTreeSet<JobId>> {
    if jobs.is_empty() {
        return Ok(BTreeSet::new());
    }
    let ids: Vec<JobId> = jobs.iter().map(|(id, _)| *id).collect();
    let known: Vec<i64> = sqlx::query_scalar(
        "SELECT value FROM json_each(?) WHERE value IN (SELECT job FROM doubt)
         OR EXISTS (SELECT 1 FROM work WHERE work.job = value)",
    )
    .bind(serde_json::to_string(&ids)?)
    .fetch_all(connection)
    .await?;
    Ok(known.into_iter().map(|id| JobId(id as u64)).collect())
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
         OR (state IN ('posted', 'claimed', 'committed') AND deadline >= ?) ORDER BY id",
    )
    .bind(since.0.min(i64::MAX as u64) as i64)
    .fetch_all(connection)
    .await?;
    Ok(ids.into_iter().map(|id| JobId(id as u64)).collect())
}
