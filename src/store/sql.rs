//! SQL of people, answered read-only: one statement, so many rows, so much time.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Error, Result, bail, ensure};
use futures::TryStreamExt;
use serde::{Serialize, Serializer};
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{AssertSqlSafe, Column, ConnectOptions, Connection, Executor, Row, SqlSafeStr, SqliteConnection, Statement};
use sqlx::{TypeInfo, ValueRef};

use super::SqliteRow;

/// SQLite's instructions between two looks at the clock.
const STEPS_PER_LOOK: i32 = 10_000;
/// What a statement may begin with. `EXPLAIN` runs nothing; every pragma that only reads is a table, as `pragma_table_info('log')`.
const READS: [&str; 4] = ["SELECT", "WITH", "VALUES", "EXPLAIN"];

/// What a statement returned.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    pub columns: Vec<String>,
    pub rows: Vec<Vec<Cell>>,
    /// Whether there were more rows than asked for.
    pub cut: bool,
}

/// A value of SQLite's. Serializes as a number, as text (a blob as hex after `0x`) or as null.
#[derive(Debug, Clone, PartialEq)]
pub enum Cell {
    Null,
    Integer(i64),
    Real(f64),
    Text(String),
    Blob(Vec<u8>),
}

impl Serialize for Cell {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Cell::Null => serializer.serialize_none(),
            Cell::Integer(number) => serializer.serialize_i64(*number),
            Cell::Real(number) if number.is_finite() => serializer.serialize_f64(*number),
            other => serializer.collect_str(other),
        }
    }
}

impl std::fmt::Display for Cell {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Cell::Null => Ok(()),
            Cell::Integer(number) => number.fmt(f),
            Cell::Real(number) => number.fmt(f),
            Cell::Text(text) => f.write_str(text),
            Cell::Blob(bytes) => f.write_str(&alloy::hex::encode_prefixed(bytes)),
        }
    }
}

/// Runs one statement that reads over the database `file`, for at most `rows_max` rows and `time_max`. Nothing is written,
/// whatever the statement.
///
/// # Errors
/// If it is not one statement that reads, is wrong, or takes longer.
pub async fn select(file: &Path, text: &str, rows_max: usize, time_max: Duration) -> Result<Answer> {
    let text = one_that_reads(text)?;
    let mut connection = connect(file).await?;
    let end = Instant::now() + time_max;
    connection.lock_handle().await?.set_progress_handler(STEPS_PER_LOOK, move || Instant::now() < end);
    let answer = answer(&mut connection, text, rows_max).await.map_err(|error| {
        let code = error.as_database_error().and_then(|error| error.code()).and_then(|code| code.parse::<i32>().ok());
        // The low byte is the primary code.
        match code.map(|code| code & 0xff) {
            Some(SQLITE_READONLY) => Error::msg("the statement writes: the database is open for reading only"),
            Some(SQLITE_INTERRUPT) => Error::msg(format!("it took longer than {} s: stopped", time_max.as_secs())),
            _ => error
                .as_database_error()
                .map_or_else(|| Error::msg(error.to_string()), |said| Error::msg(said.message().to_owned())),
        }
    });
    drop(connection);
    answer
}

// Source: <https://www.sqlite.org/rescode.html>.
const SQLITE_READONLY: i32 = 8;
const SQLITE_INTERRUPT: i32 = 9;

async fn connect(file: &Path) -> Result<SqliteConnection> {
    let options = SqliteConnectOptions::new().filename(file).read_only(true).pragma("query_only", "on");
    // A slow query is no news to who typed it.
    options.disable_statement_logging().connect().await.with_context(|| format!("open database {}", file.display()))
}

async fn answer(connection: &mut SqliteConnection, text: &str, rows_max: usize) -> Result<Answer, sqlx::Error> {
    let statement = connection.prepare(AssertSqlSafe(text.to_owned()).into_sql_str()).await?;
    let columns = statement.columns().iter().map(|column| column.name().to_owned()).collect();
    let (mut rows, mut cut) = (Vec::new(), false);
    let mut found = statement.query().fetch(connection);
    while let Some(row) = found.try_next().await? {
        if rows.len() == rows_max {
            cut = true;
            break;
        }
        rows.push((0..row.len()).map(|column| cell(&row, column)).collect::<Result<_, _>>()?);
    }
    drop(found);
    Ok(Answer { columns, rows, cut })
}

