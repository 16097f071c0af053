//! The jobs declined last, for an operator who asks: in memory only, since anyone may post jobs by the thousand.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use serde::Serialize;

use crate::market::types::{JobId, UnixSeconds};

/// Jobs that are remembered.
const MAX: usize = 1024;

/// What was declined last. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Declined(Arc<Mutex<VecDeque<Skipped>>>);

/// A job that policy declined.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Skipped {
    pub job: JobId,
    /// The first rule that refused, and its numbers.
    pub rule: &'static str,
    pub detail: String,
    /// Time of the newest block then.
    pub at: UnixSeconds,
}

impl Declined {
    /// Remembers one more, and forgets the oldest where there are too many.
    pub fn note(&self, skipped: Skipped) {
        let mut all = self.0.lock().expect("no holder of this lock panics");
        if all.len() == MAX {
            all.pop_front();
        }
        all.push_back(skipped);
    }

    /// Returns what is remembered.
    pub fn newest_first(&self) -> Vec<Skipped> {
        self.0.lock().expect("no holder of this lock panics").iter().rev().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_are_remembered_and_no_more_than_fit() {
        let declined = Declined::default();
        for job in 0..MAX as u64 + 10 {
            declined.note(Skipped { job: JobId(job), rule: "price", detail: String::new(), at: UnixSeconds(job) });
        }
        let all = declined.newest_first();
        assert_eq!((all.len(), all[0].job, all[MAX - 1].job), (MAX, JobId(MAX as u64 + 9), JobId(10)));
    }
}
