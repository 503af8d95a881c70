"""Write wheels: files, metadata and a record of them, the same bytes for the same files. Standard library only."""

import base64
import hashlib
import pathlib
import zipfile

# Of 1980, the first that a zip can hold: the same files make the same wheel.
TIME = (1980, 1, 1, 0, 0, 0)


def write_wheel(folder, name, version, tag, generator, files):
    """files: {path in the wheel: bytes}, {NAME}-{VERSION}.dist-info/METADATA among them. Returns the wheel's path."""
    stem = f"{name}-{version}"
    info = f"{stem}.dist-info"
    is_pure = "true" if tag.endswith("-any") else "false"
    wheel = f"Wheel-Version: 1.0\nGenerator: {generator}\nRoot-Is-Purelib: {is_pure}\nTag: {tag}\n"
    packed = {**files, f"{info}/WHEEL": wheel.encode()}
    packed[f"{info}/RECORD"] = record(packed, f"{info}/RECORD")
    target = pathlib.Path(folder) / f"{stem}-{tag}.whl"
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(target.name + ".partial")
    with zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, data in packed.items():
            entry = zipfile.ZipInfo(path, TIME)
            entry.compress_type, entry.external_attr = zipfile.ZIP_DEFLATED, 0o100644 << 16
            archive.writestr(entry, data)
    partial.replace(target)
    return target


def record(files, name):
    rows = []
    for path, data in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
        rows.append(f"{path},sha256={digest},{len(data)}")
    return "\n".join([*rows, f"{name},,", ""]).encode()
