//! The driver: a list of independent products, packed and computed in one parallel region of two stages.
//!
//! A grouped linear, its gradients and a plain linear are all such lists, so there is one driver.

use std::ops::Range;

use candle_core::DType;

use super::pack::{Elem, Form, Packed, View, lanes, rows_of};
use super::pool::{Stage, stages};
use super::tile::{Halves, MR, NR, Out, Panel, most_rows, tiles};
use super::{Scratch, SendPtr, isa};

/// The right-hand side of a product, `[k, n]`.
pub(crate) enum Rhs<'a, T> {
    /// Packed by the driver on each call.
    Plain(View<'a, T>),
    /// Expert `1` of weights that were packed at load.
    Packed(&'a Packed, usize),
}

impl<T> Rhs<'_, T> {
    /// Panels of an `n` columns wide product.
    fn panels(&self, n: usize) -> usize {
        match self {
            Self::Plain(_) => n.div_ceil(NR),
            Self::Packed(packed, _) => packed.panels(),
        }
    }

    /// The columns of panel `j`.
    fn columns(&self, j: usize, n: usize) -> Range<usize> {
        match self {
            Self::Plain(_) => j * NR..(j * NR + NR).min(n),
            Self::Packed(packed, _) => packed.columns(j),
        }
    }
}

/// `C = A · B (+ bias)`: `A` is `[m, k]`, `B` is `[k, n]`, and row `i` of `C` starts at `c + i * ld` of the output buffer.
pub(crate) struct Product<'a, A, B> {
    pub m: usize,
    pub n: usize,
    pub k: usize,
    pub a: View<'a, A>,
    pub b: Rhs<'a, B>,
    pub bias: Option<&'a [f32]>,
    pub c: usize,
    pub ld: usize,
}

/// Blocks of rows that a task keeps a panel of `B` for.
pub(crate) const CHUNK: usize = 36;
/// Multiply-adds below which threads do not pay.
pub(crate) const WORTH: usize = 1 << 15;
/// Rows from which a task widens a bf16 panel once instead of in each tile.
pub(crate) const WIDEN: usize = 2 * MR;

/// Splits `m` rows evenly into tiles: block `i` of `blocks` is `(start, rows)`.
pub(crate) fn block(m: usize, blocks: usize, i: usize) -> (usize, usize) {
    let (base, extra) = (m / blocks, m % blocks);
    (i * base + i.min(extra), base + usize::from(i < extra))
}

