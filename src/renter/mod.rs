//! The renter: finds hosts, asks prices, posts a job, receives its tokens and checks what was signed.
//!
//! Trusts no host: capabilities are checked against the chain, the answer against the receipt, the receipt against the
//! chain. Money moves only in [`Renter::post`].

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use tokio::time::{Instant, timeout};

use crate::chain::call::{self, Call, Order};
use crate::chain::{Chain, Mined, Signer};
use crate::market::commitment::tokens_digest;
use crate::market::event::Event;
use crate::market::job::{Job, State};
use crate::market::offer::{
    Capabilities, Quote, Request, Response, STREAM_VERSION, StreamInit, StreamMessage, account_hash, serves_region,
    stream_hash,
};
use crate::market::receipt::SignedReceipt;
use crate::market::types::{Address, B256, Cid, JobId, ModelId, U256};
use crate::p2p::{P2p, PeerId};

/// How long a transaction may take to be mined.
const MINED_WITHIN: Duration = Duration::from_secs(120);
/// How often the chain is asked while waiting for a state.
const POLL: Duration = Duration::from_millis(400);

/// A renter's account and its two connections.
pub struct Renter {
    pub chain: Chain,
    pub p2p: P2p,
    pub signer: Signer,
    /// The smart account that posts, if it is not the signer itself but an account of the signer's: then its jobs are posted
    /// by user operations, and what the signer signs for it is bound to it.
    pub account: Option<Address>,
}

/// A host that serves the model at a price, checked against the chain.
#[derive(Debug, Clone)]
pub struct Offer {
    pub peer: PeerId,
    pub capabilities: Capabilities,
    pub quote: Quote,
}

/// A job on chain.
#[derive(Debug, Clone)]
pub struct Posted {
    pub job: JobId,
    pub mined: Mined,
}

/// What came down the stream, checked against itself: text, digest and signature agree.
#[derive(Debug, Clone)]
pub struct Answer {
    pub text: String,
    /// Vocabulary ids.
    pub tokens: Vec<u32>,
    pub receipt: SignedReceipt,
}

impl Renter {
    /// Returns the renter of the signer's own account.
    pub fn new(chain: Chain, p2p: P2p, signer: Signer) -> Self {
        Self { chain, p2p, signer, account: None }
    }

    /// Returns hosts that serve `model`, take jobs of `region` if one is named, and quote a job of that size in `token`, cheapest
    /// first. Hosts that do not answer, are not who they say, or are not active on chain are left out.
    ///
    /// # Errors
    /// If the search fails, or those found within `limit` are all of other regions. Finding nobody is an empty list.
    pub async fn discover(
        &self,
        model: ModelId,
        prompt: &str,
        max_tokens: u32,
        token: Address,
        region: Option<&str>,
        limit: Duration,
    ) -> Result<Vec<Offer>> {
        let deadline = Instant::now() + limit;
        let mut offers = Vec::<Offer>::new();
        loop {
            for (peer, _) in self.p2p.find_hosts(&model, deadline.saturating_duration_since(Instant::now())).await? {
                if offers.iter().any(|offer| offer.peer == peer) {
                    continue;
                }
                match self.ask(peer, model, prompt, max_tokens, token).await {
                    Ok(offer) => offers.push(offer),
                    Err(error) => tracing::info!(%peer, error = format!("{error:#}"), "left out a host"),
                }
            }
            match of_region(&offers, region) {
                // Others may be found yet.
                Err(_) if Instant::now() < deadline => tokio::time::sleep(POLL).await,
                found => return found,
            }
        }
    }

    async fn ask(&self, peer: PeerId, model: ModelId, prompt: &str, max_tokens: u32, token: Address) -> Result<Offer> {
        let capabilities = match self.p2p.request(peer, Request::Capabilities).await? {
            Response::Capabilities(capabilities) => capabilities,
            other => bail!("asked for capabilities, got {other:?}"),
        };
        capabilities.verify(&peer.to_string(), self.chain.id(), self.chain.contracts().node_registry)?;
        let host = capabilities.host;
        ensure!(self.chain.is_active(host).await?, "host {host} is not registered on chain");
        ensure!(capabilities.models.iter().any(|offer| offer.id == model), "host {host} does not serve {model}");
        let input_bytes = prompt.len() as u64;
        let quote = match self.p2p.request(peer, Request::Quote { model, input_bytes, max_tokens, token }).await? {
            Response::Quote(quote) => quote,
            Response::Refused { reason } => bail!("no quote: {reason}"),
            other => bail!("asked for a quote, got {other:?}"),
        };
        ensure!(quote.token == token, "asked for a price in {token}, got one in {}", quote.token);
        Ok(Offer { peer, capabilities, quote })
    }

