//! Continuous batching: the loop of the compute thread, and the queue callers share with it.
//!
//! ```text
//!             slot free            prompt fed             end of generation or max_tokens
//! Waiting ──────────────► Prefill ────────────► Decode ──────────────────────────────────► ended
//!    │ reader gone           │ reader gone, decode error, non-finite logit                  ▲
//!    └───────────────────────┴─────────────────────┴────────────────────────────────────────┘
//! ```
//! Every step feeds one token of each decoding sequence and, with what room is left, parts of prompts. While anything
//! decodes, the prompt part is held to what takes about [`PREFILL`], so that a long prompt does not stall the streams.

use std::collections::VecDeque;
use std::num::NonZeroU32;
use std::sync::{Condvar, Mutex, MutexGuard, mpsc as std_mpsc};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use llama_cpp_2::context::LlamaContext;
use llama_cpp_2::context::params::LlamaContextParams;
use llama_cpp_2::llama_batch::LlamaBatch;
use llama_cpp_2::model::LlamaModel;
use llama_cpp_2::token::LlamaToken;
use llama_cpp_2::vocab::LlamaVocab;
use rustix::process::setpriority_process;
use rustix::thread::gettid;
use tokio::sync::mpsc;

use super::text::Text;
use super::{Config, Event, NICE, Reason, Refused, Request, Stats, Step, backend};
use crate::market::select::{Record, draw, select};
use crate::market::types::JobId;

/// Most tokens of one step.
const BATCH_TOKENS: u32 = 256;
/// Source: `LLAMA_FLASH_ATTN_TYPE_AUTO` and `_DISABLED` in llama.cpp's `llama.h`.
const FLASH_ATTENTION_AUTO: i32 = -1;
const FLASH_ATTENTION_OFF: i32 = 0;
/// Time given to prompts in a step that also decodes.
const PREFILL: Duration = Duration::from_millis(250);
/// Prompt tokens such a step feeds at least, so that a slow machine still gets on.
const PREFILL_TOKENS_MIN: usize = 16;

/// One request inside the engine.
#[derive(Debug)]
pub(super) struct Sequence {
    job: JobId,
    temperature_milli: u32,
    seed: u32,
    max_tokens: u32,
    /// Prompt, then picked tokens.
    tokens: Vec<LlamaToken>,
    prompt_tokens: usize,
    /// llama.cpp's sequence id while it has a slot.
    id: i32,
    /// How many of `tokens` the context holds.
    cached: usize,
    /// How many more the batch being computed adds.
    fed: usize,
    /// Where in the batch this step's logits are.
    logits_at: Option<i32>,
    text: Text,
    events: mpsc::Sender<Result<Event>>,
}

impl Sequence {
    pub(super) fn new(request: &Request, tokens: Vec<LlamaToken>, events: mpsc::Sender<Result<Event>>) -> Self {
        Self {
            job: request.job,
            temperature_milli: request.temperature_milli,
            seed: request.seed,
            max_tokens: request.max_tokens,
            prompt_tokens: tokens.len(),
            tokens,
            id: 0,
            cached: 0,
            fed: 0,
            logits_at: None,
            text: Text::default(),
            events,
        }
    }

    fn decodes(&self) -> bool {
        self.tokens.len() > self.prompt_tokens
    }

    fn abandoned(&self) -> bool {
        self.events.is_closed()
    }

    /// Emits an event. A reader that is gone is found by [`Sequence::abandoned`]; a full buffer cannot be, as it has
    /// room for `max_tokens` steps and the end.
    fn emit(&self, event: Result<Event>) {
        let _ = self.events.try_send(event);
    }

