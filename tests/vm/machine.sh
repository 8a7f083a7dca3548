# Sourced: a virtual machine whose kernel has the unified cgroup hierarchy and no other, which the machine that builds may
# not have. It is emulated, so that this works in any other machine. It needs $CHECKS, the script that is its first process.
# CACHE: where the kernel is kept. KERNEL: a bzImage to use instead of the distribution's.

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cache=${CACHE:-.cache}/vm
mkdir -p "$cache"
cache=$(realpath "$cache")
# not /tmp, which is memory on some machines
work=$(mktemp -d "$cache/run.XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT TERM

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

# The path of the program $1, some of which lie where an ordinary PATH does not lead.
program() {
  PATH=$PATH:/usr/sbin:/sbin command -v "$1" || { echo "vm: $1 is missing: make setup" >&2; return 1; }
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

# Begins the guest: the program under test $1, and what every script needs.
begin_guest() {
  local system=$work/guest/system folder
  mkdir -p "$system"/{usr/{bin,lib,lib64},etc,proc,sys,dev,tmp,var/lib} "$work/guest/bin"
  for folder in bin lib lib64; do ln -s "usr/$folder" "$system/$folder"; done
  add_program cloud-sandbox "$1"
  add_program bash "$(program bash)"
  add_program busybox "$(program busybox)"
  printf 'root:x:0:0:root:/:/bin/sh\nuser:x:1000:1000:user:/tmp:/bin/sh\n' >"$system/etc/passwd"
  printf 'root:x:0:\nuser:x:1000:\n' >"$system/etc/group"
  install -m 755 "$here/$CHECKS" "$system/checks.sh"
  install -m 644 "$here/guest.sh" "$system/guest.sh"
  cp "$(program busybox)" "$work/guest/bin/busybox"
  install -m 755 "$here/init" "$work/guest/init"
}

# Runs the guest with $1 of memory for $2 seconds at most, and succeeds if all its checks do.
run_guest() {
  local memory=$1 patience=$2 kernel=${KERNEL:-$cache/vmlinuz} code=0
  [[ -e $kernel ]] || fetch_kernel
  (cd "$work/guest" && find . | busybox cpio -o -H newc >"$work/initramfs" 2>/dev/null)
  # Emulated even where KVM is there: in many a virtual machine it is and does not work, and QEMU finds out too late. By one
  # thread: by one for each processor, guests have hung where the kernel changes code that the other one runs.
  timeout --foreground "$patience" "$(program qemu-system-x86_64)" -accel tcg,thread=single -cpu max -smp 2 -m "$memory" -nodefaults \
    -no-user-config -display none -serial stdio -no-reboot -kernel "$kernel" -initrd "$work/initramfs" \
    -append "console=ttyS0 quiet loglevel=1 panic=-1" </dev/null | sed --unbuffered 's/\r//' | tee "$work/output" || code=$?
  ((code != 124)) || echo "vm: not done after $patience s" >&2
  if ((code != 0)) || grep --quiet '^not ok ' "$work/output" || ! grep --quiet '^1\.\.[0-9]' "$work/output"; then
    printf '\nvm: FAILED\n' >&2
    exit 1
  fi
}
