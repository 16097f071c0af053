//! The command line: one file per command. Commands print; they never decide.
//!
//! Exit codes: 0 done, 1 failed, 2 usage or configuration, 3 the chain's endpoint, 4 an audit found a divergence, 5 the chain took back
//! what it called final.

mod ask;
mod check;
mod control;
mod demo;
mod events;
mod export;
mod history;
mod keys;
mod ledger;
mod notify;
mod policy;
mod run;
mod sql;
mod stake;
mod tx;

use std::fmt;
use std::io::{self, IsTerminal, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Error, Result};
use clap::{CommandFactory, Parser, Subcommand};
use serde::{Deserialize, Serialize};
use tracing_subscriber::EnvFilter;

use crate::config::Config;
use crate::lock::Lock;
use crate::store::Store;

/// The on-chain-first host node of the Fabstir LLM marketplace.
#[derive(Debug, Parser)]
#[command(name = "fabstir", version, about, max_term_width = 110)]
#[command(after_help = "Start with `fabstir demo`, which shows one job from post to payment on a local chain.\n\
    As a host: `fabstir key new`, fund the account, `fabstir register`, `fabstir doctor`, `fabstir run`.\n\
    As an operator: `fabstir status`, `fabstir pause`, `fabstir drain --wait`, `fabstir resume`, `fabstir tx list`, `fabstir ledger`.\n\
    As an auditor: `fabstir index --once`, `fabstir audit`, `fabstir export`, `fabstir verify-export`.\n\
    Exit codes: 0 done, 1 failed, 2 usage or configuration, 3 endpoint, 4 divergence, 5 finality.")]
struct Arguments {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// What every command takes.
#[derive(Debug, Clone, clap::Args)]
pub struct Global {
    /// The configuration file.
    #[arg(long, short, global = true, env = "FABSTIR_CONFIG", default_value = "fabstir.toml", value_name = "FILE")]
    config: PathBuf,
    /// Print one JSON value instead of text for people; of events one to a line.
    #[arg(long, global = true)]
    json: bool,
    /// What to log, to standard error: a level, or filters as of the `tracing` crate.
    #[arg(long, global = true, env = "FABSTIR_LOG", value_name = "FILTER")]
    log: Option<String>,
    /// Log as JSON lines.
    #[arg(long, global = true)]
    log_json: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the node: a host where the configuration has [host], else an observer.
    Run,
    /// Follow the chain into the database and do nothing else.
    Index(run::IndexArguments),
    /// List jobs, newest first; or have one taken up again or given up.
    #[command(args_conflicts_with_subcommands = true)]
    Jobs {
        #[command(flatten)]
        list: history::JobsArguments,
        #[command(subcommand)]
        command: Option<control::JobCommand>,
    },
    /// Show what happened to one job: events, our work, our transactions.
    Job(history::JobArguments),
    /// Show how far the database goes, what of it is proven, and what keeps the running node from being ready.
    Status(history::StatusArguments),
    /// Say what each rule of the host's policy says of a job, with its numbers.
    Explain(policy::ExplainArguments),
    /// Replay the indexed past under another policy, beside today's.
    Backtest(policy::BacktestArguments),
    /// Measure this machine.
    #[command(subcommand)]
    Bench(policy::BenchCommand),
    /// List events, oldest first, or follow them as they come.
    Events(events::EventsArguments),
    /// Ask the database in SQL, for reading only.
    Sql(sql::SqlArguments),
    /// Write the database's content to files, with a manifest of their digests.
    Export(export::ExportArguments),
    /// Check an export against its manifest and link its journal again; needs nothing else. Exit code 4 where it differs.
    VerifyExport(export::VerifyArguments),
    /// Make everything that follows from the stored logs anew; asks no endpoint.
    Rederive,
    /// List the receipts that peers published.
    Receipts,
    /// Read the chain again and compare it with the database. Exit code 4 where they differ.
    Audit(check::AuditArguments),
    /// Write a stretch of the chain to a file, with all that proves which logs there are, for an audit that asks nobody.
    Bundle(check::BundleArguments),
    /// Find a host, post a job, stream its answer and check what was signed.
    Post(ask::PostArguments),
    /// Take the money of an expired job back to its renter.
    Refund(ask::RefundArguments),
    /// Take a job back that no host has claimed.
    Cancel(ask::RefundArguments),
    /// Withdraw what the escrow owes since the token, or the account, refused it.
    Withdraw(ask::WithdrawArguments),
    /// Put a completed job before the arbiter, within its challenge window.
    Dispute(ask::DisputeArguments),
    /// Rate the host of a job that was paid for.
    Rate(ask::RateArguments),
    /// Claim no more jobs until `resume`; what was claimed is finished.
    Pause(control::PauseArguments),
    /// Claim no more jobs before the node is stopped, and see what is still owed, or wait until nothing is.
    Drain(control::DrainArguments),
    /// Claim again: lifts a pause and a drain, and closes the breaker.
    Resume,
    /// List the account's transactions, or have the node bump, cancel or send one again.
    #[command(subcommand)]
    Tx(tx::TxCommand),
    /// Show what was earned, what gas was paid and what of it for nothing.
    Ledger(ledger::LedgerArguments),
    /// Stake FAB and register the configured account as a host.
    Register(stake::RegisterArguments),
    /// Publish what the host says of itself again.
    Metadata(stake::RegisterArguments),
    /// See, add to and withdraw the host's stake.
    #[command(subcommand)]
    Stake(stake::StakeCommand),
    /// Check the configuration.
    #[command(subcommand)]
    Config(check::ConfigCommand),
    /// Check everything a node needs: configuration, endpoint, contracts, key, stake, gas, model, prover.
    Doctor,
    /// Make and read encrypted keys.
    #[command(subcommand)]
    Key(keys::KeyCommand),
    /// The prover's circuit.
    #[command(subcommand)]
    Prover(check::ProverCommand),
    /// Show one job from post to payment on a local chain: two nodes, three jobs, real proofs.
    Demo(demo::DemoArguments),
    /// Print a shell's completions.
    Completions { shell: clap_complete::Shell },
}

/// What kind of failure it was, for the exit code; attached as context where it is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    Usage,
    Endpoint,
    Divergence,
    Finality,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Fault::Usage => "usage or configuration",
            Fault::Endpoint => "the chain's endpoint",
            Fault::Divergence => "the database and the chain differ",
            Fault::Finality => "the chain took back what it called final",
        })
    }
}

