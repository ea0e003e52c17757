//! Opcodes of Python's pickletools that the reader here and the writer of `export` both use.

pub const PROTO: u8 = 0x80;
pub const STOP: u8 = b'.';
pub const MARK: u8 = b'(';
pub const EMPTY_TUPLE: u8 = b')';
pub const TUPLE: u8 = b't';
pub const GLOBAL: u8 = b'c';
pub const REDUCE: u8 = b'R';
pub const SETITEMS: u8 = b'u';
pub const BINUNICODE: u8 = b'X';
pub const BINPERSID: u8 = b'Q';
pub const BININT: u8 = b'J';
pub const BININT1: u8 = b'K';
pub const BININT2: u8 = b'M';
pub const LONG1: u8 = 0x8a;
pub const NEWFALSE: u8 = 0x89;
