//! The chains of the table: one with the marketplace and what happened on it, others that fork off it, and strangers.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use fabstir::chain::call::{self, Call, Order};
use fabstir::chain::{Chain, Contracts};
use fabstir::devnet::{self, DEPLOYER, Devnet};
use fabstir::market::event::{Commitment, Header, RawLog};
use fabstir::market::types::{Address, B256, BlockRef, Cid, JobId, U256, UnixSeconds};
use fabstir::store::{JobFilter, JobRow, Store};
use fabstir::tasks::indexer::Prove;
use serde_json::{Value, json};

use super::proxy::{UNFINAL, client, quantity};
use super::{Index, STEP};
use crate::world::{World, root};

/// anvil's second account, the only host here.
const HOST: Address = alloy::primitives::address!("70997970C51812dc3A010C7d01b50e0d17dc79C8");
/// Seconds from one block to the next: more than the challenge window.
const BLOCK_SECONDS: u64 = 2;

/// Blocks by which the main chain is longer in the end than where it was forked: the forks are shorter.
const MORE: u64 = 2;

/// Everything that a proxy can stand in front of. None of it changes any more.
pub struct Chains {
    pub world: World,
    /// The chain all rows begin with.
    pub main: Fork,
    /// The block of the main chain from which the depth of forks is counted; it has [`MORE`] after it.
    pub from: u64,
    /// The main chain up to there with another newest block.
    pub sibling: Fork,
    /// The last 1, 5 and 64 blocks up to there are others; those of the first two are one more.
    pub forks: [Fork; 3],
    /// Forks off below the main chain's final block.
    pub below_final: Fork,
    /// Longer than the main chain and without contracts, with the same chain id and with another.
    pub stranger: Devnet,
    pub other_id: Devnet,
}

/// A chain and what a database must say of it.
pub struct Fork {
    pub url: String,
    pub truth: Truth,
    _devnet: Option<Devnet>,
}

/// What a database says of a chain that it was filled from with no proxy between and every block proven.
pub struct Truth {
    /// All of them; a database need not have those that hold nothing.
    pub headers: Vec<Header>,
    pub logs: Vec<RawLog>,
    pub jobs: Vec<JobRow>,
    pub journal_head: B256,
    pub events: u64,
}

impl Chains {
    pub async fn new() -> Result<Chains> {
        let world = World::new().await?;
        world.freeze(false).await?;
        let mut main = Market::open(&world).await?;
        main.blocks(30).await?;
        let below_final = main.fork().await?;
        main.blocks(20).await?;
        let sixty_four = main.fork().await?;
        main.blocks(UNFINAL - 5).await?;
        let five = main.fork().await?;
        main.blocks(4).await?;
        let (sibling, one) = (main.fork().await?, main.fork().await?);
        main.blocks(1 + MORE).await?;
        let folder = world.folder.path().join("truth");
        let end = async |fork: (Devnet, Market), blocks: u64| {
            let (devnet, mut market) = fork;
            market.blocks(blocks).await?;
            let truth = Truth::of(&market.url, market.contracts, world.book.block, &folder).await?;
            anyhow::Ok(Fork { url: market.url, truth, _devnet: Some(devnet) })
        };
        let sibling = end(sibling, 1).await?;
        let forks = [end(one, 2).await?, end(five, 6).await?, end(sixty_four, UNFINAL).await?];
        let below_final = end(below_final, 20 + UNFINAL + MORE + 10).await?;
        let truth = Truth::of(&main.url, main.contracts, world.book.block, &folder).await?;
        let main = Fork { url: main.url, truth, _devnet: None };
        let stranger = Devnet::start(&root().join("contracts")).await?;
        let other_id = Devnet::start(&root().join("contracts")).await?;
        other_id.rpc("anvil_setChainId", json!([4242])).await?;
        for other in [&stranger, &other_id] {
            other.rpc("anvil_mine", json!([format!("{:#x}", main.head() + 100)])).await?;
        }
        let from = main.head() - MORE;
        Ok(Chains { world, main, from, sibling, forks, below_final, stranger, other_id })
    }
}

impl Fork {
    /// The number of the newest block.
    pub fn head(&self) -> u64 {
        self.truth.headers.last().map_or(0, |header| header.block.number)
    }
}

