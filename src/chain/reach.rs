//! How many blocks to ask `eth_getLogs` for at once.

use std::time::Duration;

/// Learns how many blocks an endpoint gives logs of in one answer.
#[derive(Debug, Clone)]
pub struct Reach {
    max: u64,
    blocks: u64,
}

impl Reach {
    /// Starts modest and grows to `max_blocks`.
    pub fn new(max_blocks: u64) -> Self {
        let max = max_blocks.max(1);
        Self { max, blocks: max.min(100) }
    }

    /// Returns how many blocks to ask for: at least 1.
    pub fn blocks(&self) -> u64 {
        self.blocks
    }

    /// Learns from an answer of so many logs that took so long.
    pub fn answered(&mut self, blocks: u64, _logs: usize, _took: Duration) {
        self.blocks = (blocks + blocks / 2 + 1).clamp(1, self.max);
    }

    /// Learns from a refusal. Returns whether fewer blocks may help.
    pub fn refused(&mut self, blocks: u64, _text: &str) -> bool {
        self.blocks = (blocks / 2).max(1);
        blocks > 1
    }
}
