//! A host's endpoint, which fails in every way that does not forge a block: it forwards and loses the answer, forwards twice,
//! refuses, is late, and tells an old block for the newest.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::Result;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::proxy::{Proxy, Reply, When};

/// Of a thousand requests, so many are met by each fault; those that send transactions by the second.
const CUT: [u32; 2] = [8, 200];
const TWICE: [u32; 2] = [30, 150];
const REFUSED: [u32; 2] = [7, 50];
const LATE: [u32; 2] = [40, 100];
const LATE_MS_MAX: u64 = 2000;

/// The endpoint and whether it fails now.
pub struct Endpoint {
    proxy: Proxy,
    fails: Arc<AtomicBool>,
}

impl Endpoint {
    /// Stands before the chain at `target`; it does not fail yet. Which requests are met follows from `seed`.
    pub async fn start(target: &str, seed: u64) -> Result<Self> {
        let proxy = Proxy::start(target).await?;
        let fails = Arc::new(AtomicBool::new(false));
        let (now, dice) = (fails.clone(), Mutex::new(StdRng::seed_from_u64(seed)));
        proxy.request(When::Always, move |calls| {
            if !now.load(Relaxed) {
                return None;
            }
            let sends = usize::from(calls.iter().any(|call| call["method"] == "eth_sendRawTransaction"));
            let (cut, twice) = (CUT[sends], CUT[sends] + TWICE[sends]);
            let (refused, late) = (twice + REFUSED[sends], twice + REFUSED[sends] + LATE[sends]);
            let mut dice = dice.lock().expect("no holder of this lock panics");
            match dice.gen_range(0..1000) {
                roll if roll < cut => Some(Reply::Torn),
                roll if roll < twice => Some(Reply::Twice),
                roll if roll < refused => Some(Reply::Status(503, "the endpoint has no time")),
                roll if roll < late => Some(Reply::Late(Duration::from_millis(dice.gen_range(0..LATE_MS_MAX)))),
                _ => None,
            }
        });
        Ok(Self { proxy, fails })
    }

    /// Returns where it listens.
    pub fn url(&self) -> String {
        self.proxy.url.clone()
    }

    /// Fails from now on, or no more.
    pub fn fail(&self, fails: bool) {
        self.fails.store(fails, Relaxed);
    }

    /// Shows no block after `number` from now on; `u64::MAX` shows them all.
    pub fn show(&self, number: u64) {
        self.proxy.show(number);
    }

    /// Returns how many requests were met by a fault.
    pub fn met(&self) -> u64 {
        self.proxy.met()
    }
}
