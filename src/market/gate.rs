//! What must stand before an action is taken: how deep the block lies that it rests on, and how much of that block is proven.
//!
//! Never looks anything up: what is known of a block is handed in.

use std::fmt;

use serde::{Deserialize, Deserializer};

use super::event::Level;
use super::job::Duty;
use super::types::UnixSeconds;

/// How much of the chain must stand on a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Depth {
    /// So many blocks, its own counted: 1 is met as soon as it is stored.
    Blocks(u64),
    /// The chain calls it safe: on a rollup, its data is on the chain below.
    Safe,
    /// The chain calls it final.
    Final,
}

/// What an action asks of the block that it rests on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gate {
    pub depth: Depth,
    /// How much of its logs must be proven, at least.
    pub proof: Level,
}

/// The gate of each action that sends a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(from = "Entries")]
pub struct Gates {
    /// Of the events that opened the job.
    pub claim: Gate,
    /// Of the claim.
    pub commit: Gate,
    /// Of the commitment, and of the block that draws the positions where there is a proof.
    pub complete: Gate,
    /// Of the completion or the dispute.
    pub release: Gate,
}

/// What is known of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ground {
    pub number: u64,
    pub level: Level,
    /// The newest block stored.
    pub head: u64,
    /// The newest blocks that the chain called safe and final; 0: none yet.
    pub safe: u64,
    pub last_final: u64,
    /// When it was made, where its header is stored.
    pub time: Option<UnixSeconds>,
}

impl Gate {
    /// Returns why an action that rests on such a block must wait, or `None` when it may be taken.
    pub fn refusal(&self, ground: &Ground) -> Option<String> {
        let Ground { number, level, safe, last_final, .. } = *ground;
        let confirmations = ground.confirmations();
        match self.depth {
            Depth::Blocks(asked) if confirmations < asked => {
                Some(format!("block {number} has {confirmations} of {asked} confirmations"))
            }
            Depth::Safe if number > safe => Some(format!("block {number} is not safe yet, block {safe} is the last")),
            Depth::Final if number > last_final => {
                Some(format!("block {number} is not final yet, block {last_final} is the last"))
            }
            _ if level < self.proof => {
                Some(format!("block {number} is {}, {} is asked", level.name(), self.proof.name()))
            }
            _ => None,
        }
    }
}

impl Gates {
    /// Returns the gate of a duty, or `None` for one that anybody may take at any time: what it makes stays here, or can be made
    /// again.
    pub fn of(&self, duty: Duty) -> Option<&Gate> {
        match duty {
            Duty::Consider => Some(&self.claim),
            Duty::Commit => Some(&self.commit),
            Duty::Complete => Some(&self.complete),
            Duty::Release => Some(&self.release),
            Duty::Infer | Duty::Prove | Duty::Fail | Duty::Announce => None,
        }
    }
}

impl Default for Gates {
    /// A claim asks for all that can be proven. What comes after it asks for nothing but the event: a deadline runs and stake is at
    /// risk, and an endpoint that has no receipts today must not cost them.
    fn default() -> Self {
        let depth = Depth::Blocks(1);
        let after = Gate { depth, proof: Level::Claimed };
        Self { claim: Gate { depth, proof: Level::Complete }, commit: after, complete: after, release: after }
    }
}

impl Ground {
    /// Returns how many blocks stand on it, its own counted.
    pub fn confirmations(&self) -> u64 {
        (self.head + 1).saturating_sub(self.number)
    }
}

impl fmt::Display for Ground {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let called = match self.number {
            number if number <= self.last_final => ", final",
            number if number <= self.safe => ", safe",
            _ => "",
        };
        let (number, level) = (self.number, self.level.name());
        write!(f, "block {number} has {} confirmations{called}, {level}", self.confirmations())
    }
}

/// As written in a configuration: what an entry leaves out is the default of that action.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Entries {
    claim: Entry,
    commit: Entry,
    complete: Entry,
    release: Entry,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Entry {
    depth: Option<Depth>,
    #[serde(deserialize_with = "proof")]
    proof: Option<Level>,
}

impl From<Entries> for Gates {
    fn from(entries: Entries) -> Self {
        let gate = |entry: Entry, usual: Gate| Gate {
            depth: entry.depth.unwrap_or(usual.depth),
            proof: entry.proof.unwrap_or(usual.proof),
        };
        let usual = Gates::default();
        Self {
            claim: gate(entries.claim, usual.claim),
            commit: gate(entries.commit, usual.commit),
            complete: gate(entries.complete, usual.complete),
            release: gate(entries.release, usual.release),
        }
    }
}

impl<'de> Deserialize<'de> for Depth {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged, expecting = "depth is a number of blocks, \"safe\" or \"finalized\"")]
        enum Written {
            Blocks(u64),
            Name(String),
        }
        match Written::deserialize(deserializer)? {
            Written::Blocks(0) => Err(serde::de::Error::custom("depth = 0: a block that is stored has a depth of 1")),
            Written::Blocks(blocks) => Ok(Depth::Blocks(blocks)),
            Written::Name(name) if name == "safe" => Ok(Depth::Safe),
            Written::Name(name) if name == "finalized" => Ok(Depth::Final),
            Written::Name(name) => Err(serde::de::Error::custom(format!(
                "depth = {name:?} is not a number of blocks, \"safe\" or \"finalized\""
            ))),
        }
    }
}

