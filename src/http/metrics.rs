//! What the node counts, in Prometheus' text format.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result};
use prometheus_client::encoding::{EncodeLabelSet, text::encode};
use prometheus_client::metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram};
use prometheus_client::registry::{Registry, Unit};

/// The media type of [`Metrics::text`].
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// One label: what a count is about.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Kind {
    pub kind: String,
}

/// One label: which of the chain's endpoints, by scheme and host.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Endpoint {
    endpoint: String,
}

/// The node's counts and gauges. Clones share them.
#[derive(Debug, Clone)]
pub struct Metrics {
    pub ready: Gauge,
    pub head_block: Gauge,
    pub indexed_block: Gauge,
    pub logs: Counter,
    pub undecoded_logs: Counter,
    pub upgraded_contracts: Gauge,
    pub reorgs: Counter,
    pub corrected_blocks: Counter,
    pub sweeps: Counter,
    pub sweep_differences: Gauge,
    pub reservations: Gauge,
    pub open_transactions: Gauge,
    pub claims_held: Gauge,
    /// By kind of transaction.
    pub transactions_sent: Family<Kind, Counter>,
    /// By rule that refused.
    pub jobs_declined: Family<Kind, Counter>,
    pub blocks: Family<Kind, Counter>,
    pub tokens_generated: Counter,
    pub inference_seconds: Histogram,
    pub proof_seconds: Histogram,
    /// By verdict: accept, reject, ignore.
    pub receipts: Family<Kind, Counter>,
    /// By task.
    pub failures: Family<Kind, Counter>,
    pub panics: Family<Kind, Counter>,
    pub pass_seconds: Family<Kind, Histogram>,
    pub(super) pass_age_seconds: Family<Kind, Gauge>,
    pub oldest_lease_seconds: Gauge,
    pub peers: Gauge,
    rpc_requests: Family<Endpoint, Counter>,
    rpc_failures: Family<Endpoint, Counter>,
    registry: Arc<Registry>,
}

