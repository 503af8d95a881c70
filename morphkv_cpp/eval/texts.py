"""English prose by package name, for perplexity: a novel, proceedings in essays, and six more novels on Debian.

All are in the public domain, or documents of the United States' government. Nothing of them is part of this package.
"""

import io
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

from morphkv_cpp.extras import needs_extra

# Its source package carries the Canterbury corpus as test data.
PYPI_PACKAGE = "brotli==1.2.1"
# file in the package -> our name, and where the prose begins
PYPI_TEXTS = {
    "alice29.txt": ("alice.txt", "Alice was beginning"),
    "lcet10.txt": ("workshop.txt", "The Workshop on Electronic Texts (1) drew"),
}
# "Jane Austen's complete novels for GNU R"
DEBIAN_PACKAGE = "r-cran-janeaustenr"
DEBIAN_NAMES = (
    "emma",
    "mansfield-park",
    "northanger-abbey",
    "persuasion",
    "pride-and-prejudice",
    "sense-and-sensibility",
)


def fetch_texts(folder: Path, on_skip: Callable[[str], None]) -> list[Path]:
    """Write the texts into `folder`, one file each, and return their paths; those already there are kept.

    `on_skip` gets a sentence where the Debian package cannot be had, or not be read. Raises RuntimeError where pip
    finds nothing.
    """
    wanted = fetch_pypi_texts(folder)
    novels = [folder / f"{name}.txt" for name in DEBIAN_NAMES]
    if not all(path.is_file() for path in novels):
        if shutil.which("apt-get") and shutil.which("dpkg-deb"):
            try:
                _write(folder, _from_debian())
            except ModuleNotFoundError as error:
                on_skip(f"the novels in the Debian package {DEBIAN_PACKAGE} are left out: {error}")
        else:
            on_skip(f"the novels in the Debian package {DEBIAN_PACKAGE} need apt-get and dpkg-deb: left out")
    return [path for path in [*wanted, *novels] if path.is_file()]


def fetch_pypi_texts(folder: Path) -> list[Path]:
    """Those that need no Debian: Alice first."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / name for name, _ in PYPI_TEXTS.values()]
    if not all(path.is_file() for path in paths):
        _write(folder, _from_pypi())
    return paths


def _write(folder: Path, texts: dict[str, str]) -> None:
    for name, text in texts.items():
        (folder / name).write_text(unwrap(text) + "\n", encoding="utf-8")


def unwrap(text: str) -> str:
    """Paragraphs on one line each, a blank line between them: line ends of a printed page are no part of the prose."""
    paragraphs = re.split(r"\n\s*\n", text.replace("\r\n", "\n"))
    return "\n\n".join(filter(None, (" ".join(paragraph.split()) for paragraph in paragraphs)))


def _run(command: list[str], folder: Path) -> None:
    result = subprocess.run(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    if result.returncode:
        raise RuntimeError(f"{command[0]} failed with exit code {result.returncode}: {result.stdout.strip()[-500:]}")


def _from_pypi() -> dict[str, str]:
    with tempfile.TemporaryDirectory() as scratch:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary=:all:", PYPI_PACKAGE]
        _run(command, Path(scratch))
        return _read_sdist(next(Path(scratch).glob("*.tar.gz")))


def _read_sdist(path: Path) -> dict[str, str]:
    texts = {}
    with tarfile.open(path) as archive:
        for member in archive:
            name, begin = PYPI_TEXTS.get(Path(member.name).name, ("", ""))
            if name and (file := archive.extractfile(member)):
                text = file.read().decode("ascii", "replace").rstrip("\x1a\0 \n")
                texts[name] = text[text.index(begin) :]
    return texts


def _from_debian() -> dict[str, str]:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        _run(["apt-get", "download", DEBIAN_PACKAGE], folder)
        _run(["dpkg-deb", "-x", str(next(folder.glob("*.deb"))), "unpacked"], folder)
        data = next(folder.glob("unpacked/**/data/Rdata.rdb")).read_bytes()
    texts = {}
    for name, lines in zip(DEBIAN_NAMES, r_string_vectors(data)):
        text = "\n".join(lines)
        heading = re.search(r"^chapter (1|i)$", text, flags=re.MULTILINE | re.IGNORECASE)
        texts[f"{name}.txt"] = text[heading.end() if heading else 0 :]
    return texts


def r_string_vectors(data: bytes) -> Iterator[list[str]]:
    """The character vectors in an R lazy-load database: each a length and a zlib stream of R's own format."""
    with needs_extra("texts"):
        import rdata

    while data:
        stream = zlib.decompressobj()
        block = stream.decompress(data[4:])
        data = stream.unused_data
        lines = rdata.read_rds(io.BytesIO(block), default_encoding="utf-8")
        yield [str(line) for line in lines]
