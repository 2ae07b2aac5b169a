//! From scored candidates to mentions that do not overlap.

use std::ops::Range;

/// Least probabilities of mentions. A mention that is not indexed is lost, while one too many costs a row: what
/// counts depends on what there is beside it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Thresholds {
    /// Beside likely mentions.
    pub threshold: f32,
    /// Where none reaches the threshold; at most that.
    pub floor: f32,
}

impl Thresholds {
    /// The least probability beside the `likeliest` mention: the same share of it as the floor is of the
    /// threshold, and between the two.
    pub fn beside(self, likeliest: f32) -> f32 {
        let Self { threshold, floor } = self;
        // Not a number if both are 0, which all reach.
        (likeliest * floor / threshold).max(floor).min(threshold)
    }
}

/// Takes spans from the highest score down, each unless it overlaps one taken before; returns the
/// indices taken, in the order of the text. `spans` are `(range, score)`.
pub fn without_overlap(spans: &[(Range<usize>, f32)]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..spans.len()).collect();
    order.sort_by(|&a, &b| spans[b].1.total_cmp(&spans[a].1));
    let mut taken: Vec<usize> = Vec::new();
    for index in order {
        let range = &spans[index].0;
        // `taken` is sorted by start and free of overlaps: only its neighbours can overlap.
        let at = taken.partition_point(|&other| spans[other].0.start < range.start);
        let before = at.checked_sub(1).map(|i| &spans[taken[i]].0);
        let after = taken.get(at).map(|&i| &spans[i].0);
        let free = before.is_none_or(|other| other.end <= range.start)
            && after.is_none_or(|other| range.end <= other.start);
        if free {
            taken.insert(at, index);
        }
    }
    taken
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_of_overlapping_spans_stays() {
        let spans = [
            (0..2, 0.6),
            (1..4, 0.9),
            (4..5, 0.5),
            (3..6, 0.7),
            (5..6, 0.4),
        ];
        assert_eq!(without_overlap(&spans), [1, 2, 4]);
    }

    #[test]
    fn the_less_likely_the_mentions_the_less_likely_ones_count() {
        let least = |threshold, floor, likeliest| Thresholds { threshold, floor }.beside(likeliest);
        assert_eq!(least(0.25, 0.125, 1.0), 0.25);
        assert_eq!(least(0.25, 0.125, 0.375), 0.1875);
        assert_eq!(least(0.25, 0.125, 0.25), 0.125);
        assert_eq!(least(0.25, 0.125, 0.0), 0.125);
        assert_eq!(least(0.25, 0.25, 0.25), 0.25);
        assert_eq!(least(0.0, 0.0, 0.5), 0.0);
    }
}