    /// Hands the prompt to the host and returns its content id.
    ///
    /// # Errors
    /// If the host refuses or answers with another id.
    pub async fn deliver(&self, offer: &Offer, prompt: &str) -> Result<Cid> {
        let mine = Cid::of(prompt.as_bytes());
        match self.p2p.request(offer.peer, Request::Prompt { text: prompt.into() }).await? {
            Response::Stored { cid } if cid == mine => Ok(cid),
            Response::Refused { reason } => bail!("the host refuses the prompt: {reason}"),
            other => bail!("delivered prompt {mine}, got {other:?}"),
        }
    }

    /// Posts a job and locks its payment. For a token, the marketplace is first allowed to move exactly that much.
    ///
    /// # Errors
    /// If the account has too little, the contract refuses, or the transaction is not mined in time (the error then
    /// names it: look for it before posting again).
    pub async fn post(&self, order: &Order) -> Result<Posted> {
        let (us, contracts) = (self.signer.address(), self.chain.contracts());
        let funds = self.chain.balance(order.token, us).await?;
        ensure!(funds >= order.payment, "{us} has {funds} of token {}, the job costs {}", order.token, order.payment);
        if !order.token.is_zero() {
            let allowed = self.chain.allowance(order.token, us, contracts.job_marketplace).await?;
            if allowed < order.payment {
                let approve = call::approve(order.token, contracts.job_marketplace, order.payment);
                self.chain.transact(&self.signer, &approve, MINED_WITHIN).await.context("allow the payment")?;
            }
        }
        let mined =
            self.chain.transact(&self.signer, &contracts.post(order), MINED_WITHIN).await.context("post the job")?;
        let decode = self.chain.decoder();
        let posted = mined.logs.iter().find_map(|log| match decode(log) {
            Ok(Event::JobTerms { job, .. }) => Some(job),
            _ => None,
        });
        let job = posted.with_context(|| format!("transaction {} posted no job", mined.hash))?;
        Ok(Posted { job, mined })
    }

    /// Receives a job's tokens, telling `each` of their text, and checks the receipt at the end: signed by the offer's
    /// host, for this job, over exactly these tokens and this text. A broken stream is taken up where it broke.
    ///
    /// # Errors
    /// If nothing more comes for `patience`, the host says why not, or the receipt does not fit.
    pub async fn stream(
        &self,
        offer: &Offer,
        job: JobId,
        patience: Duration,
        mut each: impl FnMut(&str),
    ) -> Result<Answer> {
        let (mut text, mut tokens) = (String::new(), Vec::new());
        let (output, receipt) = loop {
            let peer = offer.peer.to_string();
            let hash = stream_hash(job, &peer, self.chain.id());
            let hash = self.account.map_or(hash, |account| account_hash(account, self.chain.id(), hash));
            let signature = self.signer.sign_hash(hash).await?;
            let init = StreamInit { version: STREAM_VERSION.into(), job, from_index: tokens.len() as u32, signature };
            let mut reader =
                timeout(patience, self.p2p.open_tokens(offer.peer, init)).await.context("open the stream")??;
            let end = loop {
                match timeout(patience, reader.next())
                    .await
                    .with_context(|| format!("no token for {} s", patience.as_secs()))?
                {
                    Ok(Some(StreamMessage::Token { content, token, .. })) => {
                        each(&content);
                        text.push_str(&content);
                        tokens.push(token);
                    }
                    Ok(Some(StreamMessage::End { output, receipt, .. })) => break Some((output, receipt)),
                    Ok(Some(StreamMessage::Error { reason })) => bail!("the host says: {reason}"),
                    Ok(None) => break None,
                    Err(error) => {
                        tracing::debug!(error = format!("{error:#}"), "the stream broke: taking it up again");
                        tokio::time::sleep(POLL).await;
                        break None;
                    }
                }
            };
            if let Some(end) = end {
                break end;
            }
        };
        let receipt: SignedReceipt = serde_json::from_value(receipt).context("the receipt is malformed")?;
        receipt.verify()?;
        let said = &receipt.receipt;
        ensure!(said.host == offer.capabilities.host, "the receipt is {}'s, not the host's", said.host);
        ensure!(said.job == job, "the receipt is for job {}", said.job);
        ensure!(output == Cid::of(text.as_bytes()) && said.output == output, "the text is not what the host signed");
        ensure!(said.tokens_digest == tokens_digest(&tokens), "the tokens are not what the host signed");
        Ok(Answer { text, tokens, receipt })
    }

