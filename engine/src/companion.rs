//! Two heads as one: a smaller model's head finds the mentions for that of a larger one, and its embeddings
//! may stand beside the larger one's.

use std::{ops::Range, path::Path};

use candle_core::{D, Device, Tensor};

use crate::{
    backend::{Backend, Input},
    embedder::{Embedder, Represented, Scored},
    error::{EngineError, ErrorKind, Result, compute, head_damaged},
    head::{self, CompanionDescription, DESCRIPTION, HeadDescription},
    model::{BaseModel, Numbers},
    prepare::{Prepared, Task, Window, prepare, whole},
    sources::Sources,
    text::token_at,
};

const BASE_MODEL_HINT: &str = "Set ner_retriever.companion_model, or --companion-model, to the base \
                               model that the companion's head was trained for.";

/// A head's companion: another head with a base model of its own.
pub struct Companion {
    embedder: Box<Embedder>,
    /// The share of its cosines in those of both.
    weight: f64,
}

impl Companion {
    /// Loads the companion of the head in a folder.
    ///
    /// # Errors
    /// Those of [`Embedder::load`], which name the companion; `ModelNotFound` if its base model is not given;
    /// `HeadDamaged` for one that has no detector, as one with a companion itself.
    pub fn load(
        sources: &Sources,
        description: &CompanionDescription,
        device: &Device,
        numbers: Option<Numbers>,
    ) -> Result<Self> {
        let folder = sources.head.join(&description.head);
        let Some(model) = &sources.companion_model else {
            let folder = folder.display();
            let message = format!("the base model of the companion \"{folder}\" is not given");
            return Err(EngineError::new(ErrorKind::ModelNotFound, message).hint(BASE_MODEL_HINT));
        };
        let of_companion = |error| of_companion(error, &folder);
        let found = HeadDescription::read(&folder).map_err(of_companion)?;
        if found.detector.is_none() {
            let path = folder.join(DESCRIPTION);
            let problem = "a companion finds mentions, and it has no detector of its own";
            return Err(head_damaged(&path, problem));
        }
        let sources = Sources::new(model, &folder);
        let embedder = Embedder::load(&sources, device.clone(), numbers).map_err(of_companion)?;
        Ok(Self {
            embedder: Box::new(embedder),
            weight: description.weight,
        })
    }

    /// The companion, if its embeddings stand beside the head's own.
    pub fn embedding(&self) -> Option<&Embedder> {
        (self.weight > 0.0).then_some(&*self.embedder)
    }

    pub fn embedder(&self) -> &Embedder {
        &self.embedder
    }

    /// The fingerprint of both, of a head whose own is `own`.
    pub fn fingerprint(&self, own: &str) -> String {
        let theirs = format!("{} {}", self.embedder.info().fingerprint, self.weight);
        head::fingerprint(own, &theirs)
    }

    /// Own embeddings beside the companion's, `[n, dims]` each and of length 1, so that cosines add up by its weight.
    ///
    /// # Errors
    /// candle's.
    pub fn beside(&self, own: &Tensor, theirs: &Tensor) -> candle_core::Result<Tensor> {
        let own = (own * (1.0 - self.weight).sqrt())?;
        let theirs = (theirs * self.weight.sqrt())?;
        Tensor::cat(&[own, theirs], D::Minus1)
    }

    /// Cuts a text into windows of the companion's tokens; each is followed by one of the head's base model over
    /// the same bytes.
    ///
    /// # Errors
    /// Those of [`prepare`].
    pub fn prepare(&self, model: &BaseModel, input: Input) -> Result<(Prepared, Vec<Window>)> {
        let theirs = (self.embedder.model(), self.embedder.head());
        let most = model.window_size();
        let mut size = theirs.0.window_size();
        loop {
            let (prepared, windows) = prepare(theirs.0, theirs.1, input.clone(), size)?;
            let windows = windows.into_iter().map(|window| self.follow(model, window));
            let windows = windows.collect::<Result<Vec<_>>>()?;
            let tokens = windows.iter().map(|window| window.ids.len() - 1);
            let longest = tokens.max().unwrap_or(0);
            if longest <= most {
                return Ok((prepared, windows));
            }
            if size == 1 {
                let message = "a token of the companion is longer than a window of the base model";
                return Err(EngineError::new(ErrorKind::HeadMismatch, message)
                    .hint("Use a base model that reads longer texts."));
            }
            // The other tokenizer cuts this text finer.
            size = (size * most / longest).clamp(1, size - 1);
        }
    }

    /// The base model's window over the bytes of one of the companion's.
    fn follow(&self, model: &BaseModel, mut leader: Window) -> Result<Window> {
        let embed = leader.embed;
        leader.embed &= self.weight > 0.0;
        let read = if embed { leader.bytes.clone() } else { 0..0 };
        let start = read.start;
        let mut encoded = model.tokenizer.encode(&leader.text[read])?;
        for (from, to) in &mut encoded.offsets {
            *from += start;
            *to += start;
        }
        let text = leader.text.clone();
        let task = Task::Follow {
            leader: Box::new(leader),
            offsets: encoded.offsets.clone(),
        };
        Ok(whole(model, &encoded, task, embed, &text))
    }

    /// [`Embedder::represent`] of `own` for windows of [`Self::prepare`].
    ///
    /// # Errors
    /// `OutOfMemory`, `Internal`.
    pub fn represent(&self, own: &Embedder, windows: &[&Window]) -> Result<Represented> {
        let leaders = windows.iter().filter_map(|window| match &window.task {
            Task::Follow { leader, .. } => Some(&**leader),
            _ => None,
        });
        let represented = self.embedder.represent(&leaders.collect::<Vec<_>>())?;
        let followers: Vec<Window> = windows
            .iter()
            .zip(&represented.found)
            .filter_map(|(window, found)| with_found(window, found))
            .collect();
        let mut values = None;
        if !followers.is_empty() {
            let followers: Vec<&Window> = followers.iter().collect();
            values = own.represent_alone(&followers)?.values;
        }
        if let (Some(own), Some(theirs)) = (&values, &represented.values) {
            values = Some(Tensor::cat(&[own, theirs], D::Minus1).map_err(compute)?);
        }
        Ok(Represented {
            found: represented.found,
            values,
        })
    }
}

/// A window that embeds what its leader has found; `None` if there is nothing to embed.
fn with_found(window: &Window, found: &Scored) -> Option<Window> {
    let Task::Follow { offsets, .. } = &window.task else {
        return None;
    };
    let spans: Vec<(Range<usize>, usize)> = found
        .iter()
        .map(|(bytes, _)| {
            // The first token stands in for one of characters that the base model does not know.
            let end = token_at(offsets, bytes.end - 1).map_or(0, |token| token + 1);
            (bytes.clone(), end)
        })
        .collect();
    (window.embed && !spans.is_empty()).then(|| Window {
        ids: window.ids.clone(),
        bytes: window.bytes.clone(),
        task: Task::Spans(spans),
        embed: true,
        text: window.text.clone(),
    })
}

/// An error of loading a companion, which is set by settings of its own.
fn of_companion(error: EngineError, folder: &Path) -> EngineError {
    let message = format!(
        "of the companion \"{}\": {}",
        folder.display(),
        error.message
    );
    let hint = match error.kind {
        ErrorKind::ModelNotFound | ErrorKind::HeadMismatch => Some(BASE_MODEL_HINT.to_owned()),
        ErrorKind::HeadNotFound => Some(
            "Put the companion's head beside the head that names it; both are installed together."
                .to_owned(),
        ),
        _ => error.hint,
    };
    EngineError {
        kind: error.kind,
        message,
        hint,
    }
}
