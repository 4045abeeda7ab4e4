//! Tests of panels.

use candle_core::{DType, Device, Result, Tensor};

use super::*;
use crate::cpu::tile::{NR, Panel};

#[test]
fn gate_and_up_start_panels_of_their_own() -> Result<()> {
    for dtype in [DType::F32, DType::BF16] {
        let (n, k) = (2 * 40, 3);
        let weight = Tensor::arange(0f32, (n * k) as f32, &Device::Cpu)?.reshape((n, k))?.to_dtype(dtype)?;
        let packed = Packed::gated(&weight)?;
        assert_eq!((packed.panels(), packed.dtype(), packed.dims()), (4, dtype, (1, n, k)));
        assert_eq!([0, 1, 2, 3].map(|j| packed.columns(j)), [0..32, 32..40, 40..72, 72..80]);
        let mut row = vec![0f32; k];
        for i in 0..n {
            packed.row(0, i, &mut row);
            (0..k).for_each(|p| assert_eq!(row[p], (i * k + p) as f32));
        }
        let value = |j: usize, column: usize, p: usize| match packed.panel(0, j) {
            Panel::F32(b) => [b.left, b.right][column / HALF][p * HALF + column % HALF],
            Panel::Bf16(b) => {
                f32::from_bits([b.left, b.right][column / HALF][p / 2 * HALF + column % HALF] >> (16 * (p % 2)) << 16)
            }
            Panel::Quant(_) => f32::NAN,
        };
        for j in 0..4 {
            for (column, row) in packed.columns(j).enumerate() {
                (0..k).for_each(|p| assert_eq!(value(j, column, p), (row * k + p) as f32));
            }
            (packed.columns(j).len()..NR).for_each(|column| assert_eq!(value(j, column, k - 1), 0.0));
        }
        assert!(Packed::gated(&weight.narrow(0, 0, 3)?).is_err());
    }
    Ok(())
}
