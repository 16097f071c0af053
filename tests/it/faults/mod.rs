//! What the indexer does when its endpoint lies, lags or breaks, or the process is killed, as one table.
//!
//! The real indexer reads a real chain through a [`Proxy`] that does the harm; what its database must say is what one says that
//! was filled without it. `make faults` prints the table; the test fails when a cell does.

mod chains;
mod kill;
mod proxy;
mod table;

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, ensure};
use fabstir::audit;
use fabstir::chain::{Chain, Endpoints};
use fabstir::devnet;
use fabstir::http::{Health, Metrics};
use fabstir::market::coverage::Coverage;
use fabstir::store::{Entry, Store};
use fabstir::tasks::indexer::{self, Indexer, Prove, Settings};
use fabstir::tasks::{Pass, Task};
use futures::{StreamExt, TryStreamExt, stream};
use serde_json::json;

use chains::{Chains, Fork, Truth};
pub use proxy::{Proxy, Reply, When};
use table::TABLE;

/// Blocks that come one by one after the catching up.
const FOLLOWED: u64 = 8;
/// Blocks of one step, so that a catch-up takes several.
const STEP: u64 = 20;
/// Passes after which an indexer that neither rests nor fails is stopped.
const PASSES_MAX: u32 = 60;
/// Failed passes in a row after which a fault is left to itself.
const PATIENCE: u32 = 6;
/// The same after the fault: longer than an endpoint is let alone that failed.
const PATIENCE_AFTER: u32 = 200;
/// How long blocks that could not be proven are let be.
const DOUBT_AGAIN: Duration = Duration::from_secs(5);
/// How often, after the fault, blocks that are not proven yet are waited for.
const ROUNDS_AFTER: u32 = 30;
/// Between a failed pass and the next.
const PAUSE: Duration = Duration::from_millis(200);
/// The longest that an answer may take.
const TIMEOUT: Duration = Duration::from_secs(8);
/// Rows worked on at once.
const AT_ONCE: usize = 8;

const LEGEND: &str = "\
right      what is held as proven is the chain's, under the fault; all of it, where all of it is proven
once       no block, log, event of a job or job is there twice, under the fault and after it
detected   the operator can tell: a failed pass, a block that is marked as not proven, a violated finality, a rewind.
           unharmed: the indexer saw through it and has everything up to the head that it was told, proven; or it got
           through, with failed passes or corrections
           corrected: a proof showed that the endpoint's word had been wrong, and the database was put right
           not asked: the indexer never asks what the fault is in
recovered  once the fault is over, the same process has all blocks, logs and jobs of the chain within a few passes, every
           block proven, and an audit at the true chain finds nothing";

struct Row {
    name: &'static str,
    /// What the operator reads, at least one of them; or `unharmed`, `rewound`, `not asked`.
    says: &'static [&'static str],
    course: Course,
}

enum Course {
    /// The rules hold while the indexer catches up and then follows block by block.
    Rules(fn(&Chains, &Proxy)),
    /// The same, and the process is started again when it is over.
    RulesUntilRestart(fn(&Chains, &Proxy)),
    /// The same for one of two endpoints, the one that is asked first; the other is honest.
    OneOfTwo(fn(&Chains, &Proxy)),
    /// The endpoint turns to a fork after everything was read, and back.
    Fork(fn(&Chains) -> &Fork),
    /// The endpoint turns to a fork before each of the requests of a catch-up in turn, and back after it.
    ForkAnywhere(fn(&Chains) -> &Fork),
    /// The endpoint turns to a chain that must not be followed, after everything was read.
    Stranger(fn(&Chains) -> &str),
    /// The same in the middle of the catching up.
    StrangerMidway(fn(&Chains) -> &str),
    /// It has the other chain when the indexer starts.
    StrangerFirst(fn(&Chains) -> &str),
    /// The program is killed again and again.
    Kills,
}

