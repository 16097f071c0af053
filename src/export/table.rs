//! The tables of an export: their columns, their rows, and the chain of digests through a table's rows.

use anyhow::{Context, Result, bail, ensure};
use clap::ValueEnum;
use serde::{Deserialize, Serialize, Serializer};
use sha2::{Digest, Sha256};

use super::hex;
use crate::chain::Contracts;
use crate::market::coverage::Coverage;
use crate::market::event::{Header, RawLog};
use crate::market::job::Job;
use crate::market::types::{Address, B256, BlockRef, Bytes};
use crate::store::{EventRow, JobRow, TxRow, WorkRow};

/// What can be exported.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Table {
    /// Every canonical log, byte for byte, with what it means and its journal link.
    Events,
    /// What the events make of each job.
    Jobs,
    /// The headers that the database keeps.
    Blocks,
    /// What is proven of which blocks.
    Coverage,
    /// What this node finished.
    Work,
    /// Transactions that this node owed.
    Transactions,
}

/// A column. Hashes, addresses and bytes are text, hex after `0x`; amounts are decimal text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Column {
    pub name: &'static str,
    pub is_number: bool,
    /// Whether a row may have nothing here.
    pub optional: bool,
}

const fn number(name: &'static str) -> Column {
    Column { name, is_number: true, optional: false }
}
const fn number_or_none(name: &'static str) -> Column {
    Column { name, is_number: true, optional: true }
}
const fn text(name: &'static str) -> Column {
    Column { name, is_number: false, optional: false }
}
const fn text_or_none(name: &'static str) -> Column {
    Column { name, is_number: false, optional: true }
}

/// The last column of every table; see [`RowChain`].
pub const CHECK: Column = text("check");

const EVENTS: [Column; 13] = [
    number("block"),
    number("log_index"),
    number("time"),
    text_or_none("kind"),
    number_or_none("job"),
    text_or_none("contract"),
    text("tx_hash"),
    text("address"),
    text("block_hash"),
    text("topics"),
    text("data"),
    text_or_none("fields"),
    text("link"),
];
const JOBS: [Column; 17] = [
    number("id"),
    text("state"),
    text("renter"),
    text_or_none("host"),
    text("model"),
    text("input"),
    number("max_tokens"),
    number("temperature_milli"),
    number("seed"),
    text("token"),
    text("payment"),
    text_or_none("paid"),
    number_or_none("tokens"),
    text_or_none("output"),
    number("deadline"),
    number("requires_proof"),
    number("posted_block"),
];
const BLOCKS: [Column; 4] = [number("number"), text("hash"), text("parent"), number("time")];
const COVERAGE: [Column; 4] = [number("first"), number("last"), text("level"), text_or_none("reason")];
const WORK: [Column; 5] = [number("seq"), number("job"), number("time"), text("did"), text("body")];
const TRANSACTIONS: [Column; 14] = [
    number("id"),
    number_or_none("job"),
    number("time"),
    text("kind"),
    text("target"),
    text("signer"),
    text("state"),
    number_or_none("nonce"),
    text_or_none("note"),
    text("hashes"),
    number_or_none("block"),
    number_or_none("gas_used"),
    text_or_none("gas_price"),
    // What a rollup took besides, for the chain below.
    text_or_none("l1_fee"),
];

impl Table {
    /// Every table.
    pub const ALL: [Table; 6] =
        [Table::Events, Table::Jobs, Table::Blocks, Table::Coverage, Table::Work, Table::Transactions];

    /// Returns the name, which is also its file's.
    pub fn name(self) -> &'static str {
        match self {
            Table::Events => "events",
            Table::Jobs => "jobs",
            Table::Blocks => "blocks",
            Table::Coverage => "coverage",
            Table::Work => "work",
            Table::Transactions => "transactions",
        }
    }

    /// Returns the columns besides [`CHECK`].
    pub(super) fn columns(self) -> &'static [Column] {
        match self {
            Table::Events => &EVENTS,
            Table::Jobs => &JOBS,
            Table::Blocks => &BLOCKS,
            Table::Coverage => &COVERAGE,
            Table::Work => &WORK,
            Table::Transactions => &TRANSACTIONS,
        }
    }
}

/// A value of a row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    Nothing,
    Number(u64),
    Text(String),
}

impl Serialize for Value {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Value::Nothing => serializer.serialize_none(),
            Value::Number(number) => serializer.serialize_u64(*number),
            Value::Text(text) => serializer.serialize_str(text),
        }
    }
}

impl From<u64> for Value {
    fn from(number: u64) -> Self {
        Value::Number(number)
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Value::Text(text)
    }
}

impl<V: Into<Value>> From<Option<V>> for Value {
    fn from(value: Option<V>) -> Self {
        value.map_or(Value::Nothing, Into::into)
    }
}

/// The values of one row, in the order of the columns and without [`CHECK`].
pub type Values = Vec<Value>;

macro_rules! values {
    ($($value:expr),* $(,)?) => { vec![$(Value::from($value)),*] };
}

