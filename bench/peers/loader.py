"""Loading beside torchvision, DALI and FFCV on the CPU, in turns: read, decode, RandomResizedCrop(224), flip, u8 pixels.

    python bench/peers/loader.py --data FOLDER [--packed FOLDER] [--engine target/release/engine] [--rounds 5] [--seconds 4]
                                 [--threads 1,2] [--programs engine,torchvision-pil,...] [--output FILE.jsonl]

FOLDER has class folders of JPEGs; --packed a second one, the output of `engine data pack --shorter-side 256`, which only
the engine reads. Every measurement is a process of its own. Its figure is images a CPU-second (user and system time by
getrusage, all threads and children), since the machine may be shared; the table gives the median over the rounds and the
best pass of all. A program that is not installed is left out and named.

The peers, each as its documentation has it:
  torchvision-pil     Image.open().convert("RGB"), RandomResizedCrop, RandomHorizontalFlip; a process a thread, no queue
  torchvision-tensor  torchvision.io.decode_jpeg, the same transforms of v2 with antialias; a process a thread, no queue
  dali                readers.file, decoders.image_random_crop, resize, flip; device "cpu", its own threads
  ffcv                a .beton of mode "jpg" (written here, not timed), RandomResizedCropRGBImageDecoder, its own threads
"""

import argparse
import json
import multiprocessing
import os
import pathlib
import resource
import statistics
import subprocess
import sys
import tempfile
import time

SIZE = 224
BATCH = 32
PEERS = ["torchvision-pil", "torchvision-tensor", "dali", "ffcv"]


def cpu_seconds():
    return sum(
        usage.ru_utime + usage.ru_stime
        for usage in (resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN))
    )


def files_of(data):
    return sorted(str(p) for p in pathlib.Path(data).rglob("*") if p.suffix.lower() in (".jpg", ".jpeg"))


def passes(one_pass, count, seconds):
    """A pass that is not counted, then passes for `seconds`: images a CPU-second of each, and a second over all."""
    one_pass()
    rates, begin, images = [], time.perf_counter(), 0
    while not rates or time.perf_counter() - begin < seconds:
        cpu = cpu_seconds()
        one_pass()
        rates.append(count / (cpu_seconds() - cpu))
        images += count
    return {"cpu_rates": rates, "images_per_second": images / (time.perf_counter() - begin)}


