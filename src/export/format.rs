//! Rows as Parquet, CSV and JSON lines: written in one go, in bounded memory, and read back one by one.

use std::cell::Cell;
use std::fs::File;
use std::io::{self, BufRead, BufReader, BufWriter, Write};
use std::panic::{self, AssertUnwindSafe};
use std::path::Path;
use std::sync::{Arc, Once};

use anyhow::{Context, Result, bail, ensure};
use clap::ValueEnum;
use parquet::basic::Compression;
use parquet::data_type::{ByteArray, ByteArrayType, Int64Type};
use parquet::file::properties::WriterProperties;
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::file::writer::SerializedFileWriter;
use parquet::record::{Field, reader::RowIter};
use parquet::schema::parser::parse_message_type;
use parquet::schema::types::TypePtr;
use serde::ser::{SerializeMap, Serializer};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::table::{CHECK, Column, RowChain, Table, Value, Values};

/// A row group is written when it has so many rows, or so many bytes of text.
const GROUP_ROWS: usize = 50_000;
const GROUP_BYTES: usize = 16 << 20;

/// How rows are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    Parquet,
    Csv,
    Jsonl,
}

impl Format {
    /// Returns the ending of a file's name.
    pub fn name(self) -> &'static str {
        match self {
            Format::Parquet => "parquet",
            Format::Csv => "csv",
            Format::Jsonl => "jsonl",
        }
    }
}

/// What was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    pub rows: u64,
    pub bytes: u64,
    /// Of the file.
    pub sha256: String,
    /// Of the rows; see [`RowChain`].
    pub rows_sha256: String,
}

/// Writes the rows of one table to one file.
pub struct Writer {
    columns: &'static [Column],
    chain: RowChain,
    rows: u64,
    sink: Sink,
}

enum Sink {
    Parquet { writer: SerializedFileWriter<Digested>, group: Vec<Values>, bytes: usize },
    Csv(Box<csv::Writer<Digested>>),
    Jsonl(BufWriter<Digested>),
}

impl Writer {
    /// Makes the file, which must not exist.
    pub fn create(path: &Path, table: Table, format: Format) -> Result<Self> {
        let file = Digested { file: File::create_new(path)?, sha256: Sha256::new(), bytes: 0 };
        let sink = match format {
            Format::Parquet => {
                let properties = WriterProperties::builder()
                    .set_compression(Compression::SNAPPY)
                    .set_created_by("fabstir".into())
                    .build();
                let writer = SerializedFileWriter::new(file, message(table)?, Arc::new(properties))?;
                Sink::Parquet { writer, group: Vec::new(), bytes: 0 }
            }
            Format::Csv => {
                let mut writer = csv::Writer::from_writer(file);
                writer.write_record(header(table))?;
                Sink::Csv(Box::new(writer))
            }
            Format::Jsonl => Sink::Jsonl(BufWriter::new(file)),
        };
        Ok(Self { columns: table.columns(), chain: RowChain::default(), rows: 0, sink })
    }

    /// Appends a row.
    pub fn write(&mut self, mut row: Values) -> Result<()> {
        let check = self.chain.add(&row, self.columns)?;
        row.push(Value::Text(check));
        self.rows += 1;
        match &mut self.sink {
            Sink::Parquet { writer, group, bytes } => {
                let size = |value: &Value| if let Value::Text(text) = value { text.len() } else { 8 };
                *bytes += row.iter().map(size).sum::<usize>();
                group.push(row);
                if group.len() >= GROUP_ROWS || *bytes >= GROUP_BYTES {
                    write_group(writer, self.columns, std::mem::take(group))?;
                    *bytes = 0;
                }
            }
            Sink::Csv(writer) => writer.write_record(row.iter().map(|value| match value {
                Value::Nothing => String::new(),
                Value::Number(number) => number.to_string(),
                Value::Text(text) => text.clone(),
            }))?,
            Sink::Jsonl(writer) => {
                let mut line = serde_json::Serializer::new(&mut *writer);
                let mut object = line.serialize_map(Some(row.len()))?;
                for (column, value) in self.columns.iter().chain([&CHECK]).zip(&row) {
                    object.serialize_entry(column.name, value)?;
                }
                object.end()?;
                writer.write_all(b"\n")?;
            }
        }
        Ok(())
    }