    /// Picks the next token from `logits` and emits it. Returns why it was the last one, if so.
    fn advance(&mut self, logits: &[f32], candidates: usize, vocab: &LlamaVocab<'_>) -> Result<Option<Reason>> {
        let position = (self.tokens.len() - self.prompt_tokens) as u32;
        let draw = draw(self.seed, self.job, position, self.temperature_milli);
        let record = pick(logits, self.temperature_milli, draw, candidates)
            .with_context(|| format!("output position {position}"))?;
        let token = LlamaToken::new(record.token() as i32);
        self.tokens.push(token);
        let reason = if vocab.is_eog(token) {
            Some(Reason::Stop)
        } else if position + 1 == self.max_tokens {
            Some(Reason::Length)
        } else {
            None
        };
        let piece = if vocab.is_eog(token) { Vec::new() } else { vocab.token_to_piece(token, false, None) };
        let mut text = self.text.push(&piece);
        if reason.is_some() {
            text.push_str(self.text.finish());
        }
        self.emit(Ok(Event::Step(Step { position, token: record.token(), text, record })));
        Ok(reason)
    }
}

/// Returns the record of one step, having checked what [`select`] takes for granted.
fn pick(logits: &[f32], temperature_milli: u32, draw: u16, candidates: usize) -> Result<Record> {
    if let Some(id) = logits.iter().position(|logit| !logit.is_finite()) {
        bail!("the model's logit of token {id} is {}, not a finite number", logits[id]);
    }
    Ok(select(logits, temperature_milli, draw, candidates))
}

/// What callers and the compute thread share.
#[derive(Debug)]
pub(super) struct Shared {
    state: Mutex<State>,
    wake: Condvar,
}

#[derive(Debug)]
struct State {
    waiting: VecDeque<Sequence>,
    stopping: bool,
    step_since: Option<Instant>,
    stats: Stats,
}

impl Shared {
    pub(super) fn new(kv_total: u32) -> Self {
        let stats = Stats { kv_total, alive: true, ..Stats::default() };
        let state = State { waiting: VecDeque::new(), stopping: false, step_since: None, stats };
        Self { state: Mutex::new(state), wake: Condvar::new() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nothing panics while holding the lock")
    }

    pub(super) fn stats(&self) -> Stats {
        let state = self.lock();
        Stats { waiting: state.waiting.len(), step_age: state.step_since.map(|since| since.elapsed()), ..state.stats }
    }

    /// Queues a sequence, of which slots and queue together hold at most `slots + queue_max`.
    pub(super) fn enqueue(&self, sequence: Sequence, slots: usize, queue_max: usize) -> Result<(), Refused> {
        let mut state = self.lock();
        if state.stopping || !state.stats.alive {
            return Err(Refused::Stopped);
        }
        if state.stats.running + state.waiting.len() >= slots.saturating_add(queue_max) {
            return Err(Refused::QueueFull { max: queue_max });
        }
        state.waiting.push_back(sequence);
        self.wake.notify_one();
        Ok(())
    }

    /// Calls `act` while the compute thread cannot go beyond the step it is in.
    #[cfg(test)]
    pub(super) fn while_paused<T>(&self, act: impl FnOnce(&Stats) -> T) -> T {
        act(&self.lock().stats)
    }

    pub(super) fn stop(&self) {
        self.lock().stopping = true;
        self.wake.notify_one();
    }
}

/// Returns the context cells of all slots together. llama.cpp gives each sequence a multiple of 256.
pub(super) fn kv_total(config: &Config) -> u32 {
    config.context_tokens.saturating_add(255) / 256 * 256 * config.slots as u32
}

/// Marks the engine as gone when the compute thread ends, however it ends.
struct Alive<'a>(&'a Shared);

impl Drop for Alive<'_> {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.waiting.drain(..).for_each(|sequence| sequence.emit(Ok(Event::End(Reason::Cancelled))));
        state.step_since = None;
        state.stats = Stats { alive: false, running: 0, kv_used: 0, ..state.stats };
    }
}

