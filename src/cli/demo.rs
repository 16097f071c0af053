//! `fabstir demo`: one job from post to payment, on a local chain, with every part real.
//!
//! Starts anvil, deploys the contracts, runs a host and a second node as processes of their own, and plays the renter.

use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::process::{Child, Command};

use super::{Global, decimal, print_json};
use crate::audit;
use crate::chain::call::{self, Order};
use crate::chain::{Chain, Signer, key};
use crate::devnet::{self, AddressBook, Devnet};
use crate::market::job::{Job, State};
use crate::market::types::{self, Address, Cid, JobId, ModelId, U256};
use crate::p2p::{self, Keypair, Multiaddr};
use crate::renter::{Renter, is_final};
use crate::store::{Entry, Store};

/// How long any single step may take on a slow machine.
const STEP_WITHIN: Duration = Duration::from_secs(120);
/// Seconds between completion and payment.
const CHALLENGE_WINDOW: u64 = 3;
const ETH: u64 = 1_000_000_000_000_000_000;

#[derive(Debug, clap::Args)]
pub struct DemoArguments {
    /// Leave chain and nodes running at the end, until Ctrl-C.
    #[arg(long)]
    keep: bool,
    /// The contracts' folder, built.
    #[arg(long, default_value = "contracts", value_name = "DIR")]
    contracts: PathBuf,
    /// The model to serve.
    #[arg(long, default_value = "tests/models/tiny-chat-q8_0.gguf", value_name = "FILE")]
    model: PathBuf,
    /// A Python that has ezkl.
    #[arg(long, env = "FABSTIR_PYTHON", default_value = ".fabstir/venv/bin/python", value_name = "FILE")]
    python: PathBuf,
    /// Folder of the circuit's keys; derived there when missing.
    #[arg(long, default_value = ".fabstir/prover", value_name = "DIR")]
    prover_dir: PathBuf,
}

/// A line of the table.
#[derive(Debug, Serialize)]
struct JobLine {
    id: JobId,
    state: &'static str,
    host: Option<Address>,
    tokens: Option<u32>,
    proof_verified: bool,
    /// Net amount to the host, or what came back to the renter, in the token's smallest unit.
    #[serde(serialize_with = "types::decimal")]
    paid_wei: U256,
    token: Address,
    host_gas: u64,
}

/// A node that runs beside us.
struct Process {
    config: PathBuf,
    http: SocketAddr,
    peers: Vec<Multiaddr>,
    child: Child,
}

/// What `fabstir run` leaves for other programs.
#[derive(Deserialize)]
struct Whereabouts {
    http: SocketAddr,
    p2p: Vec<Multiaddr>,
}

struct Stage {
    folder: PathBuf,
    devnet: Devnet,
    book: AddressBook,
    usd: Address,
    quiet: bool,
    started: Instant,
}

/// Runs the demonstration.
pub async fn demo(global: &Global, arguments: &DemoArguments) -> Result<()> {
    let folder = tempfile::Builder::new().prefix("fabstir-demo-").tempdir().context("make the demo's folder")?;
    let shown = tokio::select! {
        shown = show(global, arguments, folder.path()) => shown,
        _ = tokio::signal::ctrl_c() => Err(anyhow::anyhow!("interrupted")),
    };
    if shown.is_err() {
        let kept = folder.keep();
        eprintln!("the nodes' logs are in {}", kept.display());
    }
    shown
}

