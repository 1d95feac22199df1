#!/usr/bin/env bash
# Converts a real disk, made by Windows 10, from VHD to VHDX and shows what came of it. Needs Rust and a C
# compiler.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

target=${CARGO_TARGET_DIR:-target}
cargo build --release --locked -p vhdkit-cli
vhdkit=$target/release/vhdkit
source=demo/ntfs-dynamic.vhd
result=$target/demo/ntfs.vhdx
mkdir -p "$target/demo"

run() {
  printf '\n$ vhdkit %s\n' "$*"
  "$vhdkit" "$@"
}

run info "$source"
run convert "$source" "$result" --force
run info "$result"
run map "$result"
run compare "$source" "$result"
run check "$result"