impl Truth {
    /// Reads the chain at `url` into a new file; asks it for its headers and the number of its logs besides, in plain words.
    async fn of(url: &str, contracts: Contracts, start_block: u64, folder: &Path) -> Result<Truth> {
        let file = folder.join(format!("{}.sqlite", url.replace(['/', ':'], "")));
        let indexed = contracts.indexed();
        let chain = Chain::connect(url, devnet::CHAIN_ID, contracts).await?;
        let mut index = Index::new(chain, &file, start_block, STEP, Prove::All).await?;
        index.drive(0).await;
        ensure!(index.errors.is_empty(), "a clean index failed: {:?}", index.errors);
        let mut truth = Truth::read(&index.store).await?;
        let filter = json!([{ "fromBlock": "0x0", "toBlock": "latest", "address": indexed }]);
        let logs = devnet::rpc(url, "eth_getLogs", filter).await?;
        ensure!(logs.as_array().is_some_and(|logs| logs.len() as u64 == truth.events), "logs are missing");
        let head = quantity(&devnet::rpc(url, "eth_blockNumber", json!([])).await?).context("a head")?;
        truth.headers.clear();
        for number in start_block..=head {
            let block = devnet::rpc(url, "eth_getBlockByNumber", json!([format!("{number:#x}"), false])).await?;
            truth.headers.push(Header {
                block: BlockRef { number, hash: serde_json::from_value(block["hash"].clone())? },
                parent: serde_json::from_value(block["parentHash"].clone())?,
                time: UnixSeconds(quantity(&block["timestamp"]).context("a time")?),
            });
        }
        Ok(truth)
    }

    /// Whether `held` is the same, and what differs first.
    pub fn same(&self, held: &Truth) -> Result<(), String> {
        let differs =
            |what: &str, held: usize, true_ones: usize| Err(format!("{held} {what}, not the true {true_ones}"));
        let (end, true_end) = (held.headers.last(), self.headers.last());
        if end != true_end {
            let number = |header: Option<&Header>| header.map_or(0, |header| header.block.number);
            return Err(format!("at block {}, not at the true block {}", number(end), number(true_end)));
        }
        if let Some(other) = held.headers.iter().find(|header| !self.headers.contains(header)) {
            return Err(format!("block {} is another than the true one", other.block.number));
        }
        if held.logs != self.logs || held.journal_head != self.journal_head || held.events != self.events {
            return differs("logs", held.logs.len(), self.logs.len());
        }
        if held.jobs != self.jobs {
            return differs("jobs", held.jobs.len(), self.jobs.len());
        }
        Ok(())
    }

    /// Reads all of it from a database.
    pub async fn read(store: &Store) -> Result<Truth> {
        let all = u64::from(u32::MAX);
        let (journal_head, events) = store.journal_head().await?;
        Ok(Truth {
            headers: store.blocks(0, all).await?,
            logs: store.logs(0, all).await?.into_iter().map(|row| row.log).collect(),
            jobs: store.jobs(&JobFilter { limit: u32::MAX, ..JobFilter::default() }).await?,
            journal_head,
            events,
        })
    }
}

/// The marketplace on one chain, and the rhythm of six blocks in which jobs are posted, claimed, done, paid and given back.
#[derive(Clone)]
struct Market {
    url: String,
    client: reqwest::Client,
    contracts: Contracts,
    order: Order,
    usd: Address,
    /// The next job's number.
    next: u64,
    /// The next block's place in the rhythm.
    place: u64,
}

impl Market {
    async fn open(world: &World) -> Result<Market> {
        let contracts = world.book.contracts.clone();
        let order = Order { requires_proof: false, ..world.order(Address::ZERO, U256::from(1_000_000), 100_000) };
        let url = world.devnet.rpc_url.clone();
        let client = client()?;
        let mut market =
            Market { url, client, contracts: contracts.clone(), order, usd: world.usd(), next: 1, place: 0 };
        let stake = world.chain.stake_min().await?;
        let fab = contracts.governance_token;
        devnet::rpc(&market.url, "anvil_setBlockTimestampInterval", json!([BLOCK_SECONDS])).await?;
        market
            .block(&[
                (DEPLOYER, call::transfer(fab, HOST, stake * U256::from(10))),
                (DEPLOYER, call::approve(market.usd, contracts.job_marketplace, U256::MAX)),
            ])
            .await?;
        market.block(&[(HOST, call::approve(fab, contracts.node_registry, stake * U256::from(10)))]).await?;
        market.block(&[(HOST, contracts.register("{}".into()))]).await?;
        market.block(&[(HOST, contracts.add_stake(stake * U256::from(9)))]).await?;
        Ok(market)
    }

