//! Values that a series keeps coming back to and never passes: darkness on a solar panel, empty shelves, a pump at full load.

/// A floor and a cap of a series.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(super) struct Bounds {
    pub floor: Option<f32>,
    pub cap: Option<f32>,
}

/// Fewer values show nothing.
const SHORTEST: usize = 16;

/// How often a series must have come back to its extreme: once or twice may be a trend that has just arrived there.
const VISITS: usize = 3;

impl Bounds {
    /// The bounds that a history shows: an extreme that a tenth of its values, in at least three separate runs, are equal to.
    pub fn of(history: &[f32]) -> Self {
        let finite = |pick: fn(f32, f32) -> f32| history.iter().copied().reduce(pick);
        let bound = |extreme: f32| {
            let there: Vec<bool> = history.iter().map(|&value| value == extreme).collect();
            let count = there.iter().filter(|&&at| at).count();
            let visits =
                there.iter().zip(std::iter::once(&false).chain(&there)).filter(|(now, before)| **now && !**before);
            history.len() >= SHORTEST && 10 * count >= history.len() && visits.count() >= VISITS
        };
        Self { floor: finite(f32::min).filter(|&v| bound(v)), cap: finite(f32::max).filter(|&v| bound(v)) }
    }

    /// Brings values between the bounds.
    pub fn apply<'a>(self, values: impl Iterator<Item = &'a mut f32>) {
        for value in values {
            *value = value.max(self.floor.unwrap_or(f32::MIN)).min(self.cap.unwrap_or(f32::MAX));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_back_and_is_never_passed_is_a_bound() {
        let nights: Vec<f32> = (0..72).map(|h| (h as f32 * 0.2618).sin().max(0.0)).collect();
        assert_eq!(Bounds::of(&nights), Bounds { floor: Some(0.0), cap: None });
        let switch: Vec<f32> = (0..40).map(|t| if t % 5 < 2 { -1.0 } else { 4.0 }).collect();
        assert_eq!(Bounds::of(&switch), Bounds { floor: Some(-1.0), cap: Some(4.0) });
        let mut values = [-3.0, 0.5, 9.0];
        Bounds::of(&switch).apply(values.iter_mut());
        assert_eq!(values, [-1.0, 0.5, 4.0]);
    }

    #[test]
    fn an_end_of_a_trend_is_none() {
        // Whole numbers on their way down and up: the extremes are many, but in one run each.
        let falling: Vec<f32> = (0..60).map(|t| (20 - t / 6) as f32).collect();
        assert_eq!(Bounds::of(&falling), Bounds::default());
        let wave: Vec<f32> = (0..200).map(|t| (t as f32 * 0.37).sin()).collect();
        assert_eq!(Bounds::of(&wave), Bounds::default());
        assert_eq!(Bounds::of(&[0.0, 1.0, 0.0, 1.0, 0.0, 1.0]), Bounds::default());
        assert_eq!(Bounds::of(&[]), Bounds::default());
    }
}