#[tokio::test(flavor = "multi_thread")]
async fn faults() -> Result<()> {
    let chains = Arc::new(Chains::new().await?);
    let only = std::env::var("FAULTS_ONLY").unwrap_or_default();
    // The last rows take longest.
    let rows = TABLE.iter().enumerate().rev().filter(|(_, row)| row.name.contains(&only)).map(|(place, row)| {
        let chains = chains.clone();
        let judged = tokio::spawn(async move { row.judge(&chains).await });
        async move { anyhow::Ok((place, judged.await?)) }
    });
    let mut lines: Vec<(usize, Line)> = stream::iter(rows).buffer_unordered(AT_ONCE).try_collect().await?;
    lines.sort_by_key(|(place, _)| *place);
    let lines: Vec<Line> = lines.into_iter().map(|(_, line)| line).collect();
    let failed = lines.iter().flat_map(|line| &line.cells).filter(|cell| cell.is_err()).count();
    let summary = json!({ "cells": lines.len() * 4, "failed": failed });
    let table = table(&lines);
    println!("{table}");
    if let Some(file) = std::env::var_os("FAULTS_REPORT") {
        std::fs::write(file, format!("{table}{summary}\n"))?;
    }
    ensure!(failed == 0, "{failed} cells failed:\n{table}");
    Ok(())
}

/// Why not, where not.
type Cell = Result<(), String>;

/// A row of the answer.
struct Line {
    name: &'static str,
    /// Right, once, detected and recovered.
    cells: [Cell; 4],
    /// What the operator sees.
    seen: String,
}

fn table(lines: &[Line]) -> String {
    let mut text = String::new();
    let width = lines.iter().map(|line| line.name.len()).max().unwrap_or(0);
    let heads = ["right", "once", "detected", "recovered"];
    let _ = writeln!(text, "{:width$}  {}  what the operator sees", "fault", heads.join("  "));
    for line in lines {
        let _ = write!(text, "{:width$}  ", line.name);
        for (head, cell) in heads.iter().zip(&line.cells) {
            let _ = write!(text, "{:1$}  ", if cell.is_ok() { "yes" } else { "NO" }, head.len());
        }
        let _ = writeln!(text, "{}", line.seen.chars().take(110).collect::<String>());
    }
    for line in lines {
        for (head, cell) in heads.iter().zip(&line.cells) {
            if let Err(why) = cell {
                let _ = writeln!(text, "NOT {head}: {}: {why}", line.name);
            }
        }
    }
    let _ = writeln!(text, "\n{LEGEND}");
    text
}

/// An indexer that is driven by hand, and what it complained of.
struct Index {
    indexer: Indexer,
    store: Store,
    health: Health,
    metrics: Metrics,
    errors: Vec<String>,
}

impl Index {
    /// The indexer with the parts `fabstir index` gives it, for blocks from `start_block` on.
    async fn new(chain: Chain, file: &Path, start_block: u64, blocks_per_step: u64, prove: Prove) -> Result<Index> {
        let marketplace = chain.contracts().job_marketplace;
        let store = Store::open(file, chain.id(), marketplace, Arc::new(chain.decoder())).await?;
        let (health, metrics) = (Health::default(), Metrics::new());
        health.expect(indexer::PART, Duration::from_secs(3600));
        let settings = Settings { start_block, prove, finality_depth: 0, blocks_per_step, doubt_again: DOUBT_AGAIN };
        let indexer = Indexer::new(chain, store.clone(), health.clone(), metrics.clone(), settings);
        Ok(Index { indexer, store, health, metrics, errors: Vec::new() })
    }

    /// One of the table's chains that reads through these proxies into that file.
    async fn at(chains: &Chains, proxies: &[&Proxy], file: &Path, blocks_per_step: u64) -> Result<Index> {
        let urls = proxies.iter().map(|proxy| proxy.url.clone()).collect();
        let endpoints = Endpoints { urls, requests_per_second: 0, timeout: TIMEOUT };
        let chain = Chain::unchecked(endpoints, devnet::CHAIN_ID, chains.world.book.contracts.clone())?;
        Index::new(chain, file, chains.world.book.block, blocks_per_step, Prove::Live).await
    }

    /// Lets it pass until it rests, or failed more than `patience` times in a row.
    async fn drive(&mut self, patience: u32) {
        self.pass(PASSES_MAX + patience, patience).await;
    }

    /// After a fault: the same, until every block is proven, for as long as an endpoint or a block may be let be.
    async fn recover(&mut self) -> Result<()> {
        for _ in 0..ROUNDS_AFTER {
            self.drive(PATIENCE_AFTER).await;
            if self.store.coverage().await?.iter().all(|range| range.level.is_proven()) {
                break;
            }
            tokio::time::sleep(DOUBT_AGAIN / 10).await;
        }
        Ok(())
    }

