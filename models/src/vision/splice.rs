//! Pictures between words.

use candle_core::Tensor;
use moesaic_kernels::Tokens;

use super::{Error, Result, VisionModel};
use crate::decoder::{Context, Decoder, Segment, Side, real_tokens};

/// The id that stands for a picture in models whose vocabulary has none for it: MoE-LLaVA's and CuMo's -200.
pub const PICTURE: u32 = u32::MAX;

/// The label of a token that does not count.
const IGNORED: i64 = -100;

/// Ids in which pictures are marked, and the pictures that belong there.
///
/// Each mark ([`VisionModel::picture_token`]) is replaced by one picture, in order; or there is a mark for each of the
/// pictures' tokens, as the processors of `transformers` expand it: then the tokens take those places in order.
#[derive(Clone, Copy, Debug, Default)]
pub struct Row<'a> {
    /// Ids with marks.
    pub ids: &'a [u32],
    /// A label for each id, or none at all; negative ones do not count, and those of marks never do.
    pub labels: &'a [i64],
    /// The row's pictures, `[1, t, H]` each ([`Encoded::pictures`](super::Encoded::pictures)).
    pub pictures: &'a [Tokens],
}

/// Rows that the decoder can take.
#[derive(Clone, Debug)]
pub struct Spliced {
    /// `[b, T, H]`
    pub embeds: Tensor,
    /// Padding, and which token comes from where.
    pub context: Context,
    /// A label for each token, `[b * T]`, -100 for pictures, padding and ids without one.
    pub labels: Vec<i64>,
}

/// A part of a row.
pub(crate) enum Piece<'a> {
    /// From the first id up to the second.
    Text(usize, usize),
    /// A picture, or a part of the row's pictures.
    Picture(std::borrow::Cow<'a, Tokens>),
}

