//! Keys and values of the tokens seen so far.

use candle_core::{DType, Result, Tensor, bail};

/// Tokens that a cache makes room for at first, where nobody says how many will come.
const ROOM: usize = 64;

/// Keys and values of the tokens seen so far, for one batch of rows.
///
/// Each layer writes into buffers `[b, capacity, ..]` that double when they are full, so a step copies its own token only.
/// Layers with a sliding window drop what no query will see again instead of growing. A batch may be padded at the left.
///
/// Not `Clone`: a copy would share the buffers. [`fork`](Self::fork) copies them.
#[derive(Debug, Default)]
pub struct Cache {
    layers: Vec<LayerCache>,
    tokens: usize,
    /// Padding at the left of each row.
    padding: Vec<usize>,
    /// What is added to `tokens` for the position of each row's next token.
    shifts: Vec<i64>,
    room: usize,
    /// Of the buffers; that of what is appended if absent.
    dtype: Option<DType>,
}

/// One layer's part of a [`Cache`].
#[derive(Debug, Default)]
pub(super) struct LayerCache {
    /// `[b, capacity, ..]`: keys and values, or what both are made from.
    parts: Vec<Tensor>,
    /// Tokens that were dropped at the left.
    dropped: usize,
}

/// What a layer attends to: buffers of which the first `keys` tokens count.
pub(super) struct Cached<'a> {
    pub parts: &'a [Tensor],
    pub keys: usize,
    /// Padding of each row among those tokens.
    pub start: Vec<usize>,
}

impl Cache {
    /// An empty cache with room for `tokens` in each row before it grows.
    pub fn with_capacity(tokens: usize) -> Self {
        Self { room: tokens, ..Self::default() }
    }

    /// Tokens seen in each row, padding included.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// True if it has seen nothing.
    pub fn is_empty(&self) -> bool {
        self.tokens == 0
    }

    /// Number of rows; 0 while empty.
    pub fn rows(&self) -> usize {
        if self.is_empty() { 0 } else { self.padding.len() }
    }

    /// Padding tokens at the left of each row.
    pub fn padding(&self) -> &[usize] {
        &self.padding
    }

    /// What is added to [`tokens`](Self::tokens) for the rotary position of each row's next token: less the padding, and less
    /// what pictures save where their tokens share positions.
    pub fn shifts(&self) -> &[i64] {
        &self.shifts
    }

    /// Bytes of the buffers.
    pub fn bytes(&self) -> usize {
        let parts = self.layers.iter().flat_map(|l| &l.parts);
        parts.map(|p| p.elem_count() * p.dtype().size_in_bytes()).sum()
    }

    /// Forgets everything and keeps the settings.
    pub fn clear(&mut self) {
        (self.layers, self.tokens, self.padding, self.shifts) = (Vec::new(), 0, Vec::new(), Vec::new());
    }

    /// Forgets all but the first `tokens` of each row.
    ///
    /// # Errors
    /// There are fewer, or a layer with a sliding window has dropped tokens that would be seen again.
    pub fn truncate(&mut self, tokens: usize) -> Result<()> {
        if tokens > self.tokens {
            bail!("a cache of {} tokens cannot be cut to {tokens}", self.tokens);
        }
        if tokens == 0 {
            self.clear();
            return Ok(());
        }
        if tokens < self.tokens && self.layers.iter().any(|l| l.dropped > 0) {
            bail!(
                "this cache has dropped tokens behind a sliding window and cannot go back from {} to {tokens}",
                self.tokens
            );
        }
        self.tokens = tokens;
        Ok(())
    }

