from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Frame(_message.Message):
    __slots__ = ("hello", "offer", "want", "chunk", "received", "refused", "beat")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    OFFER_FIELD_NUMBER: _ClassVar[int]
    WANT_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    RECEIVED_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    BEAT_FIELD_NUMBER: _ClassVar[int]
    hello: Hello
    offer: Offer
    want: Want
    chunk: Chunk
    received: Received
    refused: Refused
    beat: Beat
    def __init__(self, hello: _Optional[_Union[Hello, _Mapping]] = ..., offer: _Optional[_Union[Offer, _Mapping]] = ..., want: _Optional[_Union[Want, _Mapping]] = ..., chunk: _Optional[_Union[Chunk, _Mapping]] = ..., received: _Optional[_Union[Received, _Mapping]] = ..., refused: _Optional[_Union[Refused, _Mapping]] = ..., beat: _Optional[_Union[Beat, _Mapping]] = ...) -> None: ...

class Hello(_message.Message):
    __slots__ = ("protocol", "software", "instance", "held", "head", "time_s")
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    SOFTWARE_FIELD_NUMBER: _ClassVar[int]
    INSTANCE_FIELD_NUMBER: _ClassVar[int]
    HELD_FIELD_NUMBER: _ClassVar[int]
    HEAD_FIELD_NUMBER: _ClassVar[int]
    TIME_S_FIELD_NUMBER: _ClassVar[int]
    protocol: int
    software: str
    instance: str
    held: _containers.RepeatedScalarFieldContainer[str]
    head: bytes
    time_s: float
    def __init__(self, protocol: _Optional[int] = ..., software: _Optional[str] = ..., instance: _Optional[str] = ..., held: _Optional[_Iterable[str]] = ..., head: _Optional[bytes] = ..., time_s: _Optional[float] = ...) -> None: ...

class Offer(_message.Message):
    __slots__ = ("number", "header", "body")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    HEADER_FIELD_NUMBER: _ClassVar[int]
    BODY_FIELD_NUMBER: _ClassVar[int]
    number: int
    header: bytes
    body: bytes
    def __init__(self, number: _Optional[int] = ..., header: _Optional[bytes] = ..., body: _Optional[bytes] = ...) -> None: ...

class Want(_message.Message):
    __slots__ = ("number", "offset")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    number: int
    offset: int
    def __init__(self, number: _Optional[int] = ..., offset: _Optional[int] = ...) -> None: ...

class Chunk(_message.Message):
    __slots__ = ("number", "offset", "data")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    number: int
    offset: int
    data: bytes
    def __init__(self, number: _Optional[int] = ..., offset: _Optional[int] = ..., data: _Optional[bytes] = ...) -> None: ...

class Received(_message.Message):
    __slots__ = ("number",)
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    number: int
    def __init__(self, number: _Optional[int] = ...) -> None: ...

class Refused(_message.Message):
    __slots__ = ("number", "code")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    CODE_FIELD_NUMBER: _ClassVar[int]
    number: int
    code: str
    def __init__(self, number: _Optional[int] = ..., code: _Optional[str] = ...) -> None: ...

class Beat(_message.Message):
    __slots__ = ("head", "time_s")
    HEAD_FIELD_NUMBER: _ClassVar[int]
    TIME_S_FIELD_NUMBER: _ClassVar[int]
    head: bytes
    time_s: float
    def __init__(self, head: _Optional[bytes] = ..., time_s: _Optional[float] = ...) -> None: ...

class Header(_message.Message):
    __slots__ = ("kind", "id", "reply_to", "type", "group", "node", "created_s", "lifetime_s", "error", "error_number", "records", "total")
    class Kind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        NONE: _ClassVar[Header.Kind]
        REQUEST: _ClassVar[Header.Kind]
        REPLY: _ClassVar[Header.Kind]
        CALL: _ClassVar[Header.Kind]
        RESULT: _ClassVar[Header.Kind]
    NONE: Header.Kind
    REQUEST: Header.Kind
    REPLY: Header.Kind
    CALL: Header.Kind
    RESULT: Header.Kind
    KIND_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    REPLY_TO_FIELD_NUMBER: _ClassVar[int]
    TYPE_FIELD_NUMBER: _ClassVar[int]
    GROUP_FIELD_NUMBER: _ClassVar[int]
    NODE_FIELD_NUMBER: _ClassVar[int]
    CREATED_S_FIELD_NUMBER: _ClassVar[int]
    LIFETIME_S_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    ERROR_NUMBER_FIELD_NUMBER: _ClassVar[int]
    RECORDS_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    kind: Header.Kind
    id: str
    reply_to: str
    type: str
    group: str
    node: int
    created_s: float
    lifetime_s: float
    error: str
    error_number: int
    records: _containers.RepeatedCompositeFieldContainer[Record]
    total: int
    def __init__(self, kind: _Optional[_Union[Header.Kind, str]] = ..., id: _Optional[str] = ..., reply_to: _Optional[str] = ..., type: _Optional[str] = ..., group: _Optional[str] = ..., node: _Optional[int] = ..., created_s: _Optional[float] = ..., lifetime_s: _Optional[float] = ..., error: _Optional[str] = ..., error_number: _Optional[int] = ..., records: _Optional[_Iterable[_Union[Record, _Mapping]]] = ..., total: _Optional[int] = ...) -> None: ...

