#!/bin/bash
# Makes a real image out of Debian packages: base, then Python, then an
# application with deletions and every kind of entry. At least three gzip
# layers, written to an OCI layout.
#
#   make_app_image.sh LAYOUT_DIR [TAG [HOST:PORT/REPOSITORY]]   tag: v1 by default
#
# With a repository, TAG is pushed there too (plain HTTP on loopback, as a local
# docker-registry speaks it).
#
# Environment:
#   OBD_IMAGE_PACKAGES   packages of the second layer (default: python3)
#   OBD_IMAGE_SITE       Debian mirror (default: the one this machine's apt uses)
#
# Needs root, debootstrap and umoci. Also makes TAG-base (first layer only) and
# TAG-python (first two layers), so that builds on a shared base can be tried.
set -euo pipefail

layout=${1:?usage: make_app_image.sh LAYOUT_DIR [TAG [HOST:PORT/REPOSITORY]]}
tag=${2:-v1}
repository=${3:-}
packages=${OBD_IMAGE_PACKAGES:-python3}

need() { command -v "$1" >/dev/null || { echo "make_app_image.sh: $1 is not installed (apt-get install $1)" >&2; exit 1; }; }
need debootstrap
need umoci
[ -z "$repository" ] || need skopeo
[ "$(id -u)" = 0 ] || { echo "make_app_image.sh: needs root" >&2; exit 1; }

release=$(. /etc/os-release && echo "$VERSION_CODENAME")
site=${OBD_IMAGE_SITE:-$(apt-get indextargets --format '$(SITE) $(RELEASE)' 'Created-By: Packages' |
  awk -v r="$release" '$2 == r { print $1; exit }')}
[ -n "$site" ] || { echo "make_app_image.sh: no Debian mirror found in apt's sources; set OBD_IMAGE_SITE" >&2; exit 1; }

work=$(mktemp -d)
bundle=$work/bundle
rootfs=$bundle/rootfs
mounted=()
cleanup() {
  for m in "${mounted[@]}"; do umount -l "$m" 2>/dev/null || true; done
  rm -rf --one-file-system "$work"
}
trap cleanup EXIT

in_root() {
  mkdir -p "$rootfs/proc"
  mount -t proc proc "$rootfs/proc"; mounted=("$rootfs/proc")
  DEBIAN_FRONTEND=noninteractive LC_ALL=C chroot "$rootfs" "$@"
  umount "$rootfs/proc"; mounted=()
}

tidy() { # what a careful Dockerfile removes, so that layers do not depend on the time
  rm -rf "$rootfs"/var/cache/apt/archives/*.deb "$rootfs"/var/lib/apt/lists/* "$rootfs"/var/log/*.log \
    "$rootfs"/var/log/apt "$rootfs"/tmp/* "$rootfs"/root/.cache
}

repack() { # TAG
  umoci repack --image "$layout:$1" "$bundle" >/dev/null
  rm -rf --one-file-system "$bundle"
  umoci unpack --image "$layout:$1" "$bundle" >/dev/null
}

[ -d "$layout" ] || umoci init --layout "$layout"
umoci new --image "$layout:$tag-empty"
umoci unpack --image "$layout:$tag-empty" "$bundle" >/dev/null

echo "layer 1: Debian $release, minbase"
debootstrap --variant=minbase "$release" "$work/base" "$site" >"$work/debootstrap.log" 2>&1 ||
  { tail -20 "$work/debootstrap.log" >&2; exit 1; }
cp -a "$work/base/." "$rootfs/"
rm -rf --one-file-system "$work/base"
cp /etc/resolv.conf "$rootfs/etc/resolv.conf" 2>/dev/null || true
mkdir -p "$rootfs/etc/apt/apt.conf.d"
cp /etc/apt/apt.conf.d/*proxy* "$rootfs/etc/apt/apt.conf.d/" 2>/dev/null || true
tidy
repack "$tag-base"

echo "layer 2: $packages"
in_root apt-get update -qq >"$work/apt.log" 2>&1
# shellcheck disable=SC2086
in_root apt-get install -y -qq --no-install-recommends $packages >>"$work/apt.log" 2>&1 ||
  { tail -20 "$work/apt.log" >&2; exit 1; }
tidy
repack "$tag-python"

echo "layer 3: the application"
app=$rootfs/srv/app
mkdir -p "$app/data" "$app/static"
cat >"$app/main.py" <<'PY'
import json, sqlite3, ssl, http.server

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = json.dumps({"ok": True, "ssl": ssl.OPENSSL_VERSION, "sqlite": sqlite3.sqlite_version}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass

if __name__ == "__main__":
    http.server.HTTPServer(("127.0.0.1", 8000), Handler).serve_forever()
PY
seq 1 200000 >"$app/data/numbers.txt"
ln "$app/data/numbers.txt" "$app/data/numbers.link"
ln -s ../data/numbers.txt "$app/static/numbers"
ln -s "/srv/app/$(printf 'long-%.0s' $(seq 1 30))target" "$app/static/dangling"
truncate -s 5M "$app/data/sparse"
printf middle | dd of="$app/data/sparse" bs=1 seek=3000000 conv=notrunc status=none
: >"$app/data/empty"
head -c 4097 /dev/zero >"$app/data/zeros"
mkfifo "$app/data/fifo"
mknod "$app/data/null" c 1 3
mknod "$app/data/disk" b 259 70000
printf 'name with \xff bytes' >"$app/data/$(printf 'bytes-\xfe\xff')"
printf 'ünïcode' >"$app/static/ünïcode-файл"
cp "$rootfs/bin/true" "$app/capable"
setfattr -n user.note -v "kept as it is" "$app/main.py" 2>/dev/null || true
setfattr -n security.capability -v 0x0100000200000020000000000000000000000000 "$app/capable" 2>/dev/null || true
setfacl -m u:1234:rw,g:42:r "$app/data/numbers.txt" 2>/dev/null || true
setfacl -d -m u:1234:rwx "$app/data" 2>/dev/null || true
chown 70000:70001 "$app/data/empty"
chmod 4755 "$app/capable"
touch -h -d '2001-02-03T04:05:06.123456789Z' "$app/main.py" "$app/static/numbers" "$app/data"
# Deletions and replacements, as a later layer has them.
rm -rf "$rootfs/usr/share/doc" "$rootfs/usr/share/man"
mkdir -p "$rootfs/usr/share/doc/app"
echo "only this" >"$rootfs/usr/share/doc/app/README"
rm -f "$rootfs/etc/debian_version"
rm -rf "$rootfs/usr/share/info" && ln -s doc "$rootfs/usr/share/info"
rm -f "$rootfs/etc/issue.net" && mkdir "$rootfs/etc/issue.net"
chmod 700 "$rootfs/home"
tidy
umoci repack --image "$layout:$tag" "$bundle" >/dev/null
umoci config --image "$layout:$tag" --config.cmd python3 --config.cmd /srv/app/main.py --config.env PATH=/usr/sbin:/usr/bin:/sbin:/bin
umoci rm --image "$layout:$tag-empty"
umoci gc --layout "$layout"
echo "made $layout:$tag"
if [ -n "$repository" ]; then
  skopeo copy --quiet --dest-tls-verify=false "oci:$layout:$tag" "docker://$repository:$tag"
  echo "pushed $repository:$tag"
fi
