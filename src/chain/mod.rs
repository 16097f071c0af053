//! The edge to the chain: reading blocks, logs and contract state, and putting signed bytes on the wire.
//!
//! Owns alloy's providers, signers and ABI types; ABI words and JSON-RPC end here. Never keeps anything and never decides:
//! what to read or send, and whether to believe it, is for its callers.

mod abi;
mod bundle;
pub mod call;
mod decode;
mod endpoint;
mod follow;
pub mod key;
mod prove;
mod reach;
mod record;
mod send;
mod spoken;
#[cfg(test)]
mod tests;
mod transfer;
mod versions;

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use alloy::eips::{BlockId, BlockNumberOrTag};
use alloy::network::Ethereum;
use alloy::primitives::{Address, B256, Bytes, U64, U256};
use alloy::providers::{Provider, RootProvider};
use alloy::rpc::client::RpcClient;
use alloy::rpc::types::{TransactionInput, TransactionReceipt, TransactionRequest};
use alloy::sol_types::SolCall;
use anyhow::{Context, Result, ensure};
use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};

use crate::market::event::RawLog;
use crate::market::policy::Standing;
use crate::market::types::{JobId, UnixSeconds};
use endpoint::{Pace, Pool, Route};

pub use bundle::Bundle;
pub use endpoint::{EndpointState, Endpoints, Failure, shown};
pub use prove::disproven;
pub use reach::Reach;
pub use send::{Ended, Fees, Mined, Pulse, Sent, Signer};
pub use versions::{Abi, Also, Role};

/// Addresses of the contracts one node works with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Contracts {
    pub governance_token: Address,
    pub node_registry: Address,
    pub payment_escrow: Address,
    pub job_marketplace: Address,
    pub proof_system: Address,
    pub reputation_system: Address,
    pub governance: Address,
    /// The owner of the others.
    pub timelock: Address,
    /// Makes renters' smart accounts.
    pub account_factory: Address,
    /// Further ones whose logs belong to the history, and what is spoken at other times.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub also: Vec<Also>,
}

impl Contracts {
    /// Returns the reader of these contracts' logs, for a store.
    pub fn decoder(&self) -> impl Fn(&RawLog) -> Result<crate::market::event::Event> + Send + Sync + 'static {
        let contracts = self.clone();
        move |log| decode::event(&contracts, log)
    }

    /// Returns the `[contracts]` section of a configuration.
    pub fn section(&self) -> String {
        let entry = |(name, address)| format!("{name} = \"{address}\"\n");
        format!("[contracts]\n{}", self.named().into_iter().map(entry).collect::<String>())
    }

    /// Returns every contract with its name in the configuration.
    pub fn named(&self) -> [(&'static str, Address); 9] {
        [
            ("governance_token", self.governance_token),
            ("node_registry", self.node_registry),
            ("payment_escrow", self.payment_escrow),
            ("job_marketplace", self.job_marketplace),
            ("proof_system", self.proof_system),
            ("reputation_system", self.reputation_system),
            ("governance", self.governance),
            ("timelock", self.timelock),
            ("account_factory", self.account_factory),
        ]
    }
}

/// What the escrow has of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Escrowed {
    /// In the smallest unit of the job's token; 0 once it was released or refunded.
    pub amount: U256,
    /// The fee that will be taken of it, in hundredths of a percent; fixed when the job was posted.
    pub fee_bps: u16,
}

/// What a mined transaction cost its sender.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Paid {
    pub hash: B256,
    /// Gas, and what a rollup takes for the chain below, in wei.
    pub fee_wei: U256,
    /// The wei it sent along; 0 where it was reverted.
    pub value: U256,
}

/// The part of a receipt that tells what became of a transaction and what it cost.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Costs {
    block_number: Option<U64>,
    block_hash: Option<B256>,
    status: U64,
    gas_used: U256,
    effective_gas_price: U256,
    l1_fee: Option<U256>,
}