/// The compute thread. Sends whether it has a context, then serves until stopped.
pub(super) fn run(config: &Config, model: &LlamaModel, shared: &Shared, ready: &std_mpsc::SyncSender<bool>) {
    let _alive = Alive(shared);
    // Computing has time: what a claim needs goes first on the same cores. Threads of llama.cpp's inherit it.
    if let Err(error) = setpriority_process(Some(gettid()), NICE) {
        tracing::debug!(%error, "the compute thread keeps its priority");
    }
    let threads = i32::try_from(config.threads).unwrap_or(i32::MAX);
    let on_gpu = config.gpu_layers > 0 && backend().supports_gpu_offload();
    let params = LlamaContextParams::default()
        .with_n_ctx(NonZeroU32::new(kv_total(config)))
        .with_n_seq_max(config.slots as u32)
        // Both for repeatability on a CPU. With a common pool of cells, where a token's neighbours lie changes the order
        // of sums; flash attention there picks one of three kernels by what else is in the batch. Together they moved
        // scores by up to 113 on the small model.
        .with_kv_unified(false)
        .with_flash_attention_policy(if on_gpu { FLASH_ATTENTION_AUTO } else { FLASH_ATTENTION_OFF })
        .with_n_batch(BATCH_TOKENS)
        .with_n_ubatch(BATCH_TOKENS)
        .with_n_threads(threads)
        .with_n_threads_batch(threads);
    let context = model.new_context(backend(), params).ok();
    // The receiver waits for exactly this.
    let _ = ready.send(context.is_some());
    let Some(context) = context else { return };
    let batch_tokens = context.n_batch() as usize;
    let mut compute = Compute {
        context,
        vocab: model.vocab(),
        batch: LlamaBatch::new(batch_tokens, 1),
        batch_tokens,
        prefill_tokens: PREFILL_TOKENS_MIN,
        candidates: config.candidates,
        slots: config.slots as i32,
        running: Vec::new(),
        shared,
    };
    while compute.admit() {
        compute.step();
    }
    compute.end_where(|_| Some(Ok(Reason::Cancelled)));
}

struct Compute<'a> {
    context: LlamaContext<'a>,
    vocab: LlamaVocab<'a>,
    batch: LlamaBatch<'static>,
    /// Most tokens of one batch.
    batch_tokens: usize,
    /// Most prompt tokens of a batch that also decodes: about [`PREFILL`] at the measured speed.
    prefill_tokens: usize,
    candidates: usize,
    slots: i32,
    /// At most `slots`, in order of arrival.
    running: Vec<Sequence>,
    shared: &'a Shared,
}

