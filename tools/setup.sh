#!/usr/bin/env bash
# setup.sh build|demo|test|bench|bench-cpu|lint|ci: installs what is missing, Debian packages with apt-get and Python packages in
# .venv. Where nothing is missing it does nothing.
source "$(dirname "$0")/common.sh"

packages=(g++ cmake ninja-build libhwy-dev libxxhash-dev libcli11-dev nlohmann-json3-dev libpng-dev)
requirements=()

add_python() {
  # The demo's dense layers are numpy's: with OpenBLAS they take a tenth of the time.
  packages+=(ca-certificates python3-dev python3-venv python3-numpy libopenblas0-pthread)
  requirements+=(build demo)
}
add_test() {
  add_python
  packages+=(libgtest-dev libgmock-dev python3-torch)
  requirements+=(test)
}
add_bench() {
  packages+=(libbenchmark-dev python3)
}
add_bench_cpu() {
  add_bench
  add_python
  packages+=(python3-matplotlib)
}
add_lint() {
  add_test
  add_bench
  packages+=(clang-14 clang-format-14 clang-tidy-14 libomp-14-dev shellcheck)
  requirements+=(lint)
}

case ${1:-} in
  build) ;;
  demo) add_python ;;
  test) add_test ;;
  bench) add_bench ;;
  bench-cpu) add_bench_cpu ;;
  lint) add_lint ;;
  ci) add_lint && packages+=(libclang-rt-14-dev g++-aarch64-linux-gnu) ;;
  *) die "usage: tools/setup.sh build|demo|test|bench|bench-cpu|lint|ci" ;;
esac

missing_packages() {
  local package
  for package in "${packages[@]}"; do
    if [[ $(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null) != installed ]]; then
      echo "$package"
    fi
  done
}

# The command that makes one root, or nothing for root itself; fails for everybody else.
become_root() {
  if [[ $(id -u) == 0 ]]; then
    return 0
  fi
  command -v sudo >/dev/null || return 1
  if ! sudo -n true 2>/dev/null; then
    [[ -t 0 ]] || return 1
    sudo -v || return 1 # asks for the password
  fi
  echo sudo
}

install_packages() {
  local -a apt_get=("$@" env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300)
  local -a install=("${apt_get[@]}" install -y --no-install-recommends "${missing[@]}")
  # Lists that are old or not there make the first attempt fail before it has changed anything.
  "${install[@]}" || { "${apt_get[@]}" update && "${install[@]}"; }
}

if [[ ${SEQATTN_SYSTEM_PACKAGES:-} != provided ]]; then
  if ! command -v apt-get >/dev/null; then
    die "seqattn needs the Debian packages ${packages[*]}, and there is no apt-get here: install what they hold and run\
 again with SEQATTN_SYSTEM_PACKAGES=provided"
  fi
  mapfile -t missing < <(missing_packages)
  if ((${#missing[@]})); then
    sudo=$(become_root) || die "seqattn needs packages that only root can install: apt-get install --no-install-recommends\
 ${missing[*]}"
    # shellcheck disable=SC2086  # empty for root
    step apt "installing Debian packages: ${missing[*]}" install_packages $sudo
  fi
fi

# A requirements file that has been installed lies in .venv as a copy. The files list their packages' own
# requirements too (--no-deps), so that Debian's numpy stays the one that is used.
files=()
for name in "${requirements[@]}"; do
  cmp -s "tools/requirements-$name.txt" ".venv/requirements-$name.txt" || files+=("tools/requirements-$name.txt")
done
if ((${#files[@]})); then
  if [[ ! -x .venv/bin/pip ]]; then # the last thing that venv writes
    step venv "creating .venv" /usr/bin/python3 -m venv --clear --system-site-packages .venv
  fi
  step pip "installing Python packages in .venv: ${files[*]}" "$python" -m pip install \
    --disable-pip-version-check --no-input --no-deps "${files[@]/#/--requirement=}"
  cp "${files[@]}" .venv/
fi