class Record(_message.Message):
    __slots__ = ("name", "config", "metrics", "arrays")
    NAME_FIELD_NUMBER: _ClassVar[int]
    CONFIG_FIELD_NUMBER: _ClassVar[int]
    METRICS_FIELD_NUMBER: _ClassVar[int]
    ARRAYS_FIELD_NUMBER: _ClassVar[int]
    name: str
    config: Values
    metrics: Values
    arrays: ArrayList
    def __init__(self, name: _Optional[str] = ..., config: _Optional[_Union[Values, _Mapping]] = ..., metrics: _Optional[_Union[Values, _Mapping]] = ..., arrays: _Optional[_Union[ArrayList, _Mapping]] = ...) -> None: ...

class Values(_message.Message):
    __slots__ = ("entries",)
    ENTRIES_FIELD_NUMBER: _ClassVar[int]
    entries: _containers.RepeatedCompositeFieldContainer[Entry]
    def __init__(self, entries: _Optional[_Iterable[_Union[Entry, _Mapping]]] = ...) -> None: ...

class Entry(_message.Message):
    __slots__ = ("key", "integer", "number", "truth", "text", "data", "integers", "numbers", "truths", "texts", "datas")
    KEY_FIELD_NUMBER: _ClassVar[int]
    INTEGER_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    TRUTH_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    INTEGERS_FIELD_NUMBER: _ClassVar[int]
    NUMBERS_FIELD_NUMBER: _ClassVar[int]
    TRUTHS_FIELD_NUMBER: _ClassVar[int]
    TEXTS_FIELD_NUMBER: _ClassVar[int]
    DATAS_FIELD_NUMBER: _ClassVar[int]
    key: str
    integer: int
    number: float
    truth: bool
    text: str
    data: bytes
    integers: Integers
    numbers: Numbers
    truths: Truths
    texts: Texts
    datas: Datas
    def __init__(self, key: _Optional[str] = ..., integer: _Optional[int] = ..., number: _Optional[float] = ..., truth: _Optional[bool] = ..., text: _Optional[str] = ..., data: _Optional[bytes] = ..., integers: _Optional[_Union[Integers, _Mapping]] = ..., numbers: _Optional[_Union[Numbers, _Mapping]] = ..., truths: _Optional[_Union[Truths, _Mapping]] = ..., texts: _Optional[_Union[Texts, _Mapping]] = ..., datas: _Optional[_Union[Datas, _Mapping]] = ...) -> None: ...

class Integers(_message.Message):
    __slots__ = ("values",)
    VALUES_FIELD_NUMBER: _ClassVar[int]
    values: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, values: _Optional[_Iterable[int]] = ...) -> None: ...

class Numbers(_message.Message):
    __slots__ = ("values",)
    VALUES_FIELD_NUMBER: _ClassVar[int]
    values: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, values: _Optional[_Iterable[float]] = ...) -> None: ...

class Truths(_message.Message):
    __slots__ = ("values",)
    VALUES_FIELD_NUMBER: _ClassVar[int]
    values: _containers.RepeatedScalarFieldContainer[bool]
    def __init__(self, values: _Optional[_Iterable[bool]] = ...) -> None: ...

class Texts(_message.Message):
    __slots__ = ("values",)
    VALUES_FIELD_NUMBER: _ClassVar[int]
    values: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, values: _Optional[_Iterable[str]] = ...) -> None: ...

class Datas(_message.Message):
    __slots__ = ("values",)
    VALUES_FIELD_NUMBER: _ClassVar[int]
    values: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, values: _Optional[_Iterable[bytes]] = ...) -> None: ...

class ArrayList(_message.Message):
    __slots__ = ("entries",)
    ENTRIES_FIELD_NUMBER: _ClassVar[int]
    entries: _containers.RepeatedCompositeFieldContainer[ArrayInfo]
    def __init__(self, entries: _Optional[_Iterable[_Union[ArrayInfo, _Mapping]]] = ...) -> None: ...

class ArrayInfo(_message.Message):
    __slots__ = ("name", "dtype", "shape", "sha256")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    name: str
    dtype: str
    shape: _containers.RepeatedScalarFieldContainer[int]
    sha256: bytes
    def __init__(self, name: _Optional[str] = ..., dtype: _Optional[str] = ..., shape: _Optional[_Iterable[int]] = ..., sha256: _Optional[bytes] = ...) -> None: ...
