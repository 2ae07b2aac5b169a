//! From representations to embeddings: the projection of a head and that of its companion.

use candle_core::{D, Tensor};

use crate::{
    companion::Companion,
    embedder::Embedder,
    error::{Result, compute},
    head::Head,
    prepare::Window,
    projection::{Side, normalize},
    representation::represent_types,
};

impl Embedder {
    /// The unprojected representations of types, given by their windows, `[types, input_dims]`; beside them the
    /// companion's, if its embeddings count.
    ///
    /// # Errors
    /// `OutOfMemory`, `Internal`.
    pub fn represent_types(&self, windows: &[&Window]) -> Result<Tensor> {
        let names: Vec<&str> = windows.iter().map(|window| &*window.text).collect();
        let own = represent_types(
            self.model(),
            &self.head().description.representations,
            &names,
        )?;
        let Some(companion) = self.companion().and_then(Companion::embedding) else {
            return Ok(own);
        };
        let theirs = companion.represent_types(windows)?;
        Tensor::cat(&[own, theirs], D::Minus1).map_err(compute)
    }

    /// Embeddings of representations `[n, input_dims]`: `[n, dims]`, of length 1.
    ///
    /// # Errors
    /// `OutOfMemory`, `Internal`.
    pub fn project(&self, values: &Tensor, side: Side) -> Result<Tensor> {
        self.each(values, &|head, values| head.projection.apply(values, side))
            .map_err(compute)
    }

    /// V vectors as they come from the model, without the training mentions' mean where the head knows
    /// it, of length 1: what the projection is measured against.
    ///
    /// # Errors
    /// `OutOfMemory`, `Internal`.
    pub fn unprojected(&self, values: &Tensor) -> Result<Tensor> {
        self.each(values, &|head, values| match &head.projection.centers {
            Some(centers) => centers.center(values, Side::Mention),
            None => normalize(values),
        })
        .map_err(compute)
    }

    /// What `embed` makes of representations, and with a companion of its part of them, side by side.
    fn each(
        &self,
        values: &Tensor,
        embed: &dyn Fn(&Head, &Tensor) -> candle_core::Result<Tensor>,
    ) -> candle_core::Result<Tensor> {
        let embedding = self.companion().filter(|c| c.embedding().is_some());
        let Some(companion) = embedding else {
            return embed(self.head(), values);
        };
        let dims = self.head().description.projection.input_dims;
        let part = |from, dims| values.narrow(D::Minus1, from, dims)?.contiguous();
        let own = embed(self.head(), &part(0, dims)?)?;
        let theirs = part(dims, values.dim(D::Minus1)? - dims)?;
        companion.beside(&own, &embed(companion.embedder().head(), &theirs)?)
    }
}
