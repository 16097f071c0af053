//! What a host commits to before it knows which positions will be opened, and what it then opens.
//!
//! A transcript is one [`Record`] per output token. Its commitment is the root of a binary keccak tree over the records'
//! Poseidon digests; a later block's hash draws the positions, and a proof of circuit `select-v1` opens them. The byte
//! layouts here are the contract's (`ProofSystem.sol`) and the same on both sides or no proof is accepted.
//!
//! A commitment says which decode steps were claimed, for which job; never that a model ran.

use alloy::primitives::{Address, B256, U256, keccak256};
use alloy::sol_types::SolValue;
use anyhow::{Result, ensure};

use super::poseidon::{self, ORDER};
use super::select::{self, Record};
use super::types::JobId;

/// The longest transcript, in tokens.
pub const TOKENS_MAX: u32 = 1 << 20;

/// Returns the leaf of output position `position`: `keccak256(0x00 ‖ uint32 position ‖ digest)`.
///
/// `digest` is [`Record::digest`]. The prefix keeps a leaf from being read as an inner node (RFC 9162, 2.1.1).
pub fn leaf(position: u32, digest: B256) -> B256 {
    keccak256([&[0x00][..], &position.to_be_bytes()[..], digest.as_slice()].concat())
}

/// The tree over a transcript's leaves, padded with zero words to the next power of two.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tree {
    /// Leaves first, the root alone last.
    levels: Vec<Vec<B256>>,
}

impl Tree {
    /// Builds the tree over the digests of a transcript's records, in order of position.
    ///
    /// # Errors
    /// If there is no record, or more than [`TOKENS_MAX`].
    pub fn of(digests: &[B256]) -> Result<Self> {
        ensure!(!digests.is_empty(), "a transcript without tokens has no commitment");
        ensure!(
            digests.len() <= TOKENS_MAX as usize,
            "a transcript has at most {TOKENS_MAX} tokens, not {}",
            digests.len()
        );
        let mut level: Vec<B256> = (0..).zip(digests).map(|(position, &digest)| leaf(position, digest)).collect();
        level.resize(level.len().next_power_of_two(), B256::ZERO);
        let mut levels = vec![level];
        while let Some(below) = levels.last()
            && below.len() > 1
        {
            levels.push(below.chunks_exact(2).map(|pair| node(pair[0], pair[1])).collect());
        }
        Ok(Self { levels })
    }

    /// Returns the root: what `ProofSystem.commitExactly` takes.
    pub fn root(&self) -> B256 {
        self.levels[self.levels.len() - 1][0]
    }

    /// Returns the siblings of the leaf at `position`, from the leaf up: [`depth`] of them.
    ///
    /// `None` if `position` is beyond the padded leaves.
    pub fn path(&self, position: u32) -> Option<Vec<B256>> {
        let (_root, below) = self.levels.split_last()?;
        below.iter().enumerate().map(|(height, level)| level.get(position as usize >> height ^ 1).copied()).collect()
    }
}

/// Returns the length of every path in the tree of `tokens` leaves: `ceil(log2(tokens))`.
pub fn depth(tokens: u32) -> u32 {
    tokens.max(1).next_power_of_two().trailing_zeros()
}

/// Returns whether `path` leads from the record digest at `position` to `root`, in the tree of `tokens` leaves.
pub fn opens(root: B256, tokens: u32, position: u32, digest: B256, path: &[B256]) -> bool {
    let climb = |(child, position): (B256, u32), &sibling: &B256| {
        let parent = if position & 1 == 0 { node(child, sibling) } else { node(sibling, child) };
        (parent, position >> 1)
    };
    position < tokens
        && path.len() == depth(tokens) as usize
        && path.iter().fold((leaf(position, digest), position), climb).0 == root
}

fn node(left: B256, right: B256) -> B256 {
    keccak256([&[0x01][..], left.as_slice(), right.as_slice()].concat())
}

/// Returns what `commitExactly` takes as the tokens' digest: `keccak256` of the ids as 4-byte big-endian words.
pub fn tokens_digest(tokens: &[u32]) -> B256 {
    keccak256(tokens.iter().flat_map(|token| token.to_be_bytes()).collect::<Vec<u8>>())
}

/// Returns the positions that `beacon` (the hash of the block after the commitment) draws for `job`: `spots` numbers
/// below `tokens`, in order of the spots, not necessarily distinct.
///
/// None when `tokens` is 0.
pub fn positions(beacon: B256, job: JobId, spots: u32, tokens: u32) -> Vec<u32> {
    let spots = if tokens == 0 { 0 } else { spots };
    let position = |spot: u32| {
        let hash = keccak256((beacon, U256::from(job.0), U256::from(spot)).abi_encode());
        (U256::from_be_bytes(hash.0) % U256::from(tokens)).to::<u32>()
    };
    (0..spots).map(position).collect()
}

