#!/bin/sh
# usage: scripts/prerequisites.sh demo|test
#
# Checks that this machine has the programs that `make demo` or `make test` need. What is missing
# is installed with apt-get when run by root; anybody else gets the one line that does it, and exit 1.
# Each need is tested by using it, so a compiler or a Python from elsewhere than Debian is as good.
set -eu

goal=${1:-demo}
python=${PYTHON:-python3}
missing=''

need() { # need PACKAGE COMMAND...: the package is missing unless the command succeeds
    package=$1
    shift
    "$@" >/dev/null 2>&1 || missing="$missing $package"
}

compiles() { printf '#include <stdio.h>\n#include <linux/types.h>\n' | gcc -E - >/dev/null; }
has_headers() {
    "$python" -c 'import os, sysconfig
assert os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h"))'
}
sbin() { PATH="$PATH:/usr/sbin:/sbin" "$@"; } # some are root's, but work for everybody
has_static_busybox() { busybox --list | grep -qx fstrim && ! ldd "$(command -v busybox)"; }
has_kernel() { # with its modules: what the package linux-image-amd64 stands for
    for image in /boot/vmlinuz-*[0-9]-amd64; do
        [ ! -f "/lib/modules/${image#/boot/vmlinuz-}/modules.dep" ] || return 0
    done
    return 1
}

check() {
    missing=''
    need git git --version
    need make make --version
    need gcc compiles
    need python3-dev has_headers
    need python3-venv "$python" -c 'import ensurepip, venv'
    case $goal in
    demo) ;;
    test) # the peers that tests/peers measures iodma against, and what runs in its guests
        need fio fio --version
        need qemu-system-common qemu-storage-daemon --version
        need user-mode-linux linux.uml --version
        need qemu-system-x86 qemu-system-x86_64 --version
        need qemu-system-sparc qemu-system-sparc --version
        need linux-image-amd64 has_kernel
        need busybox-static has_static_busybox
        need e2fsprogs sbin e2fsck -V
        need nbdkit nbdkit --version
        need libnbd0 "$python" -c 'import ctypes; ctypes.CDLL("libnbd.so.0")'
        need mmdebstrap mmdebstrap --version
        need util-linux setpriv --version
        need pciutils sbin lspci --version
        need libiscsi-bin iscsi-test-cu --list
        ;;
    *)
        echo "usage: $0 demo|test" >&2
        exit 2
        ;;
    esac
}

if [ "$python" != python3 ] && ! "$python" -c '' 2>/dev/null; then # no package is sure to have it
    echo "there is no $python here, which PYTHON asks for" >&2
    exit 1
fi
check
if [ -n "$missing" ]; then
    install="apt-get update && apt-get install --yes --no-install-recommends$missing"
    if ! command -v apt-get >/dev/null; then
        echo "missing (by their Debian names):$missing" >&2
        exit 1
    elif [ "$(id -u)" -ne 0 ]; then
        echo "missing:$missing. This line installs what is missing:" >&2
        if command -v sudo >/dev/null; then
            echo "sudo sh -c '$install'" >&2
        else
            echo "su -c '$install'" >&2
        fi
        exit 1
    fi
    echo "installing$missing"
    # shellcheck disable=SC2086 # a list of package names
    { apt-get update -qq && DEBIAN_FRONTEND=noninteractive DEBCONF_NOWARNINGS=yes \
        apt-get install -qq --yes --no-install-recommends $missing; } >/dev/null
    check
    if [ -n "$missing" ]; then
        echo "installed, but still not usable:$missing" >&2
        exit 1
    fi
fi

if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    echo "iodma needs Python 3.11 or later; $python is $("$python" --version 2>&1)." \
        "Name another with: make PYTHON=python3.12" >&2
    exit 1
fi
