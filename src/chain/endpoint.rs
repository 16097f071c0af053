//! The endpoints of one chain: which of them a call goes to, what each has shown of itself, and how long it is let alone.
//!
//! A transport under alloy's client: a call is posted to the best endpoint, and where that fails, once to each other one that is
//! well. What fails is told from what is refused: an `error` answer about the call itself is an answer. Never reads a result, and
//! never tells more of a URL than scheme and host: the rest is often a key.
//!
//! Source: JSON-RPC 2.0, <https://www.jsonrpc.org/specification>; which words providers use, their documentation and public
//! bug reports; `Retry-After`, RFC 9110 10.2.3.

use std::fmt;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{self, Poll};
use std::time::{Duration, Instant, SystemTime};

use alloy::primitives::U64;
use alloy::rpc::json_rpc::{
    ErrorPayload, Id, Request, RequestPacket, Response, ResponsePacket, ResponsePayload, SerializedRequest,
};
use alloy::transports::{TransportError, TransportErrorKind, TransportFut};
use anyhow::{Context, Result, ensure};
use futures::future::join_all;
use futures::{StreamExt, TryStreamExt, stream};
use rand::Rng;
use reqwest::header::{CONTENT_TYPE, HeaderMap, RETRY_AFTER};
use reqwest::{StatusCode, Url};

/// An endpoint this many blocks behind the best is passed over.
const LAG_MAX: u64 = 5;
/// Longest wait for an answer that only shows whether an endpoint is well.
const PROBE_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest that an endpoint is let alone because it said so.
const HELD_MAX: Duration = Duration::from_secs(600);
/// What an endpoint cannot do is asked for again after this long: there may be another program behind it by then.
const LACKING_MAX: Duration = Duration::from_secs(600);
/// Parts of one batch under way at once, where an endpoint takes no batch as long.
const PARTS_AT_ONCE: usize = 8;
/// Of an answer that is none, what is repeated in an error.
const EXCERPT_CHARS: usize = 300;
/// Longest wait for a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// How a chain is reached.
#[derive(Clone)]
pub struct Endpoints {
    /// HTTP URLs; the first is used until another is known to be better.
    pub urls: Vec<String>,
    /// Calls per second to each, those of a batch counted one by one; 0: no limit.
    pub requests_per_second: u32,
    /// Longest wait for one answer.
    pub timeout: Duration,
}

impl From<&str> for Endpoints {
    fn from(url: &str) -> Self {
        Self { urls: vec![url.into()], requests_per_second: 0, timeout: Duration::from_secs(20) }
    }
}

impl From<&String> for Endpoints {
    fn from(url: &String) -> Self {
        url.as_str().into()
    }
}

/// What an endpoint has shown of itself.
#[derive(Debug, Clone)]
pub struct EndpointState {
    /// Scheme and host.
    pub name: String,
    /// HTTP requests sent to it, and those that it gave no answer to.
    pub requests: u64,
    pub failures: u64,
    /// Blocks behind the best of several, as they last told; `None` while it does not answer.
    pub lag: Option<u64>,
    /// The most calls it takes in one batch, where that is less than what was tried.
    pub batch_max: Option<usize>,
    /// Whether it knows `eth_getBlockReceipts`, and the blocks `finalized` and `safe`; `None`: not tried, or no such block yet.
    pub block_receipts: Option<bool>,
    pub finalized: Option<bool>,
    pub safe: Option<bool>,
}

/// Why a call got no answer.
#[derive(Debug, Clone)]
pub struct Failure {
    cause: Cause,
    text: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cause {
    /// The endpoint failed.
    Failed,
    /// It serves another chain.
    OtherChain,
    /// It said that it is asked too often, and perhaps how long to wait.
    Limited(Option<Duration>),
    /// It was not asked, because it said so before.
    Held,
    /// It refused this one HTTP request, which says nothing of the next.
    Call,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for Failure {}

impl Failure {
    /// Returns whether an error came of an endpoint that serves another chain.
    pub fn is_other_chain(error: &anyhow::Error) -> bool {
        error.chain().filter_map(|cause| cause.downcast_ref::<Failure>()).any(|it| it.cause == Cause::OtherChain)
    }
}

/// Returns of a URL what may be told: scheme, host and port.
pub fn shown(url: &str) -> String {
    match url.parse::<Url>() {
        Ok(url) => {
            let port = url.port().map(|port| format!(":{port}")).unwrap_or_default();
            format!("{}://{}{port}", url.scheme(), url.host_str().unwrap_or_default())
        }
        Err(_) => "(no URL)".into(),
    }
}

/// How fast the pool acts; all but tests take the default.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pace {
    /// Between two looks at all endpoints, where there are several.
    pub probe: Duration,
    pub backoff_min: Duration,
    pub backoff_max: Duration,
    /// The longest answer read.
    pub answer_max_bytes: usize,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            probe: Duration::from_secs(15),
            backoff_min: Duration::from_secs(1),
            backoff_max: Duration::from_secs(60),
            answer_max_bytes: 256 << 20,
        }
    }
}

