//! Forecasts patch by patch: what is said of one patch is put into the series before the next is asked for.

use std::sync::Arc;

use candle_core::{Result, Tensor, bail};
use moesaic_kernels::rng::Rng;
use moesaic_kernels::{Probe, Routes, Sight};

use super::window::Cut;
use super::{Cache, Cell, Distribution, MoiraiMoe, Patches, Request, Scaling, Tokens, Windows};

/// How later patches are computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Mode {
    /// Every step computes the whole sequence anew, scaled with the values that were forecast so far: what the reference does.
    Exact,
    /// The scale stays that of the context, whose keys and values are computed once and shared by all paths. The first patch is
    /// that of [`Exact`](Self::Exact); later ones differ by what rescaling changes.
    #[default]
    Cached,
}

/// What a patch is continued with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Paths {
    /// Its mean: one path, quick, and blind to how uncertainty grows from patch to patch.
    Mean,
    /// Random values: as many paths, a function of the seed.
    Samples {
        /// Number of paths; the reference takes 100.
        count: usize,
        /// Seed of the random numbers.
        seed: u64,
    },
}

/// How to forecast.
#[derive(Clone, Debug, PartialEq)]
pub struct Options {
    /// Newest values that the model sees.
    pub context: usize,
    /// Values to forecast.
    pub horizon: usize,
    /// Values of a patch; absent for [`Config::default_patch`](super::Config::default_patch).
    pub patch: Option<usize>,
    /// How later patches are computed.
    pub mode: Mode,
    /// What a patch is continued with.
    pub paths: Paths,
    /// Levels of the quantiles to give, between 0 and 1.
    pub quantiles: Vec<f64>,
    /// Give the paths too, where they are samples.
    pub keep_paths: bool,
    /// Multiply series that the model cannot scale; see [`Windows::new`]. The reference does not.
    pub rescale: bool,
}

impl Options {
    /// Cached, 100 sample paths that are not kept, no quantiles, rescaling.
    pub fn new(context: usize, horizon: usize) -> Self {
        let paths = Paths::Samples { count: 100, seed: 0 };
        let (patch, mode) = (None, Mode::Cached);
        Self { context, horizon, patch, mode, paths, quantiles: Vec::new(), keep_paths: false, rescale: true }
    }
}

/// The continuation of one request, in the units of its data; all numbers are finite, as ends of f32 stand for what is beyond.
#[derive(Clone, Debug, PartialEq)]
pub struct Forecast {
    /// `[targets][horizon]`: of the first patch the distribution's mean, later the mean over paths of theirs.
    pub mean: Vec<Vec<f32>>,
    /// `[levels][targets][horizon]`: of the first patch, and of all with [`Paths::Mean`], those of the distribution; later those
    /// of the sample paths.
    pub quantiles: Vec<Vec<Vec<f32>>>,
    /// `[paths][targets][horizon]`; empty unless they are kept.
    pub paths: Vec<Vec<Vec<f32>>>,
}

/// Tokens that go through the model at once, as long as one request has no more.
const TOKENS: usize = 4096;
/// Sample paths that a forecast may have.
const MOST_PATHS: usize = 1 << 16;
/// Values beyond this are taken for it, so that sums of them stay in f32.
const FARTHEST: f64 = f32::MAX as f64 / 4.0;

/// A finite f32.
fn finite(v: f64) -> f32 {
    v.clamp(-FARTHEST, FARTHEST) as f32
}