impl Compute<'_> {
    /// Ends sequences nobody reads, fills slots from the queue and waits while there is nothing to compute. Returns
    /// false when the engine stops.
    fn admit(&mut self) -> bool {
        self.end_where(|sequence| sequence.abandoned().then_some(Ok(Reason::Cancelled)));
        let mut state = self.shared.lock();
        while !state.stopping {
            state.waiting.retain(|sequence| !sequence.abandoned());
            while let Some(id) = self.free_slot()
                && let Some(next) = state.waiting.pop_front()
            {
                self.running.push(Sequence { id, ..next });
            }
            state.stats.running = self.running.len();
            state.stats.kv_used = self.running.iter().map(|sequence| sequence.cached as u32).sum();
            state.step_since = (!self.running.is_empty()).then(Instant::now);
            if state.step_since.is_some() {
                return true;
            }
            state = self.shared.wake.wait(state).expect("nothing panics while holding the lock");
        }
        false
    }

    fn free_slot(&self) -> Option<i32> {
        (0..self.slots).find(|&id| self.running.iter().all(|sequence| sequence.id != id))
    }

    /// Computes one batch and picks a token for each sequence whose logits it made.
    fn step(&mut self) {
        let prompt_tokens = self.compose();
        let began = Instant::now();
        let decoded = self.context.decode(&mut self.batch);
        let (context, vocab, candidates) = (&self.context, &self.vocab, self.candidates);
        let mut generated = 0;
        let mut outcomes: Vec<Option<Result<Reason>>> = Vec::with_capacity(self.running.len());
        for sequence in &mut self.running {
            let fed = std::mem::take(&mut sequence.fed);
            sequence.cached += fed;
            let logits_at = sequence.logits_at.take();
            outcomes.push(match &decoded {
                // What the context holds of the batch is not known now, so all sequences in it end; the engine goes on.
                Err(error) => (fed > 0).then(|| Err(anyhow!("llama.cpp failed on a batch: {error}"))),
                Ok(()) => logits_at.and_then(|at| {
                    generated += 1;
                    sequence.advance(context.get_logits_ith(at), candidates, vocab).transpose()
                }),
            });
        }
        self.pace(prompt_tokens, began.elapsed());
        let mut state = self.shared.lock();
        state.stats.prompt_tokens_total += prompt_tokens as u64;
        state.stats.generated_tokens_total += generated;
        drop(state);
        let mut outcomes = outcomes.into_iter();
        self.end_where(|_| outcomes.next().flatten());
    }

    /// Fills the batch and returns how many of its tokens are of prompts.
    fn compose(&mut self) -> usize {
        self.batch.clear();
        let decoding = self.running.iter().filter(|sequence| sequence.decodes()).count();
        let free = self.batch_tokens - decoding;
        let mut room = if decoding == 0 { free } else { free.min(self.prefill_tokens) };
        let mut prompt_tokens = 0;
        for sequence in &mut self.running {
            let unfed = sequence.tokens.len() - sequence.cached;
            if sequence.decodes() {
                sequence.fed = unfed;
            } else {
                sequence.fed = unfed.min(room);
                room -= sequence.fed;
                prompt_tokens += sequence.fed;
            }
            for at in sequence.cached..sequence.cached + sequence.fed {
                let last = at + 1 == sequence.tokens.len();
                if last {
                    sequence.logits_at = Some(self.batch.n_tokens());
                }
                self.batch
                    .add(sequence.tokens[at], at as i32, &[sequence.id], last)
                    .expect("decoding and room together are at most batch_tokens");
            }
        }
        prompt_tokens
    }

    /// Learns from a step's duration how many prompt tokens fit into [`PREFILL`].
    fn pace(&mut self, prompt_tokens: usize, took: Duration) {
        // Small batches say little about the speed of large ones.
        if prompt_tokens < PREFILL_TOKENS_MIN {
            return;
        }
        let fitting = prompt_tokens as f64 * PREFILL.as_secs_f64() / took.as_secs_f64().max(1e-6);
        let average = (3.0 * self.prefill_tokens as f64 + fitting) / 4.0;
        self.prefill_tokens = (average as usize).clamp(PREFILL_TOKENS_MIN, self.batch_tokens);
    }

    /// Ends the sequences for which `outcome` returns one; it is asked once for each, in order. Their slot and cells are
    /// free before their readers learn of the end, so that one who then submits again is not refused.
    fn end_where(&mut self, mut outcome: impl FnMut(&Sequence) -> Option<Result<Reason>>) {
        let mut ended = Vec::new();
        for sequence in std::mem::take(&mut self.running) {
            match outcome(&sequence) {
                None => self.running.push(sequence),
                Some(outcome) => ended.push((sequence, outcome)),
            }
        }
        if ended.is_empty() {
            return;
        }
        for (sequence, _) in &ended {
            // Removing a whole sequence cannot fail; the error is for ids beyond 31 bits.
            let _ = self.context.clear_kv_cache_seq(Some(sequence.id as u32), None, None);
        }
        let mut state = self.shared.lock();
        state.stats.running = self.running.len();
        state.stats.kv_used = self.running.iter().map(|sequence| sequence.cached as u32).sum();
        state.stats.failed_total += ended.iter().filter(|(_, outcome)| outcome.is_err()).count() as u64;
        drop(state);
        for (sequence, outcome) in ended {
            sequence.emit(outcome.map(Event::End));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_logit_that_is_no_number_fails_the_pick() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let error = pick(&[0.0, bad, 1.0], 0, 0, 2).unwrap_err();
            assert!(error.to_string().contains("logit of token 1"), "{error}");
        }
        assert_eq!(pick(&[0.0, 3.0, 1.0], 0, 0, 2).unwrap().ids, [1, 2]);
    }
}
