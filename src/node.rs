//! One running node: builds the edges, checks that it may start, drives each task's pass, and stops in order.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use crate::chain::{Chain, Signer};
use crate::config::{Config, HostConfig, ModelConfig};
use crate::content::Content;
use crate::devnet;
use crate::engine::{self, Engine};
use crate::http::{self, Declined, Health, Metrics, Server};
use crate::lock::Lock;
use crate::market::breaker;
use crate::market::gate::Gates;
use crate::market::job::Duty;
use crate::market::policy::{Calibration, Limits, Policy, Served};
use crate::market::types::{Address, ModelId};
use crate::p2p::{self, Inbound, P2p};
use crate::page::Pager;
use crate::prover::{self, Prover};
use crate::store::Store;
use crate::tasks::{
    self, Guard, Live, Survey, Task, breaker::Breaker, desk::Desk, drive::Drive, drive::Phase, gossip, indexer,
    indexer::Indexer, prepare::Prepare, prove::Prove, scheduler::Scheduler,
};
use crate::tasks::{
    settle::Settle,
    submitter::{self, Submitter},
    survey,
    survey::Surveyor,
    sweep,
    sweep::Sweep,
    watchdog,
    watchdog::Watchdog,
    worker::Worker,
};

/// How long everything else lets a new block be: whoever claims for it goes first, here and at the endpoint.
const BREATH: Duration = Duration::from_millis(50);
/// A part that reports less often than this is not ready.
const REPORT_AGE_MAX: Duration = Duration::from_secs(30);
/// As that, of the one that asks the contracts what a claim depends on: claims wait for it.
const SURVEY_AGE_MAX: Duration = Duration::from_secs(60);
/// As that, of one that asks for much in one turn.
const SWEEP_AGE_MAX: Duration = Duration::from_secs(600);
/// A step of the model that takes longer means a stuck device.
const STEP_AGE_MAX: Duration = Duration::from_secs(60);
/// While a node finishes, what is left is looked at so often, and whenever the store changes.
const LEFT_EVERY: Duration = Duration::from_millis(200);
/// Token streams and receipts served at once; further ones wait.
const CONVERSATIONS_MAX: usize = 256;

/// A running node. Dropping it without [`Node::stop`] cuts its tasks off, which is safe: a restart resumes.
pub struct Node {
    pub store: Store,
    pub chain: Chain,
    pub p2p: P2p,
    pub health: Health,
    /// The host's account; `None` for a node without a key.
    pub host: Option<Address>,
    server: Server,
    /// What claims ask; an observer has none to ask.
    guard: Guard,
    phase: watch::Sender<Phase>,
    tasks: JoinSet<Result<()>>,
    _lock: Lock,
}

/// What a host has begun and not finished; the next start takes it up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Left {
    /// Inferences and proofs under way.
    pub leases: usize,
    /// Transactions that jobs of ours owe now and that never were on the wire.
    pub unsent: usize,
}

impl std::fmt::Display for Left {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} inferences and proofs, {} transactions to send", self.leases, self.unsent)
    }
}

/// What a host has beside any node's edges.
struct Host {
    signer: Signer,
    engines: Arc<Vec<Engine>>,
    prover: Arc<Prover>,
    policy: Policy,
    gates: Gates,
    slots: u32,
    /// Jobs that may wait for a slot.
    queue: u32,
    limits: submitter::Limits,
    breaker: breaker::Limits,
    pager: Pager,
}

