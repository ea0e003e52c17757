//! Writing the pickle that `torch.load(weights_only=True)` reads: protocol 2, an OrderedDict of tensors, each
//! `torch._utils._rebuild_tensor_v2(storage, offset, size, stride, requires_grad, hooks)` (torch/_utils.py) whose storage is
//! a persistent id `('storage', torch.FloatStorage, KEY, 'cpu', numel)` (torch/serialization.py).

use crate::checkpoint::weights::op;
use crate::checkpoint::{Tensor, Values};

/// The `data.pkl` of a state dict; tensor i is in storage `i`.
pub fn state_dict(tensors: &[(&str, &Tensor)]) -> Vec<u8> {
    let mut out = vec![op::PROTO, 2];
    ordered_dict(&mut out);
    out.push(op::MARK);
    for (i, (name, tensor)) in tensors.iter().enumerate() {
        text(&mut out, name);
        rebuild(&mut out, i, tensor);
    }
    out.extend([op::SETITEMS, op::STOP]);
    out
}

fn rebuild(out: &mut Vec<u8>, key: usize, tensor: &Tensor) {
    global(out, "torch._utils", "_rebuild_tensor_v2");
    out.extend([op::MARK, op::MARK]);
    text(out, "storage");
    let storage = match tensor.values {
        Values::F32(_) => "FloatStorage",
        Values::I64(_) => "LongStorage",
        Values::U8(_) => "ByteStorage",
    };
    global(out, "torch", storage);
    text(out, &key.to_string());
    text(out, "cpu");
    integer(out, tensor.values.len());
    out.extend([op::TUPLE, op::BINPERSID]);
    integer(out, 0);
    integers(out, &tensor.shape);
    integers(out, &super::state::strides(&tensor.shape));
    out.push(op::NEWFALSE);
    ordered_dict(out);
    out.extend([op::TUPLE, op::REDUCE]);
}

fn ordered_dict(out: &mut Vec<u8>) {
    global(out, "collections", "OrderedDict");
    out.extend([op::EMPTY_TUPLE, op::REDUCE]);
}

fn global(out: &mut Vec<u8>, module: &str, name: &str) {
    out.push(op::GLOBAL);
    out.extend(format!("{module}\n{name}\n").bytes());
}

fn text(out: &mut Vec<u8>, text: &str) {
    out.push(op::BINUNICODE);
    out.extend((text.len() as u32).to_le_bytes());
    out.extend(text.bytes());
}

fn integers(out: &mut Vec<u8>, values: &[usize]) {
    out.push(op::MARK);
    for &value in values {
        integer(out, value);
    }
    out.push(op::TUPLE);
}

fn integer(out: &mut Vec<u8>, value: usize) {
    if let Ok(value) = u8::try_from(value) {
        out.extend([op::BININT1, value]);
    } else if let Ok(value) = u16::try_from(value) {
        out.push(op::BININT2);
        out.extend(value.to_le_bytes());
    } else if let Ok(value) = i32::try_from(value) {
        out.push(op::BININT);
        out.extend(value.to_le_bytes());
    } else {
        // Nine bytes: the ninth keeps the sign positive.
        out.extend([op::LONG1, 9]);
        out.extend((value as u64).to_le_bytes());
        out.push(0);
    }
}
