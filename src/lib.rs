//! `fabstir`: the on-chain-first host node of the Fabstir LLM marketplace.
//!
//! Renters post jobs on chain and lock money for them; hosts claim jobs, run the model, prove the decode step and are
//! paid. This program is a host's node, a renter's client and an auditor's replay, in one crate and one binary.
//!
//! # The idea
//!
//! *Facts* (canonical contract events, and things this node finished) are appended to one SQLite file. A *job* is the
//! fold of its facts ([`market::job::Job::fold`]). What we owe a job is a pure function of it
//! ([`market::job::Job::next`]). Each task repeats one *pass*: find a duty of my kind, lease it, do it, record the fact.
//! Tasks are woken by "the store changed", never handed data: restart, reorg, retry and audit are one code path.
//!
//! # One job, there and back
//!
//! | # | who | what | durable after it |
//! |---|---|---|---|
//! | 1 | [`renter`] | finds the host, delivers the prompt, posts; the escrow holds the money | the chain |
//! | 2 | [`tasks::indexer`] | reads blocks, each linked to the one before, and their logs, proven by their hashes | – |
//! | 3 | [`store`] | one transaction: logs, the jobs they touch, the cursor | logs, job, cursor |
//! | 4 | [`tasks::scheduler`] | [`market::policy`] judges by what [`tasks::survey`] read before; one transaction: `Chosen`, slot, claim intent | fact, slot, intent |
//! | 5 | [`tasks::submitter`] | nonce, sign, **commit the bytes, then** send; again until mined in a canonical block | attempt |
//! | | [`tasks::settle`] | reads, once a block, what became of everything signed | receipt |
//! | 6 | [`tasks::indexer`] | `JobClaimed` by us: only this makes the job ours | fact |
//! | 7 | [`tasks::worker`] | runs the model ([`engine`]); tokens stream meanwhile ([`tasks::desk`]) | transcript, `Inferred` |
//! | 8 | [`tasks::prepare`], [`tasks::submitter`] | try the call, sign, send: commits the root of all token records; the *next* block's hash draws positions | `ResultCommitted` |
//! | 9 | [`tasks::prove`] | proves the drawn positions ([`prover`]), verifies locally | proof, `Proved` |
//! | 10 | [`tasks::prepare`], [`tasks::submitter`] | hands in result and proof; the contract verifies | `JobCompleted` |
//! | 11 | [`tasks::gossip`] | publishes the signed receipt; others check it against the chain and keep it | `Announced` |
//! | 12 | [`tasks::prepare`], [`tasks::submitter`] | after the challenge window asks for the payment | `PaymentReleased` |
//!
//! # Layers
//!
//! Arrows point down; `tests/it/architecture.rs` fails when one points up or a heavy dependency gets a second owner.
//!
//! | layer | rooms | may use |
//! |---|---|---|
//! | 0 | [`market`]: meaning, pure; [`failpoint`]: where tests make a process die | – |
//! | 1 | [`chain`] (alloy), [`store`] (sqlx), [`content`], [`engine`] (llama.cpp), [`prover`] (EZKL), [`p2p`] (libp2p), [`http`] (axum), [`page`], [`lock`] | 0, not each other |
//! | 2 | [`tasks`], [`renter`], [`mod@audit`], [`export`] (Parquet, CSV), [`books`], [`devnet`] | 0–1; tasks not each other |
//! | 3 | [`config`], [`node`], [`cli`] | all |
//!
//! # What holds
//!
//! - Only a canonical `JobClaimed` makes a job ours, and it always does, whatever our bookkeeping believed.
//! - Who decides on a job asks nobody: what a rule needs is read beforehand, and knowledge that is too old claims nothing.
//! - No inference before the claim is canonical; no transaction mentions what is not on disk.
//! - Which logs a block has is proven by its hash, or it is marked as an endpoint's word and no money is risked on it.
//! - What the contracts keep is compared with what the logs told ([`tasks::sweep`]); a job of which they say otherwise is let alone.
//! - An open breaker, a pause and a drain stop claims and nothing else; only the operator lifts them ([`tasks::breaker`]).
//! - A panic costs a pass and a lease ([`tasks::drive`]); a pass that hangs, and work that does not move on ([`tasks::watchdog`]),
//!   make the node not ready, by name.
//! - A block that the chain called final is never taken back: an endpoint that has another stops claims and sends.
//! - A signed transaction keeps its nonce; the same bytes go out again until a receipt stands in a canonical block. What takes its
//!   place, to pay more or to do nothing, has the same nonce.
//! - What we give up we tell the chain while there is time, so that another host can have it.
//! - Logs, jobs and cursor change in one database transaction; an orphaned log stays as the auditor's trail.
//! - One process at a time works with a folder of data, and sends from the account.
//! - Nothing a peer, a chain, a file or a user sends causes a panic.

pub mod audit;
pub mod books;
pub mod chain;
pub mod cli;
pub mod config;
pub mod content;
pub mod devnet;
pub mod engine;
pub mod export;
pub mod failpoint;
pub mod http;
pub mod lock;
pub mod market;
pub mod node;
pub mod p2p;
pub mod page;
pub mod prover;
pub mod renter;
pub mod store;
pub mod tasks;
