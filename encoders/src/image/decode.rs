//! Picture files: JPEG, PNG, WebP, GIF, BMP and TIFF to 8-bit RGB, upright.
//!
//! - The orientation that a camera wrote is applied.
//! - Transparency is dropped, as the published processors do; [`DecodeOptions::background`] lays the picture on a colour.
//! - Of 16 bits a value the upper 8 stay. Palettes, grey and CMYK become RGB.
//! - Of an animation the first frame is taken, and of a file with several pages the first page.

use std::cell::Cell;
use std::io::{Cursor, Read};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use image::error::ImageError as Decoding;
use image::{DynamicImage, ImageDecoder, ImageFormat, ImageReader};

use super::{ImageError, Limits, Picture};

/// How a file becomes a picture.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DecodeOptions {
    /// What a picture may measure.
    pub limits: Limits,
    /// The colour behind transparent pixels; absent to drop transparency and show the colours that pixels have under it.
    pub background: Option<[u8; 3]>,
}

impl Picture {
    /// Reads a file with the default limits.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, ImageError> {
        Self::open_with(path.as_ref(), &DecodeOptions::default())
    }

    /// Reads a file.
    pub fn open_with(path: &Path, options: &DecodeOptions) -> Result<Self, ImageError> {
        let unread = |source| ImageError::Read { path: path.to_path_buf(), source };
        let most = options.limits.file;
        let mut bytes = Vec::new();
        // One byte more than is admitted tells a file that is too long, whatever its length was said to be.
        let file = std::fs::File::open(path).map_err(unread)?;
        file.take(most.saturating_add(1)).read_to_end(&mut bytes).map_err(unread)?;
        Self::decode_named(&bytes, options, &path.display().to_string())
    }

    /// Decodes the bytes of a file.
    pub fn decode(bytes: &[u8], options: &DecodeOptions) -> Result<Self, ImageError> {
        Self::decode_named(bytes, options, "the picture")
    }

    fn decode_named(bytes: &[u8], options: &DecodeOptions, name: &str) -> Result<Self, ImageError> {
        let limits = options.limits;
        let too_large = |what: String| ImageError::TooLarge { name: name.into(), what };
        if bytes.len() as u64 > limits.file {
            return Err(too_large(format!("a file of more than {} bytes", limits.file)));
        }
        let format = image::guess_format(bytes).map_err(|_| ImageError::Unknown { name: name.into() })?;
        use ImageFormat::{Bmp, Gif, Jpeg, Png, Tiff, WebP};
        if !matches!(format, Bmp | Gif | Jpeg | Png | Tiff | WebP) {
            return Err(ImageError::Unknown { name: name.into() });
        }
        // The decoder of JPEG fills what is missing with grey instead of saying so.
        if format == Jpeg && !ends(bytes) {
            let reason = "the end of the picture is missing".into();
            return Err(ImageError::Damaged { name: name.into(), reason });
        }
        // Sizes inside, which the decoder of WebP takes memory for before it compares them with that in front.
        if format == WebP
            && let Some((w, h)) =
                webp_sizes(bytes.get(12..).unwrap_or_default()).into_iter().find(|&(w, h)| beyond(w, h, &limits))
        {
            return Err(too_large(sizes(w, h, &limits)));
        }
        guarded(|| Self::decoded(bytes, format, options, name))
            .unwrap_or_else(|| Err(ImageError::Damaged { name: name.into(), reason: "it contradicts itself".into() }))
    }

    fn decoded(bytes: &[u8], format: ImageFormat, options: &DecodeOptions, name: &str) -> Result<Self, ImageError> {
        let limits = options.limits;
        let mut reader = ImageReader::with_format(Cursor::new(bytes), format);
        let mut bounds = image::Limits::default();
        bounds.max_image_width = u32::try_from(limits.side).ok();
        bounds.max_image_height = u32::try_from(limits.side).ok();
        // Up to four values of two bytes, and as much for the decoder's own work.
        bounds.max_alloc = Some((limits.pixels as u64).saturating_mul(16).saturating_add(1 << 24));
        reader.limits(bounds);
        let refused = |error| refused(error, name);
        let mut decoder = reader.into_decoder().map_err(refused)?;
        let (width, height) = decoder.dimensions();
        let (w, h) = (width as usize, height as usize);
        if beyond(w, h, &limits) {
            return Err(ImageError::TooLarge { name: name.into(), what: sizes(w, h, &limits) });
        }
        let orientation = decoder.orientation().map_err(refused)?;
        let mut decoded = DynamicImage::from_decoder(decoder).map_err(refused)?;
        decoded.apply_orientation(orientation);
        let (w, h) = (decoded.width() as usize, decoded.height() as usize);
        Self::from_rgb(w, h, rgb(decoded, options.background))
    }
}

