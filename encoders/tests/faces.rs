//! Mouths out of videos of faces: the networks against numpy, and videos made of one photo, good and bad.
#![cfg(feature = "video")]

use std::path::Path;

use moesaic_encoders::image::Picture;
use moesaic_encoders::video::face::{
    FaceBox, FaceChoice, FaceCropper, FaceError, FaceFinder, FaceOptions, FaceReport, FaceResult, Frame, Landmarks,
    MouthCrop, PATCH, mouth,
};

/// RGB pixels.
#[derive(Clone)]
struct Photo {
    width: usize,
    height: usize,
    rgb: Vec<u8>,
}

impl Photo {
    fn open(name: &str) -> Self {
        let picture = Picture::open(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/faces").join(name)).unwrap();
        Self { width: picture.width(), height: picture.height(), rgb: picture.rgb().to_vec() }
    }

    fn grey(width: usize, height: usize) -> Self {
        Self { width, height, rgb: vec![120; width * height * 3] }
    }

    fn frame(&self) -> Frame<'_> {
        Frame { width: self.width, height: self.height, rgb: &self.rgb }
    }

    /// Draws another photo, scaled and turned about the origin and then moved, by bilinear interpolation.
    fn draw(&mut self, other: &Photo, (scale, degrees): (f32, f32), (x, y): (f32, f32)) {
        let (a, b) = (scale * degrees.to_radians().cos(), scale * degrees.to_radians().sin());
        let n = a * a + b * b;
        for row in 0..self.height {
            for column in 0..self.width {
                let (dx, dy) = (column as f32 + 0.5 - x, row as f32 + 0.5 - y);
                let (u, v) = ((a * dx + b * dy) / n - 0.5, (a * dy - b * dx) / n - 0.5);
                let (left, top) = (u.floor(), v.floor());
                if left < 0.0 || top < 0.0 || left as usize + 1 >= other.width || top as usize + 1 >= other.height {
                    continue;
                }
                let (fu, fv) = (u - left, v - top);
                let at = |i: usize, j: usize, c: usize| {
                    f32::from(other.rgb[((top as usize + j) * other.width + left as usize + i) * 3 + c])
                };
                for c in 0..3 {
                    let upper = at(0, 0, c) * (1.0 - fu) + at(1, 0, c) * fu;
                    let lower = at(0, 1, c) * (1.0 - fu) + at(1, 1, c) * fu;
                    self.rgb[(row * self.width + column) * 3 + c] = (upper * (1.0 - fv) + lower * fv).round() as u8;
                }
            }
        }
    }

    /// The photo on a frame.
    fn on(&self, (width, height): (usize, usize), how: (f32, f32), at: (f32, f32)) -> Photo {
        let mut frame = Photo::grey(width, height);
        frame.draw(self, how, at);
        frame
    }

    /// Paints a square over.
    fn hide(&mut self, (left, top): (usize, usize), side: usize) {
        for row in top..(top + side).min(self.height) {
            let from = (row * self.width + left) * 3;
            self.rgb[from..from + side.min(self.width - left) * 3].fill(90);
        }
    }
}

fn run(options: FaceOptions, frames: &[Photo]) -> FaceResult<(Vec<MouthCrop>, FaceReport)> {
    let mut cropper = FaceCropper::new(options)?;
    let mut crops = Vec::new();
    for frame in frames {
        crops.extend(cropper.push(&frame.frame())?);
    }
    let (rest, report) = cropper.finish()?;
    crops.extend(rest);
    assert!(crops.iter().enumerate().all(|(i, c)| c.frame == i && c.rgb.len() == PATCH * PATCH * 3));
    assert_eq!((crops.len(), report.frames), (frames.len(), frames.len()));
    Ok((crops, report))
}

/// Mean distance of grey levels.
fn apart(a: &MouthCrop, b: &MouthCrop) -> f32 {
    a.rgb.iter().zip(&b.rgb).map(|(a, b)| f32::from(a.abs_diff(*b))).sum::<f32>() / a.rgb.len() as f32
}

fn away(a: (f32, f32), b: (f32, f32)) -> f32 {
    (a.0 - b.0).hypot(a.1 - b.1)
}

