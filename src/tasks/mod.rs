//! What the node does, each task one pass over the store: find a duty of my kind, lease it, do it, record the fact.
//!
//! Tasks know the edges and the market, never each other: they meet in the store. A pass takes no input, may be cut off
//! anywhere and is run again. What bypasses the store nobody misses after a restart: streamed tokens ([`Live`]), and what one task
//! looked up for another a moment ago ([`Beat`], [`NonceRead`], [`Survey`], [`Guard`]).

pub mod breaker;
pub mod desk;
pub mod drive;
pub mod gossip;
pub mod indexer;
pub mod prepare;
pub mod prove;
pub mod scheduler;
pub mod settle;
pub mod submitter;
pub mod survey;
pub mod sweep;
pub mod watchdog;
pub mod worker;

/// What decisions know beforehand: one task keeps it fresh, another decides.
pub use settle::Beat;
pub use survey::{Sight, Survey};

use std::collections::HashMap;
use std::ops::Deref;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, RwLock};
use std::time::{Duration, Instant};

use anyhow::Context;
use tokio::sync::watch;

use crate::chain::{Chain, Signer};
use crate::market::job::{Duty, Job, Next, Work};
use crate::market::receipt::{Receipt, SignedReceipt};
use crate::market::types::{Address, JobId};
use crate::store::{Owed, Store};

/// What a pass says about the next one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pass {
    /// There was work: look again at once.
    Again,
    /// Nothing to do until the store changes or time passes.
    Idle,
}

/// A kind of work the node repeats.
pub trait Task: Send + 'static {
    /// Its name in logs and metrics.
    const NAME: &'static str;
    /// Whether each pass takes a further piece of work: such a task begins none when the node is to stop.
    const TAKES_WORK: bool = false;
    /// Whether it stands between a job's log and its claim: the others leave the machine to it for a moment.
    const HURRIES: bool = false;

    /// Takes one turn: does what is owed now, if anything. Safe to cut off anywhere and to run again.
    fn pass(&mut self) -> impl Future<Output = anyhow::Result<Pass>> + Send;

    /// Returns how long a pass may take: one that takes longer hangs, and the node is not ready until it ends.
    fn pass_max(&self) -> Duration {
        Duration::from_secs(120)
    }
}

/// How long a pass may take that asks an endpoint for much, each answer of which may come late.
const LONG_PASS_MAX: Duration = Duration::from_secs(600);

/// The next nonce of the host's account as the newest block has it, and when it was read; `None` while that is not known.
pub type NonceRead = Option<(u64, Instant)>;

/// The name under which the indexer reports its health. It is well only while it is at the head of the chain.
pub const INDEXER: &str = "indexer";
/// Attempts after which a duty that keeps failing is given up and the job abandoned.
const ATTEMPTS_MAX: u32 = 3;
/// How long a lease lasts, in seconds: longer than any duty may take. A restart frees them all.
const LEASE_SECONDS: u64 = 3600;
/// Nothing is claimed on what the breaker saw longer ago.
const GUARD_AGE_MAX: Duration = Duration::from_secs(60);

/// A token and the text it adds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    pub token: u32,
    pub text: String,
}

/// Tokens of running inferences, for those who stream them. Bounded by the jobs' own token limits.
#[derive(Debug, Clone)]
pub struct Live {
    jobs: Arc<Mutex<HashMap<JobId, watch::Receiver<Vec<Piece>>>>>,
    opened: watch::Sender<()>,
}

impl Default for Live {
    fn default() -> Self {
        Self { jobs: Arc::default(), opened: watch::Sender::new(()) }
    }
}

impl Live {
    /// Opens a job's stream; it ends when the returned sender is dropped.
    fn open(&self, job: JobId) -> watch::Sender<Vec<Piece>> {
        let (sender, receiver) = watch::channel(Vec::new());
        let mut jobs = self.jobs.lock().expect("no holder of this lock panics");
        jobs.retain(|_, stream| stream.has_changed().is_ok());
        jobs.insert(job, receiver);
        self.opened.send_replace(());
        sender
    }

    /// Returns the running stream of a job, or `None` when nothing runs for it.
    fn get(&self, job: JobId) -> Option<watch::Receiver<Vec<Piece>>> {
        self.jobs.lock().expect("no holder of this lock panics").get(&job).cloned()
    }