fn cell(row: &SqliteRow, column: usize) -> Result<Cell, sqlx::Error> {
    let value = row.try_get_raw(column)?;
    let kind = value.type_info().name().to_owned();
    Ok(match kind.as_str() {
        _ if value.is_null() => Cell::Null,
        "INTEGER" => Cell::Integer(row.try_get_unchecked(column)?),
        "REAL" => Cell::Real(row.try_get_unchecked(column)?),
        "BLOB" => Cell::Blob(row.try_get_unchecked(column)?),
        // Text that is none is shown as the bytes it is.
        _ => match row.try_get_unchecked(column) {
            Ok(text) => Cell::Text(text),
            Err(_) => Cell::Blob(row.try_get_unchecked(column)?),
        },
    })
}

/// Returns the one statement in `text` if it only reads.
fn one_that_reads(text: &str) -> Result<&str> {
    let (statement, rest) = split(text);
    ensure!(words(rest).next().is_none(), "more than one statement: give one");
    let Some(first) = words(statement).next() else { bail!("no statement was given") };
    let first = first.to_ascii_uppercase();
    ensure!(
        READS.contains(&first.as_str()),
        "{first} is refused, the database is open for reading only: a statement begins with {}; what a PRAGMA reads is a \
         table, as in SELECT * FROM pragma_table_info('log')",
        READS.join(", ")
    );
    Ok(statement)
}

/// Splits SQL after its first statement.
fn split(text: &str) -> (&str, &str) {
    let mut at = 0;
    while let Some(first) = text[at..].chars().next() {
        let skipped = skip(&text[at..]);
        match first {
            ';' if skipped.is_none() => return (&text[..at], &text[at + 1..]),
            _ => at += skipped.unwrap_or(first.len_utf8()),
        }
    }
    (text, "")
}

/// Returns the words of SQL outside of comments and quotes; signs, `;` among them, are none.
fn words(text: &str) -> impl Iterator<Item = &str> {
    let mut at = 0;
    std::iter::from_fn(move || {
        while let Some(first) = text[at..].chars().next() {
            let rest = &text[at..];
            if first.is_alphanumeric() || first == '_' {
                let length = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
                at += length;
                return Some(&rest[..length]);
            }
            let skipped = skip(rest);
            at += skipped.unwrap_or(first.len_utf8());
            if skipped.is_none() && first != ';' && !first.is_whitespace() {
                return Some(&rest[..first.len_utf8()]);
            }
        }
        None
    })
}

/// Returns the length of the comment or quoted text that SQL begins with.
fn skip(text: &str) -> Option<usize> {
    let to = |from: usize, end: &str| text[from..].find(end).map_or(text.len(), |place| from + place + end.len());
    match text.as_bytes() {
        [b'-', b'-', ..] => Some(to(2, "\n")),
        [b'/', b'*', ..] => Some(to(2, "*/")),
        // A doubled quote ends one text and begins the next.
        [b'\'', ..] => Some(to(1, "'")),
        [b'"', ..] => Some(to(1, "\"")),
        [b'`', ..] => Some(to(1, "`")),
        [b'[', ..] => Some(to(1, "]")),
        _ => None,
    }
}

/// Returns the tables and views of `file` as SQL, each below what the migrations say of it.
pub async fn schema(file: &Path) -> Result<String> {
    let mut said: BTreeMap<String, String> = BTreeMap::new();
    let migrator = sqlx::migrate!();
    for migration in migrator.iter() {
        let mut comment = String::new();
        for line in migration.sql.as_str().lines() {
            let words: Vec<&str> = line.split([' ', ';', '(']).collect();
            match words[..] {
                ["--", ..] => {
                    comment += line;
                    comment += "\n";
                    continue;
                }
                ["CREATE", "TABLE" | "VIEW", name, ..] => drop(said.insert(name.into(), comment.clone())),
                ["ALTER", "TABLE", name, "ADD", ..] => *said.entry(name.into()).or_default() += &comment,
                ["ALTER", "TABLE", name, "RENAME", "TO", new, ..] => {
                    let kept = said.remove(name).unwrap_or_default();
                    said.insert(new.into(), kept);
                }
                _ => {}
            }
            comment.clear();
        }
    }
    let mut connection = connect(file).await?;
    let made: Vec<(String, String)> = sqlx::query_as(
        "SELECT name, sql FROM sqlite_master WHERE type IN ('table', 'view') AND name NOT LIKE 'sqlite%'
         AND name NOT LIKE '\\_sqlx%' ESCAPE '\\' ORDER BY type, name",
    )
    .fetch_all(&mut connection)
    .await?;
    connection.close().await?;
    let shown = made.iter().map(|(name, sql)| format!("{}{sql};\n", said.get(name).map_or("", String::as_str)));
    Ok(shown.collect::<Vec<_>>().join("\n"))
}
