//! What the chain says became of each job, read from its logs alone.

use std::collections::{BTreeMap, HashMap};

use alloy::primitives::keccak256;
use anyhow::{Context, Result};
use fabstir::market::types::{Address, B256, U256};

use crate::market::Log;

/// A job as its logs have it.
#[derive(Debug, Clone, Default)]
pub struct Fate {
    pub renter: Address,
    /// The transaction that posted it.
    pub posted_by: B256,
    /// The last host, and the block of its claim.
    pub claimed: Option<(Address, u64)>,
    pub claims: usize,
    pub reopened: usize,
    /// The hash of the result's content id that the last host committed to.
    pub committed: Option<B256>,
    /// The result's content id, once for each time it was handed in.
    pub completed: Vec<String>,
    pub missed: bool,
    pub released: Option<(Address, U256)>,
    pub refunded: bool,
}

impl Fate {
    /// Returns whether the money has gone to one of both.
    pub fn is_over(&self) -> bool {
        self.released.is_some() || self.refunded
    }
}

/// Folds logs, oldest first, to what became of each job.
///
/// Source: the events of `contracts/src`.
pub fn fates(logs: &[Log]) -> Result<BTreeMap<u64, Fate>> {
    let names = [
        "JobCreated(uint256,address,string,uint256)",
        "JobClaimed(uint256,address)",
        "JobReopened(uint256,address)",
        "ResultCommitted(uint256,address,bytes32,uint32,bytes32,bytes32)",
        "JobCompleted(uint256,string)",
        "DeadlineMissed(uint256,address)",
        "PaymentReleased(uint256,address,uint256)",
        "PaymentRefunded(uint256,address,uint256)",
    ];
    let names: HashMap<B256, &str> =
        names.iter().map(|name| (keccak256(name), name.split('(').next().unwrap_or_default())).collect();
    let mut fates: BTreeMap<u64, Fate> = BTreeMap::new();
    for log in logs {
        let Some(name) = log.topics.first().and_then(|topic| names.get(topic)) else { continue };
        let job = U256::from_be_bytes(log.topics.get(1).context("an event's job")?.0).to::<u64>();
        let who = log.topics.get(2).map(|topic| Address::from_word(*topic));
        let word = |index: usize| log.data.get(32 * index..32 * index + 32).context("an event's data");
        let fate = fates.entry(job).or_default();
        match *name {
            "JobCreated" => (fate.renter, fate.posted_by) = (who.context("a renter")?, log.tx),
            "JobClaimed" => {
                fate.claims += 1;
                fate.claimed = Some((who.context("a host")?, log.block));
            }
            "JobReopened" => (fate.reopened, fate.claimed, fate.committed) = (fate.reopened + 1, None, None),
            "ResultCommitted" => fate.committed = Some(B256::from_slice(word(2)?)),
            "JobCompleted" => {
                let length = U256::from_be_slice(word(1)?).to::<usize>();
                let text = log.data.get(64..64 + length).context("a content id")?;
                fate.completed.push(String::from_utf8(text.to_vec())?);
            }
            "DeadlineMissed" => fate.missed = true,
            "PaymentReleased" => {
                fate.released = Some((who.context("a host")?, U256::from_be_slice(word(0)?)));
            }
            _ => fate.refunded = true,
        }
    }
    Ok(fates)
}
