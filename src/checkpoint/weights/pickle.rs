//! Reading a pickle without executing it: the opcodes and the handful of names that a dict of tensors needs. Anything else
//! is refused by name, so a file from the internet can do nothing but fail.
//!
//! Values live in an arena and refer to each other by index: no recursion, whatever the nesting.

use std::collections::HashMap;

use super::op;

/// Element type of a storage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Float,
    Half,
    BFloat16,
    Long,
    /// A type that weights do not have; tensors of it are refused, a wrapper may hold them beside the weights.
    Other(&'static str),
}

/// A strided view of a storage, in elements.
#[derive(Debug, Clone, PartialEq)]
pub struct View {
    pub kind: Kind,
    /// Name of the storage's file below `data/`.
    pub key: String,
    pub elements: u64,
    pub offset: u64,
    pub shape: Vec<u64>,
    pub stride: Vec<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Value {
    None,
    Bool,
    Float,
    Int(i64),
    Global(Global),
    /// Index in the arena.
    At(usize),
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Global {
    OrderedDict,
    RebuildTensor,
    RebuildParameter,
    Size,
    Storage(Kind),
}

#[derive(Debug, Clone, PartialEq)]
pub enum Node {
    Text(String),
    Tuple(Vec<Value>),
    List(Vec<Value>),
    Dict(Vec<(Value, Value)>),
    Storage { kind: Kind, key: String, elements: u64 },
    Tensor(View),
}

/// All values of a pickle, and which one it is of.
#[derive(Debug)]
pub struct Pickle {
    pub nodes: Vec<Node>,
    pub root: Value,
}

impl Pickle {
    pub fn text(&self, value: Value) -> Option<&str> {
        match value {
            Value::At(i) => match &self.nodes[i] {
                Node::Text(text) => Some(text),
                _ => None,
            },
            _ => None,
        }
    }

    pub fn dict(&self, value: Value) -> Option<&[(Value, Value)]> {
        match value {
            Value::At(i) => match &self.nodes[i] {
                Node::Dict(items) => Some(items),
                _ => None,
            },
            _ => None,
        }
    }

    pub fn tensor(&self, value: Value) -> Option<&View> {
        match value {
            Value::At(i) => match &self.nodes[i] {
                Node::Tensor(view) => Some(view),
                _ => None,
            },
            _ => None,
        }
    }
}

fn find_global(module: &str, name: &str) -> Result<Global, String> {
    let kind = match name {
        "FloatStorage" => Kind::Float,
        "HalfStorage" => Kind::Half,
        "BFloat16Storage" => Kind::BFloat16,
        "LongStorage" => Kind::Long,
        "DoubleStorage" => Kind::Other("float64"),
        "IntStorage" => Kind::Other("int32"),
        "ShortStorage" => Kind::Other("int16"),
        "CharStorage" => Kind::Other("int8"),
        "ByteStorage" => Kind::Other("uint8"),
        "BoolStorage" => Kind::Other("bool"),
        _ => Kind::Other(""),
    };
    match (module, name) {
        ("collections", "OrderedDict") => Ok(Global::OrderedDict),
        ("torch._utils", "_rebuild_tensor_v2") => Ok(Global::RebuildTensor),
        ("torch._utils", "_rebuild_parameter") => Ok(Global::RebuildParameter),
        ("torch", "Size") => Ok(Global::Size),
        ("torch" | "torch.storage", _) if kind != Kind::Other("") => Ok(Global::Storage(kind)),
        _ => Err(format!(
            "names {module}.{name}, which a dict of tensors does not need; nothing was executed. Save it again with \
             torch.save(model.state_dict(), ...)"
        )),
    }
}

/// Reads one pickle; the error is a reason.
pub fn read(bytes: &[u8]) -> Result<Pickle, String> {
    let mut machine = Machine {
        bytes,
        at: 0,
        nodes: Vec::new(),
        stack: Vec::new(),
        marks: Vec::new(),
        memo: HashMap::new(),
    };
    let root = machine.run()?;
    Ok(Pickle { nodes: machine.nodes, root })
}

struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    nodes: Vec<Node>,
    stack: Vec<Value>,
    marks: Vec<usize>,
    memo: HashMap<u64, Value>,
}

impl<'a> Machine<'a> {
    fn run(&mut self) -> Result<Value, String> {
        loop {
            let opcode = self.number(1)? as u8;
            if opcode == op::STOP {
                return self.pop();
            }
            self.execute(opcode)?;
        }
    }

