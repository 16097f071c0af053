//! A chain with the contracts, renters who post and hosts who may claim.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use alloy::primitives::{U64, keccak256};
use anyhow::{Context, Result, ensure};
use fabstir::chain::call::{self, Order};
use fabstir::chain::{Chain, Signer, key};
use fabstir::content::Content;
use fabstir::devnet::{self, AddressBook, DEPLOYER, Devnet};
use fabstir::market::types::{Address, B256, Cid, ModelId, U256};
use serde::Deserialize;
use serde_json::json;
use sha2::Digest;

const PROMPT: &str = "Hi";
/// What a job pays, in wei: enough for its gas at any fee a part of this benchmark allows.
const PAYMENT: u128 = ETH / 50;
const ETH: u128 = 1_000_000_000_000_000_000;
/// Stakes of a job's worth that a host brings, in FAB's smallest unit: for some thousand open jobs.
const STAKE: u128 = 100_000 * ETH;
/// Seconds between completion and payment.
const CHALLENGE_WINDOW: u64 = 2;
/// Jobs posted with one transaction.
const PER_POST: u64 = 20;
const PASSWORD: &str = "correct horse";
pub const MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/models/tiny-chat-q8_0.gguf");

pub struct Place {
    pub devnet: Devnet,
    pub book: AddressBook,
    pub chain: Chain,
    pub folder: PathBuf,
    pub model: ModelId,
    renter: Address,
}

impl Place {
    /// Starts a chain that makes a block a second; keys and databases go to the folder.
    pub async fn open(contracts: &Path, folder: &Path) -> Result<Self> {
        std::fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
        let devnet = Devnet::start_with(contracts, &["--gas-limit", "600000000"]).await?;
        let book = devnet::deploy(&devnet.rpc_url, contracts, CHALLENGE_WINDOW).await?;
        Self::at(devnet, book, folder).await
    }

    async fn at(devnet: Devnet, book: AddressBook, folder: &Path) -> Result<Self> {
        let chain = Chain::connect(&devnet.rpc_url, devnet::CHAIN_ID, book.contracts.clone()).await?;
        let model = ModelId(sha2::Sha256::digest(std::fs::read(MODEL).context(MODEL)?).into());
        let renter = Address::repeat_byte(0x77);
        devnet.rpc("anvil_impersonateAccount", json!([renter])).await?;
        devnet.fund(renter, U256::from(1_000_000 * ETH)).await?;
        Ok(Self { devnet, book, chain, folder: folder.to_owned(), model, renter })
    }

    /// Makes and registers a host, whose key is then in `<name>.json`, and keeps the prompt where it looks for it.
    pub async fn host(&self, name: &str) -> Result<Signer> {
        let signer = host(&self.devnet, &self.chain, &self.book, &self.folder, name).await?;
        Content::open(&self.folder.join(name).join("content"))?.put(PROMPT.as_bytes())?;
        Ok(signer)
    }

    /// Returns how many jobs there are.
    pub async fn jobs_posted(&self) -> Result<u64> {
        let head = self.chain.head().await?.block;
        self.chain.jobs_posted(head).await
    }

    /// Posts jobs one batch after the other, so many a second, into blocks of one second.
    pub async fn post_at(&self, jobs: u64, rate: u64) -> Result<()> {
        self.devnet.rpc("evm_setAutomine", json!([false])).await?;
        self.devnet.mine_every(1).await?;
        let (began, mut posted) = (Instant::now(), 0);
        while posted < jobs {
            let batch = PER_POST.min(jobs - posted).min(rate);
            self.post(batch).await?;
            posted += batch;
            tokio::time::sleep_until((began + Duration::from_secs_f64(posted as f64 / rate as f64)).into()).await;
        }
        Ok(())
    }

    /// Posts jobs that all stand in one block.
    pub async fn post_at_once(&self, jobs: u64) -> Result<()> {
        self.devnet.rpc("evm_setAutomine", json!([false])).await?;
        self.devnet.mine_every(0).await?;
        let mut posted = 0;
        while posted < jobs {
            let batch = PER_POST.min(jobs - posted);
            self.post(batch).await?;
            posted += batch;
        }
        self.devnet.mine_every(1).await
    }

