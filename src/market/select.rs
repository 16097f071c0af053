//! The decode step that is proved: which token the protocol's seeded sampler picks from a model's logits.
//!
//! Everything here is integer arithmetic over quantised logits and agrees bit for bit with circuit `select-v1`;
//! the only floating point is the quantisation itself, which the record commits to.

use alloy::primitives::{B256, U256, keccak256};
use alloy::sol_types::SolValue;
use anyhow::{Result, ensure};

use super::poseidon;
use super::types::JobId;

/// Bits of a draw: a draw is an integer in `0..1 << DRAW_BITS`.
pub const DRAW_BITS: u32 = 12;
/// Fixed-point steps of a logit divided by the temperature: 1024 per nat.
pub const SCORE_SCALE: f64 = 1024.0;
/// Scores are clipped this far below the best one, where a candidate's weight is exactly zero.
pub const SCORE_SPAN: i64 = 7808;
/// Scores are at most this, either side of 0: 2³⁰ nats, beyond any model's logits.
pub const SCORE_MAX: i64 = 1 << 40;

/// What was known and chosen at one output position: the best candidates in order and the rank that was picked.
///
/// `ids.len() == scores.len() >= 1`; scores descend, ties by ascending id; `rank` indexes both. A record that breaks
/// this does not deserialise.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(try_from = "Unchecked")]
pub struct Record {
    pub rank: u32,
    /// Vocabulary ids of the candidates.
    pub ids: Vec<u32>,
    /// `round(1024 · logit / temperature)`, never below `scores[0] - 7808`.
    pub scores: Vec<i64>,
}

impl Record {
    /// Returns the vocabulary id that was picked.
    pub fn token(&self) -> u32 {
        self.ids[self.rank as usize]
    }

    /// Returns the record as the circuit takes it: rank, ids, scores; a negative score is [`poseidon::ORDER`] less its
    /// magnitude. `1 + 2·candidates` field elements.
    pub fn elements(&self) -> impl Iterator<Item = U256> {
        let ids = self.ids.iter().map(|&id| U256::from(id));
        let scores = self.scores.iter().map(|&score| poseidon::element(score));
        std::iter::once(U256::from(self.rank)).chain(ids).chain(scores)
    }

    /// Returns the Poseidon digest of [`Record::elements`], which a proof shows for an opened position.
    ///
    /// Binds the record only among those of equally many candidates.
    pub fn digest(&self) -> B256 {
        poseidon::hash(self.elements())
    }
}

/// A record as it arrives from outside.
#[derive(serde::Deserialize)]
struct Unchecked {
    rank: u32,
    ids: Vec<u32>,
    scores: Vec<i64>,
}

impl TryFrom<Unchecked> for Record {
    type Error = anyhow::Error;
    fn try_from(Unchecked { rank, ids, scores }: Unchecked) -> Result<Self> {
        ensure!(ids.len() == scores.len(), "a record has {} ids but {} scores", ids.len(), scores.len());
        ensure!((rank as usize) < ids.len(), "a record of {} candidates picks rank {rank}", ids.len());
        ensure!(scores.iter().all(|score| score.unsigned_abs() <= SCORE_MAX as u64), "a score is above {SCORE_MAX}");
        let span = scores[0] - scores[scores.len() - 1];
        ensure!(scores.is_sorted_by(|a, b| a >= b), "the scores of a record do not descend");
        ensure!(span <= SCORE_SPAN, "the scores of a record span {span}, more than {SCORE_SPAN}");
        Ok(Self { rank, ids, scores })
    }
}

/// Returns the draw of output position `position` (from 0): `keccak256(abi.encode(seed, job, position)) mod 4096`,
/// or 0 when `temperature_milli` is 0 (greedy).
pub fn draw(seed: u32, job: JobId, position: u32, temperature_milli: u32) -> u16 {
    if temperature_milli == 0 {
        return 0;
    }
    let hash = keccak256((U256::from(seed), U256::from(job.0), U256::from(position)).abi_encode());
    u16::from_be_bytes([hash[30], hash[31]]) & ((1 << DRAW_BITS) - 1)
}