/// The endpoints of one chain.
pub(super) struct Pool {
    endpoints: Vec<Endpoint>,
    /// The one in use: it stays so until another is clearly better.
    current: AtomicUsize,
    pace: Pace,
    next_probe: Mutex<Instant>,
}

/// A pool as a transport: of all its endpoints, or of one.
#[derive(Clone)]
pub(super) struct Route {
    pub pool: Arc<Pool>,
    pub pinned: Option<usize>,
}

impl tower::Service<RequestPacket> for Route {
    type Response = ResponsePacket;
    type Error = TransportError;
    type Future = TransportFut<'static>;

    fn poll_ready(&mut self, _: &mut task::Context<'_>) -> Poll<Result<(), TransportError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, packet: RequestPacket) -> Self::Future {
        let Route { pool, pinned } = self.clone();
        Box::pin(async move { pool.ask(pinned, &packet).await.map_err(TransportErrorKind::custom) })
    }
}

impl Pool {
    /// Takes each endpoint once, in the order named; nothing is asked yet.
    ///
    /// # Errors
    /// If there is no endpoint, or one is not an HTTP URL.
    pub fn new(endpoints: &Endpoints, chain: u64, pace: Pace) -> Result<Self> {
        let http = reqwest::Client::builder().timeout(endpoints.timeout).connect_timeout(CONNECT_TIMEOUT);
        let http = http.build().context("build the HTTP client")?;
        let mut all: Vec<Endpoint> = Vec::new();
        for url in &endpoints.urls {
            let parsed: Url = url.parse().context("an RPC endpoint is not a URL")?;
            let mut name = shown(url);
            ensure!(
                matches!(parsed.scheme(), "http" | "https"),
                "RPC endpoint {name} must start with http:// or https://"
            );
            if all.iter().any(|other| other.url == parsed) {
                continue;
            }
            let namesakes = all.iter().filter(|other| shown(other.url.as_str()) == name).count();
            if namesakes > 0 {
                name += &format!(" ({})", namesakes + 1);
            }
            let bucket = Bucket::new(endpoints.requests_per_second);
            all.push(Endpoint {
                secrets: secrets(&parsed),
                url: parsed,
                name,
                chain,
                http: http.clone(),
                bucket,
                pace,
                others: endpoints.urls.len() > 1,
                state: Mutex::new(State::new()),
                requests: AtomicU64::new(0),
                failures: AtomicU64::new(0),
            });
        }
        ensure!(!all.is_empty(), "no RPC endpoint is named");
        Ok(Self {
            endpoints: all,
            current: AtomicUsize::new(0),
            pace,
            next_probe: Mutex::new(Instant::now() + pace.probe),
        })
    }

    /// Returns how many endpoints there are: at least one.
    pub fn len(&self) -> usize {
        self.endpoints.len()
    }

    /// Returns the names of all, or of one.
    pub fn name(&self, pinned: Option<usize>) -> String {
        match pinned {
            Some(place) => self.endpoints[place].name.clone(),
            None => self.endpoints.iter().map(|endpoint| endpoint.name.as_str()).collect::<Vec<_>>().join(", "),
        }
    }

    /// Returns what each has shown of itself.
    pub fn states(&self) -> Vec<EndpointState> {
        self.endpoints.iter().map(Endpoint::shown_state).collect()
    }

    /// Returns the place of the endpoint to ask now.
    pub fn best(&self) -> usize {
        let now = Instant::now();
        let ranks: Vec<(Rank, Duration)> = self.endpoints.iter().map(|endpoint| endpoint.rank(now)).collect();
        let current = self.current.load(Ordering::Relaxed);
        let best = (0..ranks.len()).min_by_key(|place| ranks[*place]).unwrap_or(current);
        let ((rank, latency), (_, best_latency)) = (ranks[current], ranks[best]);
        // Unknown latencies are the longest, and no reason to leave.
        let clearly = best_latency.saturating_mul(2).saturating_add(Duration::from_millis(10));
        let slower = latency != Duration::MAX && latency > clearly;
        if rank == ranks[best].0 && !slower {
            return current;
        }
        self.current.store(best, Ordering::Relaxed);
        best
    }

