"""Messages round-trip or raise an error, and the generated code is that of the proto file."""

import math
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet

from llm_server.annotation import Judgement, PairJudgement, ServiceDescription, Status
from llm_server.annotation_pb2 import DESCRIPTOR, AnnotateResponse
from llm_server.annotation_pb2 import Judgement as WireJudgement
from llm_server.wire import (
    annotate_response,
    describe_response,
    description_of,
    embed_response,
    item_hash,
    judgements_of,
    pair_judgements_of,
    pairs_response,
    vectors_of,
)

ROOT = Path(__file__).resolve().parents[2]
OK = Judgement(status=Status.OK, probability=0.75, answer_mass=0.5)
ITEMS = [b"a", b"b"]
UNPARSED = Judgement(status=Status.UNPARSED, probability=math.nan, answer_mass=0.01, cached=True)


def test_judgements_come_back_as_they_were_sent():
    back = judgements_of(
        AnnotateResponse.FromString(annotate_response([OK, UNPARSED], ITEMS).SerializeToString()), ITEMS
    )
    assert back[0] == OK
    assert repr(back[1]) == repr(UNPARSED)


def test_a_description_comes_back_as_it_was_sent():
    description = ServiceDescription(
        model="m", engine="e", fingerprint="f", rubric_id="r", rubric_version="1", rubric_hash="h", pairs_hash="p",
        threshold=0.4, max_items_per_request=7, max_item_bytes=8, forward_passes=9, engine_busy_s=1.5,
    )  # fmt: skip
    assert description_of(describe_response(description)) == description


@pytest.mark.parametrize(
    ("wire", "complaint"),
    [
        ({}, "unknown status"),
        ({"status": 9, "probability": 0.5}, "unknown status"),
        ({"status": WireJudgement.OK, "probability": math.nan, "answer_mass": 1.0}, "probability is nan"),
        ({"status": WireJudgement.OK, "probability": 1.5, "answer_mass": 1.0}, "probability is 1.5"),
        ({"status": WireJudgement.OK, "probability": 0.5, "answer_mass": -1.0}, "answer mass is -1.0"),
        ({"status": WireJudgement.UNPARSED, "probability": math.nan, "answer_mass": math.nan}, "answer mass is nan"),
    ],
)
def test_an_unsound_judgement_is_an_error_and_no_label(wire, complaint):
    with pytest.raises(ValueError, match=complaint):
        judgements_of(AnnotateResponse(judgements=[WireJudgement(item_hash=item_hash(b"a"), **wire)]), [b"a"])


def test_a_response_of_another_length_is_an_error():
    with pytest.raises(ValueError, match="2 items were asked and 1 judgements"):
        judgements_of(annotate_response([OK], [b"a"]), ITEMS)


def test_answers_in_another_order_are_an_error():
    with pytest.raises(ValueError, match="answer 0 is about another item than was asked there"):
        judgements_of(annotate_response([OK, OK], ITEMS[::-1]), ITEMS)
    tie = PairJudgement(status=Status.OK, preference=0.5, answer_mass=1.0, position_bias=0.0)
    assert pair_judgements_of(pairs_response([tie], [(b"a", b"b")]), [(b"a", b"b")]) == [tie]
    with pytest.raises(ValueError, match="answer 0 is about another item"):
        pair_judgements_of(pairs_response([tie], [(b"b", b"a")]), [(b"a", b"b")])
    vectors = np.eye(2, dtype=np.float32)
    assert (vectors_of(embed_response(vectors, ITEMS), ITEMS) == vectors).all()
    with pytest.raises(ValueError, match="answer 0 is about another item"):
        vectors_of(embed_response(vectors, ITEMS[::-1]), ITEMS)


def test_an_answer_is_about_its_item_and_what_that_was_judged_about():
    response = annotate_response([OK], [b"a"], abouts=[b"x"])
    assert judgements_of(response, [b"a"], abouts=[b"x"]) == [OK]
    for abouts in ([], [b"y"]):  # a service that is older than the client answers about the item alone
        with pytest.raises(ValueError, match="answer 0 is about another item"):
            judgements_of(response, [b"a"], abouts=abouts)


def test_answers_by_another_rubric_are_an_error_and_an_older_service_is_told_apart():
    with pytest.raises(ValueError, match=r"a rubric of hash 'theirs', wanted 'ours'$"):
        judgements_of(annotate_response([OK], [b"a"], rubric_hash="theirs"), [b"a"], "ours")
    with pytest.raises(ValueError, match="may be older than this client"):
        judgements_of(annotate_response([OK], [b"a"]), [b"a"], "ours")


def test_only_an_ok_judgement_carries_a_probability():
    wire = WireJudgement(status=WireJudgement.UNPARSED, probability=0.9, item_hash=item_hash(b"a"))
    (back,) = judgements_of(AnnotateResponse(judgements=[wire]), [b"a"])
    assert math.isnan(back.probability)


def test_the_generated_code_is_not_stale(tmp_path):
    proto = ROOT / "llm_server" / "annotation.proto"
    (command,) = re.findall(r"^//\s+(python -m grpc_tools\.protoc .*)$", proto.read_text(), re.MULTILINE)
    target = tmp_path / "set"
    protoc = [sys.executable, "-m", "grpc_tools.protoc", "-I.", f"--descriptor_set_out={target}"]
    subprocess.run([*protoc, "llm_server/annotation.proto"], cwd=ROOT, check=True)
    (fresh,) = FileDescriptorSet.FromString(target.read_bytes()).file
    entries = [entry for message in fresh.message_type for entry in message.nested_type]  # of maps
    for message in [*fresh.message_type, *entries]:
        for field in message.field:
            field.ClearField("json_name")  # follows from the name
    stub = (ROOT / "llm_server" / "annotation_pb2_grpc.py").read_text()
    fields = (ROOT / "llm_server" / "annotation_pb2.pyi").read_text()
    is_stale = fresh != FileDescriptorProto.FromString(DESCRIPTOR.serialized_pb)
    is_stale |= not all(
        f"/{fresh.package}.{service.name}/{m.name}'" in stub for service in fresh.service for m in service.method
    )
    is_stale |= not all(
        re.search(rf"^    {field.name}: ", fields, re.MULTILINE) for m in fresh.message_type for field in m.field
    )
    assert not is_stale, f"annotation.proto has changed: run `{command}`"


def test_the_declared_ranges_leave_out_what_the_generated_code_refuses():
    declared = dict(
        re.fullmatch(r"([\w-]+)(?:\[.*\])?>=([\d.]+).*", requirement).groups()
        for requirement in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
        if requirement.startswith(("grpcio>", "protobuf>"))
    )
    grpc_version = re.search(
        r"GRPC_GENERATED_VERSION = '([\d.]+)'", (ROOT / "llm_server/annotation_pb2_grpc.py").read_text()
    )
    protobuf_version = re.search(
        r"# Protobuf Python Version: ([\d.]+)", (ROOT / "llm_server/annotation_pb2.py").read_text()
    )
    for package, generated in (("grpcio", grpc_version), ("protobuf", protobuf_version)):
        wanted, given = (
            [int(part) for part in version.split(".")] for version in (generated.group(1), declared[package])
        )
        assert given >= wanted, f"the generated code needs {package}>={generated.group(1)}; say so in pyproject.toml"
