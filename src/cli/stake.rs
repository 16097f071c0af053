//! `fabstir register`, `fabstir stake` and `fabstir metadata`: a host's standing in the registry.
//!
//! These send from the host's account, which has one sender at a time: they refuse while the host's node runs.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use super::run::connect;
use super::{Fault, Global, configuration, decimal, print_json};
use crate::chain::call::{self, Call};
use crate::chain::{Chain, Mined, Signer};
use crate::config::{Config, HostConfig};
use crate::engine;
use crate::lock::Lock;
use crate::market::types::{Address, U256, UnixSeconds};
use crate::node;

/// How long a transaction of a command may take to be mined.
pub const MINED_WITHIN: Duration = Duration::from_secs(120);
/// What the registry takes.
const METADATA_BYTES_MAX: usize = 2048;

#[derive(Debug, clap::Args)]
pub struct RegisterArguments {
    /// JSON metadata to publish on chain; made from the configuration when left out.
    #[arg(long, value_name = "JSON")]
    metadata: Option<String>,
}

#[derive(Debug, clap::Subcommand)]
pub enum StakeCommand {
    /// Show stake, open jobs and reputation.
    Show,
    /// Add FAB to the stake, such as what a missed job took.
    Add {
        /// In FAB, such as 10 or 0.5.
        amount: String,
    },
    /// Start to leave: no more claims, and the stake can be withdrawn after the unbonding time.
    Leave,
    /// Stay after all.
    Stay,
    /// End the registration and take the whole stake back.
    Withdraw,
}

/// A command's configuration, connection and account.
pub struct Account {
    config: Config,
    pub chain: Chain,
    pub signer: Signer,
    /// No node sends from it meanwhile.
    pub lock: Lock,
}

impl Account {
    pub async fn open(global: &Global) -> Result<Account> {
        let config = configuration(global)?;
        let host = section(&config, global)?;
        let lock = super::alone(&config).await?;
        let signer = host.account().await.map_err(|error| Fault::Usage.of(error))?;
        let chain = connect(&config).await?;
        Ok(Account { config, chain, signer, lock })
    }

    async fn send(&self, what: &'static str, call: &Call) -> Result<Mined> {
        self.chain.transact(&self.signer, call, MINED_WITHIN).await.context(what)
    }

    /// Fails unless the account has `fab` and something for gas.
    async fn check_funds(&self, fab: U256) -> Result<()> {
        let us = self.signer.address();
        let token = self.chain.contracts().governance_token;
        let (has, gas) = (self.chain.balance(token, us).await?, self.chain.balance(Address::ZERO, us).await?);
        ensure!(
            has >= fab && !gas.is_zero(),
            "{us} has {} FAB and {} ETH, needs {} FAB and some ETH for gas",
            decimal(has, 18),
            decimal(gas, 18),
            decimal(fab, 18)
        );
        Ok(())
    }

    /// Allows the registry to move `fab`, then makes `call`.
    async fn pay_in(&self, fab: U256, what: &'static str, call: &Call) -> Result<Mined> {
        let contracts = self.chain.contracts();
        let approve = call::approve(contracts.governance_token, contracts.node_registry, fab);
        self.send("allow the stake", &approve).await?;
        self.send(what, call).await
    }
}

pub fn section<'a>(config: &'a Config, global: &Global) -> Result<&'a HostConfig> {
    let missing = || Fault::Usage.of(anyhow::anyhow!("{} has no [host] section", global.config.display()));
    config.host.as_ref().ok_or_else(missing)
}

/// Runs `fabstir register`: stakes and registers the configured account.
pub async fn register(global: &Global, arguments: &RegisterArguments) -> Result<()> {
    let account = Account::open(global).await?;
    let us = account.signer.address();
    if account.chain.is_active(us).await? {
        bail!("{us} is registered already");
    }
    let stake = account.chain.stake_min().await?;
    account.check_funds(stake).await?;
    let metadata = metadata(&account.config, section(&account.config, global)?, arguments.metadata.as_deref())?;
    let mined = account.pay_in(stake, "register", &account.chain.contracts().register(metadata)).await?;
    if global.json {
        return print_json(&json!({ "host": us, "stake": stake.to_string(), "tx": mined.hash }));
    }
    println!("registered {us} with {} FAB in block {}", decimal(stake, 18), mined.block.number);
    Ok(())
}

