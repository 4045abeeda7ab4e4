//! Packing operands into the layouts that the tiles read, and the packed form of a stack of weights.

use candle_core::{CpuStorage, DType, Result, Tensor, bail};
use half::{bf16, f16};

use super::tile::{NR, Panel};
use super::{SendPtr, parallel};

/// Element types that kernels read; sums are always f32.
pub(crate) trait Elem: Copy + Send + Sync + 'static {
    fn to_f32(self) -> f32;
}

macro_rules! elem {
    ($t:ty, $to:expr) => {
        impl Elem for $t {
            #[inline(always)]
            fn to_f32(self) -> f32 {
                $to(self)
            }
        }
    };
}
elem!(f32, |v| v);
elem!(bf16, bf16::to_f32);
elem!(f16, f16::to_f32);

/// A matrix inside a buffer: element `(i, j)` stands at `offset + row(i) * rs + j * cs`, where `row(i)` is `i`, or
/// `gather[i]` if rows are picked by index.
#[derive(Clone, Copy)]
pub(crate) struct View<'a, T> {
    pub data: &'a [T],
    pub offset: usize,
    pub rs: usize,
    pub cs: usize,
    pub gather: Option<&'a [u32]>,
}

impl<'a, T: Elem> View<'a, T> {
    /// A row-major matrix with `cols` columns that starts at `offset`.
    pub(crate) fn rows(data: &'a [T], offset: usize, cols: usize) -> Self {
        Self { data, offset, rs: cols, cs: 1, gather: None }
    }

    /// The same matrix with rows and columns exchanged.
    pub(crate) fn transposed(self) -> Self {
        Self { rs: self.cs, cs: self.rs, ..self }
    }

    /// The same matrix without its first `rows` rows.
    pub(crate) fn skip(self, rows: usize) -> Self {
        match self.gather {
            Some(gather) => Self { gather: Some(&gather[rows..]), ..self },
            None => Self { offset: self.offset + rows * self.rs, ..self },
        }
    }

    #[inline(always)]
    fn start(&self, i: usize) -> usize {
        let row = self.gather.map_or(i, |g| g[i] as usize);
        self.offset + row * self.rs
    }

    /// Packs rows `i0..i0 + mr` into `[k][mr]`.
    pub(crate) fn pack_rows(&self, i0: usize, mr: usize, k: usize, dst: &mut [f32]) {
        if self.cs == 1 {
            match mr {
                // Full tiles, and the sizes that even splits of a few dozen rows make, get loops of constant width.
                14 => self.transpose::<14>(i0, k, dst),
                13 => self.transpose::<13>(i0, k, dst),
                12 => self.transpose::<12>(i0, k, dst),
                11 => self.transpose::<11>(i0, k, dst),
                _ => {
                    for i in 0..mr {
                        let src = &self.data[self.start(i0 + i)..][..k];
                        for (d, s) in dst[i..].iter_mut().step_by(mr).zip(src) {
                            *d = s.to_f32();
                        }
                    }
                }
            }
        } else if self.rs == 1 && self.gather.is_none() {
            for (p, d) in dst.chunks_exact_mut(mr).take(k).enumerate() {
                let src = &self.data[self.offset + i0 + p * self.cs..][..mr];
                for (d, s) in d.iter_mut().zip(src) {
                    *d = s.to_f32();
                }
            }
        } else {
            for i in 0..mr {
                let start = self.start(i0 + i);
                for p in 0..k {
                    dst[p * mr + i] = self.data[start + p * self.cs].to_f32();
                }
            }
        }
    }

    /// Packs `M` contiguous rows, sixteen columns at a time through a block in registers and L1: reads and writes are both
    /// sequential.
    fn transpose<const M: usize>(&self, i0: usize, k: usize, dst: &mut [f32]) {
        let rows: [&[T]; M] = std::array::from_fn(|i| &self.data[self.start(i0 + i)..][..k]);
        let whole = k / 16 * 16;
        let mut block = [[0f32; 16]; M];
        for (p, dst) in dst[..whole * M].chunks_exact_mut(16 * M).enumerate() {
            for (block, row) in block.iter_mut().zip(&rows) {
                for (b, v) in block.iter_mut().zip(&row[p * 16..p * 16 + 16]) {
                    *b = v.to_f32();
                }
            }
            for (q, dst) in dst.chunks_exact_mut(M).enumerate() {
                for (d, block) in dst.iter_mut().zip(&block) {
                    *d = block[q];
                }
            }
        }
        for p in whole..k {
            for (i, row) in rows.iter().enumerate() {
                dst[p * M + i] = row[p].to_f32();
            }
        }
    }

