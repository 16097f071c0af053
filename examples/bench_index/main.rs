//! Measures the indexer: the released program as a child process, on a local chain full of marketplace events.
//!
//! `make bench-index` runs it; `ARGS` goes to it. What is measured is optimised; this program need not be. Progress goes to
//! standard error, and last one JSON object on one line to standard output:
//!
//! - `events_per_cpu_s`: `index --once --unproven` with `prove = "live"`, so on the endpoint's word, but for the newest blocks,
//!   which are not final yet (`blocks_not_final`)
//! - `proven_events_per_cpu_s`: `index --once` with `prove = "all"`
//! - `rederive_events_per_cpu_s`: `rederive` on that file
//! - `peak_mb`: the most resident memory of the two ways to index, in 10^6 bytes; `rederive`'s is among its runs
//! - `row_latency_p99_ms`: from the moment a subscriber hears of a block to the one where another connection reads its rows,
//!   while `index` follows the chain, which gets two blocks a second
//!
//! CPU time is the whole process's, user and system, start-up included; of several runs, each with a file of its own, the
//! median counts. A busy machine makes it larger: `load_before` should be near 0. The journals of all runs must be equal, all
//! blocks proven, and `rederive` must change nothing, or there are no figures.
//!
//! With `--ponder`, also `ponder_events_per_cpu_s`: Ponder, a public indexer, on the same chain; it stores the events' arguments
//! and proves nothing. Its start-up is not counted. Then it and ours (`prove = "all"`) meet an endpoint that leaves one log in
//! a hundred out of `eth_getLogs`: `ponder_hidden` has what each holds at its end.
//!
//! For a profile of one part: `--runs 1 --only proven --exec-prefix "perf record -g -o perf.data"`, then `perf report -i
//! perf.data --no-children`; the CPU time is then the profiler's too. For many runs by hand: `--serve` makes the chain and
//! waits.

mod follow;
mod market;
mod ponder;
mod process;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use clap::{Parser, ValueEnum};
use fabstir::devnet::CHAIN_ID;
use serde::Serialize;
use serde_json::Value;
use tokio::signal::unix::{SignalKind, signal};

use follow::Followed;
use market::Market;
use ponder::{Between, Indexed};
use process::{Cost, Program, rounded};

#[derive(Debug, Parser)]
struct Arguments {
    /// Events on the chain.
    #[arg(long, default_value_t = 200_000)]
    events: u64,
    /// What the chain follows from.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How often each part is run.
    #[arg(long, default_value_t = 3)]
    runs: usize,
    /// How long blocks are made for the program that follows.
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Measure these parts alone; the others' figures are null.
    #[arg(long, value_delimiter = ',')]
    only: Vec<Part>,
    /// Measure the memory on a chain ten times as long, too.
    #[arg(long)]
    long: bool,
    /// Measure Ponder on the same chain, too; it is installed with npm unless it is there.
    #[arg(long, conflicts_with = "serve")]
    ponder: bool,
    /// Leave the databases where they are.
    #[arg(long)]
    keep: bool,
    /// Make the chain, print its endpoint and a configuration for it, and wait until killed.
    #[arg(long)]
    serve: bool,
    /// Put before the program on its command line, such as "perf record -g -o perf.data".
    #[arg(long, value_name = "COMMAND", default_value = "")]
    exec_prefix: String,
    /// The program; default: `release/fabstir` in the target folder.
    #[arg(long, value_name = "FILE")]
    fabstir: Option<PathBuf>,
    /// Where the databases go, on a disk; default: `bench` in the target folder.
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// The contracts' folder, built.
    #[arg(long, default_value = "contracts", value_name = "DIR")]
    contracts: PathBuf,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    Claimed,
    Proven,
    Rederive,
    Follow,
}