    /// Writes what is left, durably, and says what was written.
    pub fn finish(self) -> Result<Written> {
        let file = match self.sink {
            Sink::Parquet { mut writer, group, .. } => {
                if !group.is_empty() {
                    write_group(&mut writer, self.columns, group)?;
                }
                writer.into_inner()?
            }
            Sink::Csv(writer) => writer.into_inner().map_err(|error| error.into_error())?,
            Sink::Jsonl(writer) => writer.into_inner().map_err(|error| error.into_error())?,
        };
        file.file.sync_all()?;
        let sha256 = alloy::hex::encode(file.sha256.finalize());
        Ok(Written { rows: self.rows, bytes: file.bytes, sha256, rows_sha256: self.chain.digest() })
    }
}

/// A file that knows its digest.
struct Digested {
    file: File,
    sha256: Sha256,
    bytes: u64,
}

impl Write for Digested {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.sha256.update(&bytes[..written]);
        self.bytes += written as u64;
        Ok(written)
    }
    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

fn header(table: Table) -> impl Iterator<Item = &'static str> {
    table.columns().iter().chain([&CHECK]).map(|column| column.name)
}

/// Returns a table's columns in Parquet's words.
fn message(table: Table) -> Result<TypePtr> {
    let columns = table.columns().iter().chain([&CHECK]).map(|column| {
        let kind = if column.is_number { ("int64", "INTEGER(64,false)") } else { ("binary", "STRING") };
        let repeated = if column.optional { "optional" } else { "required" };
        format!("{repeated} {} {} ({});", kind.0, column.name, kind.1)
    });
    let text = format!("message {} {{ {} }}", table.name(), columns.collect::<String>());
    Ok(Arc::new(parse_message_type(&text)?))
}

fn write_group(
    writer: &mut SerializedFileWriter<Digested>,
    columns: &'static [Column],
    rows: Vec<Values>,
) -> Result<()> {
    let mut group = writer.next_row_group()?;
    for (place, column) in columns.iter().chain([&CHECK]).enumerate() {
        let mut written = group.next_column()?.context("a column too few")?;
        let values = || rows.iter().map(|row| &row[place]);
        let present: Vec<i16> = values().map(|value| i16::from(*value != Value::Nothing)).collect();
        let present = column.optional.then_some(&present[..]);
        if column.is_number {
            // The type says that it has no sign.
            let number = |value: &Value| if let Value::Number(number) = value { Some(*number as i64) } else { None };
            let numbers: Vec<i64> = values().filter_map(number).collect();
            written.typed::<Int64Type>().write_batch(&numbers, present, None)?;
        } else {
            let text = |value: &Value| if let Value::Text(text) = value { Some(text.as_str().into()) } else { None };
            let texts: Vec<ByteArray> = values().filter_map(text).collect();
            written.typed::<ByteArrayType>().write_batch(&texts, present, None)?;
        }
        written.close()?;
    }
    group.close()?;
    Ok(())
}

/// Reads the rows of a file, each with its `check`, until `each` says that it is enough. A row that cannot be read is the last.
///
/// # Errors
/// If the file cannot be read at all, or is no such table.
pub fn read(
    path: &Path,
    table: Table,
    format: Format,
    each: &mut dyn FnMut(Result<(Values, String)>) -> bool,
) -> Result<()> {
    match format {
        Format::Parquet => without_panic(|| read_parquet(path, table, each)),
        Format::Csv => read_csv(path, table, each),
        Format::Jsonl => read_jsonl(path, table, each),
    }
}