fn beyond(w: usize, h: usize, limits: &Limits) -> bool {
    w > limits.side || h > limits.side || w.checked_mul(h).is_none_or(|n| n > limits.pixels)
}

fn sizes(w: usize, h: usize, Limits { side, pixels, .. }: &Limits) -> String {
    format!("{w} x {h} pixels, where {side} a side and {pixels} in all are admitted")
}

/// Sizes of the pictures in the chunks of a WebP file, those of an animation included
/// ([container](https://developers.google.com/speed/webp/docs/riff_container), RFC 6386 and RFC 9649).
pub(crate) fn webp_sizes(chunks: &[u8]) -> Vec<(usize, usize)> {
    frames(chunks, 0)
}

fn frames(mut chunks: &[u8], depth: usize) -> Vec<(usize, usize)> {
    let mut all = Vec::new();
    while let Some((&[a, b, c, d, l0, l1, l2, l3], rest)) = chunks.split_first_chunk::<8>() {
        let length = u32::from_le_bytes([l0, l1, l2, l3]) as usize;
        let data = rest.get(..length).unwrap_or(rest);
        match &[a, b, c, d] {
            b"VP8 " => {
                if let Some(&[w0, w1, h0, h1]) = data.get(6..10) {
                    let side = |low, high| usize::from(u16::from_le_bytes([low, high]) & 0x3fff);
                    all.push((side(w0, w1), side(h0, h1)));
                }
            }
            b"VP8L" => {
                if let Some(&[b0, b1, b2, b3]) = data.get(1..5) {
                    let bits = u32::from_le_bytes([b0, b1, b2, b3]) as usize;
                    all.push(((bits & 0x3fff) + 1, (bits >> 14 & 0x3fff) + 1));
                }
            }
            b"ANMF" if depth == 0 => all.extend(frames(data.get(16..).unwrap_or_default(), 1)),
            _ => {}
        }
        // Chunks begin at even places.
        chunks = rest.get(length.saturating_add(length % 2)..).unwrap_or_default();
    }
    all
}

thread_local! {
    static DECODING: Cell<bool> = const { Cell::new(false) };
}

/// Whether this thread is decoding a picture. Decoders panic on some damaged files, which becomes an error: a program's panic
/// hook asks here whether to be quiet.
pub fn decoding() -> bool {
    DECODING.get()
}

/// Runs a decoder; `None` where it panicked. What it leaves behind is dropped unseen.
pub(crate) fn guarded<T>(run: impl FnOnce() -> T) -> Option<T> {
    let before = DECODING.replace(true);
    let result = catch_unwind(AssertUnwindSafe(run));
    DECODING.set(before);
    result.ok()
}

/// What a decoder refused, as what the user can do about it.
fn refused(error: Decoding, name: &str) -> ImageError {
    let name = name.to_string();
    // Messages of decoders may have several lines.
    let reason = moesaic_kernels::one_line(&error);
    match error {
        Decoding::Limits(_) => ImageError::TooLarge { name, what: reason },
        Decoding::Unsupported(_) => ImageError::Unsupported { name, reason },
        _ => ImageError::Damaged { name, reason },
    }
}