    /// Asks the pinned endpoint; else the best and, where that fails, once each other one that is well.
    async fn ask(self: Arc<Self>, pinned: Option<usize>, packet: &RequestPacket) -> Result<ResponsePacket, Failure> {
        self.probe_when_due();
        let first = pinned.unwrap_or_else(|| self.best());
        let mut failure = match self.endpoints[first].ask(packet).await {
            Err(failure) if failure.cause != Cause::Call && pinned.is_none() => failure,
            answered => return answered,
        };
        let mut asked = vec![first];
        loop {
            let now = Instant::now();
            let others = (0..self.endpoints.len()).filter(|place| !asked.contains(place));
            let well =
                others.map(|place| (self.endpoints[place].rank(now), place)).filter(|(rank, _)| rank.0.is_well());
            let Some((_, next)) = well.min() else { return Err(failure) };
            asked.push(next);
            match self.endpoints[next].ask(packet).await {
                Err(other) if other.cause != Cause::Call => {
                    failure.text += "; ";
                    failure.text += &other.text;
                }
                answered => return answered,
            }
        }
    }

    /// Looks at all endpoints in the background when that was long ago. A lone one is only looked at by asking it.
    fn probe_when_due(self: &Arc<Self>) {
        let now = Instant::now();
        {
            let mut next = lock(&self.next_probe);
            if self.endpoints.len() < 2 || now < *next {
                return;
            }
            *next = now + self.pace.probe;
        }
        let pool = self.clone();
        tokio::spawn(async move {
            let heads = join_all(pool.endpoints.iter().map(Endpoint::probe)).await;
            let best = heads.iter().flatten().max().copied().unwrap_or(0);
            for (endpoint, head) in pool.endpoints.iter().zip(heads) {
                if let Some(head) = head {
                    endpoint.state().lag = best - head;
                }
            }
        });
    }
}

/// Which endpoint is asked first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    Well,
    /// It has no block receipts: what it says of logs cannot be proven.
    Poor,
    /// It is behind the others.
    Behind,
    /// It failed, last then: where all did, they take turns.
    Failed(Instant),
    /// It said not to be asked before then.
    Held(Instant),
}

impl Rank {
    fn is_well(self) -> bool {
        matches!(self, Rank::Well | Rank::Poor | Rank::Behind)
    }
}

/// One endpoint.
struct Endpoint {
    url: Url,
    /// Scheme and host, and a number where several have the same.
    name: String,
    /// Parts of the URL that no text may repeat.
    secrets: Vec<String>,
    /// The chain it must serve.
    chain: u64,
    http: reqwest::Client,
    bucket: Bucket,
    pace: Pace,
    /// Whether there are others, so that a failure is worth a line of its own.
    others: bool,
    state: Mutex<State>,
    requests: AtomicU64,
    failures: AtomicU64,
}

struct State {
    /// Whether it was seen to serve the chain since it last failed.
    verified: bool,
    /// Failures since the last answer.
    failures: u32,
    /// The last of them, and the end of the back-off.
    failed_at: Instant,
    back_at: Instant,
    /// Not to be asked before, as it said.
    held_until: Option<Instant>,
    /// Smoothed time to tell its head, as the probes measured it.
    latency: Option<Duration>,
    /// Blocks behind the best, as of the last probe.
    lag: u64,
    /// The most calls it takes in one batch; 1: none.
    batch_max: usize,
    /// By [`Ability`]: `Ok` once it was seen, or since when it is known to lack it, and how it said so.
    abilities: [Option<Result<(), (Instant, ErrorPayload)>>; 3],
}

/// What only some endpoints can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ability {
    BlockReceipts,
    Finalized,
    Safe,
}

/// What came of one HTTP request.
enum Reply {
    Answers(ResponsePacket),
    /// It takes no such batch, in its words.
    NoBatch(String),
}

/// Why a part of a batch has no answers.
enum Short {
    Failed(Failure),
    NoBatch(String),
}

impl State {
    fn new() -> Self {
        Self {
            verified: false,
            failures: 0,
            failed_at: Instant::now(),
            back_at: Instant::now(),
            held_until: None,
            latency: None,
            lag: 0,
            batch_max: usize::MAX,
            abilities: [const { None }; 3],
        }
    }
}

impl Endpoint {
    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    fn shown_state(&self) -> EndpointState {
        let answers = self.rank(Instant::now()).0.is_well();
        let state = self.state();
        let can = |ability: Ability| state.abilities[ability as usize].as_ref().map(Result::is_ok);
        EndpointState {
            name: self.name.clone(),
            requests: self.requests.load(Ordering::Relaxed),
            failures: self.failures.load(Ordering::Relaxed),
            lag: answers.then_some(state.lag),
            batch_max: Some(state.batch_max).filter(|max| *max != usize::MAX),
            block_receipts: can(Ability::BlockReceipts),
            finalized: can(Ability::Finalized),
            safe: can(Ability::Safe),
        }
    }

