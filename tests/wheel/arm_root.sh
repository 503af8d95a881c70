#!/usr/bin/env bash
# arm_root.sh FOLDER: Debian's Python for aarch64 and what our wheel needs of the system, unpacked into a folder, for qemu.
set -euo pipefail
packages=(python3.11-minimal libpython3.11-minimal libpython3.11-stdlib libc6 libstdc++6 libgcc-s1 libgomp1 zlib1g libexpat1
    libssl3 libffi8 libbz2-1.0 liblzma5 libuuid1 libsqlite3-0 libncursesw6 libtinfo6 libreadline8)
root=$(realpath -m "$1")
mkdir -p "$root/packages"
cd "$root/packages"
apt-get download "${packages[@]/%/:arm64}" >/dev/null
for package in *.deb; do dpkg -x "$package" "$root"; done