#[test]
fn both_networks_agree_with_numpy() {
    let photo = Photo::open("face.png");
    let text = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/faces/reference.json"));
    let reference: serde_json::Value = serde_json::from_str(&text.unwrap()).unwrap();
    let number = |v: &serde_json::Value| v.as_f64().unwrap() as f32;
    let finder = FaceFinder::new().unwrap();

    let found = finder.detect(&photo.frame(), 160).unwrap()[0];
    let expected: Vec<f32> = reference["box"].as_array().unwrap().iter().map(number).collect();
    for (found, expected) in [found.score, found.x, found.y, found.width, found.height].iter().zip(&expected) {
        assert!((found - expected).abs() < 2e-3, "{found} {expected}");
    }

    let face: Vec<f32> = reference["face"].as_array().unwrap().iter().map(number).collect();
    let place = FaceBox { x: face[0], y: face[1], width: face[2], height: face[2], score: 1.0 };
    let points = finder.landmarks(&photo.frame(), &place).unwrap();
    for (point, expected) in points.iter().zip(reference["landmarks"].as_array().unwrap()) {
        let expected = (number(&expected[0]), number(&expected[1]));
        assert!(away(*point, expected) < 1e-3, "{point:?} {expected:?}");
    }
}

#[test]
fn the_mouth_lies_where_one_sees_it() {
    // Read off the enlarged photo: corners of the lips at (102, 69.8) and (122.1, 70.2), their edges at 68.3 and 78.8.
    let photo = Photo::open("astronaut.jpg");
    let finder = FaceFinder::new().unwrap();
    let faces = finder.faces(&photo.frame()).unwrap();
    assert_eq!(faces.len(), 1);
    let points = finder.refined_landmarks(&photo.frame(), &faces[0]).unwrap();
    assert!(away(mouth(&points), (112.0, 73.0)) < 2.0, "{:?}", mouth(&points));
    let corners = (points[48], points[54]);
    assert!(away(corners.0, (102.0, 69.8)) < 3.0 && away(corners.1, (122.1, 70.2)) < 3.0, "{corners:?}");
    // The crop shows it in its middle: bright teeth between the dark corners.
    let crops = run(FaceOptions::default(), &[photo]).unwrap().0;
    let red = |x: std::ops::Range<usize>, y: std::ops::Range<usize>| -> Vec<u8> {
        y.flat_map(|y| x.clone().map(move |x| (y * PATCH + x) * 3)).map(|at| crops[0].rgb[at]).collect()
    };
    let dark = |x| red(x, 40..52).into_iter().min().unwrap();
    let teeth = red(40..60, 48..58).into_iter().max().unwrap();
    assert!(dark(20..32) < 130 && dark(67..80) < 130 && teeth > 225, "{} {} {teeth}", dark(20..32), dark(67..80));
}

#[test]
fn a_turned_smaller_and_shifted_face_gives_the_same_crop() {
    let photo = Photo::open("astronaut.jpg");
    let upright = photo.on((512, 512), (2.0, 0.0), (0.0, 0.0));
    let (straight, _) = run(FaceOptions::default(), &[upright]).unwrap();
    for (how, at) in [((1.2, 15.0), (140.0, 30.0)), ((1.2, -15.0), (60.0, 170.0)), ((3.1, 5.0), (-90.0, -60.0))] {
        let other = photo.on((512, 512), how, at);
        let (crops, report) = run(FaceOptions::default(), &[other]).unwrap();
        let difference = apart(&straight[0], &crops[0]);
        assert!(difference < 9.0, "{how:?}: {difference} grey levels, {report}");
    }
}

