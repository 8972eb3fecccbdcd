"""The model for Triton's Python backend."""

import json

import triton_python_backend_utils as triton
from session import open_session


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        parameters = json.loads(args["model_config"])["parameters"]
        self._session = open_session(parameters["model"]["string_value"], int(parameters["threads"]["string_value"]))

    def execute(self, requests: list["triton.InferenceRequest"]) -> list["triton.InferenceResponse"]:
        return [self._answer(request) for request in requests]

    def _answer(self, request: "triton.InferenceRequest") -> "triton.InferenceResponse":
        images = triton.get_input_tensor_by_name(request, "image").as_numpy()
        class_map = self._session.run(["class_map"], {"image": images})[0]
        return triton.InferenceResponse([triton.Tensor("class_map", class_map)])
