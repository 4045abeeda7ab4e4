//! Stop strings in text that comes in pieces.

/// Lets text through up to the first stop string, and holds back what may be the beginning of one.
#[derive(Debug, Default)]
pub(super) struct StopStrings {
    stops: Vec<String>,
    held: String,
}

impl StopStrings {
    pub fn new(stops: &[String]) -> Self {
        Self { stops: stops.to_vec(), held: String::new() }
    }

    /// The text that may be shown now, and whether a stop string follows it.
    pub fn push(&mut self, piece: &str) -> (String, bool) {
        self.held.push_str(piece);
        if let Some(at) = self.stops.iter().filter_map(|stop| self.held.find(stop.as_str())).min() {
            let text = self.held[..at].to_string();
            self.held.clear();
            return (text, true);
        }
        let begins = |tail: &str| self.stops.iter().any(|stop| stop.starts_with(tail));
        let keep = self.held.char_indices().map(|(at, _)| at).find(|&at| begins(&self.held[at..]));
        let rest = self.held.split_off(keep.unwrap_or(self.held.len()));
        (std::mem::replace(&mut self.held, rest), false)
    }

    /// What was held back, when no more text comes.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use moesaic_kernels::rng::Rng;

    #[test]
    fn nothing_of_a_stop_string_is_shown_however_the_text_is_cut() {
        let text = "añb END aEN ENDE ab\n\nUser: x END";
        let mut rng = Rng::new(1);
        for stops in [&["END"][..], &["\n\nUser:", "ENDX"], &["ñb", "b E"], &["nowhere"], &[]] {
            let stops: Vec<String> = stops.iter().map(|s| s.to_string()).collect();
            let expected = stops.iter().filter_map(|s| text.find(s.as_str())).min().unwrap_or(text.len());
            for _ in 0..200 {
                let mut filter = StopStrings::new(&stops);
                let (mut shown, mut hit, mut piece) = (String::new(), false, String::new());
                for c in text.chars() {
                    piece.push(c);
                    if rng.chance(0.4) {
                        let (text, stop) = filter.push(&std::mem::take(&mut piece));
                        shown.push_str(&text);
                        assert!(stops.iter().all(|s| !shown.contains(s.as_str())), "{shown}");
                        hit |= stop;
                        if stop {
                            break;
                        }
                    }
                }
                if !hit {
                    let (text, stop) = filter.push(&piece);
                    shown.push_str(&text);
                    if !stop {
                        shown.push_str(&filter.finish());
                    }
                }
                assert_eq!(shown, text[..expected], "{stops:?}");
            }
        }
    }

    #[test]
    fn text_that_cannot_begin_a_stop_string_is_not_held() {
        let mut filter = StopStrings::new(&["STOP".to_string()]);
        assert_eq!(filter.push("one S"), ("one ".to_string(), false));
        assert_eq!(filter.push("TO"), (String::new(), false));
        assert_eq!(filter.push("RM"), ("STORM".to_string(), false));
        assert_eq!(filter.push(" STO"), (" ".to_string(), false));
        assert_eq!(filter.finish(), "STO");
    }
}