    /// Returns its rank and latency; lower is better.
    fn rank(&self, now: Instant) -> (Rank, Duration) {
        let state = self.state();
        let rank = match (state.held_until, &state.abilities[Ability::BlockReceipts as usize]) {
            (Some(until), _) if now < until => Rank::Held(until),
            _ if state.failures > 0 => Rank::Failed(state.failed_at),
            _ if state.lag > LAG_MAX => Rank::Behind,
            (_, Some(Err(_))) => Rank::Poor,
            _ => Rank::Well,
        };
        (rank, state.latency.unwrap_or(Duration::MAX))
    }

    fn failure(&self, cause: Cause, what: impl fmt::Display) -> Failure {
        Failure { cause, text: format!("{}: {what}", self.name) }
    }

    /// Asks it, and keeps what that shows.
    async fn ask(&self, packet: &RequestPacket) -> Result<ResponsePacket, Failure> {
        self.check_held()?;
        if let Some(answer) = self.known_to_lack(packet) {
            return Ok(answer);
        }
        let asked = async {
            self.verify().await?;
            self.exchange(packet).await
        };
        let answered = asked.await;
        match &answered {
            Ok(answer) => {
                self.learn(packet, answer);
                self.succeeded();
            }
            Err(failure) => self.failed(failure),
        }
        answered
    }

