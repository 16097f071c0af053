//! Measures what continuous batching gains, and whether it changes a record: the same requests one at a time, then all
//! at once.
//!
//! `cargo run --release --example engine_throughput -- MODEL.gguf [REQUESTS] [THREADS]` prints both speeds and their
//! ratio. Only the ratio means anything: both halves run in one process, on one machine, at one load.

use std::time::Instant;

use anyhow::{Context, Result};
use fabstir::engine::{Config, Engine, Generation, Output, Request};
use fabstir::market::types::JobId;
use futures::future::try_join_all;

#[tokio::main]
async fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let path = arguments.next().context("usage: engine_throughput MODEL.gguf [REQUESTS] [THREADS]")?;
    let requests: usize = arguments.next().map_or(Ok(8), |text| text.parse()).context("REQUESTS")?;
    let threads = arguments.next().map_or(Ok(1), |text| text.parse()).context("THREADS")?;
    let engine = Engine::load(Config {
        path: path.into(),
        slots: requests,
        context_tokens: 512 * requests as u32,
        threads,
        gpu_layers: 0,
        candidates: 8,
        queue_max: 0,
    })?;
    let model = engine.model();
    println!("{}: {} MB, {requests} requests, {threads} threads", model.name, model.file_bytes / 1_000_000);
    let submit = |index: usize| {
        engine.submit(Request {
            job: JobId(index as u64 + 1),
            prompt: "Tell me a story about a fox.".into(),
            max_tokens: 128,
            temperature_milli: 500,
            seed: 0,
        })
    };

    let began = Instant::now();
    let mut alone = Vec::new();
    for index in 0..requests {
        alone.push(submit(index)?.finish().await?);
    }
    let speed_alone = tokens(&alone) / began.elapsed().as_secs_f64();

    let began = Instant::now();
    let generations = (0..requests).map(submit).collect::<Result<Vec<_>, _>>()?;
    let together = try_join_all(generations.into_iter().map(Generation::finish)).await?;
    let speed_together = tokens(&together) / began.elapsed().as_secs_f64();

    println!(
        "one at a time {speed_alone:.0} tokens/s, together {speed_together:.0} tokens/s, ratio {:.2}; records {}",
        speed_together / speed_alone,
        if alone == together { "identical" } else { "differ" }
    );
    Ok(())
}

fn tokens(outputs: &[Output]) -> f64 {
    outputs.iter().map(|output| output.records.len()).sum::<usize>() as f64
}
