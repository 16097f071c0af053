//! Exports of a small store: the same in every format, and no byte of them can be another without being found.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tempfile::TempDir;

use super::*;
use crate::market::coverage::Coverage;
use crate::market::event::{Event, Header, Range, RawLog};
use crate::market::types::{BlockRef, Bytes, U256, UnixSeconds};
use crate::store::Store;

const MARKETPLACE: Address = Address::repeat_byte(4);

/// A log's data is the text that its event notes of job 7; without data it cannot be read.
fn decode(log: &RawLog) -> Result<Event> {
    ensure!(!log.data.is_empty(), "nothing");
    Ok(Event::JobCompleted { job: JobId(7), output: String::from_utf8(log.data.to_vec())? })
}

fn contracts() -> Contracts {
    let [a, b, c, d, e, f, g, h, i] = [1, 2, 3, 4, 5, 6, 7, 8, 9].map(Address::repeat_byte);
    Contracts {
        governance_token: a,
        node_registry: b,
        payment_escrow: c,
        job_marketplace: d,
        proof_system: e,
        reputation_system: f,
        governance: g,
        timelock: h,
        account_factory: i,
        also: Vec::new(),
    }
}

/// Blocks 10 to 12 with so many logs each.
async fn store(folder: &Path, logs: u64) -> Result<Store> {
    let store = Store::open(&folder.join("store.sqlite"), 31337, MARKETPLACE, Arc::new(decode)).await?;
    let block = |number: u64| BlockRef { number, hash: B256::repeat_byte(number as u8) };
    let header = |number: u64| Header {
        block: block(number),
        parent: B256::repeat_byte(number as u8 - 1),
        time: UnixSeconds(1000 + number),
    };
    let log = |number: u64, index: u64| RawLog {
        block: block(number),
        index,
        tx: B256::repeat_byte(index as u8),
        address: if index.is_multiple_of(2) { MARKETPLACE } else { Address::repeat_byte(5) },
        topics: vec![B256::repeat_byte(1); (index % 5) as usize],
        data: Bytes::from(["", "a, \"b\"\r\n;", "\u{e9}"][(index % 3) as usize]),
    };
    let range = Range {
        headers: (10..=12).map(header).collect(),
        coverage: vec![Coverage::of(10, 12, Level::Complete, Some("=1,\n\"".into()))],
        logs: (10..=12).flat_map(|number| (0..logs).map(move |index| log(number, index))).collect(),
    };
    store.extend(&range).await?;
    Ok(store)
}

async fn export(store: &Store, at: Option<u64>, format: Format, dir: &Path) -> Result<Manifest> {
    let mut snapshot = store.snapshot(at).await?;
    write(&mut snapshot, &contracts(), &Table::ALL, format, dir, |_, _| ()).await
}

const FORMATS: [Format; 3] = [Format::Parquet, Format::Csv, Format::Jsonl];

#[tokio::test]
async fn every_format_says_the_same_and_says_it_always_so() -> Result<()> {
    let folder = TempDir::new()?;
    let store = store(folder.path(), 1100).await?;
    let mut digests = Vec::new();
    for format in FORMATS {
        let dirs = [1, 2].map(|copy| folder.path().join(format!("{copy}.{}", format.name())));
        let manifest = export(&store, None, format, &dirs[0]).await?;
        assert_eq!(export(&store, None, format, &dirs[1]).await?, manifest);
        for entry in std::fs::read_dir(&dirs[0])? {
            let name = entry?.file_name();
            assert!(std::fs::read(dirs[0].join(&name))? == std::fs::read(dirs[1].join(&name))?, "{name:?}");
        }
        let verified = verify(&dirs[0], |_| ())?;
        assert_eq!((verified.divergences, verified.strangers, verified.journal), (vec![], vec![], true));
        assert_eq!((manifest.events, verified.journal_head), (3300, store.journal_head().await?.0));
        assert_eq!(manifest.files.iter().map(|file| file.rows).collect::<Vec<_>>(), [3300, 0, 3, 1, 0, 0]);
        digests.push(manifest.files.into_iter().map(|file| file.rows_sha256).collect::<Vec<_>>());
    }
    assert!(digests.iter().all(|digest| *digest == digests[0]), "{digests:?}");

    let earlier = folder.path().join("earlier");
    let manifest = export(&store, Some(11), Format::Csv, &earlier).await?;
    assert_eq!((manifest.events, manifest.last_block, manifest.coverage.complete), (2200, 11, 2));
    assert_eq!(verify(&earlier, |_| ())?.divergences, []);
    let again = export(&store, Some(11), Format::Csv, &earlier).await.unwrap_err().to_string();
    assert!(again.contains("overwrites nothing"), "{again}");
    let left: Vec<_> = std::fs::read_dir(folder.path())?.map(|entry| entry.unwrap().file_name()).collect();
    assert!(left.iter().all(|name| !name.to_string_lossy().starts_with('.')), "{left:?}");
    Ok(())
}

