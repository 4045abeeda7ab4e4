//! Which model a command works with: the built-in one, one in a folder, or one on the Hub.

use std::path::{Path, PathBuf};

use anyhow::Result;
#[cfg(feature = "audio")]
use moesaic::AudioModelInfo;
#[cfg(feature = "image")]
use moesaic::VisionModelInfo;
use moesaic::{Device, Forecaster, ModelInfo, TextModelInfo};

/// The option that chooses where a model computes, alike in all commands.
#[derive(Debug, clap::Args)]
pub(super) struct DeviceArgs {
    /// Where the model computes: cpu, or in builds with CUDA cuda or cuda:N
    #[arg(long, value_name = "DEVICE", default_value = "cpu")]
    pub device: Device,
}

/// The option that chooses a model, alike in all commands.
#[derive(Debug, clap::Args)]
pub(super) struct ModelArgs {
    /// Folder of a model (config.json, model.safetensors); the built-in one if left out
    #[cfg_attr(feature = "hub", doc = "")]
    #[cfg_attr(
        feature = "hub",
        doc = "Also the id of a model on the Hub, which is downloaded once: org/name or org/name@revision. HF_HOME, \
               HF_TOKEN, HF_HUB_OFFLINE and HF_ENDPOINT are honoured."
    )]
    #[arg(long, value_name = "MODEL")]
    model: Option<PathBuf>,
    #[command(flatten)]
    place: DeviceArgs,
}

impl ModelArgs {
    pub fn open(&self) -> Result<Forecaster> {
        #[cfg(feature = "hub")]
        if let Some(id) = self.model.as_deref().and_then(hub::id) {
            return hub::with(id, |id, hub| Forecaster::from_hub_on(id, hub, self.place.device));
        }
        Ok(match &self.model {
            Some(dir) => Forecaster::from_dir_on(dir, self.place.device)?,
            None => Forecaster::embedded_on(self.place.device)?,
        })
    }
}

/// Describes the model in this folder or of this id, or the built-in one.
pub(super) fn describe(model: Option<&Path>) -> Result<ModelInfo> {
    #[cfg(feature = "hub")]
    if let Some(id) = model.and_then(hub::id) {
        return hub::with(id, ModelInfo::of_hub);
    }
    Ok(match model {
        Some(dir) => ModelInfo::of_dir(dir)?,
        None => ModelInfo::embedded()?,
    })
}

/// Describes the language model in this folder or of this id; none where `writes` finds that the folder holds no language
/// model. Of a model on the Hub, only what tells that is fetched before.
pub(super) fn describe_text(model: Option<&Path>, writes: impl Fn(&Path) -> bool) -> Result<Option<TextModelInfo>> {
    #[cfg(feature = "hub")]
    if let Some(id) = model.and_then(hub::id) {
        if !writes(&hub::config(id)?) {
            return Ok(None);
        }
        let snapshot = hub::text(id)?;
        let mut info = TextModelInfo::of_dir(&snapshot.folder)?;
        info.source = snapshot.to_string();
        return Ok(Some(info));
    }
    model.filter(|dir| writes(dir)).map(|dir| Ok(TextModelInfo::of_dir(dir)?)).transpose()
}

/// Describes the model in this folder or of this id, if it looks at pictures.
#[cfg(feature = "image")]
pub(super) fn describe_vision(model: Option<&Path>, looks: impl Fn(&Path) -> bool) -> Result<Option<VisionModelInfo>> {
    #[cfg(feature = "hub")]
    if let Some(id) = model.and_then(hub::id) {
        if !looks(&hub::config(id)?) {
            return Ok(None);
        }
        let snapshot = hub::vision(id)?;
        let mut info = VisionModelInfo::of_dir(&snapshot.folder)?;
        info.source = snapshot.to_string();
        return Ok(Some(info));
    }
    model.filter(|dir| looks(dir)).map(|dir| Ok(VisionModelInfo::of_dir(dir)?)).transpose()
}

/// The folder of a language model that is named by it or by its id.
pub(super) fn text_folder(model: &Path) -> Result<PathBuf> {
    #[cfg(feature = "hub")]
    if let Some(id) = hub::id(model) {
        return Ok(hub::text(id)?.folder);
    }
    Ok(model.to_path_buf())
}

/// The folder of a model that looks at pictures, named by it or by its id; none for that of this project.
#[cfg(feature = "image")]
pub(super) fn vision_folder(model: &Path) -> Result<PathBuf> {
    #[cfg(feature = "hub")]
    if let Some(id) = hub::id(model) {
        return Ok(hub::vision(id)?.folder);
    }
    Ok(model.to_path_buf())
}

/// The folder of a model that listens, named by it or by its id.
#[cfg(feature = "audio")]
pub(super) fn audio_folder(model: &Path) -> Result<PathBuf> {
    #[cfg(feature = "hub")]
    if let Some(id) = hub::id(model) {
        return Ok(hub::audio(id)?.folder);
    }
    Ok(model.to_path_buf())
}