    /// Waits at most `limit` until the job posted in block `from` satisfies `done`, and returns it.
    ///
    /// # Errors
    /// If the endpoint fails or time runs out; the error names the state the job was in.
    pub async fn until(&self, job: JobId, from: u64, limit: Duration, done: impl Fn(&Job) -> bool) -> Result<Job> {
        let mut seen = "not posted";
        let reached = async {
            loop {
                if let Some(job) = self.chain.job(job, from).await? {
                    seen = job.state.name();
                    if done(&job) {
                        return anyhow::Ok(job);
                    }
                }
                tokio::time::sleep(POLL).await;
            }
        };
        match timeout(limit, reached).await {
            Ok(reached) => reached,
            Err(_) => bail!("job {job} is still {seen} after {} s", limit.as_secs()),
        }
    }

    /// Checks an answer's receipt against the job as the chain has it.
    ///
    /// # Errors
    /// Naming the first field that differs.
    pub fn verify(&self, answer: &Answer, job: &Job) -> Result<()> {
        answer.receipt.agrees_with(self.chain.id(), self.chain.contracts().job_marketplace, job)
    }

    /// Takes the money of a job back after its deadline. Returns the refunded amount.
    ///
    /// # Errors
    /// If the contract refuses: the deadline has not passed, or the job has ended.
    pub async fn refund(&self, job: JobId) -> Result<U256> {
        self.refunded_by(&self.chain.contracts().expire(job)).await
    }

    /// Takes a job back that no host has claimed. Returns the refunded amount.
    ///
    /// # Errors
    /// If the contract refuses: a host has claimed it, or it is another renter's.
    pub async fn cancel(&self, job: JobId) -> Result<U256> {
        self.refunded_by(&self.chain.contracts().cancel(job)).await
    }

    /// Puts a completed job before the arbiter. `evidence` is the digest of what the renter will show it.
    ///
    /// # Errors
    /// If the contract refuses: it is another renter's, or its challenge window is over.
    pub async fn dispute(&self, job: JobId, evidence: B256) -> Result<Mined> {
        self.chain.transact(&self.signer, &self.chain.contracts().dispute(job, evidence), MINED_WITHIN).await
    }

    /// Rates the host of a job that was paid for, 1 (worst) to 5, once.
    ///
    /// # Errors
    /// If the contract refuses.
    pub async fn rate(&self, job: JobId, rating: u8, feedback: String) -> Result<Mined> {
        self.chain.transact(&self.signer, &self.chain.contracts().rate(job, rating, feedback), MINED_WITHIN).await
    }

    async fn refunded_by(&self, call: &Call) -> Result<U256> {
        let mined = self.chain.transact(&self.signer, call, MINED_WITHIN).await?;
        let decode = self.chain.decoder();
        let refunded = mined.logs.iter().find_map(|log| match decode(log) {
            Ok(Event::PaymentRefunded { amount, .. }) => Some(amount),
            _ => None,
        });
        refunded.with_context(|| format!("transaction {} refunded nothing", mined.hash))
    }
}

/// Returns the offers whose hosts take jobs of `region`, cheapest first.
///
/// # Errors
/// If there are offers and none of them does.
fn of_region(offers: &[Offer], region: Option<&str>) -> Result<Vec<Offer>> {
    let takes = |offer: &&Offer| serves_region(&offer.capabilities.regions, region);
    let mut found: Vec<Offer> = offers.iter().filter(takes).cloned().collect();
    if let (true, [_, ..], Some(region)) = (found.is_empty(), offers, region) {
        let told: BTreeSet<String> = offers.iter().map(|offer| regions(&offer.capabilities)).collect();
        let told: Vec<String> = told.into_iter().collect();
        bail!("none of {} hosts takes jobs of region {region:?}: offered are {}", offers.len(), told.join("; "));
    }
    found.sort_by_key(|offer| offer.quote.price);
    Ok(found)
}

/// Returns the regions of a host for a person.
pub fn regions(host: &Capabilities) -> String {
    match &host.regions[..] {
        [] => "no region told".into(),
        // What a stranger says may hold anything.
        regions => regions.iter().map(|region| format!("{region:?}")).collect::<Vec<_>>().join(", "),
    }
}

/// Returns whether a job has reached its end on chain.
pub fn is_final(job: &Job) -> bool {
    matches!(job.state, State::Released { .. } | State::Refunded { .. })
}