#[test]
fn a_hidden_face_is_interpolated() {
    let photo = Photo::open("astronaut.jpg");
    let debug = tempfile::tempdir().unwrap();
    let clip = |hidden: bool| -> Vec<Photo> {
        let frame = |t: usize| {
            let mut frame = photo.on((300, 280), (1.0, 0.0), (t as f32, 10.0));
            if hidden && (10..15).contains(&t) {
                frame.hide((60 + t, 20), 120);
            }
            frame
        };
        (0..30).map(frame).collect()
    };
    let landmarks = |name: &str| -> Vec<(bool, Landmarks)> {
        let text = std::fs::read_to_string(debug.path().join(name).join("landmarks.jsonl")).unwrap();
        let line = |line: &str| {
            let line: serde_json::Value = serde_json::from_str(line).unwrap();
            let points: Vec<(f32, f32)> = serde_json::from_value(line["points"].clone()).unwrap();
            (line["seen"].as_bool().unwrap(), points.try_into().unwrap())
        };
        text.lines().map(line).collect()
    };
    let options = |name: &str| FaceOptions { debug: Some(debug.path().join(name)), ..FaceOptions::default() };
    let (open, report) = run(options("open"), &clip(false)).unwrap();
    assert_eq!((report.without_face, report.jumps, report.most_faces), (0, 0, 1));
    let (crops, report) = run(options("hidden"), &clip(true)).unwrap();
    assert_eq!((report.without_face, report.longest_gap, report.jumps), (5, 5, 0), "{report}");
    assert!(crops.iter().all(|c| c.seen != (10..15).contains(&c.frame)));
    for (t, (full, holed)) in landmarks("open").iter().zip(&landmarks("hidden")).enumerate() {
        assert_eq!(holed.0, !(10..15).contains(&t));
        let off = full.1.iter().zip(&holed.1).map(|(a, b)| away(*a, *b)).fold(0.0, f32::max);
        assert!(off < 1.5, "frame {t} is {off} pixels off");
        // The face goes one pixel to the right in each frame.
        let (x, y) = mouth(&holed.1);
        assert!(away((x - t as f32, y), (111.3, 83.0)) < 2.5, "frame {t}: {x} {y}");
    }
    // Far from the hole nothing changes, but for where exactly the detector looks.
    assert!(open[0] == crops[0] && apart(&open[29], &crops[29]) < 3.0, "{}", apart(&open[29], &crops[29]));
    let picture = Picture::open(debug.path().join("hidden/crop-000029.png")).unwrap();
    assert_eq!(picture.rgb(), crops[29].rgb);
}

#[test]
fn crops_come_at_most_eleven_frames_late_and_a_still_video_stays_still() {
    let photo = Photo::open("astronaut.jpg");
    let mut cropper = FaceCropper::new(FaceOptions::default()).unwrap();
    let mut crops = Vec::new();
    for t in 0..20_usize {
        crops.extend(cropper.push(&photo.frame()).unwrap());
        // The third frame behind the first is looked at, every sixth from there on as nothing moves, and smoothing takes six more.
        let looked = if t < 3 { 0 } else { (t - 3) / 6 * 6 + 3 };
        assert_eq!(crops.len(), (looked + 1).saturating_sub(6));
    }
    let (rest, report) = cropper.finish().unwrap();
    crops.extend(rest);
    assert_eq!((crops.len(), report.frames, report.first_seen), (20, 20, Some(0)));
    // The first frame is searched as a whole, the others about the face.
    let steps: Vec<_> = crops.windows(2).map(|c| apart(&c[0], &c[1])).collect();
    assert!(steps.iter().all(|s| *s < 3.0) && steps[10..].iter().all(|s| *s < 0.5), "{steps:?}");
}

#[test]
fn frames_that_are_passed_over_lie_between() {
    // A face that moves by four pixels a frame, back and forth, and turns: as if each frame were looked at.
    let photo = Photo::open("astronaut.jpg");
    let at = |t: usize| 40.0 + 4.0 * (10.0 - (t % 20) as f32).abs();
    let frame = |t: usize| photo.on((360, 300), (1.1, t as f32 / 3.0), (at(t), 10.0));
    let debug = tempfile::tempdir().unwrap();
    let options = FaceOptions { debug: Some(debug.path().into()), ..FaceOptions::default() };
    let (crops, report) = run(options, &(0..40).map(frame).collect::<Vec<_>>()).unwrap();
    assert_eq!((report.without_face, report.jumps), (0, 0), "{report}");
    assert!(crops.iter().all(|c| c.seen));
    let text = std::fs::read_to_string(debug.path().join("landmarks.jsonl")).unwrap();
    for (t, line) in text.lines().enumerate() {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        let points: Vec<(f32, f32)> = serde_json::from_value(line["points"].clone()).unwrap();
        let points: Landmarks = points.try_into().unwrap();
        // Where the mouth of the photo goes.
        let (sin, cos) = (t as f32 / 3.0).to_radians().sin_cos();
        let (x, y) = (111.5 * 1.1, 73.0 * 1.1);
        let truth = (x * cos - y * sin + at(t), x * sin + y * cos + 10.0);
        assert!(away(mouth(&points), truth) < 6.0, "frame {t}: {:?} {truth:?}", mouth(&points));
    }
}

