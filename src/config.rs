//! The configuration: one TOML file, overridden by environment variables, refused by name where it is wrong.
//!
//! Never reads keys: it names the keystore and the file that holds its password. `config.example.toml` explains each entry.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;

use crate::chain::key::{self, Keeper};
use crate::chain::{self, Contracts, Endpoints, Signer};
use crate::devnet;
use crate::market::breaker;
use crate::market::gate::Gates;
use crate::market::policy::{self, Limits};
use crate::market::types::{Address, U256};
use crate::p2p::Multiaddr;
use crate::tasks::indexer::{Prove, Settings};

/// Everything a node is told.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Folder of the database, the content and the peer identity.
    pub data_dir: PathBuf,
    pub chain: ChainConfig,
    pub contracts: Contracts,
    #[serde(default)]
    pub p2p: P2pConfig,
    #[serde(default)]
    pub http: HttpConfig,
    /// Absent: the node indexes, keeps receipts and audits, but holds no key and claims nothing.
    pub host: Option<HostConfig>,
    #[serde(default)]
    pub prover: ProverConfig,
}

/// Which chain and how to read it.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChainConfig {
    pub id: u64,
    pub rpc_url: String,
    /// Further endpoints of the same chain: each call goes to one that is well.
    #[serde(default)]
    pub rpc_urls: Vec<String>,
    /// Calls per second to each endpoint, those of a batch counted one by one; 0: no limit.
    #[serde(default)]
    pub requests_per_second: u32,
    /// Longest wait for one answer of an endpoint.
    #[serde(default = "default_timeout_seconds")]
    pub timeout_seconds: u64,
    /// Only wakes the indexer earlier; polling stays the truth.
    pub ws_url: Option<String>,
    /// The block the contracts were deployed in: nothing of ours lies before it.
    #[serde(default)]
    pub start_block: u64,
    #[serde(default = "default_poll_ms")]
    pub poll_ms: u64,
    /// The most blocks read in one step.
    #[serde(default = "default_blocks_per_step")]
    pub blocks_per_step: u64,
    /// Which blocks are proven before they are stored.
    #[serde(default)]
    pub prove: Prove,
    /// How deep a block lies that counts as final where the endpoint calls none so; 0: none does.
    #[serde(default = "default_finality_depth")]
    pub finality_depth: u64,
    /// Between two comparisons of the stored jobs with the contracts' own word; 0: never.
    #[serde(default = "default_sweep_seconds")]
    pub sweep_seconds: u64,
}

/// How long blocks that could not be proven are let be.
const DOUBT_AGAIN: Duration = Duration::from_secs(60);

impl ChainConfig {
    /// Returns how the chain is reached.
    pub fn endpoints(&self) -> Endpoints {
        Endpoints {
            urls: std::iter::once(&self.rpc_url).chain(&self.rpc_urls).cloned().collect(),
            requests_per_second: self.requests_per_second,
            timeout: Duration::from_secs(self.timeout_seconds),
        }
    }
}

/// Where the node meets its peers.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct P2pConfig {
    pub listen: Vec<Multiaddr>,
    pub bootstrap: Vec<Multiaddr>,
    pub mdns: bool,
}

impl Default for P2pConfig {
    fn default() -> Self {
        let listen = ["/ip4/0.0.0.0/tcp/4001", "/ip4/0.0.0.0/udp/4001/quic-v1"];
        let listen = listen.map(|address| address.parse().expect("a valid constant")).to_vec();
        Self { listen, bootstrap: Vec::new(), mdns: true }
    }
}

/// Where the operator's endpoints listen.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HttpConfig {
    pub listen: SocketAddr,
}

impl Default for HttpConfig {
    fn default() -> Self {
        Self { listen: SocketAddr::from(([127, 0, 0, 1], 8080)) }
    }
}

