//! Picture files, one parser for each format.

use moesaic_encoders::image::{DecodeOptions, Filter, ImageProcessor, Limits, Picture, Sizing};

use super::{Bound, Layout, Parser};

/// What the pictures of these tests may measure.
const LIMITS: Limits = Limits { side: 4096, pixels: 1 << 16, file: 1 << 20 };

/// 16 bytes for each pixel that is admitted and 16 MiB, which the decoders may have for their work; as much again for their
/// result and what becomes of it. The file is held once.
const PICTURE: Bound = Bound { base: 2 * ((LIMITS.pixels * 16) + (16 << 20)), per_byte: 4 };

macro_rules! seeds {
    ($($file:literal)*) => {
        || vec![$(include_bytes!(concat!("../data/pictures/", $file)).to_vec()),*]
    };
}

fn parser(name: &'static str, seeds: fn() -> Vec<Vec<u8>>, layout: Layout) -> Parser {
    Parser { name, seeds, parse, bound: PICTURE, layout }
}

/// PNG, with the sums of its chunks put right behind most damages.
pub fn png() -> Parser {
    let seeds = seeds!["rgb.png" "clear.png" "palette.png" "two.png" "deep.png" "animated.png" "one.png"];
    parser("png", seeds, Layout::Chunks)
}

/// JPEG.
pub fn jpeg() -> Parser {
    let seeds = seeds!["plain.jpg" "progressive.jpg" "grey.jpg" "turned.jpg" "cmyk.jpg" "restart.jpg"];
    parser("jpeg", seeds, Layout::Plain)
}

/// GIF.
pub fn gif() -> Parser {
    parser("gif", seeds!["palette.gif" "animated.gif"], Layout::Plain)
}

/// BMP.
pub fn bmp() -> Parser {
    parser("bmp", seeds!["rgb.bmp" "clear.bmp" "palette.bmp" "two.bmp"], Layout::Plain)
}

/// WebP.
pub fn webp() -> Parser {
    parser("webp", seeds!["lossy.webp" "lossless.webp" "clear.webp" "animated.webp"], Layout::Plain)
}

/// TIFF.
pub fn tiff() -> Parser {
    // The decoder looks through the head of a file under its own limit, 256 MiB, before it hears of ours.
    let bound = Bound { base: PICTURE.base + (256 << 20), ..PICTURE };
    Parser {
        bound,
        ..parser(
            "tiff",
            seeds!["rgb.tif" "lzw.tif" "deflate.tif" "bits.tif" "deep.tif" "cmyk.tif" "fax.tif"],
            Layout::Plain,
        )
    }
}

/// A panic of a decoder becomes an error: no hook is asked, which would collect a backtrace or, when fuzzing, end the process.
pub(super) fn quietly() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        let hook = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if !moesaic_encoders::image::decoding() {
                hook(panic);
            }
        }));
    });
}

/// Decodes a picture in both ways and prepares it as a model has it.
fn parse(input: &[u8]) -> Result<(), String> {
    quietly();
    let decode = |background| Picture::decode(input, &DecodeOptions { limits: LIMITS, background });
    let picture = decode(None).map_err(|error| error.to_string())?;
    let (width, height) = (picture.width(), picture.height());
    assert!(width >= 1 && height >= 1 && width <= LIMITS.side && height <= LIMITS.side);
    assert_eq!(picture.rgb().len(), 3 * width * height);
    assert!(width * height <= LIMITS.pixels);
    let over = decode(Some([255; 3])).map_err(|error| error.to_string())?;
    assert_eq!((over.width(), over.height()), (width, height));
    let processor = ImageProcessor {
        size: Some(Sizing::Shortest(16)),
        filter: Filter::Bicubic,
        crop: Some((16, 16)),
        rescale: Some(1.0 / 255.0),
        normalise: None,
        pad_to_square: false,
        grids: Vec::new(),
        limits: LIMITS,
    };
    // A strip within the limits may exceed them where it is scaled up.
    match processor.process(&[picture]) {
        Ok(pixels) => assert_eq!(pixels.dims(), [1, 3, 16, 16]),
        Err(error) => assert!(width.max(height) > 16 * width.min(height), "{width} x {height}: {error}"),
    }
    Ok(())
}