    /// Returns a receiver that is woken whenever a stream opens.
    fn openings(&self) -> watch::Receiver<()> {
        self.opened.subscribe()
    }
}

/// Whether this host may claim now, for those who claim. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Guard {
    look: Arc<RwLock<Option<Look>>>,
    closed: Arc<AtomicBool>,
}

/// What was found, and when.
#[derive(Debug)]
struct Look {
    at: Instant,
    refusal: Option<String>,
}

impl Guard {
    /// Returns why nothing is to be claimed now, or `None` when it may be. Asks nobody.
    pub fn refusal(&self) -> Option<String> {
        if self.closed.load(Ordering::Relaxed) {
            return Some("the node is stopping".into());
        }
        match &*self.look.read().expect("no holder of this lock panics") {
            None => Some("the breaker has not looked yet".into()),
            Some(look) if look.at.elapsed() > GUARD_AGE_MAX => {
                Some(format!("the breaker has not looked for {} s", look.at.elapsed().as_secs()))
            }
            Some(look) => look.refusal.clone(),
        }
    }

    /// Refuses from now on, whatever is found: the node is to stop.
    pub fn close(&self) {
        self.closed.store(true, Ordering::Relaxed);
    }

    /// Notes what was found now. Returns whether it is another refusal, or none any more.
    fn set(&self, refusal: Option<String>) -> bool {
        let mut look = self.look.write().expect("no holder of this lock panics");
        let changed = look.as_ref().is_none_or(|look| look.refusal.is_some() != refusal.is_some());
        *look = Some(Look { at: Instant::now(), refusal });
        changed
    }
}

/// A job under lease for a duty. Dropped without [`Held::conclude`] it gives the lease back: for a panic as a failure, so that a job
/// that causes one is given up in the end, and for a pass that was cut off as if nothing had been tried.
struct Held {
    store: Store,
    job: Job,
    duty: Duty,
    open: bool,
}

impl Deref for Held {
    type Target = Job;

    fn deref(&self) -> &Job {
        &self.job
    }
}

impl Held {
    fn new(store: &Store, job: Job, duty: Duty) -> Self {
        Self { store: store.clone(), job, duty, open: true }
    }

    fn owed(&self) -> Owed {
        Owed::to(&self.job, self.duty)
    }

    /// Ends the lease with a back-off, however often that was: nothing is given up.
    async fn try_later(mut self, error: anyhow::Error) -> anyhow::Result<()> {
        self.open = false;
        let reason = format!("{error:#}");
        tracing::debug!(job = %self.job.id, duty = self.duty.name(), reason, "trying again later");
        self.store.release(self.owed(), Some(&reason)).await.map(drop)
    }

    /// Ends the lease as the work ended, as [`conclude`].
    async fn conclude(mut self, done: anyhow::Result<()>) -> anyhow::Result<Pass> {
        self.open = false;
        conclude(&self.store, &self.job, self.duty, done).await
    }

    /// Ends the lease as if it had not been taken.
    async fn put_back(mut self) -> anyhow::Result<()> {
        self.open = false;
        self.store.put_back(self.owed()).await
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        // Without a runtime the process ends, and the next one frees all leases.
        let Some(runtime) = self.open.then(|| tokio::runtime::Handle::try_current().ok()).flatten() else { return };
        let (store, job, duty, panicked) = (self.store.clone(), self.job.clone(), self.duty, std::thread::panicking());
        runtime.spawn(async move {
            let given_back = match panicked {
                true => conclude(&store, &job, duty, Err(anyhow::anyhow!("a panic: see the log"))).await.map(drop),
                false => store.put_back(Owed::to(&job, duty)).await,
            };
            if let Err(error) = given_back {
                tracing::debug!(job = %job.id, error = format!("{error:#}"), "a lease stays until the next start");
            }
        });
    }
}

