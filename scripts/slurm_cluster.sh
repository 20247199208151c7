#!/usr/bin/env bash
# A real SLURM cluster of a few nodes on this machine, for as long as a command runs.
#
#   bash scripts/slurm_cluster.sh COMMAND [ARGUMENTS]
#
# COMMAND finds sbatch, srun and scontrol on its PATH. Nothing is installed, and neither root nor
# systemd is needed: Debian's packages are fetched and unpacked into a private folder, munged,
# slurmctld and one slurmd a node run from there on free ports of 127.0.0.1, and all of it is gone
# afterwards. Status 77, and a line with the reason, where the packages cannot be had.
#
#   SLURM_NODES      the number of nodes; 2 unless given
#   SLURM_PACKAGES   a folder to keep the unpacked packages in; otherwise they are fetched anew
#
# `start_node n2` brings back a node whose slurmd was killed.
set -euo pipefail
umask 022

nodes=${SLURM_NODES:-2}
host=$(hostname -s)
user=$(id -un)
work=$(mktemp -d "${TMPDIR:-/tmp}/slurm-XXXXXX")
root=${SLURM_PACKAGES:-$work/packages}
daemons=()

skip() {
  echo "skip: $1" >&2
  exit 77
}

stop() {
  exec 2>/dev/null # what bash says of killed daemons
  timeout 5 scancel --quiet --user "$user" || true
  for _ in $(seq 20); do
    [ -n "$(timeout 5 squeue --noheader || true)" ] || break
    sleep 0.1
  done
  for daemon in "${daemons[@]}"; do
    kill -KILL -- "-$daemon" || true # slurmctld would take 7 s to leave by itself
  done
  wait || true
  rm -rf "$work"
}
trap stop EXIT
trap 'exit 143' TERM
trap 'exit 130' INT

