//! Which bar goes into which row: no two over each other, and few rows.

/// The rows of bars that are given by begin and end, in the order of their begins; what finds no
/// room in `most` rows lies in the last of them. How many rows there are comes second.
pub(super) fn rows(bars: &[(f64, f64)], gap: f64, most: usize) -> (Vec<usize>, usize) {
    let mut ends: Vec<f64> = Vec::new();
    let place = |(from, to): &(f64, f64)| {
        let free = ends.iter().position(|end| end + gap <= *from);
        let row = match free {
            Some(row) => row,
            None if ends.len() < most => {
                ends.push(0.0);
                ends.len() - 1
            }
            None => most.saturating_sub(1),
        };
        ends[row] = ends[row].max(*to);
        row
    };
    let rows = bars.iter().map(place).collect();
    (rows, ends.len())
}

#[cfg(test)]
mod tests {
    use super::rows;

    #[test]
    fn bars_do_not_lie_over_each_other() {
        let bars = [
            (0.0, 10.0),
            (1.0, 3.0),
            (2.0, 4.0),
            (3.5, 9.0),
            (11.0, 12.0),
        ];
        assert_eq!(rows(&bars, 0.1, 9), (vec![0, 1, 2, 1, 0], 3));
        assert_eq!(rows(&bars, 0.1, 2), (vec![0, 1, 1, 1, 0], 2));
        assert_eq!(rows(&[], 0.1, 9), (vec![], 0));
    }
}
