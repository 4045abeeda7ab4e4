//! Filter bank energies of overlapping frames.

use std::sync::Arc;

use moesaic_kernels::cpu::threads;
use realfft::{FftNum, RealFftPlanner, RealToComplex};

use super::mel::Bank;

/// Frames from which on several threads pay.
const FRAMES_PER_THREAD: usize = 256;

/// Frames of a signal, their power spectra, and the energies in the bands of a bank.
#[derive(Clone)]
pub(super) struct Spectrum<T: FftNum> {
    fft: Arc<dyn RealToComplex<T>>,
    /// As many samples as a frame takes; the rest of the FFT is zeros.
    window: Vec<T>,
    hop: usize,
    bank: Bank<T>,
}

impl<T: FftNum> Spectrum<T> {
    pub(super) fn new(size: usize, window: Vec<T>, hop: usize, bank: Bank<T>) -> Self {
        Self { fft: RealFftPlanner::new().plan_fft_forward(size), window, hop, bank }
    }

    /// Number of bands.
    pub(super) fn bands(&self) -> usize {
        self.bank.len()
    }

    /// Energies `[count, bands]` of the first `count` frames, each passed through `each`. Frames beyond the signal's end see
    /// zeros there. The same bits on any number of threads.
    pub(super) fn energies(&self, signal: &[T], count: usize, each: impl Fn(&mut [T]) + Sync) -> Vec<T> {
        let bands = self.bands();
        let mut out = vec![T::zero(); count * bands];
        let parts = threads().min(count / FRAMES_PER_THREAD).max(1);
        let share = count.div_ceil(parts).max(1);
        let each = &each;
        let run = |first: usize, out: &mut [T]| self.part(signal, first, out, each);
        if parts == 1 {
            run(0, &mut out);
        } else {
            std::thread::scope(|scope| {
                let mut blocks: Vec<_> = out.chunks_mut(share * bands).enumerate().collect();
                let own = blocks.pop();
                for (i, block) in blocks {
                    scope.spawn(move || run(i * share, block));
                }
                if let Some((i, block)) = own {
                    run(i * share, block);
                }
            });
        }
        out
    }

    fn part(&self, signal: &[T], first: usize, out: &mut [T], each: &(impl Fn(&mut [T]) + Sync)) {
        let bands = self.bands();
        let mut input = self.fft.make_input_vec();
        let mut spectrum = self.fft.make_output_vec();
        let mut scratch = self.fft.make_scratch_vec();
        let mut power = vec![T::zero(); spectrum.len()];
        for (i, out) in out.chunks_exact_mut(bands).enumerate() {
            let frame = signal.get((first + i) * self.hop..).unwrap_or_default();
            let frame = &frame[..frame.len().min(self.window.len())];
            if frame.iter().all(|v| v.is_zero()) {
                out.fill(T::zero());
            } else {
                input.fill(T::zero());
                for ((to, &v), &w) in input.iter_mut().zip(frame).zip(&self.window) {
                    *to = v * w;
                }
                // Lengths are those that the plan gave, so it cannot fail.
                let done = self.fft.process_with_scratch(&mut input, &mut spectrum, &mut scratch);
                debug_assert!(done.is_ok());
                for (p, s) in power.iter_mut().zip(&spectrum) {
                    *p = s.re * s.re + s.im * s.im;
                }
                self.bank.apply(&power, out);
            }
            each(out);
        }
    }
}

/// The periodic Hann window.
pub(super) fn hann(n: usize) -> Vec<f32> {
    (0..n).map(|i| (0.5 - 0.5 * (std::f64::consts::TAU * i as f64 / n as f64).cos()) as f32).collect()
}

/// The signal with `pad` samples mirrored at both ends, the ends themselves once. Needs more than `pad` samples.
pub(super) fn reflected(signal: &[f32], pad: usize) -> Vec<f32> {
    let mut out = Vec::with_capacity(signal.len() + 2 * pad);
    out.extend(signal[1..].iter().take(pad).rev());
    out.extend_from_slice(signal);
    out.extend(signal.iter().rev().skip(1).take(pad));
    out
}
