//! One small world per test: a chain, the contracts on it, and as many nodes and renters as the story needs.
//!
//! Everything is real: anvil, SQLite files, libp2p over loopback, llama.cpp on our small model, EZKL. Faults come from
//! outside: a chain that stops or reorganises, an endpoint that fails ([`crate::faults::Proxy`]), a node that is dropped.

use std::future::Future;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use fabstir::chain::call::{self, Order};
use fabstir::chain::{Chain, Contracts, Signer, key};
use fabstir::config::Config;
use fabstir::content::Content;
use fabstir::devnet::{self, AddressBook, Devnet};
use fabstir::market::job::{Job, State};
use fabstir::market::types::{Address, B256, Bytes, JobId, ModelId, U256};
use fabstir::node::Node;
use fabstir::p2p::{self, Keypair};
use fabstir::renter::{Offer, Posted, Renter};
use fabstir::store::{Entry, Store};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

/// How long a state may take to be reached on a loaded machine; not a measure of anything.
pub const WAIT_MAX: Duration = Duration::from_secs(180);
pub const QUESTION: &str = "What is the capital of France?";
const ETH: u128 = 1_000_000_000_000_000_000;

/// The repository's root.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Deploys the contracts to the chain at `rpc_url` with a challenge window of one second.
pub async fn deploy(rpc_url: &str) -> Result<Contracts> {
    Ok(devnet::deploy(rpc_url, &root().join("contracts"), 1).await?.contracts)
}

/// The chain of one test and what stands on it.
pub struct World {
    pub devnet: Devnet,
    pub book: AddressBook,
    pub chain: Chain,
    pub folder: TempDir,
    pub model: ModelId,
    miner: Mutex<Option<Miner>>,
}

/// What makes time flow, until its sender is gone: then it ends the block that it asked for, so that none comes late.
type Miner = (oneshot::Sender<()>, JoinHandle<()>);

impl World {
    /// A chain that mines each transaction at once and a block four times a second besides.
    pub async fn new() -> Result<World> {
        World::with_window(1).await
    }

    /// As [`World::new`], with a challenge window of so many seconds.
    pub async fn with_window(challenge_window: u64) -> Result<World> {
        // What the nodes log, where RUST_LOG asks for it.
        let log = tracing_subscriber::fmt().with_env_filter(tracing_subscriber::EnvFilter::from_default_env());
        let _ = log.with_test_writer().try_init();
        let contracts = root().join("contracts");
        let devnet = Devnet::start(&contracts).await?;
        let book = devnet::deploy(&devnet.rpc_url, &contracts, challenge_window).await?;
        let chain = Chain::connect(&devnet.rpc_url, devnet::CHAIN_ID, book.contracts.clone()).await?;
        let folder = tempfile::tempdir()?;
        let digest = {
            use sha2::Digest;
            sha2::Sha256::digest(std::fs::read(model_file())?)
        };
        let world = World { devnet, book, chain, folder, model: ModelId(digest.into()), miner: Mutex::new(None) };
        world.flow();
        Ok(world)
    }

    /// Time flows: a block four times a second.
    pub fn flow(&self) {
        let url = self.devnet.rpc_url.clone();
        let (stop, mut stopped) = oneshot::channel();
        let miner = tokio::spawn(async move {
            while tokio::time::timeout(Duration::from_millis(250), &mut stopped).await.is_err() {
                let _ = devnet::rpc(&url, "evm_mine", json!([])).await;
            }
        });
        *self.miner.lock().unwrap() = Some((stop, miner));
    }

    /// Time stands still: no block but those of transactions, and with `automine` off not even those.
    pub async fn freeze(&self, automine: bool) -> Result<()> {
        let miner = self.miner.lock().unwrap().take();
        if let Some((stop, miner)) = miner {
            drop(stop);
            miner.await?;
        }
        self.devnet.rpc("evm_setAutomine", json!([automine])).await.map(|_| ())
    }

    /// Waits until a store has every block that there is: of a chain that stands still, or of one that a test moves.
    pub async fn caught_up(&self, store: &Store) -> Result<()> {
        until("every block is stored", || async { Ok(store.cursor().await? == Some(self.chain.head().await?.block)) })
            .await
    }

    /// Mines one block with everything that waits.
    pub async fn mine(&self) -> Result<()> {
        self.devnet.rpc("evm_mine", json!([])).await.map(|_| ())
    }

    /// Mines one block once `count` transactions wait for it.
    pub async fn mine_waiting(&self, count: u64) -> Result<()> {
        until(&format!("{count} transactions wait"), || async { Ok(self.waiting().await? >= count) }).await?;
        self.mine().await
    }