/// Leases the oldest live job to which `us` owes `duty`.
async fn take(store: &Store, us: Address, duty: Duty) -> anyhow::Result<Option<Held>> {
    let (now, jobs) = store.live_now().await?;
    let owes = |job: &&Arc<Job>| job.next(us, now) == Next::Do(duty);
    let owed: Vec<Owed> = jobs.iter().filter(owes).map(|job| Owed::to(job, duty)).collect();
    if owed.is_empty() {
        return Ok(None);
    }
    let held = store.leased(duty).await?;
    for owed in owed {
        let is_held = held.get(&owed.job).is_some_and(|of| of.is_none_or(|deal| deal == owed.deal));
        if is_held || !store.lease(owed, LEASE_SECONDS).await? {
            continue;
        }
        // Another worker may have done it after the jobs were read, and given its lease back.
        match store.job(owed.job).await? {
            Some(job) if Owed::to(&job, duty) == owed && job.next(us, now) == Next::Do(duty) => {
                return Ok(Some(Held::new(store, job, duty)));
            }
            _ => _ = store.release(owed, None).await?,
        }
    }
    Ok(None)
}

/// Returns how many transactions our jobs owe now that never were on the wire: queued and signed ones, and those that a finished
/// inference or proof asks for and that nobody queued yet.
///
/// # Errors
/// If the store fails.
pub async fn unsent(store: &Store, us: Address) -> anyhow::Result<usize> {
    let (now, jobs) = store.live_now().await?;
    let owed: Vec<(JobId, Duty)> = jobs
        .iter()
        .filter_map(|job| match job.next(us, now) {
            Next::Do(duty @ (Duty::Commit | Duty::Complete)) => Some((job.id, duty)),
            _ => None,
        })
        .collect();
    let ids: Vec<JobId> = owed.iter().map(|(job, _)| *job).collect();
    let intents = store.intents_of(&ids).await?;
    let none = |(job, duty): &&(JobId, Duty)| {
        let states = intents.get(&(*job, duty.name().to_owned()));
        states.is_none_or(|states| states.iter().all(|state| state.came_to_nothing()))
    };
    Ok(owed.iter().filter(none).count() + store.unsent_intents(us).await?)
}

/// Ends a lease as its work ended. After [`ATTEMPTS_MAX`] failures the job is abandoned with the reason.
async fn conclude(store: &Store, job: &Job, duty: Duty, done: anyhow::Result<()>) -> anyhow::Result<Pass> {
    let Err(error) = done else {
        store.release(Owed::to(job, duty), None).await?;
        return Ok(Pass::Again);
    };
    let reason = format!("{error:#}");
    let attempts = store.release(Owed::to(job, duty), Some(&reason)).await?;
    tracing::warn!(job = %job.id, duty = duty.name(), attempts, error = reason, "a duty failed");
    if attempts >= ATTEMPTS_MAX {
        abandon(store, job, format!("{} failed {attempts} times: {reason}", duty.name())).await?;
    }
    Ok(Pass::Idle)
}

/// Records that we stop working on a job, frees its slot and tells the operator.
async fn abandon(store: &Store, job: &Job, reason: String) -> anyhow::Result<()> {
    tracing::error!(job = %job.id, reason, "abandoned job");
    let at = store.time().await?;
    store.record(job.id, &Work::Abandoned { at, reason, deal: Some(job.terms.deal()) }).await?;
    store.free(&[job.id]).await
}

