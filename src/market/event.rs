//! What the contracts said: decoded events, and the raw logs they came from.
//!
//! Decoding itself belongs to `chain`; past that border nobody sees an ABI word.

use alloy::primitives::{Keccak256, keccak256};
use serde::{Deserialize, Serialize};

use super::coverage::Coverage;
use super::types::{Address, B256, BlockRef, Bytes, JobId, U256, UnixSeconds};

/// A block header, as far as we keep it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    pub block: BlockRef,
    pub parent: B256,
    pub time: UnixSeconds,
}

/// How much of a block's logs is proven, whatever the endpoint says; least first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// An endpoint said so.
    Claimed,
    /// The header's hash is the one computed here, and its parent is the block before.
    Linked,
    /// And its bloom leaves our contracts out: it has none of their logs.
    Absent,
    /// And all its receipts are at hand, whose root the header has: it has exactly these logs.
    Complete,
}

impl Level {
    /// Every level, least first.
    pub const ALL: [Level; 4] = [Level::Claimed, Level::Linked, Level::Absent, Level::Complete];

    /// Returns the level's name: `claimed`, `linked`, `absent` or `complete`.
    pub fn name(self) -> &'static str {
        match self {
            Level::Claimed => "claimed",
            Level::Linked => "linked",
            Level::Absent => "absent",
            Level::Complete => "complete",
        }
    }

    /// Returns the level of that name, if there is one.
    pub fn named(name: &str) -> Option<Level> {
        Level::ALL.into_iter().find(|level| level.name() == name)
    }

    /// Returns whether which logs the block has is proven.
    pub fn is_proven(self) -> bool {
        self >= Level::Absent
    }
}

/// Blocks that follow one another, and the logs of our contracts in them as far as is proven.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Range {
    /// In order: at least the first and the last, those with logs and the ones after these; all of them where more is proven
    /// than claimed.
    pub headers: Vec<Header>,
    /// What is proven of every block of the range.
    pub coverage: Vec<Coverage>,
    /// In chain order.
    pub logs: Vec<RawLog>,
}

/// One block of a range.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Block<'a> {
    pub coverage: Coverage,
    pub logs: &'a [RawLog],
}

impl Range {
    /// Returns what the range says of one of its blocks; of any other, that nothing is known of it.
    pub fn at(&self, number: u64) -> Block<'_> {
        let covers = |range: &&Coverage| range.from <= number && number <= range.to;
        let found = self.coverage.iter().find(covers);
        let (level, reason) = found.map_or((Level::Claimed, None), |range| (range.level, range.reason.clone()));
        let first = self.logs.partition_point(|log| log.block.number < number);
        let last = self.logs.partition_point(|log| log.block.number <= number);
        Block { coverage: Coverage::of_block(number, level, reason), logs: &self.logs[first..last] }
    }
}

/// A log of one of our contracts, byte for byte as the chain has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RawLog {
    pub block: BlockRef,
    /// Position in the block, counted over all its logs.
    pub index: u64,
    pub tx: B256,
    pub address: Address,
    /// At most four.
    pub topics: Vec<B256>,
    pub data: Bytes,
}

impl RawLog {
    /// Returns where on the chain the log is; logs are ordered by it.
    pub fn place(&self) -> (u64, u64) {
        (self.block.number, self.index)
    }

    /// Returns the journal link of this log after `previous`:
    /// `keccak256(previous ‖ chain id ‖ block ‖ block hash ‖ log index ‖ tx hash ‖ address ‖ number of topics ‖ topics ‖
    /// data)`, numbers as eight big-endian bytes. Two journals with the same head hold the same logs in the same order.
    pub fn link(&self, previous: B256, chain_id: u64) -> B256 {
        let mut hasher = Keccak256::new();
        hasher.update(previous);
        hasher.update(chain_id.to_be_bytes());
        hasher.update(self.block.number.to_be_bytes());
        hasher.update(self.block.hash);
        hasher.update(self.index.to_be_bytes());
        hasher.update(self.tx);
        hasher.update(self.address);
        hasher.update((self.topics.len() as u64).to_be_bytes());
        self.topics.iter().for_each(|topic| hasher.update(topic));
        hasher.update(&self.data);
        hasher.finalize()
    }
}

