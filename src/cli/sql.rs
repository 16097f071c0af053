//! `fabstir sql`: questions to the database that no command answers.

use std::time::Duration;

use anyhow::{Result, bail};
use serde_json::{Map, Value};

use super::history::existing;
use super::{Fault, Global, configuration, plain, print_json, say};
use crate::store::{self, Answer, Cell};

/// Characters of a cell that people are shown; `--json` has all.
const SHOWN_MAX: usize = 80;

#[derive(Debug, clap::Args)]
pub struct SqlArguments {
    /// One statement that reads: SELECT, WITH, VALUES or EXPLAIN.
    #[arg(required_unless_present = "schema", conflicts_with = "schema")]
    statement: Option<String>,
    /// Print the tables and the view with what they mean.
    #[arg(long)]
    schema: bool,
    /// At most this many rows.
    #[arg(long, default_value_t = 1000, value_name = "N")]
    limit: usize,
    /// Stop after so many seconds.
    #[arg(long, default_value_t = 30, value_name = "SECONDS")]
    timeout: u64,
}

/// Runs `fabstir sql`.
pub async fn sql(global: &Global, arguments: &SqlArguments) -> Result<()> {
    let file = existing(&configuration(global)?)?;
    let Some(statement) = &arguments.statement else {
        let schema = store::schema(&file).await?;
        return if global.json { print_json(&schema) } else { say(schema.trim_end()) };
    };
    let time_max = Duration::from_secs(arguments.timeout);
    let answer = store::select(&file, statement, arguments.limit, time_max).await;
    let answer = answer.map_err(|error| Fault::Usage.of(error))?;
    if global.json {
        print_json(&objects(&answer)?)?;
    } else {
        print_table(&answer)?;
    }
    if answer.cut {
        eprintln!("fabstir: there are more than {} rows: --limit shows more", arguments.limit);
    }
    Ok(())
}

fn objects(answer: &Answer) -> Result<Vec<Value>> {
    for (place, column) in answer.columns.iter().enumerate() {
        if answer.columns[..place].contains(column) {
            bail!(Fault::Usage.of(anyhow::anyhow!("two columns are named {column:?}: name one with AS")));
        }
    }
    let object = |row: &Vec<Cell>| {
        let entry = |(name, cell): (&String, &Cell)| Ok((name.clone(), serde_json::to_value(cell)?));
        Ok(Value::Object(answer.columns.iter().zip(row).map(entry).collect::<Result<Map<_, _>>>()?))
    };
    answer.rows.iter().map(object).collect()
}

fn print_table(answer: &Answer) -> Result<()> {
    let shown = |cell: &Cell| {
        let text = plain(&cell.to_string());
        match text.char_indices().nth(SHOWN_MAX) {
            Some((end, _)) => format!("{}..", &text[..end]),
            None => text,
        }
    };
    let rows: Vec<Vec<String>> = answer.rows.iter().map(|row| row.iter().map(shown).collect()).collect();
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> =
        answer.columns.iter().enumerate().map(|(place, name)| width(place).max(name.chars().count())).collect();
    let is_number = |column: usize| answer.rows.iter().all(|row| !matches!(row[column], Cell::Text(_) | Cell::Blob(_)));
    let line = |cells: &[String]| {
        let cells = cells.iter().enumerate().map(|(place, cell)| {
            let width = widths[place];
            if is_number(place) { format!("{cell:>width$}") } else { format!("{cell:<width$}") }
        });
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    let heads: Vec<String> = answer.columns.iter().map(|name| plain(&name.to_uppercase())).collect();
    say(line(&heads))?;
    rows.iter().try_for_each(|row| say(line(row)))
}