impl Fault {
    fn code(self) -> u8 {
        match self {
            Fault::Usage => 2,
            Fault::Endpoint => 3,
            Fault::Divergence => 4,
            Fault::Finality => 5,
        }
    }

    /// Marks an error as of this kind.
    pub fn of(self, error: Error) -> Error {
        error.context(self)
    }
}

/// Runs the command line of this process and returns its exit code.
pub async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    start_logging(&arguments);
    match dispatch(arguments).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.is::<ReaderGone>() => ExitCode::SUCCESS,
        Err(error) => {
            let fault = error.downcast_ref::<Fault>().copied();
            // The kind is for the code alone: the causes say it better.
            let mut causes: Vec<String> = error
                .chain()
                .map(ToString::to_string)
                .filter(|text| fault.is_none_or(|fault| *text != fault.to_string()))
                .collect();
            // An endpoint's failure comes wrapped in errors that only repeat it.
            causes.dedup();
            eprintln!("fabstir: {}", causes.join(": "));
            ExitCode::from(fault.map_or(1, Fault::code))
        }
    }
}

async fn dispatch(arguments: Arguments) -> Result<()> {
    let global = &arguments.global;
    match arguments.command {
        Command::Run => run::run(global).await,
        Command::Index(arguments) => run::index(global, &arguments).await,
        Command::Jobs { command: Some(command), .. } => control::job(global, &command).await,
        Command::Jobs { list, command: None } => history::jobs(global, &list).await,
        Command::Job(arguments) => history::job(global, &arguments).await,
        Command::Status(arguments) => history::status(global, &arguments).await,
        Command::Explain(arguments) => policy::explain(global, &arguments).await,
        Command::Backtest(arguments) => policy::backtest(global, &arguments).await,
        Command::Bench(command) => policy::bench(global, &command).await,
        Command::Events(arguments) => events::events(global, &arguments).await,
        Command::Sql(arguments) => sql::sql(global, &arguments).await,
        Command::Export(arguments) => export::export(global, &arguments).await,
        Command::VerifyExport(arguments) => export::verify(global, &arguments),
        Command::Rederive => history::rederive(global).await,
        Command::Receipts => history::receipts(global).await,
        Command::Audit(arguments) => check::audit(global, &arguments).await,
        Command::Bundle(arguments) => check::bundle(global, &arguments).await,
        Command::Post(arguments) => ask::post(global, &arguments).await,
        Command::Refund(arguments) => ask::refund(global, &arguments).await,
        Command::Cancel(arguments) => ask::cancel(global, &arguments).await,
        Command::Withdraw(arguments) => ask::withdraw(global, &arguments).await,
        Command::Dispute(arguments) => ask::dispute(global, &arguments).await,
        Command::Rate(arguments) => ask::rate(global, &arguments).await,
        Command::Pause(arguments) => control::pause(global, &arguments).await,
        Command::Drain(arguments) => control::drain(global, &arguments).await,
        Command::Resume => control::resume(global).await,
        Command::Tx(command) => tx::tx(global, &command).await,
        Command::Ledger(arguments) => ledger::ledger(global, &arguments).await,
        Command::Register(arguments) => stake::register(global, &arguments).await,
        Command::Metadata(arguments) => stake::update(global, &arguments).await,
        Command::Stake(command) => stake::stake(global, &command).await,
        Command::Config(command) => check::config(global, &command),
        Command::Doctor => check::doctor(global).await,
        Command::Key(command) => keys::key(global, &command).await,
        Command::Prover(command) => check::prover(global, &command).await,
        Command::Demo(arguments) => demo::demo(global, &arguments).await,
        Command::Completions { shell } => {
            let mut text = Vec::new();
            clap_complete::generate(shell, &mut Arguments::command(), "fabstir", &mut text);
            say(String::from_utf8_lossy(&text).trim_end())
        }
    }
}

