//! What is asked at every turn never reads a whole table that grows for ever.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use sqlx::Row;
use tracing::field::{Field, Visit};
use tracing::{Event, Instrument, Subscriber};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;

use super::tests::{TERMS, US, attempt, chain, choose, extend, fresh, open_intents, sign};
use super::*;
use crate::market::job::{Duty, Work};

const SPAN: &str = "every turn";
/// Tables that have a row for each thing that ever happened.
const GROWING: [&str; 8] = ["log", "block", "job", "work", "tx_intent", "tx_attempt", "tx_receipt", "event"];
/// Indexes of few rows: of what is open, of hosts that came and went, of jobs given up, of the hour.
const SMALL: [&str; 7] = [
    "log_registration",
    "block_orphaned",
    "tx_intent_open",
    "tx_intent_queued",
    "tx_intent_signed",
    "work_chosen",
    "work_abandoned",
];

/// What reads a table from its newest row on and stops soon.
const STOPS: [&str; 4] = [
    "(SELECT job FROM log WHERE job IS NOT NULL ORDER BY job DESC LIMIT 1)",
    "(SELECT seq FROM block ORDER BY seq DESC LIMIT 1)",
    "SELECT number FROM block WHERE canonical = 1 AND time <= ? ORDER BY number DESC LIMIT 1",
    "ORDER BY id DESC LIMIT 10 * ?4) AS claim",
];

/// Collects the statements that run within [`SPAN`], in whichever thread.
#[derive(Clone, Default)]
struct Statements(Arc<Mutex<BTreeSet<String>>>);

/// The text of one statement: its summary, where that is all of it.
#[derive(Default)]
struct Text {
    summary: String,
    whole: String,
}

impl Visit for Text {
    fn record_debug(&mut self, _: &Field, _: &dyn std::fmt::Debug) {}

    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            "summary" => self.summary = value.to_owned(),
            "db.statement" => self.whole = value.trim().to_owned(),
            _ => {}
        }
    }
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Statements {
    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let within = context.event_scope(event).is_some_and(|mut spans| spans.any(|span| span.name() == SPAN));
        if within && event.metadata().target() == "sqlx::query" {
            let mut text = Text::default();
            event.record(&mut text);
            let statement = if text.whole.is_empty() { text.summary } else { text.whole };
            self.0.lock().unwrap().insert(statement);
        }
    }
}

#[tokio::test]
async fn nothing_that_is_asked_at_every_turn_reads_a_whole_table() {
    let statements = Statements::default();
    tracing::subscriber::set_global_default(tracing_subscriber::registry().with(statements.clone())).unwrap();
    let (_file, store) = fresh().await;
    a_turn_of_each_task(&store).instrument(tracing::info_span!(SPAN)).await;

    let statements = statements.0.lock().unwrap().clone();
    let asks = |statement: &&String| {
        ["SELECT", "UPDATE", "DELETE", "INSERT", "WITH"].iter().any(|it| statement.starts_with(it))
    };
    // Some are asked together.
    let each = statements.iter().flat_map(|together| together.split(';')).map(|one| one.trim().to_owned());
    let asked: Vec<String> = each.filter(|one| asks(&one)).collect();
    assert!(asked.len() > 40, "{asked:#?}");
    let mut wrong = Vec::new();
    for statement in asked {
        let plan = sqlx::query(sqlx::AssertSqlSafe(format!("EXPLAIN QUERY PLAN {statement}")))
            .fetch_all(&store.writer)
            .await
            .unwrap_or_else(|error| panic!("{error}: {statement}"));
        for step in plan.iter().map(|row| row.get::<String, _>(3)) {
            // A search for the greatest of a column without an index is told as one, too.
            let searched = step.strip_prefix("SEARCH ").filter(|what| !what.contains(" USING "));
            let Some(what) = step.strip_prefix("SCAN ").or(searched) else { continue };
            let table = what.split(' ').next().unwrap_or_default();
            let stops =
                STOPS.iter().any(|known| statement.contains(known)) && ["block", "log", "tx_intent"].contains(&table);
            if GROWING.contains(&table) && !stops && !SMALL.iter().any(|index| what.contains(index)) {
                wrong.push(format!("{step}: {statement}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// Asks what the tasks ask, whether or not they would of these jobs.
async fn a_turn_of_each_task(store: &Store) {
    let jobs = [JobId(1), JobId(2)];
    let blocks = chain(None, 0, &[&[[TERMS, 1]], &[[TERMS, 2]]]);
    // The indexer and the sweep.
    extend(store, &blocks[..1]).await.unwrap();
    let (now, live) = store.live_now().await.unwrap();
    extend(store, &blocks[1..]).await.unwrap();
    let more = store.live_now().await.unwrap().1;
    assert_eq!((live.len(), more.len()), (1, 2));
    let cursor = store.cursor().await.unwrap().expect("blocks are stored");
    store.finality().await.unwrap();
    store.replaced_code().await.unwrap();
    store.newest_claimed().await.unwrap();
    store.set_final(cursor).await.unwrap();
    store.set_safe(cursor).await.unwrap();
    // The scheduler.
    store.time().await.unwrap();
    store.scene(US, cursor.number, now, ["sha256:00"], [cursor.number]).await.unwrap();
    assert!(choose(store, 1, 9).await && choose(store, 2, 9).await);
    store.reservations().await.unwrap();
    store.intents_of(&jobs).await.unwrap();
    store.withdraw_queued(UnixSeconds(1)).await.unwrap();
    store.posted(&jobs).await.unwrap();
    // What prepares, signs, sends and settles.
    store.untried_intents(US, 10).await.unwrap();
    store.ready(US, 10, true).await.unwrap();
    let claim = open_intents(store).await[0].id;
    sign(store, claim, 0, attempt(1)).await.unwrap();
    store.mark_sent(&[B256::repeat_byte(1)]).await.unwrap();
    store.signed_intents(US).await.unwrap();
    store.tx_orders().await.unwrap();
    store.fill_intents(US).await.unwrap();
    store.nonce_gaps(US, 1).await.unwrap();
    store.open_intents(US).await.unwrap();
    store.unsent_intents(US).await.unwrap();
    // Workers, provers and those who tell of results.
    for duty in [Duty::Infer, Duty::Prove] {
        let owed = Owed { job: jobs[0], deal: B256::ZERO, duty };
        store.leased(duty).await.unwrap();
        store.lease(owed, 60).await.unwrap();
        store.job(jobs[0]).await.unwrap();
        store.release(owed, Some("why")).await.unwrap();
        store.put_back(owed).await.unwrap();
    }
    store.oldest_lease([Duty::Infer, Duty::Prove]).await.unwrap();
    store.under_way([Duty::Infer, Duty::Prove]).await.unwrap();
    store.record(jobs[0], &Work::Announced { at: now, deal: None }).await.unwrap();
    store.unannounced_jobs(US).await.unwrap();
    store.free(&jobs[..1]).await.unwrap();
    // The breaker.
    store.holds().await.unwrap();
    store.breaker_history(US, UnixSeconds(0), 100, 100).await.unwrap();
}