impl Metrics {
    /// Returns zeroed metrics.
    pub fn new() -> Self {
        let mut registry = Registry::with_prefix("fabstir");
        let seconds = || Histogram::new([0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0]);
        let mut metrics = Self {
            ready: Gauge::default(),
            head_block: Gauge::default(),
            indexed_block: Gauge::default(),
            logs: Counter::default(),
            undecoded_logs: Counter::default(),
            upgraded_contracts: Gauge::default(),
            reorgs: Counter::default(),
            corrected_blocks: Counter::default(),
            sweeps: Counter::default(),
            sweep_differences: Gauge::default(),
            reservations: Gauge::default(),
            open_transactions: Gauge::default(),
            claims_held: Gauge::default(),
            transactions_sent: Family::default(),
            jobs_declined: Family::default(),
            blocks: Family::default(),
            tokens_generated: Counter::<u64, AtomicU64>::default(),
            inference_seconds: seconds(),
            proof_seconds: seconds(),
            receipts: Family::default(),
            failures: Family::default(),
            panics: Family::default(),
            pass_seconds: Family::new_with_constructor(|| Histogram::new([0.01, 0.1, 1.0, 10.0, 100.0])),
            pass_age_seconds: Family::default(),
            oldest_lease_seconds: Gauge::default(),
            peers: Gauge::default(),
            rpc_requests: Family::default(),
            rpc_failures: Family::default(),
            registry: Arc::default(),
        };
        let m = &metrics;
        registry.register("ready", "1 when every part of the node is ready", m.ready.clone());
        registry.register("head_block", "newest block the endpoint knows", m.head_block.clone());
        registry.register("indexed_block", "newest block whose logs are stored", m.indexed_block.clone());
        registry.register("logs", "contract logs stored", m.logs.clone());
        registry.register(
            "undecoded_logs",
            "contract logs kept raw because they could not be decoded",
            m.undecoded_logs.clone(),
        );
        registry.register(
            "upgraded_contracts",
            "times that a contract said its code was replaced, or may be by another: its logs may mean something else",
            m.upgraded_contracts.clone(),
        );
        registry.register("reorgs", "rewinds after a reorganisation of the chain", m.reorgs.clone());
        registry.register(
            "corrected_blocks",
            "blocks whose logs an endpoint had told wrong, found out when they were proven",
            m.corrected_blocks.clone(),
        );
        registry.register("sweeps", "comparisons of the stored jobs with the contracts' own word", m.sweeps.clone());
        registry.register(
            "sweep_differences",
            "jobs, and our registration, of which the contracts say otherwise than the stored logs",
            m.sweep_differences.clone(),
        );
        registry.register(
            "claims_held",
            "1 while this host claims nothing: paused, draining, its breaker open, or what it sees not to be relied on",
            m.claims_held.clone(),
        );
        registry.register("reservations", "engine slots reserved for jobs", m.reservations.clone());
        registry.register(
            "open_transactions",
            "transactions queued or signed and not yet mined",
            m.open_transactions.clone(),
        );
        registry.register(
            "transactions_sent",
            "transactions put on the wire, replacements included",
            m.transactions_sent.clone(),
        );
        registry.register("blocks", "blocks stored, by what is proven of them", m.blocks.clone());
        registry.register("jobs_declined", "jobs policy declined, by the rule that refused", m.jobs_declined.clone());
        registry.register("tokens_generated", "output tokens of paid jobs", m.tokens_generated.clone());
        registry.register_with_unit(
            "inference",
            "time from prompt to last token",
            Unit::Seconds,
            m.inference_seconds.clone(),
        );
        registry.register_with_unit("proof", "time to make and verify a proof", Unit::Seconds, m.proof_seconds.clone());
        registry.register("receipts", "receipts that reached this node, by verdict", m.receipts.clone());
        registry.register("failures", "passes that failed, by task", m.failures.clone());
        registry.register("panics", "passes that panicked, by task", m.panics.clone());
        registry.register_with_unit("task_pass", "time of one pass, by task", Unit::Seconds, m.pass_seconds.clone());
        registry.register_with_unit(
            "task_pass_age",
            "time since a task's last pass ended",
            Unit::Seconds,
            m.pass_age_seconds.clone(),
        );
        registry.register_with_unit(
            "oldest_lease",
            "time since the oldest inference or proof under way was begun",
            Unit::Seconds,
            m.oldest_lease_seconds.clone(),
        );
        registry.register("peers", "connected peers", m.peers.clone());
        registry.register("rpc_requests", "HTTP requests to each of the chain's endpoints", m.rpc_requests.clone());
        registry.register("rpc_failures", "calls that an endpoint gave no answer to", m.rpc_failures.clone());
        metrics.registry = Arc::new(registry);
        metrics
    }

    /// Sets what was counted of one endpoint since the start.
    pub fn count_endpoint(&self, name: String, requests: u64, failures: u64) {
        let label = Endpoint { endpoint: name };
        self.rpc_requests.get_or_create(&label).inner().store(requests, Ordering::Relaxed);
        self.rpc_failures.get_or_create(&label).inner().store(failures, Ordering::Relaxed);
    }

    /// Returns all of them in Prometheus' text format.
    ///
    /// # Errors
    /// If a value cannot be written, which is a defect.
    pub fn text(&self) -> Result<String> {
        let mut text = String::new();
        encode(&mut text, &self.registry).context("write the metrics")?;
        Ok(plain(&text))
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Kind {
    /// Returns the label of that value.
    pub fn of(kind: impl Into<String>) -> Self {
        Self { kind: kind.into() }
    }
}

/// Turns OpenMetrics into Prometheus' own text format, in which a counter's description bears the counter's full name.
/// Source: <https://prometheus.io/docs/instrumenting/exposition_formats/>.
fn plain(open: &str) -> String {
    let counters: Vec<&str> =
        open.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.strip_suffix(" counter")).collect();
    let mut text = String::with_capacity(open.len());
    for line in open.lines().filter(|line| !line.starts_with("# UNIT ") && *line != "# EOF") {
        match line.strip_prefix("# ").and_then(|rest| rest.split_once(' ')) {
            Some((what, rest)) => {
                let (name, rest) = rest.split_once(' ').unwrap_or((rest, ""));
                let total = if counters.contains(&name) { "_total" } else { "" };
                text += &format!("# {what} {name}{total} {rest}\n");
            }
            None => text += &format!("{line}\n"),
        }
    }
    text
}