    async fn pass(&mut self, most: u32, patience: u32) {
        let mut failed = 0;
        for _ in 0..most {
            match self.indexer.pass().await {
                Ok(Pass::Idle) => return,
                Ok(Pass::Again) => failed = 0,
                Err(error) => {
                    let error = format!("{error:#}");
                    if self.errors.last() != Some(&error) {
                        self.errors.push(error);
                    }
                    failed += 1;
                    if failed > patience {
                        return;
                    }
                    // As the task is repeated: an endpoint may have to be let alone for a while.
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }

    /// Everything that the operator can read, worst first.
    async fn signs(&self, proxy: &Proxy) -> Result<Vec<String>> {
        let store = &self.store;
        let mut signs = Vec::new();
        signs.extend(store.finality().await?.and_then(|finality| finality.violated));
        let mut unproven = store.coverage().await?;
        unproven.retain(|range| !range.level.is_proven());
        let proven = unproven.is_empty();
        let told = |range: Coverage| format!("{}: {}", range.level.name(), range.reason.unwrap_or_default());
        signs.extend(unproven.into_iter().map(told));
        signs.extend(store.conflicts().await?.into_iter().map(|(job, what)| format!("conflict: job {job}: {what}")));
        signs.extend(self.errors.iter().map(|error| format!("error: {error}")));
        let reorgs = self.metrics.reorgs.get();
        signs.extend((reorgs > 0).then(|| format!("rewound {reorgs} times")));
        let corrected = self.metrics.corrected_blocks.get();
        signs.extend((corrected > 0).then(|| format!("corrected {corrected} blocks")));
        let at_head = store.cursor().await?.is_some_and(|cursor| cursor.number >= proxy.head());
        let well = at_head && proven && self.health.is_well(indexer::PART);
        signs.push(match (proxy.met(), well, signs.first()) {
            (0, _, _) => "not asked".into(),
            (_, true, None) => "unharmed".into(),
            (_, true, Some(first)) => format!("got through, with {first}"),
            (_, false, _) => "not at the head, or not all proven".into(),
        });
        Ok(signs)
    }
}

/// What became of one row, before the operator's view is judged.
struct Found {
    right: Cell,
    once: Cell,
    /// Everything that the operator can read.
    signs: Vec<String>,
    recovered: Cell,
}

impl Row {
    async fn judge(&self, chains: &Chains) -> Line {
        let failed = |error: anyhow::Error| {
            let why = || Err(format!("{error:#}"));
            Found { right: why(), once: why(), signs: Vec::new(), recovered: why() }
        };
        let Found { right, once, signs, recovered } = self.run(chains).await.unwrap_or_else(failed);
        let expected = signs.iter().find(|sign| self.says.iter().any(|word| sign.contains(word)));
        let seen = expected.or(signs.first()).cloned().unwrap_or_default();
        let wanted = || format!("it should say one of {:?}, it says {signs:?}", self.says);
        let detected = expected.map(|_| ()).ok_or_else(wanted);
        Line { name: self.name, cells: [right, once, detected, recovered], seen }
    }

    async fn run(&self, chains: &Chains) -> Result<Found> {
        let folder = tempfile::tempdir()?;
        let file = folder.path().join("node.sqlite");
        match self.course {
            Course::Rules(rules) => under_rules(chains, rules, Besides::Nothing, &file).await,
            Course::RulesUntilRestart(rules) => under_rules(chains, rules, Besides::Restart, &file).await,
            Course::OneOfTwo(rules) => under_rules(chains, rules, Besides::Honest, &file).await,
            Course::Fork(fork) => at_a_fork(chains, fork(chains), &file).await,
            Course::ForkAnywhere(fork) => at_a_fork_anywhere(chains, fork(chains), &file).await,
            Course::Stranger(url) => at_a_stranger(chains, url(chains), PASSES_MAX, &file).await,
            Course::StrangerMidway(url) => at_a_stranger(chains, url(chains), 3, &file).await,
            Course::StrangerFirst(url) => at_a_stranger_first(chains, url(chains), &file).await,
            Course::Kills => kill::run(chains).await,
        }
    }
}

#[derive(PartialEq, Eq)]
enum Besides {
    Nothing,
    Restart,
    /// A second endpoint.
    Honest,
}

async fn under_rules(chains: &Chains, rules: fn(&Chains, &Proxy), besides: Besides, file: &Path) -> Result<Found> {
    let (proxy, honest) = (Proxy::start(&chains.main.url).await?, Proxy::start(&chains.main.url).await?);
    let all = [&proxy, &honest];
    let proxies = if besides == Besides::Honest { &all[..] } else { &all[..1] };
    let mut index = Index::at(chains, proxies, file, STEP).await?;
    let show = |number| proxies.iter().for_each(|proxy| proxy.show(number));
    let head = chains.main.head();
    show(head - FOLLOWED);
    rules(chains, &proxy);
    index.drive(PATIENCE).await;
    for number in head - FOLLOWED + 1..=head {
        show(number);
        index.drive(1).await;
    }
    let signs = index.signs(&proxy).await?;
    let forks = chains.forks.iter().map(|fork| &fork.truth);
    let known: Vec<&Truth> = forks.chain([&chains.main.truth, &chains.sibling.truth]).collect();
    let (right, once) = (check_right(&index, &known).await?, check_once(&index).await?);
    proxy.pass();
    if besides == Besides::Restart {
        index.store.close().await;
        index = Index::at(chains, proxies, file, STEP).await?;
    }
    index.recover().await?;
    Ok(Found {
        right,
        once: once.and(check_once(&index).await?),
        signs,
        recovered: check_recovered(&index, chains).await?,
    })
}

async fn at_a_fork(chains: &Chains, fork: &Fork, file: &Path) -> Result<Found> {
    let proxy = Proxy::start(&chains.main.url).await?;
    proxy.show(chains.from);
    let mut index = Index::at(chains, &[&proxy], file, STEP).await?;
    index.drive(0).await;
    proxy.show(u64::MAX);
    proxy.turn_to(&fork.url);
    index.drive(PATIENCE).await;
    let signs = index.signs(&proxy).await?;
    let (right, once) = (check_whole(&index, &fork.truth).await?, check_once(&index).await?);
    proxy.turn_to(&chains.main.url);
    index.recover().await?;
    Ok(Found {
        right,
        once: once.and(check_once(&index).await?),
        signs,
        recovered: check_recovered(&index, chains).await?,
    })
}

async fn at_a_fork_anywhere(chains: &Chains, fork: &Fork, file: &Path) -> Result<Found> {
    const BEFORE: u64 = 9;
    let proxy = Proxy::start(&chains.main.url).await?;
    proxy.show(chains.from - BEFORE);
    let mut index = Index::at(chains, &[&proxy], file, STEP).await?;
    index.drive(0).await;
    index.store.close().await;
    let (mut right, mut once, mut recovered) = (Ok(()), Ok(()), Ok(()));
    let (mut rewound, mut requests) = (0, 0);
    loop {
        let proxy = Proxy::start(&chains.main.url).await?;
        proxy.show(chains.from);
        proxy.share(When::After(requests), &fork.url);
        let copy = file.with_file_name(format!("{requests}.sqlite"));
        std::fs::copy(file, &copy)?;
        let mut index = Index::at(chains, &[&proxy], &copy, BEFORE / 3).await?;
        index.drive(PATIENCE).await;
        if proxy.met() == 0 {
            break;
        }
        let at = |cell: Cell| cell.map_err(|why| format!("at request {requests}: {why}"));
        rewound += u64::from(index.metrics.reorgs.get() > 0);
        right = right.and(at(check_whole(&index, &fork.truth).await?));
        once = once.and(at(check_once(&index).await?));
        proxy.pass();
        proxy.show(u64::MAX);
        index.recover().await?;
        once = once.and(at(check_once(&index).await?));
        recovered = recovered.and(at(check_whole(&index, &chains.main.truth).await?));
        index.store.close().await;
        requests += 1;
    }
    let sign =
        if rewound == 0 { "never noticed".into() } else { format!("rewound at {rewound} of {requests} requests") };
    Ok(Found { right, once, signs: vec![sign], recovered })
}

async fn at_a_stranger(chains: &Chains, url: &str, passes: u32, file: &Path) -> Result<Found> {
    let proxy = Proxy::start(&chains.main.url).await?;
    let mut index = Index::at(chains, &[&proxy], file, STEP).await?;
    index.pass(passes, 0).await;
    let held = Truth::read(&index.store).await?;
    proxy.turn_to(url);
    index.drive(PATIENCE).await;
    let signs = index.signs(&proxy).await?;
    let (right, once) = (check_whole(&index, &held).await?, check_once(&index).await?);
    proxy.turn_to(&chains.main.url);
    index.recover().await?;
    Ok(Found {
        right,
        once: once.and(check_once(&index).await?),
        signs,
        recovered: check_recovered(&index, chains).await?,
    })
}

async fn at_a_stranger_first(chains: &Chains, url: &str, file: &Path) -> Result<Found> {
    let proxy = Proxy::start(url).await?;
    let connect = async || Chain::connect(&proxy.url, devnet::CHAIN_ID, chains.world.book.contracts.clone()).await;
    let (right, sign) = match connect().await {
        Ok(_) => (Err("it was taken for the right one".to_owned()), "nothing".into()),
        Err(error) => (Ok(()), format!("refused to start: {error:#}")),
    };
    proxy.turn_to(&chains.main.url);
    let mut index = Index::new(connect().await?, file, chains.world.book.block, STEP, Prove::Live).await?;
    index.drive(0).await;
    let (once, recovered) = (check_once(&index).await?, check_recovered(&index, chains).await?);
    Ok(Found { right, once, signs: vec![sign], recovered })
}

/// Whether each block that is held as proven is one of a known chain, with exactly its logs; and all of it, where every block is proven up to
/// a known head.
async fn check_right(index: &Index, known: &[&Truth]) -> Result<Cell> {
    let store = &index.store;
    let held = Truth::read(store).await?;
    let coverage = store.coverage().await?;
    for range in coverage.iter().filter(|range| range.level.is_proven()) {
        for number in range.from..=range.to {
            let logs = |truth: &Truth| -> Vec<_> {
                truth.logs.iter().filter(|log| log.block.number == number).cloned().collect()
            };
            let header = held.headers.iter().find(|header| header.block.number == number);
            let has_it = |truth: &&&Truth| header.is_none_or(|header| truth.headers.contains(header));
            let mine = logs(&held);
            if !known.iter().filter(has_it).any(|truth| logs(truth) == mine) {
                return Ok(Err(format!("block {number} is held as proven, and no chain has it so")));
            }
        }
    }
    let all = coverage.iter().all(|range| range.level.is_proven());
    let at_head = known.iter().find(|truth| all && truth.headers.last() == held.headers.last());
    Ok(at_head.map_or(Ok(()), |truth| truth.same(&held)))
}

/// Whether the database is what one says that was filled from that chain without a proxy.
async fn check_whole(index: &Index, truth: &Truth) -> Result<Cell> {
    Ok(truth.same(&Truth::read(&index.store).await?))
}

/// Whether nothing is there twice.
async fn check_once(index: &Index) -> Result<Cell> {
    let store = &index.store;
    let held = Truth::read(store).await?;
    let twice = |what: &str, count: usize, different: usize| {
        if count == different { Ok(()) } else { Err(format!("{count} {what}, {different} of them different")) }
    };
    let blocks: BTreeSet<_> = held.headers.iter().map(|header| header.block.number).collect();
    let logs: BTreeSet<_> = held.logs.iter().map(|log| (log.block.number, log.index)).collect();
    let jobs: BTreeSet<_> = held.jobs.iter().map(|job| job.id).collect();
    let mut result = twice("blocks", held.headers.len(), blocks.len())
        .and(twice("logs", held.logs.len(), logs.len()))
        .and(twice("logs counted", held.events as usize, logs.len()))
        .and(twice("jobs", held.jobs.len(), jobs.len()));
    for job in jobs {
        let mut events = BTreeSet::new();
        for entry in store.timeline(job).await?.entries {
            if let Entry::Event { block, tx, name, time, .. } = entry
                && !events.insert((time, block, tx, name.clone()))
            {
                result = result.and(Err(format!("{name} of job {job} in block {block} is there twice")));
            }
        }
    }
    Ok(result)
}

/// Whether all is as if nothing had happened: blocks, logs, jobs, proofs, health, and an audit at the true chain.
async fn check_recovered(index: &Index, chains: &Chains) -> Result<Cell> {
    let store = &index.store;
    let same = check_whole(index, &chains.main.truth).await?;
    let last = index.errors.last().map(|error| format!(" (an error: {error})")).unwrap_or_default();
    if let Err(why) = same {
        return Ok(Err(why + &last));
    }
    if let Some(range) = store.coverage().await?.iter().find(|range| !range.level.is_proven()) {
        return Ok(Err(format!(
            "{}..={} is {} for ever: {:?}",
            range.from,
            range.to,
            range.level.name(),
            range.reason
        )));
    }
    let problems = index.health.problems();
    if !problems.is_empty() {
        return Ok(Err(format!("still ill: {problems:?}")));
    }
    let report = audit::run(store, &chains.world.chain, |_, _| ()).await?;
    if !report.divergences.is_empty() || report.proven != report.blocks {
        return Ok(Err(format!("the audit: {report:?}")));
    }
    Ok(Ok(()))
}