    fn check_held(&self) -> Result<(), Failure> {
        let Some(until) = self.state().held_until else { return Ok(()) };
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(());
        }
        let what = format!("asked too often: not asked again for {:.1} s", left.as_secs_f32());
        Err(self.failure(Cause::Held, what))
    }

    fn succeeded(&self) {
        let failures = std::mem::take(&mut self.state().failures);
        if failures > 0 && self.others {
            tracing::info!(endpoint = self.name, failures, "an endpoint answers again");
        }
    }

    fn failed(&self, failure: &Failure) {
        if failure.cause == Cause::Call {
            return;
        }
        self.failures.fetch_add(1, Ordering::Relaxed);
        let now = Instant::now();
        let mut state = self.state();
        state.verified = false;
        state.failed_at = now;
        let first = state.failures == 0;
        // Calls that were under way together fail together: that counts once.
        if state.failures == 0 || now >= state.back_at {
            state.failures += 1;
            let backoff = self.pace.backoff_min.saturating_mul(1 << (state.failures - 1).min(16));
            let backoff = backoff.min(self.pace.backoff_max).mul_f64(rand::thread_rng().gen_range(0.5..1.0));
            state.back_at = now + backoff;
        }
        if let Cause::Limited(wait) = failure.cause {
            let back_at = state.back_at;
            let until = wait.map_or(back_at, |wait| now + wait.min(HELD_MAX));
            state.held_until = Some(state.held_until.map_or(until, |before| before.max(until)));
        }
        drop(state);
        if first && self.others {
            tracing::warn!(endpoint = self.name, error = failure.text, "an endpoint failed: others are asked");
        }
    }

    /// Checks which chain it serves, unless that is known since it last failed.
    async fn verify(&self) -> Result<(), Failure> {
        if self.state().verified {
            return Ok(());
        }
        let served: U64 = self.ask_plainly("eth_chainId").await?;
        let (served, expected) = (served.to::<u64>(), self.chain);
        if served != expected {
            let what = format!("it serves chain {served}, but the configuration says chain_id = {expected}");
            return Err(self.failure(Cause::OtherChain, what));
        }
        self.state().verified = true;
        Ok(())
    }

    /// Looks whether it is well and how fast, unless it backs off. Returns its head.
    async fn probe(&self) -> Option<u64> {
        let now = Instant::now();
        {
            let state = self.state();
            if state.held_until.is_some_and(|until| now < until) || (state.failures > 0 && now < state.back_at) {
                return None;
            }
        }
        let looked = async {
            self.verify().await?;
            let asked = Instant::now();
            let head: U64 = self.ask_plainly("eth_blockNumber").await?;
            Ok((head.to::<u64>(), asked.elapsed()))
        };
        let late = || self.failure(Cause::Failed, "no answer to a probe");
        match tokio::time::timeout(PROBE_TIMEOUT, looked).await.unwrap_or_else(|_| Err(late())) {
            Ok((head, took)) => {
                self.succeeded();
                let mut state = self.state();
                state.latency = Some(state.latency.map_or(took, |before| (before * 7 + took * 3) / 10));
                Some(head)
            }
            Err(failure) => {
                self.failed(&failure);
                None
            }
        }
    }

    /// Asks for a number, without parameters. Does not wait for its turn: it is asked seldom, and measured.
    async fn ask_plainly(&self, method: &'static str) -> Result<U64, Failure> {
        let unreadable = |error: serde_json::Error| self.failure(Cause::Failed, format!("{method}: {error}"));
        self.bucket.take(1);
        let call = Request::new(method, Id::Number(0), [(); 0]).serialize().map_err(unreadable)?;
        // Who refuses the simplest request refuses all.
        let ill = |failure: Failure| match failure.cause {
            Cause::Call => Failure { cause: Cause::Failed, ..failure },
            _ => failure,
        };
        let reply = self.send(&[call], false).await.map_err(ill)?;
        let Reply::Answers(ResponsePacket::Single(Response { payload, .. })) = reply else {
            return Err(self.failure(Cause::Failed, format!("{method}: not one answer")));
        };
        match payload {
            ResponsePayload::Success(number) => serde_json::from_str(number.get()).map_err(unreadable),
            ResponsePayload::Failure(error) => Err(self.failure(Cause::Failed, format!("{method}: {}", error.message))),
        }
    }

    /// Returns the answer to a call of which the endpoint said not long ago that it cannot do that.
    fn known_to_lack(&self, packet: &RequestPacket) -> Option<ResponsePacket> {
        let calls = packet.requests();
        let ability = Ability::of(calls)?;
        let state = self.state();
        let Some(Err((since, error))) = &state.abilities[ability as usize] else { return None };
        if since.elapsed() > LACKING_MAX {
            return None;
        }
        let refuse = |call: &SerializedRequest| Response {
            id: call.id().clone(),
            payload: ResponsePayload::Failure(error.clone()),
        };
        Some(match packet {
            RequestPacket::Single(call) => ResponsePacket::Single(refuse(call)),
            RequestPacket::Batch(calls) => ResponsePacket::Batch(calls.iter().map(refuse).collect()),
        })
    }

    /// Keeps what an answer shows of the endpoint's abilities.
    fn learn(&self, packet: &RequestPacket, answer: &ResponsePacket) {
        let Some(ability) = Ability::of(packet.requests()) else { return };
        let mut state = self.state();
        for payload in answer.payloads() {
            match payload {
                ResponsePayload::Success(result) if result.get() == "null" => {}
                ResponsePayload::Success(_) => state.abilities[ability as usize] = Some(Ok(())),
                ResponsePayload::Failure(error) if ability.is_denied_by(error) => {
                    state.abilities[ability as usize] = Some(Err((Instant::now(), error.clone())));
                }
                ResponsePayload::Failure(_) => {}
            }
        }
    }

    /// Posts one call, or a batch in as many parts as the endpoint wants it.
    async fn exchange(&self, packet: &RequestPacket) -> Result<ResponsePacket, Failure> {
        let calls = match packet {
            RequestPacket::Batch(calls) => calls,
            RequestPacket::Single(call) => {
                return match self.post(std::slice::from_ref(call), false).await? {
                    Reply::Answers(answer) => Ok(answer),
                    Reply::NoBatch(text) => Err(self.failure(Cause::Call, text)),
                };
            }
        };
        loop {
            let max = self.state().batch_max;
            let parts: Vec<_> = calls.chunks(max).map(|part| self.part(part, max > 1)).collect();
            let answers: Result<Vec<_>, Short> = stream::iter(parts).buffered(PARTS_AT_ONCE).try_collect().await;
            match answers {
                Ok(answers) => return Ok(ResponsePacket::Batch(answers.into_iter().flatten().collect())),
                Err(Short::Failed(failure)) => return Err(failure),
                Err(Short::NoBatch(text)) => {
                    let fewer = fewer_calls(&text, max.min(calls.len()));
                    let mut state = self.state();
                    state.batch_max = state.batch_max.min(fewer);
                    tracing::info!(endpoint = self.name, text, calls = fewer, "an endpoint takes smaller batches only");
                }
            }
        }
    }

    async fn part(&self, calls: &[SerializedRequest], batch: bool) -> Result<Vec<Response>, Short> {
        match self.post(calls, batch).await {
            Ok(Reply::Answers(ResponsePacket::Batch(answers))) => Ok(answers),
            Ok(Reply::Answers(ResponsePacket::Single(answer))) => Ok(vec![answer]),
            Ok(Reply::NoBatch(text)) => Err(Short::NoBatch(text)),
            Err(failure) => Err(Short::Failed(failure)),
        }
    }

    /// Posts one call or a batch, when the rate allows it.
    async fn post(&self, calls: &[SerializedRequest], batch: bool) -> Result<Reply, Failure> {
        let wait = self.bucket.take(calls.len());
        // Even no sleep lasts until the timer's next millisecond.
        if !wait.is_zero() {
            tokio::time::sleep(wait).await;
        }
        self.send(calls, batch).await
    }

    /// Sends one HTTP request, of one call or of a batch, and reads its answer.
    async fn send(&self, calls: &[SerializedRequest], batch: bool) -> Result<Reply, Failure> {
        let body = if batch { serde_json::to_vec(calls) } else { serde_json::to_vec(&calls[0]) };
        let body = body.map_err(|error| self.failure(Cause::Call, error))?;
        self.requests.fetch_add(1, Ordering::Relaxed);
        let request = self.http.post(self.url.clone()).header(CONTENT_TYPE, "application/json").body(body);
        let response = request.send().await.map_err(|error| self.broken(error))?;
        let (status, wait) = (response.status(), retry_after(response.headers()));
        let body = self.read(response).await?;
        let answer = match serde_json::from_slice::<ResponsePacket>(&body) {
            Ok(answer) => self.without_secrets(answer),
            Err(error) if status.is_success() => {
                let (bytes, text) = (body.len(), self.excerpt(&body));
                let what = format!("answered {bytes} bytes that are no JSON-RPC ({error}): {text}");
                return Err(self.failure(Cause::Failed, what));
            }
            Err(_) => return self.refused(status, wait, self.excerpt(&body), batch),
        };
        let too_often = |error: &&ErrorPayload| status == StatusCode::TOO_MANY_REQUESTS || says_too_often(error);
        if let Some(error) = answer.iter_errors().find(too_often) {
            return Err(self.failure(Cause::Limited(wait), format!("asked too often: {}", error.message)));
        }
        match (&answer, answer.as_error()) {
            (_, Some(error)) if status.is_server_error() && !is_about_the_call(error) => {
                self.refused(status, wait, error.message.to_string(), batch)
            }
            (ResponsePacket::Single(_), Some(error)) if batch => Ok(Reply::NoBatch(error.message.to_string())),
            (_, None) if !status.is_success() => self.refused(status, wait, String::new(), batch),
            (ResponsePacket::Batch(answers), _) if batch && answers.len() == calls.len() => Ok(Reply::Answers(answer)),
            (ResponsePacket::Single(_), _) if !batch => Ok(Reply::Answers(answer)),
            _ => {
                let (given, asked) = (answer.responses().len(), calls.len());
                Err(self.failure(Cause::Failed, format!("answered {given} of {asked} calls")))
            }
        }
    }

    /// Judges an HTTP status that came without an answer to the call.
    fn refused(&self, status: StatusCode, wait: Option<Duration>, text: String, batch: bool) -> Result<Reply, Failure> {
        let what = if text.is_empty() { format!("HTTP {status}") } else { format!("HTTP {status}: {text}") };
        // Statuses that judge the request itself: form, size, kind.
        let of_the_request = matches!(status.as_u16(), 400 | 405 | 413 | 415 | 422 | 501);
        if batch && (of_the_request || text.to_lowercase().contains("batch")) {
            return Ok(Reply::NoBatch(text));
        }
        let limited = status == StatusCode::TOO_MANY_REQUESTS || (status.is_server_error() && wait.is_some());
        let of_the_call = if of_the_request { Cause::Call } else { Cause::Failed };
        Err(self.failure(if limited { Cause::Limited(wait) } else { of_the_call }, what))
    }

    async fn read(&self, mut response: reqwest::Response) -> Result<Vec<u8>, Failure> {
        let max = self.pace.answer_max_bytes;
        let told = response.content_length().unwrap_or(0).min(max as u64);
        let mut body = Vec::with_capacity(told as usize);
        while let Some(piece) = response.chunk().await.map_err(|error| self.broken(error))? {
            if body.len() + piece.len() > max {
                return Err(self.failure(Cause::Failed, format!("the answer is too large: over {max} bytes")));
            }
            body.extend_from_slice(&piece);
        }
        Ok(body)
    }

    fn broken(&self, error: reqwest::Error) -> Failure {
        self.failure(Cause::Failed, format!("{:#}", anyhow::Error::new(error.without_url())))
    }

    /// Returns the start of a text that an endpoint sent, on one line and without what is secret.
    fn excerpt(&self, body: &[u8]) -> String {
        // Cut after the secrets are out: half a key would stay.
        let text = self.without_secret(&String::from_utf8_lossy(&body[..body.len().min(16 * EXCERPT_CHARS)]));
        text.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(EXCERPT_CHARS).collect()
    }

    fn without_secret(&self, text: &str) -> String {
        self.secrets.iter().fold(text.to_owned(), |text, secret| text.replace(secret, "…"))
    }

    /// Takes parts of the URL out of errors' texts.
    fn without_secrets(&self, mut answer: ResponsePacket) -> ResponsePacket {
        let answers = match &mut answer {
            ResponsePacket::Single(answer) => std::slice::from_mut(answer),
            ResponsePacket::Batch(answers) => answers.as_mut_slice(),
        };
        for Response { payload, .. } in answers {
            if let ResponsePayload::Failure(error) = payload
                && self.secrets.iter().any(|secret| error.message.contains(secret))
            {
                error.message = self.without_secret(&error.message).into();
            }
        }
        answer
    }
}

