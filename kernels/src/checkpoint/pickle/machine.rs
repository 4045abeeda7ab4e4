//! Python's pickle machine, protocols 2 to 4, without the parts that run code: it builds values and never calls anything.
//!
//! Values stand in one list and name each other by their place in it, so that what is shared is held once, nothing is copied,
//! cycles do no harm, and dropping needs no recursion. Text stays where it is in the pickle.

mod opcodes;

use candle_core::Result;

use super::super::text::{error, refuse, shown};
use super::globals::{Global, global};
use super::tensors::{Made, RawTensor, Storage, rebuild};

/// Longest pickle that is read, in bytes: it holds names, shapes and settings, the numbers of tensors stand beside it.
pub const MAX_PICKLE: u64 = 64 << 20;
/// Most values of a pickle.
pub const MAX_VALUES: usize = 1 << 22;

/// A value's place in the list.
pub(super) type Id = u32;

/// A piece of the pickle.
#[derive(Clone, Copy, Debug)]
pub(super) struct Span {
    start: u32,
    len: u32,
}

#[derive(Debug)]
pub(super) enum Value {
    None,
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(Span),
    /// Something that nothing here asks for: bytes, integers of more than 64 bits.
    Opaque,
    Tuple(Box<[Id]>),
    List(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    Global(Global),
    /// Its place in [`Machine::storages`].
    Storage(u32),
    /// Its place in [`Machine::tensors`].
    Tensor(u32),
    /// What Python would make by a call of a harmless class; here it stays what it was said to be.
    Object(Box<Object>),
}

/// An object that is not made.
#[derive(Debug)]
pub(super) struct Object {
    pub(super) args: Id,
    pub(super) state: Option<Id>,
    /// Of a kind of dict.
    pub(super) items: Vec<(Id, Id)>,
}

pub(super) struct Machine<'a> {
    pub(super) label: &'a str,
    data: &'a [u8],
    at: usize,
    pub(super) values: Vec<Value>,
    /// Items of dicts that were made of lists of pairs.
    items: usize,
    stack: Vec<Id>,
    /// Heights of the stack.
    marks: Vec<usize>,
    memo: std::collections::HashMap<u32, Id>,
    pub(super) storages: Vec<Storage>,
    pub(super) tensors: Vec<RawTensor>,
}

/// Runs a pickle; the machine holds what it made, the id is that of the whole.
pub(super) fn run<'a>(label: &'a str, data: &'a [u8]) -> Result<(Machine<'a>, Id)> {
    let mut machine = Machine {
        label,
        data,
        at: 0,
        values: Vec::new(),
        items: 0,
        stack: Vec::new(),
        marks: Vec::new(),
        memo: Default::default(),
        storages: Vec::new(),
        tensors: Vec::new(),
    };
    machine.protocol()?;
    loop {
        if let Some(root) = machine.step()? {
            return Ok((machine, root));
        }
    }
}

impl<'a> Machine<'a> {
    fn protocol(&mut self) -> Result<()> {
        let label = self.label;
        let Some(&[0x80, version]) = self.data.get(..2) else {
            refuse!("{label}: its pickle does not start as one of protocol 2 to 4: save it again with torch.save")
        };
        if !(2..=4).contains(&version) {
            refuse!(
                "{label}: its pickle is of protocol {version}: save it again with torch.save and pickle_protocol=2"
            );
        }
        Ok(())
    }

    fn truncated(&self) -> candle_core::Error {
        let (label, at) = (self.label, self.at);
        error(format!("{label}: its pickle ends in the middle, at byte {at}: download it again"))
    }