    /// Posts jobs with one transaction.
    pub async fn post(&self, jobs: u64) -> Result<()> {
        let order = || Order {
            model: self.model,
            input: Cid::of(PROMPT.as_bytes()),
            max_tokens: 1,
            temperature_milli: 0,
            seed: 1,
            requires_proof: false,
            seconds: 3600,
            token: Address::ZERO,
            payment: U256::from(PAYMENT),
            region: None,
        };
        let orders: Vec<_> = (0..jobs).map(|_| (order(), None)).collect();
        let call = self.book.contracts.post_all(&orders);
        let gas = U64::from(400_000 * (jobs + 1));
        let tx = json!([{ "from": self.renter, "to": call.to, "data": call.data, "value": call.value, "gas": gas }]);
        self.devnet.rpc("eth_sendTransaction", tx).await.map(|_| ())
    }

    /// Waits until so many jobs from `first` on are completed on chain.
    pub async fn completed(&self, first: u64, jobs: u64) -> Result<()> {
        let give_up = Instant::now() + Duration::from_secs(600);
        loop {
            let done = self.count_completed(first, jobs).await?;
            if done == jobs {
                return Ok(());
            }
            ensure!(Instant::now() < give_up, "{done} of {jobs} jobs are completed after ten minutes");
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    }

    /// Returns how many of so many jobs from `first` on are completed on chain.
    pub async fn count_completed(&self, first: u64, jobs: u64) -> Result<u64> {
        let told = self.told("JobCompleted(uint256,string)").await?;
        Ok(told.iter().filter(|(job, _)| (first..first + jobs).contains(job)).count() as u64)
    }

    /// Returns the jobs of which the marketplace logged an event, oldest first, each with the second thing that the event names, such
    /// as the host of a claim.
    pub async fn told(&self, event: &str) -> Result<Vec<(u64, Option<Address>)>> {
        let marketplace = self.book.contracts.job_marketplace;
        let filter =
            json!([{ "fromBlock": U64::from(self.book.block), "address": marketplace, "topics": [keccak256(event)] }]);
        let logs: Vec<Log> = serde_json::from_value(self.devnet.rpc("eth_getLogs", filter).await?)?;
        let read = |log: &Log| {
            let job = log.topics.get(1).context("an event without a job")?;
            Ok((U256::from_be_bytes(job.0).to(), log.topics.get(2).map(|word| Address::from_word(*word))))
        };
        logs.iter().map(read).collect()
    }
}

#[derive(Deserialize)]
struct Log {
    topics: Vec<B256>,
}

/// Makes a key with ETH and registers it as a host with a large stake.
pub async fn host(devnet: &Devnet, chain: &Chain, book: &AddressBook, folder: &Path, name: &str) -> Result<Signer> {
    use std::os::unix::fs::PermissionsExt;
    let file = folder.join("password");
    std::fs::write(&file, PASSWORD)?;
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600))?;
    let signer = key::create(&folder.join(format!("{name}.json")), PASSWORD)?;
    let contracts = &book.contracts;
    devnet.mine_every(0).await?;
    devnet.rpc("evm_setAutomine", json!([true])).await?;
    devnet.rpc("anvil_impersonateAccount", json!([DEPLOYER])).await?;
    devnet.fund(signer.address(), U256::from(1000 * ETH)).await?;
    let (fab, limit) = (contracts.governance_token, Duration::from_secs(30));
    devnet.send(&call::transfer(fab, signer.address(), U256::from(STAKE))).await?;
    let least = chain.stake_min().await?;
    for call in [
        call::approve(fab, contracts.node_registry, U256::from(STAKE)),
        contracts.register("{}".into()),
        contracts.add_stake(U256::from(STAKE) - least),
    ] {
        chain.transact(&signer, &call, limit).await?;
    }
    Ok(signer)
}