/// What makes a node a host.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostConfig {
    /// Who keeps the key.
    #[serde(default)]
    pub signer: Keeper,
    /// The encrypted key and its password, where this machine keeps it.
    #[serde(default)]
    pub keystore: PathBuf,
    #[serde(default)]
    pub password_file: PathBuf,
    pub models: Vec<ModelConfig>,
    /// Net price of 1000 output tokens in the smallest unit, by payment token: `eth` or a contract's address.
    #[serde(deserialize_with = "prices")]
    pub price_per_1k: BTreeMap<Address, U256>,
    /// Where the host is, for renters who care; part of its offers unless `policy.regions` is, and published when it registers.
    pub region: Option<String>,
    /// Addresses at which peers reach the host from outside, as multiaddresses; published when it registers.
    #[serde(default)]
    pub public_addresses: Vec<String>,
    /// What must stand on a block before an action rests on it.
    #[serde(default)]
    pub gate: Gates,
    /// What a job is asked beside its price.
    #[serde(default)]
    pub policy: Limits,
    /// Output tokens per second this host counts on when it looks at a deadline.
    #[serde(default = "default_tokens_per_second")]
    pub tokens_per_second: u32,
    /// Seconds kept free before a deadline for proof and transactions.
    #[serde(default = "default_margin_seconds")]
    pub margin_seconds: u64,
    /// Highest fee per gas ever offered, in wei.
    #[serde(default = "default_fee_cap_max_wei")]
    pub fee_cap_max_wei: u64,
    /// The most transactions that wait to be mined at once.
    #[serde(default = "default_window")]
    pub window: usize,
    /// A transaction that is not mined after so long is offered a higher fee.
    #[serde(default = "default_bump_after_seconds")]
    pub bump_after_seconds: u64,
    /// How long what is under way may take to end when the node is told to stop.
    #[serde(default = "default_shutdown_seconds")]
    pub shutdown_seconds: u64,
    /// When to claim no more.
    #[serde(default)]
    pub breaker: breaker::Limits,
    /// Program and arguments that tell the operator that the breaker opened; it gets JSON on its standard input.
    #[serde(default)]
    pub page_command: Vec<String>,
    /// Gets the same in a POST request.
    pub page_url: Option<String>,
}

impl HostConfig {
    /// Returns the host's account, which can sign.
    ///
    /// # Errors
    /// As [`key::open`] and [`key::remote`].
    pub async fn account(&self) -> Result<Signer> {
        match &self.signer {
            Keeper::Keystore => key::open(&self.keystore, &self.password_file),
            // Boxed: the clouds' libraries nest deeper than the compiler looks.
            keeper => Box::pin(key::remote(keeper)).await,
        }
    }
}

/// A policy on its own, to be held against the past: what it leaves out is as the configuration has it.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PolicyFile {
    #[serde(default, deserialize_with = "some_prices")]
    pub price_per_1k: Option<BTreeMap<Address, U256>>,
    pub policy: Option<Limits>,
    pub tokens_per_second: Option<u32>,
    pub margin_seconds: Option<u64>,
}

impl PolicyFile {
    /// Reads a policy from a file with entries of `[host]`: `price_per_1k`, `policy`, `tokens_per_second`, `margin_seconds`.
    ///
    /// # Errors
    /// If the file is missing or not TOML, or an entry is unknown or out of range: named with what was found.
    pub fn load(file: &Path) -> Result<Self> {
        let read = || {
            let read: PolicyFile = toml::from_str(&std::fs::read_to_string(file)?)?;
            within("tokens_per_second", read.tokens_per_second.unwrap_or(1).into(), 1, 1_000_000)?;
            read.policy.as_ref().map_or(Ok(()), Limits::check)?;
            anyhow::Ok(read)
        };
        read().with_context(|| format!("policy {}", file.display()))
    }

    /// Returns `host` with this policy in place of its own.
    pub fn over(self, host: &HostConfig) -> HostConfig {
        let mut host = host.clone();
        host.price_per_1k = self.price_per_1k.unwrap_or(host.price_per_1k);
        host.policy = self.policy.unwrap_or(host.policy);
        host.tokens_per_second = self.tokens_per_second.unwrap_or(host.tokens_per_second);
        host.margin_seconds = self.margin_seconds.unwrap_or(host.margin_seconds);
        host
    }
}

