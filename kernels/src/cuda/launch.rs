//! Which kernel runs on what: launches with their conditions checked.

pub(crate) mod routing;

use candle_core::{DType, Result, bail};

use crate::checkpoint::fp8;
use crate::{Activation, BlockFormat};

/// Contiguous values in the device's memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Values {
    /// Where they begin.
    pub address: u64,
    /// How many there are.
    pub len: usize,
    /// What they are.
    pub dtype: DType,
}

/// One argument of a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Arg {
    /// An address of the device, or 0 for nothing.
    Address(u64),
    /// A number.
    Word(u32),
}

/// A kernel, how many threads run it, and on what. The functions of this module make it; its kernel touches no memory but that of the
/// [`Values`] they were given.
#[derive(Clone, Debug)]
pub(crate) struct Launch {
    pub kernel: String,
    pub grid: [u32; 3],
    pub threads: u32,
    /// Bytes of shared memory.
    pub shared: u32,
    pub args: Vec<Arg>,
}

/// Blocks along the second and third axes of a grid.
const BLOCKS: usize = 65_535;
/// Threads of a block that works on a tile.
const THREADS: u32 = 256;

impl Values {
    fn holds(&self, len: usize, dtype: DType, what: &str) -> Result<Arg> {
        if self.len != len || self.dtype != dtype {
            bail!("{what}: {} values of {:?} on the GPU, expected {len} of {dtype:?}", self.len, self.dtype);
        }
        Ok(Arg::Address(self.address))
    }

    /// True if rows of `width` values begin at multiples of 16 bytes.
    fn in_units(&self, width: usize) -> bool {
        self.address.is_multiple_of(16) && (width * self.dtype.size_in_bytes()).is_multiple_of(16)
    }
}

fn optional(values: Option<Values>, len: usize, dtype: DType, what: &str) -> Result<Arg> {
    values.map_or(Ok(Arg::Address(0)), |values| values.holds(len, dtype, what))
}

/// A number as the kernels take it.
fn word(value: usize, what: &str) -> Result<Arg> {
    Ok(Arg::Word(count(value, what)?))
}

fn count(value: usize, what: &str) -> Result<u32> {
    match i32::try_from(value) {
        Ok(value) => Ok(value as u32),
        Err(_) => bail!("{value} {what} are more than one call takes on the GPU; split the batch"),
    }
}

fn blocks(value: usize, what: &str) -> Result<u32> {
    match u32::try_from(value) {
        Ok(count) if value <= BLOCKS => Ok(count),
        _ => bail!("{what}: {value} blocks are more than one call takes on the GPU"),
    }
}

fn suffix(dtype: DType, what: &str) -> Result<&'static str> {
    Ok(match dtype {
        DType::F32 => "f32",
        DType::BF16 => "bf16",
        DType::F16 => "f16",
        other => bail!("{what}: dtype {other:?} is not supported on the GPU, expected f32, bf16 or f16"),
    })
}

/// `y[r] = x[token[r]]`: `x [tokens, width]`, `token [routes]` below `tokens`, `y [routes, width]`.
pub(crate) fn gather(x: Values, token: Values, y: Values, [tokens, routes, width]: [usize; 3]) -> Result<Launch> {
    suffix(x.dtype, "dispatch")?;
    let size = x.dtype.size_in_bytes();
    let unit = if x.in_units(width) && y.in_units(width) { 16 } else { size };
    let args = vec![
        x.holds(tokens * width, x.dtype, "dispatch")?,
        token.holds(routes, DType::U32, "dispatch")?,
        y.holds(routes * width, x.dtype, "dispatch")?,
        word(width * size / unit, "values of a row")?,
    ];
    let grid = [count(routes, "routes")?, 1, 1];
    Ok(Launch { kernel: format!("moesaic_gather_{unit}"), grid, threads: 128, shared: 0, args })
}

/// The routes of each token, in the order of their slots: those of token `t` are `by_token[start[t]..start[t + 1]]`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ByToken {
    /// `[routes]`
    pub by_token: Values,
    /// `[tokens + 1]`
    pub start: Values,
}

