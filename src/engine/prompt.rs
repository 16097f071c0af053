//! The model's chat template around one user message.
//!
//! llama.cpp renders the template once, around a marker; the two sides are tokenised with special tokens and the
//! message itself without, so that a message cannot close its own turn by spelling `<|im_end|>`.

use anyhow::{Context, Result, ensure};
use llama_cpp_2::model::{LlamaChatMessage, LlamaModel};
use llama_cpp_2::token::LlamaToken;
use llama_cpp_2::vocab::LlamaVocab;

/// Plain letters: no template trims or escapes them.
const MARKER: &str = "FABSTIRUSERMESSAGE";

/// What stands before and after a user message, as tokens.
#[derive(Debug)]
pub(super) struct Template {
    before: Vec<LlamaToken>,
    after: Vec<LlamaToken>,
}

impl Template {
    /// Returns the template of `model`: a user turn, then the opening of the assistant's.
    ///
    /// # Errors
    /// If the GGUF has no chat template, or llama.cpp does not know its kind.
    pub(super) fn of(model: &LlamaModel) -> Result<Self> {
        let template = model.chat_template(None).context("the GGUF has no chat template; use an instruction model")?;
        let message = LlamaChatMessage::new("user".into(), MARKER.into()).expect("no null byte in either");
        let rendered = model
            .apply_chat_template(&template, &[message], true)
            .context("the GGUF's chat template is not among those llama.cpp knows")?;
        let sides: Vec<&str> = rendered.split(MARKER).collect();
        ensure!(sides.len() == 2, "the GGUF's chat template shows a user message {} times, not once", sides.len() - 1);
        let vocab = model.vocab();
        Ok(Self {
            before: vocab.tokenize(sides[0].as_bytes(), true, true),
            after: vocab.tokenize(sides[1].as_bytes(), false, true),
        })
    }

    /// Returns the tokens of the templated `message`.
    pub(super) fn tokens(&self, vocab: &LlamaVocab<'_>, message: &str) -> Vec<LlamaToken> {
        let mut tokens = self.before.clone();
        tokens.extend(vocab.tokenize(message.as_bytes(), false, false));
        tokens.extend(&self.after);
        tokens
    }
}
