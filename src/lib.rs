//! `fabstir`: the on-chain-first host node of the Fabstir LLM marketplace.

pub mod audit;
pub mod chain;
pub mod config;
pub mod content;
pub mod devnet;
pub mod engine;
pub mod http;
pub mod market;
pub mod node;
pub mod p2p;
pub mod prover;
pub mod renter;
pub mod store;
pub mod tasks;
