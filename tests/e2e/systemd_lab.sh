# Process 1 of the lab: a real systemd on a throw-away copy of this machine's files. See systemd_lab.py.
# Arguments: an empty folder, the cgroup to live in, then folders that lie on other file systems than / and are needed.
set -eu
lab=$1 cgroup=$2
shift 2
echo 0 >"$cgroup/cgroup.procs"
if [ -z "${IN_CGROUP:-}" ]; then
  IN_CGROUP=1 exec unshare --cgroup sh "$0" "$lab" "$cgroup" "$@"
fi

mount -t tmpfs tmpfs "$lab"
mkdir "$lab/changes" "$lab/work" "$lab/root"
mount -t overlay -o "lowerdir=/,upperdir=$lab/changes,workdir=$lab/work" overlay "$lab/root"
for folder; do
  mkdir -p "$lab/root$folder"
  mount --bind "$folder" "$lab/root$folder"
  mount -o remount,bind,ro "$lab/root$folder"
done
cd "$lab/root"
mount -t proc proc proc
mount --rbind /dev dev
mount -t sysfs sysfs sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
mount -t tmpfs tmpfs run

# Nothing but the core of systemd: what else this machine starts is of no use here, and may look for hardware.
rm -rf etc/systemd/system/*.wants etc/systemd/system/*.requires
for unit in systemd-udevd systemd-logind systemd-timesyncd systemd-networkd systemd-resolved getty@tty1 console-getty \
  systemd-udev-trigger systemd-modules-load systemd-sysctl systemd-binfmt systemd-random-seed systemd-tmpfiles-setup-dev \
  systemd-tmpfiles-setup systemd-tmpfiles-clean; do
  ln -sf /dev/null "etc/systemd/system/$unit.service"
done
ln -sf /dev/null etc/systemd/system/tmp.mount
: >etc/fstab
echo solvisor-lab >etc/hostname
ip link set lo up 2>/dev/null || true

mkdir before
pivot_root . before
umount -l before
for systemd in /usr/lib/systemd/systemd /lib/systemd/systemd; do
  [ -x "$systemd" ] && exec env -i container=lab PATH=/usr/sbin:/usr/bin:/sbin:/bin "$systemd" \
    --system --unit=multi-user.target --log-target=journal --show-status=0
done
