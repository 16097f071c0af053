//! Answers renters: what we serve, at what price, their prompts, and the tokens of their jobs.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use tokio::time::Instant;

use super::{Guard, Live, sign_receipt};
use crate::chain::{Chain, Signer};
use crate::content::Content;
use crate::engine::Engine;
use crate::market::job::{Inferred, Job};
use crate::market::offer::{
    Capabilities, ModelOffer, Price, Quote, Request, Response, STREAM_VERSION, StreamInit, StreamMessage,
    peer_statement, stream_hash,
};
use crate::market::policy::Policy;
use crate::market::transcript::Transcript;
use crate::market::types::{Address, ModelId, UnixSeconds};
use crate::p2p::{P2p, TokenWriter};
use crate::store::{Store, clock};

/// Longest prompt kept for a renter, in bytes.
pub const PROMPT_BYTES_MAX: usize = 128 * 1024;
/// How long a stream may wait for a job the chain does not show yet: streams are few, and anyone can name a number.
const UNKNOWN_JOB_WAIT: Duration = Duration::from_secs(60);
/// How long a quote holds, in seconds.
const QUOTE_SECONDS: u64 = 300;

/// The edges a host's desk needs. Clones share them.
#[derive(Clone)]
pub struct Desk {
    pub chain: Chain,
    pub store: Store,
    pub content: Content,
    pub engines: Arc<Vec<Engine>>,
    pub policy: Policy,
    /// Whether this host may claim now.
    pub guard: Guard,
    pub live: Live,
    pub p2p: P2p,
    pub signer: Signer,
}

impl Desk {
    /// Answers one request, on a thread that may wait. What cannot be served is refused in words.
    pub fn answer(&self, request: Request) -> Response {
        let answered = match request {
            Request::Capabilities => self.capabilities().map(Response::Capabilities),
            Request::Quote { model, max_tokens, token, input_bytes } => {
                self.quote(model, max_tokens, token, input_bytes)
            }
            Request::Prompt { text } => self.keep(&text),
        };
        answered.unwrap_or_else(|error| Response::Refused { reason: format!("{error:#}") })
    }

    fn capabilities(&self) -> Result<Capabilities> {
        let (host, chain_id) = (self.signer.address(), self.chain.id());
        let peer = self.p2p.peer_id().to_string();
        let statement = peer_statement(&peer, host, chain_id, self.chain.contracts().node_registry);
        let prices: Vec<Price> = self
            .policy
            .price_per_1k
            .iter()
            .map(|(&token, &net)| Price { token, per_1k_tokens: self.policy.gross(net) })
            .collect();
        let offer = |engine: &Engine| ModelOffer {
            id: engine.model().id,
            name: engine.model().name.clone(),
            context_tokens: engine.model().context_tokens,
            prices: prices.clone(),
        };
        let models = self.engines.iter().map(offer).collect();
        let peer_proof = tokio::runtime::Handle::current().block_on(self.signer.sign_text(&statement))?;
        let regions = self.policy.limits.regions.clone();
        Ok(Capabilities { host, chain_id, models, regions, peer_proof })
    }

    fn quote(&self, model: ModelId, max_tokens: u32, token: Address, input_bytes: u64) -> Result<Response> {
        // Why is the operator's business.
        ensure!(self.guard.refusal().is_none(), "this host takes no jobs now");
        let served = *self.policy.models.get(&model).with_context(|| format!("model {model} is not served here"))?;
        let most = served.max_tokens;
        ensure!((1..=most).contains(&max_tokens), "max_tokens is {max_tokens}, not between 1 and {most}");
        ensure!(input_bytes <= PROMPT_BYTES_MAX as u64, "a prompt of {input_bytes} bytes, at most {PROMPT_BYTES_MAX}");
        let (prompt, room) = (self.policy.prompt_tokens(input_bytes), u64::from(served.context_tokens));
        let needed = prompt.saturating_add(max_tokens.into());
        ensure!(needed <= room, "prompt and output may take {needed} tokens, at most {room} fit");
        ensure!(self.policy.takes(token), "token {token} is not taken here");
        let net = self.policy.price(token, max_tokens).with_context(|| format!("token {token} is not taken here"))?;
        Ok(Response::Quote(Quote {
            price: self.policy.gross(net),
            token,
            valid_until: UnixSeconds(clock().0 + QUOTE_SECONDS),
            proof: self.policy.proves,
            estimated_seconds: self.policy.seconds_for(&served, prompt, max_tokens),
        }))
    }