    /// Keeps rows by index, in this order; a row may be taken more than once. Beam search continues its best beams so.
    ///
    /// # Errors
    /// There is no such row, or none is chosen.
    pub fn select(&mut self, rows: &[usize]) -> Result<()> {
        if rows.is_empty() {
            bail!("no row of the cache is chosen; clear it instead");
        }
        let known = self.padding.get(..self.rows()).unwrap_or_default();
        let Some(padding) = rows.iter().map(|&r| known.get(r).copied()).collect::<Option<Vec<_>>>() else {
            bail!("rows {rows:?} of a cache with {} rows", self.rows());
        };
        if rows.iter().copied().eq(0..self.rows()) {
            return Ok(());
        }
        self.padding = padding;
        self.shifts = rows.iter().filter_map(|&r| self.shifts.get(r).copied()).collect();
        for layer in &mut self.layers {
            let used = self.tokens - layer.dropped;
            for part in &mut layer.parts {
                let index: Vec<u32> = rows.iter().map(|&r| r as u32).collect();
                let index = Tensor::from_vec(index, rows.len(), part.device())?;
                let chosen = part.narrow(1, 0, used)?.contiguous()?.index_select(&index, 0)?;
                *part = moved(&chosen, part.dim(1)?)?;
            }
        }
        Ok(())
    }

    /// A copy with buffers of its own.
    pub fn fork(&self) -> Result<Self> {
        let layers = self.layers.iter().map(|layer| {
            let parts = layer.parts.iter().map(Tensor::copy).collect::<Result<_>>()?;
            Ok(LayerCache { parts, dropped: layer.dropped })
        });
        let layers = layers.collect::<Result<_>>()?;
        Ok(Self { layers, padding: self.padding.clone(), shifts: self.shifts.clone(), ..*self })
    }

    /// Prepares for more tokens in each of `b` rows, the first of which may be padding. Buffers hold `dtype`.
    pub(super) fn begin(&mut self, layers: usize, b: usize, padding: &[usize], dtype: DType) -> Result<()> {
        if self.tokens == 0 {
            self.dtype = Some(dtype);
            self.padding = if padding.is_empty() { vec![0; b] } else { padding.to_vec() };
            // Nothing counts: buffers of a pass that failed may have another shape.
            self.layers.clear();
            self.layers.resize_with(layers, LayerCache::default);
            return Ok(());
        }
        if self.padding.len() != b || self.layers.len() != layers {
            bail!(
                "a cache of {} rows and {} layers does not go on with {b} rows of {layers} layers",
                self.padding.len(),
                self.layers.len()
            );
        }
        if !padding.is_empty() && padding != self.padding {
            bail!("the padding {padding:?} is not that of the cached tokens, {:?}", self.padding);
        }
        Ok(())
    }

    /// Counts tokens that all layers have appended, whose rows go on with positions shifted so.
    pub(super) fn commit(&mut self, t: usize, shifts: Vec<i64>) {
        self.tokens += t;
        self.shifts = shifts;
    }

    /// Appends `parts`, `[b, t, ..]` each, to a layer behind the tokens that count, and shows all of them.
    pub(super) fn append(&mut self, layer: usize, parts: &[Tensor], window: Option<usize>) -> Result<Cached<'_>> {
        let (tokens, room) = (self.tokens, self.room);
        let Some(cache) = self.layers.get_mut(layer) else { bail!("layer {layer} is not in this cache") };
        let t = parts.first().map_or(Ok(0), |p| p.dim(1))?;
        let mut used = tokens - cache.dropped;
        if cache.parts.is_empty() {
            let capacity = room.max(t.next_multiple_of(ROOM)).max(ROOM);
            let dtype = |part: &Tensor| self.dtype.unwrap_or(part.dtype());
            cache.parts = parts.iter().map(|p| buffer(p, capacity, dtype(p))).collect::<Result<_>>()?;
        } else {
            let capacity = cache.parts.first().map_or(Ok(0), |p| p.dim(1))?;
            if used + t > capacity {
                // Of a window's keys the newest is the query's own.
                let keep = window.map_or(used, |w| used.min(w - 1));
                let capacity = if keep + t <= capacity { capacity } else { (2 * capacity).max(keep + t) };
                for part in &mut cache.parts {
                    *part = moved(&part.narrow(1, used - keep, keep)?.contiguous()?, capacity)?;
                }
                cache.dropped += used - keep;
                used = keep;
            }
        }
        for (buffer, part) in cache.parts.iter().zip(parts) {
            buffer.slice_set(&part.to_dtype(buffer.dtype())?.contiguous()?, 1, used)?;
        }
        let start = self.padding.iter().map(|p| p.saturating_sub(cache.dropped)).collect();
        Ok(Cached { parts: &cache.parts, keys: used + t, start })
    }
}

