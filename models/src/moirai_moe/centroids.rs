//! Where the centroids of a sparse model come from: clusters of what a dense one makes of tokens.
//!
//! "The centroids are derived from token representations of a pretrained model by k-means, and stay fixed in training" (arXiv
//! 2410.10469, section 3.2.2). The dense model has one expert; its tokens are seen where the router stands, after `norm2`. Every
//! expert of the sparse model starts as a copy of the dense one's: as the weights of the chosen experts sum to 1, the sparse model
//! starts out as the dense one, whatever is chosen.

use candle_core::{DType, Device, Error, Result, Tensor, bail};
use moesaic_kernels::Probe;
use moesaic_kernels::checkpoint::Checkpoint;
use moesaic_kernels::ops::distances;
use moesaic_kernels::rng::Rng;

use super::{Config, MoiraiMoe, Patches};

/// The name of the centroids in a checkpoint.
const CENTROID: &str = "encoder.centroid";

impl MoiraiMoe {
    /// What the router of each layer sees of the tokens that are no padding: of each layer `[tokens * D]`.
    ///
    /// # Errors
    /// Those of [`forward`](Self::forward).
    pub fn representations(&self, patches: &Patches) -> Result<Vec<Vec<f32>>> {
        let probe = Probe::new();
        self.forward(patches, Some(&probe))?;
        let (tensors, width) = (probe.tensors(), self.config().d_model);
        let layer = |i: usize| -> Result<Vec<f32>> {
            let name = format!("layer.{i}.norm2");
            let Some(seen) = tensors.get(&name) else { bail!("the forward pass did not record {name}") };
            let values = seen.detach().to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?; // (B * S * D)
            let tokens = values.chunks_exact(width).zip(&patches.sample_id).filter(|(_, id)| **id != 0);
            Ok(tokens.flat_map(|(token, _)| token.iter().copied()).collect())
        };
        (0..self.config().num_layers).map(layer).collect()
    }
}

/// `k` centroids of points by k-means: a start by k-means++ (Arthur and Vassilvitskii, 2007), then Lloyd's steps until nothing
/// changes, `iterations` at most. A cluster that loses all its points takes the one that lies farthest from its own centroid.
/// The same arguments give the same bits.
///
/// # Shapes
/// `points [n * width]` to `[k * width]`
///
/// # Errors
/// Fewer points than centroids, or a point that is not finite.
pub fn k_means(points: &[f32], width: usize, k: usize, iterations: usize, seed: u64) -> Result<Vec<f32>> {
    if width == 0 || !points.len().is_multiple_of(width) || k == 0 {
        bail!("k-means: {} values are no points of {width}, or {k} centroids", points.len());
    }
    let n = points.len() / width;
    if n < k {
        bail!("k-means: {n} tokens are too few for {k} centroids; look at more batches");
    }
    if points.iter().any(|v| !v.is_finite()) {
        bail!("k-means: a token is not finite: the dense model is broken");
    }
    let rows = Tensor::from_slice(points, (n, width), &Device::Cpu)?;
    let point = |i: usize| &points[i * width..(i + 1) * width];
    let mut centroids = plus_plus(&rows, points, width, k, &mut Rng::named(seed, "k-means"))?;
    let mut cluster: Vec<usize> = Vec::new();
    for _ in 0..iterations {
        let near = nearest(&rows, &centroids, width, k)?;
        let mut now: Vec<usize> = near.iter().map(|(c, _)| *c).collect();
        let mut counts = vec![0usize; k];
        now.iter().for_each(|&c| counts[c] += 1);
        // The farthest first; the lower index where two are as far.
        let mut far: Vec<usize> = (0..n).collect();
        if counts.contains(&0) {
            far.sort_by(|&a, &b| near[b].1.total_cmp(&near[a].1));
        }
        let mut far = far.into_iter();
        for empty in 0..k {
            if counts[empty] > 0 {
                continue;
            }
            // A point that is alone stays, or its cluster would be empty in turn; k points at least make sure of another.
            let Some(moved) = far.find(|&i| counts[now[i]] > 1) else { break };
            counts[now[moved]] -= 1;
            (now[moved], counts[empty]) = (empty, 1);
        }
        if now == cluster {
            break;
        }
        let mut sums = vec![0f64; k * width];
        for (i, &c) in now.iter().enumerate() {
            sums[c * width..(c + 1) * width].iter_mut().zip(point(i)).for_each(|(sum, &v)| *sum += f64::from(v));
        }
        for (c, &count) in counts.iter().enumerate().filter(|(_, count)| **count > 0) {
            let own = c * width..(c + 1) * width;
            let means = sums[own.clone()].iter().map(|sum| (sum / count as f64) as f32);
            centroids[own].iter_mut().zip(means).for_each(|(to, mean)| *to = mean);
        }
        cluster = now;
    }
    Ok(centroids)
}

