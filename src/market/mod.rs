//! Meaning: what the marketplace's facts say and what follows from them.
//!
//! Pure: no async, no clock, no I/O, no randomness; time is an argument. Never talks to a chain, a disk or a peer.

pub mod breaker;
pub mod commitment;
pub mod coverage;
pub mod event;
pub mod gate;
pub mod job;
pub mod ledger;
pub mod offer;
pub mod policy;
pub mod poseidon;
pub mod receipt;
pub mod record;
pub mod select;
pub mod transcript;
pub mod types;
