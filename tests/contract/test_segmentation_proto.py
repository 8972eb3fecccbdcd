"""Clients in the field speak the contract as published: names, numbers and types stay, and new ones are added here."""

from pathlib import Path

from google.protobuf.descriptor import Descriptor, FieldDescriptor

from fcnseg.v1 import segmentation_pb2 as pb

GOLDEN = Path(__file__).parent / "segmentation_v1.txt"


def describe_contract() -> list[str]:
    lines = [f"package {pb.DESCRIPTOR.package}"]
    for service in pb.DESCRIPTOR.services_by_name.values():
        lines += [
            f"rpc {service.name}.{method.name}({method.input_type.name}) -> {method.output_type.name}"
            for method in service.methods
        ]
    for enum in pb.DESCRIPTOR.enum_types_by_name.values():
        lines += [f"enum {enum.name}.{value.name} = {value.number}" for value in enum.values]
    for message in pb.DESCRIPTOR.message_types_by_name.values():
        lines += describe_message(message)
    return lines


def describe_message(message: Descriptor) -> list[str]:
    return [
        f"{message.name}.{field.name} = {field.number}: {describe_type(field)}"
        for field in sorted(message.fields, key=lambda f: f.number)
    ] or [f"{message.name} is empty"]


def describe_type(field: FieldDescriptor) -> str:
    entry = field.message_type
    if entry is not None and entry.GetOptions().map_entry:
        key, value = (describe_type(entry.fields_by_name[name]) for name in ("key", "value"))
        return f"map<{key}, {value}>"
    named = entry or field.enum_type
    types = {number: name for name, number in vars(FieldDescriptor).items() if name.startswith("TYPE_")}
    name = named.name if named is not None else types[field.type].removeprefix("TYPE_").lower()
    if field.is_repeated:
        return f"repeated {name}"
    oneof = field.containing_oneof
    if oneof is None:
        return name
    # proto3 makes a oneof of each optional field, named after it.
    return f"optional {name}" if oneof.name == f"_{field.name}" else f"{name} in oneof {oneof.name}"


def test_contract_is_as_published() -> None:
    assert describe_contract() == GOLDEN.read_text().splitlines()


def test_stubs_offer_every_rpc() -> None:
    from fcnseg.v1 import segmentation_pb2_grpc

    (service,) = pb.DESCRIPTOR.services_by_name.values()
    assert service.full_name == "fcnseg.v1.SegmentationService"
    for method in service.methods:
        assert hasattr(segmentation_pb2_grpc.SegmentationServiceServicer, method.name)


def test_style_is_buf_standard() -> None:
    """Each RPC has its own Request and Response, enum values carry their enum's name and begin at UNSPECIFIED."""
    for service in pb.DESCRIPTOR.services_by_name.values():
        assert service.name.endswith("Service")
        for method in service.methods:
            assert (method.input_type.name, method.output_type.name) == (
                f"{method.name}Request",
                f"{method.name}Response",
            )
    for enum in pb.DESCRIPTOR.enum_types_by_name.values():
        prefix = "".join(f"_{c}" if c.isupper() else c.upper() for c in enum.name).lstrip("_")
        assert all(value.name.startswith(f"{prefix}_") for value in enum.values)
        assert enum.values_by_number[0].name == f"{prefix}_UNSPECIFIED"
