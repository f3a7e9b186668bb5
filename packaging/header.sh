#!/bin/sh
# obd @VERSION@: this header, then the runtime (gzip), then the program (gzip).
# The first start unpacks both below @HASH@ in OBD_RUNTIME_DIR, else
# /var/lib/obd/runtime (root), else $XDG_CACHE_HOME/obd. Nothing is downloaded.
set -eu
umask 077
fail() { echo "obd: $*" >&2; exit 1; }
if [ -n "${OBD_RUNTIME_DIR:-}" ]; then base=$OBD_RUNTIME_DIR
elif [ "$(id -u)" = 0 ]; then base=/var/lib/obd/runtime
else base=${XDG_CACHE_HOME:-${HOME:?obd: set HOME or OBD_RUNTIME_DIR}/.cache}/obd
fi
dir=$base/@HASH@
if [ ! -f "$dir/complete" ]; then
  mkdir -p "$base" || fail "cannot make $base: set OBD_RUNTIME_DIR to a directory that can be written"
  temp=$(mktemp -d "$base/.unpack-XXXXXX") || fail "cannot write to $base"
  trap 'rm -rf "$temp"' EXIT
  part() { tail -c +"$1" "$0" | head -c "$2" | gzip -dc >"$temp/$3" || fail "cannot unpack $3 to $base (is it full?)"; }
  part @RUNTIME_AT@ @RUNTIME_SIZE@ deno
  part @PROGRAM_AT@ @PROGRAM_SIZE@ obd.js
  (cd "$temp" && printf '%s  %s\n' @RUNTIME_SHA256@ deno @PROGRAM_SHA256@ obd.js | sha256sum -c >/dev/null 2>&1) ||
    fail "this file is damaged: its content has the wrong checksum"
  chmod 700 "$temp" "$temp/deno"
  : >"$temp/complete"
  # Of two first starts one rename wins; the other finds a complete directory.
  mv -T "$temp" "$dir" 2>/dev/null || [ -f "$dir/complete" ] || { rm -rf "$dir"; mv -T "$temp" "$dir"; }
  trap - EXIT
  rm -rf "$temp"
fi
export DENO_DIR="$dir/cache" DENO_NO_UPDATE_CHECK=1 DENO_TLS_CA_STORE="${DENO_TLS_CA_STORE:-system}"
exec "$dir/deno" run -A --no-config --no-lock --no-remote --no-prompt "$dir/obd.js" "$@"