    /// How many transactions wait for the next block.
    pub async fn waiting(&self) -> Result<u64> {
        let pool = self.devnet.rpc("txpool_status", json!([])).await?;
        Ok(serde_json::from_value::<U256>(pool["pending"].clone())?.to())
    }

    /// Makes a key with ETH and test dollars, and the stake in FAB.
    pub async fn account(&self, name: &str) -> Result<Signer> {
        let password = "correct horse";
        let file = self.folder.path().join("password");
        if !file.exists() {
            use std::os::unix::fs::PermissionsExt;
            std::fs::write(&file, password)?;
            std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600))?;
        }
        let signer = key::create(&self.folder.path().join(format!("{name}.json")), password)?;
        self.devnet.fund(signer.address(), U256::from(100 * ETH)).await?;
        let (usd, fab) = (self.usd(), self.book.contracts.governance_token);
        self.devnet.send(&call::transfer(usd, signer.address(), U256::from(1_000_000_000))).await?;
        self.devnet.send(&call::transfer(fab, signer.address(), self.chain.stake_min().await?)).await?;
        Ok(signer)
    }

    /// Makes a call as the contracts' owner, which is the timelock: a vote takes ten days, and is rehearsed in the contracts'
    /// own tests.
    pub async fn as_owner(&self, call: &call::Call) -> Result<()> {
        let owner = self.book.contracts.timelock;
        self.devnet.fund(owner, U256::from(ETH)).await?;
        self.devnet.rpc("anvil_impersonateAccount", json!([owner])).await?;
        self.devnet.send_from(owner, call).await
    }

    /// Registers an account as a host.
    pub async fn register(&self, signer: &Signer) -> Result<()> {
        let contracts = self.chain.contracts();
        let approve = call::approve(contracts.governance_token, contracts.node_registry, self.chain.stake_min().await?);
        self.chain.transact(signer, &approve, WAIT_MAX).await?;
        self.chain.transact(signer, &contracts.register("{}".into()), WAIT_MAX).await?;
        Ok(())
    }

    /// The test token's address.
    pub fn usd(&self) -> Address {
        self.book.usd.expect("deployed with a test token")
    }

    /// The configuration of a node named `name`: a host with that account's key, or an observer.
    pub fn config(&self, name: &str, host: bool, rpc_url: &str, bootstrap: &[p2p::Multiaddr]) -> Result<Config> {
        let bootstrap: Vec<String> = bootstrap.iter().map(ToString::to_string).collect();
        let mut text = format!(
            "data_dir = \"{name}\"\n[chain]\nid = {}\nrpc_url = \"{rpc_url}\"\nstart_block = {}\npoll_ms = 100\n{}[p2p]\n\
             listen = [\"/ip4/127.0.0.1/tcp/0\"]\nbootstrap = {bootstrap:?}\nmdns = false\n[http]\nlisten = \"127.0.0.1:0\"\n",
            devnet::CHAIN_ID,
            self.book.block,
            self.book.contracts.section(),
        );
        if host {
            text += &format!(
                "[prover]\npython = {:?}\ndir = {:?}\n[host]\nkeystore = \"{name}.json\"\npassword_file = \"password\"\n\
                 tokens_per_second = 1000\nmargin_seconds = 5\nprice_per_1k = {{ eth = \"1000000\", \"{}\" = \"1000\" }}\n\
                 [[host.models]]\npath = {:?}\nslots = 2\ncontext_tokens = 512\nthreads = 1\nmax_tokens = 256\n",
                python(),
                root().join(".fabstir/prover"),
                self.usd(),
                model_file(),
            );
        }
        let file = self.folder.path().join(format!("{name}.toml"));
        std::fs::write(&file, text)?;
        Config::load(&file)
    }

    /// A registered host, running.
    pub async fn host(&self, name: &str) -> Result<(Node, Config)> {
        self.host_at(name, &self.devnet.rpc_url).await
    }

    /// A registered host, running, that reaches the chain through `rpc_url`.
    pub async fn host_at(&self, name: &str, rpc_url: &str) -> Result<(Node, Config)> {
        let signer = self.account(name).await?;
        self.register(&signer).await?;
        let config = self.config(name, true, rpc_url, &[])?;
        Ok((Node::start(&config).await?, config))
    }

    /// A node without a key, joined to `peer` if there is one.
    pub async fn observer(&self, name: &str, peer: Option<&p2p::P2p>) -> Result<Node> {
        let bootstrap = peer.map(p2p::P2p::listen_addresses).unwrap_or_default();
        let config = self.config(name, false, &self.devnet.rpc_url, &bootstrap)?;
        Node::start(&config).await
    }

    /// A renter with money, joined to `node`.
    pub async fn renter(&self, node: &Node) -> Result<Renter> {
        let signer = self.account("renter").await?;
        let p2p = peer(&node.p2p).await?;
        Ok(Renter::new(self.chain.clone(), p2p, signer))
    }

    /// Finds the host, hands it the question, posts and returns the offer with the job.
    pub async fn ask(&self, renter: &Renter, token: Address, seconds: u64) -> Result<(Offer, Posted)> {
        let offers = renter.discover(self.model, QUESTION, 32, token, None, WAIT_MAX).await?;
        let offer = offers.first().context("no host was found")?.clone();
        let input = renter.deliver(&offer, QUESTION).await?;
        let posted = renter.post(&Order { input, ..self.order(token, offer.quote.price, seconds) }).await?;
        Ok((offer, posted))
    }

    /// Posts a job whose question lies in `data_dir`, the folder of a node that runs elsewhere.
    pub async fn post_beside(&self, data_dir: &Path) -> Result<JobId> {
        Content::open(&data_dir.join("content"))?.put(QUESTION.as_bytes())?;
        let renter = self.account("renter").await?;
        let job = JobId(self.chain.jobs_posted(self.chain.head().await?.block).await? + 1);
        let order = self.order(Address::ZERO, U256::from(1_000_000), 3600);
        self.chain.transact(&renter, &self.chain.contracts().post(&order), WAIT_MAX).await?;
        Ok(job)
    }

    /// Waits until the database in `data_dir`, of a node that runs elsewhere, has the job as paid.
    pub async fn until_paid(&self, data_dir: &Path, job: JobId) -> Result<()> {
        let is_paid = async || {
            // Until it is migrated it is none.
            let Ok(store) = self.read(&data_dir.join("node.sqlite")).await else { return Ok(false) };
            Ok(store.job(job).await?.is_some_and(|job| matches!(job.state, State::Released { .. })))
        };
        until(&format!("job {job} is paid"), is_paid).await
    }

    /// A database of this chain, to be read only.
    pub async fn read(&self, file: &Path) -> Result<Store> {
        let (contracts, decode) = (self.chain.contracts(), Arc::new(self.chain.decoder()));
        Store::open_to_read(file, self.chain.id(), contracts.job_marketplace, decode).await
    }

    /// The call that claims a job as the chain has it now.
    pub async fn claim(&self, job: JobId) -> Result<call::Call> {
        Ok(self.chain.contracts().claim(job, self.deal(job).await?))
    }

    /// What the contract says of a job that a claim of it names.
    pub async fn deal(&self, job: JobId) -> Result<B256> {
        let selector = alloy::primitives::keccak256("dealOf(uint256)");
        let data = [&selector[..4], &U256::from(job.0).to_be_bytes::<32>()].concat();
        let call = json!({ "to": self.book.contracts.job_marketplace, "data": Bytes::from(data) });
        Ok(serde_json::from_value(self.devnet.rpc("eth_call", json!([call, "latest"])).await?)?)
    }

    /// An order for the world's model.
    pub fn order(&self, token: Address, payment: U256, seconds: u64) -> Order {
        Order {
            model: self.model,
            input: fabstir::market::types::Cid::of(QUESTION.as_bytes()),
            max_tokens: 32,
            temperature_milli: 0,
            seed: 1,
            requires_proof: true,
            seconds,
            token,
            payment,
            region: None,
        }
    }
}

