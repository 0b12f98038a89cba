"""Random grey images, and files of them in the format of MNIST."""

import gzip
import struct

import numpy as np
import torch


def grey(n, size=5, channels=1, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, channels, size, size), generator=generator, dtype=torch.uint8)


def write_idx(folder, gzipped, n_train=12, n_test=6, size=28):
    """The four files of MNIST, as in its original format."""
    folder.mkdir(parents=True)
    arrays = {}
    for split, n in (("train", n_train), ("t10k", n_test)):
        images = grey(n, size, seed=n)[:, 0].numpy()
        labels = (np.arange(n) % 10).astype(np.uint8)
        arrays[split] = images
        for name, array, magic in (
            (f"{split}-images-idx3-ubyte", images, 2051),
            (f"{split}-labels-idx1-ubyte", labels, 2049),
        ):
            data = struct.pack(f">{1 + array.ndim}i", magic, *array.shape) + array.tobytes()
            if gzipped:
                with gzip.open(folder / f"{name}.gz", "wb") as file:
                    file.write(data)
            else:
                (folder / name).write_bytes(data)
    return arrays