/// `out[t] = sum over the token's routes of weight[r] y[r]`, weight 1 where there is none: `y [routes, width]`, `out [tokens, width]`.
pub(crate) fn combine(
    y: Values,
    weight: Option<Values>,
    routes_of: ByToken,
    out: Values,
    [tokens, routes, width]: [usize; 3],
) -> Result<Launch> {
    let name = suffix(y.dtype, "combine")?;
    let args = vec![
        y.holds(routes * width, y.dtype, "combine")?,
        optional(weight, routes, DType::F32, "weights of routes")?,
        routes_of.by_token.holds(routes, DType::U32, "combine")?,
        routes_of.start.holds(tokens + 1, DType::U32, "combine")?,
        out.holds(tokens * width, y.dtype, "combine")?,
        word(width, "values of a row")?,
    ];
    let grid = [count(tokens, "tokens")?, blocks(width.div_ceil(128), "combine")?, 1];
    Ok(Launch { kernel: format!("moesaic_combine_{name}"), grid, threads: 128, shared: 0, args })
}

/// `dy[r] = weight[r] dout[token[r]]`: `dout [tokens, width]`, `weight [routes]` f32, `token [routes]`, `dy [routes, width]`.
pub(crate) fn spread([dout, weight, token, dy]: [Values; 4], [tokens, routes, width]: [usize; 3]) -> Result<Launch> {
    let name = suffix(dout.dtype, "combine")?;
    let args = vec![
        dout.holds(tokens * width, dout.dtype, "combine")?,
        weight.holds(routes, DType::F32, "weights of routes")?,
        token.holds(routes, DType::U32, "combine")?,
        dy.holds(routes * width, dout.dtype, "combine")?,
        word(width, "values of a row")?,
    ];
    let grid = [count(routes, "routes")?, blocks(width.div_ceil(128), "combine")?, 1];
    Ok(Launch { kernel: format!("moesaic_spread_{name}"), grid, threads: 128, shared: 0, args })
}

/// `dweight[r] = y[r] . dout[token[r]]`: `y [routes, width]`, `dout [tokens, width]`, `token [routes]`, `dweight [routes]` f32.
pub(crate) fn dots([y, dout, token, dweight]: [Values; 4], [tokens, routes, width]: [usize; 3]) -> Result<Launch> {
    let name = suffix(y.dtype, "combine")?;
    let args = vec![
        y.holds(routes * width, y.dtype, "combine")?,
        dout.holds(tokens * width, y.dtype, "combine")?,
        token.holds(routes, DType::U32, "combine")?,
        dweight.holds(routes, DType::F32, "weights of routes")?,
        word(routes, "routes")?,
        word(width, "values of a row")?,
    ];
    let grid = [count(routes.div_ceil(8), "routes")?, 1, 1];
    Ok(Launch { kernel: format!("moesaic_dots_{name}"), grid, threads: THREADS, shared: 0, args })
}

/// The sizes of one linear map per expert.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sizes {
    /// E
    pub experts: usize,
    /// Rows of all experts, R.
    pub rows: usize,
    /// N; of gated experts the width between the layers, half of the weights' rows.
    pub width: usize,
    /// K
    pub depth: usize,
}

/// The rows of a tile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TileRows {
    R16,
    R64,
    R128,
    /// 64, of operands that lie anyhow.
    Any,
}

impl TileRows {
    /// For experts that have their rows in about equal shares.
    fn of(sizes: Sizes, least: Self, fast: bool) -> Self {
        let each = sizes.rows.div_ceil(sizes.experts.max(1));
        match each {
            _ if !fast => Self::Any,
            0..=16 if least == Self::R16 => Self::R16,
            0..=64 => Self::R64,
            _ => Self::R128,
        }
    }

    fn rows(self) -> usize {
        match self {
            Self::R16 => 16,
            Self::R64 | Self::Any => 64,
            Self::R128 => 128,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::R16 => "16",
            Self::R64 => "64",
            Self::R128 => "128",
            Self::Any => "any",
        }
    }

    /// Bytes of the stages: of bf16 or f16, 32 deep, with 128 columns.
    fn shared(self) -> u32 {
        let stages = if self == Self::R128 { 3 } else { 4 };
        (stages * (self.rows() + COLUMNS) * 32 * 2) as u32
    }
}

/// Columns of a tile on tensor cores, and rows and columns of one in f32.
const COLUMNS: usize = 128;
const SIDE: usize = 64;

/// Blocks for all runs of up to `rows` rows of one expert, however the rows are shared out.
fn runs(sizes: Sizes, rows: usize) -> Result<u32> {
    count((sizes.rows / rows + sizes.experts.min(sizes.rows)).max(1), "rows")
}

fn activation_code(activation: Option<Activation>) -> Arg {
    Arg::Word(match activation {
        None => 0,
        Some(Activation::Silu) => 1,
        Some(Activation::GeluTanh) => 2,
        Some(Activation::Gelu) => 3,
        Some(Activation::Relu) => 4,
        Some(Activation::QuickGelu) => 5,
    })
}