fn proof<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Level>, D::Error> {
    let name = String::deserialize(deserializer)?;
    // That a bloom leaves our contracts out is no level to ask for: the block of an event has one.
    let level = Level::named(&name).filter(|level| *level != Level::Absent);
    let error = || format!("proof = {name:?} is not \"claimed\", \"linked\" or \"complete\"");
    level.map(Some).ok_or_else(|| serde::de::Error::custom(error()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gate_opens_where_depth_and_proof_are_met() {
        let ground = |number, level| Ground { number, level, head: 122, safe: 115, last_final: 110, time: None };
        let gate = |depth, proof| Gate { depth, proof };
        use Depth::*;
        use Level::*;
        for (gate, ground, refusal) in [
            (gate(Blocks(1), Complete), ground(122, Complete), None),
            (gate(Blocks(1), Claimed), ground(122, Claimed), None),
            (gate(Blocks(1), Claimed), ground(123, Claimed), Some("block 123 has 0 of 1 confirmations")),
            (gate(Blocks(3), Complete), ground(122, Complete), Some("block 122 has 1 of 3 confirmations")),
            (gate(Blocks(3), Complete), ground(121, Complete), Some("block 121 has 2 of 3 confirmations")),
            (gate(Blocks(3), Complete), ground(120, Complete), None),
            (gate(Blocks(3), Complete), ground(120, Linked), Some("block 120 is linked, complete is asked")),
            (gate(Blocks(3), Linked), ground(120, Claimed), Some("block 120 is claimed, linked is asked")),
            (gate(Blocks(3), Linked), ground(120, Linked), None),
            (
                gate(Blocks(u64::MAX), Claimed),
                ground(0, Complete),
                Some(&format!("block 0 has 123 of {} confirmations", u64::MAX)),
            ),
            (gate(Safe, Complete), ground(115, Complete), None),
            (gate(Safe, Complete), ground(116, Complete), Some("block 116 is not safe yet, block 115 is the last")),
            (gate(Safe, Complete), ground(115, Linked), Some("block 115 is linked, complete is asked")),
            (gate(Final, Claimed), ground(110, Claimed), None),
            (gate(Final, Claimed), ground(111, Complete), Some("block 111 is not final yet, block 110 is the last")),
        ] {
            assert_eq!(gate.refusal(&ground).as_deref(), refusal, "{gate:?} {ground:?}");
        }
    }

    #[test]
    fn a_ground_is_told_with_its_numbers() {
        let ground =
            |number| Ground { number, level: Level::Complete, head: 122, safe: 115, last_final: 110, time: None };
        assert_eq!(ground(120).to_string(), "block 120 has 3 confirmations, complete");
        assert_eq!(ground(111).to_string(), "block 111 has 12 confirmations, safe, complete");
        assert_eq!(ground(110).to_string(), "block 110 has 13 confirmations, final, complete");
    }

    #[test]
    fn every_transaction_has_a_gate_and_nothing_else() {
        let gates: Gates = toml::from_str("[commit]\ndepth = 2\n[complete]\ndepth = 3\n[release]\ndepth = 4").unwrap();
        let depth = |duty| gates.of(duty).map(|gate| gate.depth);
        assert_eq!(depth(Duty::Consider), Some(Depth::Blocks(1)));
        assert_eq!(depth(Duty::Commit), Some(Depth::Blocks(2)));
        assert_eq!(depth(Duty::Complete), Some(Depth::Blocks(3)));
        assert_eq!(depth(Duty::Release), Some(Depth::Blocks(4)));
        for free in [Duty::Infer, Duty::Prove, Duty::Announce] {
            assert_eq!(gates.of(free), None, "{free:?}");
        }
    }

    #[test]
    fn what_is_left_out_is_the_default_of_that_action() {
        let read = |text: &str| toml::from_str::<Gates>(text).map_err(|error| error.to_string());
        assert_eq!(read(""), Ok(Gates::default()));
        let usual = Gates::default();
        let claim = Gate { depth: Depth::Final, ..usual.claim };
        assert_eq!(read("[claim]\ndepth = \"finalized\""), Ok(Gates { claim, ..usual }));
        assert_eq!(claim.proof, Level::Complete);
        let commit = Gate { depth: Depth::Safe, ..usual.commit };
        assert_eq!(read("[commit]\ndepth = \"safe\""), Ok(Gates { commit, ..usual }));
        assert_eq!(commit.proof, Level::Claimed);
        let release = Gate { depth: Depth::Blocks(7), proof: Level::Linked };
        assert_eq!(read("[release]\ndepth = 7\nproof = \"linked\""), Ok(Gates { release, ..usual }));
        for (text, says) in [
            ("[claim]\ndepth = 0", "depth = 0"),
            ("[claim]\ndepth = -1", "a number of blocks, \"safe\" or \"finalized\""),
            ("[claim]\ndepth = \"deep\"", "depth = \"deep\" is not a number of blocks"),
            ("[claim]\nproof = \"absent\"", "proof = \"absent\" is not \"claimed\""),
            ("[claim]\nproofs = \"complete\"", "proofs"),
            ("[infer]\ndepth = 1", "infer"),
        ] {
            let error = read(text).expect_err(text);
            assert!(error.contains(says), "{text}: {error}");
        }
    }
}
