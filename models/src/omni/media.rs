//! From pictures and samples to the tensors that the model takes.

use candle_core::{Device, Error, Result, Tensor, bail};
use moesaic_encoders::audio::{CedFeatures, SAMPLE_RATE};
#[cfg(feature = "image")]
use moesaic_encoders::image::{ImageProcessor, Picture};

use super::Config;

/// How a model is shown pictures and sound.
pub struct Senses {
    #[cfg(feature = "image")]
    image: Option<ImageProcessor>,
    audio: Option<(CedFeatures, usize)>,
}

impl Senses {
    /// Those of a model.
    ///
    /// # Errors
    /// Sizes that the extractors do not take.
    pub fn new(config: &Config) -> Result<Self> {
        #[cfg(feature = "image")]
        let image = config.image.map(|image| {
            // Pictures that are no squares are squeezed, not cut: what is asked may stand at their edge.
            let processor = format!(
                r#"{{"do_resize": true, "size": {{"height": {size}, "width": {size}}}, "resample": 2, "do_center_crop": false,
                    "do_rescale": true, "rescale_factor": 0.00392156862745098, "do_normalize": true,
                    "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}}"#,
                size = image.size
            );
            ImageProcessor::from_json(&processor).map_err(Error::wrap)
        });
        let audio = config.audio.map(|audio| {
            let features = CedFeatures::with_bands(audio.bands).map_err(Error::wrap)?;
            Ok::<_, Error>((features, audio.samples()))
        });
        Ok(Self {
            #[cfg(feature = "image")]
            image: image.transpose()?,
            audio: audio.transpose()?,
        })
    }

    /// A picture as [`Part::Image`](super::Part::Image) has it.
    ///
    /// # Errors
    /// The model takes no pictures.
    #[cfg(feature = "image")]
    pub fn picture(&self, picture: &Picture) -> Result<Tensor> {
        let Some(processor) = &self.image else { bail!("this model takes no pictures") };
        processor.process(std::slice::from_ref(picture)).map_err(Error::wrap)?.squeeze(0)
    }

    /// Samples at 16 kHz, in -1 to 1, as [`Part::Audio`](super::Part::Audio) has them.
    ///
    /// # Errors
    /// The model takes no sound, there is none, or more of it than the model hears.
    pub fn sound(&self, samples: &[f32]) -> Result<Tensor> {
        let Some((features, most)) = &self.audio else { bail!("this model takes no sound") };
        let seconds = |samples: usize| samples as f64 / f64::from(SAMPLE_RATE);
        if samples.is_empty() || samples.len() > *most {
            bail!("{:.1} s of sound: this model hears up to {} s at once", seconds(samples.len()), seconds(*most));
        }
        // The shortest that the spectrogram takes.
        let mut samples = samples.to_vec();
        samples.resize(samples.len().max(257), 0.0);
        features.extract(&samples).map_err(Error::wrap)?.tensor(&Device::Cpu)
    }
}

impl std::fmt::Debug for Senses {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Senses").finish_non_exhaustive()
    }
}
