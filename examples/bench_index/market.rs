//! Makes the chain that is indexed: renters and hosts at a real marketplace, about a hundred events a block.
//!
//! Each job has a fate, drawn when it is posted: served and paid, given up and served by another host, cancelled, or left
//! until its deadline. What is due comes first in a block, and new jobs fill it up. Everything follows from the seed:
//! accounts, orders, blocks' times, hashes.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::path::Path;
use std::time::{Duration, Instant};

use alloy::primitives::{U64, keccak256};
use anyhow::{Context, Result, bail, ensure};
use fabstir::chain::call::{self, Call, Order};
use fabstir::chain::{Chain, Contracts};
use fabstir::devnet::{self, AddressBook, DEPLOYER, Devnet};
use fabstir::market::event::{Commitment, RawLog, Terms};
use fabstir::market::types::{Address, B256, BlockRef, Bytes, Cid, JobId, ModelId, U256, UnixSeconds};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

/// Seconds between blocks, by their times.
const BLOCK_SECONDS: u64 = 2;
/// Seconds between completion and payment.
const CHALLENGE_WINDOW: u64 = 4;
const RENTERS: usize = 40;
const HOSTS: usize = 8;
/// Blocks whose logs are counted with one call.
const BLOCKS_PER_COUNT: u64 = 100;
const EVENTS_PER_LINE: u64 = 50_000;
const GWEI: u64 = 1_000_000_000;

/// A chain and who is on it.
pub struct Market {
    pub devnet: Devnet,
    pub book: AddressBook,
    /// Logs of the indexed contracts, the deployment's among them.
    pub events: u64,
    pub transactions: u64,
    /// Blocks of the marketplace's users.
    pub blocks: u64,
    /// From the making of a block to the check of its receipts, so that the reading does not disturb who is measured.
    pub rest: Duration,
    by_topic: HashMap<B256, (u64, RawLog)>,
    rpc: Rpc,
    _empty: Devnet,
    rng: StdRng,
    renters: Vec<Address>,
    hosts: Vec<Address>,
    nonces: HashMap<Address, u64>,
    jobs: HashMap<JobId, Job>,
    /// What is to be done, by the block from which it can be.
    later: BTreeMap<u64, Vec<(JobId, Act)>>,
    due: VecDeque<(JobId, Act)>,
    head: u64,
}