/// What a renter asked for and locked money behind. Strings are the renter's: bounded by the contract, otherwise unchecked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Terms {
    pub renter: Address,
    /// Text of a model id; only policy decides whether it names a model.
    pub model: String,
    /// Text of the content id of the prompt.
    pub input: String,
    /// At most this many output tokens.
    pub max_tokens: u32,
    /// Sampling temperature in thousandths; 0 is greedy.
    pub temperature_milli: u32,
    pub seed: u32,
    /// Locked amount in the smallest unit of `token`.
    #[serde(serialize_with = "super::types::decimal")]
    pub payment: U256,
    /// The zero address is ETH.
    pub token: Address,
    /// Completed before this moment, or refunded.
    pub deadline: UnixSeconds,
    pub requires_proof: bool,
    /// In gigabytes as the renter states it.
    pub min_gpu_memory: u64,
    /// Least score of a host that claims it, 0 to 1000.
    pub min_reputation: u64,
    /// The only host that may claim it.
    pub reserved_for: Option<Address>,
    /// Where it is to be computed, as the renter names it: what follows `region=` in a part of the result's format.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
}

impl Terms {
    /// Returns a digest of all that the output follows from, beside the job's number: a reorg may give that to another order. It is
    /// what the contract compares when a result is committed to, see `ProofSystem.commitExactly`.
    pub fn order(&self) -> B256 {
        let numbers = [self.max_tokens, self.temperature_milli, self.seed].map(u32::to_be_bytes);
        keccak256([keccak256(&self.model).as_slice(), keccak256(&self.input).as_slice(), &numbers.concat()].concat())
    }

    /// Returns the contract's digest of what a host that claims it agrees to, which its claim names: for whom it computes what, for
    /// how much, and whether with a proof. Left out are the deadline, which moves with the block in which a reorg puts the posting;
    /// what the contract checks of a claim by itself (`min_reputation`, `reserved_for`); and advice that it does not keep
    /// (`min_gpu_memory`, `region`).
    ///
    /// Source: `JobMarketplace.dealOf`.
    pub fn deal(&self) -> B256 {
        let [payment, proof] = [self.payment, U256::from(self.requires_proof)].map(B256::from);
        let words = [self.renter.into_word(), self.order(), self.token.into_word(), payment, proof];
        keccak256(words.map(|word| word.0).concat())
    }
}

/// What a host binds itself to before it knows which positions will be opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Commitment {
    /// Merkle root over the token records.
    pub root: B256,
    pub tokens: u32,
    /// `keccak256` of the output's content id text.
    pub result_hash: B256,
    /// `keccak256` of the token ids as four-byte big-endian words.
    pub tokens_digest: B256,
}