/// One model to serve.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelConfig {
    /// The GGUF file.
    pub path: PathBuf,
    /// Sequences computed at once.
    #[serde(default = "default_slots")]
    pub slots: usize,
    /// Jobs taken beyond those computed at once: they wait for a slot.
    #[serde(default)]
    pub queue: u32,
    /// Tokens of context of each slot: prompt and output of one job together.
    #[serde(default = "default_context_tokens")]
    pub context_tokens: u32,
    /// CPU threads; 0 means one per core.
    #[serde(default)]
    pub threads: u32,
    #[serde(default)]
    pub gpu_layers: u32,
    /// The most output tokens of one job.
    #[serde(default = "default_max_tokens")]
    pub max_tokens: u32,
}

/// How proofs are made.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ProverConfig {
    /// A Python that has `ezkl`; relative to the file, or a command on the path.
    pub python: PathBuf,
    /// Folder for the circuit's keys, derived at first start; default: `prover` in `data_dir`.
    pub dir: Option<PathBuf>,
    /// Proofs made at once.
    pub concurrency: usize,
    /// A proof that takes longer is killed.
    pub timeout_seconds: u64,
}

impl Default for ProverConfig {
    fn default() -> Self {
        Self { python: "python3".into(), dir: None, concurrency: 1, timeout_seconds: 600 }
    }
}

/// The oldest newest block to claim on, where the configuration names none: many blocks of any chain in use.
const HEAD_AGE_SECONDS: u64 = 120;

fn default_timeout_seconds() -> u64 {
    20
}
fn default_poll_ms() -> u64 {
    1000
}
fn default_finality_depth() -> u64 {
    1800
}
fn default_sweep_seconds() -> u64 {
    300
}
fn default_blocks_per_step() -> u64 {
    100
}
fn default_tokens_per_second() -> u32 {
    10
}
fn default_margin_seconds() -> u64 {
    30
}
fn default_fee_cap_max_wei() -> u64 {
    100_000_000_000
}
fn default_window() -> usize {
    16
}
fn default_bump_after_seconds() -> u64 {
    30
}
fn default_shutdown_seconds() -> u64 {
    30
}
fn default_slots() -> usize {
    4
}
fn default_context_tokens() -> u32 {
    4096
}
fn default_max_tokens() -> u32 {
    1024
}

/// Environment variables and the entry each one overrides; the last column says how its text is read.
const OVERRIDES: &[(&str, &[&str], Kind)] = &[
    ("FABSTIR_DATA_DIR", &["data_dir"], Kind::Text),
    ("CHAIN_ID", &["chain", "id"], Kind::Number),
    ("RPC_URL", &["chain", "rpc_url"], Kind::Text),
    ("RPC_URLS", &["chain", "rpc_urls"], Kind::List),
    ("WS_URL", &["chain", "ws_url"], Kind::Text),
    ("START_BLOCK", &["chain", "start_block"], Kind::Number),
    ("CONTRACT_GOVERNANCE_TOKEN", &["contracts", "governance_token"], Kind::Text),
    ("CONTRACT_NODE_REGISTRY", &["contracts", "node_registry"], Kind::Text),
    ("CONTRACT_PAYMENT_ESCROW", &["contracts", "payment_escrow"], Kind::Text),
    ("CONTRACT_JOB_MARKETPLACE", &["contracts", "job_marketplace"], Kind::Text),
    ("CONTRACT_PROOF_SYSTEM", &["contracts", "proof_system"], Kind::Text),
    ("CONTRACT_REPUTATION_SYSTEM", &["contracts", "reputation_system"], Kind::Text),
    ("CONTRACT_GOVERNANCE", &["contracts", "governance"], Kind::Text),
    ("CONTRACT_TIMELOCK", &["contracts", "timelock"], Kind::Text),
    ("CONTRACT_ACCOUNT_FACTORY", &["contracts", "account_factory"], Kind::Text),
    ("P2P_PORT", &["p2p", "listen"], Kind::P2pPort),
    ("P2P_BOOTSTRAP", &["p2p", "bootstrap"], Kind::List),
    ("P2P_MDNS", &["p2p", "mdns"], Kind::Flag),
    ("API_PORT", &["http", "listen"], Kind::ApiPort),
    ("MODEL_PATH", &["host", "models"], Kind::Model),
    ("HOST_KEYSTORE", &["host", "keystore"], Kind::Text),
    ("HOST_PASSWORD_FILE", &["host", "password_file"], Kind::Text),
    ("FABSTIR_PYTHON", &["prover", "python"], Kind::Text),
];

