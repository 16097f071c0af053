//! The events as they come: what a running node writes into the file, and what a reorg takes away again.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use anyhow::Result;
use sqlx::pool::PoolConnection;
use sqlx::sqlite::Sqlite;
use sqlx::{Connection, SqliteConnection};

use super::snapshot::{EventFilter, EventRow, Order, select_events};
use super::{SqliteRow, Store, hash};
use crate::market::types::B256;

/// How often the file is asked whether somebody wrote to it; the question reads no table.
const POLL: Duration = Duration::from_millis(200);
const EVENTS_PER_LOOK: u32 = 1000;
/// Events that are remembered to see whether they still stand. A reorg that goes further back is told as far as this goes.
const REMEMBERED_MAX: usize = 10_000;

/// What became of the events.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum News {
    Event(Box<EventRow>),
    /// Events told before of blocks above this one stand no more; what stands there instead is told next.
    Reorg {
        back_to: u64,
    },
}

/// Tells the events of a file, whoever writes it.
pub struct Follower {
    store: Store,
    /// One and the same, so that its data version can be compared.
    connection: PoolConnection<Sqlite>,
    filter: EventFilter,
    /// Events to tell first.
    last: Option<u32>,
    seen: VecDeque<Seen>,
    /// From this block on everything is told.
    from: u64,
    /// As of the last look that left nothing to read.
    version: Option<i64>,
}

/// A log that was read. While its link stands, so does every log before it.
struct Seen {
    place: (u64, u64),
    link: B256,
    told: bool,
}

impl Store {
    /// Returns what tells the last `last` events, and then those to come.
    pub async fn follow(&self, filter: EventFilter, last: u32) -> Result<Follower> {
        let connection = self.readers.acquire().await?;
        let (store, seen) = (self.clone(), VecDeque::new());
        Ok(Follower { store, connection, filter, last: Some(last), seen, from: 0, version: None })
    }
}

impl Follower {
    /// Waits until there is something to tell.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub async fn next(&mut self) -> Result<Vec<News>> {
        loop {
            // Asked before the look: what is written during it is found by the next one.
            let version: i64 = sqlx::query_scalar("PRAGMA data_version").fetch_one(&mut *self.connection).await?;
            if self.version != Some(version) {
                let (news, more) = self.look().await?;
                self.version = (!more).then_some(version);
                if !news.is_empty() {
                    return Ok(news);
                }
                if more {
                    continue;
                }
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Returns what is new, and whether there may be more.
    async fn look(&mut self) -> Result<(Vec<News>, bool)> {
        let Self { store, connection, filter, last, seen, from, .. } = self;
        let mut tx = connection.begin().await?;
        let last_final = super::finality(&mut tx).await?.map(|finality| finality.block.number);
        let mut news = Vec::new();
        let all = EventFilter::default();
        if let Some(count) = last.take() {
            let told = select_events(&mut tx, filter, None, u64::MAX, Order::Descending, count).await?;
            // And the newest of all: a reorg is seen by them, and what comes after them is new.
            let newest = select_events(&mut tx, &all, None, u64::MAX, Order::Descending, EVENTS_PER_LOOK).await?;
            let told = read(store, &told, last_final)?;
            let mut both = read(store, &newest, last_final)?;
            both.extend(told.clone());
            *from =
                if newest.len() < EVENTS_PER_LOOK as usize { 0 } else { both.keys().next().map_or(0, |place| place.0) };
            let remember =
                |(place, event): (_, EventRow)| Seen { place, link: event.row.link, told: told.contains_key(&place) };
            seen.extend(both.into_iter().map(remember));
            return Ok((told.into_values().map(|event| News::Event(Box::new(event))).collect(), true));
        }
        let gone = forget_gone(&mut tx, seen).await?;
        let after = seen.back().map(|last| last.place);
        let all = EventFilter { from: Some(*from), ..all };
        let rows = select_events(&mut tx, &all, after, u64::MAX, Order::Ascending, EVENTS_PER_LOOK).await?;
        for row in &rows {
            let event = store.event_row(row, last_final)?;
            let told = filter.takes(&event);
            seen.push_back(Seen { place: event.row.log.place(), link: event.row.link, told });
            news.extend(told.then(|| News::Event(Box::new(event))));
        }
        if let Some((block, true)) = gone {
            let instead = if let Some(News::Event(first)) = news.first() { first.row.log.block.number } else { block };
            news.insert(0, News::Reorg { back_to: instead.min(block).saturating_sub(1) });
        }
        if seen.len() > REMEMBERED_MAX {
            seen.drain(..seen.len() - REMEMBERED_MAX);
            *from = seen[0].place.0;
        }
        Ok((news, rows.len() == EVENTS_PER_LOOK as usize))
    }
}

fn read(store: &Store, rows: &[SqliteRow], last_final: Option<u64>) -> Result<BTreeMap<(u64, u64), EventRow>> {
    let event = |row| store.event_row(row, last_final).map(|event| (event.row.log.place(), event));
    rows.iter().map(event).collect()
}

/// Drops the newest of `seen` that stand no more, and all others of the first block that changed. Returns this block, and whether
/// any of them had been told.
async fn forget_gone(connection: &mut SqliteConnection, seen: &mut VecDeque<Seen>) -> Result<Option<(u64, bool)>> {
    let mut gone: Option<(u64, bool)> = None;
    while let Some(last) = seen.back() {
        let changed = gone.is_some_and(|(block, _)| block == last.place.0);
        if !changed && stands(connection, last).await? {
            break;
        }
        gone = Some((last.place.0, last.told || gone.is_some_and(|(_, told)| told)));
        seen.pop_back();
    }
    Ok(gone)
}

async fn stands(connection: &mut SqliteConnection, seen: &Seen) -> Result<bool> {
    let row = sqlx::query(
        "SELECT link FROM block JOIN log ON log.block = block.seq WHERE canonical = 1 AND number = ? AND log_index = ?",
    )
    .bind(seen.place.0 as i64)
    .bind(seen.place.1 as i64)
    .fetch_optional(connection)
    .await?;
    Ok(row.map(|row| hash(&row, 0)).transpose()? == Some(seen.link))
}