    fn execute(&mut self, opcode: u8) -> Result<(), String> {
        match opcode {
            op::PROTO => drop(self.number(1)?),
            // FRAME: a length that only matters to buffered readers.
            0x95 => drop(self.number(8)?),
            op::MARK => self.marks.push(self.stack.len()),
            b'N' => self.stack.push(Value::None),
            0x88 | op::NEWFALSE => self.stack.push(Value::Bool),
            b'G' => {
                self.number(8)?;
                self.stack.push(Value::Float);
            }
            op::BININT1 => self.integer(1)?,
            op::BININT2 => self.integer(2)?,
            op::BININT => {
                let value = self.number(4)? as u32 as i32;
                self.stack.push(Value::Int(value.into()));
            }
            op::LONG1 => self.long()?,
            op::BINUNICODE | b'T' => self.text(4)?,
            0x8c | b'U' => self.text(1)?,
            op::GLOBAL | 0x93 => self.global(opcode)?,
            b'q' => self.put(1)?,
            b'r' => self.put(4)?,
            // MEMOIZE
            0x94 => {
                let (index, top) = (self.memo.len() as u64, self.peek()?);
                self.memo.insert(index, top);
            }
            b'h' => self.get(1)?,
            b'j' => self.get(4)?,
            op::EMPTY_TUPLE | op::TUPLE | 0x85..=0x87 => self.tuple(opcode)?,
            b']' => self.push(Node::List(Vec::new())),
            b'}' => self.push(Node::Dict(Vec::new())),
            b'a' | b'e' | b's' | op::SETITEMS => self.fill(opcode)?,
            op::BINPERSID => self.persistent()?,
            op::REDUCE => self.reduce()?,
            // BUILD: attributes, such as an OrderedDict's _metadata of module versions.
            b'b' => drop(self.pop()?),
            _ => {
                return Err(format!(
                    "has the pickle opcode {opcode:#04x} at byte {}, which a dict of tensors does not need",
                    self.at - 1
                ));
            }
        }
        Ok(())
    }

    fn take(&mut self, n: usize) -> Result<&'a [u8], String> {
        let bytes = self.bytes.get(self.at..).and_then(|rest| rest.get(..n));
        self.at += n;
        bytes.ok_or_else(|| "its pickle was cut off".into())
    }

