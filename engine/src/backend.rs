//! What the scheduler needs from a loaded model, and nothing more: the seam between serving
//! (threads, queues, clients) and computing (tokens, tensors).

use ner_retriever_protocol::{EngineError, Mention, ModelInfo, TextRequest};

/// One piece of work for the model, cut into windows that fit its context.
#[derive(Debug, Clone, PartialEq)]
pub enum Input {
    /// Detect (unless the caller gave spans) and embed the mentions of a text.
    Text {
        request: TextRequest,
        embed: bool,
        /// Least probability of a detected mention, instead of the head's own.
        threshold: Option<f32>,
    },
    /// Embed the name of an entity type.
    Type { name: String },
}

/// The answer to an [`Input`] of the same variant.
#[derive(Debug, Clone, PartialEq)]
pub enum Output {
    Mentions(Vec<Mention>),
    /// `[dims]`, L2-normalised.
    Type(Vec<f32>),
}

/// A loaded model. `prepare` and `finish` run on the threads of the connections, concurrently;
/// `forward` runs on the one model thread.
pub trait Backend: Send + Sync + 'static {
    /// An input after tokenization, with whatever `finish` needs to map tokens back to characters.
    type Prepared: Send;
    /// One sequence of tokens that goes through the model in one piece.
    type Window: Send + Sync;
    /// What the model gave for one window.
    type WindowOutput: Send;

    fn info(&self) -> &ModelInfo;

    /// Tokenizes an input and cuts it into windows; an empty text has none.
    ///
    /// # Errors
    /// `TextTooLarge`, `InvalidSpan`.
    fn prepare(&self, input: Input) -> Result<(Self::Prepared, Vec<Self::Window>), EngineError>;

    /// Most tokens of one pass: `wanted`, or what suits the device if that is 0, as far as the device
    /// has memory for. Asked once, before the first pass.
    ///
    /// # Errors
    /// `OutOfMemory` if not even one window fits, `Internal`.
    fn batch_tokens(&self, wanted: usize) -> Result<usize, EngineError>;

    /// Tokens of a window, special tokens included: what it takes of the token budget.
    fn tokens(&self, window: &Self::Window) -> usize;

    /// One packed forward pass; one output per window, in order. The result for a window does not
    /// depend on what else is in the batch.
    ///
    /// # Errors
    /// `OutOfMemory` (the scheduler halves the batch and tries again), `Internal`.
    fn forward(&self, windows: &[&Self::Window]) -> Result<Vec<Self::WindowOutput>, EngineError>;

    /// Whether the device has failed so that every further pass fails as well; asked after a failure.
    fn is_lost(&self) -> bool;

    /// Joins the outputs of all windows of an input, in the order `prepare` gave them.
    fn finish(
        &self,
        prepared: Self::Prepared,
        outputs: Vec<Self::WindowOutput>,
    ) -> Result<Output, EngineError>;
}
