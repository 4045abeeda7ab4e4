//! The classes and functions that a pickle may name. None is ever called: the parts of tensors are understood, plain data is kept
//! as what it was said to be, and everything else is refused.

use candle_core::DType;

/// How a tensor is put together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rebuild {
    /// `(storage, offset, shape, strides, ..)`
    Tensor,
    /// The same, with its type as the seventh argument.
    Untyped,
    /// `(tensor, ..)`
    Parameter,
    /// `(function, type, arguments, state)`
    Subclass,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Global {
    /// `dict` and what is used like it.
    Dict,
    Rebuild(Rebuild),
    /// A type of storage with its type of numbers; `None` for plain bytes.
    Storage(Option<DType>),
    Dtype(Option<DType>),
    /// A class of plain data.
    Plain,
}

/// Packages whose objects stand beside weights in the checkpoints of fairseq and Lightning.
const PACKAGES: [&str; 8] = [
    "avhubert",
    "fairseq",
    "lightning",
    "lightning_fabric",
    "lightning_utilities",
    "omegaconf",
    "pytorch_lightning",
    "torchmetrics",
];

/// Single classes of plain data.
const PLAIN: [(&str, &[&str]); 14] = [
    ("__builtin__", BUILTINS),
    ("_codecs", &["encode"]),
    ("argparse", &["Namespace"]),
    ("builtins", BUILTINS),
    ("collections", &["Counter", "deque"]),
    ("datetime", &["date", "datetime", "timedelta", "timezone"]),
    ("numpy", &["dtype", "ndarray"]),
    ("numpy._core.multiarray", &["_reconstruct", "scalar"]),
    ("numpy.core.multiarray", &["_reconstruct", "scalar"]),
    ("pathlib", &["Path", "PosixPath", "PurePath", "PurePosixPath", "WindowsPath"]),
    ("torch", &["Size", "Tensor", "device"]),
    ("torch.nn.modules.container", &["ParameterDict", "ParameterList"]),
    ("torch.nn.parameter", &["Buffer", "Parameter"]),
    ("typing", &["Any", "Dict", "List", "Optional", "Tuple", "Union"]),
];
const BUILTINS: &[&str] = &[
    "bool",
    "bytearray",
    "bytes",
    "complex",
    "float",
    "frozenset",
    "int",
    "list",
    "object",
    "range",
    "set",
    "slice",
    "str",
    "tuple",
];

/// What the name stands for; `None` for what is refused.
pub(super) fn global(module: &str, name: &str) -> Option<Global> {
    let rebuild = |how| Some(Global::Rebuild(how));
    match (module, name) {
        ("collections", "OrderedDict" | "defaultdict") | ("builtins" | "__builtin__", "dict") => Some(Global::Dict),
        ("torch._utils", "_rebuild_tensor" | "_rebuild_tensor_v2") => rebuild(Rebuild::Tensor),
        ("torch._utils", "_rebuild_tensor_v3") => rebuild(Rebuild::Untyped),
        ("torch._utils", "_rebuild_parameter" | "_rebuild_parameter_with_state") => rebuild(Rebuild::Parameter),
        ("torch._tensor", "_rebuild_from_type_v2") => rebuild(Rebuild::Subclass),
        ("torch.storage" | "torch", "UntypedStorage") => Some(Global::Storage(None)),
        ("torch", _) if name.ends_with("Storage") => match name.trim_end_matches("Storage") {
            kind @ ("BFloat16" | "Bool" | "Byte" | "Char" | "ComplexDouble" | "ComplexFloat" | "Double" | "Float"
            | "Half" | "Int" | "Long" | "QInt32" | "QInt8" | "QUInt8" | "Short") => {
                Some(Global::Storage(kind_of(kind)))
            }
            _ => None,
        },
        ("torch", _) if dtype(name).is_some() => dtype(name).map(Global::Dtype),
        _ => {
            let package = module.split('.').next().unwrap_or(module);
            let listed = PLAIN.iter().any(|(of, names)| *of == module && names.contains(&name));
            (listed || PACKAGES.contains(&package)).then_some(Global::Plain)
        }
    }
}

/// The type of numbers of a storage, where tensors of it can be read.
fn kind_of(kind: &str) -> Option<DType> {
    Some(match kind {
        "Float" => DType::F32,
        "Double" => DType::F64,
        "Half" => DType::F16,
        "BFloat16" => DType::BF16,
        "Long" => DType::I64,
        "Int" => DType::I32,
        "Short" => DType::I16,
        "Byte" | "Bool" => DType::U8,
        _ => return None,
    })
}

/// The types that torch names; inside, `None` where tensors of it cannot be read.
fn dtype(name: &str) -> Option<Option<DType>> {
    Some(match name {
        "float32" | "float" => Some(DType::F32),
        "float64" | "double" => Some(DType::F64),
        "float16" | "half" => Some(DType::F16),
        "bfloat16" => Some(DType::BF16),
        "int64" | "long" => Some(DType::I64),
        "int32" | "int" => Some(DType::I32),
        "int16" | "short" => Some(DType::I16),
        "uint8" | "bool" => Some(DType::U8),
        "uint32" => Some(DType::U32),
        "int8" | "complex64" | "complex128" | "float8_e4m3fn" | "float8_e5m2" | "uint16" | "uint64" => None,
        _ => return None,
    })
}
