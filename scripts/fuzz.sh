#!/bin/sh
# Fuzzes every target for a number of seconds (60 by default), or only those named.
#
#   scripts/fuzz.sh [SECONDS] [TARGET...]
#
# Needs cargo-fuzz (cargo install cargo-fuzz); a stable compiler will do. Inputs that break something are in
# fuzz/artifacts/TARGET; put them into fuzz/corpus/TARGET when the bug is fixed.
set -eu
cd "$(dirname "$0")/../fuzz"
seconds=${1:-60}
[ $# -gt 0 ] && shift
if [ $# -eq 0 ]; then
    set -- vhd_open vhdx_open vhdx_log parent_locator iso_detect partitions operations scsi nbd
fi
for target in "$@"; do
    echo "== $target for $seconds s"
    # What is found on the way goes into a folder of its own; the committed inputs are only read.
    mkdir -p "target/found/$target"
    cargo fuzz run --sanitizer none "$target" "target/found/$target" "corpus/$target" -- \
        -max_total_time="$seconds" -timeout=100 -rss_limit_mb=2048 -max_len=4096
done
