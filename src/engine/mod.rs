//! Inference: one GGUF model, many requests in one batch, every output token with the record of how it was picked.
//!
//! ```text
//! submit ──► waiting (bounded) ──► compute thread: admit → compose → decode → select → emit ──► Generation
//! ```
//! One thread owns llama.cpp's context. Callers tokenise on their own thread, leave the sequence in a bounded queue and
//! read steps from a buffer that is as large as the request's own token limit, so a slow reader stalls nobody. Each slot
//! has its own context, and a request that may outgrow it is refused at once, so none runs out half-way.
//!
//! Tokens are picked by [`crate::market::select`], never by llama.cpp's samplers, since the pick is what is proved. The
//! records count every picked token, a final end-of-generation token included; the text does not show that one.
//!
//! Never talks to a chain, a disk other than the model's file, or a peer; never logs prompts or outputs.
//!
//! **Repeatability.** On a CPU a request gives the same records every time and whatever runs beside it (measured with
//! this build's kernels; a test holds it). Another machine, build or thread count, and a GPU, whose kernels depend on
//! the batch, may differ in a logit's last bits. The records say what was computed here.
//!
//! Source: llama.cpp through `llama-cpp-2`, <https://docs.rs/llama-cpp-2/0.1.160>.

mod batch;
mod prompt;
mod text;

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock, mpsc as std_mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use llama_cpp_2::llama_backend::LlamaBackend;
use llama_cpp_2::model::LlamaModel;
use llama_cpp_2::model::params::LlamaModelParams;
use llama_cpp_2::token::LlamaToken;
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;

use crate::market::select::Record;
use crate::market::types::{JobId, ModelId};
use batch::{Sequence, Shared};
use prompt::Template;

/// The `tracing` target of llama.cpp's own lines. They keep llama.cpp's levels and are chatty at `info` and `warn`, so
/// a log filter should hold them at `llama-cpp-2=error` unless the operator asks for more.
pub const LOG_TARGET: &str = "llama-cpp-2";

/// What the scheduler of the operating system is told of everything that computes: work with a block's deadline goes first.
const NICE: i32 = 10;

/// Most sequences of one engine. Source: `LLAMA_MAX_SEQ` in llama.cpp's `llama-cparams.h`.
pub const SLOTS_MAX: usize = 256;

/// Most bytes of a prompt for each token of context: larger prompts are refused before they are tokenised.
pub const PROMPT_BYTES_PER_TOKEN_MAX: usize = 16;

/// What to load and how much of the machine it may use.
#[derive(Debug, Clone)]
pub struct Config {
    /// The model's GGUF file.
    pub path: PathBuf,
    /// Sequences computed at the same time, 1 to [`SLOTS_MAX`].
    pub slots: usize,
    /// Tokens a slot's context holds, prompt and output together; memory grows with `slots * context_tokens`.
    pub context_tokens: u32,
    /// CPU threads of one step, at least 1. They spin while they wait for one another, so more of them than idle cores
    /// is many times slower than fewer.
    pub threads: u32,
    /// Layers put on a GPU; without a GPU feature of this crate it has no effect.
    pub gpu_layers: u32,
    /// Candidates of each record, 1 to the size of the vocabulary; fixed by the circuit.
    pub candidates: usize,
    /// Requests that may wait beside those in slots.
    pub queue_max: usize,
}

/// What was loaded.
#[derive(Debug, Clone)]
pub struct Model {
    /// SHA-256 of the file's bytes, as read at load.
    pub id: ModelId,
    /// `general.name` of the GGUF, else the file's name.
    pub name: String,
    /// Most tokens of one request, prompt and output: the smaller of the configured and the trained length.
    pub context_tokens: u32,
    /// Vocabulary ids are below this.
    pub vocabulary: u32,
    /// Size of the file.
    pub file_bytes: u64,
}