fn start_logging(arguments: &Arguments) {
    let usual = match arguments.command {
        Command::Run | Command::Index(_) => "info",
        _ => "warn",
    };
    let filter = arguments.global.log.clone().unwrap_or_else(|| usual.into());
    // llama.cpp and the peer library speak at info of things no operator acts on.
    let filter =
        EnvFilter::new(format!("{filter},{}=error,libp2p=error,netlink_proto=error", crate::engine::LOG_TARGET));
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    if arguments.global.log_json {
        builder.json().init();
    } else {
        builder.with_target(false).init();
    }
}

/// Reads the configuration; its errors are the user's.
fn configuration(global: &Global) -> Result<Config> {
    Config::load(&global.config).map_err(|error| Fault::Usage.of(error))
}

/// Returns what the node that runs with the same data says of itself at `/readyz`, or why it says nothing; `None`: none runs.
async fn readiness(config: &Config) -> Option<Result<Ready, String>> {
    let file = config.node_file();
    match Lock::is_taken(&config.data_dir) {
        Ok(true) if file.exists() => {}
        // It starts, or a command works with its data.
        Ok(_) => return None,
        Err(error) => return Some(Err(format!("{error:#}"))),
    }
    let ask = async {
        let Node { mut http } = serde_json::from_slice(&std::fs::read(&file)?)?;
        if http.ip().is_unspecified() {
            http.set_ip(if http.is_ipv4() { Ipv4Addr::LOCALHOST.into() } else { Ipv6Addr::LOCALHOST.into() });
        }
        let client = reqwest::Client::builder().timeout(ANSWER_WITHIN).no_proxy().build()?;
        anyhow::Ok(client.get(format!("http://{http}/readyz")).send().await?.json().await?)
    };
    Some(ask.await.map_err(|error| format!("{error:#}")))
}

/// How long a node on this machine may take to say how it does.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// What a command needs of what a node writes to `node.json`.
#[derive(Debug, Deserialize)]
struct Node {
    http: SocketAddr,
}

/// What a node answers at `/readyz`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Ready {
    ready: bool,
    problems: Vec<Problem>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Problem {
    part: String,
    reason: String,
}