#[derive(Debug, Clone, Copy)]
enum Kind {
    Text,
    Number,
    Flag,
    /// Comma-separated texts.
    List,
    /// A port for TCP and QUIC on every address.
    P2pPort,
    /// A port on every address.
    ApiPort,
    /// The first model's file.
    Model,
}

impl ChainConfig {
    /// Returns what the indexer is told.
    pub fn indexer(&self) -> Settings {
        let ChainConfig { start_block, prove, finality_depth, blocks_per_step, .. } = *self;
        Settings { start_block, prove, finality_depth, blocks_per_step, doubt_again: DOUBT_AGAIN }
    }
}

impl Config {
    /// Reads `file`, applies the environment, and checks every value that can be checked without a network.
    ///
    /// # Errors
    /// If the file is missing or not TOML, an entry is unknown, missing or out of range: named with what was found.
    pub fn load(file: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(file).with_context(|| {
            format!("read configuration {} (config.example.toml is one to start from)", file.display())
        })?;
        let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let folder = std::path::absolute(folder)?;
        Self::read(&text, &folder, &|name| std::env::var(name).ok())
            .with_context(|| format!("configuration {}", file.display()))
    }

    fn read(text: &str, folder: &Path, environment: &dyn Fn(&str) -> Option<String>) -> Result<Self> {
        let mut table: toml::Table = text.parse().context("not TOML")?;
        for (name, path, kind) in OVERRIDES {
            if let Some(value) = environment(name).filter(|value| !value.is_empty()) {
                // A URL may hold a key.
                let told = if name.contains("URL") { "…" } else { &value };
                override_entry(&mut table, path, *kind, &value)
                    .with_context(|| format!("environment variable {name}={told}"))?;
            }
        }
        ensure!(
            table.get("host").and_then(|host| host.get("claim_unproven")).is_none(),
            "host.claim_unproven is no entry any more: [host.gate.claim] with proof = \"claimed\" claims on an endpoint's word"
        );
        let mut config: Config = table.try_into()?;
        config.resolve(folder);
        config.check()?;
        Ok(config)
    }

    /// Makes every path absolute, taken from the file's folder.
    fn resolve(&mut self, folder: &Path) {
        let absolute = |path: &mut PathBuf| *path = folder.join(&path);
        absolute(&mut self.data_dir);
        let data_dir = self.data_dir.clone();
        absolute(self.prover.dir.get_or_insert(data_dir.join("prover")));
        if self.prover.python.components().count() > 1 {
            absolute(&mut self.prover.python);
        }
        if let Some(host) = &mut self.host {
            for file in [&mut host.keystore, &mut host.password_file] {
                // Left out, it is missed below.
                if !file.as_os_str().is_empty() {
                    absolute(file);
                }
            }
            host.models.iter_mut().for_each(|model| absolute(&mut model.path));
            // A local chain makes blocks when it is asked to.
            let head_age = if self.chain.id == devnet::CHAIN_ID { 0 } else { HEAD_AGE_SECONDS };
            host.breaker.head_age_seconds.get_or_insert(head_age);
        }
    }