/// What one endpoint showed when it was looked at.
#[derive(Debug, Clone)]
pub struct Examined {
    pub name: String,
    pub latency: Duration,
    /// Its newest block, and those it calls final and safe.
    pub head: u64,
    pub finalized: Option<u64>,
    pub safe: Option<u64>,
    /// Whether it answers batches, and has the receipts that prove a block's logs.
    pub batches: bool,
    pub block_receipts: bool,
}

impl fmt::Display for Examined {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, latency, head, finalized, safe, batches, block_receipts } = self;
        let number = |block: &Option<u64>| block.map_or("none".into(), |number| number.to_string());
        let has = |has: &bool| if *has { "" } else { "no " };
        write!(f, "{name}: head at block {head}, finalized {}, safe {}, ", number(finalized), number(safe))?;
        write!(f, "{} ms, {}batches, {}block receipts", latency.as_millis(), has(batches), has(block_receipts))
    }
}

/// A connection to the endpoints of one chain, for one set of contracts. Clones share it.
///
/// A call goes to the best endpoint, and where that fails to each other that is well. What must be of one piece, because one
/// endpoint may not yet have the block that another told of, is asked of [`Chain::steady`].
#[derive(Clone)]
pub struct Chain {
    provider: RootProvider<Ethereum>,
    client: RpcClient,
    pool: Arc<Pool>,
    pinned: Option<usize>,
    /// What is asked, for errors.
    endpoint: String,
    id: u64,
    contracts: Arc<Contracts>,
}

impl Chain {
    /// Connects over HTTP and checks that the chain `id` is served and has at every contract the code to be called.
    ///
    /// # Errors
    /// If no endpoint answers, one serves another chain and no other answers, or a contract has no code there or lacks a function
    /// that this program calls.
    pub async fn connect(endpoints: impl Into<Endpoints>, id: u64, contracts: Contracts) -> Result<Self> {
        let chain = Self::unchecked(endpoints, id, contracts)?;
        chain.check().await?;
        Ok(chain)
    }

    /// Prepares a connection without a first call, for a node that may start before its endpoints.
    ///
    /// # Errors
    /// If an endpoint is not an HTTP URL.
    pub fn unchecked(endpoints: impl Into<Endpoints>, id: u64, contracts: Contracts) -> Result<Self> {
        Self::at_pace(endpoints, id, contracts, Pace::default())
    }

    fn at_pace(endpoints: impl Into<Endpoints>, id: u64, contracts: Contracts, pace: Pace) -> Result<Self> {
        Ok(Self::over(Arc::new(Pool::new(&endpoints.into(), id, pace)?), None, id, Arc::new(contracts)))
    }

    fn over(pool: Arc<Pool>, pinned: Option<usize>, id: u64, contracts: Arc<Contracts>) -> Self {
        let client = RpcClient::new(Route { pool: pool.clone(), pinned }, false);
        let endpoint = pool.name(pinned);
        Self { provider: RootProvider::new(client.clone()), client, pool, pinned, endpoint, id, contracts }
    }

    /// Returns this connection with all calls going to the one endpoint that is best now, so that what they tell is of one
    /// piece. They fail when it fails: start again with another.
    pub fn steady(&self) -> Self {
        self.pinned_to(self.pinned.unwrap_or_else(|| self.pool.best()))
    }

    /// Returns this connection once for each endpoint, with all calls going to that one.
    pub fn each(&self) -> Vec<Self> {
        (0..self.pool.len()).map(|place| self.pinned_to(place)).collect()
    }

    fn pinned_to(&self, place: usize) -> Self {
        Self::over(self.pool.clone(), Some(place), self.id, self.contracts.clone())
    }

    /// Returns what each endpoint has shown of itself.
    pub fn endpoints(&self) -> Vec<EndpointState> {
        self.pool.states()
    }

