//! The endpoint between a node and its chain: it passes everything on, as far as the rules it was given let it.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::Result;
use axum::body::{Body, Bytes};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::{Json, Router, extract::State as Shared, routing::post};
use fabstir::market::types::B256;
use futures::stream;
use serde_json::{Value, json};

/// How many blocks anvil keeps unfinal: two epochs.
pub const UNFINAL: u64 = 64;

/// An endpoint on a free port of this machine. Rules apply from the moment they are given until [`Proxy::pass`].
pub struct Proxy {
    pub url: String,
    state: Arc<State>,
}

/// Which of the occasions that a rule fits.
#[derive(Clone, Copy)]
pub enum When {
    Always,
    First(u64),
    /// All after so many.
    After(u64),
    /// The last of each so many.
    Every(u64),
    /// All but the last of each so many.
    But(u64),
}

/// What becomes of a whole HTTP request.
#[derive(Clone, Copy)]
pub enum Reply {
    Status(u16, &'static str),
    /// A status with a `Retry-After` header, in seconds.
    RetryAfter(u16, &'static str),
    /// At HTTP 200, and no JSON.
    Text(&'static str),
    /// At HTTP 200, one error for all calls of the request.
    Error(i64, &'static str),
    /// Half of the true answer, as if that were all.
    Half,
    /// Half of the true answer, then the connection ends.
    Torn,
    /// The true answer, so much later.
    Late(Duration),
    /// The true answer to the request when it comes a second time. Of use where transactions are sent: in `examples/chaos`.
    #[allow(dead_code)]
    Twice,
}

type OnRequest = Box<dyn Fn(&[Value]) -> Option<Reply> + Send + Sync>;
type OnAnswer = Box<dyn Fn(&Value, &mut Value) + Send + Sync>;
type OnBatch = Box<dyn Fn(&mut Vec<Value>) + Send + Sync>;

enum Fault {
    /// Given the calls of a request.
    Request(OnRequest),
    /// Given a call of that method and its answer.
    Answer(String, OnAnswer),
    /// Given the answers of a batch, in the order of the calls.
    Batch(OnBatch),
    /// Another chain answers.
    Target(String),
    /// A replica answers that knows so many blocks less.
    Behind(u64),
}

struct Rule {
    when: When,
    fault: Fault,
    occasions: AtomicU64,
}

struct State {
    target: Mutex<String>,
    rules: Mutex<Vec<Arc<Rule>>>,
    /// The newest block there is for those who ask here.
    view: AtomicU64,
    met: AtomicU64,
    head: AtomicU64,
    client: reqwest::Client,
}

impl Proxy {
    /// Stands in front of the chain at `target`.
    pub async fn start(target: &str) -> Result<Proxy> {
        let state = Arc::new(State {
            target: Mutex::new(target.to_owned()),
            rules: Mutex::default(),
            view: AtomicU64::new(u64::MAX),
            met: AtomicU64::new(0),
            head: AtomicU64::new(0),
            client: client()?,
        });
        let app = Router::new().route("/", post(serve)).with_state(state.clone());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        let url = format!("http://{}", listener.local_addr()?);
        tokio::spawn(async move { axum::serve(listener, app).await });
        Ok(Proxy { url, state })
    }

    /// Stands in front of another chain from now on.
    pub fn turn_to(&self, target: &str) {
        *self.state.target.lock().unwrap() = target.to_owned();
    }

    /// Shows the chain up to this block, as if it had no more yet.
    pub fn show(&self, number: u64) {
        self.state.view.store(number, Relaxed);
    }

    /// Refuses a method from now on; `*` refuses everything.
    pub fn refuse(&self, method: &str) {
        let method = method.to_owned();
        let refused = move |call: &Value| method == "*" || call["method"] == method.as_str();
        self.request(When::Always, move |calls| {
            calls.iter().any(&refused).then_some(Reply::Status(503, "the endpoint has no time"))
        });
    }

    /// Leaves the last log out of every answer to a method, as if it had never been.
    pub fn hide_logs_in(&self, method: &str) {
        self.answer(method, When::Always, |_, answer| hide_last_log(&mut answer["result"]));
    }

    /// Tells another state root of one block from now on, under the hash it had.
    pub fn bend_header(&self, number: u64) {
        self.answer("eth_getBlockByNumber", When::Always, move |_, answer| {
            if quantity(&answer["result"]["number"]) == Some(number) {
                answer["result"]["stateRoot"] = json!(B256::ZERO);
            }
        });
    }

    /// Treats whole requests as `rule` says.
    pub fn request(&self, when: When, rule: impl Fn(&[Value]) -> Option<Reply> + Send + Sync + 'static) {
        self.add(when, Fault::Request(Box::new(rule)));
    }

    /// Changes the answers to the calls of one method; the answer is the object with `result` or `error`.
    pub fn answer(&self, method: &str, when: When, change: impl Fn(&Value, &mut Value) + Send + Sync + 'static) {
        self.add(when, Fault::Answer(method.into(), Box::new(change)));
    }

    /// Changes the answers of batches.
    pub fn batch(&self, when: When, change: impl Fn(&mut Vec<Value>) + Send + Sync + 'static) {
        self.add(when, Fault::Batch(Box::new(change)));
    }

    /// Lets another chain answer some requests, and all of it.
    pub fn share(&self, when: When, target: &str) {
        self.add(when, Fault::Target(target.into()));
    }

    /// Lets a replica that is `blocks` behind answer some requests.
    pub fn lag(&self, when: When, blocks: u64) {
        self.add(when, Fault::Behind(blocks));
    }

    /// Passes everything on again.
    pub fn pass(&self) {
        self.state.rules.lock().unwrap().clear();
    }

    /// How often a rule changed anything.
    pub fn met(&self) -> u64 {
        self.state.met.load(Relaxed)
    }

    /// The newest block as it was told last.
    pub fn head(&self) -> u64 {
        self.state.head.load(Relaxed)
    }

    fn add(&self, when: When, fault: Fault) {
        self.state.rules.lock().unwrap().push(Arc::new(Rule { when, fault, occasions: AtomicU64::new(0) }));
    }
}

impl Rule {
    /// Whether the rule applies to this occasion, which is one more that it fits.
    fn applies(&self) -> bool {
        let n = self.occasions.fetch_add(1, Relaxed);
        match self.when {
            When::Always => true,
            When::First(count) => n < count,
            When::After(count) => n >= count,
            When::Every(count) => (n + 1).is_multiple_of(count),
            When::But(count) => !(n + 1).is_multiple_of(count),
        }
    }
}

async fn serve(Shared(state): Shared<Arc<State>>, Json(call): Json<Value>) -> Response {
    match state.answer(call).await {
        Ok(response) => response,
        Err(_) => StatusCode::BAD_GATEWAY.into_response(),
    }
}

impl State {
    async fn answer(&self, mut call: Value) -> Result<Response> {
        let calls = call.as_array().cloned().unwrap_or_else(|| vec![call.clone()]);
        let rules = self.rules.lock().unwrap().clone();
        let mut target = self.target.lock().unwrap().clone();
        let (mut reply, mut behind, mut view) = (None, 0, self.view.load(Relaxed));
        for rule in &rules {
            match &rule.fault {
                Fault::Request(fault) if reply.is_none() => {
                    reply = fault(&calls).filter(|_| rule.applies());
                    self.meet(reply.is_some());
                }
                Fault::Target(other) if rule.applies() => {
                    target.clone_from(other);
                    view = u64::MAX;
                    self.meet(true);
                }
                Fault::Behind(blocks) if rule.applies() => {
                    behind = *blocks;
                    self.meet(true);
                }
                _ => {}
            }
        }
        match reply {
            Some(Reply::Status(status, text)) => return Ok((StatusCode::from_u16(status)?, text).into_response()),
            Some(Reply::RetryAfter(status, seconds)) => {
                let headers = [(header::RETRY_AFTER, seconds)];
                return Ok((StatusCode::from_u16(status)?, headers, "too many requests").into_response());
            }
            Some(Reply::Text(text)) => return Ok(text.into_response()),
            Some(Reply::Error(code, text)) => {
                let error = json!({ "code": code, "message": text });
                return Ok(Json(json!({ "jsonrpc": "2.0", "id": null, "error": error })).into_response());
            }
            Some(Reply::Late(wait)) => tokio::time::sleep(wait).await,
            _ => {}
        }
        if behind > 0 {
            let newest = fabstir::devnet::rpc(&target, "eth_blockNumber", json!([])).await?;
            view = view.min(quantity(&newest).unwrap_or(0)).saturating_sub(behind);
        }
        match &mut call {
            Value::Array(calls) => calls.iter_mut().for_each(|call| look_back(call, view)),
            one => look_back(one, view),
        }
        if let Some(Reply::Twice) = reply {
            self.client.post(&target).json(&call).send().await?.bytes().await?;
        }
        let mut answer: Value = self.client.post(target).json(&call).send().await?.json().await?;
        let mut answers = answer.as_array().cloned().unwrap_or_else(|| vec![answer.clone()]);
        answers.sort_by_key(|answer| calls.iter().position(|call| call["id"] == answer["id"]));
        for (call, answer) in calls.iter().zip(&mut answers) {
            forget(call, answer, view);
            for rule in &rules {
                if let Fault::Answer(method, change) = &rule.fault
                    && call["method"] == method.as_str()
                    && rule.applies()
                {
                    let before = answer.clone();
                    change(call, answer);
                    self.meet(before != *answer);
                }
            }
            if call["params"][0] == "latest" && call["method"] == "eth_getBlockByNumber" {
                self.head.store(quantity(&answer["result"]["number"]).unwrap_or(0), Relaxed);
            }
        }
        if answer.is_array() {
            for rule in &rules {
                if let Fault::Batch(change) = &rule.fault
                    && answers.len() > 1
                    && rule.applies()
                {
                    change(&mut answers);
                    self.meet(true);
                }
            }
            answer = Value::Array(answers);
        } else {
            answer = answers.remove(0);
        }
        let text = answer.to_string();
        let half = text.as_bytes()[..text.len() / 2].to_vec();
        Ok(match reply {
            Some(Reply::Half) => ([(header::CONTENT_TYPE, "application/json")], half).into_response(),
            Some(Reply::Torn) => {
                let torn = [Ok(Bytes::from(half)), Err(std::io::Error::other("torn"))];
                Body::from_stream(stream::iter(torn)).into_response()
            }
            _ => Json(answer).into_response(),
        })
    }

    fn meet(&self, met: bool) {
        self.met.fetch_add(u64::from(met), Relaxed);
    }
}

/// Makes a call mean what it would if `view` were the newest block.
fn look_back(call: &mut Value, view: u64) {
    if view == u64::MAX || call["method"] != "eth_getBlockByNumber" && call["method"] != "eth_getBlockReceipts" {
        return;
    }
    let number = match call["params"][0].as_str() {
        Some("latest") => view,
        Some("safe") => view.saturating_sub(UNFINAL / 2),
        Some("finalized") => view.saturating_sub(UNFINAL),
        _ => return,
    };
    call["params"][0] = json!(format!("{number:#x}"));
}

/// Takes what is past `view` out of an answer, as a node has it that does not know those blocks.
fn forget(call: &Value, answer: &mut Value, view: u64) {
    // Naming its result would give it one.
    if answer.get("error").is_some() {
        return;
    }
    let past = |number: &Value| quantity(number).is_some_and(|number| number > view);
    let result = &mut answer["result"];
    match call["method"].as_str() {
        Some("eth_blockNumber") if past(result) => *result = json!(format!("{view:#x}")),
        Some("eth_getBlockByNumber" | "eth_getBlockByHash") if past(&result["number"]) => *result = Value::Null,
        Some("eth_getBlockReceipts") if past(&result[0]["blockNumber"]) => *result = Value::Null,
        Some("eth_getLogs") if past(&result[0]["blockNumber"]) && call["params"][0]["blockHash"].is_string() => {
            refusal(answer, -32000, "unknown block");
        }
        Some("eth_getLogs") => {
            if let Some(logs) = result.as_array_mut() {
                logs.retain(|log| !past(&log["blockNumber"]));
            }
        }
        _ => {}
    }
}

/// An HTTP client for this machine: without certificates, since reading the system's takes longer than all else.
pub fn client() -> Result<reqwest::Client> {
    Ok(reqwest::Client::builder().tls_certs_only([]).build()?)
}

/// Makes an answer an error.
pub fn refusal(answer: &mut Value, code: i64, message: &str) {
    *answer = json!({ "jsonrpc": "2.0", "id": answer["id"], "error": { "code": code, "message": message } });
}

/// Reads a JSON-RPC quantity.
pub fn quantity(value: &Value) -> Option<u64> {
    u64::from_str_radix(value.as_str()?.strip_prefix("0x")?, 16).ok()
}

/// Takes the last log out of an answer: of the logs, or of the receipts with their logs.
fn hide_last_log(result: &mut Value) {
    let Some(entries) = result.as_array_mut() else { return };
    if entries.iter().any(|entry| entry["logs"].is_array()) {
        let last =
            entries.iter_mut().rev().filter_map(|entry| entry["logs"].as_array_mut()).find(|logs| !logs.is_empty());
        last.and_then(Vec::pop);
    } else {
        entries.pop();
    }
}