/// Returns the record of one decode step: the `candidates` best of `logits`, quantised, and the rank `draw` picks.
///
/// `logits` has one finite value per vocabulary id and at least `candidates` of them. `temperature_milli` is in
/// thousandths; 0 means greedy and quantises as 1000 does.
pub fn select(logits: &[f32], temperature_milli: u32, draw: u16, candidates: usize) -> Record {
    let temperature = if temperature_milli == 0 { 1.0 } else { f64::from(temperature_milli) / 1000.0 };
    let score = |logit: f32| {
        let score = (SCORE_SCALE * f64::from(logit) / temperature).round() as i64;
        score.clamp(-SCORE_MAX, SCORE_MAX)
    };
    let mut best: Vec<(i64, u32)> = logits.iter().enumerate().map(|(id, &logit)| (score(logit), id as u32)).collect();
    let order = |a: &(i64, u32), b: &(i64, u32)| b.0.cmp(&a.0).then(a.1.cmp(&b.1));
    if best.len() > candidates {
        best.select_nth_unstable_by(candidates - 1, order);
        best.truncate(candidates);
    }
    best.sort_unstable_by(order);
    let floor = best[0].0 - SCORE_SPAN;
    let scores: Vec<i64> = best.iter().map(|&(score, _)| score.max(floor)).collect();
    Record { rank: rank(&scores, draw), ids: best.iter().map(|&(_, id)| id).collect(), scores }
}

/// Returns the rank `draw` picks: the number of candidates whose cumulated weight, times 4096, is at most
/// `draw` times the total weight.
///
/// `scores` descend and are not empty; `draw` is below 4096. The rank is below their number.
pub fn rank(scores: &[i64], draw: u16) -> u32 {
    let weights: Vec<u64> = scores.iter().map(|score| weight(score - scores[0])).collect();
    let total: u64 = weights.iter().sum();
    let target = u64::from(draw) * total;
    let mut cumulated = 0;
    weights
        .iter()
        .take_while(|&&weight| {
            cumulated += weight;
            cumulated << DRAW_BITS <= target
        })
        .count() as u32
}

