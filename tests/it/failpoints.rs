//! The host dies, panics, stands still or fails at each boundary where something becomes durable or irreversible: the job is done
//! all the same, once, and paid.
//!
//! Each cell is the real program on a chain of its own pace: a job waits, the program starts with one failpoint armed, and is started
//! again where it ends. The tests run each point with `abort` and each other action once; `make failpoints` runs all of them with
//! FAILPOINTS_ALL, and FAILPOINTS_STALL says for how many seconds a stall lasts.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use fabstir::chain::Signer;
use fabstir::chain::call::Order;
use fabstir::config::Config;
use fabstir::content::Content;
use fabstir::failpoint::Point;
use fabstir::market::job::State;
use fabstir::market::types::{Address, JobId, U256};
use fabstir::node::Node;
use fabstir::renter::Renter;
use fabstir::store::{Entry, Store};
use serde_json::json;
use tokio::process::{Child, Command};

use crate::world::{QUESTION, WAIT_MAX, World, inferences_in, python, transactions_in};

/// Seconds, unless FAILPOINTS_STALL says.
const STALL: u64 = 3;
const ACTIONS: [&str; 4] = ["abort", "panic", "stall", "error"];
const LEGEND: &str = "\
yes  the point was reached and fired; the job was paid; each of its transactions is mined, once, with one set of bytes; the nonces
     have no gap; nothing is left open; one row says that the model ran. In brackets: how often the program was started, and
     how often the model ran where that is not once: only where its work was lost before the row that says so";

#[tokio::test(flavor = "multi_thread")]
async fn a_job_is_done_once_wherever_the_host_fails() -> Result<()> {
    let stage = Stage::new().await?;
    let all = std::env::var_os("FAILPOINTS_ALL").is_some();
    let only = std::env::var("FAILPOINTS_ONLY").unwrap_or_default();
    let stall: u64 = std::env::var("FAILPOINTS_STALL").map_or(Ok(STALL), |text| text.parse())?;
    let (mut table, mut wrong) = (String::new(), String::new());
    let (mut cells, mut failed) = (0, 0);
    let width = Point::ALL.map(|point| point.name().len()).into_iter().max().unwrap_or(0);
    let _ = writeln!(table, "{:width$}  {}", "point", ACTIONS.map(|action| format!("{action:16}")).concat());
    for point in Point::ALL {
        let _ = write!(table, "{:width$}  ", point.name());
        for action in ACTIONS {
            let wanted = all || action == "abort" || in_short(point, action);
            let shown = if wanted && point.name().contains(&only) {
                cells += 1;
                let begun = Instant::now();
                let what = if action == "stall" { format!("stall({stall})") } else { action.to_owned() };
                match stage.run(point, &what).await {
                    Ok(found) => format!("yes {:.0} s ({found})", begun.elapsed().as_secs_f32()),
                    Err(error) => {
                        failed += 1;
                        let _ = writeln!(wrong, "NOT {}={what}: {error:#}", point.name());
                        "NO".to_owned()
                    }
                }
            } else {
                "-".to_owned()
            };
            let _ = write!(table, "{shown:16}");
        }
        table.push('\n');
    }
    let summary = json!({ "cells": cells, "failed": failed });
    let report = format!("{table}{wrong}\n{LEGEND}\n{summary}\n");
    println!("{report}");
    if let Some(file) = std::env::var_os("FAILPOINTS_REPORT") {
        fs::write(file, &report)?;
    }
    ensure!(failed == 0, "{failed} cells failed:\n{report}");
    Ok(())
}

/// Whether a cell of another action than `abort` is run with every test.
fn in_short(point: Point, action: &str) -> bool {
    matches!(
        (point, action),
        (Point::AfterSend, "panic") | (Point::BeforeSend, "stall") | (Point::AfterInference, "error")
    )
}

/// How often the model may run for a job, at least and at most, when something happens at `point`: once. But a process that ends
/// while it runs takes the work along, and so does a failure between its end and the row that says so.
fn runs(point: Point, what: &str) -> (usize, usize) {
    let dies = ["abort", "panic"].contains(&what);
    match point {
        Point::AfterInference if dies || what == "error" => (2, 2),
        // These are reached while the model may be running.
        Point::AfterAdopt | Point::AfterSend | Point::BeforeSettle | Point::AfterSettle | Point::MidRewind if dies => {
            (1, 2)
        }
        _ => (1, 1),
    }
}