impl Ability {
    /// Returns what calls need of which the first one tells the kind of all.
    fn of(calls: &[SerializedRequest]) -> Option<Self> {
        let first = calls.first()?;
        match first.method() {
            "eth_getBlockReceipts" if calls.iter().all(|call| call.method() == first.method()) => {
                Some(Self::BlockReceipts)
            }
            "eth_getBlockByNumber" if calls.len() == 1 => {
                let text = first.serialized().get();
                let names = |tag: &str| text.contains(tag);
                names("\"finalized\"").then_some(Self::Finalized).or(names("\"safe\"").then_some(Self::Safe))
            }
            _ => None,
        }
    }

    /// Returns whether an error says that the endpoint cannot do that at all.
    fn is_denied_by(self, error: &ErrorPayload) -> bool {
        const WORDS: [&str; 7] = [
            "does not exist",
            "not found",
            "not supported",
            "not available",
            "not allowed",
            "not whitelisted",
            "unsupported",
        ];
        let text = error.message.to_lowercase();
        let says_so = WORDS.iter().any(|words| text.contains(words));
        // EIP-1474 has a code for methods that are not supported; an unknown tag is an invalid parameter.
        matches!(error.code, -32601 | -32004)
            || text.contains("current plan")
            || match self {
                Self::BlockReceipts => says_so && text.contains("method"),
                Self::Finalized | Self::Safe => error.code == -32602 || (says_so && text.contains("tag")),
            }
    }
}