/// A bare peer joined to another.
pub async fn peer(other: &p2p::P2p) -> Result<p2p::P2p> {
    Ok(peer_with_inbound(other).await?.0)
}

/// A bare peer joined to another, with what it hears.
pub async fn peer_with_inbound(other: &p2p::P2p) -> Result<(p2p::P2p, tokio::sync::mpsc::Receiver<p2p::Inbound>)> {
    let listen = vec!["/ip4/127.0.0.1/tcp/0".parse()?];
    let bootstrap = other.listen_addresses();
    p2p::start(p2p::Config { identity: Keypair::generate_ed25519(), listen, bootstrap, mdns: false }).await
}

/// Waits until the node's store shows the job as `done` wants it.
pub async fn until_job(node: &Node, id: JobId, what: &str, done: impl Fn(&Job) -> bool) -> Result<Job> {
    let mut last = None;
    let reached = async {
        loop {
            let job = node.store.job(id).await?;
            if let Some(job) = &job
                && done(job)
            {
                return anyhow::Ok(job.clone());
            }
            last = job;
            tokio::time::sleep(Duration::from_millis(30)).await;
        }
    };
    match tokio::time::timeout(WAIT_MAX, reached).await {
        Ok(job) => job,
        Err(_) => bail!("job {id} never was {what}; last seen: {last:#?}"),
    }
}

