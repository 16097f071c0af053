//! `fabstir audit`, `fabstir config`, `fabstir doctor` and `fabstir prover`: is all as it should be?

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Subcommand;
use serde::Serialize;
use serde_json::json;

use super::{Fault, Global, configuration, decimal, history, print_json, run};
use crate::audit;
use crate::chain::{Chain, key};
use crate::config::Config;
use crate::market::types::Address;
use crate::node;
use crate::prover::{self, Prover};
use crate::store::Finality;

#[derive(Debug, clap::Args)]
pub struct AuditArguments {
    /// Ask this endpoint instead of the configured one.
    #[arg(long, value_name = "URL")]
    rpc: Option<String>,
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
    let store = history::open(&config).await?;
    let chain = run::connect(&config).await?;
    let bar = run::progress("blocks");
    let report = audit::run(&store, &chain, |done, all| {
        bar.set_length(all);
        bar.set_position(done);
    })
    .await
    .map_err(|error| Fault::Endpoint.of(error))?;
    bar.finish_and_clear();
    if global.json {
        print_json(&report)?;
    } else {
        println!("blocks {} to {}: {} events, {} jobs", report.from, report.to, report.events, report.jobs);
        println!("{} of {} blocks proven, journal head {}", report.proven, report.blocks, report.journal_head);
        if let Some(reason) = &report.unproven {
            println!("not proven, the endpoint's word was taken: {reason}");
        }
    }
    if let Some(Finality { violated: Some(how), .. }) = store.finality().await? {
        bail!(Fault::Finality.of(anyhow::anyhow!("finality is violated: {how}")));
    }
    let Some(first) = report.divergences.first() else {
        if !global.json {
            println!("the database says what the chain says");
        }
        return Ok(());
    };
    let more = report.divergences.len() - 1;
    bail!(Fault::Divergence.of(anyhow::anyhow!("the database differs from the chain: {first} (and {more} more)")))
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
            let chain = Chain::unchecked(config.chain.endpoints(), config.chain.id, config.contracts);
            if let Ok(chain) = &chain {
                for one in chain.each() {
                    note("endpoint", one.examine().await.map(|found| found.to_string()));
                }
                note("contracts", chain.check().await.map(|()| format!("code at all of them on chain {}", chain.id())));
            }
            if let (Some(host), Ok(chain)) = (&config.host, &chain) {
                match key::open(&host.keystore, &host.password_file) {
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
