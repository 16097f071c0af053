//! What is spoken at which address, in which blocks: each contract as it is today, and what the configuration says of others and of
//! other times.
//!
//! One suite has one history. Jobs are numbered from 1 by each marketplace, and the logs of its escrow, its proof system and its
//! reputation system name jobs by that number: those of an earlier suite belong in a database of its own.

use alloy::primitives::Address;
use anyhow::{Result, bail, ensure};
use serde::{Deserialize, Serialize};

use super::Contracts;

/// What a contract is in the suite.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    NodeRegistry,
    PaymentEscrow,
    JobMarketplace,
    ProofSystem,
    ReputationSystem,
    Governance,
    Timelock,
    AccountFactory,
}

/// How logs are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Abi {
    /// As the contracts of this repository write them (`abi/`).
    #[default]
    V1,
    /// Not at all: they are kept as they are, for a program that can.
    Unknown,
}

/// A contract in some blocks: a further one of a role, or one of the suite at another time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Also {
    pub role: Role,
    pub address: Address,
    /// First and last block.
    #[serde(default)]
    pub from: u64,
    #[serde(default = "last")]
    pub to: u64,
    #[serde(default)]
    pub abi: Abi,
}

/// TOML's integers end there.
fn last() -> u64 {
    i64::MAX as u64
}

impl Contracts {
    /// Fails where [`Contracts::also`] contradicts itself, or would mix the jobs of two suites.
    ///
    /// # Errors
    /// Names the entry.
    pub fn check(&self) -> Result<()> {
        for (place, also) in self.also.iter().enumerate() {
            let Also { role, address, from, to, .. } = also;
            let entry = format!("contracts.also[{place}]");
            ensure!(from <= to, "{entry}: from = {from} is after to = {to}");
            let ours = self.roles().into_iter().find(|(_, ours)| ours == address);
            if let Some((other, _)) = ours.filter(|(ours, _)| ours != role) {
                bail!("{entry}: {address} is the {other:?} of this suite, and no {role:?}");
            }
            let names_jobs =
                [Role::JobMarketplace, Role::PaymentEscrow, Role::ProofSystem, Role::ReputationSystem].contains(role);
            ensure!(
                ours.is_some() || !names_jobs,
                "{entry}: a second {role:?}, {address}: its logs name jobs by numbers that start at 1 in each suite, so that a \
                 database holds one suite; index another with a data_dir of its own"
            );
            let earlier = &self.also[..place];
            if let Some(other) = earlier.iter().position(|o| o.address == *address && o.from <= *to && *from <= o.to) {
                bail!("{entry}: blocks {from} to {to} of {address} overlap those of contracts.also[{other}]");
            }
        }
        Ok(())
    }

    /// Returns the contracts whose logs are indexed: all but the token, whose transfers are nobody's business here.
    pub fn indexed(&self) -> Vec<Address> {
        let suite = self.roles().into_iter().map(|(_, address)| address);
        let mut indexed: Vec<Address> = suite.chain(self.also.iter().map(|also| also.address)).collect();
        indexed.sort_unstable();
        indexed.dedup();
        indexed
    }

    /// Returns what is spoken at `address` in block `number`, or `None` where it is none of ours.
    pub(super) fn spoken(&self, address: Address, number: u64) -> Option<(Role, Abi)> {
        let also = self.also.iter().find(|also| also.address == address && (also.from..=also.to).contains(&number));
        let ours = || self.roles().into_iter().find(|(_, ours)| *ours == address);
        also.map(|also| (also.role, also.abi)).or_else(|| ours().map(|(role, _)| (role, Abi::V1)))
    }

    fn roles(&self) -> [(Role, Address); 8] {
        [
            (Role::JobMarketplace, self.job_marketplace),
            (Role::ProofSystem, self.proof_system),
            (Role::PaymentEscrow, self.payment_escrow),
            (Role::NodeRegistry, self.node_registry),
            (Role::ReputationSystem, self.reputation_system),
            (Role::Governance, self.governance),
            (Role::Timelock, self.timelock),
            (Role::AccountFactory, self.account_factory),
        ]
    }
}
