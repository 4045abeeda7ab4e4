use moesaic_encoders::image::{Filter, ImageProcessor, Limits, Sizing};

use super::*;

/// A BMP file of one colour, with a wrong size where it is said to be `damaged`.
fn bmp(side: u32, colour: [u8; 3]) -> Vec<u8> {
    let row = (3 * side).div_ceil(4) * 4;
    let mut bytes = b"BM".to_vec();
    for n in [54 + row * side, 0, 54, 40, side, side] {
        bytes.extend(n.to_le_bytes());
    }
    bytes.extend([1, 0, 24, 0]);
    for n in [0u32, row * side, 2835, 2835, 0, 0] {
        bytes.extend(n.to_le_bytes());
    }
    for _ in 0..side {
        let mut line = [colour[2], colour[1], colour[0]].repeat(side as usize);
        line.resize(row as usize, 0);
        bytes.extend(line);
    }
    bytes
}

fn processor(side: usize) -> ImageProcessor {
    ImageProcessor {
        size: Some(Sizing::Exact(side, side)),
        filter: Filter::Bicubic,
        crop: None,
        rescale: Some(1.0 / 255.0),
        normalise: None,
        pad_to_square: false,
        grids: Vec::new(),
        limits: Limits::default(),
    }
}

/// A folder with three pictures and this file of conversations.
fn folder(name: &str, text: &str) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    for (i, colour) in [[255, 0, 0], [0, 255, 0], [0, 0, 255]].into_iter().enumerate() {
        std::fs::write(dir.path().join(format!("{i}.bmp")), bmp(6, colour)).unwrap();
    }
    let file = dir.path().join(name);
    std::fs::write(&file, text).unwrap();
    (dir, file)
}

fn open(name: &str, text: &str) -> Result<Corpus, CorpusError> {
    let (_dir, file) = folder(name, text);
    Corpus::open(&[file], None)
}

const LINES: &str = r#"
{"image": "0.bmp", "source": "a", "turns": [{"question": "What colour is it?", "answer": "red", "type": "colour"}, {"question": "Is it red?", "answer": "yes"}]}

{"image": "1.bmp", "turns": [{"question": "What is <image>?", "answer": "green"}]}
{"image": ["2.bmp", "0.bmp"], "turns": [{"question": "Which is blue?", "answer": "the first"}]}
{"turns": [{"question": "What is 1 + 1?", "answer": "2"}]}
"#;

#[test]
fn questions_of_our_layout_become_rows() {
    let corpus = open("train.jsonl", LINES).unwrap();
    let questions: Vec<&str> = corpus.rows().iter().map(|row| row.turns[0].question.as_str()).collect();
    let marked = [
        "<image>\nWhat colour is it?",
        "<image>\nIs it red?",
        "What is <image>?",
        "<image><image>\nWhich is blue?",
        "What is 1 + 1?",
    ];
    assert_eq!(questions, marked);
    let pictures: Vec<&[u32]> = corpus.rows().iter().map(|row| &row.pictures[..]).collect();
    assert_eq!(pictures, [&[0][..], &[0], &[1], &[2, 0], &[]]);
    assert_eq!((&*corpus.rows()[0].source, &*corpus.rows()[0].kind, &*corpus.rows()[2].kind), ("a", "colour", ""));
    assert_eq!(corpus.place(3).unwrap().number, 5);
    let other = open("train.jsonl", &LINES.replace("\"yes\"", "\"no\"")).unwrap();
    assert_ne!(corpus.fingerprint(), other.fingerprint());
}

#[test]
fn conversations_of_llava() {
    let corpus = open(
        "mix.json",
        r#"[{"id": "1", "image": "0.bmp", "model": "", "conversations": [{"from": "human", "value": "What is it?\n<image>"},
             {"from": "gpt", "value": "Red."}, {"from": "human", "value": "Sure?"}, {"from": "gpt", "value": "Yes."}]},
            {"conversations": [{"from": "gpt", "value": "Hi!"}, {"from": "human", "value": "Hello"}, {"from": "gpt", "value": "Bye."}]},
            {"image": ["1.bmp", "2.bmp"], "conversations": [{"from": "human", "value": "Is <image> like <image>?"}, {"from": "gpt", "value": "No."}]}]"#,
    )
    .unwrap();
    let rows = corpus.rows();
    assert_eq!(rows[0].turns.len(), 2);
    assert_eq!(rows[0].turns[0], Turn { question: "<image>\nWhat is it?".into(), answer: "Red.".into() });
    assert_eq!((rows[1].turns.len(), rows[1].turns[0].question.as_str()), (1, "Hello"));
    assert_eq!((&rows[2].pictures[..], rows[2].turns[0].question.as_str()), (&[1, 2][..], "Is <image> like <image>?"));
    assert_eq!(corpus.place(2).unwrap().to_string().rsplit_once(", ").unwrap().1, "entry 3");
}