/// One prompt to answer.
#[derive(Debug, Clone)]
pub struct Request {
    /// The job whose draws pick the tokens.
    pub job: JobId,
    /// The text of one user message. The model's chat template goes around it; whatever looks like a special token in
    /// it stays plain text.
    pub prompt: String,
    /// Most tokens to pick, at least 1, an end-of-generation token included.
    pub max_tokens: u32,
    /// In thousandths; 0 is greedy.
    pub temperature_milli: u32,
    /// Seed of the draws.
    pub seed: u32,
}

/// Why a request was not taken. Nothing was started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refused {
    /// All slots and `max` waiting places are taken; trying later is safe.
    QueueFull { max: usize },
    /// The templated prompt has `have` tokens; with this request's `max_tokens`, at most `max` fit.
    PromptTooLong { have: u32, max: u32 },
    /// The prompt has `have` bytes; more than `max` are not even tokenised.
    PromptTooLarge { have: usize, max: usize },
    /// `max_tokens` is `have`, not 1 to `max`.
    MaxTokens { have: u32, max: u32 },
    /// The engine has stopped; load another.
    Stopped,
}

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::QueueFull { max } => write!(f, "all slots are busy and {max} requests wait already; try again later"),
            Self::PromptTooLong { have, max } => write!(f, "prompt has {have} tokens, at most {max} fit"),
            Self::PromptTooLarge { have, max } => write!(f, "prompt has {have} bytes, at most {max} are accepted"),
            Self::MaxTokens { have, max } => write!(f, "max_tokens is {have}, not between 1 and {max}"),
            Self::Stopped => write!(f, "the engine has stopped"),
        }
    }
}

impl std::error::Error for Refused {}

/// One picked token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// Output position, from 0.
    pub position: u32,
    /// The picked vocabulary id: `record.token()`.
    pub token: u32,
    /// The text this step completes; empty inside a multi-byte character and for an end-of-generation token. The pieces
    /// of all steps, joined, are the output.
    pub text: String,
    /// How it was picked.
    pub record: Record,
}

/// Why a generation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// The model picked an end-of-generation token, the last of the records.
    Stop,
    /// `max_tokens` were picked.
    Length,
    /// The engine stopped before the end.
    Cancelled,
}

/// What [`Generation::next`] returns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A token was picked.
    Step(Step),
    /// There are no more.
    End(Reason),
}

/// A whole output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// The pieces of all steps, joined.
    pub text: String,
    /// One for each picked token, in order, at least one unless `reason` is [`Reason::Cancelled`].
    pub records: Vec<Record>,
    /// Why it ended.
    pub reason: Reason,
}

/// A running or waiting request. Dropping it cancels the request: its slot is free after the step being
/// computed. Holds at most the request's `max_tokens` unread steps.
#[derive(Debug)]
pub struct Generation {
    /// Tokens of the templated prompt.
    pub prompt_tokens: u32,
    events: mpsc::Receiver<Result<Event>>,
}

impl Generation {
    /// Waits for the next step, or for the end, after which it is not to be called again. Cancel safe.
    ///
    /// # Errors
    /// If llama.cpp failed or produced a logit that is not finite, or the engine broke down. The request is over; the
    /// same one may be submitted again.
    pub async fn next(&mut self) -> Result<Event> {
        self.events.recv().await.unwrap_or_else(|| Err(anyhow!("the engine stopped before the generation ended")))
    }

    /// Reads to the end and returns all of what was not read yet.
    ///
    /// # Errors
    /// As [`Generation::next`].
    pub async fn finish(mut self) -> Result<Output> {
        let (mut text, mut records) = (String::new(), Vec::new());
        loop {
            match self.next().await? {
                Event::Step(step) => {
                    text.push_str(&step.text);
                    records.push(step.record);
                }
                Event::End(reason) => return Ok(Output { text, records, reason }),
            }
        }
    }
}

