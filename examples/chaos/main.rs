//! The chaos run: two rival hosts, killed at random, on a chain that reorganises, behind endpoints that fail; then what must hold is
//! checked to the wei.
//!
//! `make chaos KILLS=100 REORGS=50 SEED=1` runs it. The program, anvil, the contracts, SQLite and the model are the real ones. What
//! happens and when follows from the seed; how the processes take it does not. Progress goes to standard error, and last one JSON
//! object on one line to standard output. The exit code is 0 only when nothing at all was wrong.
//!
//! - `lost`: claims of our hosts that were neither done nor given up, although there was time
//! - `duplicated`: model runs, claims and completions beyond the one there may be
//! - `nonce_gaps`: nonces of our hosts without a settled transaction of theirs
//! - `wei_off`: how far the hosts' books are from the chain, all differences summed
//! - `outputs_wrong`: outputs on chain that are not what the model gives to that very order
//!
//! Besides: no job is chosen while all slots are taken, looked at twice a second; each projection equals its own rebuild, the chain, and
//! one made from the first block; no transaction waits past its deadline; the files are whole.
//!
//! With `--renumber`, reorgs also give jobs' numbers to other orders, so that what was signed for the order before meets the one after.
//! Claims and commitments name what they are for, and the same must hold.

mod endpoint;
mod facts;
mod host;
mod market;
#[path = "../../tests/it/faults/proxy.rs"]
#[allow(dead_code)]
mod proxy;
mod verdict;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;
use fabstir::chain::call::Order;
use fabstir::market::types::{Address, B256, Cid, U256};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde::Serialize;
use serde_json::json;

use facts::{Fate, fates};
use host::Host;
use market::{Market, Renter};
use verdict::{Ordered, Slots, Verdict};

/// Hot, so that outputs differ by job and seed.
pub const TEMPERATURE_MILLI: u32 = 1000;
const DEPTH_MAX: u64 = 32;
const HOST_NAMES: [&str; 2] = ["anna", "bert"];
const RENTERS: usize = 2;
/// Blocks before the first reorg, so that none reaches the hosts' registration.
const QUIET_BLOCKS: u64 = DEPTH_MAX + 8;
const LONG_SECONDS: u64 = 3600;
/// How long a host stays down, and an endpoint lies about the head.
const DOWN_MS_MAX: u64 = 2000;
const LIE_MS: std::ops::Range<u64> = 1000..6000;
const LIE_BLOCKS_MAX: u64 = 6;
/// Of ten jobs, so many have a deadline that may well be missed.
const HURRIED: u32 = 2;
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// What no host claimed is cancelled after this.
const CANCEL_AFTER: Duration = Duration::from_secs(30);

