//! Picture files as users have them, good and bad: what comes out, or which error.

use std::path::{Path, PathBuf};

use moesaic_encoders::image::{DecodeOptions, Filter, ImageError, ImageProcessor, Limits, Picture, Sizing};

fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data/pictures").join(name)
}

fn clip(side: usize) -> ImageProcessor {
    ImageProcessor {
        size: Some(Sizing::Shortest(side)),
        filter: Filter::Bicubic,
        crop: Some((side, side)),
        rescale: Some(1.0 / 255.0),
        normalise: None,
        pad_to_square: false,
        grids: Vec::new(),
        limits: Limits::default(),
    }
}

fn near(picture: &Picture, (x, y): (usize, usize), colour: [u8; 3], most: u8) -> bool {
    let at = 3 * (y * picture.width() + x);
    picture.rgb()[at..at + 3].iter().zip(colour).all(|(a, b)| a.abs_diff(b) <= most)
}

#[test]
fn every_kind_of_file_shows_the_same_picture() {
    // Paper at the top right of the middle, the red disc at its centre.
    for name in ["rgb.png", "animated.png", "rgb.bmp", "rgb.tif", "lzw.tif", "lossless.webp", "animated.webp"] {
        let picture = Picture::open(file(name)).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!((picture.width(), picture.height()), (16, 12), "{name}");
        assert!(near(&picture, (5, 5), [200, 30, 40], 0) && near(&picture, (0, 11), [240, 230, 220], 0), "{name}");
    }
    for name in [
        "plain.jpg",
        "progressive.jpg",
        "restart.jpg",
        "cmyk.jpg",
        "lossy.webp",
        "palette.png",
        "palette.gif",
        "animated.gif",
        "palette.bmp",
        "clear.png",
        "clear.bmp",
        "deflate.tif",
        "cmyk.tif",
    ] {
        let picture = Picture::open(file(name)).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!((picture.width(), picture.height()), (16, 12), "{name}");
        assert!(near(&picture, (5, 5), [200, 30, 40], 40), "{name}: {:?}", &picture.rgb()[3 * (5 * 16 + 5)..][..3]);
        assert!(near(&picture, (0, 11), [240, 230, 220], 40), "{name}");
    }
    // Of grey and of 16 bits, the same values.
    let deep = Picture::open(file("deep.png")).unwrap();
    assert_eq!(deep, Picture::open(file("bits.tif")).unwrap());
    assert_eq!(deep, Picture::open(file("deep.tif")).unwrap());
    // Turned by the camera's note.
    let turned = Picture::open(file("turned.jpg")).unwrap();
    assert_eq!((turned.width(), turned.height()), (12, 16));
    assert!(near(&turned, (6, 5), [200, 30, 40], 40));
}

#[test]
fn sizes_at_the_edges() {
    let one = Picture::open(file("one.png")).unwrap();
    assert_eq!(clip(8).process(&[one]).unwrap().dims(), [1, 3, 8, 8]);
    // 30,000 x 1 is a picture; a square of it is not.
    let strip = Picture::open(file("strip.png")).unwrap();
    assert_eq!((strip.width(), strip.height()), (30_000, 1));
    assert_eq!(clip(8).process(std::slice::from_ref(&strip)).unwrap().dims(), [1, 3, 8, 8]);
    let padded = clip(8).with_padding(true).process(&[strip]);
    assert!(matches!(padded, Err(ImageError::TooLarge { .. })), "{padded:?}");
    // 144 million pixels in 18 kilobytes.
    let bomb = Picture::open(file("bomb.png"));
    assert!(std::fs::metadata(file("bomb.png")).unwrap().len() < 20_000);
    assert!(matches!(bomb, Err(ImageError::TooLarge { .. })), "{bomb:?}");
    let text = bomb.unwrap_err().to_string();
    assert!(text.contains("bomb.png is too large: 12000 x 12000") && !text.contains('\n'), "{text}");
}

#[test]
fn what_is_no_picture_or_only_half_of_one() {
    let bytes = std::fs::read(file("plain.jpg")).unwrap();
    let decode = |bytes: &[u8]| Picture::decode(bytes, &DecodeOptions::default());
    for n in [3, 100, 300, bytes.len() - 2] {
        assert!(matches!(decode(&bytes[..n]), Err(ImageError::Damaged { .. })), "{n}: {:?}", decode(&bytes[..n]));
    }
    for text in [&b"What shape is it?"[..], b"", b"\x89PN", b"%PDF-1.7", b"<svg xmlns=\"http://www.w3.org/2000/svg\"/>"]
    {
        assert!(matches!(decode(text), Err(ImageError::Unknown { .. })), "{:?}", decode(text));
    }
    let folder = Picture::open(file(""));
    assert!(matches!(folder, Err(ImageError::Read { .. })), "{folder:?}");
}

#[test]
fn a_webp_frame_larger_than_its_file_says() {
    let mut bytes = std::fs::read(file("clear.webp")).unwrap();
    let at = bytes.windows(4).position(|name| name == b"VP8 ").unwrap() + 8;
    for side in [at + 6, at + 8] {
        bytes[side..side + 2].copy_from_slice(&16_000u16.to_le_bytes());
    }
    let decoded = Picture::decode(&bytes, &DecodeOptions::default());
    assert!(matches!(decoded, Err(ImageError::TooLarge { .. })), "{decoded:?}");
}
