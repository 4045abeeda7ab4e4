//! From the times at which frames are shown to a constant number of frames a second.

/// When the frames of a source are shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Timeline {
    /// First tick of each frame, not falling. The first frame is shown from 0 on in any case.
    pub starts: Vec<u64>,
    /// First tick after the last frame.
    pub end: u64,
    /// Ticks in a second.
    pub scale: u32,
}

impl Timeline {
    /// One frame after the other, each for so many ticks.
    pub fn of_durations(durations: impl Iterator<Item = u64>, scale: u32) -> Self {
        let (mut starts, mut end) = (Vec::new(), 0u64);
        for duration in durations {
            starts.push(end);
            end = end.saturating_add(duration);
        }
        Self { starts, end, scale }
    }

    /// Length in seconds.
    pub fn seconds(&self) -> f64 {
        self.end as f64 / f64::from(self.scale.max(1))
    }

    /// The place of `fps` a second that is nearest to a tick; halves go up.
    fn place(&self, tick: u64, fps: f64) -> u64 {
        (tick as f64 * fps / f64::from(self.scale.max(1)) + 0.5) as u64
    }

    /// Frames of `fps` a second: at least one, if there are frames at all.
    pub fn frames(&self, fps: f64) -> u64 {
        if self.starts.is_empty() { 0 } else { self.place(self.end, fps).max(1) }
    }

    /// The frame that is shown at place `at`, where `from` was at a place before.
    pub fn shown(&self, at: u64, fps: f64, from: usize) -> usize {
        let mut index = from;
        while self.starts.get(index + 1).is_some_and(|&start| self.place(start, fps) <= at) {
            index += 1;
        }
        index
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(timeline: &Timeline, fps: f64) -> Vec<usize> {
        let mut index = 0;
        let places = 0..timeline.frames(fps);
        places
            .map(|at| {
                index = timeline.shown(at, fps, index);
                index
            })
            .collect()
    }

    #[test]
    fn frames_go_to_the_nearest_place() {
        let steady = |n, ticks| Timeline::of_durations(std::iter::repeat_n(ticks, n), 1000);
        assert_eq!(shown(&steady(4, 40), 25.0), [0, 1, 2, 3]);
        // 50 a second: every other one; 10 a second: 0, 2.5, 5, 7.5 and 10, of which halves go up.
        assert_eq!(shown(&steady(6, 20), 25.0), [0, 2, 4]);
        assert_eq!(shown(&steady(4, 100), 25.0), [0, 0, 0, 1, 1, 2, 2, 2, 3, 3]);
        // 30 a second: every sixth falls away.
        let thirty = Timeline::of_durations(std::iter::repeat_n(1, 12), 30);
        assert_eq!(shown(&thirty, 25.0), [0, 1, 2, 4, 5, 6, 7, 8, 10, 11]);
        // A slow frame stays until the next.
        assert_eq!(shown(&Timeline::of_durations([40, 120, 40].into_iter(), 1000), 25.0), [0, 1, 1, 1, 2]);
    }

    #[test]
    fn ends() {
        let of = |starts: &[u64], end| Timeline { starts: starts.to_vec(), end, scale: 25 };
        // Nothing is shown before the first frame but itself; what starts at the same time is not shown.
        assert_eq!(shown(&of(&[2, 3], 4), 25.0), [0, 0, 0, 1]);
        assert_eq!(shown(&of(&[0, 0, 1], 2), 25.0), [1, 2]);
        assert_eq!(shown(&of(&[0], 0), 25.0), [0]);
        assert_eq!(of(&[], 0).frames(25.0), 0);
        assert_eq!(of(&[0], u64::MAX).frames(1e3), u64::MAX);
    }
}