    fn keep(&self, text: &str) -> Result<Response> {
        ensure!(text.len() <= PROMPT_BYTES_MAX, "a prompt of {} bytes, at most {PROMPT_BYTES_MAX}", text.len());
        Ok(Response::Stored { cid: self.content.put(text.as_bytes())? })
    }

    /// Streams a job's tokens to its renter: what is there, what comes, and the signed receipt at the end. Anyone else,
    /// and a job that ends otherwise, is told why not.
    ///
    /// # Errors
    /// If the reader leaves or the store fails.
    pub async fn stream(&self, init: StreamInit, mut writer: TokenWriter) -> Result<()> {
        if let Err(error) = self.serve(&init, &mut writer).await {
            let reason = format!("{error:#}");
            return writer.send(&StreamMessage::Error { reason }).await;
        }
        Ok(())
    }

    async fn serve(&self, init: &StreamInit, writer: &mut TokenWriter) -> Result<()> {
        ensure!(init.version == STREAM_VERSION, "stream version {:?}, this host speaks {STREAM_VERSION}", init.version);
        let mut known = false;
        let mut next = init.from_index;
        let (mut changes, mut openings) = (self.store.changes(), self.live.openings());
        let give_up = Instant::now() + UNKNOWN_JOB_WAIT;
        loop {
            changes.borrow_and_update();
            openings.borrow_and_update();
            let job = self.store.job(init.job).await?;
            let unknown = job.is_none();
            if let Some(job) = job {
                if !known {
                    self.check_asker(init, job.terms.renter).await?;
                    known = true;
                }
                if let Some(inferred) = &job.inferred {
                    return self.finish(&job, inferred, next, writer).await;
                }
                self.check_hope(&job).await?;
                if let Some(pieces) = self.live.get(job.id) {
                    next = follow(pieces, next, writer).await?;
                }
            }
            tokio::select! {
                changed = changes.changed() => changed.context("the host is shutting down")?,
                _ = openings.changed() => {}
                () = tokio::time::sleep_until(give_up), if unknown => bail!("job {} is not on the chain", init.job),
            }
        }
    }

    /// Fails unless the job's renter signed the request: with its key, or as its contract says.
    async fn check_asker(&self, init: &StreamInit, renter: Address) -> Result<()> {
        let (peer, chain) = (self.p2p.peer_id().to_string(), self.chain.id());
        let signer = init.signer(&peer, chain);
        if signer.as_ref().is_ok_and(|signer| *signer == renter) {
            return Ok(());
        }
        if self.chain.signed_by_contract(renter, stream_hash(init.job, &peer, chain), &init.signature).await? {
            return Ok(());
        }
        bail!("job {} is {renter}'s, the request is signed by {}", init.job, signer?);
    }

    /// Fails when no result will come.
    async fn check_hope(&self, job: &Job) -> Result<()> {
        if let crate::market::job::Next::Done(outcome) = job.next(self.signer.address(), self.store.time().await?) {
            bail!("job {} ended here without a result: {outcome:?}", job.id);
        }
        Ok(())
    }

    async fn finish(&self, job: &Job, inferred: &Inferred, from: u32, writer: &mut TokenWriter) -> Result<()> {
        let bytes = self.content.get(&inferred.transcript)?.context("the transcript is gone")?;
        let transcript = Transcript::read(&bytes)?;
        let tokens = transcript.tokens();
        for (index, (token, content)) in tokens.iter().zip(transcript.pieces).enumerate().skip(from as usize) {
            writer.send(&StreamMessage::Token { index: index as u32, content, token: *token }).await?;
        }
        let receipt = serde_json::to_value(sign_receipt(&self.chain, &self.signer, job).await?)?;
        writer.send(&StreamMessage::End { tokens: tokens.len() as u32, output: inferred.output, receipt }).await
    }
}

/// Sends the pieces of a running inference until it ends. Returns the index that comes next.
async fn follow(
    mut pieces: tokio::sync::watch::Receiver<Vec<super::Piece>>,
    from: u32,
    writer: &mut TokenWriter,
) -> Result<u32> {
    let mut next = from;
    loop {
        let fresh: Vec<_> = pieces.borrow_and_update().iter().skip(next as usize).cloned().collect();
        for piece in fresh {
            writer.send(&StreamMessage::Token { index: next, content: piece.text, token: piece.token }).await?;
            next += 1;
        }
        if pieces.changed().await.is_err() {
            return Ok(next);
        }
    }
}