/// A decoded contract event. Variants a job's fold does not need are kept because operators read them.
///
/// Serializes as what it says besides its name and its job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Event {
    JobTerms {
        #[serde(skip)]
        job: JobId,
        #[serde(flatten)]
        terms: Terms,
    },
    JobClaimed {
        #[serde(skip)]
        job: JobId,
        host: Address,
    },
    /// The host gave it up; hosts of other controllers than its own may claim it.
    JobReopened {
        #[serde(skip)]
        job: JobId,
        controller: Address,
    },
    ResultCommitted {
        #[serde(skip)]
        job: JobId,
        host: Address,
        #[serde(flatten)]
        commitment: Commitment,
    },
    BeaconPinned {
        #[serde(skip)]
        job: JobId,
        beacon: B256,
    },
    JobCompleted {
        #[serde(skip)]
        job: JobId,
        output: String,
    },
    /// The payment waits for the arbiter.
    JobDisputed {
        #[serde(skip)]
        job: JobId,
        disputer: Address,
    },
    ReleaseDue {
        #[serde(skip)]
        job: JobId,
        at: UnixSeconds,
    },
    PaymentReleased {
        #[serde(skip)]
        job: JobId,
        host: Address,
        #[serde(serialize_with = "super::types::decimal")]
        amount: U256,
    },
    PaymentRefunded {
        #[serde(skip)]
        job: JobId,
        renter: Address,
        #[serde(serialize_with = "super::types::decimal")]
        amount: U256,
    },
    /// The escrow has the payment.
    EscrowCreated {
        #[serde(skip)]
        job: JobId,
        #[serde(serialize_with = "super::types::decimal")]
        amount: U256,
        token: Address,
    },
    EscrowReleased {
        #[serde(skip)]
        job: JobId,
        #[serde(serialize_with = "super::types::decimal")]
        net: U256,
        #[serde(serialize_with = "super::types::decimal")]
        fee: U256,
    },
    /// The escrow could not pay `payee` and owes it that since.
    PaymentCredited {
        payee: Address,
        token: Address,
        #[serde(serialize_with = "super::types::decimal")]
        amount: U256,
    },
    /// `payee` had what the escrow owed it sent.
    CreditWithdrawn {
        payee: Address,
        token: Address,
        to: Address,
        #[serde(serialize_with = "super::types::decimal")]
        amount: U256,
    },
    HostRegistered {
        host: Address,
        #[serde(serialize_with = "super::types::decimal")]
        stake: U256,
        metadata: String,
    },
    HostUnregistered {
        host: Address,
    },
    StakeAdded {
        host: Address,
        #[serde(serialize_with = "super::types::decimal")]
        amount: U256,
    },
    HostSlashed {
        host: Address,
        #[serde(serialize_with = "super::types::decimal")]
        amount: U256,
    },
    MetadataUpdated {
        host: Address,
        metadata: String,
    },
    ReputationUpdated {
        host: Address,
        /// 0 to 1000.
        score: u64,
    },
    /// Known by name, folded by nobody.
    Noted {
        #[serde(skip)]
        name: &'static str,
        #[serde(skip)]
        job: Option<JobId>,
    },
}

impl Event {
    /// The names of what a contract logs when other code takes its place, or another may put it there.
    pub const CODE_REPLACED: [&str; 3] = ["Upgraded", "BeaconUpgraded", "AdminChanged"];

    /// The names of the events that jobs are folded from.
    pub const OF_JOBS: [&str; 12] = [
        "JobTerms",
        "JobClaimed",
        "JobReopened",
        "ResultCommitted",
        "BeaconPinned",
        "JobCompleted",
        "JobDisputed",
        "JobReleaseDue",
        "PaymentReleased",
        "PaymentRefunded",
        "EscrowCreated",
        "EscrowReleased",
    ];

    /// Returns whether logs of the contract may mean something else from here on.
    pub fn replaces_code(&self) -> bool {
        matches!(self, Event::Noted { name, .. } if Event::CODE_REPLACED.contains(name))
    }

