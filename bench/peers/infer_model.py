"""ResNet-50 for everybody: random weights as a safetensors state dict, and any such state dict as ONNX, fp32 and int8.

    python bench/peers/infer_model.py weights random.safetensors [--seed 0]
    python bench/peers/infer_model.py onnx --weights model.safetensors --output DIR [--batch 1] [--calibrate DIR]

The graph is written node by node with the `onnx` package, batch norm folded into its convolution, as exporters of
torchvision's network give it once they are optimised: Conv, Relu, Add, MaxPool, GlobalAveragePool, Flatten, Gemm. int8 is
ONNX Runtime's static quantisation to QDQ, activations u8, weights s8 by output channel: the form that ONNX Runtime
and OpenVINO both run in 8-bit kernels. Needs numpy and onnx; int8 needs onnxruntime.
"""

import argparse
import json
import pathlib
import struct

import numpy as np

BLOCKS, EPS = (3, 4, 6, 3), 1e-5
# ImageNet's (torchvision's presets): an input is (byte / 255 - mean) / std.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def convolutions():
    """(convolution's name, batch norm's name, K, C, R, stride, pad) of all 53, in torchvision's names."""
    yield "conv1", "bn1", 64, 3, 7, 2, 3
    c = 64
    for stage, blocks in enumerate(BLOCKS, 1):
        width = 32 << stage
        for block in range(blocks):
            at, stride = f"layer{stage}.{block}", 2 if block == 0 and stage > 1 else 1
            yield f"{at}.conv1", f"{at}.bn1", width, c, 1, 1, 0
            yield f"{at}.conv2", f"{at}.bn2", width, width, 3, stride, 1
            yield f"{at}.conv3", f"{at}.bn3", 4 * width, width, 1, 1, 0
            if block == 0:
                yield f"{at}.downsample.0", f"{at}.downsample.1", 4 * width, c, 1, stride, 0
            c = 4 * width


def random_weights(seed, classes=1000):
    """He's variance over the fan-in, and gentle batch norms: activations keep their size through all blocks."""
    rng = np.random.default_rng(seed)
    state = {}
    for conv, bn, k, c, r, _, _ in convolutions():
        state[f"{conv}.weight"] = rng.normal(0, (2 / (c * r * r)) ** 0.5, (k, c, r, r))
        scale = 0.25 if bn.endswith("bn3") else 1.0
        state[f"{bn}.weight"] = scale * rng.uniform(0.8, 1.2, k)
        state[f"{bn}.bias"] = rng.normal(0, 0.1, k)
        state[f"{bn}.running_mean"] = rng.normal(0, 0.1, k)
        state[f"{bn}.running_var"] = rng.uniform(0.8, 1.2, k)
    state["fc.weight"] = rng.normal(0, 0.02, (classes, 2048))
    state["fc.bias"] = np.zeros(classes)
    return {name: value.astype(np.float32) for name, value in state.items()}


def write_safetensors(path, tensors):
    header, offset = {}, 0
    for name, value in tensors.items():
        header[name] = {"dtype": "F32", "shape": list(value.shape), "data_offsets": [offset, offset + value.nbytes]}
        offset += value.nbytes
    text = json.dumps(header).encode()
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for value in tensors.values():
            file.write(value.tobytes())


def read_safetensors(path):
    bytes_ = pathlib.Path(path).read_bytes()
    length = struct.unpack("<Q", bytes_[:8])[0]
    header, data = json.loads(bytes_[8 : 8 + length]), bytes_[8 + length :]
    tensors = {}
    for name, entry in header.items():
        if name != "__metadata__" and entry["dtype"] == "F32":
            begin, end = entry["data_offsets"]
            tensors[name] = np.frombuffer(data[begin:end], np.float32).reshape(entry["shape"])
    return tensors


def folded(state, conv, bn):
    """Weight KCRS and bias K of a convolution with its batch norm, in f64, rounded once."""
    double = {part: state[f"{bn}.{part}"].astype(np.float64) for part in ("weight", "bias", "running_mean", "running_var")}
    factor = double["weight"] / np.sqrt(double["running_var"] + EPS)
    weight = state[f"{conv}.weight"].astype(np.float64) * factor[:, None, None, None]
    return weight.astype(np.float32), (double["bias"] - double["running_mean"] * factor).astype(np.float32)


