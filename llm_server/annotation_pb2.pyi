from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class AnnotateRequest(_message.Message):
    __slots__ = ("rubric_id", "rubric_version", "items", "bypass_store", "abouts")
    RUBRIC_ID_FIELD_NUMBER: _ClassVar[int]
    RUBRIC_VERSION_FIELD_NUMBER: _ClassVar[int]
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    BYPASS_STORE_FIELD_NUMBER: _ClassVar[int]
    ABOUTS_FIELD_NUMBER: _ClassVar[int]
    rubric_id: str
    rubric_version: str
    items: _containers.RepeatedScalarFieldContainer[bytes]
    bypass_store: bool
    abouts: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, rubric_id: _Optional[str] = ..., rubric_version: _Optional[str] = ..., items: _Optional[_Iterable[bytes]] = ..., bypass_store: _Optional[bool] = ..., abouts: _Optional[_Iterable[bytes]] = ...) -> None: ...

class AnnotateResponse(_message.Message):
    __slots__ = ("judgements", "rubric_hash", "fingerprint")
    JUDGEMENTS_FIELD_NUMBER: _ClassVar[int]
    RUBRIC_HASH_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    judgements: _containers.RepeatedCompositeFieldContainer[Judgement]
    rubric_hash: str
    fingerprint: str
    def __init__(self, judgements: _Optional[_Iterable[_Union[Judgement, _Mapping]]] = ..., rubric_hash: _Optional[str] = ..., fingerprint: _Optional[str] = ...) -> None: ...

class Judgement(_message.Message):
    __slots__ = ("status", "probability", "answer_mass", "cached", "item_hash")
    class Status(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        STATUS_UNSPECIFIED: _ClassVar[Judgement.Status]
        OK: _ClassVar[Judgement.Status]
        UNPARSED: _ClassVar[Judgement.Status]
        REJECTED: _ClassVar[Judgement.Status]
    STATUS_UNSPECIFIED: Judgement.Status
    OK: Judgement.Status
    UNPARSED: Judgement.Status
    REJECTED: Judgement.Status
    STATUS_FIELD_NUMBER: _ClassVar[int]
    PROBABILITY_FIELD_NUMBER: _ClassVar[int]
    ANSWER_MASS_FIELD_NUMBER: _ClassVar[int]
    CACHED_FIELD_NUMBER: _ClassVar[int]
    ITEM_HASH_FIELD_NUMBER: _ClassVar[int]
    status: Judgement.Status
    probability: float
    answer_mass: float
    cached: bool
    item_hash: int
    def __init__(self, status: _Optional[_Union[Judgement.Status, str]] = ..., probability: _Optional[float] = ..., answer_mass: _Optional[float] = ..., cached: _Optional[bool] = ..., item_hash: _Optional[int] = ...) -> None: ...

class Pair(_message.Message):
    __slots__ = ("first", "second")
    FIRST_FIELD_NUMBER: _ClassVar[int]
    SECOND_FIELD_NUMBER: _ClassVar[int]
    first: bytes
    second: bytes
    def __init__(self, first: _Optional[bytes] = ..., second: _Optional[bytes] = ...) -> None: ...

class AnnotatePairsRequest(_message.Message):
    __slots__ = ("rubric_id", "rubric_version", "pairs", "bypass_store")
    RUBRIC_ID_FIELD_NUMBER: _ClassVar[int]
    RUBRIC_VERSION_FIELD_NUMBER: _ClassVar[int]
    PAIRS_FIELD_NUMBER: _ClassVar[int]
    BYPASS_STORE_FIELD_NUMBER: _ClassVar[int]
    rubric_id: str
    rubric_version: str
    pairs: _containers.RepeatedCompositeFieldContainer[Pair]
    bypass_store: bool
    def __init__(self, rubric_id: _Optional[str] = ..., rubric_version: _Optional[str] = ..., pairs: _Optional[_Iterable[_Union[Pair, _Mapping]]] = ..., bypass_store: _Optional[bool] = ...) -> None: ...

class AnnotatePairsResponse(_message.Message):
    __slots__ = ("judgements", "pairs_hash", "fingerprint")
    JUDGEMENTS_FIELD_NUMBER: _ClassVar[int]
    PAIRS_HASH_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    judgements: _containers.RepeatedCompositeFieldContainer[PairJudgement]
    pairs_hash: str
    fingerprint: str
    def __init__(self, judgements: _Optional[_Iterable[_Union[PairJudgement, _Mapping]]] = ..., pairs_hash: _Optional[str] = ..., fingerprint: _Optional[str] = ...) -> None: ...

class PairJudgement(_message.Message):
    __slots__ = ("status", "preference", "answer_mass", "position_bias", "cached", "pair_hash")
    STATUS_FIELD_NUMBER: _ClassVar[int]
    PREFERENCE_FIELD_NUMBER: _ClassVar[int]
    ANSWER_MASS_FIELD_NUMBER: _ClassVar[int]
    POSITION_BIAS_FIELD_NUMBER: _ClassVar[int]
    CACHED_FIELD_NUMBER: _ClassVar[int]
    PAIR_HASH_FIELD_NUMBER: _ClassVar[int]
    status: Judgement.Status
    preference: float
    answer_mass: float
    position_bias: float
    cached: bool
    pair_hash: int
    def __init__(self, status: _Optional[_Union[Judgement.Status, str]] = ..., preference: _Optional[float] = ..., answer_mass: _Optional[float] = ..., position_bias: _Optional[float] = ..., cached: _Optional[bool] = ..., pair_hash: _Optional[int] = ...) -> None: ...

class EmbedRequest(_message.Message):
    __slots__ = ("items",)
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    items: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, items: _Optional[_Iterable[bytes]] = ...) -> None: ...