/// Returns whether an error says that the endpoint is asked too often: it is about the endpoint, not about the call.
fn says_too_often(error: &ErrorPayload) -> bool {
    const WORDS: [&str; 12] = [
        "rate limit",
        "rate exceeded",
        "rate-limit",
        "too many requests",
        "request limit",
        "requests limited",
        "credits limited",
        "compute units",
        "throughput",
        "concurrent requests",
        "quota",
        "usage limit",
    ];
    let text = error.message.to_lowercase();
    // A batch that is too long is not too often, and what a contract says when it reverts is anybody's text.
    let of_the_call = error.code == 3 || text.contains("revert") || text.contains("batch");
    error.code == 429 || (!of_the_call && WORDS.iter().any(|words| text.contains(words)))
}

/// Returns whether an error that came with an HTTP 5xx is the answer to the call all the same: of the request's form, a revert, or
/// dRPC's refusal of a range.
fn is_about_the_call(error: &ErrorPayload) -> bool {
    matches!(error.code, -32602..=-32600 | 3 | 35)
}

/// Returns how many calls to put into a batch after one of `calls` was refused: what the text names, half where it speaks of a
/// limit, or one.
fn fewer_calls(text: &str, calls: usize) -> usize {
    const WORDS: [&str; 7] = ["too large", "too big", "too many", "limit", "exceed", "max", "more than"];
    let text = text.to_lowercase();
    let numbers = text.split(|c: char| !c.is_ascii_digit()).filter_map(|digits| digits.parse().ok());
    let named = numbers.filter(|number| (1..calls).contains(number)).max();
    let half = WORDS.iter().any(|words| text.contains(words)).then_some(calls / 2);
    named.or(half).unwrap_or(1).max(1)
}

/// Returns the wait that an answer asks for, in seconds or as a date.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let at = SystemTime::from(jiff::fmt::rfc2822::parse(text).ok()?.timestamp());
    Some(at.duration_since(SystemTime::now()).unwrap_or_default())
}

/// Returns what of a URL may be a key: names and passwords, and longer pieces of path and query.
fn secrets(url: &Url) -> Vec<String> {
    let pieces = url.path().split('/').chain(url.query().unwrap_or_default().split(['&', '=']));
    let mut secrets: Vec<String> = pieces.filter(|piece| piece.len() >= 8).map(str::to_owned).collect();
    secrets.extend(url.password().map(str::to_owned));
    secrets.extend(Some(url.username()).filter(|name| !name.is_empty()).map(str::to_owned));
    secrets
}

/// A token bucket of one second: calls wait in the order they come.
struct Bucket {
    per_second: u32,
    /// When all that was taken will have been refilled.
    full_at: Mutex<Instant>,
}

impl Bucket {
    fn new(per_second: u32) -> Self {
        Self { per_second, full_at: Mutex::new(Instant::now()) }
    }