    /// A chain that is the same so far, and the market on it, where other jobs will be posted.
    async fn fork(&self) -> Result<(Devnet, Market)> {
        let devnet = Devnet::start(&root().join("contracts")).await?;
        let state = devnet::rpc(&self.url, "anvil_dumpState", json!([])).await?;
        devnet.rpc("anvil_loadState", json!([state])).await?;
        devnet.rpc("evm_setAutomine", json!([false])).await?;
        devnet.rpc("anvil_setBlockTimestampInterval", json!([BLOCK_SECONDS])).await?;
        let order = Order { payment: self.order.payment + U256::from(1), ..self.order.clone() };
        let market = Market { url: devnet.rpc_url.clone(), order, place: 0, ..self.clone() };
        Ok((devnet, market))
    }

    /// Makes so many blocks; two of six hold several logs, one holds nothing.
    async fn blocks(&mut self, count: u64) -> Result<()> {
        for _ in 0..count {
            let contracts = self.contracts.clone();
            let (paid, failed) = (JobId(self.next.saturating_sub(2)), JobId(self.next.saturating_sub(1)));
            let output = Cid::of(b"an output");
            if self.place.is_multiple_of(6) {
                self.next += 2;
                self.order.payment += U256::from(1000);
            }
            let in_token = Order { token: self.usd, ..self.order.clone() };
            let [terms, in_token_terms] = [&self.order, &in_token].map(|order| order.terms(DEPLOYER, UnixSeconds(0)));
            let calls = match self.place % 6 {
                0 => vec![(DEPLOYER, contracts.post(&self.order)), (DEPLOYER, contracts.post(&in_token))],
                1 => vec![
                    (HOST, contracts.claim(paid, terms.deal())),
                    (HOST, contracts.claim(failed, in_token_terms.deal())),
                ],
                2 => {
                    let commitment = Commitment {
                        root: B256::repeat_byte(1),
                        tokens: 1,
                        result_hash: output.chain_hash(),
                        tokens_digest: B256::repeat_byte(2),
                    };
                    vec![(HOST, contracts.commit(paid, terms.order(), &commitment))]
                }
                3 => vec![(HOST, contracts.complete(paid, &output, Default::default()))],
                4 => vec![
                    (HOST, contracts.release(paid)),
                    (HOST, contracts.fail(failed, in_token_terms.deal(), "no time".into())),
                ],
                _ => Vec::new(),
            };
            self.block(&calls).await.with_context(|| format!("make a block at place {}", self.place % 6))?;
            self.place += 1;
        }
        Ok(())
    }

    /// Makes one block of these calls, none of which may fail.
    async fn block(&mut self, calls: &[(Address, Call)]) -> Result<()> {
        for (from, call) in calls {
            let tx = json!({ "from": from, "to": call.to, "data": call.data, "value": call.value, "gas": "0x1e8480" });
            self.rpc("eth_sendTransaction", json!([tx])).await?;
        }
        self.rpc("evm_mine", json!([])).await?;
        let receipts = self.rpc("eth_getBlockReceipts", json!(["latest"])).await?;
        let succeeded = |receipts: &Vec<Value>| receipts.iter().filter(|one| one["status"] == "0x1").count();
        ensure!(receipts.as_array().map(succeeded) == Some(calls.len()), "a transaction failed: {receipts}");
        Ok(())
    }

    /// As [`devnet::rpc`], over one connection: there are thousands of calls.
    async fn rpc(&self, method: &str, params: Value) -> Result<Value> {
        let body = json!({ "jsonrpc": "2.0", "id": 1, "method": method, "params": params });
        let mut answer: Value = self.client.post(&self.url).json(&body).send().await?.json().await?;
        ensure!(answer["error"].is_null(), "{method}: {}", answer["error"]);
        Ok(answer["result"].take())
    }
}
