#!/bin/bash
# A folder with packages of another Debian release, for the peers that this machine's does not have.
#
# usage: scripts/foreign_debian.sh [--arch=ARCH] SUITE PACKAGE...      prints the folder
#
# ARCH is Debian's name of an architecture, e.g. s390x; without it the packages are this machine's.
# Where SUITE is one of backports, e.g. trixie-backports, what it does not have is the release's own.
#
# The packages and what they depend on are unpacked and nothing more: no script of theirs is run,
# nothing is mounted, and nobody has to be root. Programs that use them are compiled against the
# folder (gcc --sysroot) and started by its own dynamic loader; tests/peers/blkio does both.
# Needs mmdebstrap, and the Debian archive that this machine's apt uses. The folder is kept in
# ${XDG_CACHE_HOME:-~/.cache}/iodma; where it is removed, the next run makes it again.
set -euo pipefail

usage() { sed -n '2,/^set/{/^set/!s/^# \{0,1\}//p}' "$0" >&2; exit 2; }

arch=''
case ${1:-} in
--arch=?*)
    arch=${1#--arch=}
    shift
    ;;
-*) usage ;;
esac
[ $# -ge 2 ] || usage
# shellcheck source=scripts/debian.sh
. "$(dirname "$0")/debian.sh"
suite=$1
shift
cache=${XDG_CACHE_HOME:-$HOME/.cache}/iodma
name=debian-$suite${arch:+-$arch}-$(IFS=+; echo "$*")
if [ ! -d "$cache/$name" ]; then
    command -v mmdebstrap >/dev/null || { echo 'mmdebstrap is not installed' >&2; exit 1; }
    mkdir -p "$cache"
    part=$(mktemp -d "$cache/part.XXXXXX")
    trap 'rm -rf --one-file-system "$part"' EXIT
    mirror=$(debian_mirror)
    apt_settings >"$part/apt.conf"
    packages=$(IFS=,; echo "$*")
    release=${suite%-backports}
    sources=("deb $mirror $release main")
    [ "$suite" = "$release" ] || sources+=("deb $mirror $suite main")
    mmdebstrap --quiet --mode=chrootless --variant=extract --include="$packages" \
        ${arch:+"--architectures=$arch"} \
        --aptopt="$part/apt.conf" --aptopt='APT::Install-Recommends "false"' \
        --aptopt="APT::Default-Release \"$suite\"" \
        "$release" "$part/root" "${sources[@]}" >&2
    for folder in bin lib lib32 lib64 libx32 sbin; do # as in an installed system: linker scripts name /lib
        if [ -d "$part/root/usr/$folder" ] && [ ! -e "$part/root/$folder" ]; then
            ln -s "usr/$folder" "$part/root/$folder"
        fi
    done
    rm -rf "$part/root/var/lib/apt/lists" "$part/root/usr/share/doc" "$part/root/usr/share/locale"
    # Somebody else may have made it meanwhile; the first one stays.
    mv --no-target-directory "$part/root" "$cache/$name" 2>/dev/null || [ -d "$cache/$name" ]
fi
echo "$cache/$name"
