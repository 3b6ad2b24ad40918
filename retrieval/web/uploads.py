"""Images that were sent, kept while the server runs: the last of them, as an embedding and a small JPEG each."""

import hashlib
import threading
from collections import OrderedDict
from dataclasses import dataclass

import numpy as np

from utils import BadInput

MAX_KEPT = 200  # some 40 kB each


@dataclass(frozen=True)
class Upload:
    """An image that was sent. embedding: (1, dim); jpeg: of at most PREVIEW_PIXELS."""

    embedding: np.ndarray
    jpeg: bytes


class Uploads:
    """The last images that were sent, by the digest of their files: who has not the file cannot name it."""

    def __init__(self, most: int = MAX_KEPT):
        self.most, self.lock = most, threading.Lock()
        self.kept: OrderedDict[str, Upload] = OrderedDict()

    def keep(self, data: bytes, upload: Upload) -> str:
        """Keep an image in place of the one that was asked for longest ago; return its digest.

        >>> Uploads().keep(b"", Upload(np.zeros((1, 2)), b""))
        'e3b0c44298fc1c149afbf4c8996fb924'
        """
        digest = hashlib.sha256(data).hexdigest()[:32]
        with self.lock:
            self.kept[digest] = upload
            self.kept.move_to_end(digest)
            while len(self.kept) > self.most:
                self.kept.popitem(last=False)
        return digest

    def get(self, digest: str) -> Upload:
        """Return an image. Raises BadInput if it is not kept any more, or never was."""
        with self.lock:
            if digest not in self.kept:
                raise BadInput("the image that was sent is not kept any more; send it again")
            self.kept.move_to_end(digest)
            return self.kept[digest]