/// Runs `fabstir metadata`: replaces what the host says of itself.
pub async fn update(global: &Global, arguments: &RegisterArguments) -> Result<()> {
    let account = Account::open(global).await?;
    let metadata = metadata(&account.config, section(&account.config, global)?, arguments.metadata.as_deref())?;
    let call = account.chain.contracts().update_metadata(metadata.clone());
    let mined = account.send("publish the metadata", &call).await?;
    if global.json {
        return print_json(&json!({ "metadata": metadata, "tx": mined.hash }));
    }
    println!("published {} bytes in block {}: {metadata}", metadata.len(), mined.block.number);
    Ok(())
}

/// Runs `fabstir stake`.
pub async fn stake(global: &Global, command: &StakeCommand) -> Result<()> {
    if let StakeCommand::Show = command {
        let config = configuration(global)?;
        let host = section(&config, global)?;
        let us = host.account().await.map_err(|error| Fault::Usage.of(error))?.address();
        return show(global, &connect(&config).await?, us).await;
    }
    let account = Account::open(global).await?;
    let contracts = account.chain.contracts();
    match command {
        StakeCommand::Show => unreachable!("answered above"),
        StakeCommand::Add { amount } => {
            let amount = fab(amount).map_err(|error| Fault::Usage.of(error))?;
            account.check_funds(amount).await?;
            account.pay_in(amount, "add to the stake", &contracts.add_stake(amount)).await?
        }
        StakeCommand::Leave => account.send("start to leave", &contracts.start_unbonding()).await?,
        StakeCommand::Stay => account.send("stay", &contracts.cancel_unbonding()).await?,
        StakeCommand::Withdraw => account.send("withdraw the stake", &contracts.unregister()).await?,
    };
    show(global, &account.chain, account.signer.address()).await
}

async fn show(global: &Global, chain: &Chain, us: Address) -> Result<()> {
    let (standing, leaving) = (chain.standing(us).await?, chain.unbonded_at(us).await?);
    if global.json {
        return print_json(&json!({
            "host": us, "stake": standing.stake.to_string(), "open_jobs": standing.open_jobs,
            "active": standing.active, "reputation": standing.reputation, "withdraw_from": leaving,
        }));
    }
    println!(
        "{us}: {} FAB at stake, {} open jobs, reputation {}, {}",
        decimal(standing.stake, 18),
        standing.open_jobs,
        standing.reputation,
        match leaving {
            Some(UnixSeconds(from)) => format!("leaving, the stake can be withdrawn from {from} (Unix time)"),
            None if standing.active => "may claim".into(),
            None => format!("may not claim: {} FAB are needed", decimal(chain.stake_min().await?, 18)),
        }
    );
    Ok(())
}

fn fab(text: &str) -> Result<U256> {
    use alloy::primitives::utils::{ParseUnits, parse_units};
    let parsed = match parse_units(text, 18) {
        Ok(ParseUnits::U256(amount)) => Some(amount),
        _ => None,
    };
    parsed.filter(|fab| !fab.is_zero()).with_context(|| format!("{text:?} is no amount of FAB, such as 10 or 0.5"))
}

/// Returns the JSON that a host publishes: given, or made from the configuration.
fn metadata(config: &Config, host: &HostConfig, given: Option<&str>) -> Result<String> {
    let metadata = match given {
        Some(text) => {
            let parsed: Result<Value, _> = serde_json::from_str(text);
            parsed.context("--metadata is not JSON").map_err(|error| Fault::Usage.of(error))?;
            text.to_owned()
        }
        None => {
            let identity = crate::p2p::identity::load_or_create(&config.data_dir.join("peer.key"))?;
            let models: Vec<Value> = host
                .models
                .iter()
                .map(|model| Ok(json!({ "id": engine::model_id(&model.path)?, "max_tokens": model.max_tokens })))
                .collect::<Result<_>>()?;
            let price = |(token, net): (&Address, &U256)| (token.to_string(), json!(net.to_string()));
            let prices: serde_json::Map<String, Value> = host.price_per_1k.iter().map(price).collect();
            json!({
                "models": models,
                "price_per_1k": prices,
                "region": host.region,
                "peer": identity.public().to_peer_id().to_string(),
                "addresses": host.public_addresses,
                "circuits": [node::prover(config).manifest().circuit],
            })
            .to_string()
        }
    };
    ensure!(
        (1..=METADATA_BYTES_MAX).contains(&metadata.len()),
        "the metadata has {} bytes, the registry takes 1 to {METADATA_BYTES_MAX}: pass a shorter --metadata",
        metadata.len()
    );
    Ok(metadata)
}