/// What all cells share: one chain, one host that is a process of its own, and a node that hears its receipts.
struct Stage {
    world: World,
    host: Signer,
    config: Config,
    file: PathBuf,
    renter: Renter,
    /// Kept for its ears.
    _listener: Node,
}

impl Stage {
    async fn new() -> Result<Stage> {
        let world = World::new().await?;
        let listener = world.observer("listener", None).await?;
        let host = world.account("host").await?;
        world.register(&host).await?;
        world.config("host", true, &world.devnet.rpc_url, &listener.p2p.listen_addresses())?;
        let file = world.folder.path().join("host.toml");
        // A stall is no reason to pay more for gas.
        let text = fs::read_to_string(&file)?.replace("margin_seconds", "bump_after_seconds = 3600\nmargin_seconds");
        fs::write(&file, text)?;
        let config = Config::load(&file)?;
        // As if each renter had delivered it.
        Content::open(&config.content())?.put(QUESTION.as_bytes())?;
        let renter = world.renter(&listener).await?;
        Ok(Stage { world, host, config, file, renter, _listener: listener })
    }

    /// Runs one cell. Returns how often the program was started, and how often the model ran where that is not once.
    async fn run(&self, point: Point, what: &str) -> Result<String> {
        let name = format!("{}-{what}", point.name());
        let path = |end: &str| self.world.folder.path().join(format!("{name}.{end}"));
        let (log, used) = (path("log"), path("used"));
        let first = self.world.chain.nonce(self.host.address()).await?;
        let job = self.post(point).await?;
        let mut foreign = BTreeSet::new();
        if point == Point::AfterAdopt {
            // What an earlier file of this host may have claimed.
            foreign.insert(self.world.chain.nonce(self.host.address()).await?);
            let claim = self.world.claim(job).await?;
            self.world.chain.transact(&self.host, &claim, WAIT_MAX).await?;
        }
        if point == Point::BetweenMigrations {
            for end in ["", "-wal", "-shm"] {
                let file = format!("{}{end}", self.config.database().display());
                if Path::new(&file).exists() {
                    fs::remove_file(file)?;
                }
            }
        }
        let arm = format!("{}={what}", point.name());
        let start = || -> Result<Child> {
            let log = File::options().create(true).append(true).open(&log)?;
            let mut command = Command::new(env!("CARGO_BIN_EXE_fabstir"));
            command.arg("-c").arg(&self.file).args(["--log", "info,fabstir::tasks::worker=debug", "run"]);
            command.env("FABSTIR_FAILPOINTS", &arm).env("FABSTIR_FAILPOINTS_USED", &used);
            command.env("FABSTIR_PYTHON", python()).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
            command.kill_on_drop(true).spawn().context("start the program")
        };
        let done = tokio::time::timeout(WAIT_MAX, self.until_done(point, job, &used, start)).await;
        let told = || {
            let text = fs::read_to_string(&log).unwrap_or_default();
            let lines: Vec<&str> = text.lines().rev().take(40).collect();
            format!("the program's last lines:\n{}", lines.into_iter().rev().collect::<Vec<_>>().join("\n"))
        };
        let ends = done.context("it was never done").and_then(|done| done).with_context(told)?;
        let check = async {
            ensure!(
                fs::read_to_string(&used).unwrap_or_default().trim() == arm,
                "the point was not reached, or fired more than once"
            );
            check_ends(point, what, &ends)?;
            let store = self.world.read(&self.config.database()).await?;
            self.check_once(&store, point, job).await?;
            self.check_nonces(&store, first, &foreign).await?;
            store.close().await;
            let model = format!("the model runs job={job}");
            let ran = fs::read_to_string(&log)?.lines().filter(|line| line.ends_with(&model)).count();
            let (least, most) = runs(point, what);
            ensure!((least..=most).contains(&ran), "the model ran {ran} times, not {least} to {most}");
            let ran = if ran == 1 { String::new() } else { format!(", {ran}") };
            Ok(format!("{}{ran}", ends.len()))
        };
        check.await.with_context(told)
    }

    async fn post(&self, point: Point) -> Result<JobId> {
        let order = self.world.order(Address::ZERO, U256::from(10_000_000), 3600);
        let order = Order { requires_proof: point == Point::AfterProof, ..order };
        Ok(self.renter.post(&order).await?.job)
    }

