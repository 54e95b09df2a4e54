# Sourced by the scripts that fetch from Debian: how this machine reaches its archive.
# shellcheck shell=bash

apt_settings() { # how this machine's apt reaches its archives: proxies, certificates, clocks
    apt-config dump | grep -E '^Acquire::((https?|ftp)::|Check-|Retries)' | grep -v ' "";$' || true
}

debian_mirror() { # its address; apt's lists are fetched where there are none yet
    local mirror
    known_mirror() {
        # shellcheck disable=SC2016 # apt's variables, not the shell's
        apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Origin: Debian' \
            'Label: Debian' | sort -u | head -n 1
    }
    mirror=$(known_mirror)
    [ -n "$mirror" ] || { apt-get update -qq >&2; mirror=$(known_mirror); }
    [ -n "$mirror" ] || { echo 'apt knows of no Debian archive here' >&2; return 1; }
    echo "$mirror"
}
