#!/usr/bin/env bash
# Builds everything and runs every check and test of the project.
#
#   scripts/test.sh
#
# Needs Rust (rustup or a distribution's, with rustfmt and clippy). As root on Debian it installs what else it needs;
# elsewhere it says what is missing. Needs no terminal and no input. The last line is
#
#   N passed, N failed, N skipped
#
# after what failed, if anything did, with the names of the tests and where they failed. There
# a check that is not a test (formatting, lints, documentation, licences) counts when it fails.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
exec </dev/null

NEXTEST_VERSION=0.9.143
DENY_VERSION=0.20.2
FUZZ_VERSION=0.13.2
# For each target.
FUZZ_SECONDS=20

export CARGO_TERM_COLOR=never CARGO_TERM_PROGRESS_WHEN=never
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$PWD/target}
export PATH=$PATH:${CARGO_HOME:-$HOME/.cargo}/bin

passed=0 failed=0 skipped=0
failures=()
# What failed and its first words, for whoever sees only the end of all this.
why=()
logs=$(mktemp -d)
trap 'rm -rf "$logs"' EXIT

main() {
  install_packages
  install_guest_kernel
  install_tools
  step "formatting" cargo fmt --check
  step "lints" cargo clippy --workspace --all-targets --locked -- -D warnings
  run_tests
  run_doc_tests
  run_loom_tests
  check_races
  # What a conversion, a flush, an allocation cost in system calls, barriers, bytes and memory.
  step "counts" cargo run --release --locked -p vhdkit-bench -- --gate
  step "documentation" env RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --locked
  check_dependencies
  fuzz

  if ((${#failures[@]})); then
    echo
    printf 'FAILED: %s\n' "${failures[@]}"
    ((${#why[@]})) && printf '%s\n' "${why[@]}"
  fi
  echo
  echo "$passed passed, $failed failed, $skipped skipped"
  ((failed == 0))
}

title() {
  printf '\n== %s (after %d s)\n' "$*" "$SECONDS"
}

fail() {
  failures+=("$1")
  failed=$((failed + ${2:-1}))
}

# step NAME COMMAND...: one check.
step() {
  local name=$1
  shift
  title "$name"
  "$@" || fail "$name"
}

# --- what is needed -------------------------------------------------------------------------------------------------

# The peers that our files are read back with, and the tools of the end-to-end tests.
QEMU_PACKAGES=(qemu-utils qemu-system-common qemu-system-x86)
PACKAGES=(7zip libvhdi-utils python3-libvhdi fio strace e2fsprogs xfsprogs btrfs-progs zstd tmux gdisk fdisk gcc g++ valgrind
  mono-mcs mono-runtime pkgconf python3
  libnbd-bin python3-libnbd nbdkit nbd-client gnutls-bin fuse3 busybox-static cpio kmod xz-utils)

install_packages() {
  local qemu=() others=() package
  if ! command -v dpkg-query >/dev/null; then
    local missing=() tool
    for tool in qemu-img qemu-io 7zz vhdiinfo fio strace mkfs.xfs mkfs.btrfs zstd tmux sgdisk sfdisk gcc g++ valgrind mcs mono pkg-config python3 nbdinfo nbdkit nbd-client certtool fusermount3 \
      qemu-system-x86_64 busybox cpio modprobe xz; do
      command -v "$tool" >/dev/null || missing+=("$tool")
    done
    ((${#missing[@]})) && echo "missing tools (tests that need them will say so): ${missing[*]}"
    return
  fi
  for package in "${QEMU_PACKAGES[@]}"; do
    is_installed "$package" || qemu+=("$package")
  done
  for package in "${PACKAGES[@]}"; do
    is_installed "$package" || others+=("$package")
  done
  ((${#qemu[@]} + ${#others[@]})) || return 0
  title "packages: ${qemu[*]} ${others[*]}"
  if ((EUID != 0)) || ! command -v apt-get >/dev/null; then
    echo "missing packages (tests that need them will say so): ${qemu[*]} ${others[*]}"
    echo "as root: apt-get install ${qemu[*]} ${others[*]}"
    return
  fi
  local backports=()
  if ((${#qemu[@]})) && [[ $(codename) == bookworm ]]; then
    # The stable suite's QEMU would replace, and so remove, a newer one from backports.
    add_backports && backports=(-t bookworm-backports)
  fi
  apt update -qq
  if ((${#qemu[@]})); then
    apt install -y --no-install-recommends "${backports[@]}" "${QEMU_PACKAGES[@]}" \
      || fail "installation of ${qemu[*]}"
  fi
  if ((${#others[@]})); then
    apt install -y --no-install-recommends "${others[@]}" || fail "installation of ${others[*]}"
  fi
}

# Not installed, only unpacked: it is for guests.
install_guest_kernel() {
  command -v apt-get >/dev/null || return 0
  title "a kernel for guests"
  if ((EUID == 0)) && [[ $(codename) == bookworm ]]; then
    # The stable suite's kernel lacks drivers.
    local before
    before=$(apt-cache policy | grep -c bookworm-backports)
    add_backports && ((before)) || apt update -qq
  fi
  scripts/guest-kernel.sh || echo "no kernel for guests (tests that need it will say so)"
}

apt() {
  DEBIAN_FRONTEND=noninteractive apt-get -o Dpkg::Use-Pty=0 -qq "$@"
}

is_installed() {
  [[ $(dpkg-query -W -f='${db:Status-Status}' "$1" 2>/dev/null) == installed ]]
}

codename() {
  # shellcheck disable=SC1091
  (. /etc/os-release && echo "${VERSION_CODENAME:-}")
}

add_backports() {
  if apt-get indextargets --format '$(RELEASE)' | grep -qx bookworm-backports; then
    return 0
  fi
  # From wherever the stable suite comes.
  local mirror
  mirror=$(apt-get indextargets --format '$(REPO_URI) $(RELEASE) $(COMPONENT)' \
    | awk '$2 == "bookworm" && $3 == "main" { print $1; exit }')
  [[ -n $mirror ]] || return 1
  echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror bookworm-backports main" \
    >/etc/apt/sources.list.d/bookworm-backports.list
}

install_tools() {
  if ! cargo nextest --version >/dev/null 2>&1; then
    title "cargo-nextest $NEXTEST_VERSION"
    install_tool cargo-nextest "$NEXTEST_VERSION" || echo "cargo-nextest is missing; cargo test will do"
  fi
  deny_build=
  if ! cargo deny --version >/dev/null 2>&1; then
    title "cargo-deny $DENY_VERSION (in the background)"
    install_tool cargo-deny "$DENY_VERSION" >"$logs/cargo-deny" 2>&1 &
    deny_build=$!
  fi
}

# A short run of every fuzz target; the inputs found so far are an ordinary test besides.
fuzz() {
  if ! cargo fuzz --version >/dev/null 2>&1; then
    title "cargo-fuzz $FUZZ_VERSION"
    install_tool cargo-fuzz "$FUZZ_VERSION" || {
      fail "installation of cargo-fuzz"
      return
    }
  fi
  step "fuzzing" env -u CARGO_TARGET_DIR scripts/fuzz.sh "$FUZZ_SECONDS"
}

# In a folder of its own, which is removed: the tools' own dependencies are not kept.
install_tool() {
  CARGO_TARGET_DIR="$logs/build-$1" cargo install --quiet --locked "$1" --version "$2"
}

# --- tests ----------------------------------------------------------------------------------------------------------

run_tests() {
  if ! cargo nextest --version >/dev/null 2>&1; then
    count_cargo_test "tests" cargo test --workspace --locked --lib --bins --tests --no-fail-fast
    return
  fi
  title "tests"
  cargo nextest run --workspace --locked --no-fail-fast 2>&1 | tee "$logs/nextest"
  local code=${PIPESTATUS[0]} summary wrong
  summary=$(grep -E '^ *Summary \[' "$logs/nextest" | tail -n 1)
  wrong=$(($(number "$summary" failed) + $(number "$summary" 'timed out') + $(number "$summary" 'exec failed')))
  passed=$((passed + $(number "$summary" passed)))
  skipped=$((skipped + $(number "$summary" skipped)))
  if ((wrong)); then
    fail "tests" "$wrong"
    mapfile -t why < <(scripts/failures.awk "$logs/nextest")
  elif ((code)); then
    fail "tests (they did not run to the end)"
  fi
}

run_doc_tests() {
  count_cargo_test "examples in the documentation" cargo test --workspace --locked --doc --no-fail-fast
}

# Every interleaving of the threads around an operation, and around handles and OVERLAPPEDs. The flag rebuilds all, so it has a folder of its own.
run_loom_tests() {
  count_cargo_test "interleavings" env RUSTFLAGS="--cfg loom" CARGO_TARGET_DIR="$CARGO_TARGET_DIR/loom" \
    cargo test -p vhdkit -p vhdkit-capi --locked --release --lib loom_
}

# The C library's threads under ThreadSanitizer.
check_races() {
  if [[ $(uname -sm) != "Linux x86_64" ]]; then
    title "data races: not on this system"
    skipped=$((skipped + 1))
    return
  fi
  step "data races" env -u RUSTFLAGS scripts/thread-sanitizer.sh 20
}

# count_cargo_test NAME COMMAND...: runs it and adds up the summaries of cargo test.
count_cargo_test() {
  local name=$1 line wrong=0
  shift
  title "$name"
  "$@" 2>&1 | tee "$logs/cargo-test"
  local code=${PIPESTATUS[0]}
  while read -r line; do
    passed=$((passed + $(number "$line" passed)))
    skipped=$((skipped + $(number "$line" ignored)))
    wrong=$((wrong + $(number "$line" failed)))
  done < <(grep '^test result: ' "$logs/cargo-test")
  if ((wrong)); then
    fail "$name" "$wrong"
  elif ((code)); then
    fail "$name (they did not run to the end)"
  fi
}

# number LINE WORD: the number before a word, 0 if there is none.
number() {
  local pattern="([0-9]+) $2"
  if [[ $1 =~ $pattern ]]; then echo "${BASH_REMATCH[1]}"; else echo 0; fi
}

# Not the advisories: they come from a database that is not always within reach.
check_dependencies() {
  title "dependencies"
  if [[ -n $deny_build ]] && ! wait "$deny_build"; then
    cat "$logs/cargo-deny"
    fail "installation of cargo-deny"
    return
  fi
  cargo deny --locked check bans licenses sources || fail "dependencies"
}

main "$@"
