//! Ponder, a public indexer (<https://ponder.sh>), on the same chain: what its whole process group takes, and what it has when
//! its endpoint leaves logs out. Its project is in `ponder/`; it keeps its rows in PGlite, on the disk where ours are.

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use fabstir::devnet::CHAIN_ID;
use fabstir::market::types::Address;
use rustix::process::{Pid, Signal, kill_process_group};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::watch;

use crate::market::{Market, indexed};
use crate::process::{Cost, group_cpu_s, peak_mb, rounded};

const PROJECT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/bench_index/ponder");
/// Nothing that is slower is waited for.
const DONE_WITHIN: Duration = Duration::from_secs(3600);
/// What Ponder prints at its end block, and at nothing else.
const DONE: &str = "Completed indexing across all chains";
/// The level of its lines from which it gives up (pino's `error`).
const LEVEL_ERROR: u64 = 50;

/// One run.
#[derive(Debug, Serialize)]
pub struct Indexed {
    /// That it says it has indexed.
    pub events: u64,
    /// From its first request to its last line. The peak is that of its main process.
    pub cost: Cost,
}

/// Returns the installed Ponder's version, once it is installed.
pub async fn install() -> Result<String> {
    if !program().is_file() {
        eprintln!("installing Ponder");
        let mut npm = Command::new("npm");
        npm.args(["ci", "--no-audit", "--no-fund", "--loglevel=error"]).current_dir(PROJECT);
        npm.stdin(Stdio::null()).stdout(Stdio::null()).kill_on_drop(true);
        let status = npm.status().await.context("start npm, which --ponder needs: install Node.js 20 with npm")?;
        ensure!(status.success(), "npm ci in {PROJECT}: {status}");
    }
    let file = Path::new(PROJECT).join("node_modules/ponder/package.json");
    let text = std::fs::read(&file).with_context(|| format!("read {}", file.display()))?;
    let package: Value = serde_json::from_slice(&text)?;
    Ok(package["version"].as_str().context("Ponder without a version")?.to_owned())
}

/// Runs Ponder to the newest block on an empty database in `folder`.
pub async fn index(market: &Market, between: &Between, folder: &Path) -> Result<Indexed> {
    let settings = json!({
        "url": between.url, "id": CHAIN_ID, "first": market.book.block, "last": market.head(), "database": folder,
        "contracts": market.book.contracts.named().into_iter().collect::<BTreeMap<_, _>>(),
    });
    std::fs::create_dir_all(folder)?;
    let mut command = Command::new(program());
    command.args(["start", "--schema", "bench", "--hostname", "127.0.0.1", "--port", "0", "--log-format", "json"]);
    command.env_clear().envs(std::env::var_os("PATH").map(|path| ("PATH", path)));
    command.env("BENCH_PONDER", settings.to_string()).env("PONDER_TELEMETRY_DISABLED", "true").current_dir(PROJECT);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).process_group(0).kill_on_drop(true);
    let mut asked = between.asked.subscribe();
    let mut group = Group(command.spawn().context("start Ponder, which needs Node.js 20 on the path")?);
    let pid = group.0.id().context("Ponder ended")?;
    let mut lines = BufReader::new(group.0.stdout.take().context("its output")?).lines();
    let working = async {
        let (mut events, mut first) = (0, None);
        loop {
            let line = tokio::select! {
                _ = asked.changed(), if first.is_none() => {
                    first = Some((group_cpu_s(pid)?, Instant::now()));
                    continue;
                }
                line = lines.next_line() => line?,
            };
            let line = line.context("Ponder ended early")?;
            let told: Value = serde_json::from_str(&line).unwrap_or_default();
            ensure!(told["level"].as_u64().unwrap_or(0) < LEVEL_ERROR, "Ponder failed: {line}");
            // Of a range of final blocks, and of each block after them.
            events += told["event_count"].as_u64().unwrap_or(0);
            if told["msg"] == DONE {
                let (cpu_s, began) = first.context("Ponder asked for nothing")?;
                let cpu_s = rounded(group_cpu_s(pid)? - cpu_s, 2);
                let wall_s = rounded(began.elapsed().as_secs_f64(), 3);
                let peak_mb = rounded(peak_mb(pid).context("Ponder ended")?, 1);
                return Ok(Indexed { events, cost: Cost { cpu_s, wall_s, peak_mb } });
            }
        }
    };
    tokio::time::timeout(DONE_WITHIN, working).await.context("Ponder does not come to an end")?
}