impl Node {
    /// Starts a node: an observer, or a host where the configuration has one.
    ///
    /// # Errors
    /// If anything a node needs is not so: its data to itself, endpoint, chain, contracts, key, stake, gas money, model, prover,
    /// ports. The error says which and what would be right. Nothing was claimed.
    pub async fn start(config: &Config) -> Result<Node> {
        let lock = Lock::take(&config.data_dir).await?.with_context(|| {
            format!(
                "another process works with {}, such as a node or `fabstir stake`: it is to end first, or this node needs a data_dir \
                 of its own",
                config.data_dir.display()
            )
        })?;
        // Of one that was killed: this one is not there yet.
        let _ = std::fs::remove_file(config.node_file());
        let chain = Chain::connect(config.chain.endpoints(), config.chain.id, config.contracts.clone()).await?;
        let host = match &config.host {
            Some(host) => Some(Host::prepare(config, host, &chain).await?),
            None => None,
        };
        let marketplace = config.contracts.job_marketplace;
        let store = Store::open(&config.database(), config.chain.id, marketplace, Arc::new(chain.decoder())).await?;
        store.watch(&config.contracts.indexed()).await?;
        let content = Content::open(&config.content())?;
        store.free_leases().await?;
        let identity = p2p::identity::load_or_create(&config.data_dir.join("peer.key"))?;
        let (p2p, inbound) = p2p::start(p2p::Config {
            identity,
            listen: config.p2p.listen.clone(),
            bootstrap: config.p2p.bootstrap.clone(),
            mdns: config.p2p.mdns,
        })
        .await?;
        let (health, metrics) = (Health::default(), Metrics::new());
        health.expect(indexer::PART, REPORT_AGE_MAX);
        let declined = Declined::default();
        let server = http::serve(config.http.listen, health.clone(), metrics.clone(), declined.clone()).await?;
        let us = host.as_ref().map(|host| host.signer.address());
        let (phase, _) = watch::channel(Phase::Runs);
        let guard = Guard::default();
        let tasks = JoinSet::new();
        let mut node = Node { store, chain, p2p, health, host: us, server, guard, phase, tasks, _lock: lock };
        node.spawn(config, content, (metrics, declined), host, inbound).await?;
        Ok(node)
    }

    /// Returns where the operator's endpoints listen.
    pub fn http_address(&self) -> std::net::SocketAddr {
        self.server.address
    }

    /// Takes no further work, and waits until what is under way is finished: inferences and proofs, and the transactions they owe.
    /// Cancelled, it leaves the node so: claiming nothing, and ready for [`Node::stop`].
    ///
    /// # Errors
    /// If the store fails.
    pub async fn finish(&self) -> Result<()> {
        self.guard.close();
        self.phase.send_if_modified(|phase| std::mem::replace(phase, (*phase).max(Phase::Finishes)) == Phase::Runs);
        let mut changes = self.store.changes();
        loop {
            changes.borrow_and_update();
            if self.left().await? == Left::default() {
                return Ok(());
            }
            let _ = tokio::time::timeout(LEFT_EVERY, changes.changed()).await;
        }
    }

    /// Returns what is begun and not finished.
    ///
    /// # Errors
    /// If the store fails.
    pub async fn left(&self) -> Result<Left> {
        let Some(us) = self.host else { return Ok(Left::default()) };
        let leases = self.store.under_way([Duty::Infer, Duty::Prove]).await?;
        Ok(Left { leases, unsent: tasks::unsent(&self.store, us).await? })
    }

    /// Stops every task at once, then the peer, then the store. What was under way is taken up at the next start.
    pub async fn stop(mut self) {
        self.phase.send_replace(Phase::Stops);
        while self.tasks.join_next().await.is_some() {}
        self.p2p.shutdown().await;
        self.store.close().await;
    }

    /// Waits until a task breaks down, which none does but by panics. Returns which and why.
    pub async fn failed(&mut self) -> String {
        while let Some(ended) = self.tasks.join_next().await {
            match ended {
                Ok(Ok(())) => {}
                Ok(Err(error)) => return format!("{error:#}"),
                Err(error) => return error.to_string(),
            }
        }
        std::future::pending().await
    }