fetch_packages() {
  command -v apt-get dpkg >/dev/null || skip "SLURM's packages need apt-get and dpkg"
  local names="slurmctld slurmd slurm-client munge slurm-wlm-basic-plugins libmunge2 libhwloc15 liblua5.1-0"
  local apt=(timeout 90 apt-get -qq -o Acquire::Retries=1 -o Acquire::http::Timeout=20)
  local own=(-o "Dir::State::lists=$work/lists" -o "Dir::Cache=$work/cache") # needs no root
  mkdir -p "$root" "$work/debs" "$work/lists/partial" "$work/cache/archives/partial"
  # shellcheck disable=SC2086
  (cd "$work/debs" && { "${apt[@]}" download $names ||
    { "${apt[@]}" "${own[@]}" update && "${apt[@]}" "${own[@]}" download $names; }; }) \
    >/dev/null 2>&1 || skip "apt-get cannot fetch SLURM's packages"
  for deb in "$work"/debs/*.deb; do
    dpkg -x "$deb" "$root"
  done
}
[ -x "$root/usr/sbin/slurmd-wlm" ] || fetch_packages
libraries=$(echo "$root"/usr/lib/*-linux-gnu)
libraries=$libraries:$libraries/slurm-wlm
if LD_LIBRARY_PATH=$libraries ldd "$root/usr/sbin/slurmd-wlm" | grep -q 'not found'; then
  skip "SLURM's packages need libraries that are not here"
fi

# the clients find their libraries without LD_LIBRARY_PATH, which would reach into the jobs
mkdir -p "$work"/{bin,run,log,state}
loader=$(ls /lib64/ld-linux-*.so.* /lib/ld-linux-*.so.* 2>/dev/null | head -n 1 || true)
for program in "$root"/usr/bin/s*; do
  name=$(basename "$program")
  printf '#!/bin/sh\nexec %s --library-path %s --argv0 %s %s "$@"\n' \
    "$loader" "$libraries" "$name" "$program" >"$work/bin/$name"
  chmod 755 "$work/bin/$name"
done
export PATH=$work/bin:$PATH SLURM_CONF=$work/slurm.conf

is_used() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }
for _ in $(seq 50); do
  port=$((20000 + RANDOM % 10000))
  for i in $(seq 0 "$nodes"); do
    ! is_used $((port + i)) || continue 2
  done
  break
done

head -c 1024 /dev/urandom >"$work/run/key"
chmod 600 "$work/run/key"
cat >"$SLURM_CONF" <<END
ClusterName=test
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$port
SlurmUser=$user
SlurmdUser=$user
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
AuthType=auth/munge
# a job that was requeued starts again after cred_expire seconds; 120 is the default
AuthInfo=socket=$work/run/munge.sock,cred_expire=5
PluginDir=${libraries#*:}
StateSaveLocation=$work/state
SlurmdSpoolDir=$work/spool.%n
SlurmctldPidFile=$work/run/slurmctld.pid
SlurmdPidFile=$work/run/%n.pid
# every process of a step gets its signals, data workers too: harsher than with cgroups
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
# more CPUs than there are
SlurmdParameters=config_overrides
SchedulerParameters=sched_interval=2,bf_interval=2,sched_min_interval=0
ReturnToService=2
KillWait=10
SlurmdTimeout=10
MinJobAge=3600
$(for i in $(seq $nodes); do
  echo "NodeName=n$i NodeHostname=$host NodeAddr=127.0.0.1 Port=$((port + i)) CPUs=8 RealMemory=8000"
done)
PartitionName=main Nodes=ALL Default=YES State=UP
END

# each node has a host name of its own, and /etc/hosts knows all of them
{ cat /etc/hosts; for i in $(seq $nodes); do echo "127.0.0.1 n$i"; done; } >"$work/hosts"
own_names="unshare --mount --uts --propagation private"
$own_names true 2>/dev/null ||
  own_names="unshare --user --map-current-user --keep-caps --mount --uts --propagation private"
if ! $own_names true 2>/dev/null; then
  own_names=
  export MASTER_ADDR=127.0.0.1 # names that do not resolve are not needed then
fi

start() {
  LD_LIBRARY_PATH=$libraries setsid "$@" </dev/null >>"$work/log/daemons" 2>&1 &
  daemons+=($!)
}

start "$root/usr/sbin/munged" --foreground --force --socket "$work/run/munge.sock" \
  --key-file "$work/run/key" --pid-file "$work/run/munged.pid" --seed-file "$work/run/seed" \
  --log-file "$work/log/munged"
for _ in $(seq 200); do
  [ -S "$work/run/munge.sock" ] && break
  sleep 0.05
done
start "$root/usr/sbin/slurmctld-wlm" -D -c -i
cat >"$work/node" <<'END'
# NAME WORK PACKAGES OWN_NAMES: the daemon of a node
rm -rf "$2/spool.$1" # a crashed node must not find its old jobs there
mkdir -p "$2/spool.$1"
[ -z "$4" ] || { hostname "$1"; mount --bind "$2/hosts" /etc/hosts; }
exec "$3/usr/sbin/slurmd-wlm" -D -N "$1" -d "$3/usr/sbin/slurmstepd-wlm"
END
for i in $(seq $nodes); do
  start $own_names sh "$work/node" "n$i" "$work" "$root" "$own_names"
done
printf '#!/bin/sh\n%s\n' \
  "LD_LIBRARY_PATH=$libraries exec $own_names sh $work/node \$1 $work $root '$own_names'" \
  >"$work/bin/start_node"
chmod 755 "$work/bin/start_node"

for _ in $(seq 300); do
  [ "$(sinfo --noheader --Node --format %T 2>/dev/null | grep -c '^idle$')" != "$nodes" ] || break
  sleep 0.1
done
if [ "$(sinfo --noheader --Node --format %T | grep -c '^idle$')" != "$nodes" ]; then
  tail -n 20 "$work/log/daemons" >&2
  echo "error: the cluster did not come up" >&2
  exit 1
fi
"$@"
