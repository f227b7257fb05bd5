"""`delphi serve`: the annotation service as a process of its own, without Ray.

Invariant: it ends within seconds of SIGTERM, SIGINT, SIGHUP (unless ignored) or, with `--exit-with-parent`, its
parent's death; a configuration error is one line and exit code 2.
"""

import argparse
import contextlib
import dataclasses
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from configs.annotation_schema import AccessConfig, ServiceConfig
from configs.flags import add_flags, check_flags
from configs.paths import path_argument
from llm_server.standard_output import guarded, output_may_be_lost

FLAGS = tuple(field.name for field in dataclasses.fields(ServiceConfig) if field.name != "hang_timeout_s")
"""Fields of `ServiceConfig` that are flags; the other one is for the process that supervises a service."""
ACCESS_FLAGS = tuple(
    field.name for field in dataclasses.fields(AccessConfig) if field.name != "insecure_listen_anywhere"
)
DEFAULTS = dataclasses.replace(ServiceConfig(), port=7431, nice=0, torch_threads=0)
"""Started by hand, the service may use the whole machine; a run starts its own with other values."""
ANY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "[::1]", "[::]": "[::1]"}
"""Addresses that mean every interface of a machine, and where the machine itself reaches them."""
DEFAULT_RUBRIC = "nethack_progress"
PREPARING = {"scripted": "answering by its script", "none": "embedding sentences only"}
"""What the engines without a model do at the start, for a message."""


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until told to stop; exit code 0, 2 for a wrong command, model or rubric, 1 where a retry may succeed."""
    arguments = _parser().parse_args(argv)
    config = ServiceConfig(**{name: getattr(arguments, name) for name in FLAGS})
    access = AccessConfig(
        **{name: getattr(arguments, name) for name in ACCESS_FLAGS},
        insecure_listen_anywhere=arguments.insecure_listen_anywhere,
    )
    try:
        check_flags(ServiceConfig, dataclasses.asdict(config))
        check_flags(AccessConfig, dataclasses.asdict(access))
        if arguments.make_credentials:
            return _make_credentials(Path(arguments.make_credentials), config)
        if config.nice and not arguments.nice_once_ready:
            be_nice(config.nice)
        _run(config, access, arguments)
    except ValueError as error:
        return _refuse(str(error))
    except RuntimeError as error:
        from llm_server.engines.openai_http import EndpointRefused, EndpointUnavailable

        if not isinstance(error, EndpointUnavailable | EndpointRefused):
            raise
        return _refuse(str(error), 1)
    return 0


def _make_credentials(directory: Path, config: ServiceConfig) -> int:
    from llm_server.credentials import is_loopback, make_credentials

    hosts = [] if config.host in ANY_ADDRESS or is_loopback(config.host) else [config.host]
    files, host = make_credentials(directory, hosts), hosts[0] if hosts else "HOST"
    print(
        f"made credentials for a year in {directory}, readable by you alone. Keep server.key here, copy ca.pem and"
        " token to where runs are.\n"
        f"  delphi serve --host {host} --port {config.port} --tls-cert {files.server_cert} --tls-key {files.server_key}"
        f" --token-file {files.token} ...\n"
        f"  delphi train annotator.address={host}:{config.port} annotator.tls_ca={files.ca}"
        f" annotator.token_file={files.token} ...\n"
        f"For client certificates as well: --tls-client-ca {files.ca}, and annotator.tls_cert={files.client_cert}"
        f" annotator.tls_key={files.client_key}"
    )
    return 0


def _run(config: ServiceConfig, access: AccessConfig, arguments: argparse.Namespace) -> None:
    from llm_server.rubrics.loading import distinct_rubrics, load_rubric

    rubrics = distinct_rubrics(map(load_rubric, arguments.rubric or [DEFAULT_RUBRIC]))
    address_file = Path(arguments.address_file) if arguments.address_file else None
    if address_file and (address_file.is_dir() or not address_file.absolute().parent.is_dir()):
        raise ValueError(f"--address-file: got {address_file}, wanted a file in a folder that exists")
    import asyncio
    import logging
    import signal

    from llm_server.engines.building import check_engine
    from llm_server.service.auth import check_access, requirements
    from llm_server.service.judge import Judge, build_judge
    from llm_server.service.service import serve

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("httpx2").setLevel(logging.WARNING)  # it writes a line per request
    output_may_be_lost()
    check_access(config.host, access)
    check_engine(config)  # an error in the configuration is reported before an address is

    def build() -> Judge:
        if config.engine in ("transformers", "none") and config.torch_threads:
            import torch

            torch.set_num_threads(config.torch_threads)
        return build_judge(config, rubrics)

    async def session() -> bool:
        stop, loop = asyncio.Event(), asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, lambda: os._exit(1) if stop.is_set() else stop.set())
        if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # as under nohup; a closed terminal may send it twice
            loop.add_signal_handler(signal.SIGHUP, stop.set)
        if arguments.exit_with_parent:
            _watch_parent(lambda: loop.call_soon_threadsafe(stop.set))

        def on_listening(address: str) -> None:
            if address_file:
                _write_atomically(address_file, address)
            doing = PREPARING.get(config.engine, f"loading {config.model}")
            print(f"listening on {address}, {doing}; {requirements(access)}", flush=True)

        def on_serving(judge: Judge) -> None:
            if arguments.nice_once_ready:
                be_nice(config.nice)
            for said in map(judge.describe, judge.rubrics):
                name = f"rubric {said.rubric_id} version {said.rubric_version}"
                print(f"serving {said.model} ({said.engine}), {name}, threshold {said.threshold:.3f}", flush=True)

        return await serve(config, build, access=access, on_listening=on_listening, on_serving=on_serving, stop=stop)

    if not asyncio.run(session()):
        os._exit(0)  # an ordinary exit aborts where a thread is loading a model


def be_nice(niceness: int) -> None:
    """Raise the niceness of all threads of this process (each has its own on Linux), and of those they start."""
    threads = Path("/proc/self/task")
    if not threads.is_dir():
        os.nice(niceness)
        return
    wanted = min(os.getpriority(os.PRIO_PROCESS, 0) + niceness, 19)
    for thread in threads.iterdir():
        with contextlib.suppress(ProcessLookupError):  # it has ended
            os.setpriority(os.PRIO_PROCESS, int(thread.name), wanted)


def _watch_parent(on_end: Callable[[], object]) -> None:
    """Call `on_end` when standard input ends, as it does when the parent dies; ten seconds later exit by force."""

    def watch() -> None:
        # Not sys.stdin: a thread that waits for it holds its lock, which aborts the interpreter at exit.
        while os.read(0, 4096):
            pass
        on_end()
        time.sleep(10.0)
        os._exit(1)  # the orderly end hangs, perhaps in a forward pass

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()


def _write_atomically(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(text)
        os.replace(temporary, path)
    except OSError as error:
        raise ValueError(
            f"--address-file: {path} cannot be written ({error.strerror}): give a file in a writable folder"
        ) from None


def _refuse(message: str, code: int = 2) -> int:
    print(f"delphi serve: {message}", file=sys.stderr)
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="delphi serve",
        description="Run the annotation service: an LLM's judgements about short texts, over gRPC"
        " (llm_server/annotation.proto).",
        epilog="example: delphi serve --model smollm2 --rubric nethack_progress --port 7431\n"
        "         delphi train --preset nethack_score annotator.address=127.0.0.1:7431",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add, built_in = parser.add_argument, f"a built-in rubric or a YAML file (default: {DEFAULT_RUBRIC})"
    several = f"{built_in}; given several times, all are served with one loaded model"
    add("--rubric", type=path_argument, action="append", help=several)
    add_flags(parser, DEFAULTS, FLAGS)
    add_flags(parser, AccessConfig(), ACCESS_FLAGS)
    add("--address-file", type=path_argument, help="write host:port here once listening")
    add("--nice-once-ready", action="store_true", help="apply --nice only when the model is loaded")
    add("--exit-with-parent", action="store_true", help="stop when standard input ends")
    insecure = "allow a --host that other machines reach without TLS and token"
    add("--insecure-listen-anywhere", action="store_true", help=insecure)
    making = "write a CA, certificates for --host and a token into DIR, print how to use them, and exit"
    add("--make-credentials", type=path_argument, metavar="DIR", help=making)
    return parser


if __name__ == "__main__":
    sys.exit(guarded(main))