#[test]
fn first_and_last_frames_without_a_face_are_copied() {
    let photo = Photo::open("astronaut.jpg");
    let blank = Photo::grey(256, 256);
    let frames: Vec<_> = (0..16).map(|t| if (4..12).contains(&t) { &photo } else { &blank }.clone()).collect();
    let (crops, report) = run(FaceOptions::default(), &frames).unwrap();
    assert_eq!((report.without_face, report.first_seen, report.longest_gap), (8, Some(4), 4));
    assert!(crops.iter().all(|c| c.seen == (4..12).contains(&c.frame)));
    // Those show what is there: nothing.
    assert!(crops[0].rgb.iter().chain(&crops[15].rgb).all(|v| *v == 120));
    // One frame is enough.
    assert_eq!(run(FaceOptions::default(), &frames[5..6]).unwrap().1.without_face, 0);
}

#[test]
fn one_of_two_faces_is_followed() {
    let photo = Photo::open("astronaut.jpg");
    let frame = |t: f32| {
        let mut frame = photo.on((640, 300), (1.0, 0.0), (330.0 - t, 20.0));
        frame.draw(&photo, (0.8, 0.0), (20.0 + t, 40.0));
        frame
    };
    let frames: Vec<_> = (0..10).map(|t| frame(t as f32)).collect();
    let follow = |choice| run(FaceOptions { choice, ..FaceOptions::default() }, &frames);
    let (large, small) = ((330.0 + 111.0, 75.0), (20.0 + 89.0, 85.0));
    for (choice, place) in [
        (FaceChoice::Largest, large),
        (FaceChoice::Nth(0), small),
        (FaceChoice::Nth(1), large),
        (FaceChoice::At(50.0, 50.0), small),
    ] {
        let report = follow(choice).unwrap().1;
        assert!(away(report.followed.unwrap().centre(), place) < 25.0, "{choice:?}: {report}");
        assert_eq!((report.most_faces, report.without_face, report.jumps), (2, 0, 0), "{choice:?}");
        assert!(report.to_string().contains("2 in sight at most"));
    }
    let error = follow(FaceChoice::Nth(2)).unwrap_err();
    assert!(matches!(error, FaceError::NoSuchFace { index: 2, found: 2, frame: 0, .. }), "{error}");
}

#[test]
fn a_cut_to_another_place_is_followed() {
    let photo = Photo::open("astronaut.jpg");
    let frame = |t: usize| photo.on((640, 300), (1.0, 0.0), (if t < 8 { 0.0 } else { 370.0 }, 20.0));
    let (crops, report) = run(FaceOptions::default(), &(0..24).map(frame).collect::<Vec<_>>()).unwrap();
    assert_eq!((report.jumps, report.without_face), (1, 5), "{report}");
    assert!(apart(&crops[0], &crops[23]) < 5.0, "{}", apart(&crops[0], &crops[23]));
}

