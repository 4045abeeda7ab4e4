//! JSON as Python's `json.dumps` writes it, for chat templates.

use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Error, ErrorKind, State, Value};

/// Deepest nesting that is written.
const DEEPEST: usize = 64;

/// The filter `tojson` of `transformers`' chat templates: `json.dumps` with `ensure_ascii=False` unless asked, and without
/// the escapes for HTML that Jinja's own filter adds
/// ([`chat_template_utils.py`](https://github.com/huggingface/transformers/blob/v4.57.6/src/transformers/utils/chat_template_utils.py)).
pub(super) fn tojson(state: &State, value: &Value, kwargs: Kwargs) -> Result<String, Error> {
    let separators: Option<Vec<String>> = kwargs.get("separators")?;
    let indent: Option<usize> = kwargs.get("indent")?;
    let (item, key) = match separators.as_deref() {
        Some([item, key]) => (item.clone(), key.clone()),
        Some(_) => return Err(Error::new(ErrorKind::InvalidOperation, "tojson takes two separators")),
        None if indent.is_some() => (",".into(), ": ".into()),
        None => (", ".into(), ": ".into()),
    };
    let mut writer = Writer {
        state,
        out: String::new(),
        item,
        key,
        indent: indent.map(|n| n.min(DEEPEST)),
        ascii: kwargs.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false),
        sort: kwargs.get::<Option<bool>>("sort_keys")?.unwrap_or(false),
        paid: 0,
    };
    kwargs.assert_all_used()?;
    writer.value(value, 0)?;
    Ok(writer.out)
}

struct Writer<'s, 'a, 'e> {
    state: &'s State<'a, 'e>,
    out: String,
    item: String,
    key: String,
    indent: Option<usize>,
    ascii: bool,
    sort: bool,
    /// Bytes of `out` that fuel was taken for.
    paid: usize,
}

/// Bytes for one unit of fuel.
const BYTES_PER_FUEL: usize = 16;

impl Writer<'_, '_, '_> {
    fn value(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        if depth > DEEPEST {
            return Err(Error::new(ErrorKind::InvalidOperation, "tojson of a value that is nested too deeply"));
        }
        // The text is made before the engine can charge for it.
        if self.out.len() >= self.paid + BYTES_PER_FUEL {
            let fuel = (self.out.len() - self.paid) / BYTES_PER_FUEL;
            self.state.consume_fuel(fuel as u64)?;
            self.paid += fuel * BYTES_PER_FUEL;
        }
        match value.kind() {
            ValueKind::None => self.out.push_str("null"),
            ValueKind::Bool => self.out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => self.out.push_str(&value.to_string()),
            ValueKind::String => self.string(value.as_str().unwrap_or_default()),
            ValueKind::Seq | ValueKind::Iterable => {
                let items = value.try_iter()?;
                self.out.push('[');
                let mut any = false;
                for item in items {
                    self.between(any, depth + 1);
                    any = true;
                    self.value(&item, depth + 1)?;
                }
                self.close(any, depth, ']');
            }
            ValueKind::Map => {
                let mut keys: Vec<Value> = value.try_iter()?.collect();
                if self.sort {
                    keys.sort();
                }
                self.out.push('{');
                let any = !keys.is_empty();
                for (at, key) in keys.iter().enumerate() {
                    self.between(at > 0, depth + 1);
                    match key.as_str() {
                        Some(key) => self.string(key),
                        None => self.string(&key.to_string()),
                    }
                    self.out.push_str(&self.key.clone());
                    self.value(&value.get_item(key)?, depth + 1)?;
                }
                self.close(any, depth, '}');
            }
            kind => {
                return Err(Error::new(ErrorKind::InvalidOperation, format!("tojson of a value of kind {kind}")));
            }
        }
        Ok(())
    }

    /// What stands before an item.
    fn between(&mut self, follows: bool, depth: usize) {
        if follows {
            self.out.push_str(&self.item.clone());
        }
        self.line(depth);
    }

    fn close(&mut self, any: bool, depth: usize, bracket: char) {
        if any {
            self.line(depth);
        }
        self.out.push(bracket);
    }

    fn line(&mut self, depth: usize) {
        if let Some(indent) = self.indent {
            self.out.push('\n');
            self.out.extend(std::iter::repeat_n(' ', indent * depth));
        }
    }

    fn string(&mut self, text: &str) {
        self.out.push('"');
        for c in text.chars() {
            match c {
                '"' => self.out.push_str("\\\""),
                '\\' => self.out.push_str("\\\\"),
                '\n' => self.out.push_str("\\n"),
                '\r' => self.out.push_str("\\r"),
                '\t' => self.out.push_str("\\t"),
                '\u{8}' => self.out.push_str("\\b"),
                '\u{c}' => self.out.push_str("\\f"),
                c if (c as u32) < 0x20 || self.ascii && !c.is_ascii() => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        self.out.push_str(&format!("\\u{unit:04x}"));
                    }
                }
                c => self.out.push(c),
            }
        }
        self.out.push('"');
    }
}
