//! `fabstir export` and `fabstir verify-export`: the database as files, and their check.

use std::path::PathBuf;

use anyhow::{Result, anyhow, bail, ensure};

use super::history::{open, snapshot};
use super::{Fault, Global, configuration, print_json, run, say};
use crate::export::{self, Format, Table};

#[derive(Debug, clap::Args)]
pub struct ExportArguments {
    /// How the rows are written.
    #[arg(long, value_enum)]
    format: Format,
    /// The folder to make; one that exists is refused.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Only these, with commas between.
    #[arg(long, value_enum, value_delimiter = ',', value_name = "TABLES", default_values_t = Table::ALL)]
    tables: Vec<Table>,
    /// As of the end of this block.
    #[arg(long, value_name = "BLOCK")]
    at_block: Option<u64>,
}

#[derive(Debug, clap::Args)]
pub struct VerifyArguments {
    /// The folder of an export.
    dir: PathBuf,
}

/// Runs `fabstir export`.
pub async fn export(global: &Global, arguments: &ExportArguments) -> Result<()> {
    let config = configuration(global)?;
    let ExportArguments { format, out, tables, at_block } = arguments;
    ensure!(!out.exists(), Fault::Usage.of(anyhow!("{} exists: an export overwrites nothing", out.display())));
    let store = open(&config).await?;
    let mut snapshot = snapshot(&store, *at_block).await?;
    let (_, events) = snapshot.journal_head().await?;
    let bar = run::progress("rows");
    let progress = |table: Table, done: u64| {
        bar.set_message(table.name());
        bar.set_length(if table == Table::Events { events } else { done });
        bar.set_position(done);
    };
    let manifest = tokio::select! {
        manifest = export::write(&mut snapshot, &config.contracts, tables, *format, out, progress) => manifest?,
        _ = tokio::signal::ctrl_c() => bail!("stopped: nothing was exported"),
    };
    bar.finish_and_clear();
    if global.json {
        return print_json(&manifest);
    }
    for file in &manifest.files {
        say(format!("{:<20} {:>9} rows  {:>12} bytes", file.name, file.rows, file.bytes))?;
    }
    for job in &manifest.conflicts {
        say(format!("job {job} is left out: its events contradict each other"))?;
    }
    say(format!("up to block {}, journal head {}", manifest.last_block, manifest.journal_head))
}

/// Runs `fabstir verify-export`.
pub fn verify(global: &Global, arguments: &VerifyArguments) -> Result<()> {
    let bar = run::progress("rows");
    let verified = export::verify(&arguments.dir, |done| bar.set_position(done));
    bar.finish_and_clear();
    let verified = verified.map_err(|error| {
        let fault = if error.is::<serde_json::Error>() { Fault::Divergence } else { Fault::Usage };
        fault.of(error)
    })?;
    if global.json {
        print_json(&verified)?;
    } else {
        for file in &verified.files {
            say(format!("{:<20} {:>9} rows", file.name, file.rows))?;
        }
        for name in &verified.strangers {
            say(format!("{name} is not part of the export"))?;
        }
    }
    let Some((first, more)) = verified.divergences.split_first() else {
        if !global.json {
            let journal = if verified.journal { "the events link to" } else { "not checked, there are no events:" };
            say(format!("all as the manifest says up to block {}", verified.last_block))?;
            say(format!("{journal} journal head {}", verified.journal_head))?;
        }
        return Ok(());
    };
    if !global.json {
        more.iter().try_for_each(|divergence| say(format!("differs: {divergence}")))?;
    }
    bail!(Fault::Divergence.of(anyhow!("the export is not what was written: {first} (and {} more)", more.len())))
}