#[test]
fn no_face_says_what_to_do() {
    let blank = Photo::grey(320, 240);
    let label = || FaceOptions { label: "talk.mp4".into(), max_gap: 20, ..FaceOptions::default() };
    let error = run(label(), &vec![blank.clone(); 3]).unwrap_err();
    assert!(matches!(&error, FaceError::NoFace { frames: 3, .. }), "{error}");
    let text = error.to_string();
    assert!(text.starts_with("talk.mp4: ") && text.contains("--roi x,y,w,h"), "{text}");
    // It does not wait for the end.
    let mut cropper = FaceCropper::new(label()).unwrap();
    let errors = (0..21).filter(|_| cropper.push(&blank.frame()).is_err()).count();
    assert_eq!(errors, 1);

    let photo = Photo::open("astronaut.jpg");
    let mut gone = vec![photo.clone(); 3];
    gone.extend(vec![Photo::grey(256, 256); 30]);
    let error = run(label(), &gone).unwrap_err();
    assert!(matches!(error, FaceError::Lost { first: 3, frames: 21, .. }), "{error}");

    let error = run(FaceOptions { min_face: 100.0, ..label() }, &[photo]).unwrap_err();
    assert!(matches!(error, FaceError::TooSmall { frame: 0, least: 100.0, .. }), "{error}");
    assert!(matches!(run(label(), &[]), Err(FaceError::Empty { .. })));
}

#[test]
fn odd_frames_and_options_are_errors_or_no_face() {
    for (width, height) in [(1, 1), (1, 200), (2000, 1), (2, 2), (33, 47)] {
        let error = run(FaceOptions::default(), &vec![Photo::grey(width, height); 2]).unwrap_err();
        assert!(matches!(error, FaceError::NoFace { frames: 2, .. }), "{error}");
    }
    let push = |width, height, rgb: &[u8]| {
        FaceCropper::new(FaceOptions::default()).unwrap().push(&Frame { width, height, rgb }).unwrap_err().to_string()
    };
    assert!(push(0, 5, &[]).contains("0x5 pixels"));
    assert!(push(usize::MAX, usize::MAX, &[]).contains("16384"));
    assert!(push(4, 4, &[0; 47]).contains("takes 48 bytes, found 47"));
    let mut cropper = FaceCropper::new(FaceOptions::default()).unwrap();
    cropper.push(&Photo::grey(64, 64).frame()).unwrap();
    let error = cropper.push(&Photo::grey(64, 65).frame()).unwrap_err();
    assert!(error.to_string().starts_with("video: frame 1: is 64x65 pixels"), "{error}");

    for options in [
        FaceOptions { min_face: f32::NAN, ..FaceOptions::default() },
        FaceOptions { max_gap: usize::MAX, ..FaceOptions::default() },
        FaceOptions { debug: Some("/dev/null/here".into()), ..FaceOptions::default() },
    ] {
        assert!(FaceCropper::new(options).is_err());
    }
    assert!(FaceFinder::new().unwrap().detect(&Photo::grey(9, 9).frame(), 100).is_err());
}

#[test]
fn noise_is_no_panic() {
    let mut seed = 1u64;
    let mut byte = || {
        seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (seed >> 56) as u8
    };
    for (width, height) in [(40, 40), (41, 300), (300, 97)] {
        let rgb: Vec<u8> = (0..width * height * 3).map(|_| byte()).collect();
        let noise = Photo { width, height, rgb };
        let _ = run(FaceOptions { min_face: 0.0, ..FaceOptions::default() }, &vec![noise.clone(); 2]);
        let finder = FaceFinder::new().unwrap();
        for place in [(-1e30, 1e30), (f32::NAN, 5.0), (3.0, f32::INFINITY), (5.0, 0.0)] {
            let place = FaceBox { x: place.0, y: place.0, width: place.1, height: place.1, score: 1.0 };
            let _ = finder.refined_landmarks(&noise.frame(), &place);
        }
    }
}

#[test]
fn a_face_in_a_frame_of_4k() {
    let photo = Photo::open("astronaut.jpg");
    let large = photo.on((3840, 2160), (8.0, 0.0), (900.0, 50.0));
    let (crops, report) = run(FaceOptions::default(), &vec![large; 2]).unwrap();
    let (small, _) = run(FaceOptions::default(), &[photo]).unwrap();
    assert_eq!((report.without_face, report.most_faces), (0, 1));
    assert!(apart(&crops[0], &small[0]) < 6.0 && apart(&crops[1], &small[0]) < 6.0);
}

#[test]
fn a_cropper_can_be_sent_to_another_thread() {
    fn sends<T: Send>(_: &T) {}
    sends(&FaceCropper::new(FaceOptions::default()).unwrap());
}
