//! The compiled kernels: `tools/cuda.py` makes them.

/// A source, and what was made of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum File {
    Rows,
    Plan,
    Float,
    Grouped,
    Quant,
}

/// Where a kernel is.
pub(crate) fn file_of(kernel: &str) -> File {
    let name = kernel.trim_start_matches("moesaic_");
    match name.split_once('_').map_or(name, |(first, _)| first) {
        "gather" | "combine" | "spread" | "dots" => File::Rows,
        "bias" => File::Float,
        "linear" | "gated" | "weight" if name.ends_with("_f32") => File::Float,
        "linear" | "gated" if name.contains("_q") || name.contains("_e4m3") => File::Quant,
        "linear" | "gated" | "weight" => File::Grouped,
        _ => File::Plan,
    }
}

impl File {
    /// Machine code for compute capability 9.0.
    #[cfg(feature = "cuda")]
    pub fn cubin(self) -> &'static [u8] {
        match self {
            Self::Rows => include_bytes!("bin/rows.sm_90a.cubin"),
            Self::Plan => include_bytes!("bin/plan.sm_90a.cubin"),
            Self::Float => include_bytes!("bin/float.sm_90a.cubin"),
            Self::Grouped => include_bytes!("bin/grouped.sm_90a.cubin"),
            Self::Quant => include_bytes!("bin/quant.sm_90a.cubin"),
        }
    }

    /// What the driver compiles for others from 8.0 on.
    pub fn ptx(self) -> &'static str {
        match self {
            Self::Rows => include_str!("bin/rows.compute_80.ptx"),
            Self::Plan => include_str!("bin/plan.compute_80.ptx"),
            Self::Float => include_str!("bin/float.compute_80.ptx"),
            Self::Grouped => include_str!("bin/grouped.compute_80.ptx"),
            Self::Quant => include_str!("bin/quant.compute_80.ptx"),
        }
    }
}