/// Everything a proof is about, as the contract reads it from its own storage. Texts are exactly those on chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Statement {
    pub chain_id: u64,
    pub proof_system: Address,
    /// `keccak256` of the circuit's name.
    pub circuit: B256,
    pub job: JobId,
    pub host: Address,
    /// The job's `modelId`.
    pub model: String,
    /// The job's prompt: a content id's text.
    pub prompt: String,
    pub seed: u32,
    /// In thousandths; 0 is greedy.
    pub temperature_milli: u32,
    pub max_tokens: u32,
    /// [`Tree::root`].
    pub root: B256,
    /// Number of output tokens, and of leaves.
    pub tokens: u32,
    /// [`tokens_digest`].
    pub tokens_digest: B256,
    /// The committed `resultCID`: a content id's text.
    pub result: String,
}

impl Statement {
    /// Returns the number that ties a proof to this statement: a keccak digest reduced modulo [`ORDER`].
    pub fn context(&self) -> U256 {
        let words = [
            keccak256("fabstir.select-v1"),
            word(self.chain_id),
            self.proof_system.into_word(),
            self.circuit,
            word(self.job.0),
            self.host.into_word(),
            keccak256(&self.model),
            keccak256(&self.prompt),
            word(self.seed),
            word(self.temperature_milli),
            word(self.max_tokens),
            self.root,
            word(self.tokens),
            keccak256(&self.result),
            self.tokens_digest,
        ];
        U256::from_be_bytes(keccak256(words.concat()).0) % ORDER
    }

    /// Returns the openings that `beacon` demands of the committed transcript, one per spot.
    ///
    /// # Errors
    /// If `records` are not the statement's: another number of them, or another root.
    pub fn open(&self, beacon: B256, spots: u32, records: &[Record]) -> Result<Vec<Opening>> {
        let digests: Vec<B256> = records.iter().map(Record::digest).collect();
        let tree = Tree::of(&digests)?;
        let (tokens, root) = (records.len(), tree.root());
        ensure!(tokens == self.tokens as usize, "the transcript has {tokens} tokens, committed were {}", self.tokens);
        ensure!(root == self.root, "the transcript's root is {root}, committed was {}", self.root);
        let opening = |position: u32| Opening {
            position,
            draw: select::draw(self.seed, self.job, position, self.temperature_milli),
            record: records[position as usize].clone(),
            path: tree.path(position).expect("a drawn position is below the number of tokens"),
        };
        Ok(positions(beacon, self.job, spots, self.tokens).into_iter().map(opening).collect())
    }
}

fn word(value: impl Into<u64>) -> B256 {
    U256::from(value.into()).into()
}

/// One opened position: what the circuit checks (draw, record) and what ties it to the root (path).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Opening {
    pub position: u32,
    /// `0..4096`.
    pub draw: u16,
    pub record: Record,
    /// Siblings from the leaf up.
    pub path: Vec<B256>,
}

