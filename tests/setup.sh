# shellcheck shell=bash
# Sourced by the scripts beside it: what they need from the machine, found or installed.
#
#   setup_packages PROGRAM...   each PROGRAM is one of the keys of package_of
#   quick_builds                programs are not optimised as a whole from here on
#
# As root on Debian missing packages are installed; anybody else reads the line to run.

quick_builds() {
  export CARGO_PROFILE_RELEASE_LTO=${CARGO_PROFILE_RELEASE_LTO:-false}
  export CARGO_PROFILE_RELEASE_CODEGEN_UNITS=${CARGO_PROFILE_RELEASE_CODEGEN_UNITS:-16}
}

say() { printf '%s\n' "$*" >&2; }

# The Debian package that holds a thing.
package_of() {
  case $1 in
    cc) echo gcc libc6-dev ;;
    fusermount3) echo fuse3 ;;
    libusb) echo libusb-1.0-0-dev ;;
    pkg-config) echo pkg-config ;;
    rsync) echo rsync ;;
    setfacl) echo acl ;;
    setfattr) echo attr ;;
    setcap) echo libcap2-bin ;;
    setpriv | flock | unshare) echo util-linux ;;
    libacl) echo libacl1-dev ;;
    chattr | mkfs.ext4) echo e2fsprogs ;;
    ar) echo binutils ;;
    mkfs.btrfs | btrfs) echo btrfs-progs ;;
    ip) echo iproute2 ;;
    nft) echo nftables ;;
    nsenter) echo util-linux ;;
    findmnt | mount) echo mount util-linux ;;
    sshfs) echo sshfs ;;
    sshd) echo openssh-server openssh-sftp-server openssh-client ;;
    *) echo "$1" ;;
  esac
}

# Whether a thing is there.
present() {
  case $1 in
    libusb) pkg-config --exists libusb-1.0 2>/dev/null ;;
    libacl) [ -e /usr/include/sys/acl.h ] ;;
    *) PATH=$PATH:/usr/sbin:/sbin command -v "$1" >/dev/null 2>&1 ;;
  esac
}

setup_packages() {
  local thing missing=() packages=()
  for thing in "$@"; do
    present "$thing" || missing+=("$thing")
  done
  if ((${#missing[@]})); then
    for thing in "${missing[@]}"; do
      # shellcheck disable=SC2207 # package names hold no spaces
      packages+=($(package_of "$thing"))
    done
    install_packages "${packages[@]}" || return 1
  fi
  if ! command -v cargo >/dev/null 2>&1 && [ -r "$HOME/.cargo/env" ]; then
    # shellcheck disable=SC1091
    . "$HOME/.cargo/env"
  fi
  if ! command -v cargo >/dev/null 2>&1; then
    say "Rust is missing: install rustup, then run: rustup toolchain install stable"
    return 1
  fi
}

# A program of others that tests run, below the target directory: setup_tool CRATE VERSION
setup_tool() {
  local root=${CARGO_TARGET_DIR:-target}/tools
  [ -x "$root/bin/$1" ] && return 0
  say "+ cargo install $1 --version $2 --root $root"
  cargo install --quiet --locked "$1" --version "$2" --root "$root" --target-dir "$root/build"
}

install_packages() {
  local line="apt-get install -y --no-install-recommends $*"
  if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null 2>&1; then
    say "packages are missing; as root, run:"
    say "  $line"
    return 1
  fi
  say "+ $line"
  if ! { apt-get update -qq && DEBIAN_FRONTEND=noninteractive $line -qq; } >&2; then
    say "the packages could not be installed; run the line above yourself to see why"
    return 1
  fi
}

# Programs of others that test a file system, built where our own are; they take minutes, once.
setup_suites() {
  setup_packages libacl || return 1
  setup_tool pjdfstest 0.2.2 && setup_tool fsx 0.3.2
}

# Whether a kernel mount can work here at all; says what is missing.
require_fuse() {
  [ -c /dev/fuse ] || [ "$(id -u)" != 0 ] || modprobe fuse 2>/dev/null || true
  if [ ! -c /dev/fuse ]; then
    say "/dev/fuse is missing; as root, run: modprobe fuse (in a container: --device /dev/fuse --cap-add SYS_ADMIN)"
    return 1
  fi
  if [ ! -r /dev/fuse ] || [ ! -w /dev/fuse ]; then
    say "/dev/fuse is not open to you; as root, run: chmod 666 /dev/fuse"
    return 1
  fi
}