/// What the engine does at this moment and did so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stats {
    /// False once the compute thread is gone: every request is refused.
    pub alive: bool,
    /// Requests in slots.
    pub running: usize,
    /// Requests without a slot.
    pub waiting: usize,
    /// Context cells in use by sequences in slots.
    pub kv_used: u32,
    /// Context cells there are.
    pub kv_total: u32,
    /// Prompt tokens computed since load.
    pub prompt_tokens_total: u64,
    /// Tokens picked since load.
    pub generated_tokens_total: u64,
    /// Requests that ended in an error since load.
    pub failed_total: u64,
    /// How long the step being computed has been running; `None` when idle. A large value means a stuck device.
    pub step_age: Option<Duration>,
}

/// A loaded model and the thread that computes it. Dropping it ends every generation as [`Reason::Cancelled`] and waits
/// for the step being computed.
#[derive(Debug)]
pub struct Engine {
    model: Model,
    config: Config,
    llama: Arc<LlamaModel>,
    template: Template,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Engine {
    /// Loads the model and starts its compute thread. Blocks for as long as reading and hashing the file takes.
    ///
    /// # Errors
    /// If a limit of `config` is out of bounds, the file is missing, no GGUF or refused by llama.cpp, its vocabulary is
    /// smaller than `candidates`, its chat template is missing or unknown, or the context does not fit in memory.
    pub fn load(config: Config) -> Result<Self> {
        ensure!((1..=SLOTS_MAX).contains(&config.slots), "slots is {}, not between 1 and {SLOTS_MAX}", config.slots);
        ensure!(config.threads >= 1, "threads is 0; give the engine at least 1 CPU thread");
        let context_max = u32::MAX / 2 / config.slots as u32;
        ensure!(
            (2..=context_max).contains(&config.context_tokens),
            "context_tokens is {}, not between 2 and {context_max}",
            config.context_tokens
        );
        let path = config.path.as_path();
        let (id, file_bytes) = identify(path).with_context(|| format!("load model {}", path.display()))?;
        let (llama, template) =
            load_llama(path, config.gpu_layers).with_context(|| format!("load model {}", path.display()))?;
        let vocabulary = u32::try_from(llama.vocab().n_tokens()).context("size of the vocabulary")?;
        ensure!(
            (1..=vocabulary as usize).contains(&config.candidates),
            "candidates is {}, but model {} has a vocabulary of {vocabulary}",
            config.candidates,
            path.display()
        );
        let name = llama.meta_val_str("general.name").ok().filter(|name| !name.is_empty());
        let file_stem = || path.file_stem().unwrap_or(path.as_os_str()).to_string_lossy().into_owned();
        let model = Model {
            id,
            name: name.unwrap_or_else(file_stem),
            context_tokens: config.context_tokens.min(llama.n_ctx_train()),
            vocabulary,
            file_bytes,
        };
        let llama = Arc::new(llama);
        let shared = Arc::new(Shared::new(batch::kv_total(&config)));
        let thread = start(&config, &llama, &shared)?;
        Ok(Self { model, config, llama, template, shared, thread: Some(thread) })
    }

    /// Returns what was loaded.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// Returns the number of tokens `prompt` takes in the context, the chat template's own included.
    ///
    /// # Errors
    /// [`Refused::PromptTooLarge`].
    pub fn count_prompt_tokens(&self, prompt: &str) -> Result<u32, Refused> {
        Ok(self.tokenize(prompt)?.len() as u32)
    }

    /// Takes a request; it starts when a slot is free, in order of arrival.
    ///
    /// # Errors
    /// If a limit forbids it; nothing was started, and [`Refused::QueueFull`] passes with time.
    pub fn submit(&self, request: Request) -> Result<Generation, Refused> {
        let limit = self.model.context_tokens;
        if !(1..limit).contains(&request.max_tokens) {
            return Err(Refused::MaxTokens { have: request.max_tokens, max: limit - 1 });
        }
        let tokens = self.tokenize(&request.prompt)?;
        let (have, max) = (tokens.len() as u32, limit - request.max_tokens);
        if have > max {
            return Err(Refused::PromptTooLong { have, max });
        }
        self.enqueue(&request, tokens)
    }

    /// Returns what the engine does at this moment.
    pub fn stats(&self) -> Stats {
        self.shared.stats()
    }

    fn tokenize(&self, prompt: &str) -> Result<Vec<LlamaToken>, Refused> {
        let max = self.model.context_tokens as usize * PROMPT_BYTES_PER_TOKEN_MAX;
        if prompt.len() > max {
            return Err(Refused::PromptTooLarge { have: prompt.len(), max });
        }
        Ok(self.template.tokens(&self.llama.vocab(), prompt))
    }

    fn enqueue(&self, request: &Request, tokens: Vec<LlamaToken>) -> Result<Generation, Refused> {
        // One more place than steps, for the end: sending never finds the buffer full.
        let (sender, events) = mpsc::channel(request.max_tokens as usize + 1);
        let prompt_tokens = tokens.len() as u32;
        self.shared.enqueue(Sequence::new(request, tokens, sender), self.config.slots, self.config.queue_max)?;
        Ok(Generation { prompt_tokens, events })
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.shared.stop();
        if let Some(thread) = self.thread.take() {
            // A panic of the thread was already reported by the panic hook, and every generation saw it end.
            let _ = thread.join();
        }
    }
}

/// Returns llama.cpp's process-wide state, initialised once and never freed.
fn backend() -> &'static LlamaBackend {
    static BACKEND: OnceLock<LlamaBackend> = OnceLock::new();
    BACKEND.get_or_init(|| {
        llama_cpp_2::send_logs_to_tracing(llama_cpp_2::LogOptions::default());
        LlamaBackend::init().expect("initialised here only, once")
    })
}

