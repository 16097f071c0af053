//! A host of the run: the program as a child process with its own key, files and endpoint. Killed and started again at will.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use fabstir::content::Content;
use fabstir::market::types::Address;
use serde_json::Value;
use sqlx::SqlitePool;
use sqlx::sqlite::SqliteConnectOptions;
use tokio::process::{Child, Command};

use crate::endpoint::Endpoint;
use crate::market::Market;

/// Jobs that one host takes at once.
pub const SLOTS: usize = 4;
/// How long a host may take to end when it is asked to.
const END_WITHIN: Duration = Duration::from_secs(60);

/// One host and what belongs to it.
pub struct Host {
    pub name: &'static str,
    pub address: Address,
    /// Its transactions before the node runs have lower nonces.
    pub first_nonce: u64,
    pub endpoint: Endpoint,
    pub content: Content,
    /// How often it ended without being told to: a node that cannot reach its endpoint at its start does.
    pub exits: u64,
    /// Whether it is to run: between a kill and the next start it is not.
    pub wanted: bool,
    program: PathBuf,
    folder: PathBuf,
    child: Option<Child>,
}

impl Host {
    /// Registers a host with stake to lose and writes its configuration. It does not run yet.
    pub async fn new(market: &Market, name: &'static str, program: &Path, seed: u64) -> Result<Self> {
        let signer = market.account(name).await?;
        market.register(&signer).await?;
        let endpoint = Endpoint::start(&market.devnet.rpc_url, seed).await?;
        let folder = market.folder.clone();
        std::fs::write(folder.join(format!("{name}.toml")), configuration(market, name, &endpoint.url(), true)?)?;
        let content = Content::open(&folder.join(name).join("content"))?;
        let (address, program) = (signer.address(), program.to_owned());
        let first_nonce = market.nonce(address, "latest").await?;
        Ok(Self {
            name,
            address,
            first_nonce,
            endpoint,
            content,
            exits: 0,
            wanted: false,
            program,
            folder,
            child: None,
        })
    }

    /// Returns a node that only reads, for commands; it has no key.
    pub async fn reader(market: &Market, name: &'static str, program: &Path) -> Result<Self> {
        let (folder, endpoint) = (market.folder.clone(), Endpoint::start(&market.devnet.rpc_url, 0).await?);
        std::fs::write(folder.join(format!("{name}.toml")), configuration(market, name, &endpoint.url(), false)?)?;
        let content = Content::open(&folder.join(name).join("content"))?;
        let (address, program) = (Address::ZERO, program.to_owned());
        Ok(Self {
            name,
            address,
            first_nonce: 0,
            endpoint,
            content,
            exits: 0,
            wanted: false,
            program,
            folder,
            child: None,
        })
    }

    /// Starts the node if it does not run.
    pub fn start(&mut self) -> Result<()> {
        self.wanted = true;
        if self.runs()? {
            return Ok(());
        }
        let log = std::fs::OpenOptions::new().create(true).append(true).open(self.log())?;
        let mut command = self.command(&["run"]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).kill_on_drop(true);
        self.child = Some(command.spawn().with_context(|| format!("start {}", self.program.display()))?);
        Ok(())
    }

    /// Returns whether the process is there; notes it where it ended by itself.
    pub fn runs(&mut self) -> Result<bool> {
        let Some(child) = &mut self.child else { return Ok(false) };
        if child.try_wait()?.is_some() {
            self.child = None;
            self.exits += 1;
        }
        Ok(self.child.is_some())
    }

    /// Ends the process as a power cut would. Returns whether there was one.
    pub async fn kill(&mut self) -> Result<bool> {
        if !self.runs()? {
            return Ok(false);
        }
        self.wanted = false;
        self.child.take().context("it runs")?.kill().await?;
        Ok(true)
    }

    /// Asks the process to end, and waits until it has.
    pub async fn stop(&mut self) -> Result<()> {
        let Some(mut child) = self.child.take() else { return Ok(()) };
        let pid = child.id().context("a process without an id")?;
        let pid = rustix::process::Pid::from_raw(pid as i32).context("a process id")?;
        rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
        let status = tokio::time::timeout(END_WITHIN, child.wait()).await;
        let status = status.with_context(|| format!("{} does not end; see {}", self.name, self.log().display()))??;
        ensure!(status.success(), "{} ended with {status}; see {}", self.name, self.log().display());
        Ok(())
    }

    /// Runs a command of the program on this host's files, and returns its exit code and the JSON it printed. The chain is asked
    /// directly.
    pub async fn ask(&self, rpc_url: &str, words: &[&str]) -> Result<(Option<i32>, Value, String)> {
        let mut command = self.command(words);
        let output = command.arg("--json").env("RPC_URL", rpc_url).output().await?;
        let printed = serde_json::from_slice(&output.stdout).unwrap_or(Value::Null);
        Ok((output.status.code(), printed, String::from_utf8_lossy(&output.stderr).into_owned()))
    }

    /// Opens the database to read from it; `None` before the node made one.
    pub async fn database(&self) -> Result<Option<SqlitePool>> {
        let file = self.folder.join(self.name).join("node.sqlite");
        if !file.exists() {
            return Ok(None);
        }
        let options = SqliteConnectOptions::new().filename(file).read_only(true).busy_timeout(Duration::from_secs(20));
        Ok(Some(SqlitePool::connect_with(options).await?))
    }

    /// Where the node logs.
    pub fn log(&self) -> PathBuf {
        self.folder.join(format!("{}.log", self.name))
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("--config").arg(self.folder.join(format!("{}.toml", self.name))).args(words);
        command.env_clear().envs(std::env::var_os("PATH").map(|path| ("PATH", path))).env("FABSTIR_LOG", "info");
        command
    }
}

/// Returns the configuration of a node; one that is no host only reads.
fn configuration(market: &Market, name: &str, rpc_url: &str, host: bool) -> Result<String> {
    let mut text = format!(
        "data_dir = \"{name}\"\n[chain]\nid = {}\nrpc_url = \"{rpc_url}\"\nstart_block = {}\npoll_ms = 200\ntimeout_seconds = 5\n\
         sweep_seconds = 20\n{}[p2p]\nlisten = [\"/ip4/127.0.0.1/tcp/0\"]\nmdns = false\n[http]\nlisten = \"127.0.0.1:0\"\n",
        fabstir::devnet::CHAIN_ID,
        market.book.block,
        market.book.contracts.section(),
    );
    if host {
        // The breaker would stop the run after a few missed deadlines, which are meant to happen.
        text += &format!(
            "[prover]\npython = {:?}\ndir = {:?}\n[host]\nkeystore = \"{name}.json\"\npassword_file = \"password\"\n\
             tokens_per_second = 1000\nmargin_seconds = 8\nprice_per_1k = {{ eth = \"1000000\" }}\nbump_after_seconds = 10\n\
             [host.breaker]\nfailures = 0\ngas_wei_per_hour = 0\ndrift_percent = 0\n\
             [[host.models]]\npath = {:?}\nslots = {SLOTS}\ncontext_tokens = 512\nthreads = 1\nmax_tokens = 256\n",
            market.python,
            market.prover,
            std::path::absolute(&market.model_file)?,
        );
    }
    Ok(text)
}