#[derive(Debug, Parser)]
struct Arguments {
    /// How often a host is killed.
    #[arg(long, default_value_t = 100)]
    kills: u64,
    /// How often the newest 1 to 32 blocks are replaced.
    #[arg(long, default_value_t = 50)]
    reorgs: u64,
    /// What the schedule follows from.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Jobs posted.
    #[arg(long, default_value_t = 100)]
    jobs: u64,
    /// Of these, jobs that ask for a proof; each takes a core for seconds.
    #[arg(long, default_value_t = 4)]
    proofs: u64,
    /// How long the faults go on; by default as long as so many take.
    #[arg(long)]
    seconds: Option<u64>,
    /// How long all may take to come to rest after that.
    #[arg(long, default_value_t = 1500)]
    rest_seconds: u64,
    /// Two renters post, and reorgs change the order of what they posted: a job's number may come to mean another's order.
    #[arg(long)]
    renumber: bool,
    /// The program; default: `debug/fabstir` in the target folder.
    #[arg(long, value_name = "FILE")]
    fabstir: Option<PathBuf>,
    /// The contracts' folder, built.
    #[arg(long, default_value = "contracts", value_name = "DIR")]
    contracts: PathBuf,
    /// Where files and logs go and stay; by default they are removed.
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

/// What is printed last, in this order.
#[derive(Debug, Serialize)]
struct Report {
    kills: u64,
    reorgs: u64,
    jobs: usize,
    lost: u64,
    duplicated: u64,
    nonce_gaps: u64,
    wei_off: u128,
    outputs_wrong: u64,
}

/// What happens at a moment of the run.
#[derive(Debug, Clone)]
enum Act {
    Kill(usize),
    Start(usize),
    Reorg(u64),
    Post { renter: usize, number: u64, proof: bool, seconds: u64 },
    Hide { host: usize, blocks: u64 },
    Show(usize),
}

/// What happens, by milliseconds since the beginning.
type Schedule = BTreeMap<(u64, u64), Act>;

#[tokio::main]
async fn main() -> ExitCode {
    match run(&Arguments::parse()).await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("chaos: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(arguments: &Arguments) -> Result<bool> {
    let program = match &arguments.fabstir {
        Some(file) => file.clone(),
        None => target()?.join("debug/fabstir"),
    };
    ensure!(
        program.exists(),
        "no program at {}: run `cargo build --bin fabstir`, or name one with --fabstir",
        program.display()
    );
    let program = std::path::absolute(program)?;
    let mut chaos = Chaos::new(arguments, &program).await?;
    let seconds =
        arguments.seconds.unwrap_or(60.max(4 * arguments.kills).max(8 * arguments.reorgs).max(3 * arguments.jobs));
    eprintln!(
        "{} kills, {} reorgs, {} jobs within {seconds} s, seed {}; logs in {}",
        arguments.kills,
        arguments.reorgs,
        arguments.jobs,
        arguments.seed,
        chaos.market.folder.display()
    );
    let began = Instant::now();
    chaos.rage(schedule(arguments, seconds)).await?;
    eprintln!("{:.0} s: no more faults", began.elapsed().as_secs_f64());
    let rested = chaos.rest(Duration::from_secs(arguments.rest_seconds)).await;
    eprintln!("{:.0} s: at rest", began.elapsed().as_secs_f64());
    let mut verdict = Verdict { wrong: std::mem::take(&mut chaos.seen), ..Verdict::default() };
    if let Err(error) = rested {
        verdict.wrong.push(format!("not at rest: {error:#}"));
    }
    let jobs = chaos.judge(&mut verdict).await?;
    for what in &verdict.wrong {
        eprintln!("WRONG: {what}");
    }
    let report = Report {
        kills: chaos.kills,
        reorgs: chaos.reorgs,
        jobs,
        lost: verdict.lost,
        duplicated: verdict.duplicated,
        nonce_gaps: verdict.nonce_gaps,
        wei_off: verdict.wei_off.saturating_to(),
        outputs_wrong: verdict.outputs_wrong,
    };
    eprintln!("{:.0} s in all", began.elapsed().as_secs_f64());
    println!("{}", serde_json::to_string(&report)?);
    Ok(verdict.wrong.is_empty())
}

/// Returns the folder of cargo's builds, in which this program lies.
fn target() -> Result<PathBuf> {
    let own = std::env::current_exe()?;
    own.ancestors().nth(3).map(Path::to_owned).with_context(|| format!("no target folder above {}", own.display()))
}

/// Draws what happens and when.
fn schedule(arguments: &Arguments, seconds: u64) -> Schedule {
    let mut dice = StdRng::seed_from_u64(arguments.seed);
    let (mut schedule, span) = (Schedule::new(), seconds * 1000);
    // One account's transactions keep their order.
    let renters = if arguments.renumber { RENTERS } else { 1 };
    let mut add = |at: u64, act: Act| {
        let number = schedule.len() as u64;
        schedule.insert((at, number), act);
    };
    let proofs: HashSet<u64> =
        rand::seq::index::sample(&mut dice, arguments.jobs as usize, arguments.proofs.min(arguments.jobs) as usize)
            .into_iter()
            .map(|number| number as u64)
            .collect();
    for number in 0..arguments.jobs {
        let hurried = dice.gen_range(0..10) < HURRIED && !proofs.contains(&number);
        let seconds = if hurried { dice.gen_range(30..60) } else { LONG_SECONDS };
        let (renter, proof) = (dice.gen_range(0..renters), proofs.contains(&number));
        add(dice.gen_range(0..span * 9 / 10), Act::Post { renter, number, proof, seconds });
    }
    for _ in 0..arguments.reorgs {
        add(dice.gen_range(span / 20..span), Act::Reorg(dice.gen_range(1..=DEPTH_MAX)));
    }
    for _ in 0..arguments.kills {
        add(dice.gen_range(span / 20..span), Act::Kill(dice.gen_range(0..HOST_NAMES.len())));
    }
    for host in 0..HOST_NAMES.len() {
        let mut at = dice.gen_range(0..20_000);
        while at < span {
            let until = at + dice.gen_range(LIE_MS);
            add(at, Act::Hide { host, blocks: dice.gen_range(1..=LIE_BLOCKS_MAX) });
            add(until, Act::Show(host));
            at = until + dice.gen_range(0..20_000);
        }
    }
    schedule
}

/// Everything that takes part.
struct Chaos {
    market: Market,
    hosts: Vec<Host>,
    fresh: Host,
    renters: Vec<Renter>,
    orders: HashMap<B256, Ordered>,
    dice: StdRng,
    renumber: bool,
    kills: u64,
    reorgs: u64,
    /// What was wrong during the run.
    seen: Vec<String>,
    slots: [Slots; HOST_NAMES.len()],
    looked: Instant,
}

impl Chaos {
    async fn new(arguments: &Arguments, program: &Path) -> Result<Self> {
        let mut market = Market::new(&arguments.contracts, arguments.dir.as_deref()).await?;
        let mut hosts = Vec::new();
        for (number, name) in HOST_NAMES.into_iter().enumerate() {
            hosts.push(Host::new(&market, name, program, arguments.seed + 1 + number as u64).await?);
        }
        let fresh = Host::reader(&market, "genesis", program).await?;
        let mut renters = Vec::new();
        for number in 0..RENTERS {
            renters.push(market.renter(&format!("renter-{number}")).await?);
        }
        market.rpc("anvil_mine", json!([format!("{QUIET_BLOCKS:#x}")])).await?;
        market.flow().await?;
        for host in &mut hosts {
            host.start()?;
        }
        let dice = StdRng::seed_from_u64(arguments.seed ^ u64::MAX);
        let (renumber, slots) = (arguments.renumber, Default::default());
        let (orders, seen, looked) = (HashMap::new(), Vec::new(), Instant::now());
        Ok(Self { market, hosts, fresh, renters, orders, dice, renumber, kills: 0, reorgs: 0, seen, slots, looked })
    }

    /// Lets it all happen.
    async fn rage(&mut self, mut schedule: Schedule) -> Result<()> {
        self.hosts.iter().for_each(|host| host.endpoint.fail(true));
        let began = Instant::now();
        let (mut told, mut later) = (Instant::now(), schedule.len() as u64);
        while let Some(((at, _), act)) = schedule.pop_first() {
            while (began.elapsed().as_millis() as u64) < at {
                tokio::time::sleep(Duration::from_millis(20)).await;
                self.look().await?;
            }
            let now = began.elapsed().as_millis() as u64;
            match act {
                Act::Kill(host) => {
                    let other = (host + 1) % self.hosts.len();
                    let victim = match (self.hosts[host].runs()?, self.hosts[other].runs()?) {
                        (true, _) => host,
                        (false, true) => other,
                        // Both are down: as soon as one is not.
                        (false, false) => {
                            later += 1;
                            schedule.insert((now + 500, later), Act::Kill(host));
                            continue;
                        }
                    };
                    self.kills += u64::from(self.hosts[victim].kill().await?);
                    let down = self.dice.gen_range(0..DOWN_MS_MAX);
                    later += 1;
                    schedule.insert((now + down, later), Act::Start(victim));
                }
                Act::Start(host) => self.hosts[host].start()?,
                Act::Reorg(depth) => {
                    self.market.reorg(depth, self.renumber, &mut self.renters, &mut self.dice).await?;
                    self.reorgs += 1;
                }
                Act::Post { renter, number, proof, seconds } => self.post(renter, number, proof, seconds).await?,
                Act::Hide { host, blocks } => {
                    let head = self.market.head().await?;
                    self.hosts[host].endpoint.show(head.saturating_sub(blocks));
                }
                Act::Show(host) => self.hosts[host].endpoint.show(u64::MAX),
            }
            if told.elapsed() > Duration::from_secs(20) {
                told = Instant::now();
                self.tell(began).await?;
            }
        }
        for host in &mut self.hosts {
            host.endpoint.fail(false);
            host.endpoint.show(u64::MAX);
            host.start()?;
        }
        self.tell(began).await
    }

    async fn post(&mut self, renter: usize, number: u64, requires_proof: bool, seconds: u64) -> Result<()> {
        let prompt = format!("Tell me something about the number {number}.");
        for host in &self.hosts {
            host.content.put(prompt.as_bytes())?;
        }
        let (max_tokens, seed) = (self.dice.gen_range(4..24), number as u32);
        let order = Order {
            model: self.market.model,
            input: Cid::of(prompt.as_bytes()),
            max_tokens,
            temperature_milli: TEMPERATURE_MILLI,
            seed,
            requires_proof,
            seconds,
            token: Address::ZERO,
            payment: U256::from(1_000_000_000 + number),
            region: None,
        };
        let hash = self.renters[renter].post(&self.market, &order).await?;
        self.orders.insert(hash, Ordered { prompt, max_tokens, seed, deadline_seconds: seconds });
        Ok(())
    }

    /// Looks after the renters, the hosts that ended by themselves, and the slots.
    async fn look(&mut self) -> Result<()> {
        if self.looked.elapsed() < LOOK_EVERY {
            return Ok(());
        }
        self.looked = Instant::now();
        for renter in &mut self.renters {
            renter.tend(&self.market).await?;
        }
        for (host, slots) in self.hosts.iter_mut().zip(&mut self.slots) {
            if host.wanted {
                host.start()?;
            }
            let Some(database) = host.database().await? else { continue };
            match slots.look(&database).await {
                Ok(Some(over)) => self.seen.push(format!("{}: {over}", host.name)),
                Ok(None) => {}
                // Before its first migration.
                Err(error) if self.kills > 0 => eprintln!("{}: {error:#}", host.name),
                Err(_) => {}
            }
            database.close().await;
        }
        Ok(())
    }

    async fn tell(&mut self, began: Instant) -> Result<()> {
        let fates = fates(&self.market.logs().await?)?;
        let count = |is: &dyn Fn(&Fate) -> bool| fates.values().filter(|fate| is(fate)).count();
        let exits: u64 = self.hosts.iter().map(|host| host.exits).sum();
        let met: u64 = self.hosts.iter().map(|host| host.endpoint.met()).sum();
        eprintln!(
            "{:.0} s: block {}, {} jobs, {} claimed now, {} completed, {} released, {} refunded, {} given up, {} missed; {} kills, {} \
             reorgs, {met} faults, {exits} exits",
            began.elapsed().as_secs_f64(),
            self.market.head().await?,
            fates.len(),
            count(&|fate| fate.claimed.is_some() && !fate.is_over()),
            count(&|fate| !fate.completed.is_empty()),
            count(&|fate| fate.released.is_some()),
            count(&|fate| fate.refunded),
            fates.values().map(|fate| fate.reopened).sum::<usize>(),
            count(&|fate| fate.missed),
            self.kills,
            self.reorgs,
        );
        Ok(())
    }

    /// Waits until nothing moves any more, at most `limit`: every job has ended, and nothing of the hosts' is open. What missed its
    /// deadline, and what nobody takes, is refunded.
    async fn rest(&mut self, limit: Duration) -> Result<()> {
        let (began, mut told) = (Instant::now(), Instant::now());
        let mut asked: HashMap<u64, Instant> = HashMap::new();
        loop {
            self.look().await?;
            let (now, fates) = (self.market.time().await?, fates(&self.market.logs().await?)?);
            let over = fates.len() == self.orders.len() && fates.values().all(Fate::is_over);
            if over && self.nothing_open().await? {
                break;
            }
            for (&job, fate) in fates.iter().filter(|(_, fate)| !fate.is_over() && fate.completed.is_empty()) {
                if asked.get(&job).is_some_and(|at| at.elapsed() < Duration::from_secs(15)) {
                    continue;
                }
                let ordered = self.orders.get(&fate.posted_by).context("a job that was not ordered")?;
                let Some(posted_in) = self.market.block_of(fate.posted_by).await? else { continue };
                let late = now >= self.market.time_of(posted_in).await? + ordered.deadline_seconds;
                let contracts = &self.market.book.contracts;
                let call = match fate.claimed {
                    _ if late => contracts.expire(fabstir::market::types::JobId(job)),
                    None if began.elapsed() > CANCEL_AFTER => contracts.cancel(fabstir::market::types::JobId(job)),
                    _ => continue,
                };
                let renter =
                    self.renters.iter_mut().find(|renter| renter.is(fate.renter)).context("a renter of ours")?;
                renter.send(&self.market, &call).await?;
                asked.insert(job, Instant::now());
            }
            if told.elapsed() > Duration::from_secs(20) {
                told = Instant::now();
                self.tell(began).await?;
            }
            if began.elapsed() > limit {
                let open: Vec<_> = fates.iter().filter(|(_, fate)| !fate.is_over()).collect();
                let seconds = limit.as_secs();
                self.end().await?;
                bail!("within {seconds} s, {} of {} jobs posted, open: {open:?}", fates.len(), self.orders.len());
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
        self.end().await
    }

    /// Stops time and, once they know the newest block, the hosts.
    async fn end(&mut self) -> Result<()> {
        self.market.freeze().await;
        let head = self.market.head().await?;
        for host in &mut self.hosts {
            let database = host.database().await?.context("a database")?;
            let known = async || {
                let at: Option<i64> = sqlx::query_scalar("SELECT number FROM cursor").fetch_optional(&database).await?;
                Ok(at == Some(head as i64))
            };
            let what = format!("{} knows block {head}", host.name);
            self.market.until(&what, Duration::from_secs(120), known).await?;
            database.close().await;
            host.stop().await?;
        }
        Ok(())
    }

    async fn nothing_open(&mut self) -> Result<bool> {
        for renter in &mut self.renters {
            if renter.tend(&self.market).await? > 0 {
                return Ok(false);
            }
        }
        for host in &self.hosts {
            let Some(database) = host.database().await? else { return Ok(false) };
            let open: i64 = sqlx::query_scalar(
                "SELECT (SELECT count(*) FROM tx_intent WHERE state IN ('queued', 'signed')) + (SELECT count(*) FROM reservation)
                      + (SELECT count(*) FROM job WHERE state NOT IN ('released', 'refunded'))",
            )
            .fetch_one(&database)
            .await?;
            database.close().await;
            if open > 0 {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Holds everything against everything. Returns how many jobs there were.
    async fn judge(&mut self, verdict: &mut Verdict) -> Result<usize> {
        let fates = fates(&self.market.logs().await?)?;
        verdict.judge_jobs(&self.market, &self.hosts, &fates, &self.orders).await?;
        for host in &self.hosts {
            verdict.judge_host(&self.market, host, &fates).await?;
            verdict.judge_books(&self.market, host, &fates).await?;
        }
        verdict.judge_genesis(&self.market, &self.hosts, &self.fresh).await?;
        Ok(fates.len())
    }
}