/// Returns the public instances of a proof for one job, `3 + 4·n` of them for `n` records: digest of the context,
/// digest of the draws, digests of the records; context, draws, and two zeros per record (the errors of rank and order).
///
/// `draws` and `records` are equally many, in the order of the spots.
pub fn instances(context: U256, draws: &[u16], records: &[Record]) -> Vec<U256> {
    let draws: Vec<U256> = draws.iter().map(|&draw| U256::from(draw)).collect();
    let digests = [poseidon::hash([context]), poseidon::hash(draws.iter().copied())];
    let digests = digests.into_iter().chain(records.iter().map(Record::digest));
    let errors = vec![U256::ZERO; 2 * records.len()];
    digests.map(|digest| U256::from_be_bytes(digest.0)).chain([context]).chain(draws).chain(errors).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn digests(count: u32) -> Vec<B256> {
        (0..count).map(|i| keccak256(i.to_be_bytes())).collect()
    }

    fn statement() -> Statement {
        Statement {
            chain_id: 31337,
            proof_system: Address::repeat_byte(1),
            circuit: B256::repeat_byte(2),
            job: JobId(3),
            host: Address::repeat_byte(4),
            model: "sha256:05".into(),
            prompt: "blob6".into(),
            seed: 7,
            temperature_milli: 800,
            max_tokens: 9,
            root: B256::repeat_byte(10),
            tokens: 8,
            tokens_digest: B256::repeat_byte(12),
            result: "blob13".into(),
        }
    }

    #[test]
    fn one_token_is_its_own_root() {
        let tree = Tree::of(&digests(1)).unwrap();
        assert_eq!(tree.root(), leaf(0, digests(1)[0]));
        assert_eq!(tree.path(0), Some(vec![]));
        assert_eq!([1, 2, 3, 4, 5, TOKENS_MAX].map(depth), [0, 1, 2, 2, 3, 20]);
        assert!(Tree::of(&[]).is_err());
    }

    #[test]
    fn three_tokens_are_padded_with_a_zero_word() {
        let d = digests(3);
        let left = node(leaf(0, d[0]), leaf(1, d[1]));
        assert_eq!(Tree::of(&d).unwrap().root(), node(left, node(leaf(2, d[2]), B256::ZERO)));
    }

    #[test]
    fn layouts_are_the_contracts() {
        assert_eq!(
            leaf(1, B256::repeat_byte(0x22)),
            keccak256(alloy::hex!("00000000012222222222222222222222222222222222222222222222222222222222222222"))
        );
        assert_eq!(tokens_digest(&[1, 0xdead]), keccak256(alloy::hex!("000000010000dead")));
        assert_eq!(tokens_digest(&[]), keccak256([]));
    }

    #[test]
    fn a_context_depends_on_every_part() {
        let base = statement();
        let changes: [fn(&mut Statement); 14] = [
            |s| s.chain_id += 1,
            |s| s.proof_system = s.host,
            |s| s.circuit = s.root,
            |s| s.job = JobId(4),
            |s| s.host = s.proof_system,
            |s| s.model.push('0'),
            |s| s.prompt.push('0'),
            |s| s.seed += 1,
            |s| s.temperature_milli += 1,
            |s| s.max_tokens += 1,
            |s| s.root = s.circuit,
            |s| s.tokens += 1,
            |s| s.tokens_digest = s.circuit,
            |s| s.result.push('0'),
        ];
        let mut contexts = std::collections::BTreeSet::from([base.context()]);
        for change in changes {
            let mut other = base.clone();
            change(&mut other);
            contexts.insert(other.context());
        }
        assert_eq!(contexts.len(), 15);
        assert!(contexts.iter().all(|context| *context < ORDER));
    }

    #[test]
    fn a_statement_opens_only_its_own_transcript() {
        let records: Vec<Record> =
            (0..5).map(|i| select::select(&[i as f32, 2.0, 1.5, 0.0], 1000, 100 * i, 3)).collect();
        let tree = Tree::of(&records.iter().map(Record::digest).collect::<Vec<_>>()).unwrap();
        let mut statement = Statement { root: tree.root(), tokens: 5, ..statement() };
        for opening in statement.open(B256::repeat_byte(9), 4, &records).unwrap() {
            assert!(opens(tree.root(), 5, opening.position, opening.record.digest(), &opening.path));
            assert_eq!(opening.draw, select::draw(7, JobId(3), opening.position, 800));
        }
        assert!(statement.open(B256::ZERO, 4, &records[..4]).unwrap_err().to_string().contains("committed were 5"));
        statement.root = B256::ZERO;
        assert!(statement.open(B256::ZERO, 4, &records).is_err());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn every_leaf_opens_and_nothing_else_does(tokens in 1u32..70, position: prop::sample::Index, other in any::<[u8; 32]>()) {
            let digests = digests(tokens);
            let tree = Tree::of(&digests).unwrap();
            let position = position.index(tokens as usize) as u32;
            let digest = digests[position as usize];
            let path = tree.path(position).unwrap();
            prop_assert!(opens(tree.root(), tokens, position, digest, &path));
            prop_assert!(!opens(tree.root(), tokens, position, B256::from(other), &path));
            prop_assert!(!opens(tree.root(), tokens, position ^ 1, digest, &path));
            prop_assert!(!opens(tree.root(), tokens, position + tokens.next_power_of_two(), digest, &path));
            for i in 0..path.len() {
                let mut bent = path.clone();
                bent[i] = B256::from(other);
                prop_assert!(!opens(tree.root(), tokens, position, digest, &bent));
            }
            let longer: Vec<B256> = path.iter().copied().chain([B256::ZERO]).collect();
            prop_assert!(!opens(tree.root(), tokens, position, digest, &longer));
        }

        #[test]
        fn positions_lie_in_the_transcript(beacon in any::<[u8; 32]>(), job in 1u64.., tokens in 1u32..) {
            let drawn = positions(beacon.into(), JobId(job), 4, tokens);
            prop_assert_eq!(drawn.len(), 4);
            prop_assert!(drawn.iter().all(|&position| position < tokens));
            prop_assert!(positions(beacon.into(), JobId(job), 4, 0).is_empty());
        }
    }
}
