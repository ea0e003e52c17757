"""Loads exported ONNX files as others would and compares their answers with `engine predict`.

    check_onnx.py --engine ENGINE --checkpoint CHECKPOINT --pictures DIR|TAR [--count 100] FILE.onnx...

Each file must pass the `onnx` package's checker with shape inference, be of opset 17 and IR 8, and take any batch. ONNX
Runtime's f32 answers must be the engine's within 1e-4, relative, with the same first class on every picture; those in 8
bits must have the same first class on all but --miss of them. Where OpenVINO is installed it is asked, too. Of pictures in
folders that are named as the model's classes, accuracy is told.
"""

import json
import sys
import tempfile

import numpy
import onnx
import onnxruntime

import pictures

FP32 = 1e-4


def description(model):
    found = {entry.key: entry.value for entry in model.metadata_props}
    return json.loads(found["engine.model"])


def check_file(path, model):
    onnx.checker.check_model(path, full_check=True)
    assert model.ir_version == 8, f"IR {model.ir_version}"
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 17)], model.opset_import
    ends = [*model.graph.input, *model.graph.output]
    assert [end.name for end in ends] == ["input", "logits"], [end.name for end in ends]
    assert all(end.type.tensor_type.shape.dim[0].dim_param == "batch" for end in ends), "a fixed batch"
    said = description(model)
    for key in ("arch", "classes", "resolution", "crop_ratio", "interpolation", "mean", "std", "source"):
        assert key in said, f"{key} is not in the description"
    kinds = {node.op_type for node in model.graph.node}
    names = {tensor.name for tensor in model.graph.initializer}
    is_int8 = "QuantizeLinear" in kinds
    assert {"fc.bias", *({} if is_int8 else {"conv1.weight", "fc.weight", "layer1.0.conv2.weight"})} <= names
    return said, is_int8, "BatchNormalization" in kinds


def runtimes():
    def onnx_runtime(path):
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        return lambda images: session.run(None, {"input": images})[0]

    yield f"onnxruntime {onnxruntime.__version__}", onnx_runtime
    try:
        import openvino
    except ImportError:
        return

    def open_vino(path):
        core = openvino.Core()
        model = core.compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        return lambda images: model(images)[0]

    yield f"openvino {openvino.__version__.split('-')[0]}", open_vino


def accuracy(labels, got, want):
    if labels is None:
        return ""
    right = [100 * (logits.argmax(axis=1) == labels).mean() for logits in (got, want)]
    return f", top-1 {right[0]:.2f} %, the checkpoint's {right[1]:.2f} %"


def main():
    parser = pictures.parser(__doc__)
    parser.add_argument("--miss", type=float, default=0.05, help="share of pictures that 8 bits may classify otherwise")
    parser.add_argument("files", nargs="+")
    args = parser.parse_args()

    said, *_ = check_file(args.files[0], onnx.load(args.files[0]))
    classes = len(said["classes"])
    failures = 0
    with tempfile.TemporaryDirectory() as folder:
        paths, images = pictures.prepare(args.pictures, folder, said, args.count)
        want = pictures.engine(args.engine, args.checkpoint, paths, classes)
        labels = pictures.labels(args.pictures, said, args.count)
        for path in args.files:
            _, is_int8, has_norms = check_file(path, onnx.load(path))
            form = "int8" if is_int8 else "fp32, batch norms kept" if has_norms else "fp32"
            for name, load in runtimes():
                run = load(path)
                got = pictures.log_softmax(numpy.concatenate([run(images[:1]), run(images[1:])]))
                same, relative = pictures.compare(got, want)
                is_good = same >= 1 - args.miss if is_int8 else same == 1 and relative <= FP32
                failures += not is_good
                verdict = "ok" if is_good else "FAILED"
                print(f"{verdict}: {path} ({form}) in {name}: {100 * same:.2f} % the same class on {len(paths)} pictures, "
                      f"log-probabilities within {relative:.1e}{accuracy(labels, got, want)}")
    sys.exit(failures != 0)


main()
