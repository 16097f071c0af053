//! The operator's endpoints: `/livez`, `/readyz` with reasons, `/metrics` for Prometheus, `/declined` with the jobs declined last.
//!
//! Owns axum. Never decides and never reads the store: the parts of the node report here.

mod declined;
mod metrics;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde::Serialize;
use tokio::net::TcpListener;
use tokio::sync::oneshot;

pub use declined::{Declined, Skipped};
pub use metrics::{Kind, Metrics};

/// What the parts of a node said about themselves last, and what its tasks are at. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Health(Arc<Mutex<Known>>);

#[derive(Debug, Default)]
struct Known {
    parts: BTreeMap<&'static str, Part>,
    /// The passes that run now, in the order in which they began.
    passes: BTreeMap<u64, Running>,
    begun: u64,
    /// When each task's last pass ended, or its first began.
    ended: BTreeMap<&'static str, Instant>,
}

/// A pass that runs now, of a task, since when and how long it may take.
#[derive(Debug)]
struct Running {
    task: &'static str,
    since: Instant,
    limit: Duration,
}

/// A pass under watch; it ends when this is dropped.
#[derive(Debug)]
pub struct Watched {
    health: Health,
    pass: u64,
}

impl Drop for Watched {
    fn drop(&mut self) {
        let mut known = self.health.lock();
        if let Some(Running { task, .. }) = known.passes.remove(&self.pass) {
            known.ended.insert(task, Instant::now());
        }
    }
}

#[derive(Debug, Clone)]
struct Part {
    /// Older reports count as failure.
    age_max: Duration,
    at: Instant,
    problem: Option<String>,
    reported: bool,
}

/// Why a part is not ready.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Problem {
    pub part: &'static str,
    pub reason: String,
}

impl Health {
    /// Adds a part that must report at least every `age_max`; not ready until its first good report.
    pub fn expect(&self, part: &'static str, age_max: Duration) {
        let problem = Some("starting".into());
        self.lock().parts.insert(part, Part { age_max, at: Instant::now(), problem, reported: false });
    }

    /// The part is well.
    pub fn well(&self, part: &'static str) {
        self.report(part, None);
    }

    /// The part cannot do its work, and why.
    pub fn ill(&self, part: &'static str, reason: impl Into<String>) {
        self.report(part, Some(reason.into()));
    }

    fn report(&self, part: &'static str, problem: Option<String>) {
        if let Some(entry) = self.lock().parts.get_mut(part) {
            (entry.at, entry.problem, entry.reported) = (Instant::now(), problem, true);
        }
    }

    /// Returns what keeps the node from being ready; empty when it is.
    pub fn problems(&self) -> Vec<Problem> {
        let problem = |(&part, state): (&&'static str, &Part)| {
            let age = state.at.elapsed();
            let silent = (age > state.age_max).then(|| format!("silent for {} s", age.as_secs()));
            Some(Problem { part, reason: state.problem.clone().or(silent)? })
        };
        let mut problems = self.overdue();
        problems.extend(self.lock().parts.iter().filter_map(problem));
        problems
    }

    /// Notes that a pass of `task` begins, which is to end within `limit`: until it does after that, the task is a problem.
    pub fn begin(&self, task: &'static str, limit: Duration) -> Watched {
        let (mut known, since) = (self.lock(), Instant::now());
        known.begun += 1;
        let pass = known.begun;
        known.passes.insert(pass, Running { task, since, limit });
        known.ended.entry(task).or_insert(since);
        Watched { health: self.clone(), pass }
    }

    /// Returns the passes that run for longer than they may: what hangs, as no restart of a chain or a peer ends it.
    pub fn overdue(&self) -> Vec<Problem> {
        let late = |Running { task, since, limit }: &Running| {
            let (ran, limit) = (since.elapsed(), limit.as_secs());
            let reason = || format!("a pass has not ended for {} s and may take {limit} s", ran.as_secs());
            (ran.as_secs() >= limit).then(|| Problem { part: task, reason: reason() })
        };
        self.lock().passes.values().filter_map(late).collect()
    }

    /// Returns for each task how long ago its last pass ended, or its first began.
    fn pass_ages(&self) -> Vec<(&'static str, Duration)> {
        self.lock().ended.iter().map(|(task, at)| (*task, at.elapsed())).collect()
    }

    /// Returns whether every part but `ignored` has reported at least once, well or ill: whether the start is over.
    pub fn has_started(&self, ignored: &str) -> bool {
        self.lock().parts.iter().all(|(part, state)| state.reported || *part == ignored)
    }

