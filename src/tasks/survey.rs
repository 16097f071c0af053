//! What decisions need to know of the contracts and of our own past, read beforehand: deciding on a job asks nobody.
//!
//! Never decides and writes nothing. A [`Survey`] only ever says what was so some seconds ago, and how many.

use std::collections::HashMap;
use std::sync::{Arc, RwLock};
use std::time::{Duration, Instant};

use anyhow::Result;

use super::{Pass, Task};
use crate::chain::Chain;
use crate::http::Health;
use crate::market::gate::Ground;
use crate::market::job::Job;
use crate::market::policy::{Circumstances, Load, Outlook, Turn};
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

    /// Returns a look at everything as it is now, for decisions of `us`. Asks no endpoint.
    ///
    /// # Errors
    /// If the store fails.
    pub async fn sight(&self, store: &Store, us: Address) -> Result<Sight> {
        Sight::of(store, us, self.outlook()).await
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

/// Everything that decisions look at, as it was at one moment, and what was decided since.
pub struct Sight {
    store: Store,
    us: Address,
    now: UnixSeconds,
    outlook: Option<Outlook>,
    changed: Option<u64>,
    loads: HashMap<String, Load>,
    grounds: HashMap<u64, Ground>,
    /// Every registered host.
    hosts: Vec<Address>,
    /// Jobs chosen since.
    chosen: u32,
}

impl Sight {
    /// Returns what the database has now, beside an outlook.
    ///
    /// # Errors
    /// If the store fails.
    pub async fn of(store: &Store, us: Address, mut outlook: Option<Outlook>) -> Result<Self> {
        let Scene { now, changed, score, hosts } =
            store.scene(us, outlook.map_or(u64::MAX, |outlook| outlook.block)).await?;
        if let (Some(known), Some(score)) = (&mut outlook, score) {
            known.standing.reputation = score;
        }
        let (loads, grounds) = (HashMap::new(), HashMap::new());
        Ok(Self { store: store.clone(), us, now, outlook, changed, loads, grounds, hosts, chosen: 0 })
    }

    /// Returns what the rules look at when `job` is decided on.
    ///
    /// # Errors
    /// If the store fails.
    pub async fn circumstances(&mut self, job: &Job, input_held: bool) -> Result<Circumstances> {
        let grounds = [self.ground(job.posted.number).await?, self.ground(job.rests_on.number).await?];
        let load = match self.loads.get(&job.terms.model) {
            Some(load) => *load,
            None => {
                let mut load = self.store.load(self.us, &job.terms.model, self.now).await?;
                // What was chosen since and is not stored yet.
                load.pending_claims += self.chosen;
                load.chosen_last_hour += self.chosen;
                *self.loads.entry(job.terms.model.clone()).or_insert(load)
            }
        };
        let since = grounds[1].time.unwrap_or(self.now);
        let turn = Turn {
            before: Turn::before(self.us, &self.hosts, job.id, job.rests_on),
            waited_seconds: self.now.0.saturating_sub(since.0),
        };
        let Self { now, outlook, changed, .. } = *self;
        Ok(Circumstances { now, input_held, grounds, load, changed, turn, outlook })
    }

    /// Notes that `job` was chosen: what is decided after that must reckon with it.
    pub fn choose(&mut self, job: &Job) {
        self.chosen += 1;
        for (model, load) in &mut self.loads {
            load.pending_claims += 1;
            load.chosen_last_hour += 1;
            if *model == job.terms.model {
                load.slots_taken += 1;
                load.queued_tokens += u64::from(job.terms.max_tokens);
            }
        }
    }

    async fn ground(&mut self, number: u64) -> Result<Ground> {
        if let Some(ground) = self.grounds.get(&number) {
            return Ok(*ground);
        }
        let ground = self.store.ground(number).await?;
        Ok(*self.grounds.entry(number).or_insert(ground))
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
