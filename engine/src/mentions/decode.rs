//! From scored candidates to mentions that do not overlap.

use std::ops::Range;

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
}