/// Takes the configured data for as long as what is returned lives: their account has one sender, and their file one that follows the
/// chain.
///
/// # Errors
/// While a node or another such command works with them.
async fn alone(config: &Config) -> Result<Lock> {
    let taken =
        || anyhow::anyhow!("the node runs, or a command works with {}: stop it first", config.data_dir.display());
    let lock = Lock::take(&config.data_dir).await?.ok_or_else(|| Fault::Usage.of(taken()))?;
    // Of a node that was killed.
    let _ = std::fs::remove_file(config.node_file());
    Ok(lock)
}

/// Fails where opening the database would change its format under a node that runs with it: the older program of that node could not
/// read it any more.
async fn refuse_to_migrate(config: &Config) -> Result<()> {
    let path = config.database();
    if path.exists() && Lock::is_taken(&config.data_dir)? && Store::is_older(&path).await? {
        return Err(Fault::Usage.of(anyhow::anyhow!(
            "{} is of an older program than this one, and a node runs with it: restart the node first, with this program",
            path.display()
        )));
    }
    Ok(())
}

/// Nobody reads our output any more, as after `fabstir events | head`: no failure, only the end.
#[derive(Debug)]
struct ReaderGone;

impl fmt::Display for ReaderGone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("nobody reads the output")
    }
}
impl std::error::Error for ReaderGone {}

/// Prints a line on standard output.
fn say(line: impl fmt::Display) -> Result<()> {
    match writeln!(io::stdout().lock(), "{line}") {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Err(ReaderGone.into()),
        written => Ok(written?),
    }
}

/// Prints a value as JSON on standard output.
fn print_json(value: &impl serde::Serialize) -> Result<()> {
    say(serde_json::to_string_pretty(value)?)
}

/// Returns a stranger's text as a terminal may have it: without what moves its cursor or ends the line.
fn plain(text: &str) -> String {
    let shown = |c: char| if c.is_control() { c.escape_default().to_string() } else { c.to_string() };
    text.chars().map(shown).collect()
}

/// Returns an amount with its decimals, without trailing zeros: 18 for ETH and FAB, 6 for USD.
fn decimal(amount: crate::market::types::U256, decimals: u8) -> String {
    let text = alloy::primitives::utils::format_units(amount, decimals).unwrap_or_else(|_| amount.to_string());
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

#[cfg(test)]
mod tests {
    use anyhow::Context;

    use super::*;
    use crate::http::{Declined, Health, Metrics, serve};

    #[tokio::test]
    async fn a_node_that_runs_is_asked_how_it_does() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let example = include_str!("../../config.example.toml").split("# Leave this section out").next();
        std::fs::create_dir(folder.path().join("data"))?;
        std::fs::write(folder.path().join("node.toml"), example.unwrap_or_default())?;
        let config = Config::load(&folder.path().join("node.toml"))?;
        assert_eq!(readiness(&config).await, None, "none runs");
        let lock = Lock::take(&config.data_dir).await?.context("it is free")?;
        assert_eq!(readiness(&config).await, None, "it does not answer yet");
        let health = Health::default();
        health.expect("breaker", Duration::from_secs(60));
        let server = serve(([0, 0, 0, 0], 0).into(), health.clone(), Metrics::new(), Declined::default()).await?;
        let node = serde_json::json!({ "http": server.address });
        std::fs::write(config.node_file(), node.to_string())?;
        health.ill("breaker", "the account has 9 wei for gas, the limit is 10: fund it");
        let said = readiness(&config).await.context("it runs")?.map_err(Error::msg)?;
        assert_eq!((said.ready, &*said.problems[0].part), (false, "breaker"));
        assert!(said.problems[0].reason.contains("9 wei for gas"), "{said:?}");
        health.well("breaker");
        let said = readiness(&config).await.context("it runs")?.map_err(Error::msg)?;
        assert_eq!(said, Ready { ready: true, problems: Vec::new() });
        drop(server);
        std::fs::write(config.node_file(), "{}")?;
        assert!(readiness(&config).await.context("it runs")?.is_err(), "it does not say where");
        drop(lock);
        assert_eq!(readiness(&config).await, None, "it was killed");
        Ok(())
    }
}