/// Points spread as far as chance has it: each is drawn by its squared distance to the nearest of those before it.
fn plus_plus(rows: &Tensor, points: &[f32], width: usize, k: usize, rng: &mut Rng) -> Result<Vec<f32>> {
    let n = points.len() / width;
    let mut squared = vec![f64::INFINITY; n];
    let mut chosen = rng.below(n);
    let mut centroids = Vec::with_capacity(k * width);
    for c in 0..k {
        let point = &points[chosen * width..(chosen + 1) * width];
        centroids.extend_from_slice(point);
        if c + 1 == k {
            break;
        }
        for (squared, (_, distance)) in squared.iter_mut().zip(nearest(rows, point, width, 1)?) {
            *squared = squared.min(f64::from(distance).powi(2));
        }
        let mut left = rng.uniform() * squared.iter().sum::<f64>();
        // Where all points coincide any will do.
        let mut next = rng.below(n);
        for (i, squared) in squared.iter().enumerate().filter(|(_, squared)| **squared > 0.0) {
            next = i;
            left -= squared;
            if left < 0.0 {
                break;
            }
        }
        chosen = next;
    }
    Ok(centroids)
}

/// The nearest centroid of each point, the first of several, and how far it is.
fn nearest(rows: &Tensor, centroids: &[f32], width: usize, k: usize) -> Result<Vec<(usize, f32)>> {
    let centroids = Tensor::from_slice(centroids, (k, width), &Device::Cpu)?;
    let all = distances(rows, &centroids)?.flatten_all()?.to_vec1::<f32>()?; // (n * k)
    let least = |row: &[f32]| {
        let pairs = row.iter().copied().enumerate();
        pairs.fold((0, f32::INFINITY), |best, now| if now.1 < best.1 { now } else { best })
    };
    Ok(all.chunks_exact(k).map(least).collect())
}

/// The tensors of the sparse model of `config` that starts as the dense model in `dense`: each expert a copy of the one there is,
/// and `centroids [layers][E * D]`. They are rounded to bf16, in which models are saved, so that a saved model routes as the
/// trained one did. In f32.
///
/// # Errors
/// A tensor cannot be read, or the centroids do not fit the config.
pub fn from_dense(dense: &Checkpoint, config: &Config, centroids: &[Vec<f32>]) -> Result<Vec<(String, Tensor)>> {
    let shape = (config.num_layers, config.num_experts, config.d_model);
    let flat: Vec<f32> = centroids.iter().flatten().copied().collect();
    let centroid = Tensor::from_vec(flat, shape, &Device::Cpu)
        .map_err(|e| Error::Msg(format!("the centroids do not fit the model: {e}")))?;
    let centroid = centroid.to_dtype(DType::BF16)?.to_dtype(DType::F32)?; // (layers, E, D)
    let mut tensors = vec![(CENTROID.to_string(), centroid)];
    for name in dense.names().filter(|name| *name != CENTROID) {
        let value = dense.read_any(name)?.to_dtype(DType::F32)?;
        match name.split_once(".ffn.experts.0.") {
            Some((layer, map)) => {
                let copy = |e: usize| (format!("{layer}.ffn.experts.{e}.{map}"), value.clone());
                tensors.extend((0..config.num_experts).map(copy));
            }
            None => tensors.push((name.to_string(), value)),
        }
    }
    Ok(tensors)
}