/// 8-bit RGB of any kind of pixels.
fn rgb(decoded: DynamicImage, background: Option<[u8; 3]>) -> Vec<u8> {
    fn high(values: &[u16]) -> impl Iterator<Item = u8> {
        values.iter().map(|v| (v >> 8) as u8)
    }
    let over = |rgba: &[u8]| -> Vec<u8> {
        let pixels = rgba.chunks_exact(4);
        match background {
            None => pixels.flat_map(|p| [p[0], p[1], p[2]]).collect(),
            Some(colour) => pixels
                .flat_map(|p| {
                    let alpha = u32::from(p[3]);
                    let mix = |top: u8, below: u8| {
                        ((u32::from(top) * alpha + u32::from(below) * (255 - alpha) + 127) / 255) as u8
                    };
                    [mix(p[0], colour[0]), mix(p[1], colour[1]), mix(p[2], colour[2])]
                })
                .collect(),
        }
    };
    match decoded {
        DynamicImage::ImageRgb8(image) => image.into_raw(),
        DynamicImage::ImageLuma8(image) => image.into_raw().into_iter().flat_map(|v| [v; 3]).collect(),
        DynamicImage::ImageLumaA8(image) => {
            over(&image.as_raw().chunks_exact(2).flat_map(|p| [p[0], p[0], p[0], p[1]]).collect::<Vec<u8>>())
        }
        DynamicImage::ImageRgba8(image) => over(image.as_raw()),
        DynamicImage::ImageLuma16(image) => high(image.as_raw()).flat_map(|v| [v; 3]).collect(),
        DynamicImage::ImageLumaA16(image) => {
            let values: Vec<u8> = high(image.as_raw()).collect();
            over(&values.chunks_exact(2).flat_map(|p| [p[0], p[0], p[0], p[1]]).collect::<Vec<u8>>())
        }
        DynamicImage::ImageRgb16(image) => high(image.as_raw()).collect(),
        DynamicImage::ImageRgba16(image) => over(&high(image.as_raw()).collect::<Vec<u8>>()),
        // Floats of TIFF, from 0 to 1.
        other => match background {
            None => other.into_rgb8().into_raw(),
            Some(_) => over(other.into_rgba8().as_raw()),
        },
    }
}

