//! The chain of the run and its renters: blocks once a second, and reorgs.
//!
//! Read and written without the program's own sender and follower: what is held against the program must not be its own work.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use fabstir::chain::call::{self, Call, Order};
use fabstir::chain::{Chain, Fees, Signer, key};
use fabstir::devnet::{self, AddressBook, Devnet};
use fabstir::market::types::{Address, B256, Bytes, ModelId, U256};
use rand::Rng;
use rand::rngs::StdRng;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::sync::Mutex;
use tokio::task::JoinHandle;

/// Between two blocks.
const BLOCK_EVERY: Duration = Duration::from_secs(1);
/// Between completion and payment, in seconds.
const CHALLENGE_WINDOW: u64 = 2;
const ETH: u128 = 1_000_000_000_000_000_000;
const PASSWORD: &str = "chaos";
const FEES: Fees = Fees { fee_cap: 50_000_000_000, tip_cap: 1_000_000_000 };
const RENTER_GAS: u64 = 1_500_000;
const MINED_WITHIN: Duration = Duration::from_secs(60);

/// The chain, what stands on it, and what hosts need from this machine.
pub struct Market {
    pub devnet: Devnet,
    pub book: AddressBook,
    pub folder: PathBuf,
    pub model: ModelId,
    pub model_file: PathBuf,
    pub python: PathBuf,
    pub prover: PathBuf,
    chain: Chain,
    client: reqwest::Client,
    /// Held while a block is made or taken away.
    making: Arc<Mutex<()>>,
    miner: Option<JoinHandle<()>>,
    _scratch: Option<TempDir>,
}

/// A transaction of a renter.
struct Sent {
    hash: B256,
    raw: Bytes,
    mined: bool,
}

/// An account that posts jobs. What a reorg takes away it sends again, as it is.
pub struct Renter {
    signer: Signer,
    nonce: u64,
    sent: Vec<Sent>,
}

impl Market {
    /// Starts a chain, deploys the contracts and lets time flow. Files go to `folder`, or nowhere that lasts.
    pub async fn new(contracts: &Path, folder: Option<&Path>) -> Result<Self> {
        let devnet = Devnet::start(contracts).await?;
        let book = devnet::deploy(&devnet.rpc_url, contracts, CHALLENGE_WINDOW).await?;
        let chain = Chain::connect(&devnet.rpc_url, devnet::CHAIN_ID, book.contracts.clone()).await?;
        let scratch = folder.is_none().then(tempfile::tempdir).transpose()?;
        let folder = folder.map_or_else(|| scratch.as_ref().expect("made above").path().to_owned(), Path::to_owned);
        std::fs::create_dir_all(&folder)?;
        let folder = std::path::absolute(folder)?;
        let password = folder.join("password");
        std::fs::write(&password, PASSWORD)?;
        use std::os::unix::fs::PermissionsExt;
        std::fs::set_permissions(&password, std::fs::Permissions::from_mode(0o600))?;
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let model_file = root.join("tests/models/tiny-chat-q8_0.gguf");
        let digest = {
            use sha2::Digest;
            sha2::Sha256::digest(std::fs::read(&model_file)?)
        };
        let python = std::env::var_os("FABSTIR_PYTHON").map(PathBuf::from);
        Ok(Self {
            devnet,
            book,
            folder,
            model: ModelId(digest.into()),
            model_file,
            python: python.unwrap_or_else(|| root.join(".fabstir/venv/bin/python")),
            prover: root.join(".fabstir/prover"),
            chain,
            client: reqwest::Client::builder().timeout(Duration::from_secs(60)).tls_certs_only([]).build()?,
            making: Arc::default(),
            miner: None,
            _scratch: scratch,
        })
    }

    /// Makes one block a second from now on, and none otherwise.
    pub async fn flow(&mut self) -> Result<()> {
        self.rpc("evm_setAutomine", json!([false])).await?;
        let (url, client, making) = (self.devnet.rpc_url.clone(), self.client.clone(), self.making.clone());
        self.miner = Some(tokio::spawn(async move {
            loop {
                tokio::time::sleep(BLOCK_EVERY).await;
                let _making = making.lock().await;
                if let Err(error) = rpc(&client, &url, "evm_mine", json!([])).await {
                    eprintln!("no block: {error:#}");
                }
            }
        }));
        Ok(())
    }

