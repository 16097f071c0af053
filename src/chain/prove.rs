//! Whether a block is what its hash says, and whether these are all its logs.
//!
//! A header proves its block by its hash, which is computed here; a header whose bloom leaves our contracts out proves that
//! the block has none of their logs; and all receipts of a block, whose trie root is the header's `receiptsRoot`, prove
//! exactly which it has. So a node that leaves logs out, or makes some up, is found out whatever it answers. Never asks
//! anybody anything.
//!
//! Source: Ethereum's yellow paper, 4.4; EIP-2718; for deposits the OP stack's specification,
//! <https://specs.optimism.io/protocol/deposits.html#deposit-receipt>.

use alloy::consensus::proofs::ordered_trie_root_with_encoder;
use alloy::primitives::{Address, B256, Bloom, BloomInput, Bytes, Log, LogData, U64};
use alloy::rlp::{BufMut, Encodable, Header as RlpHeader};
use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use crate::market::event::RawLog;
use crate::market::types::BlockRef;

/// How it is said that receipts are not a block's.
const ROOT_DIFFERS: &str = "the receipts' root is";

/// How it is said that a header is not what its hash says.
pub const HASH_DIFFERS: &str = "the header's hash is";

/// The type of an OP-stack deposit's receipt.
const DEPOSIT: u64 = 0x7e;

/// A receipt as an endpoint gives it, as far as the trie holds it.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Receipt {
    #[serde(default, rename = "type")]
    kind: U64,
    /// 0 or 1; before Byzantium there was `root` instead.
    status: Option<U64>,
    root: Option<B256>,
    cumulative_gas_used: U64,
    logs_bloom: Bloom,
    logs: Vec<ReceiptLog>,
    transaction_hash: B256,
    block_hash: B256,
    /// Deposits alone have the two.
    deposit_nonce: Option<U64>,
    deposit_receipt_version: Option<U64>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ReceiptLog {
    address: Address,
    topics: Vec<B256>,
    data: Bytes,
}

/// Returns whether the reason why a block is not proven shows that the endpoint told what is not so, rather than too little.
pub fn disproven(reason: &str) -> bool {
    reason.contains(ROOT_DIFFERS) || reason.contains(HASH_DIFFERS)
}

/// Returns whether a block with this bloom has no log of any of `addresses`. No means maybe: a bloom may take others for
/// ours.
pub fn excludes(bloom: &Bloom, addresses: &[Address]) -> bool {
    !addresses.iter().any(|address| bloom.contains_input(BloomInput::Raw(address.as_slice())))
}

/// Returns the logs of `addresses` in `block`, in order, having checked that `receipts` are all of the block's: that their
/// trie root is `receipts_root`.
///
/// # Errors
/// If the root is another, or a receipt says that it is another block's: then nothing is known of the block's logs.
pub fn logs(block: BlockRef, receipts_root: B256, receipts: &[Receipt], addresses: &[Address]) -> Result<Vec<RawLog>> {
    let mut encoded = Vec::with_capacity(receipts.len());
    for (place, receipt) in receipts.iter().enumerate() {
        ensure!(receipt.block_hash == block.hash, "receipt {place} is of block {}", receipt.block_hash);
        encoded.push(receipt.encoded().with_context(|| format!("receipt {place}"))?);
    }
    let root = ordered_trie_root_with_encoder(&encoded, |receipt: &Vec<u8>, out| out.put_slice(receipt));
    ensure!(root == receipts_root, "{ROOT_DIFFERS} {root}, the header's {receipts_root}");
    let mut ours = Vec::new();
    let mut index = 0;
    for receipt in receipts {
        for log in &receipt.logs {
            if addresses.contains(&log.address) {
                ours.push(RawLog {
                    block,
                    index,
                    tx: receipt.transaction_hash,
                    address: log.address,
                    topics: log.topics.clone(),
                    data: log.data.clone(),
                });
            }
            index += 1;
        }
    }
    Ok(ours)
}