    /// Little-endian, up to 8 bytes.
    fn number(&mut self, n: usize) -> Result<u64, String> {
        Ok(self.take(n)?.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte)))
    }

    fn pop(&mut self) -> Result<Value, String> {
        let floor = self.marks.last().copied().unwrap_or(0);
        let value = if self.stack.len() > floor { self.stack.pop() } else { None };
        value.ok_or_else(|| self.malformed())
    }

    fn peek(&self) -> Result<Value, String> {
        self.stack.last().copied().ok_or_else(|| self.malformed())
    }

    fn pop_to_mark(&mut self) -> Result<Vec<Value>, String> {
        let mark = self.marks.pop().ok_or_else(|| self.malformed())?;
        Ok(self.stack.split_off(mark.min(self.stack.len())))
    }

    fn malformed(&self) -> String {
        format!("its pickle is malformed at byte {}", self.at)
    }

    fn push(&mut self, node: Node) {
        self.stack.push(Value::At(self.nodes.len()));
        self.nodes.push(node);
    }

    fn node(&self, value: Value) -> Option<&Node> {
        if let Value::At(i) = value { self.nodes.get(i) } else { None }
    }

    fn integer(&mut self, n: usize) -> Result<(), String> {
        let value = self.number(n)?;
        self.stack.push(Value::Int(value as i64));
        Ok(())
    }

    /// LONG1: up to 255 bytes; those that do not fit in an i64 are none that a tensor has.
    fn long(&mut self) -> Result<(), String> {
        let n = self.number(1)? as usize;
        let bytes = self.take(n)?;
        let is_negative = bytes.last().is_some_and(|byte| byte & 0x80 != 0);
        let fill = if is_negative { 0xff } else { 0 };
        let fits = bytes.iter().skip(8).all(|byte| *byte == fill);
        let low: Vec<u8> = bytes.iter().copied().chain(std::iter::repeat(fill)).take(8).collect();
        let value = i64::from_le_bytes(low.try_into().map_err(|_| self.malformed())?);
        self.stack.push(if fits { Value::Int(value) } else { Value::None });
        Ok(())
    }

    fn text(&mut self, n: usize) -> Result<(), String> {
        let length = self.number(n)? as usize;
        let text = String::from_utf8_lossy(self.take(length)?).into_owned();
        self.push(Node::Text(text));
        Ok(())
    }

    fn global(&mut self, opcode: u8) -> Result<(), String> {
        let (module, name) = if opcode == op::GLOBAL {
            (self.line()?, self.line()?)
        } else {
            let (name, module) = (self.pop()?, self.pop()?);
            match (self.node(module), self.node(name)) {
                (Some(Node::Text(module)), Some(Node::Text(name))) => (module.clone(), name.clone()),
                _ => return Err(self.malformed()),
            }
        };
        self.stack.push(Value::Global(find_global(&module, &name)?));
        Ok(())
    }

    fn line(&mut self) -> Result<String, String> {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        let length = rest.iter().take(256).position(|byte| *byte == b'\n').ok_or_else(|| self.malformed())?;
        let line = self.take(length + 1)?;
        Ok(String::from_utf8_lossy(&line[..length]).into_owned())
    }

    fn put(&mut self, n: usize) -> Result<(), String> {
        let (index, top) = (self.number(n)?, self.peek()?);
        self.memo.insert(index, top);
        Ok(())
    }

    fn get(&mut self, n: usize) -> Result<(), String> {
        let index = self.number(n)?;
        let value = self.memo.get(&index).copied().ok_or_else(|| self.malformed())?;
        self.stack.push(value);
        Ok(())
    }

    fn tuple(&mut self, opcode: u8) -> Result<(), String> {
        let items = match opcode {
            op::EMPTY_TUPLE => Vec::new(),
            op::TUPLE => self.pop_to_mark()?,
            _ => {
                let mut items = (0x85..=opcode).map(|_| self.pop()).collect::<Result<Vec<_>, _>>()?;
                items.reverse();
                items
            }
        };
        self.push(Node::Tuple(items));
        Ok(())
    }

    /// APPEND, APPENDS, SETITEM, SETITEMS: puts values into the list or dict below them.
    fn fill(&mut self, opcode: u8) -> Result<(), String> {
        let items = match opcode {
            b'a' => vec![self.pop()?],
            b's' => {
                let (value, key) = (self.pop()?, self.pop()?);
                vec![key, value]
            }
            _ => self.pop_to_mark()?,
        };
        let Value::At(target) = self.peek()? else { return Err(self.malformed()) };
        let is_items = matches!(opcode, b's' | op::SETITEMS);
        match &mut self.nodes[target] {
            Node::Dict(dict) if is_items && items.len() % 2 == 0 => {
                dict.extend(items.chunks_exact(2).map(|pair| (pair[0], pair[1])));
            }
            Node::List(list) if !is_items => list.extend(items),
            _ => return Err(self.malformed()),
        }
        Ok(())
    }

    /// ('storage', torch.FloatStorage, key, location, elements)
    fn persistent(&mut self) -> Result<(), String> {
        let id = self.pop()?;
        let Some(Node::Tuple(parts)) = self.node(id) else { return Err(self.malformed()) };
        let &[tag, Value::Global(Global::Storage(kind)), key, _, Value::Int(elements)] = parts.as_slice()
        else {
            return Err("has a persistent id that is not a storage".into());
        };
        match (self.node(tag), self.node(key), u64::try_from(elements)) {
            (Some(Node::Text(tag)), Some(Node::Text(key)), Ok(elements)) if tag == "storage" => {
                let key = key.clone();
                self.push(Node::Storage { kind, key, elements });
                Ok(())
            }
            _ => Err("has a persistent id that is not a storage".into()),
        }
    }

    fn reduce(&mut self) -> Result<(), String> {
        let (arguments, function) = (self.pop()?, self.pop()?);
        let (Some(Node::Tuple(arguments)), Value::Global(function)) = (self.node(arguments), function) else {
            return Err(self.malformed());
        };
        match (function, arguments.as_slice()) {
            (Global::OrderedDict, []) => self.push(Node::Dict(Vec::new())),
            // What a Size holds matters nowhere outside a tensor, where sizes are plain tuples.
            (Global::Size, _) => self.stack.push(Value::None),
            (Global::RebuildParameter, &[tensor, ..]) => self.stack.push(tensor),
            (Global::RebuildTensor, &[storage, Value::Int(offset), shape, stride, ..]) => {
                let view = self.view(storage, offset, shape, stride).ok_or_else(|| self.malformed())?;
                self.push(Node::Tensor(view));
            }
            _ => return Err(self.malformed()),
        }
        Ok(())
    }

    fn view(&self, storage: Value, offset: i64, shape: Value, stride: Value) -> Option<View> {
        let Some(Node::Storage { kind, key, elements }) = self.node(storage) else { return None };
        let numbers = |value: Value| -> Option<Vec<u64>> {
            let Some(Node::Tuple(items)) = self.node(value) else { return None };
            items
                .iter()
                .map(|item| if let Value::Int(n) = item { u64::try_from(*n).ok() } else { None })
                .collect()
        };
        let (shape, stride) = (numbers(shape)?, numbers(stride)?);
        let offset = u64::try_from(offset).ok()?;
        (shape.len() == stride.len() && shape.len() <= 16).then(|| View {
            kind: *kind,
            key: key.clone(),
            elements: *elements,
            offset,
            shape,
            stride,
        })
    }
}
