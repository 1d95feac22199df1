#!/usr/bin/env bash
# Runs the C library's threads under ThreadSanitizer, which finds accesses to memory that nothing orders.
#
#   scripts/thread-sanitizer.sh [SECONDS [SEED]]
#
# Library and programs are compiled for it: the library with rustc's flag (a stable compiler is told to accept it, as for
# fuzzing), the programs of crates/capi/tests/c by gcc, whose runtime both use. Rust's std is not; what is to be known of
# it is in crates/capi/tests/threads/std.c, and what is to be left alone in suppressions beside it. With SECONDS (20), random.c calls every function from eight threads so long.
set -euo pipefail
cd "$(dirname "$0")/.."
seconds=${1:-20} seed=${2:-$(date +%s)}
target=x86_64-unknown-linux-gnu
root=${CARGO_TARGET_DIR:-$PWD/target}/thread-sanitizer
built=$root/$target/debug
capi=crates/capi
mkdir -p "$root"

# The functions of std, under the names that this compiler gives them.
std=("$(rustc --print sysroot)"/lib/rustlib/$target/lib/libstd-*.so)
nm -D --defined-only --format=posix "${std[0]}" | cut -d ' ' -f 1 >"$root/names"
defines=() links=()
name() {
  local found
  found=$(grep -E "^_RNv.*3std$2\$" "$root/names") || found=
  if [[ -z $found || $found == *$'\n'* ]]; then
    echo "std has changed: no one function is $1 (${found:-none}); look at $capi/tests/threads/std.c" >&2
    exit 1
  fi
  defines+=("-D$1=$found")
  links+=("-Clink-arg=-Wl,--wrap=$found")
}
name MUTEX_LOCK '3sys4sync5mutex5futexNt[^_]*_5Mutex14lock_contended'
name RWLOCK_READ '3sys4sync6rwlock5futexNt[^_]*_6RwLock14read_contended'
name RWLOCK_WRITE '3sys4sync6rwlock5futexNt[^_]*_6RwLock15write_contended'
name CONDVAR_WAIT '3sys4sync7condvar5futexNt[^_]*_7Condvar4wait'
name CONDVAR_WAIT_TIMEOUT '3sys4sync7condvar5futexNt[^_]*_7Condvar12wait_timeout'
name ONCE_CALL '3sys4sync4once5futexNt[^_]*_4Once4call'
name SCOPE_END '6thread6scopedNt[^_]*_9ScopeData29decrement_num_running_threads'
for found in __tsan_atomic64_fetch_sub __tsan_atomic_thread_fence; do
  links+=("-Clink-arg=-Wl,--wrap=$found")
done
# Named after what is in it: a change reaches the linker.
std_object=$root/std-$(cat $capi/tests/threads/std.c "$root/names" | sha256sum | cut -c 1-12).o
gcc -std=gnu11 -Wall -Wextra -Werror -O1 -g -fPIC -fexceptions -fno-builtin "${defines[@]}" -c $capi/tests/threads/std.c \
  -o "$std_object"

RUSTC_BOOTSTRAP=1 CARGO_TARGET_DIR=$root \
  RUSTFLAGS="-Zsanitizer=thread -Cunsafe-allow-abi-mismatch=sanitizer -Copt-level=1" \
  cargo rustc --quiet -p vhdkit-capi --locked --lib --crate-type cdylib --target $target -- \
  "-Clink-arg=$std_object" "${links[@]}"

ln -sf "$built/libvirtdisk.so" "$root/libvirtdisk.so.0"
export LD_LIBRARY_PATH=$root
export TSAN_OPTIONS="suppressions=$PWD/$capi/tests/threads/suppressions exitcode=66 history_size=7 ${TSAN_OPTIONS:-}"
run() {
  local program=$1 folder
  shift
  folder=$(mktemp -d)
  echo "-- $program"
  gcc -std=c11 -D_GNU_SOURCE -fsanitize=thread -g -O1 -I $capi/include -I $capi/tests/c "$capi/tests/c/$program.c" \
    -o "$root/$program" -L "$built" -lvirtdisk -lpthread
  # The sanitizer's own memory has its place, which some kernels give to others at random.
  setarch --addr-no-randomize "$root/$program" "$folder" "$@" 2>&1 | c++filt -s rust || {
    echo "$program: failed"
    failed=1
  }
  rm -rf "$folder"
}
failed=0
for program in threads operations progress cancel mirror; do
  run $program
done
echo "seed $seed"
run random "$seconds" "$seed"
exit $failed