impl MoiraiMoe {
    /// Continues each request. Requests may differ in lengths and in numbers of variates and covariates; an answer has the same
    /// bits whatever it is computed with.
    ///
    /// With [`Mode::Exact`] the probe records `request.{i}.call.{n}.loc` and `.scale`, `[paths, tokens, 1]`, of each of the
    /// network's calls.
    ///
    /// # Errors
    /// Those of [`Windows::new`], with the number of the request; quantile levels outside 0 to 1; no path, or too many.
    pub fn forecast(
        &self,
        requests: &[Request<'_>],
        options: &Options,
        probe: Option<&Probe>,
    ) -> Result<Vec<Forecast>> {
        if let Some(level) = options.quantiles.iter().find(|q| !(**q > 0.0 && **q < 1.0)) {
            bail!("the quantile level {level} is not between 0 and 1: 0.5 asks for the median");
        }
        if let Paths::Samples { count, .. } = options.paths
            && !(1..=MOST_PATHS).contains(&count)
        {
            bail!("{count} sample paths, expected 1 to {MOST_PATHS}");
        }
        let patch = options.patch.unwrap_or_else(|| self.config().default_patch());
        let cut = Cut { context: options.context, horizon: options.horizon, patch };
        let window = |(i, request): (usize, &Request<'_>)| {
            let window = Windows::new(self.config(), request, cut, options.rescale);
            window.map_err(|e| candle_core::Error::msg(format!("request {i}: {e}")))
        };
        let windows = requests.iter().enumerate().map(window).collect::<Result<Vec<_>>>()?;
        let mut forecasts = Vec::with_capacity(windows.len());
        match options.mode {
            Mode::Exact => {
                for (i, window) in windows.iter().enumerate() {
                    forecasts.push(self.exact(window, options, &format!("request.{i}"), probe)?);
                }
            }
            Mode::Cached => {
                let mut rest = windows.as_slice();
                while !rest.is_empty() {
                    let mut tokens = 0;
                    let fits = |window: &&Windows| {
                        tokens += window.patches.tokens().max(options.paths.count() * window.targets());
                        tokens <= TOKENS
                    };
                    let (now, later) = rest.split_at(rest.iter().take_while(fits).count().max(1));
                    forecasts.extend(self.cached(now, options)?);
                    rest = later;
                }
            }
        }
        Ok(forecasts)
    }

    /// The routes of one pass over a request's window, by layer: patches of all its variates, the future ones among them.
    ///
    /// # Errors
    /// As [`forecast`](Self::forecast).
    pub fn routes(&self, request: &Request<'_>, context: usize, horizon: usize) -> Result<Vec<Routes>> {
        let options = Options::new(context, horizon);
        let patch = options.patch.unwrap_or_else(|| self.config().default_patch());
        let window = Windows::new(self.config(), request, Cut { context, horizon, patch }, options.rescale)?;
        Ok(self.forward(&window.patches, None)?.routes)
    }

    /// The whole sequence at each step, one row for each path.
    fn exact(&self, window: &Windows, options: &Options, name: &str, probe: Option<&Probe>) -> Result<Forecast> {
        let mut course = Course::new(window, options);
        let mut rows = vec![window.patches.clone()];
        for step in 0..window.future() {
            let read: Vec<usize> = (0..window.targets()).map(|v| window.before(v, step)).collect();
            let scalings = rows.iter().map(|row| self.scaling(row)).collect::<Result<Vec<_>>>()?;
            if let Some(probe) = probe {
                let of = |part: fn(&Scaling) -> &[f32]| {
                    let values: Vec<f32> = scalings.iter().flat_map(|scaling| part(scaling).to_vec()).collect();
                    Tensor::from_vec(values, (rows.len(), window.patches.length, 1), self.device())
                };
                probe.tensor(format!("{name}.call.{step}.loc"), &of(|s| &s.loc)?);
                probe.tensor(format!("{name}.call.{step}.scale"), &of(|s| &s.scale)?);
            }
            let now = window.now() + step as u32;
            let each = Windows::up_to(&window.patches, now).len().max(1);
            let mut cells = Vec::with_capacity(rows.len());
            let per = (TOKENS / each).max(1);
            for (rows, scalings) in rows.chunks(per).zip(scalings.chunks(per)) {
                let said = self.pass(rows, scalings, now, &read)?;
                for row in 0..rows.len() {
                    let said = (0..read.len()).map(|v| said.cells(row * read.len() + v, window.cut.patch));
                    cells.push(said.collect::<Result<Vec<_>>>()?);
                }
            }
            let paths = course.step(step, &cells);
            if rows.len() < paths.len() {
                rows = vec![window.patches.clone(); paths.len()];
            }
            for (row, values) in rows.iter_mut().zip(paths) {
                for (v, values) in values.iter().enumerate() {
                    let token = window.before(v, step + 1);
                    if step + 1 < window.future() {
                        row.target[token * row.width..][..values.len()].copy_from_slice(values);
                        row.prediction[token] = false;
                    }
                }
            }
        }
        Ok(course.finish())
    }

    /// What follows the tokens `read` of each row, from the tokens up to `now`.
    fn pass(&self, rows: &[Patches], scalings: &[Scaling], now: u32, read: &[usize]) -> Result<Distribution> {
        let mut batch = Batch::default();
        let (mut places, mut loc, mut scale) = (Vec::new(), Vec::new(), Vec::new());
        for (row, scaling) in rows.iter().zip(scalings) {
            let first = batch.tokens.time.len();
            let tokens = Windows::up_to(row, now);
            batch.sequence(self, row, scaling, &tokens, 0)?;
            for token in read {
                let Ok(place) = tokens.binary_search(token) else { bail!("token {token} is padding or after {now}") };
                places.push((first + place) as u32);
                loc.push(scaling.loc[*token]);
                scale.push(scaling.scale[*token]);
            }
        }
        self.read(batch, None, places, loc, scale)
    }

    /// Sends tokens through the model and looks at those at `places`.
    fn read(
        &self,
        batch: Batch,
        cache: Option<&mut Cache>,
        places: Vec<u32>,
        loc: Vec<f32>,
        scale: Vec<f32>,
    ) -> Result<Distribution> {
        let Batch { z, mut tokens, sight } = batch;
        tokens.sight = Arc::new(sight);
        let (hidden, _) = self.encode(z, &tokens, cache, None)?;
        let size = places.iter().map(|&place| tokens.size[place as usize]).collect();
        let count = places.len();
        let hidden = hidden.index_select(&Tensor::from_vec(places, count, self.device())?, 0)?; // (places, D)
        self.distribution(&hidden, &Tokens { size, ..tokens }, loc, scale)
    }

    /// Contexts once, then the tokens of each step, for all paths of all windows together.
    fn cached(&self, windows: &[Windows], options: &Options) -> Result<Vec<Forecast>> {
        let scalings = windows.iter().map(|w| self.scaling(&w.patches)).collect::<Result<Vec<_>>>()?;
        let mut courses: Vec<Course<'_>> = windows.iter().map(|w| Course::new(w, options)).collect();
        let (mut batch, mut places, mut loc, mut scale) = (Batch::default(), Vec::new(), Vec::new(), Vec::new());
        // Of each window, its context's keys: where they start, and the variate of each.
        let mut contexts = Vec::with_capacity(windows.len());
        for (window, scaling) in windows.iter().zip(&scalings) {
            let first = batch.tokens.time.len();
            let tokens = Windows::up_to(&window.patches, window.now());
            batch.sequence(self, &window.patches, scaling, &tokens, 0)?;
            for v in 0..window.targets() {
                let token = window.before(v, 0);
                let Ok(place) = tokens.binary_search(&token) else { bail!("target {v} ends with padding") };
                places.push((first + place) as u32);
                loc.push(scaling.loc[token]);
                scale.push(scaling.scale[token]);
            }
            contexts.push((first, tokens.iter().map(|&t| window.patches.variate_id[t]).collect::<Vec<_>>()));
        }
        let mut keys = batch.tokens.time.len();
        let mut cache = Cache::default();
        let mut said = self.read(batch, Some(&mut cache), places, loc, scale)?;
        // Of each window and step, where the tokens of its first path start.
        let mut starts: Vec<Vec<usize>> = vec![Vec::new(); windows.len()];
        let steps = windows.iter().map(Windows::future).max().unwrap_or(0);
        for step in 0..steps {
            let (mut batch, mut places, mut loc, mut scale) = (Batch::default(), Vec::new(), Vec::new(), Vec::new());
            let mut next = 0;
            for (at, (window, course)) in windows.iter().zip(&mut courses).enumerate() {
                let (targets, patch) = (window.targets(), window.cut.patch);
                // The first step is one for all paths.
                let rows = if step == 0 { 1 } else { options.paths.count() };
                let cells = (0..rows).map(|_| {
                    let row = (next..next + targets).map(|token| said.cells(token, patch)).collect::<Result<Vec<_>>>();
                    next += targets;
                    row
                });
                let paths = course.step(step, &cells.collect::<Result<Vec<_>>>()?);
                if step + 1 == steps {
                    continue;
                }
                let (row, scaling) = (&window.patches, &scalings[at]);
                let size = row.sizes(self.config())?;
                let covariates: Vec<usize> = window.covariates(step).collect();
                let each = targets + covariates.len();
                starts[at].push(keys + batch.tokens.time.len());
                for (path, values) in paths.iter().enumerate() {
                    let own = starts[at].iter().map(|start| start + path * each);
                    let targets_now = (0..targets).map(|v| (window.before(v, step + 1), Some(v)));
                    let now: Vec<(usize, Option<usize>)> =
                        targets_now.chain(covariates.iter().map(|&token| (token, None))).collect();
                    let variates: Vec<u32> = now.iter().map(|&(token, _)| row.variate_id[token]).collect();
                    let own: Vec<usize> = own.collect();
                    for &(token, target) in &now {
                        match target {
                            Some(v) => {
                                places.push(batch.tokens.time.len() as u32);
                                let before = window.before(v, 0);
                                loc.push(scaling.loc[before]);
                                scale.push(scaling.scale[before]);
                                batch.z.extend(window.scaled(scaling, v, &values[v]));
                            }
                            None => batch.z.extend(cells_of(row, scaling, token)),
                        }
                        batch.tokens.time.push(row.time_id[token]);
                        batch.tokens.size.push(size[token]);
                        let kind = |variate: u32| usize::from(variate == row.variate_id[token]);
                        let (first, context) = &contexts[at];
                        let context = context.iter().enumerate().map(|(i, &variate)| (first + i, kind(variate)));
                        let own = own.iter().flat_map(|start| {
                            variates.iter().enumerate().map(move |(i, &variate)| (start + i, kind(variate)))
                        });
                        batch.sight.push(context.chain(own));
                    }
                }
            }
            if step + 1 < steps {
                keys += batch.tokens.time.len();
                said = self.read(batch, Some(&mut cache), places, loc, scale)?;
            }
        }
        Ok(courses.into_iter().map(Course::finish).collect())
    }
}

impl Paths {
    fn count(self) -> usize {
        match self {
            Self::Mean => 1,
            Self::Samples { count, .. } => count,
        }
    }
}

/// The scaled values of one token.
fn cells_of(row: &Patches, scaling: &Scaling, token: usize) -> Vec<f32> {
    let (loc, scale) = (f64::from(scaling.loc[token]), f64::from(scaling.scale[token]));
    let cells = &row.target[token * row.width..(token + 1) * row.width];
    cells.iter().map(|&v| ((f64::from(v) - loc) / scale) as f32).collect()
}

/// Tokens on their way into the model.
struct Batch {
    z: Vec<f32>,
    tokens: Tokens,
    sight: Sight,
}

impl Default for Batch {
    fn default() -> Self {
        let tokens = Tokens { time: Vec::new(), size: Vec::new(), sight: Arc::default(), mask: None };
        Self { z: Vec::new(), tokens, sight: Sight::new() }
    }
}

impl Batch {
    /// Adds tokens of a row, ascending and of one sample, which see each other.
    fn sequence(
        &mut self,
        model: &MoiraiMoe,
        row: &Patches,
        scaling: &Scaling,
        tokens: &[usize],
        keys: usize,
    ) -> Result<()> {
        let (first, size) = (keys + self.tokens.time.len(), row.sizes(model.config())?);
        for &i in tokens {
            self.z.extend(cells_of(row, scaling, i));
            self.tokens.time.push(row.time_id[i]);
            self.tokens.size.push(size[i]);
            let seen = tokens.iter().enumerate().filter(|&(_, &j)| row.time_id[j] <= row.time_id[i]);
            let kind = |j: usize| usize::from(row.variate_id[j] == row.variate_id[i]);
            self.sight.push(seen.map(|(place, &j)| (first + place, kind(j))));
        }
        Ok(())
    }
}

/// What has been said of one window so far.
struct Course<'a> {
    window: &'a Windows,
    options: &'a Options,
    /// Of each path.
    rngs: Vec<Rng>,
    /// `[targets][values]`
    mean: Vec<Vec<f32>>,
    /// `[levels][targets][values]`
    quantiles: Vec<Vec<Vec<f32>>>,
    /// `[paths][targets][values]`
    paths: Vec<Vec<Vec<f32>>>,
}

