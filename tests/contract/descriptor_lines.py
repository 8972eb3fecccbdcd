"""What a .proto file promises, a line each."""

from collections.abc import Iterable, Iterator

from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
)

_REPEATED = FieldDescriptorProto.LABEL_REPEATED


def describe_file(file: FileDescriptorProto) -> Iterator[str]:
    """Yield a line for each method, message, field and enum value."""
    for service in file.service:
        for method in service.method:
            request, response = (
                f"{'stream ' if streams else ''}{name.removeprefix('.')}"
                for name, streams in (
                    (method.input_type, method.client_streaming),
                    (method.output_type, method.server_streaming),
                )
            )
            yield f"rpc {file.package}.{service.name}.{method.name}({request}) -> {response}"
    yield from _describe_enums(file.package, file.enum_type)
    for message in file.message_type:
        yield from _describe_message(file.package, message)


def _describe_message(scope: str, message: DescriptorProto) -> Iterator[str]:
    name = f"{scope}.{message.name}"
    yield f"message {name}"
    for field in sorted(message.field, key=lambda f: f.number):
        type_ = field.type_name.removeprefix(".") or FieldDescriptorProto.Type.Name(field.type)[5:].lower()
        oneof = f" in oneof {message.oneof_decl[field.oneof_index].name}" if field.HasField("oneof_index") else ""
        repeated = "repeated " if field.label == _REPEATED else ""
        yield f"{name}.{field.name} = {field.number}: {repeated}{type_}{oneof}"
    yield from _describe_enums(name, message.enum_type)
    for inner in message.nested_type:
        yield from _describe_message(name, inner)


def _describe_enums(scope: str, enums: Iterable[EnumDescriptorProto]) -> Iterator[str]:
    for enum in enums:
        yield from (f"enum {scope}.{enum.name}.{value.name} = {value.number}" for value in enum.value)
