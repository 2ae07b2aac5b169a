//! What is found judges itself: a mention counts as much as those like it, so that one that is near to the
//! type by chance falls behind where its like are far. Kernel regression (Nadaraya and Watson, 1964) of
//! the similarity over a search's own candidates.

/// Candidates that a search has at least. Fewer tell less of what a mention's like is.
pub const FEWEST: usize = 200;

/// Candidates for each text that is asked for; a text often has several mentions of a type.
pub const FOR_EACH: usize = 4;

/// Most candidates that are smoothed; what is farther stays behind them.
pub const MOST: usize = 10_000;

/// Most candidates that are compared with each of them: evenly from near to far.
const ANCHORS: usize = 500;

/// Of the kernel `exp(cosine / BANDWIDTH)` (docs/training.md has others).
const BANDWIDTH: f32 = 0.1;

/// Similarities, `[candidates]` from near to far, after smoothing over the candidates' embeddings,
/// `[candidates, dims]` one after the other, each of length 1. What lacks an embedding or is no number
/// stays as it is.
pub fn smooth(similarities: &[f32], mentions: &[f32]) -> Vec<f32> {
    let dims = mentions.len() / similarities.len().max(1);
    if dims == 0 {
        return similarities.to_vec();
    }
    let stride = similarities.len().div_ceil(ANCHORS);
    let mention = |place: usize| &mentions[place * dims..][..dims];
    // Each counts itself.
    let mut sums = similarities.to_vec();
    let mut weights = vec![1.0; similarities.len()];
    for place in 0..similarities.len() {
        let is_anchor = place.is_multiple_of(stride);
        // Two anchors count each other at once.
        let anchors = (0..if is_anchor { place } else { similarities.len() }).step_by(stride);
        for anchor in anchors {
            let weight = ((dot(mention(place), mention(anchor)) - 1.0) / BANDWIDTH).exp();
            sums[place] += weight * similarities[anchor];
            weights[place] += weight;
            if is_anchor {
                sums[anchor] += weight * similarities[place];
                weights[anchor] += weight;
            }
        }
    }
    let smoothed = sums.iter().zip(weights).zip(similarities);
    smoothed
        .map(|((sum, weight), own)| finite_or(sum / weight, *own))
        .collect()
}

fn finite_or(mean: f32, own: f32) -> f32 {
    if mean.is_finite() { mean } else { own }
}

/// In eight sums, which the compiler keeps in one or two registers.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let (eights, rest) = a.as_chunks::<8>();
    let (other_eights, other_rest) = b.as_chunks::<8>();
    let mut sums = [0.0; 8];
    for (a, b) in eights.iter().zip(other_eights) {
        for lane in 0..8 {
            sums[lane] += a[lane] * b[lane];
        }
    }
    let rest = rest.iter().zip(other_rest).map(|(a, b)| a * b);
    sums.iter().sum::<f32>() + rest.sum::<f32>()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mention_counts_as_much_as_its_like() {
        // Two that are alike and one that is not: exp(0) of itself and of its like, exp(-10) of the other.
        let similarities = [0.9, 0.8, 0.5];
        let mentions = [1.0, 0.0, 0.0, 1.0, 0.0, 1.0];
        let smoothed = smooth(&similarities, &mentions);
        for (smoothed, expected) in smoothed.iter().zip([0.9, 0.65, 0.65]) {
            assert!((smoothed - expected).abs() < 1e-3, "{smoothed} {expected}");
        }
    }

    #[test]
    fn many_candidates_are_compared_with_some_of_them() {
        // More than anchors, in two kinds: those of either kind have the mean of the kind.
        let count = 4 * ANCHORS + 7;
        let of_kind = |place: usize| (place / 3).is_multiple_of(2);
        let similarities: Vec<f32> = (0..count).map(|place| 1.0 - place as f32 / 1e4).collect();
        let mentions: Vec<f32> = (0..count)
            .flat_map(|place| {
                if of_kind(place) {
                    [1.0, 0.0]
                } else {
                    [0.0, 1.0]
                }
            })
            .collect();
        for (place, smoothed) in smooth(&similarities, &mentions).into_iter().enumerate() {
            assert!((smoothed - 0.9).abs() < 0.01, "{place}: {smoothed}");
        }
    }

    #[test]
    fn a_mention_without_its_like_keeps_its_similarity() {
        // Second of two to an anchor, and so none itself.
        let count = 2 * ANCHORS;
        let mut similarities = vec![0.5; count];
        let mut mentions = [1.0, 0.0].repeat(count);
        similarities[1] = 0.9;
        mentions[2..4].copy_from_slice(&[0.0, 1.0]);
        let smoothed = smooth(&similarities, &mentions);
        assert!((smoothed[1] - 0.9).abs() < 0.02, "{}", smoothed[1]);
        assert!((smoothed[0] - 0.5).abs() < 1e-3, "{}", smoothed[0]);
    }

    #[test]
    fn what_cannot_be_compared_changes_nothing() {
        assert_eq!(smooth(&[], &[]), [0.0; 0]);
        assert_eq!(smooth(&[0.5, 0.25], &[]), [0.5, 0.25]);
        assert_eq!(smooth(&[0.5], &[0.0, 0.0]), [0.5]);
        // More elements than belong to so many embeddings.
        assert_eq!(smooth(&[0.5; 3], &[1.0; 8]).len(), 3);
        let unknown = smooth(&[f32::NAN, 0.25], &[0.0, 0.0, 1.0, 0.0]);
        assert!(unknown[0].is_nan() && unknown[1] == 0.25);
    }

    #[test]
    fn products_of_any_width() {
        for dims in [1, 7, 8, 9, 384] {
            let a: Vec<f32> = (0..dims).map(|i| i as f32).collect();
            let expected: f32 = a.iter().map(|a| a * 2.0).sum();
            assert_eq!(dot(&a, &vec![2.0; dims]), expected, "{dims}");
        }
    }
}
