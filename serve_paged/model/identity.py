"""Which weights are these? A short hash of a file's or a model's contents, cheap enough for every start."""

import hashlib
from pathlib import Path

from serve_paged.model.weight_files import weight_files

NUM_SAMPLES = 64
SAMPLE_SIZE = 16 * 1024  # bytes


def file_digest(file: Path) -> bytes:
    """Hash a file's size and samples spread evenly over its contents, its first and last bytes among them: 16 bytes.

    Unlike its time of change, this stays when a file is copied or installed anew; unlike a full hash, it takes
    milliseconds. Two trainings of one model differ nearly everywhere, so samples tell them apart.
    """
    size = file.stat().st_size
    digest = hashlib.blake2b(size.to_bytes(8, "little"), digest_size=16)
    with file.open("rb") as stream:
        for sample in range(NUM_SAMPLES):
            stream.seek(max(0, size - SAMPLE_SIZE) * sample // (NUM_SAMPLES - 1))
            digest.update(stream.read(SAMPLE_SIZE))
    return digest.digest()


def fingerprint(folder: Path) -> str:
    """Hash a model folder's config and weights: 32 hex digits, the same on every machine that holds these files."""
    digest = hashlib.blake2b((folder / "config.json").read_bytes(), digest_size=16)
    for file in weight_files(folder):
        digest.update(file.name.encode())
        digest.update(file_digest(file))
    return digest.hexdigest()
