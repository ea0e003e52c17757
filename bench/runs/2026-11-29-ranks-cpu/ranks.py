"""Scaling over ranks on one machine: one process of two threads beside two processes of one thread, same global batch, in turns.

    engine data synth /tmp/ranks-data --train-per-class 24 --val-per-class 1
    python3 ranks.py ENGINE /tmp/ranks-data ROUNDS SIDE BATCH [mpi]        # from the repository's root

A line a run: what, images/s (median of the steps behind the first, by rank 0's clock), CPU seconds an image (user and system of
all ranks, validation of ten images and start included), load average before it."""
import json, os, resource, shutil, socket, statistics, subprocess, sys, tempfile

ENGINE, DATA = sys.argv[1:3]
ROUNDS, SIDE, BATCH = map(int, sys.argv[3:6])
IMAGES = 240 if SIDE < 128 else 128
KINDS = ["1 process x 2 threads", "2 ranks x 1 thread, TCP"] + (["2 ranks x 1 thread, MPI"] if "mpi" in sys.argv[6:] else [])


def command(output, threads):
    sets = [f"data.resolution={SIDE}", f"data.batch={BATCH}", "data.micro_batch=16", "epochs=1", "data.workers=1", f"device.threads={threads}"]
    args = [ENGINE, "train", "--config", "configs/debug.toml", "--device", "cpu", "--data", DATA, "--output", output]
    return args + [part for one in sets for part in ("--set", one)]


def run(kind):
    output = tempfile.mkdtemp()
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    quiet = dict(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    if kind.endswith("MPI"):
        mpirun = ["mpirun", "--allow-run-as-root", "--bind-to", "none", "-np", "2"]
        started = [subprocess.Popen(mpirun + command(output, 1), **quiet)]
    elif kind.endswith("TCP"):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        place = dict(WORLD_SIZE="2", LOCAL_WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
        started = [
            subprocess.Popen(command(output, 1), env=dict(os.environ, RANK=str(r), LOCAL_RANK=str(r), **place), **quiet) for r in (0, 1)
        ]
    else:
        started = [subprocess.Popen(command(output, 2), **quiet)]
    codes = [process.wait() for process in started]
    assert codes == [0] * len(codes), (kind, codes)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    steps = [json.loads(line) for line in open(f"{output}/metrics.jsonl")]
    rates = [step["clock"]["images_per_second"] for step in steps if step["kind"] == "step"][1:]
    shutil.rmtree(output)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return statistics.median(rates), cpu / IMAGES


figures = {kind: [] for kind in KINDS}
for _ in range(ROUNDS):
    for kind in KINDS:
        load = os.getloadavg()[0]
        rate, cpu = run(kind)
        figures[kind].append((rate, cpu))
        print(f"{kind:24}  {rate:6.2f} images/s  {1e3 * cpu:6.2f} CPU ms an image  load {load:.1f}", flush=True)
for kind, of in figures.items():
    rates, cpu = zip(*of)
    print(f"median {kind:24}  {statistics.median(rates):6.2f} images/s (best {max(rates):.2f})  {1e3 * statistics.median(cpu):6.2f} CPU ms an image (least {1e3 * min(cpu):.2f})")
