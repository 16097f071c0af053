//! The whole of what a model did for one job: every token with the record that picked it.

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use super::commitment::{Tree, tokens_digest};
use super::event::Commitment;
use super::select::Record;
use super::types::{B256, Cid};

/// What was picked at each output position and the text each token added. Both lists are as long as the output.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Transcript {
    pub records: Vec<Record>,
    pub pieces: Vec<String>,
}

impl Transcript {
    /// Returns the output: the pieces, joined.
    pub fn text(&self) -> String {
        self.pieces.concat()
    }

    /// Returns the output's token ids.
    pub fn tokens(&self) -> Vec<u32> {
        self.records.iter().map(Record::token).collect()
    }

    /// Returns what the host binds itself to, and the output's content id.
    ///
    /// # Errors
    /// If there is no token, or more than a commitment can hold.
    pub fn commit(&self) -> Result<(Commitment, Cid)> {
        let digests: Vec<B256> = self.records.iter().map(Record::digest).collect();
        let root = Tree::of(&digests)?.root();
        let output = Cid::of(self.text().as_bytes());
        let tokens = self.records.len() as u32;
        let tokens_digest = tokens_digest(&self.tokens());
        Ok((Commitment { root, tokens, result_hash: output.chain_hash(), tokens_digest }, output))
    }

    /// Reads a transcript from stored bytes.
    ///
    /// # Errors
    /// If the bytes are not one, or its lists differ in length.
    pub fn read(bytes: &[u8]) -> Result<Self> {
        let transcript: Transcript = serde_json::from_slice(bytes).context("not a transcript")?;
        let (records, pieces) = (transcript.records.len(), transcript.pieces.len());
        ensure!(records == pieces, "a transcript of {records} records and {pieces} pieces");
        Ok(transcript)
    }
}
