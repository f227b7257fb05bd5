"""`delphi doctor`'s checks of the machine: torch, cores, memory, disks, limits, the clock.

Invariant: nothing is changed; a file written to test a folder is removed again.
"""

import contextlib
import os
import resource
import shutil
import tempfile
import time
from pathlib import Path

import psutil
import torch

from actors.policy import PolicyNet, resolve_precision
from cluster.doctor.result import CheckResult, failed, ok, warning
from cluster.doctor.subject import Subject
from cluster.on_ray.placement import SMALLEST_BYTES, rollout_bytes, rollouts_at_once
from cluster.run import temporary
from configs.devices import resolve_device
from llm_server.engines.model_check import local_folder

REMOTE_FILE_SYSTEMS = frozenset(
    ["nfs", "nfs4", "cifs", "smb3", "fuse.sshfs", "lustre", "ceph", "9p", "glusterfs", "fuse.glusterfs", "beegfs"]
)
USUAL_LAYER = torch.nn.Linear(512, 1024)
"""About the largest layer of a policy, by which precision is chosen."""
PROCESS_BYTES = 450e6
"""Approximate memory of torch and Delphi in one process, measured on Linux."""
ENGINE_BYTES = {True: 1.2e6, False: 4e6}
"""Approximate memory of one NetHack engine, with and without shared code."""


def check_torch(subject: Subject) -> CheckResult:
    """Devices and precision, as the learner and the workers would choose them."""
    config, has_cuda = subject.config, torch.cuda.is_available()
    cuda = f"CUDA {torch.version.cuda}, {torch.cuda.device_count()} devices" if has_cuda else "no CUDA device"
    found = f"{torch.__version__}, {cuda}"
    if config.cluster.mode == "connect":
        return ok(f"{found} (on this machine; the run uses the cluster's)")
    try:
        learner = resolve_device(config.learner.device, "learner.device")
        resolve_device(config.actors.device, "actors.device")
        precision = resolve_precision(config.learner.precision, learner, USUAL_LAYER, "the learner")
    except ValueError as error:
        return failed(found, str(error))
    found += f"; the learner computes on {learner} in {'bf16' if precision else 'fp32'}"
    if not has_cuda and any(Path("/dev").glob("nvidia[0-9]*")):
        version = torch.version.cuda
        reason = "this torch is built without CUDA" if version is None else f"it is built for CUDA {version}"
        found += f", although there is an NVIDIA device ({reason})"
        return warning(found, "install a torch that fits the driver (nvidia-smi)")
    is_bf16_on_cpu = precision is not None and learner.type == "cpu" and config.learner.precision == "bf16"
    if is_bf16_on_cpu and resolve_precision("auto", learner, USUAL_LAYER, "the learner") is None:
        return warning(f"{found}, which is no faster here", "set learner.precision=auto")
    return ok(found)


def check_machine(subject: Subject) -> CheckResult:
    """Cores and memory against the run's estimated need."""
    config, cores, memory = subject.config, len(os.sched_getaffinity(0)), psutil.virtual_memory()
    need = _memory_bytes(subject)
    free = f"{memory.available / 1e9:.1f} of {memory.total / 1e9:.1f} GB of memory free"
    found = f"{cores} cores, {free}; the run takes about {need / 1e9:.1f}"
    if config.cluster.mode == "connect":
        return ok(f"{found} (spread over the cluster)")
    if need > memory.total:
        keys = "actors.num_workers, actors.envs_per_worker or cluster.object_store_bytes"
        return failed(found, f"lower {keys}, or take a smaller service.model")
    if need > memory.available:
        return warning(found, "end what else uses memory, or lower actors.num_workers or actors.envs_per_worker")
    if config.cluster.mode == "local" and config.actors.num_workers + 1 > cores:
        advice = f"set actors.num_workers={max(1, cores - 1)}: more workers than that take turns on the cores"
        return warning(f"{found}; {config.actors.num_workers} workers and a learner share the cores", advice)
    return ok(found)


def _memory_bytes(subject: Subject) -> float:
    """The estimated memory of the whole run, its own service included."""
    config, workers = subject.config, subject.config.actors.num_workers
    engines = workers * config.actors.envs_per_worker * ENGINE_BYTES[config.env.share_engine_code]
    total = engines + 2 * PROCESS_BYTES
    if config.cluster.mode != "inline":
        total += workers * PROCESS_BYTES + 1.2e9 + subject.object_store_bytes
    if subject.plan.loads_language_model:
        total += 0.5e9
        with contextlib.suppress(ValueError, OSError):  # the check of the judge reports it
            total += sum(file.stat().st_size for file in local_folder(subject.plan.service.model).glob("*.safetensors"))
    return total


