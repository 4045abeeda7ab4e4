//! Byte-level vocabularies (`tokenizer.ggml.model` is `gpt2`): pairs are merged within the pieces that a text is split into.
//!
//! How it is split is only named in the file, `tokenizer.ggml.pre`. The patterns are those of the models' own `tokenizer.json`
//! files, which llama.cpp's [`llama-vocab.cpp`](https://github.com/ggml-org/llama.cpp/blob/master/src/llama-vocab.cpp) follows.

use serde_json::{Value, json};

use super::{CONTROL, Problem, Source, UNKNOWN};
use crate::error::Error;

/// Words with the space before them, numbers, punctuation, spaces.
const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
/// Up to three digits in a piece.
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// Each digit in a piece.
const QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// The cased letters of the Unicode version that DeepSeek's pattern lists one range after the other.
const DEEPSEEK_WORDS: &str = r"\s?[\p{Lu}\p{Ll}\p{Lt}&&[^\x{560}-\x{588}\x{10c7}\x{10cd}\x{10d0}-\x{10ff}\x{1c80}-\x{1c8f}\x{2d00}-\x{2d2d}\x{a790}-\x{ab6f}\x{10570}-\x{105bc}\x{10d40}-\x{10d8f}\x{16e40}-\x{1d7cb}\x{1df00}-\x{1df2f}]]+";
const DEEPSEEK_MARKS: &str = r"\s?[!-/:-~！-／：-～‘-‟　-。]+";
const DEEPSEEK_HAN: &str = r"[一-龥ࠀ-一가-퟿]+";
const DEEPSEEK3_HAN: &str = r"[一-龥぀-ゟ゠-ヿ]+";
const DEEPSEEK3: &str = r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"##;

/// How a text is split.
struct Split {
    /// One after the other, each within the pieces of the one before.
    patterns: &'static [&'static str],
    /// Text is brought into Unicode's composed form first.
    composed: bool,
    /// A piece that is a token is taken whole.
    whole: bool,
    /// Texts begin with the first token, where the file does not say.
    first: bool,
}

/// What is split as this name says; `None` where it is not known.
fn split(name: &str) -> Option<Split> {
    let plain = |patterns| Split { patterns, composed: false, whole: false, first: false };
    Some(match name {
        // What llama.cpp takes for files that name nothing.
        "default" => plain(&[r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", r"[0-9][0-9][0-9]"]),
        "gpt-2" | "phi-2" | "mpt" => plain(&[GPT2]),
        "olmo" => Split { composed: true, ..plain(&[GPT2]) },
        "smollm" | "starcoder" | "refact" | "codeshell" | "command-r" => plain(&[r"\p{N}", GPT2]),
        "llama-bpe" | "llama3" | "llama-v3" => Split { whole: true, first: true, ..plain(&[LLAMA3]) },
        "dbrx" | "smaug-bpe" => plain(&[LLAMA3]),
        "qwen2" | "deepseek-r1-qwen" => Split { composed: true, ..plain(&[QWEN2]) },
        "stablelm2" => plain(&[QWEN2]),
        "deepseek-llm" => plain(&[r"[\r\n]", DEEPSEEK_WORDS, DEEPSEEK_MARKS, r"\s+$", DEEPSEEK_HAN, r"\p{N}"]),
        "deepseek-coder" => plain(&[r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", DEEPSEEK_HAN, r"\p{N}"]),
        "deepseek-v3" => plain(&[r"\p{N}{1,3}", DEEPSEEK3_HAN, DEEPSEEK3]),
        _ => return None,
    })
}

/// Names that [`split`] knows, for messages.
pub(super) const KNOWN: &str = "default, gpt-2, phi-2, mpt, olmo, smollm, starcoder, refact, codeshell, command-r, llama-bpe, \
                                llama3, llama-v3, dbrx, smaug-bpe, qwen2, deepseek-r1-qwen, stablelm2, deepseek-llm, \
                                deepseek-coder, deepseek-v3";

/// `tokenizer.json`, and whether texts begin with the first token where the file does not say.
pub(super) fn tokenizer(source: &Source<'_>) -> Result<(Value, bool), Problem> {
    let failed = |e: candle_core::Error| Problem::Error(source.broken(&e));
    let name = source.metadata.text("tokenizer.ggml.pre").map_err(failed)?.unwrap_or("default");
    let Some(Split { patterns, composed, whole, first }) = split(name) else {
        let shown = moesaic_kernels::shown(name);
        return Err(Problem::Unknown(format!("its tokenizer splits text as {shown} does (known: {KNOWN})")));
    };
    let Some(merges) = source.metadata.texts("tokenizer.ggml.merges").map_err(failed)? else {
        let problem = "its tokenizer has no merges (tokenizer.ggml.merges): download it again";
        return Err(Problem::Error(Error::config(source.path, problem)));
    };
    // The space between the two parts is not the first character, which may be a space itself.
    let merges = merges.iter().map(|merge| {
        let at = merge.char_indices().skip(1).find(|(_, c)| *c == ' ').map(|(at, _)| at);
        at.and_then(|at| Some(json!([merge.get(..at)?, merge.get(at + 1..)?]))).ok_or(merge)
    });
    let merges: Vec<Value> = merges.collect::<Result<_, _>>().map_err(|merge| {
        let problem = format!("merge {} is not two tokens: download it again", moesaic_kernels::shown(merge));
        Problem::Error(Error::config(source.path, problem))
    })?;
    let mut steps: Vec<Value> = patterns
        .iter()
        .map(|pattern| json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false}))
        .collect();
    // The bytes of each piece as characters.
    steps.push(json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false}));
    let special = |id: usize| [CONTROL, UNKNOWN].contains(&source.kind(id));
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": source.added(special),
        "normalizer": if composed { json!({"type": "NFC"}) } else { Value::Null },
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps},
        "post_processor": null,
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": whole,
            "vocab": source.vocabulary(), "merges": merges,
        },
    });
    Ok((tokenizer, first))
}

/// The name of the way in which a `tokenizer.json` splits text; `None` where it has none.
pub(super) fn name_of(tokenizer: &Value) -> Option<&'static str> {
    let composed = match tokenizer["normalizer"]["type"].as_str() {
        None => false,
        Some("NFC") => true,
        Some("Sequence") if tokenizer["normalizer"]["normalizers"].as_array().is_some_and(Vec::is_empty) => false,
        Some(_) => return None,
    };
    let whole = tokenizer["model"]["ignore_merges"] == true;
    let patterns = patterns(&tokenizer["pre_tokenizer"])?;
    KNOWN.split(", ").find(|name| {
        split(name)
            .is_some_and(|split| split.patterns == patterns && split.composed == composed && split.whole == whole)
    })
}

/// The patterns of a pre-tokenizer, one after the other.
fn patterns(step: &Value) -> Option<Vec<&str>> {
    match step["type"].as_str()? {
        "Sequence" => {
            let steps = step["pretokenizers"].as_array()?.iter().map(patterns);
            Some(steps.collect::<Option<Vec<_>>>()?.concat())
        }
        "Split" if step["behavior"] == "Isolated" && step["invert"] != true => {
            Some(vec![step["pattern"]["Regex"].as_str()?])
        }
        "Digits" if step["individual_digits"] == true => Some(vec![r"\p{N}"]),
        "ByteLevel" if step["add_prefix_space"] != true => {
            Some(if step["use_regex"] == false { Vec::new() } else { vec![GPT2] })
        }
        _ => None,
    }
}