async fn show(global: &Global, arguments: &DemoArguments, folder: &Path) -> Result<()> {
    let stage = Stage::set(global.json, arguments, folder).await?;
    let chain = Chain::connect(&stage.devnet.rpc_url, devnet::CHAIN_ID, stage.book.contracts.clone()).await?;

    stage.say("2  a host and a second node, each a process of its own");
    let password = secret(&folder.join("password"))?;
    let host_key = key::create(&folder.join("host.json"), &password)?;
    stage.fund(&host_key, chain.stake_min().await?).await?;
    let host_config = stage.write_config("host", &[], Some(arguments))?;
    let renter_key = key::create(&folder.join("renter.json"), &password)?;
    stage.fund(&renter_key, U256::ZERO).await?;
    stage.fabstir(&host_config, &["register"]).await?;
    stage.devnet.mine_every(1).await?;
    let mut host = stage.start(host_config).await?;
    let mut second = stage.start(stage.write_config("second", &host.peers, None)?).await?;
    stage.say(&format!(
        "   host {} on http://{}, second node on http://{}",
        host_key.address(),
        host.http,
        second.http
    ));

    let renter = stage.renter(&chain, renter_key, &host).await?;
    let model = model_id(&arguments.model)?;
    let first = stage.book.block;

    stage.say("3  a job for a model that nobody serves: its money is locked, nobody claims it");
    let orphan =
        renter.post(&Order { model: ModelId([0xfa; 32]), seconds: 60, ..order(model, U256::from(ETH / 1000)) }).await?;
    stage.say(&format!("   job {} posted, {} ETH in escrow", orphan.job, decimal(U256::from(ETH / 1000), 18)));

    let mut jobs = Vec::new();
    for (number, token, prompt) in
        [(4, Address::ZERO, "What is the capital of France?"), (5, stage.usd, "Tell me a story about a fox.")]
    {
        stage.say(&format!("{number}  a job paid in {}: {prompt:?}", stage.unit(token).0));
        jobs.push(stage.buy(&renter, model, token, prompt).await?);
    }

    stage.say("6  the deadline of the first job passes: the renter takes the money back");
    stage.devnet.rpc("evm_increaseTime", json!([60])).await?;
    stage.devnet.rpc("evm_mine", json!([])).await?;
    let refunded = renter.refund(orphan.job).await?;
    stage.say(&format!("   {} ETH refunded", decimal(refunded, 18)));
    jobs.insert(0, renter.until(orphan.job, first, STEP_WITHIN, is_final).await?);

    stage.say("7  the second node heard the signed receipts, checked them against the chain and kept them");
    let receipts = stage.receipts(&second, 2).await?;
    stage.say(&format!("   {receipts} receipts"));

    stage.say("8  an audit: fetch the chain again, fold it again, compare with the host's database");
    let store = stage.store(&host).await?;
    until(|| async { Ok(store.job(orphan.job).await?.is_some_and(|job| is_final(&job))) })
        .await
        .context("the host's indexer")?;
    let report = audit::run(&store, &chain, |_, _| ()).await?;
    ensure!(report.divergences.is_empty(), "the audit found: {}", report.divergences.join("; "));
    stage.say(&format!(
        "   {} events in {} blocks, no divergence, journal head {}",
        report.events, report.blocks, report.journal_head
    ));

    let lines = lines(&store, &jobs).await?;
    let elapsed = stage.started.elapsed().as_secs_f64();
    if global.json {
        print_json(&json!({
            "jobs": lines,
            "receipts_verified": receipts,
            "audit": { "events": report.events, "journal_head": report.journal_head, "divergences": report.divergences.len() },
            "elapsed_s": (elapsed * 10.0).round() / 10.0,
        }))?;
    } else {
        stage.table(&lines);
        println!("\ndone in {elapsed:.0} s. Next: `fabstir --help`; README.md says how to run a host.");
    }
    if arguments.keep {
        let (config, folder) = (host.config.display(), folder.display());
        eprintln!("\nrunning until Ctrl-C: chain {}, host http://{}", stage.devnet.rpc_url, host.http);
        eprintln!("try: fabstir -c {config} jobs\n     fabstir -c {config} job 2\n     fabstir -c {config} audit");
        eprintln!("     fabstir -c {folder}/second.toml receipts\n     curl http://{}/readyz", host.http);
        tokio::signal::ctrl_c().await?;
    }
    stop(&mut second.child).await?;
    stop(&mut host.child).await
}