#[test]
fn mistakes_are_named_with_their_line() {
    let good = r#"{"image": "0.bmp", "turns": [{"question": "What?", "answer": "red"}]}"#;
    let said = |text: &str| format!(r#"{{"image": "0.bmp", "conversations": [{text}]}}"#);
    for (line, kind, words) in [
        ("{".to_string(), "Json", "column 1"),
        (r#"{"image": "0.bmp"}"#.into(), "Entry", "neither"),
        (good.replace("What?", " "), "Entry", "question is empty"),
        (good.replace("red", ""), "Entry", "answer is empty"),
        (good.replace("red", "<image>"), "Entry", "belong to questions"),
        (good.replace("What?", "<image> or <image>?"), "Marks", "2 <image> marks for 1 pictures"),
        (good.replace(r#""image": "0.bmp", "#, "").replace("What?", "<image>?"), "Marks", "1 <image> marks for 0"),
        (good.replace("0.bmp", "7.bmp"), "Picture", "7.bmp is not there"),
        (good.replace("0.bmp", ""), "Entry", "empty"),
        (said(r#"{"from": "human", "value": "a <image>"}"#), "Entry", "no answer"),
        (said(r#"{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}"#), "Marks", "0 <image> marks for 1"),
        (said(r#"{"from": "human", "value": "a"}, {"from": "human", "value": "b"}"#), "Entry", "take turns"),
        (said(r#"{"from": "dog", "value": "a"}"#), "Entry", "said by"),
        (said(""), "Entry", "no question"),
    ] {
        let error = open("a.jsonl", &format!("{good}\n{line}\n")).unwrap_err();
        let text = error.to_string();
        assert!(format!("{error:?}").starts_with(kind), "{line}: {error:?}");
        assert!(text.contains("a.jsonl, line 2: ") && text.contains(words) && !text.contains('\n'), "{line}: {text}");
    }
    assert!(matches!(open("a.jsonl", "\n"), Err(CorpusError::Empty { .. })));
    assert!(matches!(open("a.json", "[]"), Err(CorpusError::Empty { .. })));
    let error = open("a.json", "[\n{}\n").unwrap_err().to_string();
    assert!(error.contains("a.json, line 3: ") && error.contains("array"), "{error}");
    let missing = Corpus::open(&["/nowhere/a.jsonl".into()], None).unwrap_err();
    assert!(matches!(missing, CorpusError::Read { .. }));
}

/// 60 rows about 3 pictures.
fn many() -> String {
    let line = |i: usize| {
        let turns: Vec<String> = (0..20).map(|j| format!(r#"{{"question": "{i} {j}?", "answer": "x"}}"#)).collect();
        format!(r#"{{"image": "{i}.bmp", "turns": [{}]}}"#, turns.join(","))
    };
    (0..3).map(line).collect::<Vec<_>>().join("\n")
}

#[test]
fn an_epoch_has_every_row_once_and_any_place_can_be_taken_up() {
    let corpus = open("a.jsonl", &many()).unwrap();
    for together in [1, 4, 100] {
        let shuffle = Shuffle { seed: 5, together };
        let (first, second) = (corpus.stream(shuffle, 0, 60), corpus.stream(shuffle, 60, 60));
        assert_ne!(first, second);
        for epoch in [&first, &second] {
            let mut sorted = epoch.clone();
            sorted.sort_unstable();
            assert_eq!(sorted, (0..60).collect::<Vec<_>>());
        }
        assert_eq!(corpus.stream(shuffle, 50, 20), [&first[50..], &second[..10]].concat());
        assert_ne!(first, corpus.stream(Shuffle { seed: 6, ..shuffle }, 0, 60));
        // How often the picture changes from row to row.
        let changes = first.windows(2).filter(|w| corpus.rows()[w[0]].pictures != corpus.rows()[w[1]].pictures).count();
        assert!(
            match together {
                1 => changes > 25,
                4 => changes < 15,
                _ => changes == 2,
            },
            "{together}: {changes}"
        );
    }
}

#[test]
fn a_batch_has_each_picture_once() {
    let (_dir, file) = folder("train.jsonl", LINES);
    let corpus = Corpus::open(&[file], None).unwrap();
    let loader = Loader::new(corpus, processor(2), Shuffle { seed: 1, together: 1 }, 2 * 12);
    let batch = loader.of_rows(&[3, 4, 0, 1]).unwrap();
    let own: Vec<&[usize]> = batch.rows.iter().map(|row| &row.pictures[..]).collect();
    assert_eq!(own, [&[0, 1][..], &[], &[1], &[1]]);
    let pixels = batch.pixels.unwrap();
    assert_eq!(pixels.dims(), [2, 3, 2, 2]);
    let values = pixels.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let colour = |rgb: [f32; 3]| rgb.into_iter().flat_map(|v| [v; 4]).collect::<Vec<f32>>();
    assert_eq!(values, [colour([0.0, 0.0, 1.0]), colour([1.0, 0.0, 0.0])].concat());
    // Both are kept and the room is used up; the third is read each time, and what is kept is not.
    assert_eq!(loader.room(), 0);
    for picture in ["0.bmp", "2.bmp"] {
        std::fs::remove_file(_dir.path().join(picture)).unwrap();
    }
    assert_eq!(
        loader.of_rows(&[3, 0]).unwrap().pixels.unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap(),
        values
    );
    assert!(loader.of_rows(&[2]).is_ok());
    assert!(loader.of_rows(&[4]).unwrap().pixels.is_none());
    std::fs::write(_dir.path().join("1.bmp"), &bmp(6, [0; 3])[..60]).unwrap();
    let error = loader.of_rows(&[2]).unwrap_err();
    assert!(matches!(error, CorpusError::Picture { .. }));
    let text = error.to_string();
    assert!(text.contains("line 4: ") && text.contains("1.bmp") && text.contains("cut off"), "{text}");
}
