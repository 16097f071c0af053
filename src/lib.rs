//! `fabstir`: the on-chain-first host node of the Fabstir LLM marketplace.

pub mod market;