impl Stage {
    async fn set(quiet: bool, arguments: &DemoArguments, folder: &Path) -> Result<Self> {
        let started = Instant::now();
        for (what, path) in [
            ("model", &arguments.model),
            ("Python with ezkl", &arguments.python),
            ("contracts' folder", &arguments.contracts),
        ] {
            ensure!(path.exists(), "the {what} is not at {}: run `make setup` in the checkout", path.display());
        }
        if !quiet {
            println!("1  a local chain, and the contracts on it");
        }
        let devnet = Devnet::start(&arguments.contracts).await?;
        let book = devnet::deploy(&devnet.rpc_url, &arguments.contracts, CHALLENGE_WINDOW).await?;
        let usd = book.usd.context("the deployment made no test token")?;
        let stage = Self { folder: folder.to_owned(), devnet, book, usd, quiet, started };
        stage.say(&format!(
            "   chain {} at {}, marketplace {}",
            devnet::CHAIN_ID,
            stage.devnet.rpc_url,
            stage.book.contracts.job_marketplace
        ));
        Ok(stage)
    }

    fn say(&self, line: &str) {
        if !self.quiet {
            println!("{line}");
        }
    }

    /// Gives an account ETH, test dollars and `fab`.
    async fn fund(&self, account: &Signer, fab: U256) -> Result<()> {
        let address = account.address();
        self.devnet.fund(address, U256::from(100 * u128::from(ETH))).await?;
        self.devnet.send(&call::transfer(self.usd, address, U256::from(1_000_000_000))).await?;
        self.devnet.send(&call::transfer(self.book.contracts.governance_token, address, fab)).await
    }

    fn write_config(&self, name: &str, bootstrap: &[Multiaddr], host: Option<&DemoArguments>) -> Result<PathBuf> {
        let mut text = format!(
            "data_dir = \"{name}\"\n[chain]\nid = {}\nrpc_url = \"{}\"\nws_url = \"{}\"\nstart_block = {}\npoll_ms = 250\n\
             {}[p2p]\nlisten = [\"/ip4/127.0.0.1/tcp/0\", \"/ip4/127.0.0.1/udp/0/quic-v1\"]\n\
             bootstrap = {bootstrap:?}\nmdns = false\n[http]\nlisten = \"127.0.0.1:0\"\n",
            devnet::CHAIN_ID,
            self.devnet.rpc_url,
            self.devnet.rpc_url.replacen("http", "ws", 1),
            self.book.block,
            self.book.contracts.section(),
            bootstrap = bootstrap.iter().map(ToString::to_string).collect::<Vec<_>>(),
        );
        if let Some(arguments) = host {
            let path = |path: &Path| anyhow::Ok(std::path::absolute(path)?.display().to_string());
            text += &format!(
                "[prover]\npython = {:?}\ndir = {:?}\n[host]\nkeystore = \"host.json\"\npassword_file = \"password\"\n\
                 margin_seconds = 10\nprice_per_1k = {{ eth = \"{}\", \"{}\" = \"2000000\" }}\n\
                 [[host.models]]\npath = {:?}\nslots = 2\ncontext_tokens = 512\nthreads = 1\nmax_tokens = 256\n",
                path(&arguments.python)?,
                path(&arguments.prover_dir)?,
                ETH / 1000,
                self.usd,
                path(&arguments.model)?,
            );
        }
        let file = self.folder.join(format!("{name}.toml"));
        std::fs::write(&file, text).with_context(|| format!("write {}", file.display()))?;
        Ok(file)
    }

    fn command(&self, config: &Path, arguments: &[&str]) -> Result<Command> {
        let mut command = Command::new(std::env::current_exe().context("find this program")?);
        command.arg("--config").arg(config).args(arguments).stdin(Stdio::null()).kill_on_drop(true);
        // The stage's own settings only: an operator's environment is not for the demo's nodes.
        command.env_clear().envs(std::env::var_os("PATH").map(|path| ("PATH", path)));
        Ok(command)
    }