    /// Starts the program, and again whenever it ends, until the job is paid, its receipt is out and nothing is left to do; then stops
    /// it. Returns how each process ended.
    async fn until_done(
        &self,
        point: Point,
        job: JobId,
        used: &Path,
        start: impl Fn() -> Result<Child>,
    ) -> Result<Vec<ExitStatus>> {
        let (mut ends, mut program) = (Vec::new(), start()?);
        let mut reorged = false;
        loop {
            tokio::time::sleep(Duration::from_millis(100)).await;
            if let Some(ended) = program.try_wait()? {
                ends.push(ended);
                ensure!(ends.len() < 3, "it ended again and again: {ends:?}");
                program = start()?;
            }
            // Not there, or not whole, before the program made it.
            let Ok(store) = self.world.read(&self.config.database()).await else { continue };
            if point == Point::MidRewind && !reorged && self.is_under_way(&store, job).await? {
                reorged = true;
                // Anvil loses a block for good where it mines one while it reorganises.
                self.world.freeze(false).await?;
                // What it has not read yet is nothing that it would take back.
                self.world.caught_up(&store).await?;
                self.world.devnet.rpc("anvil_reorg", json!([2, []])).await?;
                self.world.freeze(true).await?;
                self.world.flow();
            }
            let done = used.exists() && self.is_done(&store, job).await?;
            store.close().await;
            if done {
                break;
            }
        }
        let pid = program.id().and_then(|id| rustix::process::Pid::from_raw(id as i32)).context("it runs")?;
        rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
        let ended = program.wait().await?;
        ensure!(ended.success(), "it did not stop in order: {ended}");
        ends.push(ended);
        Ok(ends)
    }

    /// Whether a short reorg now takes away something of ours, and the job not with it.
    async fn is_under_way(&self, store: &Store, job: JobId) -> Result<bool> {
        let Some(job) = store.job(job).await? else { return Ok(false) };
        Ok(job.state != State::Posted && self.world.chain.head().await?.block.number > job.posted.number + 2)
    }

    async fn is_done(&self, store: &Store, job: JobId) -> Result<bool> {
        let paid =
            store.job(job).await?.is_some_and(|job| job.announced && matches!(job.state, State::Released { .. }));
        Ok(paid && store.open_intents(self.host.address()).await? == 0 && store.reservations().await?.is_empty())
    }

    async fn check_once(&self, store: &Store, point: Point, job: JobId) -> Result<()> {
        let rows = inferences_in(store, job).await?;
        ensure!(rows == 1, "{rows} rows say that the model ran");
        let kinds: &[&str] = match point {
            Point::AfterAdopt => &["commit", "complete", "release"],
            _ => &["claim", "commit", "complete", "release"],
        };
        for kind in kinds {
            let all = transactions_in(store, job, kind).await?;
            let signed: Vec<_> = all.iter().filter(|tx| tx.state != "dropped").collect();
            let once = matches!(signed[..], [tx] if tx.state == "mined" && tx.hashes.len() == 1);
            ensure!(once, "{kind} is not mined once: {all:?}");
        }
        Ok(())
    }

    /// Every nonce from `first` up to the chain's is one intent's, or was used from elsewhere.
    async fn check_nonces(&self, store: &Store, first: u64, foreign: &BTreeSet<u64>) -> Result<()> {
        let next = self.world.chain.nonce(self.host.address()).await?;
        let nonces = store.transactions(None).await?.into_iter().filter_map(|entry| match entry {
            Entry::Transaction { nonce, .. } => nonce,
            _ => None,
        });
        let mut nonces: Vec<u64> = nonces.filter(|nonce| *nonce >= first).chain(foreign.iter().copied()).collect();
        nonces.sort();
        ensure!(nonces == (first..next).collect::<Vec<_>>(), "nonces {nonces:?} where {first} to {next} were expected");
        Ok(())
    }
}

/// A process that is killed ended by the signal; one that panicked may go on or end; all others go on. But a start that fails ends.
fn check_ends(point: Point, what: &str, ends: &[ExitStatus]) -> Result<()> {
    let fine = match what {
        "abort" => ends.len() == 2 && ends[0].signal() == Some(rustix::process::Signal::ABORT.as_raw()),
        "panic" => ends.len() == 1 || (ends.len() == 2 && ends[0].code().is_some_and(|code| code != 0)),
        "error" if point == Point::BetweenMigrations => ends.len() == 2 && ends[0].code().is_some_and(|code| code != 0),
        _ => ends.len() == 1,
    };
    ensure!(fine, "it ended otherwise than expected: {ends:?}");
    Ok(())
}
