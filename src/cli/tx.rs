//! `fabstir tx`: the account's transactions, and what an operator asks of their sender.

use anyhow::{Result, anyhow};
use serde_json::{Value, json};

use super::history::{open, utc};
use super::{Fault, Global, configuration, plain, print_json, say};
use crate::store::{OrderKind, Ordered, TxOrder, TxRow};

#[derive(Debug, clap::Subcommand)]
pub enum TxCommand {
    /// List open transactions, oldest first, each with what is asked of the sender.
    List {
        /// Those that are finished, too.
        #[arg(long)]
        all: bool,
    },
    /// Offer a higher fee for one that is signed and not mined.
    Bump {
        /// Its number in `fabstir tx list`.
        id: i64,
    },
    /// Drop one that is queued; of one that is signed, take the nonce with nothing. It may be mined all the same.
    Cancel {
        /// Its number in `fabstir tx list`.
        id: i64,
    },
    /// Send the newest bytes of one that is signed again.
    Rebroadcast {
        /// Its number in `fabstir tx list`.
        id: i64,
    },
}

/// Runs `fabstir tx`.
pub async fn tx(global: &Global, command: &TxCommand) -> Result<()> {
    let (id, what) = match *command {
        TxCommand::List { all } => return list(global, all).await,
        TxCommand::Bump { id } => (id, OrderKind::Bump),
        TxCommand::Cancel { id } => (id, OrderKind::Cancel),
        TxCommand::Rebroadcast { id } => (id, OrderKind::Rebroadcast),
    };
    let store = open(&configuration(global)?).await?;
    let ordered = store.order_tx(id, what).await?;
    store.close().await;
    let refused = match ordered {
        Ordered::Noted if global.json => return print_json(&json!({ "intent": id, "what": what })),
        Ordered::Noted => return say(format!("{} of transaction {id} is noted for the node's sender", what.name())),
        Ordered::Unknown => anyhow!("there is no transaction {id}: `fabstir tx list --all` lists those there are"),
        Ordered::Unfit(state) => {
            let fits = if what == OrderKind::Cancel { "queued or signed" } else { "signed" };
            anyhow!("transaction {id} is {state}: {} is for one that is {fits}", what.name())
        }
    };
    Err(Fault::Usage.of(refused))
}

async fn list(global: &Global, all: bool) -> Result<()> {
    let store = open(&configuration(global)?).await?;
    let (rows, orders) = (store.tx_rows(!all).await?, store.tx_orders().await?);
    store.close().await;
    let asked = |row: &TxRow| orders.iter().filter(|order| order.intent == row.id).copied().collect::<Vec<TxOrder>>();
    if global.json {
        return print_json(&rows.iter().map(|row| shown(row, &asked(row))).collect::<Vec<_>>());
    }
    say(format!("{:>6}  {:<9}  {:<9}  {:>7}  {:>6}  {:<20}  WHAT", "ID", "KIND", "STATE", "NONCE", "JOB", "SINCE"))?;
    for row in &rows {
        let number = |number: Option<u64>| number.map_or("-".into(), |number| number.to_string());
        let (nonce, job, since) = (number(row.nonce), number(row.job.map(|job| job.0)), utc(row.time));
        let mut what: Vec<String> = Vec::new();
        what.extend(row.hashes.last().map(|hash| format!("{hash}")));
        what.extend((row.hashes.len() > 1).then(|| format!("attempt {}", row.hashes.len())));
        what.extend(row.fee_wei().map(|fee| format!("{fee} wei in block {}", number(row.block))));
        what.extend(row.note.as_deref().map(plain));
        what.extend(asked(row).iter().map(|order| format!("TO {}", order.what.name().to_uppercase())));
        let (id, kind, state) = (row.id, &row.kind, &row.state);
        say(format!("{id:>6}  {kind:<9}  {state:<9}  {nonce:>7}  {job:>6}  {since:<20}  {}", what.join(", ")))?;
    }
    Ok(())
}

fn shown(row: &TxRow, orders: &[TxOrder]) -> Value {
    json!({
        "id": row.id, "kind": row.kind, "state": row.state, "job": row.job, "nonce": row.nonce, "at": row.time,
        "target": row.target, "signer": row.signer, "hashes": row.hashes, "block": row.block,
        "gas_used": row.gas_used, "fee_wei": row.fee_wei().map(|fee| fee.to_string()), "note": row.note, "orders": orders,
    })
}
