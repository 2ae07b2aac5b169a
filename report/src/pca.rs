//! The two principal components of vectors, by power iteration.

/// Iterations; the map needs two or three digits.
const ITERATIONS: usize = 300;

/// Vectors in two dimensions.
pub struct Plane {
    pub points: Vec<(f64, f64)>,
    /// Share of the variance that each component has.
    pub shares: [f64; 2],
}

/// Projects vectors of one length onto their two directions of largest variance.
pub fn plane(vectors: &[Vec<f32>]) -> Plane {
    let dims = vectors.first().map_or(0, Vec::len);
    let mut rows: Vec<Vec<f64>> = vectors
        .iter()
        .map(|vector| vector.iter().map(|x| f64::from(*x)).collect())
        .collect();
    for dim in 0..dims {
        let mean = rows.iter().map(|row| row[dim]).sum::<f64>() / rows.len() as f64;
        rows.iter_mut().for_each(|row| row[dim] -= mean);
    }
    let variance: f64 = rows.iter().map(|row| dot(row, row)).sum();
    let (first, share) = component(&mut rows, dims, variance);
    let (second, next_share) = component(&mut rows, dims, variance);
    Plane {
        points: first.into_iter().zip(second).collect(),
        shares: [share, next_share],
    }
}

/// Each row's coordinate along the direction of largest variance, which is then taken out of the
/// rows, and the share of the variance along it.
fn component(rows: &mut [Vec<f64>], dims: usize, variance: f64) -> (Vec<f64>, f64) {
    // Any start that is not at a right angle to the direction leads to it.
    let mut direction: Vec<f64> = (0..dims).map(|dim| 1.0 + (dim as f64).sin()).collect();
    for _ in 0..ITERATIONS {
        let mut next = vec![0.0; dims];
        for row in rows.iter() {
            let along = dot(row, &direction);
            next.iter_mut()
                .zip(row)
                .for_each(|(sum, x)| *sum += along * x);
        }
        let length = dot(&next, &next).sqrt();
        if length == 0.0 {
            break;
        }
        direction = next.into_iter().map(|x| x / length).collect();
    }
    let mut coordinates = Vec::with_capacity(rows.len());
    for row in rows {
        let along = dot(row, &direction);
        row.iter_mut()
            .zip(&direction)
            .for_each(|(x, d)| *x -= along * d);
        coordinates.push(along);
    }
    let share = dot(&coordinates, &coordinates) / variance.max(f64::MIN_POSITIVE);
    (coordinates, share)
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Points of a plane in four dimensions, around a centre that is not the origin: their
    /// distances survive.
    #[test]
    fn a_plane_comes_out_as_it_is() {
        let flat = [
            (5.0, 1.0),
            (-4.0, 2.0),
            (3.0, -1.5),
            (0.0, 0.5),
            (-4.0, -2.0),
        ];
        let lift = |&(a, b): &(f32, f32)| vec![7.0 + 0.6 * a, 1.0 + 0.8 * a, 2.0 + b, -3.0];
        let vectors: Vec<Vec<f32>> = flat.iter().map(lift).collect();
        let plane = plane(&vectors);
        assert!((plane.shares[0] + plane.shares[1] - 1.0).abs() < 1e-6);
        assert!(plane.shares[0] > plane.shares[1]);
        let distance = |a: (f64, f64), b: (f64, f64)| (a.0 - b.0).hypot(a.1 - b.1);
        let wide = |(a, b): (f32, f32)| (f64::from(a), f64::from(b));
        for i in 0..flat.len() {
            for j in 0..flat.len() {
                let found = distance(plane.points[i], plane.points[j]);
                assert!((found - distance(wide(flat[i]), wide(flat[j]))).abs() < 1e-5);
            }
        }
    }

    #[test]
    fn nothing_and_equal_vectors_have_no_direction() {
        assert!(plane(&[]).points.is_empty());
        let same = plane(&[vec![0.5, 0.5], vec![0.5, 0.5]]);
        assert_eq!(same.points, [(0.0, 0.0), (0.0, 0.0)]);
        assert_eq!(same.shares, [0.0, 0.0]);
    }
}