    /// Looks what the one endpoint of a [`Chain::steady`] or [`Chain::each`] can do.
    ///
    /// # Errors
    /// If it fails or serves another chain.
    pub async fn examine(&self) -> Result<Examined> {
        let head = self.head().await?;
        let asked = Instant::now();
        self.provider.get_block_number().await.context("read the newest block's number")?;
        let latency = asked.elapsed();
        let mut batch = self.client.new_batch();
        let calls = [(); 2].map(|()| batch.add_call::<_, U64>("eth_blockNumber", &[(); 0]));
        batch.send().await.context("send a batch")?;
        for call in calls {
            call?.await.context("send a batch")?;
        }
        let receipts = self.client.request::<_, IgnoredAny>("eth_getBlockReceipts", (head.block.hash,)).await;
        let mut tagged = [None; 2];
        for (number, tag) in tagged.iter_mut().zip([BlockNumberOrTag::Finalized, BlockNumberOrTag::Safe]) {
            let block = self.provider.get_block_by_number(tag).await.ok().flatten();
            *number = block.map(|block| block.header.number);
        }
        let states = self.pool.states();
        let state = states.get(self.pinned.unwrap_or_default()).context("an endpoint")?;
        Ok(Examined {
            name: self.endpoint.clone(),
            latency,
            head: head.block.number,
            batches: state.batch_max.is_none(),
            block_receipts: receipts.is_ok(),
            finalized: tagged[0],
            safe: tagged[1],
        })
    }

    /// Returns the scheme and host of what is asked.
    pub fn name(&self) -> &str {
        &self.endpoint
    }

    /// Checks chain id and contract code, which must know every function that this program calls.
    ///
    /// # Errors
    /// As [`Chain::connect`].
    pub async fn check(&self) -> Result<()> {
        for (name, address) in self.contracts.named() {
            // An endpoint's first call, whatever it is, checks which chain it serves.
            let code = self.code_at(address).await.with_context(|| format!("read code at {address}"))?;
            ensure!(!code.is_empty(), "contracts.{name} = {address} has no code on chain {}", self.id);
            self.check_functions(name, address, &code).await?;
        }
        Ok(())
    }

    /// Reads a contract's code, again after a while where the endpoint fails: a start does not end at its first hiccup.
    async fn code_at(&self, address: Address) -> Result<Bytes> {
        const AGAIN: [Duration; 3] = [Duration::from_millis(300), Duration::from_secs(1), Duration::from_secs(3)];
        for wait in AGAIN {
            match self.provider.get_code_at(address).await.map_err(anyhow::Error::new) {
                Err(error) if !Failure::is_other_chain(&error) => tokio::time::sleep(wait).await,
                asked => return asked,
            }
        }
        Ok(self.provider.get_code_at(address).await?)
    }

    /// Returns the chain's id.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Returns the addresses this connection works with.
    pub fn contracts(&self) -> &Contracts {
        &self.contracts
    }

    /// Returns what the escrow holds for a job, in the job's token: 0 once it was released or refunded.
    pub async fn escrowed(&self, job: JobId) -> Result<Escrowed> {
        let escrow =
            self.read(self.contracts.payment_escrow, abi::PaymentEscrow::getEscrowCall { jobId: U256::from(job.0) });
        let escrow = escrow.await.with_context(|| format!("read the escrow of job {job}"))?;
        let held = abi::ESCROW_HOLDS.contains(&escrow.state);
        Ok(Escrowed { amount: if held { escrow.amount.to() } else { U256::ZERO }, fee_bps: escrow.feeBps })
    }

    /// Returns the escrow's fee for jobs posted from now on, in hundredths of a percent.
    pub async fn fee_bps(&self) -> Result<u16> {
        let fee = self
            .read(self.contracts.payment_escrow, abi::PaymentEscrow::feeBpsCall {})
            .await
            .context("read the fee")?;
        Some(fee).filter(|fee| *fee < 10_000).with_context(|| format!("a fee of {fee} basis points"))
    }

    /// Returns whether `host` is registered with its stake whole.
    pub async fn is_active(&self, host: Address) -> Result<bool> {
        let call = abi::NodeRegistry::isActiveCall { host };
        self.read(self.contracts.node_registry, call).await.with_context(|| format!("read the registration of {host}"))
    }