/// Computes every product into `c`. Outputs of different products must not overlap; each range is checked.
///
/// bf16 rows meet packed bf16 weights in pairs where the processor multiplies those, and weights in blocks meet rows of whole
/// numbers; everything else is computed in f32.
pub(crate) fn run<A: Elem, B: Elem>(products: &[Product<'_, A, B>], c: &mut [f32]) {
    let isa = isa();
    let most = most_rows(isa);
    let form = |p: &Product<'_, A, B>| match p.b {
        Rhs::Packed(packed, _) => packed.form::<A>(isa),
        Rhs::Plain(_) => Form::F32,
    };
    // Offsets of each product's packed operands, and the tasks: (product, block of A to pack) or (product, panel of B).
    let mut a_at = Vec::with_capacity(products.len());
    let mut b_at = Vec::with_capacity(products.len());
    let (mut a_len, mut b_len, mut work) = (0, 0, 0usize);
    let mut packing = Vec::new();
    let mut tasks = Vec::new();
    for (index, p) in products.iter().enumerate() {
        a_at.push(a_len);
        b_at.push(b_len);
        if p.m == 0 || p.n == 0 {
            continue;
        }
        assert!(p.ld >= p.n && p.c + (p.m - 1) * p.ld + p.n <= c.len(), "product {index} writes beyond its output");
        work = work.saturating_add(p.m * p.n * p.k);
        let (blocks, panels) = (p.m.div_ceil(most), p.b.panels(p.n));
        a_len += p.m * lanes(p.k, form(p));
        // Without depth (an expert without tokens, in a weight gradient) there is nothing to pack, and C is zero.
        if p.k > 0 {
            packing.extend((0..blocks).map(|i| (index, i, false)));
        }
        if let Rhs::Plain(_) = p.b {
            b_len += panels * p.k * NR;
            packing.extend((0..if p.k > 0 { panels } else { 0 }).map(|j| (index, j, true)));
        }
        for first in (0..blocks).step_by(CHUNK) {
            let last = (first + CHUNK).min(blocks);
            tasks.extend((0..panels).map(|j| (index, first..last, j)));
        }
    }
    let mut a_packed = Scratch::new(a_len);
    let mut b_packed = Scratch::new(b_len);
    let (a_out, b_out, c_out) = (SendPtr::new(&mut a_packed), SendPtr::new(&mut b_packed), SendPtr::new(c));

    let pack = |t: usize| {
        let (index, i, is_panel) = packing[t];
        let p = &products[index];
        if is_panel {
            if let Rhs::Plain(view) = &p.b {
                // SAFETY: panel `i` of product `index` is written by this task alone.
                let dst = unsafe { b_out.slice(b_at[index] + i * p.k * NR, p.k * NR) };
                view.pack_panel(i * NR, p.n, p.k, dst);
            }
        } else {
            let (start, rows) = block(p.m, p.m.div_ceil(most), i);
            let depth = lanes(p.k, form(p));
            // SAFETY: the blocks of a product are disjoint, and each is written by one task.
            let dst = unsafe { a_out.slice(a_at[index] + start * depth, rows * depth) };
            p.a.pack(isa, form(p), (start, rows), p.k, dst);
        }
    };
    let multiply = |t: usize| {
        let (index, blocks, j) = &tasks[t];
        let (index, j) = (*index, *j);
        let p = &products[index];
        let (columns, depth) = (p.b.columns(j, p.n), lanes(p.k, form(p)));
        let mut wide = Scratch::new(0);
        let panel = match &p.b {
            // SAFETY: the stage before has written all panels, and nobody writes them now.
            Rhs::Plain(_) => Panel::F32(Halves::of(unsafe { b_out.shared(b_at[index] + j * p.k * NR, p.k * NR) })),
            Rhs::Packed(packed, expert) => {
                let panel = packed.panel(*expert, j);
                if form(p) == Form::F32 && packed.dtype() == DType::BF16 && blocks.len() * most > WIDEN {
                    wide = Scratch::new(p.k * NR);
                    panel.widen(isa, p.k, &mut wide)
                } else {
                    panel
                }
            }
        };
        let place = |i: usize| {
            let (start, rows) = block(p.m, p.m.div_ceil(most), blocks.start + i);
            (start, rows, p.c + start * p.ld + columns.start)
        };
        let each = |i: usize| {
            let (start, rows, at) = place(i);
            // SAFETY: the stage before has written all rows, and nobody writes them now; `at` lies inside `c`, see below.
            let (a, ptr) = unsafe { (a_out.shared(a_at[index] + start * depth, rows * depth), c_out.at(at)) };
            (rows, rows_of(a, form(p)), Out { ptr, ld: p.ld, n: columns.len(), accumulate: false })
        };
        // SAFETY: `at + (rows - 1) * ld + columns` lies inside `c` (asserted above for the whole product), and this task alone
        // writes these rows and columns. Only single rows become references below.
        unsafe { tiles(isa, p.k, panel, blocks.len(), each) };
        if let Some(bias) = p.bias {
            for (_, rows, at) in (0..blocks.len()).map(place) {
                for row in 0..rows {
                    // SAFETY: as above.
                    let c = unsafe { c_out.slice(at + row * p.ld, columns.len()) };
                    c.iter_mut().zip(&bias[columns.clone()]).for_each(|(c, b)| *c += b);
                }
            }
        }
        drop(wide);
    };
    stages(work > WORTH, &[Stage { count: packing.len(), task: &pack }, Stage { count: tasks.len(), task: &multiply }]);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::{Isa, with_isa, with_threads};
    use crate::rng::Rng;
    use candle_core::{Device, Tensor};
    use half::bf16;

    fn random(n: usize, seed: u64) -> Vec<f32> {
        let mut rng = Rng::new(seed);
        // Values that bf16 holds exactly, so that bf16 weights have the same reference.
        (0..n).map(|_| bf16::from_f64(rng.normal()).to_f32()).collect()
    }

    fn product<A: Elem>(
        a: &[A],
        (m, n, k): (usize, usize, usize),
        packed: Option<&Packed>,
        threads: usize,
    ) -> Vec<f32> {
        let (b, bias) = (random(n * k, 2), random(n, 3));
        let mut c = vec![f32::NAN; m * n];
        let b = match packed {
            Some(packed) => Rhs::Packed(packed, 0),
            None => Rhs::Plain(View::rows(&b, 0, k).transposed()),
        };
        let p = Product { m, n, k, a: View::rows(a, 0, k), b, bias: Some(&bias), c: 0, ld: n };
        with_threads(threads, || run(&[p], &mut c));
        c
    }

    const SHAPES: [(usize, usize, usize); 10] = [
        (1, 1, 1),
        (3, 33, 7),
        (14, 32, 16),
        (15, 31, 5),
        (29, 70, 33),
        (40, 17, 64),
        (5, 40, 0),
        (2, 64, 300),
        (30, 50, 700),
        (13, 20, 513),
    ];
    const ISAS: [Isa; 4] = [Isa::Portable, Isa::Avx2, Isa::Avx512, Isa::Avx512Bf16];

    #[test]
    fn products_agree_with_f64_on_every_instruction_set() {
        for (isa, (m, n, k)) in ISAS.into_iter().flat_map(|isa| SHAPES.map(|shape| (isa, shape))) {
            let (a, b, bias) = (random(m * k, 1), random(n * k, 2), random(n, 3));
            let narrow: Vec<bf16> = a.iter().map(|v| bf16::from_f32(*v)).collect();
            let weight = Tensor::from_vec(b.clone(), (n, k), &Device::Cpu).unwrap();
            let pack = |dtype| Packed::new(&weight.to_dtype(dtype).unwrap()).unwrap();
            let (wide, pairs) = (pack(DType::F32), pack(DType::BF16));
            for packed in [None, Some(&wide), Some(&pairs)] {
                let shape = (m, n, k);
                let results = with_isa(isa, || [product(&a, shape, packed, 2), product(&narrow, shape, packed, 2)]);
                for (c, (i, j)) in results.iter().flat_map(|c| (0..m * n).map(move |at| (c, (at / n, at % n)))) {
                    let exact: f64 = (0..k).map(|p| f64::from(a[i * k + p]) * f64::from(b[j * k + p])).sum();
                    let (got, want) = (f64::from(c[i * n + j]), exact + f64::from(bias[j]));
                    assert!((got - want).abs() < 1e-4, "{isa:?} {m}x{n}x{k} at {i},{j}: {got} {want}");
                }
            }
        }
    }

    #[test]
    fn a_row_has_the_same_bits_alone_and_in_a_batch_on_any_number_of_threads() {
        let (m, n, k) = (37, 65, 530);
        let weight = Tensor::from_vec(random(n * k, 2), (n, k), &Device::Cpu).unwrap();
        let packed = Packed::new(&weight).unwrap();
        let pairs = Packed::new(&weight.to_dtype(DType::BF16).unwrap()).unwrap();
        let a = random(m * k, 1);
        let narrow: Vec<bf16> = a.iter().map(|v| bf16::from_f32(*v)).collect();
        for isa in ISAS {
            with_isa(isa, || {
                let all = product(&a, (m, n, k), None, 1);
                assert_eq!(all, product(&a, (m, n, k), None, 2));
                assert_eq!(all, product(&a, (m, n, k), Some(&packed), 2));
                let all_pairs = product(&narrow, (m, n, k), Some(&pairs), 2);
                for rows in [1, 2, 3, 13, 15, 29] {
                    assert_eq!(all[..rows * n], product(&a, (rows, n, k), None, 2)[..], "{isa:?} {rows} rows");
                    assert_eq!(all[..rows * n], product(&a, (rows, n, k), Some(&packed), 2)[..], "{isa:?} {rows} rows");
                    let rows_pairs = product(&narrow, (rows, n, k), Some(&pairs), 2);
                    assert_eq!(all_pairs[..rows * n], rows_pairs[..], "{isa:?} {rows} rows, bf16");
                }
            });
        }
    }
}