/// Checks the numbers that index weights, and gives `[experts, width, depth]` as arguments.
fn numbers(sizes: Sizes, halves: usize) -> Result<[Arg; 3]> {
    let Sizes { experts, rows, width, depth } = sizes;
    count(rows, "rows")?;
    count(experts.saturating_mul(halves).saturating_mul(width), "rows of weights")?;
    Ok([word(experts, "experts")?, word(width, "columns")?, word(depth, "columns")?])
}

/// What weights are stored in, where it is not values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stored {
    Q8_0,
    Q4K,
    /// FP8, as [`Checkpoint::fp8_rows`](crate::checkpoint::Checkpoint::fp8_rows) gives it.
    E4M3,
}

impl Stored {
    /// The blocks of a checkpoint, where there are kernels for them.
    #[cfg(feature = "cuda")]
    pub fn of(format: BlockFormat) -> Option<Self> {
        match format {
            BlockFormat::Q8_0 => Some(Self::Q8_0),
            BlockFormat::Q4K => Some(Self::Q4K),
            _ => None,
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::Q8_0 => "q8_0",
            Self::Q4K => "q4_k",
            Self::E4M3 => "e4m3",
        }
    }

    /// Bytes of a row of `k` values; `None` where blocks do not fill it.
    pub fn row_bytes(self, k: usize) -> Option<usize> {
        let (values, bytes) = match self {
            Self::Q8_0 => (BlockFormat::Q8_0.values(), BlockFormat::Q8_0.bytes()),
            Self::Q4K => (BlockFormat::Q4K.values(), BlockFormat::Q4K.bytes()),
            Self::E4M3 => (fp8::SIDE, fp8::UNIT),
        };
        k.is_multiple_of(values).then_some(k / values * bytes)
    }
}

/// What a linear map reads and writes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Map {
    /// `[R, K]`; `[tokens, K]` where `token` is given.
    pub x: Values,
    /// `[R]`, the row of `x` of each route, below the number given with it.
    pub token: Option<(Values, usize)>,
    /// `[E, N, K]`; of gated experts `[E, 2 I, K]`, gate first. Bytes where they are in blocks.
    pub w: Values,
    /// The blocks that the weights are stored in.
    pub format: Option<Stored>,
    /// `[E, N]` or `[E, 2 I]`
    pub bias: Option<Values>,
    /// `[E + 1]`, rising from 0 to R.
    pub offsets: Values,
    /// `[R, N]` or `[R, I]`
    pub y: Values,
}

/// `y[r] = act(W[e] x[r] + bias[e])`; of gated experts `act(gate x) * (up x)`. `rows` are those of a tile where they are not for this function to
/// choose.
pub(crate) fn linear(
    map: Map,
    sizes: Sizes,
    activation: Option<Activation>,
    gated: bool,
    rows: Option<TileRows>,
) -> Result<Launch> {
    let Sizes { experts, width, depth, .. } = sizes;
    let (halves, kind) = if gated { (2, "gated") } else { (1, "linear") };
    let (dtype, what) = (map.x.dtype, "grouped linear");
    let of_x = map.token.map_or(sizes.rows, |(_, tokens)| tokens);
    let [e, n, k] = numbers(sizes, halves)?;
    let args = vec![
        map.x.holds(of_x * depth, dtype, what)?,
        optional(map.token.map(|(token, _)| token), sizes.rows, DType::U32, what)?,
        match map.format {
            None => map.w.holds(experts * halves * width * depth, dtype, what)?,
            Some(format) => {
                let Some(bytes) = format.row_bytes(depth) else {
                    bail!("{what}: rows of {depth} values in {} have no kernel on the GPU", format.name());
                };
                map.w.holds(experts * halves * width * bytes, DType::U8, what)?
            }
        },
        optional(map.bias, experts * halves * width, dtype, what)?,
        map.offsets.holds(experts + 1, DType::U32, what)?,
        map.y.holds(sizes.rows * width, dtype, what)?,
        e,
        n,
        k,
        activation_code(activation),
    ];
    let name = suffix(dtype, what)?;
    let stored = map.format.map_or(String::new(), |format| format!("{}_", format.name()));
    if dtype == DType::F32 {
        let grid = [runs(sizes, SIDE)?, blocks((width * halves).div_ceil(SIDE), what)?, 1];
        return Ok(Launch { kernel: format!("moesaic_{kind}_{stored}f32"), grid, threads: THREADS, shared: 0, args });
    }
    let fast = map.x.in_units(depth) && (map.format.is_some() || map.w.in_units(depth));
    let tile = rows.unwrap_or(TileRows::of(sizes, TileRows::R16, fast));
    if !fast && (tile != TileRows::Any || map.format.is_some()) {
        bail!("{what}: rows of {depth} values do not begin at multiples of 16 bytes");
    }
    let grid = [runs(sizes, tile.rows())?, blocks((width * halves).div_ceil(COLUMNS), what)?, 1];
    let kernel = format!("moesaic_{kind}_{stored}{name}_{}", tile.name());
    Ok(Launch { kernel, grid, threads: THREADS, shared: tile.shared(), args })
}

