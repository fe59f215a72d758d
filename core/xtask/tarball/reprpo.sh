#!/bin/sh
# Starts reprpo @VERSION@ with a libtorch of this machine: the one in the folder LIBTORCH, or the
# one in the torch of the `python3` on the PATH. A line on stderr says which one it uses, for the
# commands that train or test, for `--version`, and for every command if REPRPO_LOG is set.
set -eu

needed=@TORCH@

fail() {
    printf 'error: %s\n\nhint: %s\n' "$1" "$2" >&2
    exit 1
}

# The folder of this file, through links.
self=$0
while [ -L "$self" ]; do
    link=$(readlink "$self")
    case $link in
        /*) self=$link ;;
        *) self=$(dirname "$self")/$link ;;
    esac
done
here=$(CDPATH='' cd -P "$(dirname "$self")" && pwd)

# Locates torch without importing it, which takes seconds. Prints its folder.
locate='
import importlib.util, os, sys
sys.path[:] = [folder for folder in sys.path if folder]
spec = importlib.util.find_spec("torch")
if spec and spec.origin:
    print(os.path.dirname(os.path.abspath(spec.origin)))
'

export_it="export LIBTORCH with the folder of a libtorch $needed, which holds \`lib\`"
if [ -n "${LIBTORCH:-}" ]; then
    from='LIBTORCH'
    other="$export_it, or unset it to use the torch of python3"
    torch=$(CDPATH='' cd "$LIBTORCH" 2>/dev/null && pwd) ||
        fail "LIBTORCH is set to \`$LIBTORCH\`, which is not a folder" "$other"
else
    python=$(command -v python3) ||
        fail "there is no \`python3\` on the PATH, and LIBTORCH is not set" \
            "activate an environment with torch $needed, or $export_it"
    from=$python
    other="run \`'$python' -m pip install torch==$needed\`, or $export_it"
    torch=$("$python" -c "$locate") || fail "\`$python\` could not look for torch" "$other"
    [ -n "$torch" ] ||
        fail "torch is not installed for \`$python\`, but reprpo @VERSION@ needs torch $needed" \
            "$other"
fi
lib=$torch/lib
[ -f "$lib/libtorch_cpu.so" ] ||
    fail "there is no \`libtorch_cpu.so\` in \`$lib\` (from $from)" "$other"

# A wheel has `version.py`, the archive of libtorch has `build-version`, and both may have the
# header.
version=
if [ -f "$torch/version.py" ]; then
    version=$(sed -n "s/^__version__ *= *['\"]\([^'\"]*\).*/\1/p" "$torch/version.py")
fi
if [ -z "$version" ] && [ -f "$torch/build-version" ]; then
    version=$(sed -n 1p "$torch/build-version")
fi
header=$torch/include/torch/headeronly/version.h
if [ -z "$version" ] && [ -f "$header" ]; then
    part='s/^#define TORCH_VERSION_'
    version=$(
        sed -n -e "${part}MAJOR *//p" -e "${part}MINOR *//p" -e "${part}PATCH *//p" "$header" |
            tr '\n' '.'
    )
    version=${version%.}
fi
[ -n "$version" ] ||
    fail "the libtorch in \`$torch\` (from $from) does not say which version it is" "$other"
[ "${version%%+*}" = "$needed" ] ||
    fail "libtorch $version is in \`$torch\` (from $from), but reprpo @VERSION@ needs $needed" \
        "$other"

case ${REPRPO_LOG:-}:${1:-} in
    :doctor | :selftest | :run | :sweep | :--version | :-V | ?*:*)
        printf 'libtorch %s in `%s` (from %s)\n' "$version" "$torch" "$from" >&2
        ;;
esac

LD_LIBRARY_PATH=$lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
export LD_LIBRARY_PATH
exec "$here/lib/reprpo" "$@"
