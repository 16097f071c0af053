//! The program as a host: a child process with a configuration of its own.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use fabstir::devnet::{AddressBook, CHAIN_ID};
use fabstir::market::types::Address;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tokio::process::{Child, Command};

use crate::place::{MODEL, Place};

pub struct Host {
    pub account: Address,
    child: Child,
    program: PathBuf,
    config: PathBuf,
}

impl Host {
    /// Registers a host and starts it at `rpc_url`, with `more` in its configuration; returns once it makes claims.
    pub async fn start(place: &Place, program: &Path, name: &str, rpc_url: &str, more: &str) -> Result<Self> {
        let account = place.host(name).await?.address();
        let config = write(&place.folder, name, rpc_url, &place.devnet.rpc_url, &place.book, more)?;
        let mut child = spawn(program, &config, &place.folder.join(name))?;
        ready(&mut child, &place.folder.join(name)).await?;
        Ok(Self { account, child, program: program.to_owned(), config })
    }

    /// Returns its transactions as `fabstir tx list` has them: those that are open, or all.
    pub async fn transactions(&self, all: bool) -> Result<Vec<Value>> {
        let mut command = command(&self.program, &self.config);
        command.args(["--json", "tx", "list"]).args(all.then_some("--all"));
        let output = command.output().await.context("start fabstir tx list")?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "fabstir tx list ended with {}: {said}", output.status);
        serde_json::from_slice(&output.stdout).context("what fabstir tx list printed")
    }

    /// Waits until none of its transactions is open.
    pub async fn settled(&self) -> Result<()> {
        let give_up = Instant::now() + Duration::from_secs(120);
        loop {
            let open = self.transactions(false).await?;
            let Some(oldest) = open.first() else { return Ok(()) };
            let (count, host) = (open.len(), self.account);
            ensure!(Instant::now() < give_up, "{count} transactions of host {host} stay open, the oldest: {oldest}");
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }

    /// Stops it in order.
    pub async fn stop(mut self) -> Result<()> {
        let pid = self.child.id().and_then(|id| Pid::from_raw(id as i32)).context("it ended by itself")?;
        kill_process(pid, Signal::TERM)?;
        let status = tokio::time::timeout(Duration::from_secs(120), self.child.wait()).await??;
        ensure!(status.success(), "the node ended with {status}");
        Ok(())
    }

    /// Ends it at once.
    pub async fn kill(mut self) -> Result<()> {
        Ok(self.child.kill().await?)
    }
}

/// Starts `fabstir run`; its log goes to the folder.
pub fn spawn(program: &Path, config: &Path, folder: &Path) -> Result<Child> {
    let log = std::fs::OpenOptions::new().create(true).append(true).open(folder.join("run.log"))?;
    let mut command = command(program, config);
    command.arg("run").stdout(Stdio::null()).stderr(log);
    command.spawn().with_context(|| format!("start {}", program.display()))
}

fn command(program: &Path, config: &Path) -> Command {
    let mut command = Command::new(program);
    command.arg("--config").arg(config).env_clear();
    command.envs(
        ["PATH", "FABSTIR_PYTHON", "HOME", "FABSTIR_LOG"]
            .iter()
            .filter_map(|name| Some((name, std::env::var_os(name)?))),
    );
    command.stdin(Stdio::null()).kill_on_drop(true);
    command
}

/// Waits until the node says that it is ready; returns how long that took.
pub async fn ready(child: &mut Child, folder: &Path) -> Result<Duration> {
    let (began, give_up) = (Instant::now(), Duration::from_secs(120));
    loop {
        if let Some(status) = child.try_wait()? {
            anyhow::bail!("the node ended with {status}: see {}", folder.join("run.log").display());
        }
        if let Ok(text) = std::fs::read(folder.join("node.json"))
            && let Ok(whereabouts) = serde_json::from_slice::<Value>(&text)
            && whereabouts["pid"].as_u64() == child.id().map(u64::from)
            && let Some(http) = whereabouts["http"].as_str()
            && reqwest::get(format!("http://{http}/readyz")).await.is_ok_and(|answer| answer.status().is_success())
        {
            return Ok(began.elapsed());
        }
        ensure!(began.elapsed() < give_up, "the node is not ready: see {}", folder.join("run.log").display());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Writes the configuration of a host called `name`; its data lie in the folder of that name. `more` follows the entries of `[host]`:
/// further ones, and sections below it.
pub fn write(folder: &Path, name: &str, rpc_url: &str, heads: &str, book: &AddressBook, more: &str) -> Result<PathBuf> {
    let (block, contracts) = (book.block, book.contracts.section());
    std::fs::create_dir_all(folder.join(name))?;
    let text = format!(
        "data_dir = \"{name}\"\n[chain]\nid = {CHAIN_ID}\nrpc_url = \"{rpc_url}\"\nws_url = \"{}\"\nstart_block = {block}\n\
         poll_ms = 200\n{contracts}[p2p]\nlisten = [\"/ip4/127.0.0.1/tcp/0\"]\nmdns = false\n[http]\nlisten = \"127.0.0.1:0\"\n\
         [prover]\npython = {:?}\ndir = {:?}\n[host]\nkeystore = \"{name}.json\"\npassword_file = \"password\"\nwindow = 2000\n\
         margin_seconds = 5\ntokens_per_second = 1000\nprice_per_1k = {{ eth = \"1\" }}\n{more}\
         [[host.models]]\npath = {MODEL:?}\nslots = 4\nqueue = 5000\ncontext_tokens = 512\nthreads = 1\nmax_tokens = 64\n",
        heads.replacen("http", "ws", 1),
        std::env::var("FABSTIR_PYTHON").unwrap_or_else(|_| "python3".into()),
        Path::new(env!("CARGO_MANIFEST_DIR")).join(".fabstir/prover"),
    );
    let file = folder.join(format!("{name}.toml"));
    std::fs::write(&file, text)?;
    Ok(file)
}