    fn take(&mut self, len: u64) -> Result<&'a [u8]> {
        let end = usize::try_from(len).ok().and_then(|len| self.at.checked_add(len));
        match end.and_then(|end| self.data.get(self.at..end)) {
            Some(bytes) => {
                self.at += bytes.len();
                Ok(bytes)
            }
            None => Err(self.truncated()),
        }
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let bytes = self.take(N as u64)?;
        bytes.try_into().map_err(|_| self.truncated())
    }

    fn u8(&mut self) -> Result<u8> {
        Ok(u8::from_le_bytes(self.array()?))
    }

    fn u32(&mut self) -> Result<u32> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    fn u64(&mut self) -> Result<u64> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    /// The next `len` bytes as text.
    fn span(&mut self, len: u64) -> Result<Span> {
        let start = self.at;
        let bytes = self.take(len)?;
        if std::str::from_utf8(bytes).is_err() {
            refuse!("{}: its pickle has text that is not UTF-8, at byte {start}: download it again", self.label);
        }
        // The whole pickle is shorter than 4 GiB.
        Ok(Span { start: start as u32, len: bytes.len() as u32 })
    }

    /// A line without its end.
    fn line(&mut self) -> Result<&'a str> {
        let rest = self.data.get(self.at..).unwrap_or_default();
        let Some(len) = rest.iter().position(|&b| b == b'\n') else { return Err(self.truncated()) };
        let span = self.span(len as u64)?;
        self.at += 1;
        Ok(self.slice(span))
    }

    pub(super) fn slice(&self, span: Span) -> &'a str {
        let bytes = self.data.get(span.start as usize..(span.start + span.len) as usize).unwrap_or_default();
        std::str::from_utf8(bytes).unwrap_or_default()
    }

    pub(super) fn value(&self, id: Id) -> &Value {
        self.values.get(id as usize).unwrap_or(&Value::None)
    }

    /// The text of a value that is one.
    pub(super) fn text(&self, id: Id) -> Option<&'a str> {
        match self.value(id) {
            Value::Text(span) => Some(self.slice(*span)),
            _ => None,
        }
    }

    /// The items of a dict, or of an object that is a kind of one.
    pub(super) fn items(&self, id: Id) -> Option<&[(Id, Id)]> {
        match self.value(id) {
            Value::Dict(items) => Some(items),
            Value::Object(object) if !object.items.is_empty() => Some(&object.items),
            _ => None,
        }
    }

    /// The value of a key of a dict; of several the last, as in Python.
    pub(super) fn get(&self, dict: Id, key: &str) -> Option<Id> {
        let items = self.items(dict)?;
        items.iter().rev().find(|(k, _)| self.text(*k) == Some(key)).map(|(_, value)| *value)
    }

    fn make(&mut self, value: Value) -> Result<Id> {
        if self.values.len() >= MAX_VALUES {
            refuse!("{}: its pickle has more than {MAX_VALUES} values: save the weights alone", self.label);
        }
        self.values.push(value);
        Ok((self.values.len() - 1) as Id)
    }

    fn push(&mut self, value: Value) -> Result<()> {
        let id = self.make(value)?;
        self.push_id(id)
    }

    fn push_id(&mut self, id: Id) -> Result<()> {
        if self.stack.len() >= MAX_VALUES {
            refuse!("{}: its pickle stacks more than {MAX_VALUES} values: save the weights alone", self.label);
        }
        self.stack.push(id);
        Ok(())
    }

    fn empty(&self) -> candle_core::Error {
        let (label, at) = (self.label, self.at);
        error(format!("{label}: its pickle takes a value that is not there, before byte {at}: download it again"))
    }

    fn pop(&mut self) -> Result<Id> {
        if self.marks.last().is_some_and(|&mark| mark >= self.stack.len()) {
            return Err(self.empty());
        }
        self.stack.pop().ok_or_else(|| self.empty())
    }

    fn top(&self) -> Result<Id> {
        self.stack.last().copied().ok_or_else(|| self.empty())
    }

    /// What stands above the last mark.
    fn marked(&mut self) -> Result<Vec<Id>> {
        let mark = self.marks.pop().filter(|&mark| mark <= self.stack.len()).ok_or_else(|| self.empty())?;
        Ok(self.stack.split_off(mark))
    }

    fn pairs(&self, flat: &[Id]) -> Result<Vec<(Id, Id)>> {
        match flat.as_chunks::<2>() {
            (pairs, []) => Ok(pairs.iter().map(|[key, value]| (*key, *value)).collect()),
            _ => Err(self.empty()),
        }
    }

    /// An error about what an opcode was given.
    pub(super) fn wrong<T>(&self, what: &str) -> Result<T> {
        refuse!("{}: its pickle is damaged: {what}, before byte {}: download it again", self.label, self.at)
    }

    fn tuple(&mut self, count: usize) -> Result<()> {
        let mut parts = vec![0; count];
        for part in parts.iter_mut().rev() {
            *part = self.pop()?;
        }
        self.push(Value::Tuple(parts.into()))
    }

    fn remember(&mut self, key: u32) -> Result<()> {
        let id = self.top()?;
        self.memo.insert(key, id);
        Ok(())
    }

    fn recall(&mut self, key: u32) -> Result<()> {
        match self.memo.get(&key) {
            Some(&id) => self.push_id(id),
            None => self.wrong("it recalls a value that it never kept"),
        }
    }

    fn append(&mut self, more: &[Id]) -> Result<()> {
        let list = self.top()?;
        match self.values.get_mut(list as usize) {
            Some(Value::List(list)) => list.extend_from_slice(more),
            // Sets and kinds of lists, which nothing asks for.
            Some(Value::Object(_) | Value::Opaque) => {}
            _ => return self.wrong("it appends to what is no list"),
        }
        Ok(())
    }

    fn set(&mut self, more: Vec<(Id, Id)>) -> Result<()> {
        let dict = self.top()?;
        match self.values.get_mut(dict as usize) {
            Some(Value::Dict(items)) => items.extend(more),
            Some(Value::Object(object)) => object.items.extend(more),
            _ => return self.wrong("it sets items of what is no dict"),
        }
        Ok(())
    }

    fn named(&mut self, module: &str, name: &str) -> Result<()> {
        match global(module, name) {
            Some(known) => self.push(Value::Global(known)),
            None => refuse!(
                "{}: its pickle asks for {}, which is neither part of a tensor nor plain data; nothing of it was run: load \
                 it where you trust it, and save the weights alone",
                self.label,
                shown(&format!("{module}.{name}"))
            ),
        }
    }

    /// What Python would make by calling `callable(*args)`.
    fn call(&mut self, callable: Id, args: Id) -> Result<()> {
        let &Value::Global(global) = self.value(callable) else {
            return self.wrong("REDUCE or NEWOBJ calls what is no class or function");
        };
        match global {
            Global::Dict => {
                // Pairs of an OrderedDict may be given at once.
                let first = match self.value(args) {
                    Value::Tuple(args) => args.first().copied(),
                    _ => None,
                };
                let mut items = Vec::new();
                if let Some(Value::List(pairs)) = first.map(|id| self.value(id)) {
                    // A list that was made once can be named often: items count as values do.
                    if self.items.saturating_add(pairs.len()) > MAX_VALUES {
                        return self.wrong("holds more items of dicts than any checkpoint");
                    }
                    for &pair in pairs {
                        let pair: &[Id] = match self.value(pair) {
                            Value::Tuple(pair) => pair,
                            Value::List(pair) => pair,
                            _ => &[],
                        };
                        let &[key, value] = pair else { return self.wrong("a dict is made of what are no pairs") };
                        items.push((key, value));
                    }
                }
                self.items += items.len();
                self.push(Value::Dict(items))
            }
            Global::Rebuild(how) => match rebuild(self, how, args)? {
                Made::New(tensor) => {
                    self.tensors.push(tensor);
                    self.push(Value::Tensor((self.tensors.len() - 1) as u32))
                }
                Made::Old(id) => self.push_id(id),
            },
            Global::Plain => self.push(Value::Object(Box::new(Object { args, state: None, items: Vec::new() }))),
            Global::Storage(_) | Global::Dtype(_) => self.wrong("REDUCE or NEWOBJ calls a type of numbers"),
        }
    }

    fn build(&mut self, state: Id) -> Result<()> {
        let object = self.top()?;
        match self.values.get_mut(object as usize) {
            Some(Value::Object(object)) => object.state = Some(state),
            // Attributes of an OrderedDict (torch keeps versions there) and of tensors.
            Some(Value::Dict(_) | Value::Tensor(_)) => {}
            _ => return self.wrong("BUILD changes what is no object"),
        }
        Ok(())
    }
}