/// What is printed, in this order.
#[derive(Debug, Default, Serialize)]
struct Report {
    events: u64,
    events_per_cpu_s: Option<f64>,
    proven_events_per_cpu_s: Option<f64>,
    rederive_events_per_cpu_s: Option<f64>,
    peak_mb: Option<f64>,
    row_latency_p99_ms: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ponder_events_per_cpu_s: Option<f64>,
    seed: u64,
    blocks: u64,
    events_per_block: f64,
    receipts_per_block: f64,
    events_by_kind: BTreeMap<&'static str, u64>,
    /// Of the last minute before anything was started, the machine's: near 0, or the CPU times are too high.
    load_before: Option<f64>,
    /// To make the chain.
    chain_s: f64,
    /// The newest block less the newest that the chain calls final.
    blocks_not_final: Option<u64>,
    journal_head: Option<Value>,
    /// All runs.
    claimed: Vec<Cost>,
    proven: Vec<Cost>,
    rederive: Vec<Cost>,
    /// `index --once` on a file at the head.
    start_up: Option<Cost>,
    following: Option<Followed>,
    events_long: Option<u64>,
    peak_mb_long: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ponder_version: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ponder: Option<Indexed>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ponder_hidden: Option<Hidden>,
}

/// What two indexers that saw no fault have of a chain whose logs were in part left out.
#[derive(Debug, Serialize)]
struct Hidden {
    logs_hidden: u64,
    ponder_events: u64,
    /// All blocks proven.
    events: u64,
}

struct Bench {
    arguments: Arguments,
    program: Program,
    folder: PathBuf,
    market: Market,
    report: Report,
}

#[tokio::main]
async fn main() -> Result<()> {
    let arguments = Arguments::parse();
    // This program is in `debug/examples` or `release/examples` there.
    let target = std::env::current_exe()?.ancestors().nth(3).context("a target folder")?.to_owned();
    let path = std::path::absolute(arguments.fabstir.clone().unwrap_or(target.join("release/fabstir")))?;
    ensure!(path.is_file(), "{} is not there: cargo build --release --bin fabstir", path.display());
    let within = std::path::absolute(arguments.dir.clone().unwrap_or(target.join("bench")))?;
    std::fs::create_dir_all(&within)?;
    let mut folder = tempfile::Builder::new().prefix("index-").tempdir_in(&within)?;
    folder.disable_cleanup(arguments.keep);
    let prefix = arguments.exec_prefix.split_whitespace().map(Into::into).collect();
    let program = Program { path, prefix, logs: folder.path().to_owned() };
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        done = bench(arguments, program, folder.path()) => done,
        _ = tokio::signal::ctrl_c() => Ok(()),
        _ = terminate.recv() => Ok(()),
    }
}

async fn bench(arguments: Arguments, program: Program, folder: &Path) -> Result<()> {
    let load = std::fs::read_to_string("/proc/loadavg")?.split(' ').next().and_then(|load| load.parse().ok());
    let ponder_version = if arguments.ponder { Some(ponder::install().await?) } else { None };
    let began = Instant::now();
    let mut market = Market::open(&arguments.contracts, arguments.seed).await?;
    eprintln!("the contracts are there after {:.1} s", began.elapsed().as_secs_f64());
    market.grow_to(arguments.events).await?;
    let report = Report {
        events: market.events,
        seed: arguments.seed,
        blocks: market.blocks,
        events_per_block: rounded(market.events as f64 / market.blocks as f64, 1),
        receipts_per_block: rounded(market.transactions as f64 / market.blocks as f64, 1),
        events_by_kind: market.kinds()?,
        load_before: load,
        chain_s: rounded(began.elapsed().as_secs_f64(), 1),
        ponder_version,
        ..Report::default()
    };
    eprintln!("a chain of {} events in {} blocks after {} s", report.events, report.blocks, report.chain_s);
    let mut bench = Bench { arguments, program, folder: folder.to_owned(), market, report };
    if bench.arguments.serve {
        println!("{} {}", bench.market.devnet.rpc_url, bench.config("served", None)?.display());
        return std::future::pending().await;
    }
    bench.measure().await?;
    println!("{}", serde_json::to_string(&bench.report)?);
    Ok(())
}

