//! What the node does, each task one pass over the store: find a duty of my kind, lease it, do it, record the fact.
//!
//! Tasks know the edges and the market, never each other: they meet in the store. A pass takes no input, may be cut off
//! anywhere and is run again. The only data that bypasses the store is streamed tokens ([`Live`]).

pub mod desk;
pub mod gossip;
pub mod indexer;
pub mod prove;
pub mod scheduler;
pub mod submitter;
pub mod sweep;
pub mod worker;

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use anyhow::Context;
use tokio::sync::watch;

use crate::chain::{Chain, Signer};
use crate::market::job::{Duty, Job, Next, Work};
use crate::market::receipt::{Receipt, SignedReceipt};
use crate::market::types::{Address, JobId};
use crate::store::Store;

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

    /// Takes one turn: does what is owed now, if anything. Safe to cut off anywhere and to run again.
    fn pass(&mut self) -> impl Future<Output = anyhow::Result<Pass>> + Send;
}

/// The name under which the indexer reports its health. It is well only while it is at the head of the chain.
pub const INDEXER: &str = "indexer";
/// Attempts after which a duty that keeps failing is given up and the job abandoned.
const ATTEMPTS_MAX: u32 = 3;
/// How long a lease lasts, in seconds: longer than any duty may take. A restart frees them all.
const LEASE_SECONDS: u64 = 3600;

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

/// Leases the oldest live job to which `us` owes `duty`.
async fn take(store: &Store, us: Address, duty: Duty) -> anyhow::Result<Option<Job>> {
    let now = store.time().await?;
    for job in store.live_jobs().await? {
        if job.next(us, now) == Next::Do(duty) && store.lease(job.id, duty, LEASE_SECONDS).await? {
            return Ok(Some(job));
        }
    }
    Ok(None)
}

/// Ends a lease as its work ended. After [`ATTEMPTS_MAX`] failures the job is abandoned with the reason.
async fn conclude(store: &Store, job: JobId, duty: Duty, done: anyhow::Result<()>) -> anyhow::Result<Pass> {
    let Err(error) = done else {
        store.release(job, duty, None).await?;
        return Ok(Pass::Again);
    };
    let reason = format!("{error:#}");
    let attempts = store.release(job, duty, Some(&reason)).await?;
    tracing::warn!(%job, duty = duty.name(), attempts, error = reason, "a duty failed");
    if attempts >= ATTEMPTS_MAX {
        abandon(store, job, format!("{} failed {attempts} times: {reason}", duty.name())).await?;
    }
    Ok(Pass::Idle)
}

/// Records that we stop working on a job, frees its slot and tells the operator.
async fn abandon(store: &Store, job: JobId, reason: String) -> anyhow::Result<()> {
    tracing::error!(%job, reason, "abandoned job");
    let at = store.time().await?;
    store.record(job, &Work::Abandoned { at, reason }).await?;
    store.free(job).await
}

/// Returns our signed receipt of a job we inferred.
///
/// # Errors
/// If nothing was inferred for it here.
fn sign_receipt(chain: &Chain, signer: &Signer, job: &Job) -> anyhow::Result<SignedReceipt> {
    let inferred = job.inferred.as_ref().with_context(|| format!("job {} has no result here", job.id))?;
    let marketplace = chain.contracts().job_marketplace;
    let receipt = Receipt::new(chain.id(), marketplace, signer.address(), job.id, &job.terms, inferred);
    let signature = signer.sign_hash(receipt.signing_hash())?;
    Ok(SignedReceipt { receipt, signature })
}