/// `dx[r] = W[e]^T dy[r]`: `dy [R, N]`, `w [E, N, K]`, `offsets [E + 1]`, `dx [R, K]`.
pub(crate) fn linear_back([dy, w, offsets, dx]: [Values; 4], sizes: Sizes) -> Result<Launch> {
    let Sizes { experts, rows, width, depth } = sizes;
    let (dtype, what) = (dy.dtype, "grouped linear");
    let [e, n, k] = numbers(sizes, 1)?;
    let args = vec![
        dy.holds(rows * width, dtype, what)?,
        w.holds(experts * width * depth, dtype, what)?,
        offsets.holds(experts + 1, DType::U32, what)?,
        dx.holds(rows * depth, dtype, what)?,
        e,
        n,
        k,
    ];
    let name = suffix(dtype, what)?;
    if dtype == DType::F32 {
        let grid = [runs(sizes, SIDE)?, blocks(depth.div_ceil(SIDE), what)?, 1];
        return Ok(Launch { kernel: "moesaic_linear_back_f32".into(), grid, threads: THREADS, shared: 0, args });
    }
    let tile = TileRows::of(sizes, TileRows::R64, dy.in_units(width) && w.in_units(depth));
    let grid = [runs(sizes, tile.rows())?, blocks(depth.div_ceil(COLUMNS), what)?, 1];
    let kernel = format!("moesaic_linear_back_{name}_{}", tile.name());
    Ok(Launch { kernel, grid, threads: THREADS, shared: tile.shared(), args })
}

/// `dW[e] = dy[rows of e]^T x[rows of e]`: `dy [R, N]`, `x [R, K]`, `offsets [E + 1]`, `dw [E, N, K]`.
pub(crate) fn weight_back([dy, x, offsets, dw]: [Values; 4], sizes: Sizes) -> Result<Launch> {
    let Sizes { experts, rows, width, depth } = sizes;
    let (dtype, what) = (dy.dtype, "grouped linear");
    let [_, n, k] = numbers(sizes, 1)?;
    let args = vec![
        dy.holds(rows * width, dtype, what)?,
        x.holds(rows * depth, dtype, what)?,
        offsets.holds(experts + 1, DType::U32, what)?,
        dw.holds(experts * width * depth, dtype, what)?,
        n,
        k,
    ];
    let name = suffix(dtype, what)?;
    let (side, kernel, shared) = match dtype {
        DType::F32 => (SIDE, "moesaic_weight_back_f32".to_string(), 0),
        _ if dy.in_units(width) && x.in_units(depth) => {
            (COLUMNS, format!("moesaic_weight_back_{name}_128"), TileRows::R128.shared())
        }
        _ => (COLUMNS, format!("moesaic_weight_back_{name}_any"), TileRows::R128.shared()),
    };
    let grid = [
        count(depth.div_ceil(side), "columns")?,
        blocks(width.div_ceil(side), what)?,
        blocks(experts, "grouped linear, experts")?,
    ];
    Ok(Launch { kernel, grid, threads: THREADS, shared, args })
}

/// `dbias[e] = sum of dy over the rows of e`: `dy [R, N]`, `offsets [E + 1]`, `dbias [E, N]`.
pub(crate) fn bias_back([dy, offsets, dbias]: [Values; 3], sizes: Sizes) -> Result<Launch> {
    let Sizes { experts, rows, width, .. } = sizes;
    let what = "grouped linear";
    let args = vec![
        dy.holds(rows * width, dy.dtype, what)?,
        offsets.holds(experts + 1, DType::U32, what)?,
        dbias.holds(experts * width, dy.dtype, what)?,
        word(width, "columns")?,
    ];
    let grid = [count(width.div_ceil(128), "columns")?, blocks(experts, "grouped linear, experts")?, 1];
    Ok(Launch { kernel: format!("moesaic_bias_back_{}", suffix(dy.dtype, what)?), grid, threads: 128, shared: 0, args })
}
