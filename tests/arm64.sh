#!/usr/bin/env bash
# Verify the shipped bundle on an emulated 64-bit ARM processor: Debian, as root, in a private folder.
#
# onnxruntime reads /proc/cpuinfo at its import and crashes on that of another processor
# (qemu-user before 8 shows it), so that of a Cortex-A72 is mounted over it, for these processes alone.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
chmod 755 "$work"
cd "$work"

command -v qemu-aarch64 > /dev/null || apt-get install -y -qq --no-install-recommends qemu-user > log
dpkg --add-architecture arm64
apt-get update -qq
apt-get download -qq {python3.11-minimal,libpython3.11-{minimal,stdlib},libc6,zlib1g,libexpat1,libssl3}:arm64 \
  {libstdc++6,libgcc-s1,libffi8,libbz2-1.0,liblzma5,libsqlite3-0,libuuid1,libcrypt1,libgomp1}:arm64
for package in *.deb; do dpkg-deb -x "$package" system; done
python3 -m pip download -qq --platform manylinux_2_28_aarch64 --python-version 3.11 \
  --only-binary=:all: --no-deps numpy onnxruntime
for wheel in *.whl; do python3 -m zipfile -e "$wheel" packages; done
for core in 0 1; do
  printf 'processor\t: %s\nFeatures\t: fp asimd aes pmull sha1 sha2 crc32 cpuid\n' $core
  printf 'CPU implementer\t: 0x41\nCPU architecture: 8\nCPU variant\t: 0x0\nCPU part\t: 0xd08\nCPU revision\t: 3\n\n'
done > cpuinfo
cat > verify.py << END
import platform, sys
sys.path[:0] = ["$work/packages", "$root/runtime"]
from ranklet.verify import verify
print(platform.machine(), verify("$root/models/ml-latest-small", provider="cpu"))
END
unshare --mount bash -c 'mount --bind cpuinfo /proc/cpuinfo &&
  qemu-aarch64 -cpu cortex-a72 -L system system/usr/bin/python3.11 verify.py'
