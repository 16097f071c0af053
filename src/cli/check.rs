//! `fabstir audit`, `fabstir config`, `fabstir doctor` and `fabstir prover`: is all as it should be?

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Subcommand;
use serde::Serialize;
use serde_json::json;

use super::{Fault, Global, configuration, decimal, history, print_json, run};
use crate::audit::Source;
use crate::chain::{Bundle, Chain};
use crate::config::Config;
use crate::market::types::Address;
use crate::node;
use crate::prover::{self, Prover};
use crate::store::{Finality, Store};

#[derive(Debug, clap::Args)]
pub struct AuditArguments {
    /// Ask this endpoint instead of the configured ones.
    #[arg(long, value_name = "URL")]
    rpc: Option<String>,
    /// Ask this one too, hold the two against each other and say which of them lies.
    #[arg(long, value_name = "URL", conflicts_with = "bundle")]
    rpc2: Option<String>,
    /// Read the chain from a file that `fabstir bundle` wrote, and ask nobody.
    #[arg(long, value_name = "FILE", conflicts_with = "rpc")]
    bundle: Option<PathBuf>,
    /// Audit this database instead of the configured one; it is only read.
    #[arg(long, value_name = "FILE", conflicts_with = "repair")]
    database: Option<PathBuf>,
    /// First block; the first stored, or the bundle's, by default.
    #[arg(long, value_name = "BLOCK")]
    from: Option<u64>,
    /// Last block; the newest stored, or the bundle's, by default.
    #[arg(long, value_name = "BLOCK")]
    to: Option<u64>,
    /// Correct what differs, as far as the chain proves it, and audit again.
    #[arg(long)]
    repair: bool,
}

#[derive(Debug, clap::Args)]
pub struct BundleArguments {
    /// The file to write.
    file: PathBuf,
    /// First block; `chain.start_block` by default.
    #[arg(long, value_name = "BLOCK")]
    from: Option<u64>,
    /// Last block; the newest final one by default.
    #[arg(long, value_name = "BLOCK")]
    to: Option<u64>,
}

#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Read the file and the environment and say what is wrong.
    Check,
}

#[derive(Debug, Subcommand)]
pub enum ProverCommand {
    /// Derive the circuit's keys and write its verifier contract.
    Verifier {
        /// Where to write the Solidity.
        file: PathBuf,
        /// A Python that has ezkl.
        #[arg(long, env = "FABSTIR_PYTHON", default_value = "python3")]
        python: PathBuf,
        /// Folder for the keys.
        #[arg(long, default_value = ".fabstir/prover")]
        dir: PathBuf,
    },
}

/// Runs `fabstir audit`.
pub async fn audit(global: &Global, arguments: &AuditArguments) -> Result<()> {
    let mut config = configuration(global)?;
    if let Some(url) = &arguments.rpc {
        config.chain.rpc_url.clone_from(url);
        config.chain.rpc_urls.clear();
    }
    let _alone = if arguments.repair { Some(super::alone(&config).await?) } else { None };
    let store = match &arguments.database {
        None if arguments.repair => history::open_alone(&config).await?,
        None => history::open(&config).await?,
        Some(file) => {
            let decode = Arc::new(config.contracts.decoder());
            let marketplace = config.contracts.job_marketplace;
            let opened = Store::open_to_read(file, config.chain.id, marketplace, decode).await;
            opened.map_err(|error| Fault::Usage.of(error))?
        }
    };
    let bar = run::progress("blocks");
    let progress = |done, all| {
        bar.set_length(all);
        bar.set_position(done);
    };
    let endpoint = |error| Fault::Endpoint.of(error);
    let (from, to) = (arguments.from, arguments.to);
    let mut report = source(&config, arguments).await?.audit(&store, from, to, progress).await.map_err(endpoint)?;
    if arguments.repair && report.divergences_found > 0 {
        report.divergences.iter().for_each(|what| tracing::warn!("repairing: {what}"));
        let corrected = source(&config, arguments).await?.repair(&store, from, to, progress).await.map_err(endpoint)?;
        tracing::warn!(blocks = corrected, "repaired: auditing again");
        report = source(&config, arguments).await?.audit(&store, from, to, progress).await.map_err(endpoint)?;
    }
    bar.finish_and_clear();
    if global.json {
        print_json(&report)?;
    } else {
        println!("blocks {} to {}: {} events, {} jobs", report.from, report.to, report.events, report.jobs);
        println!("{} of {} blocks proven", report.proven, report.blocks);
        println!("journal head {}", report.journal_head);
        println!("projection root {}", report.projection_root);
        if let Some(reason) = &report.unproven {
            println!("not proven, the endpoint's word was taken: {reason}");
        }
        report.divergences.iter().for_each(|what| println!("differs: {what}"));
        report.lies.iter().for_each(|what| println!("endpoint: {what}"));
    }
    if let Some(Finality { violated: Some(how), .. }) = store.finality().await? {
        bail!(Fault::Finality.of(anyhow::anyhow!("finality is violated: {how}")));
    }
    if let Some(first) = report.divergences.first() {
        let more = report.divergences_found - 1;
        bail!(Fault::Divergence.of(anyhow::anyhow!("the database differs from the chain: {first} (and {more} more)")));
    }
    if let Some(first) = report.lies.first() {
        bail!(Fault::Endpoint.of(anyhow::anyhow!("the database says what the chain says, but {first}")));
    }
    if !global.json {
        println!("the database says what the chain says");
    }
    Ok(())
}