impl Bench {
    async fn measure(&mut self) -> Result<()> {
        let per_s = |events: u64, costs: &[Cost]| median(costs).map(|cpu_s| (events as f64 / cpu_s).round());
        let events = self.market.events;
        let wanted = |part| self.arguments.only.is_empty() || self.arguments.only.contains(&part);
        let (claimed, proven) = (wanted(Part::Claimed), wanted(Part::Proven));
        let (rederive, follow) = (wanted(Part::Rederive), wanted(Part::Follow));

        let mut heads = Vec::new();
        for run in 0..self.arguments.runs {
            if claimed {
                let config = self.config(&format!("claimed-{run}"), Some("live"))?;
                let (cost, head) = self.index(&self.program, &config, &["index", "--once", "--unproven", "--json"])?;
                self.report.claimed.push(cost);
                heads.push(head);
            }
            let config = self.config(&format!("proven-{run}"), Some("all"))?;
            let once = ["index", "--once", "--json"];
            if proven {
                let (cost, head) = self.index(&self.program, &config, &once)?;
                self.report.proven.push(cost);
                heads.push(head);
            } else if rederive || follow {
                heads.push(self.index(&self.program.bare(), &config, &once)?.1);
            } else {
                continue;
            }
            self.check(&config)?;
            let (cost, _) = self.run(&self.program.bare(), &config, &once)?;
            self.report.start_up = Some(cost);
            if rederive {
                let (cost, done) = self.run(&self.program, &config, &["rederive", "--json"])?;
                ensure!(done["logs"] == events, "{done}");
                ensure!(done["logs_changed"] == 0 && done["jobs_changed"] == serde_json::json!([]), "{done}");
                self.report.rederive.push(cost);
            }
        }
        ensure!(heads.windows(2).all(|pair| pair[0] == pair[1]), "the journals differ: {heads:?}");
        self.report.journal_head = heads.pop();
        self.report.events_per_cpu_s = per_s(events, &self.report.claimed);
        self.report.proven_events_per_cpu_s = per_s(events, &self.report.proven);
        self.report.rederive_events_per_cpu_s = per_s(events, &self.report.rederive);
        self.report.peak_mb = peak(self.report.claimed.iter().chain(&self.report.proven));

        if self.arguments.ponder {
            self.ponder().await?;
        }
        if follow {
            let (config, database) = (self.config("proven-0", None)?, self.folder.join("proven-0/node.sqlite"));
            let seconds = self.arguments.seconds;
            let followed = follow::follow(&self.program, &mut self.market, &config, &database, seconds).await?;
            eprintln!("following: {followed:?}");
            self.report.row_latency_p99_ms = Some(followed.row_latency_p99_ms);
            self.report.following = Some(followed);
        }
        if self.arguments.long {
            self.market.grow_to(10 * events).await?;
            let mut costs = Vec::new();
            for (name, prove, more) in [("claimed-long", "live", Some("--unproven")), ("proven-long", "all", None)] {
                let config = self.config(name, Some(prove))?;
                let arguments: Vec<&str> = ["index", "--once", "--json"].into_iter().chain(more).collect();
                costs.push(self.index(&self.program.bare(), &config, &arguments)?.0);
            }
            self.report.events_long = Some(self.market.events);
            self.report.peak_mb_long = peak(&costs);
        }
        Ok(())
    }