    /// Returns the event's name on the contract.
    pub fn name(&self) -> &'static str {
        match self {
            Event::JobTerms { .. } => "JobTerms",
            Event::JobClaimed { .. } => "JobClaimed",
            Event::JobReopened { .. } => "JobReopened",
            Event::ResultCommitted { .. } => "ResultCommitted",
            Event::BeaconPinned { .. } => "BeaconPinned",
            Event::JobCompleted { .. } => "JobCompleted",
            Event::JobDisputed { .. } => "JobDisputed",
            Event::ReleaseDue { .. } => "JobReleaseDue",
            Event::PaymentReleased { .. } => "PaymentReleased",
            Event::PaymentRefunded { .. } => "PaymentRefunded",
            Event::EscrowCreated { .. } => "EscrowCreated",
            Event::EscrowReleased { .. } => "EscrowReleased",
            Event::PaymentCredited { .. } => "PaymentCredited",
            Event::CreditWithdrawn { .. } => "CreditWithdrawn",
            Event::HostRegistered { .. } => "NodeRegistered",
            Event::HostUnregistered { .. } => "NodeUnregistered",
            Event::StakeAdded { .. } => "StakeAdded",
            Event::HostSlashed { .. } => "NodeSlashed",
            Event::MetadataUpdated { .. } => "MetadataUpdated",
            Event::ReputationUpdated { .. } => "ReputationUpdated",
            Event::Noted { name, .. } => name,
        }
    }

    /// Returns the job the event belongs to, if it belongs to one.
    pub fn job(&self) -> Option<JobId> {
        match self {
            Event::JobTerms { job, .. }
            | Event::JobClaimed { job, .. }
            | Event::JobReopened { job, .. }
            | Event::ResultCommitted { job, .. }
            | Event::BeaconPinned { job, .. }
            | Event::JobCompleted { job, .. }
            | Event::JobDisputed { job, .. }
            | Event::ReleaseDue { job, .. }
            | Event::PaymentReleased { job, .. }
            | Event::PaymentRefunded { job, .. }
            | Event::EscrowCreated { job, .. }
            | Event::EscrowReleased { job, .. } => Some(*job),
            Event::Noted { job, .. } => *job,
            Event::PaymentCredited { .. }
            | Event::CreditWithdrawn { .. }
            | Event::HostRegistered { .. }
            | Event::HostUnregistered { .. }
            | Event::StakeAdded { .. }
            | Event::HostSlashed { .. }
            | Event::MetadataUpdated { .. }
            | Event::ReputationUpdated { .. } => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deal_is_told_by_what_the_contract_keeps_of_it() {
        let terms = Terms {
            renter: Address::repeat_byte(1),
            model: "a".into(),
            input: "b".into(),
            max_tokens: 8,
            temperature_milli: 0,
            seed: 1,
            payment: U256::from(100),
            token: Address::ZERO,
            deadline: UnixSeconds(9),
            requires_proof: true,
            min_gpu_memory: 0,
            min_reputation: 0,
            reserved_for: None,
            region: None,
        };
        let with = |change: fn(&mut Terms)| {
            let mut other = terms.clone();
            change(&mut other);
            other.deal()
        };
        let matter: [fn(&mut Terms); 9] = [
            |terms| terms.renter = Address::ZERO,
            |terms| terms.model.push('0'),
            |terms| terms.input.push('0'),
            |terms| terms.max_tokens += 1,
            |terms| terms.temperature_milli += 1,
            |terms| terms.seed += 1,
            |terms| terms.payment += U256::from(1),
            |terms| terms.token = Address::repeat_byte(1),
            |terms| terms.requires_proof = false,
        ];
        let left_out: [fn(&mut Terms); 5] = [
            |terms| terms.deadline.0 += 1,
            |terms| terms.min_gpu_memory += 1,
            |terms| terms.min_reputation += 1,
            |terms| terms.reserved_for = Some(Address::repeat_byte(2)),
            |terms| terms.region = Some("eu".into()),
        ];
        let mut deals = vec![terms.deal()];
        for change in matter {
            let deal = with(change);
            assert!(!deals.contains(&deal), "part {} says nothing", deals.len());
            deals.push(deal);
        }
        assert_eq!(left_out.map(with), [terms.deal(); 5]);
    }

    #[test]
    fn no_two_logs_share_a_link() {
        let log = RawLog {
            block: BlockRef { number: 3, hash: B256::repeat_byte(3) },
            index: 2,
            tx: B256::repeat_byte(4),
            address: Address::repeat_byte(5),
            topics: vec![B256::repeat_byte(6), B256::repeat_byte(7)],
            data: Bytes::new(),
        };
        let changes: [fn(&mut RawLog); 10] = [
            |log| log.block.number += 1,
            |log| log.block.hash = B256::ZERO,
            |log| log.index += 1,
            |log| log.tx = B256::ZERO,
            |log| log.address = Address::ZERO,
            |log| log.topics[1] = B256::ZERO,
            |log| log.topics.swap(0, 1),
            |log| log.topics.truncate(1),
            |log| log.data = Bytes::from_static(b"x"),
            // The last topic's bytes told as data.
            |log| log.data = log.topics.pop().expect("two topics").to_vec().into(),
        ];
        let mut links = vec![log.link(B256::ZERO, 1), log.link(B256::ZERO, 2), log.link(B256::repeat_byte(1), 1)];
        for change in changes {
            let mut other = log.clone();
            change(&mut other);
            links.push(other.link(B256::ZERO, 1));
        }
        for (i, link) in links.iter().enumerate() {
            assert!(!links[..i].contains(link), "link {i} repeats");
        }
    }
}
