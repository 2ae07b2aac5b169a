//! How well a score tells same from different: the area under the ROC curve.

/// The probability that a positive's score is above a negative's, a tie counting half. NaN without
/// positives or without negatives.
pub fn auc(positives: &[f32], negatives: &[f32]) -> f64 {
    let mut scores: Vec<(f32, bool)> = positives
        .iter()
        .map(|score| (*score, true))
        .chain(negatives.iter().map(|score| (*score, false)))
        .collect();
    scores.sort_unstable_by(|a, b| a.0.total_cmp(&b.0));
    // Mann-Whitney: of each positive, how many negatives are below it.
    let (mut below, mut wins) = (0.0, 0.0);
    for tied in scores.chunk_by(|a, b| a.0 == b.0) {
        let positive = tied.iter().filter(|(_, positive)| *positive).count() as f64;
        let negative = tied.len() as f64 - positive;
        wins += positive * (below + negative / 2.0);
        below += negative;
    }
    wins / (positives.len() as f64 * negatives.len() as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_the_share_of_pairs_in_the_right_order() {
        assert_eq!(auc(&[0.9, 0.8], &[0.1, 0.2, 0.3]), 1.0);
        assert_eq!(auc(&[0.1], &[0.2, 0.3]), 0.0);
        // 0.5 is above 0.4 and below 0.6; 0.7 is above both.
        assert_eq!(auc(&[0.5, 0.7], &[0.4, 0.6]), 0.75);
    }

    #[test]
    fn ties_count_half_and_nothing_to_compare_is_not_a_number() {
        assert_eq!(auc(&[0.5, 0.5], &[0.5]), 0.5);
        assert_eq!(auc(&[0.5, 0.7], &[0.5, 0.5]), 0.75);
        assert!(auc(&[], &[0.1]).is_nan());
        assert!(auc(&[0.1], &[]).is_nan());
    }
}
