#!/usr/bin/env bash
# Fetches a kernel for the guests of the tests: Debian's own for clouds, from the backports of bookworm (or from
# whatever suite the system follows), unpacked and not installed.
#
#   scripts/guest-kernel.sh [FOLDER]      default: target/guest-kernel
#
# Leaves FOLDER/vmlinuz, FOLDER/lib/modules/VERSION with modules.dep, and FOLDER/version.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
folder=${1:-${CARGO_TARGET_DIR:-$PWD/target}/guest-kernel}
[[ -s $folder/version ]] && exit 0

# The package of the name depends on the one with the kernel.
suite=()
[[ $(apt-cache policy linux-image-cloud-amd64) == *bookworm-backports* ]] && suite=(-t bookworm-backports)
package=$(apt-cache depends "${suite[@]}" linux-image-cloud-amd64 | awk '$1 == "Depends:" && !n++ { print $2 }')
[[ -n $package ]] || {
  echo "no package linux-image-cloud-amd64 is known" >&2
  exit 1
}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
apt-get "${suite[@]}" -qq -o APT::Sandbox::User=root download "$package"
dpkg -x "$package"_*.deb root
version=$(ls root/lib/modules)
depmod -b root "$version"
rm -rf "$folder"
mkdir -p "$folder/lib/modules"
cp "root/boot/vmlinuz-$version" "$folder/vmlinuz"
cp -r "root/lib/modules/$version" "$folder/lib/modules/"
echo "$version" >"$folder/version"