    /// Makes no more blocks.
    pub async fn freeze(&mut self) {
        let _making = self.making.lock().await;
        if let Some(miner) = self.miner.take() {
            miner.abort();
        }
    }

    /// Replaces the newest `depth` blocks with others that are empty. What was in them waits again: the renters' transactions
    /// all, where `renumber` asks it and with even odds in another order; the others' each with even odds.
    pub async fn reorg(&self, depth: u64, renumber: bool, renters: &mut [Renter], dice: &mut StdRng) -> Result<()> {
        let _making = self.making.lock().await;
        let head = self.head().await?;
        // By renter, or by block where the order stays; the others' last.
        let (mut back, another_order) = (Vec::new(), dice.gen_bool(0.5) && renumber);
        for number in head - depth + 1..=head {
            let block = self.rpc("eth_getBlockByNumber", json!([hex(number), false])).await?;
            for hash in block["transactions"].as_array().context("a block's transactions")? {
                let raw = self.rpc("eth_getRawTransactionByHash", json!([hash])).await?;
                let ours = renters.iter_mut().rev().enumerate().find_map(|(place, renter)| {
                    let sent = renter.sent.iter_mut().find(|sent| json!(sent.hash) == *hash)?;
                    sent.mined = false;
                    Some(if another_order { place } else { 0 })
                });
                if ours.is_some() || dice.gen_bool(0.5) {
                    back.push((ours.unwrap_or(usize::MAX), raw));
                }
            }
        }
        self.rpc("anvil_reorg", json!([depth, []])).await?;
        back.sort_by_key(|(place, _)| *place);
        for (_, raw) in back {
            // One that a block no longer has room for, or that a host sent again meanwhile.
            let _ = self.rpc("eth_sendRawTransaction", json!([raw])).await;
        }
        Ok(())
    }

    /// Makes an account with ETH, and a key file of that name.
    pub async fn account(&self, name: &str) -> Result<Signer> {
        let signer = key::create(&self.folder.join(format!("{name}.json")), PASSWORD)?;
        self.devnet.fund(signer.address(), U256::from(1000 * ETH)).await?;
        Ok(signer)
    }

    /// Registers a host with twice the stake it needs: missed deadlines cost some.
    pub async fn register(&self, signer: &Signer) -> Result<()> {
        let contracts = &self.book.contracts;
        let stake = self.chain.stake_min().await?;
        let all = stake + stake;
        self.devnet.send(&call::transfer(contracts.governance_token, signer.address(), all)).await?;
        let approve = call::approve(contracts.governance_token, contracts.node_registry, all);
        for call in [approve, contracts.register("{}".into()), contracts.add_stake(stake)] {
            self.chain.transact(signer, &call, MINED_WITHIN).await?;
        }
        Ok(())
    }

    /// Returns a renter with money.
    pub async fn renter(&self, name: &str) -> Result<Renter> {
        Ok(Renter { signer: self.account(name).await?, nonce: 0, sent: Vec::new() })
    }

    /// Returns the newest block's number.
    pub async fn head(&self) -> Result<u64> {
        quantity(&self.rpc("eth_blockNumber", json!([])).await?)
    }

    /// Returns the newest block's time, in Unix seconds.
    pub async fn time(&self) -> Result<u64> {
        quantity(&self.rpc("eth_getBlockByNumber", json!(["latest", false])).await?["timestamp"])
    }

    /// Returns how many transactions of an account the chain has, `latest` or `pending`.
    pub async fn nonce(&self, account: Address, when: &str) -> Result<u64> {
        quantity(&self.rpc("eth_getTransactionCount", json!([account, when])).await?)
    }

    /// As [`devnet::rpc`], over one connection.
    pub async fn rpc(&self, method: &str, params: Value) -> Result<Value> {
        rpc(&self.client, &self.devnet.rpc_url, method, params).await
    }
}

impl Renter {
    /// Posts a job; it is on chain in one of the next blocks.
    pub async fn post(&mut self, market: &Market, order: &Order) -> Result<B256> {
        self.send(market, &market.book.contracts.post(order)).await
    }

    /// Signs a call and sends it. It may be refused on chain.
    pub async fn send(&mut self, market: &Market, call: &Call) -> Result<B256> {
        let (hash, raw) = self.signer.sign(devnet::CHAIN_ID, self.nonce, RENTER_GAS, FEES, call).await?;
        self.nonce += 1;
        market.rpc("eth_sendRawTransaction", json!([raw])).await?;
        self.sent.push(Sent { hash, raw, mined: false });
        Ok(hash)
    }