struct Job {
    terms: Terms,
    host: Address,
    output: Cid,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Act {
    Claim,
    /// Claims, to give it up.
    ClaimInVain,
    GiveUp,
    Commit,
    Complete,
    Release,
    Rate,
    Cancel,
    Expire,
}

impl Act {
    /// Events that the indexed contracts log of it.
    fn events(self) -> u64 {
        match self {
            Act::Claim | Act::ClaimInVain | Act::Commit => 1,
            Act::Complete => 2,
            Act::GiveUp | Act::Release | Act::Rate | Act::Cancel | Act::Expire => 3,
        }
    }
}

/// Events of a posted job.
const POST_EVENTS: u64 = 4;

enum Fate {
    Served,
    GivenUp,
    Cancelled,
    Expired,
}

/// A transaction to be mined.
struct Tx {
    from: Address,
    call: Call,
    gas: u64,
    /// The jobs that it posts, each with what becomes of it.
    jobs: Vec<(Terms, Fate)>,
}

impl Tx {
    fn new(from: Address, call: Call, parts: usize) -> Self {
        Self { from, call, gas: 300_000 + 300_000 * parts as u64, jobs: Vec::new() }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Receipt {
    transaction_hash: B256,
    status: U64,
    logs: Vec<Log>,
}

#[derive(Deserialize)]
struct Log {
    address: Address,
    topics: Vec<B256>,
    data: Bytes,
}

impl Market {
    /// Starts a chain, deploys the contracts and brings renters and hosts there.
    pub async fn open(contracts: &Path, seed: u64) -> Result<Self> {
        // A fork of an empty chain. On a chain of its own anvil makes the whole state's trie anew at each block, which at the
        // end takes half a second; on a fork it makes none. The headers then have a state root of 0, which nobody reads.
        let empty = Devnet::start_with(contracts, &["--timestamp", "1700000000"]).await?;
        let options = ["--fork-url", &empty.rpc_url, "--no-storage-caching", "--no-rate-limit", "--prune-history"];
        let devnet = Devnet::start_with(contracts, &[&options[..], &["--gas-limit", "300000000"]].concat()).await?;
        devnet.rpc("anvil_setBlockTimestampInterval", json!([BLOCK_SECONDS])).await?;
        let book = devnet::deploy(&devnet.rpc_url, contracts, CHALLENGE_WINDOW).await?;
        devnet.rpc("anvil_autoImpersonateAccount", json!([true])).await?;
        devnet.rpc("evm_setAutomine", json!([false])).await?;
        let rpc = Rpc { client: reqwest::Client::new(), url: devnet.rpc_url.clone() };
        let mut rng = StdRng::seed_from_u64(seed);
        let mut account = || Address::from(rng.r#gen::<[u8; 20]>());
        let renters = (0..RENTERS).map(|_| account()).collect();
        let hosts = (0..HOSTS).map(|_| account()).collect();
        let mut market = Self {
            head: rpc.call::<U64>("eth_blockNumber", json!([])).await?.to(),
            devnet,
            book,
            events: 0,
            transactions: 0,
            blocks: 0,
            rest: Duration::ZERO,
            by_topic: HashMap::new(),
            rpc,
            _empty: empty,
            rng,
            renters,
            hosts,
            nonces: HashMap::new(),
            jobs: HashMap::new(),
            later: BTreeMap::new(),
            due: VecDeque::new(),
        };
        let filter = json!([{ "fromBlock": U64::from(market.book.block), "address": indexed(&market.book.contracts) }]);
        let deployed = market.rpc.call("eth_getLogs", filter).await?;
        market.count(deployed);
        market.populate().await?;
        Ok(market)
    }

    /// Gives renters money and registers the hosts.
    async fn populate(&mut self) -> Result<()> {
        let contracts = &self.book.contracts;
        let (fab, usd) = (contracts.governance_token, self.book.usd.context("no test token")?);
        let chain = Chain::connect(&self.devnet.rpc_url, devnet::CHAIN_ID, contracts.clone()).await?;
        let stake = chain.stake_min().await?;
        let nonce: U64 = self.rpc.call("eth_getTransactionCount", json!([DEPLOYER, "latest"])).await?;
        self.nonces.insert(DEPLOYER, nonce.to());
        let mut money = Vec::new();
        let mut registrations = Vec::new();
        for &renter in &self.renters {
            self.devnet.fund(renter, U256::from(1_000_000) * U256::from(GWEI) * U256::from(GWEI)).await?;
            money.push(Tx::new(DEPLOYER, call::transfer(usd, renter, U256::from(10u64.pow(12))), 1));
            money.push(Tx::new(renter, call::approve(usd, contracts.job_marketplace, U256::MAX), 1));
        }
        for (number, &host) in self.hosts.iter().enumerate() {
            self.devnet.fund(host, U256::from(1_000_000) * U256::from(GWEI) * U256::from(GWEI)).await?;
            money.push(Tx::new(DEPLOYER, call::transfer(fab, host, stake), 1));
            money.push(Tx::new(host, call::approve(fab, contracts.node_registry, stake), 1));
            registrations.push(Tx::new(host, contracts.register(metadata(number)), 1));
        }
        self.mine(&money, 0).await?;
        self.mine(&registrations, 2 * HOSTS as u64).await
    }

    /// Makes blocks until the chain has `events`, and counts them there.
    pub async fn grow_to(&mut self, events: u64) -> Result<()> {
        ensure!(events >= self.events, "there are {} events already", self.events);
        let (began, mut said) = (Instant::now(), self.events);
        while self.events < events {
            let wanted = self.rng.gen_range(60..=140);
            let left = events - self.events;
            // The last block may be larger than the others.
            let last = left < 160;
            self.block(if last { left } else { wanted }, last).await?;
            if self.events / EVENTS_PER_LINE > said / EVENTS_PER_LINE {
                said = self.events;
                eprintln!("  {said} events after {:.1} s", began.elapsed().as_secs_f64());
            }
        }
        let found = self.on_chain().await?;
        ensure!(found == events, "the chain finds {found} events of the {events} made");
        Ok(())
    }

    /// Makes a block of at most `budget` events; exactly as many, if it must be `full`.
    pub async fn block(&mut self, budget: u64, full: bool) -> Result<()> {
        let number = self.head + 1;
        let mut left = budget;
        while let Some(entry) = self.later.first_entry().filter(|entry| *entry.key() <= number) {
            self.due.extend(entry.remove());
        }
        let mut acts = Vec::new();
        while let Some((job, act)) = self.due.front().copied().filter(|(_, act)| act.events() <= left) {
            self.due.pop_front();
            left -= act.events();
            acts.push((job, act));
        }
        let mut txs = self.acted(acts)?;
        while left >= POST_EVENTS {
            let most = (left / POST_EVENTS).min(4) as usize;
            let tx = self.post(most);
            left -= POST_EVENTS * tx.jobs.len() as u64;
            txs.push(tx);
        }
        if full {
            for number in 0..left as usize {
                let call = self.book.contracts.update_metadata(metadata(number));
                txs.push(Tx::new(self.hosts[number % HOSTS], call, 1));
            }
            left = 0;
        }
        self.mine(&txs, budget - left).await
    }

    /// Returns the transactions that do these acts, and plans what follows.
    fn acted(&mut self, acts: Vec<(JobId, Act)>) -> Result<Vec<Tx>> {
        let contracts = &self.book.contracts;
        let mut txs = Vec::new();
        let mut completed: BTreeMap<Address, Vec<(JobId, Cid)>> = BTreeMap::new();
        let mut released: BTreeMap<Address, Vec<JobId>> = BTreeMap::new();
        for (id, act) in acts {
            let mut next = None;
            let job = self.jobs.get_mut(&id).context("a job that was posted")?;
            match act {
                Act::Claim => {
                    txs.push(Tx::new(job.host, contracts.claim(id, job.terms.deal()), 1));
                    next = Some((1..=3, Act::Commit));
                }
                Act::ClaimInVain => {
                    txs.push(Tx::new(job.host, contracts.claim(id, job.terms.deal()), 1));
                    next = Some((1..=3, Act::GiveUp));
                }
                Act::GiveUp => {
                    let call = contracts.fail(id, job.terms.deal(), "the engine ran out of memory".into());
                    txs.push(Tx::new(job.host, call, 1));
                    let place = self.hosts.iter().position(|host| *host == job.host).context("a host")?;
                    job.host = self.hosts[(place + 1) % HOSTS];
                    next = Some((1..=2, Act::Claim));
                }
                Act::Commit => {
                    let digest = |what: &str| keccak256(format!("{what} of job {id}"));
                    let commitment = Commitment {
                        root: digest("root"),
                        tokens: 16,
                        result_hash: job.output.chain_hash(),
                        tokens_digest: digest("tokens"),
                    };
                    txs.push(Tx::new(job.host, contracts.commit(id, job.terms.order(), &commitment), 1));
                    next = Some((2..=5, Act::Complete));
                }
                Act::Complete => {
                    completed.entry(job.host).or_default().push((id, job.output));
                    next = Some((2..=4, Act::Release));
                }
                Act::Release => {
                    released.entry(job.host).or_default().push(id);
                    if self.rng.gen_bool(0.3) {
                        next = Some((1..=9, Act::Rate));
                    }
                }
                Act::Rate => {
                    let rating = self.rng.gen_range(1..=5);
                    txs.push(Tx::new(
                        job.terms.renter,
                        contracts.rate(id, rating, "a clear and quick answer".into()),
                        1,
                    ));
                }
                Act::Cancel => txs.push(Tx::new(job.terms.renter, contracts.cancel(id), 1)),
                Act::Expire => txs.push(Tx::new(job.terms.renter, contracts.expire(id), 1)),
            }
            match next {
                Some((blocks, act)) => {
                    let at = self.head + 1 + self.rng.gen_range(blocks);
                    self.later.entry(at).or_default().push((id, act));
                }
                None => _ = self.jobs.remove(&id),
            }
        }
        for (host, results) in completed {
            let call = match &results[..] {
                [(id, output)] => contracts.complete(*id, output, Bytes::new()),
                all => contracts.complete_all(all, Bytes::new()),
            };
            txs.push(Tx::new(host, call, results.len()));
        }
        txs.extend(released.into_iter().map(|(host, ids)| Tx::new(host, contracts.release_all(&ids), ids.len())));
        Ok(txs)
    }

    /// Returns a renter's post of one job or several, at most `most`.
    fn post(&mut self, most: usize) -> Tx {
        let count = [1, 1, 2, 2, 3, 4][self.rng.gen_range(0..6)].min(most);
        let renter = self.renters[self.rng.gen_range(0..RENTERS)];
        let usd = self.book.usd.unwrap_or_default();
        let (mut orders, mut jobs) = (Vec::new(), Vec::new());
        for _ in 0..count {
            let fate = match self.rng.gen_range(0..100) {
                0..60 => Fate::Served,
                60..65 => Fate::GivenUp,
                65..85 => Fate::Cancelled,
                _ => Fate::Expired,
            };
            let in_usd = self.rng.gen_bool(0.2);
            let order = Order {
                model: ModelId([self.rng.gen_range(0..5); 32]),
                input: Cid { digest: self.rng.r#gen(), length: self.rng.gen_range(20..4000) },
                max_tokens: self.rng.gen_range(64..2048),
                temperature_milli: self.rng.gen_range(0..1000),
                seed: self.rng.r#gen(),
                requires_proof: false,
                seconds: if matches!(fate, Fate::Expired) { 30 } else { 600 },
                token: if in_usd { usd } else { Address::ZERO },
                payment: U256::from(self.rng.gen_range(1_000..1_000_000) * if in_usd { 1 } else { GWEI }),
                region: None,
            };
            jobs.push((order.terms(renter, UnixSeconds(0)), fate));
            orders.push((order, None));
        }
        let contracts = &self.book.contracts;
        let call = if let [(order, _)] = &orders[..] { contracts.post(order) } else { contracts.post_all(&orders) };
        Tx { jobs, ..Tx::new(renter, call, count) }
    }

    /// Mines a block of `txs`, which log `events`.
    async fn mine(&mut self, txs: &[Tx], events: u64) -> Result<()> {
        let mut sends = Vec::with_capacity(txs.len());
        for tx in txs {
            let nonce = self.nonces.entry(tx.from).or_default();
            sends.push((
                "eth_sendTransaction",
                json!([{
                    "from": tx.from, "to": tx.call.to, "data": tx.call.data, "value": tx.call.value,
                    "gas": U64::from(tx.gas), "nonce": U64::from(*nonce),
                    "maxFeePerGas": U64::from(3 * GWEI), "maxPriorityFeePerGas": U64::from(GWEI),
                }]),
            ));
            *nonce += 1;
        }
        let hashes: Vec<B256> = self.rpc.batch(&sends).await?;
        self.rpc.call::<Value>("evm_mine", json!([])).await?;
        self.head += 1;
        tokio::time::sleep(self.rest).await;
        let number = U64::from(self.head);
        let receipts: Vec<Receipt> = self.rpc.call("eth_getBlockReceipts", json!([number])).await?;
        ensure!(receipts.len() == txs.len(), "{} of {} transactions mined", receipts.len(), txs.len());
        let by_hash: HashMap<B256, &Tx> = hashes.iter().copied().zip(txs).collect();
        let before = self.events;
        for receipt in receipts {
            let tx = by_hash.get(&receipt.transaction_hash).context("a transaction of somebody else")?;
            ensure!(receipt.status == U64::from(1), "block {}: {} was reverted", self.head, receipt.transaction_hash);
            let posted = self.count(receipt.logs);
            ensure!(posted.len() == tx.jobs.len(), "{} jobs posted of {}", posted.len(), tx.jobs.len());
            for (id, (terms, fate)) in posted.into_iter().zip(&tx.jobs) {
                self.plan(id, terms.clone(), fate);
            }
        }
        let made = self.events - before;
        ensure!(made == events, "block {} has {made} events, not the {events} it was made for", self.head);
        self.transactions += txs.len() as u64;
        self.blocks += 1;
        Ok(())
    }

    /// Counts the logs of the indexed contracts and returns the jobs that they post.
    fn count(&mut self, logs: Vec<Log>) -> Vec<JobId> {
        let ours = indexed(&self.book.contracts);
        let posted = keccak256("JobPosted(uint256,address,uint256)");
        let mut jobs = Vec::new();
        for Log { address, topics, data } in logs {
            let Some(&topic) = topics.first().filter(|_| ours.contains(&address)) else { continue };
            if topic == posted {
                jobs.push(JobId(U256::from_be_bytes(topics[1].0).to()));
            }
            let block = BlockRef { number: self.head, hash: B256::ZERO };
            let first = || (0, RawLog { block, index: 0, tx: B256::ZERO, address, topics, data });
            self.by_topic.entry(topic).or_insert_with(first).0 += 1;
            self.events += 1;
        }
        jobs
    }

    fn plan(&mut self, id: JobId, terms: Terms, fate: &Fate) {
        let (blocks, act) = match fate {
            Fate::Served => (1..=2, Act::Claim),
            Fate::GivenUp => (1..=2, Act::ClaimInVain),
            Fate::Cancelled => (1..=12, Act::Cancel),
            Fate::Expired => (15..=25, Act::Expire),
        };
        let at = self.head + self.rng.gen_range(blocks);
        let host = self.hosts[self.rng.gen_range(0..HOSTS)];
        let output = Cid { digest: self.rng.r#gen(), length: self.rng.gen_range(20..4000) };
        self.jobs.insert(id, Job { terms, host, output });
        self.later.entry(at).or_default().push((id, act));
    }

    /// Returns how many events of each kind there are, by the name that the indexer gives them.
    pub fn kinds(&self) -> Result<BTreeMap<&'static str, u64>> {
        let chain = Chain::unchecked(&self.devnet.rpc_url, devnet::CHAIN_ID, self.book.contracts.clone())?;
        let decode = chain.decoder();
        let mut kinds = BTreeMap::new();
        for (count, first) in self.by_topic.values() {
            *kinds.entry(decode(first)?.name()).or_insert(0) += count;
        }
        Ok(kinds)
    }

    /// Returns the newest block's number.
    pub fn head(&self) -> u64 {
        self.head
    }

    /// Returns how long the chain takes to answer for a block's header.
    pub async fn block_call(&self) -> Result<Duration> {
        let began = Instant::now();
        self.rpc.call::<Value>("eth_getBlockByNumber", json!([U64::from(self.head), false])).await?;
        Ok(began.elapsed())
    }

    /// Returns how many logs of the indexed contracts the chain finds.
    pub async fn on_chain(&self) -> Result<u64> {
        let (ours, mut next, mut count) = (indexed(&self.book.contracts), self.book.block, 0);
        while next <= self.head {
            let last = self.head.min(next + BLOCKS_PER_COUNT - 1);
            let filter = json!([{ "fromBlock": U64::from(next), "toBlock": U64::from(last), "address": ours }]);
            count += self.rpc.call::<Vec<serde::de::IgnoredAny>>("eth_getLogs", filter).await?.len() as u64;
            next = last + 1;
        }
        Ok(count)
    }
}

/// The contracts whose logs are events: all but the token.
pub fn indexed(contracts: &Contracts) -> Vec<Address> {
    let mut ours: Vec<Address> = contracts.named().into_iter().map(|(_, address)| address).collect();
    ours.retain(|address| *address != contracts.governance_token);
    ours
}

/// As long as what a host with one model publishes.
fn metadata(number: usize) -> String {
    json!({
        "version": 1, "region": "eu-west", "peer": format!("12D3KooW{number:044}"),
        "addresses": [format!("/dns4/host-{number}.example/tcp/4001")],
        "models": [{ "id": ModelId([number as u8; 32]), "context": 4096, "price_per_1k": { "eth": "1000000000000" } }],
        "circuits": [B256::repeat_byte(7)],
    })
    .to_string()
}

/// JSON-RPC over one connection.
struct Rpc {
    client: reqwest::Client,
    url: String,
}

impl Rpc {
    async fn call<T: DeserializeOwned>(&self, method: &'static str, params: Value) -> Result<T> {
        let mut answers = self.batch(&[(method, params)]).await?;
        answers.pop().context("no answer")
    }

    /// Makes all calls with one request.
    async fn batch<T: DeserializeOwned>(&self, calls: &[(&'static str, Value)]) -> Result<Vec<T>> {
        #[derive(Deserialize)]
        struct Answer<T> {
            result: Option<T>,
            error: Option<Value>,
        }
        let body: Vec<Value> = (0..)
            .zip(calls)
            .map(|(id, (method, params)): (u64, _)| {
                json!({ "jsonrpc": "2.0", "id": id, "method": method, "params": params })
            })
            .collect();
        let bytes = self.client.post(&self.url).json(&body).send().await?.bytes().await?;
        let answers: Vec<Answer<T>> = serde_json::from_slice(&bytes)
            .with_context(|| String::from_utf8_lossy(&bytes[..bytes.len().min(400)]).into_owned())?;
        ensure!(answers.len() == calls.len(), "{} answers to {} calls", answers.len(), calls.len());
        let read = |(answer, (method, _)): (Answer<T>, &(&str, Value))| match answer {
            Answer { result: Some(result), .. } => Ok(result),
            Answer { error, .. } => bail!("{method}: {}", error.unwrap_or_default()),
        };
        answers.into_iter().zip(calls).map(read).collect()
    }
}