    async fn spawn(
        &mut self,
        config: &Config,
        content: Content,
        (metrics, skipped): (Metrics, Declined),
        host: Option<Host>,
        inbound: mpsc::Receiver<Inbound>,
    ) -> Result<()> {
        let poll = Duration::from_millis(config.chain.poll_ms);
        let (chain, store) = (self.chain.clone(), self.store.clone());
        let mut indexer =
            Indexer::new(chain.clone(), store.clone(), self.health.clone(), metrics.clone(), config.chain.indexer());
        let nonce = self.host.map(|us| indexer.read_nonce_of(us));
        let heads = config.chain.ws_url.clone().map(Chain::wake_on_blocks);
        let never = || watch::channel(0).1;
        self.drive(indexer, poll, heads.unwrap_or_else(never), &metrics);
        match config.chain.sweep_seconds {
            // What an earlier run doubted, none would ever clear.
            0 => store.set_doubts(&Default::default()).await?,
            seconds => {
                self.health.expect(sweep::PART, SWEEP_AGE_MAX);
                let (chain, store, health) = (chain.clone(), store.clone(), self.health.clone());
                let every = Duration::from_secs(seconds);
                let sweep = Sweep::new(chain, store, health, metrics.clone(), self.host, every);
                self.drive(sweep, poll, never(), &metrics);
            }
        }
        self.watch_endpoints(&metrics);
        self.health.expect(watchdog::PART, REPORT_AGE_MAX);
        let watchdog = Watchdog::new(store.clone(), self.health.clone(), metrics.clone(), self.host);
        self.drive(watchdog, watchdog::LOOK_EVERY, never(), &metrics);
        let listener = gossip::Listener { chain: chain.clone(), store: store.clone(), metrics: metrics.clone() };
        let (Some(host), Some(nonce)) = (host, nonce) else {
            self.keep(converse(inbound, listener, None, metrics, self.p2p.clone()));
            return Ok(());
        };
        self.watch_engines(&host);
        let live = Live::default();
        let us = host.signer.address();
        let guard = self.guard.clone();
        self.health.expect(crate::tasks::breaker::PART, REPORT_AGE_MAX);
        let edges = (chain.clone(), store.clone(), self.health.clone(), metrics.clone());
        let breaker = Breaker::new(edges, us, host.breaker, host.policy.fee_bps, host.pager, guard.clone());
        self.drive(breaker, poll, store.changes(), &metrics);
        let survey = Survey::default();
        self.health.expect(survey::PART, SURVEY_AGE_MAX);
        let surveyor = Surveyor::new(chain.clone(), store.clone(), self.health.clone(), survey.clone(), us);
        self.drive(surveyor, poll, store.changes(), &metrics);
        let scheduler = Scheduler {
            contracts: chain.contracts().clone(),
            store: store.clone(),
            content: content.clone(),
            health: self.health.clone(),
            metrics: metrics.clone(),
            policy: host.policy.clone(),
            guard: guard.clone(),
            us,
            survey,
            slots: host.slots + host.queue,
            skipped,
            declined: Default::default(),
        };
        self.drive(scheduler, poll, store.changes(), &metrics);
        for _ in 0..host.slots {
            let worker = Worker {
                store: store.clone(),
                content: content.clone(),
                engines: host.engines.clone(),
                live: live.clone(),
                metrics: metrics.clone(),
                us,
            };
            self.drive(worker, poll, store.changes(), &metrics);
        }
        for _ in 0..config.prover.concurrency {
            let prove = Prove {
                chain: chain.clone(),
                store: store.clone(),
                content: content.clone(),
                prover: host.prover.clone(),
                metrics: metrics.clone(),
                us,
                proof_max: Duration::from_secs(config.prover.timeout_seconds),
            };
            self.drive(prove, poll, store.changes(), &metrics);
        }
        let prepare = Prepare {
            chain: chain.clone(),
            store: store.clone(),
            content: content.clone(),
            health: self.health.clone(),
            us,
            policy: host.policy.clone(),
            gates: host.gates,
            refused: Default::default(),
            waiting: Default::default(),
        };
        self.drive(prepare, poll, store.changes(), &metrics);
        let (settle, beat) = Settle::new(chain.clone(), store.clone(), metrics.clone(), us);
        self.drive(settle, poll, store.changes(), &metrics);
        let (signer, limits) = (host.signer.clone(), host.limits);
        let submitter =
            Submitter::new(chain.clone(), store.clone(), metrics.clone(), signer, limits, (beat, nonce), guard.clone());
        self.drive(submitter, poll, store.changes_here(), &metrics);
        let announcer = gossip::Announcer {
            chain: chain.clone(),
            store: store.clone(),
            p2p: self.p2p.clone(),
            signer: host.signer.clone(),
            alone: None,
        };
        self.drive(announcer, poll, store.changes(), &metrics);
        for engine in host.engines.iter() {
            self.p2p.provide(&engine.model().id).await?;
        }
        let desk = Desk {
            chain,
            store,
            content,
            engines: host.engines,
            policy: host.policy,
            guard,
            live,
            p2p: self.p2p.clone(),
            signer: host.signer,
        };
        self.keep(converse(inbound, listener, Some(desk), metrics, self.p2p.clone()));
        Ok(())
    }