    /// Returns whether the account is this renter's.
    pub fn is(&self, account: Address) -> bool {
        self.signer.address() == account
    }

    /// Sends again what is not on chain. Returns how many are not.
    pub async fn tend(&mut self, market: &Market) -> Result<usize> {
        let mut open = 0;
        for sent in self.sent.iter_mut().filter(|sent| !sent.mined) {
            sent.mined = !market.rpc("eth_getTransactionReceipt", json!([sent.hash])).await?.is_null();
            if !sent.mined {
                open += 1;
                // It knows it already, most of the time.
                let _ = market.rpc("eth_sendRawTransaction", json!([sent.raw])).await;
            }
        }
        Ok(open)
    }
}

/// A log as the chain has it.
#[derive(Debug, Clone)]
pub struct Log {
    pub block: u64,
    pub tx: B256,
    pub topics: Vec<B256>,
    pub data: Bytes,
}

impl Market {
    /// Returns all logs of the contracts since the deployment, oldest first.
    pub async fn logs(&self) -> Result<Vec<Log>> {
        let contracts: Vec<Address> = self.book.contracts.named().into_iter().map(|(_, address)| address).collect();
        let filter = json!([{ "fromBlock": hex(self.book.block), "toBlock": "latest", "address": contracts }]);
        let logs = self.rpc("eth_getLogs", filter).await?;
        let logs = logs.as_array().context("logs")?.iter().map(|log| {
            Ok(Log {
                block: quantity(&log["blockNumber"])?,
                tx: serde_json::from_value(log["transactionHash"].clone())?,
                topics: serde_json::from_value(log["topics"].clone())?,
                data: serde_json::from_value(log["data"].clone())?,
            })
        });
        logs.collect()
    }

    /// Returns the number of the block that holds a transaction; `None` while none does.
    pub async fn block_of(&self, tx: B256) -> Result<Option<u64>> {
        let receipt = self.rpc("eth_getTransactionReceipt", json!([tx])).await?;
        if receipt.is_null() { Ok(None) } else { quantity(&receipt["blockNumber"]).map(Some) }
    }

    /// Returns a block's time, in Unix seconds.
    pub async fn time_of(&self, number: u64) -> Result<u64> {
        quantity(&self.rpc("eth_getBlockByNumber", json!([hex(number), false])).await?["timestamp"])
    }

    /// Returns the hashes of all transactions of these accounts, by account and nonce.
    pub async fn transactions(&self, accounts: &[Address]) -> Result<HashMap<(Address, u64), (B256, bool)>> {
        let mut found = HashMap::new();
        for number in self.book.block..=self.head().await? {
            let block = self.rpc("eth_getBlockByNumber", json!([hex(number), true])).await?;
            for tx in block["transactions"].as_array().context("a block's transactions")? {
                let from: Address = serde_json::from_value(tx["from"].clone())?;
                if accounts.contains(&from) {
                    let hash: B256 = serde_json::from_value(tx["hash"].clone())?;
                    let receipt = self.rpc("eth_getTransactionReceipt", json!([hash])).await?;
                    found.insert((from, quantity(&tx["nonce"])?), (hash, receipt["status"] == "0x1"));
                }
            }
        }
        Ok(found)
    }

    /// Waits until `done`, at most `limit`.
    pub async fn until(&self, what: &str, limit: Duration, mut done: impl AsyncFnMut() -> Result<bool>) -> Result<()> {
        let began = Instant::now();
        while !done().await? {
            if began.elapsed() > limit {
                bail!("never so within {} s: {what}", limit.as_secs());
            }
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
        Ok(())
    }
}

async fn rpc(client: &reqwest::Client, url: &str, method: &str, params: Value) -> Result<Value> {
    let body = json!({ "jsonrpc": "2.0", "id": 1, "method": method, "params": params });
    let mut answer: Value = client.post(url).json(&body).send().await?.json().await?;
    ensure!(answer["error"].is_null(), "{method}: {}", answer["error"]);
    Ok(answer["result"].take())
}

fn hex(number: u64) -> String {
    format!("{number:#x}")
}

fn quantity(value: &Value) -> Result<u64> {
    crate::proxy::quantity(value).with_context(|| format!("not a number: {value}"))
}
