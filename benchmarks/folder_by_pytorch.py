"""A folder of JPEGs through a net in PyTorch, as one would write it by hand; a side of folder_peers.py.

Run it: python benchmarks/folder_by_pytorch.py ARCH STATE.pt FOLDER OUTPUT THREADS BATCH
"""

import sys
from pathlib import Path

import cv2
import torch
from nets import build_net
from torch import Tensor
from torch.utils.data import DataLoader, Dataset


class Photographs(Dataset[tuple[str, Tensor]]):
    """The folder's images: name and (H, W, 3) uint8 RGB."""

    def __init__(self, folder: Path) -> None:
        self.paths = sorted(folder.glob("*.jpg"))

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[str, Tensor]:
        image = cv2.cvtColor(cv2.imread(str(self.paths[index])), cv2.COLOR_BGR2RGB)  # type: ignore[arg-type] # it is one
        return self.paths[index].stem, torch.from_numpy(image)


def main() -> None:
    architecture, state, folder, output, threads, batch = sys.argv[1:]
    torch.set_num_threads(int(threads))
    model = build_net(architecture)
    model.load_state_dict(torch.load(state))
    model.eval()
    loader = DataLoader(Photographs(Path(folder)), batch_size=int(batch), num_workers=int(threads))
    with torch.inference_mode():
        for names, images in loader:
            class_maps = model.pixel_scores(images).argmax(1).to(torch.uint8).numpy()
            for name, class_map in zip(names, class_maps, strict=True):
                cv2.imwrite(str(Path(output) / f"{name}.png"), class_map)


if __name__ == "__main__":
    main()
