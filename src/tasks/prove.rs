//! Proves the positions the chain drew from a committed transcript, and keeps the proof before anyone is told.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::{LONG_PASS_MAX, Pass, Task, take};
use crate::chain::Chain;
use crate::content::Content;
use crate::failpoint::{self, Point};
use crate::http::Metrics;
use crate::market::commitment::Statement;
use crate::market::job::{Duty, Job, Work};
use crate::market::transcript::Transcript;
use crate::market::types::{Address, B256, U256};
use crate::prover::{self, Prover, Witness};
use crate::store::Store;

/// The task's edges.
pub struct Prove {
    pub chain: Chain,
    pub store: Store,
    pub content: Content,
    pub prover: Arc<Prover>,
    pub metrics: Metrics,
    pub us: Address,
    /// How long one proof may take.
    pub proof_max: Duration,
}

impl Task for Prove {
    const NAME: &'static str = "prove";
    const TAKES_WORK: bool = true;

    /// Proves one job, if one is owed.
    ///
    /// # Errors
    /// If the store or the endpoint fails. A failed proof is not an error here: it is recorded and tried again later.
    async fn pass(&mut self) -> Result<Pass> {
        let Some(job) = take(&self.store, self.us, Duty::Prove).await? else { return Ok(Pass::Idle) };
        let circuit = self.prover.manifest().circuit_id();
        let expected = match self.chain.context(job.id, circuit).await {
            Ok(expected) => expected,
            // What the endpoint cannot answer is no failed proof, of which a few end the job.
            Err(error) => {
                job.put_back().await?;
                return Err(error.context("read the statement the chain expects"));
            }
        };
        let done = self.prove(&job, circuit, expected).await;
        job.conclude(done).await
    }

    /// A proof is killed at its own limit; what is around it takes no longer than any pass.
    fn pass_max(&self) -> Duration {
        self.proof_max + LONG_PASS_MAX
    }
}

impl Prove {
    /// Proves `job` under `circuit`; `expected` is the statement the chain wants.
    async fn prove(&self, job: &Job, circuit: B256, expected: U256) -> Result<()> {
        let started = Instant::now();
        let inferred = job.inferred.as_ref().context("nothing is inferred")?;
        let beacon = job.beacon.context("there is no beacon yet")?;
        let transcript = self.content.get(&inferred.transcript)?.context("the transcript is gone")?;
        let transcript = Transcript::read(&transcript)?;
        let statement = Statement {
            chain_id: self.chain.id(),
            proof_system: self.chain.contracts().proof_system,
            circuit,
            job: job.id,
            host: self.us,
            model: job.terms.model.clone(),
            prompt: job.terms.input.clone(),
            seed: job.terms.seed,
            temperature_milli: job.terms.temperature_milli,
            max_tokens: job.terms.max_tokens,
            root: inferred.commitment.root,
            tokens: inferred.commitment.tokens,
            tokens_digest: inferred.commitment.tokens_digest,
            result: inferred.output.to_string(),
        };
        let openings = statement.open(beacon, self.prover.manifest().spots, &transcript.records)?;
        let context = statement.context();
        ensure!(context == expected, "the chain expects statement {expected:#x}, ours is {context:#x}");
        let witness = Witness::of(context, &openings);
        let proof = self.prover.prove(&witness).await?;
        let paths: Vec<_> = openings.into_iter().flat_map(|opening| opening.path).collect();
        let completion = prover::completion(circuit, &proof, &paths);
        let completion = self.content.put(&completion)?;
        failpoint::hit(Point::AfterProof).await?;
        let at = self.store.time().await?;
        self.store.record(job.id, &Work::Proved { at, beacon, completion }).await?;
        self.metrics.proof_seconds.observe(started.elapsed().as_secs_f64());
        tracing::info!(job = %job.id, seconds = started.elapsed().as_secs_f32(), "proved job");
        Ok(())
    }
}