def in_processes(one_file, files, threads):
    """Each of `threads` processes takes every threads-th file; their CPU time counts once they are waited for."""

    def one_pass():
        if threads == 1:
            for file in files:
                one_file(file)
            return
        part = lambda i: [one_file(file) for file in files[i::threads]] and None
        workers = [multiprocessing.get_context("fork").Process(target=part, args=(i,)) for i in range(threads)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()

    return one_pass


def torchvision_pil(data, threads, seconds):
    import numpy as np
    import PIL
    import torch
    import torchvision
    from PIL import Image
    from torchvision import transforms

    torch.set_num_threads(1)
    augment = transforms.Compose([transforms.RandomResizedCrop(SIZE), transforms.RandomHorizontalFlip()])

    def one_file(path):
        with open(path, "rb") as file:
            return np.asarray(augment(Image.open(file).convert("RGB")))

    files = files_of(data)
    record = passes(in_processes(one_file, files, threads), len(files), seconds)
    return record | {"versions": {"torchvision": torchvision.__version__, "pillow": PIL.__version__}}


def torchvision_tensor(data, threads, seconds):
    import torch
    import torchvision
    from torchvision.io import ImageReadMode, decode_jpeg, read_file
    from torchvision.transforms import v2

    torch.set_num_threads(1)
    augment = v2.Compose([v2.RandomResizedCrop(SIZE, antialias=True), v2.RandomHorizontalFlip()])
    one_file = lambda path: augment(decode_jpeg(read_file(path), mode=ImageReadMode.RGB))
    files = files_of(data)
    record = passes(in_processes(one_file, files, threads), len(files), seconds)
    return record | {"versions": {"torchvision": torchvision.__version__, "torch": torch.__version__}}


def dali(data, threads, seconds):
    import nvidia.dali
    from nvidia.dali import fn, pipeline_def, types

    @pipeline_def(batch_size=BATCH, num_threads=threads, device_id=None)
    def pipeline():
        encoded, labels = fn.readers.file(file_root=data, random_shuffle=True, name="reader")
        images = fn.decoders.image_random_crop(encoded, device="cpu", output_type=types.RGB)
        images = fn.resize(images, size=(SIZE, SIZE), interp_type=types.INTERP_LINEAR, antialias=True)
        return fn.flip(images, horizontal=fn.random.coin_flip(probability=0.5)), labels

    pipe = pipeline()
    pipe.build()
    batches = len(files_of(data)) // BATCH

    def one_pass():
        for _ in range(batches):
            pipe.run()

    record = passes(one_pass, batches * BATCH, seconds)
    return record | {"versions": {"dali": nvidia.dali.__version__}}


def ffcv(data, threads, seconds):
    import importlib.metadata

    import numpy as np
    from ffcv.fields import IntField, RGBImageField
    from ffcv.fields.basics import IntDecoder
    from ffcv.fields.rgb_image import RandomResizedCropRGBImageDecoder
    from ffcv.loader import Loader, OrderOption
    from ffcv.transforms import RandomHorizontalFlip
    from ffcv.writer import DatasetWriter
    from PIL import Image

    class Files:
        def __init__(self):
            self.files = files_of(data)

        def __len__(self):
            return len(self.files)

        def __getitem__(self, index):
            return Image.open(self.files[index]).convert("RGB"), 0

    with tempfile.TemporaryDirectory() as folder:
        beton = os.path.join(folder, "images.beton")
        # The format keeps pixels encoded again: at quality 95, as its ImageNet recipe has it.
        fields = {"image": RGBImageField(write_mode="jpg", jpeg_quality=95), "label": IntField()}
        DatasetWriter(beton, fields, num_workers=1).from_indexed_dataset(Files())
        image = [RandomResizedCropRGBImageDecoder((SIZE, SIZE)), RandomHorizontalFlip()]
        loader = Loader(
            beton,
            batch_size=BATCH,
            num_workers=threads,
            order=OrderOption.RANDOM,
            os_cache=True,
            drop_last=True,
            pipelines={"image": image, "label": [IntDecoder()]},
        )
        batches = len(loader)

        def one_pass():
            for images, _ in loader:
                np.asarray(images)

        record = passes(one_pass, batches * BATCH, seconds)
        record["bytes"] = os.path.getsize(beton)
    return record | {"versions": {"ffcv": importlib.metadata.version("ffcv")}}


def engine(program, data, threads, seconds):
    """The engine's own benchmark: one process, measured inside it."""
    command = [program, "bench", "loader", "--data", data, "--workers", str(threads), "--seconds", str(seconds), "--json"]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    record = json.loads(lines[-1])
    rates = [record["images_per_cpu_second"]]
    return record | {"cpu_rates": rates, "best": record["best_images_per_cpu_second"]}


def measure(args, name, threads):
    if name in PEERS:
        command = [sys.executable, __file__, "--worker", name, "--data", args.data]
        command += ["--threads", str(threads), "--seconds", str(args.seconds)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            return {"left_out": (done.stderr.strip().splitlines() or ["no reason given"])[-1]}
        record = json.loads(done.stdout.splitlines()[-1])
    else:
        record = engine(args.engine, args.packed if name == "engine-packed" else args.data, threads, args.seconds)
    record.setdefault("best", max(record["cpu_rates"]))
    record["median"] = statistics.median(record.pop("cpu_rates"))
    return record | {"load_1min": os.getloadavg()[0]}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="class folders of JPEGs")
    parser.add_argument("--packed", help="the same through `engine data pack --shorter-side 256`")
    parser.add_argument("--engine", default="target/release/engine")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each measurement")
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--programs", default=",".join(["engine", "engine-packed"] + PEERS))
    parser.add_argument("--output", help="every measurement as a JSON line")
    parser.add_argument("--worker", choices=PEERS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        run = {"torchvision-pil": torchvision_pil, "torchvision-tensor": torchvision_tensor, "dali": dali, "ffcv": ffcv}
        print(json.dumps(run[args.worker](args.data, int(args.threads), args.seconds)))
        return
    names = [name for name in args.programs.split(",") if name != "engine-packed" or args.packed]
    found = {}
    out = open(args.output, "w") if args.output else None
    for number in range(args.rounds):
        for threads in (int(count) for count in args.threads.split(",")):
            for name in names:
                record = measure(args, name, threads) | {"program": name, "threads": threads, "round": number}
                found.setdefault((threads, name), []).append(record)
                if out:
                    print(json.dumps(record), file=out, flush=True)
                print(f"round {number + 1}, {threads} threads, {name}: {record.get('median', record)}", file=sys.stderr)
    print("| threads | program | images a CPU-second, median | best | images/s, median |")
    print("|---|---|---|---|---|")
    for (threads, name), records in found.items():
        good = [record for record in records if "median" in record]
        if not good:
            print(f"| {threads} | {name} | left out: {records[0]['left_out']} | | |")
            continue
        median = statistics.median(record["median"] for record in good)
        best = max(record["best"] for record in good)
        second = statistics.median(record["images_per_second"] for record in good)
        print(f"| {threads} | {name} | {median:.0f} | {best:.0f} | {second:.0f} |")


if __name__ == "__main__":
    main()