    async fn fabstir(&self, config: &Path, arguments: &[&str]) -> Result<()> {
        let output = self.command(config, arguments)?.output().await?;
        ensure!(
            output.status.success(),
            "fabstir {}: {}",
            arguments.join(" "),
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(())
    }

    async fn start(&self, config: PathBuf) -> Result<Process> {
        let log = std::fs::File::create(config.with_extension("log"))?;
        let mut child = self.command(&config, &["run"])?.stdout(log.try_clone()?).stderr(log).spawn()?;
        let file = config.with_extension("").join("node.json");
        let whereabouts = async {
            loop {
                if let Some(status) = child.try_wait()? {
                    let log = std::fs::read_to_string(config.with_extension("log"))?;
                    bail!("the node ended with {status}: {}", log.lines().last().unwrap_or_default());
                }
                if let Some(found) =
                    std::fs::read(&file).ok().and_then(|text| serde_json::from_slice::<Whereabouts>(&text).ok())
                {
                    return Ok(found);
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        let Whereabouts { http, p2p } =
            tokio::time::timeout(STEP_WITHIN, whereabouts).await.context("a node does not come up")??;
        until(|| async { Ok(reqwest::get(format!("http://{http}/readyz")).await?.status().is_success()) })
            .await
            .context("a node is not ready")?;
        Ok(Process { config, http, peers: p2p, child })
    }

    async fn renter(&self, chain: &Chain, signer: Signer, host: &Process) -> Result<Renter> {
        let listen = vec!["/ip4/127.0.0.1/tcp/0".parse()?];
        let identity = Keypair::generate_ed25519();
        let peer = p2p::Config { identity, listen, bootstrap: host.peers.clone(), mdns: false };
        let (p2p, _) = p2p::start(peer).await?;
        Ok(Renter::new(chain.clone(), p2p, signer))
    }

    async fn buy(&self, renter: &Renter, model: ModelId, token: Address, prompt: &str) -> Result<Job> {
        let offers = renter.discover(model, prompt, 160, token, None, STEP_WITHIN).await?;
        let offer = offers.first().context("no host was found")?;
        let (unit, decimals) = self.unit(token);
        self.say(&format!(
            "   found host {} over libp2p; it asks {} {unit}",
            offer.capabilities.host,
            decimal(offer.quote.price, decimals)
        ));
        let input = renter.deliver(offer, prompt).await?;
        let order = Order { input, token, temperature_milli: 300, seed: 7, ..order(model, offer.quote.price) };
        let posted = renter.post(&order).await?;
        if !self.quiet {
            print!("   job {}: ", posted.job);
        }
        let show = |text: &str| {
            if !self.quiet {
                print!("{text}");
                let _ = std::io::stdout().flush();
            }
        };
        let answer = renter.stream(offer, posted.job, STEP_WITHIN, show).await?;
        self.say("");
        let from = posted.mined.block.number;
        let is_done = |job: &Job| matches!(job.state, State::Completed { .. }) || is_final(job);
        let job = renter.until(posted.job, from, STEP_WITHIN, is_done).await?;
        renter.verify(&answer, &job)?;
        self.say(&format!(
            "   {} tokens; the proof was verified on chain; receipt, text and chain agree",
            answer.tokens.len()
        ));
        let job = renter.until(posted.job, from, STEP_WITHIN, is_final).await?;
        let (net, fee) = job.escrow_released.context("the job was not paid")?;
        self.say(&format!(
            "   paid: {} {unit} to the host, {} {unit} fee",
            decimal(net, decimals),
            decimal(fee, decimals)
        ));
        Ok(job)
    }

    fn unit(&self, token: Address) -> (&'static str, u8) {
        if token.is_zero() { ("ETH", 18) } else { ("USD", 6) }
    }

    async fn store(&self, process: &Process) -> Result<Store> {
        let chain = Chain::unchecked(&self.devnet.rpc_url, devnet::CHAIN_ID, self.book.contracts.clone())?;
        let file = process.config.with_extension("").join("node.sqlite");
        Store::open(&file, devnet::CHAIN_ID, self.book.contracts.job_marketplace, Arc::new(chain.decoder())).await
    }

    async fn receipts(&self, process: &Process, expected: usize) -> Result<usize> {
        let store = self.store(process).await?;
        until(|| async { Ok(store.peer_receipts().await?.len() >= expected) })
            .await
            .context("the receipts do not arrive")?;
        let receipts = store.peer_receipts().await?;
        for kept in &receipts {
            kept.signed.verify()?;
            ensure!(kept.agreed, "the receipt of job {} is unconfirmed", kept.signed.receipt.job);
        }
        Ok(receipts.len())
    }

    fn table(&self, lines: &[JobLine]) {
        println!(
            "\n{:>4}  {:<9}  {:<12}  {:>6}  {:<9}  {:>18}  {:>9}",
            "JOB", "STATE", "HOST", "TOKENS", "PROOF", "PAID", "HOST GAS"
        );
        for line in lines {
            let (unit, decimals) = self.unit(line.token);
            let host = line.host.map_or("-".into(), |host| format!("{:.10}..", host.to_string()));
            let tokens = line.tokens.map_or("-".into(), |tokens| tokens.to_string());
            let proof = if line.proof_verified { "on chain" } else { "-" };
            let back = if line.state == "refunded" { " back" } else { "" };
            let paid = format!("{} {unit}{back}", decimal(line.paid_wei, decimals));
            println!(
                "{:>4}  {:<9}  {host:<12}  {tokens:>6}  {proof:<9}  {paid:>18}  {:>9}",
                line.id, line.state, line.host_gas
            );
        }
    }
}

async fn lines(store: &Store, jobs: &[Job]) -> Result<Vec<JobLine>> {
    let mut lines = Vec::new();
    for job in jobs {
        let entries = store.timeline(job.id).await?.entries;
        let (tokens, paid_wei) = match &job.state {
            State::Released { commitment, amount, .. } => (Some(commitment.tokens), *amount),
            State::Refunded { amount, .. } => (None, *amount),
            other => bail!("job {} ended as {}", job.id, other.name()),
        };
        let verified =
            |entry: &Entry| matches!(entry, Entry::Event { name, canonical: true, .. } if name == "ProofVerified");
        let gas = |entry: &Entry| match entry {
            Entry::Transaction { gas_used, .. } => gas_used.unwrap_or(0),
            _ => 0,
        };
        lines.push(JobLine {
            id: job.id,
            state: job.state.name(),
            host: job.host(),
            tokens,
            proof_verified: entries.iter().any(verified),
            paid_wei,
            token: job.terms.token,
            host_gas: entries.iter().map(gas).sum(),
        });
    }
    Ok(lines)
}

fn order(model: ModelId, payment: U256) -> Order {
    Order {
        model,
        input: Cid::of(b""),
        max_tokens: 160,
        temperature_milli: 0,
        seed: 0,
        requires_proof: true,
        seconds: 300,
        token: Address::ZERO,
        payment,
        region: None,
    }
}

fn model_id(path: &Path) -> Result<ModelId> {
    use sha2::{Digest, Sha256};
    let bytes = std::fs::read(path).with_context(|| format!("read model {}", path.display()))?;
    Ok(ModelId(Sha256::digest(&bytes).into()))
}

fn secret(file: &Path) -> Result<String> {
    use std::os::unix::fs::OpenOptionsExt;
    let password = alloy::hex::encode(rand::random::<[u8; 16]>());
    let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(file)?;
    writeln!(file, "{password}")?;
    Ok(password)
}

/// Asks again until the answer is yes; failures count as no.
async fn until<F: Future<Output = Result<bool>>>(ask: impl Fn() -> F) -> Result<()> {
    let mut last = None;
    let yes = async {
        loop {
            match ask().await {
                Ok(true) => return,
                Ok(false) => {}
                Err(error) => last = Some(error),
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    if tokio::time::timeout(STEP_WITHIN, yes).await.is_ok() {
        return Ok(());
    }
    Err(last.unwrap_or_else(|| anyhow::anyhow!("still not so")).context(format!("waited {} s", STEP_WITHIN.as_secs())))
}

/// Asks a node to stop as an operator would, and waits until it has.
async fn stop(child: &mut Child) -> Result<()> {
    if let Some(pid) = child.id().and_then(|pid| rustix::process::Pid::from_raw(pid as i32)) {
        rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
    }
    let status = tokio::time::timeout(STEP_WITHIN, child.wait()).await.context("a node does not stop")??;
    ensure!(status.success(), "a node stopped with {status}");
    Ok(())
}
