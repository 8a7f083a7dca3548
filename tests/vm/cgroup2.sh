#!/usr/bin/env bash
# Runs the program BINARY in a virtual machine whose kernel has the unified cgroup hierarchy and no other, which the
# machine that builds may not have. The machine is emulated, so that this works in any other machine.
# CACHE: where the kernel is kept. KERNEL: a bzImage to use instead of the distribution's.
set -euo pipefail

# Seconds for everything inside. Two idle cores need a quarter of it.
PATIENCE=240

(($# == 1)) || { echo "usage: ${0##*/} BINARY" >&2; exit 2; }
binary=$(realpath "$1")
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cache=${CACHE:-.cache}/vm
mkdir -p "$cache"
cache=$(realpath "$cache")
# not /tmp, which is memory on some machines
work=$(mktemp -d "$cache/run.XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT TERM

for program in qemu-system-x86_64 busybox; do
  command -v "$program" >/dev/null || { echo "vm: $program is missing: make setup" >&2; exit 1; }
done

# Unpacks the kernel of Debian's or Ubuntu's package for virtual machines, without installing it.
fetch_kernel() {
  local package='' name
  for name in linux-image-cloud-amd64 linux-image-virtual; do
    package=$(apt-cache depends --important "$name" 2>/dev/null |
      awk '$1 == "Depends:" && $2 ~ /^linux-image/ {print $2; exit}')
    [[ -z $package ]] || break
  done
  [[ -n $package ]] ||
    { echo "vm: apt knows no kernel for virtual machines: apt-get update, or set KERNEL to a bzImage" >&2; return 1; }
  echo "vm: fetching $package (once)"
  (cd "$work" && apt-get download -qq "$package" 2>"$work/apt.log") || { cat "$work/apt.log" >&2; return 1; }
  dpkg-deb --fsys-tarfile "$work/$package"_*.deb | tar -x --directory "$work" --wildcards './boot/vmlinuz-*'
  mv "$work"/boot/vmlinuz-* "$cache/vmlinuz"
}

# Puts the program $2 as $1, and the libraries that it needs, into the guest.
add_program() {
  local name=$1 program=$2 library
  install -m 755 "$program" "$work/guest/system/usr/bin/$name"
  # ldd fails for what is linked statically
  { ldd "$program" 2>/dev/null || true; } | awk '{for (i = 1; i <= NF; i++) if ($i ~ "^/") print $i}' |
    while read -r library; do
      mkdir -p "$work/guest/system$(dirname "$library")"
      cp --dereference "$library" "$work/guest/system$library"
    done
}

build_guest() {
  local system=$work/guest/system folder
  mkdir -p "$system"/{usr/{bin,lib,lib64},etc,proc,sys,dev,tmp,var/lib}
  for folder in bin lib lib64; do ln -s "usr/$folder" "$system/$folder"; done
  add_program cloud-sandbox "$binary"
  add_program bash "$(command -v bash)"
  add_program busybox "$(command -v busybox)"
  add_program setpriv "$(command -v setpriv)"
  add_program unshare "$(command -v unshare)"
  printf 'root:x:0:0:root:/:/bin/sh\nuser:x:1000:1000:user:/tmp:/bin/sh\n' >"$system/etc/passwd"
  printf 'root:x:0:\nuser:x:1000:\n' >"$system/etc/group"
  install -m 755 "$here/checks.sh" "$system/checks.sh"
  mkdir "$work/guest/bin"
  cp "$(command -v busybox)" "$work/guest/bin/busybox"
  install -m 755 "$here/init" "$work/guest/init"
  (cd "$work/guest" && find . | busybox cpio -o -H newc >"$work/initramfs" 2>/dev/null)
}

kernel=${KERNEL:-$cache/vmlinuz}
[[ -e $kernel ]] || fetch_kernel
build_guest

code=0
# emulated even where KVM is there: in many a virtual machine it is and does not work, and QEMU finds out too late
timeout --foreground "$PATIENCE" qemu-system-x86_64 -accel tcg -cpu max -smp 2 -m 1G -nodefaults -no-user-config \
  -display none -serial stdio -no-reboot -kernel "$kernel" -initrd "$work/initramfs" \
  -append "console=ttyS0 quiet loglevel=1 panic=-1" </dev/null | tr -d '\r' | tee "$work/output" || code=$?
((code != 124)) || echo "vm: not done after $PATIENCE s" >&2
if ((code != 0)) || grep --quiet '^not ok ' "$work/output" || ! grep --quiet '^1\.\.[0-9]' "$work/output"; then
  printf '\nvm: FAILED\n' >&2
  exit 1
fi
