"""The input of a request: from its tensor to sources of images. No number is relied on before it was checked."""

import math
from collections.abc import Sequence

import numpy as np

from fcnseg.images import ImageLimits
from serving.errors import InvalidFieldError, quote
from serving.image_sources import EncodedSource, RawSource, Source
from serving.oip import inference_pb2 as pb

INPUT = "image"
_CHANNELS = 3
_LENGTH_BYTES = 4
# Of a typed element: 4 in an array that grew to up to twice its size, beside the smaller ones before; and narrowed.
_TYPED_BYTES = 17
_SHARED_MEMORY = "shared_memory_region"
_TYPED_FIELDS = {"UINT8": "uint_contents", "BYTES": "bytes_contents"}
_SHAPES = {"UINT8": "[N, height, width, 3]", "BYTES": "[N]"}
_TENSOR, _SHAPE, _CONTENTS, _RAW = "inputs[0]", "inputs[0].shape", "inputs[0].contents", "raw_input_contents"


def refuse_shared_memory(parameters: object, field: str) -> None:
    """Refuse a tensor that lies in shared memory.

    Args:
        parameters: The parameters of the tensor.
        field: The request's field that holds the parameters.

    Raises:
        InvalidFieldError: The tensor lies in shared memory.
    """
    if _SHARED_MEMORY in parameters:  # type: ignore[operator] # protobuf's maps have no base
        raise InvalidFieldError(field, "the server has no shared memory; send and take tensors' bytes")


def reads_at_once(request: pb.ModelInferRequest) -> bool:
    """Tell whether `read_sources` takes no time worth a thread."""
    if not request.raw_input_contents:
        return False
    return all(tensor.datatype != "BYTES" or list(tensor.shape) == [1] for tensor in request.inputs)


def read_sources(request: pb.ModelInferRequest, most: int, limits: ImageLimits) -> list[Source]:
    """Return where the pixels of a request's images come from; raw pixels are not copied.

    Args:
        request: The request.
        most: How many images it may hold.
        limits: Images beyond these are refused.

    Returns:
        At least one source. Of encoded images only the headers have been read, and sizes are the same but for what an
        EXIF orientation may swap.

    Raises:
        InvalidFieldError: The request has not exactly the input `image`, UINT8 [N, height, width, 3] or BYTES [N], with
            contents that are as its shape says; or its images are too many, or differ in size.
    """
    tensor = _only_input(request)
    shape = list(tensor.shape)
    axes = 4 if tensor.datatype == "UINT8" else 1
    if len(shape) != axes or min(shape) < 1 or (axes == 4 and shape[3] != _CHANNELS):
        raise InvalidFieldError(
            _SHAPE,
            f"input {INPUT!r} has shape {shape[:8]}{'...' if shape[8:] else ''}; as {tensor.datatype} it must be"
            f" {_SHAPES[tensor.datatype]}, each at least 1",
        )
    if shape[0] > most:
        raise InvalidFieldError(_SHAPE, f"the request holds {shape[0]} images; send at most {most} at a time")
    if axes == 4:
        return list(_read_pixels(request, tensor, shape))
    return list(_read_files(request, tensor, shape[0], limits))


def _only_input(request: pb.ModelInferRequest) -> pb.ModelInferRequest.InferInputTensor:
    if len(request.inputs) != 1:
        raise InvalidFieldError("inputs", f"the request has {len(request.inputs)} inputs; give one, {INPUT!r}")
    (tensor,) = request.inputs
    if tensor.name != INPUT:
        raise InvalidFieldError(f"{_TENSOR}.name", f"no input {quote(tensor.name)}; the model's input is {INPUT!r}")
    refuse_shared_memory(tensor.parameters, f"{_TENSOR}.parameters")
    if tensor.datatype not in _TYPED_FIELDS:
        raise InvalidFieldError(
            f"{_TENSOR}.datatype",
            f"input {INPUT!r} has datatype {quote(tensor.datatype)}; give pixels as UINT8, or files as BYTES",
        )
    raw, typed = len(request.raw_input_contents), tensor.HasField("contents")
    if raw and typed:
        raise InvalidFieldError(_CONTENTS, f"input {INPUT!r} has both contents and raw_input_contents; give one")
    if not typed and raw != 1:
        raise InvalidFieldError(
            _RAW, f"input {INPUT!r} has {raw} raw_input_contents; give one, or contents in the input itself"
        )
    if typed:
        field = _TYPED_FIELDS[tensor.datatype]
        others = [found.name for found, _ in tensor.contents.ListFields() if found.name != field]
        if others:
            raise InvalidFieldError(
                f"{_CONTENTS}.{others[0]}",
                f"input {INPUT!r} of datatype {tensor.datatype} has {others[0]}; its elements go into {field}",
            )
    return tensor