    /// Returns what the contracts say of `host` and of the market now.
    pub async fn standing(&self, host: Address) -> Result<Standing> {
        let asked = async {
            tokio::try_join!(
                self.read(self.contracts.node_registry, abi::NodeRegistry::getNodeCall { host }),
                self.is_active(host),
                self.read(self.contracts.reputation_system, abi::ReputationSystem::scoreOfCall { host }),
                self.read(self.contracts.job_marketplace, abi::JobMarketplace::breakerLevelCall {}),
            )
        };
        let (node, active, score, level) = asked.await.with_context(|| format!("read the standing of {host}"))?;
        Ok(Standing {
            stake: U256::from(node.stake),
            open_jobs: node.openJobs,
            active,
            reputation: score.saturating_to(),
            breaker_level: level.saturating_to(),
            controller: node.controller,
        })
    }

    /// Returns from when a host that is leaving may withdraw its stake; `None` for any other.
    pub async fn unbonded_at(&self, host: Address) -> Result<Option<UnixSeconds>> {
        let call = abi::NodeRegistry::getNodeCall { host };
        let node = self.read(self.contracts.node_registry, call).await;
        let at = node.with_context(|| format!("read the registration of {host}"))?.unbondedAt.to::<u64>();
        Ok((at != 0).then_some(UnixSeconds(at)))
    }

    /// Returns what a unit of gas costs now, base fee and a usual tip, in wei.
    pub async fn gas_price(&self) -> Result<U256> {
        Ok(U256::from(self.provider.get_gas_price().await.context("read the price of gas")?))
    }

    /// Returns what a job puts at risk of a host's stake, in FAB's smallest unit.
    pub async fn job_stake(&self) -> Result<U256> {
        let call = abi::NodeRegistry::JOB_STAKECall {};
        self.read(self.contracts.node_registry, call).await.context("read the stake of a job")
    }

    /// Returns the stake a host must bring, in FAB's smallest unit.
    pub async fn stake_min(&self) -> Result<U256> {
        self.read(self.contracts.node_registry, abi::NodeRegistry::MIN_STAKECall {}).await.context("read the stake")
    }

    /// Returns the statement a proof of `job` under `circuit` must be labelled with.
    pub async fn context(&self, job: JobId, circuit: B256) -> Result<U256> {
        let call = abi::ProofSystem::contextOfCall { jobId: U256::from(job.0), circuitId: circuit };
        self.read(self.contracts.proof_system, call).await
    }

    /// Returns the SHA-256 of the manifest and whether the circuit is active on chain.
    pub async fn circuit(&self, circuit: B256) -> Result<(B256, bool)> {
        let call = abi::ProofSystem::circuitOfCall { circuitId: circuit };
        let circuit = self.read(self.contracts.proof_system, call).await.context("read the circuit")?;
        Ok((circuit.manifest, circuit.active))
    }

    /// Returns how much of `token` (the zero address: ETH) `owner` has.
    pub async fn balance(&self, token: Address, owner: Address) -> Result<U256> {
        let what = || format!("read the balance of {owner}");
        if token.is_zero() {
            return self.provider.get_balance(owner).await.with_context(what);
        }
        self.read(token, abi::Erc20::balanceOfCall { account: owner }).await.with_context(what)
    }

    /// Returns how much of `token` the owner allows `spender` to move.
    pub async fn allowance(&self, token: Address, owner: Address, spender: Address) -> Result<U256> {
        self.read(token, abi::Erc20::allowanceCall { owner, spender }).await.context("read the allowance")
    }

    async fn read<C: SolCall>(&self, to: Address, call: C) -> Result<C::Return> {
        let request = request(Address::ZERO, to, call.abi_encode().into(), U256::ZERO);
        let bytes = self.provider.call(request).block(BlockId::latest()).await?;
        Ok(C::abi_decode_returns(&bytes)?)
    }

    /// Runs a call against the newest block's state without sending it. Returns the contract's reason when it would revert.
    ///
    /// # Errors
    /// If the endpoint fails: then nothing is known about the call.
    pub async fn refusal(&self, from: Address, call: &call::Call) -> Result<Option<String>> {
        match self.provider.call(request(from, call.to, call.data.clone(), call.value)).block(BlockId::latest()).await {
            Ok(_) => Ok(None),
            Err(error) => match error.as_error_resp() {
                Some(refusal) => Ok(Some(abi::reason(refusal))),
                None => Err(error).context("try a call"),
            },
        }
    }

