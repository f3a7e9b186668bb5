#!/bin/bash
# Makes the image of one bench workload out of Debian packages, into an OCI
# layout, in layers as a Dockerfile would have them: base, packages, application.
#
#   make_workload_image.sh NAME LAYOUT_DIR      writes LAYOUT_DIR:NAME
#
# NAME is python (for python-small-import and python-large-import), php-nginx,
# ai-classify, node-express, postgres or openjdk-hello. Environment:
#   OBD_IMAGE_SITE   Debian mirror (default: the one this machine's apt uses)
#
# Needs root, debootstrap and umoci. The base layer is made once per layout and
# kept as LAYOUT_DIR:base.
set -euo pipefail

name=${1:?usage: make_workload_image.sh NAME LAYOUT_DIR}
layout=${2:?usage: make_workload_image.sh NAME LAYOUT_DIR}
here=$(cd "$(dirname "$0")" && pwd)

fail() { echo "make_workload_image.sh: $*" >&2; exit 1; }
for tool in debootstrap umoci; do
  command -v "$tool" >/dev/null || fail "$tool is not installed (apt-get install $tool)"
done
[ "$(id -u)" = 0 ] || fail "needs root"

release=$(. /etc/os-release && echo "$VERSION_CODENAME")
# Debian 12 has version 17, later releases have others.
case $release in
  bookworm) java=openjdk-17 ;;
  *) java=default ;;
esac

# Each line of packages is one layer; what the service does not use is the rest
# that real images carry along.
case $name in
  python)
    layers=(
      "python3 python3-flask"
      "python3-numpy python3-pandas python3-scipy python3-matplotlib"
      "build-essential $java-jre-headless postgresql nodejs golang-go fonts-noto-cjk"
    )
    files=(app_small.py app_large.py) ;;
  php-nginx)
    layers=(
      "nginx-light php-fpm php-symfony-http-kernel php-symfony-routing php-symfony-http-foundation php-symfony-event-dispatcher php-twig"
      "php-mysql php-gd php-intl php-mbstring php-xml mariadb-client imagemagick ffmpeg"
    )
    files=(php_index.php php_nginx.conf php_start.sh) ;;
  ai-classify)
    layers=("python3 python3-numpy" "python3-scipy python3-pil")
    files=(classify.py) ;;
  node-express)
    layers=("nodejs node-express" "npm build-essential python3 git")
    files=(express.js) ;;
  postgres)
    layers=("postgresql" "postgresql-contrib postgis")
    files=(postgres_start.sh) ;;
  openjdk-hello)
    layers=("$java-jdk-headless" "maven git")
    files=(Hello.java) ;;
  *) fail "unknown image \"$name\" (python, php-nginx, ai-classify, node-express, postgres, openjdk-hello)" ;;
esac

site=${OBD_IMAGE_SITE:-$(apt-get indextargets --format '$(SITE) $(RELEASE)' 'Created-By: Packages' |
  awk -v r="$release" '$2 == r { print $1; exit }')}
[ -n "$site" ] || fail "no Debian mirror found in apt's sources; set OBD_IMAGE_SITE"

mkdir -p "$(dirname "$layout")"
work=$(mktemp -d -p "$(dirname "$layout")")
bundle=$work/bundle
rootfs=$bundle/rootfs
mounted=
cleanup() {
  [ -z "$mounted" ] || umount -l "$mounted" 2>/dev/null || true
  rm -rf --one-file-system "$work"
}
trap cleanup EXIT
trap 'exit 130' INT TERM HUP

in_root() {
  mount -t proc proc "$rootfs/proc"; mounted=$rootfs/proc
  DEBIAN_FRONTEND=noninteractive LC_ALL=C chroot "$rootfs" "$@" >>"$work/log" 2>&1 ||
    { tail -20 "$work/log" >&2; fail "cannot run $*"; }
  umount "$rootfs/proc"; mounted=
}

tidy() {
  rm -rf "$rootfs"/var/cache/apt/* "$rootfs"/var/log/*.log "$rootfs"/var/log/apt \
    "$rootfs"/tmp/* "$rootfs"/root/.cache "$rootfs/usr/sbin/policy-rc.d"
}

[ -d "$layout" ] || umoci init --layout "$layout"
if ! umoci stat --image "$layout:base" >/dev/null 2>&1; then
  umoci new --image "$layout:base-new"
  umoci unpack --image "$layout:base-new" "$bundle" >/dev/null
  debootstrap --variant=minbase "$release" "$work/base" "$site" >"$work/log" 2>&1 ||
    { tail -20 "$work/log" >&2; fail "debootstrap failed"; }
  cp -a "$work/base/." "$rootfs/"
  rm -rf --one-file-system "$work/base"
  cp /etc/apt/apt.conf.d/*proxy* "$rootfs/etc/apt/apt.conf.d/" 2>/dev/null || true
  mkdir -p "$rootfs/proc"
  tidy
  umoci repack --image "$layout:base" "$bundle" >/dev/null
  umoci rm --image "$layout:base-new"
  rm -rf --one-file-system "$bundle"
  echo "made layer base"
fi

umoci tag --image "$layout:base" "$name-new"
umoci unpack --image "$layout:$name-new" "$bundle" >/dev/null
for packages in "${layers[@]}"; do
  cp /etc/resolv.conf "$rootfs/etc/resolv.conf" 2>/dev/null || true
  # No service is started while packages are installed.
  printf '#!/bin/sh\nexit 101\n' >"$rootfs/usr/sbin/policy-rc.d"
  chmod 755 "$rootfs/usr/sbin/policy-rc.d"
  in_root apt-get update -qq
  # shellcheck disable=SC2086
  in_root apt-get install -y -qq --no-install-recommends $packages
  tidy
  rm -rf "$rootfs"/var/lib/apt/lists/*
  umoci repack --refresh-bundle --image "$layout:$name-new" "$bundle" >/dev/null
  echo "made layer $packages"
done

mkdir -p "$rootfs/srv/app"
for file in "${files[@]}"; do cp "$here/apps/$file" "$rootfs/srv/app/$file"; done
chmod 755 "$rootfs/srv/app"/*
case $name in
  ai-classify) in_root python3 /srv/app/classify.py make ;;
  openjdk-hello) in_root javac -d /srv/app /srv/app/Hello.java ;;
esac
find "$rootfs/srv/app" -exec touch -h -d '2024-01-01T00:00:00Z' {} +
umoci repack --image "$layout:$name-new" "$bundle" >/dev/null
umoci tag --image "$layout:$name-new" "$name"
umoci rm --image "$layout:$name-new"
umoci gc --layout "$layout" >/dev/null
echo "made $layout:$name"