/// Describes the model in this folder or of this id, if it listens.
#[cfg(feature = "audio")]
pub(super) fn describe_audio(model: Option<&Path>, listens: impl Fn(&Path) -> bool) -> Result<Option<AudioModelInfo>> {
    #[cfg(feature = "hub")]
    if let Some(id) = model.and_then(hub::id) {
        if !listens(&hub::config(id)?) {
            return Ok(None);
        }
        let snapshot = hub::audio(id)?;
        let mut info = AudioModelInfo::of_dir(&snapshot.folder)?;
        info.source = snapshot.to_string();
        return Ok(Some(info));
    }
    model.filter(|dir| listens(dir)).map(|dir| Ok(AudioModelInfo::of_dir(dir)?)).transpose()
}

#[cfg(feature = "hub")]
mod hub {
    use std::path::{Path, PathBuf};
    use std::sync::{Arc, Mutex, PoisonError};

    use anyhow::{Result, anyhow};
    use indicatif::{ProgressBar, ProgressStyle};
    use moesaic::Error;
    use moesaic::hub::{Hub, HubErrorKind, HubOptions, Progress, RepoId, Snapshot, Stage};
    use moesaic_models::decoder::DecoderConfig;

    use super::super::note;

    /// The text as the id of a model on the Hub. What exists on this machine is never one.
    pub fn id(path: &Path) -> Option<&str> {
        path.to_str().filter(|text| !path.exists() && text.parse::<RepoId>().is_ok())
    }

    /// Does something with a model of the Hub, while a bar shows what is downloaded.
    pub fn with<T>(id: &str, open: impl FnOnce(&str, &Hub) -> moesaic::Result<T>) -> Result<T> {
        remarking(id, note, open)
    }

    /// The folder that holds the `config.json` of a model, for a look before the whole is fetched, which says what there is to
    /// say.
    pub fn config(id: &str) -> Result<PathBuf> {
        Ok(remarking(id, |_| (), |id, hub| hub.snapshot(id, &["config.json"]))?.folder)
    }

    fn remarking<T>(
        id: &str,
        remark: impl Fn(&str) + Send + Sync + 'static,
        open: impl FnOnce(&str, &Hub) -> moesaic::Result<T>,
    ) -> Result<T> {
        let bar = Bar::default();
        let shown = bar.clone();
        let options = HubOptions::from_env()?.on_progress(move |progress| shown.show(progress)).on_remark(remark);
        let opened = open(id, &Hub::new(options)?);
        bar.clear();
        opened.map_err(|error| match &error {
            Error::Hub { kind: HubErrorKind::Access | HubErrorKind::NotFound | HubErrorKind::Offline, .. } => {
                anyhow!("{error} (there is no folder {id} either)")
            }
            _ => error.into(),
        })
    }

    /// A language model, whole. One that is not supported is refused before its weights come.
    pub fn text(id: &str) -> Result<Snapshot> {
        DecoderConfig::load(&config(id)?).map_err(|error| anyhow!("{id}: {}", moesaic::candle_message(&error)))?;
        with(id, |id, hub| hub.model(id))
    }

    /// A model that looks at pictures, whole, in the same way.
    #[cfg(feature = "image")]
    pub fn vision(id: &str) -> Result<Snapshot> {
        moesaic::VisionModelInfo::check(config(id)?).map_err(|error| anyhow!("{id}: {error}"))?;
        with(id, |id, hub| hub.model(id))
    }

    /// A model that listens, whole, in the same way.
    #[cfg(feature = "audio")]
    pub fn audio(id: &str) -> Result<Snapshot> {
        moesaic_models::usam::UsamConfig::load(&config(id)?)
            .map_err(|error| anyhow!("{id}: {}", moesaic::candle_message(&error)))?;
        with(id, |id, hub| hub.model(id))
    }

    /// A bar on standard error, where that is a terminal.
    #[derive(Clone, Default)]
    struct Bar(Arc<Mutex<Option<ProgressBar>>>);

    impl Bar {
        fn show(&self, progress: &Progress<'_>) {
            let mut bar = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            match progress.stage {
                Stage::Fetching { done, size } => {
                    let name = || format!("{} ({} of {})", progress.file, progress.number, progress.files);
                    let bar =
                        bar.get_or_insert_with(|| ProgressBar::new(size).with_style(style()).with_message(name()));
                    bar.set_length(size);
                    bar.set_position(done);
                }
                Stage::Waiting => note(&format!("{} is being fetched by another process: waiting", progress.file)),
                _ => remove(&mut bar),
            }
        }

        fn clear(&self) {
            remove(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
        }
    }

    fn remove(bar: &mut Option<ProgressBar>) {
        if let Some(bar) = bar.take() {
            bar.finish_and_clear();
        }
    }

    fn style() -> ProgressStyle {
        let line = "{msg} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta}";
        // The template is a constant; a default bar is better than none.
        ProgressStyle::with_template(line).unwrap_or_else(|_| ProgressStyle::default_bar())
    }
}