/// Asks until the answer is yes.
pub async fn until<F: Future<Output = Result<bool>>>(what: &str, ask: impl Fn() -> F) -> Result<()> {
    let yes = async {
        while !ask().await? {
            tokio::time::sleep(Duration::from_millis(30)).await;
        }
        anyhow::Ok(())
    };
    tokio::time::timeout(WAIT_MAX, yes).await.with_context(|| format!("never so: {what}"))?
}

/// After everything: nothing is left open in a host's store.
pub async fn nothing_left(node: &Node) -> Result<()> {
    let host = node.host.context("not a host")?;
    until("no transaction is open", || async { Ok(node.store.open_intents(host).await? == 0) }).await?;
    until("no slot is reserved", || async { Ok(node.store.reservations().await?.is_empty()) }).await
}

/// A transaction a host owes, as its store has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tx {
    pub kind: String,
    pub state: String,
    pub nonce: Option<u64>,
    /// One for each set of bytes that was signed.
    pub hashes: Vec<B256>,
}

/// A host's transactions of one kind for a job, oldest first.
pub async fn transactions(node: &Node, job: JobId, kind: &str) -> Result<Vec<Tx>> {
    transactions_in(&node.store, job, kind).await
}

/// As [`transactions`], of a node that runs elsewhere.
pub async fn transactions_in(store: &Store, job: JobId, kind: &str) -> Result<Vec<Tx>> {
    let all = store.transactions(Some(job)).await?.into_iter().filter_map(|entry| match entry {
        Entry::Transaction { kind, state, nonce, hashes, .. } => Some(Tx { kind, state, nonce, hashes }),
        _ => None,
    });
    Ok(all.filter(|tx| tx.kind == kind).collect())
}

/// How often the model ran for a job.
pub async fn inferences(node: &Node, job: JobId) -> Result<usize> {
    inferences_in(&node.store, job).await
}

/// As [`inferences`], of a node that runs elsewhere.
pub async fn inferences_in(store: &Store, job: JobId) -> Result<usize> {
    let inferred = |entry: &&Entry| matches!(entry, Entry::Work { work, .. } if work.name() == "Inferred");
    Ok(store.timeline(job).await?.entries.iter().filter(inferred).count())
}

/// After a job that was paid: the model ran once, each transaction was signed once and mined, and nothing is left open.
pub async fn done_once(node: &Node, job: JobId) -> Result<()> {
    nothing_left(node).await?;
    assert_eq!(inferences(node, job).await?, 1, "the model ran for job {job}");
    for kind in ["claim", "commit", "complete", "release"] {
        let all = transactions(node, job, kind).await?;
        let signed: Vec<&Tx> = all.iter().filter(|tx| tx.state != "dropped").collect();
        assert!(matches!(signed[..], [tx] if tx.state == "mined" && tx.hashes.len() == 1), "{kind}: {all:#?}");
    }
    Ok(())
}

/// Runs a command beside the node called host, as its operator would.
pub async fn fabstir(world: &World, arguments: &[&str]) -> Result<Output> {
    fabstir_as(world, "host", arguments).await
}

/// Runs a command with the configuration called `name`.
pub async fn fabstir_as(world: &World, name: &str, arguments: &[&str]) -> Result<Output> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_fabstir"));
    command.arg("--config").arg(world.folder.path().join(format!("{name}.toml"))).args(arguments);
    Ok(tokio::task::spawn_blocking(move || command.output()).await??)
}

/// As that, of one that succeeds and prints JSON.
pub async fn told(world: &World, arguments: &[&str]) -> Result<Value> {
    let output = fabstir(world, &[arguments, &["--json"]].concat()).await?;
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{arguments:?} ended with {}: {error}", output.status);
    serde_json::from_slice(&output.stdout).with_context(|| format!("{arguments:?} printed no JSON"))
}

/// The Python the tests prove with.
pub fn python() -> PathBuf {
    std::env::var_os("FABSTIR_PYTHON").map_or_else(|| root().join(".fabstir/venv/bin/python"), PathBuf::from)
}

/// Our small model.
pub fn model_file() -> PathBuf {
    root().join("tests/models/tiny-chat-q8_0.gguf")
}

/// One of the node's metrics.
pub async fn metric(node: &Node, name: &str) -> Result<u64> {
    let metrics = reqwest::get(format!("http://{}/metrics", node.http_address())).await?.text().await?;
    let line = metrics.lines().find_map(|line| line.strip_prefix(&format!("fabstir_{name} ")));
    Ok(line.with_context(|| format!("no metric {name}"))?.parse()?)
}