    /// Packs columns `j0..min(j0 + NR, n)` of this `[k, n]` matrix into a panel `[k][NR]`, zero beyond `n`.
    pub(crate) fn pack_panel(&self, j0: usize, n: usize, k: usize, dst: &mut [f32]) {
        let cols = (n - j0).min(NR);
        if self.cs == 1 {
            for (p, d) in dst.chunks_exact_mut(NR).take(k).enumerate() {
                let src = &self.data[self.start(p) + j0..][..cols];
                for (d, s) in d.iter_mut().zip(src) {
                    *d = s.to_f32();
                }
                d[cols..].fill(0.0);
            }
        } else {
            if cols < NR {
                dst[..k * NR].fill(0.0);
            }
            for j in 0..cols {
                let column = self.offset + (j0 + j) * self.cs;
                if self.rs == 1 && self.gather.is_none() {
                    let src = &self.data[column..][..k];
                    for (d, s) in dst[j..].iter_mut().step_by(NR).zip(src) {
                        *d = s.to_f32();
                    }
                } else {
                    for p in 0..k {
                        let row = self.gather.map_or(p, |g| g[p] as usize);
                        dst[p * NR + j] = self.data[column + row * self.rs].to_f32();
                    }
                }
            }
        }
    }
}

/// Weights `[E, N, K]` in tiles made once at load: f32 as `[E][N/32][K][32]`, bf16 as `[E][N/32][ceil(K/2)][32][2]`, with
/// zero columns up to a multiple of 32. Forward only: training keeps the plain tensor.
#[derive(Clone, Debug)]
pub struct Packed {
    experts: usize,
    n: usize,
    k: usize,
    data: std::sync::Arc<PackedData>,
}

#[derive(Debug)]
enum PackedData {
    F32(Vec<f32>),
    Bf16(Vec<bf16>),
}

impl Packed {
    /// Packs `[E, N, K]`, or `[N, K]` as one expert. f16 is kept as f32, as its range does not fit bf16.
    pub fn new(weight: &Tensor) -> Result<Self> {
        let (experts, n, k) = match *weight.dims() {
            [n, k] => (1, n, k),
            [e, n, k] => (e, n, k),
            ref dims => bail!("weights to pack have shape {dims:?}, expected [experts, out, in] or [out, in]"),
        };
        let weight = weight.contiguous()?;
        let (storage, layout) = weight.storage_and_layout();
        let candle_core::Storage::Cpu(storage) = &*storage else { bail!("only weights on the CPU are packed") };
        let start = layout.start_offset();
        let len = experts * n * k;
        let data = match storage {
            CpuStorage::F32(w) => PackedData::F32(pack_f32(&w[start..start + len], experts, n, k)),
            CpuStorage::F16(w) => PackedData::F32(pack_f32(&w[start..start + len], experts, n, k)),
            CpuStorage::BF16(w) => PackedData::Bf16(pack_bf16(&w[start..start + len], experts, n, k)),
            other => {
                bail!("weights of dtype {:?} cannot be packed", candle_core::backend::BackendStorage::dtype(other))
            }
        };
        Ok(Self { experts, n, k, data: std::sync::Arc::new(data) })
    }

    /// `(experts, out, in)`
    pub fn dims(&self) -> (usize, usize, usize) {
        (self.experts, self.n, self.k)
    }

    /// The dtype that the tiles hold.
    pub fn dtype(&self) -> DType {
        match *self.data {
            PackedData::F32(_) => DType::F32,
            PackedData::Bf16(_) => DType::BF16,
        }
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        match &*self.data {
            PackedData::F32(d) => d.len() * 4,
            PackedData::Bf16(d) => d.len() * 2,
        }
    }

    /// Panel `j` of expert `e`.
    pub(crate) fn panel(&self, e: usize, j: usize) -> Panel<'_> {
        let panels = self.n.div_ceil(NR);
        match &*self.data {
            PackedData::F32(d) => {
                let len = self.k * NR;
                Panel::F32(&d[(e * panels + j) * len..][..len])
            }
            PackedData::Bf16(d) => {
                let len = self.k.div_ceil(2) * NR * 2;
                Panel::Bf16(&d[(e * panels + j) * len..][..len])
            }
        }
    }
}

fn pack_f32<T: Elem>(w: &[T], experts: usize, n: usize, k: usize) -> Vec<f32> {
    let panels = n.div_ceil(NR);
    let mut out = vec![0f32; experts * panels * k * NR];
    if k == 0 {
        return out;
    }
    let shared = SendPtr::new(&mut out);
    parallel(experts * panels, w.len() > 1 << 16, |i| {
        // SAFETY: panel `i` is written by this task alone.
        let dst = unsafe { shared.slice(i * k * NR, k * NR) };
        View::rows(w, i / panels * n * k, k).transposed().pack_panel(i % panels * NR, n, k, dst);
    });
    out
}

fn pack_bf16(w: &[bf16], experts: usize, n: usize, k: usize) -> Vec<bf16> {
    let panels = n.div_ceil(NR);
    let len = k.div_ceil(2) * NR * 2;
    let mut out = vec![bf16::ZERO; experts * panels * len];
    if k == 0 {
        return out;
    }
    let shared = SendPtr::new(&mut out);
    parallel(experts * panels, w.len() > 1 << 16, |i| {
        // SAFETY: panel `i` is written by this task alone.
        let dst = unsafe { shared.slice(i * len, len) };
        let (e, j0) = (i / panels, i % panels * NR);
        for j in 0..(n - j0).min(NR) {
            for (p, &v) in w[(e * n + j0 + j) * k..][..k].iter().enumerate() {
                dst[(p / 2 * NR + j) * 2 + p % 2] = v;
            }
        }
    });
    out
}