/// Runs what may panic over a damaged file, as the reader of Parquet does, and makes that an error.
fn without_panic(run: impl FnOnce() -> Result<()>) -> Result<()> {
    thread_local! { static QUIET: Cell<bool> = const { Cell::new(false) } }
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let usual = panic::take_hook();
        panic::set_hook(Box::new(move |what| {
            if !QUIET.get() {
                usual(what)
            }
        }));
    });
    QUIET.set(true);
    let done = panic::catch_unwind(AssertUnwindSafe(run));
    QUIET.set(false);
    done.unwrap_or_else(|_| bail!("it is damaged: its reader gave up"))
}

fn read_parquet(path: &Path, table: Table, each: &mut dyn FnMut(Result<(Values, String)>) -> bool) -> Result<()> {
    let reader = SerializedFileReader::new(File::open(path)?)?;
    let columns = reader.metadata().file_metadata().schema_descr_ptr();
    ensure!(columns.root_schema() == message(table)?.as_ref(), "its columns are not those of {}", table.name());
    for group in 0..reader.num_row_groups() {
        let group = reader.get_row_group(group)?;
        for row in RowIter::from_row_group(None, &*group)? {
            let values = row.context("read the row").and_then(|row| {
                let value = |(_, field)| match field {
                    Field::Null => Ok(Value::Nothing),
                    Field::ULong(number) => Ok(Value::Number(number)),
                    Field::Str(text) => Ok(Value::Text(text)),
                    other => bail!("a value is {other}"),
                };
                row.into_columns().into_iter().map(value).collect::<Result<Values>>()
            });
            let failed = values.is_err();
            if !each(values.and_then(apart)) || failed {
                return Ok(());
            }
        }
    }
    Ok(())
}

fn read_csv(path: &Path, table: Table, each: &mut dyn FnMut(Result<(Values, String)>) -> bool) -> Result<()> {
    let mut reader = csv::Reader::from_path(path)?;
    ensure!(reader.headers()?.iter().eq(header(table)), "its columns are not those of {}", table.name());
    for record in reader.records() {
        let values = record.context("read the row").and_then(|record| {
            let value = |(column, text): (&Column, &str)| match (text, column.is_number) {
                ("", _) if column.optional => Ok(Value::Nothing),
                (text, true) => {
                    text.parse().map(Value::Number).with_context(|| format!("{} is no number", column.name))
                }
                (text, false) => Ok(Value::Text(text.into())),
            };
            table.columns().iter().chain([&CHECK]).zip(&record).map(value).collect::<Result<Values>>()
        });
        let failed = values.is_err();
        if !each(values.and_then(apart)) || failed {
            return Ok(());
        }
    }
    Ok(())
}

fn read_jsonl(path: &Path, table: Table, each: &mut dyn FnMut(Result<(Values, String)>) -> bool) -> Result<()> {
    for line in BufReader::new(File::open(path)?).lines() {
        let values = line.context("read the row").and_then(|line| {
            let mut object: serde_json::Map<String, serde_json::Value> =
                serde_json::from_str(&line).context("the row is no JSON object")?;
            let named = |column: &Column| match (object.remove(column.name), column.is_number) {
                (Some(serde_json::Value::Null), _) if column.optional => Ok(Value::Nothing),
                (Some(serde_json::Value::Number(number)), true) => {
                    number.as_u64().map(Value::Number).with_context(|| format!("{} is no whole number", column.name))
                }
                (Some(serde_json::Value::String(text)), false) => Ok(Value::Text(text)),
                _ => bail!("{} is missing or of another kind", column.name),
            };
            let values = table.columns().iter().chain([&CHECK]).map(named).collect::<Result<Values>>()?;
            ensure!(object.is_empty(), "the row has more columns");
            Ok(values)
        });
        let failed = values.is_err();
        if !each(values.and_then(apart)) || failed {
            return Ok(());
        }
    }
    Ok(())
}

/// Takes the `check` off a row.
fn apart(mut values: Values) -> Result<(Values, String)> {
    match values.pop() {
        Some(Value::Text(check)) => Ok((values, check)),
        _ => bail!("the row has no check"),
    }
}