/// Whether a JPEG file has the mark of its end behind the start of its picture data. Thumbnails stand before, in segments
/// whose length is known.
fn ends(bytes: &[u8]) -> bool {
    let mut at = 2;
    while let Some(&[0xff, marker, high, low]) = bytes.get(at..at + 4) {
        match marker {
            // A filling byte before a marker.
            0xff => at += 1,
            // The start of a scan: data follow.
            0xda => return bytes[at..].windows(2).any(|pair| pair == [0xff, 0xd9]),
            // Markers without a segment.
            0x01 | 0xd0..=0xd7 => at += 2,
            _ => at += 2 + usize::from(u16::from_be_bytes([high, low])).max(2),
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::codecs::gif::GifEncoder;
    use image::{Delay, Frame, ImageBuffer, Luma, Rgb, RgbImage, Rgba, RgbaImage};

    /// Left half red, right half blue, the top left pixel white.
    fn sample() -> RgbImage {
        let mut picture = RgbImage::from_fn(12, 8, |x, _| Rgb(if x < 6 { [250, 0, 0] } else { [0, 0, 240] }));
        picture.put_pixel(0, 0, Rgb([255; 3]));
        picture
    }

    fn file(picture: impl Into<DynamicImage>, format: ImageFormat) -> Vec<u8> {
        let mut bytes = Cursor::new(Vec::new());
        picture.into().write_to(&mut bytes, format).unwrap();
        bytes.into_inner()
    }

    fn decode(bytes: &[u8]) -> Result<Picture, ImageError> {
        Picture::decode(bytes, &DecodeOptions::default())
    }

    #[test]
    fn every_format() {
        use ImageFormat::{Bmp, Gif, Jpeg, Png, Tiff, WebP};
        for format in [Bmp, Png, Tiff, WebP, Gif, Jpeg] {
            let picture = decode(&file(sample(), format)).unwrap();
            assert_eq!((picture.width(), picture.height()), (12, 8), "{format:?}");
            let far = |a: &[u8], b: [u8; 3]| a.iter().zip(b).any(|(a, b)| a.abs_diff(b) > 6);
            let pixel = |x: usize, y: usize| &picture.rgb()[3 * (12 * y + x)..][..3];
            assert!(!far(pixel(1, 7), [250, 0, 0]) && !far(pixel(10, 2), [0, 0, 240]), "{format:?}");
        }
    }

    #[test]
    fn depths_and_transparency() {
        let deep = ImageBuffer::<Rgb<u16>, _>::from_pixel(2, 1, Rgb([0xfffe, 0x0180, 0x00ff]));
        assert_eq!(decode(&file(deep, ImageFormat::Png)).unwrap().rgb()[..3], [255, 1, 0]);
        let grey = ImageBuffer::<Luma<u16>, _>::from_pixel(1, 1, Luma([0x8000]));
        assert_eq!(decode(&file(grey, ImageFormat::Png)).unwrap().rgb(), [128; 3]);
        let clear = file(RgbaImage::from_pixel(1, 1, Rgba([100, 50, 0, 128])), ImageFormat::Png);
        assert_eq!(decode(&clear).unwrap().rgb(), [100, 50, 0]);
        let white = DecodeOptions { background: Some([255; 3]), ..DecodeOptions::default() };
        assert_eq!(Picture::decode(&clear, &white).unwrap().rgb(), [177, 152, 127]);
    }

    #[test]
    fn cmyk() {
        let picture = decode(include_bytes!("../../tests/data/cmyk.jpg")).unwrap();
        // What Pillow gives, within what decoders of JPEG differ by.
        for (x, colour) in [(2, [200, 40, 60]), (12, [30, 120, 220])] {
            let pixel = &picture.rgb()[3 * (16 * 4 + x)..][..3];
            assert!(pixel.iter().zip(colour).all(|(a, b): (&u8, u8)| a.abs_diff(b) <= 6), "{pixel:?} {colour:?}");
        }
    }

    #[test]
    fn the_orientation_of_a_camera() {
        // The head of a JPEG file, then EXIF in an APP1 segment: one entry, 0x0112 = 6, turned by a quarter.
        let plain = file(sample(), ImageFormat::Jpeg);
        let mut exif =
            b"\xff\xe1\x00\x22Exif\0\0MM\0\x2a\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0".to_vec();
        let mut bytes = plain[..2].to_vec();
        bytes.append(&mut exif);
        bytes.extend_from_slice(&plain[2..]);
        let (upright, turned) = (decode(&plain).unwrap(), decode(&bytes).unwrap());
        assert_eq!((turned.width(), turned.height()), (8, 12));
        // The top left corner went to the top right.
        assert_eq!(turned.rgb()[3 * 7..][..3], upright.rgb()[..3]);
    }

    #[test]
    fn the_first_frame_of_an_animation() {
        let mut bytes = Vec::new();
        let mut encoder = GifEncoder::new(&mut bytes);
        for colour in [[200, 0, 0, 255], [0, 0, 200, 255]] {
            let frame = RgbaImage::from_pixel(3, 3, Rgba(colour));
            encoder.encode_frame(Frame::from_parts(frame, 0, 0, Delay::from_numer_denom_ms(10, 1))).unwrap();
        }
        drop(encoder);
        assert_eq!(decode(&bytes).unwrap().rgb()[..3], [200, 0, 0]);
    }

    #[test]
    fn whatever_is_cut_off_or_no_picture() {
        use ImageFormat::{Bmp, Gif, Jpeg, Png, Tiff, WebP};
        for format in [Bmp, Png, Tiff, WebP, Gif, Jpeg] {
            let bytes = file(sample(), format);
            for n in 0..bytes.len() * 3 / 4 {
                let error = decode(&bytes[..n]);
                assert!(error.is_err(), "{format:?} cut off at {n} of {}", bytes.len());
            }
            let error = decode(&bytes[..bytes.len() / 2]).unwrap_err().to_string();
            assert!(!error.contains('\n') && error.contains("the picture"), "{format:?}: {error}");
        }
        assert!(matches!(decode(b"What shape is it?"), Err(ImageError::Unknown { .. })));
        assert!(matches!(decode(b""), Err(ImageError::Unknown { .. })));
        assert!(matches!(Picture::open("/nowhere/at/all.png"), Err(ImageError::Read { .. })));
    }

    #[test]
    fn large_pictures_and_bombs() {
        // 30,000 x 1 is within the limits; so much as the head of 60,000 x 60,000 is not.
        let strip = file(RgbImage::from_pixel(30_000, 1, Rgb([9; 3])), ImageFormat::Png);
        assert_eq!(decode(&strip).unwrap().width(), 30_000);
        let mut bomb = file(RgbImage::new(1, 1), ImageFormat::Bmp);
        bomb[18..22].copy_from_slice(&60_000u32.to_le_bytes());
        bomb[22..26].copy_from_slice(&60_000u32.to_le_bytes());
        assert!(matches!(decode(&bomb), Err(ImageError::TooLarge { .. })), "{:?}", decode(&bomb));
        let limits = Limits { pixels: 95, ..Limits::default() };
        let options = DecodeOptions { limits, ..DecodeOptions::default() };
        for format in [ImageFormat::Png, ImageFormat::Jpeg, ImageFormat::Gif, ImageFormat::WebP, ImageFormat::Tiff] {
            let error = Picture::decode(&file(sample(), format), &options).unwrap_err();
            assert!(matches!(error, ImageError::TooLarge { .. }), "{format:?}: {error}");
        }
        let limits = Limits { file: 20, ..Limits::default() };
        let error = Picture::decode(&strip, &DecodeOptions { limits, ..DecodeOptions::default() }).unwrap_err();
        assert!(error.to_string().contains("20 bytes"), "{error}");
    }
}