impl Receipt {
    /// Returns the receipt as the trie holds it: the type's byte, unless it is 0, and the list of its fields.
    fn encoded(&self) -> Result<Vec<u8>> {
        let kind = self.kind.to::<u64>();
        ensure!(kind < 0x80, "its type is {kind}, no transaction's");
        let mut fields = Vec::new();
        match (self.status, self.root) {
            (Some(status), _) => status.encode(&mut fields),
            (None, Some(root)) => root.encode(&mut fields),
            (None, None) => anyhow::bail!("it has neither a status nor a root"),
        }
        self.cumulative_gas_used.encode(&mut fields);
        self.logs_bloom.encode(&mut fields);
        let logs: Vec<Log> = self.logs.iter().map(ReceiptLog::log).collect();
        logs.encode(&mut fields);
        if kind == DEPOSIT {
            // Since Canyon, which brought the version; before, endpoints tell a nonce that the trie does not hold.
            if let (Some(nonce), Some(version)) = (self.deposit_nonce, self.deposit_receipt_version) {
                nonce.encode(&mut fields);
                version.encode(&mut fields);
            }
        }
        let mut encoded = Vec::with_capacity(fields.len() + 10);
        if kind != 0 {
            encoded.put_u8(kind as u8);
        }
        RlpHeader { list: true, payload_length: fields.len() }.encode(&mut encoded);
        encoded.put_slice(&fields);
        Ok(encoded)
    }
}

impl ReceiptLog {
    fn log(&self) -> Log {
        Log { address: self.address, data: LogData::new_unchecked(self.topics.clone(), self.data.clone()) }
    }
}

#[cfg(test)]
mod tests {
    use alloy::consensus::proofs::calculate_receipt_root;
    use alloy::consensus::{Eip658Value, ReceiptEnvelope, ReceiptWithBloom};
    use alloy::primitives::hex;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    const OURS: Address = Address::repeat_byte(0xaa);
    const BLOCK: BlockRef = BlockRef { number: 7, hash: B256::repeat_byte(7) };

    fn receipt(kind: u64, gas: u64, logs: Value) -> Value {
        let mut bloom = Bloom::ZERO;
        for log in logs.as_array().expect("a list") {
            bloom.accrue_log(&parsed(log).log());
        }
        json!({
            "type": U64::from(kind), "status": "0x1", "cumulativeGasUsed": U64::from(gas), "logsBloom": bloom, "logs": logs,
            "transactionHash": B256::repeat_byte(kind as u8), "blockHash": BLOCK.hash, "gasUsed": "0x1", "from": OURS,
        })
    }

    fn parsed(log: &Value) -> ReceiptLog {
        serde_json::from_value(log.clone()).expect("a log")
    }

    fn log(address: Address, topics: usize, data: &[u8]) -> Value {
        let topics: Vec<B256> = (0..topics).map(|topic| B256::repeat_byte(topic as u8)).collect();
        json!({ "address": address, "topics": topics, "data": Bytes::copy_from_slice(data), "logIndex": "0x0" })
    }

    fn read(receipts: &[Value]) -> Vec<Receipt> {
        receipts.iter().map(|receipt| serde_json::from_value(receipt.clone()).expect("a receipt")).collect()
    }

    /// The root as alloy computes it, of receipts of the types Ethereum has.
    fn root(receipts: &[Value]) -> B256 {
        let envelope = |value: &Value| {
            let [receipt] = &read(std::slice::from_ref(value))[..] else { panic!("one") };
            let inner = ReceiptWithBloom {
                receipt: alloy::consensus::Receipt {
                    status: Eip658Value::Eip658(true),
                    cumulative_gas_used: receipt.cumulative_gas_used.to(),
                    logs: receipt.logs.iter().map(ReceiptLog::log).collect::<Vec<Log>>(),
                },
                logs_bloom: receipt.logs_bloom,
            };
            match receipt.kind.to::<u64>() {
                0 => ReceiptEnvelope::Legacy(inner),
                1 => ReceiptEnvelope::Eip2930(inner),
                2 => ReceiptEnvelope::Eip1559(inner),
                3 => ReceiptEnvelope::Eip4844(inner),
                _ => ReceiptEnvelope::Eip7702(inner),
            }
        };
        calculate_receipt_root(&receipts.iter().map(envelope).collect::<Vec<_>>())
    }

    fn block_of(count: u64) -> Vec<Value> {
        let logs = |i: u64| match i % 3 {
            0 => json!([]),
            1 => json!([log(OURS, 3, b"ours"), log(Address::ZERO, 0, &[])]),
            _ => json!([log(Address::ZERO, 1, &[9; 200]), log(OURS, 4, &[])]),
        };
        (0..count).map(|i| receipt(i % 5, 21_000 * (i + 1), logs(i))).collect()
    }

    #[test]
    fn the_logs_of_a_block_are_exactly_those_its_receipts_root_says() {
        for count in [0, 1, 2, 17, 130, 300] {
            let receipts = block_of(count);
            let ours = logs(BLOCK, root(&receipts), &read(&receipts), &[OURS]).expect("proven");
            let (ones, twos) = ((count + 1) / 3, count / 3);
            assert_eq!(ours.len() as u64, ones + twos, "{count} receipts");
            assert!(ours.iter().all(|log| log.address == OURS && log.block == BLOCK));
            let indices: Vec<u64> = ours.iter().map(|log| log.index).collect();
            let expected: Vec<u64> = (0..ones + twos).map(|n| n * 2 + n % 2).collect();
            assert_eq!(indices, expected, "places count the logs of others too");
        }
    }