    /// Returns whether `part` is ready.
    pub fn is_well(&self, part: &str) -> bool {
        !self.problems().iter().any(|problem| problem.part == part)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Known> {
        self.0.lock().expect("no holder of this lock panics")
    }
}

/// A running server. Dropping it stops listening.
#[derive(Debug)]
pub struct Server {
    /// Where it listens; the port the system chose when 0 was asked for.
    pub address: SocketAddr,
    _stop: oneshot::Sender<()>,
}

/// Starts the endpoints on `listen`.
///
/// # Errors
/// If the address cannot be listened on.
pub async fn serve(listen: SocketAddr, health: Health, metrics: Metrics, declined: Declined) -> Result<Server> {
    let listener = TcpListener::bind(listen).await.with_context(|| format!("listen on http.listen = {listen}"))?;
    let address = listener.local_addr()?;
    let app = Router::new()
        .route("/livez", get(|| async { "alive\n" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics_text))
        .with_state((health, metrics))
        .route("/declined", get(async move || Json(declined.newest_first())));
    let (stop, stopped) = oneshot::channel::<()>();
    tokio::spawn(async move {
        let stopped = async move {
            let _ = stopped.await;
        };
        if let Err(error) = axum::serve(listener, app).with_graceful_shutdown(stopped).await {
            tracing::error!(%error, "the operator's endpoints stopped");
        }
    });
    Ok(Server { address, _stop: stop })
}

async fn ready(State((health, _)): State<(Health, Metrics)>) -> Response {
    let problems = health.problems();
    let status = if problems.is_empty() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(serde_json::json!({ "ready": problems.is_empty(), "problems": problems }))).into_response()
}

async fn metrics_text(State((health, metrics)): State<(Health, Metrics)>) -> Response {
    metrics.ready.set(i64::from(health.problems().is_empty()));
    for (task, age) in health.pass_ages() {
        metrics.pass_age_seconds.get_or_create(&Kind::of(task)).set(age.as_secs() as i64);
    }
    match metrics.text() {
        Ok(text) => ([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error:#}")).into_response(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::market::types::{JobId, UnixSeconds};

    #[tokio::test]
    async fn readiness_names_its_reasons() {
        let health = Health::default();
        health.expect("indexer", Duration::from_secs(60));
        let declined = Declined::default();
        let server = serve(([127, 0, 0, 1], 0).into(), health.clone(), Metrics::new(), declined.clone()).await.unwrap();
        let url = |path: &str| format!("http://{}{path}", server.address);
        let answer = reqwest::get(url("/readyz")).await.unwrap();
        assert_eq!(answer.status().as_u16(), 503);
        assert!(answer.text().await.unwrap().contains(r#"{"part":"indexer","reason":"starting"}"#));
        health.well("indexer");
        assert_eq!(reqwest::get(url("/readyz")).await.unwrap().status().as_u16(), 200);
        health.ill("indexer", "no answer from the endpoint");
        assert!(reqwest::get(url("/readyz")).await.unwrap().text().await.unwrap().contains("no answer"));
        assert_eq!(reqwest::get(url("/livez")).await.unwrap().status().as_u16(), 200);
        let metrics = reqwest::get(url("/metrics")).await.unwrap().text().await.unwrap();
        assert!(metrics.contains("fabstir_ready 0"), "{metrics}");
        let skipped = |job| Skipped { job: JobId(job), rule: "price", detail: "pays 1".into(), at: UnixSeconds(9) };
        (1..=2).for_each(|job| declined.note(skipped(job)));
        let told = reqwest::get(url("/declined")).await.unwrap().text().await.unwrap();
        assert!(told.starts_with(r#"[{"job":2,"rule":"price","detail":"pays 1","at":9},{"job":1,"#), "{told}");
    }

    #[test]
    fn silence_is_a_problem() {
        let health = Health::default();
        health.expect("indexer", Duration::ZERO);
        health.well("indexer");
        std::thread::yield_now();
        assert!(health.problems()[0].reason.starts_with("silent for"));
    }

    #[test]
    fn a_pass_that_does_not_end_is_a_problem_until_it_does() {
        let health = Health::default();
        let quick = health.begin("scheduler", Duration::from_secs(60));
        assert_eq!(health.problems(), []);
        let (first, second) = (health.begin("worker", Duration::ZERO), health.begin("worker", Duration::ZERO));
        let told = health.problems();
        assert_eq!(told.len(), 2, "{told:?}");
        assert_eq!((told[0].part, &*told[0].reason), ("worker", "a pass has not ended for 0 s and may take 0 s"));
        assert!(!health.is_well("worker") && health.is_well("scheduler"));
        drop((quick, first));
        assert_eq!(health.overdue().len(), 1, "the other still runs");
        drop(second);
        assert_eq!(health.problems(), []);
        assert_eq!(health.pass_ages().iter().map(|(task, _)| *task).collect::<Vec<_>>(), ["scheduler", "worker"]);
    }
}
