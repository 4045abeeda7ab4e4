//! How the values of a tensor lie in their file, where it is not one after the other: GGUF files turn and cut some
//! tensors, torch saves views as they are.

use super::TensorInfo;

/// Where the values of a tensor are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Arrangement {
    /// One after the other.
    Plain,
    /// Rows of this many heads, in each the first row of the lower half, the first of the upper half, the second of the lower
    /// half, ... (neighbours turn together): they are to stand half a head apart.
    Pairs(usize),
    /// In pieces of one size, each from this byte of the file on.
    Pieces(Vec<u64>),
    /// The next along each axis so many values on.
    Strided(Vec<usize>),
    /// In two tensors.
    Woven(Box<Woven>),
    /// In FP8, with scales in this tensor, which lies plainly.
    Scaled(Box<TensorInfo>),
}

/// A tensor that is made of two stored ones, whatever their types and files: in each slice along the first axis stand the rows
/// of the one, then those of the other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Woven {
    pub slices: usize,
    pub parts: [Part; 2],
}

/// One of the two.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Part {
    /// The stored tensor, which lies plainly.
    pub info: TensorInfo,
    /// Rows of a slice.
    pub rows: usize,
    /// Rows and columns of a slice are exchanged where it is stored.
    pub turned: bool,
}

impl Arrangement {
    /// The first bytes of the pieces of a tensor that starts at `offset`.
    pub(super) fn pieces<'a>(&'a self, offset: &'a u64) -> &'a [u64] {
        match self {
            Self::Pieces(offsets) => offsets,
            _ => std::slice::from_ref(offset),
        }
    }

    /// Values from the first to the last one in the file, both included, where they lie scattered.
    pub(super) fn scattered(&self, shape: &[usize]) -> Option<usize> {
        let Self::Strided(strides) = self else { return None };
        let reach = shape.iter().zip(strides).map(|(&d, &s)| d.saturating_sub(1) * s).sum::<usize>();
        Some(if shape.contains(&0) { 0 } else { reach + 1 })
    }

    /// Copies the values of a tensor out of all that lie between its first and its last one.
    pub(super) fn gather<T: Copy>(&self, all: &[T], shape: &[usize], dst: &mut [T]) {
        let Self::Strided(strides) = self else { return };
        let (mut at, mut place) = (0, vec![0usize; shape.len()]);
        for dst in dst {
            *dst = all[at];
            for ((place, &length), &stride) in place.iter_mut().zip(shape).zip(strides).rev() {
                *place += 1;
                at += stride;
                if *place < length {
                    break;
                }
                at -= stride * length;
                *place = 0;
            }
        }
    }

    /// Puts `rows` that were read as they lie into their order.
    pub(super) fn restore<T: Copy>(&self, data: &mut [T], rows: usize) {
        let Self::Pairs(heads) = *self else { return };
        let (half, unit) = (rows / heads / 2, data.len() / rows.max(1));
        let mut head = Vec::with_capacity(2 * half * unit);
        for rows in data.chunks_exact_mut((2 * half * unit).max(1)) {
            head.clear();
            head.extend_from_slice(rows);
            for (i, row) in rows.chunks_exact_mut(unit.max(1)).enumerate() {
                let from = 2 * (i % half) + i / half;
                row.copy_from_slice(&head[from * unit..][..unit]);
            }
        }
    }

    /// The other way round: rows in their order as they lie in the file.
    pub(crate) fn pairs<T: Copy>(data: &mut [T], rows: usize, heads: usize) {
        let (half, unit) = (rows / heads / 2, data.len() / rows.max(1));
        let mut head = Vec::with_capacity(2 * half * unit);
        for rows in data.chunks_exact_mut((2 * half * unit).max(1)) {
            head.clear();
            head.extend_from_slice(rows);
            for (i, row) in rows.chunks_exact_mut(unit.max(1)).enumerate() {
                let from = half * (i % 2) + i / 2;
                row.copy_from_slice(&head[from * unit..][..unit]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_of_two_heads() {
        // Rows of two values; the lower half of a head is 0, 1, 2, the upper one 10, 11, 12.
        let plain: Vec<u32> =
            [0, 1, 2, 10, 11, 12, 100, 101, 102, 110, 111, 112].iter().flat_map(|&v| [v, v + 1000]).collect();
        let mut data = plain.clone();
        Arrangement::pairs(&mut data, 12, 2);
        let firsts: Vec<u32> = data.iter().copied().step_by(2).collect();
        assert_eq!(firsts, [0, 10, 1, 11, 2, 12, 100, 110, 101, 111, 102, 112]);
        Arrangement::Pairs(2).restore(&mut data, 12);
        assert_eq!(data, plain);
    }
}
