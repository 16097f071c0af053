//! Runs the model for jobs that are ours on the canonical chain, and keeps what it did before anyone is told.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::{LEASE_SECONDS, Live, Pass, Piece, Task, take};
use crate::content::Content;
use crate::engine::{self, Engine};
use crate::failpoint::{self, Point};
use crate::http::Metrics;
use crate::market::job::{Duty, Job, Work};
use crate::market::transcript::Transcript;
use crate::market::types::{Address, B256, Cid};
use crate::store::Store;

/// The task's edges. Several run side by side, one per slot; leases keep them apart.
#[derive(Clone)]
pub struct Worker {
    pub store: Store,
    pub content: Content,
    pub engines: Arc<Vec<Engine>>,
    pub live: Live,
    pub metrics: Metrics,
    pub us: Address,
}

impl Task for Worker {
    const NAME: &'static str = "worker";
    const TAKES_WORK: bool = true;

    /// Infers one job, if one is owed.
    ///
    /// # Errors
    /// If the store fails. A failed inference is not an error here: it is recorded and tried again later.
    async fn pass(&mut self) -> Result<Pass> {
        let Some(job) = take(&self.store, self.us, Duty::Infer).await? else { return Ok(Pass::Idle) };
        let done = self.infer(&job).await;
        job.conclude(done).await
    }

    fn pass_max(&self) -> Duration {
        Duration::from_secs(LEASE_SECONDS)
    }
}

impl Worker {
    async fn infer(&self, job: &Job) -> Result<()> {
        let started = Instant::now();
        let terms = &job.terms;
        let engine = self.engines.iter().find(|engine| engine.model().id.to_string() == terms.model);
        let engine = engine.with_context(|| format!("model {} is not loaded", terms.model))?;
        let input: Cid = terms.input.parse()?;
        let prompt = self.content.get(&input)?.with_context(|| format!("the prompt {input} is not here"))?;
        let mut generation = engine.submit(engine::Request {
            job: job.id,
            prompt: String::from_utf8(prompt).context("the prompt is not UTF-8")?,
            max_tokens: terms.max_tokens,
            temperature_milli: terms.temperature_milli,
            seed: terms.seed,
        })?;
        tracing::debug!(job = %job.id, "the model runs");
        let stream = self.live.open(job.id);
        let mut transcript = Transcript::default();
        loop {
            match generation.next().await? {
                engine::Event::Step(step) => {
                    let piece = Piece { token: step.token, text: step.text.clone() };
                    stream.send_modify(|pieces| pieces.push(piece));
                    transcript.records.push(step.record);
                    transcript.pieces.push(step.text);
                }
                engine::Event::End(reason) => {
                    ensure!(reason != engine::Reason::Cancelled, "the engine was stopped");
                    break;
                }
            }
        }
        let inferred = self.keep(transcript, terms.order()).await?;
        failpoint::hit(Point::AfterInference).await?;
        self.store.record(job.id, &inferred).await?;
        failpoint::hit(Point::AfterInferred).await?;
        self.metrics.inference_seconds.observe(started.elapsed().as_secs_f64());
        tracing::info!(job = %job.id, seconds = started.elapsed().as_secs_f32(), "inferred job");
        Ok(())
    }

    /// Commits to the transcript and puts it and the output on disk; hashing a long one takes a while.
    async fn keep(&self, transcript: Transcript, order: B256) -> Result<Work> {
        self.metrics.tokens_generated.inc_by(transcript.records.len() as u64);
        let content = self.content.clone();
        let at = self.store.time().await?;
        tokio::task::spawn_blocking(move || {
            let (commitment, output) = transcript.commit()?;
            content.put(transcript.text().as_bytes())?;
            let transcript = content.put(&serde_json::to_vec(&transcript).context("write the transcript")?)?;
            Ok(Work::Inferred { at, commitment, output, transcript, order: Some(order) })
        })
        .await
        .context("commit to the transcript")?
    }
}