    /// Returns whether the contract at `account` takes `signature` for a signature of `hash`; no contract, no signature.
    ///
    /// # Errors
    /// If the endpoint fails.
    ///
    /// Source: ERC-1271, <https://eips.ethereum.org/EIPS/eip-1271>.
    pub async fn signed_by_contract(&self, account: Address, hash: B256, signature: &Bytes) -> Result<bool> {
        let call = abi::Erc1271::isValidSignatureCall { hash, signature: signature.clone() };
        let request = request(Address::ZERO, account, call.abi_encode().into(), U256::ZERO);
        match self.provider.call(request).block(BlockId::latest()).await {
            Ok(answer) => Ok(abi::Erc1271::isValidSignatureCall::abi_decode_returns(&answer)
                .is_ok_and(|word| word == abi::Erc1271::isValidSignatureCall::SELECTOR)),
            Err(error) if error.is_error_resp() => Ok(false),
            Err(error) => Err(error).with_context(|| format!("ask {account} for a signature")),
        }
    }

    /// Returns the receipt of a transaction, or `None` while the endpoint knows none.
    pub async fn receipt(&self, hash: B256) -> Result<Option<TransactionReceipt>> {
        self.provider.get_transaction_receipt(hash).await.with_context(|| format!("read the receipt of {hash}"))
    }

    /// Returns how many transactions `account` had sent by the end of block `number`.
    ///
    /// # Errors
    /// As [`Chain::balance_at`].
    pub async fn nonce_at(&self, account: Address, number: u64) -> Result<u64> {
        let asked = self.provider.get_transaction_count(account).block_id(BlockId::number(number));
        asked.await.with_context(|| format!("read the nonce of {account} at block {number} from {}", self.endpoint))
    }

    /// Returns what the transaction with that nonce of `account` in block `number` cost, or `None` where there is none.
    ///
    /// # Errors
    /// If the endpoint fails or lacks the block.
    pub async fn paid(&self, account: Address, number: u64, nonce: u64) -> Result<Option<Paid>> {
        // Read as plain JSON: a rollup's blocks hold kinds of transactions that Ethereum has not.
        #[derive(Debug, Deserialize)]
        struct Sent {
            hash: B256,
            from: Address,
            nonce: U64,
            value: U256,
        }
        #[derive(Debug, Deserialize)]
        struct Block {
            transactions: Vec<Sent>,
        }
        let what = || format!("read the transactions of block {number} from {}", self.endpoint);
        let asked = self.client.request::<_, Option<Block>>("eth_getBlockByNumber", (U64::from(number), true));
        let block = asked.await.with_context(what)?.with_context(what)?;
        let sent = block.transactions.iter().find(|tx| tx.from == account && tx.nonce == U64::from(nonce));
        let Some(sent) = sent else { return Ok(None) };
        let costs = self.costs(sent.hash).await?;
        let gas = costs.gas_used.saturating_mul(costs.effective_gas_price);
        let fee_wei = gas.saturating_add(costs.l1_fee.unwrap_or_default());
        let value = if costs.status.is_zero() { U256::ZERO } else { sent.value };
        Ok(Some(Paid { hash: sent.hash, fee_wei, value }))
    }

    async fn costs(&self, hash: B256) -> Result<Costs> {
        let what = || format!("read the costs of {hash} from {}", self.endpoint);
        let asked = self.client.request::<_, Option<Costs>>("eth_getTransactionReceipt", (hash,));
        asked.await.with_context(what)?.with_context(what)
    }

    /// Returns the reader of this connection's logs, for the store.
    pub fn decoder(&self) -> impl Fn(&RawLog) -> Result<crate::market::event::Event> + Send + Sync + 'static {
        self.contracts.decoder()
    }
}

fn request(from: Address, to: Address, data: Bytes, value: U256) -> TransactionRequest {
    TransactionRequest { input: TransactionInput::new(data), value: Some(value), ..Default::default() }
        .from(from)
        .to(to)
}