    /// Runs a task's passes until the node stops: again at once after work, else when woken or after `poll`.
    fn drive<T: Task>(&mut self, task: T, poll: Duration, wake: watch::Receiver<u64>, metrics: &Metrics) {
        let (health, metrics, phase) = (self.health.clone(), metrics.clone(), self.phase.subscribe());
        let breath = if T::HURRIES { Duration::ZERO } else { BREATH };
        self.tasks.spawn(Drive { poll, breath, health, metrics, phase }.run(task, wake));
    }

    /// Runs `work`, which never ends by itself, until the node stops.
    fn keep(&mut self, work: impl Future<Output = ()> + Send + 'static) {
        let mut phase = self.phase.subscribe();
        self.tasks.spawn(async move {
            tokio::select! {
                () = work => {}
                _ = phase.wait_for(|phase| *phase == Phase::Stops) => {}
            }
            Ok(())
        });
    }

    /// Carries what was asked of the chain's endpoints to the metrics.
    fn watch_endpoints(&mut self, metrics: &Metrics) {
        let (chain, metrics) = (self.chain.clone(), metrics.clone());
        self.keep(async move {
            loop {
                for endpoint in chain.endpoints() {
                    metrics.count_endpoint(endpoint.name, endpoint.requests, endpoint.failures);
                }
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        });
    }

    /// Reports each engine's compute thread to health.
    fn watch_engines(&mut self, host: &Host) {
        const PART: &str = "engine";
        self.health.expect(PART, REPORT_AGE_MAX);
        let (health, engines) = (self.health.clone(), host.engines.clone());
        self.keep(async move {
            loop {
                let stuck = engines.iter().find(|engine| {
                    let stats = engine.stats();
                    !stats.alive || stats.step_age.is_some_and(|age| age > STEP_AGE_MAX)
                });
                match stuck {
                    None => health.well(PART),
                    Some(engine) => health.ill(PART, format!("model {} is stuck or gone", engine.model().name)),
                }
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        });
    }
}

/// Serves peers: each request, stream and receipt in a task of its own, a bounded number at once.
async fn converse(
    mut inbound: mpsc::Receiver<Inbound>,
    listener: gossip::Listener,
    desk: Option<Desk>,
    metrics: Metrics,
    p2p: P2p,
) {
    let mut conversations: JoinSet<Result<()>> = JoinSet::new();
    loop {
        let event = tokio::select! {
            Some(ended) = conversations.join_next() => {
                if let Ok(Err(error)) = ended {
                    tracing::debug!(error = format!("{error:#}"), "a conversation with a peer broke off");
                }
                continue;
            }
            event = inbound.recv(), if conversations.len() < CONVERSATIONS_MAX => event,
        };
        metrics.peers.set(p2p.connected_peers().len() as i64);
        match event {
            None => return,
            Some(Inbound::Receipt { from, bytes, verdict }) => {
                let listener = listener.clone();
                conversations.spawn(async move { listener.hear(from, bytes, verdict).await });
            }
            Some(Inbound::Request { request, reply, .. }) => match &desk {
                None => {
                    reply.send(crate::market::offer::Response::Refused { reason: "this node is not a host".into() })
                }
                Some(desk) => {
                    let desk = desk.clone();
                    conversations.spawn_blocking(move || {
                        reply.send(desk.answer(request));
                        Ok(())
                    });
                }
            },
            Some(Inbound::Tokens { init, writer, .. }) => {
                let Some(desk) = desk.clone() else { continue };
                conversations.spawn(async move { desk.stream(init, writer).await });
            }
        }
    }
}

impl Host {
    async fn prepare(config: &Config, host: &HostConfig, chain: &Chain) -> Result<Host> {
        let signer = host.account().await?;
        let us = signer.address();
        let registry = chain.contracts().node_registry;
        ensure!(
            chain.is_active(us).await?,
            "host {us} is not registered at {registry} with its stake whole: run `fabstir register`"
        );
        let funds = chain.balance(Address::ZERO, us).await?;
        ensure!(!funds.is_zero(), "host {us} has no ETH on chain {} to pay for gas: fund it", chain.id());
        let prover = prover(config);
        let manifest = prover.manifest();
        ensure!(
            !manifest.test_only || chain.id() == devnet::CHAIN_ID,
            "circuit {} is for tests only: whoever made its SRS can forge proofs, so it serves no chain but {}",
            manifest.circuit,
            devnet::CHAIN_ID
        );
        prover.ensure_keys().await?;
        let circuit = manifest.circuit_id();
        let (_, active) = chain.circuit(circuit).await?;
        ensure!(active, "circuit {} ({circuit}) is not active in the proof system on chain", manifest.circuit);
        let candidates = manifest.candidates as usize;
        let mut engines = Vec::new();
        for model in &host.models {
            let config = engine_config(model, candidates);
            let engine = tokio::task::spawn_blocking(move || Engine::load(config)).await.context("load a model")??;
            tracing::info!(model = %engine.model().id, name = engine.model().name, "loaded model");
            engines.push(engine);
        }
        let calibration = calibration(config)?;
        let served = |(engine, model): (&Engine, &ModelConfig)| {
            let (id, context_tokens) = (engine.model().id, engine.model().context_tokens);
            (id, served(&calibration, id, context_tokens, model))
        };
        let models = engines.iter().zip(&host.models).map(served).collect();
        let policy = policy(host, us, models, chain.fee_bps().await?);
        let slots = host.models.iter().map(|model| model.slots as u32).sum();
        let (engines, prover) = (Arc::new(engines), Arc::new(prover));
        let gates = host.gate;
        let limits = submitter::Limits {
            fee_cap_max: host.fee_cap_max_wei.into(),
            window: host.window,
            bump_after: Duration::from_secs(host.bump_after_seconds),
        };
        let pager = Pager { command: host.page_command.clone(), url: host.page_url.clone() };
        let (queue, breaker) = (host.models.iter().map(|model| model.queue).sum(), host.breaker.clone());
        Ok(Host { signer, engines, prover, policy, gates, slots, queue, limits, breaker, pager })
    }
}

/// Returns how a model is loaded.
pub fn engine_config(model: &ModelConfig, candidates: usize) -> engine::Config {
    engine::Config {
        path: model.path.clone(),
        slots: model.slots,
        context_tokens: model.context_tokens,
        threads: threads(model),
        gpu_layers: model.gpu_layers,
        candidates,
        queue_max: model.slots,
    }
}

/// Returns the CPU threads of a model: one per core where none are named.
fn threads(model: &ModelConfig) -> u32 {
    match model.threads {
        0 => std::thread::available_parallelism().map_or(1, |cores| cores.get() as u32),
        threads => threads,
    }
}

/// Returns what `fabstir bench model` measured; nothing where it never ran.
///
/// # Errors
/// If the file is not one of its own.
pub fn calibration(config: &Config) -> Result<Calibration> {
    let file = config.calibration();
    if !file.exists() {
        return Ok(Calibration::default());
    }
    let read = || Ok::<_, anyhow::Error>(serde_json::from_slice(&std::fs::read(&file)?)?);
    read().with_context(|| format!("calibration {} (`fabstir bench model` writes it anew)", file.display()))
}

/// Returns a model as policy sees it, with its speed where it was measured as it is loaded.
pub fn served(calibration: &Calibration, id: ModelId, context_tokens: u32, model: &ModelConfig) -> Served {
    let slots = model.slots as u32;
    let speed = calibration.speed(id, threads(model), model.gpu_layers, slots);
    if speed.is_none() && calibration.models.iter().any(|measured| measured.model == id) {
        tracing::warn!(model = %id, "its speed was measured with other threads, layers or slots: run `fabstir bench model`");
    }
    Served { max_tokens: model.max_tokens, slots, queue: model.queue, context_tokens, speed }
}

/// Returns the policy of a host.
pub fn policy(host: &HostConfig, us: Address, models: BTreeMap<ModelId, Served>, fee_bps: u16) -> Policy {
    let mut limits: Limits = host.policy.clone();
    if limits.regions.is_empty() {
        limits.regions.extend(host.region.clone());
    }
    Policy {
        host: us,
        models,
        price_per_1k: host.price_per_1k.clone(),
        fee_bps,
        tokens_per_second: host.tokens_per_second,
        margin_seconds: host.margin_seconds,
        proves: true,
        gate: host.gate.claim,
        limits,
    }
}

/// Returns the prover of a configuration; nothing is started or derived yet.
pub fn prover(config: &Config) -> Prover {
    Prover::new(prover::Config {
        python: config.prover.python.clone(),
        dir: config.prover.dir.clone().unwrap_or_else(|| config.data_dir.join("prover")),
        concurrency: config.prover.concurrency,
        timeout: Duration::from_secs(config.prover.timeout_seconds),
    })
}
