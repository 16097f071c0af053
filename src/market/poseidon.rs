//! The Poseidon hash EZKL gives a `hashed` input: over the scalar field of BN254, width 2, one element absorbed per
//! permutation, no padding.
//!
//! Never hash data of varying length with it: without padding and length separation the length is not bound.
//! Source: <https://eprint.iacr.org/2019/458> (permutation; appendix F for the constants), with 8 full and 56 partial
//! rounds, S-box x⁵ and the initial state `[0, 2^64]`.

use std::sync::LazyLock;

use alloy::primitives::{B256, U256};
use ark_bn254::Fr;
use ark_ff::{BigInt, BigInteger, Field, PrimeField};

const FULL_ROUNDS: usize = 8;
const PARTIAL_ROUNDS: usize = 56;
const FIELD_BITS: usize = 254;

/// The order of the field: every input and digest is below it.
pub const ORDER: U256 = U256::from_limbs(Fr::MODULUS.0);

/// Returns the digest of `elements`, each taken modulo [`ORDER`]; a big-endian integer below it.
pub fn hash(elements: impl IntoIterator<Item = U256>) -> B256 {
    let mut state = [Fr::from(0u64), Fr::from(1u128 << 64)];
    for element in elements {
        state[0] += Fr::from_be_bytes_mod_order(&element.to_be_bytes::<32>());
        permute(&mut state);
    }
    B256::from(U256::from_limbs(state[0].into_bigint().0))
}

/// Returns the field element that stands for `value`: `ORDER - |value|` when negative.
pub fn element(value: i64) -> U256 {
    if value < 0 { ORDER - U256::from(value.unsigned_abs()) } else { U256::from(value) }
}

fn permute(state: &mut [Fr; 2]) {
    let Constants { rounds, matrix } = &*CONSTANTS;
    let fifth_power = |x: &mut Fr| {
        let mut power = *x;
        power.square_in_place();
        power.square_in_place();
        *x *= &power;
    };
    for (round, constants) in rounds.iter().enumerate() {
        state[0] += &constants[0];
        state[1] += &constants[1];
        fifth_power(&mut state[0]);
        if !(FULL_ROUNDS / 2..FULL_ROUNDS / 2 + PARTIAL_ROUNDS).contains(&round) {
            fifth_power(&mut state[1]);
        }
        *state = matrix.map(|row| row[0] * state[0] + row[1] * state[1]);
    }
}

struct Constants {
    rounds: [[Fr; 2]; FULL_ROUNDS + PARTIAL_ROUNDS],
    matrix: [[Fr; 2]; 2],
}

static CONSTANTS: LazyLock<Constants> = LazyLock::new(|| {
    let mut grain = Grain::new();
    let rounds = std::array::from_fn(|_| std::array::from_fn(|_| grain.element_below_order()));
    let seeds: [Fr; 4] = std::array::from_fn(|_| grain.element_reduced());
    let cell = |row: usize, column: usize| {
        (seeds[row] + seeds[2 + column]).inverse().expect("no two seeds cancel: the constants are fixed and tested")
    };
    Constants { rounds, matrix: [[cell(0, 0), cell(0, 1)], [cell(1, 0), cell(1, 1)]] }
});

/// The paper's self-shrinking generator: an 80-bit LFSR, oldest bit lowest.
struct Grain(u128);

impl Grain {
    fn new() -> Self {
        // Prime field, S-box x^α, field bits, width, rounds; then ones. Most significant bit first.
        let fields =
            [(2, 1), (4, 0), (12, FIELD_BITS), (12, 2), (10, FULL_ROUNDS), (10, PARTIAL_ROUNDS), (30, (1 << 30) - 1)];
        let mut oldest_first = fields.iter().fold(0u128, |bits, &(width, value)| bits << width | value as u128);
        oldest_first = oldest_first.reverse_bits() >> (128 - 80);
        let mut grain = Self(oldest_first);
        (0..160).for_each(|_| _ = grain.step());
        grain
    }

    fn step(&mut self) -> bool {
        let bit = [62, 51, 38, 23, 13, 0].iter().fold(0, |sum, &tap| sum ^ self.0 >> tap) & 1;
        self.0 = self.0 >> 1 | bit << 79;
        bit == 1
    }

    /// Of each pair of bits, the second counts when the first is set.
    fn bit(&mut self) -> bool {
        while !self.step() {
            self.step();
        }
        self.step()
    }

    fn integer(&mut self) -> BigInt<4> {
        let bits: Vec<bool> = (0..FIELD_BITS).map(|_| self.bit()).collect();
        BigInt::from_bits_be(&bits)
    }

    fn element_below_order(&mut self) -> Fr {
        loop {
            if let Some(element) = Fr::from_bigint(self.integer()) {
                return element;
            }
        }
    }

    fn element_reduced(&mut self) -> Fr {
        Fr::from_be_bytes_mod_order(&self.integer().to_bytes_be())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agrees_with_ezkl() {
        // ezkl.poseidon_hash of 1..=8, EZKL 23.0.5; the tests of prover/ compare whole proofs.
        let digest = hash((1..=8).map(U256::from));
        assert_eq!(alloy::hex::encode(digest), "1378dbdefc831dafe9e11fdfbffc30f3a50b937c045f8eaf2eca685e766e1ba1");
    }

    #[test]
    fn elements_are_taken_modulo_the_order() {
        assert_eq!(hash([ORDER + U256::from(7)]), hash([U256::from(7)]));
        assert_eq!(element(-1) + U256::from(1), ORDER);
        assert_eq!(element(i64::MIN) + (U256::from(1) << 63), ORDER);
        assert_eq!(element(5), U256::from(5));
    }
}
