"""One peer of bench/peers/infer.py, as a process that stays: loads a model once, then times it whenever it is asked to.

    python bench/peers/infer_worker.py ENGINE PRECISION MODEL BATCH THREADS

ENGINE: onnxruntime, openvino or torch. MODEL: an ONNX file, for torch a safetensors state dict. Speaks lines of JSON: first
{"load_ms", "version", "kernels"}, what the library chose to run; then {"ms": [...], "cpu_ms"} for each line "SECONDS" of its
input, where cpu_ms is what a run took of all cores on average.
At the end of the input: {"peak_memory_mb"}.
"""

import collections
import json
import resource
import sys
import tempfile
import time

import numpy as np
from infer_model import convolutions, network_input, pixels, read_safetensors

RESOLUTION = 224


def load_onnxruntime(precision, model, threads):
    import onnx
    import onnxruntime as ort

    if precision == "bf16":
        sys.exit("onnxruntime has no bf16 on CPUs")
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    with tempfile.NamedTemporaryFile(suffix=".onnx") as file:
        options.optimized_model_filepath = file.name
        session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        graph = onnx.load(file.name).graph
    kinds = collections.Counter(f"{node.domain or 'ai.onnx'}.{node.op_type}" for node in graph.node)
    return lambda x: session.run(None, {"input": x})[0], kinds, ort.__version__


def load_openvino(precision, model, threads):
    import openvino as ov

    core = ov.Core()
    config = {
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32",
    }
    compiled = core.compile_model(model, "CPU", config)
    request = compiled.create_infer_request()
    kinds = collections.Counter()
    for op in compiled.get_runtime_model().get_ops():
        info = op.get_rt_info()
        kinds[f"{info['layerType'].value} {info['primitiveType'].value}"] += 1
    return lambda x: request.infer({0: x})[0], kinds, ov.__version__.split("-")[0]


def load_torch(precision, model, threads):
    import torch
    import torch._inductor.config

    torch.set_num_threads(threads)
    torch._inductor.config.freezing = True
    network = torch_network(torch, read_safetensors(model)).eval().to(memory_format=torch.channels_last)
    if precision == "bf16":
        network = network.to(torch.bfloat16)
    elif precision != "fp32":
        sys.exit("torch runs in fp32 and bf16 here")
    compiled = torch.compile(network)

    def run(x):
        with torch.inference_mode():
            x = torch.from_numpy(x).to(memory_format=torch.channels_last)
            return compiled(x.to(torch.bfloat16) if precision == "bf16" else x).float().numpy()

    return run, {"compiled, channels_last, freezing; kernels: ONEDNN_VERBOSE=1": 1}, torch.__version__


def torch_network(torch, state):
    """torchvision's resnet50 without torchvision."""
    geometry = {conv: rest for conv, *rest in convolutions()}

    class Unit(torch.nn.Sequential):
        def __init__(self, conv):
            bn, k, c, r, stride, pad = geometry[conv]
            layer, norm = torch.nn.Conv2d(c, k, r, stride, pad, bias=False), torch.nn.BatchNorm2d(k)
            layer.weight.data = torch.tensor(state[f"{conv}.weight"])
            for part in ("weight", "bias", "running_mean", "running_var"):
                getattr(norm, part).data = torch.tensor(state[f"{bn}.{part}"])
            super().__init__(layer, norm)

    class Block(torch.nn.Module):
        def __init__(self, at):
            super().__init__()
            self.units = torch.nn.ModuleList(Unit(f"{at}.conv{i}") for i in (1, 2, 3))
            self.shortcut = Unit(f"{at}.downsample.0") if f"{at}.downsample.0" in geometry else torch.nn.Identity()

        def forward(self, x):
            y = torch.relu(self.units[0](x))
            y = torch.relu(self.units[1](y))
            return torch.relu(self.units[2](y) + self.shortcut(x))

    blocks = dict.fromkeys(conv.rsplit(".", 1)[0] for conv, *_ in convolutions() if conv.endswith("conv3"))
    fc = torch.nn.Linear(2048, len(state["fc.bias"]))
    fc.weight.data, fc.bias.data = torch.tensor(state["fc.weight"]), torch.tensor(state["fc.bias"])
    return torch.nn.Sequential(
        Unit("conv1"),
        torch.nn.ReLU(),
        torch.nn.MaxPool2d(3, 2, 1),
        *(Block(at) for at in blocks),
        torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(),
        fc,
    )


LOADERS = {"onnxruntime": load_onnxruntime, "openvino": load_openvino, "torch": load_torch}


def main():
    engine, precision, model, batch, threads = sys.argv[1:]
    start = time.perf_counter()
    run, kernels, version = LOADERS[engine](precision, model, int(threads))
    x = network_input(pixels(int(batch), RESOLUTION))
    logits = run(x)
    # The first answer is in the time: some libraries prepare their kernels for it.
    load = 1e3 * (time.perf_counter() - start)
    first = [float(value) for value in np.asarray(logits)[0, :8]]
    say = lambda **what: print(json.dumps(what), flush=True)
    say(load_ms=load, version=version, kernels=dict(kernels), logits=first)
    for line in sys.stdin:
        seconds, times = float(line), []
        begin, cpu = time.perf_counter(), time.process_time()
        while time.perf_counter() - begin < seconds or len(times) < 3:
            start = time.perf_counter()
            run(x)
            times.append(1e3 * (time.perf_counter() - start))
        say(ms=times, cpu_ms=1e3 * (time.process_time() - cpu) / len(times))
    say(peak_memory_mb=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


if __name__ == "__main__":
    main()
