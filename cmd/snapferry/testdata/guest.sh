#!/bin/sh
# Fetches what TestVolumeGuest needs of Debian's kernel for virtual machines,
# with apt-get: guest.sh DIR, then go test ./cmd/snapferry -run TestVolumeGuest -guest DIR
set -eu
[ $# = 1 ] || { echo "usage: $0 DIR" >&2; exit 2; }
mkdir -p "$1"
to=$(cd "$1" && pwd)
package=$(apt-cache depends linux-image-cloud-amd64 | awk '$1 == "Depends:" && $2 ~ /^linux-image-[0-9]/ { print $2; exit }')
from=$(mktemp -d)
trap 'rm -rf "$from"' EXIT
cd "$from"
apt-get download "$package"
dpkg-deb -x "$package"_*.deb .
cp boot/vmlinuz-* "$to/vmlinuz"
for module in virtio virtio_ring virtio_pci_legacy_dev virtio_pci_modern_dev virtio_pci virtio_blk; do
	find . -name "$module.ko" -exec cp {} "$to/" \;
done
ls "$to"
