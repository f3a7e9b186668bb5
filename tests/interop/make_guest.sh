#!/bin/bash
# Makes a small guest for QEMU: Debian's cloud kernel and an initramfs with
# busybox, the nbd, virtio and ext4 modules and nbd-client.
#
#   make_guest.sh DIR        writes DIR/vmlinuz and DIR/initrd.gz
#
# The guest runs the shell script that it finds in the kernel command line
# parameter obd_script= (base64), with the network up at 10.0.2.15, and powers off.
set -euo pipefail
out=${1:?usage: make_guest.sh DIR}
for tool in busybox nbd-client cpio depmod dpkg-deb apt-get; do
  command -v "$tool" >/dev/null || { echo "make_guest.sh: $tool is not installed" >&2; exit 1; }
done
[ -s "$out/initrd.gz" ] && exit 0
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
package=$(apt-cache depends linux-image-cloud-amd64 | awk '/Depends: linux-image-.*cloud-amd64/ { print $2; exit }')
[ -n "$package" ] || { echo "make_guest.sh: apt knows no linux-image-cloud-amd64 (run apt-get update)" >&2; exit 1; }
apt-get download -qq "$package" 2>/dev/null || apt-get download "$package" >&2
dpkg-deb -x ./linux-image-*.deb kernel
version=$(ls kernel/lib/modules)

root=$work/root
mkdir -p "$root"/{bin,dev,proc,sys,mnt,lib/modules,tmp}
busybox=$(command -v busybox)
cp "$busybox" "$root/bin/busybox"
for applet in sh mount umount modprobe insmod ip ifconfig cat ls find sha256sum md5sum sleep poweroff echo base64 sed awk dd blockdev stat od head sync wc sort xargs tr cut test grep; do
  ln -sf busybox "$root/bin/$applet"
done
# nbd-client is linked dynamically: take what it needs with it.
mkdir -p "$root/sbin"
cp "$(command -v nbd-client)" "$root/sbin/nbd-client"
ldd "$(command -v nbd-client)" | grep -o '/[^ ]*' | while read -r lib; do
  mkdir -p "$root$(dirname "$lib")"
  cp -L "$lib" "$root$lib"
done
# Modules with what they depend on.
depmod -b kernel "$version"
for module in nbd virtio_blk virtio_net virtio_pci ext4 crc32c_generic; do
  modprobe -d kernel -S "$version" --show-depends "$module" 2>/dev/null | awk '$1 == "insmod" { print $2 }'
done | sort -u | while read -r file; do
  file=${file#"$work/"}; file=${file#kernel/}; file=${file#*kernel//}
  path=${file#/}
  [ -f "kernel/$path" ] || path=lib/modules/${path#*lib/modules/}
  mkdir -p "$root/$(dirname "$path")"
  cp "kernel/$path" "$root/$path"
done
cp kernel/lib/modules/"$version"/modules.{order,builtin,builtin.modinfo} "$root/lib/modules/$version/"
depmod -b "$root" "$version"
cat >"$root/init" <<'INIT'
#!/bin/sh
export PATH=/bin:/sbin
mount -t proc proc /proc; mount -t sysfs sysfs /sys; mount -t devtmpfs dev /dev
for m in virtio_pci virtio_blk virtio_net crc32c_generic ext4 nbd; do modprobe $m 2>/dev/null; done
ip link set lo up; ip link set eth0 up 2>/dev/null; ip addr add 10.0.2.15/24 dev eth0 2>/dev/null
script=$(sed 's/.*obd_script=\([^ ]*\).*/\1/' /proc/cmdline)
echo "$script" | base64 -d >/tmp/script
echo GUEST-START
sh /tmp/script
echo "GUEST-EXIT $?"
sync
poweroff -f
INIT
chmod +x "$root/init"
mkdir -p "$out"
cp kernel/boot/vmlinuz-* "$out/vmlinuz.tmp"
(cd "$root" && find . | LC_ALL=C sort | cpio -o -H newc --quiet | gzip -1) >"$out/initrd.tmp"
mv "$out/vmlinuz.tmp" "$out/vmlinuz"
mv "$out/initrd.tmp" "$out/initrd.gz"
