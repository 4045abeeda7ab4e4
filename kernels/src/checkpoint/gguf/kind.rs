//! What the tensors of a GGUF file are stored as.

use candle_core::DType;

use crate::blocks::BlockFormat;

/// Plain numbers or blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// F32, F16 or BF16.
    Float(DType),
    /// Quantised.
    Blocks(BlockFormat),
}

/// What is read, in the order in which messages list it.
pub(super) const SUPPORTED: [(u32, Kind); 9] = [
    (0, Kind::Float(DType::F32)),
    (1, Kind::Float(DType::F16)),
    (30, Kind::Float(DType::BF16)),
    (8, Kind::Blocks(BlockFormat::Q8_0)),
    (2, Kind::Blocks(BlockFormat::Q4_0)),
    (3, Kind::Blocks(BlockFormat::Q4_1)),
    (12, Kind::Blocks(BlockFormat::Q4K)),
    (13, Kind::Blocks(BlockFormat::Q5K)),
    (14, Kind::Blocks(BlockFormat::Q6K)),
];

/// Further types that files may have, by their number in ggml's `enum ggml_type`.
const OTHERS: [(u32, &str); 26] = [
    (6, "Q5_0"),
    (7, "Q5_1"),
    (9, "Q8_1"),
    (10, "Q2_K"),
    (11, "Q3_K"),
    (15, "Q8_K"),
    (16, "IQ2_XXS"),
    (17, "IQ2_XS"),
    (18, "IQ3_XXS"),
    (19, "IQ1_S"),
    (20, "IQ4_NL"),
    (21, "IQ3_S"),
    (22, "IQ2_S"),
    (23, "IQ4_XS"),
    (24, "I8"),
    (25, "I16"),
    (26, "I32"),
    (27, "I64"),
    (28, "F64"),
    (29, "IQ1_M"),
    (34, "TQ1_0"),
    (35, "TQ2_0"),
    (39, "MXFP4"),
    (40, "NVFP4"),
    (41, "Q1_0"),
    (4, "Q4_2"),
];

impl Kind {
    pub(super) fn of(number: u32) -> Option<Self> {
        SUPPORTED.iter().find(|(n, _)| *n == number).map(|(_, kind)| *kind)
    }

    pub(super) fn number(self) -> Option<u32> {
        SUPPORTED.iter().find(|(_, kind)| *kind == self).map(|(n, _)| *n)
    }

    /// Values that stand together, and the bytes that they take.
    pub(super) fn block(self) -> (usize, usize) {
        match self {
            Self::Float(dtype) => (1, dtype.size_in_bytes()),
            Self::Blocks(format) => (format.values(), format.bytes()),
        }
    }

    /// As ggml writes it.
    pub fn name(self) -> String {
        match self {
            Self::Float(dtype) => dtype.as_str().to_uppercase(),
            Self::Blocks(format) => format.name().to_uppercase(),
        }
    }
}

/// What a type that is not read is called.
pub(super) fn other(number: u32) -> String {
    match OTHERS.iter().find(|(n, _)| *n == number) {
        Some((_, name)) => (*name).to_string(),
        None => format!("number {number}, which this version does not know"),
    }
}

/// `F32, F16, ...`
pub(super) fn supported() -> String {
    SUPPORTED.map(|(_, kind)| kind.name()).join(", ")
}