def check_run_dir(subject: Subject) -> CheckResult:
    """Whether the run directory can be written, and has room for checkpoints."""
    config = subject.config
    path = Path(config.run_dir).absolute()
    place = next(parent for parent in (path, *path.parents) if parent.exists() or parent.is_symlink())
    if problem := _why_not_writable(place):
        return failed(f"{path} cannot be written ({problem})", "correct the permissions, or give another run_dir=")
    one, keep = _checkpoint_bytes(subject), config.checkpoint.keep
    need = (keep + 1) * one + 200e6
    free, kind = shutil.disk_usage(place).free, _file_system(place)
    checkpoints = f"{keep} checkpoints of {one / 1e6:.0f} MB"
    found = f"{path}, {free / 1e9:.1f} GB free ({kind}); {checkpoints} and captions take {need / 1e9:.1f}"
    if free < need:
        return failed(found, "make room, lower checkpoint.keep, or give another run_dir=")
    if free < 2 * need:
        return warning(found, "make room before it fills up: a run goes on without checkpoints, and fails at its end")
    if kind in REMOTE_FILE_SYSTEMS and config.cluster.mode != "connect":
        reason = "on some network file systems locks do not keep two runs on different machines apart"
        return warning(found, f"a local disk is safer: {reason}")
    return ok(found)


def _checkpoint_bytes(subject: Subject) -> float:
    """The size of the run's largest checkpoint, or else of weights with Adam's two moments and a caption book."""
    folder = Path(subject.config.run_dir) / "checkpoints"
    sizes = [sum(file.stat().st_size for file in path.glob("*")) for path in folder.glob("step_*")]
    if sizes:
        return max(sizes)
    net = PolicyNet(subject.spec, subject.config.policy)
    return sum(parameter.numel() * 12 for parameter in net.parameters()) + 30e6


def check_temporary(subject: Subject) -> CheckResult:
    """Whether the folder for temporary files can be written, and has room for a run's."""
    config, is_local = subject.config, subject.config.cluster.mode == "local"
    need = config.actors.num_workers * config.actors.envs_per_worker * 4e6 + (1e9 if is_local else 0)
    root = temporary.root()
    if problem := _why_not_writable(root):
        return failed(f"{root} cannot be written ({problem})", "correct its permissions (mode 1777), or set TMPDIR")
    usage = shutil.disk_usage(root)
    found = f"{root}, {usage.free / 1e9:.1f} GB free; the run takes up to {need / 1e9:.1f}"
    if is_local and not temporary.ray_directory(config.run_dir).is_relative_to(root):
        found += f"; too long a path for Ray's sockets, so its session goes to {temporary.SHORT_ROOT}"
    if usage.free < need:
        return failed(found, f"make room on the disk of {root}, or set TMPDIR")
    if is_local and usage.free < 0.05 * usage.total:
        found += ", and Ray spills nothing to a disk that is 95 % full"
        return warning(found, f"make room on the disk of {root}")
    return ok(found)


def check_object_store(subject: Subject) -> CheckResult:
    """Whether Ray's object store holds the rollouts that may lie in it, and fits into shared memory."""
    need = subject.object_store_bytes
    number, one = rollouts_at_once(subject.config), rollout_bytes(subject.config, subject.spec)
    if need < SMALLEST_BYTES:
        found = f"cluster.object_store_bytes={need}, and Ray takes no less than {SMALLEST_BYTES}"
        return failed(found, "set it to 0, or higher")
    if need < number * one:
        found = f"{need / 1e6:.0f} MB, and {number} rollouts of {one / 1e6:.0f} MB may lie in it"
        advice = "Ray moves what does not fit to disk, which is slow: set cluster.object_store_bytes=0, or higher"
        return warning(found, advice)
    shared = Path("/dev/shm")
    free = shutil.disk_usage(shared).free if shared.is_dir() else 0
    found = f"{need / 1e6:.0f} MB in /dev/shm, which has {free / 1e6:.0f} MB free"
    if free < need:
        advice = "Ray uses /tmp in its place, which is slower: enlarge /dev/shm (docker run --shm-size=4g)"
        return warning(found, advice)
    return ok(found)


def check_limits(subject: Subject) -> CheckResult:
    """The limit on open files, and the clock, which certificates and TensorBoard depend on."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    need = 512 + 4 * subject.config.actors.envs_per_worker + (3584 if subject.config.cluster.mode == "local" else 0)
    newest = max(path.stat().st_mtime for path in Path(__file__).parent.glob("*.py"))
    if time.time() < newest - 86_400:
        found = f"the clock says {time.strftime('%Y-%m-%d')}, which is before this program was written"
        return warning(found, "set the clock")
    if soft < need:
        advice = f"raise it before starting: ulimit -n {min(hard, 65536)}"
        return warning(f"at most {soft} open files, the run may need {need}", advice)
    return ok(f"{soft} open files, clock {time.strftime('%Y-%m-%d %H:%M %Z')}")


def _file_system(path: Path) -> str:
    """The kind of file system of `path`, by the kernel's name."""
    around = [partition for partition in psutil.disk_partitions(all=True) if path.is_relative_to(partition.mountpoint)]
    return max(reversed(around), key=lambda partition: len(partition.mountpoint)).fstype if around else "?"


def _why_not_writable(folder: Path) -> str | None:
    try:
        with tempfile.TemporaryFile(dir=folder, prefix=".delphi-doctor-") as file:
            file.write(b"x" * 4096)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return error.strerror or str(error)
    return None
