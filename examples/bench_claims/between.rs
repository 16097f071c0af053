//! An endpoint between the node and the chain that passes everything on as it is, and notes when the node was told of a job and when
//! the chain took a transaction: what is measured is measured from outside.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use alloy::consensus::{Transaction, TxEnvelope};
use alloy::eips::Decodable2718;
use alloy::primitives::{B256, Bytes, U256, keccak256};
use anyhow::{Context, Result};
use axum::Router;
use axum::body::{Body, Bytes as Content};
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::Value;

const JOB_TERMS: &str = "JobTerms(uint256,address,address,uint256,uint64,address,\
                         (string,string,uint256,uint256,uint32,string),(uint256,uint256,uint256,bool))";
/// The calls that claim a job, whose number comes first.
pub const CLAIMS: [&str; 2] = ["claimJob(uint256)", "claimExactly(uint256,bytes32)"];
/// An answer that tells of a job is longer.
const TELLING_BYTES_MIN: usize = 500;
const SEND: &[u8] = b"eth_sendRawTransaction";

/// One endpoint on a free port.
pub struct Between {
    pub url: String,
    chain: String,
    client: reqwest::Client,
    /// The topic of a posted job, as its text stands in an answer.
    posted: String,
    noted: Mutex<Noted>,
}

#[derive(Default)]
struct Noted {
    /// Every longer answer, each with when it was handed on. Which of them tell of posted jobs is found out afterwards: looking takes
    /// time.
    handed_on: Vec<(Instant, Content)>,
    /// Requests to send, each with when its answer came, and the answer.
    sent: Vec<(Instant, Content, Content)>,
    /// When each request came that sends nothing.
    asked: Vec<Instant>,
}

/// When the node was first told of each job, when the chain took its claim, and when the node asked for something.
#[derive(Debug, Default)]
pub struct Times {
    pub told: HashMap<u64, Instant>,
    pub claimed: HashMap<u64, Instant>,
    /// In order.
    asked: Vec<Instant>,
}

impl Times {
    /// Returns how often the node asked for something between a job's log and its claim, of all jobs together.
    pub fn asked_between(&self) -> usize {
        let before = |end: &Instant| self.asked.partition_point(|at| at < end);
        let between = |(job, told)| Some(before(self.claimed.get(job)?).saturating_sub(before(told)));
        self.told.iter().filter_map(between).sum()
    }
}

impl Between {
    /// Stands in front of the chain at `chain`.
    pub async fn start(chain: &str) -> Result<Arc<Self>> {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        let posted = keccak256(JOB_TERMS);
        let between = Arc::new(Self {
            url: format!("http://{}", listener.local_addr()?),
            chain: chain.to_owned(),
            client: reqwest::Client::new(),
            posted: format!("{posted:x}"),
            noted: Mutex::default(),
        });
        let app = Router::new().fallback(serve).with_state(between.clone());
        tokio::spawn(async move { axum::serve(listener, app).await });
        Ok(between)
    }

    /// Forgets what was noted.
    pub fn forget(&self) {
        *self.noted() = Noted::default();
    }

    /// Reads what was noted so far.
    pub fn times(&self) -> Result<Times> {
        let noted = self.noted();
        let mut times = Times { asked: noted.asked.clone(), ..Times::default() };
        times.asked.sort_unstable();
        for (at, answer) in noted.handed_on.iter().filter(|(_, answer)| contains(answer, self.posted.as_bytes())) {
            let answer: Value = serde_json::from_slice(answer).context("an answer of the chain")?;
            let mut jobs = Vec::new();
            posted(&answer, &self.posted, &mut jobs);
            for job in jobs {
                times.told.entry(job).and_modify(|known| *known = (*known).min(*at)).or_insert(*at);
            }
        }
        let claims = CLAIMS.map(keccak256);
        for (at, request, answer) in &noted.sent {
            let (request, answer): (Value, Value) = (serde_json::from_slice(request)?, serde_json::from_slice(answer)?);
            let each = |value: Value| if let Value::Array(all) = value { all } else { vec![value] };
            for (request, answer) in each(request).into_iter().zip(each(answer)) {
                if request["method"] != "eth_sendRawTransaction" || !answer["error"].is_null() {
                    continue;
                }
                let raw: Bytes = serde_json::from_value(request["params"][0].clone())?;
                let tx = TxEnvelope::decode_2718(&mut raw.as_ref()).context("signed bytes")?;
                let input = tx.input();
                if let Some(job) =
                    input.get(4..36).filter(|_| claims.iter().any(|claim| input.starts_with(&claim[..4])))
                {
                    let job = U256::from_be_slice(job).to::<u64>();
                    times.claimed.entry(job).and_modify(|known| *known = (*known).min(*at)).or_insert(*at);
                }
            }
        }
        Ok(times)
    }

    fn noted(&self) -> MutexGuard<'_, Noted> {
        self.noted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn answer(&self, body: Content) -> Result<Response> {
        let (came, sends) = (Instant::now(), contains(&body[..body.len().min(256)], SEND));
        let request = self.client.post(&self.chain).header(header::CONTENT_TYPE, "application/json");
        let answer = request.body(body.clone()).send().await?.bytes().await?;
        let now = Instant::now();
        let mut noted = self.noted();
        if answer.len() > TELLING_BYTES_MIN {
            noted.handed_on.push((now, answer.clone()));
        }
        match sends {
            true => noted.sent.push((now, body, answer.clone())),
            false => noted.asked.push(came),
        }
        drop(noted);
        Ok(([(header::CONTENT_TYPE, "application/json")], Body::from(answer)).into_response())
    }
}

async fn serve(State(between): State<Arc<Between>>, body: Content) -> Response {
    match between.answer(body).await {
        Ok(response) => response,
        Err(_) => StatusCode::BAD_GATEWAY.into_response(),
    }
}

fn contains(text: &[u8], part: &[u8]) -> bool {
    text.windows(part.len()).any(|window| window == part)
}

/// Collects the jobs whose posting is told anywhere in an answer.
fn posted(value: &Value, topic: &str, jobs: &mut Vec<u64>) {
    match value {
        Value::Array(all) => all.iter().for_each(|value| posted(value, topic, jobs)),
        Value::Object(fields) => {
            let topics: Vec<&str> = fields
                .get("topics")
                .and_then(Value::as_array)
                .into_iter()
                .flatten()
                .filter_map(Value::as_str)
                .collect();
            if let [first, job, ..] = topics[..]
                && first.ends_with(topic)
                && let Ok(job) = job.parse::<B256>()
            {
                jobs.push(U256::from_be_bytes(job.0).to());
            }
            fields.values().for_each(|value| posted(value, topic, jobs));
        }
        _ => {}
    }
}