/// Returns the row of an event.
pub fn event(event: &EventRow, contracts: &Contracts) -> Result<Values> {
    let EventRow { row, time, event, .. } = event;
    let log = &row.log;
    let named = contracts.named().into_iter().find(|(_, address)| *address == log.address);
    let fields = event.as_ref().map(serde_json::to_string).transpose().context("write an event's fields")?;
    Ok(values![
        log.block.number,
        log.index,
        time.0,
        row.kind.clone(),
        row.job.map(|job| job.0),
        named.map(|(name, _)| name.to_owned()),
        hex(log.tx),
        hex(log.address),
        hex(log.block.hash),
        hex(log.topics.concat()),
        hex(&log.data),
        fields,
        hex(row.link),
    ])
}

/// Reads the log and its link back from a row of [`event`].
pub fn log(values: &Values) -> Result<(RawLog, B256)> {
    let named = |name: &str| {
        let place = EVENTS.iter().position(|column| column.name == name).context("no such column")?;
        values.get(place).with_context(|| format!("no {name}"))
    };
    let number = |name: &str| match named(name)? {
        Value::Number(number) => Ok(*number),
        _ => bail!("{name} is no number"),
    };
    let text = |name: &str| match named(name)? {
        Value::Text(text) => Ok(text.as_str()),
        _ => bail!("{name} is no text"),
    };
    let hash = |name: &str| text(name)?.parse::<B256>().with_context(|| format!("{name} is not 32 bytes of hex"));
    let bytes = |name: &str| text(name)?.parse::<Bytes>().with_context(|| format!("{name} is not hex"));
    let topics = bytes("topics")?;
    ensure!(topics.len() % 32 == 0, "topics are {} bytes", topics.len());
    let log = RawLog {
        block: BlockRef { number: number("block")?, hash: hash("block_hash")? },
        index: number("log_index")?,
        tx: hash("tx_hash")?,
        address: text("address")?.parse::<Address>().context("address is not 20 bytes of hex")?,
        topics: topics.chunks_exact(32).map(B256::from_slice).collect(),
        data: bytes("data")?,
    };
    Ok((log, hash("link")?))
}

/// Returns the row of a job.
pub fn job(job: &Job) -> Values {
    let (row, terms) = (JobRow::of(job), &job.terms);
    values![
        row.id.0,
        row.state,
        hex(row.renter),
        row.host.map(hex),
        row.model,
        row.input,
        u64::from(row.max_tokens),
        u64::from(terms.temperature_milli),
        u64::from(terms.seed),
        hex(row.token),
        row.payment.to_string(),
        row.paid.map(|paid| paid.to_string()),
        row.tokens.map(u64::from),
        row.output,
        row.deadline.0,
        u64::from(row.requires_proof),
        row.posted_block,
    ]
}

/// Returns the row of a header.
pub fn header(header: &Header) -> Values {
    values![header.block.number, hex(header.block.hash), hex(header.parent), header.time.0]
}

/// Returns the row of a range of blocks.
pub fn coverage(range: Coverage) -> Values {
    values![range.from, range.to, range.level.name().to_owned(), range.reason]
}

/// Returns the row of something finished.
pub fn work(work: WorkRow) -> Values {
    values![work.seq as u64, work.job.0, work.time.0, work.did, work.body]
}

/// Returns the row of a transaction.
pub fn transaction(tx: TxRow) -> Values {
    let hashes: Vec<String> = tx.hashes.iter().map(hex).collect();
    values![
        tx.id as u64,
        tx.job.map(|job| job.0),
        tx.time.0,
        tx.kind,
        hex(tx.target),
        hex(tx.signer),
        tx.state,
        tx.nonce,
        tx.note,
        hashes.join(" "),
        tx.block,
        tx.gas_used,
        tx.gas_price.map(|price| price.to_string()),
        tx.l1_fee.map(|fee| fee.to_string()),
    ]
}

/// A chain of digests through the rows of a table, the same in every format: `SHA-256(digest before ‖ row)`, from 32 zero bytes
/// on, the row as a JSON array of its values without spaces. A row's `check` is the first 16 hex digits of the digest after it,
/// so that the first row that is another is known; the last digest stands in the manifest.
#[derive(Debug, Clone, Copy, Default)]
pub struct RowChain([u8; 32]);

impl RowChain {
    /// Adds a row and returns its `check`.
    ///
    /// # Errors
    /// Never, but for what JSON cannot write.
    pub fn add(&mut self, row: &Values, columns: &[Column]) -> Result<String> {
        // CSV has one way to write nothing and an empty text.
        let empty = |value: &Value, column: &Column| column.optional && *value == Value::Text(String::new());
        let told: Vec<&Value> = row
            .iter()
            .zip(columns)
            .map(|(value, column)| if empty(value, column) { &Value::Nothing } else { value })
            .collect();
        let told = serde_json::to_vec(&told).context("write a row")?;
        self.0 = Sha256::new().chain_update(self.0).chain_update(told).finalize().into();
        Ok(alloy::hex::encode(&self.0[..8]))
    }

    /// Returns the digest of all rows so far.
    pub fn digest(&self) -> String {
        alloy::hex::encode(self.0)
    }
}