    #[test]
    fn nothing_left_out_made_up_or_moved_passes() {
        let receipts = block_of(17);
        let root = root(&receipts);
        let refused = |change: &dyn Fn(&mut Vec<Value>), why: &str| {
            let mut bent = receipts.clone();
            change(&mut bent);
            let error = format!("{:#}", logs(BLOCK, root, &read(&bent), &[OURS]).expect_err(why));
            assert!(error.contains(why), "{error}");
        };
        refused(&|all| _ = all[1]["logs"].as_array_mut().unwrap().pop(), "root");
        refused(&|all| all[1]["logs"].as_array_mut().unwrap().push(log(OURS, 1, b"more")), "root");
        refused(&|all| all[1]["logs"][0]["data"] = json!("0x00"), "root");
        refused(&|all| all[1]["logs"][0]["topics"][0] = json!(B256::with_last_byte(1)), "root");
        refused(&|all| all[1]["logs"][0]["address"] = json!(Address::ZERO), "root");
        refused(&|all| all.swap(1, 4), "root");
        refused(&|all| _ = all.pop(), "root");
        refused(&|all| all[3]["status"] = json!("0x0"), "root");
        refused(&|all| all[3]["type"] = json!("0x0"), "root");
        refused(&|all| all[3]["type"] = json!("0x80"), "no transaction's");
        refused(&|all| all[3]["status"] = Value::Null, "neither a status nor a root");
        refused(&|all| all[3]["blockHash"] = json!(B256::ZERO), "receipt 3 is of block");
    }

    /// As OP-stack chains have it since Canyon, written down byte for byte: type, list of 269 bytes, status, gas, bloom, no
    /// logs, nonce, version.
    #[test]
    fn a_deposits_receipt_is_encoded_as_the_op_stack_does() {
        let mut deposit = receipt(DEPOSIT, 46_913, json!([]));
        deposit["depositNonce"] = json!("0x3d3bbf");
        deposit["depositReceiptVersion"] = json!("0x1");
        let mut bytes = hex!("7ef9010d0182b741b90100").to_vec();
        bytes.extend([0; 256]);
        bytes.extend(hex!("c0833d3bbf01"));
        assert_eq!(read(&[deposit.clone()])[0].encoded().unwrap(), bytes);
        // Before Canyon the trie has neither, whatever the endpoint tells.
        deposit["depositReceiptVersion"] = Value::Null;
        let mut bytes = hex!("7ef901080182b741b90100").to_vec();
        bytes.extend([0; 256]);
        bytes.push(0xc0);
        assert_eq!(read(&[deposit])[0].encoded().unwrap(), bytes);
    }

    #[test]
    fn a_block_of_an_op_stack_chain_is_proven() {
        let mut deposit = receipt(DEPOSIT, 46_913, json!([log(OURS, 2, b"bridged")]));
        deposit["depositNonce"] = json!("0x3d3bbf");
        deposit["depositReceiptVersion"] = json!("0x1");
        let receipts = read(&[deposit, receipt(2, 90_000, json!([log(OURS, 1, b"ours")]))]);
        let encoded: Vec<Vec<u8>> = receipts.iter().map(|receipt| receipt.encoded().unwrap()).collect();
        let root = ordered_trie_root_with_encoder(&encoded, |receipt: &Vec<u8>, out| out.put_slice(receipt));
        assert_eq!(logs(BLOCK, root, &receipts, &[OURS]).unwrap().len(), 2);
        let mut bent = receipts;
        bent[0].deposit_nonce = Some(U64::from(1));
        assert!(logs(BLOCK, root, &bent, &[OURS]).is_err());
    }

    proptest! {
        #[test]
        fn a_bloom_never_leaves_out_what_is_there(logs in prop::collection::vec(any::<[u8; 20]>(), 0..40)) {
            let addresses: Vec<Address> = logs.into_iter().map(Address::from).collect();
            let mut bloom = Bloom::ZERO;
            for address in &addresses {
                bloom.accrue_log(&Log { address: *address, data: LogData::default() });
            }
            for address in &addresses {
                prop_assert!(!excludes(&bloom, &[OURS, *address]));
            }
            prop_assert!(excludes(&Bloom::ZERO, &addresses));
        }
    }
}
