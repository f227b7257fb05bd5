"""`delphi serve`: the annotation service as a process of its own, without Ray.

Invariant: it ends within seconds of SIGTERM, SIGINT, SIGHUP (unless ignored) or, if asked, its parent's death; a mistake is one line and exit code 2.
"""

import argparse
import contextlib
import dataclasses
import os
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from configs.annotation_schema import AccessConfig, ServiceConfig
from configs.flags import add_flags, check_flags
from configs.paths import path_argument
from llm_server.standard_output import guarded, output_may_be_lost

FLAGS = tuple(field.name for field in dataclasses.fields(ServiceConfig) if field.name != "hang_timeout_s")
"""Fields of `ServiceConfig` that are flags; the other is for whoever watches a service."""
ACCESS_FLAGS = tuple(
    field.name for field in dataclasses.fields(AccessConfig) if field.name != "insecure_listen_anywhere"
)
DEFAULTS = dataclasses.replace(ServiceConfig(), port=7431, nice=0, torch_threads=0)
"""Alone on a machine the service may use all of it; one that a run starts is told otherwise."""
ANY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "[::1]", "[::]": "[::1]"}
"""What listens on every address of a machine, and where the machine itself finds it."""
PREPARING = {"scripted": "answering by its script", "none": "embedding sentences only"}
"""What engines do that load no model."""


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until told to stop; exit code 0, 2 where the command, the model or the rubric is wrong, 1 where trying again may help."""
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

    files = make_credentials(directory, [] if config.host in ANY_ADDRESS or is_loopback(config.host) else [config.host])
    host = "HOST" if config.host in ANY_ADDRESS or is_loopback(config.host) else config.host
    print(
        f"made credentials for a year in {directory}, readable by you alone. Keep server.key here, copy ca.pem and token to where runs are.\n"
        f"  delphi serve --host {host} --port {config.port} --tls-cert {files.server_cert} --tls-key {files.server_key}"
        f" --token-file {files.token} ...\n"
        f"  delphi train annotator.address={host}:{config.port} annotator.tls_ca={files.ca} annotator.token_file={files.token} ...\n"
        f"For client certificates as well: --tls-client-ca {files.ca}, and annotator.tls_cert={files.client_cert}"
        f" annotator.tls_key={files.client_key}"
    )
    return 0


def _run(config: ServiceConfig, access: AccessConfig, arguments: argparse.Namespace) -> None:
    from llm_server.rubrics.loading import load_rubric
    from llm_server.rubrics.rubric import Rubric

    rubric = load_rubric(arguments.rubric)
    address_file = Path(arguments.address_file) if arguments.address_file else None
    if address_file and (address_file.is_dir() or not address_file.absolute().parent.is_dir()):
        raise ValueError(f"--address-file: got {address_file}, wanted a file in a folder that exists")
    import asyncio
    import logging
    import signal

    from llm_server.engines.building import check_engine
    from llm_server.service.auth import check_access, said
    from llm_server.service.judge import Judge, build_judge
    from llm_server.service.service import serve

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("httpx2").setLevel(logging.WARNING)  # it writes a line per request
    output_may_be_lost()
    check_access(config.host, access)
    check_engine(config)  # what can be seen to be wrong is said before anybody is told an address

    def build(config: ServiceConfig, rubric: Rubric) -> Judge:
        if config.engine in ("transformers", "none") and config.torch_threads:
            import torch

            torch.set_num_threads(config.torch_threads)
        return build_judge(config, rubric)

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
            print(
                f"listening on {address}, {PREPARING.get(config.engine, f'loading {config.model}')}; {said(access)}",
                flush=True,
            )

        def on_serving(judge: Judge) -> None:
            if arguments.nice_once_ready:
                be_nice(config.nice)
            judging = judge.describe()
            print(
                f"serving {judging.model} ({judging.engine}), rubric {judging.rubric_id} version {judging.rubric_version},"
                f" threshold {judging.threshold:.3f}",
                flush=True,
            )

        return await serve(
            config, rubric, build, access=access, on_listening=on_listening, on_serving=on_serving, stop=stop
        )

    if not asyncio.run(session()):
        os._exit(0)  # a thread in the midst of loading a model aborts an interpreter that ends in the ordinary way


def be_nice(niceness: int) -> None:
    """Lower the priority of this process by so much: of all its threads, which on Linux have one each, and of those that they start."""
    threads = Path("/proc/self/task")
    if not threads.is_dir():
        os.nice(niceness)
        return
    wanted = min(os.getpriority(os.PRIO_PROCESS, 0) + niceness, 19)
    for thread in threads.iterdir():
        with contextlib.suppress(ProcessLookupError):  # it has ended
            os.setpriority(os.PRIO_PROCESS, int(thread.name), wanted)


def _watch_parent(on_end: "object") -> None:
    """Call `on_end` when standard input ends, as it does when the parent that holds its other end dies; then insist."""

    def watch() -> None:
        while os.read(
            0, 4096
        ):  # not sys.stdin: its lock, held by a thread that waits, aborts the interpreter at its end
            pass
        on_end()  # type: ignore[operator]
        threading.Event().wait(10.0)
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
        description="Run the annotation service: an LLM's judgements about short texts, over gRPC (llm_server/annotation.proto).",
        epilog="example: delphi serve --model smollm2 --rubric nethack_progress --port 7431\n"
        "         delphi train --preset nethack_score annotator.address=127.0.0.1:7431",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--rubric",
        type=path_argument,
        default="nethack_progress",
        help="a built-in rubric or a YAML file (default: nethack_progress)",
    )
    add_flags(parser, DEFAULTS, FLAGS)
    add_flags(parser, AccessConfig(), ACCESS_FLAGS)
    parser.add_argument("--address-file", type=path_argument, help="write host:port here once listening")
    parser.add_argument("--nice-once-ready", action="store_true", help="take --nice only when the model is loaded")
    parser.add_argument("--exit-with-parent", action="store_true", help="stop when standard input ends")
    parser.add_argument(
        "--insecure-listen-anywhere",
        action="store_true",
        help="allow a --host that other machines reach without TLS and token",
    )
    parser.add_argument(
        "--make-credentials",
        type=path_argument,
        metavar="DIR",
        help="write a CA, certificates for --host and a token into DIR, say how to use them, and end",
    )
    return parser


if __name__ == "__main__":
    sys.exit(guarded(main))
