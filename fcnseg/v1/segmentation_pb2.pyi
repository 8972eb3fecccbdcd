from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ClassMapEncoding(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    CLASS_MAP_ENCODING_UNSPECIFIED: _ClassVar[ClassMapEncoding]
    CLASS_MAP_ENCODING_RAW: _ClassVar[ClassMapEncoding]
    CLASS_MAP_ENCODING_ZSTD: _ClassVar[ClassMapEncoding]
    CLASS_MAP_ENCODING_PNG: _ClassVar[ClassMapEncoding]
    CLASS_MAP_ENCODING_COCO_RLE: _ClassVar[ClassMapEncoding]

class ClassMapType(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    CLASS_MAP_TYPE_UNSPECIFIED: _ClassVar[ClassMapType]
    CLASS_MAP_TYPE_UINT8: _ClassVar[ClassMapType]
    CLASS_MAP_TYPE_UINT16: _ClassVar[ClassMapType]
CLASS_MAP_ENCODING_UNSPECIFIED: ClassMapEncoding
CLASS_MAP_ENCODING_RAW: ClassMapEncoding
CLASS_MAP_ENCODING_ZSTD: ClassMapEncoding
CLASS_MAP_ENCODING_PNG: ClassMapEncoding
CLASS_MAP_ENCODING_COCO_RLE: ClassMapEncoding
CLASS_MAP_TYPE_UNSPECIFIED: ClassMapType
CLASS_MAP_TYPE_UINT8: ClassMapType
CLASS_MAP_TYPE_UINT16: ClassMapType

class SegmentRequest(_message.Message):
    __slots__ = ("model_name", "model_version", "encoded", "raw", "encoding", "heatmap_classes", "regions", "confidence", "overlay", "classes")
    MODEL_NAME_FIELD_NUMBER: _ClassVar[int]
    MODEL_VERSION_FIELD_NUMBER: _ClassVar[int]
    ENCODED_FIELD_NUMBER: _ClassVar[int]
    RAW_FIELD_NUMBER: _ClassVar[int]
    ENCODING_FIELD_NUMBER: _ClassVar[int]
    HEATMAP_CLASSES_FIELD_NUMBER: _ClassVar[int]
    REGIONS_FIELD_NUMBER: _ClassVar[int]
    CONFIDENCE_FIELD_NUMBER: _ClassVar[int]
    OVERLAY_FIELD_NUMBER: _ClassVar[int]
    CLASSES_FIELD_NUMBER: _ClassVar[int]
    model_name: str
    model_version: str
    encoded: bytes
    raw: RawImage
    encoding: ClassMapEncoding
    heatmap_classes: _containers.RepeatedScalarFieldContainer[str]
    regions: RegionQuery
    confidence: bool
    overlay: OverlayQuery
    classes: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, model_name: _Optional[str] = ..., model_version: _Optional[str] = ..., encoded: _Optional[bytes] = ..., raw: _Optional[_Union[RawImage, _Mapping]] = ..., encoding: _Optional[_Union[ClassMapEncoding, str]] = ..., heatmap_classes: _Optional[_Iterable[str]] = ..., regions: _Optional[_Union[RegionQuery, _Mapping]] = ..., confidence: bool = ..., overlay: _Optional[_Union[OverlayQuery, _Mapping]] = ..., classes: _Optional[_Iterable[str]] = ...) -> None: ...

class OverlayQuery(_message.Message):
    __slots__ = ("opacity", "quality")
    OPACITY_FIELD_NUMBER: _ClassVar[int]
    QUALITY_FIELD_NUMBER: _ClassVar[int]
    opacity: float
    quality: int
    def __init__(self, opacity: _Optional[float] = ..., quality: _Optional[int] = ...) -> None: ...

class RegionQuery(_message.Message):
    __slots__ = ("classes", "threshold", "limit", "min_pixels")
    CLASSES_FIELD_NUMBER: _ClassVar[int]
    THRESHOLD_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    MIN_PIXELS_FIELD_NUMBER: _ClassVar[int]
    classes: _containers.RepeatedScalarFieldContainer[str]
    threshold: float
    limit: int
    min_pixels: int
    def __init__(self, classes: _Optional[_Iterable[str]] = ..., threshold: _Optional[float] = ..., limit: _Optional[int] = ..., min_pixels: _Optional[int] = ...) -> None: ...

class RawImage(_message.Message):
    __slots__ = ("height", "width", "rgb")
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    RGB_FIELD_NUMBER: _ClassVar[int]
    height: int
    width: int
    rgb: bytes
    def __init__(self, height: _Optional[int] = ..., width: _Optional[int] = ..., rgb: _Optional[bytes] = ...) -> None: ...

class SegmentResponse(_message.Message):
    __slots__ = ("class_map", "classes", "label_map_hash", "model_name", "model_version", "timings", "heatmaps", "heatmap_grid", "regions", "batch_size", "confidence", "overlay")
    CLASS_MAP_FIELD_NUMBER: _ClassVar[int]
    CLASSES_FIELD_NUMBER: _ClassVar[int]
    LABEL_MAP_HASH_FIELD_NUMBER: _ClassVar[int]
    MODEL_NAME_FIELD_NUMBER: _ClassVar[int]
    MODEL_VERSION_FIELD_NUMBER: _ClassVar[int]
    TIMINGS_FIELD_NUMBER: _ClassVar[int]
    HEATMAPS_FIELD_NUMBER: _ClassVar[int]
    HEATMAP_GRID_FIELD_NUMBER: _ClassVar[int]
    REGIONS_FIELD_NUMBER: _ClassVar[int]
    BATCH_SIZE_FIELD_NUMBER: _ClassVar[int]
    CONFIDENCE_FIELD_NUMBER: _ClassVar[int]
    OVERLAY_FIELD_NUMBER: _ClassVar[int]
    class_map: ClassMap
    classes: _containers.RepeatedCompositeFieldContainer[ClassArea]
    label_map_hash: str
    model_name: str
    model_version: str
    timings: Timings
    heatmaps: _containers.RepeatedCompositeFieldContainer[Heatmap]
    heatmap_grid: HeatmapGrid
    regions: _containers.RepeatedCompositeFieldContainer[Region]
    batch_size: int
    confidence: ConfidenceMap
    overlay: bytes
    def __init__(self, class_map: _Optional[_Union[ClassMap, _Mapping]] = ..., classes: _Optional[_Iterable[_Union[ClassArea, _Mapping]]] = ..., label_map_hash: _Optional[str] = ..., model_name: _Optional[str] = ..., model_version: _Optional[str] = ..., timings: _Optional[_Union[Timings, _Mapping]] = ..., heatmaps: _Optional[_Iterable[_Union[Heatmap, _Mapping]]] = ..., heatmap_grid: _Optional[_Union[HeatmapGrid, _Mapping]] = ..., regions: _Optional[_Iterable[_Union[Region, _Mapping]]] = ..., batch_size: _Optional[int] = ..., confidence: _Optional[_Union[ConfidenceMap, _Mapping]] = ..., overlay: _Optional[bytes] = ...) -> None: ...

class SegmentStreamRequest(_message.Message):
    __slots__ = ("id", "request")
    ID_FIELD_NUMBER: _ClassVar[int]
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    id: str
    request: SegmentRequest
    def __init__(self, id: _Optional[str] = ..., request: _Optional[_Union[SegmentRequest, _Mapping]] = ...) -> None: ...

class SegmentStreamResponse(_message.Message):
    __slots__ = ("id", "response", "failure")
    ID_FIELD_NUMBER: _ClassVar[int]
    RESPONSE_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    id: str
    response: SegmentResponse
    failure: Failure
    def __init__(self, id: _Optional[str] = ..., response: _Optional[_Union[SegmentResponse, _Mapping]] = ..., failure: _Optional[_Union[Failure, _Mapping]] = ...) -> None: ...

class Failure(_message.Message):
    __slots__ = ("code", "message", "field")
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    FIELD_FIELD_NUMBER: _ClassVar[int]
    code: int
    message: str
    field: str
    def __init__(self, code: _Optional[int] = ..., message: _Optional[str] = ..., field: _Optional[str] = ...) -> None: ...

class ConfidenceMap(_message.Message):
    __slots__ = ("height", "width", "encoding", "data")
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    ENCODING_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    height: int
    width: int
    encoding: ClassMapEncoding
    data: bytes
    def __init__(self, height: _Optional[int] = ..., width: _Optional[int] = ..., encoding: _Optional[_Union[ClassMapEncoding, str]] = ..., data: _Optional[bytes] = ...) -> None: ...

class Heatmap(_message.Message):
    __slots__ = ("info", "scores", "probabilities")
    INFO_FIELD_NUMBER: _ClassVar[int]
    SCORES_FIELD_NUMBER: _ClassVar[int]
    PROBABILITIES_FIELD_NUMBER: _ClassVar[int]
    info: Class
    scores: bytes
    probabilities: bytes
    def __init__(self, info: _Optional[_Union[Class, _Mapping]] = ..., scores: _Optional[bytes] = ..., probabilities: _Optional[bytes] = ...) -> None: ...

class HeatmapGrid(_message.Message):
    __slots__ = ("height", "width", "stride", "offset_y", "offset_x")
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    STRIDE_FIELD_NUMBER: _ClassVar[int]
    OFFSET_Y_FIELD_NUMBER: _ClassVar[int]
    OFFSET_X_FIELD_NUMBER: _ClassVar[int]
    height: int
    width: int
    stride: Stride
    offset_y: float
    offset_x: float
    def __init__(self, height: _Optional[int] = ..., width: _Optional[int] = ..., stride: _Optional[_Union[Stride, _Mapping]] = ..., offset_y: _Optional[float] = ..., offset_x: _Optional[float] = ...) -> None: ...

class Region(_message.Message):
    __slots__ = ("info", "box", "score", "peak", "pixel_count")
    INFO_FIELD_NUMBER: _ClassVar[int]
    BOX_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    PEAK_FIELD_NUMBER: _ClassVar[int]
    PIXEL_COUNT_FIELD_NUMBER: _ClassVar[int]
    info: Class
    box: Box
    score: float
    peak: float
    pixel_count: int
    def __init__(self, info: _Optional[_Union[Class, _Mapping]] = ..., box: _Optional[_Union[Box, _Mapping]] = ..., score: _Optional[float] = ..., peak: _Optional[float] = ..., pixel_count: _Optional[int] = ...) -> None: ...

class Box(_message.Message):
    __slots__ = ("top", "left", "height", "width")
    TOP_FIELD_NUMBER: _ClassVar[int]
    LEFT_FIELD_NUMBER: _ClassVar[int]
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    top: int
    left: int
    height: int
    width: int
    def __init__(self, top: _Optional[int] = ..., left: _Optional[int] = ..., height: _Optional[int] = ..., width: _Optional[int] = ...) -> None: ...

class ClassMap(_message.Message):
    __slots__ = ("height", "width", "type", "encoding", "data", "runs", "other_id")
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    TYPE_FIELD_NUMBER: _ClassVar[int]
    ENCODING_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    RUNS_FIELD_NUMBER: _ClassVar[int]
    OTHER_ID_FIELD_NUMBER: _ClassVar[int]
    height: int
    width: int
    type: ClassMapType
    encoding: ClassMapEncoding
    data: bytes
    runs: _containers.RepeatedCompositeFieldContainer[ClassRuns]
    other_id: int
    def __init__(self, height: _Optional[int] = ..., width: _Optional[int] = ..., type: _Optional[_Union[ClassMapType, str]] = ..., encoding: _Optional[_Union[ClassMapEncoding, str]] = ..., data: _Optional[bytes] = ..., runs: _Optional[_Iterable[_Union[ClassRuns, _Mapping]]] = ..., other_id: _Optional[int] = ...) -> None: ...

class ClassRuns(_message.Message):
    __slots__ = ("id", "counts")
    ID_FIELD_NUMBER: _ClassVar[int]
    COUNTS_FIELD_NUMBER: _ClassVar[int]
    id: int
    counts: bytes
    def __init__(self, id: _Optional[int] = ..., counts: _Optional[bytes] = ...) -> None: ...

class ClassArea(_message.Message):
    __slots__ = ("id", "name", "pixel_count", "fraction", "colour")
    ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    PIXEL_COUNT_FIELD_NUMBER: _ClassVar[int]
    FRACTION_FIELD_NUMBER: _ClassVar[int]
    COLOUR_FIELD_NUMBER: _ClassVar[int]
    id: int
    name: str
    pixel_count: int
    fraction: float
    colour: int
    def __init__(self, id: _Optional[int] = ..., name: _Optional[str] = ..., pixel_count: _Optional[int] = ..., fraction: _Optional[float] = ..., colour: _Optional[int] = ...) -> None: ...

class Timings(_message.Message):
    __slots__ = ("decode_ms", "queue_ms", "infer_ms", "encode_ms")
    DECODE_MS_FIELD_NUMBER: _ClassVar[int]
    QUEUE_MS_FIELD_NUMBER: _ClassVar[int]
    INFER_MS_FIELD_NUMBER: _ClassVar[int]
    ENCODE_MS_FIELD_NUMBER: _ClassVar[int]
    decode_ms: float
    queue_ms: float
    infer_ms: float
    encode_ms: float
    def __init__(self, decode_ms: _Optional[float] = ..., queue_ms: _Optional[float] = ..., infer_ms: _Optional[float] = ..., encode_ms: _Optional[float] = ...) -> None: ...

class ListModelsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListModelsResponse(_message.Message):
    __slots__ = ("models",)
    MODELS_FIELD_NUMBER: _ClassVar[int]
    models: _containers.RepeatedCompositeFieldContainer[Model]
    def __init__(self, models: _Optional[_Iterable[_Union[Model, _Mapping]]] = ...) -> None: ...

class GetModelRequest(_message.Message):
    __slots__ = ("model_name", "model_version")
    MODEL_NAME_FIELD_NUMBER: _ClassVar[int]
    MODEL_VERSION_FIELD_NUMBER: _ClassVar[int]
    model_name: str
    model_version: str
    def __init__(self, model_name: _Optional[str] = ..., model_version: _Optional[str] = ...) -> None: ...

class GetModelResponse(_message.Message):
    __slots__ = ("model",)
    MODEL_FIELD_NUMBER: _ClassVar[int]
    model: Model
    def __init__(self, model: _Optional[_Union[Model, _Mapping]] = ...) -> None: ...

class Model(_message.Message):
    __slots__ = ("name", "version", "architecture", "variant", "classes", "label_map_hash", "class_map_type", "device", "licence", "metrics", "output_stride", "image_limits", "execution", "batching", "memory_limits", "warm_sizes", "cold_sizes")
    class MetricsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    ARCHITECTURE_FIELD_NUMBER: _ClassVar[int]
    VARIANT_FIELD_NUMBER: _ClassVar[int]
    CLASSES_FIELD_NUMBER: _ClassVar[int]
    LABEL_MAP_HASH_FIELD_NUMBER: _ClassVar[int]
    CLASS_MAP_TYPE_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    LICENCE_FIELD_NUMBER: _ClassVar[int]
    METRICS_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_STRIDE_FIELD_NUMBER: _ClassVar[int]
    IMAGE_LIMITS_FIELD_NUMBER: _ClassVar[int]
    EXECUTION_FIELD_NUMBER: _ClassVar[int]
    BATCHING_FIELD_NUMBER: _ClassVar[int]
    MEMORY_LIMITS_FIELD_NUMBER: _ClassVar[int]
    WARM_SIZES_FIELD_NUMBER: _ClassVar[int]
    COLD_SIZES_FIELD_NUMBER: _ClassVar[int]
    name: str
    version: str
    architecture: str
    variant: str
    classes: _containers.RepeatedCompositeFieldContainer[Class]
    label_map_hash: str
    class_map_type: ClassMapType
    device: str
    licence: str
    metrics: _containers.ScalarMap[str, float]
    output_stride: Stride
    image_limits: ImageLimits
    execution: Execution
    batching: Batching
    memory_limits: MemoryLimits
    warm_sizes: _containers.RepeatedCompositeFieldContainer[ImageSize]
    cold_sizes: int
    def __init__(self, name: _Optional[str] = ..., version: _Optional[str] = ..., architecture: _Optional[str] = ..., variant: _Optional[str] = ..., classes: _Optional[_Iterable[_Union[Class, _Mapping]]] = ..., label_map_hash: _Optional[str] = ..., class_map_type: _Optional[_Union[ClassMapType, str]] = ..., device: _Optional[str] = ..., licence: _Optional[str] = ..., metrics: _Optional[_Mapping[str, float]] = ..., output_stride: _Optional[_Union[Stride, _Mapping]] = ..., image_limits: _Optional[_Union[ImageLimits, _Mapping]] = ..., execution: _Optional[_Union[Execution, _Mapping]] = ..., batching: _Optional[_Union[Batching, _Mapping]] = ..., memory_limits: _Optional[_Union[MemoryLimits, _Mapping]] = ..., warm_sizes: _Optional[_Iterable[_Union[ImageSize, _Mapping]]] = ..., cold_sizes: _Optional[int] = ...) -> None: ...

class ImageSize(_message.Message):
    __slots__ = ("height", "width")
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    height: int
    width: int
    def __init__(self, height: _Optional[int] = ..., width: _Optional[int] = ...) -> None: ...

class Execution(_message.Message):
    __slots__ = ("runtime", "provider", "placements", "cudnn", "precision", "threads")
    RUNTIME_FIELD_NUMBER: _ClassVar[int]
    PROVIDER_FIELD_NUMBER: _ClassVar[int]
    PLACEMENTS_FIELD_NUMBER: _ClassVar[int]
    CUDNN_FIELD_NUMBER: _ClassVar[int]
    PRECISION_FIELD_NUMBER: _ClassVar[int]
    THREADS_FIELD_NUMBER: _ClassVar[int]
    runtime: str
    provider: str
    placements: _containers.RepeatedCompositeFieldContainer[Placement]
    cudnn: str
    precision: str
    threads: int
    def __init__(self, runtime: _Optional[str] = ..., provider: _Optional[str] = ..., placements: _Optional[_Iterable[_Union[Placement, _Mapping]]] = ..., cudnn: _Optional[str] = ..., precision: _Optional[str] = ..., threads: _Optional[int] = ...) -> None: ...

class Placement(_message.Message):
    __slots__ = ("provider", "operator", "nodes", "image_sized")
    PROVIDER_FIELD_NUMBER: _ClassVar[int]
    OPERATOR_FIELD_NUMBER: _ClassVar[int]
    NODES_FIELD_NUMBER: _ClassVar[int]
    IMAGE_SIZED_FIELD_NUMBER: _ClassVar[int]
    provider: str
    operator: str
    nodes: int
    image_sized: bool
    def __init__(self, provider: _Optional[str] = ..., operator: _Optional[str] = ..., nodes: _Optional[int] = ..., image_sized: bool = ...) -> None: ...

class Batching(_message.Message):
    __slots__ = ("max_batch", "max_delay_ms", "max_queue", "runners")
    MAX_BATCH_FIELD_NUMBER: _ClassVar[int]
    MAX_DELAY_MS_FIELD_NUMBER: _ClassVar[int]
    MAX_QUEUE_FIELD_NUMBER: _ClassVar[int]
    RUNNERS_FIELD_NUMBER: _ClassVar[int]
    max_batch: int
    max_delay_ms: float
    max_queue: int
    runners: int
    def __init__(self, max_batch: _Optional[int] = ..., max_delay_ms: _Optional[float] = ..., max_queue: _Optional[int] = ..., runners: _Optional[int] = ...) -> None: ...

class MemoryLimits(_message.Message):
    __slots__ = ("max_request_bytes", "max_admitted_bytes", "bytes_per_pixel")
    MAX_REQUEST_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_ADMITTED_BYTES_FIELD_NUMBER: _ClassVar[int]
    BYTES_PER_PIXEL_FIELD_NUMBER: _ClassVar[int]
    max_request_bytes: int
    max_admitted_bytes: int
    bytes_per_pixel: float
    def __init__(self, max_request_bytes: _Optional[int] = ..., max_admitted_bytes: _Optional[int] = ..., bytes_per_pixel: _Optional[float] = ...) -> None: ...

class Stride(_message.Message):
    __slots__ = ("y", "x")
    Y_FIELD_NUMBER: _ClassVar[int]
    X_FIELD_NUMBER: _ClassVar[int]
    y: int
    x: int
    def __init__(self, y: _Optional[int] = ..., x: _Optional[int] = ...) -> None: ...

class ImageLimits(_message.Message):
    __slots__ = ("max_bytes", "max_pixels", "max_side")
    MAX_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_PIXELS_FIELD_NUMBER: _ClassVar[int]
    MAX_SIDE_FIELD_NUMBER: _ClassVar[int]
    max_bytes: int
    max_pixels: int
    max_side: int
    def __init__(self, max_bytes: _Optional[int] = ..., max_pixels: _Optional[int] = ..., max_side: _Optional[int] = ...) -> None: ...

class Class(_message.Message):
    __slots__ = ("id", "name", "colour")
    ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    COLOUR_FIELD_NUMBER: _ClassVar[int]
    id: int
    name: str
    colour: int
    def __init__(self, id: _Optional[int] = ..., name: _Optional[str] = ..., colour: _Optional[int] = ...) -> None: ...