class EmbedResponse(_message.Message):
    __slots__ = ("dimensions", "values", "item_hashes", "fingerprint")
    DIMENSIONS_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    ITEM_HASHES_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    dimensions: int
    values: _containers.RepeatedScalarFieldContainer[float]
    item_hashes: _containers.RepeatedScalarFieldContainer[int]
    fingerprint: str
    def __init__(self, dimensions: _Optional[int] = ..., values: _Optional[_Iterable[float]] = ..., item_hashes: _Optional[_Iterable[int]] = ..., fingerprint: _Optional[str] = ...) -> None: ...

class WriteRequest(_message.Message):
    __slots__ = ("brief_id", "brief_version", "fields", "num", "seed", "bypass_store")
    class FieldsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: bytes
        def __init__(self, key: _Optional[str] = ..., value: _Optional[bytes] = ...) -> None: ...
    BRIEF_ID_FIELD_NUMBER: _ClassVar[int]
    BRIEF_VERSION_FIELD_NUMBER: _ClassVar[int]
    FIELDS_FIELD_NUMBER: _ClassVar[int]
    NUM_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    BYPASS_STORE_FIELD_NUMBER: _ClassVar[int]
    brief_id: str
    brief_version: str
    fields: _containers.ScalarMap[str, bytes]
    num: int
    seed: int
    bypass_store: bool
    def __init__(self, brief_id: _Optional[str] = ..., brief_version: _Optional[str] = ..., fields: _Optional[_Mapping[str, bytes]] = ..., num: _Optional[int] = ..., seed: _Optional[int] = ..., bypass_store: _Optional[bool] = ...) -> None: ...

class WriteResponse(_message.Message):
    __slots__ = ("writings", "brief_hash", "fingerprint")
    WRITINGS_FIELD_NUMBER: _ClassVar[int]
    BRIEF_HASH_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    writings: _containers.RepeatedCompositeFieldContainer[Writing]
    brief_hash: str
    fingerprint: str
    def __init__(self, writings: _Optional[_Iterable[_Union[Writing, _Mapping]]] = ..., brief_hash: _Optional[str] = ..., fingerprint: _Optional[str] = ...) -> None: ...

class Writing(_message.Message):
    __slots__ = ("status", "text", "tokens", "cached")
    STATUS_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    CACHED_FIELD_NUMBER: _ClassVar[int]
    status: Judgement.Status
    text: bytes
    tokens: int
    cached: bool
    def __init__(self, status: _Optional[_Union[Judgement.Status, str]] = ..., text: _Optional[bytes] = ..., tokens: _Optional[int] = ..., cached: _Optional[bool] = ...) -> None: ...

