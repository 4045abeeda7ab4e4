//! What each opcode does, and which are refused.

use candle_core::Result;

use super::super::super::text::refuse;
use super::super::tensors::storage;
use super::{Id, MAX_VALUES, Machine, Span, Value};

/// The opcodes that are refused, by name and why.
fn refused(op: u8) -> Option<(&'static str, &'static str)> {
    const OLD: &str = "is of protocol 0 or 1";
    const CODE: &str = "makes objects by running code";
    const BUFFERS: &str = "is of protocol 5";
    Some(match op {
        b'I' => ("INT", OLD),
        b'L' => ("LONG", OLD),
        b'F' => ("FLOAT", OLD),
        b'S' => ("STRING", OLD),
        b'V' => ("UNICODE", OLD),
        b'p' => ("PUT", OLD),
        b'g' => ("GET", OLD),
        b'P' => ("PERSID", OLD),
        b'i' => ("INST", CODE),
        b'o' => ("OBJ", CODE),
        0x82 => ("EXT1", CODE),
        0x83 => ("EXT2", CODE),
        0x84 => ("EXT4", CODE),
        0x96 => ("BYTEARRAY8", BUFFERS),
        0x97 => ("NEXT_BUFFER", BUFFERS),
        0x98 => ("READONLY_BUFFER", BUFFERS),
        _ => return None,
    })
}

impl Machine<'_> {
    /// One opcode; the whole, where it was the last.
    pub(super) fn step(&mut self) -> Result<Option<Id>> {
        let op = self.u8()?;
        match op {
            0x80 => {
                self.u8()?;
            }
            0x95 => {
                self.u64()?; // the length of a frame, which readers of streams need
            }
            b'.' => {
                let root = self.pop()?;
                return Ok(Some(root));
            }
            b'(' => {
                if self.marks.len() >= MAX_VALUES {
                    refuse!("{}: its pickle has more than {MAX_VALUES} marks: save the weights alone", self.label);
                }
                self.marks.push(self.stack.len());
            }
            b'0' => {
                self.pop()?;
            }
            b'1' => {
                self.marked()?;
            }
            b'2' => {
                let top = self.top()?;
                self.push_id(top)?;
            }
            b'N' => self.push(Value::None)?,
            0x88 | 0x89 => self.push(Value::Bool(op == 0x88))?,
            b'J' => {
                let value = i32::from_le_bytes(self.array()?);
                self.push(Value::Int(value.into()))?;
            }
            b'K' => {
                let value = self.u8()?;
                self.push(Value::Int(value.into()))?;
            }
            b'M' => {
                let value = u16::from_le_bytes(self.array()?);
                self.push(Value::Int(value.into()))?;
            }
            0x8a | 0x8b => {
                let len = if op == 0x8a { u32::from(self.u8()?) } else { self.u32()? };
                let value = match self.take(len.into())? {
                    [] => Value::Int(0),
                    bytes if bytes.len() <= 8 => {
                        let sign = if bytes.last().is_some_and(|b| b & 0x80 != 0) { 0xff } else { 0 };
                        let mut wide = [sign; 8];
                        wide[..bytes.len()].copy_from_slice(bytes);
                        Value::Int(i64::from_le_bytes(wide))
                    }
                    _ => Value::Opaque,
                };
                self.push(value)?;
            }
            b'G' => {
                let value = f64::from_be_bytes(self.array()?);
                self.push(Value::Float(value))?;
            }
            b'X' | b'T' | b'U' | 0x8c | 0x8d => {
                let len = match op {
                    0x8d => self.u64()?,
                    b'X' | b'T' => self.u32()?.into(),
                    _ => self.u8()?.into(),
                };
                // Strings of Python 2 are bytes; those that are no text stand for nothing here.
                let value = match op {
                    b'T' | b'U' => {
                        let start = self.at;
                        let bytes = self.take(len)?;
                        match std::str::from_utf8(bytes) {
                            Ok(text) => Value::Text(Span { start: start as u32, len: text.len() as u32 }),
                            Err(_) => Value::Opaque,
                        }
                    }
                    _ => Value::Text(self.span(len)?),
                };
                self.push(value)?;
            }
            b'C' | b'B' | 0x8e => {
                let len = match op {
                    0x8e => self.u64()?,
                    b'B' => self.u32()?.into(),
                    _ => self.u8()?.into(),
                };
                self.take(len)?;
                self.push(Value::Opaque)?;
            }
            b')' => self.push(Value::Tuple(Box::default()))?,
            b't' => {
                let parts = self.marked()?;
                self.push(Value::Tuple(parts.into()))?;
            }
            0x85..=0x87 => self.tuple(usize::from(op - 0x84))?,
            b']' => self.push(Value::List(Vec::new()))?,
            b'l' => {
                let parts = self.marked()?;
                self.push(Value::List(parts))?;
            }
            b'a' => {
                let value = self.pop()?;
                self.append(&[value])?;
            }
            b'e' | 0x90 => {
                let more = self.marked()?;
                self.append(&more)?;
            }
            0x8f => self.push(Value::Opaque)?, // a set, which ADDITEMS fills
            0x91 => {
                self.marked()?;
                self.push(Value::Opaque)?;
            }
            b'}' => self.push(Value::Dict(Vec::new()))?,
            b'd' => {
                let flat = self.marked()?;
                let items = self.pairs(&flat)?;
                self.push(Value::Dict(items))?;
            }
            b's' => {
                let (value, key) = (self.pop()?, self.pop()?);
                self.set(vec![(key, value)])?;
            }
            b'u' => {
                let flat = self.marked()?;
                let items = self.pairs(&flat)?;
                self.set(items)?;
            }
            b'q' | b'r' => {
                let key = if op == b'q' { u32::from(self.u8()?) } else { self.u32()? };
                self.remember(key)?;
            }
            0x94 => {
                // At most one for each byte of the pickle.
                let key = self.memo.len() as u32;
                self.remember(key)?;
            }
            b'h' | b'j' => {
                let key = if op == b'h' { u32::from(self.u8()?) } else { self.u32()? };
                self.recall(key)?;
            }
            b'c' => {
                let (module, name) = (self.line()?, self.line()?);
                self.named(module, name)?;
            }
            0x93 => {
                let (name, module) = (self.pop()?, self.pop()?);
                match (self.text(module), self.text(name)) {
                    (Some(module), Some(name)) => self.named(module, name)?,
                    _ => return self.wrong("STACK_GLOBAL names what is no text"),
                }
            }
            b'R' | 0x81 => {
                let (args, callable) = (self.pop()?, self.pop()?);
                self.call(callable, args)?;
            }
            0x92 => {
                let (_, args, callable) = (self.pop()?, self.pop()?, self.pop()?);
                self.call(callable, args)?;
            }
            b'b' => {
                let state = self.pop()?;
                self.build(state)?;
            }
            b'Q' => {
                let id = self.pop()?;
                let storage = storage(self, id)?;
                self.storages.push(storage);
                self.push(Value::Storage((self.storages.len() - 1) as u32))?;
            }
            other => match refused(other) {
                Some((name, why)) => refuse!(
                    "{}: its pickle uses the opcode {name}, which {why}; nothing of it was run: save it again with torch.save \
                     and pickle_protocol=2",
                    self.label
                ),
                None => refuse!(
                    "{}: its pickle has the unknown opcode {other:#04x} before byte {}: download it again",
                    self.label,
                    self.at
                ),
            },
        }
        Ok(None)
    }
}