/// Zeros shaped as `part` with room for `capacity` tokens.
fn buffer(part: &Tensor, capacity: usize, dtype: DType) -> Result<Tensor> {
    let mut dims = part.dims().to_vec();
    if let Some(tokens) = dims.get_mut(1) {
        *tokens = capacity;
    }
    Tensor::zeros(dims, dtype, part.device())
}

/// A buffer of `capacity` tokens that begins with `part`.
fn moved(part: &Tensor, capacity: usize) -> Result<Tensor> {
    let buffer = buffer(part, capacity, part.dtype())?;
    if part.elem_count() > 0 {
        buffer.slice_set(part, 1, 0)?;
    }
    Ok(buffer)
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    /// Rows of tokens numbered `from..from + t`, with 100 added for each row.
    fn tokens(b: usize, from: usize, t: usize) -> Tensor {
        let values: Vec<f32> = (0..b).flat_map(|r| (from..from + t).map(move |i| (100 * r + i) as f32)).collect();
        Tensor::from_vec(values, (b, t, 1), &Device::Cpu).unwrap()
    }

    fn step(cache: &mut Cache, padding: &[usize], t: usize, window: Option<usize>) -> (Vec<Vec<f32>>, Vec<usize>) {
        cache.begin(1, padding.len(), padding, DType::F32).unwrap();
        let new = tokens(padding.len(), cache.tokens(), t);
        let cached = cache.append(0, &[new], window).unwrap();
        let seen = cached.parts[0].narrow(1, 0, cached.keys).unwrap().squeeze(2).unwrap().to_vec2().unwrap();
        let start = cached.start;
        cache.commit(t, padding.iter().map(|&p| -(p as i64)).collect());
        (seen, start)
    }

    fn numbers(range: std::ops::Range<usize>) -> Vec<f32> {
        range.map(|i| i as f32).collect()
    }

    #[test]
    fn it_grows_and_keeps_everything() {
        let mut cache = Cache::with_capacity(3);
        for (t, end) in [(5, 5), (1, 6), (200, 206), (1, 207)] {
            let (seen, start) = step(&mut cache, &[0, 0], t, None);
            assert_eq!(seen[0], numbers(0..end));
            assert_eq!(seen[1], numbers(100..100 + end));
            assert_eq!(start, [0, 0]);
        }
        cache.truncate(6).unwrap();
        assert_eq!(step(&mut cache, &[0, 0], 1, None).0[0], numbers(0..7));
        assert!(cache.truncate(8).is_err());
        assert!(cache.begin(1, 3, &[], DType::F32).is_err());
        assert!(cache.begin(1, 2, &[1, 0], DType::F32).is_err());
    }

    #[test]
    fn a_window_drops_what_nobody_sees() {
        let mut cache = Cache::default();
        for i in 0..500 {
            let (seen, start) = step(&mut cache, &[3, 0], 1, Some(5));
            // The last five are always there, at the end.
            let first = (i + 1usize).saturating_sub(5);
            assert!(seen[0].ends_with(&numbers(first..i + 1)), "{i}: {seen:?}");
            let dropped = i + 1 - seen[0].len();
            assert_eq!(start, [3usize.saturating_sub(dropped), 0]);
        }
        assert_eq!(cache.bytes(), 2 * ROOM * 4);
        assert!(cache.truncate(400).is_err());
        cache.truncate(0).unwrap();
        assert!(cache.is_empty());
    }

    #[test]
    fn rows_are_chosen_and_forks_are_apart() {
        let mut cache = Cache::default();
        step(&mut cache, &[2, 1, 0], 4, None);
        let mut fork = cache.fork().unwrap();
        fork.select(&[2, 0]).unwrap();
        assert_eq!(fork.padding(), [0, 2]);
        let (seen, _) = step(&mut fork, &[0, 2], 1, None);
        assert_eq!(seen, [[numbers(200..204), vec![4.0]].concat(), [numbers(0..4), vec![104.0]].concat()]);
        assert_eq!(step(&mut cache, &[2, 1, 0], 1, None).0[2], numbers(200..205));
        assert!(cache.select(&[3]).is_err());
        assert!(cache.select(&[]).is_err());
    }
}
