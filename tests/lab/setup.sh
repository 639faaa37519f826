#!/bin/bash
# setup.sh: install what the lab needs, from Debian 12, and a quicker kernel from Debian unstable beside it (fetch-kernel).
# Starts nothing and changes no configuration of this machine.
set -e
export DEBIAN_FRONTEND=noninteractive
wanted="user-mode-linux lvm2 thin-provisioning-tools dmsetup kmod iproute2 util-linux procps e2fsprogs udev
 open-iscsi lsscsi sg3-utils tgt libiscsi-bin nfs-kernel-server nfs-common qemu-utils cryptsetup-bin patchelf debian-archive-keyring"
command -v cc > /dev/null || wanted="$wanted gcc libc6-dev"
missing=
for package in $wanted; do
	dpkg-query -W -f '${db:Status-Status}' "$package" 2> /dev/null | grep -q '^installed$' || missing="$missing $package"
done
if [ -n "$missing" ]; then
	[ "$(id -u)" = 0 ] || { echo "setup.sh: run as root to install:$missing" >&2; exit 1; }
	own=
	if [ ! -e /usr/sbin/policy-rc.d ]; then	# no daemon may start from its package's postinst
		printf '#!/bin/sh\nexit 101\n' > /usr/sbin/policy-rc.d
		chmod +x /usr/sbin/policy-rc.d
		own=1
	fi
	trap '[ -z "$own" ] || rm -f /usr/sbin/policy-rc.d' EXIT
	# shellcheck disable=SC2086 # a list of words
	apt-get -o DPkg::Lock::Timeout=900 install -y --no-install-recommends $missing
fi
here=$(cd "$(dirname "$0")" && pwd)
if [ ! -e /dev/mapper/control ] && [ ! -e /usr/local/lib/blockstore-lab ]; then
	"$here/fetch-kernel" || echo "setup.sh: no newer kernel; the tests in the lab will take three times as long" >&2
fi
"$here/lab-run" -- sh -c 'echo "lab: $LAB_KIND, Linux $(uname -r), $(lvm version | sed -n "s/ *LVM version: */LVM /p")"'