/// Returns what the database is held against.
async fn source(config: &Config, arguments: &AuditArguments) -> Result<Source> {
    if let Some(file) = &arguments.bundle {
        let bundle =
            Bundle::open(file, config.chain.id, config.contracts.clone()).map_err(|error| Fault::Usage.of(error))?;
        return Ok(Source::Bundle(bundle));
    }
    let chain = run::connect(config).await?;
    let Some(url) = &arguments.rpc2 else { return Ok(Source::Chain(chain)) };
    let mut second = config.clone();
    second.chain.rpc_url.clone_from(url);
    second.chain.rpc_urls.clear();
    Ok(Source::Both(chain.steady(), run::connect(&second).await?))
}

/// Runs `fabstir bundle`.
pub async fn bundle(global: &Global, arguments: &BundleArguments) -> Result<()> {
    let config = configuration(global)?;
    let chain = run::connect(&config).await?.steady();
    let last = match arguments.to {
        Some(to) => to,
        None => {
            chain
                .finalized()
                .await?
                .context("the chain calls no block final: name the last block with --to")?
                .block
                .number
        }
    };
    let first = arguments.from.unwrap_or(config.chain.start_block);
    let bar = run::progress("blocks");
    bar.set_length((last + 1).saturating_sub(first));
    let written = chain.bundle(&arguments.file, first, last, |done| bar.set_position(done)).await;
    bar.finish_and_clear();
    let end = written.map_err(|error| Fault::Endpoint.of(error))?;
    if global.json {
        return print_json(&json!({ "file": arguments.file, "from": first, "to": last, "hash": end.hash }));
    }
    println!("blocks {first} to {last} in {}: who believes {} needs nobody else", arguments.file.display(), end.hash);
    Ok(())
}

/// Runs `fabstir config check`.
pub fn config(global: &Global, command: &ConfigCommand) -> Result<()> {
    let ConfigCommand::Check = command;
    let config = configuration(global)?;
    let role = if config.host.is_some() { "host" } else { "observer" };
    if global.json {
        return print_json(&json!({ "valid": true, "role": role, "data_dir": config.data_dir }));
    }
    println!(
        "{} is valid: a node of chain {} as {role}, data in {}",
        global.config.display(),
        config.chain.id,
        config.data_dir.display()
    );
    Ok(())
}

/// Runs `fabstir prover`.
pub async fn prover(global: &Global, command: &ProverCommand) -> Result<()> {
    let ProverCommand::Verifier { file, python, dir } = command;
    let prover = Prover::new(prover::Config {
        python: python.clone(),
        dir: std::path::absolute(dir)?,
        concurrency: 1,
        timeout: Duration::from_secs(600),
    });
    let manifest = prover.ensure_keys().await?;
    prover.export_verifier(file).await?;
    if global.json {
        return print_json(&json!({ "circuit": manifest.circuit, "id": manifest.circuit_id(), "verifier": file }));
    }
    println!("circuit {}: keys match the manifest, verifier in {}", manifest.circuit, file.display());
    Ok(())
}

/// One thing the doctor looked at.
#[derive(Debug, Serialize)]
struct Finding {
    what: &'static str,
    well: bool,
    detail: String,
}

/// Runs `fabstir doctor`: looks at everything, also after a failure.
pub async fn doctor(global: &Global) -> Result<()> {
    let mut findings = Vec::new();
    let mut note = |what, found: Result<String>| {
        let well = found.is_ok();
        findings.push(Finding { what, well, detail: found.unwrap_or_else(|error| format!("{error:#}")) });
    };
    match Config::load(&global.config) {
        Err(error) => note("configuration", Err(error)),
        Ok(config) => {
            note("configuration", Ok(global.config.display().to_string()));
            let chain = Chain::unchecked(config.chain.endpoints(), config.chain.id, config.contracts.clone());
            if let Ok(chain) = &chain {
                for one in chain.each() {
                    note("endpoint", one.examine().await.map(|found| found.to_string()));
                }
                note(
                    "contracts",
                    chain.check().await.map(|()| format!("all functions known at all of them on chain {}", chain.id())),
                );
            }
            if let (Some(host), Ok(chain)) = (&config.host, &chain) {
                match host.account().await {
                    Err(error) => note("key", Err(error)),
                    Ok(signer) => {
                        note("key", Ok(signer.address().to_string()));
                        note("stake", stake(chain, signer.address()).await);
                        note("gas money", gas_money(chain, signer.address()).await);
                    }
                }
                let prover = node::prover(&config);
                note(
                    "prover",
                    prover.check_environment().await.map(|version| format!("ezkl {version}")).map_err(Into::into),
                );
                for model in &host.models {
                    let detail = || format!("{} ({} slots)", model.path.display(), model.slots);
                    let read = std::fs::File::open(&model.path).map(|_| detail());
                    note("model", read.with_context(|| format!("open {}", model.path.display())));
                }
            }
        }
    }
    let well = findings.iter().all(|finding| finding.well);
    if global.json {
        print_json(&json!({ "well": well, "findings": findings }))?;
    } else {
        for Finding { what, well, detail } in &findings {
            println!("{} {what:<14} {detail}", if *well { "ok  " } else { "FAIL" });
        }
    }
    if !well {
        bail!(Fault::Usage.of(anyhow::anyhow!("not everything a node needs is there")));
    }
    Ok(())
}

async fn stake(chain: &Chain, host: Address) -> Result<String> {
    if !chain.is_active(host).await? {
        bail!("{host} is not registered: run `fabstir register`");
    }
    Ok("registered, stake whole".into())
}

async fn gas_money(chain: &Chain, host: Address) -> Result<String> {
    let funds = chain.balance(Address::ZERO, host).await?;
    if funds.is_zero() {
        bail!("{host} has no ETH: fund it");
    }
    Ok(format!("{} ETH", decimal(funds, 18)))
}