/// Returns `round(1024 · b^(x / 1024))` for `x` in `-7808..=0`, where `b` is `e` rounded to single precision.
///
/// Source: EZKL 23.0.5's lookup table of the exponential at scale 1024, entry for entry. No value comes closer than
/// 1.5e-4 to a half, so every platform's `pow` rounds alike.
fn weight(x: i64) -> u64 {
    (SCORE_SCALE * f64::from(std::f32::consts::E).powf(x as f64 / SCORE_SCALE)).round() as u64
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use sha2::{Digest, Sha256};

    use super::*;

    #[test]
    fn weights_are_ezkls_table() {
        // The table as gen_witness of EZKL 23.0.5 gives it for an `Exp` over 0, -1, … -7808, as 4-byte words.
        let table: Vec<u8> = (0..=SCORE_SPAN).flat_map(|x| (weight(-x) as u32).to_be_bytes()).collect();
        assert_eq!(
            alloy::hex::encode(Sha256::digest(table)),
            "edcb586b212ce9dd35e054308ba351def69a01882659f898b47417a1c1b02804"
        );
        assert_eq!((weight(0), weight(-SCORE_SPAN)), (1024, 0));
    }

    #[test]
    fn draws_are_the_contracts() {
        let words = [[0u8; 31].as_slice(), &[5], &[0; 31], &[6], &[0; 31], &[7]].concat();
        let hash = U256::from_be_bytes(keccak256(words).0) % U256::from(4096);
        assert_eq!(U256::from(draw(5, JobId(6), 7, 1)), hash);
        assert_eq!(draw(5, JobId(6), 7, 0), 0);
    }

    #[test]
    fn records_from_outside_are_checked() {
        let parse = |text: &str| serde_json::from_str::<Record>(text).map_err(|error| error.to_string());
        let record = parse(r#"{"rank":1,"ids":[4,2],"scores":[9,-3]}"#).unwrap();
        assert_eq!(record.token(), 2);
        assert_eq!(parse(&serde_json::to_string(&record).unwrap()).unwrap(), record);
        for (text, complaint) in [
            (r#"{"rank":0,"ids":[],"scores":[]}"#, "of 0 candidates"),
            (r#"{"rank":2,"ids":[1,2],"scores":[2,1]}"#, "picks rank 2"),
            (r#"{"rank":0,"ids":[1,2],"scores":[2]}"#, "2 ids but 1 scores"),
            (r#"{"rank":0,"ids":[1,2],"scores":[1,2]}"#, "do not descend"),
            (r#"{"rank":0,"ids":[1,2],"scores":[0,-7809]}"#, "span 7809"),
            (r#"{"rank":0,"ids":[1],"scores":[-9223372036854775808]}"#, "above"),
        ] {
            assert!(parse(text).unwrap_err().contains(complaint), "{text}");
        }
    }

    #[test]
    fn logits_beyond_reason_do_no_harm() {
        let record = select(&[f32::MAX, f32::INFINITY, f32::NEG_INFINITY, f32::NAN, f32::MIN], 1, 4095, 4);
        assert_eq!((record.rank, record.scores[0]), (1, SCORE_MAX));
    }

    fn scores() -> impl Strategy<Value = Vec<i64>> {
        // Small steps make ties; large ones reach the floor.
        let step = prop_oneof![Just(0i64), 0i64..50, 0i64..8000];
        (-100_000i64..100_000, prop::collection::vec(step, 1..32)).prop_map(|(first, steps)| {
            let falling = steps.iter().scan(first, |score, step| {
                *score -= step;
                Some((*score).max(first - SCORE_SPAN))
            });
            std::iter::once(first).chain(falling).collect()
        })
    }

    proptest! {
        #[test]
        fn a_rank_is_the_number_of_candidates_below_the_draw(scores in scores(), draw in 0u16..4096) {
            let total: u64 = scores.iter().map(|score| weight(score - scores[0])).sum();
            let cumulated = |upto: usize| scores[..=upto].iter().map(|score| weight(score - scores[0])).sum::<u64>();
            let below = (0..scores.len()).filter(|&i| cumulated(i) * 4096 <= u64::from(draw) * total).count();
            let rank = rank(&scores, draw) as usize;
            prop_assert_eq!(rank, below);
            prop_assert!(rank < scores.len());
            prop_assert!(weight(scores[rank] - scores[0]) > 0, "a weightless candidate is never picked");
        }

        #[test]
        fn ranks_rise_with_the_draw_and_do_not_depend_on_the_level(scores in scores(), a in 0u16..4096, b in 0u16..4096, level in -5000i64..5000) {
            prop_assert!(rank(&scores, a.min(b)) <= rank(&scores, a.max(b)));
            prop_assert_eq!(rank(&scores, 0), 0);
            let shifted: Vec<i64> = scores.iter().map(|score| score + level).collect();
            prop_assert_eq!(rank(&shifted, a), rank(&scores, a));
        }

        #[test]
        fn a_selection_is_a_record(
            logits in prop::collection::vec(-40f32..40.0, 8..100),
            temperature in prop_oneof![Just(0u32), 1u32..3000],
            draw in 0u16..4096,
        ) {
            let record = select(&logits, temperature, draw, 8);
            let text = serde_json::to_string(&record).unwrap();
            prop_assert_eq!(&serde_json::from_str::<Record>(&text).unwrap(), &record);
            prop_assert_eq!(record.ids.len(), 8);
            prop_assert_eq!(record.elements().count(), 17);
            let best = logits.iter().copied().fold(f32::MIN, f32::max);
            let scale = if temperature == 0 { 1.0 } else { f64::from(temperature) / 1000.0 };
            prop_assert_eq!(record.scores[0], (1024.0 * f64::from(best) / scale).round() as i64);
            let order: Vec<_> = record.scores.iter().map(|score| -score).zip(&record.ids).collect();
            // Candidates on the floor tie although their logits differ, so only those above it order by id.
            let above: Vec<_> = order.iter().take_while(|(score, _)| -score > record.scores[0] - SCORE_SPAN).collect();
            prop_assert!(above.is_sorted());
        }
    }
}
