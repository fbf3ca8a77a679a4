#!/bin/sh
# Installs the Debian packages that a make target needs; quick when they are there already.
# Usage: debian-packages.sh PACKAGE...   As root, or through sudo when there is one.
set -eu

missing=""
for package in "$@"; do
    case "$(dpkg-query -W -f='${Status}' "$package" 2>/dev/null || true)" in
        "install ok installed") ;;
        *) missing="$missing $package" ;;
    esac
done
[ -n "$missing" ] || exit 0

if ! command -v apt-get >/dev/null 2>&1; then
    echo "missing packages:$missing" >&2
    echo "hint: this is not Debian or Ubuntu; install their counterparts (Fedora: python3-bcc libbpf python3-devel gcc)" >&2
    exit 1
fi
root=""
if [ "$(id -u)" -ne 0 ]; then
    if ! command -v sudo >/dev/null 2>&1; then
        echo "missing packages:$missing" >&2
        echo "hint: run as root: apt-get install$missing" >&2
        exit 1
    fi
    root=sudo
fi

# Servers must not start as services of this machine: the tests start their own.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    printf '#!/bin/sh\nexit 101\n' | $root tee "$policy" >/dev/null
    $root chmod +x "$policy"
    trap '$root rm -f "$policy"' EXIT
fi
echo "installing:$missing"
log=$(mktemp)
if ! { $root apt-get update && $root env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends $missing; } >"$log" 2>&1; then
    cat "$log" >&2
    echo "cannot install:$missing" >&2
    echo "hint: see apt's message above; is a Debian mirror reachable?" >&2
    rm -f "$log"
    exit 1
fi
rm -f "$log"
