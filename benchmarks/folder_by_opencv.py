"""A folder of JPEGs through a model file, as one would write it by hand; a side of folder_peers.py.

Run it: python benchmarks/folder_by_opencv.py MODEL.onnx FOLDER OUTPUT THREADS
"""

import sys
from pathlib import Path

import cv2
import onnxruntime


def main() -> None:
    model, folder, output, threads = sys.argv[1:]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = int(threads)
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    for path in sorted(Path(folder).glob("*.jpg")):
        image = cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)  # type: ignore[arg-type] # it is an image
        (class_map,) = session.run(["class_map"], {"image": image[None]})
        cv2.imwrite(str(Path(output) / f"{path.stem}.png"), class_map[0])


if __name__ == "__main__":
    main()