#[test]
fn a_transaction_is_exported_with_all_that_it_cost() {
    let tx = crate::store::TxRow {
        id: 1,
        job: None,
        time: UnixSeconds(5),
        kind: "claim".into(),
        target: Address::ZERO,
        signer: Address::ZERO,
        state: "mined".into(),
        nonce: Some(0),
        note: None,
        hashes: vec![B256::ZERO],
        block: Some(9),
        gas_used: Some(10),
        gas_price: Some(U256::from(7)),
        l1_fee: Some(U256::from(3)),
    };
    let named = |name| Table::Transactions.columns().iter().position(|column| column.name == name);
    let fee = tx.fee_wei();
    let row = table::transaction(tx);
    assert_eq!(row.len(), Table::Transactions.columns().len());
    let amount = |name| match named(name).map(|place| row[place].clone()) {
        Some(table::Value::Number(number)) => Some(U256::from(number)),
        Some(table::Value::Text(text)) => text.parse().ok(),
        _ => None,
    };
    let [gas, price, l1_fee] = ["gas_used", "gas_price", "l1_fee"].map(|name| amount(name).expect("an amount"));
    assert_eq!(Some(gas * price + l1_fee), fee);
}

#[tokio::test]
async fn no_byte_can_be_another() -> Result<()> {
    let folder = TempDir::new()?;
    let store = store(folder.path(), 4).await?;
    for format in FORMATS {
        let dir = folder.path().join(format.name());
        let mut snapshot = store.snapshot(None).await?;
        let tables = [Table::Events, Table::Coverage];
        write(&mut snapshot, &contracts(), &tables, format, &dir, |_, _| ()).await?;
        let files: Vec<PathBuf> =
            std::fs::read_dir(&dir)?.map(|entry| entry.map(|entry| entry.path())).collect::<Result<_, _>>()?;
        for file in files {
            let whole = std::fs::read(&file)?;
            let name = file.file_name().context("a name")?.to_string_lossy().into_owned();
            // Parquet has more that can be misread.
            let step = if format == Format::Parquet { 7 } else { 41 };
            for place in (0..whole.len()).step_by(step) {
                let mut bytes = whole.clone();
                bytes[place] ^= 1 << (place % 8);
                std::fs::write(&file, &bytes)?;
                match verify(&dir, |_| ()) {
                    Ok(verified) => assert!(!verified.divergences.is_empty(), "{name}: byte {place}"),
                    Err(error) => assert!(name == MANIFEST, "{name}: byte {place}: {error:#}"),
                }
            }
            std::fs::write(&file, &whole[..whole.len() - 1])?;
            assert!(
                verify(&dir, |_| ()).map_or(name == MANIFEST, |verified| !verified.divergences.is_empty()),
                "{name}"
            );
            std::fs::write(&file, &whole)?;
        }
        assert_eq!(verify(&dir, |_| ())?.divergences, []);
    }
    Ok(())
}

#[tokio::test]
async fn a_manifest_that_lies_consistently_is_found_by_the_journal() -> Result<()> {
    let folder = TempDir::new()?;
    let store = store(folder.path(), 4).await?;
    let dir = folder.path().join("export");
    let honest = export(&store, None, Format::Csv, &dir).await?;
    type Lie = fn(&mut Manifest);
    let lies: [(Lie, &str); 5] = [
        (|manifest| manifest.chain_id = 1, "events.csv, row 1: its journal link is"),
        (|manifest| manifest.journal_head = B256::ZERO, "events.csv: the journal ends in"),
        (|manifest| manifest.events = 11, "manifest.json: it tells of 11 events"),
        (
            |manifest| manifest.files[0].name = "../store.sqlite".into(),
            "manifest.json: \"../store.sqlite\" is not the name",
        ),
        (|manifest| manifest.files[2].rows = 4, "blocks.csv, row 4: missing"),
    ];
    for (lie, says) in lies {
        let mut manifest = honest.clone();
        lie(&mut manifest);
        std::fs::write(dir.join(MANIFEST), manifest.sealed()?.1)?;
        let found = verify(&dir, |_| ())?.divergences;
        assert!(found.first().is_some_and(|first| first.to_string().starts_with(says)), "{says}: {found:?}");
    }
    // The rows of another chain in whole: links, checks and digests are right, and only the head is another.
    let other = tempfile::tempdir()?;
    let foreign = self::store(other.path(), 3).await?;
    let theirs = other.path().join("export");
    let mut manifest = export(&foreign, None, Format::Csv, &theirs).await?;
    manifest.journal_head = honest.journal_head;
    std::fs::write(theirs.join(MANIFEST), manifest.sealed()?.1)?;
    let found = verify(&theirs, |_| ())?.divergences;
    assert!(matches!(&found[..], [first] if first.what.starts_with("the journal ends in")), "{found:?}");
    Ok(())
}