def onnx_model(state, batch, resolution):
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    nodes, constants = [], []
    geometry = {conv: rest for conv, *rest in convolutions()}

    def node(kind, inputs, output, **attributes):
        nodes.append(helper.make_node(kind, inputs, [output], name=output, **attributes))
        return output

    def constant(name, value):
        constants.append(numpy_helper.from_array(value, name))
        return name

    def convolution(conv, x):
        bn, _, _, r, stride, pad = geometry[conv]
        weight, bias = folded(state, conv, bn)
        inputs = [x, constant(f"{conv}.weight", weight), constant(f"{conv}.bias", bias)]
        return node("Conv", inputs, conv, kernel_shape=[r, r], strides=[stride] * 2, pads=[pad] * 4)

    x = node("Relu", [convolution("conv1", "input")], "relu")
    x = node("MaxPool", [x], "maxpool", kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
    for stage, blocks in enumerate(BLOCKS, 1):
        for block in range(blocks):
            at = f"layer{stage}.{block}"
            y = node("Relu", [convolution(f"{at}.conv1", x)], f"{at}.relu1")
            y = node("Relu", [convolution(f"{at}.conv2", y)], f"{at}.relu2")
            y = convolution(f"{at}.conv3", y)
            shortcut = convolution(f"{at}.downsample.0", x) if block == 0 else x
            x = node("Relu", [node("Add", [y, shortcut], f"{at}.add")], f"{at}.relu3")
    x = node("Flatten", [node("GlobalAveragePool", [x], "avgpool")], "flatten")
    fc = [constant("fc.weight", np.ascontiguousarray(state["fc.weight"])), constant("fc.bias", state["fc.bias"])]
    node("Gemm", [x, *fc], "logits", transB=1)
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "resnet50",
        [value("input", TensorProto.FLOAT, [batch, 3, resolution, resolution])],
        [value("logits", TensorProto.FLOAT, [batch, len(state["fc.bias"])])],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    return model


def pixels(batch, resolution, seed=1):
    """Smooth random pictures, u8 [batch, resolution, resolution, 3]: calibration and timing need no photographs."""
    rng = np.random.default_rng(seed)
    coarse = rng.uniform(0, 255, (batch, 8, 8, 3))
    large = coarse.repeat(resolution // 8, axis=1).repeat(resolution // 8, axis=2)
    return np.clip(large + rng.normal(0, 12, large.shape), 0, 255).astype(np.uint8)


def network_input(images):
    """u8 NHWC -> f32 NCHW, normalised."""
    scaled = (images.astype(np.float32) / 255 - np.array(MEAN, np.float32)) / np.array(STD, np.float32)
    return np.ascontiguousarray(scaled.transpose(0, 3, 1, 2))


def quantise(source, target, batch, resolution):
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self):
            inputs = (network_input(pixels(batch, resolution, seed)) for seed in range(100, 108))
            self.batches = iter({"input": x} for x in inputs)

        def get_next(self):
            return next(self.batches, None)

    quantize_static(
        source,
        target,
        Reader(),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    weights = commands.add_parser("weights")
    weights.add_argument("output")
    weights.add_argument("--seed", type=int, default=0)
    export = commands.add_parser("onnx")
    export.add_argument("--weights", required=True)
    export.add_argument("--output", required=True, help="folder")
    export.add_argument("--batch", type=int, default=1)
    export.add_argument("--resolution", type=int, default=224)
    args = parser.parse_args()

    if args.command == "weights":
        write_safetensors(args.output, random_weights(args.seed))
        return
    folder = pathlib.Path(args.output)
    folder.mkdir(parents=True, exist_ok=True)
    model = onnx_model(read_safetensors(args.weights), args.batch, args.resolution)
    plain = folder / f"fp32-b{args.batch}.onnx"
    plain.write_bytes(model.SerializeToString())
    quantise(str(plain), str(folder / f"int8-b{args.batch}.onnx"), args.batch, args.resolution)


if __name__ == "__main__":
    main()
