//! What decisions need to know of the contracts and of our own past, read beforehand: deciding on a job asks nobody.
//!
//! Never decides and writes nothing. A [`Survey`] only ever says what was so some seconds ago, and how many.

use std::collections::BTreeSet;
use std::sync::{Arc, RwLock};
use std::time::{Duration, Instant};

use anyhow::Result;

use super::{Pass, Task};
use crate::chain::Chain;
use crate::http::Health;
use crate::market::job::Job;
use crate::market::policy::{Circumstances, Outlook, Turn};
use crate::market::types::{Address, BlockRef, UnixSeconds};
use crate::store::{Scene, Store};

/// The name under which the surveyor reports its health.
pub const PART: &str = "survey";

/// Claims that are remembered as won or lost.
const RACES: u32 = 200;
/// Between two looks at most, though no block came.
const AGE_MAX: Duration = Duration::from_secs(5);
/// Between two looks at least, though blocks come.
const AGE_MIN: Duration = Duration::from_millis(500);

/// What was read last. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Survey(Arc<RwLock<Option<Known>>>);

#[derive(Debug, Clone, Copy)]
struct Known {
    at: Instant,
    outlook: Outlook,
}

impl Survey {
    /// Returns what was read last and how long ago, or `None` before the first time. Reads memory only.
    pub fn outlook(&self) -> Option<Outlook> {
        let known = *self.0.read().expect("no holder of this lock panics");
        known.map(|known| Outlook { age_seconds: known.at.elapsed().as_secs(), ..known.outlook })
    }

    fn set(&self, outlook: Outlook, at: Instant) {
        *self.0.write().expect("no holder of this lock panics") = Some(Known { at, outlook });
    }
}

/// The task that keeps a [`Survey`] fresh.
pub struct Surveyor {
    chain: Chain,
    store: Store,
    health: Health,
    survey: Survey,
    us: Address,
    /// The newest block at the last look, and when that was.
    last: Option<(Option<BlockRef>, Instant)>,
}

impl Surveyor {
    /// Returns the task, which has not looked yet.
    pub fn new(chain: Chain, store: Store, health: Health, survey: Survey, us: Address) -> Self {
        Self { chain, store, health, survey, us, last: None }
    }
}

impl Task for Surveyor {
    const NAME: &'static str = "survey";

    /// Looks again at each new block, and every few seconds without one.
    ///
    /// # Errors
    /// If the store or the endpoint fails: what was known before grows old.
    async fn pass(&mut self) -> Result<Pass> {
        let head = self.store.cursor().await?;
        let due =
            self.last.is_none_or(|(seen, at)| at.elapsed() >= AGE_MAX || (seen != head && at.elapsed() >= AGE_MIN));
        if due {
            // From before the first question: what is told is at least as new.
            let at = Instant::now();
            let outlook = look(&self.chain, &self.store, self.us).await?;
            self.survey.set(outlook, at);
            self.last = Some((head, at));
        }
        self.health.well(PART);
        Ok(Pass::Idle)
    }
}

/// Everything that decisions on some jobs look at, as it was at one moment, and what was decided since.
pub struct Sight {
    us: Address,
    now: UnixSeconds,
    outlook: Option<Outlook>,
    scene: Scene,
}

impl Sight {
    /// Returns what the database has for decisions of `us` on `jobs` at block time `now`, beside an outlook. Asks no endpoint.
    ///
    /// # Errors
    /// If the store fails.
    pub async fn of(
        store: &Store,
        us: Address,
        now: UnixSeconds,
        mut outlook: Option<Outlook>,
        jobs: &[&Job],
    ) -> Result<Self> {
        let since = outlook.map_or(u64::MAX, |outlook| outlook.block);
        let blocks: BTreeSet<u64> = jobs.iter().flat_map(|job| [job.posted.number, job.rests_on.number]).collect();
        let models: BTreeSet<&str> = jobs.iter().map(|job| job.terms.model.as_str()).collect();
        let scene = store.scene(us, since, now, models, blocks).await?;
        if let (Some(known), Some(score)) = (&mut outlook, scene.score) {
            known.standing.reputation = score;
        }
        Ok(Self { us, now, outlook, scene })
    }

    /// Returns what the rules look at when `job`, one of those it was made for, is decided on.
    pub fn circumstances(&self, job: &Job, input_held: bool) -> Circumstances {
        let Self { us, now, outlook, scene: Scene { changed, hosts, loads, grounds, .. } } = self;
        let (now, changed, outlook) = (*now, *changed, *outlook);
        let grounds = [grounds[&job.posted.number], grounds[&job.rests_on.number]];
        let since = grounds[1].time.unwrap_or(now);
        let turn = Turn {
            before: Turn::before(*us, hosts, job.id, job.rests_on),
            waited_seconds: now.0.saturating_sub(since.0),
        };
        Circumstances { now, input_held, grounds, load: loads[&job.terms.model], changed, turn, outlook }
    }

    /// Notes that `job` was chosen: what is decided after that must reckon with it.
    pub fn choose(&mut self, job: &Job) {
        for (model, load) in &mut self.scene.loads {
            load.pending_claims += 1;
            load.chosen_last_hour += 1;
            if *model == job.terms.model {
                load.slots_taken += 1;
                load.queued_tokens += u64::from(job.terms.max_tokens);
            }
        }
    }
}

/// Asks the contracts, the endpoint and the store for all that decisions need to know.
///
/// # Errors
/// If one of them fails.
pub async fn look(chain: &Chain, store: &Store, us: Address) -> Result<Outlook> {
    // One endpoint, and its head first: what it tells after that is of that block or a later one.
    let chain = chain.steady();
    let block = chain.head().await?.block.number;
    let (standing, fee_bps, job_stake, gas_price) =
        tokio::try_join!(chain.standing(us), chain.fee_bps(), chain.job_stake(), chain.gas_price())?;
    let races = store.races(us, RACES).await?;
    Ok(Outlook { standing, fee_bps, job_stake, gas_price, age_seconds: 0, block, races })
}