/// Returns the id of the model in a file.
///
/// # Errors
/// If the file cannot be read or is not GGUF.
pub fn model_id(path: &Path) -> Result<ModelId> {
    identify(path).map(|(id, _)| id).with_context(|| format!("model {}", path.display()))
}

/// Returns the digest and size of the file, having checked that it says it is GGUF.
fn identify(path: &Path) -> Result<(ModelId, u64)> {
    let mut file = File::open(path).context("open the file")?;
    let mut hash = Sha256::new();
    let mut bytes = 0;
    let mut buffer = vec![0; 1 << 20];
    loop {
        let read = file.read(&mut buffer).context("read the file")?;
        let part = &buffer[..read];
        // A regular file's first read is short only at its end.
        ensure!(bytes > 0 || part.starts_with(b"GGUF"), "not a GGUF model: its first 4 bytes are not \"GGUF\"");
        if read == 0 {
            return Ok((ModelId(hash.finalize().into()), bytes));
        }
        hash.update(part);
        bytes += read as u64;
    }
}

fn load_llama(path: &Path, gpu_layers: u32) -> Result<(LlamaModel, Template)> {
    let params = LlamaModelParams::default().with_n_gpu_layers(gpu_layers);
    let Ok(llama) = LlamaModel::load_from_file(backend(), path, &params) else {
        bail!(
            "llama.cpp refused the file: truncated, of an architecture it does not know, or larger than memory \
             (its own lines, log target {LOG_TARGET}, say which)"
        );
    };
    let template = Template::of(&llama)?;
    Ok((llama, template))
}

/// Starts the compute thread and waits until it has its context.
fn start(config: &Config, llama: &Arc<LlamaModel>, shared: &Arc<Shared>) -> Result<JoinHandle<()>> {
    let (ready, started) = std_mpsc::sync_channel(1);
    let (config, llama, shared) = (config.clone(), llama.clone(), shared.clone());
    let (slots, tokens) = (config.slots, config.context_tokens);
    let thread = std::thread::Builder::new()
        .name("engine".into())
        .spawn(move || batch::run(&config, &llama, &shared, &ready))
        .context("start the compute thread")?;
    match started.recv() {
        Ok(true) => Ok(thread),
        _ => bail!("llama.cpp made no context of {tokens} tokens for each of {slots} slots; fewer may fit in memory"),
    }
}

#[cfg(test)]
mod tests;