    fn check(&self) -> Result<()> {
        let further =
            self.chain.rpc_urls.iter().enumerate().map(|(place, url)| (format!("chain.rpc_urls[{place}]"), url));
        for (entry, url) in std::iter::once(("chain.rpc_url".to_owned(), &self.chain.rpc_url)).chain(further) {
            let parsed: Result<reqwest::Url, _> = url.parse();
            ensure!(
                parsed.is_ok_and(|url| matches!(url.scheme(), "http" | "https")),
                "{entry} = {} is not an http:// or https:// URL",
                chain::shown(url)
            );
        }
        if let Some(url) = &self.chain.ws_url {
            ensure!(
                url.starts_with("ws://") || url.starts_with("wss://"),
                "chain.ws_url = {} is not a ws:// or wss:// URL",
                chain::shown(url)
            );
        }
        self.contracts.check()?;
        within("chain.requests_per_second", self.chain.requests_per_second.into(), 0, 1_000_000)?;
        within("chain.timeout_seconds", self.chain.timeout_seconds, 1, 600)?;
        within("chain.poll_ms", self.chain.poll_ms, 10, 60_000)?;
        within("chain.sweep_seconds", self.chain.sweep_seconds, 0, 86_400)?;
        within("chain.blocks_per_step", self.chain.blocks_per_step, 1, 10_000)?;
        within("prover.concurrency", self.prover.concurrency as u64, 1, 64)?;
        within("prover.timeout_seconds", self.prover.timeout_seconds, 5, 86_400)?;
        let Some(host) = &self.host else { return Ok(()) };
        for (name, file) in [("keystore", &host.keystore), ("password_file", &host.password_file)] {
            let missing = host.signer == Keeper::Keystore && file.as_os_str().is_empty();
            ensure!(!missing, "missing field `host.{name}`: where the encrypted key is (`fabstir key new` makes one)");
        }
        ensure!(!host.models.is_empty(), "host.models is empty: a host serves at least one model");
        ensure!(!host.price_per_1k.is_empty(), "host.price_per_1k is empty: name a price for eth or a token's address");
        if let Some(url) = &host.page_url {
            let parsed: Result<reqwest::Url, _> = url.parse();
            let http = parsed.is_ok_and(|url| matches!(url.scheme(), "http" | "https"));
            ensure!(http, "host.page_url = {} is not an http:// or https:// URL", chain::shown(url));
        }
        let (breaker, endpoints) = (&host.breaker, self.chain.endpoints().urls.len());
        ensure!(
            breaker.quorum <= endpoints,
            "host.breaker.quorum = {} is more than the {endpoints} endpoints that chain.rpc_url and chain.rpc_urls name",
            breaker.quorum
        );
        within("host.breaker.seconds", breaker.seconds, 1, 30 * 86_400)?;
        within("host.breaker.drift_percent", breaker.drift_percent.into(), 0, 100)?;
        within("host.breaker.drift_jobs", breaker.drift_jobs.into(), 0, 10_000)?;
        host.policy.check().context("[host.policy]")?;
        within("host.tokens_per_second", host.tokens_per_second.into(), 1, 1_000_000)?;
        within("host.window", host.window as u64, 1, 10_000)?;
        within("host.bump_after_seconds", host.bump_after_seconds, 1, 3600)?;
        within("host.shutdown_seconds", host.shutdown_seconds, 0, 86_400)?;

        for (index, model) in host.models.iter().enumerate() {
            let at = |name: &str| format!("host.models[{index}].{name}");
            within(&at("slots"), model.slots as u64, 1, crate::engine::SLOTS_MAX as u64)?;
            within(&at("queue"), model.queue.into(), 0, 100_000)?;
            within(&at("context_tokens"), model.context_tokens.into(), 64, 1 << 22)?;
            within(&at("max_tokens"), model.max_tokens.into(), 1, model.context_tokens.into())?;
            ensure!(model.path.is_file(), "{} = {} is not a file", at("path"), model.path.display());
        }
        Ok(())
    }

    /// Returns the database's path.
    pub fn database(&self) -> PathBuf {
        self.data_dir.join("node.sqlite")
    }

    /// Returns the file of what `fabstir bench model` measured.
    pub fn calibration(&self) -> PathBuf {
        self.data_dir.join("calibration.json")
    }

    /// Returns the file in which a running node writes who and where it is, for other programs of its machine.
    pub fn node_file(&self) -> PathBuf {
        self.data_dir.join("node.json")
    }

    /// Returns the folder of content-addressed bytes.
    pub fn content(&self) -> PathBuf {
        self.data_dir.join("content")
    }
}

fn within(name: &str, value: u64, low: u64, high: u64) -> Result<()> {
    ensure!((low..=high).contains(&value), "{name} = {value} is not between {low} and {high}");
    Ok(())
}

