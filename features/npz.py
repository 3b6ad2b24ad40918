"""Archives of numpy arrays, .npz: read without unpickling, and none that claims to unpack to far more than it holds."""

import zipfile
from pathlib import Path

import numpy as np


def read_npz(path: Path, *names: str) -> dict[str, np.ndarray]:
    """Read the arrays of an archive, or those of `names`. What it raises on a damaged file is almost anything.

    Raises ValueError for an archive that unpacks to more than `check_size` takes, and for arrays of Python objects.
    """
    from features.reader_process import check_size  # takes HDF5 along, for those who need it

    with zipfile.ZipFile(path) as archive:
        check_size(path, sum(member.file_size for member in archive.infolist()))
    with np.load(path, allow_pickle=False) as arrays:
        return {name: held for name in names or arrays.files if isinstance(held := arrays[name], np.ndarray)}