impl VisionModel {
    /// Embeds rows of ids and pictures as one batch. Pad at the left to generate; at the right, as the references train, only
    /// for losses. Rows are cut behind `longest` tokens, pictures counted.
    ///
    /// # Errors
    /// A row without a token, with more marks than pictures or the reverse, with labels that are not one for each id, with an
    /// id that is not in the vocabulary, or with pictures of another width.
    pub fn splice(&self, rows: &[Row<'_>], side: Side, longest: Option<usize>) -> Result<Spliced> {
        let h = self.decoder().config().hidden_size;
        Spliced::new(self.decoder(), rows, (side, longest), |i, row| pieces(i, row, self.picture_token(), h))
    }
}

impl Spliced {
    /// The rows whose parts `pieces` gives.
    pub(crate) fn new<'a>(
        decoder: &Decoder,
        rows: &[Row<'a>],
        (side, longest): (Side, Option<usize>),
        pieces: impl Fn(usize, &Row<'a>) -> Result<Vec<Piece<'a>>>,
    ) -> Result<Self> {
        let longest = longest.map(|n| n.max(1));
        let (mut all, mut labels) = (Vec::with_capacity(rows.len()), Vec::with_capacity(rows.len()));
        for (i, row) in rows.iter().enumerate() {
            if !row.labels.is_empty() && row.labels.len() != row.ids.len() {
                return Err(Error::Labels { row: i, labels: row.labels.len(), ids: row.ids.len() });
            }
            let pieces = pieces(i, row)?;
            let mut own = Vec::new();
            for piece in &pieces {
                match piece {
                    Piece::Text(from, to) => match row.labels.get(*from..*to) {
                        Some(labels) => own.extend_from_slice(labels),
                        None => own.extend(std::iter::repeat_n(IGNORED, to - from)),
                    },
                    Piece::Picture(tokens) => own.extend(std::iter::repeat_n(IGNORED, tokens.embeds.dim(1)?)),
                }
            }
            if own.is_empty() {
                return Err(Error::Empty { row: i });
            }
            own.truncate(longest.unwrap_or(usize::MAX));
            labels.push(own);
            all.push(pieces);
        }
        let segments: Vec<Vec<Segment<'_>>> = all
            .iter()
            .zip(rows)
            .map(|(pieces, row)| {
                let segment = |piece| match piece {
                    &Piece::Text(from, to) => Segment::Ids(row.ids.get(from..to).unwrap_or_default()),
                    Piece::Picture(tokens) => Segment::Tokens(tokens),
                };
                pieces.iter().map(segment).collect()
            })
            .collect();
        let (embeds, context) = decoder.embed_rows_at(&segments, side, longest)?;
        let longest = embeds.dim(1)?;
        let labels = labels.into_iter().flat_map(|own| {
            let padding = std::iter::repeat_n(IGNORED, longest.saturating_sub(own.len()));
            match side {
                Side::Left => padding.chain(own).collect::<Vec<_>>(),
                Side::Right => own.into_iter().chain(padding).collect(),
            }
        });
        Ok(Self { labels: labels.collect(), embeds, context })
    }
}

/// The parts of a row, in order. Pictures come without what their masks leave out.
pub(crate) fn pieces<'a>(row: usize, of: &Row<'a>, mark: u32, h: usize) -> Result<Vec<Piece<'a>>> {
    let pictures = of.pictures.iter().map(|tokens| match tokens.mask {
        None => Ok(std::borrow::Cow::Borrowed(tokens)),
        Some(_) => Ok(std::borrow::Cow::Owned(Tokens::new(real_tokens(tokens, h)?, tokens.modality))),
    });
    let pictures = pictures.collect::<candle_core::Result<Vec<_>>>()?;
    let tokens = pictures.iter().map(|p| p.embeds.dim(1)).sum::<candle_core::Result<usize>>()?;
    let marks = of.ids.iter().filter(|&&id| id == mark).count();
    if marks != pictures.len() && marks != tokens {
        return Err(Error::Marks { row, marks, pictures: pictures.len(), tokens });
    }
    let mut all = Vec::new();
    let (mut from, mut seen) = (0, 0);
    let ended = |all: &mut Vec<Piece<'a>>, from: usize, to: usize| {
        if from < to {
            all.push(Piece::Text(from, to));
        }
    };
    if marks == pictures.len() {
        let mut pictures = pictures.into_iter();
        for (i, _) in of.ids.iter().enumerate().filter(|(_, id)| **id == mark) {
            ended(&mut all, from, i);
            all.extend(pictures.next().map(Piece::Picture));
            from = i + 1;
        }
        ended(&mut all, from, of.ids.len());
        return Ok(all);
    }
    let embeds: Vec<&Tensor> = pictures.iter().map(|p| &p.embeds).collect();
    let (joined, modality) = match pictures.first() {
        Some(first) => (Tensor::cat(&embeds, 1)?, first.modality),
        None => return Err(Error::Marks { row, marks, pictures: 0, tokens }),
    };
    for run in of.ids.chunk_by(|a, b| (*a == mark) == (*b == mark)) {
        let to = from + run.len();
        if run.first() == Some(&mark) {
            let part = joined.narrow(1, seen, run.len())?.contiguous()?;
            all.push(Piece::Picture(std::borrow::Cow::Owned(Tokens::new(part, modality))));
            seen += run.len();
        } else {
            all.push(Piece::Text(from, to));
        }
        from = to;
    }
    Ok(all)
}

/// Gives the pictures of a batch to its rows, in order: to each as many as it has marks, or as the marks for their tokens
/// cover.
///
/// # Errors
/// There are more marks than pictures, or the reverse; the error names the first row that gets too few, or the last one.
pub fn share<'p>(rows: &[&[u32]], mark: u32, pictures: &'p [Tokens]) -> Result<Vec<&'p [Tokens]>> {
    let counts: Vec<usize> = rows.iter().map(|ids| ids.iter().filter(|&&id| id == mark).count()).collect();
    let sizes = pictures.iter().map(|p| p.embeds.dim(1)).collect::<candle_core::Result<Vec<_>>>()?;
    let all: usize = counts.iter().sum();
    let single = all == pictures.len() || all != sizes.iter().sum::<usize>();
    let mut rest = pictures;
    let mut shares = Vec::with_capacity(rows.len());
    for (row, &marks) in counts.iter().enumerate() {
        let first = pictures.len() - rest.len();
        let n = if single {
            marks
        } else {
            // As many as it takes to fill the row's places.
            let mut filled = 0;
            sizes.get(first..).unwrap_or_default().iter().take_while(|n| (filled < marks, filled += **n).0).count()
        };
        let last = row + 1 == counts.len();
        let Some((own, others)) = rest.split_at_checked(n).filter(|(_, others)| !last || others.is_empty()) else {
            let tokens = sizes.get(first..).unwrap_or_default().iter().sum();
            return Err(Error::Marks { row, marks, pictures: rest.len(), tokens });
        };
        shares.push(own);
        rest = others;
    }
    Ok(shares)
}
