"""Writes tiny.onnx, which the encoder is compared with byte by byte: `python make.py` in this folder (onnx 1.23.2).

One node of every form that exports write, on numbers that fit on a screen.
"""
import numpy
import onnx
from onnx import TensorProto, helper, numpy_helper

constants = []


def constant(name, value, dtype):
    constants.append(numpy_helper.from_array(numpy.array(value, dtype), name))
    return name


window = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "strides": [2, 2]}
scale, zero = constant("input_scale", 0.25, numpy.float32), constant("input_zero_point", -3, numpy.int8)
nodes = [
    helper.make_node("QuantizeLinear", ["input", scale, zero], ["input_quantized"], name="input_quantized"),
    helper.make_node("DequantizeLinear", ["input_quantized", scale, zero], ["input_dequantized"],
                     name="input_dequantized"),
]
weight = [constant("conv1.weight_quantized", numpy.arange(-27, 27).reshape(2, 3, 3, 3), numpy.int8),
          constant("conv1.weight_scale", [0.5, 0.125], numpy.float32)]
nodes.append(helper.make_node("DequantizeLinear", weight, ["conv1.weight"], name="conv1.weight", axis=0))
bias = [constant("conv1.bias_quantized", [-100000, 7], numpy.int32),
        constant("conv1.bias_scale", [0.125, 0.03125], numpy.float32)]
nodes.append(helper.make_node("DequantizeLinear", bias, ["conv1.bias"], name="conv1.bias", axis=0))
nodes.append(helper.make_node("Conv", ["input_dequantized", "conv1.weight", "conv1.bias"], ["conv1"], name="conv1",
                              **window))
norm = [constant("bn1.weight", [1.5, -2.0], numpy.float32), constant("bn1.bias", [0.0, 0.25], numpy.float32),
        constant("bn1.running_mean", [0.5, -0.5], numpy.float32), constant("bn1.running_var", [4.0, 0.0625], numpy.float32)]
nodes.append(helper.make_node("BatchNormalization", ["conv1", *norm], ["bn1"], name="bn1", epsilon=1e-5))
nodes.append(helper.make_node("Relu", ["bn1"], ["relu"], name="relu"))
nodes.append(helper.make_node("Add", ["relu", "bn1"], ["add"], name="add"))
nodes.append(helper.make_node("MaxPool", ["add"], ["maxpool"], name="maxpool", **window))
nodes.append(helper.make_node("GlobalAveragePool", ["maxpool"], ["avgpool"], name="avgpool"))
nodes.append(helper.make_node("Flatten", ["avgpool"], ["flatten"], name="flatten", axis=1))
fc = [constant("fc.weight", [[1, 2], [3, 4], [-5, 6]], numpy.float32), constant("fc.bias", [0.5, 0, -1], numpy.float32)]
nodes.append(helper.make_node("Gemm", ["flatten", *fc], ["logits"], name="fc", transB=1))
value = helper.make_tensor_value_info
graph = helper.make_graph(
    nodes,
    "tiny",
    [value("input", TensorProto.FLOAT, ["batch", 3, 8, 8])],
    [value("logits", TensorProto.FLOAT, ["batch", 3])],
    constants,
)
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8, producer_name="engine",
                          producer_version="0.0.0", doc_string="a golden file")
helper.set_model_props(model, {"engine.model": "{}"})
onnx.checker.check_model(model, full_check=True)
with open("tiny.onnx", "wb") as file:
    file.write(model.SerializeToString())
