//! Tensors of a pickle: a piece of a storage, with shape and strides.

use candle_core::{DType, Result};

use super::super::MAX_RANK;
use super::super::text::{refuse, shown};
use super::globals::{Global, Rebuild};
use super::machine::{Id, Machine, Value};

/// Numbers that stand in an entry of the archive.
#[derive(Debug)]
pub(super) struct Storage {
    /// Name of the entry.
    pub(super) key: Id,
    /// `None` for plain bytes, and for types that are not read.
    pub(super) dtype: Option<DType>,
    /// Numbers, or bytes where they are plain.
    pub(super) count: u64,
}

/// A tensor as the pickle says it; nothing of it is held against the archive yet.
#[derive(Debug)]
pub(super) struct RawTensor {
    /// Its place in the machine's list.
    pub(super) storage: u32,
    /// `None` where tensors of its type are not read.
    pub(super) dtype: Option<DType>,
    /// First number of it in the storage.
    pub(super) offset: u64,
    pub(super) shape: Vec<usize>,
    pub(super) strides: Vec<usize>,
}

/// A new tensor, or a value that is there already.
pub(super) enum Made {
    New(RawTensor),
    Old(Id),
}

/// `("storage", type, key, place, count)`
pub(super) fn storage(machine: &Machine<'_>, id: Id) -> Result<Storage> {
    let Value::Tuple(parts) = machine.value(id) else { return machine.wrong("a persistent id is no tuple") };
    let &[kind, class, key, _, count] = &**parts else { return machine.wrong("a persistent id has not five parts") };
    if machine.text(kind) != Some("storage") || machine.text(key).is_none() {
        return machine.wrong("a persistent id is not that of a storage");
    }
    let &Value::Global(Global::Storage(dtype)) = machine.value(class) else {
        return machine.wrong("a storage has no type of storage");
    };
    match machine.value(count) {
        &Value::Int(count) if count >= 0 => Ok(Storage { key, dtype, count: count as u64 }),
        _ => machine.wrong("a storage has no size"),
    }
}

/// Puts a tensor together from the arguments of a function of torch.
pub(super) fn rebuild(machine: &Machine<'_>, how: Rebuild, args: Id) -> Result<Made> {
    let Value::Tuple(args) = machine.value(args) else { return machine.wrong("a tensor is made of no tuple") };
    match (how, &**args) {
        (Rebuild::Parameter, &[tensor, ..]) => match machine.value(tensor) {
            Value::Tensor(_) => Ok(Made::Old(tensor)),
            _ => machine.wrong("a parameter is made of no tensor"),
        },
        (Rebuild::Subclass, &[function, _, args, _]) => match machine.value(function) {
            Value::Global(Global::Rebuild(how)) if *how != Rebuild::Subclass => rebuild(machine, *how, args),
            _ => machine.wrong("a tensor is made by no function of tensors"),
        },
        (Rebuild::Tensor, &[storage, offset, shape, strides, ..]) => {
            tensor(machine, storage, offset, [shape, strides], None)
        }
        (Rebuild::Untyped, &[storage, offset, shape, strides, _, _, dtype, ..]) => {
            tensor(machine, storage, offset, [shape, strides], Some(dtype))
        }
        _ => machine.wrong("a tensor lacks parts"),
    }
}

fn tensor(machine: &Machine<'_>, storage: Id, offset: Id, sizes: [Id; 2], dtype: Option<Id>) -> Result<Made> {
    let &Value::Storage(storage) = machine.value(storage) else { return machine.wrong("a tensor has no storage") };
    let dtype = match dtype.map(|id| machine.value(id)) {
        None => machine.storages.get(storage as usize).and_then(|s| s.dtype),
        Some(&Value::Global(Global::Dtype(dtype))) => dtype,
        Some(_) => return machine.wrong("a tensor has no type"),
    };
    let offset = match machine.value(offset) {
        &Value::Int(offset) if offset >= 0 => offset as u64,
        _ => return machine.wrong("a tensor starts nowhere"),
    };
    let [Some(shape), Some(strides)] = sizes.map(|id| lengths(machine, id)) else {
        return machine.wrong("a tensor has no shape");
    };
    if shape.len() != strides.len() || shape.len() > MAX_RANK {
        return machine.wrong("the axes of a tensor do not fit");
    }
    Ok(Made::New(RawTensor { storage, dtype, offset, shape, strides }))
}

/// A tuple (or `torch.Size` of one) of whole numbers.
fn lengths(machine: &Machine<'_>, id: Id) -> Option<Vec<usize>> {
    let parts: &[Id] = match machine.value(id) {
        Value::Tuple(parts) => parts,
        Value::List(parts) => parts,
        Value::Object(object) => match machine.value(object.args) {
            Value::Tuple(args) => match args.first().map(|id| machine.value(*id)) {
                Some(Value::Tuple(parts)) => parts,
                Some(Value::List(parts)) => parts,
                _ => return None,
            },
            _ => return None,
        },
        _ => return None,
    };
    // No shape has more axes; a longer one is refused by its length.
    let parts = &parts[..parts.len().min(MAX_RANK + 1)];
    parts
        .iter()
        .map(|id| match machine.value(*id) {
            &Value::Int(n) => usize::try_from(n).ok(),
            _ => None,
        })
        .collect()
}

/// Where a tensor lies in its storage.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Extent {
    /// Values of the tensor.
    pub(super) values: usize,
    /// First byte in the storage.
    pub(super) start: u64,
    /// Its values follow each other.
    pub(super) plain: bool,
}

/// Holds a tensor against the size of its storage in bytes.
///
/// # Errors
/// It reaches beyond it, or has more values than it.
pub(super) fn extent(label: &str, name: &str, tensor: &RawTensor, dtype: DType, bytes: u64) -> Result<Extent> {
    let RawTensor { offset, shape, strides, .. } = tensor;
    let size = dtype.size_in_bytes() as u64;
    let values = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
    // Numbers from the first to the last, both included.
    let reach = shape
        .iter()
        .zip(strides)
        .try_fold(1u64, |n, (&d, &s)| n.checked_add((d.saturating_sub(1) as u64).checked_mul(s as u64)?));
    let (Some(values), Some(reach)) = (values, reach) else {
        refuse!("{label}: tensor {}: shape {shape:?} with strides {strides:?} is too large to exist", shown(name));
    };
    let reach = if values == 0 { 0 } else { reach };
    let end = offset.checked_add(reach).and_then(|end| end.checked_mul(size));
    let held = bytes / size;
    if end.is_none_or(|end| end > bytes) || values as u64 > held {
        refuse!(
            "{label}: tensor {}: shape {shape:?} with strides {strides:?} from {offset} on does not fit a storage of {held} \
             values: download the file again, or make the tensor contiguous before it is saved",
            shown(name)
        );
    }
    let mut expected = 1;
    let plain = values == 0
        || shape.iter().zip(strides).rev().all(|(&d, &s)| {
            let fits = d == 1 || s == expected;
            expected *= d;
            fits
        });
    Ok(Extent { values, start: offset * size, plain })
}
