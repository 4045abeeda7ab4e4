//! Banks of triangular filters over the bins of a power spectrum.

use realfft::FftNum;

/// Filters, each a run of weights.
#[derive(Clone, Debug)]
pub(super) struct Bank<T> {
    filters: Vec<(usize, Vec<T>)>,
}

impl<T: FftNum> Bank<T> {
    /// Keeps of each filter, given by its weight at every bin, the run that is not zero.
    fn new(count: usize, bins: usize, weight: impl Fn(usize, usize) -> f64) -> Self {
        let filter = |m: usize| {
            let all: Vec<f64> = (0..bins).map(|k| weight(m, k)).collect();
            let first = all.iter().position(|&w| w != 0.0).unwrap_or(0);
            let last = all.iter().rposition(|&w| w != 0.0).map_or(first, |k| k + 1);
            (first, all[first..last].iter().map(|&w| T::from_f64(w).unwrap_or_else(T::zero)).collect())
        };
        Self { filters: (0..count).map(filter).collect() }
    }

    /// Number of filters.
    pub(super) fn len(&self) -> usize {
        self.filters.len()
    }

    /// Energies of one spectrum.
    pub(super) fn apply(&self, power: &[T], out: &mut [T]) {
        for ((first, weights), out) in self.filters.iter().zip(out) {
            *out = dot(weights, &power[*first..*first + weights.len()]);
        }
    }

    /// Filters whose edges are evenly spaced on a mel scale, as `transformers` and torchaudio build them: the bins are points on
    /// the frequency axis, and a filter is the lower of its two slopes. `area` gives each filter an area of one.
    fn triangles(
        count: usize,
        bins: usize,
        top: f64,
        to_mel: fn(f64) -> f64,
        to_hertz: fn(f64) -> f64,
        area: bool,
    ) -> Self {
        let highest = to_mel(top);
        let edge = |m: usize| to_hertz(highest * m as f64 / (count + 1) as f64);
        let edges: Vec<f64> = (0..count + 2).map(edge).collect();
        Self::new(count, bins, |m, k| {
            let (low, mid, high) = (edges[m], edges[m + 1], edges[m + 2]);
            let hertz = top * k as f64 / (bins - 1) as f64;
            let slope = ((hertz - low) / (mid - low)).min((high - hertz) / (high - mid)).max(0.0);
            if area { slope * 2.0 / (high - low) } else { slope }
        })
    }

    /// Slaney's scale (linear to 1 kHz, then logarithmic) and area, up to `top` Hz: Whisper.
    pub(super) fn slaney(count: usize, bins: usize, top: f64) -> Self {
        Self::triangles(count, bins, top, slaney_mel, slaney_hertz, true)
    }

    /// The HTK scale without areas, up to `top` Hz: torchaudio's default, and so CED.
    pub(super) fn htk(count: usize, bins: usize, top: f64) -> Self {
        Self::triangles(count, bins, top, htk_mel, htk_hertz, false)
    }

    /// `python_speech_features.get_filterbanks`: edges fall on whole bins of an FFT of `size`.
    pub(super) fn speech(count: usize, size: usize, rate: f64) -> Self {
        let highest = htk_mel(rate / 2.0);
        let edge = |m: usize| {
            let hertz = htk_hertz(highest * m as f64 / (count + 1) as f64);
            ((size + 1) as f64 * hertz / rate).floor() as usize
        };
        let edges: Vec<usize> = (0..count + 2).map(edge).collect();
        Self::new(count, size / 2 + 1, |m, k| {
            let (low, mid, high) = (edges[m], edges[m + 1], edges[m + 2]);
            if (low..mid).contains(&k) {
                (k - low) as f64 / (mid - low) as f64
            } else if (mid..high).contains(&k) {
                (high - k) as f64 / (high - mid) as f64
            } else {
                0.0
            }
        })
    }
}

/// Four sums side by side.
fn dot<T: FftNum>(a: &[T], b: &[T]) -> T {
    let mut sums = [T::zero(); 4];
    for (a, b) in a.chunks(4).zip(b.chunks(4)) {
        for (sum, (&a, &b)) in sums.iter_mut().zip(a.iter().zip(b)) {
            *sum = *sum + a * b;
        }
    }
    (sums[0] + sums[2]) + (sums[1] + sums[3])
}

fn htk_mel(hertz: f64) -> f64 {
    2595.0 * (1.0 + hertz / 700.0).log10()
}

fn htk_hertz(mel: f64) -> f64 {
    700.0 * (10f64.powf(mel / 2595.0) - 1.0)
}

/// 200/3 Hz a mel below 1 kHz, 27 mels for a factor of 6.4 above.
fn slaney_mel(hertz: f64) -> f64 {
    if hertz >= 1000.0 { 15.0 + (hertz / 1000.0).ln() * 27.0 / 6.4f64.ln() } else { 3.0 * hertz / 200.0 }
}

fn slaney_hertz(mel: f64) -> f64 {
    if mel >= 15.0 { 1000.0 * (6.4f64.ln() / 27.0 * (mel - 15.0)).exp() } else { 200.0 * mel / 3.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn banks_cover_the_spectrum_in_order() {
        for bank in [Bank::<f64>::slaney(80, 201, 8000.0), Bank::htk(64, 257, 8000.0), Bank::speech(26, 512, 16000.0)] {
            assert!(bank.filters.iter().all(|(first, w)| !w.is_empty() && w.iter().all(|&w| w >= 0.0) && *first < 257));
            assert!(bank.filters.windows(2).all(|f| f[0].0 <= f[1].0));
        }
        for hertz in [0.0, 500.0, 1000.0, 4000.0] {
            assert!((htk_hertz(htk_mel(hertz)) - hertz).abs() < 1e-9);
            assert!((slaney_hertz(slaney_mel(hertz)) - hertz).abs() < 1e-9);
        }
    }
}