class DescribeRequest(_message.Message):
    __slots__ = ("rubric_id", "rubric_version")
    RUBRIC_ID_FIELD_NUMBER: _ClassVar[int]
    RUBRIC_VERSION_FIELD_NUMBER: _ClassVar[int]
    rubric_id: str
    rubric_version: str
    def __init__(self, rubric_id: _Optional[str] = ..., rubric_version: _Optional[str] = ...) -> None: ...

class RubricDescription(_message.Message):
    __slots__ = ("id", "version", "hash", "pairs_hash", "threshold", "noise")
    ID_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    HASH_FIELD_NUMBER: _ClassVar[int]
    PAIRS_HASH_FIELD_NUMBER: _ClassVar[int]
    THRESHOLD_FIELD_NUMBER: _ClassVar[int]
    NOISE_FIELD_NUMBER: _ClassVar[int]
    id: str
    version: str
    hash: str
    pairs_hash: str
    threshold: float
    noise: float
    def __init__(self, id: _Optional[str] = ..., version: _Optional[str] = ..., hash: _Optional[str] = ..., pairs_hash: _Optional[str] = ..., threshold: _Optional[float] = ..., noise: _Optional[float] = ...) -> None: ...

class BriefDescription(_message.Message):
    __slots__ = ("id", "version", "hash")
    ID_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    HASH_FIELD_NUMBER: _ClassVar[int]
    id: str
    version: str
    hash: str
    def __init__(self, id: _Optional[str] = ..., version: _Optional[str] = ..., hash: _Optional[str] = ...) -> None: ...

class DescribeResponse(_message.Message):
    __slots__ = ("model", "engine", "fingerprint", "rubric_id", "rubric_version", "rubric_hash", "threshold", "max_items_per_request", "max_item_bytes", "forward_passes", "pairs_hash", "engine_busy_s", "noise", "rubrics", "briefs", "writes")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    ENGINE_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    RUBRIC_ID_FIELD_NUMBER: _ClassVar[int]
    RUBRIC_VERSION_FIELD_NUMBER: _ClassVar[int]
    RUBRIC_HASH_FIELD_NUMBER: _ClassVar[int]
    THRESHOLD_FIELD_NUMBER: _ClassVar[int]
    MAX_ITEMS_PER_REQUEST_FIELD_NUMBER: _ClassVar[int]
    MAX_ITEM_BYTES_FIELD_NUMBER: _ClassVar[int]
    FORWARD_PASSES_FIELD_NUMBER: _ClassVar[int]
    PAIRS_HASH_FIELD_NUMBER: _ClassVar[int]
    ENGINE_BUSY_S_FIELD_NUMBER: _ClassVar[int]
    NOISE_FIELD_NUMBER: _ClassVar[int]
    RUBRICS_FIELD_NUMBER: _ClassVar[int]
    BRIEFS_FIELD_NUMBER: _ClassVar[int]
    WRITES_FIELD_NUMBER: _ClassVar[int]
    model: str
    engine: str
    fingerprint: str
    rubric_id: str
    rubric_version: str
    rubric_hash: str
    threshold: float
    max_items_per_request: int
    max_item_bytes: int
    forward_passes: int
    pairs_hash: str
    engine_busy_s: float
    noise: float
    rubrics: _containers.RepeatedCompositeFieldContainer[RubricDescription]
    briefs: _containers.RepeatedCompositeFieldContainer[BriefDescription]
    writes: bool
    def __init__(self, model: _Optional[str] = ..., engine: _Optional[str] = ..., fingerprint: _Optional[str] = ..., rubric_id: _Optional[str] = ..., rubric_version: _Optional[str] = ..., rubric_hash: _Optional[str] = ..., threshold: _Optional[float] = ..., max_items_per_request: _Optional[int] = ..., max_item_bytes: _Optional[int] = ..., forward_passes: _Optional[int] = ..., pairs_hash: _Optional[str] = ..., engine_busy_s: _Optional[float] = ..., noise: _Optional[float] = ..., rubrics: _Optional[_Iterable[_Union[RubricDescription, _Mapping]]] = ..., briefs: _Optional[_Iterable[_Union[BriefDescription, _Mapping]]] = ..., writes: _Optional[bool] = ...) -> None: ...