fn program() -> PathBuf {
    Path::new(PROJECT).join("node_modules/.bin/ponder")
}

/// A process and its children, which end with this.
struct Group(Child);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(leader) = self.0.id().and_then(|id| Pid::from_raw(id as i32)) {
            kill_process_group(leader, Signal::KILL).ok();
        }
    }
}

/// An endpoint on a free port, between an indexer and the chain, which may leave logs out of `eth_getLogs`.
pub struct Between {
    pub url: String,
    /// Changes with each request.
    asked: watch::Sender<()>,
    chain: String,
    client: reqwest::Client,
    /// Of so many logs of `ours` one is left out, the same ones whenever they are asked for; 0 leaves none out.
    hide_one_in: u64,
    ours: Vec<Address>,
    hidden: Mutex<HashSet<(u64, u64)>>,
}

impl Between {
    /// Stands in front of the market's chain.
    pub async fn start(market: &Market, hide_one_in: u64) -> Result<Arc<Self>> {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        let between = Arc::new(Self {
            url: format!("http://{}", listener.local_addr()?),
            asked: watch::Sender::new(()),
            chain: market.devnet.rpc_url.clone(),
            client: reqwest::Client::new(),
            hide_one_in,
            ours: indexed(&market.book.contracts),
            hidden: Mutex::default(),
        });
        let app = Router::new().fallback(serve).with_state(between.clone());
        tokio::spawn(async move { axum::serve(listener, app).await });
        Ok(between)
    }

    /// Returns how many logs it has left out so far.
    pub fn hidden(&self) -> u64 {
        self.hidden.lock().unwrap_or_else(PoisonError::into_inner).len() as u64
    }

    async fn answer(&self, body: Bytes) -> Result<Response> {
        let request = self.client.post(&self.chain).header(header::CONTENT_TYPE, "application/json").body(body);
        let mut answer = request.send().await?.bytes().await?;
        if self.hide_one_in > 0 {
            let mut answers = serde_json::from_slice(&answer)?;
            match &mut answers {
                Value::Array(answers) => answers.iter_mut().for_each(|answer| self.hide(answer)),
                answer => self.hide(answer),
            }
            answer = answers.to_string().into();
        }
        Ok(([(header::CONTENT_TYPE, "application/json")], Body::from(answer)).into_response())
    }

    fn hide(&self, answer: &mut Value) {
        let Some(entries) = answer["result"].as_array_mut() else { return };
        let mut hidden = self.hidden.lock().unwrap_or_else(PoisonError::into_inner);
        entries.retain(|entry| {
            let (Some(block), Some(index)) = (quantity(&entry["blockNumber"]), quantity(&entry["logIndex"])) else {
                return true;
            };
            let ours = Address::deserialize(&entry["address"]).is_ok_and(|address| self.ours.contains(&address));
            let hide = ours && (block + index).is_multiple_of(self.hide_one_in);
            if hide {
                hidden.insert((block, index));
            }
            !hide
        });
    }
}

async fn serve(State(between): State<Arc<Between>>, body: Bytes) -> Response {
    between.asked.send_replace(());
    match between.answer(body).await {
        Ok(response) => response,
        Err(_) => StatusCode::BAD_GATEWAY.into_response(),
    }
}

fn quantity(value: &Value) -> Option<u64> {
    u64::from_str_radix(value.as_str()?.strip_prefix("0x")?, 16).ok()
}
