"""The Open Inference Protocol's names, numbers and types stay as they are published."""

from pathlib import Path

from google.protobuf.descriptor_pb2 import FileDescriptorProto

from serving.oip import inference_pb2 as pb
from tests.contract.descriptor_lines import describe_file

GOLDEN = Path(__file__).parent / "inference.txt"


def test_contract_is_as_published() -> None:
    file = FileDescriptorProto()
    pb.DESCRIPTOR.CopyToProto(file)
    assert list(describe_file(file)) == GOLDEN.read_text().splitlines()


def test_stubs_offer_every_rpc() -> None:
    from serving.oip import inference_pb2_grpc

    (service,) = pb.DESCRIPTOR.services_by_name.values()
    assert service.full_name == "inference.GRPCInferenceService"
    for method in service.methods:
        assert hasattr(inference_pb2_grpc.GRPCInferenceServiceServicer, method.name)