/// Returns our signed receipt of a job we inferred.
///
/// # Errors
/// If nothing was inferred for it here.
async fn sign_receipt(chain: &Chain, signer: &Signer, job: &Job) -> anyhow::Result<SignedReceipt> {
    let inferred = job.inferred.as_ref().with_context(|| format!("job {} has no result here", job.id))?;
    let marketplace = chain.contracts().job_marketplace;
    let receipt = Receipt::new(chain.id(), marketplace, signer.address(), job.id, &job.terms, inferred);
    let signature = signer.sign_hash(receipt.signing_hash()).await?;
    Ok(SignedReceipt { receipt, signature })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::market::coverage::Coverage;
    use crate::market::event::{Commitment, Event, Header, Level, Range, RawLog, Terms};
    use crate::market::types::{B256, BlockRef, Bytes, Cid, U256, UnixSeconds};
    use crate::store::Entry;

    const US: Address = Address::repeat_byte(0xaa);
    const JOBS: u8 = 40;
    const WORKERS: usize = 8;
    const WAIT_MAX: Duration = Duration::from_secs(60);

    /// Jobs that we claimed; a log's first byte says which event, the second of which job.
    async fn claimed(store: &Store) {
        let block = BlockRef { number: 1, hash: B256::repeat_byte(1) };
        let log = |index: u64, says: [u8; 2]| RawLog {
            block,
            index,
            tx: B256::ZERO,
            address: Address::ZERO,
            topics: Vec::new(),
            data: Bytes::from(says),
        };
        let logs =
            (0..JOBS).flat_map(|job| [[0, job + 1], [1, job + 1]]).zip(0..).map(|(says, index)| log(index, says));
        let header = Header { block, parent: B256::ZERO, time: UnixSeconds(10) };
        let coverage = vec![Coverage::of_block(1, Level::Complete, None)];
        store.extend(&Range { headers: vec![header], coverage, logs: logs.collect() }).await.expect("stored");
    }

    fn read(log: &RawLog) -> anyhow::Result<Event> {
        let job = JobId(log.data[1].into());
        let terms = Terms {
            renter: Address::ZERO,
            model: "m".into(),
            input: "i".into(),
            max_tokens: 8,
            temperature_milli: 0,
            seed: 1,
            payment: U256::from(1),
            token: Address::ZERO,
            deadline: UnixSeconds(u64::MAX),
            requires_proof: true,
            min_gpu_memory: 0,
            min_reputation: 0,
            reserved_for: None,
            region: None,
        };
        Ok(if log.data[0] == 0 { Event::JobTerms { job, terms } } else { Event::JobClaimed { job, host: US } })
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn many_workers_do_each_job_once() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let file = folder.path().join("node.sqlite");
        let store = Store::open(&file, 1, Address::ZERO, Arc::new(read)).await.expect("opens");
        claimed(&store).await;
        let inferred = Work::Inferred {
            at: UnixSeconds(0),
            commitment: Commitment { root: B256::ZERO, tokens: 1, result_hash: B256::ZERO, tokens_digest: B256::ZERO },
            output: Cid::of(b"o"),
            transcript: Cid::of(b"t"),
            order: None,
        };
        let worker = async || {
            while let Some(job) = take(&store, US, Duty::Infer).await.expect("taken") {
                store.record(job.id, &inferred).await.expect("recorded");
                job.conclude(Ok(())).await.expect("concluded");
            }
        };
        futures::future::join_all((0..WORKERS).map(|_| worker())).await;
        for job in 1..=JOBS {
            let entries = store.timeline(JobId(job.into())).await.expect("a timeline").entries;
            let done = entries.iter().filter(|entry| matches!(entry, Entry::Work { .. })).count();
            assert_eq!(done, 1, "job {job}");
        }
    }

    #[tokio::test]
    async fn a_worker_that_dies_loses_its_lease_and_nothing_else() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let file = folder.path().join("node.sqlite");
        let store = Store::open(&file, 1, Address::ZERO, Arc::new(read)).await.expect("opens");
        claimed(&store).await;
        let taken = async || take(&store, US, Duty::Infer).await.expect("taken").expect("one is owed");
        let job = taken().await.id;
        let free = async || {
            while store.leased(Duty::Infer).await.expect("read").contains_key(&job) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(WAIT_MAX, free()).await.expect("cut off: free at once");
        let again = taken().await;
        assert_eq!(again.id, job, "the oldest, as if nothing had been tried");
        let owed = again.owed();
        let mut changes = store.changes();
        changes.borrow_and_update();
        let died = tokio::spawn(async move {
            assert_ne!(again.id, job, "a panic with a lease in hand");
        });
        assert!(died.await.is_err());
        tokio::time::timeout(WAIT_MAX, changes.changed()).await.expect("concluded in time").expect("the store is open");
        assert!(store.leased(Duty::Infer).await.expect("read").contains_key(&job), "it backs off");
        assert_eq!(store.release(owed, Some("looked")).await.expect("released"), 1, "one attempt");
        assert_ne!(taken().await.id, job);
    }

    #[test]
    fn a_guard_that_has_not_looked_refuses() {
        let guard = Guard::default();
        assert!(guard.refusal().is_some_and(|refusal| refusal.contains("not looked")));
        assert!(guard.set(None), "it may claim now");
        assert_eq!(guard.clone().refusal(), None);
        assert!(!guard.set(None), "nothing new");
        assert!(guard.set(Some("paused".into())));
        assert!(!guard.set(Some("paused: dinner".into())), "still none");
        assert_eq!(guard.refusal().as_deref(), Some("paused: dinner"));
        guard.close();
        guard.set(None);
        assert_eq!(guard.refusal().as_deref(), Some("the node is stopping"));
    }
}
