"""`make vendor`: download the packages of vendor.toml again with npm, check their hashes, and copy their files.

To upgrade a package, change its version in vendor.toml and run `make vendor`. It prints the new hashes; copy them into vendor.toml.
"""

from __future__ import annotations

import base64
import hashlib
import subprocess
import sys
import tarfile
import tempfile
import tomllib
from pathlib import Path

from shortener.portal.static_files import FOLDER

VENDOR = FOLDER / "vendor"


def main() -> None:
    problems = []
    for package in tomllib.loads((VENDOR / "vendor.toml").read_text())["package"]:
        wanted = f"{package['name']}@{package['version']}"
        with tempfile.TemporaryDirectory() as folder:
            packed = subprocess.run(["npm", "pack", "--silent", wanted], cwd=folder, check=True, capture_output=True, text=True)
            archive = Path(folder) / packed.stdout.strip().splitlines()[-1]
            found = "sha512-" + base64.b64encode(hashlib.sha512(archive.read_bytes()).digest()).decode()
            if found != package["integrity"]:
                problems.append(f"{wanted}: integrity is {found}")
            with tarfile.open(archive) as files:
                for name, file in package["files"].items():
                    member = files.extractfile(file["path"])
                    assert member is not None, f"{wanted} has no file {file['path']}"
                    content = member.read()
                    digest = hashlib.sha256(content).hexdigest()
                    if digest != file["sha256"]:
                        problems.append(f"{wanted}: the sha256 of {name} is {digest}")
                    (VENDOR / name).write_bytes(content)
    if problems:
        sys.exit("\n".join(problems))


if __name__ == "__main__":
    main()