impl<'a> Course<'a> {
    fn new(window: &'a Windows, options: &'a Options) -> Self {
        let rngs = match options.paths {
            Paths::Mean => Vec::new(),
            // A stream for each path alone: company does not change it.
            Paths::Samples { count, seed } => (0..count as u64).map(|path| Rng::keyed(&[seed, path])).collect(),
        };
        let empty = vec![Vec::new(); window.targets()];
        let quantiles = vec![empty.clone(); options.quantiles.len()];
        let paths = vec![empty.clone(); rngs.len()];
        Self { window, options, rngs, mean: empty, quantiles, paths }
    }

    /// Takes what the model says of patch `step`: `[1 or paths][targets][patch]`. The answer is what each path goes on with,
    /// `[paths][targets][patch]`, in the units of the tokens.
    fn step(&mut self, step: usize, cells: &[Vec<Vec<Cell>>]) -> Vec<Vec<Vec<f32>>> {
        let Cut { horizon, patch, .. } = self.window.cut;
        let left = horizon.saturating_sub(step * patch).min(patch);
        let sampled = !self.rngs.is_empty();
        let paths: Vec<Vec<Vec<f32>>> = match sampled {
            false => cells.iter().map(|row| means(row)).collect(),
            true => {
                let row = |path: usize| cells.get(path).or(cells.first());
                let draw = |(path, rng): (usize, &mut Rng)| {
                    let of = |cells: &Vec<Cell>, rng: &mut Rng| cells.iter().map(|c| finite(c.sample(rng))).collect();
                    row(path).into_iter().flatten().map(|cells| of(cells, rng)).collect()
                };
                self.rngs.iter_mut().enumerate().map(draw).collect()
            }
        };
        for v in 0..self.window.targets() {
            let factor = self.window.factor(v);
            let unscaled = |y: f64| finite(y / factor);
            for c in 0..left {
                let all = || cells.iter().filter_map(|row| row.get(v)?.get(c));
                let mean = all().map(|cell| cell.mean().clamp(-FARTHEST, FARTHEST)).sum::<f64>() / cells.len() as f64;
                self.mean[v].push(unscaled(mean));
                let mut drawn: Vec<f32> = Vec::new();
                if sampled && step > 0 {
                    drawn.extend(paths.iter().filter_map(|path| path.get(v)?.get(c)));
                    drawn.sort_by(f32::total_cmp);
                }
                for (q, found) in self.options.quantiles.iter().zip(&mut self.quantiles) {
                    let y = match cells.first().and_then(|row| row.get(v)?.get(c)) {
                        Some(cell) if drawn.is_empty() => cell.quantile(*q),
                        _ => empirical(&drawn, *q),
                    };
                    found[v].push(unscaled(y));
                }
                for (kept, path) in self.paths.iter_mut().zip(&paths) {
                    kept[v].extend(path.get(v).and_then(|cells| cells.get(c)).map(|&y| unscaled(f64::from(y))));
                }
            }
        }
        paths
    }

    fn finish(self) -> Forecast {
        let paths = if self.options.keep_paths { self.paths } else { Vec::new() };
        Forecast { mean: self.mean, quantiles: self.quantiles, paths }
    }
}

fn means(row: &[Vec<Cell>]) -> Vec<Vec<f32>> {
    row.iter().map(|cells| cells.iter().map(|cell| finite(cell.mean())).collect()).collect()
}

/// The quantile of ascending values, interpolated between neighbours; 0 of nothing.
fn empirical(sorted: &[f32], q: f64) -> f64 {
    let Some(last) = sorted.len().checked_sub(1) else { return 0.0 };
    let place = q * last as f64;
    let below = place as usize;
    let (low, high) = (f64::from(sorted[below]), f64::from(sorted[(below + 1).min(last)]));
    low + (high - low) * place.fract()
}
