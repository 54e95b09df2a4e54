#!/bin/bash
# What a stranger gets: clones the last commit into a minimal Debian 12 and runs `make` there.
#
# usage: scripts/fresh_clone.sh [--user] [--keep] [TARGET...]     (default: demo test)
#
#   --user   as an ordinary user: first shows what `make` says there with nothing installed, then
#            runs the line that it printed, as root, then the targets as the user
#   --keep   leave the system's folder behind, and say where it is
#
# Needs root and mmdebstrap (installed if missing). The Debian mirror is the one that this machine's
# apt uses, and pip's settings go along, so it works wherever apt and pip work. The pristine system
# is kept as a tarball in ${XDG_CACHE_HOME:-~/.cache}/iodma; everything mounted or started lives in
# namespaces of its own and ends with this script.
set -euo pipefail

# shellcheck source=scripts/debian.sh
. "$(dirname "$0")/debian.sh"
suite=bookworm
cache=${XDG_CACHE_HOME:-$HOME/.cache}/iodma
checkout=$(cd "$(dirname "$0")/.." && pwd)
as_user='' keep='' targets=()
for argument; do
    case $argument in
    --user) as_user=builder ;;
    --keep) keep=yes ;;
    -*) sed -n '2,/^set/{/^set/!s/^# \{0,1\}//p}' "$0" >&2; exit 2 ;;
    *) targets+=("$argument") ;;
    esac
done
[ ${#targets[@]} -gt 0 ] || targets=(demo test)
[ "$(id -u)" -eq 0 ] || { echo "$0: only root can enter another system" >&2; exit 1; }

step() { printf '\n### %s\n' "$*"; }

# --- the pristine system

make_tarball() {
    local mirror
    command -v mmdebstrap >/dev/null || { apt-get update -qq; apt-get install -qq --yes mmdebstrap; }
    mirror=$(debian_mirror)
    apt_settings >"$cache/apt.conf"
    mmdebstrap --quiet --variant=apt --aptopt="$cache/apt.conf" "$suite" "${1%.tar}.part.tar" "$mirror"
    mv "${1%.tar}.part.tar" "$1"
}

mkdir -p "$cache"
tarball=$cache/debian-$suite.tar
if [ ! -f "$tarball" ]; then
    step "a minimal Debian $suite, for $tarball"
    make_tarball "$tarball"
fi
root=$(mktemp -d "$cache/clone.XXXXXX")
finish() {
    if [ -n "$keep" ]; then
        echo "left behind: $root"
    else
        rm -rf --one-file-system "$root"
    fi
}
trap finish EXIT
tar --extract --file="$tarball" --directory="$root" --numeric-owner
cp --dereference /etc/resolv.conf /etc/hosts "$root/etc/"

# --- what pip needs to work as it does here

binds=()       # paths to mount read-only
environment=() # NAME=VALUE
for name in $(compgen -e | grep -E '^(PIP_.*|CI|IODMA_.*|(https?|all|no)_proxy|(HTTPS?|ALL|NO)_PROXY)$'); do
    environment+=("$name=${!name}")
done
settings=$(python3 -m pip config list 2>/dev/null || true)
for file in "${PIP_CONFIG_FILE:-}" /etc/pip.conf "${XDG_CONFIG_HOME:-$HOME/.config}/pip/pip.conf" \
    "$HOME/.pip/pip.conf"; do
    [ ! -f "$file" ] || { cat "$file"; echo; }
done >"$root/etc/pip-all.conf"
if [ -s "$root/etc/pip-all.conf" ]; then
    mkdir -p "$root/etc/xdg/pip"
    # One file for every user; a setting given twice keeps its last value, as it does for pip.
    python3 - "$root/etc/pip-all.conf" "$root/etc/pip.conf" <<'MERGE'
import configparser
import sys

settings = configparser.RawConfigParser(strict=False)
settings.read(sys.argv[1])
with open(sys.argv[2], "w") as merged:
    settings.write(merged)
MERGE
fi
certificates=$(sed -n "s/^.*\.cert='\(.*\)'$/\1/p" <<<"$settings" | tail -n 1)
if [ -f "$certificates" ]; then
    install -m 644 "$certificates" "$root/etc/pip-certificates.crt"
    environment+=(PIP_CERT=/etc/pip-certificates.crt)
fi
while read -r path; do
    [ -d "$path" ] || continue
    [ "$(basename "$path")" != simple ] || path=$(dirname "$path") # an index links to its files
    binds+=("$(realpath "$path")")
done < <(grep -v '\.cert=' <<<"$settings" | grep -oE "(file://)?/[^' ,]+" | sed 's,^file://,,')

# --- inside

enter() { # enter USER COMMAND...: in the system, in namespaces that end with the command
    local user=$1 home=/root
    shift
    [ "$user" = root ] || home=/home/$user
    # shellcheck disable=SC2016 # the inner shell's variables
    unshare --mount --pid --fork --kill-child -- bash -c '
        set -eu
        root=$1 user=$2 home=$3; shift 3
        mount --bind "$root" "$root"
        mount --rbind /dev "$root/dev"
        mount -t proc proc "$root/proc"
        mount --rbind /sys "$root/sys"
        while [ "$1" != -- ]; do
            mkdir -p "$root/$1"
            mount --bind -o ro "$1" "$root/$1"
            shift
        done
        shift
        cd "$root"
        exec chroot --userspec="$user" --groups= . env -i HOME="$home" USER="$user" \
            PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8 \
            "$@"
    ' bash "$root" "$user" "$home" "${binds[@]}" -- "${environment[@]}" "$@"
}

user=${as_user:-root}
[ -z "$as_user" ] || enter root useradd --create-home --shell /bin/bash "$as_user"
home=/root
[ -z "$as_user" ] || home=/home/$as_user

step "the last commit of $checkout"
[ -z "$(git -C "$checkout" status --porcelain)" ] || echo 'note: what is not committed is not tried'
git clone --quiet --no-local "$checkout" "$root$home/iodma"
[ -z "$as_user" ] || enter root chown -R "$as_user:$as_user" "$home/iodma"

step 'apt-get install make, which nothing can do for us'
enter root sh -c 'export DEBCONF_NOWARNINGS=yes; apt-get update -qq && apt-get install -qq --yes --no-install-recommends make' >/dev/null

if [ -n "$as_user" ]; then
    goal='test'
    [ "${targets[*]}" != demo ] || goal='demo'
    step "make $goal as $user, with nothing installed"
    if said=$(enter "$user" make -C "$home/iodma" "$goal" 2>&1); then
        echo "$said" 'this should have failed' >&2
        exit 1
    fi
    echo "$said"
    line=$(sed -n "s/^\(su\|sudo sh\) -c '\(.*\)'$/\2/p" <<<"$said")
    [ -n "$line" ] || { echo 'no line that installs what is missing' >&2; exit 1; }
    step "as root: $line"
    enter root sh -c "export DEBIAN_FRONTEND=noninteractive DEBCONF_NOWARNINGS=yes; $line" >/dev/null
fi
for target in "${targets[@]}"; do
    step "make $target as $user"
    enter "$user" make --no-print-directory -C "$home/iodma" "$target"
done
step 'and again, with nothing left to build'
enter "$user" bash -c "cd $home/iodma && time make --no-print-directory build"