    /// Takes so many tokens and returns when they will be there. More than fit are owed.
    fn take(&self, tokens: usize) -> Duration {
        if self.per_second == 0 {
            return Duration::ZERO;
        }
        let now = Instant::now();
        let mut full_at = lock(&self.full_at);
        let cost = Duration::from_secs(1).mul_f64(tokens as f64 / f64::from(self.per_second));
        *full_at = (*full_at).max(now) + cost;
        full_at.saturating_duration_since(now).saturating_sub(Duration::from_secs(1))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("nothing panics while holding the lock")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_of_calls_is_free_and_the_rest_waits_its_turn() {
        let bucket = Bucket::new(10);
        assert_eq!(bucket.take(4) + bucket.take(5), Duration::ZERO);
        let waits = [bucket.take(11), bucket.take(50), bucket.take(1)].map(|wait| wait.as_secs_f32());
        // Of which what passed meanwhile is off.
        for (wait, most) in waits.into_iter().zip([1.0, 6.0, 6.1]) {
            assert!(wait <= most && wait > most - 0.9, "{waits:?}");
        }
        assert_eq!(Bucket::new(0).take(1_000_000), Duration::ZERO);
    }

    #[test]
    fn the_best_is_kept_until_another_is_clearly_better() {
        let urls = ["http://a.example/1", "http://a.example/2", "http://c.example", "http://a.example/1"];
        let endpoints = Endpoints { urls: urls.map(str::to_owned).to_vec(), ..Endpoints::from("") };
        let pool = Pool::new(&endpoints, 1, Pace::default()).unwrap();
        assert_eq!(pool.name(None), "http://a.example, http://a.example (2), http://c.example");
        let with = |place: usize, change: &dyn Fn(&mut State)| {
            change(&mut pool.endpoints[place].state());
            pool.best()
        };
        let millis = |millis| Some(Duration::from_millis(millis));
        let fail = |state: &mut State| (state.failures, state.failed_at) = (1, Instant::now());
        // The first, until more is known than of it.
        assert_eq!(with(1, &|state| state.latency = millis(5)), 0);
        assert_eq!(with(0, &|state| state.latency = millis(19)), 0);
        assert_eq!(with(0, &|state| state.latency = millis(21)), 1);
        assert_eq!(with(0, &|state| state.latency = millis(1)), 1);
        assert_eq!(with(1, &|state| state.lag = LAG_MAX + 1), 0);
        // Unknown is better than failed, and behind is.
        assert_eq!(with(0, &fail), 2);
        assert_eq!(with(2, &fail), 1);
        let error = ErrorPayload { code: -32601, message: "".into(), data: None };
        let poor = |state: &mut State| state.abilities[0] = Some(Err((Instant::now(), error.clone())));
        assert_eq!(with(0, &|state| (state.failures, state.latency) = (0, None)), 0);
        assert_eq!(with(0, &poor), 0, "proofs matter less than the newest blocks");
        assert_eq!(with(1, &|state| state.lag = LAG_MAX), 1);
        // Where all failed they take turns, but for who said not to.
        assert_eq!((with(1, &fail), with(0, &fail), with(2, &fail)), (0, 2, 1));
        let hold = |state: &mut State| state.held_until = Some(Instant::now() + Duration::from_secs(600));
        assert_eq!((with(1, &hold), with(0, &hold), with(2, &hold)), (0, 2, 1));
    }

    #[test]
    fn a_wait_is_told_in_seconds_or_as_a_date() {
        let told = |text: &str| retry_after(&HeaderMap::from_iter([(RETRY_AFTER, text.parse().unwrap())]));
        assert_eq!(told("120"), Some(Duration::from_secs(120)));
        assert_eq!(told("Wed, 21 Oct 2015 07:28:00 GMT"), Some(Duration::ZERO));
        assert!(told("Mon, 21 Oct 2115 07:28:00 GMT").is_some_and(|wait| wait > HELD_MAX));
        assert_eq!((told("soon"), retry_after(&HeaderMap::new())), (None, None));
    }

    #[test]
    fn batches_shrink_to_what_is_named() {
        assert_eq!(fewer_calls("maximum 10 calls in 1 batch", 50), 10);
        assert_eq!(fewer_calls("Batch of more than 3 requests are not allowed on free tier", 50), 3);
        assert_eq!(fewer_calls("batch too large", 50), 25);
        assert_eq!(fewer_calls("Invalid Request", 50), 1);
        assert_eq!(fewer_calls("maximum 0 calls", 1), 1);
    }

    #[test]
    fn of_a_url_the_host_is_shown() {
        assert_eq!(shown("https://user:key@rpc.example:8545/v2/key?k=key"), "https://rpc.example:8545");
        assert_eq!(shown("wss://rpc.example/key"), "wss://rpc.example");
        assert_eq!(shown("rpc/key"), "(no URL)");
    }
}