fn override_entry(table: &mut toml::Table, path: &[&str], kind: Kind, text: &str) -> Result<()> {
    use toml::Value;
    let port = || text.parse::<u16>().context("not a port number (0 to 65535)");
    let texts = |items: Vec<String>| Value::Array(items.into_iter().map(Value::String).collect());
    let value = match kind {
        Kind::Text => Value::String(text.into()),
        Kind::Number => Value::Integer(text.parse().context("not a whole number")?),
        Kind::Flag => Value::Boolean(text.parse().context("not true or false")?),
        Kind::List => texts(text.split(',').map(|item| item.trim().into()).collect()),
        Kind::P2pPort => {
            let port = port()?;
            texts(vec![format!("/ip4/0.0.0.0/tcp/{port}"), format!("/ip4/0.0.0.0/udp/{port}/quic-v1")])
        }
        Kind::ApiPort => Value::String(format!("0.0.0.0:{}", port()?)),
        Kind::Model => {
            let host = entry(table, "host")?;
            let models = host.entry("models").or_insert_with(|| Value::Array(vec![Value::Table(toml::Table::new())]));
            let first = models.as_array_mut().and_then(|models| models.first_mut()).and_then(Value::as_table_mut);
            first.context("host.models is not a list of tables")?.insert("path".into(), Value::String(text.into()));
            return Ok(());
        }
    };
    let (last, folders) = path.split_last().expect("paths are not empty");
    let mut at = table;
    for folder in folders {
        at = entry(at, folder)?;
    }
    at.insert((*last).into(), value);
    Ok(())
}

fn entry<'a>(table: &'a mut toml::Table, name: &str) -> Result<&'a mut toml::Table> {
    let value = table.entry(name).or_insert_with(|| toml::Value::Table(toml::Table::new()));
    value.as_table_mut().with_context(|| format!("{name} is not a table"))
}

/// Amounts are decimal texts: they pass TOML's 64 bits.
fn prices<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<BTreeMap<Address, U256>, D::Error> {
    let named = BTreeMap::<String, String>::deserialize(deserializer)?;
    let read = |(token, price): (String, String)| -> Result<(Address, U256)> {
        let address = policy::token(&token).with_context(|| format!("price_per_1k.{token}"))?;
        let Ok(price) = U256::from_str_radix(&price, 10) else {
            bail!("price_per_1k.{token} = {price:?} is not a whole number in the token's smallest unit");
        };
        Ok((address, price))
    };
    named.into_iter().map(read).collect::<Result<_>>().map_err(serde::de::Error::custom)
}

