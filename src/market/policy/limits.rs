//! What a host asks of a job beside its price: the `[host.policy]` section of a configuration.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use anyhow::{Result, ensure};
use serde::{Deserialize, Deserializer};

use super::super::types::{Address, ModelId, U256};

/// The limits; each default asks for nothing that a host may not want.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Renters whose jobs are taken; empty: everyone's.
    pub renters: BTreeSet<Address>,
    /// Renters whose jobs are not.
    pub renters_denied: BTreeSet<Address>,
    /// Payment tokens that are taken (zero address: ETH); empty: each with a price.
    #[serde(deserialize_with = "tokens")]
    pub tokens: BTreeSet<Address>,
    /// Names that renters may give the place where this host is.
    pub regions: Vec<String>,
    /// Memory of the GPU in gigabytes; `None`: what a job asks for is not looked at.
    pub gpu_memory_gb: Option<u64>,
    /// Bytes of a prompt that are counted as one token, at least 1, which no prompt exceeds.
    pub prompt_bytes_per_token: u32,
    /// Most stake that the claims of one hour may put at risk, in FAB's smallest unit.
    #[serde(deserialize_with = "amount_or_none")]
    pub value_at_risk_per_hour_max: Option<U256>,
    /// Least share of our claims that were won, in hundredths; 0 does not ask.
    pub win_percent_min: u32,
    /// Claims that must have been decided before that share means anything.
    pub win_races_min: u32,
    /// How long each host waits for the one whose turn a job is before it; 0: nobody's turn is waited for.
    pub turn_seconds: u64,
    /// How much more than its cost a job must pay, in hundredths of the cost; `None`: cost is shown and not asked.
    pub margin_percent_min: Option<u32>,
    /// What payment tokens other than ETH are worth.
    pub token_value: BTreeMap<Address, Worth>,
    /// Whether a token without a value passes the rules that compare it with a cost.
    pub unvalued_tokens: bool,
    pub gas: Gas,
    /// By model: what 1000 output tokens cost to compute, in wei.
    #[serde(deserialize_with = "rates")]
    pub compute_per_1k_wei: BTreeMap<ModelId, U256>,
    /// What an hour of the machine costs in wei; counts where the model was calibrated.
    #[serde(deserialize_with = "amount")]
    pub machine_hour_wei: U256,
    /// Older knowledge of the contracts claims nothing.
    pub survey_age_max_seconds: u64,
}

/// So many smallest units of a token are worth so many wei.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Worth {
    #[serde(deserialize_with = "amount")]
    pub units: U256,
    #[serde(deserialize_with = "amount")]
    pub wei: U256,
}

/// The gas of each transaction that a job takes. Defaults: measured by `make gas`, rounded up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Gas {
    pub claim: u64,
    /// A claim that another host's came before.
    pub lost_claim: u64,
    pub commit: u64,
    pub complete: u64,
    /// What a proof adds to the completion.
    pub proof: u64,
    pub release: u64,
}

impl Default for Gas {
    fn default() -> Self {
        Self { claim: 55_000, lost_claim: 35_000, commit: 135_000, complete: 110_000, proof: 685_000, release: 130_000 }
    }
}

impl Gas {
    /// Returns the gas of a job that is won, the way in and the way out.
    pub fn won(&self, proof: bool) -> u64 {
        [self.claim, self.commit, self.complete, self.release, if proof { self.proof } else { 0 }]
            .into_iter()
            .fold(0, u64::saturating_add)
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            renters: BTreeSet::new(),
            renters_denied: BTreeSet::new(),
            tokens: BTreeSet::new(),
            regions: Vec::new(),
            gpu_memory_gb: None,
            prompt_bytes_per_token: 1,
            value_at_risk_per_hour_max: None,
            win_percent_min: 0,
            win_races_min: 20,
            turn_seconds: 0,
            margin_percent_min: None,
            token_value: BTreeMap::new(),
            unvalued_tokens: false,
            gas: Gas::default(),
            compute_per_1k_wei: BTreeMap::new(),
            machine_hour_wei: U256::ZERO,
            survey_age_max_seconds: 60,
        }
    }
}

impl Limits {
    /// Checks every range.
    ///
    /// # Errors
    /// Names the entry, what it is and what it may be.
    pub fn check(&self) -> Result<()> {
        let within = |name: &str, value: u64, low: u64, high: u64| {
            ensure!((low..=high).contains(&value), "policy.{name} = {value} is not between {low} and {high}");
            Ok(())
        };
        within("prompt_bytes_per_token", self.prompt_bytes_per_token.into(), 1, 16)?;
        within("win_percent_min", self.win_percent_min.into(), 0, 100)?;
        within("win_races_min", self.win_races_min.into(), 1, 1000)?;
        within("turn_seconds", self.turn_seconds, 0, 600)?;
        within("survey_age_max_seconds", self.survey_age_max_seconds, 5, 3600)?;
        within("margin_percent_min", self.margin_percent_min.unwrap_or(0).into(), 0, 1_000_000)?;
        for (token, worth) in &self.token_value {
            ensure!(
                !worth.units.is_zero(),
                "policy.token_value.{token}.units is 0: how many units are worth those wei?"
            );
            ensure!(!token.is_zero(), "policy.token_value has the zero address, which is ETH: a wei is worth a wei");
        }
        Ok(())
    }

    /// Returns what `amount` of `token` is worth in wei, rounded down, or `None` where that is not configured.
    pub fn wei(&self, token: Address, amount: U256) -> Option<U256> {
        if token.is_zero() {
            return Some(amount);
        }
        let worth = self.token_value.get(&token)?;
        Some(amount.saturating_mul(worth.wei).checked_div(worth.units).unwrap_or_default())
    }
}

/// An amount as written: decimal text, since it may pass TOML's 64 bits, or a number.
struct Amount(U256);

impl<'de> Deserialize<'de> for Amount {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl serde::de::Visitor<'_> for Visitor {
            type Value = Amount;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a whole number, as text where it is large")
            }
            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Amount, E> {
                let read = U256::from_str_radix(text, 10).map(Amount);
                read.map_err(|_| E::custom(format!("{text:?} is not a whole number in the smallest unit")))
            }
            fn visit_i64<E: serde::de::Error>(self, number: i64) -> Result<Amount, E> {
                let read = u64::try_from(number).map(|number| Amount(U256::from(number)));
                read.map_err(|_| E::custom(format!("{number} is less than 0")))
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

fn amount<'de, D: Deserializer<'de>>(deserializer: D) -> Result<U256, D::Error> {
    Ok(Amount::deserialize(deserializer)?.0)
}

fn amount_or_none<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<U256>, D::Error> {
    amount(deserializer).map(Some)
}

fn rates<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeMap<ModelId, U256>, D::Error> {
    let rates = BTreeMap::<ModelId, Amount>::deserialize(deserializer)?;
    Ok(rates.into_iter().map(|(model, rate)| (model, rate.0)).collect())
}

fn tokens<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeSet<Address>, D::Error> {
    let named = Vec::<String>::deserialize(deserializer)?;
    named.iter().map(|name| token(name).map_err(serde::de::Error::custom)).collect()
}

/// Returns the token of that name in a configuration: `eth` or a contract's address.
///
/// # Errors
/// If it is neither.
pub fn token(name: &str) -> Result<Address> {
    let address = if name.eq_ignore_ascii_case("eth") { Some(Address::ZERO) } else { name.parse().ok() };
    address.ok_or_else(|| anyhow::anyhow!("{name:?} is not \"eth\" or a token's address"))
}