def _read_pixels(
    request: pb.ModelInferRequest, tensor: pb.ModelInferRequest.InferInputTensor, shape: list[int]
) -> list[RawSource]:
    typed = tensor.HasField("contents")
    field = f"{_CONTENTS}.uint_contents" if typed else f"{_RAW}[0]"
    expected = math.prod(shape)
    values: memoryview | None = None if typed else memoryview(request.raw_input_contents[0])
    count = len(tensor.contents.uint_contents) if values is None else len(values)
    if count != expected:
        raise InvalidFieldError(
            field, f"input {INPUT!r} of shape {shape} has {expected} elements of a byte each; got {count}"
        )
    if values is None:
        values = _narrow(tensor.contents, field)
    one = expected // shape[0]
    held = one * _TYPED_BYTES if typed else None
    return [RawSource(values[i * one : (i + 1) * one], shape[1], shape[2], field, held) for i in range(shape[0])]


def _narrow(contents: pb.InferTensorContents, field: str) -> memoryview:
    wide = np.fromiter(contents.uint_contents, np.uint32, len(contents.uint_contents))
    largest = int(wide.max())
    if largest > 255:
        raise InvalidFieldError(field, f"input {INPUT!r} has an element of {largest}; UINT8 ends at 255")
    return wide.astype(np.uint8).data


def _read_files(
    request: pb.ModelInferRequest, tensor: pb.ModelInferRequest.InferInputTensor, count: int, limits: ImageLimits
) -> list[EncodedSource]:
    if tensor.HasField("contents"):
        typed = tensor.contents.bytes_contents
        field = f"{_CONTENTS}.bytes_contents"
        if len(typed) != count:
            raise InvalidFieldError(field, f"input {INPUT!r} of shape [{count}] has as many elements; got {len(typed)}")
        files = list(typed)
    else:
        field = f"{_RAW}[0]"
        files = split_elements(request.raw_input_contents[0], count, field)
    sources = [EncodedSource(file, f"{field}[{i}]" if count > 1 else field) for i, file in enumerate(files)]
    if count > 1:
        require_one_size([sorted(source.open(limits)) for source in sources])
    return sources


def split_elements(data: bytes, count: int, field: str) -> list[bytes]:
    """Return the elements of a raw BYTES tensor: before each stands its length, 4 bytes in little-endian order.

    Args:
        data: The tensor's bytes.
        count: How many elements its shape says.
        field: The request's field, for messages.

    Raises:
        InvalidFieldError: The bytes are not so many elements and nothing else.
    """
    view = memoryview(data)
    elements: list[bytes] = []
    offset = 0
    for i in range(count):
        start = offset + _LENGTH_BYTES
        if start > len(view):
            raise InvalidFieldError(
                field,
                f"the bytes end before element {i} of {count}; each is its length in 4 bytes (little-endian) and that"
                " many bytes",
            )
        offset = start + int.from_bytes(view[offset:start], "little")
        if offset > len(view):
            raise InvalidFieldError(
                field, f"element {i} of {count} claims {offset - start} bytes; {len(view) - start} are left"
            )
        elements.append(bytes(view[start:offset]))
    if offset != len(view):
        raise InvalidFieldError(field, f"{len(view) - offset} bytes follow the last of {count} elements")
    return elements


def require_one_size(sizes: Sequence[Sequence[int]]) -> None:
    """Check that the images of a request have one size.

    Raises:
        InvalidFieldError: They do not.
    """
    if any(size != sizes[0] for size in sizes):
        raise InvalidFieldError(
            _TENSOR, "the images differ in size and share no tensor; send each in a request of its own"
        )