fn some_prices<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<BTreeMap<Address, U256>>, D::Error> {
    prices(deserializer).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINIMAL: &str = r#"
        data_dir = "data"
        [chain]
        id = 31337
        rpc_url = "http://127.0.0.1:8545"
        [contracts]
        governance_token = "0x0000000000000000000000000000000000000001"
        node_registry = "0x0000000000000000000000000000000000000002"
        payment_escrow = "0x0000000000000000000000000000000000000003"
        job_marketplace = "0x0000000000000000000000000000000000000004"
        proof_system = "0x0000000000000000000000000000000000000005"
        reputation_system = "0x0000000000000000000000000000000000000006"
        governance = "0x0000000000000000000000000000000000000007"
        timelock = "0x0000000000000000000000000000000000000008"
        account_factory = "0x0000000000000000000000000000000000000009"
    "#;

    fn read(text: &str, environment: &[(&str, &str)]) -> Result<Config> {
        let environment: BTreeMap<_, _> = environment.iter().copied().collect();
        Config::read(text, Path::new("/etc/fabstir"), &|name| environment.get(name).map(|value| value.to_string()))
    }

    #[test]
    fn paths_are_taken_from_the_files_folder() {
        let config = read(MINIMAL, &[]).unwrap();
        assert_eq!(config.database(), Path::new("/etc/fabstir/data/node.sqlite"));
        assert_eq!(config.prover.dir.unwrap(), Path::new("/etc/fabstir/data/prover"));
        assert_eq!(config.prover.python, Path::new("python3"));
    }

    #[test]
    fn further_contracts_are_read() {
        let text = "[[contracts.also]]\nrole='node_registry'\naddress='0x0000000000000000000000000000000000000044'\nto=9
            [[contracts.also]]\nrole='node_registry'\naddress='0x0000000000000000000000000000000000000002'\nfrom=7\nabi='unknown'";
        let also = read(&format!("{MINIMAL}\n{text}"), &[]).unwrap().contracts.also;
        let told = also.iter().map(|also| (also.role, also.from, also.to, also.abi)).collect::<Vec<_>>();
        let role = chain::Role::NodeRegistry;
        assert_eq!(told, [(role, 0, 9, chain::Abi::V1), (role, 7, i64::MAX as u64, chain::Abi::Unknown)]);
    }

    #[test]
    fn the_environment_wins() {
        let set = [("CHAIN_ID", "84532"), ("P2P_PORT", "4500"), ("API_PORT", "0"), ("RPC_URL", "https://rpc.example")];
        let config = read(MINIMAL, &set).unwrap();
        assert_eq!(config.chain.id, 84532);
        assert_eq!(config.chain.rpc_url, "https://rpc.example");
        assert_eq!(config.p2p.listen[1].to_string(), "/ip4/0.0.0.0/udp/4500/quic-v1");
        assert_eq!(config.http.listen.to_string(), "0.0.0.0:0");
    }

    #[test]
    fn several_endpoints_are_told_apart_and_their_keys_not_told() {
        let config = read(MINIMAL, &[("RPC_URLS", "https://a.example/key, http://b.example")]).unwrap();
        let endpoints = config.chain.endpoints();
        assert_eq!(endpoints.urls, ["http://127.0.0.1:8545", "https://a.example/key", "http://b.example"]);
        assert_eq!((endpoints.requests_per_second, endpoints.timeout), (0, Duration::from_secs(20)));
        for (name, value, entry) in [
            ("RPC_URLS", "https://a.example, ftp://b.example/s3cr3t", "chain.rpc_urls[1] = ftp://b.example "),
            ("RPC_URL", "b.example/s3cr3t", "chain.rpc_url = (no URL) "),
            ("WS_URL", "http://b.example/s3cr3t", "chain.ws_url = http://b.example "),
        ] {
            let error = format!("{:#}", read(MINIMAL, &[(name, value)]).unwrap_err());
            assert!(error.contains(entry) && !error.contains("s3cr3t"), "{error}");
        }
        assert!(
            format!("{:#}", read("chain = 1", &[("RPC_URLS", "http://s3cr3t")]).unwrap_err()).contains("RPC_URLS=…")
        );
    }

    #[test]
    fn what_is_wrong_is_named() {
        let error = |text: &str, set: &[(&str, &str)]| format!("{:#}", read(text, set).unwrap_err());
        assert!(error(&format!("colour = 1\n{MINIMAL}"), &[]).contains("colour"));
        assert!(error(&MINIMAL.replace("rpc_url", "rpc_uri"), &[]).contains("rpc_uri"));
        assert!(error(&MINIMAL.replace("http:", "ftp:"), &[]).contains("chain.rpc_url"));
        assert!(error(MINIMAL, &[("CHAIN_ID", "base")]).contains("CHAIN_ID=base"));
        assert!(error(MINIMAL, &[("P2P_PORT", "70000")]).contains("P2P_PORT=70000"));
        assert!(error(&MINIMAL.replace("0000000005", "zz"), &[]).contains("proof_system"));
        let second =
            "[[contracts.also]]\nrole='job_marketplace'\naddress='0x0000000000000000000000000000000000000044'\nto=9";
        let second = error(&format!("{MINIMAL}\n{second}"), &[]);
        assert!(second.contains("contracts.also[0]: a second JobMarketplace"), "{second}");
        let host = "[host]\nkeystore='k'\npassword_file='p'\nmodels=[{path='none.gguf'}]\n";
        let removed = error(&format!("{MINIMAL}\n{host}claim_unproven=true"), &[]);
        assert!(removed.contains("claim_unproven") && removed.contains("[host.gate.claim]"), "{removed}");
        let gate = error(&format!("{MINIMAL}\n{host}price_per_1k={{eth='1'}}\n[host.gate.claim]\ndepth='deep'"), &[]);
        assert!(gate.contains("depth = \"deep\"") && gate.contains("host.gate.claim"), "{gate}");
        let model = error(&format!("{MINIMAL}\n{host}price_per_1k={{eth='1'}}"), &[]);
        assert!(model.contains("host.models[0].path"), "{model}");
        let price = error(&format!("{MINIMAL}\n{host}price_per_1k={{eth='cheap'}}"), &[]);
        assert!(price.contains("price_per_1k.eth = \"cheap\""), "{price}");
    }

    #[test]
    fn a_policy_is_read_with_its_amounts_and_refused_by_name() {
        let host = "[host]\nkeystore='k'\npassword_file='p'\nmodels=[{path='none.gguf'}]\nprice_per_1k={eth='1'}\n[host.policy]\n";
        let usd = "0x036CbD53842c5426634e7929541eC2318f3dCF7e";
        let error = |text: &str| format!("{:#}", read(&format!("{MINIMAL}\n{host}{text}"), &[]).unwrap_err());
        for (text, says) in [
            ("colour=1", "colour"),
            ("win_percent_min=101", "policy.win_percent_min = 101 is not between 0 and 100"),
            ("prompt_bytes_per_token=0", "prompt_bytes_per_token"),
            ("machine_hour_wei='cheap'", "\"cheap\" is not a whole number"),
            ("tokens=['doge']", "\"doge\" is not \"eth\""),
            ("renters=['bob']", "renters"),
            (&format!("token_value={{'{usd}'={{units='0',wei='1'}}}}"), "units is 0"),
            ("gas={claims=1}", "claims"),
        ] {
            let error = error(text);
            assert!(error.contains(says), "{text}: {error}");
        }
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("new.toml");
        let text = format!(
            "price_per_1k={{eth='7'}}\n[policy]\ntokens=['eth']\nmachine_hour_wei='36893488147419103232'
            token_value={{'{usd}'={{units=1,wei='400000000'}}}}\nmargin_percent_min=10\n[policy.gas]\nclaim=1"
        );
        std::fs::write(&file, text).unwrap();
        let policy = PolicyFile::load(&file).unwrap();
        let limits = policy.policy.unwrap();
        assert_eq!(limits.machine_hour_wei, U256::from(1u128 << 65));
        assert_eq!((limits.gas.claim, limits.gas.commit), (1, policy::Gas::default().commit));
        assert_eq!(limits.wei(usd.parse().unwrap(), U256::from(3)), Some(U256::from(1_200_000_000)));
        assert_eq!(policy.price_per_1k.unwrap()[&Address::ZERO], U256::from(7));
        std::fs::write(&file, "keystore = 'k'").unwrap();
        assert!(format!("{:#}", PolicyFile::load(&file).unwrap_err()).contains("keystore"));
    }

    #[test]
    fn a_host_says_who_keeps_its_key() {
        let said = |signer: &str| {
            let host = format!("[host]\n{signer}\nmodels=[{{path='none.gguf'}}]\nprice_per_1k={{eth='1'}}");
            format!("{:#}", read(&format!("{MINIMAL}\n{host}"), &[]).unwrap_err())
        };
        assert!(said("keystore='k'").contains("missing field `host.password_file`"), "{}", said("keystore='k'"));
        assert!(said("signer='keystore'").contains("missing field `host.keystore`"));
        for kept in ["aws='alias/host'", "gcp={project='p',location='l',ring='r',key='k',version=1}"] {
            let past = said(&format!("signer={{{kept}}}"));
            assert!(past.contains("host.models[0].path"), "{past}");
        }
        assert!(said("signer={gcp={project='p'}}").contains("location"));
        assert!(said("signer={vault='k'}").contains("vault"));
    }

    #[test]
    fn the_example_is_valid_but_for_its_files() {
        let text = include_str!("../config.example.toml");
        let error = format!("{:#}", read(text, &[]).unwrap_err());
        assert!(error.contains("host.models[0].path") && error.contains("is not a file"), "{error}");
    }

    #[test]
    fn the_example_names_every_variable_that_is_read() {
        let header = include_str!("../config.example.toml").split("\n\n").next().unwrap();
        let named: Vec<&str> = header.split([' ', ',', '.', '\n']).collect();
        let missing: Vec<&str> =
            OVERRIDES.iter().map(|(variable, ..)| *variable).filter(|variable| !named.contains(variable)).collect();
        assert_eq!(missing, [""; 0]);
    }
}