    /// Measures Ponder, and what it and the program have after an endpoint that leaves logs out.
    async fn ponder(&mut self) -> Result<()> {
        let events = self.market.events;
        let honest = Between::start(&self.market, 0).await?;
        let indexed = ponder::index(&self.market, &honest, &self.folder.join("ponder")).await?;
        eprintln!("ponder: {indexed:?}");
        ensure!(indexed.events == events, "Ponder has {} events of {events}", indexed.events);
        self.report.ponder_events_per_cpu_s = Some((events as f64 / indexed.cost.cpu_s).round());
        self.report.ponder = Some(indexed);

        let hiding = Between::start(&self.market, 100).await?;
        let ponder_events = ponder::index(&self.market, &hiding, &self.folder.join("ponder-hidden")).await?.events;
        let logs_hidden = hiding.hidden();
        ensure!(ponder_events + logs_hidden == events, "Ponder has {ponder_events} events, {logs_hidden} were hidden");
        let config = self.config_at(&hiding.url, "hidden", Some("all"))?;
        self.index(&self.program.bare(), &config, &["index", "--once", "--json"])?;
        self.check(&config)?;
        self.report.ponder_hidden = Some(Hidden { logs_hidden, ponder_events, events });
        Ok(())
    }

    /// Runs the program to its end and returns what it took and printed.
    fn run(&self, program: &Program, config: &Path, arguments: &[&str]) -> Result<(Cost, Value)> {
        let (cost, printed) = tokio::task::block_in_place(|| program.measure(config, arguments))?;
        let name = config.file_stem().unwrap_or_default().display();
        eprintln!(
            "{name}: {} took {:.2} s of CPU, {:.1} s, {:.1} MB",
            arguments[0], cost.cpu_s, cost.wall_s, cost.peak_mb
        );
        Ok((cost, printed))
    }

    /// As `run`, for a file that must have all events then; returns its journal's head.
    fn index(&self, program: &Program, config: &Path, arguments: &[&str]) -> Result<(Cost, Value)> {
        let (cost, mut printed) = self.run(program, config, arguments)?;
        ensure!(printed["events"] == self.market.events, "{printed}");
        Ok((cost, printed["journal_head"].take()))
    }

    /// Fails unless the file has every event and every block proven.
    fn check(&mut self, config: &Path) -> Result<()> {
        let (_, status) = self.run(&self.program.bare(), config, &["status", "--json"])?;
        ensure!(status["events"] == self.market.events && status["block"] == self.market.head(), "{status}");
        let ranges = status["coverage"].as_array().context("the coverage")?;
        let proven = |range: &Value| range["level"] == "complete" || range["level"] == "absent";
        ensure!(!ranges.is_empty() && ranges.iter().all(proven), "not all is proven: {status}");
        let last = status["final"]["block"]["number"].as_u64();
        self.report.blocks_not_final = last.map(|last| self.market.head() - last);
        Ok(())
    }

    /// Writes a configuration of its own for a database of its own, both called `name`.
    fn config(&self, name: &str, prove: Option<&str>) -> Result<PathBuf> {
        self.config_at(&self.market.devnet.rpc_url, name, prove)
    }

    /// The same for another endpoint than the chain's own.
    fn config_at(&self, url: &str, name: &str, prove: Option<&str>) -> Result<PathBuf> {
        let prove = prove.map_or(String::new(), |prove| format!("prove = \"{prove}\"\n"));
        let text = format!(
            "data_dir = \"{name}\"\n[chain]\nid = {CHAIN_ID}\nrpc_url = \"{url}\"\nws_url = \"{}\"\nstart_block = {}\n\
             {prove}{}[http]\nlisten = \"127.0.0.1:0\"\n",
            url.replacen("http", "ws", 1),
            self.market.book.block,
            self.market.book.contracts.section(),
        );
        let file = self.folder.join(format!("{name}.toml"));
        std::fs::write(&file, text)?;
        Ok(file)
    }
}

/// Returns the median CPU time.
fn median(costs: &[Cost]) -> Option<f64> {
    let mut times: Vec<f64> = costs.iter().map(|cost| cost.cpu_s).collect();
    times.sort_by(f64::total_cmp);
    times.get(times.len().checked_sub(1)? / 2).copied()
}

fn peak<'a>(costs: impl IntoIterator<Item = &'a Cost>) -> Option<f64> {
    costs.into_iter().map(|cost| cost.peak_mb).reduce(f64::max)
}
